"""A whole decode step on the CUDA kernels, with rows that have no sequence among those that have one.

What a live row computes does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import CUDA, EMULATED, THIN, Backend, in_formats, on
from checkpoints import small_config
from decode_states import read
from dispatch_double import as_cuda
from saving import checkpoint_of
from torch import Tensor

from adept_fast import ops
from adept_fast import weights as weights_module
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon
from adept_fast.quantization.formats import FORMATS as WEIGHT_FORMATS
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.weights import ModelWeights, load_weights

VOCABULARY, SLOTS, CAPACITY = 256, 6, 300
FORMATS = ["float16"] if THIN else []  # all
# Positions in one split of the attention, and in several.
LIVE = {"ids": [7, 200, 31], "slots": [4, 0, 2], "positions": [3, 280, 9]}

Load = Callable[[str], Persimmon]


@pytest.fixture
def load(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Loads a model whose operators are the kernels."""
    if backend is EMULATED:
        monkeypatch.setattr(weights_module, "layout_of", lambda *_: GpuMatrix)

    def load(fmt: str) -> Persimmon:
        packed = WEIGHT_FORMATS.get("int4-g128" if fmt == "int4" else fmt)
        floats = "float16" if packed else fmt
        config = small_config(hidden_size=128, num_attention_heads=2)
        checkpoint = checkpoint_of(tmp_path, config, getattr(torch, floats))
        weights = load_weights(
            checkpoint, dtype=getattr(torch, floats), device=backend.device, weights=packed
        )
        return Persimmon(config, aligned(weights), max_seq_len=CAPACITY, vocab_size=VOCABULARY)

    with as_cuda(backend.operators) if backend is EMULATED else nullcontext():
        yield load


def aligned(weights: ModelWeights) -> ModelWeights:
    """A copy: on a CPU weights lie where the file has them, on a GPU each begins a multiple of 256 bytes."""

    def copies(part: Any) -> dict[str, Any]:
        return {name: value.clone() for name, value in vars(part).items() if isinstance(value, Tensor)}

    layers = tuple(replace(layer, **copies(layer)) for layer in weights.layers)
    return replace(weights, layers=layers, **copies(weights))


def filled_cache(model: Persimmon) -> StaticKVCache:
    """With keys and values before the live rows' positions, and NaN everywhere else."""
    cache = StaticKVCache(model.config, max_batch_size=SLOTS, max_seq_len=CAPACITY, device=model.device)
    random = torch.randn(cache.data.shape, generator=torch.Generator().manual_seed(1))
    cache.data.copy_(random)
    for slot in range(SLOTS):
        held = dict(zip(LIVE["slots"], LIVE["positions"], strict=True)).get(slot, 0)
        cache.data[:, :, slot, :, held:] = float("nan")
    return cache


