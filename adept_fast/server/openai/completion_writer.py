"""CompletionWriter: continuations in the form of ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from adept_fast.engine.sequence import FinishReason, Generation, GenerationEvent, TokenLogprob
from adept_fast.server.openai.answers import Answers, finish_reason_of
from adept_fast.server.openai.completion_request import CompletionRequest
from adept_fast.server.openai.completion_response import Completion, CompletionChoice, CompletionLogprobs
from adept_fast.server.openai.delivery import Writer
from adept_fast.server.openai.identity import Identity
from adept_fast.server.openai.prompts import EncodedPrompt
from adept_fast.server.openai.token_text import TextOffsets, token_bytes, token_text
from adept_fast.server.openai.usage import Usage, usage_of
from adept_fast.tokenizer.tokenizer import Tokenizer


class _Prompt:
    """A prompt as it is written: all of it with ``echo``, else nothing."""

    def __init__(self, prompt: EncodedPrompt, tokenizer: Tokenizer, body: CompletionRequest) -> None:
        self.ids = prompt.ids
        self.text = prompt.text(tokenizer) if body.echo else ""
        has_offsets = body.echo and body.logprobs is not None
        self.offsets = TextOffsets(tokenizer).extend(prompt.ids) if has_offsets else []


class _Choice:
    """What was written of one continuation."""

    def __init__(self, prompt: _Prompt, offsets: TextOffsets) -> None:
        self.prompt, self.offsets = prompt, offsets
        self.is_begun = False


class CompletionWriter(Writer):
    """Writes ``n`` continuations of each prompt; takes time for long prompts with logprobs."""

    def __init__(
        self,
        body: CompletionRequest,
        prompts: Sequence[EncodedPrompt],
        tokenizer: Tokenizer,
        model_name: str,
        identity: Identity,
    ) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._choices = [
            _Choice(prompt, TextOffsets(tokenizer, prompt.ids, len(prompt.text)))
            for prompt in [_Prompt(encoded, tokenizer, body) for encoded in prompts]
            for _ in range(body.n)
        ]
        self._head = {
            "id": f"cmpl-{identity.token}",
            "object": "text_completion",
            "created": identity.created,
            "model": model_name,
        }

    def whole(self, generations: Sequence[Generation]) -> BaseModel:
        choices = [
            self._choice(
                index,
                generation.text,
                generation.token_ids,
                generation.logprobs,
                generation.finish_reason,
                generation.prompt_logprobs,
            )
            for index, generation in enumerate(generations)
        ]
        return self._completion(choices, usage_of(generations, self._body.n))

    def chunks(self, index: int, event: GenerationEvent, answers: Answers) -> Iterator[BaseModel]:
        is_first = not self._choices[index].is_begun
        choice = self._choice(
            index,
            event.text,
            event.token_ids,
            event.logprobs,
            event.finish_reason,
            answers.generation(index).prompt_logprobs if is_first else None,
        )
        if choice.text or choice.logprobs is not None or choice.finish_reason is not None:
            yield self._chunk([choice])

    def last_chunk(self, generations: Sequence[Generation]) -> BaseModel | None:
        if not self._body.includes_usage:
            return None
        return self._completion([], usage_of(generations, self._body.n))

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        if self._body.includes_usage:
            return self._completion(choices, None)
        return Completion(**self._head, choices=choices)  # type: ignore[arg-type]

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        return Completion(**self._head, choices=choices, usage=usage)  # type: ignore[arg-type]

    def _choice(
        self,
        index: int,
        text: str,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] | None,
        reason: FinishReason | None,
        prompt_logprobs: Sequence[TokenLogprob | None] | None,
    ) -> CompletionChoice:
        """The next part of a choice; its first part begins with the prompt, if that is echoed."""
        choice = self._choices[index]
        echoes = self._body.echo and not choice.is_begun
        choice.is_begun = True
        found = None
        if logprobs is not None:
            offsets = choice.offsets.extend(token_ids)
            entries: list[TokenLogprob | None] = list(logprobs)
            ids = list(token_ids)
            if echoes and prompt_logprobs is not None:
                offsets = choice.prompt.offsets + offsets
                entries = [*prompt_logprobs, *entries]
                ids = choice.prompt.ids + ids
            found = self._logprobs(ids, entries, offsets)
        return CompletionChoice(
            index=index,
            text=choice.prompt.text + text if echoes else text,
            logprobs=found,
            finish_reason=finish_reason_of(reason),
        )

    def _logprobs(
        self, ids: Sequence[int], entries: Sequence[TokenLogprob | None], offsets: list[int]
    ) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[self._text(token_id) for token_id in ids],
            token_logprobs=[None if entry is None else entry.logprob for entry in entries],
            top_logprobs=[self._top(entry) for entry in entries] if self._body.logprobs else None,
            text_offset=offsets,
        )

    def _top(self, entry: TokenLogprob | None) -> dict[str, float] | None:
        """The likeliest tokens and the one that was chosen; the likelier of two with one text."""
        if entry is None:
            return None
        found: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            found.setdefault(self._text(token_id), logprob)
        return found

    def _text(self, token_id: int) -> str:
        return token_text(token_bytes(self._tokenizer, token_id))
