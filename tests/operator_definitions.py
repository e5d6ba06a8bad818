"""The same calls as of the native operators, by name, of the operators in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from guarded_memory import bytes_of
from torch import Tensor

from adept_fast.ops import logprobs, reference

LAYER_TENSORS = 20


def _layernorm_qkv(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Tensor, b: Tensor) -> Tensor:
    return reference.layernorm_qkv(x.float(), gamma, beta, eps, w, b)


def _linear_residual(x: Tensor, w: Tensor, b: Tensor, residual: Tensor) -> Tensor:
    return reference.linear_residual(x.float(), w, b, residual.float())


def _mlp(x: Tensor, **others: Any) -> Tensor:
    return reference.mlp(x.float(), **others)


def _lm_head(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Tensor, rows: int) -> Tensor:
    assert len(w) == rows
    return reference.lm_head(x.float(), gamma, beta, eps, w)


def _rotary_append(qkv: Tensor, **others: Any) -> Tensor:
    return reference.rotary_append(qkv.float(), **others)


def _decode_attention(q: Tensor, **others: Any) -> Tensor:
    return reference.decode_attention(q.float(), **others)


def _prefill_attention(q: Tensor, cache_layer: Tensor, slot: int, **others: Any) -> Tensor:
    if not 0 <= slot < cache_layer.shape[1]:
        raise ValueError(f"slot is {slot}; expected 0 to {cache_layer.shape[1] - 1}")
    return reference.prefill_attention(q.float(), cache_layer, slot, **others)


def _decode_step(
    ids: Tensor,
    slots: Tensor,
    positions: Tensor,
    embedding: Tensor,
    layers: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    cache: Tensor,
    final_gamma: Tensor,
    final_beta: Tensor,
    w: Tensor,
    rows: int,
    eps: float,
    scale: float,
    counts: Tensor | None,
) -> Tensor:
    """Of the sequences that are there; the others' logits are 0."""
    present = slots >= 0
    logits = torch.zeros(len(ids), rows)
    if not present.any():
        return logits
    ids, slots, positions = ids[present], slots[present], positions[present]
    x = reference.embed(embedding, ids)
    for index, layer_cache in enumerate(cache):
        parts = layers[index * LAYER_TENSORS : (index + 1) * LAYER_TENSORS]
        assert len(parts) == LAYER_TENSORS
        t = [part if part.numel() else None for part in parts]
        qkv = reference.layernorm_qkv(x, t[0], t[1], eps, t[2], t[4])  # type: ignore[arg-type]
        q = reference.rotary_append(qkv, *t[5:9], eps, cos, sin, slots, positions, layer_cache)
        attended = reference.decode_attention(q, layer_cache, slots, positions + 1, cache.shape[4], scale)
        x = reference.linear_residual(attended, t[9], t[11], x)  # type: ignore[arg-type]
        x = reference.mlp(x, t[12], t[13], eps, t[14], t[16], t[17], t[19], counts)  # type: ignore[arg-type]
    logits[present] = _lm_head(x, final_gamma, final_beta, eps, w, rows)
    return logits


def _embed(table: Tensor, ids: Tensor) -> Tensor:
    """In CUDA, an id that does not exist gives zeros."""
    rows = torch.zeros(len(ids), table.shape[1])
    present = (ids >= 0) & (ids < len(table))
    rows[present] = reference.embed(table, ids[present])
    return rows


def _read(source: Tensor) -> Tensor:
    if not source.numel():
        return torch.zeros(1, dtype=torch.int32)
    words = bytes_of(source)
    words = words[: len(words) // 4 * 4].view(torch.int32)
    return words.sum(dtype=torch.int64).to(torch.int32)[None]


_CALLS: dict[str, Callable[..., Tensor | None]] = {
    "layernorm_qkv": _layernorm_qkv,
    "linear_residual": _linear_residual,
    "mlp": _mlp,
    "lm_head": _lm_head,
    "rotary_append": _rotary_append,
    "decode_attention": _decode_attention,
    "prefill_attention": _prefill_attention,
    "decode_step": _decode_step,
    "token_logprobs": logprobs.token_logprobs,
    "update_decode_state": reference.update_decode_state,
    "embed": _embed,
    "copy": torch.clone,
    "read": _read,
}
SCALES = ("scales", "up_scales", "down_scales")


def is_defined(operator: str, arguments: dict[str, Any]) -> bool:
    """Whether ``defined`` knows such calls: those of matrices that are not packed."""
    packed = any(arguments.get(name) is not None for name in SCALES)
    in_layers = any(part.numel() for part in _scales_of(arguments.get("layers", [])))
    return operator in _CALLS and not packed and not in_layers


def defined(operator: str, arguments: dict[str, Any]) -> Tensor | None:
    """The result, from arguments that are written to as the operator does."""
    plain = {name: value for name, value in arguments.items() if name not in SCALES}
    return _CALLS[operator](*plain.values()) if operator == "copy" else _CALLS[operator](**plain)


def _scales_of(layers: list[Tensor]) -> list[Tensor]:
    return [part for index, part in enumerate(layers) if index % LAYER_TENSORS in (3, 10, 15, 18)]
