"""How fast the shipped checkpoint answers: time to first token, decode speed, and the machine's limit.

    python -m benchmarks demo --output benchmarks/results/DEVICE/demo.json

Each sample loads the checkpoint anew, answers a question, and decodes a fixed number of tokens; the memory
bandwidth is measured before and after it.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from tqdm import tqdm

from adept_fast import Runtime
from adept_fast.chat.format import chat_prompt
from adept_fast.memory.bandwidth import measure_read_bandwidth
from benchmarks.result_file import describe_run, summarise_columns, write_report

PROMPT = chat_prompt("What is the capital of France?")
DECODE_TOKENS = 257  # 256 decode steps; the first token comes from the prefill


@click.command()
@click.option("--samples", default=15, show_default=True, type=click.IntRange(min=3))
@click.option("--threads", default=None, type=click.IntRange(min=1), help="Of torch.  [default: torch's]")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes.")
def main(samples: int, threads: int | None, output: Path | None) -> None:
    """Time the demo checkpoint."""
    if threads is not None:
        torch.set_num_threads(threads)
    measure_once()  # warms up: first use of each kernel, the page cache
    measured = [measure_once() for _ in tqdm(range(samples), desc="samples", disable=None)]
    report = describe_run("demo", samples, torch.get_num_threads()) | {
        "measured": summarise_columns(measured),
        "decode_steps": DECODE_TOKENS - 1,
    }
    for name, figures in report["measured"].items():
        click.echo(
            f"{name:<28} {figures['median']:>10.4g}   (p10 {figures['p10']:.4g}, p90 {figures['p90']:.4g})"
        )
    write_report(report, output)


def measure_once() -> dict[str, float]:
    before = measure_read_bandwidth(torch.device("cpu"))
    runtime = Runtime.load("demo", device="cpu", prefix_cache=False, progress=False)
    answer = runtime.generate(PROMPT, max_new_tokens=1).timings
    decode = runtime.generate(PROMPT, max_new_tokens=DECODE_TOKENS, ignore_eos=True).timings
    bandwidth = (before + measure_read_bandwidth(torch.device("cpu"))) / 2
    context = decode.prompt_tokens + decode.decode_steps // 2
    bytes_a_second = decode.tokens_per_second * runtime.bytes_read_per_step(context)
    return {
        "load_seconds": runtime.load_seconds,
        "time_to_first_token_seconds": answer.prefill_seconds,
        "load_and_first_token_seconds": runtime.load_seconds + answer.prefill_seconds,
        "decode_tokens_per_second": decode.tokens_per_second,
        "decode_bytes_per_second": bytes_a_second,
        "read_bandwidth_bytes_per_second": bandwidth,
        "share_of_bandwidth": bytes_a_second / bandwidth,
    }
