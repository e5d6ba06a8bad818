"""The layers of a decode step on a GPU as one call into C++, for matrices in tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from adept_fast.ops import cuda, kernels
from adept_fast.ops.step import tensors_in_order
from adept_fast.ops.step_kernels import MAX_TOKENS_OF_ONE
from adept_fast.quantization.layout_gpu_tiles import is_in_tiles
from adept_fast.weights import ModelWeights

_STRIP_COLUMNS = 256  # of the down-projection, at least


def takes(weights: ModelWeights) -> bool:
    """Whether the kernels compute whole layers of such weights."""
    matrices = [
        matrix for layer in weights.layers for name, matrix in vars(layer).items() if name.startswith("w_")
    ]
    return all(is_in_tiles(matrix) for matrix in matrices)


class LayersStep:
    """The layers of decode steps of one model.

    Args:
        eps, scale: of LayerNorm and of attention.
        one_kernel: for steps that one kernel takes; others launch four for each layer.
    """

    def __init__(
        self, weights: ModelWeights, cos: Tensor, sin: Tensor, eps: float, scale: float, one_kernel: bool
    ) -> None:
        self._layers = tensors_in_order(weights)
        self._rotary = (cos, sin)
        self._settings = (eps, scale)
        self._one_kernel = one_kernel
        # Counters of blocks, which a captured graph keeps using: 0 before the first step. [2, counters]
        strips = -(-weights.final_gamma.numel() // _STRIP_COLUMNS)
        heads = weights.final_gamma.numel() // 8  # at most, as a head has 8 dimensions or more
        size = (2, 1 + strips + cuda.MAX_TOKENS * heads)
        self._counters = torch.zeros(size, dtype=torch.int64, device=weights.device)

    def __call__(
        self,
        x: Tensor,
        slots: Tensor,
        positions: Tensor,
        cache: Tensor,
        longest: int,
        neuron_counts: Tensor | None,
    ) -> Tensor:
        """The hidden states after all layers: float32 [tokens, hidden].

        Args:
            x: float32 [tokens, hidden], embedded.
            slots, positions: int64 [tokens].
            cache: [layer, k/v, slot, head, position, head_dim], float16 or bfloat16.
            longest: more than any position.
        """
        one = self._one_kernel and len(x) <= MAX_TOKENS_OF_ONE
        counters = self._counters[int(one)]
        hidden: Tensor = kernels.operators.decode_layers(
            x,
            slots,
            positions,
            longest,
            self._layers,
            *self._rotary,
            cache,
            *self._settings,
            neuron_counts,
            counters,
            one,
        )
        return hidden
