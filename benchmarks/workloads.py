"""The timed work of a runtime: decode steps after a prompt, or reading a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.samples import Job
from benchmarks.workers import Worker

FEWEST_STEPS = 4
FIRST_ID = 5  # the ids of a prompt count up from here, past those with a meaning
PROMPTS_APART = 100  # ids between the first ids of a batch's prompts


@dataclass(frozen=True)
class Setting:
    """``zeros``: the share of inactive neurons; None if the checkpoint was not made here."""

    zeros: float | None
    batch: int
    context: int

    def facts(self) -> dict[str, Any]:
        return {"zeros": self.zeros, "batch": self.batch, "context": self.context}


class Workload(Protocol):
    """The timed work in a setting."""

    def room(self, context: int) -> int:
        """Tokens of the cache."""

    def tokens_per_step(self, setting: Setting) -> int: ...

    def job(self, worker: Worker, setting: Setting, vocab: int | None = None) -> Job: ...


@dataclass(frozen=True)
class Decode:
    """``steps`` decode steps, or fewer if they would take longer than ``longest_sample`` seconds."""

    steps: int
    longest_sample: float = 2.0

    def room(self, context: int) -> int:
        return context + self.steps + 1

    def tokens_per_step(self, setting: Setting) -> int:
        return setting.batch

    def job(self, worker: Worker, setting: Setting, vocab: int | None = None) -> Job:
        prompts = prompts_of(setting.batch, setting.context, vocab)
        return Job(DecodeMeasure(worker, prompts, self.steps, self.longest_sample), worker.pid)


@dataclass(frozen=True)
class Prefill:
    """A prompt of the setting's context; a step is the whole prompt."""

    def room(self, context: int) -> int:
        return context + 1

    def tokens_per_step(self, setting: Setting) -> int:
        return setting.context

    def job(self, worker: Worker, setting: Setting, vocab: int | None = None) -> Job:
        prompt = prompt_ids(setting.context, vocab=vocab)
        return Job(lambda: {"seconds_per_step": worker.call("prefill", prompt=prompt)["seconds"]}, worker.pid)


class DecodeMeasure:
    """Decodes after the prompts; the first call, which warms up, settles how many steps fit a sample."""

    def __init__(
        self, worker: Worker, prompts: list[list[int]], max_steps: int, longest_seconds: float
    ) -> None:
        self._worker = worker
        self._prompts = prompts
        self._max_steps = max_steps
        self._longest = longest_seconds
        self._steps = 0

    def __call__(self) -> dict[str, Any]:
        if self._steps == 0:
            seconds = self._decode(FEWEST_STEPS)["seconds"]
            fitting = int(self._longest / (seconds / FEWEST_STEPS))
            self._steps = max(FEWEST_STEPS, min(self._max_steps, fitting))
        answer = self._decode(self._steps)
        return answer | {
            "seconds_per_step": answer.pop("seconds") / self._steps,
            "steps_per_sample": self._steps,
        }

    def _decode(self, steps: int) -> dict[str, Any]:
        return self._worker.call("decode", prompts=self._prompts, steps=steps)


def prompts_of(batch: int, context: int, vocab: int | None = None) -> list[list[int]]:
    """Prompts that differ."""
    return [prompt_ids(context, FIRST_ID + PROMPTS_APART * at, vocab) for at in range(batch)]


def prompt_ids(count: int, first: int = FIRST_ID, vocab: int | None = None) -> list[int]:
    """Ids that count up from ``first``, and past a vocabulary of ``vocab`` ids from FIRST_ID again."""
    ids = range(first, first + count)
    return [*ids] if vocab is None else [FIRST_ID + (at - FIRST_ID) % (vocab - FIRST_ID) for at in ids]
