"""``adept-fast serve``: a server of the checkpoint, over HTTP."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import socket
from typing import Any

import click

from adept_fast.arguments import ParameterError
from adept_fast.commands.errors import CommandFailed
from adept_fast.commands.loading import chosen_checkpoint, load_runtime
from adept_fast.commands.output import print_text
from adept_fast.commands.termination import ended_by_exceptions
from adept_fast.server.api_keys import api_keys, is_readable_by_all
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def run(options: dict[str, Any]) -> None:
    settings = _settings(options)
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandFailed(
            f"{', '.join(missing)} cannot be found; expected the packages that "
            f"pip install 'adept-fast[serve]' installs"
        )
    _serve(options, settings)


def _serve(options: dict[str, Any], settings: Settings) -> None:
    from adept_fast.server.logs import configure_logs, log
    from adept_fast.server.run import bind, serve, url_of

    configure_logs(options["log_format"])
    if options["api_key_file"] is not None and is_readable_by_all(options["api_key_file"]):
        log("all users can read the API keys", level=logging.WARNING, file=options["api_key_file"])
    with ended_by_exceptions():
        listener = bind(options["host"], options["port"])
        ready = f"serving {settings.model_name} on {url_of(listener, options['host'])}"
        runtime = load_runtime(
            chosen_checkpoint(options),
            options,
            max_batch_size=options["batch_size"],
            progress=options["log_format"] == "text",
            step_tokens=options["step_tokens"] or "auto",
            max_waiting=options["max_queue"],
            prefix_cache=True,
        )

        def on_ready() -> None:
            print_text(ready)
            log(
                "ready",
                slots=runtime.max_batch_size,
                context=runtime.max_seq_len,
                step_tokens=runtime.engine.step_tokens,
                max_queue=options["max_queue"],
            )

        serve(runtime, settings, listener, on_ready)


def _settings(options: dict[str, Any]) -> Settings:
    """Raises click.UsageError for options that do not go together."""
    try:
        keys = api_keys(options["api_key"], options["api_key_file"], key_source="--api-key")
    except ParameterError as error:
        raise click.UsageError(str(error)) from error
    is_local = _is_loopback(options["host"])
    if keys and options["no_auth"]:
        raise click.UsageError("--no-auth and an API key are both given; expected one of them")
    if not (keys or options["no_auth"] or is_local):
        raise click.UsageError(
            f"--host is {short_repr(options['host'])}, which other machines may reach; "
            f"expected --api-key, --api-key-file or --no-auth with it"
        )
    # Without keys, the name in a request is what keeps out the pages of strangers in a local browser.
    hosts = (*_LOOPBACK_NAMES, options["host"]) if is_local and not keys else None
    try:
        return Settings.of(options, api_keys=keys, allowed_hosts=hosts, origins_name="--cors-origin")
    except ParameterError as error:
        raise click.UsageError(str(error)) from error


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on the host; a name must have no other address."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)
