"""A model on several ranks against the same model on one, and against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from rank_threads import on_ranks, parallel, part_of, tokens
from torch import Tensor

from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.config import PersimmonConfig
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon, Segment
from adept_fast.ops.ranks import ONE_RANK, Ranks

CONFIGS = {
    "even": small_config(),
    "odd": small_config(intermediate_size=190, vocab_size=4130),
    "tied": small_config(tie_word_embeddings=True, qk_layernorm=False),
    "unused rows": small_config(vocab_size=9000),  # the last rank has none that the tokenizer uses
}
IDS = [3, 4000, 17, 2048, 1029, 7, 3100, 999, 5]
FORMATS = [None, "int8", "int4", "int4-g32"]


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    config, folder = CONFIGS[request.param], tmp_path_factory.mktemp("model")
    return open_checkpoint(write_huggingface(folder, config, random_tensors(config), demo_tokenizer()))


def all_logits(model: Persimmon, cache: StaticKVCache) -> list[Tensor]:
    """Of a prompt in two chunks, as scores take them; then of three steps."""
    states = [
        model.prefill_chunk([Segment(1, 0, IDS[:4])], cache),
        model.prefill_chunk([Segment(1, 4, IDS[4:])], cache),
    ]
    found = [model.all_logits(torch.cat(states)), model.logits(states[1][-1:])]
    for at, token_id in enumerate([5, 1234, 4001], start=len(IDS)):
        found.append(model.decode_step(tokens([token_id]), tokens([1]), tokens([at]), cache, at + 1))
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("count", [2, 4])
def test_logits_are_those_of_one_rank(checkpoint: Checkpoint, count: int, weights: str | None) -> None:
    """To float32's rounding: 8-bit products round activations too, by a scale of the rank's own neurons."""
    settings = {"weights": weights, "cache_dtype": "float32"}  # which rounds no keys and values
    one = parallel(checkpoint, 1, all_logits, **settings)
    several = parallel(checkpoint, count, all_logits, **settings)
    for found, expected in zip(several, one, strict=True):
        assert found.shape == expected.shape
        assert relative(found, expected) < (2e-6 if weights is None else 3e-4)


def transformers_logits(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    from transformers import PersimmonForCausalLM

    with torch.inference_mode():
        model = PersimmonForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float64).eval()
        logits: Tensor = model(torch.tensor([ids])).logits[0].float()
    return logits


@pytest.mark.parametrize("count", [2, 4])
def test_logits_are_those_of_transformers_in_float64(checkpoint: Checkpoint, count: int) -> None:
    scored, _, *steps = parallel(checkpoint, count, all_logits, cache_dtype="float32")
    expected = transformers_logits(checkpoint, [*IDS, 5, 1234, 4001])
    used = checkpoint.tokenizer.vocab_size
    assert relative(scored, expected[: len(IDS)]) < 2e-6
    for at, step in enumerate(steps, start=len(IDS)):
        assert relative(step, expected[at : at + 1, :used]) < 2e-6


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("count", [2, 4])
def test_bits_do_not_depend_on_company(checkpoint: Checkpoint, count: int, weights: str | None) -> None:
    """A token alone has the bits that it has among others, of other sequences and of its own."""

    def alone(model: Persimmon, cache: StaticKVCache) -> list[Tensor]:
        model.prefill_chunk([Segment(2, 0, IDS)], cache)
        return [
            model.decode_step(tokens([7 + i]), tokens([2]), tokens([len(IDS) + i]), cache, 32)
            for i in range(3)
        ]

    def among_others(model: Persimmon, cache: StaticKVCache) -> list[Tensor]:
        model.prefill_chunk([Segment(0, 0, [9, 8, 7]), Segment(2, 0, IDS), Segment(3, 0, IDS[:5])], cache)
        at = len(IDS)
        slots, positions = tokens([0, 2, 2, 2, 3, -1]), tokens([3, at, at + 1, at + 2, 5, 0])
        logits = model.decode_step(tokens([1, 7, 8, 9, 2, 0]), slots, positions, cache, 32)
        return list(logits[1:4, None])

    one, many = (parallel(checkpoint, count, use, weights=weights) for use in (alone, among_others))
    for found, expected in zip(many, one, strict=True):
        assert torch.equal(found, expected)


def test_ranks_hold_equal_parts(checkpoint: Checkpoint) -> None:
    """Of weights, cache and down-projection: the active neurons of all ranks are those of one."""

    def use(ranks: Ranks) -> tuple[list[int], int]:
        model, cache = part_of(checkpoint, ranks)
        model.prefill_chunk([Segment(0, 0, IDS)], cache)
        model.decode_step(tokens([5]), tokens([0]), tokens([len(IDS)]), cache, len(IDS) + 1)
        return model.neuron_counts.tolist(), cache.data.nbytes

    ((counts, cache_bytes),) = [use(ONE_RANK)]
    parts = on_ranks(4, use)
    assert [sum(part[0][at] for part in parts) for at in range(2)] == counts
    assert [part[1] for part in parts] == [cache_bytes // 4] * 4


@pytest.mark.parametrize("fault", ["no sum", "bias", "vocabulary"])
def test_planted_faults_are_found(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config: PersimmonConfig = CONFIGS["even"]
    checkpoint = open_checkpoint(
        write_huggingface(tmp_path, config, random_tensors(config), demo_tokenizer())
    )
    one = parallel(checkpoint, 1, all_logits)
    original: dict[str, Callable[..., Any]] = {
        name: getattr(Ranks, name) for name in ("addend", "gathered", "sum")
    }
    if fault == "bias":
        monkeypatch.setattr(Ranks, "addend", lambda self, x: x)
    elif fault == "vocabulary":
        monkeypatch.setattr(
            Ranks, "gathered", lambda self, x, widths: original["gathered"](self, x, widths).flip(1)
        )
    else:
        monkeypatch.setattr(Ranks, "sum", lambda self, x: x)
    several = parallel(checkpoint, 2, all_logits)
    assert relative(several[0], one[0]) > 1e-3
