"""Conversations as prompts, in the checkpoint's chat format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adept_fast.chat.format import Turn
from adept_fast.sampling import SamplingParams
from adept_fast.tokenizer.tokenizer import Tokenizer

__all__ = ["Turn", "chat_ids", "stopping_answers"]


def chat_ids(
    tokenizer: Tokenizer, question: str, history: Sequence[Turn] = (), *, add_bos: bool | None = None
) -> list[int]:
    """The prompt that asks ``question`` after the turns before it, as token ids. Raises ChatError."""
    messages = []
    for turn in history:
        messages.append({"role": "user", "content": turn.human})
        messages.append({"role": "assistant", "content": turn.adept})
    messages.append({"role": "user", "content": question})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, add_bos=add_bos)


def stopping_answers(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """The settings, plus the stop strings of the checkpoint's chat format."""
    return replace(params, stop=(*params.stop, *tokenizer.chat_format.stop))
