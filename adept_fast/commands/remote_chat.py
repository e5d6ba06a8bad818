"""``adept-fast chat --server URL``: a conversation in the terminal with the model of a server.

No module here needs torch, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from adept_fast.commands.chat_client import ChatClient, Model, ServerError, Usage
from adept_fast.commands.errors import show_error
from adept_fast.commands.output import print_text
from adept_fast.commands.question import ask, say_forgotten
from adept_fast.commands.remote_turns import RemoteTurn, answered, fitting, messages
from adept_fast.system.text_input import LineReader, TextError

# The options of sampling that are parameters of the API too, and their values that need not be sent.
_UNSENT: dict[str, object] = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "logit_bias": (),
    "seed": None,
    "stop": (),
}
_OTHERS = {"server", "api_key", "debug", "max_new_tokens", "temperature"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but for tabs and newlines


def run(options: dict[str, Any]) -> None:
    _refuse_local_options()
    try:
        client = ChatClient(options["server"], options["api_key"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    lines = LineReader.of_stdin()
    conversation = _Conversation(client, client.model(), _settings(options))
    while True:
        try:
            question = ask(lines)
        except TextError as error:
            show_error(error)
            continue
        if question is None:
            return
        if question.strip():
            conversation.answer(question)


class _Conversation:
    """The turns so far. One without an answer is none; an answer that Ctrl-C or an error cuts is kept."""

    def __init__(self, client: ChatClient, model: Model, settings: Mapping[str, Any]) -> None:
        self._client, self._model, self._settings = client, model, settings
        self._turns: list[RemoteTurn] = []

    def answer(self, question: str) -> None:
        """Print the answer, or the error. The oldest turns are forgotten as far as they do not fit."""
        kept = self._fitting(question)
        while True:
            try:
                text, usage = self._print(messages(kept, question))
                break
            except ServerError as error:
                if not (error.is_too_long and kept):
                    show_error(error)
                    return
                kept = kept[1:]
        if text:
            if len(kept) < len(self._turns):
                say_forgotten(len(self._turns) - len(kept))
            self._turns = [*kept, answered(question, text, usage, kept)]

    def _fitting(self, question: str) -> list[RemoteTurn]:
        """The turns that leave room for the answer, as far as the server tells its model's context."""
        context = self._model.context
        if context is None:
            return self._turns
        room = min(self._settings["max_tokens"], context // 2)
        return fitting(self._turns, question, context - room)

    def _print(self, prompt: list[dict[str, str]]) -> tuple[str, Usage | None]:
        """Print an answer while it arrives. Raises ServerError if there is none at all."""
        text, usage, failure = "", None, None
        try:
            with contextlib.closing(self._client.stream(self._model.name, prompt, self._settings)) as parts:
                for part in parts:
                    if isinstance(part, Usage):
                        usage = part
                    else:
                        text += part  # first, as Ctrl-C may come right after it was printed
                        print_text(_CONTROL.sub(_escaped, part), newline=False)
        except KeyboardInterrupt:
            pass
        except ServerError as error:
            if not text:
                raise
            failure = error
        print_text("")
        if failure is not None:
            show_error(failure)
        return text, usage


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request: those that say what the options' defaults are, and others that are set."""
    settings = {"max_tokens": options["max_new_tokens"], "temperature": options["temperature"]}
    settings |= {name: options[name] for name, unsent in _UNSENT.items() if options[name] != unsent}
    if options["logit_bias"]:
        settings["logit_bias"] = {str(token_id): bias for token_id, bias in options["logit_bias"]}
    return settings


def _escaped(control: re.Match[str]) -> str:
    """A server's text must not move the cursor, or do worse."""
    return control[0].encode("unicode_escape").decode("ascii")


def _refuse_local_options() -> None:
    """Raise a usage error that names the options on the command line that a server cannot follow."""
    context = click.get_current_context()
    local = [
        "/".join([*parameter.opts, *parameter.secondary_opts])
        for parameter in context.command.params
        if parameter.name not in _UNSENT.keys() | _OTHERS
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if local:
        raise click.UsageError(
            f"--server is given together with {', '.join(local)}, for a model that is loaded here; "
            f"expected one or the other"
        )
