"""A checkpoint's own chat format: the jinja template that lies in its directory."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError

from adept_fast.chat.budget import MAX_SOURCE, TemplateLimitError, budgeted, size_of
from adept_fast.chat.format import ChatError
from adept_fast.chat.sandbox import BoundedEnvironment, RefusedError

_MAX_NESTING = 32  # of lists and objects in a message
_PLAIN = (bool, int, float)


class ChatTemplate:
    """A chat format written in jinja, as transformers renders it.

    The template writes special tokens itself, by their names. No string but the end tokens ends an answer.

    Args:
        source: the template.
        label: where it was found, for errors.
    """

    stop: tuple[str, ...] = ()
    has_system_role = True
    writes_special_tokens = True

    def __init__(self, source: str, label: str) -> None:
        self._source = source
        self.label = label

    def __str__(self) -> str:
        return f"the template in {self.label}"

    def source(self, add_bos: bool) -> str:
        """The jinja source, which decides by itself whether BOS comes first."""
        return self._source

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        special_tokens: Mapping[str, str] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with a ``role``, most often a ``content``, and whatever the template reads.
            add_generation_prompt: whether the text ends where the model's answer begins.
            special_tokens: variables of the template, such as ``bos_token``.

        Raises ChatError where the messages are none, or the template is broken, refuses them, or takes more
        time or memory than it may.
        """
        conversation = [_message(at, message) for at, message in enumerate(_listed(messages))]
        try:
            size_of(conversation)
            with budgeted():
                return self._template.render(
                    **(special_tokens or {}),
                    messages=conversation,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                )
        except RefusedError as error:
            raise ChatError(f"{self} refuses the conversation: {error.message}") from error
        except TemplateLimitError as error:
            raise ChatError(f"{self} cannot be rendered: {error}") from error
        except RecursionError as error:
            raise ChatError(f"{self} cannot be rendered: its calls are nested too deep") from error
        except ChatError:
            raise
        except Exception as error:  # of the template's making: it may divide by 0, or add a text to a number
            raise ChatError(f"{self} cannot be rendered: {type(error).__name__}: {error!s:.500}") from error

    @functools.cached_property
    def _template(self) -> Template:
        """The compiled template; ChatError where it is none."""
        if len(self._source) > MAX_SOURCE:
            raise ChatError(f"{self} has {len(self._source)} characters; expected at most {MAX_SOURCE}")
        try:
            return BoundedEnvironment().compile_bounded(self._source)
        except TemplateSyntaxError as error:
            raise ChatError(f"{self} is no jinja template: line {error.lineno}: {error.message}") from error
        except (
            TemplateError,
            ArithmeticError,
            MemoryError,
            RecursionError,
            SyntaxError,
            ValueError,
        ) as error:
            raise ChatError(f"{self} is no jinja template: {type(error).__name__}: {error!s:.500}") from error


def _listed(messages: object) -> Sequence[Any]:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise ChatError(f"messages is {messages!r:.80}; expected a list of at least one message")
    return messages


def _message(at: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ChatError(f"messages[{at}] is {message!r:.80}; expected a role and a content")
    if not isinstance(message.get("role"), str):
        raise ChatError(f"messages[{at}] has the role {message.get('role')!r:.80}; expected text")
    # As a server's client sends it: what a message lacks is null.
    return {
        str(name): _plain(f"messages[{at}][{name!r:.40}]", value, 0)
        for name, value in message.items()
        if value is not None
    }


def _plain(name: str, value: object, depth: int) -> Any:
    """A copy of plain JSON types: an object of another kind might have methods that do more than it seems."""
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if depth < _MAX_NESTING and isinstance(value, Mapping):
        return {str(key): _plain(name, item, depth + 1) for key, item in value.items()}
    if depth < _MAX_NESTING and isinstance(value, (list, tuple)):
        return [_plain(name, item, depth + 1) for item in value]
    raise ChatError(
        f"{name} holds a {type(value).__name__}, {depth} deep; expected text, numbers, lists and objects, "
        f"at most {_MAX_NESTING} deep"
    )
