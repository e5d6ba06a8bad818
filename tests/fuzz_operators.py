"""Calls the operators with arguments changed at random, and prints what failed.

A call ends in one plain sentence, with nothing written, or in the result that plain PyTorch has. It never
ends the process, writes past what it is to write, or takes long. A call is made from the seed and its number
alone, so that what failed can be made again::

    python tests/fuzz_operators.py --calls 20000
    python tests/fuzz_operators.py --first 1234 --calls 1 --verbose
    python tests/fuzz_operators.py --emulated           the CUDA operators, on this CPU

Calls are made in a process of their own; where one ends it, another process goes on behind that call.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
SECONDS = 20  # for one call
# Of torch, before an operator is called, and of operators, which raise RuntimeErrors of one sentence.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
UNPLAIN = ("API call failed", ".cpp", "Exception raised from", "bad_alloc")
FAILED, CALLING, REFUSED, DONE = "failed", "calling", "refused", "done"


def main() -> int:
    """The exit code is 1 where a call failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--calls", type=int, default=400, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what they are drawn from (%(default)s)")
    parser.add_argument("--emulated", action="store_true", help="the CUDA operators, by the emulator")
    parser.add_argument("--verbose", action="store_true", help="print every call")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    tally = run_all(options)
    sys.stdout.write(
        f"{options.calls} calls: {tally[DONE]} had a result, {tally[REFUSED]} were refused, "
        f"{tally[FAILED]} failed\n"
    )
    return int(tally[FAILED] > 0)


def run_all(options: argparse.Namespace) -> dict[str, int]:
    """How many calls came to which end."""
    tally = dict.fromkeys((FAILED, REFUSED, DONE), 0)
    first, end = options.first, options.first + options.calls
    while first < end:
        command = [sys.executable, __file__, "--worker", f"--first={first}", f"--calls={end - first}"]
        command += [f"--seed={options.seed}", *(["--emulated"] if options.emulated else [])]
        paths = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
            assert worker.stdout is not None
            last = ""
            for line in worker.stdout:
                kind, _, said = line.rstrip("\n").partition(" ")
                if kind in tally:
                    tally[kind] += 1
                if kind == FAILED or options.verbose:
                    sys.stdout.write(f"{kind} {said}\n")
                if kind == CALLING:
                    last = said
        if worker.returncode == 0:
            return tally
        if not last:
            raise SystemExit(f"the process that makes the calls ended before one: {worker.returncode}")
        tally[FAILED] += 1
        sys.stdout.write(f"{FAILED} {last}: {ended_by(worker.returncode)}\n")
        first = int(last.split(":")[0]) + 1
    return tally


