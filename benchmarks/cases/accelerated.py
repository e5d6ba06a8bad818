"""transformers' generate, accelerated and plain: the same calls, with the same weights, in turn.

    python -m benchmarks accelerated --output benchmarks/results/DEVICE/accelerated.json

Of each model there are two in this process, and one of them is accelerated. A sample is one call of
``generate``, prompt and all, that makes a fixed number of tokens. In float32 the greedy ids of both are
compared as well.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from adept_fast.checkpoint import demo_path
from benchmarks.options import Arguments, cell, sampling_options, take_arguments
from benchmarks.result_file import describe_checkpoint, describe_run, table, write_report
from benchmarks.samples import Job, Samples, figures, sample_in_turn, speedup
from tools.random_checkpoint import make_config, write_random

RANDOM = {"0.1g": {"hidden": 768, "layers": 12, "heads": 12, "intermediate": 3072, "vocab": 16384}}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CASES: dict[str, tuple[int, dict[str, Any]]] = {  # → the rows of the batch, and what generate is given
    "greedy": (1, {}),
    "sampling": (1, {"do_sample": True, "temperature": 0.8, "top_p": 0.9}),
    "greedy, 4 rows": (4, {}),
}
OURS, THEIRS = "accelerated", "plain"


@dataclass(frozen=True)
class Call:
    """One call of ``generate`` on one of the two models."""

    model: Any
    input_ids: torch.Tensor  # [rows, tokens]
    settings: dict[str, Any]

    def __call__(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.ids()
        return {"seconds_per_step": (time.perf_counter() - started) / self.settings["max_new_tokens"]}

    def ids(self) -> torch.Tensor:
        generated: torch.Tensor = self.model.generate(
            self.input_ids,
            attention_mask=torch.ones_like(self.input_ids),
            eos_token_id=None,
            pad_token_id=0,
            **self.settings,
        )
        return generated


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("demo", "0.1g"),
    show_default=True,
    help=f"demo, {', '.join(RANDOM)} (random weights), or a Hugging Face directory.",
)
@click.option(
    "--dtype", "dtypes", multiple=True, default=("float32", "bfloat16"), type=click.Choice(list(DTYPES))
)
@click.option("--new-tokens", default=64, show_default=True, type=click.IntRange(min=2), help="A sample.")
@click.option("--prompt-tokens", default=16, show_default=True, type=click.IntRange(min=1))
@sampling_options(samples=9)
def main(
    models: tuple[str, ...], dtypes: tuple[str, ...], new_tokens: int, prompt_tokens: int, **options: Any
) -> None:
    """Time generate on accelerated and on plain models of transformers."""
    arguments = take_arguments(options)
    report: dict[str, Any] = describe_run("accelerated", arguments.samples, arguments.threads) | {
        "measured": {},
        "models": {},
        "times_as_fast": {},
        "same_greedy_ids": {},
        "new_tokens": new_tokens,
        "prompt_tokens": prompt_tokens,
    }
    report["versions"]["transformers"] = transformers_version()
    for name in models:
        with checkpoint(name) as path:
            report["models"][without_folders(name)] = describe_checkpoint(path)
            for dtype in dtypes:
                calls = prepare(path, dtype, prompt_tokens, new_tokens)
                add_results(report, f"{without_folders(name)} {dtype}", calls, arguments)
    rows = [
        [
            case,
            *(
                cell(report["measured"][f"{case}, {side}"].get("tokens_per_second"))
                for side in (OURS, THEIRS)
            ),
            cell(figure),
        ]
        for case, figure in report["times_as_fast"].items()
    ]
    click.echo(table(["tokens/s, median (p10 to p90)", OURS, THEIRS, "times as fast"], rows))
    write_report(report, arguments.output)


def prepare(path: Path, dtype: str, prompt_tokens: int, new_tokens: int) -> dict[str, dict[str, Call]]:
    """Case → side → call."""
    from transformers import AutoModelForCausalLM

    from adept_fast.integrations.transformers import accelerate

    loaded = {
        side: AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype]).eval()
        for side in (OURS, THEIRS)
    }
    accelerate(loaded[OURS])
    generator = torch.Generator().manual_seed(0)
    calls: dict[str, dict[str, Call]] = {}
    for case, (rows, settings) in CASES.items():
        ids = torch.randint(5, 4000, (rows, prompt_tokens), generator=generator)
        calls[case] = {
            side: Call(model, ids, {**settings, "max_new_tokens": new_tokens})
            for side, model in loaded.items()
        }
    return calls


def add_results(
    report: dict[str, Any], model: str, calls: dict[str, dict[str, Call]], arguments: Arguments
) -> None:
    """Sample all cases of a model in turn."""
    jobs = {
        f"{model} {case}, {side}": Job(call) for case, sides in calls.items() for side, call in sides.items()
    }
    if "float32" in model:
        ids = [call.ids() for call in calls["greedy"].values()]
        report["same_greedy_ids"][model] = torch.equal(ids[0], ids[1])
    taken, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits)
    for case, (rows, _) in CASES.items():
        for side in (OURS, THEIRS):
            name = f"{model} {case}, {side}"
            report["measured"][name] = figures(taken[name], dropped[name], rows)
        report["times_as_fast"][f"{model} {case}"] = times_as_fast(
            taken[f"{model} {case}, {OURS}"], taken[f"{model} {case}, {THEIRS}"]
        )


def times_as_fast(ours: Samples, theirs: Samples) -> dict[str, Any] | None:
    """Over the rounds in which both were sampled."""
    found = speedup(ours, theirs)
    return None if found is None else {**found["speedup"], "rounds": found["rounds"]}


@contextmanager
def checkpoint(name: str) -> Iterator[Path]:
    if name == "demo":
        yield demo_path()
    elif name in RANDOM:
        with tempfile.TemporaryDirectory() as folder:
            yield write_random(Path(folder) / name, make_config(**RANDOM[name]))
    elif (Path(name) / "config.json").is_file():
        yield Path(name)
    else:
        raise click.BadParameter(f"--model is {name!r}; expected demo, {', '.join(RANDOM)} or a directory")


def without_folders(name: str) -> str:
    return Path(name).name


def transformers_version() -> str:
    import transformers

    return str(transformers.__version__)
