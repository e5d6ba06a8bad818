"""Arguments that each operator takes, by name: what tests of its contract change one of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matrices
import torch
from backends import EMULATED, EPS, Reference
from layer_stacks import Shapes, drawn_counters, drawn_stack
from torch import Tensor

from adept_fast.ops import reference

HIDDEN, UNITS, HEADS, HEAD_DIM, CAPACITY, SLOTS = 48, 40, 3, 16, 12, 4

Arguments = dict[str, Any]


def weights(fmt: str, rows: int, columns: int, layout: Any = "rows") -> matrices.Weights:
    """In a CPU's formats; those in floats are a GPU's too."""
    return matrices.weights(Reference(narrow=False), fmt, rows, columns, layout)


def matrix(name: str, fmt: str, rows: int, columns: int, layout: Any = "rows") -> Arguments:
    scales = {"w": "scales", "w_up": "up_scales", "w_down_t": "down_scales"}[name]
    values, packed = weights(fmt, rows, columns, layout).parts
    return {name: values, scales: packed}


def norm(size: int = HIDDEN, prefix: str = "") -> Arguments:
    gamma, beta = matrices.norm(size)
    return {f"{prefix}gamma": gamma, f"{prefix}beta": beta}


def at(tokens: int = 2) -> Arguments:
    return {"slots": torch.tensor([3, 0])[:tokens], "positions": torch.tensor([11, 4])[:tokens]}


def table(half: int = 4) -> Arguments:
    cos, sin = reference.rotary_table(2 * half, 10000.0, CAPACITY, torch.device("cpu"))
    return {"cos": cos, "sin": sin}


def layer(fmt: str) -> list[Tensor]:
    absent = torch.empty(0)
    tensors = [
        *matrices.norm(HIDDEN),
        *weights(fmt, 3 * HIDDEN, HIDDEN).parts,
        torch.randn(3 * HIDDEN),
        *matrices.norm(HEAD_DIM),
        *matrices.norm(HEAD_DIM),
        *weights(fmt, HIDDEN, HIDDEN).parts,
        torch.randn(HIDDEN),
        *matrices.norm(HIDDEN),
        *weights(fmt, UNITS, HIDDEN).parts,
        torch.randn(UNITS),
        *weights(fmt, UNITS, HIDDEN, "units").parts,
        torch.randn(HIDDEN),
    ]
    return [absent if tensor is None else tensor for tensor in tensors]


def layernorm_qkv(fmt: str) -> Arguments:
    qkv = 3 * HIDDEN
    x = torch.randn(2, HIDDEN)
    return {"x": x, **norm(), "eps": EPS, **matrix("w", fmt, qkv, HIDDEN), "b": torch.randn(qkv)}


def linear_residual(fmt: str) -> Arguments:
    x, w = torch.randn(2, HIDDEN), matrix("w", fmt, 35, HIDDEN)
    return {"x": x, **w, "b": torch.randn(35), "residual": torch.randn(2, 35)}


def mlp(fmt: str) -> Arguments:
    return {
        "x": torch.randn(2, HIDDEN),
        **norm(),
        "eps": EPS,
        **matrix("w_up", fmt, UNITS, HIDDEN),
        "b_up": torch.randn(UNITS),
        **matrix("w_down_t", fmt, UNITS, HIDDEN, "units"),
        "b_down": torch.randn(HIDDEN),
        "counts": torch.zeros(2, dtype=torch.int64),
        "slots": torch.tensor([3, -1]),
        "residual": torch.randn(2, HIDDEN),
    }


def lm_head(fmt: str) -> Arguments:
    return {"x": torch.randn(2, HIDDEN), **norm(), "eps": EPS, **matrix("w", fmt, 35, HIDDEN), "rows": 35}


def rotary_append(fmt: str) -> Arguments:
    return {
        "qkv": torch.randn(2, 3 * HIDDEN),
        **norm(HEAD_DIM, "q_"),
        **norm(HEAD_DIM, "k_"),
        "eps": EPS,
        **table(),
        **at(),
        "cache_layer": torch.zeros(2, SLOTS, HEADS, CAPACITY, HEAD_DIM),
    }


def decode_attention(fmt: str) -> Arguments:
    cache = torch.randn(2, SLOTS, HEADS, CAPACITY, HEAD_DIM).half()
    lengths = torch.tensor([CAPACITY, 0])
    return {
        "q": torch.randn(2, HEADS, HEAD_DIM),
        "cache_layer": cache,
        "slots": at()["slots"],
        "lengths": lengths,
        "longest": CAPACITY,
        "scale": 0.25,
    }


def prefill_attention(fmt: str) -> Arguments:
    cache = torch.randn(2, SLOTS, HEADS, CAPACITY, HEAD_DIM).half()
    q = torch.randn(5, HEADS, HEAD_DIM)
    return {"q": q, "cache_layer": cache, "slot": 3, "start": CAPACITY - 5, "scale": 0.25}


def decode_step(fmt: str) -> Arguments:
    return {
        "ids": torch.tensor([5, 34]),
        **at(),
        "embedding": torch.randn(35, HIDDEN),
        "layers": [*layer(fmt), *layer(fmt)],
        **table(),
        "cache": torch.zeros(2, 2, SLOTS, HEADS, CAPACITY, HEAD_DIM),
        **norm(prefix="final_"),
        **matrix("w", fmt, 35, HIDDEN),
        "rows": 35,
        "eps": EPS,
        "scale": 0.25,
        "counts": torch.zeros(2, dtype=torch.int64),
    }


def decode_layers(fmt: str) -> Arguments:
    shapes = Shapes(HIDDEN, HEADS, UNITS, CAPACITY, layers=2, half=4, slots=SLOTS)
    slots, positions = at().values()
    stack = drawn_stack(EMULATED, "float16", shapes, slots.tolist(), positions.tolist())
    return {
        **stack.arguments,
        "layers": stack.tensors(),
        "cache": torch.zeros(2, 2, SLOTS, HEADS, CAPACITY, HEAD_DIM).half(),
        "eps": EPS,
        "counts": torch.zeros(2, dtype=torch.int64),
        "counters": drawn_counters(shapes, 2),
        "one_kernel": False,
    }


def sample(fmt: str) -> Arguments:
    return {
        "logits": torch.randn(2, 35),
        **at(),
        "temperature": torch.rand(SLOTS),
        "top_k": torch.full((SLOTS,), 5),
        "top_p": torch.full((SLOTS,), 0.9),
        "min_p": torch.full((SLOTS,), 0.1),
        "repetition_penalty": torch.full((SLOTS,), 1.2),
        "frequency_penalty": torch.full((SLOTS,), 0.5),
        "presence_penalty": torch.full((SLOTS,), -0.2),
        "is_biased": torch.ones(SLOTS, dtype=torch.bool),
        "seed": torch.arange(SLOTS),
        "logit_bias": torch.rand(SLOTS, 35),
        "seen": torch.zeros(SLOTS, 35, dtype=torch.bool),
        "counts": torch.zeros(SLOTS, 35, dtype=torch.int32),
    }


def token_logprobs(fmt: str) -> Arguments:
    return {"logits": torch.randn(2, 35), "chosen": torch.tensor([34, 7]), "count": 3}


def update_decode_state(fmt: str) -> Arguments:
    return {
        "chosen": torch.tensor([34, 7]),
        "ids": torch.tensor([5, 6]),
        **at(),
        "limits": torch.tensor([12, 9]),
        "ends": torch.zeros(SLOTS, 35, dtype=torch.bool),
        "counts": torch.tensor([8, 2**31]),
        "token_ring": torch.zeros(2, 3, dtype=torch.int64),
    }


def embed(fmt: str) -> Arguments:
    return {"table": torch.randn(35, HIDDEN).half(), "ids": torch.tensor([34, 0])}


def prepare_rows(fmt: str) -> Arguments:
    x, at = torch.randn(2, HIDDEN), {"raised": 3, "rows": 5, "dtype": torch.float16}
    return {"x": x, **norm(), "eps": EPS, **at}


def product(*shape: int) -> Arguments:
    """Of two tokens."""
    vectors = {"scales": torch.randn(HIDDEN), "bias": torch.randn(HIDDEN)}
    return {"product": torch.randn(*shape, HIDDEN).half(), "powers": torch.tensor([0.5, 8.0]), **vectors}


def activate_rows(fmt: str) -> Arguments:
    return {**product(5), "raised": 0, "rows": 4}


def finish_rows(fmt: str) -> Arguments:
    return {**product(3, 4), "relu_squared": True, "residual": torch.randn(2, HIDDEN)}


def widen(fmt: str) -> Arguments:
    w, scales = torch.randint(256, (35, 64), dtype=torch.uint8), torch.randn(35, 1).half()
    return {"w": w, "scales": scales, "cols": HIDDEN, "start": 3, "stop": 35, "dtype": torch.float16}


def copy(fmt: str) -> Arguments:
    return {"source": torch.randn(300)}


OPERATORS: dict[str, Callable[[str], Arguments]] = {
    function.__name__: function
    for function in (
        layernorm_qkv,
        linear_residual,
        mlp,
        lm_head,
        rotary_append,
        decode_attention,
        prefill_attention,
        decode_step,
        decode_layers,
        sample,
        token_logprobs,
        update_decode_state,
        embed,
        prepare_rows,
        activate_rows,
        finish_rows,
        widen,
        copy,
    )
} | {"read": copy}

# Those for which a CPU has no kernel, and what they return here.
OF_A_GPU = {
    "decode_layers": [((2, HIDDEN), torch.float32)],
    "sample": [((2,), torch.int64)],
    "token_logprobs": [((2, 2, 4), torch.float32)],
    "embed": [((2, HIDDEN), torch.float32)],
    "prefill_attention": [((5, HEADS * HEAD_DIM), torch.float32)],
    "prepare_rows": [((5, HIDDEN), torch.float16), ((2,), torch.float32)],
    "activate_rows": [((4, HIDDEN), torch.float16), ((2,), torch.float32)],
    "finish_rows": [((2, HIDDEN), torch.float32)],
    "widen": [((32, HIDDEN), torch.float16)],
}

# Those for which a GPU has none.
OF_A_CPU = ("decode_step",)

# Those that take weights in any format.
OF_WEIGHTS = ("layernorm_qkv", "linear_residual", "mlp", "lm_head", "decode_step")
