"""Arguments of operators that are wrong by one change, and what the refusal of each has to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from operator_arguments import CAPACITY, SLOTS
from torch import Tensor

LEAST, LARGEST = -(2**63), 2**63 - 1  # int64
FLOATS, PACKED = ("float32", "float16", "bfloat16"), ("int8", "int4")


@dataclass(frozen=True)
class Wrong:
    """One change to an operator's arguments, and what the refusal has to say."""

    operator: str
    argument: str
    change: Callable[[Any], Any]
    says: str
    fmt: str = "float32"
    says_on_a_gpu: str = ""  # if that is something else

    @property
    def is_value(self) -> bool:
        """In a tensor, at which no operator of a GPU looks."""
        return " holds " in self.says

    def __str__(self) -> str:
        return f"{self.operator}-{self.argument}-{self.change.__name__.strip('<>')}-{self.fmt}"


def widened(x: Tensor) -> Tensor:
    """One more of the last dimension."""
    return torch.cat((x, x[..., :1]), -1).contiguous()


def strided(x: Tensor) -> Tensor:
    """The same numbers, not contiguous."""
    return torch.stack((x, x), -1)[..., 0]


def misaligned(x: Tensor) -> Tensor:
    """The same numbers, a byte past where they could begin."""
    memory = bytearray(x.nbytes + 1)
    memory[1:] = x.contiguous().view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(memory, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)


