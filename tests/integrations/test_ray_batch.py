"""Batches on a Ray cluster of this machine: the bytes of the answers are those without it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_inputs import CHAT, COMPLETIONS, PLACEMENT, answered, opened, output_of, request, write_lines
from click.testing import CliRunner

from adept_fast import Runtime
from adept_fast.checkpoint import demo_path
from adept_fast.checkpoint.fingerprint import fingerprint
from adept_fast.commands.cli import main
from adept_fast.server.batch.batch_error import BatchError
from adept_fast.server.batch.job import BatchJob
from adept_fast.server.batch.line_runner import LineRunner
from adept_fast.server.batch.origin import BatchOrigin
from adept_fast.server.batch.placement import placement_of
from adept_fast.server.settings import Settings

pytest.importorskip("ray")
pytest.importorskip("pyarrow")

from adept_fast.integrations.ray_data import answers as answers_module
from adept_fast.integrations.ray_data import attempts
from adept_fast.integrations.ray_data.answers import Workers, answers_on_ray
from adept_fast.integrations.ray_data.cluster import RayError, check_room, connected
from adept_fast.integrations.ray_data.shares import Shares, given_lines, shares_of
from adept_fast.integrations.ray_data.worker import Loading, Worker

SETTINGS = {"max_batch_size": 2, "mmap": True, "device": "cpu"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected("local"):
        yield


def lines(count: int) -> list[Any]:
    """Of both kinds, drawn or not, and some errors."""
    found: list[Any] = [b"no JSON", {"prompt": "a", "color": 1}]
    for number in range(count):
        prompt, limit = f"Once upon a time {number}", 1 + 5 * number % 13
        found.append(
            {"prompt": prompt, "max_new_tokens": limit, "temperature": number % 2, "custom_id": prompt}
        )
        body = {"prompt": prompt, "max_tokens": limit, "logprobs": 1}
        found.append(request(f"{number}", body, COMPLETIONS))
    return [*found, found[-1], request("chat", {"messages": [{"role": "user", "content": "Hi"}]}, CHAT)]


def loading(of: Path | None = None, **settings: Any) -> Loading:
    digest = fingerprint(of or demo_path())
    return Loading("demo", None, digest, {**SETTINGS, **settings})


def work(job: BatchJob, workers: int = 1, given: Loading | None = None) -> list[int]:
    """What the command does, on the cluster; returns the lines of each share as they came."""
    sizes = []
    for share in answers_on_ray(job, given or loading(), Settings("demo"), Workers(workers, 0, 1)):
        job.begin(share.placement)
        for answer in share.answers:
            job.add(answer.index, answer.answer)
        sizes.append(len(share.answers))
    job.refuse()
    job.finish()
    return sizes


def dying_worker(folder: Path) -> type[Worker]:
    """A Worker whose process dies with its second block answered; with every one, if ``always`` is there."""

    class DyingWorker(Worker):
        def __call__(self, block: Any) -> Any:
            answers = super().__call__(block)
            number = len(list(folder.glob("block*")))
            (folder / f"block{number}-{os.getpid()}").touch()
            has_failed = answers["failure"][0].as_py() is not None
            if not has_failed and (number == 1 or (folder / "always").exists()):
                os.kill(os.getpid(), signal.SIGKILL)
            return answers

    return DyingWorker


def output_without_times(folder: Path) -> list[dict[str, Any]]:
    """The lines of the output, without the seconds at which their batch began."""
    found = output_of(folder)
    for answer in found:
        answer.get("response", {}).get("body", {}).pop("created", None)
    return found


def test_the_answers_are_those_without_a_cluster(cluster: None, demo: Runtime, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    given = lines(16)
    answered(demo, here, given)
    write_lines(there / "in.jsonl", given)
    with opened(there) as job:
        sizes = work(job, workers=2)
        assert job.placement == placement_of(demo)
    assert max(sizes) == 8  # four lines for each slot
    assert sum(sizes) == len(given) - 1  # one has the id of another
    assert output_without_times(there) == output_without_times(here)
    assert sorted(path.name for path in there.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_share_of_a_dead_worker_is_answered_again(
    cluster: None, demo: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, seen = tmp_path / "here", tmp_path / "there", tmp_path / "seen"
    for folder in (here, there, seen):
        folder.mkdir()
    given = lines(14)
    answered(demo, here, given)
    write_lines(there / "in.jsonl", given)
    monkeypatch.setattr(answers_module, "Worker", dying_worker(seen))
    with opened(there) as job:
        shares = len(work(job))
    blocks = [path.name for path in seen.iterdir()]
    assert len(blocks) > shares  # one was answered again
    assert len({name.partition("-")[2] for name in blocks}) == 2  # by another process
    assert output_without_times(there) == output_without_times(here)


def test_a_batch_goes_on_without_the_cluster_on_which_it_was_begun(
    cluster: None, demo: Runtime, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    given = lines(14)
    answered(demo, here, given)
    write_lines(there / "in.jsonl", given)
    with opened(there) as job:
        share = next(answers_on_ray(job, loading(), Settings("demo"), Workers(1, 0, 1)))
        job.begin(share.placement)
        for answer in share.answers:
            job.add(answer.index, answer.answer)
    with opened(there) as job:
        assert job.done == len(share.answers) > 0
        job.begin(placement_of(demo))
        job.refuse()
        for entry in LineRunner(demo, Settings("demo"), job.origin).run(job.pending()):
            job.add(entry.index, entry.answer)
        job.finish()
    assert output_without_times(there) == output_without_times(here)


def test_a_share_that_kills_every_worker_ends_the_batch_which_goes_on_elsewhere(
    cluster: None, demo: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    (seen / "always").touch()
    given = [{"prompt": "Once", "max_new_tokens": 2}] * 3
    write_lines(tmp_path / "in.jsonl", given)
    monkeypatch.setattr(answers_module, "Worker", dying_worker(seen))
    monkeypatch.setattr(answers_module, "limited_attempts", lambda: attempts.limited_attempts(1))
    with (
        opened(tmp_path) as job,
        pytest.raises(
            RayError,
            match=r"a worker failed: lines 1 and 3 and those with them: 1 workers have died, one after",
        ),
    ):
        work(job)
    (tmp_path / "out.jsonl").unlink(missing_ok=True)
    assert len(answered(demo, tmp_path, given)) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            Loading("/absent", None, "", SETTINGS),
            "a worker failed: /absent: there is no such file or directory",
        ),
        (loading(weights="fp8"), "a worker failed: weights is 'fp8'"),
    ],
)
def test_workers_that_cannot_load_the_model(
    cluster: None, tmp_path: Path, given: Loading, message: str
) -> None:
    write_lines(tmp_path / "in.jsonl", lines(1))
    with opened(tmp_path) as job, pytest.raises(RayError, match=message):
        work(job, given=given)


def test_a_worker_with_another_checkpoint() -> None:
    given = Loading("demo", None, "0" * 64, SETTINGS)
    worker = Worker(given, Settings("demo"), BatchOrigin("", 0, 0, "demo"))
    (row,) = worker(None).to_pylist()
    assert re.search("demo: is another checkpoint on the machine .* than where the batch", row["failure"])


def test_a_worker_that_no_machine_has_room_for(cluster: None) -> None:
    check_room(1, 0)
    with pytest.raises(RayError, match=r"a worker needs 1e\+06 CPUs and 0 GPUs, and the largest machines of"):
        check_room(10**6, 0)


def test_workers_that_chose_differently_end_the_batch(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", lines(1))
    with opened(tmp_path) as job:
        job.begin(PLACEMENT)
        with pytest.raises(BatchError, match="was begun with max_seq_len '256', and now it is '128'"):
            job.begin({**PLACEMENT, "max_seq_len": "128"})


@pytest.mark.parametrize("size", [1, 3, 7, 8, 100])
def test_shares_have_each_line_once_in_order(tmp_path: Path, size: int) -> None:
    given = [{"prompt": f"a{n}" * n} for n in range(7)]
    write_lines(tmp_path / "in.jsonl", given)
    with opened(tmp_path) as job:
        shares = shares_of(job.files.input, job.unanswered(), size)
        expected = [(line.index, line.number, line.content) for line in job.pending()]
    blocks = [block for task in Shares(shares).get_read_tasks(1) for block in task()]
    assert [(line.index, line.number, line.content) for b in blocks for line in given_lines(b)] == expected
    assert [block.num_rows for block in blocks] == [min(size, 7 - at) for at in range(0, 7, size)]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "'nonsense': is no address; expected local, auto or host:port"),
        ("127.0.0.1:port", "'127.0.0.1:port': is no address; expected local, auto or host:port"),
        (
            "127.0.0.1:1",
            "127.0.0.1:1: no Ray cluster can be reached (Connection refused); expected local, au",
        ),
    ],
)
def test_addresses_without_a_cluster(tmp_path: Path, address: str, message: str) -> None:
    write_lines(tmp_path / "in.jsonl", lines(1))
    arguments = ["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--ray", address]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
