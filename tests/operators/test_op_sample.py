"""sample against its definition, row by row, and the distribution it draws from; a CPU has no kernel."""

from __future__ import annotations

import itertools

import pytest
import torch
from backends import CUDA, THIN, Backend, on
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampled_rows import MARGIN, Rows, Setting, check, margin
from scipy import stats
from torch import Tensor

from adept_fast.ops import INVALID

TILE = 2048  # logits that one block takes
INFINITY = float("inf")


GREEDY = [
    Setting(0.0),
    Setting(0.0, penalty=1.7),
    Setting(0.0, 5, 0.5, 0.1),
    Setting(0.0, frequency=0.3),
    Setting(0.0, presence=-1.1, is_biased=True),
    Setting(0.0, penalty=1.7, frequency=-0.7, presence=0.9, is_biased=True),
]
DRAWN = [
    Setting(),
    Setting(0.3),
    Setting(2.5, penalty=0.6),
    Setting(1.0, min_p=0.02),
    Setting(0.8, top_k=1),
    Setting(0.8, top_k=3),
    Setting(1.3, top_k=50, penalty=1.3),
    Setting(1.0, top_k=10**9),
    Setting(1.0, top_p=0.1),
    Setting(0.7, top_p=0.9),
    Setting(1.5, top_p=0.999),
    Setting(1.0, top_k=40, top_p=0.9),
    Setting(2.0, top_k=700, top_p=0.95, min_p=0.001, penalty=1.2),
    Setting(1.0, top_k=3, top_p=0.3, min_p=0.5),
    Setting(1.0, top_k=2, top_p=1e-9),
    Setting(1.0, is_biased=True),
    Setting(0.9, top_k=20, frequency=2.0),
    Setting(1.1, top_p=0.9, presence=1.3),
    Setting(
        1.5, top_k=700, top_p=0.95, min_p=0.001, penalty=1.2, frequency=-0.6, presence=0.4, is_biased=True
    ),
]
ENDS = [  # of what SamplingParams allows
    Setting(1e-20),
    Setting(1e20),
    Setting(1e20, top_k=7),
    Setting(1e20, top_p=0.5, min_p=1 - 2**-24),
    Setting(1.0, top_p=1e-30),
    Setting(1.0, top_p=1e-46),
    Setting(1.0, min_p=1e-40),
    Setting(1.0, top_k=9, penalty=1e10),
    Setting(1.0, top_p=0.9, penalty=1e-10),
    Setting(1e-20, penalty=1e-10),
]
VOCABS = [1, 7, 1000, TILE + 1, 4099]
if THIN:
    DRAWN, ENDS, VOCABS = [DRAWN[9], DRAWN[12], DRAWN[-1]], [ENDS[2]], [TILE + 1]


