"""LeadingRunner: the first rank's ModelRunner, which tells the others of each pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adept_fast.engine.model_runner import ModelRunner, PendingStep
from adept_fast.engine.ranks.team import Team
from adept_fast.model import Segment


class LeadingRunner(ModelRunner):
    """A ModelRunner whose model is the first rank's part; its results are those of the whole model."""

    def __init__(self, team: Team, *arguments: Any) -> None:
        self.team = team
        super().__init__(*arguments)

    def check(self) -> None:
        self.team.check()

    def prefill(self, segments: Sequence[Segment]) -> Tensor:
        told = [[segment.slot, segment.start, list(segment.ids)] for segment in segments]
        with self.team.command("reading prompts", "prefill", told):
            return super().prefill(segments)

    def logits(self, hidden: Tensor) -> Tensor:
        with self.team.command("reading prompts", "logits", len(hidden)):
            return super().logits(self.model.ranks.shared(hidden))

    def all_logits(self, hidden: Tensor) -> Tensor:
        with self.team.command("scoring", "all_logits", len(hidden)):
            return super().all_logits(self.model.ranks.shared(hidden))

    def copy_prefix(self, source: int, destination: int, tokens: int) -> None:
        with self.team.command("reading prompts", "copy_prefix", source, destination, tokens):
            super().copy_prefix(source, destination, tokens)

    def launch_step(self, rows: int, length: int) -> Tensor:
        with self.team.command("decoding", "launch_step", rows, length):
            return super().launch_step(rows, length)

    def read(self, step: PendingStep, rows: Sequence[int]) -> list[int]:
        try:
            return super().read(step, rows)
        except RuntimeError:
            self.team.watch.wait_for_failure()  # which ends what the device waits for
            raise

    def decode_first_token(self, slot: int, position: int) -> Tensor:
        with self.team.command("decoding", "decode_first_token", position):
            return super().decode_first_token(slot, position)

    def capture_steps(self) -> None:
        with self.team.command("capturing steps", "capture_steps"):
            super().capture_steps()
