"""The compiled operators: how they are built, found and loaded."""

from adept_fast.extension.loader import Extension, load

__all__ = ["Extension", "load"]
