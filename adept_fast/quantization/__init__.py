"""Quantization: formats, rounding, and the order of packed weights for each device."""
