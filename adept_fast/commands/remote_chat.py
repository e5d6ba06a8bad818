"""``adept-fast chat --server URL``: a conversation in the terminal with the model of a server.

No module here needs torch, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import click
from click.core import ParameterSource

from adept_fast.chat.format import Turn
from adept_fast.commands.chat_client import ChatClient, ServerError
from adept_fast.commands.errors import show_error
from adept_fast.commands.output import print_text
from adept_fast.commands.question import ask, say_forgotten
from adept_fast.system.text_input import LineReader, TextError

# The options of sampling: the parameter of the API, and the value that need not be sent.
_SETTINGS = {
    "max_new_tokens": ("max_tokens", None),
    "temperature": ("temperature", None),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "seed": ("seed", None),
    "stop": ("stop", ()),
}
_OTHERS = {"server", "api_key", "debug"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but for tabs and newlines


def run(options: dict[str, Any]) -> None:
    _refuse_local_options()
    try:
        client = ChatClient(options["server"], options["api_key"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    settings = {
        name: options[option]
        for option, (name, unsent) in _SETTINGS.items()
        if options[option] not in (None, unsent)
    }
    lines = LineReader.of_stdin()
    client.model()  # a server that is not there is an error now, and not after the first question
    history: list[Turn] = []
    while True:
        try:
            question = ask(lines)
        except TextError as error:
            show_error(error)
            continue
        if question is None:
            return
        if question.strip():
            history = _answer(client, question, history, settings)


def _answer(client: ChatClient, question: str, history: list[Turn], settings: dict[str, Any]) -> list[Turn]:
    """Print the answer, or the error; returns the turns after it, without those that the context cannot hold.

    A turn without an answer is none; an answer that Ctrl-C or an error cuts is kept.
    """
    for forgotten in range(len(history) + 1):
        kept, answer = history[forgotten:], ""
        try:
            with contextlib.closing(client.stream(_messages(kept, question), settings)) as pieces:
                for piece in pieces:
                    print_text(_CONTROL.sub(_escaped, piece), newline=False)
                    answer += piece
            print_text("")
        except KeyboardInterrupt:
            print_text("")
        except ServerError as error:
            if error.is_too_long and kept:
                continue
            if answer:
                print_text("")
            show_error(error)
        break
    if not answer:
        return history
    if forgotten:
        say_forgotten(forgotten)
    return [*kept, Turn(question, answer)]


def _messages(history: list[Turn], question: str) -> list[dict[str, str]]:
    messages = []
    for turn in history:
        messages.append({"role": "user", "content": turn.human})
        messages.append({"role": "assistant", "content": turn.adept})
    return [*messages, {"role": "user", "content": question}]


def _escaped(control: re.Match[str]) -> str:
    """A server's text must not move the cursor, or do worse."""
    return control[0].encode("unicode_escape").decode("ascii")


def _refuse_local_options() -> None:
    """Raise a usage error that names the options on the command line that a server cannot follow."""
    context = click.get_current_context()
    local = [
        "/".join([*parameter.opts, *parameter.secondary_opts])
        for parameter in context.command.params
        if parameter.name not in _SETTINGS.keys() | _OTHERS
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if local:
        raise click.UsageError(
            f"--server is given together with {', '.join(local)}, for a model that is loaded here; "
            f"expected one or the other"
        )
