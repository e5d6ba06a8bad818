"""A replica's engine alone, in a process of its own: ``python -m benchmarks.simulate.step_worker``.

It times steps while other such processes do the same. A request is a line of JSON on stdin, and its answer
one on stdout. Work begins at the time ``at`` (``time.time()``) in all processes; what is timed begins
``LEAD_SECONDS`` later, lasts ``seconds``, and the work goes on for so long again, so that all work
meanwhile.

``load``
    ``{"checkpoint", "format", "slots", "context"}`` → what a simulation has to know of the engine
``read``
    ``{"rows", "context"}`` → ``{}``: so many prompts are read, which ``decode`` goes on with
``decode``
    ``{"rows", "context", "at", "seconds"}`` → ``{"seconds": a step's mean, "context": of a row, on average}``
``prefill``
    ``{"tokens", "start", "at", "seconds"}`` → ``{"seconds": a chunk's mean}``
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from adept_fast import Runtime
from adept_fast.engine.request_handle import RequestHandle
from adept_fast.engine.sequence import Request
from adept_fast.model import Segment
from adept_fast.sampling import SamplingParams

LEAD_SECONDS = 0.15
FIRST_ID = 5  # past the ids with a meaning


class StepWorker:
    """``handle`` runs a request."""

    runtime: Runtime

    def __init__(self) -> None:
        self._handles: list[RequestHandle] = []

    def handle(self, operation: str, **arguments: Any) -> dict[str, Any]:
        operations: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self.load,
            "read": self.read,
            "decode": self.decode,
            "prefill": self.prefill,
        }
        return operations[operation](**arguments)

    def load(self, checkpoint: str, format: str, slots: int, context: int) -> dict[str, Any]:
        torch.set_num_threads(1)
        self.runtime = Runtime.load(
            checkpoint,
            device="cpu",
            dtype=format,
            max_batch_size=slots,
            max_seq_len=context,
            step_tokens="auto",
            warmup=True,
            progress=False,
        )
        model = self.runtime.engine.runner.model
        return {
            "slots": slots,
            "chunk_tokens": model.chunk_tokens,
            "step_tokens": self.runtime.engine.step_tokens,
            "keeps_answers": model.has_one_order,
            "load_seconds": self.runtime.load_seconds,
        }

    def read(self, rows: int, context: int) -> dict[str, Any]:
        engine = self.runtime.engine
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_new_tokens=engine.max_seq_len - context)
        prompts = [Request(self._prompt(row, context), params) for row in range(rows)]
        self._handles = engine.submit_all(prompts)
        while any(not handle.sequence.token_ids for handle in self._handles):
            engine.step()
        return {}

    def decode(self, rows: int, context: int, at: float, seconds: float) -> dict[str, Any]:
        engine, window = self.runtime.engine, Window.after(at, seconds)
        contexts = []
        while True:
            sequences = [handle.sequence for handle in self._handles]
            while not any(sequence.is_finished for sequence in sequences):
                if window.time(engine.step):
                    contexts.append(sum(sequence.next_position for sequence in sequences) / rows)
                if window.is_over():
                    break
            for handle in self._handles:
                handle.cancel()
            engine.step()
            if window.is_over():
                break
            self.read(rows, context)  # the answers have filled the context
        return {
            "seconds": window.mean(),
            "context": round(sum(contexts) / len(contexts)) if contexts else context,
        }

    def prefill(self, tokens: int, start: int, at: float, seconds: float) -> dict[str, Any]:
        runner, ids = self.runtime.engine.runner, self._prompt(0, tokens)
        self.runtime.engine.warmup()  # what is written to slot 0 is nobody's prefix

        def chunk() -> None:
            hidden = runner.prefill([Segment(0, start, ids)])
            logits = runner.model.logits(hidden[-1:])
            runner.sample(logits, [0], [start + tokens - 1]).tolist()

        window = Window.after(at, seconds)
        with torch.inference_mode():
            while not window.is_over():
                window.time(chunk)
        return {"seconds": window.mean()}

    def _prompt(self, row: int, tokens: int) -> list[int]:
        """Ids that differ from row to row."""
        vocabulary = self.runtime.tokenizer.vocab_size - FIRST_ID
        return [FIRST_ID + (100 * row + at) % vocabulary for at in range(tokens)]


@dataclass
class Window:
    """Times work that begins and ends between two times; work goes on a little longer."""

    begin: float
    end: float
    total: float = 0.0
    count: int = 0
    any_seconds: float = float("nan")  # of work that did not fit

    @classmethod
    def after(cls, at: float, seconds: float) -> Window:
        """Wait until ``at``; it begins ``LEAD_SECONDS`` later."""
        time.sleep(max(0.0, at - time.time()))
        begin = time.perf_counter() + LEAD_SECONDS
        return cls(begin, begin + seconds)

    def is_over(self) -> bool:
        return time.perf_counter() > self.end + LEAD_SECONDS

    def time(self, work: Callable[[], None]) -> bool:
        """Do it; whether it was timed."""
        before = time.perf_counter()
        work()
        after = time.perf_counter()
        self.any_seconds = after - before
        if not self.begin <= before <= after <= self.end:
            return False
        self.total, self.count = self.total + after - before, self.count + 1
        return True

    def mean(self) -> float:
        """Of what was timed; of the last work if none fits into the window."""
        return self.total / self.count if self.count else self.any_seconds


def main() -> None:
    worker = StepWorker()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(worker.handle(request.pop("op"), **request)), flush=True)


if __name__ == "__main__":
    main()
