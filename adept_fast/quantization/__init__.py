"""Quantization: formats, rounding, and the order of packed weights on each device."""
