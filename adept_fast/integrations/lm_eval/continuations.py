"""Log-probabilities of continuations after contexts, of several sequences at once.

A context that several continuations share is read once, into a slot of its own. Tokens of different slots
share the products of a layer; only the attention goes slot by slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from adept_fast import ops
from adept_fast.engine.runtime import Runtime
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.workspace import SCORED_ROWS
from adept_fast.model import PREFILL_CHUNK, Persimmon, decoder_layer
from adept_fast.weights import LayerWeights

Ids = Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """The natural logarithm of a continuation's probability, among all rows of the vocabulary, and whether
    each of its tokens is the most likely one at its place."""

    logprob: float
    is_greedy: bool


class ScoringRuntime(Runtime):
    """A Runtime that also scores continuations."""

    def score_continuations(
        self, requests: Sequence[tuple[Ids, Ids]], on_scored: Callable[[int], None] = lambda count: None
    ) -> list[Likelihood]:
        """The likelihood of each continuation after its context.

        Args:
            requests: (context, continuation) in token ids; a context has at least one, and both together at
                most one more than ``max_seq_len``, as the last token is never read.
            on_scored: is told of every few that are done, how many.
        """
        places: dict[tuple[int, ...], list[int]] = {}
        for place, (context, _) in enumerate(requests):
            places.setdefault(tuple(context), []).append(place)
        by_length = sorted(
            places.items(), key=lambda item: -len(item[0]) - max(len(requests[place][1]) for place in item[1])
        )
        found: dict[int, Likelihood] = {}
        for start in range(0, len(by_length), self.max_batch_size):
            batch = by_length[start : start + self.max_batch_size]
            contexts = [context for context, _ in batch]
            continuations = [[requests[place][1] for place in own] for _, own in batch]
            with self._lock.hold():  # of each batch by itself: no batch needs what the one before has left
                scored = _score(self._model, self._cache, contexts, continuations)
            for (_, own), likelihoods in zip(batch, scored, strict=True):
                found.update(zip(own, likelihoods, strict=True))
            on_scored(sum(len(own) for _, own in batch))
        return [found[place] for place in range(len(requests))]


@dataclass(frozen=True)
class _Segment:
    """Tokens that stand in a slot from ``start`` on; the hidden states of the last ``kept`` are wanted."""

    slot: int
    start: int
    ids: Ids
    kept: int


@torch.inference_mode()
def _score(
    model: Persimmon, cache: StaticKVCache, contexts: Sequence[Ids], continuations: Sequence[Sequence[Ids]]
) -> list[list[Likelihood]]:
    """The likelihoods of each context's continuations; the context at ``i`` is read into slot ``i``.

    Every context is read with its first continuation. The others follow in turns, each in the place of the
    one before it.
    """
    likelihoods: list[list[Likelihood]] = [[] for _ in contexts]
    after_context: list[Tensor] = []  # each [1, hidden], from which the first token of a continuation comes
    for turn in range(max(map(len, continuations))):
        slots = [slot for slot, own in enumerate(continuations) if turn < len(own)]
        targets = [continuations[slot][turn] for slot in slots]
        if turn == 0:
            whole = [[*contexts[slot], *ids[:-1]] for slot, ids in zip(slots, targets, strict=True)]
            hidden = _read(
                model,
                cache,
                [
                    _Segment(slot, 0, ids, len(ids) - len(contexts[slot]) + 1)
                    for slot, ids in zip(slots, whole, strict=True)
                ],
            )
            after_context = [states[:1] for states in hidden]
        else:
            segments = [
                _Segment(slot, len(contexts[slot]), ids[:-1], len(ids) - 1)
                for slot, ids in zip(slots, targets, strict=True)
            ]
            hidden = [
                torch.cat([after_context[slot], states])
                for slot, states in zip(slots, _read(model, cache, segments), strict=True)
            ]
        for slot, likelihood in zip(slots, _likelihoods(model, hidden, targets), strict=True):
            likelihoods[slot].append(likelihood)
    return likelihoods


def _read(model: Persimmon, cache: StaticKVCache, segments: list[_Segment]) -> list[Tensor]:
    """The last hidden states that are kept of each segment: float32 [kept, hidden]."""
    kept: list[list[Tensor]] = [
        [torch.empty(0, model.config.hidden_size, device=model.device, dtype=torch.float32)] for _ in segments
    ]
    for chunk in _chunks(segments):
        hidden = _forward(model, cache, [piece for _, piece in chunk])  # [tokens, hidden]
        states = hidden.split([len(piece.ids) for _, piece in chunk])
        for (at, piece), own in zip(chunk, states, strict=True):
            kept[at].append(own[len(own) - piece.kept :])
    return [torch.cat(pieces) for pieces in kept]


def _chunks(segments: list[_Segment]) -> Iterator[list[tuple[int, _Segment]]]:
    """The segments cut into pieces, in lists of ``PREFILL_CHUNK`` tokens, each with its segment's place."""
    chunk: list[tuple[int, _Segment]] = []
    room = PREFILL_CHUNK
    for place, segment in enumerate(segments):
        done = 0
        while done < len(segment.ids):
            ids = segment.ids[done : done + room]
            done += len(ids)
            # Of the kept ones, those that stand in this piece.
            kept = min(len(ids), max(0, segment.kept - (len(segment.ids) - done)))
            chunk.append((place, _Segment(segment.slot, segment.start + done - len(ids), ids, kept)))
            room -= len(ids)
            if room == 0:
                yield chunk
                chunk, room = [], PREFILL_CHUNK
    if chunk:
        yield chunk


