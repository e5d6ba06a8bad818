"""Adept's API: ``PUT /api``, with the parameters and the answers of the server that Persimmon came with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from adept_fast.arguments import ParameterError
from adept_fast.engine.sequence import Generation
from adept_fast.sampling import SamplingParams
from adept_fast.server.answering import AnswerService, ServedModel
from adept_fast.server.api_error import ApiError
from adept_fast.server.exchange import current
from adept_fast.server.openai.answers import Answers
from adept_fast.server.openai.body import Body, Whole, body_schema, read_body
from adept_fast.server.openai.delivery import gathered
from adept_fast.server.openai.prompts import Origin, encode_prompt, engine_requests
from adept_fast.server.openai.token_text import token_bytes, token_text
from adept_fast.server.settings import Settings
from adept_fast.tokenizer.tokenizer import Tokenizer

MAX_PROMPTS = 128


class Prompts(Body):
    """Prompts, each of which is continued once."""

    prompts: list[str] = Field(min_length=1, max_length=MAX_PROMPTS, description="Texts to continue.")
    tokens_to_generate: Whole = Field(
        64, ge=0, le=2**31 - 1, description="At most this many tokens for each; 0 to score prompts."
    )
    temperature: float = Field(1.0, gt=0, le=100, description="Logits are divided by it.")
    top_k: Whole = Field(
        0, ge=0, le=1000, description="Draw among the k likeliest tokens; 0 for all, 1 for the likeliest."
    )
    top_p: float = Field(
        0.0, ge=0, le=1, description="Draw among the fewest tokens of this probability; 0 for all."
    )
    add_BOS: bool = Field(False, description="Put the end-of-document token before each prompt.")  # noqa: N815
    random_seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None = Field(
        None, description="The same seed gives the same texts; null draws one."
    )
    logprobs: bool = Field(False, description="Answer with the log-probability of each token.")
    no_log: bool = Field(False, description="Keep prompts and answers out of the log, also if it has them.")


class Continuations(BaseModel):
    """The continuation of each prompt, in the order of the prompts."""

    text: list[str] = Field(description="Prompt and continuation.")
    generations: list[str] = Field(description="Continuations alone.")
    logprobs: list[list[float]] | None = Field(
        description="Of each token but the first, which has none before it; null unless requested."
    )
    human_readable_tokens: list[list[str]] = Field(
        description="The vocabulary's entries of all tokens of a text."
    )


def router(service: AnswerService, settings: Settings) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["Adept's API"])
    statuses = {
        400: "A parameter is wrong.",
        429: "Too many wait.",
        503: "The server stops.",
        504: "Too long.",
    }
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": f"{text} One sentence says more.", "content": {"text/plain": {}}}
        for status, text in statuses.items()
    }
    bounds = {"prompts": {"maxItems": min(MAX_PROMPTS, settings.max_prompts)}}

    @routes.put(
        "/api", response_model=Continuations, responses=errors, openapi_extra=body_schema(Prompts, bounds)
    )
    async def put_api(request: Request) -> Response | Continuations:
        """Continue prompts. They run side by side, and each gets the text that it would get alone."""
        try:
            body = await read_body(request, Prompts)
            exchange = current.get()
            if body.no_log and exchange is not None:
                exchange.has_texts = False
            params = _params(body, settings)
            prompts = await run_in_threadpool(_encode, body, service.model)
            prompt_logprobs = 0 if body.logprobs else None
            requests = engine_requests(prompts, [params], Origin.of(request, settings), prompt_logprobs)
            generations = await gathered(request, Answers.submit(service, requests))
            tokenizer = service.model.tokenizer
            return await run_in_threadpool(_continuations, body, prompts, generations, tokenizer)
        except ApiError as error:
            return PlainTextResponse(error.message, error.status, headers=error.headers)

    return routes


def _params(body: Prompts, settings: Settings) -> SamplingParams:
    """Raises ApiError for parameters that do not go together."""
    if len(body.prompts) > settings.max_prompts:
        raise ApiError(400, f"prompts has {len(body.prompts)} texts; expected at most {settings.max_prompts}")
    if body.top_k and body.top_p:
        raise ApiError(400, f"top_k is {body.top_k} and top_p {body.top_p}; expected one of them to be 0")
    if not body.tokens_to_generate and not body.logprobs:
        raise ApiError(400, "tokens_to_generate is 0 without logprobs; expected at least 1, or logprobs")
    try:
        return SamplingParams(
            max_new_tokens=body.tokens_to_generate,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p or 1.0,
            seed=body.random_seed,
            logprobs=0 if body.logprobs else None,
        )
    except ParameterError as error:
        raise ApiError(400, str(error)) from error


def _encode(body: Prompts, model: ServedModel) -> list[list[int]]:
    """The tokens of each prompt. Raises ApiError that names the prompt."""
    encoded = []
    room = model.max_seq_len + 1 - body.tokens_to_generate  # the last token is never read
    for index, text in enumerate(body.prompts):
        ids = encode_prompt(model, text, body.add_BOS, f"prompts[{index}]").ids
        if len(ids) > room:
            raise ApiError(
                400,
                f"prompts[{index}] has {len(ids)} tokens and tokens_to_generate is "
                f"{body.tokens_to_generate}; expected at most {model.max_seq_len + 1} together",
            )
        encoded.append(ids)
    return encoded


def _continuations(
    body: Prompts, prompts: list[list[int]], generations: list[Generation], tokenizer: Tokenizer
) -> Continuations:
    tokens = [
        [token_text(token_bytes(tokenizer, token_id)) for token_id in ids + done.token_ids]
        for ids, done in zip(prompts, generations, strict=True)
    ]
    texts = [done.text for done in generations]
    return Continuations(
        text=[prompt + text for prompt, text in zip(body.prompts, texts, strict=True)],
        generations=texts,
        logprobs=[_logprobs(done) for done in generations] if body.logprobs else None,
        human_readable_tokens=tokens,
    )


def _logprobs(generation: Generation) -> list[float]:
    """Of the tokens of the prompt, but for its first, and of those generated."""
    known = [*(generation.prompt_logprobs or []), *(generation.logprobs or [])]
    return [entry.logprob for entry in known if entry is not None]
