"""Persimmon: the decoder, written on the operators.

Prefill takes many tokens of each of several sequences, decode one. Both run the same layer; only the
attention differs. Residual sums are float32, and keys and values pass through the cache before they are
attended to, so a prompt that is split into chunks sees exactly what it would see whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast import ops
from adept_fast.config import PersimmonConfig
from adept_fast.kv_cache import StaticKVCache
from adept_fast.ops.cuda import MAX_TOKENS
from adept_fast.ops.ranks import ONE_RANK, Ranks
from adept_fast.ops.transfer import to_device
from adept_fast.quantization.matrix import Matrix, first_rows
from adept_fast.weights import LayerWeights, ModelWeights

PREFILL_CHUNK = 512  # tokens; bounds the attention's scores and the MLP's activations, and fills a GEMM


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence, and where their keys and values go: a slot, from ``start`` on."""

    slot: int
    start: int
    ids: Sequence[int]

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.ids)

    def split(self, count: int) -> tuple[Segment, Segment]:
        """Its first ``count`` tokens, and the rest."""
        rest = Segment(self.slot, self.start + count, self.ids[count:])
        return Segment(self.slot, self.start, self.ids[:count]), rest


def next_chunk(segments: Iterable[Segment], max_tokens: int = PREFILL_CHUNK) -> list[Segment]:
    """The first tokens of the segments, at most ``max_tokens``, to read in one pass; none if none is left."""
    chunk = []
    for segment in segments:
        if segment.ids and max_tokens:
            chunk.append(segment.split(max_tokens)[0])
            max_tokens -= len(chunk[-1].ids)
    return chunk


def chunks(segments: Iterable[Segment], max_tokens: int = PREFILL_CHUNK) -> Iterator[list[Segment]]:
    """All chunks of the segments, by ``next_chunk``. No two segments may have one slot."""
    unread = {segment.slot: segment for segment in segments}
    while chunk := next_chunk(unread.values(), max_tokens):
        for part in chunk:
            unread[part.slot] = unread[part.slot].split(len(part.ids))[1]
        yield chunk


