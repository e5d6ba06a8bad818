"""Settings: what a server serves under, and the limits of its requests."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    request_seconds: float | None = 600.0
    grace_seconds: float = 30.0
    log_prompts: bool = False
    max_body_bytes: int = 4 * 2**20
    max_prompts: int = 128
    max_choices: int = 16
    max_stops: int = 16
    max_stop_characters: int = 256
    max_logprobs: int = 20
