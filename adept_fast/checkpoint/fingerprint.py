"""The fingerprint of a checkpoint: the same for its copies, another one for other weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from adept_fast.system.regular_file import RegularFile

# Beside weights, of which samples are read, and what determines token ids and shapes, there may be anything.
_SUFFIXES = (".bin", ".json", ".model", ".pt", ".safetensors", ".tar", ".txt")
_SAMPLES = 64
_SAMPLE_BYTES = 2**14


def fingerprint(path: Path) -> str:
    """64 hexadecimal digits of the files of a checkpoint: their names, sizes, and samples of their contents.

    A file of up to a megabyte is read whole. Raises FileError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for name, file in _files(path):
        opened = RegularFile(file)
        digest.update(f"{len(name.encode())} {name} {opened.size} ".encode())
        for offset, length in _parts(opened.size):
            digest.update(opened.read_at(offset, length))
    return digest.hexdigest()


def _files(path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [("", path)]
    found = [file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file()]
    return sorted((file.relative_to(path).as_posix(), file) for file in found)


def _parts(size: int) -> Iterator[tuple[int, int]]:
    """The offsets and lengths of what is read: all, or the beginning, the end, and parts between."""
    if size <= _SAMPLES * _SAMPLE_BYTES:
        yield 0, size
        return
    for sample in range(_SAMPLES):
        yield sample * (size - _SAMPLE_BYTES) // (_SAMPLES - 1), _SAMPLE_BYTES
