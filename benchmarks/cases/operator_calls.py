"""Calls of the operators, and of the torch calls that they stand for, on the same operands."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from adept_fast import ops
from adept_fast.checkpoint import packed_matrices
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.layouts import formats_of, layout_of
from adept_fast.quantization.matrix import Matrix, quantize
from adept_fast.system.huge_pages import HugePages
from tools.random_checkpoint import random_packed, random_tensor

OPERATORS = ("layernorm_qkv", "rotary_append", "decode_attention", "linear_residual", "mlp", "lm_head")
OF_PROMPTS = ("prefill_attention",)  # timed if named
FORMATS = {
    "cpu": ("float16", "bfloat16", "int8", "int4"),
    "cuda": ("float16", "bfloat16", "fp8", "int4"),
}
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TORCH_DTYPES = ("float16", "bfloat16")
# Without weights; ours keeps the cache in float16.
OF_CACHE = ("rotary_append", "decode_attention", *OF_PROMPTS)
PROMPT_CHUNK = 512  # tokens
FAR = 10.0  # a neuron's bias, so that no input moves it across 0
QKV = "model.layers.0.self_attn.query_key_value.weight"
DENSE = "model.layers.0.self_attn.dense.weight"
UP = "model.layers.0.mlp.dense_h_to_4h.weight"
DOWN = "model.layers.0.mlp.dense_4h_to_h.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Call:
    """One call, what it has to read, and whether from memory: what was just written is in a cache."""

    run: Callable[[], Tensor]
    bytes_read: int
    streams: bool = True


class Operands:
    """Makes calls at a model's shapes. Those of the same operator, format and number share their tensors."""

    def __init__(
        self, config: PersimmonConfig, device: torch.device, *, tokens: int, zeros: float, positions: int
    ) -> None:
        self._config = config
        self._device = device
        self._tokens = tokens
        self._zeros = zeros
        self._positions = positions
        self._huge = HugePages()
        self._made: dict[Any, Any] = {}

    def formats_of(self, name: str, formats: tuple[str, ...]) -> tuple[str, ...]:
        return ("float16",) if name in OF_CACHE else formats

    def call(self, name: str, who: str, fmt: str, number: int) -> Call:
        """``who`` is ``torch``, whose weights and activations are in ``fmt``, or ours."""
        make = getattr(self, f"{'_torch' if who == 'torch' else '_our'}_{name}")
        made: Call = make(fmt, number)
        return made

    # -- operands --

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _normal(self, name: str, *shape: int) -> Tensor:
        """The same tensor for every use of a name."""

        def make() -> Tensor:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            return torch.empty(shape).normal_(generator=generator).to(self._device)

        return self._kept((name, shape), make)

    def _norm(self, size: int) -> tuple[Tensor, Tensor]:
        return 1 + 0.02 * self._normal("gamma", size), 0.02 * self._normal("beta", size)

    def _x(self) -> Tensor:
        return self._normal("x", self._tokens, self._config.hidden_size)

    def _matrix(self, name: str, fmt: str, number: int) -> Matrix:
        """As the operators take it: packed, or floats, of the down-projection the transpose."""
        return self._kept((name, fmt, number), lambda: self._new_matrix(name, fmt, number))

    def _new_matrix(self, name: str, fmt: str, number: int) -> Matrix:
        shape = self._config.tensor_shapes()[name]
        if fmt in FLOATS:
            tensor = random_tensor(name, shape, FLOATS[fmt], 0.0, number, self._device)
            tensor = tensor.t().contiguous() if name == DOWN else tensor
            return tensor if tensor.is_cuda else self._huge.copy(tensor)
        weights, layout = formats_of(self._device)[fmt], layout_of(self._device)
        packed = packed_matrices(self._config, weights, layout)[name]
        if self._device.type == "cuda":
            floats = random_tensor(name, shape, torch.float16, 0.0, number, self._device)
            return quantize(floats.t() if name == DOWN else floats, packed.spec, layout)
        return random_packed(packed, number)

    def _plain(self, name: str, fmt: str, number: int) -> Tensor:
        """As torch takes it, [out, in]."""
        matrix = self._matrix(name, fmt, number)
        assert isinstance(matrix, Tensor)
        if name != DOWN:
            return matrix
        return self._kept(("plain", name, fmt, number), lambda: self._untransposed(matrix))

    def _untransposed(self, matrix: Tensor) -> Tensor:
        return matrix.t().contiguous() if matrix.is_cuda else self._huge.copy(matrix.t())

    def _up_bias(self) -> Tensor:
        """Such that the chosen share of neurons, in random order, is inactive for every token."""

        def make() -> Tensor:
            neurons = self._config.intermediate_size
            bias = torch.full((neurons,), FAR)
            order = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
            bias[order[: round(self._zeros * neurons)]] = -FAR
            return bias.to(self._device)

        return self._kept("up bias", make)

    def _cache(self, dtype: torch.dtype, number: int) -> Tensor:
        """[k/v, slots, heads, positions, head_dim]."""
        config = self._config

        def make() -> Tensor:
            shape = (2, self._tokens, config.num_attention_heads, self._positions, config.head_dim)
            if self._device.type == "cuda":
                return torch.empty(shape, dtype=dtype, device=self._device).normal_()
            return self._huge.empty(shape, dtype).normal_()

        return self._kept(("cache", dtype, number), make)

    def _rotation(self) -> tuple[Tensor, Tensor]:
        config = self._config
        return self._kept(
            "table",
            lambda: ops.rotary_table(config.rotary_dim, config.rope_theta, self._positions, self._device),
        )

    def _slots(self) -> Tensor:
        return torch.arange(self._tokens, device=self._device)

    # -- ours --

    def _our_layernorm_qkv(self, fmt: str, number: int) -> Call:
        hidden, eps = self._config.hidden_size, self._config.layer_norm_eps
        x, norm, w = self._x(), self._norm(hidden), self._matrix(QKV, fmt, number)
        b = self._normal("qkv bias", 3 * hidden)
        return Call(lambda: ops.layernorm_qkv(x, *norm, eps, w, b), _bytes(*norm, w, b))

    def _our_linear_residual(self, fmt: str, number: int) -> Call:
        hidden = self._config.hidden_size
        x, w, b = self._x(), self._matrix(DENSE, fmt, number), self._normal("dense bias", hidden)
        residual = self._normal("residual", self._tokens, hidden)
        return Call(lambda: ops.linear_residual(x, w, b, residual), _bytes(w, b))

    def _our_mlp(self, fmt: str, number: int) -> Call:
        hidden, eps = self._config.hidden_size, self._config.layer_norm_eps
        x, norm, b_up = self._x(), self._norm(hidden), self._up_bias()
        up, down = self._matrix(UP, fmt, number), self._matrix(DOWN, fmt, number)
        b_down = self._normal("down bias", hidden)
        active = int((b_up > 0).sum()) / len(b_up)
        read = _bytes(*norm, up, b_up, b_down) + round(active * _bytes(down))
        return Call(lambda: ops.mlp(x, *norm, eps, up, b_up, down, b_down), read)

    def _our_lm_head(self, fmt: str, number: int) -> Call:
        hidden, eps = self._config.hidden_size, self._config.layer_norm_eps
        x, norm, w = self._x(), self._norm(hidden), self._matrix(HEAD, fmt, number)
        return Call(lambda: ops.lm_head(x, *norm, eps, w), _bytes(*norm, w))

    def _our_rotary_append(self, fmt: str, number: int) -> Call:
        config = self._config
        qkv = self._normal("qkv", self._tokens, 3 * config.hidden_size)
        norms, table = (*self._norm(config.head_dim), *self._norm(config.head_dim)), self._rotation()
        slots, cache = self._slots(), self._cache(FLOATS[fmt], number)
        positions = torch.full_like(slots, self._positions - 1)
        eps = config.layer_norm_eps

        def run() -> Tensor:
            return ops.rotary_append(qkv, *norms, eps, *table, slots, positions, cache)

        return Call(run, _bytes(qkv, *norms), streams=False)

    def _our_decode_attention(self, fmt: str, number: int) -> Call:
        q, cache, slots = self._q(), self._cache(FLOATS[fmt], number), self._slots()
        lengths, longest = torch.full_like(slots, self._positions), self._positions
        scale = self._config.head_dim**-0.5
        return Call(lambda: ops.decode_attention(q, cache, slots, lengths, longest, scale), _bytes(cache))

    def _our_prefill_attention(self, fmt: str, number: int) -> Call:
        """Of the last tokens before ``positions``."""
        q, cache = self._queries(), self._cache(FLOATS[fmt], number)
        start, scale = self._positions - len(q), self._config.head_dim**-0.5
        return Call(lambda: ops.prefill_attention(q, cache, 0, start, scale), _bytes(cache[:, 0]))

    def _queries(self) -> Tensor:
        config, count = self._config, min(PROMPT_CHUNK, self._positions)
        return self._normal("queries", count, config.num_attention_heads, config.head_dim)

    def _q(self) -> Tensor:
        config = self._config
        return self._normal("q", self._tokens, config.num_attention_heads, config.head_dim)

    # -- the same in torch, as one would write it: weights and activations in one dtype --

    def _torch_layernorm_qkv(self, fmt: str, number: int) -> Call:
        hidden, eps = self._config.hidden_size, self._config.layer_norm_eps
        x, gamma, beta, b = self._in(
            fmt, self._x(), *self._norm(hidden), self._normal("qkv bias", 3 * hidden)
        )
        w = self._plain(QKV, fmt, number)
        return Call(
            lambda: F.linear(F.layer_norm(x, (hidden,), gamma, beta, eps), w, b), _bytes(gamma, beta, w, b)
        )

    def _torch_linear_residual(self, fmt: str, number: int) -> Call:
        hidden = self._config.hidden_size
        residual = self._normal("residual", self._tokens, hidden)
        x, b, residual = self._in(fmt, self._x(), self._normal("dense bias", hidden), residual)
        w = self._plain(DENSE, fmt, number)
        return Call(lambda: F.linear(x, w, b) + residual, _bytes(w, b))

    def _torch_mlp(self, fmt: str, number: int) -> Call:
        hidden, eps = self._config.hidden_size, self._config.layer_norm_eps
        tensors = (self._x(), *self._norm(hidden), self._up_bias(), self._normal("down bias", hidden))
        x, gamma, beta, b_up, b_down = self._in(fmt, *tensors)
        up, down = self._plain(UP, fmt, number), self._plain(DOWN, fmt, number)

        def run() -> Tensor:
            activations = F.linear(F.layer_norm(x, (hidden,), gamma, beta, eps), up, b_up).relu().square()
            return x + F.linear(activations, down, b_down)

        return Call(run, _bytes(gamma, beta, up, b_up, down, b_down))

    def _torch_lm_head(self, fmt: str, number: int) -> Call:
        hidden, eps = self._config.hidden_size, self._config.layer_norm_eps
        x, gamma, beta = self._in(fmt, self._x(), *self._norm(hidden))
        w = self._plain(HEAD, fmt, number)
        return Call(lambda: F.linear(F.layer_norm(x, (hidden,), gamma, beta, eps), w), _bytes(gamma, beta, w))

    def _torch_rotary_append(self, fmt: str, number: int) -> Call:
        config = self._config
        heads, head_dim, half = config.num_attention_heads, config.head_dim, config.rotary_dim // 2
        qkv = self._normal("qkv", self._tokens, 3 * config.hidden_size)
        qkv, gamma, beta, cos, sin = self._in(fmt, qkv, *self._norm(head_dim), *self._rotation())
        slots, cache, position = self._slots(), self._cache(FLOATS[fmt], number), self._positions - 1
        positions = torch.full_like(slots, position)

        def rotated(x: Tensor) -> Tensor:
            x = F.layer_norm(x, (head_dim,), gamma, beta, config.layer_norm_eps)
            c, s = cos[positions][:, None], sin[positions][:, None]
            first, second, rest = x.split((half, half, head_dim - 2 * half), dim=-1)
            return torch.cat((first * c - second * s, second * c + first * s, rest), dim=-1)

        def run() -> Tensor:
            q, k, v = qkv.view(-1, heads, 3, head_dim).unbind(2)
            cache[0][slots, :, positions] = rotated(k)
            cache[1][slots, :, positions] = v
            return rotated(q)

        return Call(run, _bytes(qkv, gamma, beta), streams=False)

    def _torch_decode_attention(self, fmt: str, number: int) -> Call:
        cache = self._cache(FLOATS[fmt], number)
        (q,) = self._in(fmt, self._q())
        return Call(
            lambda: F.scaled_dot_product_attention(q[:, :, None], cache[0], cache[1])[:, :, 0].flatten(1),
            _bytes(cache),
        )

    def _torch_prefill_attention(self, fmt: str, number: int) -> Call:
        cache = self._cache(FLOATS[fmt], number)[:, :1]
        q = self._in(fmt, self._queries())[0].transpose(0, 1)[None]
        visible: Any = causal_lower_right(q.shape[2], self._positions)

        def run() -> Tensor:
            attended = F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=visible)
            return attended[0].transpose(0, 1).flatten(1)

        return Call(run, _bytes(cache))

    @staticmethod
    def _in(fmt: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(FLOATS[fmt]) for tensor in tensors)


def _bytes(*parts: Matrix) -> int:
    return sum(int(part.nbytes) for part in parts)