def with_last(value: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat((x[:-1], torch.tensor([value])))


def part(index: int, change: Callable[[Tensor], Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Of the last layer's tensors."""
    return lambda layers: [*layers[: 20 + index], change(layers[20 + index]), *layers[21 + index :]]


def wrong_weights() -> list[Wrong]:
    cases = []
    for operator, values, scales in (
        ("layernorm_qkv", "w", "scales"),
        ("linear_residual", "w", "scales"),
        ("lm_head", "w", "scales"),
        ("mlp", "w_up", "up_scales"),
        ("mlp", "w_down_t", "down_scales"),
        ("decode_step", "w", "scales"),
    ):
        for fmt in (*FLOATS, *PACKED):
            cases.append(Wrong(operator, values, widened, f"{values} has shape", fmt))
            cases.append(Wrong(operator, values, strided, f"{values} is not contiguous", fmt))
            cases.append(Wrong(operator, values, Tensor.double, f"{values} has", fmt))
        for fmt in PACKED:
            cases.append(Wrong(operator, scales, lambda _: None, f"{values} has dtype", fmt))
            cases.append(Wrong(operator, scales, widened, f"{values} has shape", fmt))
            cases.append(Wrong(operator, scales, Tensor.double, f"{values} has dtype", fmt))
        cases.append(
            Wrong(
                operator,
                scales,
                lambda _: torch.ones(64),
                f"{values} has scales",
                says_on_a_gpu=f"{values} has dtype Half; expected Byte",
            )
        )
    return cases


def wrong_vectors() -> list[Wrong]:
    cases = []
    for operator, names in (
        ("layernorm_qkv", ("beta",)),
        ("lm_head", ("gamma", "beta")),
        ("mlp", ("gamma", "beta", "b_down")),
        ("decode_step", ("final_beta",)),
        ("rotary_append", ("q_gamma", "k_beta")),
    ):
        for name in names:
            says = name.split("_")[-1] if name != "b_down" else name
            cases.append(Wrong(operator, name, widened, ""))  # other sizes follow from some of them
            cases.append(Wrong(operator, name, Tensor.double, f"{says} has dtype"))
            cases.append(Wrong(operator, name, strided, f"{says} is not contiguous"))
    return cases


WRONG = [
    *wrong_weights(),
    *wrong_vectors(),
    *(
        Wrong(operator, name, change, f"{name} has {says}")
        for operator, name in (
            ("layernorm_qkv", "x"),
            ("lm_head", "x"),
            ("mlp", "x"),
            ("linear_residual", "residual"),
            ("rotary_append", "qkv"),
            ("decode_attention", "q"),
            ("prefill_attention", "q"),
        )
        for change, says in (
            (widened, "shape"),
            (lambda x: x[0], "shape"),
            (lambda x: x[None], "shape"),
            (Tensor.double, "dtype"),
            (Tensor.half, "dtype"),
        )
    ),
    Wrong(
        "linear_residual", "x", widened, "w has shape", says_on_a_gpu="w has 49 columns; expected a multiple"
    ),
    Wrong("linear_residual", "x", lambda x: x[0], "x has shape"),
    Wrong("linear_residual", "residual", lambda x: x[:1], "residual has shape"),
    Wrong("lm_head", "rows", lambda rows: rows + 1, "w has shape"),
    Wrong("lm_head", "rows", lambda rows: rows + 16, "w has shape", "int8"),
    Wrong("mlp", "counts", lambda x: x[:1], "counts has shape"),
    Wrong("mlp", "counts", Tensor.int, "counts has dtype"),
    Wrong("rotary_append", "q_beta", lambda _: None, "only one of q_gamma and q_beta"),
    Wrong("rotary_append", "k_gamma", lambda _: None, "only one of k_gamma and k_beta"),
    Wrong("rotary_append", "cos", lambda x: x[1:], "sin has shape"),
    Wrong("rotary_append", "cos", strided, "cos has shape"),
    Wrong("rotary_append", "cos", Tensor.double, "cos has dtype"),
    *(
        Wrong(operator, name, misaligned, f"{name} is not aligned to its elements of")
        for operator, names in (
            ("layernorm_qkv", ("x", "w")),
            ("linear_residual", ("residual",)),
            ("mlp", ("counts", "slots")),
            ("rotary_append", ("cos", "sin", "slots", "positions", "cache_layer")),
            ("decode_attention", ("q", "lengths", "cache_layer")),
            ("update_decode_state", ("chosen", "ids", "limits", "counts", "token_ring")),
        )
        for name in names
    ),
    Wrong("mlp", "gamma", misaligned, "gamma is not aligned to its elements of 4 bytes"),
    Wrong("mlp", "down_scales", misaligned, "w_down_t is not aligned to its elements of 2 bytes", "int4"),
    Wrong("rotary_append", "sin", Tensor.half, "sin has dtype"),
    *(
        Wrong(operator, name, change, f"{name} ")
        for operator, names in (
            ("mlp", ("slots",)),
            ("rotary_append", ("slots", "positions")),
            ("decode_attention", ("slots", "lengths")),
            ("decode_step", ("slots", "positions")),
            ("update_decode_state", ("ids", "slots", "positions", "limits", "counts", "token_ring")),
        )
        for name in names
        for change in (Tensor.int, lambda x: x[:1], lambda x: x[None], strided)
    ),
    Wrong("update_decode_state", "chosen", Tensor.int, "chosen has dtype"),
    Wrong("update_decode_state", "chosen", strided, "chosen is not contiguous"),
    Wrong("update_decode_state", "chosen", lambda x: x[:1], "ids has shape [2]; expected [1]"),
    *(
        Wrong(
            "update_decode_state", name, with_last(value), f"{name} holds {value}; expected 0 to {2**63 - 2}"
        )
        for name in ("counts", "positions")
        for value in (-1, LEAST, LARGEST)
    ),
    *(
        Wrong(
            "decode_attention",
            "longest",
            lambda _, value=value: value,
            f"longest is {value}; expected 0 to 12",
        )
        for value in (-1, CAPACITY + 1, LEAST, LARGEST)
    ),
    Wrong("decode_attention", "longest", lambda _: 5, "lengths holds 12; expected 0 to 5"),
    *(
        Wrong(
            operator, "rows", lambda _, value=value: value, f"rows is {value}; expected 0 to {2**31 - 1}", fmt
        )
        for operator in ("lm_head", "decode_step")
        for fmt in (*FLOATS, *PACKED)
        for value in (-1, 2**31, LEAST, LARGEST)
    ),
    Wrong(
        "update_decode_state",
        "token_ring",
        lambda x: x[:, :0],
        "token_ring has shape [2, 0]; expected contiguous [2, 1 or more]",
    ),
    Wrong("update_decode_state", "ends", Tensor.byte, "ends has dtype"),
    Wrong(
        "update_decode_state",
        "ends",
        lambda x: x[0],
        "ends has shape [35]; expected contiguous [slots, vocab], each 1 or more",
    ),
    Wrong(
        "update_decode_state",
        "ends",
        lambda x: x[:, :0],
        "ends has shape [4, 0]; expected contiguous [slots, vocab]",
    ),
    Wrong("update_decode_state", "ends", strided, "ends has shape"),
    *(
        Wrong(operator, name, with_last(value), f"{name} holds {value}; expected {least} to {most}")
        for operator, name, least, most in (
            ("rotary_append", "slots", -1, SLOTS - 1),
            ("rotary_append", "positions", 0, CAPACITY - 1),
            ("decode_attention", "slots", -1, SLOTS - 1),
            ("decode_attention", "lengths", 0, CAPACITY),
            ("decode_step", "ids", 0, 34),
            ("decode_step", "slots", -1, SLOTS - 1),
            ("decode_step", "positions", 0, CAPACITY - 1),
            ("update_decode_state", "slots", -1, SLOTS - 1),
        )
        for value in (least - 1, most + 1, 2**62, LEAST, LARGEST)
    ),
    *(
        Wrong(operator, "cache_layer", change, "cache_layer has shape")
        for operator in ("rotary_append", "decode_attention", "prefill_attention")
        for change in (Tensor.double, strided, lambda x: x[0], lambda x: x[:1])
    ),
    Wrong("rotary_append", "cache_layer", widened, "qkv has shape"),
    Wrong("decode_attention", "cache_layer", widened, "q has shape"),
    Wrong("prefill_attention", "cache_layer", widened, "q has shape"),
    Wrong(
        "prefill_attention", "cache_layer", Tensor.float, "cache_layer has dtype float32; expected float16"
    ),
    *(
        Wrong("prefill_attention", name, lambda _, value=value: value, f"{name} is {value}{says}")
        for name, most, says in (
            ("slot", SLOTS - 1, f"; expected 0 to {SLOTS - 1}"),
            ("start", CAPACITY - 5, f" of 5 tokens; expected 0 to {CAPACITY - 5}"),
        )
        for value in (-1, most + 1, LEAST, LARGEST)
    ),
    Wrong("decode_step", "cache", lambda x: x[:1], "layers has 40 tensors and the cache shape"),
    Wrong("decode_step", "cache", lambda x: x[0], "layers has 40 tensors and the cache shape"),
    Wrong(
        "decode_step", "cache", widened, "gamma has shape"
    ),  # of q and k, which a head has to be as large as
    Wrong("decode_step", "cache", lambda x: x[:1].expand_as(x), "cache is not contiguous"),
    Wrong("decode_step", "layers", lambda x: x[:-1], "layers has 39 tensors"),
    Wrong("decode_step", "layers", part(2, widened), "w_qkv has shape"),
    Wrong("decode_step", "layers", part(4, Tensor.double), "b_qkv has dtype"),
    Wrong("decode_step", "layers", part(5, lambda _: torch.empty(0)), "only one of q_gamma and q_beta"),
    Wrong("decode_step", "layers", part(9, Tensor.double), "w_dense has dtype"),
    Wrong("decode_step", "layers", part(11, widened), "b_dense has shape"),
    Wrong("decode_step", "layers", part(14, widened), "w_up has shape"),
    Wrong("decode_step", "layers", part(16, strided), "b_up is not contiguous"),
    Wrong("decode_step", "layers", part(17, widened), "w_down_t has shape"),
    Wrong("decode_step", "layers", part(18, lambda _: torch.empty(0)), "w_down_t has dtype", "int4"),
    Wrong("decode_step", "layers", part(19, widened), "b_down has shape"),
    Wrong("decode_step", "embedding", widened, "embedding has shape"),
    Wrong("decode_step", "embedding", lambda x: x[0], "embedding has shape"),
    Wrong("decode_step", "embedding", Tensor.double, "embedding has dtype"),
    Wrong("decode_step", "sin", widened, "sin has shape"),
    Wrong("decode_step", "counts", Tensor.int, "counts has dtype"),
    Wrong("decode_step", "rows", lambda rows: rows - 1, "w has shape"),
    *(
        Wrong("sample", name, change, f"{name} has {says}")
        for name in ("temperature", "frequency_penalty", "presence_penalty", "is_biased", "seed")
        for change, says in ((Tensor.double, "dtype"), (lambda x: x[None], "shape"))
    ),
    *(
        Wrong("sample", name, change, f"{name} has {says}")
        for name in ("logit_bias", "seen", "counts")
        for change, says in (
            (Tensor.short, "dtype"),
            (widened, "shape"),
            (lambda x: x[1:], "shape"),
            (lambda x: x[0], "shape"),
        )
    ),
    Wrong("sample", "frequency_penalty", lambda x: x[1:], "frequency_penalty has shape"),
    Wrong("sample", "logit_bias", strided, "logit_bias is not contiguous"),
    Wrong("sample", "counts", strided, "counts is not contiguous"),
    Wrong("sample", "counts", misaligned, "counts is not aligned to its elements of 4 bytes"),
    Wrong("token_logprobs", "logits", Tensor.double, "logits has dtype"),
    Wrong("token_logprobs", "logits", strided, "logits has shape"),
    Wrong("token_logprobs", "logits", lambda x: x[0], "logits has shape"),
    Wrong("token_logprobs", "chosen", Tensor.int, "chosen has dtype"),
    Wrong("token_logprobs", "chosen", widened, "chosen has shape"),
    Wrong("token_logprobs", "count", lambda count: -count, "count is -3; expected 0 to 20"),
    Wrong("copy", "source", strided, "source is not contiguous"),
    Wrong("read", "source", strided, "source is not contiguous"),
]
