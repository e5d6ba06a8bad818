"""``accelerate``: the calls that a streamer gets, held to those of transformers' own generate."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerated_models import HANDED_OVER, batch, left_padded, long_model
from torch import Tensor

from adept_fast.integrations.transformers import accelerate

pytestmark = pytest.mark.filterwarnings(f"error:{HANDED_OVER}")


class Recorder:
    """A streamer of no class of transformers', and the calls that it got."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.calls: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.values.append(value.clone())
        self.calls.append((tuple(value.shape), value.dtype, value.device.type, value.tolist()))

    def end(self) -> None:
        self.calls.append("end")


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """transformers' own model and an accelerated one."""
    return long_model(), accelerate(long_model())


def recorded(model: Any, inputs: dict[str, Tensor], **settings: Any) -> tuple[Recorder, Tensor]:
    recorder = Recorder()
    settings = {"max_new_tokens": 24, "eos_token_id": 96, "pad_token_id": 0} | settings
    return recorder, model.generate(**inputs, **settings, streamer=recorder)


def streams(pair: tuple[Any, Any], inputs: dict[str, Tensor], **settings: Any) -> list[Recorder]:
    """What the streamers of both models got, for the same text."""
    (expected, their_ids), (found, ids) = (recorded(model, inputs, **settings) for model in pair)
    assert torch.equal(ids, their_ids)
    return [expected, found]


@pytest.mark.parametrize(
    ("inputs", "settings"),
    [
        ({"input_ids": batch(1, 7)}, {}),
        ({"input_ids": batch(1, 1)}, {"max_new_tokens": 1}),
        (left_padded([3, 9, 1]), {"eos_token_id": [11, 50, 3, 60, 7, 9]}),
        ({"input_ids": batch(2, 4)}, {"num_return_sequences": 1, "repetition_penalty": 1.4}),
    ],
    ids=["one row", "one token", "rows that end", "penalty"],
)
def test_each_token_is_a_call_with_one_id_per_row(
    pair: tuple[Any, Any], inputs: dict[str, Tensor], settings: dict[str, Any]
) -> None:
    expected, found = streams(pair, inputs, **settings)
    assert found.calls == expected.calls
    assert found.values[1].shape == (len(inputs["input_ids"]),)
    assert found.calls.count("end") == 1


def test_sampled_tokens_come_in_calls_of_the_same_form(pair: tuple[Any, Any]) -> None:
    forms = []
    for model in pair:
        torch.manual_seed(3)
        recorder, ids = recorded(
            model, {"input_ids": batch(2, 5)}, do_sample=True, num_return_sequences=2, eos_token_id=None
        )
        assert torch.equal(torch.stack(recorder.values[1:], 1), ids[:, 5:])
        forms.append([call if call == "end" else call[:3] for call in recorder.calls])
    assert forms[0] == forms[1]


def test_with_prompt_lookup_a_step_without_accepted_drafts_is_the_same_call(pair: tuple[Any, Any]) -> None:
    """Of a text in which no two tokens come twice, so that neither side has a draft."""
    theirs, _ = pair
    inputs = next(
        {"input_ids": ids}
        for ids in (batch(1, 5, seed) for seed in range(99))
        if has_no_repeated_token(theirs.generate(ids, max_new_tokens=6, eos_token_id=None)[0].tolist())
    )
    expected, found = streams(pair, inputs, prompt_lookup_num_tokens=4, max_new_tokens=6)
    assert found.calls == expected.calls
    assert [value.shape for value in found.values[1:]] == [(1, 1)] * 6
    # A penalty makes each choice depend on the one before, so no draft is used, yet the form stays.
    found, ids = recorded(pair[1], inputs, prompt_lookup_num_tokens=4, repetition_penalty=1.5)
    assert {value.shape for value in found.values[1:]} == {(1, 1)}
    assert torch.equal(torch.cat(found.values, 1), ids)


def has_no_repeated_token(ids: list[int]) -> bool:
    return len(set(ids)) == len(ids)


@pytest.mark.parametrize("drafts", [1, 3, 10])
@pytest.mark.parametrize("do_sample", [False, True])
def test_with_prompt_lookup_the_tokens_of_a_step_are_one_call(
    pair: tuple[Any, Any], drafts: int, do_sample: bool
) -> None:
    """The steps differ from transformers', which drafts at the prompt already; the form of calls does not."""
    for model in pair:
        torch.manual_seed(5)
        settings = {"prompt_lookup_num_tokens": drafts, "max_new_tokens": 60}
        if do_sample:
            settings |= {"do_sample": True, "top_k": 2, "temperature": 0.01}
        recorder, ids = recorded(model, {"input_ids": batch(1, 6).repeat(1, 3)}, **settings)
        assert torch.equal(torch.cat(recorder.values, 1), ids)
        prompt, *steps = recorder.values
        assert prompt.shape == (1, 18)
        assert {(value.ndim, value.dtype, value.device.type) for value in steps} == {(2, torch.int64, "cpu")}
        counts = [value.shape[1] for value in steps]
        assert 1 < max(counts) <= drafts + 1
        assert recorder.calls[-1] == "end"
        assert recorder.calls.count("end") == 1


def test_a_text_that_ends_within_a_step_is_put_up_to_its_end(pair: tuple[Any, Any]) -> None:
    inputs = {"input_ids": batch(1, 6).repeat(1, 3)}
    settings = {"prompt_lookup_num_tokens": 10, "max_new_tokens": 60}
    whole, _ = recorded(pair[1], inputs, **settings)
    starts = [0]
    for value in whole.values[1:]:
        starts.append(starts[-1] + value.shape[1])
    begin, end = next((begin, end) for begin, end in pairwise(starts) if end - begin > 3)
    # By its length, which ends in the middle of the step, and by a criterion.
    for ended in (
        {"max_new_tokens": begin + 2},
        {"stopping_criteria": [lambda ids, scores: torch.tensor([ids.shape[1] >= 18 + begin + 2])]},
    ):
        found, ids = recorded(pair[1], inputs, **settings | ended)
        assert torch.equal(torch.cat(found.values, 1), ids)
        assert ids.shape[1] == 18 + begin + 2
        assert found.calls.count("end") == 1
        assert found.calls[-1] == "end"
