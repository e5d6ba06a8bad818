"""``/v1/chat/completions``: conversations are answered."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from adept_fast.server.answering import AnswerService, ServedModel
from adept_fast.server.api_error import responses
from adept_fast.server.openai.body import body_schema, read_body
from adept_fast.server.openai.chat_request import ChatRequest, chat_bounds
from adept_fast.server.openai.chat_response import ChatChunk, ChatCompletion
from adept_fast.server.openai.chat_writer import ChatWriter
from adept_fast.server.openai.delivery import STATUSES, deliver, documented
from adept_fast.server.openai.identity import Identity
from adept_fast.server.openai.prompts import Origin, check_biases, check_prompt, encode_messages
from adept_fast.server.openai.task import Task
from adept_fast.server.settings import Settings


def chat_task(model: ServedModel, body: ChatRequest, settings: Settings, identity: Identity) -> Task:
    """What a body asks for. Raises ApiError; long conversations take time."""
    body.check(settings)
    check_biases(model, body.logit_bias)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = body.params(body.max_new_tokens, logprobs, model.tokenizer.chat_format.stop)
    messages = [message.as_template_reads_it() for message in body.messages]
    ids = encode_messages(model, messages, body.add_bos)
    check_prompt(model, ids, "messages")
    return Task([ids], params, ChatWriter(body, model.tokenizer, settings.model_name, identity))


def router(service: AnswerService, settings: Settings) -> APIRouter:
    """The route ``/v1/chat/completions``."""
    routes = APIRouter(tags=["chat"])
    model = service.model

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        responses={200: documented(ChatCompletion, ChatChunk), **responses(*STATUSES)},
        response_class=Response,
        openapi_extra=body_schema(ChatRequest, chat_bounds(settings)),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answers a conversation `n` times, in the chat format of the checkpoint."""
        body = await read_body(request, ChatRequest)
        task = await run_in_threadpool(chat_task, model, body, settings, Identity.new())
        requests = task.requests(Origin.of(request, settings))
        return await deliver(request, service, requests, task.writer, stream=body.stream)

    return routes
