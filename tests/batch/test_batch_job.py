"""A batch that dies at any of its system calls, and is begun again: the output is whole, or goes on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_inputs import PLACEMENT, opened, write_lines

from adept_fast.server.batch.batch_error import BatchError
from adept_fast.server.batch.files import BatchFiles
from adept_fast.server.batch.job import BatchJob
from adept_fast.server.batch.line import MAX_BYTES
from adept_fast.system.regular_file import FileError

LINES: list[Any] = [{"prompt": f"a{number}" * number, "custom_id": f"id {number}"} for number in range(6)]
# One too long, one whose id is there already.
LINES += [b"x" * (MAX_BYTES + 1), {"prompt": "b", "custom_id": "id 3"}]


def work(folder: Path) -> None:
    """What the command does, with answers that need no model."""
    with opened(folder) as job:
        if job.written is None:
            job.begin(PLACEMENT)
            job.refuse()
            for line in job.pending():
                head = f'{{"id": "{job.origin.id_of(line.number)}", "custom_id": null, '
                job.add(line.index, f'{head}"index": {line.index}, "error": null}}'.encode())
            job.finish()


def dying_at(call: int, then: Callable[[], None]) -> int:
    """Run ``then`` in a child that ends in the middle of a system call; returns its exit status.

    A child that makes fewer calls ends with 0, one that is killed with 9; a write is half done then.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        counter = itertools.count()
        for name in ("write", "fsync", "fdatasync", "ftruncate", "rename", "unlink"):
            setattr(os, name, _counted(getattr(os, name), name, counter, call))
        then()
        os._exit(0)
    except BaseException:  # noqa: BLE001 (a child of a fork must not go on with the tests)
        os._exit(1)


