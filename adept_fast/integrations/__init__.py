"""Adapters for optional packages; each module names the package that it needs."""
