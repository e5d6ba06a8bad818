"""A checkpoint that counts how many of its tensors memory holds at once."""

from __future__ import annotations

import weakref
from dataclasses import replace

from torch import Tensor

from adept_fast.checkpoint import Checkpoint, StoredTensor


class Watched:
    """``checkpoint`` reads copies of the tensors of another one; ``most`` is how many lived at once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._read: list[weakref.ref[Tensor]] = []
        self.most = 0
        tensors = {name: self._counted(stored) for name, stored in checkpoint.tensors.items()}
        self.checkpoint = replace(checkpoint, tensors=tensors)

    def _counted(self, stored: StoredTensor) -> StoredTensor:
        def read() -> Tensor:
            tensor = stored.read().clone()
            self._read.append(weakref.ref(tensor))
            self.most = max(self.most, sum(reference() is not None for reference in self._read))
            return tensor

        return replace(stored, read=read)
