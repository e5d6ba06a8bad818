"""What an operator writes lies apart from its other arguments: what does not is refused, by both names."""

from __future__ import annotations

import native
import pytest
import torch
from native import call
from native import settled as settled
from native_operands import OF_A_GPU, OPERATORS, decode_step
from sharing_memory import WRITTEN, pairs, placed

from adept_fast.ops import reference

PAIRS = [
    (operator, *pair)
    for operator in WRITTEN
    if operator not in OF_A_GPU
    for pair in pairs(operator, OPERATORS[operator]("float32"))
]


@pytest.mark.parametrize(("operator", "one", "other"), PAIRS)
def test_shared_memory_is_refused(operator: str, one: str, other: str) -> None:
    arguments = placed(OPERATORS[operator]("float32"), one, other, bytes_shared=8)
    before = {name: arguments[name].clone() for name in WRITTEN[operator]}
    with pytest.raises(RuntimeError, match="shares memory with") as caught:
        getattr(call, operator)(**arguments)
    names = str(caught.value).split("; ")[0].split(" shares memory with ")
    assert sorted(names) == sorted((one, other))
    for name, tensor in before.items():
        assert native.same_bits(arguments[name], tensor)


@pytest.mark.parametrize(("operator", "one", "other"), PAIRS)
def test_neighbours_are_not_refused(operator: str, one: str, other: str) -> None:
    """As the rows of the program's decode state are, which are views of one tensor."""
    arguments = OPERATORS[operator]("float32")
    alone = {name: value.clone() if name in WRITTEN[operator] else value for name, value in arguments.items()}
    expected = getattr(call, operator)(**alone)
    beside = placed(arguments, one, other, bytes_shared=0)
    found = getattr(call, operator)(**beside)
    assert found is None or native.same_bits(found, expected)
    for name in WRITTEN[operator]:
        assert native.same_bits(beside[name], alone[name])


def test_counts_in_the_slots_of_a_step() -> None:
    """Each layer would have sent the next one's keys to another slot, past the last one at the end."""
    arguments = decode_step("float32")
    arguments["counts"] = arguments["slots"]
    with pytest.raises(RuntimeError, match="counts shares memory with slots; expected memory of its own"):
        call.decode_step(**arguments)
    assert arguments["slots"].tolist() == [3, 0]
    assert not arguments["cache"].any()


def test_a_view_with_gaps_shares_what_lies_in_them() -> None:
    arguments = OPERATORS["mlp"]("float32")
    memory = torch.randn(2, 60)
    arguments["x"] = memory[:, :48]
    arguments["counts"] = memory[0, 50:54].view(torch.int64)
    with pytest.raises(RuntimeError, match="counts shares memory with x"):
        call.mlp(**arguments)


@native.every_format
def test_counts_go_on_past_64_bits(fmt: str) -> None:
    """As torch's sums of int64 do, to which the definition leaves them."""
    arguments = OPERATORS["mlp"](fmt)
    counts = torch.tensor([2**63 - 3, -5])
    expected, grown = counts.clone(), torch.zeros(2, dtype=torch.int64)
    call.mlp(**{**arguments, "counts": grown})
    assert grown[0] > 3
    expected += grown
    call.mlp(**{**arguments, "counts": counts})
    assert torch.equal(counts, expected)
    assert counts[0] < 0 < counts[1]


def test_counts_of_the_definition_go_on_past_64_bits() -> None:
    counts = torch.tensor([2**63 - 3, -5])
    reference.count_active(torch.ones(2, 40), counts)
    assert counts.tolist() == [-(2**63) + 37, 35]


SIZES = """
import torch
from adept_fast.ops import cpu

call, z, many = torch.ops.adept_fast, torch.zeros, 2**62
none, at = z(0).long(), z(1).long()
norm, layer = (z(0), z(0), 1e-5), z(2, 1, 1, 8, 16)
units = (z(8, 0), None, z(8), z(8, 0), None, z(0), None)
rest = z(16), z(16), z(5, 16), None, 5, 1e-5, 1.0, None
appended = (z(1, 48), None, None, None, None, 1e-5)
calls = {
    "tokens of mlp": lambda: call.mlp(z(many, 0), *norm, *units),
    "tokens of linear": lambda: call.linear_residual(z(many, 0), z(0, 0), None, z(0), z(many, 0)),
    "layers": lambda: call.decode_step(
        at, at, at, z(5, 16), [], z(8, 4), z(8, 4), z(many, 2, 0, 2, 8, 8), *rest
    ),
    "pairs": lambda: call.rotary_append(*appended, z(0, many), z(0, many), at - 1, at, layer),
    "heads": lambda: call.decode_attention(z(1, 3, 16), z(2, 0, many, 3, 16), at - 1, at, 3, 1.0),
    "positions": lambda: call.decode_attention(z(1, 3, 16), z(2, 0, 3, many, 16), at - 1, at, many, 1.0),
    "columns": lambda: call.dequantize_transposed(z(0, 0).char(), z(0), z(0, 2**63 - 1)),
    "rows": lambda: call.dequantize_transposed(z(many, 0).char(), z(0), z(many, 0)),
}
for what, run in calls.items():
    try:
        run()
        print(what, "done", flush=True)
    except RuntimeError as error:
        print(what, "refused", flush=True)
"""


def test_sizes_that_no_memory_bounds() -> None:
    """A tensor of no elements may be of any size; products of its sizes overflow. In a process of its own."""
    from test_native_contract import run

    done = run(SIZES)
    assert done.returncode == 0, f"exit code {done.returncode} after {done.stdout}"
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["refused"] * 8
