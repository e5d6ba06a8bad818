"""Every file of every format: what is no regular file, has no end, or stands for another is refused."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import (
    adept_files,
    assert_refused,
    demo_tokenizer,
    random_tensors,
    rank_path,
    small_config,
    write_adept,
    write_huggingface,
)

from adept_fast.checkpoint import CheckpointError, open_checkpoint, tar_members
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.model_card import known_license
from adept_fast.modeling import PersimmonForCausalLM

CONFIG = small_config(vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
TENSORS = random_tensors(CONFIG)
TOKENIZER = demo_tokenizer()

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PAGE = b"<!DOCTYPE html>\n<html><body>Access denied</body></html>\n"


def huggingface(path: Path) -> Path:
    write_huggingface(path, CONFIG, TENSORS, TOKENIZER)
    (path / "tokenizer_config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    return path


def shards(path: Path) -> Path:
    return write_huggingface(path, CONFIG, TENSORS, TOKENIZER, shards=2)


def native(path: Path) -> Path:
    write_huggingface(path.with_name("floats"), CONFIG, TENSORS, TOKENIZER)
    convert(path.with_name("floats"), path, weights="int8", layout="cpu_tiled", progress=False)
    return path


def release(path: Path) -> Path:
    return write_adept(path, CONFIG, TENSORS, TOKENIZER)


def tar(path: Path) -> Path:
    return write_adept(path, CONFIG, TENSORS, TOKENIZER, tar=True)


FILES: list[tuple[Callable[[Path], Path], str]] = [
    (huggingface, "config.json"),
    (huggingface, "tokenizer_config.json"),
    (huggingface, "tokenizer.json"),
    (huggingface, "tokenizer.model"),
    (huggingface, "model.safetensors"),
    (shards, "model.safetensors.index.json"),
    (shards, "model-00002-of-00002.safetensors"),
    (native, "config.json"),
    (native, "model.safetensors"),
    (release, "latest_checkpointed_iteration.txt"),
    (release, "adept_vocab.model"),
    (release, rank_path(0)),
    (tar, ""),
]


@pytest.fixture(params=FILES, ids=lambda each: f"{each[0].__name__}-{Path(each[1]).name}")
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The path of a whole checkpoint, and that of one of its files."""
    write, name = request.param
    path = write(tmp_path / "model")
    assert open_checkpoint(path)
    return path, path / name if name else path


def refused(file: tuple[Path, Path], *needles: str) -> None:
    path, replaced = file
    assert_refused(path, str(replaced), *needles, error=ValueError)
    if (path / "config.json").exists() and "token" not in replaced.name:  # which a model has no need of
        with pytest.raises(ValueError, match=needles[0]):
            PersimmonForCausalLM.from_pretrained(path)


def test_a_fifo_is_not_waited_for(file: tuple[Path, Path]) -> None:
    file[1].unlink()
    os.mkfifo(file[1])
    refused(file, "is a FIFO; expected a regular file")


def test_a_device_is_not_read(file: tuple[Path, Path]) -> None:
    file[1].unlink()
    file[1].symlink_to("/dev/zero")
    refused(file, "is a character device; expected a regular file")


def test_a_sparse_file_is_not_read_whole(file: tuple[Path, Path]) -> None:
    file[1].unlink()
    with file[1].open("wb") as opened:
        opened.truncate(64 * 2**30)
    refused(file, file[1].name)


def test_a_link_to_what_was_not_downloaded(file: tuple[Path, Path]) -> None:
    """As in the cache of a hub, whose snapshots are links to blobs."""
    file[1].unlink()
    file[1].symlink_to("../../blobs/4d7a2146")
    refused(file, "is a link, and its target", "blobs/4d7a2146 is missing, so the download is incomplete")


@pytest.mark.parametrize(
    ("contents", "says"),
    [(LFS_POINTER, "is a Git LFS pointer; expected the file itself"), (PAGE, "is an HTML or XML page")],
    ids=["pointer", "page"],
)
def test_what_stands_in_its_place_is_named(file: tuple[Path, Path], contents: bytes, says: str) -> None:
    file[1].write_bytes(contents)
    refused(file, says if file[1].suffix != ".txt" else file[1].name)


