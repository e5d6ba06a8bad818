"""Arguments that operators refuse: one sentence that names the argument, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from backends import CPU, CUDA, EMULATED, Backend, on, on_the_emulator, same_bits
from matrices import tiled
from operator_arguments import CAPACITY, OF_A_GPU, OPERATORS, SLOTS, UNITS, decode_step
from own_process import run_python
from sharing_memory import WRITTEN, pairs, placed
from torch import Tensor

LEAST, LARGEST = -(2**63), 2**63 - 1  # int64
FLOATS, PACKED = ("float32", "float16", "bfloat16"), ("int8", "int4")
OF_A_CPU = ("decode_step", "dequantize_transposed")  # which a GPU has no kernel for
# Both bindings check arguments before any kernel runs; on a GPU they are the emulator's.
REFUSING = [*CPU[:1], *(one for one in CUDA if one is EMULATED)]


def has(backend: Backend, operator: str) -> bool:
    return operator not in (OF_A_GPU if backend.kind == "cpu" else OF_A_CPU)


def arguments_of(backend: Backend, operator: str, fmt: str = "float32") -> dict[str, Any]:
    torch.manual_seed(0)
    narrow = backend.kind != "cpu" and fmt == "float32"
    return OPERATORS[operator]("float16" if narrow else fmt)


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
            ("mlp", ("counts",)),
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
        for operator in ("rotary_append", "decode_attention")
        for change in (Tensor.double, strided, lambda x: x[0], lambda x: x[:1])
    ),
    Wrong("rotary_append", "cache_layer", widened, "qkv has shape"),
    Wrong("decode_attention", "cache_layer", widened, "q has shape"),
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
    Wrong("dequantize_transposed", "values", widened, "values has shape"),
    Wrong("dequantize_transposed", "scales", Tensor.float, "values has"),
    Wrong("dequantize_transposed", "out", lambda x: x[0], "out has shape"),
    Wrong("dequantize_transposed", "out", Tensor.half, "out has shape"),
    Wrong("dequantize_transposed", "out", strided, "out has shape"),
    Wrong("copy", "source", strided, "source is not contiguous"),
    Wrong("read", "source", strided, "source is not contiguous"),
]


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


@pytest.mark.parametrize("fmt", PACKED)
def test_more_inputs_than_32_bits_can_sum(fmt: str) -> None:
    call, w = torch.ops.adept_fast, tiled(fmt, torch.ones(1, 65537))
    with pytest.raises(RuntimeError, match="w has 65537 inputs; expected at most 65536"):
        call.linear_residual(torch.ones(1, 65537), w.values, w.scales, torch.ones(1), torch.ones(1, 1))
    transposed = tiled(fmt, torch.ones(65537, 1), "units")
    with pytest.raises(RuntimeError, match="values has 65537 inputs; expected at most 65536"):
        call.dequantize_transposed(transposed.values, transposed.scales, torch.ones(65537, 1))


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


@on(CPU[:1])
def test_sizes_that_no_memory_bounds(backend: Backend) -> None:
    """A tensor of no elements may be of any size; products of its sizes overflow. In a process of its own."""
    done = run_python(SIZES)
    assert done.returncode == 0, f"exit code {done.returncode} after {done.stdout}"
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["refused"] * 8


# Of a GPU: arguments that may be in the host's memory or are the only one, and what others have to be beside.
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

    arguments, first = arguments_of(backend, operator), FIRST.get(operator, "x")
    says = f"{name} is not on a GPU" if name == first else f"{name} is not on the device of {first}"
    with library.elsewhere(arguments[name]), pytest.raises(RuntimeError, match=f"^{says}"):
        call(**arguments)


@pytest.mark.parametrize("name", ["ids", "table"])
@on_the_emulator
def test_none_is_no_tensor(backend: Backend, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name} (is None; expected a tensor|has shape)"):
        backend.operators.embed(**{**arguments_of(backend, "embed"), name: None})


@pytest.mark.parametrize("rows", [-1, 2**31, LARGEST, LEAST])
@on_the_emulator
def test_rows_that_there_are_not(backend: Backend, rows: int) -> None:
    with pytest.raises(RuntimeError, match=f"rows is {rows}; expected 0 to {2**31 - 1}"):
        backend.operators.lm_head(**{**arguments_of(backend, "lm_head"), "rows": rows})


@on_the_emulator
def test_matrices_that_kernels_do_not_count_in_32_bits(backend: Backend) -> None:
    says = rf"expected at most {2**30} and {2**26} on a GPU"
    with pytest.raises(RuntimeError, match=f"w has {2**30 + 1} rows and 48 columns; {says}"):
        backend.operators.lm_head(**{**arguments_of(backend, "lm_head"), "rows": 2**30 + 1})
    x = torch.empty(1, 2**26 + 8)  # whose memory nobody touches
    b, residual = torch.zeros(35), torch.zeros(1, 35)
    with pytest.raises(RuntimeError, match=f"w has 35 rows and {2**26 + 8} columns; {says}"):
        backend.operators.linear_residual(x, torch.zeros(35, 48).half(), None, b, residual)


@pytest.mark.parametrize("top_p", [-1.0, float("-inf"), float("nan"), 0.0])
@on_the_emulator
def test_a_share_that_is_none_keeps_a_token(backend: Backend, top_p: float) -> None:
    """A negative share of a mass is no mass: it must not become one by conversion."""
    arguments = arguments_of(backend, "sample")
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
        ("sample", {"logits": torch.zeros(2, 0), "seen": torch.zeros(SLOTS, 0).bool()}, "sample: "),
        ("layernorm_qkv", {"w": moved(torch.zeros(144, 48).half())}, "misaligned"),
        ("mlp", {"w_down_t": moved(torch.zeros(UNITS, 48).half())}, "misaligned"),
        (
            "decode_attention",
            {"cache_layer": moved(torch.zeros(2, SLOTS, 3, CAPACITY, 16))},
            "decode_attention: ",
        ),
        *(
            (
                "decode_attention",
                {"q": torch.zeros(2, 3, size), "cache_layer": torch.zeros(2, SLOTS, 3, CAPACITY, size)},
                "decode_attention: ",
            )
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
        getattr(backend.operators, operator)(**{**arguments_of(backend, operator), **change})
    assert says in str(caught.value)
