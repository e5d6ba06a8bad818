"""Times the operators on a GPU and prints a line of JSON for each case; ``gpu_check`` runs it.

    python tools/gpu_check_timing.py [--from NUMBER] [--few]

A CUDA graph of many calls is replayed; their operands take turns, so that the second-level cache holds none
of the weights that come next. The first line is what a copy of the device's memory reaches, by which the
others are judged. The exit code is 3 where a kernel left the device unusable, and another process must go on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_check_cases import Case, Shapes, all_cases, copies_beyond, few_cases, moved_bytes  # noqa: E402
from gpu_check_operands import Call, Operands, difference  # noqa: E402
from harness import summarise  # noqa: E402

from adept_fast import extension  # noqa: E402

REPEATS = 50
SHORTEST_GRAPH = 1e-3  # seconds of a replay, so that its start and the clock's steps do not count
LIKELY_BANDWIDTH = 3e12
LONGEST_GRAPH = 256  # calls
COPIED_BYTES = 1 << 29
DEVICE = torch.device("cuda")


def time_calls(run: Callable[[], Any], calls: int) -> dict[str, float]:
    """Seconds of one call, from replays of a graph into which ``run`` puts that many."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    graph.replay()
    # All are queued before the first has ended, so that the device never waits for the host.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    seconds = [1e-3 * before.elapsed_time(after) for before, after in zip(events, events[1:], strict=False)]
    return summarise(each / calls for each in seconds)


def time_copy() -> dict[str, Any]:
    """Bytes a second of a copy, those read and those written counted."""
    source = torch.randint(256, (COPIED_BYTES,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    times = 4

    def run() -> None:
        for _ in range(times):
            target.copy_(source)

    run()
    seconds = time_calls(run, times)
    return {"copy_bytes_per_second": 2 * COPIED_BYTES / seconds["median"], "copy_seconds": seconds}


def time_case(case: Case, shapes: Shapes) -> dict[str, Any]:
    """What one line says of a case."""
    device = torch.cuda.get_device_properties(DEVICE)
    moved = moved_bytes(case, shapes)
    most = torch.cuda.mem_get_info()[0] // 4
    copies = copies_beyond(device.L2_cache_size, moved, most) if case.streams else 1
    calls = Operands(torch.ops.adept_fast, DEVICE, shapes).calls(case, copies)
    off = difference_of(calls[0])
    wanted = min(LONGEST_GRAPH, SHORTEST_GRAPH * LIKELY_BANDWIDTH / moved)
    rounds = max(1, round(wanted / copies))

    def run() -> None:
        for _ in range(rounds):
            for call in calls:
                call.run()

    for call in calls:  # a kernel's first start loads it, which a graph cannot hold
        call.run()
    torch.cuda.synchronize()
    seconds = time_calls(run, rounds * copies)
    return {
        "bytes": moved,
        "seconds": seconds,
        "copies": copies,
        "calls_per_replay": rounds * copies,
        "difference": off,
    }


def difference_of(call: Call) -> float | None:
    """From plain PyTorch, where the device has the memory that it takes."""
    ours = call.run()
    try:
        return difference(ours, call.expected())
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def is_usable() -> bool:
    """Whether the device still answers: after a fault in a kernel it does not, to this process."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device=DEVICE).item()
    except RuntimeError:
        return False
    return True


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description="Time the operators on a GPU.")
    parser.add_argument("--from", dest="first", type=int, default=0, help="cases to leave out at the start")
    parser.add_argument("--few", action="store_true", help="a selection of the cases")
    arguments = parser.parse_args()
    built = extension.load()
    if not built.cuda:
        sys.exit(f"the operators have no CUDA: {built.cuda_reason or built.reason}")
    torch.manual_seed(0)
    say(time_copy())
    cases = list(few_cases() if arguments.few else all_cases())
    for number, case in enumerate(cases[arguments.first :], arguments.first):
        line: dict[str, Any] = {"number": number}
        try:
            line |= time_case(case, Shapes())
        except (RuntimeError, NotImplementedError) as error:
            line["failed"] = str(error).strip().splitlines()[0]
        say(line)
        if "failed" in line and not is_usable():
            return 3
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
