"""``adept-fast score``: log-probability and perplexity of texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import click

from adept_fast.arguments import ParameterError
from adept_fast.commands.errors import show_error
from adept_fast.commands.loading import chosen_checkpoint, load_runtime
from adept_fast.commands.output import print_json, print_text
from adept_fast.engine.runtime import Runtime
from adept_fast.engine.scoring import Score
from adept_fast.system.text_input import LineReader, TextError
from adept_fast.tokenizer.tokenizer import TokenizerError

NamedText = tuple[str, str | TextError]  # its name in errors, and the text or the reason why there is none


def run(options: dict[str, Any]) -> None:
    texts = _of_arguments(options["texts"]) if options["texts"] else _of_lines(LineReader.of_stdin())
    first = next(texts, None)
    if first is None:
        raise click.UsageError("expected at least one text, as an argument or on stdin")
    runtime = load_runtime(chosen_checkpoint(options), options)
    failed = False
    for name, text in chain([first], texts):
        if isinstance(text, TextError):
            show_error(text)
            failed = True
            continue
        try:
            (scored,) = runtime.score([text], add_bos=options["add_bos"])
        except (ParameterError, TokenizerError) as error:
            show_error(type(error)(f"{name}: {error}"))
            failed = True
            continue
        _print_score(runtime, text, scored, as_json=options["as_json"])
    if failed:
        click.get_current_context().exit(1)


def _of_arguments(texts: tuple[str, ...]) -> Iterator[NamedText]:
    for number, text in enumerate(texts, 1):
        yield f"text {number}", text


def _of_lines(lines: LineReader) -> Iterator[NamedText]:
    while True:
        try:
            text: str | TextError | None = lines.read()
        except TextError as error:
            text = error
        if text is None:
            return
        yield f"stdin, line {lines.number}", text


def _print_score(runtime: Runtime, text: str, scored: Score, *, as_json: bool) -> None:
    if not as_json:
        print_text(f"{scored.total:.4f}\t{scored.perplexity:.4g}\t{text}")
        return
    print_json(
        {
            "text": text,
            "logprob": scored.total,
            "token_ids": scored.token_ids,
            "tokens": [runtime.tokenizer.piece(token_id) for token_id in scored.token_ids],
            "logprobs": scored.logprobs,
        }
    )
