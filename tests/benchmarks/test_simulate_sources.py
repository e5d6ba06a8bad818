"""What a simulation is made of: step times between measured points, traces, arrivals, and growth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.cases import simulate
from benchmarks.result_file import check_report
from benchmarks.simulate import growth, reality
from benchmarks.simulate.arrivals import DAY, Arrivals
from benchmarks.simulate.autoscaler import Autoscaler
from benchmarks.simulate.failures import Failures
from benchmarks.simulate.lengths import Lengths
from benchmarks.simulate.replica import Engine
from benchmarks.simulate.request import Request
from benchmarks.simulate.simulation import Setup
from benchmarks.simulate.sources import prefill_points, read_source
from benchmarks.simulate.step_times import DecodePoint, PrefillPoint, StepTimes
from benchmarks.simulate.trace import Conversations, read_trace, write_trace

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
GPU_CHECK = RESULTS / "nvidia-h200" / "gpu-check.json"
PROMPTS = [(64, 0.019), (512, 0.0228), (2048, 0.114)]
IN_A_CLONE = pytest.mark.skipif(
    not (RESULTS.parents[1] / ".git").exists(), reason="a result names its commit, so it takes a clone"
)


# -- step times --


def grid() -> StepTimes:
    """seconds = busy · (rows + 0.01 · context of all rows); busy · (tokens + 0.001 · tokens · start)."""
    decode = [
        DecodePoint(busy, rows, context, busy * (rows + 0.01 * rows * context))
        for busy in (1, 2, 4)
        for rows in (1, 2, 8)
        for context in (10, 110)
    ]
    prefill = [
        PrefillPoint(busy, tokens, start, busy * (tokens + 0.001 * tokens * start))
        for busy in (1, 2, 4)
        for tokens in (8, 64, 512)
        for start in (0, 100)
    ]
    return StepTimes(decode, prefill, {1: 0.1, 4: 0.4}, {1: 0.01, 2: 0.03})


@given(busy=st.integers(1, 6), rows=st.integers(1, 20), context=st.integers(1, 5000))
def test_a_step_is_linear_between_points_and_beyond_them(busy: int, rows: int, context: int) -> None:
    assert grid().decode_seconds(rows, context, busy) == pytest.approx(busy * (rows + 0.01 * context))


@given(
    busy=st.integers(1, 6),
    parts=st.lists(st.tuples(st.integers(1, 600), st.integers(0, 900)), min_size=1, max_size=4),
)
def test_a_chunk_is_linear_too_whoever_its_tokens_belong_to(busy: int, parts: list[tuple[int, int]]) -> None:
    expected = sum(tokens + 0.001 * tokens * start for tokens, start in parts)
    assert grid().prefill_seconds(parts, busy) == pytest.approx(busy * expected)


def test_overheads_are_linear_in_busy_replicas_and_never_below_0() -> None:
    times = grid()
    assert times.queueing_seconds(2) == pytest.approx(0.2)
    assert times.overhead_seconds(5, 3) == pytest.approx(0.25)
    assert StepTimes(times.decode, times.prefill, {1: 0.1, 2: 0.0}).queueing_seconds(9) == 0.0


def test_step_times_survive_json() -> None:
    times = grid()
    again = StepTimes.from_json(json.loads(json.dumps(times.to_json())))
    assert again == times
    with pytest.raises(ValueError, match="no step times: 'prefill'; expected decode and prefill"):
        StepTimes.from_json({"decode": []})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: StepTimes([], []), "no points of decode or of prefill"),
        (lambda: StepTimes([DecodePoint(1, 1, 1, 0.0)], grid().prefill), "expected seconds above 0"),
        (lambda: StepTimes(grid().decode, [PrefillPoint(1, 8, 9, 1.0)]), "no point with start 0 for 1 busy"),
        (lambda: Request(0, 1), "prompt_tokens is 0; expected at least 1"),
        (lambda: Request(1, 1, shared=2), "shared is 2; expected at most prompt_tokens, 1"),
        (lambda: Request(1, 1, at=-1.0), "at is -1.0; expected seconds"),
        (lambda: Request(1, 1, think=float("nan")), "think is nan"),
        (lambda: Engine(slots=0), "slots is 0; expected at least 1"),
        (lambda: Setup(Engine(), grid(), replicas=0), "there are 0 replicas"),
        (lambda: Arrivals(0.0), "rate is 0.0; expected requests a second"),
        (lambda: Arrivals(1.0, swing=1.5), "swing is 1.5; expected 0 to 1"),
        (lambda: Arrivals(1.0, burst=2.0, burst_seconds=99.0), "shorter than the time between bursts"),
        (lambda: Failures(mean_seconds=0.0), "mean_seconds is 0.0"),
        (lambda: Failures(max_attempts=0), "max_attempts at least 1"),
        (lambda: Autoscaler(1.0, 2, 1), "1 ≤ least ≤ most"),
        (lambda: Lengths.parse("9-8"), "'9-8'; expected 1 ≤ LOW ≤ HIGH"),
        (lambda: Lengths.parse("0"), "expected 1 ≤ LOW"),
        (lambda: Lengths.parse("1-9:3"), "LOW-HIGH:MEDIAN:SIGMA"),
        (lambda: Lengths.parse("many"), "'many'; expected TOKENS, LOW-HIGH"),
        (
            lambda: Conversations(Lengths(9, 9), Lengths(9, 9), context=17),
            "may have 18 tokens; expected at most 17",
        ),
        (lambda: prefill_points([(700, 0.1)]), "a prompt has 700 tokens; expected a multiple of 512"),
    ],
)
def test_what_cannot_be_is_named(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_steps_of_a_gpu_check_are_those_that_were_measured() -> None:
    measured = json.loads(GPU_CHECK.read_text(encoding="utf-8"))["measured"]
    times, engine = read_source(GPU_CHECK, "int4", 90, PROMPTS)
    for rows in (1, 16):
        name = f"step, int4, 90% zeros, 128 positions, {rows} token{'s' * (rows > 1)}"
        assert times.decode_seconds(rows, 128 * rows) == pytest.approx(measured[name]["seconds"]["median"])
    assert engine == Engine(slots=16, step_tokens=528, keeps_answers=False)
    # Keys and values of a position are 589824 bytes, and memory is read at 4.58 TB/s: no less time than that.
    added = times.decode_seconds(1, 1129) - times.decode_seconds(1, 129)
    assert 1e3 * 589824 / 4.58e12 < added < 2e3 * 589824 / 4.58e12


def test_a_long_prompt_gives_the_time_of_its_chunks() -> None:
    times, _ = read_source(GPU_CHECK, "float16", 0, PROMPTS)
    whole = sum(times.prefill_seconds([(512, start)]) for start in (0, 512, 1024, 1536))
    assert whole == pytest.approx(0.114)
    assert times.prefill_seconds([(512, 0)]) == pytest.approx(0.0228)
    assert times.prefill_seconds([(288, 0)]) == pytest.approx((0.0228 + 0.019) / 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ('{"benchmark": "decode"}', "has no step times; expected a result of simulate reality"),
        (
            '{"benchmark": "gpu-check", "measured": {"step, int4, 0% zeros, 128 positions, 1 token": {}}}',
            "expected int4 with 0%",
        ),
    ],
)
def test_a_source_without_step_times_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_source(path, "float16", 0, PROMPTS)
    with pytest.raises(ValueError, match="times no prompts; expected them in --prefill"):
        read_source(GPU_CHECK, "float16", 0, [])


# -- what arrives --


def test_lengths_are_within_their_bounds_and_spread_as_they_say() -> None:
    numbers = np.random.default_rng(1)
    even = np.array(Lengths.parse("16-256").draw(20_000, numbers))
    assert (even.min(), even.max()) == (16, 256)
    assert np.mean(even < 64) == pytest.approx(0.5, abs=0.02)  # the middle of the logarithm
    normal = np.array(Lengths.parse("1-100000:90:0.8").draw(20_000, numbers))
    assert np.median(normal) == pytest.approx(90, rel=0.05)
    assert np.std(np.log(normal)) == pytest.approx(0.8, rel=0.05)
    assert set(Lengths.parse("7").draw(5, numbers)) == {7}


def test_arrivals_come_at_their_rate_in_every_part_of_a_day_and_in_bursts() -> None:
    numbers = np.random.default_rng(2)
    steady = np.array(Arrivals(3.0).draw(10_000.0, numbers))
    assert len(steady) == pytest.approx(30_000, rel=0.02)
    gaps = np.diff(steady)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential
    daily = np.array(Arrivals(1.0, swing=0.6).draw(DAY, numbers))
    assert len(daily) == pytest.approx(DAY, rel=0.02)
    by_hour = np.histogram(daily, 24, (0, DAY))[0] / 3600
    assert by_hour[0] == pytest.approx(0.4, abs=0.06)
    assert by_hour[12] == pytest.approx(1.6, abs=0.1)
    bursts = np.array(Arrivals(10.0, burst=11.0).draw(6000.0, numbers))
    assert len(bursts) == pytest.approx(60_000, rel=0.03)
    inside = ((bursts - 30.0) % 60.0 < 5.0).mean()
    assert inside == pytest.approx(0.5, abs=0.01)  # 5 s of 11 times the rate of the other 55 s


def test_turns_of_a_conversation_grow_and_stay_within_the_context() -> None:
    what = Conversations(Lengths(10, 20), Lengths(5, 9), turns=9, think=2.0, shared=7, context=100)
    clients = what.open_loop(Arrivals(1.0), 100.0, 4)
    assert len({request.conversation for each in clients for request in each}) == len(clients)
    for requests in clients:
        assert 1 < len(requests) < 9
        said = 7
        for at, request in enumerate(requests):
            assert 10 <= request.prompt_tokens - said <= 20
            assert (request.think > 0) == (at > 0)
            assert request.shared == 7
            said = request.prompt_tokens + request.answer_tokens
            assert said <= 100


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    what = Conversations(Lengths(10, 20), Lengths(5, 9), turns=2, think=2.0)
    clients = what.closed_loop(3, 2, 1.0, 4)
    assert [requests[0].at for requests in clients] == [0.0, 1 / 3, 2 / 3]
    write_trace(clients, tmp_path / "x.jsonl")
    assert read_trace(tmp_path / "x.jsonl") == clients


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "line 2 of x.jsonl: it is a list; expected an object"),
        ("{", "line 2 of x.jsonl: "),
        ('{"prompt_tokens": 3}', "line 2 of x.jsonl: .*answer_tokens"),
        ('{"prompt": 3}', "line 2 of x.jsonl: prompt is unknown; expected prompt_tokens, "),
        ('{"prompt_tokens": 0, "answer_tokens": 1}', "line 2 of x.jsonl: prompt_tokens is 0"),
        (
            '{"prompt_tokens": "9", "answer_tokens": 1}',
            "line 2 of x.jsonl: prompt_tokens is '9'; expected an int",
        ),
    ],
)
def test_a_wrong_line_of_a_trace_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_trace(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no request"):
        read_trace(path)


# -- growth --


@pytest.mark.parametrize(
    ("replicas", "share"), [(1, 1e-4), (10, 1e-3), (300, 0.01), (4000, 1e-4), (5, 0.2), (9, 0.1)]
)
def test_spares_are_as_few_as_the_binomial_allows(replicas: int, share: float) -> None:
    extra = growth.spares(replicas, share)
    assert binom.sf(extra, replicas + extra, share) <= 1e-3
    assert extra == 0 or binom.sf(extra - 1, replicas + extra - 1, share) > 1e-3


def test_replicas_suffice_for_a_rate_and_no_fewer_do() -> None:
    capacity = {1: 1.0, 2: 2.2, 8: 9.6}
    expected = {
        0.5: (1, True),
        1.0: (1, True),
        2.1: (2, True),
        2.3: (3, True),
        9.0: (8, True),
        12.0: (10, False),
    }
    assert {rate: growth.replicas_for(rate, capacity) for rate in expected} == expected


def test_a_fleet_costs_what_its_hours_cost() -> None:
    what = Conversations(Lengths(10, 10), Lengths(20, 20), turns=3)
    habits = growth.Users(what, 2.0, 0.5)
    assert habits.peak_rate(43_200) == 1.5
    found = growth.fleet(43_200, habits, {1: 0.25, 2: 0.5}, 0.0, 2.0)
    assert (found.replicas, found.spare, found.is_simulated) == (6, 0, False)
    assert found.dollars_a_day == 6 * 24 * 2.0
    assert 0.6 * found.dollars_a_day < found.dollars_a_day_scaled < 0.85 * found.dollars_a_day
    assert found.tokens_a_day == 43_200 * 2 * 60
    assert found.figures()["dollars_per_million_tokens"] == pytest.approx(288 / 5.184)


def test_the_capacity_that_is_found_meets_the_goal_and_a_higher_rate_does_not() -> None:
    # One slot, and a service of 0.1 s: the wait grows without bound towards 10 a second.
    times = StepTimes([DecodePoint(1, 1, 1, 1.0)], [PrefillPoint(1, 10, 0, 0.1)])
    setup = Setup(Engine(slots=1, max_waiting=None, prefix_cache=False), times)
    what = Conversations(Lengths(10, 10), Lengths(1, 1))
    goal = growth.Goal(first_token_p99=0.5, between_tokens_p50=float("inf"))
    search = growth.Search(setup, what, goal, lambda: growth_rule, 1500.0, 1)
    rate, figures = search.capacity(1, 0.3)
    assert rate == pytest.approx(search.capacity(1, 15.0)[0], rel=0.03)
    assert goal.is_met(figures)
    assert not goal.is_met(search.figures(1, 1.05 * rate))
    assert 5.0 < rate < 8.5
    hopeless = growth.Goal(first_token_p99=0.05, between_tokens_p50=1.0)
    with pytest.raises(ValueError, match="no rate meets the goal"):
        growth.Search(setup, what, hopeless, lambda: growth_rule, 100.0, 1).capacity(1, 0.1)


def growth_rule(request: Request, alive: Any, outstanding: Any) -> int:
    return int(alive[0])


# -- the command --


def call(*options: str) -> Any:
    return CliRunner().invoke(simulate.main, options)


GPU = ("--step-times", str(GPU_CHECK), "--prefill", "512=22.8", "--prefill", "2048=114")


@IN_A_CLONE
def test_a_load_is_simulated(tmp_path: Path) -> None:
    output = tmp_path / "x.json"
    load = (
        "--replicas",
        "2",
        "--rate",
        "4",
        "--seconds",
        "60",
        "--dollars-per-hour",
        "3",
        "--output",
        str(output),
    )
    result = call("load", *GPU, *load)
    assert result.exit_code == 0, result.output
    assert "simulated with the step times of NVIDIA H200, gpu-check.json, float16, 0% zeros" in result.output
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    assert report["simulated"]["rejected"] == 0
    again = call("load", "--step-times", str(output), *load)  # a result has its step times
    assert json.loads(output.read_text(encoding="utf-8"))["simulated"] == report["simulated"], again.output


@IN_A_CLONE
def test_growth_names_what_is_extrapolated(tmp_path: Path) -> None:
    output = tmp_path / "x.json"
    users = (
        "--users",
        "1000",
        "--users",
        "10000000",
        "--dollars-per-hour",
        "3",
        "--size",
        "1",
        "--size",
        "2",
    )
    result = call("growth", *GPU, *users, "--seconds", "60", "--output", str(output))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "extrapolated" in line]
    assert len(lines) == 1
    assert lines[0].startswith("10000000 ")
    small, large = json.loads(output.read_text(encoding="utf-8"))["fleets"]
    assert small["dollars_per_million_tokens"] > 10 * large["dollars_per_million_tokens"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("load", *GPU), "0 of --clients, --rate and --trace are there; expected one"),
        (("load", *GPU, "--rate", "1", "--clients", "2"), "2 of --clients, --rate and --trace"),
        (
            ("load", "--step-times", str(GPU_CHECK), "--rate", "1"),
            "times no prompts; expected them in --prefill",
        ),
        (
            ("load", *GPU, "--rate", "1", "--format", "int2"),
            "has no steps of int2 with 0% zeros; expected float16",
        ),
        (("load", *GPU, "--rate", "1", "--answers", "9-"), "'9-'; expected TOKENS"),
        (("load", "--step-times", str(GPU_CHECK), "--prefill", "9"), "'9'; expected TOKENS=MS"),
        (("load", *GPU, "--rate", "1", "--context", "100"), "expected at most 100, the context"),
        (("growth", *GPU, "--users", "9"), "--dollars-per-hour is missing"),
        (("reality", "--turns", "2"), "--turns is above 1"),
    ],
)
def test_a_wrong_option_is_named(options: tuple[str, ...], reason: str) -> None:
    result = call(*options)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.replace("│", "").split())


@IN_A_CLONE
def test_servers_are_compared_with_their_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reality, "LEAD_SECONDS", 0.3)
    output = tmp_path / "x.json"
    toy = "--model demo --replicas 2 --slots 2 --clients 2 --samples 1 --prompts 8-16 --answers 4-16"
    short = "--context 256 --seconds 1 --step-seconds 0.1 --max-others-share 9"
    result = call("reality", *toy.split(), *short.split(), "--output", str(output))
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    assert list(report["measured"]) == ["2 replicas, closed loop", "2 replicas, open loop"]
    assert report["engine"]["slots"] == 2
    for values in report["measured"].values():
        assert values["tokens_per_second"]["median"] > 0
        assert values["simulated_tokens_per_second"]["median"] > 0
    assert "the simulation is off by at most" in result.output
    load = call("load", "--step-times", str(output), "--clients", "2", "--seconds", "5")
    assert "measured in this run" in load.output
