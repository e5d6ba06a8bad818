"""gpu_row_major: the layout of packed weights for the CUDA kernels, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adept_fast.quantization.layout_plain import RowMajorMatrix


@dataclass(frozen=True)
class GpuMatrix(RowMajorMatrix):
    """A packed matrix as the CUDA kernels read it: row by row, with the weights of 4 bits permuted."""

    layout: ClassVar[str] = "gpu_row_major"

    @staticmethod
    def join_nibbles(rounded: Tensor) -> Tensor:
        """[rows, columns] of Q → [rows, columns / 2]. Eight weights are a 32-bit word: weight 2 i is at bit
        4 i of the low half, weight 2 i + 1 at bit 4 i of the high half."""
        # [rows, words, byte, nibble, half]
        eights = rounded.view(len(rounded), rounded.shape[1] // 8, 2, 2, 2)
        return (eights[:, :, :, 0] | eights[:, :, :, 1] << 4).transpose(2, 3).flatten(1)

    @staticmethod
    def split_nibbles(packed: Tensor) -> Tensor:
        pairs = torch.stack((packed & 15, packed >> 4), -1)  # [rows, columns / 2, nibble]
        words = pairs.view(len(packed), packed.shape[1] // 4, 2, 2, 2)  # [rows, words, half, byte, nibble]
        return words.permute(0, 1, 3, 4, 2).flatten(1)