def _forward(model: Persimmon, cache: StaticKVCache, pieces: list[_Segment]) -> Tensor:
    """The last hidden states of all pieces' tokens, whose keys and values go into the cache: float32
    [tokens, hidden]."""
    places = [
        (token_id, piece.slot, piece.start + at) for piece in pieces for at, token_id in enumerate(piece.ids)
    ]
    ids, slots, positions = torch.tensor(
        places, device=model.device, dtype=torch.int64
    ).T.contiguous()  # each [tokens]
    x = model.embed(ids)  # [tokens, hidden]
    for index, layer in enumerate(model.weights.layers):
        attend = partial(_attend, model, layer, cache.layer(index), pieces, slots, positions)
        x = decoder_layer(x, layer, model.config.layer_norm_eps, attend, ops)
    return x


def _attend(
    model: Persimmon,
    layer: LayerWeights,
    cache_layer: Tensor,
    pieces: list[_Segment],
    slots: Tensor,
    positions: Tensor,
    qkv: Tensor,
) -> Tensor:
    """Rotates and attends, each piece to what its slot holds: qkv [tokens, 3 * hidden] → [tokens, hidden]."""
    q = ops.rotary_append(
        qkv,
        layer.q_gamma,
        layer.q_beta,
        layer.k_gamma,
        layer.k_beta,
        model.config.layer_norm_eps,
        model.cos,
        model.sin,
        slots,
        positions,
        cache_layer,
    )  # [tokens, heads, head_dim]
    queries = q.split([len(piece.ids) for piece in pieces])
    return torch.cat(
        [
            ops.prefill_attention(own, cache_layer[:, piece.slot], piece.start, model.scale)
            for piece, own in zip(pieces, queries, strict=True)
        ]
    )


def _likelihoods(model: Persimmon, hidden: list[Tensor], targets: list[Ids]) -> list[Likelihood]:
    """Of each sequence of targets, from the hidden states before them: each [≥ targets, hidden]."""
    rows = torch.cat(
        [states[: len(ids)] for states, ids in zip(hidden, targets, strict=True)]
    )  # [rows, hidden]
    wanted = torch.tensor(
        [token_id for ids in targets for token_id in ids], device=model.device, dtype=torch.int64
    )  # [rows]
    logprobs: list[float] = []
    likeliest: list[bool] = []
    for states, ids in zip(rows.split(SCORED_ROWS), wanted.split(SCORED_ROWS), strict=True):
        if not len(ids):
            continue
        scores = model.all_logits(states).log_softmax(-1)  # [rows, vocab]
        logprobs += scores.gather(-1, ids[:, None])[:, 0].tolist()
        likeliest += (scores.argmax(-1) == ids).tolist()
    found = []
    for ids in targets:
        found.append(Likelihood(math.fsum(logprobs[: len(ids)]), all(likeliest[: len(ids)])))
        logprobs, likeliest = logprobs[len(ids) :], likeliest[len(ids) :]
    return found
