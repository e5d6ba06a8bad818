"""A file is opened once, without waiting, and only a regular one is read, up to a limit."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from adept_fast.system.regular_file import FileError, RegularFile, read_regular


def test_reads_all_of_it_and_parts(tmp_path: Path) -> None:
    contents = bytes(range(256)) * 5000  # more than one read of the system returns at once
    path = tmp_path / "file"
    path.write_bytes(contents)
    assert read_regular(path, len(contents)) == contents
    file = RegularFile(path)
    assert file.size == len(contents)
    assert file.read_at(257, 1000) == contents[257:1257]
    assert file.read_at(len(contents), 0) == b""
    with open(file.system_path, "rb") as again:
        assert again.read() == contents


def test_what_was_opened_is_read_though_its_name_means_another_file(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"checked")
    other.write_bytes(b"swapped")
    file = RegularFile(path)
    os.replace(other, path)
    assert file.read(10) == b"checked"
    assert Path(file.system_path).read_bytes() == b"checked"


@pytest.mark.parametrize("kind", ["a FIFO", "a directory", "a character device", "a socket"])
def test_only_a_regular_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a character device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # paths of sockets are short
        socket.socket(socket.AF_UNIX).bind("file")
    with pytest.raises(FileError, match=f"{kind}; expected a regular file|No such device or address"):
        RegularFile(path)


def test_more_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(FileError, match=r"has 1099511627776 bytes; expected at most 100$"):
        read_regular(path, 100)


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    file = RegularFile(path)
    os.truncate(path, 60)
    with pytest.raises(FileError, match="ends at byte 60; it had 100 bytes before"):
        file.read(100)


@pytest.mark.parametrize("name", ["missing", "dangling", "a\0b"])
def test_a_path_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(FileError, match="cannot be read|its target .*nowhere is missing"):
        RegularFile(tmp_path / name)


def test_it_is_closed_when_it_is_collected(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    file = RegularFile(path)
    descriptor = file.descriptor
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
