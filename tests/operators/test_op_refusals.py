"""Arguments that operators refuse: one sentence that names the argument, and nothing written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import CPU, CUDA, EMULATED, Backend, on, same_bits
from matrices import tiled
from operator_arguments import OF_A_CPU, OF_A_GPU, OPERATORS, decode_step
from own_process import run_python
from sharing_memory import WRITTEN, pairs, placed
from wrong_arguments import PACKED, WRONG, Wrong

# Both bindings check arguments before any kernel runs; on a GPU they are the emulator's.
REFUSING = [*CPU[:1], *(one for one in CUDA if one is EMULATED)]


def has(backend: Backend, operator: str) -> bool:
    return operator not in (OF_A_GPU if backend.kind == "cpu" else OF_A_CPU)


def arguments_of(backend: Backend, operator: str, fmt: str = "float32") -> dict[str, Any]:
    torch.manual_seed(0)
    narrow = backend.kind != "cpu" and fmt == "float32"
    return OPERATORS[operator]("float16" if narrow else fmt)


CASES = [
    pytest.param(backend, wrong, id=f"{backend}-{wrong}")
    for backend in REFUSING
    for wrong in WRONG
    if has(backend, wrong.operator)
    and (backend.kind == "cpu" or (wrong.fmt == "float32" and not wrong.is_value))
]


@pytest.mark.parametrize(("backend", "wrong"), CASES)
def test_a_wrong_argument_is_named_before_anything_is_written(backend: Backend, wrong: Wrong) -> None:
    arguments = arguments_of(backend, wrong.operator, wrong.fmt)
    arguments[wrong.argument] = wrong.change(arguments[wrong.argument])
    written = {name: arguments[name] for name in WRITTEN.get(wrong.operator, ())}
    before = {name: tensor.clone() for name, tensor in written.items()}
    with pytest.raises(RuntimeError) as caught:
        getattr(backend.operators, wrong.operator)(**arguments)
    says = wrong.says if backend.kind == "cpu" else wrong.says_on_a_gpu or wrong.says
    assert says in str(caught.value)
    for name, tensor in written.items():
        assert same_bits(tensor, before[name])


@pytest.mark.parametrize("backend", REFUSING, ids=str)
def test_a_position_past_the_rotary_tables(backend: Backend) -> None:
    """That the cache has: a CPU refuses the position, a GPU such tables."""
    says = "positions holds 11; expected 0 to 10" if backend.kind == "cpu" else r"cos has shape \[11, 4"
    for operator in ("rotary_append", "decode_step"):
        if has(backend, operator):
            arguments = arguments_of(backend, operator)
            arguments |= {name: arguments[name][:11].clone() for name in ("cos", "sin")}
            with pytest.raises(RuntimeError, match=says):
                getattr(backend.operators, operator)(**arguments)


@pytest.mark.parametrize("fmt", PACKED)
def test_more_inputs_than_32_bits_can_sum(fmt: str) -> None:
    call, w = torch.ops.adept_fast, tiled(fmt, torch.ones(1, 65537))
    with pytest.raises(RuntimeError, match="w has 65537 inputs; expected at most 65536"):
        call.linear_residual(torch.ones(1, 65537), w.values, w.scales, torch.ones(1), torch.ones(1, 1))
    up, down = tiled(fmt, torch.ones(65537, 1)), tiled(fmt, torch.ones(65537, 1), "units")
    with pytest.raises(RuntimeError, match="w_down_t has 65537 inputs; expected at most 65536"):
        call.mlp(
            torch.ones(1, 1),
            *(torch.ones(1), torch.ones(1), 1e-5),
            *(up.values, up.scales, torch.ones(65537)),
            *(down.values, down.scales, torch.ones(1), None),
        )


PAIRS = [
    pytest.param(backend, operator, one, other, id=f"{backend}-{operator}-{one}-{other}")
    for backend in REFUSING
    for operator in WRITTEN
    if has(backend, operator)
    for one, other in pairs(operator, OPERATORS[operator]("float16"))
]


@pytest.mark.parametrize(("backend", "operator", "one", "other"), PAIRS)
def test_shared_memory_is_refused(backend: Backend, operator: str, one: str, other: str) -> None:
    """An operator writes to no memory of another argument: both are named."""
    arguments = placed(arguments_of(backend, operator), one, other, bytes_shared=8)
    before = {name: arguments[name].clone() for name in WRITTEN[operator]}
    with pytest.raises(RuntimeError, match="shares memory with") as caught:
        getattr(backend.operators, operator)(**arguments)
    names = str(caught.value).split("; ")[0].split(" shares memory with ")
    assert sorted(names) == sorted((one, other))
    for name, tensor in before.items():
        assert same_bits(arguments[name], tensor)


@pytest.mark.parametrize(("backend", "operator", "one", "other"), PAIRS)
def test_neighbours_are_not_refused(backend: Backend, operator: str, one: str, other: str) -> None:
    """As the rows of the program's decode state are, which are views of one tensor."""
    call, arguments = getattr(backend.operators, operator), arguments_of(backend, operator)
    alone = {name: value.clone() if name in WRITTEN[operator] else value for name, value in arguments.items()}
    expected = call(**alone)
    beside = placed(arguments, one, other, bytes_shared=0)
    found = call(**beside)
    assert found is None or same_bits(found, expected)
    for name in WRITTEN[operator]:
        assert same_bits(beside[name], alone[name])


@on(CPU[:1])
def test_counts_in_the_slots_of_a_step(backend: Backend) -> None:
    """Each layer would have sent the next one's keys to another slot, past the last one at the end."""
    arguments = decode_step("float32")
    arguments["counts"] = arguments["slots"]
    with pytest.raises(RuntimeError, match="counts shares memory with slots; expected memory of its own"):
        backend.operators.decode_step(**arguments)
    assert arguments["slots"].tolist() == [3, 0]
    assert not arguments["cache"].any()


@on(CPU[:1])
def test_a_view_with_gaps_shares_what_lies_in_them(backend: Backend) -> None:
    arguments = OPERATORS["mlp"]("float32")
    memory = torch.randn(2, 60)
    arguments["x"] = memory[:, :48]
    arguments["counts"] = memory[0, 50:54].view(torch.int64)
    with pytest.raises(RuntimeError, match="counts shares memory with x"):
        backend.operators.mlp(**arguments)


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
}
for what, run in calls.items():
    try:
        run()
        print(what, "done", flush=True)
    except RuntimeError as error:
        print(what, "refused", flush=True)
"""


@on(CPU[:1])
def test_sizes_that_no_memory_bounds(backend: Backend) -> None:
    """A tensor of no elements may be of any size; products of its sizes overflow. In a process of its own."""
    done = run_python(SIZES)
    assert done.returncode == 0, f"exit code {done.returncode} after {done.stdout}"
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["refused"] * 6
