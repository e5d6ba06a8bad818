"""Servers under load: ours, transformers' and llama.cpp's, one after the other in every round.

    python -m benchmarks serve --python transformers=PATH --python llama-cpp-python=PATH \\
        --program llama-server=PATH --long-prompt 400 --output benchmarks/results/DEVICE/serve-small.json

In a closed loop each client sends its next request when the last is answered; in an open loop (``--rate``)
requests arrive at random, at a mean rate, whether or not others are answered. Prompts have mixed lengths and
begin differently, so that no server's cache of prompts helps; answers are streamed, and have a fixed number
of tokens unless the model ends them. All is measured by the client, a process of its own, at the arrival of
tokens: see benchmarks.serving.client. With ``--long-prompt`` all clients but one decode, and the last sends a
long prompt every second: the 99th percentile of the time between the tokens of the others while it is read is
compared with their median meanwhile, and with that when no prompt is read.

A sample is ``--seconds`` of a load, after a lead of 2 s, with the same requests for every server; the next
sample has others. Servers stay loaded, but are stopped while others are measured. A sample during which other
processes used the machine is taken again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from adept_fast.checkpoint import demo_path
from adept_fast.tokenizer.tokenizer import Tokenizer
from benchmarks.models import random_model
from benchmarks.options import Columns, cell
from benchmarks.result_file import describe_checkpoint, describe_run, table, without_folders, write_report
from benchmarks.serving.measure import DECODE_TOKENS, Plan, Rows, loads_of, measure_all, started_servers
from benchmarks.serving.plan import Prompts, Shape
from benchmarks.serving.servers import KINDS, ServerVariant, Setting
from tools.random_checkpoint import PRESETS

DEFAULT_SERVERS = tuple(f"{name}:bfloat16" for name in KINDS)
SPARE_TOKENS = 16  # of the context: BOS, and words that a tokenizer splits
LOAD_COLUMNS: Columns = {
    "tokens/s": ("tokens_per_second", 1.0, ".0f"),
    "first token ms": ("time_to_first_token_seconds_p50", 1e3, ".0f"),
    "p99": ("time_to_first_token_seconds_p99", 1e3, ".0f"),
    "between tokens ms": ("seconds_between_tokens_p50", 1e3, ".1f"),
    "p99 ": ("seconds_between_tokens_p99", 1e3, ".1f"),
    "end to end s": ("end_to_end_seconds_p50", 1.0, ".2f"),
    "client cores": ("client_cores", 1.0, ".2f"),
    "server cores": ("server_cores", 1.0, ".2f"),
}
PAUSE_COLUMNS: Columns = {
    "between tokens ms": ("between_tokens_median", 1e3, ".1f"),
    "p99": ("between_tokens_p99", 1e3, ".1f"),
    "while reading ms": ("while_reading_median", 1e3, ".1f"),
    "p99 ": ("while_reading_p99", 1e3, ".1f"),
    "over median": ("p99_over_median", 1.0, ".2f"),
    "over quiet median": ("p99_over_quiet_median", 1.0, ".2f"),
    "long prompt ms": ("long_prompt_seconds", 1e3, ".0f"),
}


@click.command()
@click.option(
    "--model",
    default="small",
    show_default=True,
    help=f"demo, or {', '.join(PRESETS)}: random weights; or the PATH of a checkpoint.",
)
@click.option(
    "--model-folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where models, and what baselines convert them to, are kept.  [default: nowhere]",
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    default=DEFAULT_SERVERS,
    show_default=True,
    help="SERVER:FORMAT; several times for several.",
)
@click.option(
    "--python",
    "--program",
    "programs",
    multiple=True,
    metavar="SERVER=PATH",
    help="The interpreter in whose environment a server is installed, or the program llama-server.",
)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--rate",
    "rates",
    multiple=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Requests a second of an open loop; several times for several.  [default: no open loop]",
)
@click.option("--long-prompt", type=click.IntRange(min=1), help="Tokens of one read while others decode.")
@click.option("--shortest-prompt", default=16, show_default=True, type=click.IntRange(min=1), help="Tokens.")
@click.option("--longest-prompt", default=256, show_default=True, type=click.IntRange(min=1), help="Tokens.")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(min=2), help="Of an answer.")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(min=0.5), help="A sample.")
@click.option("--samples", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1), help="Of each server.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--max-others-share",
    default=0.1,
    show_default=True,
    help="Samples during which others use a larger share of the processors are taken again.",
)
@click.option("--attempts", default=3, show_default=True, type=click.IntRange(min=1), help="At a sample.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes.")
def main(**options: Any) -> None:
    """Measure servers under load."""
    variants, programs = take_servers(options["servers"]), take_programs(options["programs"])
    shortest, longest = options["shortest_prompt"], options["longest_prompt"]
    if longest < shortest:
        raise click.BadParameter(f"--longest-prompt is {longest}; expected at least {shortest}")
    shape = Shape(shortest, longest, options["max_tokens"])
    long_prompt = options["long_prompt"] or 0
    context = SPARE_TOKENS + max(longest + shape.max_tokens, long_prompt, 16 + DECODE_TOKENS)
    run, rows = describe_run("serve", options["samples"], options["threads"]), Rows()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = checkpoint_of(options["model"], (options["model_folder"] or folder).resolve())
        plan = Plan(
            loads_of(options["clients"], options["rates"], long_prompt),
            shape,
            Prompts.of_pieces(Tokenizer.from_file(checkpoint / "tokenizer.model").pieces()),
            *(options[name] for name in ("seconds", "seed", "max_others_share", "attempts")),
        )
        settings = {
            str(each): Setting(checkpoint, each.format, options["threads"], options["clients"], context)
            for each in variants
        }
        with started_servers(variants, programs, settings, folder, rows) as running:
            run["versions"]["rivals"] = {each.variant.name: each.versions() for each in running}
            run["servers"] = {
                str(each.variant): " ".join(map(without_folders, each.command)) for each in running
            }
            measure_all(plan, running, options["samples"], rows)
        run["model"] = describe_checkpoint(checkpoint)
    if not rows.facts:
        raise click.ClickException(f"nobody has a clean sample; absent: {rows.absent}")
    named = ("clients", "shortest_prompt", "longest_prompt", "max_tokens", "long_prompt", "seconds", "seed")
    report = run | {name: options[name] for name in named}
    report |= {"measured": rows.measured(), "absent": rows.absent, "ratios": rows.times_as_fast()}
    print_report(report)
    write_report(report, options["output"])


def take_servers(texts: tuple[str, ...]) -> list[ServerVariant]:
    try:
        return [ServerVariant.parse(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def take_programs(texts: tuple[str, ...]) -> dict[str, str]:
    programs = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if name not in KINDS or not equals:
            raise click.BadParameter(f"{text!r}; expected SERVER=PATH, SERVER one of {', '.join(KINDS)}")
        programs[name] = path
    return programs


def checkpoint_of(model: str, folder: Path) -> Path:
    """A directory of the model in ``folder``, where baselines may write beside it, or its own path."""
    if model in PRESETS:
        return random_model(model, 0.5, folder)
    if model == "demo":
        path = folder / model
        if not path.exists():
            shutil.copytree(demo_path(), path)
        return path
    if not Path(model).is_dir():
        raise click.BadParameter(f"--model is {model!r}; expected demo, {', '.join(PRESETS)} or a directory")
    return Path(model).resolve()


def print_report(report: dict[str, Any]) -> None:
    """Tables of loads and of long prompts, how many times as fast ours is, and who is absent."""
    measured = report["measured"]
    for columns, name in ((LOAD_COLUMNS, "tokens_per_second"), (PAUSE_COLUMNS, "between_tokens_median")):
        rows = [
            [
                row,
                *(cell(values.get(figure), factor, form) for figure, factor, form in columns.values()),
                str(values["clean_samples"]),
            ]
            for row, values in measured.items()
            if name in values
        ]
        if rows:
            click.echo(table(["median (p10 to p90)", *columns, "samples"], rows) + "\n")
    for ours, others in report["ratios"].items():
        for other, figure in others.items():
            click.echo(f"{ours}: {cell(figure)} times the tokens/s of {other}")
    for name, reason in report["absent"].items():
        click.echo(f"{name} is absent: {reason}")
