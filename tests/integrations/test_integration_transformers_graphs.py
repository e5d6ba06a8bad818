"""generate where steps are captured and replayed, as on a GPU: fixed shapes, logits that steps overwrite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerated_models import small_model
from torch import Tensor

from adept_fast.engine.graphs import Captured, LaunchPolicy
from adept_fast.integrations.transformers import accelerate
from adept_fast.memory.graph_buckets import GraphBuckets


class Replayed:
    """Stands in for CUDA's capture: a replay runs the step, and overwrites what the one before returned."""

    bytes_held = 0

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, warmup: Callable[[], Tensor], step: Callable[[], Tensor]) -> Captured:
        logits = warmup().clone()

        def replay() -> None:
            self.replays += 1
            logits.copy_(step())

        return Captured(replay, logits)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Replayed:
    capture = Replayed()

    def on(device: torch.device, max_rows: int, max_seq_len: int, cuda_graphs: str = "auto") -> LaunchPolicy:
        return LaunchPolicy(GraphBuckets.few(max_rows, max_seq_len), 2, capture, required=True)

    monkeypatch.setattr(LaunchPolicy, "on", on)
    return capture


@pytest.mark.parametrize("rows", [1, 3, 8, 19])
@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        (7, {"eos_token_id": None}),
        (7, {"eos_token_id": [11, 50, 3, 60, 7, 9], "pad_token_id": 2}),
        (7, {"repetition_penalty": 1.4}),
        (245, {"eos_token_id": None}),  # to shapes of the next size
    ],
    ids=str,
)
def test_replayed_steps_give_what_transformers_gives(
    capture: Replayed, rows: int, columns: int, settings: dict[str, Any]
) -> None:
    ids = torch.randint(5, 97, (rows, columns), generator=torch.Generator().manual_seed(rows))
    mask = (torch.arange(columns) >= (torch.arange(rows) % 6)[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 20} | settings
    theirs, ours = small_model(), accelerate(small_model())
    assert torch.equal(ours.generate(**inputs), theirs.generate(**inputs))
    assert capture.replays > 0
    detailed = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    found, expected = (model.generate(**inputs, **detailed) for model in (ours, theirs))
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("logits", "scores"):
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(expected[name]), atol=1e-4, rtol=0)


def test_guesses_are_replayed_too(capture: Replayed) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    theirs, ours = small_model(), accelerate(small_model())
    for _ in range(2):
        found = ours.generate(ids, max_new_tokens=60, eos_token_id=None, prompt_lookup_num_tokens=5)
        assert torch.equal(found, theirs.generate(ids, max_new_tokens=60, eos_token_id=None))
