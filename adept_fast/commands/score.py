"""``adept-fast score``: how likely the model finds a text."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from adept_fast.commands.errors import OneLineErrors
from adept_fast.commands.options import bos_option, checkpoint_option, load_runtime, placement_options


@click.command(cls=OneLineErrors)
@click.argument("texts", nargs=-1)
@checkpoint_option
@placement_options
@bos_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with every token.")
def score(**options: Any) -> None:
    """Print the log-probability and the perplexity of each text, or of each line of stdin."""
    texts = list(options["texts"]) or sys.stdin.read().splitlines()
    if not texts:
        raise click.UsageError("expected at least one text, as an argument or on stdin")
    runtime = load_runtime(options)
    for text in texts:
        (scored,) = runtime.score([text], add_bos=options["add_bos"])
        if options["as_json"]:
            line = {
                "text": text,
                "logprob": scored.total,
                "token_ids": scored.token_ids,
                "tokens": [runtime.tokenizer.piece(token_id) for token_id in scored.token_ids],
                "logprobs": scored.logprobs,
            }
            click.echo(json.dumps(line, ensure_ascii=False))
        else:
            click.echo(f"{scored.total:.4f}\t{scored.perplexity:.4g}\t{text}")
