"""Shapes and dtypes of the extension's results, for torch.compile, export and meta tensors.

The arguments of each operator are in the order of ``csrc/schemas.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Result: TypeAlias = Tensor | tuple[Tensor, Tensor] | None


def _prepared(like: Tensor, tokens: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cols = like.shape[-1]
    return like.new_empty(rows, cols, dtype=dtype), like.new_empty(tokens, dtype=torch.float32)


_RESULTS: dict[str, Callable[..., Result]] = {
    "copy": torch.empty_like,
    "read": lambda source: source.new_empty(1, dtype=torch.int32),
    "embed": lambda table, ids: ids.new_empty(ids.shape[0], table.shape[1], dtype=torch.float32),
    "layernorm_qkv": lambda x, gamma, beta, eps, w, scales, b: x.new_empty(x.shape[0], b.shape[0]),
    "rotary_append": lambda qkv, *rest: qkv.new_empty(qkv.shape[0], rest[-1].shape[2], rest[-1].shape[4]),
    "decode_attention": lambda q, *_: q.new_empty(q.shape[0], q.shape[1] * q.shape[2]),
    "prefill_attention": lambda q, *_: q.new_empty(q.shape[0], q.shape[1] * q.shape[2]),
    "linear_residual": lambda x, w, scales, b, residual: x.new_empty(x.shape[0], b.shape[0]),
    "mlp": lambda x, *_: x.new_empty(x.shape),
    "lm_head": lambda x, *rest: x.new_empty(x.shape[0], rest[-1], dtype=torch.float32),
    "decode_step": lambda ids, *rest: rest[7].new_empty(ids.shape[0], rest[11]),  # final_gamma, rows
    "decode_layers": lambda x, *_: x.new_empty(x.shape),
    "sample": lambda logits, slots, *_: slots.new_empty(logits.shape[0]),
    "token_logprobs": lambda logits, chosen, count: logits.new_empty(logits.shape[0], 2, 1 + count),
    "update_decode_state": lambda *_: None,
    "prepare_rows": lambda x, gamma, beta, eps, raised, rows, dtype: _prepared(x, len(x), rows, dtype),
    "activate_rows": lambda product, powers, scales, bias, raised, rows: _prepared(
        product, len(powers), rows, product.dtype
    ),
    "finish_rows": lambda product, powers, *_: product.new_empty(
        len(powers), product.shape[-1], dtype=torch.float32
    ),
    "widen": lambda w, scales, cols, start, stop, dtype: w.new_empty(stop - start, cols, dtype=dtype),
}


def _register(name: str, result: Callable[..., Result]) -> None:
    def checked(*args: Any) -> Result:
        tensors = [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        devices = {part.device.type for part in tensors if isinstance(part, Tensor)}
        # The result for tensors with and without values could be memory that nobody has written to.
        if "meta" in devices and len(devices) > 1:
            found = " and ".join(sorted(devices))
            raise RuntimeError(f"the arguments of {name} are on {found}; expected all on one device")
        return result(*args)

    torch.library.register_fake(f"adept_fast::{name}", checked)


for _name, _result in _RESULTS.items():
    _register(_name, _result)