def test_links_to_whole_files_are_followed(tmp_path: Path) -> None:
    blobs = huggingface(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    assert open_checkpoint(snapshot).config == CONFIG
    (tmp_path / "link").symlink_to("snapshots/gone")
    assert_refused(tmp_path / "link", f"its target {tmp_path / 'snapshots/gone'} is missing")


def test_a_config_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is used: a second read might find another file."""
    opened: list[str] = []
    open_file = os.open

    def spy(path: object, *arguments: int) -> int:
        opened.append(Path(str(path)).name)
        return open_file(path, *arguments)  # type: ignore[arg-type]

    for write in (huggingface, native, shards, release, tar):
        path = write(tmp_path / write.__name__)
        opened.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", spy)
            open_checkpoint(path)
        assert opened
        assert len(opened) == len(set(opened)), opened


def test_model_cards(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    os.mkfifo(card)
    with pytest.raises(CheckpointError, match=r"README.md: is a FIFO"):
        known_license(tmp_path)
    card.unlink()
    with card.open("wb") as file:
        file.write(b"---\nlicense: mit\n---\n")
        file.truncate(64 * 2**30)
    assert known_license(tmp_path) == "mit"


class TestTarHeaders:
    def write(self, path: Path, headers: bytes, size: int = 0) -> Path:
        with path.open("wb") as file:
            file.write(headers)
            file.truncate(max(size, len(headers)))
        return path

    def header(self, kind: bytes, size: int, name: str = "x") -> bytes:
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, size
        return member.tobuf(tarfile.GNU_FORMAT)

    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE])
    @pytest.mark.parametrize("size", [65536, 60 * 2**30])
    def test_a_name_without_end(self, tmp_path: Path, kind: bytes, size: int) -> None:
        path = self.write(tmp_path / "x.tar", self.header(kind, size), 64 * 2**30)
        assert_refused(path, "x.tar: the tar has headers of over 65536 bytes for a member")

    def test_zeros_behind_a_member(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.tar", self.header(tarfile.REGTYPE, 0), 64 * 2**30)
        assert_refused(path, "0 of its folders hold a model")

    def test_a_chain_of_long_names(self, tmp_path: Path) -> None:
        one = self.header(tarfile.GNUTYPE_LONGNAME, 1) + b"x".ljust(512, b"\0")
        assert_refused(self.write(tmp_path / "x.tar", one * 100_000), "x.tar")

    def test_a_map_of_a_sparse_member_without_end(self, tmp_path: Path) -> None:
        pax = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
        header = self.header(tarfile.XHDTYPE, len(pax)) + pax.ljust(512, b"\0")
        path = self.write(tmp_path / "x.tar", header + self.header(tarfile.REGTYPE, 2**40) + b"9" * 2**20)
        assert_refused(path, "x.tar")

    def test_more_members_than_any_release(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tar_members, "_MOST_MEMBERS", 100)
        for count, says in ((100, "0 of its folders hold a model"), (101, "number over 100")):
            path = self.write(tmp_path / "x.tar", self.header(tarfile.REGTYPE, 0) * count)
            assert_refused(path, says)

    def test_longer_headers_than_any_release(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tar_members, "_MAX_HEADER_BYTES", 10_000)
        path = self.write(tmp_path / "x.tar", self.header(tarfile.REGTYPE, 0) * 20)
        assert_refused(path, "or 10000 for all")

    def test_the_archive_is_the_one_that_was_opened(self, tmp_path: Path) -> None:
        """The tar is replaced after it was listed: weights are still those of the first one."""
        path = tar(tmp_path / "x.tar")
        checkpoint = open_checkpoint(path)
        (tmp_path / "other").write_bytes(PAGE)
        os.replace(tmp_path / "other", path)
        for name, tensor in checkpoint.tensors.items():
            assert tensor.read().equal(TENSORS[name])

    def test_attributes_of_modern_tars_are_read(self, tmp_path: Path) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for name, contents in files.items():
                member = tarfile.TarInfo(f"{'long' * 60}/{name}")
                member.size, member.mtime = len(contents), 1.5
                archive.addfile(member, io.BytesIO(contents))
        assert open_checkpoint(tmp_path / "x.tar").config == CONFIG
