"""Calls of the operators on random operands, for the cases of ``gpu_check_cases``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_check_cases import GROUP, LAYER, RING_DEPTH, TABLE_ROWS, Case, Shapes, needed_units
from torch import Tensor

from adept_fast.ops import reference
from adept_fast.ops import sample as sample_of_torch

EPS = 1e-5
# How far the inputs of relu² stand from 0, in their standard deviations: what is meant to be 0 always is.
FAR = 10.0
# Of whole numbers evenly spread from -8 to 7.
INT4_DEVIATION = 4.6


@dataclass(frozen=True)
class Call:
    """An operator on one set of operands, and what should come out, by plain PyTorch in float32."""

    x: Tensor
    operator: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor], Tensor]

    def run(self) -> Tensor:
        return self.operator(self.x)

    def expected(self) -> Tensor:
        return self.reference(self.x)


@dataclass(frozen=True)
class Weights:
    """A random matrix as the operators take it."""

    values: Tensor
    scales: Tensor | None
    layout: str

    def exact(self) -> Tensor:
        """In float32."""
        if self.scales is None:
            return self.values.float()
        if self.values.dtype != torch.uint8:
            return self.values.float() * (self.scales[:, None] if self.layout == "rows" else self.scales)
        words = self.values.view(torch.int32)  # weights 2i and 2i + 1 stand 16 bits apart
        nibbles = [((words >> shift) & 15).to(torch.int8) for i in range(4) for shift in (4 * i, 16 + 4 * i)]
        groups = torch.stack(nibbles, -1).view(words.shape[0], -1, GROUP).float() - 8
        return (groups * self.scales[..., None]).flatten(1)


class Operands:
    """Makes calls of the operators in a namespace."""

    def __init__(self, operators: Any, device: torch.device, shapes: Shapes) -> None:
        self._operators = operators
        self._device = device
        self._shapes = shapes

    def calls(self, case: Case, copies: int) -> list[Call]:
        """As many calls as copies, no two on the same weights or the same part of the cache."""
        needs_cache = case.operator in ("layer", "rotary_append", "decode_attention")
        cache = self._cache(case.tokens * copies) if needs_cache else torch.empty(0)
        return [self._call(case, cache, number) for number in range(copies)]

    def _call(self, case: Case, cache: Tensor, number: int) -> Call:
        if case.operator == "layer":
            parts = (Case(name, case.tokens, case.format, case.zeros, case.positions) for name in LAYER)
            return _chained([self._call(part, cache, number) for part in parts])
        slots = torch.arange(case.tokens, device=self._device) + number * case.tokens
        if case.operator == "rotary_append":
            return self._rotary_append(case, cache, slots)
        if case.operator == "decode_attention":
            return self._decode_attention(case, cache, slots)
        makers = {
            "layernorm_qkv": self._layernorm_qkv,
            "linear_residual": self._linear_residual,
            "lm_head": self._lm_head,
            "mlp": self._mlp,
            "sample": self._sample,
            "embed": self._embed,
            "advance": self._advance,
        }
        return makers[case.operator](case)

    def _normal(self, *shape: int, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
        return torch.empty(shape, device=self._device).normal_(mean, deviation)

    def _norm(self, size: int) -> tuple[Tensor, Tensor]:
        return self._normal(size, mean=1.0, deviation=0.02), self._normal(size, deviation=0.02)

    def _matrix(self, fmt: str, rows: int, cols: int, layout: str = "rows") -> Weights:
        """Such that its product with inputs near 1 is near 1."""
        size = (cols if layout == "rows" else rows) ** -0.5
        if fmt == "int4":
            if cols % GROUP:
                raise ValueError(f"{cols} columns are not a multiple of {GROUP}")
            values = torch.randint(256, (rows, cols // 2), dtype=torch.uint8, device=self._device)
            scales = torch.full((rows, cols // GROUP), size / INT4_DEVIATION, device=self._device)
            return Weights(values, scales.half(), layout)
        values = torch.empty(rows, cols, dtype=torch.float16, device=self._device).normal_()
        if fmt == "float16":
            return Weights(values.mul_(size), None, layout)
        scales = torch.full((rows if layout == "rows" else cols,), size, device=self._device)
        return Weights(values.to(torch.float8_e4m3fn), scales, layout)

    def _cache(self, slots: int) -> Tensor:
        shapes = self._shapes
        size = (2, slots, shapes.heads, shapes.context, shapes.head_dim)
        return torch.empty(size, dtype=torch.float16, device=self._device).normal_()

    def _layernorm_qkv(self, case: Case) -> Call:
        hidden = self._shapes.hidden
        norm, b = self._norm(hidden), self._normal(3 * hidden)
        w = self._matrix(case.format, 3 * hidden, hidden)
        return Call(
            self._normal(case.tokens, hidden),
            lambda x: self._operators.layernorm_qkv(x, *norm, EPS, w.values, w.scales, b),
            lambda x: reference.layernorm_qkv(x, *norm, EPS, w.exact(), b),
        )

    def _linear_residual(self, case: Case) -> Call:
        hidden = self._shapes.hidden
        b, residual = self._normal(hidden), self._normal(case.tokens, hidden)
        w = self._matrix(case.format, hidden, hidden)
        return Call(
            self._normal(case.tokens, hidden),
            lambda x: self._operators.linear_residual(x, w.values, w.scales, b, residual),
            lambda x: reference.linear_residual(x, w.exact(), b, residual),
        )

    def _lm_head(self, case: Case) -> Call:
        hidden, vocab = self._shapes.hidden, self._shapes.vocab
        norm, w = self._norm(hidden), self._matrix(case.format, vocab, hidden)
        return Call(
            self._normal(case.tokens, hidden),
            lambda x: self._operators.lm_head(x, *norm, EPS, w.values, w.scales, vocab),
            lambda x: reference.lm_head(x, *norm, EPS, w.exact()),
        )

    def _mlp(self, case: Case) -> Call:
        hidden, units = self._shapes.hidden, self._shapes.intermediate
        norm, b_down = self._norm(hidden), self._normal(hidden)
        up = self._matrix(case.format, units, hidden)
        down = self._matrix(case.format, units, hidden, "units")
        b_up = torch.full((units,), FAR, device=self._device)
        b_up[torch.randperm(units, device=self._device)[needed_units(case, self._shapes) :]] = -FAR
        return Call(
            self._normal(case.tokens, hidden),
            lambda x: self._operators.mlp(
                x, *norm, EPS, up.values, up.scales, b_up, down.values, down.scales, b_down, None
            ),
            lambda x: reference.mlp(x, *norm, EPS, up.exact(), b_up, down.exact(), b_down),
        )

    def _rotary_append(self, case: Case, cache: Tensor, slots: Tensor) -> Call:
        shapes = self._shapes
        norms = (*self._norm(shapes.head_dim), *self._norm(shapes.head_dim))
        table = reference.rotary_table(shapes.rotary, 25000.0, shapes.context, self._device)
        positions = torch.randint(shapes.context, (case.tokens,), device=self._device)
        return Call(
            self._normal(case.tokens, 3 * shapes.hidden),
            lambda qkv: self._operators.rotary_append(qkv, *norms, EPS, *table, slots, positions, cache),
            lambda qkv: reference.rotary_append(qkv, *norms, EPS, *table, slots, positions, cache),
        )

    def _decode_attention(self, case: Case, cache: Tensor, slots: Tensor) -> Call:
        shapes = self._shapes
        lengths = torch.full((case.tokens,), case.positions, device=self._device)
        scale = shapes.head_dim**-0.5
        return Call(
            self._normal(case.tokens, shapes.heads, shapes.head_dim),
            lambda q: self._operators.decode_attention(q, cache, slots, lengths, case.positions, scale),
            lambda q: reference.decode_attention(q, cache, slots, lengths, case.positions, scale),
        )

    def _sample(self, case: Case) -> Call:
        def setting(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((case.tokens,), value, dtype=dtype, device=self._device)

        slots, seed = torch.arange(case.tokens, device=self._device), setting(5, torch.int64)
        temperature = setting(0.0 if case.filter == "greedy" else 0.8)
        top_k = setting(50 if case.filter == "top-k" else 0, torch.int64)
        top_p = setting(0.9 if case.filter == "top-p" else 1.0)
        min_p, penalty = setting(0.0), setting(1.0)
        seen = torch.zeros(case.tokens, self._shapes.vocab, dtype=torch.bool, device=self._device)
        return Call(
            self._normal(case.tokens, self._shapes.vocab, deviation=3.0),
            lambda logits: self._operators.sample(
                logits, slots, slots, temperature, top_k, top_p, min_p, penalty, seed, seen
            ),
            lambda logits: sample_of_torch(
                logits, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, positions=slots
            ),
        )

    def _embed(self, case: Case) -> Call:
        table = self._normal(TABLE_ROWS, self._shapes.hidden).half()
        read = table if case.filter == "on the GPU" else self._pinned(table.cpu())
        return Call(
            torch.randint(TABLE_ROWS, (case.tokens,), device=self._device),
            lambda ids: self._operators.embed(read, ids),
            lambda ids: reference.embed(table, ids),
        )

    def _advance(self, case: Case) -> Call:
        """Of rows that no limit and no id ends, so that one call is like the next; → the ids that go on."""
        rows, vocab = case.tokens, self._shapes.vocab
        zeros = torch.zeros(rows, dtype=torch.int64, device=self._device)
        ends = torch.zeros(rows, vocab, dtype=torch.bool, device=self._device)
        ids, slots, positions, counts = (
            zeros.clone(),
            zeros + torch.arange(rows).to(zeros),
            zeros,
            zeros.clone(),
        )
        limits, ring = zeros + 2**62, self._pinned(torch.zeros(rows, RING_DEPTH, dtype=torch.int64))

        def advance(chosen: Tensor) -> Tensor:
            self._operators.advance(chosen, ids, slots, positions, limits, ends, counts, ring)
            return ids

        return Call(torch.randint(vocab, (rows,), device=self._device), advance, lambda chosen: chosen)

    def _pinned(self, tensor: Tensor) -> Tensor:
        """Memory of the host that the device reaches."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


def _chained(calls: list[Call]) -> Call:
    """Each on what the one before gives."""

    def run(x: Tensor) -> Tensor:
        for call in calls:
            x = call.operator(x)
        return x

    def expected(x: Tensor) -> Tensor:
        for call in calls:
            x = call.reference(x)
        return x

    return Call(calls[0].x, run, expected)


def difference(ours: Tensor, expected: Tensor) -> float:
    """Of numbers the root mean square, as a share of what is expected; of ids the share that differs."""
    if not ours.is_floating_point():
        return float((ours != expected).double().mean())
    off = (ours.double() - expected.double()).square().mean().sqrt()
    return float(off / expected.double().square().mean().sqrt())
