"""The compiled operators: how they are built, found and loaded."""

from adept_fast.extension.loader import Extension, load, missing_for_cuda

__all__ = ["Extension", "load", "missing_for_cuda"]
