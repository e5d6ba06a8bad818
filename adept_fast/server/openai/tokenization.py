"""``/tokenize`` and ``/detokenize``: text to token ids and back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from adept_fast.server.answering import AnswerService
from adept_fast.server.api_error import ApiError, responses
from adept_fast.server.openai.body import Body, WholeNumbers, body_schema, read_body
from adept_fast.server.openai.chat_request import Message
from adept_fast.server.openai.models import check_model
from adept_fast.server.openai.prompts import check_characters, check_prompt, encode_messages
from adept_fast.server.settings import Settings
from adept_fast.tokenizer.tokenizer import TokenizerError


class TokenizeRequest(Body):
    """A text or a conversation."""

    model: str | None = Field(None, description="The id of the served model; may be omitted.")
    prompt: str | None = Field(None, description="A text.")
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="A conversation, in place of a text."
    )
    add_generation_prompt: bool = Field(
        True, description="Whether the ids of a conversation end where its answer begins."
    )
    add_bos: bool | None = Field(None, description="Put BOS before text; null as the checkpoint says.")


class TokenizeResponse(BaseModel):
    """Token ids."""

    tokens: list[int]
    count: int
    max_model_len: int = Field(description="The context: tokens of a prompt and its answer.")


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = Field(None, description="The id of the served model; may be omitted.")
    tokens: WholeNumbers = Field(description="Ids, as many as fit the context.")


class DetokenizeResponse(BaseModel):
    """The text of token ids."""

    prompt: str


def router(service: AnswerService, settings: Settings) -> APIRouter:
    """The routes ``/tokenize`` and ``/detokenize``."""
    routes = APIRouter(tags=["tokens"])
    model = service.model
    token_id = {"type": "integer", "minimum": 0, "maximum": model.tokenizer.vocab_size - 1}
    errors = responses(400, 401, 404, 408, 413, 415)

    def encode(body: TokenizeRequest) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(
                400, "prompt and messages: expected one of them", "prompt", "missing_required_parameter"
            )
        if body.messages is not None:
            messages = [message.as_template_reads_it() for message in body.messages]
            answered = body.add_generation_prompt
            return encode_messages(model, messages, body.add_bos, answered=answered)
        check_characters(model, len(body.prompt or ""), "prompt")
        try:
            return model.tokenizer.encode(body.prompt or "", add_bos=body.add_bos)
        except TokenizerError as error:
            raise ApiError(400, str(error), "prompt", "invalid_value") from error

    def decode(tokens: list[int]) -> str:
        check_prompt(model, tokens, "tokens")
        try:
            return model.tokenizer.decode(tokens)
        except TokenizerError as error:
            raise ApiError(400, str(error), "tokens", "invalid_value") from error

    @routes.post(
        "/tokenize",
        summary="Text or a conversation to token ids",
        responses=errors,
        openapi_extra=body_schema(TokenizeRequest),
    )
    async def tokenize(request: Request) -> TokenizeResponse:
        body = await read_body(request, TokenizeRequest)
        check_model(body.model, settings)
        ids = await run_in_threadpool(encode, body)
        return TokenizeResponse(tokens=ids, count=len(ids), max_model_len=model.max_seq_len)

    @routes.post(
        "/detokenize",
        summary="Token ids to text",
        responses=errors,
        openapi_extra=body_schema(DetokenizeRequest, {"tokens": {"items": token_id}}),
    )
    async def detokenize(request: Request) -> DetokenizeResponse:
        body = await read_body(request, DetokenizeRequest)
        check_model(body.model, settings)
        return DetokenizeResponse(prompt=await run_in_threadpool(decode, body.tokens))

    return routes
