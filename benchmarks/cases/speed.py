"""Decode speed, time to the first token, and the cost of a batch: ours in every format, and its baselines.

    python -m tools.random_checkpoint 0.7g CHECKPOINT
    python -m benchmarks decode --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/decode-0.7g.json
    python -m benchmarks decode --model 8b --device cuda --batch 1 --batch 4 --context 128 --zeros 0,90
    python -m benchmarks prefill --checkpoint CHECKPOINT --prompt-tokens 128 --prompt-tokens 2048
    python -m benchmarks prefill --model 8b --device cuda --prompt-tokens 2048
    python -m benchmarks batch --checkpoint CHECKPOINT --batch 4

A decode step takes a token id and ends when the most likely next one is known; ours also turns it into text.
The bytes that a step has to read, over its time and the bandwidth measured beside it, are its share of what
the machine can do; ``share_of_dense_floor`` counts the rows of inactive neurons too, which ours does not
read. A prefill is timed from the ids of the prompt to the most likely next one; processors, not memory, limit
it, so ``at_equal_bandwidth`` is not the ratio to look at. On a GPU ``share_of_gemm_rate`` is: the operations
of the prompt over its time, as a share of the best rate of torch's GEMM, measured in the same run.

On a CPU all variants take turns, sample by sample. On a GPU one runs after the other, since several would not
fit, and baselines run at the first share of inactive neurons only: they read every weight at any share. A
baseline that is installed elsewhere is named by ``--python RUNTIME=PATH``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.gemm_rate import measure_gemm_rates, prompt_operations
from benchmarks.models import random_model
from benchmarks.options import Arguments, choose_device, device_option, runtime_options, take_arguments
from benchmarks.result_file import table
from benchmarks.samples import speedup
from benchmarks.sweep import Found, Plan, run_sweep
from benchmarks.workers import OURS, Variant
from benchmarks.workloads import FEWEST_STEPS, Decode, Prefill
from tools.random_checkpoint import PRESETS

OUR_CPU_FORMATS = ("adept-fast:float16", "adept-fast:bfloat16", "adept-fast:int8", "adept-fast:int4")
DEFAULT_VARIANTS = {
    "cpu": (
        *OUR_CPU_FORMATS,
        *("eager:bfloat16", "eager-compiled:bfloat16"),
        *("transformers:bfloat16", "transformers:float32", "transformers-compiled:bfloat16"),
        *("llama.cpp:BF16", "llama.cpp:F16", "llama.cpp:Q8_0", "llama.cpp:Q4_0"),
        *("openvino:float16", "openvino:int8", "openvino:int4"),
    ),
    "cuda": (
        *("adept-fast:float16", "adept-fast:fp8", "adept-fast:int4"),
        *("eager:float16", "eager-compiled:float16"),
        *("transformers:float16", "transformers-compiled:float16"),
    ),
}
PREFILL_VARIANTS = {
    "cpu": (*OUR_CPU_FORMATS, "adept-fast:float32", "transformers:bfloat16", "transformers:float32"),
    "cuda": ("adept-fast:float16", "adept-fast:int4", "transformers:float16"),
}


def percents(context: click.Context, option: click.Parameter, value: str | None) -> list[float] | None:
    """``0,50,90``, in percent → shares."""
    if value is None:
        return None
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = [-1.0]
    if any(not (number == 0 or 1 <= number < 100) for number in numbers):
        raise click.BadParameter(
            f"{value!r}; expected percents from 1 to below 100, or 0, such as 0,50,90", context, option
        )
    return [number / 100 for number in numbers]


MODEL = click.option("--model", help=f"{', '.join(PRESETS)}: random weights; or the PATH of a checkpoint.")


@click.command()
@MODEL
@click.option(
    "--model-folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where random models are kept for the next time.  [default: nowhere]",
)
@runtime_options((), needs_checkpoint=False)
@device_option("auto")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), help="[default: 1]")
@click.option(
    "--context",
    "--prompt-tokens",
    "contexts",
    multiple=True,
    type=click.IntRange(min=1),
    help="Tokens before the first step that is timed; several times for several, as --batch.  [default: 16]",
)
@click.option(
    "--zeros",
    metavar="PERCENT,…",
    callback=percents,
    help="Inactive neurons of a random model.  [default: 50]",
)
@click.option(
    "--steps", default=24, show_default=True, type=click.IntRange(min=FEWEST_STEPS), help="A sample."
)
@click.option(
    "--longest-sample",
    default=2.0,
    show_default=True,
    help="Seconds; a slow variant takes fewer steps, so that the bandwidth has less time to change.",
)
def decode(
    model: str | None,
    model_folder: Path | None,
    device: str,
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    zeros: list[float] | None,
    steps: int,
    longest_sample: float,
    **options: Any,
) -> None:
    """Time decoding, by default of all runtimes of the device."""
    source = choose_model(model, options["checkpoint"], zeros)
    place = choose_device(device)
    arguments = with_variants(take_arguments(options), DEFAULT_VARIANTS[place.type])
    with tempfile.TemporaryDirectory() as temporary:
        folder, drawn = model_folder or Path(temporary), place.type == "cuda"
        checkpoints: dict[float | None, Path] = (
            {None: source}
            if isinstance(source, Path)
            else {share: random_model(source, share, folder, drawn=drawn) for share in zeros or [0.5]}
        )
        plan = Plan(Decode(steps, longest_sample), place, checkpoints, batches or (1,), contexts or (16,))
        extra = {
            "order": "in turn" if plan.in_turn else "one after the other",
            "batches": list(plan.batches),
            "zeros": [share for share in plan.checkpoints if share is not None],
            "prompt_tokens": plan.contexts[0] if len(plan.contexts) == 1 else list(plan.contexts),
            "steps": steps,
        }
        run_sweep("decode", arguments, plan, lambda found: extra)


def with_variants(arguments: Arguments, default: tuple[str, ...]) -> Arguments:
    """The arguments, with these variants unless some were named."""
    return (
        arguments if arguments.variants else replace(arguments, variants=tuple(map(Variant.parse, default)))
    )


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


@click.command()
@MODEL
@runtime_options((), needs_checkpoint=False)
@click.option("--layers", type=click.IntRange(min=1), help="Of a random model, instead of the preset's.")
@click.option(
    "--prompt-tokens",
    "lengths",
    multiple=True,
    default=(512,),
    show_default=True,
    type=click.IntRange(min=1),
    help="Several times for several.",
)
@device_option()
def prefill(
    model: str | None, layers: int | None, lengths: tuple[int, ...], device: str, **options: Any
) -> None:
    """Time reading a prompt."""
    source, place = choose_model(model, options["checkpoint"], None), choose_device(device)
    arguments = with_variants(take_arguments(options), PREFILL_VARIANTS[place.type])
    if isinstance(source, Path) and layers is not None:
        raise click.BadParameter("--layers belongs to the presets of --model; a checkpoint has its own")
    with tempfile.TemporaryDirectory() as temporary:
        if not isinstance(source, Path):
            drawn = place.type == "cuda"
            source = random_model(source, 0.5, Path(temporary), drawn=drawn, layers=layers)
        time_prompts(source, place, arguments, lengths)


def time_prompts(
    checkpoint: Path, place: torch.device, arguments: Arguments, lengths: tuple[int, ...]
) -> None:
    """``prefill`` of a checkpoint; on a GPU beside the rate of torch's GEMM."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    context = config["max_position_embeddings"]
    fitting = tuple(length for length in lengths if length < context)
    if not fitting:
        raise click.BadParameter(f"--prompt-tokens is {lengths[0]}; expected at most {context - 1}")
    too_long = {
        f"{length} tokens": f"the checkpoint's context is {context} tokens"
        for length in lengths
        if length >= context
    }
    rates = measure_gemm_rates(config, place)

    def extend(found: Found) -> dict[str, Any]:
        rows = found.rows()
        for values in rows.values():
            values["prompt_tokens"] = values["context"]
            if "milliseconds_per_step" not in values:
                continue
            milliseconds = values["time_to_first_token_milliseconds"] = values["milliseconds_per_step"]
            if rates:  # a step is the whole prompt
                fastest = 1e3 * prompt_operations(config, values["context"]) / max(rates.values())
                slowest_last = zip(("median", "p10", "p90"), ("median", "p90", "p10"), strict=True)
                values["share_of_gemm_rate"] = {
                    name: fastest / milliseconds[other] for name, other in slowest_last
                }
        return {
            "measured": rows,
            "absent": too_long | found.reasons(),
            "prompt_tokens": lengths[0] if len(lengths) == 1 else list(lengths),
            "layers": config["num_hidden_layers"],
            "gemm_operations_per_second": rates,
        }

    plan = Plan(Prefill(), place, {None: checkpoint}, contexts=fitting, context_name="{} tokens")
    run_sweep("prefill", arguments, plan, extend)


