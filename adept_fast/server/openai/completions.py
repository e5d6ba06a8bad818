"""``/v1/completions``: prompts are continued."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from adept_fast.server.answering import AnswerService, ServedModel
from adept_fast.server.api_error import responses
from adept_fast.server.openai.body import body_schema, read_body
from adept_fast.server.openai.completion_request import CompletionRequest, completion_bounds
from adept_fast.server.openai.completion_response import Completion
from adept_fast.server.openai.completion_writer import CompletionWriter
from adept_fast.server.openai.delivery import STATUSES, deliver, documented
from adept_fast.server.openai.identity import Identity
from adept_fast.server.openai.prompts import Origin, check_biases, encode_prompt
from adept_fast.server.openai.task import Task
from adept_fast.server.settings import Settings


def completion_task(
    model: ServedModel, body: CompletionRequest, settings: Settings, identity: Identity
) -> Task:
    """What a body asks for. Raises ApiError; long prompts take time."""
    body.check(settings)
    check_biases(model, body.logit_bias)
    params = body.params(body.max_tokens, body.logprobs)
    prompts = body.prompts
    names = ["prompt"] if len(prompts) == 1 else [f"prompt[{at}]" for at in range(len(prompts))]
    encoded = [
        encode_prompt(model, prompt, body.add_bos, name) for prompt, name in zip(prompts, names, strict=True)
    ]
    return Task(
        [prompt.ids for prompt in encoded],
        params,
        CompletionWriter(body, encoded, model.tokenizer, settings.model_name, identity),
        prompt_logprobs=body.logprobs if body.echo else None,
    )


def router(service: AnswerService, settings: Settings) -> APIRouter:
    """The route ``/v1/completions``."""
    routes = APIRouter(tags=["completions"])
    model = service.model

    @routes.post(
        "/v1/completions",
        summary="Continue prompts",
        responses={200: documented(Completion, Completion), **responses(*STATUSES)},
        response_class=Response,
        openapi_extra=body_schema(CompletionRequest, completion_bounds(settings, model.tokenizer.vocab_size)),
    )
    async def create_completion(request: Request) -> Response:
        """Continues each prompt `n` times. The choices of the first prompt come first."""
        body = await read_body(request, CompletionRequest)
        task = await run_in_threadpool(completion_task, model, body, settings, Identity.new())
        requests = task.requests(Origin.of(request, settings))
        return await deliver(request, service, requests, task.writer, stream=body.stream)

    return routes
