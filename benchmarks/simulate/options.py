"""Options that the simulations share, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.simulate.failures import Failures
from benchmarks.simulate.lengths import Lengths
from benchmarks.simulate.replica import Engine
from benchmarks.simulate.routing import RULES
from benchmarks.simulate.simulation import Setup
from benchmarks.simulate.sources import read_source
from benchmarks.simulate.step_times import StepTimes
from benchmarks.simulate.trace import Conversations

Command = Callable[..., None]


def take_lengths(context: click.Context, option: click.Parameter, value: str) -> Lengths:
    """``16-256``, as ``Lengths.parse`` has it."""
    try:
        return Lengths.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from None


def take_prefill(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, float], ...]:
    """``512=22.8``: tokens of a prompt, and the milliseconds of reading it."""
    found = []
    for value in values:
        tokens, _, milliseconds = value.partition("=")
        try:
            found.append((int(tokens), float(milliseconds) / 1e3))
        except ValueError:
            raise click.BadParameter(f"{value!r}; expected TOKENS=MS", context, option) from None
    return tuple(found)


def all_of(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def what_options(prompts: str, answers: str, context: int = 4096) -> Callable[[Command], Command]:
    """What clients send."""
    return all_of(
        click.option(
            "--prompts",
            default=prompts,
            show_default=True,
            metavar="TOKENS",
            callback=take_lengths,
            help="New ones of a turn.",
        ),
        click.option(
            "--answers", default=answers, show_default=True, metavar="TOKENS", callback=take_lengths
        ),
        click.option(
            "--turns", default=1, show_default=True, type=click.IntRange(min=1), help="Of a conversation."
        ),
        click.option(
            "--think",
            default=0.0,
            show_default=True,
            type=click.FloatRange(min=0),
            help="Seconds between turns, mean.",
        ),
        click.option(
            "--shared",
            default=0,
            show_default=True,
            type=click.IntRange(min=0),
            help="Tokens that all prompts begin with.",
        ),
        click.option("--context", default=context, show_default=True, type=click.IntRange(min=2)),
    )


source_options = all_of(
    click.option(
        "--step-times",
        required=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A result of simulate reality, or of gpu-check.",
    ),
    click.option("--format", default="float16", show_default=True, help="Of gpu-check's rows."),
    click.option(
        "--zeros", default=0, show_default=True, help="Percentage of inactive neurons, of gpu-check's rows."
    ),
    click.option(
        "--prefill",
        multiple=True,
        metavar="TOKENS=MS",
        callback=take_prefill,
        help="For gpu-check, which times no prompts; several times.",
    ),
    click.option("--slots", type=click.IntRange(min=1), help="[default: as measured]"),
    click.option("--max-queue", default=128, show_default=True, type=click.IntRange(min=0)),
    click.option("--step-tokens", type=click.IntRange(min=1), help="[default: as measured]"),
    click.option("--prefix-cache/--no-prefix-cache", default=True, show_default=True),
    click.option("--routing", default="least", show_default=True, type=click.Choice(RULES)),
)
failure_options = all_of(
    click.option(
        "--hours-between-failures", type=click.FloatRange(min=0, min_open=True), help="Of a replica, mean."
    ),
    click.option("--restart-seconds", default=120.0, show_default=True, type=click.FloatRange(min=0)),
)
run_options = all_of(
    click.option("--dollars-per-hour", type=click.FloatRange(min=0), help="Of a replica."),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0)),
    click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes."),
)


@contextmanager
def bad_parameters() -> Iterator[None]:
    """A ValueError within the block is a usage error."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def conversations_of(options: dict[str, Any]) -> Conversations:
    names = ("prompts", "answers", "turns", "think", "shared", "context")
    return Conversations(*(options[name] for name in names))


def source_of(options: dict[str, Any]) -> tuple[StepTimes, Engine]:
    """Raises ValueError."""
    times, engine = read_source(
        options["step_times"], options["format"], options["zeros"], options["prefill"]
    )
    changes = {name: options[name] for name in ("slots", "step_tokens") if options[name] is not None}
    return times, replace(
        engine, max_waiting=options["max_queue"], prefix_cache=options["prefix_cache"], **changes
    )


def setup_of(options: dict[str, Any], **rest: Any) -> Setup:
    """Raises ValueError."""
    times, engine = source_of(options)
    hours = options["hours_between_failures"]
    failures = Failures(
        mean_seconds=None if hours is None else 3600 * hours, restart_seconds=options["restart_seconds"]
    )
    return Setup(engine, times, failures=failures, seed=options["seed"], **rest)
