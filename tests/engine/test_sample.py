"""The sampler against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from adept_fast.arguments import ParameterError
from adept_fast.ops import INVALID, sample
from adept_fast.ops.sample import uniform
from adept_fast.sampling import Sampler, SamplingParams

VOCAB = 40
DRAWS = 50_000


def logits_of_interest() -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2


def defined_distribution(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """Temperature, then top-k, top-p and min-p, spelled out one token at a time."""
    weights = [math.exp(value / temperature) for value in logits.double().tolist()]
    order = sorted(range(len(weights)), key=lambda index: -weights[index])
    kept = order[: top_k or len(order)]
    whole = sum(weights[index] for index in kept)
    nucleus, mass = [], 0.0
    for index in kept:
        if mass >= top_p * whole:
            break
        nucleus.append(index)
        mass += weights[index]
    kept = [index for index in nucleus if weights[index] >= min_p * weights[order[0]]]
    total = sum(weights[index] for index in kept)
    return [weights[index] / total if index in kept else 0.0 for index in range(len(weights))]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.5, 0, 1.0, 0.0),
        (1.7, 0, 1.0, 0.0),
        (1.0, 5, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 0, 0.7, 0.0),
        (1.0, 0, 1.0, 0.1),
        (1.3, 12, 0.8, 0.05),
        (1.0, 10_000, 1e-9, 0.0),
    ],
)
def test_draws_follow_the_definition(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = logits_of_interest()
    rows = DRAWS
    drawn = sample(
        logits.expand(rows, -1),
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k),
        top_p=torch.full((rows,), top_p),
        min_p=torch.full((rows,), min_p),
        seed=torch.full((rows,), 1234),
        positions=torch.arange(rows),
    )
    expected = torch.tensor(defined_distribution(logits, temperature, top_k, top_p, min_p)).double() * rows
    counts = torch.bincount(drawn, minlength=VOCAB).double()
    assert counts[expected == 0].sum() == 0
    # Cells with few draws expected are pooled, as the test asks for.
    common = expected >= 10
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    predicted = [*expected[common].tolist(), expected[~common].sum().item()]
    pairs = [(seen, want) for seen, want in zip(observed, predicted, strict=True) if want > 0]
    if len(pairs) > 1:
        assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > 1e-3


# The ends of what SamplingParams allows, alone and together.
EXTREMES = [
    {"temperature": temperature, **others}
    for temperature in (1e-20, 1.0, 1e20)
    for others in (
        {},
        {"top_k": 3},
        {"top_k": 2**31 - 1},
        {"top_p": 5e-324},
        {"top_p": 1e-46},
        {"top_p": 1e-30},
        {"top_p": 1 - 2**-53},
        {"min_p": 5e-324},
        {"min_p": 1e-40},
        {"min_p": 1 - 2**-53},
        {"repetition_penalty": 1e-10},
        {"repetition_penalty": 1e10},
        {"repetition_penalty": 1e10, "top_k": 5, "top_p": 0.5, "min_p": 1e-300},
    )
]


def defined_choice(logits: torch.Tensor, seen: list[int], params: SamplingParams, position: int) -> set[int]:
    """What may be drawn, in float64 and with the parameters as they are: one id, or two where a draw falls on
    their border."""
    values = logits.double().tolist()
    for index in seen:
        penalty = params.repetition_penalty
        values[index] = values[index] / penalty if values[index] > 0 else values[index] * penalty
    scaled = [value / params.temperature for value in values]
    highest = max(scaled)
    weights = [math.exp(max(value - highest, -1e4)) for value in scaled]
    order = sorted(range(len(values)), key=lambda index: -values[index])
    order = order[: params.top_k or len(order)]
    whole = math.fsum(weights[index] for index in order)
    kept, mass = [], 0.0
    for index in order:
        if kept and mass >= params.top_p * whole:
            break
        kept.append(index)
        mass += weights[index]
    kept = sorted(index for index in kept if weights[index] >= params.min_p)
    drawn = float(uniform(torch.tensor([params.seed]), torch.tensor([position])))
    total = math.fsum(weights[index] for index in kept)
    found, below = set(), 0.0
    for index in kept:
        above = below + weights[index] / total
        if below - 1e-6 <= drawn < above + 1e-6 and weights[index] > 0:
            found.add(index)
        below = above
    return found


@pytest.mark.parametrize("skips_unused", [True, False])
@pytest.mark.parametrize("settings", EXTREMES, ids=str)
def test_the_ends_of_the_ranges_are_exact(settings: dict[str, float], skips_unused: bool) -> None:
    rows = 24
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(rows, VOCAB, generator=generator) * 8
    logits[rows // 2 :] -= 40  # all below 0
    seen = [1, 5, 7, 30]
    sampler = Sampler(rows, VOCAB, torch.device("cpu"), skips_unused=skips_unused)
    params = [SamplingParams(**settings, seed=2**63 - 1 - row) for row in range(rows)]  # type: ignore[arg-type]
    for row in range(rows):
        sampler.start(row, params[row], seen)
    chosen = sampler.choose(logits, torch.arange(rows), torch.arange(rows)).tolist()
    penalised = seen if "repetition_penalty" in settings else []
    for row in range(rows):
        allowed = defined_choice(logits[row], penalised, params[row], row + 1)
        assert chosen[row] in allowed, row
        assert len(allowed) <= 2


def test_what_overflows_is_the_likeliest() -> None:
    logits = torch.tensor([[1e30, 2e30, 3.0], [-1e30, -2e30, -3e38], [1.0, 2.0, 3.0]])
    chosen = sample(
        logits, temperature=torch.tensor([1e-20, 1e-20, 1.0]), seed=torch.arange(3), positions=torch.arange(3)
    )
    assert chosen[:2].tolist() == [1, 0]
    assert 0 <= chosen[2] < 3


def test_uniform_is_uniform_over_seeds_and_over_positions() -> None:
    many = torch.arange(DRAWS)
    for seeds, positions in ((many, torch.zeros_like(many)), (torch.full_like(many, 7), many)):
        values = uniform(seeds, positions)
        assert 0 <= values.min() <= values.max() < 1
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
        neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
        assert abs(neighbours) < 4 / math.sqrt(DRAWS)


def test_uniform_is_splitmix64() -> None:
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    for seed, position in ((0, 0), (1, 0), (0, 1), (2**63 - 1, 16383), (12345, 678)):
        expected = (mix((mix((seed + golden) & mask) + position * golden) & mask) >> 11) * 2.0**-53
        assert uniform(torch.tensor([seed]), torch.tensor([position])).item() == expected


def test_zero_temperature_is_argmax_also_beside_rows_that_are_drawn() -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    temperature = torch.tensor([0.0, 5.0, 0.0, 5.0, 0.0, 5.0])
    chosen = sample(logits, temperature=temperature, seed=torch.arange(6), positions=torch.arange(6))
    assert torch.equal(chosen[::2], logits.argmax(-1)[::2])
    assert torch.equal(sample(logits), logits.argmax(-1))


def test_repetition_penalty_is_as_transformers_has_it() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    ids = torch.tensor([[3, 5, 5, 17, int(logits.argmax())]])
    seen = torch.zeros(1, VOCAB, dtype=torch.bool)
    seen[0, ids[0]] = True
    for penalty in (0.5, 1.3, 50.0):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone()).argmax(-1)
        assert torch.equal(sample(logits, repetition_penalty=torch.tensor([penalty]), seen=seen), expected)


def test_logits_that_are_no_distribution_are_marked() -> None:
    logits = torch.zeros(5, VOCAB)
    logits[1, 3] = float("nan")
    logits[2, 4] = float("inf")
    logits[3] = float("-inf")
    logits[4, 5:] = float("-inf")
    for temperature in (None, torch.ones(5)):
        chosen = sample(logits, temperature=temperature, seed=torch.arange(5), positions=torch.arange(5))
        assert (chosen[1:4] == INVALID).all()
        assert 0 <= chosen[0] < VOCAB
        assert 0 <= chosen[4] < 5


def test_a_row_draws_the_same_in_any_slot_and_any_company() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5))
    params = [
        SamplingParams(temperature=0.9, top_k=9, seed=11),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.4, top_p=0.8, repetition_penalty=1.5, seed=13),
    ]
    prompt = torch.tensor([1, 2, 3])

    def chosen(slots: list[int], rows: list[int]) -> list[int]:
        sampler = Sampler(8, VOCAB, torch.device("cpu"))
        for slot, row in zip(slots, rows, strict=True):
            sampler.start(slot, params[row], prompt.tolist())
        positions = torch.tensor([20 + row for row in rows])
        return sampler.choose(logits[rows], torch.tensor(slots), positions).tolist()

    together = chosen([0, 1, 2], [0, 1, 2])
    assert chosen([7, 3, 5], [2, 0, 1]) == [together[2], together[0], together[1]]
    assert [chosen([4], [row])[0] for row in range(3)] == together


def test_a_slot_forgets_what_its_last_sequence_saw() -> None:
    sampler = Sampler(1, VOCAB, torch.device("cpu"))
    logits = torch.zeros(1, VOCAB)
    logits[0, 7], logits[0, 8] = 2.0, 1.5
    params = SamplingParams(repetition_penalty=4.0)

    def choose() -> int:
        return int(sampler.choose(logits, torch.tensor([0]), torch.tensor([1])))

    sampler.start(0, params, [1])
    assert [choose(), choose()] == [7, 8]
    sampler.start(0, params, [1])
    assert choose() == 7


def test_what_the_host_leaves_out_changes_nothing() -> None:
    params = [
        SamplingParams(),
        SamplingParams(temperature=0.9, top_k=9, seed=11),
        SamplingParams(temperature=1.4, top_p=0.8, min_p=0.05, repetition_penalty=1.5, seed=13),
        SamplingParams(repetition_penalty=1.5),
    ]
    generator = torch.Generator().manual_seed(9)
    for count in range(1, 5):
        samplers = [
            Sampler(5, VOCAB, torch.device("cpu"), skips_unused=skips_unused)
            for skips_unused in (True, False)
        ]
        slots = torch.tensor([*range(count), -1])  # the last row is of no sequence
        for sampler in samplers:
            for slot in range(count):
                sampler.start(slot, params[slot], [1, 2, 3])
        for position in range(30):
            logits = 2 * torch.randn(count + 1, VOCAB, generator=generator)
            chosen = [
                sampler.choose(logits, slots, torch.full((count + 1,), position))[:-1] for sampler in samplers
            ]
            assert torch.equal(*chosen)


def test_a_row_of_no_sequence_is_not_seen_by_any() -> None:
    sampler = Sampler(2, VOCAB, torch.device("cpu"))
    params = SamplingParams(repetition_penalty=4.0)
    for slot in (0, 1):
        sampler.start(slot, params, [1])
    logits = torch.zeros(3, VOCAB)
    logits[:2, 7], logits[:2, 8], logits[2, 9] = 2.0, 1.5, 1.0
    chosen = sampler.choose(logits, torch.tensor([0, 1, -1]), torch.tensor([1, 1, 1]))
    assert chosen[:2].tolist() == [7, 7]
    logits = torch.zeros(2, VOCAB)
    logits[:, 9], logits[:, 8] = 2.0, 1.5
    assert sampler.choose(logits, torch.tensor([1, 0]), torch.tensor([2, 2])).tolist() == [9, 9]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -0.1, "temperature is -0.1; expected 0, or a number from 1e-20 to 1e\\+20"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", 1e300, "temperature is 1e\\+300; expected 0, or a number from 1e-20"),
        ("temperature", 1e-38, "temperature is 1e-38"),
        ("temperature", 5e-324, "temperature is 5e-324"),
        ("temperature", 10**400, "temperature is an integer of 1329 bits; expected 0, or"),
        (
            "repetition_penalty",
            1e300,
            "repetition_penalty is 1e\\+300; expected a number from 1e-10 to 1e\\+10",
        ),
        ("repetition_penalty", 1e-40, "repetition_penalty is 1e-40"),
        ("repetition_penalty", math.inf, "repetition_penalty is inf"),
        ("repetition_penalty", math.nan, "repetition_penalty is nan"),
        ("top_p", math.nan, "top_p is nan"),
        ("top_p", -math.inf, "top_p is -inf"),
        ("min_p", math.nan, "min_p is nan"),
        pytest.param("min_p", 10**5000, "min_p is an integer of ", id="min_p of many digits"),
        (
            "top_k",
            10**400,
            "top_k is an integer of 1329 bits; expected an integer from 0 to 2147483647",
        ),
        pytest.param(
            "max_new_tokens",
            -(10**5000),
            "max_new_tokens is a negative integer of .* bits",
            id="max_new_tokens of many digits",
        ),
        ("seed", 2**64, "seed is 18446744073709551616; expected an integer from 0 to 9223372036854775807"),
        ("seed", 10**400, "seed is an integer of "),
        ("logprobs", 10**400, "logprobs is an integer of "),
        ("stop_token_ids", [10**400], "stop_token_ids is an integer of "),
        ("prompt_lookup", 10**400, "prompt_lookup is an integer of "),
        ("top_p", 0.0, r"top_p is 0.0; expected a number in \(0, 1\]"),
        ("top_p", 1.01, r"top_p is 1.01; expected a number in \(0, 1\]"),
        ("min_p", 1.0, r"min_p is 1.0; expected a number in \[0, 1\)"),
        ("min_p", -0.5, "min_p"),
        ("top_k", -1, "top_k is -1; expected an integer from 0"),
        ("top_k", 2.5, "top_k is 2.5"),
        ("repetition_penalty", 0, "repetition_penalty is 0; expected a number from 1e-10"),
        ("max_new_tokens", -1, "max_new_tokens is -1"),
        ("max_new_tokens", True, "max_new_tokens is True"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**63, "seed"),
        ("stop", "", "stop"),
        ("stop", ("a", 3), "stop"),
        ("stop", 3, "stop is 3; expected a string, or a list of strings"),
        ("stop_token_ids", (-1,), "stop_token_ids is -1"),
        ("logprobs", -1, "logprobs is -1"),
        ("temperature", "hot", "temperature is 'hot'"),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: object, expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        SamplingParams(**{field: value})


def test_one_stop_string_is_as_good_as_a_tuple() -> None:
    assert SamplingParams(stop="end").stop == SamplingParams(stop=["end"]).stop == ("end",)
