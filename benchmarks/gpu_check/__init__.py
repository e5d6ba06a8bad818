"""Tests and times the CUDA kernels on a GPU, with what ``build`` made for it."""
