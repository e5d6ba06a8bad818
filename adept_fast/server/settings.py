"""Settings: what a server serves under, and the limits of its requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from adept_fast.arguments import ParameterError
from adept_fast.choices import SERVER_LIMITS
from adept_fast.system.short_text import short_repr


@dataclass(frozen=True)
class Settings:
    """The settings of one server; they do not change while it runs.

    Attributes:
        model_name: the id in ``/v1/models``.
        api_keys: any of them admits a request; none for a server that is open to all who reach it.
        allowed_hosts: names that a ``Host`` header may have, without ports; None for any.
        cors_origins: origins whose pages may use the server from a browser; ``*`` for all.
        request_seconds: a request that has not ended after this time fails; None for no limit.
        grace_seconds: how long running requests may go on once the server is told to stop.
        log_prompts: also log prompts and answers.
        max_body_bytes: of a request's body.
        max_prompts: in one request.
        max_choices: answers to one prompt (``n``, ``best_of``).
        max_stops: stop strings of one request, each of at most ``max_stop_characters``.
        max_logprobs: the likeliest tokens reported at each position.
    """

    model_name: str
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # not for logs
    allowed_hosts: tuple[str, ...] | None = None
    cors_origins: tuple[str, ...] = ()
    request_seconds: float | None = float(SERVER_LIMITS["request_seconds"].default)
    grace_seconds: float = float(SERVER_LIMITS["grace_seconds"].default)
    log_prompts: bool = False
    max_body_bytes: int = int(SERVER_LIMITS["max_body_bytes"].default)
    max_prompts: int = int(SERVER_LIMITS["max_prompts"].default)
    max_choices: int = int(SERVER_LIMITS["max_choices"].default)
    max_stops: int = int(SERVER_LIMITS["max_stops"].default)
    max_stop_characters: int = int(SERVER_LIMITS["max_stop_characters"].default)
    max_logprobs: int = int(SERVER_LIMITS["max_logprobs"].default)

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        *,
        api_keys: tuple[str, ...],
        allowed_hosts: tuple[str, ...] | None,
        origins_name: str,
    ) -> Settings:
        """The settings in the options of ``adept-fast serve``, by their names.

        Args:
            allowed_hosts: unless the options have some.
            origins_name: what the origins are called in an error.

        Raises ParameterError for an origin.
        """
        return cls(
            model_name=options["model_name"] or model_name_of(options["checkpoint"]),
            api_keys=api_keys,
            allowed_hosts=tuple(options["allowed_hosts"]) or allowed_hosts,
            cors_origins=tuple(_origin(origin, origins_name) for origin in options["cors_origins"]),
            request_seconds=options["request_seconds"] or None,
            **{name: options[name] for name in _SAME},
        )


_SAME = (
    "grace_seconds",
    "log_prompts",
    "max_body_bytes",
    "max_prompts",
    "max_choices",
    "max_stops",
    "max_stop_characters",
    "max_logprobs",
)


def model_name_of(checkpoint: str) -> str:
    """``demo``, ``owner/name``, or the last part of a path without ``.tar``: the model's id for clients."""
    is_path = checkpoint.startswith(("/", ".")) or checkpoint.count("/") > 1
    name = checkpoint.rstrip("/").rpartition("/")[2] if is_path else checkpoint
    return name.removesuffix(".tar") or checkpoint


def _origin(origin: str, name: str) -> str:
    parts = urlsplit(origin)
    if origin != "*" and (origin != f"{parts.scheme}://{parts.netloc}" or not parts.hostname):
        raise ParameterError(
            f"{name} is {short_repr(origin)}; expected *, or a scheme and a host such as https://example.org"
        )
    return origin
