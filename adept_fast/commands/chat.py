"""``adept-fast chat``: a conversation in the terminal."""

from __future__ import annotations

from typing import Any

from adept_fast.arguments import ParameterError
from adept_fast.chat.format import ChatError
from adept_fast.commands.conversation import Turn, chat_ids, stopping_answers
from adept_fast.commands.errors import show_error
from adept_fast.commands.loading import chosen_checkpoint, load_runtime, sampling_params
from adept_fast.commands.question import ask, say_forgotten
from adept_fast.commands.streaming import print_stream
from adept_fast.engine.runtime import Runtime
from adept_fast.engine.text_stream import TextStream
from adept_fast.sampling import SamplingParams
from adept_fast.system.text_input import LineReader, TextError


def run(options: dict[str, Any]) -> None:
    params = sampling_params(options)
    lines = LineReader.of_stdin()
    checkpoint = chosen_checkpoint(options)
    params.check_vocabulary(checkpoint.tokenizer.vocab_size)
    runtime = load_runtime(checkpoint, options)
    params = stopping_answers(params, runtime.tokenizer)
    history: list[Turn] = []
    while True:
        try:
            question = ask(lines)
            if question is None:
                return
            if not question.strip():
                continue
            kept, stream = _begin_answer(runtime, question, history, params, options["add_bos"])
        except (TextError, ParameterError, ChatError) as error:
            show_error(error)
            continue
        history = [*kept, Turn(question, print_stream(stream, as_chat=True))]


def _begin_answer(
    runtime: Runtime, question: str, history: list[Turn], params: SamplingParams, add_bos: bool | None
) -> tuple[list[Turn], TextStream]:
    """The turns that fit into the context, and the answer; the oldest turns are forgotten first."""
    room = runtime.max_seq_len - min(params.max_new_tokens or 0, runtime.max_seq_len // 2)
    kept = list(history)
    prompt = chat_ids(runtime.tokenizer, question, kept, add_bos=add_bos)
    while kept and len(prompt) > room:
        kept.pop(0)
        prompt = chat_ids(runtime.tokenizer, question, kept, add_bos=add_bos)
    stream = runtime.stream(prompt, params)
    if len(kept) < len(history):
        say_forgotten(len(history) - len(kept))
    return kept, stream