@click.command()
@runtime_options(OUR_CPU_FORMATS)
@click.option("--batch", default=4, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--steps", default=24, show_default=True, type=click.IntRange(min=FEWEST_STEPS), help="A sample."
)
@click.option("--prompt-tokens", default=16, show_default=True, type=click.IntRange(min=1))
def batch(batch: int, steps: int, prompt_tokens: int, **options: Any) -> None:
    """Time a step of one sequence and of several, in turn, in the same process; ours only."""
    arguments: Arguments = take_arguments(options)
    if any(variant.runtime != OURS for variant in arguments.variants):
        raise click.BadParameter(f"--runtime takes {OURS} only")
    plan = Plan(
        Decode(steps),
        choose_device("cpu"),
        {None: arguments.checkpoint},
        (1, batch),
        (prompt_tokens,),
        together=True,
    )

    def extend(found: Found) -> dict[str, Any]:
        against = {
            str(variant): step_against_one(found, str(variant), batch)
            for variant in arguments.variants
            if f"{variant}, batch 1" in found.samples
        }
        return {
            "batch": batch,
            "steps": steps,
            "prompt_tokens": prompt_tokens,
            "time_of_a_step_against_batch_1": against,
        }

    report = run_sweep("batch", arguments, plan, extend)
    rows = [
        [name, f"{value['at_equal_bandwidth']['median']:.2f}" if value else "-"]
        for name, value in report["time_of_a_step_against_batch_1"].items()
    ]
    click.echo("\n" + table([f"a step of {batch} against a step of 1, at equal bandwidth", "times"], rows))


def step_against_one(found: Found, variant: str, batch: int) -> dict[str, Any] | None:
    """How many times as long a step of the batch takes as one of a single sequence."""
    one, several = (found.samples[f"{variant}, batch {size}"] for size in (1, batch))
    times = speedup(one, several)
    return None if times is None else {"as_timed": times.pop("speedup"), **times}
