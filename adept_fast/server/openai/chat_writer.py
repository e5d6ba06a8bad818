"""ChatWriter: answers in the form of ``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from adept_fast.chat.format import AnswerStripper
from adept_fast.engine.sequence import Generation, GenerationEvent, TokenLogprob
from adept_fast.server.openai.answers import Answers, finish_reason_of
from adept_fast.server.openai.chat_request import ChatRequest
from adept_fast.server.openai.chat_response import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatTokenLogprob,
    ChunkChoice,
    Delta,
    TopLogprob,
)
from adept_fast.server.openai.delivery import Writer
from adept_fast.server.openai.identity import Identity
from adept_fast.server.openai.token_text import token_bytes, token_text
from adept_fast.server.openai.usage import usage_of
from adept_fast.tokenizer.tokenizer import Tokenizer


class ChatWriter(Writer):
    """Writes ``n`` answers to a conversation."""

    def __init__(self, body: ChatRequest, tokenizer: Tokenizer, model_name: str, identity: Identity) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._strippers: dict[int, AnswerStripper] = {}  # of answers that have begun
        self._head = {
            "id": f"chatcmpl-{identity.token}",
            "created": identity.created,
            "model": model_name,
        }

    def whole(self, generations: Sequence[Generation]) -> BaseModel:
        choices = []
        for index, generation in enumerate(generations):
            reason = finish_reason_of(generation.finish_reason)
            assert reason is not None
            content = AnswerStripper().push(generation.text)
            message = AnswerMessage(role="assistant", content=content, refusal=None)
            logprobs = self._logprobs(generation.logprobs)
            choices.append(ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=reason))
        usage = usage_of(generations, self._body.n)
        return ChatCompletion(**self._head, object="chat.completion", choices=choices, usage=usage)  # type: ignore[arg-type]

    def chunks(self, index: int, event: GenerationEvent, answers: Answers) -> Iterator[BaseModel]:
        if index not in self._strippers:
            self._strippers[index] = AnswerStripper()
            yield self._chunk(index, Delta(role="assistant", content=""))
        text = self._strippers[index].push(event.text)
        if text or event.logprobs:
            yield self._chunk(index, Delta(content=text), event)
        if event.finish_reason is not None:
            yield self._chunk(index, Delta(), finished=event)

    def last_chunk(self, generations: Sequence[Generation]) -> BaseModel | None:
        if not self._body.includes_usage:
            return None
        usage = usage_of(generations, self._body.n)
        return ChatChunk(**self._head, object="chat.completion.chunk", choices=[], usage=usage)  # type: ignore[arg-type]

    def _chunk(
        self,
        index: int,
        delta: Delta,
        event: GenerationEvent | None = None,
        finished: GenerationEvent | None = None,
    ) -> ChatChunk:
        choice = ChunkChoice(
            index=index,
            delta=delta,
            logprobs=None if event is None else self._logprobs(event.logprobs),
            finish_reason=None if finished is None else finish_reason_of(finished.finish_reason),
        )
        more = {"usage": None} if self._body.includes_usage else {}
        return ChatChunk(**self._head, object="chat.completion.chunk", choices=[choice], **more)  # type: ignore[arg-type]

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
        if logprobs is None:
            return None
        content = [
            ChatTokenLogprob(
                **self._token(entry.token_id, entry.logprob).model_dump(),
                top_logprobs=[self._token(*likely) for likely in entry.top],
            )
            for entry in logprobs
        ]
        return ChatLogprobs(content=content, refusal=None)

    def _token(self, token_id: int, logprob: float) -> TopLogprob:
        raw = token_bytes(self._tokenizer, token_id)
        return TopLogprob(token=token_text(raw), logprob=logprob, bytes=list(raw))
