"""``pytorch_model.bin``, what transformers saved before safetensors: a dict of tensors from torch.save."""

from __future__ import annotations

from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError, StoredTensor
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.pickle_values import described
from adept_fast.checkpoint.torch_file import MAX_NAME, read_torch_file

BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"


def tensors_of_bin(path: Path, left_unread: set[str], *, mmap: bool = True) -> dict[str, StoredTensor]:
    """The tensors of a file of torch.save, by name; the unknown names in it are added to ``left_unread``.

    Raises CheckpointError where it is no such file, or holds anything but tensors by name.
    """
    file = FileRange.whole(path, mmap=mmap)
    read = read_torch_file(file)
    if not isinstance(read.contents, dict):
        raise CheckpointError(f"{path}: holds {described(read.contents)}; expected a dict of tensors")
    for name in read.contents:
        if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
            raise CheckpointError(f"{path}: has the key {described(name)}; expected the name of a tensor")
    left_unread |= set(read.left_unread)
    return read.tensors(read.contents.items())
