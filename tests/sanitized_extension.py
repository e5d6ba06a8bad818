"""Builds the extension with sanitizers for some instruction sets alone, where its loader looks for it.

``python sanitized_extension.py avx2 avx512_vnni``, in the environment of a process that is to load it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from adept_fast.extension import recipe
from adept_fast.extension.loader import cache_directory, find_sources
from adept_fast.extension.recipe import toolchain


def build(instruction_sets: Sequence[str]) -> None:
    """Besides the portable one. Raises BuildError."""
    csrc, cache = find_sources(), cache_directory()
    assert csrc is not None
    key = recipe.build_key(csrc, recipe.read_options())
    directory = cache / key[:32]
    built = recipe.read_record(directory)
    if built and built.key == key and set(instruction_sets) <= set(built.instruction_sets):
        return
    for name in set(toolchain.X86_INSTRUCTION_SETS).difference(instruction_sets):
        del toolchain.X86_INSTRUCTION_SETS[name]
    partial = cache / "partial"
    record = recipe.build(csrc, partial, cache / "objects")
    recipe.install(partial / record.file, replace(record, key=key), directory)


if __name__ == "__main__":
    build(sys.argv[1:])
