"""Arguments that the operators of a GPU alone refuse, on the emulator."""

from __future__ import annotations

import pytest
import torch
from backends import Backend, on_the_emulator
from operator_arguments import CAPACITY, OF_A_CPU, OPERATORS, SLOTS, UNITS
from torch import Tensor
from wrong_arguments import LARGEST, LEAST

# Arguments that may be in the host's memory or are the only one, and what others have to be beside.
ANYWHERE = {
    "embed": ("table", "ids"),
    "update_decode_state": ("ids", "token_ring"),
    "copy": ("source",),
    "read": ("source",),
}
FIRST = {
    "rotary_append": "qkv",
    "decode_attention": "q",
    "prefill_attention": "q",
    "sample": "logits",
    "token_logprobs": "logits",
    "update_decode_state": "ids",
    "widen": "w",
    "activate_rows": "product",
    "finish_rows": "product",
}  # others: x
BESIDE = [
    (operator, name)
    for operator in OPERATORS
    if operator not in OF_A_CPU
    for name, value in OPERATORS[operator]("float16").items()
    if isinstance(value, Tensor) and name not in ANYWHERE.get(operator, ())
]


@pytest.mark.parametrize(("operator", "name"), BESIDE)
@on_the_emulator
def test_an_argument_on_another_device_is_named(backend: Backend, operator: str, name: str) -> None:
    """Its address would mean other memory to the kernel, or none."""
    call = getattr(backend.operators, operator)
    from cuda_on_cpu import library

    arguments, first = OPERATORS[operator]("float16"), FIRST.get(operator, "x")
    says = f"{name} is not on a GPU" if name == first else f"{name} is not on the device of {first}"
    with library.elsewhere(arguments[name]), pytest.raises(RuntimeError, match=f"^{says}"):
        call(**arguments)


@pytest.mark.parametrize("name", ["ids", "table"])
@on_the_emulator
def test_none_is_no_tensor(backend: Backend, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name} (is None; expected a tensor|has shape)"):
        backend.operators.embed(**{**OPERATORS["embed"]("float16"), name: None})


@pytest.mark.parametrize("rows", [-1, 2**31, LARGEST, LEAST])
@on_the_emulator
def test_rows_that_there_are_not(backend: Backend, rows: int) -> None:
    with pytest.raises(RuntimeError, match=f"rows is {rows}; expected 0 to {2**31 - 1}"):
        backend.operators.lm_head(**{**OPERATORS["lm_head"]("float16"), "rows": rows})


@on_the_emulator
def test_matrices_that_kernels_do_not_count_in_32_bits(backend: Backend) -> None:
    says = rf"expected at most {2**30} and {2**26} on a GPU"
    with pytest.raises(RuntimeError, match=f"w has {2**30 + 1} rows and 48 columns; {says}"):
        backend.operators.lm_head(**{**OPERATORS["lm_head"]("float16"), "rows": 2**30 + 1})
    x = torch.empty(1, 2**26 + 8)  # whose memory nobody touches
    b, residual = torch.zeros(35), torch.zeros(1, 35)
    with pytest.raises(RuntimeError, match=f"w has 35 rows and {2**26 + 8} columns; {says}"):
        backend.operators.linear_residual(x, torch.zeros(35, 48).half(), None, b, residual)


@pytest.mark.parametrize("top_p", [-1.0, float("-inf"), float("nan"), 0.0])
@on_the_emulator
def test_a_share_that_is_none_keeps_a_token(backend: Backend, top_p: float) -> None:
    """A negative share of a mass is no mass: it must not become one by conversion."""
    arguments = OPERATORS["sample"]("float16")
    arguments["top_p"][:] = top_p
    chosen = backend.operators.sample(**arguments)
    assert ((chosen >= 0) & (chosen < 35)).all()


def moved(tensor: Tensor) -> Tensor:
    """One element past where a load of 16 bytes may begin."""
    memory = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    return memory[1:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize(
    ("operator", "change", "says"),
    [
        ("embed", {"table": torch.zeros(5)}, "table has shape [5]; expected [vocab, hidden]"),
        ("embed", {"table": torch.zeros(5, 8).double()}, "table has dtype Double"),
        ("embed", {"table": torch.zeros(5, 8).int()}, "table has dtype Int"),
        ("embed", {"table": torch.zeros(8, 5).t()}, "table is not contiguous"),
        ("embed", {"ids": torch.tensor([0]).int()}, "ids has dtype Int; expected Long"),
        ("embed", {"ids": torch.tensor([[0]])}, "ids has shape [1, 1]; expected [1]"),
        ("read", {"source": torch.zeros(5)}, "source has 20 bytes; expected a multiple of 16 on a GPU"),
        ("read", {"source": torch.zeros(12)[1:9]}, "source is not aligned to 16 bytes"),
        (
            "sample",
            {
                "logits": torch.zeros(2, 0),
                "logit_bias": torch.zeros(SLOTS, 0),
                "seen": torch.zeros(SLOTS, 0).bool(),
                "counts": torch.zeros(SLOTS, 0).int(),
            },
            "sample: ",
        ),
        ("layernorm_qkv", {"w": moved(torch.zeros(144, 48).half())}, "misaligned"),
        ("mlp", {"w_down_t": moved(torch.zeros(UNITS, 48).half())}, "misaligned"),
        (
            "decode_attention",
            {"cache_layer": moved(torch.zeros(2, SLOTS, 3, CAPACITY, 16))},
            "decode_attention: ",
        ),
        (
            "prefill_attention",
            {"cache_layer": moved(torch.zeros(2, SLOTS, 3, CAPACITY, 16).half())},
            "prefill_attention: ",
        ),
        *(
            (
                operator,
                {
                    "q": torch.zeros(2, 3, size),
                    "cache_layer": torch.zeros(2, SLOTS, 3, CAPACITY, size).half(),
                },
                f"{operator}: ",
            )
            for operator in ("decode_attention", "prefill_attention")
            for size in (20, 264)  # heads that no loads of 16 bytes fit
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
@on_the_emulator
def test_what_kernels_of_a_gpu_do_not_take(
    backend: Backend, operator: str, change: dict[str, Tensor], says: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        getattr(backend.operators, operator)(**{**OPERATORS[operator]("float16"), **change})
    assert says in str(caught.value)
