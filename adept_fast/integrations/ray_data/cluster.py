"""A connection to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import ray

from adept_fast.system.short_text import short_repr

LOCAL, AUTO = "local", "auto"
_CONNECT_SECONDS = 10.0


class RayError(ValueError):
    """A cluster that cannot be reached, or workers on it that cannot go on."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection for as long as the block runs.

    Args:
        address: ``host:port`` of a cluster, ``auto`` for the one that runs on this machine, or ``local`` for
            a new one on this machine that ends with the block.

    Raises RayError if there is none.
    """
    _check_address(address)
    more = {}
    if address == LOCAL:
        more = {"include_dashboard": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except Exception as error:  # noqa: BLE001 (Ray raises Exception itself)
        ray.shutdown()  # a part of a cluster that did not start
        raise RayError(
            f"{address}: no Ray cluster can be reached ({error}); expected {LOCAL}, {AUTO} or host:port"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raises RayError if nothing listens at ``host:port``, which Ray would wait for many minutes."""
    if address in (LOCAL, AUTO):
        return
    host, separator, port = address.rpartition(":")
    try:
        if not (separator and host and port.isascii() and port.isdecimal()):
            raise RayError(f"{short_repr(address)}: is no address; expected {LOCAL}, {AUTO} or host:port")
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RayError(
            f"{address}: no Ray cluster can be reached ({getattr(error, 'strerror', None) or error}); "
            f"expected {LOCAL}, {AUTO} or host:port"
        ) from error


def cluster_gpus() -> int:
    """The GPUs of all machines of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def machines() -> int:
    """The machines of the cluster that can work."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())


def check_room(cpus: float, gpus: float) -> None:
    """Raises RayError if no machine of the cluster has that much: a worker would be waited for in vain."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus for has in machines):
        largest = [max(has.get(kind, 0) for has in machines) for kind in ("CPU", "GPU")]
        raise RayError(
            f"a worker needs {cpus:g} CPUs and {gpus:g} GPUs, and the largest machines of the cluster have "
            f"{largest[0]:g} and {largest[1]:g}; expected one with both"
        )


def this_machine() -> str:
    """The id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())
