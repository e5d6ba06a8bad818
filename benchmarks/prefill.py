"""Time to the first token: reading a prompt, ours in every format, and its rivals, sample by sample in turn.

    python benchmarks/prefill.py --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/prefill-0.7g.json
    python benchmarks/prefill.py --checkpoint CHECKPOINT --prompt-tokens 128 --prompt-tokens 2048

Timed from the ids of the prompt to the most likely next one, known to Python. Processors, not memory, are the
limit here, so there is no share of a bandwidth; and ``at_equal_bandwidth`` is not the ratio to look at. Each
length is a contest of its own. On a GPU one contestant comes after the other.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import Any

import click
import torch
from arguments import Arguments, benchmark_options, print_figures, print_ratios, take_arguments
from contest import Contestant, Sample, Worker, contest, figures, ratios, sample_in_turn, warm_up
from decode import choose_device, prompt_ids
from harness import describe_checkpoint, describe_run, write_report
from sweep import groups

from adept_fast.memory.bandwidth import BandwidthProbe

CONTESTANTS = (
    "adept-fast:float16",
    "adept-fast:bfloat16",
    "adept-fast:float32",
    "adept-fast:int8",
    "adept-fast:int4",
    "transformers:bfloat16",
    "transformers:float32",
)


@click.command()
@benchmark_options(CONTESTANTS)
@click.option(
    "--prompt-tokens",
    "lengths",
    multiple=True,
    default=(512,),
    show_default=True,
    type=click.IntRange(min=1),
    help="Several times for several.",
)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
def main(lengths: tuple[int, ...], device: str, **options: Any) -> None:
    """Time reading a prompt."""
    arguments, place = take_arguments(options), choose_device(device)
    config = json.loads((arguments.checkpoint / "config.json").read_text(encoding="utf-8"))
    report = describe_run("prefill", arguments.samples, arguments.threads, place)
    report["versions"]["rivals"] = {}
    report |= {
        "model": describe_checkpoint(arguments.checkpoint),
        "measured": {},
        "absent": {},
        "ratios": {},
        "prompt_tokens": lengths[0] if len(lengths) == 1 else list(lengths),
    }
    longest = config["max_position_embeddings"] - 1
    for length in lengths:
        if length > longest:
            reason = f"the checkpoint's context is {config['max_position_embeddings']} tokens"
            report["absent"][f"{length} tokens"] = reason
    suffix = ", {} tokens" if len(lengths) > 1 else ""
    prompts = {
        suffix.format(length): prompt_ids(length, vocab=config["vocab_size"])
        for length in lengths
        if length <= longest
    }
    if not prompts:
        raise click.BadParameter(f"--prompt-tokens is {lengths[0]}; expected at most {longest}")
    samples: dict[str, dict[str, list[Sample | None]]] = {name: {} for name in prompts}
    for group in groups(arguments.contestants, place.type == "cpu", True):
        take_group(arguments, place, group, prompts, samples, report)
    for taken in samples.values():
        report["ratios"] |= ratios(taken)
    print_figures(report["measured"], report["absent"])
    print_ratios(report["ratios"])
    write_report(report, arguments.output)


def take_group(
    arguments: Arguments,
    device: torch.device,
    contestants: list[Contestant],
    prompts: dict[str, list[int]],
    samples: dict[str, dict[str, list[Sample | None]]],
    report: dict[str, Any],
) -> None:
    """Sample contestants with one prompt after the other; the figures go into the report."""
    with contest(
        contestants,
        arguments.checkpoint,
        pythons=arguments.pythons,
        threads=arguments.threads,
        context=max(map(len, prompts.values())) + 1,
        device=device.type,
    ) as entered:
        report["versions"]["rivals"] |= entered.versions
        report["absent"] |= entered.absent
        probe = BandwidthProbe(device)
        for suffix, prompt in prompts.items():
            measure = functools.partial(measure_prompt, prompt)
            jobs = {f"{worker.contestant}{suffix}": (worker, measure) for worker in entered.workers}
            report["absent"] |= warm_up(jobs)
            if not jobs:
                continue
            taken, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits, probe, is_warm=True)
            samples[suffix] |= taken
            for name, (worker, _) in jobs.items():
                report["measured"][name] = worker.facts | values_of(taken[name], dropped[name], len(prompt))


def measure_prompt(prompt: list[int], worker: Worker) -> dict[str, Any]:
    return {"seconds_per_step": worker.call("prefill", prompt=prompt)["seconds"]}


def values_of(taken: list[Sample | None], dropped: Counter, length: int) -> dict[str, Any]:
    values = figures(taken, dropped, length) | {"prompt_tokens": length}
    if "milliseconds_per_step" in values:  # a step is the whole prompt here
        values["time_to_first_token_milliseconds"] = values["milliseconds_per_step"]
    return values


if __name__ == "__main__":
    main()
