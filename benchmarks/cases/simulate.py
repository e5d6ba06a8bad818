"""Simulated replicas of the server: compared with real ones, and beyond what is here to be measured.

    python -m benchmarks simulate reality --output benchmarks/results/DEVICE/simulate-small.json
    python -m benchmarks simulate load --step-times RESULT --replicas 4 --rate 20
    python -m benchmarks simulate growth --step-times RESULT --dollars-per-hour 3 --users 1000 --users 1000000

``reality`` measures step times, starts 1, 2 and 4 servers of one thread each, loads them and their
simulation with the same requests, and prints how far the simulation is off. ``load`` simulates one load,
``growth`` finds how many replicas so many users need. A result has the step times that it was made with.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.cases.serve import checkpoint_of
from benchmarks.options import Columns, cell
from benchmarks.result_file import describe_checkpoint, describe_run, git, table, write_report
from benchmarks.serving.plan import Span
from benchmarks.serving.servers import Setting
from benchmarks.simulate import growth as growing
from benchmarks.simulate.arrivals import Arrivals
from benchmarks.simulate.autoscaler import Autoscaler
from benchmarks.simulate.calibrate import Grid, engines, measure_overheads, measure_steps
from benchmarks.simulate.figures import figures_of
from benchmarks.simulate.lengths import Lengths
from benchmarks.simulate.options import (
    bad_parameters,
    conversations_of,
    failure_options,
    run_options,
    setup_of,
    source_options,
    what_options,
)
from benchmarks.simulate.reality import COMPARED, Comparison, Row
from benchmarks.simulate.replica import Engine
from benchmarks.simulate.request import Clients
from benchmarks.simulate.routing import rule_of
from benchmarks.simulate.servers import replica_servers
from benchmarks.simulate.simulation import Setup, Simulation
from benchmarks.simulate.step_times import StepTimes
from benchmarks.simulate.trace import Conversations, read_trace
from benchmarks.workers import FLOATS
from tools.random_checkpoint import PRESETS

COLUMNS: Columns = {
    "tokens/s": ("tokens_per_second", 1.0, ".0f"),
    "first token ms": ("time_to_first_token_seconds_p50", 1e3, ".0f"),
    "end to end s": ("end_to_end_seconds_p50", 1.0, ".2f"),
}


@click.group()
def main() -> None:
    """Simulate replicas of the server."""


@main.command()
@click.option(
    "--model",
    default="small",
    show_default=True,
    help=f"demo, or {', '.join(PRESETS)}: random weights; or a PATH.",
)
@click.option("--format", default="bfloat16", show_default=True, type=click.Choice(FLOATS))
@click.option(
    "--replicas", "counts", multiple=True, default=(1, 2, 4), show_default=True, type=click.IntRange(min=1)
)
@click.option("--slots", default=8, show_default=True, type=click.IntRange(min=1))
@what_options("16-256", "16-128", 512)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(min=1), help="Of each replica.")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(min=0.5), help="A sample.")
@click.option(
    "--step-seconds",
    default=0.7,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="A sample of steps.",
)
@click.option("--samples", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--max-others-share", default=0.1, show_default=True, help="Samples that others disturb are retaken."
)
@click.option("--attempts", default=3, show_default=True, type=click.IntRange(min=1), help="At a sample.")
@click.option(
    "--again",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A result of this, whose measurements are simulated again.",
)
@run_options
def reality(**options: Any) -> None:
    """Measure step times, and compare a simulation with servers."""
    if options["turns"] > 1:
        raise click.UsageError("--turns is above 1; expected 1, as the client of the servers knows no others")
    again = options.pop("again")
    report = compared(options) if again is None else compared_again(json.loads(again.read_text("utf-8")))
    print_comparison(report)
    write_report(report, options["output"])


def compared_again(report: dict[str, Any]) -> dict[str, Any]:
    """A report with its measurements, whose requests this commit has simulated."""
    rows = {name: Row.of_rounds(values) for name, values in report["measured"].items()}
    comparison_of(report).simulate(rows)
    figures = {name: row.figures() for name, row in rows.items()}
    return report | {"measured": figures, "simulated_by_commit": git("rev-parse", "--short", "HEAD")}


def compared(options: dict[str, Any]) -> dict[str, Any]:
    """The report of a run."""
    with bad_parameters():
        what = conversations_of(options)
    counts = sorted(options["counts"])
    limits = {name: options[name] for name in ("max_others_share", "attempts")}
    samples = options["samples"]
    report = describe_run("simulate", samples, 1)
    named = ("clients", "seconds", "samples", "seed")
    report["load"] = vars(what) | {name: options[name] for name in named} | {"counts": counts}
    report["load"] |= {name: vars(getattr(what, name)) for name in ("prompts", "answers")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = checkpoint_of(options["model"], folder)
        setting = Setting(checkpoint, options["format"], 1, options["slots"], what.context)
        grid = Grid.of(
            options["slots"], what.context, counts, seconds=options["step_seconds"], samples=samples, **limits
        )
        with engines(max(counts)) as workers:
            facts = workers.load(setting)
            times = measure_steps(workers, grid)
            dropped = workers.dropped
        times.source = f"{report['device']}, {options['model']}, {options['format']}, measured in this run"
        engine = {name: value for name, value in facts.items() if name != "load_seconds"}
        with replica_servers(max(counts), setting, folder, **limits) as servers:
            measure_overheads(times, servers, options["slots"], what.context, grid)
            report |= {"step_times": times.to_json(), "engine": engine}
            rows = comparison_of(report).run(servers)
            dropped += servers.dropped
        report["model"] = describe_checkpoint(checkpoint)
    figures = {name: row.figures() for name, row in rows.items()}
    return report | {"load_seconds": facts["load_seconds"], "dropped_total": dropped, "measured": figures}


def comparison_of(report: dict[str, Any]) -> Comparison:
    """The comparison that a report is of."""
    load = report["load"]
    names = ("turns", "think", "shared", "context")
    what = Conversations(
        Lengths(**load["prompts"]), Lengths(**load["answers"]), *(load[name] for name in names)
    )
    setup = Setup(Engine(**report["engine"]), StepTimes.from_json(report["step_times"]))
    return Comparison(
        setup, what, load["counts"], load["clients"], load["seconds"], load["samples"], load["seed"]
    )


def print_comparison(report: dict[str, Any]) -> None:
    """Each compared figure: measured, simulated, and simulated over measured."""
    heads = ["median (p10 to p90)"]
    heads += [f"{name}{kind}" for name in COLUMNS for kind in ("", " simulated", " ratio")]
    rows = []
    for row, values in report["measured"].items():
        cells = [row]
        for figure, factor, form in COLUMNS.values():
            cells += [cell(values[figure], factor, form), cell(values[f"simulated_{figure}"], factor, form)]
            cells.append(cell(values[f"ratio_of_{figure}"]))
        rows.append(cells)
    click.echo(table(heads, rows))
    worst = max(
        abs(values[f"ratio_of_{name}"]["median"] - 1)
        for values in report["measured"].values()
        for name in COMPARED
    )
    click.echo(
        f"the simulation is off by at most {worst:.0%}; {report['dropped_total']} samples were retaken"
    )


@main.command()
@source_options
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--per-machine", default=1, show_default=True, type=click.IntRange(min=1), help="Replicas of a machine."
)
@what_options("16-256", "16-128")
@click.option("--clients", type=click.IntRange(min=1), help="A closed loop of so many.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="An open loop: conversations a second."
)
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Lines of JSON.")
@click.option(
    "--swing", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Of the rate in a day."
)
@click.option(
    "--burst", default=1.0, show_default=True, type=click.FloatRange(min=1), help="Times the rate, in bursts."
)
@click.option("--most-replicas", type=click.IntRange(min=1), help="They follow the load, up to so many.")
@click.option("--seconds", default=600.0, show_default=True, type=click.FloatRange(min=1))
@failure_options
@run_options
def load(**options: Any) -> None:
    """Simulate one load."""
    seconds, seed = options["seconds"], options["seed"]
    with bad_parameters():
        clients = clients_of(options)
        most = options["most_replicas"]
        scaler = None
        if most is not None:
            scaler = Autoscaler(1.0, options["replicas"], most, start_seconds=options["restart_seconds"])
        setup = setup_of(
            options,
            replicas=options["replicas"],
            per_machine=options["per_machine"],
            autoscaler=scaler,
            send_until=seconds,
        )
        if scaler is not None:
            setup = replace(setup, autoscaler=replace(scaler, target=0.7 * setup.engine.slots))
    simulation = Simulation(setup, clients, rule_of(options["routing"], setup.engine.slots))
    simulation.run()
    figures = figures_of(simulation, Span(seconds / 10, seconds, seconds), options["dollars_per_hour"])
    click.echo(f"simulated with the step times of {setup.times.source}")
    click.echo(table(["figure", "simulated"], [[name, f"{value:.4g}"] for name, value in figures.items()]))
    if options["output"] is not None:
        run = describe_run("simulate-load", 1, 1)
        simulated = {
            "seed": seed,
            "simulated": figures,
            "step_times": setup.times.to_json(),
            "engine": vars(setup.engine),
        }
        write_report(run | simulated | {"measured": {}}, options["output"])


def clients_of(options: dict[str, Any]) -> Clients:
    """Raises ValueError."""
    named = [name for name in ("clients", "rate", "trace") if options[name] is not None]
    if len(named) != 1:
        raise ValueError(f"{len(named)} of --clients, --rate and --trace are there; expected one")
    if options["trace"] is not None:
        return read_trace(options["trace"])
    what, seconds, seed = conversations_of(options), options["seconds"], options["seed"]
    if options["rate"] is not None:
        arrivals = Arrivals(options["rate"], swing=options["swing"], burst=options["burst"])
        return what.open_loop(arrivals, seconds, seed)
    # As many as a client could send if each token took a millisecond.
    shortest = options["answers"].low * options["turns"] * 1e-3 + options["think"] / 4
    return what.closed_loop(
        options["clients"], max(1, min(100_000, int(seconds / shortest))), seconds / 20, seed
    )


@main.command()
@source_options
@what_options("16-512:90:0.9", "16-1024:200:0.8")
@click.option(
    "--users", multiple=True, required=True, type=click.FloatRange(min=1), help="A day; several times."
)
@click.option(
    "--conversations",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Of a user and a day.",
)
@click.option(
    "--swing", default=0.6, show_default=True, type=click.FloatRange(0, 1), help="Of the rate in a day."
)
@click.option(
    "--first-token",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds for 99 of 100.",
)
@click.option(
    "--between-tokens", default=0.05, show_default=True, type=click.FloatRange(min=0), help="Seconds, median."
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    default=(1, 2, 4, 8, 16),
    show_default=True,
    type=click.IntRange(min=1),
    help="Replicas that are simulated.",
)
@click.option(
    "--seconds", default=600.0, show_default=True, type=click.FloatRange(min=10), help="Of a simulation."
)
@failure_options
@run_options
def growth(**options: Any) -> None:
    """Find the replicas that so many users need, and their cost."""
    if options["dollars_per_hour"] is None:
        raise click.UsageError("--dollars-per-hour is missing; expected the price of a replica")
    run = describe_run("growth", 1, 1)
    with bad_parameters():
        what, setup = conversations_of(options), setup_of(options)
        rule: Callable[[], Any] = lambda: rule_of(options["routing"], setup.engine.slots)  # noqa: E731
        goal = growing.Goal(options["first_token"], options["between_tokens"])
        search = growing.Search(setup, what, goal, rule, options["seconds"], options["seed"])
        found = growing.capacities(search, options["sizes"])
    habits = growing.Users(what, options["conversations"], options["swing"])
    capacity = {size: rate for size, (rate, _) in found.items()}
    hours = options["hours_between_failures"]
    restart = options["restart_seconds"]
    down_share = 0.0 if hours is None else restart / (3600 * hours + restart)
    fleets = [
        growing.fleet(users, habits, capacity, down_share, options["dollars_per_hour"])
        for users in sorted(options["users"])
    ]
    simulated = {
        str(size): figures | {"conversations_per_second": rate} for size, (rate, figures) in found.items()
    }
    report = run | {
        "measured": {},
        "simulated": simulated,
        "fleets": [fleet.figures() for fleet in fleets],
        "step_times": setup.times.to_json(),
        "engine": vars(setup.engine),
        "dollars_per_hour": options["dollars_per_hour"],
        "seed": options["seed"],
    }
    print_growth(report)
    write_report(report, options["output"])


def print_growth(report: dict[str, Any]) -> None:
    """What sizes of fleets serve, and the fleets that users need."""
    click.echo(f"simulated with the step times of {report['step_times']['source']}")
    rows = [
        [
            size,
            f"{values['conversations_per_second']:.3g}",
            f"{values['tokens_per_second']:.0f}",
            f"{1e3 * values['time_to_first_token_seconds_p50']:.0f}",
            f"{1e3 * values['time_to_first_token_seconds_p99']:.0f}",
            f"{1e3 * values['seconds_between_tokens_p50']:.1f}",
            f"{values['rows']:.1f}",
            f"{values['cached_share']:.0%}",
        ]
        for size, values in report["simulated"].items()
    ]
    heads = [
        "replicas",
        "conversations/s",
        "tokens/s",
        "first token ms",
        "p99",
        "between ms",
        "rows",
        "cached",
    ]
    click.echo(table(heads, rows))
    rows = [
        [
            f"{each['users']:.0f}",
            f"{each['replicas']} + {each['spare']}{'' if each['is_simulated'] else ' (extrapolated)'}",
            f"{each['dollars_a_day']:.0f}",
            f"{each['dollars_a_day_scaled']:.0f}",
            f"{each['dollars_per_million_tokens']:.2f}",
            f"{each['dollars_per_million_tokens_scaled']:.2f}",
        ]
        for each in report["fleets"]
    ]
    heads = ["users a day", "replicas + spare", "$ a day", "scaled", "$ a million tokens", "scaled "]
    click.echo("\n" + table(heads, rows))
