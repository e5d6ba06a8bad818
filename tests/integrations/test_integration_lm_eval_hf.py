"""``adept-fast`` as a model of lm-eval, against lm-eval's ``hf``; and the commands that run it."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from typing import Any

import pytest

from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import demo_path

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'lm-eval>=0.4.13,<0.5')")
pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")

from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval_requests import EXACT, request, texts  # noqa: E402

from adept_fast.integrations.lm_eval import AdeptFastLM  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT / "tools" / "evaluation" / "demo_facts.yaml"


@pytest.fixture(scope="module")
def both() -> tuple[AdeptFastLM, Any]:
    hf = get_model("hf")(str(demo_path()), device="cpu", dtype="float32", batch_size=16)
    return AdeptFastLM("demo", batch_size=16, **EXACT), hf


class TestAgainstHf:
    def test_scores(self, both: tuple[AdeptFastLM, Any]) -> None:
        pairs = [
            (context, f" {text}")
            for context in texts(5, (1, 40), seed=8)
            for text in texts(2, (1, 5), seed=9)
        ]
        pairs += [("", "The capital"), ("abc  ", "def"), (texts(1, (700, 700), seed=10)[0], " is gold")]
        requests = [request("loglikelihood", *pair) for pair in pairs]
        ours, theirs = (model.loglikelihood(requests, disable_tqdm=True) for model in both)
        for pair, (found, is_greedy), (expected, greedy) in zip(pairs, ours, theirs, strict=True):
            assert (found, is_greedy) == (pytest.approx(expected, abs=2e-3), greedy), pair

    def test_empty_texts(self, both: tuple[AdeptFastLM, Any]) -> None:
        """The same scores, and where lm-eval's own model fails, one sentence instead."""
        ours, theirs = both
        texts = ("", " ", "  ", "\n", "a", "a ")
        refused = []
        for pair in itertools.product(texts, texts):
            requests = [request("loglikelihood", *pair)]
            try:
                ((expected, greedy),) = theirs.loglikelihood(requests, disable_tqdm=True)
            except (AssertionError, IndexError):
                refused.append(pair)
                with pytest.raises(ParameterError, match="adds no token to the context '[^\n]*'; expected"):
                    ours.loglikelihood(requests, disable_tqdm=True)
            else:
                found = ours.loglikelihood(requests, disable_tqdm=True)
                assert found == [(pytest.approx(expected, abs=2e-3), greedy)], pair
        assert ("", "") in refused
        assert ("a", "") in refused
        assert len(refused) < 6
        (nothing,) = ours.loglikelihood_rolling([request("loglikelihood_rolling", "")], disable_tqdm=True)
        assert (nothing, type(nothing)) == (0.0, float)

    def test_the_task_of_facts_has_the_same_accuracy(self, both: tuple[AdeptFastLM, Any]) -> None:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        found = []
        for model in both:
            results = simple_evaluate(
                model=model,
                tasks=["adept_fast_demo_facts"],
                task_manager=TaskManager(include_path=str(FACTS.parent), include_defaults=False),
                limit=96,
                bootstrap_iters=0,
            )
            samples = results["samples"]["adept_fast_demo_facts"]
            answers = [sample["resps"][0][0].strip() for sample in samples]
            found.append((results["results"]["adept_fast_demo_facts"]["acc,none"], answers))
        assert found[0] == found[1]
        assert found[0][0] > 0.95


def test_our_command_is_lm_evals_with_the_model_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: found.append(get_model("adept-fast")))
    runpy.run_module("adept_fast.integrations.lm_eval", run_name="__main__")
    assert found == [AdeptFastLM]