def _counted(function: Any, name: str, counter: Any, call: int) -> Any:
    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(counter) == call:
            if name == "write":
                function(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os._exit(9)
        return function(*arguments, **keywords)

    return counted


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_lines(folder / "in.jsonl", LINES)
    work(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl"]
    return (folder / "out.jsonl").read_bytes()


def test_it_can_die_in_each_of_its_calls(tmp_path: Path, uninterrupted: bytes) -> None:
    assert len(uninterrupted.splitlines()) == len(LINES)
    deaths = 0
    for call in itertools.count():
        folder = tmp_path / str(call)
        folder.mkdir()
        write_lines(folder / "in.jsonl", LINES)
        status = dying_at(call, lambda folder=folder: work(folder))  # type: ignore[misc]
        assert status in (0, 9)
        output = folder / "out.jsonl"
        assert not output.exists() or output.read_bytes() == uninterrupted
        work(folder)
        assert output.read_bytes() == uninterrupted
        assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl"]
        if status == 0:
            break
        deaths += 1
    assert deaths > len(LINES)


def test_it_can_die_again_and_again(tmp_path: Path, uninterrupted: bytes) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    for call in (1, 3, 4, 2, 5, 6, 5, 4):
        dying_at(call, lambda: work(tmp_path))
    work(tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == uninterrupted


def test_what_was_answered_is_not_answered_again(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    with opened(tmp_path) as job:
        job.begin(PLACEMENT)
        job.refuse()
        first = next(job.pending())
        job.add(first.index, b"first")
    with opened(tmp_path) as job:
        assert (job.done, job.placement) == (3, PLACEMENT)
        assert first.index not in [line.index for line in job.pending()]


def test_the_longest_come_first(tmp_path: Path) -> None:
    lines = [{"prompt": "a"}, {"prompt": "a" * 999}, {"prompt": "a", "max_new_tokens": 1000}, b"no JSON"]
    write_lines(tmp_path / "in.jsonl", lines)
    with opened(tmp_path) as job:
        assert [line.index for line in job.pending()] == [2, 1, 0, 3]


FACTS = {"checkpoint": "1", "dtype": "auto"}


def begin(folder: Path) -> None:
    write_lines(folder / "in.jsonl", LINES)
    with opened(folder, FACTS, seed=1) as job:
        job.begin(PLACEMENT)
        job.refuse()


@pytest.mark.parametrize(
    ("facts", "seed", "lines", "message"),
    [
        (
            {**FACTS, "checkpoint": "2"},
            1,
            LINES,
            "was begun with another checkpoint; expected the same, or a",
        ),
        (
            {**FACTS, "dtype": "float16"},
            1,
            LINES,
            "was begun with dtype 'auto', and now it is 'float16'; exp",
        ),
        (FACTS, 2, LINES, "was begun with seed '1', and now it is '2'; expected the same, or another output"),
        (FACTS, 1, LINES[1:], "was begun with another input; expected the same, or another output"),
        (FACTS, 1, LINES + LINES[:1], "was begun with another input; expected the same, or another output"),
    ],
)
def test_another_batch_is_refused_and_the_first_one_kept(
    tmp_path: Path, facts: dict[str, str], seed: int, lines: list[Any], message: str
) -> None:
    begin(tmp_path)
    journal = (tmp_path / "out.jsonl.partial").read_bytes()
    write_lines(tmp_path / "in.jsonl", lines)
    with pytest.raises(BatchError, match=message):
        opened(tmp_path, facts, seed)
    assert (tmp_path / "out.jsonl.partial").read_bytes() == journal


def test_another_placement_is_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    with (
        opened(tmp_path, FACTS, seed=1) as job,
        pytest.raises(BatchError, match="was begun with device 'cpu', and now it is 'cuda'"),
    ):
        job.begin({**PLACEMENT, "device": "cuda"})


def test_a_complete_output_is_known_again(tmp_path: Path, uninterrupted: bytes) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    work(tmp_path)
    with opened(tmp_path) as job:
        assert job.written is not None
        assert (job.written.lines, job.written.failed, job.done) == (8, 2, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("change", ["seed", "shorter", "longer", "another", "empty"])
def test_any_other_output_is_left_alone(tmp_path: Path, uninterrupted: bytes, change: str) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    output = tmp_path / "out.jsonl"
    lines = uninterrupted.splitlines(keepends=True)
    contents = {"shorter": lines[:-1], "longer": lines + lines[:1], "another": [b"a poem\n"] * 8, "empty": []}
    output.write_bytes(b"".join(contents.get(change, lines)))
    before = output.read_bytes()
    with pytest.raises(BatchError, match=r"out\.jsonl: exists, and is not what this input gives with these"):
        opened(tmp_path, seed=1 if change == "seed" else 0)
    assert output.read_bytes() == before
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", LINES)
    with opened(tmp_path), pytest.raises(BatchError, match="another process writes this batch"):
        opened(tmp_path)


def test_a_line_that_changes_meanwhile_ends_it(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", LINES[:2])
    with opened(tmp_path) as job:
        content = (tmp_path / "in.jsonl").read_bytes()
        (tmp_path / "in.jsonl").write_bytes(content.replace(b"prompt", b"tpromp"))
        with pytest.raises(BatchError, match=r"in\.jsonl: line \d has changed"):
            list(job.pending())
        (tmp_path / "in.jsonl").write_bytes(b"")
        with pytest.raises(FileError, match=r"in\.jsonl: ends at byte 0"):
            list(job.pending())


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("in.jsonl", "in.jsonl", r"in\.jsonl: is the input; expected another file for the output"),
        ("in.jsonl", "link", r"in\.jsonl: is the input; expected another file for the output"),
        ("in.jsonl", "hard", r"hard: is the input; expected another file for the output"),
        ("in.jsonl", "no/out", r"no: there is no such directory to write out to"),
        ("in.jsonl", "folder", r"folder: is no regular file; expected a file of a batch, or no such file"),
        ("a.partial", "a", r"a\.partial: is the input; expected another file for the output"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, source: str, destination: str, message: str) -> None:
    write_lines(tmp_path / source, LINES)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / source)
    (tmp_path / "hard").hardlink_to(tmp_path / source)
    before = (tmp_path / source).read_bytes()
    with pytest.raises(BatchError, match=message):
        BatchFiles.checked(tmp_path / source, tmp_path / destination)
    assert (tmp_path / source).read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "absent"])
def test_an_input_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / "in.jsonl").mkdir()
    with pytest.raises(FileError, match=r"in\.jsonl: "):
        opened(tmp_path)
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_an_empty_input_gives_an_empty_output(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [b"", b"  \r"])
    work(tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    with opened(tmp_path) as job:
        assert isinstance(job, BatchJob)
        assert job.written is not None
