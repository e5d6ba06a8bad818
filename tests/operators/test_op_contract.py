"""What the operators of a CPU promise: schemas, shapes without values, sizes of 0, any sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import CPU, EPS, FLOATS, INSTRUCTION_SETS, Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import weights_of
from operator_arguments import HIDDEN, OF_A_GPU, OF_WEIGHTS, OPERATORS, mlp
from own_process import run_python
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import reference

if not extension.load().loaded:
    pytest.skip(f"the extension is not loaded: {extension.load().reason}", allow_module_level=True)

from adept_fast.ops import cpu as module

call = torch.ops.adept_fast
FORMATS = (*FLOATS, "int8", "int4")

CASES = [(name, fmt) for name in OPERATORS for fmt in (FORMATS if name in OF_WEIGHTS else ("float32",))]


def test_there_is_a_case_for_every_operator() -> None:
    defined = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("adept_fast::")
    }
    assert defined == set(OPERATORS)


def on_a_cpu(case: tuple[str, str]) -> bool:
    return case[0] not in OF_A_GPU


@pytest.mark.parametrize(
    ("name", "fmt"), [case for case in CASES if on_a_cpu(case) and case[1] in ("float32", "int4")]
)
def test_opcheck(name: str, fmt: str) -> None:
    """The schema says what is written, the fake says the shapes, and a compiler gets the same result."""
    with torch.inference_mode(False):
        results = torch.library.opcheck(getattr(call, name).default, (), OPERATORS[name](fmt))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("name", "fmt"), [case for case in CASES if on_a_cpu(case)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_meta_tensors_have_the_shape_and_dtype_of_results(name: str, fmt: str, dtype: torch.dtype) -> None:
    arguments = OPERATORS[name](fmt)
    for inputs in ("x", "residual", "q", "qkv"):
        if inputs in arguments:
            arguments[inputs] = arguments[inputs].to(dtype)
    real = getattr(call, name)(**arguments)
    fake = getattr(call, name)(**{key: moved_to_meta(value) for key, value in arguments.items()})
    if real is None:
        assert fake is None
        return
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
    assert fake.is_meta


@pytest.mark.parametrize("name", OF_A_GPU)
def test_an_operator_of_a_gpu_alone(name: str) -> None:
    """What it returns is known without values; that a CPU has no kernel for it, torch says."""
    arguments = OPERATORS[name]("float32")
    fake = getattr(call, name)(**{key: moved_to_meta(value) for key, value in arguments.items()})
    results = fake if isinstance(fake, tuple) else (fake,)
    assert [(one.shape, one.dtype) for one in results] == OF_A_GPU[name]
    assert all(one.is_meta for one in results)
    with pytest.raises(NotImplementedError, match=f"Could not run 'adept_fast::{name}' .* 'CPU' backend"):
        getattr(call, name)(**arguments)


def moved_to_meta(value: Any) -> Any:
    if isinstance(value, list):
        return [moved_to_meta(part) for part in value]
    return value.to("meta") if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_without_values_do_not_mix_with_others(name: str) -> None:
    """The result would be memory that nobody has written to."""
    arguments = OPERATORS[name]("float32")
    tensors = [key for key, value in arguments.items() if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return
    arguments[tensors[-1]] = arguments[tensors[-1]].to("meta")
    with pytest.raises(
        RuntimeError, match=f"the arguments of {name} are on cpu and meta; expected all on one"
    ):
        getattr(call, name)(**arguments)


def test_a_result_does_not_inherit_the_strides_of_its_input() -> None:
    arguments = mlp("float32") | {"x": torch.randn(HIDDEN, 2).t()}
    real = call.mlp(**arguments)
    fake = call.mlp(**{key: moved_to_meta(value) for key, value in arguments.items()})
    assert real.is_contiguous()
    assert fake.stride() == real.stride()


@pytest.mark.parametrize("name", ["layernorm_qkv", "linear_residual", "mlp", "lm_head"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_no_tokens(name: str, fmt: str) -> None:
    arguments = OPERATORS[name](fmt)
    for inputs in ("x", "residual", "slots"):
        if inputs in arguments:
            arguments[inputs] = arguments[inputs][:0]
    result = getattr(call, name)(**arguments)
    assert result.shape[0] == 0
    assert not arguments.get("counts", torch.zeros(2)).any()


NO_SIZES = """
import torch
from adept_fast.ops import cpu

call, z, none, at = torch.ops.adept_fast, torch.zeros, torch.zeros(0).long(), torch.zeros(1).long()
layer = [z(16), z(16), z(48, 16), z(0), z(48), *[z(0)] * 4, z(16, 16), z(0), z(16)]
layer += [z(16), z(16), z(8, 16), z(0), z(8), z(8, 16), z(0), z(16)]
rest = z(16), z(16), z(5, 16), None, 5, 1e-5, 1.0, None
norm, table = (z(16), z(16), 1e-5), (z(8, 4), z(8, 4))


def show(what, run):
    print(what, end=": ", flush=True)
    try:
        print(list(run().shape), flush=True)
    except RuntimeError:
        print("refused", flush=True)


