"""Layers of a small model with weights in tiles, for tests of decode_layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from backends import EPS, Backend
from matrices import Weights, in_tiles, norm, weights
from torch import Tensor

from adept_fast import _C

ORDER = _C.layer_tensors().split(", ")
ABSENT = torch.empty(0)


@dataclass(frozen=True)
class Shapes:
    hidden: int = 64
    heads: int = 2
    intermediate: int = 96
    capacity: int = 40
    layers: int = 2
    half: int = 8  # of the dimensions that turn
    slots: int = 3

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Layer:
    """One layer's tensors by name, and its matrices row by row."""

    tensors: dict[str, Tensor]
    matrices: dict[str, Weights]

    def in_order(self) -> list[Tensor]:
        """As decode_layers takes them: matrices in tiles."""
        placed = dict(self.tensors)
        for name, w in self.matrices.items():
            values, scales = in_tiles(w, "units" if name == "w_down_t" else "rows")
            placed[name] = values
            if scales is not None:
                placed[f"{name.split('_')[1]}_scales"] = scales
        return [placed.get(name, ABSENT) for name in ORDER]


def drawn_layer(backend: Backend, fmt: str, shapes: Shapes, qk_layernorm: bool = True) -> Layer:
    hidden, units = shapes.hidden, shapes.intermediate
    tensors = {}
    for name, size in (("input", hidden), ("mlp", hidden), ("q", shapes.head_dim), ("k", shapes.head_dim)):
        if qk_layernorm or len(name) > 1:
            tensors[f"{name}_gamma"], tensors[f"{name}_beta"] = norm(size)
    for name, size in (("qkv", 3 * hidden), ("dense", hidden), ("up", units), ("down", hidden)):
        tensors[f"b_{name}"] = torch.randn(size) * 0.5
    matrices = {
        "w_qkv": weights(backend, fmt, 3 * hidden, hidden),
        "w_dense": weights(backend, fmt, hidden, hidden),
        "w_up": weights(backend, fmt, units, hidden),
        "w_down_t": weights(backend, fmt, units, hidden, "units", fan_in=units),
    }
    return Layer(tensors, matrices)


@dataclass(frozen=True)
class Stack:
    """Layers, and one step's other arguments."""

    shapes: Shapes
    layers: list[Layer]
    arguments: dict[str, Any]

    def by_operators(self, backend: Backend, cache: Tensor, counts: Tensor | None) -> Tensor:
        """The step by the operators of matrices row by row."""
        a, shapes = self.arguments, self.shapes
        x: Tensor = a["x"]
        slots = None if counts is None else a["slots"]
        for index, layer in enumerate(self.layers):
            t, m = layer.tensors, layer.matrices

            def parts(name: str, m: dict[str, Weights] = m) -> tuple[Tensor, Tensor | None]:
                return m[name].values, m[name].scales

            w, scales = parts("w_qkv")
            qkv = backend.run(
                "layernorm_qkv", x=x, gamma=t["input_gamma"], beta=t["input_beta"], eps=EPS, w=w,
                scales=scales, b=t["b_qkv"],
            )  # fmt: skip
            norms = {name: t.get(name) for name in ("q_gamma", "q_beta", "k_gamma", "k_beta")}
            layer_cache = cache[index].clone()
            q = backend.run(
                "rotary_append", qkv=qkv, **norms, eps=EPS, cos=a["cos"], sin=a["sin"], slots=a["slots"],
                positions=a["positions"], cache_layer=layer_cache,
            )  # fmt: skip
            attended = backend.run(
                "decode_attention", q=q, cache_layer=layer_cache, slots=a["slots"],
                lengths=a["positions"] + 1, longest=a["longest"], scale=a["scale"],
            )  # fmt: skip
            cache[index] = layer_cache
            w, scales = parts("w_dense")
            y = backend.run("linear_residual", x=attended, w=w, scales=scales, b=t["b_dense"], residual=x)
            (up, up_scales), (down, down_scales) = parts("w_up"), parts("w_down_t")
            x = backend.run(
                "mlp", x=y, gamma=t["mlp_gamma"], beta=t["mlp_beta"], eps=EPS, w_up=up, up_scales=up_scales,
                b_up=t["b_up"], w_down_t=down, down_scales=down_scales, b_down=t["b_down"], counts=counts,
                slots=slots,
            )  # fmt: skip
        assert x.shape[1] == shapes.hidden
        return x

    def tensors(self) -> list[Tensor]:
        """Of all layers, as decode_layers takes them."""
        return [tensor for layer in self.layers for tensor in layer.in_order()]

    def at_once(
        self, backend: Backend, cache: Tensor, counts: Tensor | None, counters: Tensor, one_kernel: bool
    ) -> Tensor:
        layers = self.tensors()
        out: Tensor = backend.run(
            "decode_layers", **self.arguments, layers=layers, cache=cache, eps=EPS, counts=counts,
            counters=counters, one_kernel=one_kernel,
        )  # fmt: skip
        return out


def drawn_stack(
    backend: Backend,
    fmt: str,
    shapes: Shapes,
    slots: list[int],
    positions: list[int],
    qk_layernorm: bool = True,
) -> Stack:
    angles = torch.rand(shapes.capacity, shapes.half) * 6
    arguments = {
        "x": torch.randn(len(slots), shapes.hidden) * 2,
        "slots": torch.tensor(slots),
        "positions": torch.tensor(positions),
        "longest": max(positions) + 1,
        "cos": angles.cos(),
        "sin": angles.sin(),
        "scale": shapes.head_dim**-0.5,
    }
    layers = [drawn_layer(backend, fmt, shapes, qk_layernorm) for _ in range(shapes.layers)]
    return Stack(shapes, layers, arguments)


def drawn_cache(shapes: Shapes, dtype: torch.dtype = torch.float16) -> Tensor:
    """[layers, k/v, slots, heads, capacity, head_dim]"""
    size = (shapes.layers, 2, shapes.slots, shapes.heads, shapes.capacity, shapes.head_dim)
    return torch.randn(size).to(dtype)


def drawn_counters(shapes: Shapes, tokens: int) -> Tensor:
    return torch.zeros(1 + -(-shapes.hidden // 256) + tokens * shapes.heads, dtype=torch.int64)
