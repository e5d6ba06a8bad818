"""The operators take any arguments: some hundred random ones; ``make fuzz-operators`` makes more."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import fuzz_operators
import pytest
import torch
from backends import INSTRUCTION_SETS
from fuzz_operators import DONE, FAILED, REFUSED, Call, judged, make_call
from operator_arguments import OF_A_GPU, OPERATORS

PROGRAM = Path(fuzz_operators.__file__)


def fuzz(*options: str) -> str:
    """What the program prints; fails where a call has failed."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        env={**os.environ, "ADEPT_FAST_BUILD": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


def test_random_arguments() -> None:
    assert "0 failed" in fuzz("--calls", "600")


def test_random_arguments_of_the_cuda_operators() -> None:
    pytest.importorskip("cuda_on_cpu.library")  # skips where it cannot be built
    assert "0 failed" in fuzz("--calls", "300", "--emulated")


def test_a_call_is_made_from_its_number() -> None:
    calls = [str(make_call(1, number, emulated=False)) for number in range(30)]
    assert calls == [str(make_call(1, number, emulated=False)) for number in range(30)]
    assert len({call.split(",")[0] for call in calls}) > 5
    assert calls != [str(make_call(2, number, emulated=False)) for number in range(30)]


def made(name: str, function: object) -> Call:
    return Call(name, function, OPERATORS[name]("float32"), "", False, False, INSTRUCTION_SETS[0])


def test_what_counts_as_a_failure() -> None:
    """A wrong result, a write past an argument or to one that is read, and a refusal that comes too late."""

    def past(token_ring: torch.Tensor, **_: object) -> None:
        token_ring.as_strided((len(token_ring) * 3 + 1,), (1,))[-1] = 7

    def to_an_input(x: torch.Tensor, **others: object) -> torch.Tensor:
        result = torch.ops.adept_fast.mlp(x, **others)
        x[0, 0] += 1
        return result

    def too_late(counts: torch.Tensor, **_: object) -> None:
        counts[0] += 1
        raise RuntimeError("counts is wrong; expected another")

    def not_plain(**_: object) -> None:
        raise RuntimeError("API call failed at ops.h, line 939")

    def wrong(**arguments: object) -> torch.Tensor:
        return torch.ops.adept_fast.lm_head(**arguments) + 0.1

    assert judged(made("update_decode_state", past)) == (FAILED, "memory beside token_ring was written")
    assert judged(made("mlp", to_an_input)) == (FAILED, "x was written")
    kind, said = judged(made("mlp", too_late))
    assert (kind, said.split(",")[0]) == (FAILED, "counts was written")
    assert judged(made("mlp", not_plain))[0] == FAILED
    assert judged(made("lm_head", wrong))[0] == FAILED
    for name in OPERATORS:
        if name not in OF_A_GPU:
            assert judged(made(name, getattr(torch.ops.adept_fast, name)))[0] == DONE
    assert judged(made("embed", torch.ops.adept_fast.embed))[0] == REFUSED


def test_a_call_that_ends_the_process_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And the calls behind it are made all the same."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, signal, sys\n"
        "first = int(sys.argv[2].split('=')[1])\n"
        "for number in range(first, 5):\n"
        "    print(f'calling {number}: update_decode_state', flush=True)\n"
        "    if number == 2:\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    print(f'done {number}: update_decode_state', flush=True)\n"
    )
    monkeypatch.setattr(fuzz_operators, "__file__", str(worker))
    options = argparse.Namespace(first=0, calls=5, seed=1, emulated=False, verbose=False)
    tally = fuzz_operators.run_all(options)
    assert (tally[DONE], tally[FAILED]) == (4, 1)
    assert capsys.readouterr().out == "failed 2: update_decode_state: it ended the process by SIGSEGV\n"
