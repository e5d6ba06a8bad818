"""``gpu-check`` without a GPU: the bytes that are counted, and what it prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import EMULATED
from matrices import weights
from own_process import run_module
from step_bytes import Shapes, moved_bytes
from torch import Tensor

from benchmarks.cases.operators import copies_beyond
from benchmarks.gpu_check.programs import Case
from benchmarks.gpu_check.report import print_of

ROOT = Path(__file__).resolve().parents[2]

SMALL = Shapes(hidden=128, heads=2, rotary=32, intermediate=256, vocab=520, context=64)


def matrix_bytes(fmt: str, rows: int, cols: int, layout: Any = "rows") -> int:
    """Of one that is packed by the format's definition."""
    packed = weights(EMULATED, fmt, rows, cols, layout)
    return packed.values.nbytes + (0 if packed.scales is None else packed.scales.nbytes)


def floats(*shape: int) -> int:
    tensor: Tensor = torch.empty(shape)
    return tensor.nbytes


@pytest.mark.parametrize("fmt", ["float16", "fp8", "int4"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_bytes_are_those_of_the_operands(fmt: str, tokens: int) -> None:
    hidden, vocab, units = SMALL.hidden, SMALL.vocab, SMALL.intermediate
    norm, x = 2 * floats(hidden), floats(tokens, hidden)
    expected = {
        "layernorm_qkv": x
        + norm
        + matrix_bytes(fmt, 3 * hidden, hidden)
        + floats(3 * hidden)
        + floats(tokens, 3 * hidden),
        "linear_residual": x + matrix_bytes(fmt, hidden, hidden) + floats(hidden) + 2 * x,
        "mlp": x
        + norm
        + matrix_bytes(fmt, units, hidden)
        + floats(units)
        + matrix_bytes(fmt, units, hidden, "units")
        + floats(hidden)
        + x,
        "lm_head": x + norm + matrix_bytes(fmt, vocab, hidden) + floats(tokens, vocab),
    }
    for name, bytes_moved in expected.items():
        assert moved_bytes(Case(name, tokens, fmt), SMALL) == bytes_moved, name


def test_attention_reads_what_counts_of_the_cache() -> None:
    cache = torch.empty(2, 3, SMALL.heads, SMALL.context, SMALL.head_dim, dtype=torch.float16)
    q_and_out = 2 * floats(3, SMALL.hidden)
    whole = Case("decode_attention", 3, positions=SMALL.context)
    assert moved_bytes(whole, SMALL) == cache.nbytes + q_and_out
    half = Case("decode_attention", 3, positions=SMALL.context // 2)
    assert moved_bytes(half, SMALL) - q_and_out == cache.nbytes // 2


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


def test_copies_take_turns_until_the_cache_is_overrun() -> None:
    megabyte = 1 << 20
    assert copies_beyond(50 * megabyte, 33 * megabyte, 1 << 40) == 7  # 200 megabytes and more
    assert copies_beyond(50 * megabyte, 268 * megabyte, 1 << 40) == 1
    assert copies_beyond(50 * megabyte, 33 * megabyte, 100 * megabyte) == 3  # as many as there is room for
    assert copies_beyond(50 * megabyte, 33 * megabyte, 10 * megabyte) == 1


def figure(value: float) -> dict[str, float]:
    return {"median": value, "p10": value, "p90": value}


def entry_of(operator: str, tokens: int, positions: int = 0, **changes: Any) -> dict[str, Any]:
    """As benchmarks/step writes it."""
    facts = {"operator": operator, "format": "float16", "sparsity_percent": 0, "tokens": tokens}
    timed = {"positions": positions, "sampling": "", "bytes": 1, "seconds": figure(1e-4), "share": 0.9}
    return {**facts, **timed, **changes}


def test_the_tables_have_a_row_for_each_setting() -> None:
    entries = [
        entry_of("mlp", 1),
        entry_of("mlp", 16, share=0.8),
        entry_of("decode_attention", 16, 1024, failed="not supported"),
        entry_of("decode_attention", 1, 1024, skipped="no room"),
    ]
    row = {
        "tokens_per_second": figure(181.2),
        "milliseconds_per_step": figure(5.51),
        "share_of_bandwidth": figure(0.66),
    }
    bare = {"tokens_per_second": figure(10.0)}
    decode = {"adept-fast": {"measured": {"adept-fast:int4": row, "adept-fast:fp8": bare}}}
    first = {"time_to_first_token_milliseconds": figure(12.34), "share_of_gemm_rate": figure(0.8)}
    prefill = {"adept-fast": {"layers": 36, "measured": {"adept-fast:int4, 128 tokens": first}}}
    cases = {Case.of(entry).name: entry for entry in entries}
    report = {"measured": cases, "decode": decode, "prefill": prefill}
    printed = [re.split(" {2,}", line) for line in print_of(report).splitlines()]
    assert printed == [
        ["µs, share of the bound", "1 token", "16 tokens"],
        ["mlp, float16, 0% zeros", "100.0 0.90", "100.0 0.80"],
        ["decode_attention, float16, 1024 positions", "skipped", "failed"],
        [""],
        ["decode step", "tokens/s", "ms", "share of the bound"],
        ["adept-fast:int4", "181.2", "5.51", "0.66"],
        ["adept-fast:fp8", "10.0", "-", "-"],
        [""],
        ["prompt", "layers", "ms to the first token", "share of a GEMM's rate"],
        ["adept-fast:int4, 128 tokens", "36", "12.3", "0.80"],
    ]
    assert print_of({"measured": {}}) == "no figures"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_module("benchmarks", "gpu-check", *arguments, ADEPT_FAST_BUILD="0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [(), ("--baselines",), ("--layouts",), ("--sanitize",)])
def test_without_a_gpu_it_says_so(arguments: tuple[str, ...]) -> None:
    done = check(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("nothing to check: ")
    assert done.stderr.count("\n") == 1


def test_the_sanitizers_look_at_no_baseline() -> None:
    done = check("--baselines", "--sanitize")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--sanitize belongs to the check" in done.stderr
