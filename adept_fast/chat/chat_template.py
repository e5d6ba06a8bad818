"""The chat format of a checkpoint with a jinja template."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError

from adept_fast.chat.budget import MAX_SOURCE, TemplateLimitError, budgeted, size_of
from adept_fast.chat.format import ChatError, ChatFormat, Messages, Names
from adept_fast.chat.sandbox import BoundedEnvironment, RefusedError

_MAX_NESTING = 32  # of lists and objects in a message
_PLAIN = (bool, int, float)
_COMPILE_ERRORS = (TemplateError, ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError)


class ChatTemplate(ChatFormat):
    """A jinja template, rendered as transformers does. It writes special tokens itself, by their names.

    Args:
        label: the file that holds it, for errors.
    """

    def __init__(self, source: str, label: str) -> None:
        self._source = source
        self.label = label

    def __str__(self) -> str:
        return f"the template in {self.label}"

    def source(self, add_bos: bool) -> str:
        """The template; it decides whether BOS comes first."""
        return self._source

    def _render(self, messages: Messages, add_generation_prompt: bool, special_tokens: Names) -> str:
        """Raises ChatError also if the template is broken, refuses the messages, or exceeds its limits."""
        conversation = [_plain_message(at, message) for at, message in enumerate(messages)]
        try:
            size_of(conversation)
            with budgeted():
                return self._template.render(
                    **special_tokens,
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
        except Exception as error:  # the template may divide by 0, or add a text to a number
            raise ChatError(f"{self} cannot be rendered: {type(error).__name__}: {error!s:.500}") from error

    @functools.cached_property
    def _template(self) -> Template:
        """The compiled template. Raises ChatError."""
        if len(self._source) > MAX_SOURCE:
            raise ChatError(f"{self} has {len(self._source)} characters; expected at most {MAX_SOURCE}")
        try:
            return BoundedEnvironment().compile_bounded(self._source)
        except TemplateSyntaxError as error:
            raise ChatError(f"{self} is no jinja template: line {error.lineno}: {error.message}") from error
        except _COMPILE_ERRORS as error:
            raise ChatError(f"{self} is no jinja template: {type(error).__name__}: {error!s:.500}") from error


def _plain_message(at: int, message: Mapping[str, Any]) -> dict[str, Any]:
    # Clients of servers send null for a field that a message lacks.
    return {
        str(name): _plain(f"messages[{at}][{name!r:.40}]", value, 0)
        for name, value in message.items()
        if value is not None
    }


def _plain(name: str, value: object, depth: int) -> Any:
    """A copy of plain JSON types: methods of other objects could do anything."""
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
