"""Bytes that the step and its operators move, counted from shapes; benchmarks/step counts them in C++."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.gpu_check.programs import Case

GROUP = 128  # weights in 4 bits that share a scale
LAYER = ("layernorm_qkv", "rotary_append", "decode_attention", "linear_residual", "mlp")


@dataclass(frozen=True)
class Shapes:
    """Of a model, by default Persimmon-8B."""

    hidden: int = 4096
    heads: int = 64
    rotary: int = 32
    intermediate: int = 16384
    vocab: int = 262144
    context: int = 16384
    layers: int = 36

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def matrix_bytes(fmt: str, rows: int, cols: int, scale_count: int) -> int:
    if fmt == "float16":
        return 2 * rows * cols
    if fmt == "fp8":
        return rows * cols + 4 * scale_count
    groups = -(-cols // GROUP)
    return rows * groups * (GROUP // 2 + 2)


def head_format(fmt: str) -> str:
    """Of the lm_head's weights: four bits would cost the logits too much."""
    return "fp8" if fmt == "int4" else fmt


def moved_bytes(case: Case, shapes: Shapes) -> int:
    """Bytes of a call: each input read once, each output written once, no row of inactive neurons read."""
    hidden, tokens = shapes.hidden, case.tokens
    x = 4 * tokens * hidden
    if case.operator == "layer":
        parts = (Case(name, tokens, case.format, case.zeros, case.positions) for name in LAYER)
        return sum(moved_bytes(part, shapes) for part in parts)
    if case.operator == "step":
        layer = moved_bytes(replace(case, operator="layer"), shapes)
        head = replace(case, operator="lm_head", format=head_format(case.format))
        rest = (replace(case, operator=name) for name in ("embed", "sample", "update_decode_state"))
        return shapes.layers * layer + sum(moved_bytes(part, shapes) for part in (head, *rest))
    if case.operator == "layernorm_qkv":
        return matrix_bytes(case.format, 3 * hidden, hidden, 3 * hidden) + 4 * 5 * hidden + 4 * x
    if case.operator == "linear_residual":
        return matrix_bytes(case.format, hidden, hidden, hidden) + 4 * hidden + 3 * x
    if case.operator == "lm_head":
        out = 4 * tokens * shapes.vocab
        return matrix_bytes(case.format, shapes.vocab, hidden, shapes.vocab) + 4 * 2 * hidden + x + out
    if case.operator == "mlp":
        units = shapes.intermediate
        up = matrix_bytes(case.format, units, hidden, units) + 4 * (2 * hidden + units)
        down = matrix_bytes(case.format, needed_units(case, shapes), hidden, hidden) + 4 * hidden
        return up + down + 2 * x
    if case.operator == "rotary_append":
        return 4 * x + 2 * tokens * 2 * hidden + 4 * (4 * shapes.head_dim + tokens * shapes.rotary)
    if case.operator == "decode_attention":
        return 2 * tokens * case.positions * 2 * hidden + 2 * x
    if case.operator == "sample":
        return 4 * tokens * shapes.vocab
    if case.operator == "embed":
        return 8 * tokens + 2 * tokens * hidden + x
    if case.operator == "update_decode_state":
        return tokens * (5 * 8 + 1 + 4 * 8)  # what is read of a row, one of its ends, what is written
    raise ValueError(f"no operator is called {case.operator}")


def needed_units(case: Case, shapes: Shapes) -> int:
    return round((1 - case.zeros) * shapes.intermediate)
