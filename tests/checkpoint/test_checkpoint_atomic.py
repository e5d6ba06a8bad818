"""Conversions that are terminated or killed: nothing half done is left, and nothing of others is removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from own_process import python

from adept_fast.checkpoint import atomic, open_checkpoint
from adept_fast.checkpoint.atomic import atomic_directory, partial_directory, remove_abandoned
from adept_fast.checkpoint.convert import convert
from adept_fast.modeling import PersimmonForCausalLM

# A conversion by the command that stops at its fifth tensor, says so, and waits to be ended.
PROGRAM = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup and background jobs have their children ignore these
signal.signal(signal.SIGINT, signal.default_int_handler)
from adept_fast.checkpoint import weight_files
from adept_fast.commands.cli import main
read, calls = weight_files.read_as, []
def stop(*arguments):
    calls.append(arguments)
    if len(calls) == 5:
        print(os.getpid(), flush=True)
        signal.pause()
    return read(*arguments)
weight_files.read_as = stop
main()
"""


class Conversion:
    """To a path, amid writing."""

    def __init__(self, destination: Path) -> None:
        command = [*python(), "-c", PROGRAM, "convert", "demo", str(destination), "--quiet"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.number = int(self.process.stdout.readline())

    def end(self, by: signal.Signals) -> tuple[int, str]:
        """Its exit code, and what it said."""
        os.kill(self.number, by)
        said = self.process.communicate(timeout=60)[1]
        return self.process.returncode, said


Start = Callable[[Path], Conversion]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a conversion to a path; it is ended after the test."""
    started: list[Conversion] = []

    def begin(destination: Path) -> Conversion:
        started.append(Conversion(destination))
        return started[-1]

    yield begin
    for conversion in started:
        if conversion.process.poll() is None:
            conversion.end(signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_conversion_that_is_ended_leaves_nothing(
    tmp_path: Path, start: Start, number: signal.Signals, code: int
) -> None:
    conversion = start(tmp_path / "saved")
    (partial,) = names(tmp_path)
    assert partial.startswith(".saved.partial-")
    ended, said = conversion.end(number)
    assert ended == code
    assert "Traceback" not in said
    assert names(tmp_path) == []


@pytest.mark.slow
def test_what_a_killed_conversion_left_goes_and_what_a_live_one_writes_stays(
    tmp_path: Path, start: Start
) -> None:
    dead = start(tmp_path / "saved")
    (left,) = names(tmp_path)
    dead.end(signal.SIGKILL)
    assert names(tmp_path) == [left]
    # The number of a process says nothing: in another container this one's may be that of the dead one.
    reused = tmp_path / f".saved.partial-{os.getpid()}-0123abcd"
    (tmp_path / left).rename(reused)
    live = start(tmp_path / "saved")
    written = names(tmp_path)
    assert len(written) == 1
    assert reused.name not in written
    convert("demo", tmp_path / "saved", to="adept", progress=False)
    assert names(tmp_path) == [*written, "saved"]
    assert (tmp_path / written[0] / "adept_vocab.model").is_file()
    live.end(signal.SIGTERM)
    assert names(tmp_path) == ["saved"]
    assert open_checkpoint(tmp_path / "saved")


def test_only_abandoned_directories_of_that_destination_go(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    token = "partial-12-0123abcd"
    abandoned = tmp_path / f".saved.{token}"
    (abandoned / "deep").mkdir(parents=True)
    (abandoned / "deep" / "file").touch()
    (abandoned / "link").symlink_to(tmp_path / "mine")
    (tmp_path / ".saved.partial-12-ffffffff").symlink_to(tmp_path / "mine")
    (tmp_path / ".saved.partial-13-ffffffff").write_text("a file")
    others = (f".saved2.{token}", f"saved.{token}", f".saved.{token}0", ".saved.partial-x-0123abcd", ".saved")
    for name in others:
        (tmp_path / name).mkdir()
    with partial_directory(tmp_path / "saved") as own:
        expected = {"mine", ".saved.partial-12-ffffffff", ".saved.partial-13-ffffffff", *others, own.name}
        assert set(names(tmp_path)) == expected
        remove_abandoned(tmp_path / "saved")  # of another thread, say
        assert own.is_dir()
    assert set(names(tmp_path)) == expected - {own.name}
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_another_users_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = tmp_path / ".saved.partial-12-0123abcd"
    abandoned.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: abandoned.stat().st_uid + 1)
    remove_abandoned(tmp_path / "saved")
    assert abandoned.is_dir()


@pytest.mark.parametrize("how", ["locked", "removed", "removed before it was opened"])
def test_one_that_was_taken_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Between its making and its locking another process may find it unlocked."""
    found: list[Path] = []
    lock, open_file = atomic.fcntl.flock, os.open

    def meanwhile(descriptor: int, operation: int) -> None:
        found.extend(path for path in tmp_path.iterdir() if not found)
        if len(found) == 1:
            found.append(found[0])
            if how == "locked":
                raise BlockingIOError
            shutil.rmtree(found[0])
        lock(descriptor, operation)

    def open_late(path: Path, flags: int, **options: Any) -> int:
        if not found:
            found.append(path)
            path.rmdir()
        return open_file(path, flags, **options)

    if how == "removed before it was opened":
        monkeypatch.setattr(atomic.os, "open", open_late)
    else:
        monkeypatch.setattr(atomic.fcntl, "flock", meanwhile)
    with atomic_directory(tmp_path / "saved") as directory:
        assert directory != found[0]
        (directory / "file").write_text("written")
    assert (tmp_path / "saved" / "file").read_text() == "written"


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")  # as some network file systems do

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    abandoned = tmp_path / ".saved.partial-12-0123abcd"
    abandoned.mkdir()
    with atomic_directory(tmp_path / "saved") as directory:
        (directory / "file").touch()
    assert names(tmp_path) == [abandoned.name, "saved"]


def test_abandoned_files_do_not_count_as_taken_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = tmp_path / ".saved.partial-12-0123abcd"
    abandoned.mkdir()
    usage = shutil.disk_usage(tmp_path)

    def full(_path: Path) -> object:
        return usage._replace(free=0 if abandoned.exists() else 10**12)

    monkeypatch.setattr(atomic.shutil, "disk_usage", full)
    convert("demo", tmp_path / "saved", to="adept", progress=False)
    assert names(tmp_path) == ["saved"]


def test_a_model_that_is_saved_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PersimmonForCausalLM.from_pretrained("demo")
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / ".weights.partial-12-0123abcd").mkdir()
    replace = os.replace

    def interrupt(*_paths: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.setattr(os, "replace", replace)
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == ["config.json", "generation_config.json", "model.safetensors"]
    assert not PersimmonForCausalLM.from_pretrained(tmp_path).lm_head.weight.any()