class Persimmon:
    """A decoder over loaded weights.

    Args:
        max_seq_len: the positions of the rotary tables.
        vocab_size: logits are computed for ids below this; other rows (padding, unused) are not read.
        exact_prefill: compute the tokens of prompts as decode steps would, few at a time.
        ranks: if the model is tensor-parallel, those that have its parts; ``config`` and ``weights`` are then
            the part of this one, and each rank calls the same methods with the same arguments.
    """

    def __init__(
        self,
        config: PersimmonConfig,
        weights: ModelWeights,
        *,
        max_seq_len: int,
        vocab_size: int,
        exact_prefill: bool = False,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.config = config
        self.weights = weights
        self.ranks = ranks
        self._exact_prefill = exact_prefill
        self.scale = config.head_dim**-0.5
        table = ops.rotary_table(config.rotary_dim, config.rope_theta, max_seq_len, weights.device)
        self.cos, self.sin = table  # each [max_seq_len, rotary_dim / 2]
        loaded = weights.lm_head.shape[0]
        used = first_rows(weights.lm_head, min(max(vocab_size - config.first_id, 0), loaded))
        self._lm_head = _OutputRows.of(used, ranks)
        # A GPU has no unused ones, but for one of a rank that would have none.
        self._all_rows = _OutputRows.of(weights.lm_head if self.device.type == "cpu" else used, ranks)
        self.chunk_tokens = MAX_TOKENS if exact_prefill else PREFILL_CHUNK  # of prompts, in one pass
        gemm = None if exact_prefill else ops.prefill_gemm(weights.layers[0].w_up)
        self._prefill_operators: ModelOperators = gemm or ops
        # The neurons of the decode steps so far: active ones, whose rows of w_down_t are read, and all.
        self.neuron_counts = torch.zeros(2, dtype=torch.int64, device=weights.device)
        eps = config.layer_norm_eps
        self._cpu_step = self._layers_step = None
        if ranks.count == 1:  # several add up their terms in the middle of each layer
            counts = self.neuron_counts
            self._cpu_step = ops.cpu_step(weights, used, *table, eps, self.scale, counts)
            self._layers_step = ops.gpu_step(weights, *table, eps, self.scale, config.head_dim)

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @property
    def has_one_order(self) -> bool:
        """Whether a token's keys and values have the same bits if it is prefilled and if it is decoded."""
        return self._prefill_operators is ops

    def prefill(self, ids: Tensor, cache: StaticKVCache, slot: int, start: int = 0) -> Tensor:
        """Read the tokens of one sequence into its slot, in chunks.

        Args:
            ids: int64 [tokens], at least one, the tokens at positions ``start``, ``start + 1``, …

        Returns the logits after the last token, float32 [1, vocab_size].
        """
        for chunk in chunks([Segment(slot, start, ids.tolist())], self.chunk_tokens):
            hidden = self.prefill_chunk(chunk, cache)
        return self.logits(hidden[-1:])

    def prefill_chunk(self, segments: Sequence[Segment], cache: StaticKVCache) -> Tensor:
        """Read tokens of several sequences into their slots, in one pass over the weights.

        A slot has at most one segment. The host waits for nothing.

        Returns the last hidden states, segment after segment: float32 [tokens, hidden].
        """
        sizes = [len(segment.ids) for segment in segments]
        ids, slots, positions = to_device(
            [
                [token_id for segment in segments for token_id in segment.ids],
                [segment.slot for segment in segments for _ in segment.ids],
                [position for segment in segments for position in range(segment.start, segment.end)],
            ],
            self.device,
        )  # each [tokens]

        if self._exact_prefill:
            longest = max(segment.end for segment in segments)
            return self._decode_layers(ids, slots, positions, cache, longest)

        def attend(q: Tensor, cache_layer: Tensor) -> Tensor:
            attended = [
                ops.prefill_attention(queries, cache_layer, segment.slot, segment.start, self.scale)
                for segment, queries in zip(segments, q.split(sizes), strict=True)
            ]
            return attended[0] if len(attended) == 1 else torch.cat(attended)

        with ops.prefill_settings(self.device):
            return self._layers(self.embed(ids), slots, positions, cache, attend, self._prefill_operators)

    def decode_step(
        self, ids: Tensor, slots: Tensor, positions: Tensor, cache: StaticKVCache, longest: int
    ) -> Tensor:
        """Read one more token of each of several sequences, or a few.

        Args:
            ids, slots, positions: int64 [tokens]; a slot may have several tokens at different positions, each
                of which attends to those before it.
            longest: an upper bound, known to the host, of the sequences' lengths with their new tokens.

        Returns the logits after each token, float32 [tokens, vocab_size].
        """
        if self._cpu_step is not None:
            return self._cpu_step(ids, slots, positions, cache.data)
        return self.decode_step_by_operators(ids, slots, positions, cache, longest)

    def decode_step_by_operators(
        self, ids: Tensor, slots: Tensor, positions: Tensor, cache: StaticKVCache, longest: int
    ) -> Tensor:
        """``decode_step`` operator by operator; with the extension a CPU takes one call into C++ instead.

        More rows than the kernels of a GPU take are read in groups, whose tokens keep their bits.
        """
        ids, slots, positions = self.ranks.shared(torch.stack((ids, slots, positions)))
        groups = zip(ids.split(MAX_TOKENS), slots.split(MAX_TOKENS), positions.split(MAX_TOKENS), strict=True)
        hidden = [
            self._decode_layers(few_ids, few_slots, few_positions, cache, longest, self.neuron_counts)
            for few_ids, few_slots, few_positions in groups
        ]
        return self._few_logits(hidden[0] if len(hidden) == 1 else torch.cat(hidden), self._lm_head)

    def _decode_layers(
        self,
        ids: Tensor,
        slots: Tensor,
        positions: Tensor,
        cache: StaticKVCache,
        longest: int,
        neuron_counts: Tensor | None = None,
    ) -> Tensor:
        if self._layers_step is not None and cache.data.dtype != torch.float32:
            return self._layers_step(self.embed(ids), slots, positions, cache.data, longest, neuron_counts)
        lengths = positions + 1

        def attend(q: Tensor, cache_layer: Tensor) -> Tensor:
            return ops.decode_attention(q, cache_layer, slots, lengths, longest, self.scale)

        return self._layers(self.embed(ids), slots, positions, cache, attend, ops, neuron_counts)

    def embed(self, ids: Tensor) -> Tensor:
        """float32 [tokens, hidden]."""
        if self.ranks.count == 1:
            return ops.embed(self.weights.embedding, ids)
        rows = ids - self.config.first_id
        is_here = (rows >= 0) & (rows < len(self.weights.embedding))  # of the one rank that has the row
        x = ops.embed(self.weights.embedding, torch.where(is_here, rows, 0))
        return self.ranks.sum(x.masked_fill_(~is_here[:, None], 0))

    def logits(self, x: Tensor) -> Tensor:
        """A decode step's logits, of the ids below ``vocab_size``: float32 [tokens, vocab_size]."""
        return self._few_logits(x, self._lm_head)

    def all_logits(self, x: Tensor) -> Tensor:
        """Logits of all rows that are loaded, on a CPU unused ones too: float32 [tokens, rows].

        If there are several ranks, the first has those of all; so do ``logits`` and ``decode_step``.
        """
        if self._exact_prefill:
            return self._few_logits(x, self._all_rows)
        return self._project_to_vocabulary(x, self._all_rows, self._prefill_operators)

    def _few_logits(self, x: Tensor, lm_head: _OutputRows) -> Tensor:
        rows = [self._project_to_vocabulary(few, lm_head, ops) for few in x.split(MAX_TOKENS)]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _project_to_vocabulary(self, x: Tensor, lm_head: _OutputRows, operators: ModelOperators) -> Tensor:
        matrix = lm_head.matrix
        norm = (self.weights.final_gamma, self.weights.final_beta, self.config.layer_norm_eps)
        if self.ranks.count == 1:
            return operators.lm_head(x, *norm, matrix)
        # A rank may have none of the rows in use.
        logits = operators.lm_head(x, *norm, matrix) if matrix.shape[0] else x.new_empty(len(x), 0)
        return self.ranks.gathered(logits, lm_head.widths)

    def _layers(
        self,
        x: Tensor,
        slots: Tensor,
        positions: Tensor,
        cache: StaticKVCache,
        attend: Callable[[Tensor, Tensor], Tensor],
        operators: LayerOperators,
        neuron_counts: Tensor | None = None,
    ) -> Tensor:
        for index, layer in enumerate(self.weights.layers):
            x = self._layer(x, layer, slots, positions, cache.layer(index), attend, operators, neuron_counts)
        return x  # [tokens, hidden]

    def _layer(
        self,
        x: Tensor,
        layer: LayerWeights,
        slots: Tensor,
        positions: Tensor,
        cache_layer: Tensor,
        attend: Callable[[Tensor, Tensor], Tensor],
        operators: LayerOperators,
        neuron_counts: Tensor | None,
    ) -> Tensor:
        eps = self.config.layer_norm_eps

        def rotate_and_attend(qkv: Tensor) -> Tensor:
            norms = (layer.q_gamma, layer.q_beta, layer.k_gamma, layer.k_beta)
            q = ops.rotary_append(qkv, *norms, eps, self.cos, self.sin, slots, positions, cache_layer)
            return attend(q, cache_layer)  # [tokens, hidden]

        # A decode step, which counts neurons, is alone in having absent tokens.
        present = None if neuron_counts is None else slots
        products = _Products(
            layer, eps, operators, neuron_counts, present, self.ranks, self.config.dense_padding
        )
        return decoder_layer(x, products, rotate_and_attend)


@dataclass(frozen=True)
class _OutputRows:
    """Rows of the output matrix, and how many of them each rank has."""

    matrix: Matrix
    widths: Sequence[int]

    @classmethod
    def of(cls, matrix: Matrix, ranks: Ranks) -> _OutputRows:
        return cls(matrix, ranks.told(matrix.shape[0], matrix.device))


class LayerOperators(Protocol):
    """The products of a layer, with the signatures of ``ops/reference.py``."""

    @property
    def layernorm_qkv(self) -> Callable[..., Tensor]: ...

    @property
    def linear_residual(self) -> Callable[..., Tensor]: ...

    @property
    def mlp(self) -> Callable[..., Tensor]: ...


class ModelOperators(LayerOperators, Protocol):
    """And that of the vocabulary."""

    @property
    def lm_head(self) -> Callable[..., Tensor]: ...


class LayerProducts(Protocol):
    """The products of one layer, on residual sums [tokens, hidden] or [batch, sequence, hidden]."""

    def project_qkv(self, x: Tensor) -> Tensor:
        """LayerNorm, then the QKV projection: [.., hidden] → [.., 3 * hidden]."""

    def add_attention(self, attended: Tensor, x: Tensor) -> Tensor:
        """x plus the projection of what the heads attended to: → [.., hidden]."""

    def add_mlp(self, x: Tensor) -> Tensor:
        """x plus the MLP of its LayerNorm: → [.., hidden]."""


def decoder_layer(x: Tensor, layer: LayerProducts, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """One layer of the decoder, for the runtime and ``adept_fast.modeling``: → float32, shaped like x.

    Args:
        x: float32 [tokens, hidden] or [batch, sequence, hidden], the residual sums.
        attend: rotates and attends: qkv [.., 3 * hidden] → [.., hidden].
    """
    return layer.add_mlp(layer.add_attention(attend(layer.project_qkv(x)), x))


@dataclass(frozen=True)
class _Products:
    """The operators on loaded weights; ``counts`` and ``slots`` are those of ``ops.mlp``.

    If there are several ranks, each has a part of the sums that the projections into the residual add.
    """

    weights: LayerWeights
    eps: float
    operators: LayerOperators
    counts: Tensor | None
    slots: Tensor | None
    ranks: Ranks
    dense_padding: tuple[int, int]  # columns of w_dense that no head of this rank has

    def project_qkv(self, x: Tensor) -> Tensor:
        w = self.weights
        return self.operators.layernorm_qkv(x, w.input_gamma, w.input_beta, self.eps, w.w_qkv, w.b_qkv)

    def add_attention(self, attended: Tensor, x: Tensor) -> Tensor:
        w = self.weights
        if any(self.dense_padding):
            attended = F.pad(attended, self.dense_padding)
        return self.ranks.sum(
            self.operators.linear_residual(attended, w.w_dense, w.b_dense, self.ranks.addend(x))
        )

    def add_mlp(self, x: Tensor) -> Tensor:
        w = self.weights
        norm, up, down = (w.mlp_gamma, w.mlp_beta, self.eps), (w.w_up, w.b_up), (w.w_down_t, w.b_down)
        residual = self.ranks.addend(x)
        return self.ranks.sum(self.operators.mlp(x, *norm, *up, *down, self.counts, self.slots, residual))
