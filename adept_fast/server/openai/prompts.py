"""Prompts of HTTP requests as token ids. Long ones take time: call these from a thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from adept_fast.arguments import ParameterError
from adept_fast.chat.format import ChatError
from adept_fast.engine.sequence import Request
from adept_fast.engine.sequence import check_prompt as check_prompt_ids
from adept_fast.sampling import SamplingParams
from adept_fast.server.answering import ServedModel
from adept_fast.server.api_error import ApiError
from adept_fast.server.prompt_length import max_characters
from adept_fast.server.settings import Settings
from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer, TokenizerError


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's token ids, and its text, if it was text."""

    ids: list[int]
    given_text: str | None

    def text(self, tokenizer: Tokenizer) -> str:
        """Its text, without bytes of a character that the answer completes: they belong to the answer."""
        given = self.given_text
        return StreamingDetokenizer(tokenizer).extend(self.ids) if given is None else given


def encode_prompt(
    model: ServedModel, prompt: str | Sequence[int], add_bos: bool | None, name: str
) -> EncodedPrompt:
    """One without tokens becomes BOS. Raises ApiError that names the parameter."""
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        check_characters(model, len(prompt), name)
    try:
        ids = tokenizer.encode(prompt, add_bos=add_bos) if isinstance(prompt, str) else list(prompt)
        ids = ids or tokenizer.encode("", add_bos=True)
    except TokenizerError as error:
        raise ApiError(400, f"{name}: {error}", name, "invalid_value") from error
    check_prompt(model, ids, name)
    return EncodedPrompt(ids, prompt if isinstance(prompt, str) else None)


def encode_messages(
    model: ServedModel, messages: Sequence[Mapping[str, str]], add_bos: bool | None, *, answered: bool = True
) -> list[int]:
    """The prompt of a conversation, which ends where the answer begins. Raises ApiError."""
    check_characters(model, sum(len(message["content"]) for message in messages), "messages")
    try:
        ids = model.tokenizer.apply_chat_template(messages, add_generation_prompt=answered, add_bos=add_bos)
    except (ChatError, TokenizerError) as error:
        raise ApiError(400, str(error), "messages", "invalid_value") from error
    return ids


def check_characters(model: ServedModel, characters: int, name: str) -> None:
    """Raises ApiError for text that has more characters than tokens of the context can stand for.

    Other threads wait while a text is encoded: one of some million characters would stop every stream.
    """
    limit = max_characters(model)
    if characters > limit:
        raise ApiError(
            400,
            f"{name} has {characters} characters; expected at most {limit}, "
            f"the longest text of {model.max_seq_len} tokens, this server's context",
            name,
            "context_length_exceeded",
        )


def check_prompt(model: ServedModel, ids: Sequence[int], name: str) -> None:
    """Raises ApiError for too many ids, or ids that are not in the vocabulary."""
    if len(ids) > model.max_seq_len:
        raise ApiError(
            400,
            f"{name} has {len(ids)} tokens; expected at most {model.max_seq_len}, this server's context",
            name,
            "context_length_exceeded",
        )
    try:
        check_prompt_ids(ids, model.tokenizer.vocab_size, model.max_seq_len)
    except ParameterError as error:
        message = name + str(error).removeprefix("prompt")
        raise ApiError(400, message, name, "invalid_value") from error


def check_biases(model: ServedModel, biases: Iterable[int]) -> None:
    """Raises ApiError for tokens that are not in the vocabulary."""
    last_id = model.tokenizer.vocab_size - 1
    for token_id in biases:
        if token_id > last_id:
            message = f"logit_bias has the token id {token_id}; expected 0 to {last_id}"
            raise ApiError(400, message, "logit_bias", "invalid_value")


@dataclass(frozen=True)
class Origin:
    """What the requests of one client have in common: their time, and whose prefixes they may reuse."""

    seconds: float | None = None  # None for no limit
    cache_scope: str = ""

    @classmethod
    def of(cls, http_request: HttpRequest, settings: Settings) -> Origin:
        return cls(settings.request_seconds, getattr(http_request.state, "cache_scope", ""))


def engine_requests(
    prompts: Iterable[list[int]],
    params: Sequence[SamplingParams],
    origin: Origin,
    prompt_logprobs: int | None = None,
) -> list[Request]:
    """A request for each prompt and choice, those of the first prompt first. Their time begins now."""
    deadline = None if origin.seconds is None else time.monotonic() + origin.seconds
    scope = origin.cache_scope
    return [
        Request(ids, choice, deadline=deadline, prompt_logprobs=prompt_logprobs, cache_scope=scope)
        for ids in prompts
        for choice in params
    ]
