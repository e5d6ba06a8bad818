"""Runtimes in processes of their own: how they are started, asked and ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.samples import Job

ROOT = Path(__file__).resolve().parent.parent
FLOATS = ("bfloat16", "float32", "float16")
# Runtime → its module in benchmarks.baselines, and its formats of weights.
RUNTIMES = {
    "adept-fast": ("adept_fast", ("float16", "bfloat16", "float32", "int8", "int4", "fp8")),
    "transformers": ("transformers", FLOATS),
    "transformers-compiled": ("transformers_compiled", FLOATS),
    "eager": ("eager", FLOATS),
    "eager-compiled": ("eager_compiled", FLOATS),
    "eager-compiled-layer": ("eager_compiled_layer", FLOATS),
    "llama.cpp": ("llama_cpp", ("BF16", "F16", "Q8_0", "Q4_0")),
    "openvino": ("openvino", ("float16", "int8", "int4")),
}
OURS = "adept-fast"


class WorkerError(RuntimeError):
    """A worker failed, or ended."""


class AbsentError(RuntimeError):
    """A runtime cannot take part, for the reason given."""


@dataclass(frozen=True)
class Variant:
    """A runtime and the format of its weights: ``llama.cpp:Q8_0``."""

    runtime: str
    format: str

    def __str__(self) -> str:
        return f"{self.runtime}:{self.format}"

    @classmethod
    def parse(cls, text: str) -> Variant:
        runtime, _, format = text.partition(":")
        if runtime not in RUNTIMES or format not in RUNTIMES[runtime][1]:
            known = ", ".join(f"{name}:{'|'.join(formats)}" for name, (_, formats) in RUNTIMES.items())
            raise ValueError(f"{text!r} is no runtime and format; expected one of {known}")
        return cls(runtime, format)


class Worker:
    """The process of a variant; it sleeps between requests.

    Args:
        module: In benchmarks.baselines; by default that of the runtime.
        folder: The process starts there, so its benchmarks package is used.
        packages: Where any other package of the repository is found.
    """

    def __init__(
        self,
        variant: Variant,
        python: str,
        threads: int,
        *,
        module: str = "",
        folder: Path = ROOT,
        packages: Path = ROOT,
    ) -> None:
        self.variant = variant
        self.facts: dict[str, Any] = {}
        program = os.path.abspath(shutil.which(python) or python)
        self._process = subprocess.Popen(
            [program, "-m", f"benchmarks.baselines.{module or RUNTIMES[variant.runtime][0]}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | environment(packages) | settings_of(threads),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.variant} ended during {operation}")
        answer: dict[str, Any] = json.loads(line)
        if "absent" in answer:
            raise AbsentError(answer["absent"])
        if "error" in answer:
            raise WorkerError(f"{self.variant}: {answer['error']}")
        return answer

    def load(
        self, checkpoint: Path, *, threads: int, context: int, batch: int = 1, device: str = "cpu"
    ) -> None:
        """Load the weights, with room for a batch of such contexts."""
        self.facts = self.call(
            "load",
            checkpoint=str(checkpoint.resolve()),
            format=self.variant.format,
            threads=threads,
            context=context,
            batch=batch,
            device=device,
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def environment(root: Path = ROOT) -> dict[str, str]:
    """Such that any interpreter finds the packages of a checkout."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))}


def settings_of(threads: int) -> dict[str, str]:
    """For the libraries of a process that is measured; a worker sets the threads of its runtime itself."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Workers:
    """The workers that take part, and why others are absent."""

    present: list[Worker] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def load(self, checkpoint: Path, **room: Any) -> tuple[list[Worker], dict[str, str]]:
        """``Worker.load`` of all: those that could, and why the others could not. Our failure is an error."""
        able, unable = [], {}
        for worker in tqdm(self.present, desc="loading", disable=None):
            try:
                worker.load(checkpoint, **room)
                able.append(worker)
            except (AbsentError, WorkerError) as error:
                unable[str(worker.variant)] = reason_of(str(worker.variant), error)
        return able, unable

    def dismiss(self, worker: Worker, reason: str) -> None:
        self.absent[str(worker.variant)] = reason
        self.present.remove(worker)
        worker.close()


def reason_of(name: str, error: Exception) -> str:
    """Why a baseline is absent; raises the error if ours failed."""
    if name.startswith(OURS) and isinstance(error, WorkerError):
        raise error
    return str(error)


@contextmanager
def started_workers(
    variants: list[Variant],
    *,
    pythons: dict[str, str],
    threads: int,
    started: Callable[[int], None] = lambda pid: None,
) -> Iterator[Workers]:
    """Start every variant; one that is not installed is absent. Nothing is loaded yet.

    ``started`` gets the process id of each worker.
    """
    result = Workers()
    try:
        for variant in variants:
            python = pythons.get(variant.runtime, sys.executable)
            if shutil.which(python) is None:
                result.absent[str(variant)] = "there is no such interpreter as was named for it"
                continue
            worker = Worker(variant, python, threads)
            result.present.append(worker)
            started(worker.pid)
            try:
                result.versions[variant.runtime] = worker.call("hello")["versions"]
            except (AbsentError, WorkerError) as error:
                result.dismiss(worker, reason_of(str(variant), error))
        yield result
    finally:
        for worker in result.present:
            worker.close()


def warm_up(jobs: dict[str, Job]) -> dict[str, str]:
    """Run every job once; those that fail are taken out of ``jobs``, and returned with the reason."""
    unable = {}
    for name, job in tqdm(list(jobs.items()), desc="warming up", disable=None):
        try:
            job.measure()
        except (AbsentError, WorkerError) as error:
            unable[name] = reason_of(name, error)
            del jobs[name]
    return unable