class Rows:
    """The state of a step: the live rows in some places, the others absent."""

    def __init__(self, backend: Backend, places: list[int], rows: int, absent_id: int, position: int) -> None:
        def at(values: list[int], absent: int) -> Tensor:
            column = torch.full((rows,), absent)
            column[places] = torch.tensor(values[: len(places)], dtype=torch.int64)
            return column.to(backend.device)

        self.places = places
        self.ids = at(LIVE["ids"], absent_id)
        self.slots = at(LIVE["slots"], -1)
        self.positions = at(LIVE["positions"], position)
        self.limits = torch.full((rows,), CAPACITY, device=backend.device)
        self.ends = torch.zeros(SLOTS, VOCABULARY, dtype=torch.bool, device=backend.device)
        self.counts = torch.zeros(rows, dtype=torch.int64, device=backend.device)
        self.token_ring = backend.pinned(torch.zeros(rows, 4, dtype=torch.int64))
        self.seen = torch.zeros(SLOTS, VOCABULARY, dtype=torch.bool, device=backend.device)
        self.token_counts = torch.zeros(SLOTS, VOCABULARY, dtype=torch.int32, device=backend.device)

    @torch.inference_mode()
    def step(self, model: Persimmon, cache: StaticKVCache) -> tuple[Tensor, Tensor]:
        """The logits and the chosen ids of all rows, on the CPU; the state moves on."""
        logits = model.decode_step_by_operators(self.ids, self.slots, self.positions, cache, CAPACITY)
        sampler = ops.slot_sampler(model.device)
        assert sampler is not None
        bias = torch.full(self.seen.shape, float("nan"), device=self.seen.device)
        tables = bias, self.seen, self.token_counts
        chosen = sampler(logits, self.slots, self.positions, *self._settings(), *tables)
        ops.update_decode_state(
            chosen, self.ids, self.slots, self.positions, self.limits, self.ends, self.counts, self.token_ring
        )
        return logits.cpu(), chosen.cpu()

    def _settings(self) -> tuple[Tensor, ...]:
        """Greedy slots and drawn ones, all with penalties and without a bias."""

        def setting(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.slots.device)

        long = torch.int64
        return (
            setting([0.0, 0.7] * 3),
            setting([0, 9, 0, 0, 20, 0], long),
            setting([1.0] * 6),
            setting([0.0] * 6),
            setting([1.3] * 6),
            setting([0.5] * 6),
            setting([-0.2] * 6),
            setting([False] * 6, torch.bool),
            setting([1, 2, 3, 4, 5, 6], long),
        )


def steps(model: Persimmon, rows: Rows, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """The live rows' logits and ids of each step, and the cache behind them. Checks the absent rows."""
    cache, logits, chosen = filled_cache(model), [], []
    absent = [row for row in range(len(rows.ids)) if row not in rows.places]
    before = rows.ids[absent].tolist(), rows.positions[absent].tolist()
    for step in range(1, count + 1):
        of_step = rows.step(model, cache)
        logits.append(of_step[0][rows.places])
        chosen.append(of_step[1][rows.places])
        assert not of_step[0].isnan().any()
        assert (of_step[1][absent] == ops.INVALID).all()
        words = [read(word) for word in rows.token_ring[:, step % 4].tolist()]
        assert [word[1] for word in words] == [
            int(of_step[1][row]) if row in rows.places else -2 for row in range(len(rows.ids))
        ]
        assert {word[0] for word in words} == {step}
    assert (rows.ids[absent].tolist(), rows.positions[absent].tolist()) == before
    assert rows.slots[rows.places].tolist() == LIVE["slots"]
    return torch.stack(logits), torch.stack(chosen), cache.data.cpu()


@in_formats(CUDA, FORMATS)
def test_the_bits_are_those_of_steps_without_absent_rows(backend: Backend, load: Load, fmt: str) -> None:
    """And so are the numbers of units that are read."""
    model = load(fmt)
    alone = steps(model, Rows(backend, [0, 1, 2], 3, 0, 0))
    counts = model.neuron_counts.clone()
    assert counts[0] < counts[1]
    for places, rows, absent_id, position in (
        ([0, 1, 2], 4, 5, 0),
        ([1, 3, 6], 8, 0, CAPACITY),
        ([0, 9, 15], 16, 255, -3),
    ):
        model.neuron_counts.zero_()
        together = steps(model, Rows(backend, places, rows, absent_id, position))
        for found, expected in zip(together, alone, strict=True):
            assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0)), rows
        assert torch.equal(model.neuron_counts, counts), rows


@on(CUDA)
def test_no_row_has_a_sequence(backend: Backend, load: Load) -> None:
    model = load("float16")
    rows = Rows(backend, [], 2, 5, CAPACITY)
    cache = StaticKVCache(model.config, max_batch_size=SLOTS, max_seq_len=CAPACITY, device=backend.device)
    cache.data.fill_(float("nan"))
    logits, chosen = rows.step(model, cache)
    assert not logits.isnan().any()
    assert chosen.tolist() == [ops.INVALID] * 2
    assert cache.data.isnan().all()
    assert rows.counts.tolist() == [1, 1]
    assert model.neuron_counts[0] == 0
