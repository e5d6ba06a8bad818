"""What a batch costs: a step of several sequences against a step of one, ours only.

python benchmarks/batch.py --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/batch-0.7g.json
"""

from __future__ import annotations

from typing import Any

import click
from arguments import benchmark_options, print_figures, take_arguments
from contest import OURS, contest, figures, sample_in_turn
from decode import DecodeMeasure, prompt_ids
from harness import describe_checkpoint, describe_run, summarise, table, write_report

CONTESTANTS = ("adept-fast:float16", "adept-fast:bfloat16", "adept-fast:int8", "adept-fast:int4")


@click.command()
@benchmark_options(CONTESTANTS)
@click.option("--batch", default=4, show_default=True, type=click.IntRange(min=2))
@click.option("--steps", default=24, show_default=True, type=click.IntRange(min=4), help="A sample.")
@click.option("--prompt-tokens", default=16, show_default=True, type=click.IntRange(min=1))
def main(batch: int, steps: int, prompt_tokens: int, **options: Any) -> None:
    """Time a step of one sequence and of several, in turn, in the same process."""
    arguments = take_arguments(options)
    if any(contestant.rival != OURS for contestant in arguments.contestants):
        raise click.BadParameter(f"--contestant takes {OURS} only")
    prompts = [prompt_ids(prompt_tokens, first=5 + 100 * at) for at in range(batch)]
    with contest(
        arguments.contestants,
        arguments.checkpoint,
        pythons=arguments.pythons,
        threads=arguments.threads,
        context=prompt_tokens + steps + 1,
        batch=batch,
    ) as entered:
        jobs = {
            f"{worker.contestant} batch {size}": (worker, DecodeMeasure(prompts[:size], steps, 2.0))
            for worker in entered.workers
            for size in (1, batch)
        }
        samples, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits)
    report = describe_run("batch", arguments.samples, arguments.threads)
    report |= {
        "model": describe_checkpoint(arguments.checkpoint),
        "measured": {
            name: jobs[name][0].facts | figures(samples[name], dropped[name], int(name.rpartition(" ")[2]))
            for name in samples
        },
        "absent": entered.absent,
        "batch": batch,
        "steps": steps,
        "prompt_tokens": prompt_tokens,
        "time_of_a_step_against_batch_1": {
            str(worker.contestant): against_one(
                samples[f"{worker.contestant} batch {batch}"], samples[f"{worker.contestant} batch 1"]
            )
            for worker in entered.workers
        },
    }
    print_figures(report["measured"], report["absent"])
    rows = [
        [name, f"{value['at_equal_bandwidth']['median']:.2f}" if value else "-"]
        for name, value in report["time_of_a_step_against_batch_1"].items()
    ]
    click.echo("\n" + table([f"a step of {batch} against a step of 1, at equal bandwidth", "times"], rows))
    write_report(report, arguments.output)


def against_one(several: list[Any], one: list[Any]) -> dict[str, Any] | None:
    """How many times as long a step of several takes, over the rounds in which both were sampled."""
    pairs = [(a, b) for a, b in zip(several, one, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    return {
        "as_timed": summarise(a.seconds_per_step / b.seconds_per_step for a, b in pairs),
        "at_equal_bandwidth": summarise(
            (a.seconds_per_step * a.bandwidth) / (b.seconds_per_step * b.bandwidth) for a, b in pairs
        ),
        "rounds": len(pairs),
    }


if __name__ == "__main__":
    main()
