"""``adept-fast generate``: stream the continuation of one prompt, or continue several."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from adept_fast.arguments import ParameterError
from adept_fast.chat.format import ChatError, strip_answer
from adept_fast.checkpoint import Checkpoint
from adept_fast.commands.conversation import chat_ids, stopping_answers
from adept_fast.commands.loading import chosen_checkpoint, load_runtime, sampling_params
from adept_fast.commands.output import print_json, print_text
from adept_fast.commands.streaming import print_stream
from adept_fast.engine.runtime import Runtime
from adept_fast.engine.sequence import Generation
from adept_fast.memory.bandwidth import measure_read_bandwidth
from adept_fast.sampling import SamplingParams
from adept_fast.system import text_input
from adept_fast.system.byte_counts import format_bytes
from adept_fast.tokenizer.tokenizer import Tokenizer, TokenizerError

_NAMES_OF_STDIN = {"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and its source."""

    text: str
    source: str


def run(options: dict[str, Any]) -> None:
    params = sampling_params(options, logprobs=options["logprobs"])
    prompts = _read_prompts(options)
    checkpoint = chosen_checkpoint(options)
    params.check_vocabulary(checkpoint.tokenizer.vocab_size)
    if options["as_chat"]:
        params = stopping_answers(params, checkpoint.tokenizer)
    given = _token_ids(prompts, checkpoint.tokenizer, options)
    runtime = _load_for(prompts, given, checkpoint, options)
    warmup_seconds = _warm_up(runtime) if options["stats"] else 0.0
    if len(prompts) == 1 and not options["as_json"]:
        generations = [_stream(runtime, given[0], params, options)]
    else:
        generations = runtime.generate(given, params)
        for prompt, generation in zip(prompts, generations, strict=True):
            if options["as_json"]:
                print_json(_as_object(prompt.text, generation, options))
            else:
                print_text(_text(generation, options))
    if options["stats"]:
        _print_stats(runtime, generations, warmup_seconds)


def _read_prompts(options: dict[str, Any]) -> list[Prompt]:
    """The values of ``--prompt``, then the contents of files."""
    files = options["prompt_files"]
    if sum(name in _NAMES_OF_STDIN for name in files) > 1:
        raise click.UsageError("--prompt-file is stdin more than once; expected it once")
    texts = [(text, "--prompt") for text in options["prompts"]] + [_read(name) for name in files]
    if not texts:
        raise click.UsageError("expected at least one --prompt or --prompt-file")
    return [Prompt(text, source) for text, source in texts]


def _read(name: str) -> tuple[str, str]:
    """The text of a file without the end of its last line, and the name of the file in errors."""
    if name == "-":
        return text_input.read_stdin().removesuffix("\n"), text_input.STDIN
    return text_input.read_text(name).removesuffix("\n"), name


def _token_ids(prompts: list[Prompt], tokenizer: Tokenizer, options: dict[str, Any]) -> list[list[int]]:
    """The token ids of each prompt. Raises ChatError or TokenizerError, which name the prompt."""
    given = []
    encode = partial(chat_ids, tokenizer) if options["as_chat"] else tokenizer.encode
    for number, prompt in enumerate(prompts, 1):
        try:
            given.append(encode(prompt.text, add_bos=options["add_bos"]))
        except (ChatError, TokenizerError) as error:
            raise type(error)(f"{_named(number, prompt)}: {error}") from error
    return given


def _load_for(
    prompts: list[Prompt], given: list[list[int]], checkpoint: Checkpoint, options: dict[str, Any]
) -> Runtime:
    """A Runtime with room for each prompt; too long a prompt is refused before weights are read."""
    longest = checkpoint.config.max_position_embeddings
    longest = min(options["max_seq_len"] or longest, longest)
    _check_lengths(prompts, given, longest)
    runtime = load_runtime(checkpoint, options, max_batch_size=min(len(prompts), options["batch_size"]))
    if runtime.max_seq_len < longest:  # memory has no room for the whole context
        _check_lengths(prompts, given, runtime.max_seq_len)
    return runtime


def _check_lengths(prompts: list[Prompt], given: list[list[int]], max_tokens: int) -> None:
    """Raises ParameterError, which names the prompt that is too long."""
    for number, (prompt, ids) in enumerate(zip(prompts, given, strict=True), 1):
        if len(ids) > max_tokens:
            raise ParameterError(
                f"{_named(number, prompt)} has {len(ids)} tokens; expected at most max_seq_len {max_tokens}"
            )


def _named(number: int, prompt: Prompt) -> str:
    return f"prompt {number} ({prompt.source})"


def _warm_up(runtime: Runtime) -> float:
    """Seconds of the warm-up, such as loading libraries, which the first prompt would include."""
    started = time.perf_counter()
    runtime.warm_up()
    return time.perf_counter() - started


def _stream(runtime: Runtime, ids: list[int], params: SamplingParams, options: dict[str, Any]) -> Generation:
    stream = runtime.stream(ids, params)
    print_stream(stream, as_chat=options["as_chat"])
    return stream.result


def _text(generation: Generation, options: dict[str, Any]) -> str:
    return "".join(strip_answer([generation.text])) if options["as_chat"] else generation.text


def _as_object(prompt: str, generation: Generation, options: dict[str, Any]) -> dict[str, Any]:
    timings = generation.timings
    entries: dict[str, Any] = {
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
        entries["logprobs"] = [
            {"token_id": entry.token_id, "logprob": entry.logprob, "top": [list(pair) for pair in entry.top]}
            for entry in generation.logprobs
        ]
    return entries


def _print_stats(runtime: Runtime, generations: list[Generation], warmup_seconds: float) -> None:
    """Print speeds, and the bytes that decoding read against the bandwidth of memory."""
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
            f"{bandwidth / 1e9:.1f} GB/s of the memory",
            err=True,
        )
        if timings.drafted_tokens:
            kept = timings.accepted_tokens / timings.drafted_tokens
            click.echo(f"lookup   {timings.drafted_tokens} tokens guessed, {kept:.0%} kept", err=True)
