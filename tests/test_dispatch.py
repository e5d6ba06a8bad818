"""The table of the operators: what it says for a call is what runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dispatch_double import Recorder, as_cuda, recorded

from adept_fast import ops
from adept_fast.extension import Extension
from adept_fast.ops import cpu, dispatch, kernels, optional, reference
from adept_fast.quantization.formats import FORMATS, MatrixSpec, float_format
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles, GpuTiles
from adept_fast.quantization.matrix import Matrix, parts_of

CPU = torch.device("cpu")
PROJECTIONS = ("layernorm_qkv", "linear_residual", "lm_head")
PRODUCTS = (*PROJECTIONS, "mlp")
CACHE = ("rotary_append", "decode_attention")
STATE = ("update_decode_state",)
LOGPROBS = ("token_logprobs",)
PACKED_FOR_CPU, PACKED_FOR_GPU = ("int8", "int4-g128"), ("fp8", "int4-g32")


@dataclass(frozen=True)
class Case:
    """Arguments of calls, and the implementation that each of the operators should have."""

    operators: tuple[str, ...]
    device: str
    expected: str
    tokens: int = 1
    fmt: str = "float16"  # of the matrices
    up: str = ""  # of the up-projection, if another
    tiles: str = ""  # in the names of the matrices in tiles
    hidden: int = 64
    head_dim: int = 64
    table: torch.dtype = torch.float16
    cache: torch.dtype = torch.float32
    x: torch.dtype = torch.float32
    counts: bool = False
    count: int = 20  # of the most likely tokens
    has_kernels: bool = True
    bfloat16_products: bool = True
    flash: bool = False

    def __str__(self) -> str:
        changed = [
            f"{name} {value}"
            for name, value in vars(self).items()
            if name not in ("operators", "device", "expected") and value != getattr(Case, name)
        ]
        return ", ".join((self.device, self.operators[0], *changed, self.expected))

    def matrix(self, name: str) -> Matrix:
        fmt = self.up if name == "w_up" and self.up else self.fmt
        in_tiles = bool(self.tiles) and self.tiles in name
        if fmt not in FORMATS and not in_tiles:
            return torch.zeros(32, self.hidden, dtype=getattr(torch, fmt))
        weights = FORMATS[fmt] if fmt in FORMATS else float_format(getattr(torch, fmt))
        spec = MatrixSpec(weights, (32, self.hidden), name == "w_down_t")
        if in_tiles:
            return (GpuTiles if fmt in FORMATS else GpuFloatTiles).empty(spec, CPU)
        return (GpuMatrix if fmt in PACKED_FOR_GPU else TiledMatrix).empty(spec, CPU)

    def arguments(self, operator: str) -> list[Any]:
        cache = torch.zeros(2, 1, 2, 4, self.head_dim, dtype=self.cache)
        known = {
            "cache_layer": cache,
            "table": torch.zeros(3, self.hidden, dtype=self.table),
            "counts": torch.zeros(2, dtype=torch.int64) if self.counts else None,
            "count": self.count,
        }
        x = torch.zeros(self.tokens, self.hidden, dtype=self.x)
        parameters = inspect.signature(dispatch.DEFINITIONS[operator]).parameters.values()
        return [self.matrix(p.name) if p.annotation == "Matrix" else known.get(p.name, x) for p in parameters]


GPU_CASES = [
    *(
        Case(PRODUCTS, "cuda", "kernel", tokens=tokens, fmt=fmt)
        for tokens in (0, 1, 16)
        for fmt in ("float16", "bfloat16", *PACKED_FOR_GPU)
    ),
    *(Case(PRODUCTS, "cuda", "gemm", tokens=17, fmt=fmt) for fmt in ("float16", "bfloat16", *PACKED_FOR_GPU)),
    *(Case(PRODUCTS, "cuda", "gemm", fmt=fmt) for fmt in ("float32", *PACKED_FOR_CPU)),
    *(Case(PRODUCTS, "cuda", "gemm", fmt=fmt, hidden=68) for fmt in ("float16", *PACKED_FOR_GPU)),
    Case(PRODUCTS, "cuda", "gemm", has_kernels=False),
    *(
        Case(PRODUCTS, "cuda", expected, tokens=tokens, fmt=fmt, tiles="w")
        for tokens, expected in ((1, "kernel"), (16, "kernel"), (17, "gemm"))
        for fmt in ("float16", "bfloat16", *FORMATS)
    ),
    *(
        Case(("mlp",), "cuda", "gemm", fmt=fmt, tiles=tiles)
        for fmt in ("float16", *PACKED_FOR_GPU)
        for tiles in ("w_up", "w_down_t")
    ),
    *(Case(PRODUCTS, "cuda", "gemm", fmt=fmt, hidden=68, tiles="w") for fmt in ("float16", *PACKED_FOR_GPU)),
    Case(("mlp",), "cuda", "gemm", up="float32"),
    Case(("mlp",), "cuda", "kernel", counts=True),
    *(Case(CACHE, "cuda", "kernel", tokens=n, head_dim=d) for n, d in ((0, 64), (1, 8), (3, 80), (16, 256))),
    *(Case(CACHE, "cuda", "reference", head_dim=head_dim) for head_dim in (20, 264)),
    Case(("decode_attention",), "cuda", "reference", tokens=17),
    Case(("rotary_append",), "cuda", "kernel", tokens=600),
    Case(CACHE, "cuda", "reference", has_kernels=False),
    *(
        Case(("embed",), "cuda", "kernel", tokens=600, table=dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    ),
    Case(("embed",), "cuda", "reference", table=torch.float64),
    Case(("embed", *STATE), "cuda", "reference", has_kernels=False),
    Case(STATE, "cuda", "kernel", tokens=600),
    *(Case(LOGPROBS, "cuda", "kernel", tokens=tokens, hidden=2**19) for tokens in (0, 1)),
    Case(LOGPROBS, "cuda", "reference", count=21),
    Case(LOGPROBS, "cuda", "reference", hidden=2**19 + 1),
    Case(LOGPROBS, "cuda", "reference", has_kernels=False),
    Case(("prefill_attention",), "cuda", "kernel", cache=torch.float16),
    Case(("prefill_attention",), "cuda", "kernel", cache=torch.bfloat16, tokens=600, head_dim=256),
    Case(("prefill_attention",), "cuda", "decode kernel", tokens=600),
    Case(("prefill_attention",), "cuda", "reference", has_kernels=False),
    *(Case(("prefill_attention",), "cuda", "reference", head_dim=head_dim) for head_dim in (20, 264)),
    Case(("prefill_attention",), "cuda", "flash-attn", flash=True, tokens=600),
    Case(("prefill_attention",), "cuda", "flash-attn", flash=True, has_kernels=False),
]
CPU_CASES = [
    *(
        Case(PRODUCTS, "cpu", "kernel", tokens=tokens, fmt=fmt)
        for tokens in (0, 1, 16)
        for fmt in ("float32", "float16", "bfloat16", *PACKED_FOR_CPU)
    ),
    Case(PRODUCTS, "cpu", "gemm", tokens=17, fmt="bfloat16"),
    Case(PRODUCTS, "cpu", "kernel", tokens=17, fmt="float32"),
    Case(PRODUCTS, "cpu", "kernel", tokens=600),
    Case(PRODUCTS, "cpu", "kernel", tokens=600, fmt="bfloat16", bfloat16_products=False),
    Case(PRODUCTS, "cpu", "kernel", tokens=600, fmt="float32", x=torch.bfloat16),
    *(Case(PRODUCTS, "cpu", "kernel", tokens=600, fmt=fmt) for fmt in PACKED_FOR_CPU),
    *(
        Case(("mlp",), "cpu", "kernel", tokens=600, fmt=fmt, counts=True)
        for fmt in ("float32", PACKED_FOR_CPU[0])
    ),
    Case((*CACHE, *STATE, "prefill_attention"), "cpu", "kernel", tokens=600, head_dim=20, flash=True),
    Case(("embed", *LOGPROBS), "cpu", "reference", flash=True),
    *(
        Case(
            (*PRODUCTS, *CACHE, *STATE, "embed", "prefill_attention"),
            "cpu",
            "reference",
            tokens=n,
            has_kernels=False,
        )
        for n in (1, 600)
    ),
]
CASES = [*GPU_CASES, *CPU_CASES]


@pytest.fixture
def of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    """A case, on a machine as it says."""
    case: Case = request.param
    without = None if case.has_kernels else "no compiler"
    monkeypatch.setattr(cpu, "unavailable", lambda device: without)
    monkeypatch.setattr(cpu, "_HAS_BFLOAT16", case.bfloat16_products)
    choice = optional.Choice("2.8", case.flash, "as exact as torch" if case.flash else "it is too far off")
    monkeypatch.setattr(optional, "flash_attention", lambda device, dtype, head_dim: choice)
    with ExitStack() as stack:
        if case.device == "cuda":
            stack.enter_context(as_cuda(None, without))
        yield case


@pytest.mark.parametrize("of", CASES, indirect=True, ids=str)
def test_what_the_table_says_is_what_runs(of: Case) -> None:
    for operator in of.operators:
        with recorded() as calls:
            getattr(ops, operator)(*of.arguments(operator))
        assert calls == [(of.expected, operator)]
        said = dispatch.explain_call(operator, of.arguments(operator))
        assert (said.operator, said.implementation) == (operator, of.expected)


def test_every_rule_has_a_case() -> None:
    tested = {(name, case.device, case.expected) for case in CASES for name in case.operators}
    assert {rule[:3] for rule in ops.table() if rule.operator != "sample"} == tested


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("operator", dispatch.DEFINITIONS)
def test_the_last_rule_takes_all_calls(operator: str, device: str) -> None:
    *others, last = ops.table(operator, device)
    assert last.refusal is None
    assert not last.needs_extension
    assert all(rule.refusal or rule.needs_extension for rule in others)
    assert all(rule.condition and rule.reason for rule in ops.table(operator, device))


def test_arguments_by_name_and_defaults() -> None:
    arguments = Case(("mlp",), "cpu", "kernel").arguments("mlp")
    by_name = dict(zip(inspect.signature(reference.mlp).parameters, arguments, strict=True))
    with recorded() as calls:
        ops.mlp(*arguments[:-1])
        ops.mlp(**by_name)
        with pytest.raises(TypeError, match="missing a required argument: 'b_down'"):
            ops.mlp(*arguments[:-4])
    assert calls == [("kernel", "mlp")] * 2


@pytest.mark.parametrize("tiles", ["", "w"])
@pytest.mark.parametrize("fmt", ["float16", "fp8", "int4-g32"])
@pytest.mark.parametrize("operator", PRODUCTS)
def test_a_kernel_takes_a_matrix_as_its_parts(operator: str, fmt: str, tiles: str) -> None:
    taken: list[Any] = []
    arguments = Case((), "cuda", "kernel", fmt=fmt, tiles=tiles).arguments(operator)
    with as_cuda(SimpleNamespace(**{operator: lambda *parts: taken.extend(parts)})):
        getattr(ops, operator)(*arguments)
    expected: list[Any] = []
    for position, argument in enumerate(arguments):
        is_matrix = position in kernels.matrix_positions(getattr(reference, operator))
        expected += parts_of(argument) if is_matrix else [argument]
    expected += [32] if operator == "lm_head" else []
    assert all(found is one for found, one in zip(taken, expected, strict=True))


class TestSlotSampler:
    def test_a_gpu_with_kernels_has_one(self) -> None:
        recorder = Recorder()
        with as_cuda(recorder):
            sampler = ops.slot_sampler(CPU)
            assert sampler is not None
            sampler(torch.zeros(1, 5))
        assert recorder.called == ["sample"]

    def test_others_have_none(self) -> None:
        assert ops.slot_sampler(CPU) is None
        with as_cuda(Recorder(), "no nvcc"):
            assert ops.slot_sampler(CPU) is None


class TestExplain:
    def said(self, **examples: Any) -> dict[str, tuple[str, ...]]:
        return {one.operator: tuple(one[1:]) for one in ops.explain(CPU, **examples)}

    def test_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu, "_HAS_BFLOAT16", True)
        assert list(self.said()) == list(dispatch.DEFINITIONS)
        assert self.said()["decode_attention"] == ("kernel", f"C++, {cpu.instruction_set()}; one pass")
        assert self.said()["sample"] == ("reference", "plain PyTorch")
        many = self.said(tokens=600, dtype=torch.bfloat16)["lm_head"]
        assert many == ("gemm", "torch's GEMM; faster for 600 tokens, above 16")

    def test_without_the_extension(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu.extension, "load", lambda: Extension(False, "no compiler"))
        said = self.said()
        assert {implementation for implementation, _ in said.values()} == {"reference"}
        assert said["mlp"][1] == "plain PyTorch; no compiler"

    def test_a_gpu(self) -> None:
        few = "17 tokens, and the kernels take at most 16"
        with as_cuda(None):
            assert self.said()["mlp"] == ("kernel", "CUDA; memory-bound: it reads the weights once")
            said = self.said(tokens=17)
            assert said["mlp"] == ("gemm", f"torch's GEMM; {few}")
            assert said["decode_attention"] == ("reference", f"plain PyTorch; {few}")
            said = self.said(head_dim=20, dtype=torch.float32)
            assert "a head_dim in multiples of 8 up to 256, not 20" in said["decode_attention"][1]
            assert said["mlp"][1] == "torch's GEMM; the kernels take float16 and bfloat16, not torch.float32"
            for weights in (None, *FORMATS.values()):
                said = self.said(weights=weights, layout="tiles")
                assert said["mlp"] == ("kernel", "CUDA; memory-bound: it reads the weights once")
            said = self.said(weights=FORMATS["int8"])
            assert said["mlp"][1] == "torch's GEMM; the kernels do not read int8 in the layout cpu_tiled"
        with as_cuda(None, "no nvcc"):
            assert self.said()["sample"] == ("reference", "plain PyTorch; no nvcc")
