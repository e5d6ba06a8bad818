"""The share of a checkpoint that one of several tensor-parallel ranks holds.

As in Megatron-LM (Shoeybi et al. 2019), a rank has some heads, some neurons of the MLP and some rows of the
vocabulary. The projections into heads and neurons are split by rows, with their biases; those out of them by
columns, so that the ranks' products are terms of one sum, to which the first rank's adds the bias. LayerNorms
are whole on each rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from adept_fast.checkpoint.base import Checkpoint, StoredTensor
from adept_fast.checkpoint.native import StoredMatrix
from adept_fast.config import PersimmonConfig, RankConfig
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.matrix import QuantizedMatrix

_HEADS = ".self_attn.query_key_value."
_DENSE = ".self_attn.dense."
_UP = ".mlp.dense_h_to_4h."
_DOWN = ".mlp.dense_4h_to_h."
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Share:
    """What rank ``rank`` of ``count`` has of a model; ``count`` divides the number of heads.

    A dimension that ``count`` divides is split equally, as in Adept's ``mp_rank_*`` files.
    """

    config: PersimmonConfig
    rank: int
    count: int

    def of(self, total: int) -> range:
        """The rank's part of ``total`` neurons, heads or ids."""
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    @property
    def vocabulary(self) -> range:
        return self.of(self.config.vocab_size)

    @property
    def attention(self) -> range:
        """The dimensions of the rank's heads."""
        heads, width = self.of(self.config.num_attention_heads), self.config.head_dim
        return range(heads.start * width, heads.stop * width)

    def rank_config(self, weights: WeightFormat | None) -> RankConfig:
        """The config of the rank's part of the model, if its matrices are packed as ``weights``."""
        config, attention = self.config, self.attention
        group = 1 if weights is None else weights.group_size or 1
        before = attention.start % group
        after = min(-attention.stop % group, config.hidden_size - attention.stop)
        names = (field for field in PersimmonConfig.__dataclass_fields__)
        return RankConfig(
            **{name: getattr(config, name) for name in names}
            | {
                "num_attention_heads": len(self.of(config.num_attention_heads)),
                "intermediate_size": len(self.of(config.intermediate_size)),
                "vocab_size": len(self.vocabulary),
            },
            of=config,
            first_row=self.vocabulary.start,
            padding=(before, after),
        )


def rank_checkpoint(checkpoint: Checkpoint, share: Share, weights: WeightFormat | None) -> Checkpoint:
    """The rank's part of a checkpoint whose matrices are, or will be, packed as ``weights``.

    Its tensors and packed matrices are read without those of other ranks. Biases that are added to a sum over
    ranks are 0 on all but the first.
    """
    config = share.rank_config(weights)
    before, after = config.dense_padding
    dense = range(share.attention.start - before, share.attention.stop + after)

    def stored(name: str, tensor: StoredTensor) -> StoredTensor:
        if name.endswith(".bias") and (_DENSE in name or _DOWN in name):
            return tensor if share.rank == 0 else _zeros(tensor)
        dimension, part = _split(name, share, dense)
        return tensor if part is None else tensor.part(dimension, part.start, part.stop)

    packed = {name: _packed(name, read, share, dense) for name, read in checkpoint.packed.items()}
    tensors = {name: stored(name, tensor) for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, config=config, tensors=tensors, packed=packed)


def is_summed_over_ranks(name: str) -> bool:
    """Whether the ranks' products with the matrix ``name`` are terms of one sum."""
    return name.endswith(".weight") and (_DENSE in name or _DOWN in name)


def _split(name: str, share: Share, dense: range) -> tuple[int, range | None]:
    """The dimension along which a tensor is split, and the rank's part of it; None if it is whole."""
    attention = share.attention
    if name in _VOCABULARY:
        return 0, share.vocabulary
    if _HEADS in name:
        return 0, range(3 * attention.start, 3 * attention.stop)
    if _DENSE in name:
        return 1, dense
    if _UP in name or _DOWN in name:
        return int(_DOWN in name), share.of(share.config.intermediate_size)
    return 0, None


def _packed(
    name: str, read: Callable[[], QuantizedMatrix], share: Share, dense: range
) -> Callable[[], QuantizedMatrix]:
    """The function that reads the rank's part of a packed matrix; packed down-projections are transposed."""
    dimension, part = _split(name, share, dense)
    by_row = dimension == 0 or _DOWN in name
    assert part is not None

    def read_part(part: range) -> QuantizedMatrix:
        matrix = read if isinstance(read, StoredMatrix) else read()
        rows, columns = map(range, matrix.spec.shape)
        return matrix.part(part, columns) if by_row else matrix.part(rows, part)

    return partial(read_part, part)


def _zeros(tensor: StoredTensor) -> StoredTensor:
    def read() -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")

    return replace(tensor, read=read, read_part=None)
