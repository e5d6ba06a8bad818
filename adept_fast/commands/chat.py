"""``adept-fast chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Any

import click

from adept_fast.commands.conversation import Turn, chat_ids, stopping_answers
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
from adept_fast.runtime import Runtime
from adept_fast.sampling import SamplingParams


@click.command(cls=OneLineErrors)
@checkpoint_option
@placement_options
@sampling_options
@bos_option
def chat(**options: Any) -> None:
    """Talk with the model. Ctrl-C stops an answer, Ctrl-D leaves."""
    runtime = load_runtime(options)
    params = stopping_answers(sampling_params(options), runtime.tokenizer)
    history: list[Turn] = []
    while (question := _ask()) is not None:
        if not question.strip():
            continue
        history, prompt = _fit(runtime, question, history, params, options["add_bos"])
        stream = runtime.stream(prompt, params)
        history.append(Turn(question, print_stream(stream, as_chat=True)))


def _ask() -> str | None:
    """The next question; None when the conversation is over. A person is prompted, on stderr."""
    while True:
        if sys.stdin.isatty():
            click.echo("human: ", nl=False, err=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D leaves)", err=True)
            continue
        if not line:
            click.echo(err=True)
            return None
        return line.rstrip("\n")


def _fit(
    runtime: Runtime, question: str, history: list[Turn], params: SamplingParams, add_bos: bool | None
) -> tuple[list[Turn], list[int]]:
    """The turns that the context still holds, and the prompt they make; the oldest are forgotten first."""
    room = runtime.max_seq_len - min(params.max_new_tokens or 0, runtime.max_seq_len // 2)
    kept = list(history)
    prompt = chat_ids(runtime.tokenizer, question, kept, add_bos=add_bos)
    while kept and len(prompt) > room:
        kept.pop(0)
        prompt = chat_ids(runtime.tokenizer, question, kept, add_bos=add_bos)
    if len(kept) < len(history):
        click.echo(
            f"(the context is full: the first {len(history) - len(kept)} turns are forgotten)", err=True
        )
    return kept, prompt
