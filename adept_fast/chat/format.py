"""Chat formats, and that of Persimmon's chat models: ``human: …\\n\\nadept: …``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adept_fast.system.short_text import short_repr

_SPEAKERS = {"user": "human", "assistant": "adept"}  # roles, as transformers calls them

# HumanAdeptFormat, as the template that transformers reads.
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

Messages = Sequence[Mapping[str, Any]]
Names = Mapping[str, str]  # of special tokens

STOP = "\n\nhuman:"  # the model begins to write the next question itself


class ChatError(ValueError):
    """A conversation that the format cannot express."""


class ChatFormat(ABC):
    """How a conversation becomes one text; ``str()`` of it is the name of the format."""

    stop: tuple[str, ...] = ()  # strings that end an answer, besides the end tokens
    has_system_role = True  # whether a message may have the role ``system``, as far as that is known
    writes_special_tokens = True  # whether names of special tokens in the text are those tokens, BOS too

    @abstractmethod
    def source(self, add_bos: bool) -> str:
        """The format as a jinja template, for transformers; BOS comes first if ``add_bos``."""

    @abstractmethod
    def _render(self, messages: Messages, add_generation_prompt: bool, special_tokens: Names) -> str: ...

    def text(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        special_tokens: Names | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with a ``role``, usually a ``content``, and whatever else a template reads.
            add_generation_prompt: whether the text ends where the model's answer begins.
            special_tokens: variables of a template, such as ``bos_token``.

        Raises ChatError if the format cannot express the messages.
        """
        if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
            raise ChatError(f"messages is {short_repr(messages)}; expected a list of at least one message")
        for at, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise ChatError(f"messages[{at}] is {short_repr(message)}; expected a role and a content")
            if not isinstance(message.get("role"), str):
                raise ChatError(
                    f"messages[{at}] has the role {short_repr(message.get('role'))}; expected text"
                )
        if not isinstance(add_generation_prompt, bool):
            raise ChatError(
                f"add_generation_prompt is {short_repr(add_generation_prompt)}; expected True or False"
            )
        return self._render(messages, add_generation_prompt, special_tokens or {})


class HumanAdeptFormat(ChatFormat):
    """``human: …``, a blank line, ``adept: …``: the format of checkpoints without a template."""

    stop = (STOP,)
    has_system_role = False
    writes_special_tokens = False

    def __str__(self) -> str:
        return "human: … adept: …"

    def source(self, add_bos: bool) -> str:
        return ("{{- bos_token }}" if add_bos else "") + _TEMPLATE

    def _render(self, messages: Messages, add_generation_prompt: bool, special_tokens: Names) -> str:
        blocks = []
        for at, message in enumerate(messages):
            role, content = message["role"], message.get("content")
            if role not in _SPEAKERS:
                raise ChatError(
                    f"messages[{at}] has the role {short_repr(role)}; expected 'user' or 'assistant'"
                )
            if not isinstance(content, str):
                raise ChatError(f"messages[{at}] has the content {short_repr(content)}; expected text")
            blocks.append(f"{_SPEAKERS[role]}: {content}")
        return "\n\n".join([*blocks, "adept:"] if add_generation_prompt else blocks)


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    human: str
    adept: str


def chat_prompt(question: str, history: Sequence[Turn] = ()) -> str:
    """The prompt that asks ``question`` after the turns before it. Raises ChatError."""
    if not isinstance(question, str):
        raise ChatError(f"question is {short_repr(question)}; expected text")
    if not isinstance(history, Sequence) or not all(isinstance(turn, Turn) for turn in history):
        raise ChatError(f"history is {short_repr(history)}; expected a list of Turn")
    blocks = [f"human: {turn.human}\n\nadept: {turn.adept}" for turn in history]
    return "\n\n".join([*blocks, f"human: {question}\n\nadept:"])


class AnswerStripper:
    """Removes the leading spaces of an answer that arrives in pieces."""

    def __init__(self) -> None:
        self._has_begun = False

    def push(self, piece: str) -> str:
        """The piece, without spaces before the first other character of the answer; may be empty."""
        text = piece if self._has_begun else piece.lstrip(" ")
        self._has_begun = self._has_begun or bool(text)
        return text


def strip_answer(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of an answer without its leading spaces."""
    stripper = AnswerStripper()
    for piece in pieces:
        if text := stripper.push(piece):
            yield text
