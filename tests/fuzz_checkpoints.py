"""Opens mutated checkpoints, each in a process of its own: ``make fuzz``.

Every mutation must end in a model that runs or in one sentence, within limits of time and memory, and nothing
of the file may run. ``--only N`` repeats one of them.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from fuzz_formats import build
from fuzz_mutations import copied, mutate
from fuzz_process import Outcome, attempt, load_checkpoint

from adept_fast import Runtime


@dataclass(frozen=True)
class Trial:
    number: int
    format: str
    mutation: str
    outcome: Outcome

    def __str__(self) -> str:
        end = self.outcome
        return (
            f"{self.number} {self.mutation} -> {end.kind} in {end.seconds:.2f} s, "
            f"{end.bytes_allocated / 2**20:.0f} MiB: {end.message}"
        )


def trials(numbers: range, seed: int = 0) -> Iterator[Trial]:
    """Each number's mutation depends on it and the seed alone."""
    # Threads do not survive a fork, so there must be none.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        sources = build(Path(directory))
        names = list(sources)
        for path in sources.values():  # in this process, so that no fork loads libraries
            Runtime.load(path, device="cpu", max_seq_len=8, progress=False).generate("Hi", max_new_tokens=2)
        for number in numbers:
            random = Random(f"{seed}/{number}")
            name = names[number % len(names)]
            with tempfile.TemporaryDirectory() as place:
                path = copied(sources[name], Path(place))
                mutation = mutate(path, random)
                yield Trial(number, name, mutation, attempt(path, load_checkpoint))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="of mutations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one mutation")
    parser.add_argument("--verbose", action="store_true", help="print those that were no fault too")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else range(options.only, options.only + 1)
    ends: collections.Counter[str] = collections.Counter()
    slowest, largest = 0.0, 0
    for trial in trials(numbers, options.seed):
        ends[trial.outcome.kind] += 1
        slowest = max(slowest, trial.outcome.seconds)
        largest = max(largest, trial.outcome.bytes_allocated)
        if trial.outcome.kind == "fault" or options.verbose:
            sys.stdout.write(f"{trial}\n")
    sys.stdout.write(f"{dict(ends)}; at most {slowest:.1f} s and {largest / 2**20:.0f} MiB\n")
    sys.exit(1 if ends["fault"] else 0)


if __name__ == "__main__":
    main()
