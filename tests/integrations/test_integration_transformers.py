"""``accelerate``: generate returns what transformers' own returns."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from accelerated_models import batch, left_padded, long_model
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PersimmonForCausalLM,
    StoppingCriteria,
    TextIteratorStreamer,
    TextStreamer,
)

from adept_fast.chat.format import chat_prompt
from adept_fast.checkpoint import demo_path
from adept_fast.integrations.transformers import accelerate
from adept_fast.integrations.transformers.acceleration import Acceleration

QUESTIONS = [
    *(f"What is the capital of {name}?" for name in ("Peru", "France", "Japan", "Kenya", "Norway", "Chad")),
    *(f"What is {a} plus {b}?" for a, b in ((3, 4), (12, 30), (7, 8), (99, 1), (45, 54), (6, 60))),
    *(f"What is {a} times {b}?" for a, b in ((6, 7), (3, 3), (9, 8), (2, 11))),
    *(f"What is the chemical symbol of {name}?" for name in ("gold", "iron", "helium", "lead")),
    "Recite Humpty Dumpty.",
    "Tell me a story about a fox.",
    "Who are you?",
    "Which country has Nairobi as its capital?",
    "你好 🙂 naïve café",
]
PLAIN = [
    "Once upon a time",
    "The capital of",
    "a",
    "   spaces   and\ttabs\n\n",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "def f(x):\n    return x + 1\n",
    *(f"Prompt number {number}: {'word ' * number}" for number in range(19)),
]
PROMPTS = [chat_prompt(question) for question in QUESTIONS] + PLAIN


@pytest.fixture(autouse=True)
def _nothing_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(acceleration: Acceleration, what: str) -> None:
        raise AssertionError(f"handed over: {what}")

    monkeypatch.setattr(Acceleration, "warn_once", refuse)


def load(dtype: torch.dtype = torch.float32) -> PersimmonForCausalLM:
    return PersimmonForCausalLM.from_pretrained(demo_path(), dtype=dtype).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(demo_path(), padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="module")
def theirs() -> PersimmonForCausalLM:
    return load()


@pytest.fixture(scope="module")
def ours() -> PersimmonForCausalLM:
    return accelerate(load())


@pytest.fixture(scope="module")
def small_pair() -> tuple[PersimmonForCausalLM, PersimmonForCausalLM]:
    return long_model(), accelerate(long_model())


def both(pair: tuple[Any, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """What theirs and ours return."""
    return tuple(model.generate(*copy.deepcopy(args), **copy.deepcopy(kwargs)) for model in pair)


def assert_same(found: Any, expected: Any) -> None:
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        steps, their_steps = getattr(found, name), getattr(expected, name)
        assert (steps is None) == (their_steps is None), name
        for step, their_step in zip(steps or (), their_steps or (), strict=True):
            assert step.shape == their_step.shape
            assert step.dtype == their_step.dtype
            torch.testing.assert_close(step, their_step, atol=1e-4, rtol=0)


def test_greedy_text_of_fifty_prompts(tokenizer: Any, theirs: Any, ours: Any) -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 50
    for prompt in PROMPTS:
        expected, found = both((theirs, ours), **tokenizer(prompt, return_tensors="pt"), max_new_tokens=16)
        assert torch.equal(found, expected), prompt


@pytest.mark.parametrize("size", [2, 7, 18])
def test_greedy_text_in_batches_with_left_padding(tokenizer: Any, theirs: Any, ours: Any, size: int) -> None:
    for at in range(0, len(PROMPTS), max(11, 2 * size)):
        inputs = tokenizer(PROMPTS[at : at + size], return_tensors="pt", padding=True)
        expected, found = both((theirs, ours), **inputs, max_new_tokens=16)
        assert torch.equal(found, expected)


def test_no_step_is_transformers_own(tokenizer: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("transformers' forward was called")

    monkeypatch.setattr(PersimmonForCausalLM, "forward", refuse)
    inputs = tokenizer(PROMPTS[:3], return_tensors="pt", padding=True)
    for settings in ({}, {"do_sample": True, "top_p": 0.9}, {"repetition_penalty": 1.2}):
        assert len(ours.generate(**inputs, max_new_tokens=4, **settings)) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"eos_token_id": [11, 50, 3, 60, 7, 9], "pad_token_id": 96},
        {"eos_token_id": [11, 50, 3, 60, 7, 9], "pad_token_id": 2, "repetition_penalty": 1.5},
        {"eos_token_id": None, "pad_token_id": None},
        {"renormalize_logits": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_scores_and_logits(small_pair: tuple[Any, Any], settings: dict[str, Any]) -> None:
    inputs = left_padded([3, 9, 1, 6])
    expected, found = both(
        small_pair,
        **inputs,
        max_new_tokens=20,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **settings,
    )
    assert_same(found, expected)
    assert isinstance(found, type(expected))
    # Without scores, rows that have ended are left out, which must not show.
    expected, found = both(small_pair, **inputs, max_new_tokens=20, **settings)
    assert torch.equal(found, expected)


def test_a_penalty_counts_what_it_counts_there(small_pair: tuple[Any, Any]) -> None:
    """Padding, for one, is no text, though it may be of a token that is likely."""
    theirs, _ = small_pair
    ids = batch(1, 6)
    likely = theirs.generate(ids, max_new_tokens=8, eos_token_id=None)[0, 6:].unique().tolist()
    for pad in likely:
        padded = {
            "input_ids": torch.cat((torch.full((1, 5), pad), ids), 1),
            "attention_mask": torch.tensor([[0] * 5 + [1] * 6]),
        }
        expected, found = both(
            small_pair, **padded, max_new_tokens=8, eos_token_id=None, repetition_penalty=4.0
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True},
        {"qk_layernorm": False, "num_attention_heads": 1},
        {"hidden_size": 96, "num_attention_heads": 2, "partial_rotary_factor": 0.25, "rope_theta": 500.0},
        {"num_hidden_layers": 1, "intermediate_size": 65, "layer_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_other_configurations(config: dict[str, Any]) -> None:
    pair = (long_model(**config), accelerate(long_model(**config)))
    expected, found = both(
        pair, **left_padded([2, 17]), max_new_tokens=12, return_dict_in_generate=True, output_logits=True
    )
    assert_same(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 30},
        {"max_new_tokens": 1},
        {"max_new_tokens": 5, "max_length": 9},
        {},
        {"min_length": 0, "max_new_tokens": 7},
    ],
    ids=str,
)
def test_lengths(small_pair: tuple[Any, Any], settings: dict[str, Any]) -> None:
    expected, found = both(small_pair, batch(2, 6), eos_token_id=None, **settings)
    assert torch.equal(found, expected)


def test_past_what_the_model_was_made_for(caplog: pytest.LogCaptureFixture) -> None:
    pair = (long_model(max_position_embeddings=32), accelerate(long_model(max_position_embeddings=32)))
    expected, found = both(pair, batch(1, 20), max_new_tokens=80, eos_token_id=None)
    assert found.shape == (1, 100)
    assert torch.equal(found, expected)


def test_generate_without_a_prompt_begins_with_bos(theirs: Any, ours: Any) -> None:
    expected, found = both((theirs, ours), max_new_tokens=8, eos_token_id=None)
    assert torch.equal(found, expected)
    assert found[0, 0] == theirs.config.bos_token_id


def test_settings_have_the_precedence_that_they_have_there() -> None:
    pair = (long_model(), accelerate(long_model()))
    for model in pair:
        model.generation_config = GenerationConfig(max_new_tokens=3, repetition_penalty=1.7, eos_token_id=[4])
    ids = batch(2, 5)
    given = GenerationConfig(max_new_tokens=11, eos_token_id=[7, 8], pad_token_id=1)
    outcomes = []
    for settings in (
        {},
        {"max_new_tokens": 6},
        {"generation_config": given},
        {"generation_config": given, "max_new_tokens": 9, "repetition_penalty": 1.0},
    ):
        expected, found = both(pair, ids, **settings)
        assert torch.equal(found, expected), settings
        outcomes.append(found.shape[1])
    assert outcomes == [8, 11, 16, 14]


def test_stop_strings(tokenizer: Any, theirs: Any, ours: Any) -> None:
    inputs = tokenizer([PROMPTS[0], PROMPTS[22], PROMPTS[25]], return_tensors="pt", padding=True)
    for stops in (["a"], [" is", "fox"], ["ity"], ["never there at all"]):
        expected, found = both(
            (theirs, ours), **inputs, max_new_tokens=24, stop_strings=stops, tokenizer=tokenizer
        )
        assert torch.equal(found, expected), stops


class EndsAt(StoppingCriteria):
    """Ends each row at a column of its own; remembers all that it was shown."""

    def __init__(self, columns: list[int]) -> None:
        self.columns = columns
        self.shown: list[tuple[Tensor, int | None]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.shown.append((input_ids, None if scores is None else len(scores)))
        return torch.tensor([input_ids.shape[1] >= column for column in self.columns])


@pytest.mark.parametrize("eos", [None, [11, 50, 3]])
@pytest.mark.parametrize("output_scores", [False, True])
def test_stopping_criteria(small_pair: tuple[Any, Any], eos: list[int] | None, output_scores: bool) -> None:
    results, criteria = [], []
    for model in small_pair:
        criteria.append(EndsAt([14, 9, 20]))
        results.append(
            model.generate(
                **left_padded([5, 2, 7]),
                max_new_tokens=40,
                stopping_criteria=[criteria[-1]],
                eos_token_id=eos,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=output_scores,
            )
        )
    assert_same(results[1], results[0])
    assert results[1].sequences.shape[1] <= 20
    # Also what was shown early has not changed since.
    for (found, scores), (expected, their_scores) in zip(criteria[1].shown, criteria[0].shown, strict=True):
        assert torch.equal(found, expected)
        assert scores == their_scores


@pytest.mark.parametrize(
    "answer",
    [bool, lambda ends: torch.tensor(ends), lambda ends: torch.tensor([ends])],
    ids=["a bool", "no dimension", "one row for all"],
)
def test_criteria_that_answer_for_all_rows(small_pair: tuple[Any, Any], answer: Any) -> None:
    def ends(input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return answer(input_ids.shape[1] >= 11)

    settings = {"max_new_tokens": 20, "stopping_criteria": [ends], "eos_token_id": None}
    expected, found = both(small_pair, **left_padded([5, 2, 7]), **settings)
    assert torch.equal(found, expected)
    assert found.shape == (3, 11)


def test_texts_that_outgrow_the_cache() -> None:
    """It is made for what the model was; a row alone, guesses, and rows of several lengths."""
    pair = [long_model(max_position_embeddings=16), accelerate(long_model(max_position_embeddings=16))]
    for inputs in ({"input_ids": batch(1, 3)}, left_padded([4, 90, 30])):
        columns = [inputs["input_ids"].shape[1] + 300] * len(inputs["input_ids"])
        settings = {**inputs, "max_length": 1000, "eos_token_id": None}
        texts = [model.generate(**settings, stopping_criteria=[EndsAt(columns)]) for model in pair]
        assert torch.equal(*texts)
    fresh = accelerate(long_model(max_position_embeddings=16))
    guessed = fresh.generate(batch(1, 3), max_new_tokens=300, eos_token_id=None, prompt_lookup_num_tokens=9)
    assert torch.equal(guessed, pair[0].generate(batch(1, 3), max_new_tokens=300, eos_token_id=None))


def test_a_streamer_gets_each_token_as_it_comes(
    tokenizer: Any, theirs: Any, ours: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for model in (theirs, ours):
        model.generate(
            **tokenizer(PROMPTS[0], return_tensors="pt"),
            max_new_tokens=30,
            streamer=TextStreamer(tokenizer, skip_prompt=True),
        )
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "Lima" in said[1]


def test_a_streamer_read_from_another_thread(tokenizer: Any, ours: Any) -> None:
    inputs = tokenizer(PROMPTS[1], return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = threading.Thread(
        target=ours.generate, kwargs={**inputs, "max_new_tokens": 30, "streamer": streamer}
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    text = ours.generate(**inputs, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :]
    assert "".join(pieces) == tokenizer.decode(text, skip_special_tokens=True)
    assert len([piece for piece in pieces if piece]) > 3


def test_threads_take_turns(small_pair: tuple[Any, Any]) -> None:
    theirs, ours = small_pair
    prompts = [batch(1 + seed % 3, 4 + seed, seed) for seed in range(6)]
    found: dict[int, Tensor] = {}

    def work(at: int) -> None:
        found[at] = ours.generate(prompts[at], max_new_tokens=24, eos_token_id=None)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, prompt in enumerate(prompts):
        assert torch.equal(found[at], theirs.generate(prompt, max_new_tokens=24, eos_token_id=None))


@pytest.mark.parametrize("guesses", [1, 3, 10, 40])
def test_prompt_lookup_changes_no_token(
    tokenizer: Any, theirs: Any, ours: Any, guesses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tokenizer(
        chat_prompt("Recite Humpty Dumpty.") + " Humpty Dumpty sat on a wall, Humpty Dumpty had",
        return_tensors="pt",
    )
    expected, found = both(
        (theirs, ours),
        **inputs,
        max_new_tokens=60,
        return_dict_in_generate=True,
        output_logits=True,
    )
    looked_up = ours.generate(
        **inputs,
        max_new_tokens=60,
        prompt_lookup_num_tokens=guesses,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert_same(found, expected)
    assert_same(looked_up, expected)
    texts = []
    for lookup in (None, guesses):
        torch.manual_seed(4)
        texts.append(
            ours.generate(**inputs, max_new_tokens=40, do_sample=True, prompt_lookup_num_tokens=lookup)
        )
    assert torch.equal(*texts)
