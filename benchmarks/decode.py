"""Decode speed: ours in every format, and its rivals, over batch, context and the share of zeros.

    python tools/random_checkpoint.py 0.7g CHECKPOINT
    python benchmarks/decode.py --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/decode-0.7g.json
    python benchmarks/decode.py --model 8b --device cuda --batch 1 --batch 4 --context 128 --zeros 0,90
    python benchmarks/decode.py --predict h100

A step takes a token id and ends when the most likely next one is known; ours also turns it into text. The
bytes that a step has to read, over its time and the bandwidth measured beside it, are its share of what the
machine can do; ``share_of_dense_floor`` counts the rows of zeros too, which ours does not read. On a CPU all
take turns, sample by sample. On a GPU one comes after the other, since several would not fit, and rivals run
at the first share of zeros only: they read every weight whatever it is. A rival that is installed elsewhere
is named by ``--python RUNTIME=PATH``.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from arguments import Arguments, benchmark_options, print_figures, print_ratios, take_arguments
from contest import Contestant, Worker
from harness import describe_checkpoint, describe_run, write_report
from models import random_model
from random_checkpoint import PRESETS
from step_model import DEVICES, predict
from sweep import Found, Setting, Sweep, sweep

CONTESTANTS = {
    "cpu": (
        "adept-fast:float16",
        "adept-fast:bfloat16",
        "adept-fast:int8",
        "adept-fast:int4",
        "eager:bfloat16",
        "eager-compiled:bfloat16",
        "transformers:bfloat16",
        "transformers:float32",
        "transformers-compiled:bfloat16",
        "llama.cpp:BF16",
        "llama.cpp:F16",
        "llama.cpp:Q8_0",
        "llama.cpp:Q4_0",
        "openvino:float16",
        "openvino:int8",
        "openvino:int4",
    ),
    "cuda": (
        "adept-fast:float16",
        "adept-fast:fp8",
        "adept-fast:int4",
        "eager:float16",
        "eager-compiled:float16",
        "transformers:float16",
        "transformers-compiled:float16",
    ),
}
FEWEST_STEPS = 4
FIRST_ID = 5  # the ids of a prompt count up from here, past those that mean something
PROMPTS_APART = 100  # ids between the beginnings of a batch's prompts


class Percents(click.ParamType):
    """``0,50,90``, in percent → shares."""

    name = "PERCENT,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        if isinstance(value, list):
            return value
        try:
            percents = [float(part) for part in value.split(",")]
        except ValueError:
            percents = [-1.0]
        if any(not (percent == 0 or 1 <= percent < 100) for percent in percents):
            self.fail(f"{value!r}; expected percents from 1 to below 100, or 0, such as 0,50,90", param, ctx)
        return [percent / 100 for percent in percents]


@click.command()
@click.option("--model", help=f"{', '.join(PRESETS)}: random weights; or the PATH of a checkpoint.")
@click.option(
    "--model-folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where random models are kept for the next time.  [default: nowhere]",
)
@benchmark_options((), needs_checkpoint=False)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="A GPU if there is one.",
)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), help="[default: 1]")
@click.option(
    "--context",
    "--prompt-tokens",
    "contexts",
    multiple=True,
    type=click.IntRange(min=1),
    help="Tokens before the first step that is timed; several times for several, as --batch.  [default: 16]",
)
@click.option("--zeros", type=Percents(), help="Units that relu² makes 0, of a random model.  [default: 50]")
@click.option(
    "--steps", default=24, show_default=True, type=click.IntRange(min=FEWEST_STEPS), help="A sample."
)
@click.option(
    "--longest-sample",
    default=2.0,
    show_default=True,
    help="Seconds; who is slower takes fewer steps, so that the bandwidth has less time to change.",
)
@click.option(
    "--predict",
    "predicted",
    type=click.Choice(list(DEVICES)),
    help="Run nothing; say what the 8B should take on this GPU.",
)
def main(
    model: str | None,
    model_folder: Path | None,
    device: str,
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    zeros: list[float] | None,
    steps: int,
    longest_sample: float,
    predicted: str | None,
    **options: Any,
) -> None:
    """Time decoding, by default of all who run on the device."""
    if predicted:
        predict(predicted, list(batches), list(contexts), zeros)
        return
    source = choose_model(model, options["checkpoint"], zeros)
    place = choose_device(device)
    arguments = take_arguments(options)
    if not arguments.contestants:
        chosen = [Contestant.parse(text) for text in CONTESTANTS[place.type]]
        arguments = replace(arguments, contestants=chosen)
    with tempfile.TemporaryDirectory() as temporary:
        shares = [None] if isinstance(source, Path) else zeros or [0.5]
        checkpoints = {
            share: source
            if share is None
            else random_model(source, share, model_folder or Path(temporary), drawn=place.type == "cuda")
            for share in shares
        }
        plan = Sweep(place, checkpoints, batches or (1,), contexts or (16,), steps, longest_sample)
        report = run(arguments, plan)
    print_figures(report["measured"], report["absent"])
    print_ratios(report["ratios"])
    write_report(report, arguments.output)


def choose_model(model: str | None, checkpoint: Path | None, zeros: list[float] | None) -> Path | str:
    """A checkpoint's path, or the name of a preset."""
    if (model is None) == (checkpoint is None):
        raise click.UsageError("expected one of --checkpoint and --model")
    if model in PRESETS:
        return model
    path = checkpoint or Path(model or "")
    if not path.is_dir():
        raise click.BadParameter(f"--model is {model!r}; expected {', '.join(PRESETS)} or a directory")
    if zeros is not None:
        raise click.BadParameter("--zeros belongs to the presets of --model; a checkpoint has its own")
    return path


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(f"--device is cuda; torch {torch.__version__} sees no GPU here")
    return torch.device(
        "cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu")
    )


