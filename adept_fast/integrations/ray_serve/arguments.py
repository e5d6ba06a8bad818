"""ServeArguments: the arguments of an application, by the names that ``adept-fast serve`` has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adept_fast.arguments import ParameterError
from adept_fast.choices import LOG_FORMATS, PLACEMENT, SERVER_LIMITS
from adept_fast.server.openai.body import described_error
from adept_fast.server.settings import Settings

_LOADING = (
    "revision",
    *PLACEMENT,
    "check_weights",
    "mmap",
    "cuda_graphs",
    "warmup",
)


def _limit(name: str) -> Any:
    """The field of one of SERVER_LIMITS."""
    bounds = SERVER_LIMITS[name]
    return Field(bounds.default, ge=bounds.lowest, le=bounds.highest)


def _count(default: int | None) -> Any:
    return Field(default, ge=1, le=2**31 - 1)


class ServeArguments(BaseModel):
    """What an application serves, on how many replicas, within which limits.

    Attributes:
        replicas: how many, if that is fixed.
        min_replicas, max_replicas: bounds of Serve's autoscaling, by the answers that run and wait.
        target_answers: of a replica, which autoscaling aims at; None for ``batch_size``.
        tensor_parallel: processes of a replica, on one machine, which share each matrix.
        cpus: cores that a replica reserves, and the threads that it uses, for each of its processes.
        gpus: that a replica reserves; None for one for each process if ``device`` is a GPU, or ``auto`` where
            the application is built on a machine with one.
        ingress_on_head: have the HTTP server on the head node, whose end is the cluster's end anyway.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = "demo"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    weights: str | None = None
    weight_layout: str = "auto"
    cache_dtype: str = "float16"
    embedding: str = "auto"
    max_seq_len: int | None = _count(None)
    check_weights: bool = True
    mmap: bool = True
    cuda_graphs: str = "auto"
    warmup: bool = True

    model_name: str | None = None
    batch_size: int = _limit("batch_size")
    max_queue: int = _limit("max_queue")
    step_tokens: int | None = _count(None)
    request_seconds: float = _limit("request_seconds")
    grace_seconds: float = _limit("grace_seconds")
    api_key_file: str | None = None
    no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_format: Literal[LOG_FORMATS] = LOG_FORMATS[0]  # type: ignore[valid-type]
    log_prompts: bool = False
    max_body_bytes: int = _limit("max_body_bytes")
    max_prompts: int = _limit("max_prompts")
    max_choices: int = _limit("max_choices")
    max_stops: int = _limit("max_stops")
    max_stop_characters: int = _limit("max_stop_characters")
    max_logprobs: int = _limit("max_logprobs")

    replicas: int | None = _count(None)
    min_replicas: int | None = Field(None, ge=0, le=10**6)
    max_replicas: int | None = _count(None)
    target_answers: float | None = Field(None, gt=0, le=10**6)
    tensor_parallel: int = _count(1)
    cpus: float = Field(1.0, gt=0, le=10**6)
    gpus: float | None = Field(None, ge=0, le=10**6)
    ingress_on_head: bool = True

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> ServeArguments:
        """The arguments, whose numbers may be text, as ``serve run`` has them. Raises ParameterError."""
        if "api_key" in given:
            raise ParameterError(
                "api_key is given, which Ray would show to all users of the cluster; expected api_key_file, "
                "or the variable ADEPT_FAST_API_KEY where the head node was started"
            )
        for name in given:
            if name not in cls.model_fields:
                raise ParameterError(
                    f"{name} is no argument of the application; expected one of {', '.join(cls.model_fields)}"
                )
        try:
            found = cls.model_validate(dict(given))
        except ValidationError as error:
            raise ParameterError(described_error(error).message) from error
        found.settings((), None)
        return found

    @model_validator(mode="after")
    def _together(self) -> ServeArguments:
        if (self.min_replicas is None) != (self.max_replicas is None):
            raise ValueError("min_replicas and max_replicas: expected both or none")
        if self.max_replicas is not None and self.replicas is not None:
            raise ValueError("replicas and max_replicas are both given; expected one of them")
        if self.min_replicas is not None and self.min_replicas > (self.max_replicas or 0):
            raise ValueError(
                f"min_replicas is {self.min_replicas}; expected at most max_replicas, {self.max_replicas}"
            )
        if self.target_answers is not None and self.max_replicas is None:
            raise ValueError("target_answers is given without max_replicas; expected both or none")
        return self

    def settings(self, api_keys: tuple[str, ...], allowed_hosts: tuple[str, ...] | None) -> Settings:
        """The server's settings. Raises ParameterError for an origin."""
        return Settings.of(
            self.model_dump(), api_keys=api_keys, allowed_hosts=allowed_hosts, origins_name="cors_origins"
        )

    def loading(self) -> dict[str, Any]:
        """Arguments of ``Runtime.load``."""
        chosen = {name: getattr(self, name) for name in _LOADING}
        if self.tensor_parallel > 1:
            chosen["tensor_parallel"] = self.tensor_parallel
        return {
            "path_or_name": self.checkpoint,
            "max_batch_size": self.batch_size,
            "step_tokens": self.step_tokens or "auto",
            "max_waiting": None,  # the ingress refuses what is too much, and no replica what was accepted
            **chosen,
        }
