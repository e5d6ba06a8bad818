"""``adept-fast batch``: answer the lines of a file, in the order of the file."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from adept_fast import __version__
from adept_fast.checkpoint import Checkpoint
from adept_fast.checkpoint.fingerprint import fingerprint
from adept_fast.choices import PLACEMENT
from adept_fast.commands.errors import CommandFailed
from adept_fast.commands.loading import chosen_checkpoint, load_runtime, placement_settings
from adept_fast.commands.termination import ended_by_exceptions
from adept_fast.server.batch.files import BatchFiles
from adept_fast.server.batch.job import BatchJob, Written
from adept_fast.server.batch.line_runner import Answered, LineRunner
from adept_fast.server.batch.placement import placement_of
from adept_fast.server.settings import Settings, model_name_of
from adept_fast.system.progress import progress_bar
from adept_fast.system.short_text import printable

SOME_FAILED = 3  # the exit status if the output is whole, and some of its lines are errors

_PACKAGES = ("pydantic", "fastapi", "prometheus_client")
_PACKAGES_OF_RAY = ("ray", "pyarrow")
# What the values of options change in an answer; --batch-size and --mmap change none.
_OPTIONS = (*PLACEMENT, "tensor_parallel")


def run(options: dict[str, Any]) -> None:
    _check_ray(options)
    shown = not options["quiet"]
    files = BatchFiles.checked(options["source"], options["destination"])
    with ended_by_exceptions():
        checkpoint = chosen_checkpoint(options)
        with _opened(files, checkpoint, options) as job:
            _check_packages(job)
            if job.written is None:
                _continue(job, checkpoint, options)
            elif shown:
                _print(f"{files.output}: is complete")
            written = job.written
    if written is not None and written.failed:
        click.get_current_context().exit(SOME_FAILED)


def _opened(files: BatchFiles, checkpoint: Checkpoint, options: dict[str, Any]) -> BatchJob:
    facts = {name: str(options[name]) for name in _OPTIONS}
    facts |= {"version": __version__, "checkpoint": fingerprint(checkpoint.path)}
    size = files.input.stat().st_size if files.input.is_file() else 0
    with progress_bar("reading the input", size, "B", shown=not options["quiet"]) as bar:
        return BatchJob(
            files,
            facts,
            seed=options["seed"],
            model_name=options["model_name"] or model_name_of(options["checkpoint"]),
            on_read=bar.update,
        )


def _check_ray(options: dict[str, Any]) -> None:
    """Raises click.UsageError for options that need --ray, and CommandFailed if Ray is not installed."""
    given = [name for name in ("ray_workers", "ray_gpus", "ray_cpus") if options[name] is not None]
    if options["ray"] is None and given:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} is given without --ray; expected both or none"
        )
    missing = [name for name in _PACKAGES_OF_RAY if importlib.util.find_spec(name) is None]
    if options["ray"] is not None and missing:
        raise CommandFailed(
            f"{', '.join(missing)} cannot be found; expected the packages that "
            f"pip install 'adept-fast[ray]' installs"
        )


def _check_packages(job: BatchJob) -> None:
    """Raises CommandFailed if the input has requests that cannot be read here."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing and job.lines.openai_number is not None:
        raise CommandFailed(
            f"{job.files.input}: line {job.lines.openai_number} is a request of OpenAI's API, and "
            f"{', '.join(missing)} cannot be found; expected plain lines, or the packages that "
            f"pip install 'adept-fast[serve]' installs"
        )


def _continue(job: BatchJob, checkpoint: Checkpoint, options: dict[str, Any]) -> None:
    """From the answers that are there to the output. Whatever ends it early, it says how to go on."""
    shown = not options["quiet"]
    if shown and job.dropped_bytes:
        _print(
            f"{job.files.journal}: its last {job.dropped_bytes} bytes were damaged, and are computed again"
        )
    before, progress = job.done, _Progress(job, shown)
    try:
        if job.done < len(job.lines):
            if job.placement is not None:  # a context that depends on free memory stays as it was
                options = {**options, "max_seq_len": int(job.placement["max_seq_len"])}
            answer = _answer_here if options["ray"] is None else _answer_on_ray
            answer(job, progress, checkpoint, options)
        written = job.finish()
    except BaseException:
        if job.done and job.written is None:
            _print(
                f"{job.done} of {len(job.lines)} lines are done, and kept in {job.files.journal}: "
                f"the same command goes on with the others"
            )
        raise
    if shown:
        _print(progress.summary(written, before))


