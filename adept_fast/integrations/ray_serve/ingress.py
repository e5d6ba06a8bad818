"""Ingress: the HTTP server of an application, which has the tokenizer and no model."""

from __future__ import annotations

import logging
import os

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from adept_fast.integrations.ray_serve.arguments import ServeArguments
from adept_fast.integrations.ray_serve.live_replicas import live_replicas
from adept_fast.integrations.ray_serve.local_only import LocalOnly
from adept_fast.integrations.ray_serve.remote_service import RemoteService
from adept_fast.integrations.ray_serve.request_id import OneRequestId
from adept_fast.server.api_keys import api_keys, is_readable_by_all
from adept_fast.server.app import create_app
from adept_fast.server.logs import configure_own_logs, log
from adept_fast.server.settings import Settings

KEY_VARIABLE = "ADEPT_FAST_API_KEY"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Ingress:
    """Serves the routes of ``adept-fast serve``; its answers come from replicas.

    Args:
        replicas: the handle of the model's deployment.
    """

    async def __init__(self, arguments: ServeArguments, replicas: DeploymentHandle) -> None:  # type: ignore[misc]
        configure_own_logs(arguments.log_format)
        # Read here, on the machine of the server: Ray shows the arguments of an application to all its users.
        keys = api_keys(os.environ.get(KEY_VARIABLE), arguments.api_key_file, KEY_VARIABLE)
        if arguments.api_key_file is not None and is_readable_by_all(arguments.api_key_file):
            log("all users can read the API keys", logging.WARNING, file=arguments.api_key_file)
        settings = arguments.settings(keys, None if keys or arguments.no_auth else _LOOPBACK_NAMES)
        app_name = serve.get_replica_context().app_name
        model = await replicas.describe.remote()
        streaming = replicas.answer.options(stream=True)
        self._service = RemoteService(
            model,
            streaming.remote,
            lambda: live_replicas(app_name),
            slots=arguments.batch_size,
            max_queue=arguments.max_queue,
        )
        self._app = _application(self._service, settings, is_open=bool(keys) or arguments.no_auth)
        log("ready", model=settings.model_name, context=model.max_seq_len, slots=arguments.batch_size)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def __del__(self) -> None:
        if "_service" in vars(self):  # else it could not begin
            await self._service.stop(0)


def _application(service: RemoteService, settings: Settings, *, is_open: bool) -> ASGIApp:
    app = OneRequestId(create_app(service, settings))
    return app if is_open else LocalOnly(app)