def ended_by(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"it took more than {SECONDS} s"
    return f"it ended the process by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def work(options: argparse.Namespace) -> int:
    """Makes the calls, each announced before and judged behind it, a line of output for each."""
    from adept_fast import extension

    if not extension.load().loaded:
        raise SystemExit(f"the extension is not loaded: {extension.load().reason}")
    import torch
    from backends import Cpu

    torch.set_num_threads(1)
    for number in range(options.first, options.first + options.calls):
        call = make_call(options.seed, number, options.emulated)
        say(CALLING, f"{number}: {call}")
        signal.alarm(SECONDS)
        with Cpu(call.instruction_set).running():
            kind, said = judged(call)
        signal.alarm(0)
        say(kind, f"{number}: {call}: {said}")
    return 0


def say(kind: str, text: str) -> None:
    sys.stdout.write(f"{kind} {' '.join(text.split())}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Call:
    """An operator and its arguments."""

    operator: str
    function: Any
    arguments: dict[str, Any]
    changes: str
    has_odd_numbers: bool
    emulated: bool
    instruction_set: str

    def __str__(self) -> str:
        device = "emulated" if self.emulated else self.instruction_set
        return f"{self.operator} ({device}), where {self.changes or 'nothing was changed'}"


def make_call(seed: int, number: int, emulated: bool) -> Call:
    """The call of that number."""
    import random

    import torch
    from backends import INSTRUCTION_SETS
    from operator_arguments import OF_A_GPU, OPERATORS
    from operator_mutations import Mutator

    draw = random.Random(seed * 1_000_003 + number)
    torch.manual_seed(draw.getrandbits(32))
    if emulated:
        from cuda_on_cpu import library

        names, formats = [n for n in OPERATORS if hasattr(library.call, n)], ["float16", "bfloat16"]
        names = [name for name in names if name != "decode_step"]
        operators: Any = library.call
    else:
        names = [name for name in OPERATORS if name not in OF_A_GPU]
        formats = ["float32", "float16", "bfloat16", "int8", "int4"]
        operators = torch.ops.adept_fast
    name = draw.choice(names)
    mutator = Mutator(draw.getrandbits(32))
    arguments = mutator.mutate(name, OPERATORS[name](draw.choice(formats)))
    changes = ", ".join(mutator.changes)
    return Call(
        name,
        getattr(operators, name),
        arguments,
        changes,
        mutator.has_odd_numbers,
        emulated,
        draw.choice(INSTRUCTION_SETS),
    )


def judged(call: Call) -> tuple[str, str]:
    """What came of a call, and what is to be said of it."""
    from guarded_memory import Guarded
    from sharing_memory import WRITTEN

    guarded = Guarded(call.arguments, WRITTEN.get(call.operator, ()))
    before = guarded.copies()
    try:
        result = call.function(**guarded.arguments)
    except REFUSALS as error:
        said = str(error)
        if changed := guarded.changed_since(before, but=()):
            return FAILED, f"{changed} was written, then: {said}"
        # torch itself says at length that it has no kernel for a sparse tensor, or for none.
        if not isinstance(error, NotImplementedError) and any(word in said for word in UNPLAIN):
            return FAILED, f"no plain sentence: {said}"
        return REFUSED, said
    if changed := guarded.changed_since(before, but=WRITTEN.get(call.operator, ())):
        return FAILED, f"{changed} was written"
    wrong = difference(call, before, result, guarded.arguments)
    return (FAILED, wrong) if wrong else (DONE, "as it is defined")


def difference(call: Call, before: dict[str, Any], result: Any, written: dict[str, Any]) -> str:
    """How a result, or what was written, is not what plain PyTorch has; empty where it is."""
    import torch
    from operator_definitions import defined, is_defined
    from sharing_memory import WRITTEN

    tensors = [value for value in before.values() if isinstance(value, torch.Tensor)]
    if call.has_odd_numbers or any(tensor.is_meta for tensor in tensors):
        return ""  # no bound on errors holds; without values there are none
    if any(part.is_meta for part in before.get("layers", [])):
        return ""
    if not is_defined(call.operator, before):
        return ""
    try:
        expected = defined(call.operator, before)
    except (*REFUSALS, AssertionError) as error:
        return f"plain PyTorch refuses what was not refused: {error}"
    rough = call.emulated or (result is not None and result.dtype == torch.bfloat16)
    pairs = [("the result", result, expected)] if result is not None else []
    # In half precision, a unit near 0 may be rounded to it, and is not counted then.
    compared = () if call.emulated and call.operator == "mlp" else WRITTEN.get(call.operator, ())
    pairs += [(name, written[name], before[name]) for name in compared]
    for name, found, wanted in pairs:
        if wanted is None:
            continue
        if found.shape != wanted.shape:
            return f"{name} has shape {list(found.shape)}; expected {list(wanted.shape)}"
        is_same = torch.equal(found, wanted)
        if not is_same and found.dtype.is_floating_point:
            bound = 0.1 if rough else 4e-3
            is_same = torch.allclose(found.float(), wanted.float(), rtol=bound, atol=bound, equal_nan=True)
        if not is_same:
            return f"{name} is {found.flatten()[:8].tolist()}; expected {wanted.flatten()[:8].tolist()}"
    return ""


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
