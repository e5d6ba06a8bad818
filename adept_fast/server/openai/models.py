"""``/v1/models``: the one model that a server has."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from adept_fast.server.answering import AnswerService
from adept_fast.server.api_error import ApiError, responses
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr


class Model(BaseModel):
    """A served model."""

    id: str = Field(description="The name that requests give as `model`.")
    object: Literal["model"] = "model"
    created: int = Field(description="When it was loaded, in seconds since 1970.")
    owned_by: str = "adept-fast"
    max_model_len: int = Field(description="The context: tokens of a prompt and its answer.")


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(service: AnswerService, settings: Settings) -> APIRouter:
    """The routes ``/v1/models`` and ``/v1/models/{id}``."""
    routes = APIRouter(tags=["models"])
    model = Model(id=settings.model_name, created=int(time.time()), max_model_len=service.model.max_seq_len)

    @routes.get("/v1/models", summary="List the served model", responses=responses(401))
    async def list_models() -> ModelList:
        return ModelList(data=[model])

    # An id may hold a slash.
    # FastAPI would document errors in its own form for a parameter that it reads.
    parameter = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}

    @routes.get(
        "/v1/models/{model_id:path}",
        summary="Describe a model",
        responses=responses(401, 404),
        openapi_extra={"parameters": [{**parameter, "description": "An id of the list."}]},
    )
    async def get_model(request: Request) -> Model:
        check_model(request.path_params["model_id"], settings)
        return model

    return routes


def check_model(name: str | None, settings: Settings) -> None:
    """Raises ApiError for a model that is not served; None stands for the served one."""
    if name not in (None, settings.model_name):
        message = f"the model {short_repr(name)} does not exist; expected {short_repr(settings.model_name)}"
        raise ApiError(404, message, "model", "model_not_found")
