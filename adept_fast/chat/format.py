"""Chat formats, and the one that Persimmon's chat models are tuned for: ``human: …\\n\\nadept: …``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adept_fast.system.short_text import short_repr

_SPEAKERS = {"user": "human", "assistant": "adept"}  # roles, as transformers calls them

# ``chat_text``, as the template that transformers reads.
_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}"
    "{{- ('' if loop.first else '\\n\\n') + 'human: ' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- ('' if loop.first else '\\n\\n') + 'adept: ' + message['content'] }}"
    "{%- else %}{{- raise_exception('the roles are user and assistant, not ' + message['role']) }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n\\nadept:' }}{%- endif %}"
)

STOP = "\n\nhuman:"  # where the model begins to write the next question itself


class ChatError(ValueError):
    """A conversation that the format cannot express."""


class ChatFormat(Protocol):
    """How a conversation becomes one text; ``str()`` of it says which format it is."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer, besides the end tokens."""
        ...

    @property
    def has_system_role(self) -> bool:
        """Whether a message may have the role ``system``, as far as that is known."""
        ...

    @property
    def writes_special_tokens(self) -> bool:
        """Whether names of special tokens in the text are those tokens, BOS too."""
        ...

    def source(self, add_bos: bool) -> str:
        """The jinja template of the format, with BOS first where ``add_bos``."""
        ...

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        special_tokens: Mapping[str, str] | None = None,
    ) -> str:
        """The conversation as one text; ChatError where the format cannot express it."""
        ...


class HumanAdeptFormat:
    """``human: …``, a blank line, ``adept: …``: the format of checkpoints that bring no other."""

    stop = (STOP,)
    has_system_role = False
    writes_special_tokens = False

    def __str__(self) -> str:
        return "human: … adept: …"

    def source(self, add_bos: bool) -> str:
        return chat_template(add_bos)

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        special_tokens: Mapping[str, str] | None = None,
    ) -> str:
        return chat_text(messages, add_generation_prompt=add_generation_prompt)


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    human: str
    adept: str


def chat_prompt(question: str, history: Sequence[Turn] = ()) -> str:
    """The prompt that has the model answer ``question`` after the turns before it. Raises ChatError."""
    if not isinstance(question, str):
        raise ChatError(f"question is {short_repr(question)}; expected text")
    if not isinstance(history, Sequence) or not all(isinstance(turn, Turn) for turn in history):
        raise ChatError(f"history is {short_repr(history)}; expected a list of Turn")
    blocks = [f"human: {turn.human}\n\nadept: {turn.adept}" for turn in history]
    return "\n\n".join([*blocks, f"human: {question}\n\nadept:"])


def chat_text(messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
    """A conversation as one text.

    Args:
        messages: each with a ``role``, ``user`` or ``assistant``, and a ``content``.
        add_generation_prompt: whether the text ends where the model's answer begins.

    Raises ChatError for no messages, another role (there is no system role), or content that is no text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise ChatError(f"messages is {short_repr(messages)}; expected a list of messages")
    if not messages:
        raise ChatError("messages is empty; expected at least one")
    if not isinstance(add_generation_prompt, bool):
        raise ChatError(
            f"add_generation_prompt is {short_repr(add_generation_prompt)}; expected True or False"
        )
    blocks = []
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ChatError(f"messages[{at}] is {short_repr(message)}; expected a role and a content")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in _SPEAKERS:
            raise ChatError(f"messages[{at}] has the role {short_repr(role)}; expected 'user' or 'assistant'")
        if not isinstance(content, str):
            raise ChatError(f"messages[{at}] has the content {short_repr(content)}; expected text")
        blocks.append(f"{_SPEAKERS[role]}: {content}")
    return "\n\n".join([*blocks, "adept:"] if add_generation_prompt else blocks)


def chat_template(add_bos: bool) -> str:
    """The jinja source of ``chat_text``, for transformers; with BOS first where ``add_bos``."""
    return ("{{- bos_token }}" if add_bos else "") + _TEMPLATE


def strip_answer(pieces: Iterable[str]) -> Iterator[str]:
    """Pass an answer's text on without its leading spaces."""
    started = False
    for piece in pieces:
        text = piece if started else piece.lstrip(" ")
        started = started or bool(text)
        if text:
            yield text
