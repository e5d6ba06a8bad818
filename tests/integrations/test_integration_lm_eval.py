"""``adept-fast`` as a model of lm-eval, against transformers' model in plain loops."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from transformers import PersimmonForCausalLM

from adept_fast.arguments import ParameterError
from adept_fast.chat.chat_template import ChatTemplate
from adept_fast.checkpoint import CheckpointError, demo_path

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'lm-eval>=0.4.13,<0.5')")
pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")

from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval_requests import EXACT, request, texts  # noqa: E402

from adept_fast.integrations.lm_eval import AdeptFastLM  # noqa: E402
from adept_fast.integrations.lm_eval.generation import _NEUTRAL, generation_params  # noqa: E402
from adept_fast.sampling import SamplingParams  # noqa: E402

MAX_LENGTH = 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(vocab_size=4200)  # more rows than the tokenizer has pieces
    return write_huggingface(
        tmp_path_factory.mktemp("small") / "model", config, random_tensors(config), demo_tokenizer()
    )


@pytest.fixture(scope="module")
def reference(directory: Path) -> PersimmonForCausalLM:
    return PersimmonForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=[1, 3, 16])
def model(request: pytest.FixtureRequest, directory: Path) -> AdeptFastLM:
    return AdeptFastLM(str(directory), batch_size=request.param, max_length=MAX_LENGTH, **EXACT)


@torch.no_grad()
def plain_score(
    reference: PersimmonForCausalLM, context: list[int], ids: list[int], max_length: int = MAX_LENGTH
) -> tuple[float, bool]:
    """One sequence, read whole, cut at its left: what lm-eval defines."""
    whole = (context + ids)[-(max_length + 1) :]
    logprobs = reference(torch.tensor([whole[:-1]])).logits[0].double().log_softmax(-1)  # [tokens, vocab]
    rows = logprobs[len(logprobs) - len(ids) :]
    return float(sum(rows[at, i] for at, i in enumerate(ids))), rows.argmax(-1).tolist() == ids


class TestScores:
    def test_continuations(self, model: AdeptFastLM, reference: PersimmonForCausalLM) -> None:
        contexts = texts(9, (1, 20), seed=1)
        pairs = [
            (context, f" {text}") for context in contexts for text in texts(3, (1, 6), seed=len(context))
        ]
        pairs += [
            (contexts[0], " is"),
            (contexts[0], " Paris"),
            (contexts[0], " is"),
        ]  # of one token, and again
        pairs += [("", "The capital"), ("a  ", "b"), (texts(1, (60, 70), seed=2)[0], " is gold")]
        answers = model.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
        encode = model.runtime.tokenizer.encode
        bos = model.runtime.tokenizer.bos_id
        for (context, text), (found, is_greedy) in zip(pairs, answers, strict=True):
            before = encode(context.rstrip()) if context else [bos]
            whole = encode(context + text) if context else [bos, *encode(text)]
            expected, greedy = plain_score(reference, before, whole[len(before) :])
            assert found == pytest.approx(expected, abs=2e-4), (context, text)
            assert is_greedy == greedy, (context, text)

    def test_greedy_continuations_are_known_as_such(
        self, model: AdeptFastLM, reference: PersimmonForCausalLM
    ) -> None:
        prompts = [[5, 6, 7, 8 + at] for at in range(5)]
        continued = [
            reference.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False, eos_token_id=-1)[
                0, 4:
            ].tolist()
            for ids in prompts
        ]
        spoilt = [[*ids[:-1], (ids[-1] + 1) % 4096] for ids in continued]
        requests = [(None, *pair) for pair in zip(prompts * 2, continued + spoilt, strict=True)]
        found = model._loglikelihood_tokens(requests, disable_tqdm=True)
        assert [is_greedy for _, is_greedy in found] == [True] * 5 + [False] * 5

    def test_whole_texts_in_windows(self, model: AdeptFastLM, reference: PersimmonForCausalLM) -> None:
        whole = ["", *texts(2, (3, 10), seed=4), *texts(3, (60, 120), seed=5)]
        found = model.loglikelihood_rolling(
            [request("loglikelihood_rolling", text) for text in whole], disable_tqdm=True
        )
        for text, total in zip(whole, found, strict=True):
            ids = model.runtime.tokenizer.encode(text)
            expected = 0.0
            # Every token once; the last window reaches back as far as it can.
            for start in range(0, len(ids), MAX_LENGTH):
                window = ids[start : start + MAX_LENGTH]
                before = [model.prefix_token_id, *ids][: start + 1]
                expected += plain_score(reference, before, window)[0]
            assert total == pytest.approx(expected, abs=1e-3), text

    def test_contexts_of_several_chunks(self) -> None:
        model = AdeptFastLM("demo", batch_size=4, **EXACT)
        reference = PersimmonForCausalLM.from_pretrained(demo_path(), dtype=torch.float32).eval()
        context = " ".join(texts(40, (9, 10), seed=6))  # of 781 tokens; a chunk has 512
        pairs = [(context[at:], text) for at in (0, 700, 900, 1200, 7) for text in (" is gold", " capital")]
        found = model.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
        for pair, (total, _) in zip(pairs, found, strict=True):
            before, whole = model.tok_encode(pair[0]), model.tok_encode("".join(pair))
            expected, _ = plain_score(reference, before, whole[len(before) :], model.max_length)
            assert total == pytest.approx(expected, abs=1e-3), len(before)

    def test_too_long_a_continuation(self, model: AdeptFastLM) -> None:
        with pytest.raises(
            ParameterError, match=f"a continuation has 41 tokens; expected at most max_length {MAX_LENGTH}"
        ):
            model._loglikelihood_tokens([(None, [5], [6] * 41)], disable_tqdm=True)


class TestGeneration:
    def test_answers_in_order_whatever_their_lengths(self) -> None:
        model = AdeptFastLM("demo", batch_size=3)
        countries = ["France", "the United Arab Emirates", "Peru", "Japan", "Italy"] * 3
        asked = [f"human: What is the capital of {country}?\n\nadept:" for country in countries]
        settings = {"until": ["\n\nhuman:"], "max_gen_toks": 32}
        found = model.generate_until(
            [request("generate_until", text, settings) for text in asked], disable_tqdm=True
        )
        expected = [model.runtime.generate(text, max_new_tokens=32).text for text in asked]
        assert found == expected
        assert found[0] == " The capital of France is Paris."

    def test_stop_strings_and_lengths(self) -> None:
        model = AdeptFastLM("demo", batch_size=2)
        prompt = "human: What is the capital of France?\n\nadept:"
        whole = " The capital of France is Paris."
        for settings, expected in [
            ({"until": "France"}, whole.partition("France")[0]),
            ({"until": ["Paris", "", "capital"]}, " The "),
            ({"until": None, "max_new_tokens": 3}, " The capital of"),
            ({"max_tokens": 2, "do_sample": False, "temperature": 0.7}, " The capital"),
        ]:
            (found,) = model.generate_until([request("generate_until", prompt, settings)], disable_tqdm=True)
            assert found == expected, settings

    def test_a_long_prompt_loses_its_beginning(self, caplog: pytest.LogCaptureFixture) -> None:
        model = AdeptFastLM("demo", max_length=64)
        prompt = "human: What is the capital of France?\n\nadept:"
        settings = {"max_gen_toks": 20}
        (found,) = model.generate_until(
            [request("generate_until", "word " * 200 + "\n\n" + prompt, settings)], disable_tqdm=True
        )
        ids = model.tok_encode("word " * 200 + "\n\n" + prompt)[-44:]
        (expected,) = model.runtime.generate([ids], max_new_tokens=20)
        assert found == expected.text
        assert "is cut to its last 44" in caplog.text

    def test_progress_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        AdeptFastLM("demo").generate_until([request("generate_until", "a", {"max_gen_toks": 2})])
        assert "Generating" in capsys.readouterr().err

    def test_repeats_of_a_sampled_prompt_differ(self) -> None:
        model = AdeptFastLM("demo", batch_size=4)
        settings = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 20, "seed": 3}
        requests = [request("generate_until", "Once upon a time", settings)] * 6
        found = model.generate_until(requests, disable_tqdm=True)
        assert len(set(found)) == 6
        assert model.generate_until(requests, disable_tqdm=True) == found

    @pytest.mark.parametrize(
        ("settings", "found"),
        [
            ({"num_beams": 4}, "generation_kwargs has num_beams 4; expected 1, which the runtime supports"),
            ({"num_beams": True}, "generation_kwargs has num_beams True; expected 1"),
            ({"length_penalty": 0.5}, "generation_kwargs has length_penalty 0.5; expected 1"),
            ({"no_repeat_ngram_size": 3}, "generation_kwargs has no_repeat_ngram_size 3; expected 0"),
            ({"bad_words_ids": [[3]]}, "generation_kwargs has bad_words_ids .*; expected None"),
            ({"early_stopping": "never"}, "generation_kwargs has early_stopping 'never'; expected False"),
            ({"use_cache": "no"}, "generation_kwargs has use_cache 'no'; expected True or False"),
            ({"max_length": 99}, "generation_kwargs has 'max_length'; expected until"),
            ({"max_tokens": 9, "temperature": "hot"}, "temperature is 'hot'; expected a number"),
            ({"max_tokens": 9, "temperature": [1]}, r"temperature is \[1\]; expected 0, or a number"),
            ({"max_tokens": "many"}, "max_tokens is 'many'; expected an integer"),
            ({"max_tokens": 9, "seed": 1.5}, "seed is 1.5; expected an integer"),
            ({"max_tokens": 9, "do_sample": "yes"}, "do_sample is 'yes'; expected True or False"),
            ({"max_tokens": 9, "until": 3}, "until is 3; expected a string, or a list of strings"),
            ({"max_tokens": 9, "until": [3]}, "stop has 3; expected strings"),
            ({"max_gen_toks": 64}, "max_gen_toks is 64; expected less than max_length 64"),
            ({"do_sample": True, "top_p": 2.0, "max_tokens": 9}, "top_p is 2.0"),
            (
                {"frequency_penalty": 3, "max_tokens": 9},
                "frequency_penalty is 3; expected a number from -2 to 2",
            ),
        ],
    )
    def test_settings_that_are_refused(self, settings: dict[str, Any], found: str) -> None:
        with pytest.raises(ParameterError, match=found):
            generation_params(settings, 64)

    def test_settings(self) -> None:
        assert generation_params({"temperature": 0.5, "top_k": 3}, 512).temperature == 0.5
        assert generation_params({"temperature": 0.5, "do_sample": False}, 512).temperature == 0
        assert generation_params({"do_sample": True}, 512).temperature == 1
        assert generation_params({}, 512).max_new_tokens == 256
        penalties = {"frequency_penalty": 0.5, "presence_penalty": -1.0, "logit_bias": {7: 2.0}}
        expected = SamplingParams(max_new_tokens=256, seed=0, **penalties)  # type: ignore[arg-type]
        assert generation_params(penalties, 512) == expected
        assert generation_params({"max_gen_toks": 7, "max_tokens": 9}, 512).max_new_tokens == 7
        assert generation_params({"max_gen_toks": "7", "temperature": "0.5"}, 512).temperature == 0.5

    def test_settings_that_change_nothing(self, reference: PersimmonForCausalLM) -> None:
        """Not even in transformers, of which they are."""
        expected = generation_params({"max_gen_toks": 7}, 512)
        ids = torch.tensor([[5, 6, 7, 8]])
        plain = {"max_new_tokens": 5, "eos_token_id": -1, "do_sample": False}
        theirs = reference.generate(ids, **plain)
        for name, allowed in _NEUTRAL.items():
            assert generation_params({"max_gen_toks": 7, name: None}, 512) == expected
            for value in allowed:
                assert generation_params({"max_gen_toks": 7, name: value}, 512) == expected
                assert torch.equal(reference.generate(ids, **plain, **{name: value}), theirs), (name, value)
        together = {name: allowed[0] for name, allowed in _NEUTRAL.items() if allowed}
        assert generation_params({"max_gen_toks": 7, "do_sample": False, **together}, 512) == expected


class TestModel:
    def test_it_is_registered(self) -> None:
        assert get_model("adept-fast") is AdeptFastLM

    @pytest.mark.parametrize(
        ("arguments", "size"),
        [
            ({}, 1),
            ({"batch_size": "4"}, 4),
            ({"batch_size": "auto:2"}, 16),
            ({"batch_size": "auto", "max_batch_size": 5}, 5),
        ],
    )
    def test_batch_sizes(self, arguments: dict[str, Any], size: int) -> None:
        assert AdeptFastLM("demo", **arguments).batch_size == size

    @pytest.mark.parametrize(
        ("arguments", "found"),
        [
            ({"batch_size": "many"}, "batch_size is 'many'; expected a positive integer or auto"),
            ({"batch_size": 2.5}, "batch_size is 2.5; expected a positive integer or auto"),
            ({"batch_size": None}, "batch_size is None"),
            ({"batch_size": "٢"}, "batch_size is '٢'"),
            ({"max_batch_size": 0, "batch_size": "auto"}, "max_batch_size is 0; expected an integer from 1"),
            ({"max_length": "long"}, "max_length is 'long'; expected an integer from 1"),
            ({"add_bos": "yes"}, "add_bos is 'yes'; expected True, False or None"),
            ({"trust_remote_code": "yes"}, "trust_remote_code is 'yes'; expected True or False"),
            ({"pretrained": "demo"}, "model_args has 'pretrained'; expected checkpoint, revision, device"),
            ({"revision": "v1"}, "revision is 'v1', and demo is a path here"),
        ],
    )
    def test_mistakes(self, arguments: dict[str, Any], found: str) -> None:
        with pytest.raises((ParameterError, CheckpointError), match=found):
            AdeptFastLM("demo", **arguments)

    def test_remote_code_is_never_run(self) -> None:
        for trusted in (True, False):
            assert AdeptFastLM("demo", trust_remote_code=trusted).batch_size == 1

    def test_chat_template(self, caplog: pytest.LogCaptureFixture) -> None:
        model = AdeptFastLM("demo")
        history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
        prompt = model.apply_chat_template(history)
        assert prompt == "|ENDOFTEXT|human: Why?\n\nadept:"
        assert "has no system role: 'Be brief.' is left out" in caplog.text
        assert model.tok_encode(prompt) == model.runtime.tokenizer.encode(
            "human: Why?\n\nadept:", add_bos=True
        )
        history += [{"role": "assistant", "content": "Because"}]
        unfinished = model.apply_chat_template(history, add_generation_prompt=False)
        assert unfinished.endswith("\n\nadept: Because")
        assert "human: " in (model.chat_template(True) or "")
        assert model.chat_template(False) is None
        assert model.tokenizer_name == "demo"

    def test_a_template_of_the_checkpoints_own(self) -> None:
        model = AdeptFastLM()
        source = "{{ bos_token }}{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
        tokenizer = model.runtime.tokenizer
        tokenizer.chat_format = ChatTemplate(source, "here")
        history = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        prompt = model.apply_chat_template(history)
        assert prompt == "|ENDOFTEXT|system=a;user=b;"
        assert model.chat_template(True) == source
        ids = model.tok_encode(prompt)
        assert ids == tokenizer.apply_chat_template(history)
        assert ids.count(tokenizer.bos_id) == 1
        assert model.tok_encode("system=a;user=b;") == ids  # the demo puts BOS before text

    def test_bos_as_asked(self) -> None:
        model = AdeptFastLM("demo", add_bos=False)
        assert model.tok_encode("Hello") == model.runtime.tokenizer.encode("Hello", add_bos=False)
        assert AdeptFastLM("demo").tok_encode("Hello") == [1, *model.tok_encode("Hello")]

    def test_what_is_written_beside_results(self) -> None:
        found = AdeptFastLM("demo", weights="int8").get_model_info()
        assert found["model_weights"] == "int8"
        assert found["model_num_parameters"] > 6_000_000

    def test_scoring_leaves_a_stream_of_another_thread_whole(self) -> None:
        model = AdeptFastLM("demo", batch_size=3, max_length=128)
        pairs = [request("loglikelihood", "The capital of France is", " Paris")]
        (expected,) = model.loglikelihood(pairs, disable_tqdm=True)
        whole = model.runtime.generate("Once upon a time", max_new_tokens=20).text
        stream = model.runtime.stream("Once upon a time", max_new_tokens=20)
        pieces = [next(stream)]
        with ThreadPoolExecutor(1) as pool:
            scored = pool.submit(model.loglikelihood, pairs, disable_tqdm=True)
            pieces += stream
            assert scored.result(timeout=60) == [expected]
        assert "".join(pieces) == whole

    def test_threads_get_what_one_gets(self) -> None:
        model = AdeptFastLM("demo", batch_size=3, max_length=128)
        pairs = [request("loglikelihood", context, " is gold") for context in texts(9, (1, 20), seed=11)]
        asked = [
            request("generate_until", text, {"max_gen_toks": 9, "until": []})
            for text in texts(7, (1, 9), seed=12)
        ]

        def both_kinds() -> tuple[Any, Any]:
            together.wait(timeout=60)
            return (
                model.loglikelihood(pairs, disable_tqdm=True),
                model.generate_until(asked, disable_tqdm=True),
            )

        together = threading.Barrier(1)
        expected = both_kinds()
        together = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            for found in [pool.submit(both_kinds) for _ in range(4)]:
                assert found.result(timeout=60) == expected