show("no queries", lambda: call.decode_attention(z(0, 2, 16), z(2, 1, 2, 8, 16), none, none, 0, 1.0))
keys = (z(0, 96), None, None, None, None, 1e-5, *table, none, none, z(2, 1, 2, 8, 16))
show("no keys to append", lambda: call.rotary_append(*keys))
cache = z(1, 2, 1, 2, 8, 8)
show("no sequences", lambda: call.decode_step(none, none, none, z(5, 16), layer, *table, cache, *rest))
show("no layers", lambda: call.decode_step(at, at, at, z(5, 16), [], *table, cache[:0], *rest))
show("no heads", lambda: call.decode_attention(z(1, 0, 16), z(2, 1, 0, 8, 16), at, at, 8, 1.0))
show("no capacity", lambda: call.decode_attention(z(1, 2, 16), z(2, 1, 2, 0, 16), at, at, 0, 1.0))
show("no inputs", lambda: call.linear_residual(z(2, 0), z(3, 0), None, z(3), z(2, 3)))
packed = z(1, 0, 16, 4).to(torch.int8)
show("no packed inputs", lambda: call.linear_residual(z(2, 0), packed, z(16), z(3), z(2, 3)))
show("no hidden", lambda: call.layernorm_qkv(z(2, 0), z(0), z(0), 1e-5, z(3, 0), None, z(3)))
show("no units", lambda: call.mlp(z(2, 16), *norm, z(0, 16), None, z(0), z(0, 16), None, z(16), None))
long = torch.zeros(0, 3).long(), z(2, 5).bool()
show("no rows", lambda: call.update_decode_state(*[none] * 5, long[1], none, long[0]) or none)
show("no logits", lambda: call.lm_head(z(2, 16), *norm, z(0, 16), None, 0))
"""
SHAPES_OF_NO_SIZES = {
    "no queries": "[0, 32]",
    "no keys to append": "[0, 2, 16]",
    "no sequences": "[0, 5]",
    "no units": "[2, 16]",
    "no rows": "[0]",
    "no logits": "[2, 0]",
}


def test_no_size_of_0_ends_the_process() -> None:
    """In a process of its own: a result, or of what no model has perhaps a refusal, and no division by 0."""
    done = run_python(NO_SIZES)
    assert done.returncode == 0, f"exit code {done.returncode} after {done.stdout}"
    shapes = dict(line.split(": ") for line in done.stdout.splitlines())
    assert {what: shapes[what] for what in SHAPES_OF_NO_SIZES} == SHAPES_OF_NO_SIZES
    assert not done.stderr


# torch is imported once, and forked: each process then finds the operators as if it were the first to.
WHICH = """
import os, sys, torch
for name in {names}:
    if os.fork() == 0:
        os.environ["ADEPT_FAST_CPU"] = name
        try:
            from adept_fast.ops import cpu
            said = cpu.instruction_set()
        except ValueError as error:
            said = str(error)
        sys.stdout.write(f"{{name}}: {{said}}\\n")
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_the_instruction_set_that_a_process_is_started_with() -> None:
    """The one that is named, the best if none is, and an error for one that there is not."""
    names = [*INSTRUCTION_SETS, "", "avx1024"]
    done = run_python(WHICH.format(names=names))
    allowed = ", ".join(INSTRUCTION_SETS)
    assert done.stdout.splitlines() == [
        *(f"{name}: {name}" for name in INSTRUCTION_SETS),
        f": {INSTRUCTION_SETS[0]}",
        f"avx1024: ADEPT_FAST_CPU is 'avx1024'; this machine runs {allowed}",
    ], done.stderr


def test_choosing_an_instruction_set() -> None:
    before = module.instruction_set()
    assert before in INSTRUCTION_SETS
    with pytest.raises(ValueError, match="ADEPT_FAST_CPU is 'sse2'; this machine runs .*portable"):
        module.use_instruction_set("sse2")
    assert module.instruction_set() == before
    assert INSTRUCTION_SETS[-1] == "portable"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from(CPU),
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(1, 90),
    st.integers(0, 2**32),
)
def test_any_sizes(fmt: str, backend: Backend, tokens: int, inputs: int, units: int, seed: int) -> None:
    """A projection and an MLP of any sizes against the operators in plain PyTorch."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, gamma, beta = random(tokens, inputs), 1 + 0.1 * random(inputs), 0.1 * random(inputs)
    up = weights_of(backend, fmt, random(units, inputs) / inputs**0.5)
    down = weights_of(backend, fmt, random(units, inputs) / units**0.5, "units")
    b_up, b_down, residual = random(units), random(inputs), random(tokens, units)
    with backend.running():
        projected = call.linear_residual(x, *up.parts, b_up, residual)
        found = call.mlp(x, gamma, beta, EPS, *up.parts, b_up, *down.parts, b_down, None)
    torch.testing.assert_close(
        projected, reference.linear_residual(x, up.matrix, b_up, residual), atol=2e-3, rtol=1e-4
    )
    expected = reference.mlp(x, gamma, beta, EPS, up.matrix, b_up, down.matrix, b_down)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=1e-3)
