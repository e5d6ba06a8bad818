"""tools/gpu_check.py without a GPU: what it times, the bytes that it counts, and what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

from cuda_place import EMULATED  # noqa: E402
from gpu_check_cases import (  # noqa: E402
    FILTERS,
    FORMATS,
    LAYER_POSITIONS,
    POSITIONS,
    RING_DEPTH,
    TABLE_ROWS,
    TABLES,
    TOKENS,
    ZEROS,
    Case,
    Shapes,
    all_cases,
    copies_beyond,
    few_cases,
    moved_bytes,
)
from gpu_check_operands import Operands, difference  # noqa: E402
from gpu_check_report import ALONE, figure, folder_of, is_wrong, print_of  # noqa: E402
from harness import check_report, describe_run  # noqa: E402

CPU = torch.device("cpu")
SMALL = Shapes(hidden=128, heads=2, rotary=32, intermediate=256, vocab=520, context=64)
OF_WEIGHTS = ("layernorm_qkv", "linear_residual", "lm_head", "mlp")
SMALL_CASES = [
    *(Case(name, tokens, fmt) for name in OF_WEIGHTS for fmt in FORMATS for tokens in (1, 3)),
    *(Case("mlp", 3, fmt, zeros=0.9) for fmt in FORMATS),
    *(Case("decode_attention", tokens, positions=64) for tokens in (1, 3)),
    *(Case("rotary_append", tokens) for tokens in (1, 3)),
    *(Case("sample", 3, "float32", filter=name) for name in FILTERS),
    *(Case("embed", 3, filter=table) for table in TABLES),
    *(Case("advance", tokens, "int64") for tokens in (1, 3)),
    *(Case("layer", 2, fmt, 0.5, 40) for fmt in FORMATS),
]


class Counting:
    """A namespace of operators that do nothing but count the bytes of what they are given."""

    def __init__(self, out: torch.Tensor) -> None:
        self.tensors: list[torch.Tensor] = []
        self._out = out

    def __getattr__(self, name: str) -> Any:
        def operator(*arguments: Any) -> torch.Tensor:
            self.tensors = [one for one in (*arguments, self._out) if isinstance(one, torch.Tensor)]
            return self._out

        return operator

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def counted(case: Case, shapes: Shapes, *out_shape: int) -> int:
    counting = Counting(torch.empty(out_shape))
    Operands(counting, CPU, shapes).calls(case, 1)[0].run()
    return counting.bytes


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("tokens", [1, 5])
def test_bytes_are_those_of_the_operands(fmt: str, tokens: int) -> None:
    hidden, vocab = SMALL.hidden, SMALL.vocab
    for name, outputs in [
        ("layernorm_qkv", 3 * hidden),
        ("linear_residual", hidden),
        ("mlp", hidden),
        ("lm_head", vocab),
    ]:
        case = Case(name, tokens, fmt)
        assert moved_bytes(case, SMALL) == counted(case, SMALL, tokens, outputs), case


def test_attention_reads_what_counts_of_the_cache() -> None:
    whole = Case("decode_attention", 3, positions=SMALL.context)
    lengths_and_slots = 2 * 3 * 8
    assert moved_bytes(whole, SMALL) == counted(whole, SMALL, 3, SMALL.hidden) - lengths_and_slots
    half = Case("decode_attention", 3, positions=SMALL.context // 2)
    q_and_out = 2 * 3 * 4 * SMALL.hidden
    assert moved_bytes(half, SMALL) - q_and_out == (moved_bytes(whole, SMALL) - q_and_out) // 2


def test_embed_reads_rows_and_advance_a_few_numbers() -> None:
    rows = Case("embed", 3, filter=TABLES[0])
    table = 2 * TABLE_ROWS * SMALL.hidden
    read = 2 * 3 * SMALL.hidden
    assert moved_bytes(rows, SMALL) == counted(rows, SMALL, 3, SMALL.hidden) - table + read
    state = Case("advance", 3, "int64")
    lists = counted(state, SMALL, 0) - 3 * SMALL.vocab - 3 * RING_DEPTH * 8  # without ends and ring
    # Positions and counts are written too; of each row one of its ends is read, and one word told.
    assert moved_bytes(state, SMALL) == lists + 2 * 3 * 8 + 3 + 3 * 8


def test_bytes_of_the_8b() -> None:
    def gigabytes(case: Case) -> float:
        return moved_bytes(case, Shapes()) / 1e9

    assert gigabytes(Case("layernorm_qkv", 1)) == pytest.approx(0.1007, abs=2e-4)
    assert gigabytes(Case("lm_head", 1)) == pytest.approx(2.1486, abs=2e-4)
    assert gigabytes(Case("mlp", 1)) == pytest.approx(0.2685, abs=2e-4)
    assert gigabytes(Case("mlp", 1, zeros=0.99)) == pytest.approx(0.1342 * 1.01, abs=2e-4)
    assert gigabytes(Case("mlp", 1, "int4")) == pytest.approx(0.2684 * 4.125 / 16, abs=2e-4)
    assert gigabytes(Case("decode_attention", 1, positions=16384)) == pytest.approx(0.2684, abs=2e-4)
    layer = moved_bytes(Case("layer", 1, "fp8", 0.9, 1024), Shapes())
    parts = [Case(name, 1, "fp8") for name in ("layernorm_qkv", "linear_residual", "rotary_append")]
    parts += [Case("mlp", 1, "fp8", 0.9), Case("decode_attention", 1, positions=1024)]
    assert layer == sum(moved_bytes(part, Shapes()) for part in parts)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 1.0])
def test_the_share_of_zeros_is_exact(zeros: float) -> None:
    torch.manual_seed(0)
    counts = torch.zeros(2, dtype=torch.int64)
    (call,) = Operands(WithCounts(counts), CPU, SMALL).calls(Case("mlp", 4, zeros=zeros), 1)
    call.run()
    assert counts.tolist() == [round((1 - zeros) * SMALL.intermediate), SMALL.intermediate]


class WithCounts:
    """The MLP in plain PyTorch, which counts the units that are not 0."""

    def __init__(self, counts: torch.Tensor) -> None:
        self._counts = counts

    def mlp(self, x: Any, gamma: Any, beta: Any, eps: float, w: Any, _: Any, b: Any, *down: Any) -> Any:
        from adept_fast.ops import reference

        w_down_t, _, b_down, _ = down
        return reference.mlp(
            x, gamma, beta, eps, w.float(), b, w_down_t.float(), b_down, self._counts
        )  # float16 weights, widened


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_the_kernels_do_what_the_timing_expects(case: Case) -> None:
    torch.manual_seed(0)
    for call in Operands(EMULATED.operators, CPU, SMALL).calls(case, 2):
        assert difference(call.run(), call.expected()) < 5e-3


def test_copies_take_turns_until_the_cache_is_overrun() -> None:
    megabyte = 1 << 20
    assert copies_beyond(50 * megabyte, 33 * megabyte, 1 << 40) == 7  # 200 megabytes and more
    assert copies_beyond(50 * megabyte, 268 * megabyte, 1 << 40) == 1
    assert copies_beyond(50 * megabyte, 33 * megabyte, 100 * megabyte) == 3  # as many as there is room for
    assert copies_beyond(50 * megabyte, 33 * megabyte, 10 * megabyte) == 1
    operands = Operands(EMULATED, CPU, SMALL)
    first, second = operands.calls(Case("linear_residual", 1), 2)
    assert not torch.equal(first.expected(), second.expected())


def test_every_shape_that_was_asked_for_is_timed() -> None:
    cases = list(all_cases())
    assert len({case.name for case in cases}) == len(cases)
    assert {case.tokens for case in cases} == {1, 2, 4, 8, 16} == set(TOKENS)
    for name in (*OF_WEIGHTS, "layer"):
        assert {(c.tokens, c.format) for c in cases if c.operator == name} == {
            (tokens, fmt) for tokens in TOKENS for fmt in FORMATS
        }
    assert {c.zeros for c in cases if c.operator == "mlp" and c.tokens == 1} == set(ZEROS)
    assert {c.positions for c in cases if c.operator == "decode_attention"} == set(POSITIONS)
    assert {c.filter for c in cases if c.operator == "sample"} == set(FILTERS)
    assert {c.filter for c in cases if c.operator == "embed"} == set(TABLES)
    assert {c.tokens for c in cases if c.operator == "advance"} == set(TOKENS)
    assert cases[0] == Case("layer", 1, "float16", 0.0, LAYER_POSITIONS)
    few = list(few_cases())
    assert set(few) < set(cases)
    assert len(few) < len(cases) / 3


def line_of(case: Case, seconds: float, **changes: Any) -> dict[str, Any]:
    times = {"median": seconds, "p10": 0.9 * seconds, "p90": 1.2 * seconds}
    facts = {"bytes": moved_bytes(case, Shapes()), "copies": 3, "calls_per_replay": 9, "difference": 1e-3}
    return {"number": 0, "seconds": times, **facts, **changes}


def test_a_share_is_the_time_of_a_copy_over_the_time_taken() -> None:
    case = Case("mlp", 1)
    entry = figure(case, line_of(case, 100e-6), 3e12)
    assert entry["floor_seconds"] == pytest.approx(268.5e6 / 3e12, rel=1e-3)
    assert entry["share_of_floor"]["median"] == pytest.approx(0.895, rel=1e-3)
    assert entry["share_of_floor"]["p10"] < 0.895 < entry["share_of_floor"]["p90"]
    report = describe_run("gpu-check", 50, 1) | {"measured": {case.name: entry}}
    check_report(report)


def test_what_is_wrong_is_seen() -> None:
    case = Case("mlp", 1)
    expected = torch.randn(4, 100, dtype=torch.float64)
    assert difference(expected.float(), expected) < 1e-6
    assert difference(1.02 * expected, expected) == pytest.approx(0.02)
    assert difference(torch.tensor([1, 2, 3, 9]), torch.tensor([1, 2, 3, 4])) == 0.25
    for off, wrong in [(1e-3, False), (0.02, True), (float("nan"), True), (None, False)]:
        assert is_wrong(figure(case, line_of(case, 1e-4, difference=off), 3e12)) is wrong
    assert is_wrong(figure(case, {"number": 0, "failed": "not supported"}, 3e12))


def test_the_table_has_a_row_for_each_setting() -> None:
    one, eight, attention = Case("mlp", 1), Case("mlp", 8), Case("decode_attention", 16, positions=1024)
    measured = {
        one.name: figure(one, line_of(one, 100e-6), 3e12),
        eight.name: figure(eight, line_of(eight, 100e-6, difference=0.5), 3e12),
        attention.name: figure(attention, {"failed": "not supported"}, 3e12),
        one.name + ALONE: figure(one, line_of(one, 104e-6), 3e12),
    }
    header, mlp, decode = print_of(measured).splitlines()
    assert header.startswith("µs, share of the floor  ")
    assert header.endswith("16 tokens  1, no overlap")
    assert re.split(" {2,}", mlp) == [
        "mlp, float16, 0% zeros",
        "100.0 0.90",
        "100.0 0.90 wrong",
        "104.0 0.86",
    ]
    assert re.split(" {2,}", decode) == ["decode_attention, float16, 1024 positions", "failed"]


def test_a_device_has_a_folder() -> None:
    assert folder_of("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py")]
    environment = {**os.environ, "ADEPT_FAST_BUILD": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("nothing to check: ")
    assert done.stderr.count("\n") == 1
