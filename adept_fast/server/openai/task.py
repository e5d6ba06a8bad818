"""Task: what the body of a request asks of the engine, and who writes the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adept_fast.engine.sequence import Request
from adept_fast.sampling import SamplingParams
from adept_fast.server.openai.delivery import Writer
from adept_fast.server.openai.prompts import Origin, engine_requests


@dataclass(frozen=True)
class Task:
    """Prompts in token ids, the settings of the choices for each, and the writer of all.

    ``prompt_logprobs`` is that of ``Request``.
    """

    prompts: list[list[int]]
    params: Sequence[SamplingParams]
    writer: Writer
    prompt_logprobs: int | None = None

    def requests(self, origin: Origin) -> list[Request]:
        """In the order in which the writer expects their answers. Their time begins now."""
        return engine_requests(self.prompts, self.params, origin, self.prompt_logprobs)
