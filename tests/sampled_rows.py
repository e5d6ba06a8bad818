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
    frequency: float = 0.0
    presence: float = 0.0
    is_biased: bool = False

    @property
    def counts(self) -> bool:
        return self.frequency != 0 or self.presence != 0


@dataclass
class Rows:
    """Rows to be sampled, and the settings of the slots that they are in."""

    logits: Tensor  # [rows, vocab]
    settings: list[Setting]
    seeds: Tensor
    positions: Tensor
    seen: Tensor  # [rows, vocab]
    counts: Tensor  # [rows, vocab]
    bias: Tensor  # [rows, vocab], NaN in rows that are not biased

    @staticmethod
    def of(logits: Tensor, settings: list[Setting], start: int = 0) -> Rows:
        rows, vocab = logits.shape
        generator = torch.Generator().manual_seed(start)
        seeds = torch.randint(2**62, (rows,), generator=generator)
        seen = torch.rand(rows, vocab, generator=generator) < 0.3
        counts = torch.randint(-5, 4, (rows, vocab), generator=generator).clamp(min=0).int()
        bias = torch.randint(-40, 40, (rows, vocab), generator=generator) / 8
        bias[[not setting.is_biased for setting in settings]] = float("nan")
        return Rows(logits, settings, seeds, torch.arange(start, start + rows), seen, counts, bias)

    def only(self, chosen: list[int]) -> Rows:
        """These rows, in this order."""
        settings = [self.settings[row] for row in chosen]
        tables = self.seeds, self.positions, self.seen, self.counts, self.bias
        return Rows(self.logits[chosen], settings, *(table[chosen] for table in tables))

    def column(self, name: str) -> Tensor:
        dtype = {"top_k": torch.int64, "is_biased": torch.bool}.get(name, torch.float32)
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
            frequency_penalty=self.column("frequency"),
            presence_penalty=self.column("presence"),
            counts=self.counts,
            logit_bias=self.bias.nan_to_num(),
            seed=self.seeds,
            positions=self.positions,
        )

    def adjusted(self, row: int) -> Tensor:
        """A row's logits with its bias and penalties: float32 [vocab]."""
        setting = self.settings[row]
        logits = self.logits[row] + self.bias[row].nan_to_num()
        penalized = torch.where(logits > 0, logits / setting.penalty, logits * setting.penalty)
        logits = torch.where(self.seen[row], penalized, logits)
        return logits - self.counts[row] * setting.frequency - (self.counts[row] > 0) * setting.presence

    def sampled(self, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
        """The ids, and what is seen and counted then; in slots that are not those of the rows' order."""
        rows, vocab = self.logits.shape
        slots = torch.randperm(rows + 2, generator=torch.Generator().manual_seed(rows))[:rows]

        def by_slot(values: Tensor, fill: float) -> Tensor:
            table = torch.full((rows + 2, *values.shape[1:]), fill, dtype=values.dtype)
            table[slots] = values
            return table

        seen, counts = by_slot(self.seen, True), by_slot(self.counts, 7)
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
            frequency_penalty=by_slot(self.column("frequency"), 2.0),
            presence_penalty=by_slot(self.column("presence"), -2.0),
            is_biased=by_slot(self.column("is_biased"), True),
            seed=by_slot(self.seeds, 7),
            logit_bias=by_slot(self.bias, 3.0),
            seen=seen,
            counts=counts,
        )
        return ids, seen[slots], counts[slots]


def margin(rows: Rows, row: int) -> float:
    """How near a draw is to where another id, or another set of kept tokens, begins: a share of the whole."""
    setting = rows.settings[row]
    p = (rows.adjusted(row) / torch.tensor(setting.temperature)).double().softmax(0)
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
    """Ids as defined, and the chosen ones seen and counted as the penalties need it; → rows that rounding
    decided."""
    expected = rows.by_definition()
    ids, seen, counts = rows.sampled(backend)
    excused = 0
    for row, setting in enumerate(rows.settings):
        if ids[row] != expected[row]:
            found = f"sample on {backend}, {what}, row {row}: {ids[row]} for {expected[row]}, {setting}"
            assert setting.temperature > 0, found
            assert margin(rows, row) < MARGIN, f"{found}, margin {margin(rows, row):.3g}"
            excused += 1
        now_seen, now_counted = rows.seen[row].clone(), rows.counts[row].clone()
        if setting.penalty != 1 and ids[row] >= 0:
            now_seen[ids[row]] = True
        if setting.counts and ids[row] >= 0:
            now_counted[ids[row]] += 1
        assert torch.equal(seen[row], now_seen), (what, row)
        assert torch.equal(counts[row], now_counted), (what, row)
    return excused
