"""Damaged and hostile tars and safetensors files: nothing outside is read, nothing at all is written."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    adept_files,
    assert_holds,
    assert_refused,
    outcome,
    rank_path,
    saved,
    write_huggingface,
)
from tiny_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import open_checkpoint
from adept_fast.checkpoint import safetensors_file as safetensors_module

RANK_FILE = rank_path(0)
UP = "model.layers.0.mlp.dense_h_to_4h.weight"


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Files are opened from an empty directory, which is still empty afterwards."""
    trap = tmp_path / "trap"
    trap.mkdir()
    monkeypatch.chdir(trap)
    yield
    assert list(trap.iterdir()) == []


class TestTar:
    def write(self, path: Path, *members: tarfile.TarInfo, without: str | None = None) -> Path:
        """A whole release, and these members before it."""
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        with tarfile.open(path, "w") as archive:
            for member in members:
                archive.addfile(member, io.BytesIO(b"x" * member.size))
            for name, contents in files.items():
                if name != without:
                    member = tarfile.TarInfo(name)
                    member.size = len(contents)
                    archive.addfile(member, io.BytesIO(contents))
        return path

    @pytest.mark.parametrize(
        "name",
        ["/etc/passwd", "../canary", "release/../../canary", "..", "a/..", "/", "//x", "./../canary"],
    )
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
    def test_member_outside(self, tmp_path: Path, name: str, kind: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "anything" if kind == tarfile.SYMTYPE else ""
        assert_refused(self.write(tmp_path / "x.tar", member), "x.tar", "points outside")

    def test_long_member_outside(self, tmp_path: Path) -> None:
        name = "a/" * 200 + "../../canary"
        assert_refused(self.write(tmp_path / "x.tar", tarfile.TarInfo(name)), "x.tar", "points outside")

    @pytest.mark.parametrize("needed", [RANK_FILE, "adept_vocab.model", "latest_checkpointed_iteration.txt"])
    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    )
    def test_needed_member_is_no_file(self, tmp_path: Path, needed: str, kind: bytes) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(TOKENIZER)
        member = tarfile.TarInfo(needed)
        member.type = kind
        member.linkname = str(secret) if kind == tarfile.SYMTYPE else "other"
        assert_refused(
            self.write(tmp_path / "x.tar", member, without=needed), "x.tar", needed, "regular file"
        )

    def test_other_links_do_not_matter(self, tmp_path: Path) -> None:
        member = tarfile.TarInfo("latest")
        member.type = tarfile.SYMTYPE
        member.linkname = "../../etc/passwd"
        assert_holds(open_checkpoint(self.write(tmp_path / "x.tar", member)), TENSORS)

    def test_truncated(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.tar")
        plain = path.read_bytes()
        with tarfile.open(path) as archive:
            end = max(member.offset_data + member.size for member in archive)
        for length in (0, 1, 511, 513, *range(1000, end, end // 40), end - 1):
            path.write_bytes(plain[:length])
            assert_refused(path, "x.tar")

    def test_a_negative_size(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.tar")
        changed = bytearray(path.read_bytes())
        with tarfile.open(path) as archive:
            last = max(member.offset for member in archive)
        changed[last + 124 : last + 136] = b"\xff" * 12  # -1, in base 256
        changed[last + 148 : last + 156] = b" " * 8
        changed[last + 148 : last + 156] = b"%06o\0 " % sum(changed[last : last + 512])
        path.write_bytes(changed)
        assert_refused(path, "x.tar", "has -1 bytes by its header")

    def test_headers_with_flipped_bits(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.tar")
        plain = path.read_bytes()
        with tarfile.open(path) as archive:
            headers = [member.offset for member in archive]
        generator = random.Random(0)
        for _ in range(120):
            changed = bytearray(plain)
            changed[generator.choice(headers) + generator.randrange(512)] ^= 1 << generator.randrange(8)
            path.write_bytes(changed)
            message = outcome(path, TENSORS)
            assert message is None or ("x.tar" in message and "\n" not in message)

    @pytest.mark.parametrize("size", [-1024, -(2**40), 2**50])
    def test_a_size_that_leads_backwards_or_beyond(self, tmp_path: Path, size: int) -> None:
        path = self.write(tmp_path / "x.tar", tarfile.TarInfo("first"), tarfile.TarInfo("second"))
        contents = bytearray(path.read_bytes())
        lead = 0o377 if size < 0 else 0o200  # GNU's binary numbers
        contents[512 + 124 : 512 + 136] = bytes([lead]) + (size % 256**11).to_bytes(11, "big")
        contents[512 + 148 : 512 + 156] = b" " * 8
        contents[512 + 148 : 512 + 156] = b"%06o\0 " % sum(contents[512:1024])
        path.write_bytes(contents)
        assert_refused(path, "x.tar")


def safetensors_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header (JSON, or bytes as they are), its length as claimed."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F16") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - start) // 2] if shape is None else shape,
        "data_offsets": [start, end],
    }


class TestSafetensors:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_huggingface(tmp_path / "model", CONFIG, TENSORS, TOKENIZER)

    @pytest.mark.parametrize(
        "contents",
        [
            b"",
            b"\0" * 7,
            safetensors_file({}, length=0),
            safetensors_file({}, length=3),
            safetensors_file({}, length=2**63),
            safetensors_file({}, length=2**64 - 1),
            safetensors_file({}, length=2**40),
            safetensors_file({"a": entry(0, 4)}, b"1234", length=10**6),
            safetensors_file(b"not JSON"),
            safetensors_file(b"[]"),
            safetensors_file(b"\xff\xfe{}"),
            safetensors_file(b"[" * 100_000),
            safetensors_file({"a": 3}),
            safetensors_file({"a": {"dtype": "F16"}}),
            safetensors_file({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"),
            safetensors_file({"a": entry(0, 4), "b": entry(0, 4)}, b"1234"),
            safetensors_file({"a": entry(0, 4), "b": entry(6, 8)}, b"12345678"),
            safetensors_file({"a": entry(2, 6)}, b"123456"),
            safetensors_file({"a": entry(0, 8)}, b"1234"),
            safetensors_file({"a": entry(0, 4)}, b"12345678"),
            safetensors_file({"a": entry(4, 0, [2])}, b"1234"),
            safetensors_file({"a": entry(0, 4, [3])}, b"1234"),
            safetensors_file({"a": entry(0, 4, [2**32, 2**32])}, b"1234"),
            safetensors_file({"a": entry(0, 4, [-2])}, b"1234"),
            safetensors_file({"a": entry(0, 4, dtype="F32")} | {"b": entry(4, 8, [4], "F17")}, b"12345678"),
            safetensors_file({"a": entry(0, 4, [1, 2], "I64")}, b"1234"),
            safetensors_file({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 2**64]}}, b"1234"),
            safetensors_file({"a": {"dtype": "F16", "shape": [2], "data_offsets": [-4, 0]}}, b"1234"),
            safetensors_file({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4.5]}}, b"1234"),
        ],
    )
    def test_header(self, path: Path, contents: bytes) -> None:
        (path / "model.safetensors").write_bytes(contents)
        assert_refused(path, str(path / "model.safetensors"), "not a valid safetensors file")

    def test_a_name_twice(self, path: Path) -> None:
        twice = json.dumps({"a": entry(0, 4), "b": entry(4, 8)}).replace('"b"', '"a"').encode()
        (path / "model.safetensors").write_bytes(safetensors_file(twice, b"12345678"))
        assert_refused(path, str(path / "model.safetensors"))

    @pytest.mark.parametrize("value", [entry(0, 4), "x" * 10**5])
    @pytest.mark.parametrize("name", ["x" * 10**5, "x\n" * 10**5])
    def test_long_names_do_not_make_long_messages(self, path: Path, name: str, value: object) -> None:
        (path / "model.safetensors").write_bytes(safetensors_file({name: value}, b"1234"))
        assert len(assert_refused(path, str(path / "model.safetensors"))) < 600
        index = path / "model.safetensors.index.json"
        for weight_map in ({name: "model.safetensors"}, {name: "missing"}, {UP: name}, {name: name}):
            index.write_text(json.dumps({"weight_map": weight_map}))
            assert len(assert_refused(path, str(path))) < 600

    def test_a_header_larger_than_any(self, path: Path) -> None:
        with (path / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", 2**30) + b"{")
            file.truncate(2**36)
        assert_refused(path, "its header has 1073741824 bytes; expected at most 33554432")

    @pytest.mark.parametrize(
        "changed",
        [
            {"shape": [2**40], "data_offsets": [0, 2**41]},
            {"shape": [-2], "data_offsets": [4, 0]},
            {"data_offsets": [-4, 0]},
            {"data_offsets": [0, 4.5]},
            {"data_offsets": [0]},
            {"data_offsets": None},
            {"data_offsets": [4, 8]},
            {"shape": "22"},
            {"shape": [True, 2]},
            {"shape": [10**300] * 100_000},
            {"dtype": ["F16"]},
            {"dtype": "F17"},
        ],
        ids=lambda changed: str(changed)[:40],
    )
    def test_a_header_that_changes_after_the_library_checked_it(
        self, path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(safetensors_module, "_require_valid", lambda file: None)
        for header in ({"a": entry(0, 4) | changed}, {"a": 3}, {"a": {}}):
            (path / "model.safetensors").write_bytes(safetensors_file(header, b"1234"))
            assert_refused(path, str(path / "model.safetensors"))

    def test_the_helper_writes_what_is_valid(self, path: Path) -> None:
        (path / "model.safetensors").write_bytes(safetensors_file({"a": entry(0, 4)}, b"1234"))
        assert_refused(path, "model.embed_tokens.weight", "missing")

    def test_truncated(self, path: Path) -> None:
        file = path / "model.safetensors"
        plain = file.read_bytes()
        for length in (*range(0, 3000, 100), *range(3000, len(plain), len(plain) // 40), len(plain) - 1):
            file.write_bytes(plain[:length])
            assert_refused(path, str(file))

    @pytest.mark.slow
    def test_flipped_bits_in_the_header(self, path: Path) -> None:
        file = path / "model.safetensors"
        plain = file.read_bytes()
        header = 8 + struct.unpack("<Q", plain[:8])[0]
        generator = random.Random(0)
        refused = 0
        for place in [*range(8), *(generator.randrange(header) for _ in range(120))]:
            changed = bytearray(plain)
            changed[place] ^= 1 << generator.randrange(8)
            file.write_bytes(changed)
            message = outcome(path, TENSORS)
            if message is not None:
                assert str(path) in message
                assert "\n" not in message
                refused += 1
        assert refused > 50

    @pytest.mark.parametrize(
        "name",
        [
            "../outside.safetensors",
            "/etc/passwd",
            "sub/model.safetensors",
            "./model.safetensors",
            "",
            ".",
            "..",
            None,
            3,
            ["model.safetensors"],
        ],
    )
    def test_index_that_names_another_place(self, tmp_path: Path, path: Path, name: object) -> None:
        for place in (tmp_path / "outside.safetensors", path / "sub/model.safetensors"):
            place.parent.mkdir(exist_ok=True)
            place.write_bytes((path / "model.safetensors").read_bytes())
        index = path / "model.safetensors.index.json"
        weight_map = dict.fromkeys(TENSORS, "model.safetensors") | {UP: name}
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert_refused(path, str(index), repr(name), "a file of this directory")

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
    def test_index_that_names_another_file(self, path: Path, name: str) -> None:
        index = path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, name)}))
        assert_refused(path, str(path / name), "not a valid safetensors file")

    def test_a_pickle_under_another_name(self, path: Path) -> None:
        (path / "model.safetensors").write_bytes(saved(TENSORS))
        assert_refused(path, "model.safetensors", "not a valid safetensors file")

    def test_a_pickle_beside_it_is_not_looked_at(self, path: Path) -> None:
        (path / "pytorch_model.bin").write_bytes(b"damaged")
        assert_holds(open_checkpoint(path), TENSORS)