def run(arguments: Arguments, plan: Sweep) -> dict[str, Any]:
    """Sample everyone in every setting; the report."""

    def measure_of(setting: Setting, vocab: int) -> DecodeMeasure:
        prompts = [
            prompt_ids(setting.context, FIRST_ID + PROMPTS_APART * at, vocab) for at in range(setting.batch)
        ]
        return DecodeMeasure(prompts, plan.steps, plan.longest_sample)

    run_facts = describe_run("decode", arguments.samples, arguments.threads, plan.device)
    model = describe_checkpoint(next(iter(plan.checkpoints.values())))

    def report(found: Found) -> dict[str, Any]:
        contexts = list(plan.contexts)
        return run_facts | {
            "versions": run_facts["versions"] | {"rivals": found.versions},
            "model": model,
            "measured": found.rows(),
            "absent": found.who_is_absent(),
            "ratios": found.ratios(),
            "order": "in turn" if plan.in_turn else "one after the other",
            "batches": list(plan.batches),
            "zeros": [share for share in plan.checkpoints if share is not None],
            "prompt_tokens": contexts[0] if len(contexts) == 1 else contexts,
            "steps": plan.steps,
        }

    def keep(found: Found) -> None:
        if arguments.output and found.measured:
            write_report(report(found), arguments.output)

    found = sweep(arguments, plan, measure_of, keep)
    if not found.measured:
        raise click.ClickException(f"nobody can take part: {found.absent}")
    return report(found)


class DecodeMeasure:
    """Decodes after a prompt; how many steps is settled the first time that a worker is asked."""

    def __init__(self, prompts: list[list[int]], steps: int, longest_seconds: float) -> None:
        self._prompts = prompts
        self._most = steps
        self._longest = longest_seconds
        self._steps: dict[int, int] = {}

    def __call__(self, worker: Worker) -> dict[str, Any]:
        if worker.pid not in self._steps:
            seconds = worker.call("decode", prompts=self._prompts, steps=FEWEST_STEPS)["seconds"]
            fitting = int(self._longest / (seconds / FEWEST_STEPS))
            self._steps[worker.pid] = max(FEWEST_STEPS, min(self._most, fitting))
        steps = self._steps[worker.pid]
        answer = worker.call("decode", prompts=self._prompts, steps=steps)
        return answer | {"seconds_per_step": answer.pop("seconds") / steps, "steps_per_sample": steps}


def prompt_ids(count: int, first: int = FIRST_ID, vocab: int | None = None) -> list[int]:
    """Ids that count up from ``first``, and where there are only ``vocab``, from FIRST_ID again."""
    ids = range(first, first + count)
    return [*ids] if vocab is None else [FIRST_ID + (at - FIRST_ID) % (vocab - FIRST_ID) for at in ids]


if __name__ == "__main__":
    main()
