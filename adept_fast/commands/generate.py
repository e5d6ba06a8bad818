"""``adept-fast generate``: continue one prompt, streaming, or several."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from adept_fast import chat
from adept_fast.bandwidth import measure_read_bandwidth
from adept_fast.commands.conversation import chat_ids, stopping_answers
from adept_fast.commands.errors import OneLineErrors
from adept_fast.commands.options import (
    bos_option,
    checkpoint_option,
    load_runtime,
    placement_options,
    sampling_options,
    sampling_params,
)
from adept_fast.commands.streaming import print_stream
from adept_fast.memory import format_bytes
from adept_fast.runtime import Prompt, Runtime
from adept_fast.sampling import SamplingParams
from adept_fast.sequence import Generation


@click.command(cls=OneLineErrors)
@click.option("--prompt", "prompts", multiple=True, help="The text to continue; repeatable.")
@click.option(
    "--prompt-file",
    "prompt_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="A file whose text is to be continued, - for stdin; one newline at its end is left out.",
)
@click.option("--chat", "as_chat", is_flag=True, help="Treat each prompt as a question in the chat format.")
@checkpoint_option
@placement_options
@sampling_options
@bos_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="How many of several prompts are generated side by side.",
)
@click.option(
    "--logprobs", type=click.IntRange(min=0), help="With --json: of each token and the n likeliest."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--stats", is_flag=True, help="Print speed, and its share of the memory bandwidth, to stderr.")
def generate(**options: Any) -> None:
    """Continue each prompt with text from the model."""
    prompts = [*options["prompts"], *(_read_prompt(name) for name in options["prompt_files"])]
    if not prompts:
        raise click.UsageError("expected at least one --prompt or --prompt-file")
    params = sampling_params(options, logprobs=options["logprobs"])
    runtime = load_runtime(options, max_batch_size=min(len(prompts), options["batch_size"]))
    given: list[Prompt] = list(prompts)
    if options["as_chat"]:
        params = stopping_answers(params, runtime.tokenizer)
        given = [chat_ids(runtime.tokenizer, prompt, add_bos=options["add_bos"]) for prompt in prompts]
    warmup_seconds = _warm_up(runtime) if options["stats"] else 0.0
    if len(given) == 1 and not options["as_json"]:
        generations = [_stream(runtime, given[0], params, options)]
    else:
        generations = runtime.generate(given, params, add_bos=options["add_bos"])
        for prompt, generation in zip(prompts, generations, strict=True):
            click.echo(
                _as_json(prompt, generation, options) if options["as_json"] else _text(generation, options)
            )
    if options["stats"]:
        _print_stats(runtime, generations, warmup_seconds)


def _warm_up(runtime: Runtime) -> float:
    """Seconds of what would else count as reading the first prompt, such as loading libraries."""
    started = time.perf_counter()
    runtime.warm_up()
    return time.perf_counter() - started


def _stream(runtime: Runtime, prompt: Prompt, params: SamplingParams, options: dict[str, Any]) -> Generation:
    stream = runtime.stream(prompt, params, add_bos=options["add_bos"])
    print_stream(stream, as_chat=options["as_chat"])
    return stream.result


def _read_prompt(name: str) -> str:
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text (byte {error.start})") from error


def _text(generation: Generation, options: dict[str, Any]) -> str:
    return "".join(chat.strip_answer([generation.text])) if options["as_chat"] else generation.text


def _as_json(prompt: str, generation: Generation, options: dict[str, Any]) -> str:
    timings = generation.timings
    line: dict[str, Any] = {
        "prompt": prompt,
        "text": _text(generation, options),
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": timings.prompt_tokens,
        "load_seconds": timings.load_seconds,
        "prefill_seconds": timings.prefill_seconds,
        "decode_seconds": timings.decode_seconds,
        "tokens_per_second": timings.tokens_per_second,
        "decode_steps": timings.decode_steps,
        "drafted_tokens": timings.drafted_tokens,
        "accepted_tokens": timings.accepted_tokens,
    }
    if generation.logprobs is not None:
        line["logprobs"] = [
            {"token_id": entry.token_id, "logprob": entry.logprob, "top": [list(pair) for pair in entry.top]}
            for entry in generation.logprobs
        ]
    return json.dumps(line, ensure_ascii=False)


def _print_stats(runtime: Runtime, generations: list[Generation], warmup_seconds: float) -> None:
    """Speed of the whole call, and the bytes that decoding read against what memory can deliver."""
    bandwidth = measure_read_bandwidth(runtime.placement.device)
    click.echo(f"load     {runtime.load_seconds:.2f} s", err=True)
    click.echo(f"warmup   {warmup_seconds:.2f} s", err=True)
    captures = runtime.captures()
    if captures is not None:
        held = format_bytes(captures.bytes_held)
        taken = f"{len(captures.shapes)} captured in {captures.seconds:.2f} s, holding {held}"
        click.echo(f"graphs   {captures.failure or taken}", err=True)
    for generation in generations:
        timings = generation.timings
        context = timings.prompt_tokens + timings.decode_tokens // 2
        steps_a_second = timings.decode_steps / timings.decode_seconds if timings.decode_steps else 0.0
        bytes_a_second = steps_a_second * runtime.bytes_read_per_step(context)
        click.echo(
            f"prefill  {timings.prefill_seconds * 1e3:.1f} ms for {timings.prompt_tokens} tokens\n"
            f"decode   {timings.tokens_per_second:.1f} tokens/s over {timings.decode_steps} steps, reading "
            f"{bytes_a_second / 1e9:.2f} GB/s: {bytes_a_second / bandwidth:.0%} of the "
            f"{bandwidth / 1e9:.1f} GB/s that memory delivers",
            err=True,
        )
        if timings.drafted_tokens:
            kept = timings.accepted_tokens / timings.drafted_tokens
            click.echo(f"lookup   {timings.drafted_tokens} tokens guessed, {kept:.0%} kept", err=True)
