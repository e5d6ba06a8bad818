"""A Ray cluster of several nodes, all of them on this machine, that serves the demo."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster

from adept_fast.integrations.ray_serve import app, application
from adept_fast.integrations.ray_serve.replica import Replica

NAME = "demo"  # of the application
OBJECT_STORE_BYTES = 100 * 2**20  # of each node; nothing large is in it


class FragileReplica(Replica):
    def break_engine(self) -> None:
        """Have the next step of the engine raise."""

        def fail() -> None:
            raise RuntimeError("the device is lost")

        self._runtime.engine.step = fail  # type: ignore[method-assign]


class RayCluster:
    """A head node and an application's HTTP server there, while it is entered.

    A replica takes a CPU, as Ray counts them, of which each node has one.

    Attributes:
        url: of the server.
    """

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        # Below pytest's own directories, paths of sockets would be too long.
        self._directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        # Where programs look for the cluster of this machine; another one's tests must not find this one.
        self._environment = {**_ENVIRONMENT, "RAY_TMPDIR": self._directory}
        self._replaced = {name: os.environ.get(name) for name in self._environment}
        self._handler = signal.getsignal(signal.SIGTERM)  # Ray has one of its own

    def __enter__(self) -> RayCluster:
        os.environ.update(self._environment)
        os.mkdir(os.path.join(self._directory, "ray"))  # which Ray takes for granted
        self._cluster = Cluster()
        try:
            self._cluster.add_node(include_dashboard=False, temp_dir=self._directory, **_NODE)
            ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
            for _ in range(self._arguments.get("replicas", 1) - 1):
                self.add_node()
            port = _free_port()
            self.url = f"http://127.0.0.1:{port}"
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            self.deploy()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end()

    def deploy(self, **changes: Any) -> None:
        """Run the application with other arguments than at first, and return when it does."""
        with mock.patch.object(application, "Replica", FragileReplica):
            serve.run(app(self._arguments | changes), name=NAME, route_prefix="/")

    def add_node(self) -> Any:
        """A node that takes one more replica."""
        return self._cluster.add_node(**_NODE)

    def kill_node(self, node: Any) -> None:
        """End a node's processes at once, as the loss of its machine would."""
        self._cluster.remove_node(node, allow_graceful=False)

    def break_an_engine(self) -> None:
        """Have the engine of a replica fail at its next step."""
        serve.get_deployment_handle("model", NAME).break_engine.remote().result()

    @property
    def workers(self) -> list[Any]:
        """The nodes but for the head, in the order in which they came."""
        return [node for node in self._cluster.list_all_nodes() if node is not self._cluster.head_node]

    def logged(self, event: str) -> list[str]:
        """The lines with an event, of all processes' standard error."""
        (session,) = (path for path in Path(self._directory).glob("session_2*") if not path.is_symlink())
        files = [file.read_text(errors="replace") for file in session.glob("logs/worker-*.err")]
        lines = (line for text in files for line in text.splitlines())
        return [line for line in lines if f'"{event}"' in line]

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits)

    def _end(self) -> None:
        try:
            if ray.is_initialized():
                serve.shutdown()
        finally:
            ray.shutdown()
            self._cluster.shutdown()
            signal.signal(signal.SIGTERM, self._handler)
            shutil.rmtree(self._directory, ignore_errors=True)
            for name, value in self._replaced.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


_NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
_TESTS = Path(__file__).resolve().parent
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{_TESTS}{os.pathsep}{_TESTS.parent}",  # of the processes that Ray starts
}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