def _answer_here(job: BatchJob, progress: _Progress, checkpoint: Checkpoint, options: dict[str, Any]) -> None:
    runtime = load_runtime(
        checkpoint, options, max_batch_size=options["batch_size"], progress=not options["quiet"]
    )
    job.begin(placement_of(runtime))
    job.refuse()
    runner = LineRunner(runtime, Settings(job.origin.model_name), job.origin)
    with progress:
        progress.add_all(runner.run(job.pending()))


def _answer_on_ray(
    job: BatchJob, progress: _Progress, checkpoint: Checkpoint, options: dict[str, Any]
) -> None:
    from adept_fast.integrations.ray_data.answers import Workers, answers_on_ray
    from adept_fast.integrations.ray_data.cluster import cluster_gpus, connected, machines
    from adept_fast.integrations.ray_data.worker import Loading

    settings = {**placement_settings(options), "max_batch_size": options["batch_size"]}
    loading = Loading(_name_elsewhere(options), options["revision"], fingerprint(checkpoint.path), settings)
    with connected(options["ray"]):
        on_gpus = options["device"] != "cpu" and cluster_gpus() > 0
        gpus, cpus, count = options["ray_gpus"], options["ray_cpus"], options["ray_workers"]
        if gpus is None:
            gpus = float(options["tensor_parallel"]) if on_gpus else 0.0
        if count is None:
            count = max(1, int(cluster_gpus() / gpus) if gpus else machines())
        workers = Workers(count, gpus, 1.0 if cpus is None else cpus)
        with progress:
            for share in answers_on_ray(job, loading, Settings(job.origin.model_name), workers):
                job.begin(share.placement)
                progress.add_all(share.answers)
    if job.placement is None:  # no line has needed a worker
        job.begin({"device": "none"})
    job.refuse()


def _name_elsewhere(options: dict[str, Any]) -> str:
    """The checkpoint's name for processes in other directories."""
    name = str(options["checkpoint"])
    path = Path(name).expanduser()
    return str(path.resolve()) if name != "demo" and path.exists() else name


class _Progress:
    """Keeps answers as they come, and shows how many there are."""

    def __init__(self, job: BatchJob, shown: bool) -> None:
        self._job, self._shown = job, shown
        self._prompt_tokens = self._tokens = 0
        self._started_at = self._ended_at = time.monotonic()

    def __enter__(self) -> _Progress:
        self._started_at = time.monotonic()  # once a model is loaded
        self._bar = progress_bar("lines", len(self._job.lines), "line", shown=self._shown)
        self._bar.update(self._job.done)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended_at = time.monotonic()
        self._bar.close()

    def add_all(self, answers: Iterable[Answered]) -> None:
        for answered in answers:
            self._job.add(answered.index, answered.answer)
            self._prompt_tokens += answered.prompt_tokens
            self._tokens += answered.completion_tokens
            self._ended_at = time.monotonic()
            self._bar.set_postfix_str(f"{self._tokens_per_second():.1f} tokens/s", refresh=False)
            self._bar.update(self._job.done - self._bar.n)

    def summary(self, written: Written, before: int) -> str:
        earlier = f", {before} of them before" if before else ""
        failed = f", {written.failed} with an error" if written.failed else ""
        return (
            f"{self._job.files.output}: {written.lines} lines{earlier}{failed}\n"
            f"{self._prompt_tokens} tokens of prompts and {self._tokens} generated, "
            f"{self._tokens_per_second():.1f} tokens/s"
        )

    def _tokens_per_second(self) -> float:
        seconds = self._ended_at - self._started_at
        return self._tokens / seconds if seconds > 0 else 0.0


def _print(text: str) -> None:
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)
