"""A decode step as one call into C++: the same kernels, without Python between them.

A small model's operators take microseconds each, and so would calling them one by one.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from adept_fast import _C
from adept_fast.quantization.matrix import Matrix, parts_of
from adept_fast.weights import LayerWeights, ModelWeights


class CpuStep:
    """The step of one model on a CPU.

    Args:
        lm_head: the rows of the output matrix that are computed.
        counts: int64 [2], to which a step adds the rows of the down-projections that it read, and all rows.
    """

    def __init__(
        self,
        weights: ModelWeights,
        lm_head: Matrix,
        cos: Tensor,
        sin: Tensor,
        eps: float,
        scale: float,
        counts: Tensor,
    ) -> None:
        self._layers = tensors_in_order(weights)
        self._embedding = weights.embedding
        self._rotary = (cos, sin)
        self._head = (weights.final_gamma, weights.final_beta, *parts_of(lm_head), lm_head.shape[0])
        self._settings = (eps, scale, counts)

    def __call__(self, ids: Tensor, slots: Tensor, positions: Tensor, cache: Tensor) -> Tensor:
        """Logits: float32 [tokens, rows of the lm_head].

        Args:
            ids, slots, positions: int64 [tokens].
            cache: [layer, k/v, slot, head, position, head_dim].
        """
        logits: Tensor = torch.ops.adept_fast.decode_step(
            ids,
            slots,
            positions,
            self._embedding,
            self._layers,
            *self._rotary,
            cache,
            *self._head,
            *self._settings,
        )
        return logits


def tensors_in_order(weights: ModelWeights) -> list[Tensor]:
    """The tensors of all layers as the extension takes them, an empty one for each that a layer lacks."""
    absent = torch.empty(0, dtype=torch.float32, device=weights.device)
    layers = [_tensors_of(layer) for layer in weights.layers]
    order = _C.layer_tensors().split(", ")
    found = [layer[name] for layer in layers for name in order]
    return [absent if tensor is None else tensor for tensor in found]


def _tensors_of(layer: LayerWeights) -> dict[str, Tensor | None]:
    """By their names in the extension: those of the fields, and of the scales of matrices."""
    tensors: dict[str, Tensor | None] = {}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if field.name.startswith("w_"):
            value, tensors[f"{field.name.split('_')[1]}_scales"] = parts_of(value)
        tensors[field.name] = value
    return tensors
