"""Rows of logits with settings, sampled in CUDA and by the definition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from backends import Backend
from torch import Tensor

from adept_fast import ops
from adept_fast.ops.sample import uniform

# So near to where the answer changes, rounding decides: masses are float32 here, float64 in the definition.
MARGIN = 1e-6


@dataclass(frozen=True)
class Setting:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalty: float = 1.0


@dataclass
class Rows:
    """Rows to be sampled, and the settings of the slots that they are in."""

    logits: Tensor  # [rows, vocab]
    settings: list[Setting]
    seeds: Tensor
    positions: Tensor
    seen: Tensor  # [rows, vocab]

    @staticmethod
    def of(logits: Tensor, settings: list[Setting], start: int = 0) -> Rows:
        rows, vocab = logits.shape
        generator = torch.Generator().manual_seed(start)
        return Rows(
            logits,
            settings,
            torch.randint(2**62, (rows,), generator=generator),
            torch.arange(start, start + rows),
            torch.rand(rows, vocab, generator=generator) < 0.3,
        )

    def column(self, name: str) -> Tensor:
        dtype = torch.int64 if name == "top_k" else torch.float32
        return torch.tensor([getattr(setting, name) for setting in self.settings], dtype=dtype)

    def by_definition(self) -> Tensor:
        return ops.sample(
            self.logits,
            temperature=self.column("temperature"),
            top_k=self.column("top_k"),
            top_p=self.column("top_p"),
            min_p=self.column("min_p"),
            repetition_penalty=self.column("penalty"),
            seen=self.seen,
            seed=self.seeds,
            positions=self.positions,
        )

    def sampled(self, backend: Backend) -> tuple[Tensor, Tensor]:
        """The ids, and what is seen then; in slots that are not those of the rows' order."""
        rows, vocab = self.logits.shape
        slots = torch.randperm(rows + 2, generator=torch.Generator().manual_seed(rows))[:rows]

        def by_slot(values: Tensor, fill: float) -> Tensor:
            table = torch.full((rows + 2, *values.shape[1:]), fill, dtype=values.dtype)
            table[slots] = values
            return table

        seen = by_slot(self.seen, True)
        ids: Tensor = backend.run(
            "sample",
            logits=self.logits,
            slots=slots,
            positions=self.positions,
            temperature=by_slot(self.column("temperature"), 9.0),
            top_k=by_slot(self.column("top_k"), 1),
            top_p=by_slot(self.column("top_p"), 0.1),
            min_p=by_slot(self.column("min_p"), 0.9),
            repetition_penalty=by_slot(self.column("penalty"), 3.0),
            seed=by_slot(self.seeds, 7),
            seen=seen,
        )
        return ids, seen[slots]


def margin(rows: Rows, row: int) -> float:
    """How near a draw is to where another id, or another set of kept tokens, begins: a share of the whole."""
    setting = rows.settings[row]
    logits = rows.logits[row]
    penalized = torch.where(logits > 0, logits / setting.penalty, logits * setting.penalty)
    logits = torch.where(rows.seen[row], penalized, logits)
    p = (logits / torch.tensor(setting.temperature)).double().softmax(0)
    near = [1.0]
    order = p.argsort(descending=True, stable=True)
    kept = order[: setting.top_k or len(p)]
    if setting.top_p < 1:
        before = (p[kept].cumsum(0) - p[kept]) / p[kept].sum()
        limit = torch.tensor(setting.top_p).double()
        near += (before - limit).abs()[1:].tolist()  # the likeliest is always kept
        kept = kept[before < limit]
    least = torch.tensor(setting.min_p).double()
    if setting.min_p > 0:
        near.append(float((p / p.max() / least - 1).abs().min()))
    kept = kept[p[kept] >= least * p.max()].sort().values
    cumulated = p[kept].cumsum(0)
    drawn = uniform(rows.seeds[row : row + 1], rows.positions[row : row + 1])
    return min(*near, float((cumulated / cumulated[-1] - drawn).abs().min()))


def check(backend: Backend, rows: Rows, what: object = "") -> int:
    """Ids as defined, and the chosen ones seen where there is a penalty; → rows that rounding decided."""
    expected = rows.by_definition()
    ids, seen = rows.sampled(backend)
    excused = 0
    for row, setting in enumerate(rows.settings):
        if ids[row] != expected[row]:
            found = f"sample on {backend}, {what}, row {row}: {ids[row]} for {expected[row]}, {setting}"
            assert setting.temperature > 0, found
            assert margin(rows, row) < MARGIN, f"{found}, margin {margin(rows, row):.3g}"
            excused += 1
        now_seen = rows.seen[row].clone()
        if setting.penalty != 1 and ids[row] >= 0:
            now_seen[ids[row]] = True
        assert torch.equal(seen[row], now_seen), (what, row)
    return excused
