"""What the operators in C++ return, in shapes and dtypes alone: for torch.compile, export, meta tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _copy(source: Tensor) -> Tensor:
    return torch.empty_like(source)


def _read(source: Tensor) -> Tensor:
    return source.new_empty(1, dtype=torch.int32)


def _layernorm_qkv(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Tensor, scales: Tensor | None, b: Tensor
) -> Tensor:
    return x.new_empty(x.shape[0], b.shape[0])


def _rotary_append(
    qkv: Tensor,
    q_gamma: Tensor | None,
    q_beta: Tensor | None,
    k_gamma: Tensor | None,
    k_beta: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    positions: Tensor,
    cache_layer: Tensor,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], cache_layer.shape[2], cache_layer.shape[4])


def _decode_attention(
    q: Tensor, cache_layer: Tensor, slots: Tensor, lengths: Tensor, longest: int, scale: float
) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])


def _linear_residual(x: Tensor, w: Tensor, scales: Tensor | None, b: Tensor, residual: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], b.shape[0])


def _mlp(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    w_up: Tensor,
    up_scales: Tensor | None,
    b_up: Tensor,
    w_down_t: Tensor,
    down_scales: Tensor | None,
    b_down: Tensor,
    counts: Tensor | None,
) -> Tensor:
    return x.new_empty(x.shape)


def _lm_head(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Tensor, scales: Tensor | None, rows: int
) -> Tensor:
    return x.new_empty(x.shape[0], rows, dtype=torch.float32)


def _dequantize_transposed(values: Tensor, scales: Tensor, out: Tensor) -> None:
    return None


def _decode_step(ids: Tensor, *rest: Any) -> Tensor:
    final_gamma, rows = rest[26], rest[30]
    new: Tensor = final_gamma.new_empty(ids.shape[0], rows)
    return new


def _sample(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition_penalty: Tensor,
    seed: Tensor,
    seen: Tensor,
) -> Tensor:
    return slots.new_empty(logits.shape[0])


def _update_decode_state(
    chosen: Tensor,
    ids: Tensor,
    slots: Tensor,
    positions: Tensor,
    limits: Tensor,
    ends: Tensor,
    counts: Tensor,
    token_ring: Tensor,
) -> None:
    return None


def _embed(table: Tensor, ids: Tensor) -> Tensor:
    return ids.new_empty(ids.shape[0], table.shape[1], dtype=torch.float32)


def _together(shapes: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """Refuses tensors without values beside others: the result could be memory that nobody has written to."""

    @functools.wraps(shapes)
    def checked(*args: Any, **kwargs: Any) -> Tensor | None:
        parts = [part for value in (*args, *kwargs.values()) for part in _tensors_of(value)]
        devices = {part.device.type for part in parts}
        if "meta" in devices and len(devices) > 1:
            found = " and ".join(sorted(devices))
            raise RuntimeError(
                f"the arguments of {shapes.__name__[1:]} are on {found}; expected all on one device"
            )
        return shapes(*args, **kwargs)

    return checked


def _tensors_of(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [part for part in values if isinstance(part, Tensor)]


for _operator in (
    _copy,
    _read,
    _layernorm_qkv,
    _rotary_append,
    _decode_attention,
    _linear_residual,
    _mlp,
    _lm_head,
    _dequantize_transposed,
    _decode_step,
    _sample,
    _update_decode_state,
    _embed,
):
    torch.library.register_fake(f"adept_fast::{_operator.__name__.removeprefix('_')}", _together(_operator))
