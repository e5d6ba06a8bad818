"""Finds the data of an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it or what it needs."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {name!r} is not installed; see tools/demo/README.md")
    return Path(next(iter(spec.submodule_search_locations)))
