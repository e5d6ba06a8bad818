"""Whether a tar is one that Adept published: its MD5, in blocks of one open file, before what may fail."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept
from click.testing import CliRunner, Result

from adept_fast.checkpoint import CheckpointError, demo_path, published
from adept_fast.checkpoint.published import PUBLISHED_RELEASES, PublishedRelease, release_checksum
from adept_fast.commands.cli import main

BLOCK = published._BLOCK_BYTES


class Bar:
    """In place of tqdm: what it is told."""

    bars: list[Bar] = []

    def __init__(self, **told: Any) -> None:
        self.told, self.counts = told, list[int]()
        self.bars.append(self)

    def __enter__(self) -> Bar:
        self.on_enter()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.counts.append(count)

    @staticmethod
    def on_enter() -> None:
        pass


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    monkeypatch.setattr(Bar, "bars", [])
    monkeypatch.setattr(published, "tqdm", Bar)
    return Bar.bars


@pytest.fixture
def release(tmp_path: Path) -> Path:
    config = small_config()
    return write_adept(tmp_path / "8b.tar", config, random_tensors(config), demo_tokenizer(), tar=True)


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def info(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["info", *map(str, arguments)])


def test_the_published_sums() -> None:
    assert {md5: (it.file_name, it.license) for md5, it in PUBLISHED_RELEASES.items()} == {
        "cd0320cba9efad9ccd18e9ec4d16ae1b": ("8b_base_model_release.tar", "Apache 2.0"),
        "663aeace07269c44e90f4e8bcd07f32a": ("8b_chat_model_release.tar", "CC-BY-NC 4.0"),
    }


@pytest.mark.parametrize("size", [0, 1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_the_sum_of_any_size(tmp_path: Path, bars: list[Bar], size: int) -> None:
    path = tmp_path / "some.tar"
    path.write_bytes(os.urandom(size))
    assert release_checksum(path) == published.ReleaseChecksum(md5_of(path), None)
    (bar,) = bars
    assert (bar.told["total"], sum(bar.counts)) == (size, size)
    assert max(bar.counts, default=0) <= BLOCK
    assert bar.told["disable"] is None  # shown to a terminal alone
    assert "file" not in bar.told  # tqdm's is stderr
    release_checksum(path, progress=False)
    assert bars[1].told["disable"] is True


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.truncate(16 * BLOCK)
    tracemalloc.start()
    try:
        release_checksum(path, progress=False)
        assert tracemalloc.get_traced_memory()[1] < 3 * BLOCK
    finally:
        tracemalloc.stop()


def test_the_file_that_was_opened_is_the_one_that_is_read(
    release: Path, tmp_path: Path, bars: list[Bar], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = md5_of(release)
    other = tmp_path / "other"
    other.write_bytes(b"swapped")
    monkeypatch.setattr(Bar, "on_enter", staticmethod(lambda: os.replace(other, release)))
    assert release_checksum(release).md5 == expected


def test_what_is_no_tar_is_refused(tmp_path: Path, release: Path) -> None:
    text = tmp_path / "README.md"
    text.write_bytes(b"# a card\n" * 100)
    unnamed = release.rename(tmp_path / "release")
    assert release_checksum(unnamed).md5 == md5_of(unnamed)
    os.mkfifo(tmp_path / "pipe.tar")
    for path, needle in [
        (text, "is not a tar"),
        (demo_path(), "is no file here"),
        (tmp_path / "absent.tar", "is no file here"),
        (tmp_path / "pipe.tar", "is no file here"),
        (Path("demo"), "is no file here"),
        (Path("adept/persimmon-8b-chat"), "is no file here"),
    ]:
        with pytest.raises(CheckpointError, match=f"{needle}; expected the tar of Adept's release") as caught:
            release_checksum(path)
        assert str(caught.value).startswith(f"{path}: ")
        result = info("--verify", "--checkpoint", path)
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"error: {caught.value}\n")


def test_info_tells_a_published_release(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = md5_of(release)
    plain = info("--checkpoint", release, "--json")
    for known, published_, says in [
        ({}, False, "not one of the published releases"),
        ({md5: PublishedRelease("8b.tar", "CC0")}, True, "8b.tar (CC0)"),
    ]:
        monkeypatch.setattr(published, "PUBLISHED_RELEASES", known)
        result = info("--checkpoint", release, "--verify", "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        report = json.loads(result.stdout)
        assert report.pop("release") == {"MD5": md5, "published": published_, "release": says}
        assert report["checkpoint"] == json.loads(plain.stdout)["checkpoint"]
        result = info("--checkpoint", release, "--verify")
        assert result.exit_code == 0
        lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()[:5]]
        answer = "yes" if published_ else "no"
        assert lines == [["release"], ["MD5", md5], ["published", answer], ["release", says], ["checkpoint"]]
    assert "release" not in json.loads(plain.stdout)


@pytest.mark.parametrize("damage", ["ends early", "begins with zeros"])
def test_a_damaged_tar_has_its_sum_shown_before_it_is_refused(release: Path, damage: str) -> None:
    contents = release.read_bytes()
    release.write_bytes(contents[: len(contents) // 2] if damage == "ends early" else bytes(4096) + contents)
    result = info("--checkpoint", release, "--verify")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == ["release", f"  MD5        {md5_of(release)}"]
    assert "checkpoint" not in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr == info("--checkpoint", release).stderr
    result = info("--checkpoint", release, "--verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "release": {
            "MD5": md5_of(release),
            "published": False,
            "release": "not one of the published releases",
        }
    }