def kinds_of_logits(vocab: int) -> dict[str, Tensor]:
    """Each [vocab]."""
    generator = torch.Generator().manual_seed(vocab)
    normal = torch.randn(vocab, generator=generator)
    some = torch.rand(vocab, generator=generator)
    spike = torch.zeros(vocab)
    spike[vocab // 2] = 60.0
    outlier = torch.full((vocab,), 3.0)
    outlier[-1] = -20.0
    kinds = {
        "wide": normal * 4,
        "narrow": normal * 1e-3,
        "far from 0": normal * 3 + 500,
        "few values": (normal * 2).round(),
        "equal": torch.full((vocab,), -1.25),
        "one token": spike,
        "equal but one": outlier,
        "mostly impossible": torch.where(some < 0.9, -INFINITY, normal),
        "zeros of both signs": torch.where(some < 0.5, 0.0, -0.0),
        "falling": -torch.arange(vocab).float() / max(vocab // 20, 1),
        "nearly equal": 1 + (some * 100).floor() * 1.2e-7,
        "nearly equal but one": 3 + (some * 100).floor() * 2.4e-7,
    }
    kinds["nearly equal but one"][-1] = -20.0  # so that all others are in one bin
    kinds["mostly impossible"][vocab // 3] = 0.5
    return {name: kinds[name] for name in ("wide", "few values", "nearly equal but one")} if THIN else kinds


@pytest.mark.parametrize("vocab", VOCABS)
@on(CUDA)
def test_every_kind_of_row_with_every_setting(backend: Backend, vocab: int) -> None:
    cases = list(itertools.product(kinds_of_logits(vocab).items(), [*GREEDY, *DRAWN, *ENDS]))
    excused = 0
    for start in range(0, len(cases), 16):
        batch = cases[start : start + 16]
        logits = torch.stack([logits for (_, logits), _ in batch])
        names = [name for (name, _), _ in batch]
        excused += check(backend, Rows.of(logits, [setting for _, setting in batch], start), names)
    # A GPU's expf rounds otherwise than the emulator's, so which of the rows are excused differs too.
    assert excused <= max(2, len(cases) // 40), excused


@pytest.mark.parametrize("sort", ["wide"] if THIN else ["wide", "few values", "narrow"])
@on(CUDA)
def test_a_large_vocabulary(backend: Backend, sort: str) -> None:
    vocab = 4099 if THIN else 37 * TILE + 5
    chosen = [Setting(), Setting(0.7, top_k=50), Setting(1.0, top_p=0.9), Setting(1.2, 3000, 0.8, 0.001, 1.3)]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(chosen), vocab, generator=generator) * {"narrow": 0.01}.get(sort, 3.0)
    logits = logits.round() if sort == "few values" else logits
    assert check(backend, Rows.of(logits, chosen)) <= 1


def test_rows_that_rounding_decides_are_rare() -> None:
    """So that excusing them excuses little."""
    logits = torch.randn(200, 1000, generator=torch.Generator().manual_seed(2)) * 3
    rows = Rows.of(logits, [DRAWN[row % len(DRAWN)] for row in range(200)])
    assert sum(margin(rows, row) < MARGIN for row in range(200)) <= 4


@pytest.mark.parametrize("vocab", [60, TILE + 30])
@on(CUDA)
def test_equals_are_kept_by_id(backend: Backend, vocab: int) -> None:
    """The cut falls among equals that stand before, between and behind what is kept for sure."""
    logits = torch.zeros(vocab)
    logits[vocab - 20 : vocab : 2] = 1.0
    logits[vocab - 31] = 1.0
    zeros = int((logits == 0).sum())
    rows = 12 if THIN else 48
    for kept in (1, 5, zeros - 9, zeros - 1):
        setting = Setting(1.0, top_k=kept + vocab - zeros)
        assert check(backend, Rows.of(logits.expand(rows, -1).contiguous(), [setting] * rows), kept) == 0


@on(CUDA)
def test_two_limits_among_tokens_that_are_nearly_equal(backend: Backend) -> None:
    """Top-k and min-p, or top-p and min-p, end within one bin of logits, and not at the same one."""
    logits = torch.full((60,), -28.0)
    logits[3] = 0.0
    logits[10:50] = -1 + 1.5e-4 * torch.randperm(40, generator=torch.Generator().manual_seed(6)).float()
    middle = float(logits[10:50].sort().values[18:20].mean().exp())
    rows = 12 if THIN else 48
    for setting in (
        Setting(top_k=35, min_p=middle),
        Setting(top_k=12, min_p=middle),
        Setting(1, 38, 0.9, middle),
    ):
        assert check(backend, Rows.of(logits.expand(rows, -1).contiguous(), [setting] * rows)) == 0


@on(CUDA)
def test_rows_that_are_no_distribution(backend: Backend) -> None:
    """INVALID, whatever they are sampled by; nothing is added to what was seen and counted."""
    vocab = TILE + 5
    logits = torch.randn(12, vocab)
    for row, (at, bad) in enumerate(itertools.product((0, 77, vocab - 1), (float("nan"), INFINITY))):
        logits[row, at] = bad
    logits[6:10] = -INFINITY
    logits[8, 3] = logits[9, vocab - 1] = -5.0
    logits[10, 4] = -float("nan")
    for setting in (
        Setting(0.0),
        Setting(penalty=1.5),
        Setting(0.7, 5, 0.9, 0.1),
        Setting(0.0, frequency=-2.0, is_biased=True),
        Setting(0.7, presence=2.0, is_biased=True),
    ):
        rows = Rows.of(logits, [setting] * 12)
        assert check(backend, rows) == 0
        ids = rows.sampled(backend)[0].tolist()
        assert [row for row in range(12) if ids[row] == INVALID] == [*range(8), 10]
        assert ids[8:10] == [3, vocab - 1]


@on(CUDA)
def test_slots_that_do_not_exist(backend: Backend) -> None:
    vocab, count = 40, 3
    logits, seen = torch.randn(5, vocab), torch.zeros(count, vocab, dtype=torch.bool)
    counts = torch.zeros(count, vocab, dtype=torch.int32)
    ids = backend.run(
        "sample",
        logits=logits,
        slots=torch.tensor([-1, 2, count, 2**40, 0]),
        positions=torch.arange(5),
        temperature=torch.zeros(count),
        top_k=torch.zeros(count, dtype=torch.int64),
        top_p=torch.ones(count),
        min_p=torch.zeros(count),
        repetition_penalty=torch.full((count,), 2.0),
        frequency_penalty=torch.full((count,), 0.5),
        presence_penalty=torch.full((count,), 0.5),
        is_biased=torch.zeros(count, dtype=torch.bool),
        seed=torch.full((count,), 3),
        logit_bias=torch.full((count, vocab), float("nan")),
        seen=seen,
        counts=counts,
    ).tolist()
    assert ids == [INVALID, int(logits[1].argmax()), INVALID, INVALID, int(logits[4].argmax())]
    for table in (seen, counts):
        assert table.sum() == 2
        assert table[2, ids[1]] == table[0, ids[4]] == 1


@on(CUDA)
def test_a_row_draws_the_same_alone_and_in_any_order(backend: Backend) -> None:
    chosen = [Setting(0.0), DRAWN[-1], Setting(0.3), GREEDY[-1], DRAWN[-7 if not THIN else -1]]
    generator = torch.Generator().manual_seed(4)
    rows = Rows.of(torch.randn(len(chosen), TILE + 700, generator=generator) * 2, chosen)
    together, *_ = rows.sampled(backend)
    for schedule in backend.schedules():
        with schedule:
            assert torch.equal(rows.sampled(backend)[0], together)
    for row in range(len(chosen)):
        assert rows.only([row]).sampled(backend)[0].tolist() == [together[row]]


@on(CUDA)
def test_a_setting_out_of_range_still_gets_an_id(backend: Backend) -> None:
    """Such settings are refused before; here they may give any token, and touch nothing else."""
    odd = [
        Setting(float("nan")),
        Setting(-1.0),
        Setting(1e-45),
        Setting(INFINITY),
        Setting(top_p=0.0),
        Setting(top_p=-1.0),
        Setting(top_p=float("nan")),
        Setting(min_p=2.0),
        Setting(min_p=float("nan")),
        Setting(top_k=-3),
        Setting(penalty=0.0),
        Setting(penalty=float("nan")),
        Setting(penalty=1e-45),
        Setting(penalty=-2.0, top_k=5),
        Setting(frequency=float("nan")),
        Setting(0.0, frequency=INFINITY),
        Setting(presence=INFINITY, top_k=4),
        Setting(0.0, presence=float("nan")),
    ]
    for logits in (torch.randn(len(odd), 50) * 3, torch.zeros(len(odd), 50)):
        ids, *_ = Rows.of(logits, odd).sampled(backend)
        assert ((ids >= 0) & (ids < 50)).all()


@on(CUDA)
def test_no_rows_and_no_vocabulary(backend: Backend) -> None:
    ids, *_ = Rows.of(torch.zeros(0, 5), []).sampled(backend)
    assert ids.shape == (0,)
    with pytest.raises(RuntimeError, match="sample: "):
        Rows.of(torch.zeros(1, 0), [Setting()]).sampled(backend)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(9.0, top_k=29),
        Setting(1.0, top_k=6),
        Setting(1.0, top_p=0.8),
        Setting(1.3, 12, 0.8, 0.05),
        Setting(1.0, 12, frequency=0.5, presence=-1.0, is_biased=True),
    ],
    ids=str,
)
@on(CUDA)
def test_draws_follow_the_distribution(backend: Backend, setting: Setting) -> None:
    """Over many positions of one seed."""
    vocab, draws = 30, 40 if THIN else 400
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 2
    rows = Rows.of(logits.expand(draws, -1).contiguous(), [setting] * draws)
    rows.seeds[:] = 1234
    for table in (rows.seen, rows.counts, rows.bias):
        table[:] = table[0].clone()
    drawn, *_ = rows.sampled(backend)
    p = (rows.adjusted(0).double() / setting.temperature).softmax(0)
    kept = p.argsort(descending=True)[: setting.top_k or vocab]
    whole = p[kept].sum()
    kept = kept[p[kept].cumsum(0) - p[kept] < setting.top_p * whole]
    kept = kept[p[kept] >= setting.min_p * p.max()]
    expected = torch.zeros(vocab, dtype=torch.float64)
    expected[kept] = p[kept] / p[kept].sum() * draws
    counts = torch.bincount(drawn, minlength=vocab).double()
    assert counts[expected == 0].sum() == 0
    # Cells with few draws expected are pooled, as the test asks for.
    common = expected >= 10
    pairs = [*zip(counts[common].tolist(), expected[common].tolist(), strict=True)]
    pairs.append((float(counts[~common].sum()), float(expected[~common].sum())))
    pairs = [(seen, want) for seen, want in pairs if want > 0]
    if len(pairs) > 1:
        assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > 1e-3


# Values of few bits, so that many are equal, and differences that float64 resolves.
some_logits = st.lists(
    st.one_of(st.integers(-40, 40).map(lambda n: n / 8), st.just(-INFINITY)), min_size=1, max_size=60
)


@settings(
    max_examples=8 if THIN else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    logits=some_logits,
    temperature=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([1.0, 0.95, 0.63, 0.3, 0.01]),
    min_p=st.sampled_from([0.0, 0.0101, 0.37, 0.99]),
    penalty=st.sampled_from([1.0, 1.5, 0.5]),
    frequency=st.sampled_from([0.0, 0.5, -1.25]),
    presence=st.sampled_from([0.0, 2.0, -0.125]),
    is_biased=st.booleans(),
    start=st.integers(0, 2**40),
)
@on(CUDA)
def test_any_row(
    backend: Backend,
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    frequency: float,
    presence: float,
    is_biased: bool,
    start: int,
) -> None:
    chosen = [Setting(temperature, top_k, top_p, min_p, penalty, frequency, presence, is_biased)] * 4
    check(backend, Rows.of(torch.tensor([logits] * 4), chosen, start))
