"""What the CUDA operators refuse before a kernel is launched: shared memory, mixed devices, wrong sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_place import EMULATED
from cuda_place import inputs_arrive as inputs_arrive
from native_operands import OPERATORS
from sharing_memory import WRITTEN, pairs, placed
from torch import Tensor

ON_A_GPU = [name for name in OPERATORS if name not in ("decode_step", "dequantize_transposed")]
PAIRS = [
    (operator, *pair)
    for operator in WRITTEN
    if operator in ON_A_GPU
    for pair in pairs(operator, OPERATORS[operator]("float16"))
]
# May be in the host's memory, or there is no other argument to be beside.
ANYWHERE = {
    "embed": ("table", "ids"),
    "update_decode_state": ("ids", "token_ring"),
    "copy": ("source",),
    "read": ("source",),
}
FIRST = {
    "rotary_append": "qkv",
    "decode_attention": "q",
    "sample": "logits",
    "update_decode_state": "ids",
}  # others: x
BESIDE = [
    (operator, name)
    for operator in ON_A_GPU
    for name, value in OPERATORS[operator]("float16").items()
    if isinstance(value, Tensor) and name not in ANYWHERE.get(operator, ())
]


def arguments_of(operator: str) -> dict[str, Any]:
    torch.manual_seed(0)
    return OPERATORS[operator]("float16")


@pytest.mark.parametrize(("operator", "one", "other"), PAIRS)
def test_shared_memory_is_refused(operator: str, one: str, other: str) -> None:
    arguments = placed(arguments_of(operator), one, other, bytes_shared=8)
    with pytest.raises(RuntimeError, match="shares memory with") as caught:
        getattr(EMULATED.operators, operator)(**arguments)
    names = str(caught.value).split("; ")[0].split(" shares memory with ")
    assert sorted(names) == sorted((one, other))


@pytest.mark.parametrize(("operator", "one", "other"), PAIRS)
def test_neighbours_are_not_refused(operator: str, one: str, other: str) -> None:
    arguments = arguments_of(operator)
    alone = {name: value.clone() if name in WRITTEN[operator] else value for name, value in arguments.items()}
    expected = getattr(EMULATED.operators, operator)(**alone)
    beside = placed(arguments, one, other, bytes_shared=0)
    found = getattr(EMULATED.operators, operator)(**beside)
    assert found is None or torch.equal(found, expected)
    for name in WRITTEN[operator]:
        assert torch.equal(beside[name], alone[name])


@pytest.mark.parametrize(("operator", "name"), BESIDE)
def test_an_argument_on_another_device_is_named(operator: str, name: str) -> None:
    """Its address would mean other memory to the kernel, or none."""
    from cuda_on_cpu import library

    arguments, first = arguments_of(operator), FIRST.get(operator, "x")
    says = f"{name} is not on a GPU" if name == first else f"{name} is not on the device of {first}"
    with library.elsewhere(arguments[name]), pytest.raises(RuntimeError, match=f"^{says}"):
        getattr(EMULATED.operators, operator)(**arguments)


@pytest.mark.parametrize("name", ["ids", "table"])
def test_none_is_no_tensor(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name} (is None; expected a tensor|has shape)"):
        EMULATED.operators.embed(**{**arguments_of("embed"), name: None})


def test_counts_go_on_past_64_bits() -> None:
    """As torch's sums of int64 do; what is on the device cannot be refused."""
    arguments = arguments_of("mlp")
    grown, counts = torch.zeros(2, dtype=torch.int64), torch.tensor([2**63 - 3, -5])
    expected = counts.clone()
    EMULATED.operators.mlp(**{**arguments, "counts": grown})
    assert grown[0] > 3
    expected += grown
    EMULATED.operators.mlp(**{**arguments, "counts": counts})
    assert torch.equal(counts, expected)
    assert counts[0] < 0 < counts[1]


@pytest.mark.parametrize("rows", [-1, 2**31, 2**63 - 1, -(2**63)])
def test_rows_that_there_are_not(rows: int) -> None:
    with pytest.raises(RuntimeError, match=f"rows is {rows}; expected 0 to {2**31 - 1}"):
        EMULATED.operators.lm_head(**{**arguments_of("lm_head"), "rows": rows})


def test_matrices_that_kernels_do_not_count_in_32_bits() -> None:
    says = rf"expected at most {2**30} and {2**26} on a GPU"
    with pytest.raises(RuntimeError, match=f"w has {2**30 + 1} rows and 48 columns; {says}"):
        EMULATED.operators.lm_head(**{**arguments_of("lm_head"), "rows": 2**30 + 1})
    x = torch.empty(1, 2**26 + 8)  # whose memory nobody touches
    b, residual = torch.zeros(35), torch.zeros(1, 35)
    with pytest.raises(RuntimeError, match=f"w has 35 rows and {2**26 + 8} columns; {says}"):
        EMULATED.operators.linear_residual(x, torch.zeros(35, 48).half(), None, b, residual)


@pytest.mark.parametrize("top_p", [-1.0, float("-inf"), float("nan"), 0.0])
def test_a_share_that_is_none_keeps_a_token(top_p: float) -> None:
    """A negative share of a mass is no mass: it must not become one by conversion."""
    arguments = arguments_of("sample")
    arguments["top_p"][:] = top_p
    chosen = EMULATED.operators.sample(**arguments)
    assert ((chosen >= 0) & (chosen < 35)).all()
