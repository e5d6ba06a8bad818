"""Damaged and lying .pt files: nothing that a zip says of itself is believed unchecked."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    assert_holds,
    assert_refused,
    outcome,
    rank_path,
    record_of,
    rezipped,
    write_adept,
)
from tiny_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import open_checkpoint

RANK_FILE = rank_path(0)
UP = "model.layers.0.mlp.dense_h_to_4h.weight"
ROWS, COLUMNS = TENSORS[UP].shape
COUNT = ROWS * COLUMNS


class Storage:
    """A persistent id, kept as it is."""

    def __init__(self, saved_id: tuple[Any, ...]) -> None:
        self.saved_id = saved_id


class Rebuild:
    """A call of torch's _rebuild_tensor_v2, kept as it is."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


class KeepsCalls(pickle.Unpickler):
    def persistent_load(self, saved_id: Any) -> Storage:
        return Storage(saved_id)

    def find_class(self, module: str, name: str) -> Any:
        if name == "_rebuild_tensor_v2":
            return lambda *arguments: Rebuild(arguments)
        return super().find_class(module, name)


class WritesCalls(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.saved_id if isinstance(value, Storage) else None


class TestZip:
    """The .pt as a zip: what it says of itself is not believed."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_adept(tmp_path / "release", CONFIG, TENSORS, TOKENIZER)

    def directory_entry(self, contents: bytes, name: str) -> int:
        """Where the central directory's entry of a record begins."""
        return contents.rindex(b"PK\x01\x02", 0, contents.rindex(b"archive/" + name.encode()))

    @pytest.mark.parametrize("record", ["data/0", "data/3", "data.pkl", "version"])
    @pytest.mark.parametrize("size", [0, 1, 2**20, 2**31, 2**32 - 2])
    def test_a_record_lies_about_its_size(self, path: Path, record: str, size: int) -> None:
        contents = bytearray((path / RANK_FILE).read_bytes())
        entry = self.directory_entry(bytes(contents), record)
        struct.pack_into("<II", contents, entry + 20, size, size)
        (path / RANK_FILE).write_bytes(contents)
        assert_refused(path, RANK_FILE)

    @pytest.mark.parametrize("record", ["data/0", "version"])
    def test_a_record_reaches_beyond_the_file(self, path: Path, record: str) -> None:
        contents = bytearray((path / RANK_FILE).read_bytes())
        struct.pack_into("<II", contents, self.directory_entry(bytes(contents), record) + 20, 2**31, 2**31)
        (path / RANK_FILE).write_bytes(contents)
        assert_refused(path, RANK_FILE, f"archive/{record}", "claims 2147483648 bytes")

    @pytest.mark.parametrize("record", ["data/0", "data.pkl"])
    @pytest.mark.parametrize("offset", [1, 64, 2**31, 2**32 - 2])
    def test_a_record_lies_about_its_place(self, path: Path, record: str, offset: int) -> None:
        contents = bytearray((path / RANK_FILE).read_bytes())
        struct.pack_into("<I", contents, self.directory_entry(bytes(contents), record) + 42, offset)
        (path / RANK_FILE).write_bytes(contents)
        assert_refused(path, RANK_FILE)

    def test_a_record_shares_the_place_of_another(self, path: Path) -> None:
        contents = bytearray((path / RANK_FILE).read_bytes())
        zipped = zipfile.ZipFile(io.BytesIO(contents))
        # Both LayerNorm vectors have the same size; only their places tell them apart.
        first, second = [name for name in zipped.namelist() if zipped.getinfo(name).file_size == 2 * COLUMNS][
            :2
        ]
        entry = self.directory_entry(bytes(contents), second.removeprefix("archive/"))
        struct.pack_into("<I", contents, entry + 42, zipped.getinfo(first).header_offset)
        (path / RANK_FILE).write_bytes(contents)
        assert_refused(path, RANK_FILE, first, "no room")

    def test_two_records_of_one_name(self, path: Path) -> None:
        buffer = io.BytesIO((path / RANK_FILE).read_bytes())
        with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data/0", b"")
        (path / RANK_FILE).write_bytes(buffer.getvalue())
        assert_refused(path, RANK_FILE, "two zip records", "archive/data/0")

    @pytest.mark.parametrize(
        ("field", "value", "found"),
        [
            (24, 2**17, "its directory is not where it says"),  # the records of this disk
            (32, 2**17, "its directory is not where it says"),  # all records
            (40, 2**40, "its directory is not where it says"),  # its size
            (48, 2**63, "its directory is not where it says"),  # its start
            (4, 2**40, "64-bit end is damaged"),  # the end's own size
            (16, 1, "its directory is not where it says"),  # the disk's number
        ],
    )
    def test_the_end_lies(self, path: Path, field: int, value: int, found: str) -> None:
        """torch ends each zip with a structure of 64-bit numbers, whatever its size."""
        contents = bytearray((path / RANK_FILE).read_bytes())
        end = contents.rindex(b"PK\x06\x06")
        struct.pack_into("<I" if field == 16 else "<Q", contents, end + field, value)
        (path / RANK_FILE).write_bytes(contents)
        assert_refused(path, RANK_FILE, "not a zip", found)

    @pytest.mark.parametrize("count", [2**17, 2**40])
    def test_more_records_than_a_model_has(self, path: Path, count: int) -> None:
        contents = bytearray((path / RANK_FILE).read_bytes())
        struct.pack_into("<QQ", contents, contents.rindex(b"PK\x06\x06") + 24, count, count)
        (path / RANK_FILE).write_bytes(contents)
        assert_refused(path, RANK_FILE, f"the zip lists {count} records", "expected at most")

    @pytest.mark.parametrize(("before", "behind"), [(b"", b"x"), (b"x", b""), (b"x" * 70_000, b"")])
    def test_bytes_around_the_zip(self, path: Path, before: bytes, behind: bytes) -> None:
        (path / RANK_FILE).write_bytes(before + (path / RANK_FILE).read_bytes() + behind)
        assert_refused(path, RANK_FILE, "not a zip")

    def test_a_comment(self, path: Path) -> None:
        buffer = io.BytesIO((path / RANK_FILE).read_bytes())
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.comment = b"a comment"
        (path / RANK_FILE).write_bytes(buffer.getvalue())
        assert_refused(path, RANK_FILE, "not a zip")

    @pytest.mark.parametrize("record", ["data/0", "data.pkl"])
    def test_another_name_before_the_bytes(self, path: Path, record: str) -> None:
        contents = (path / RANK_FILE).read_bytes()
        name = f"archive/{record}".encode()
        at = contents.index(name)
        changed = contents[:at] + name.swapcase() + contents[at + len(name) :]
        (path / RANK_FILE).write_bytes(changed)
        assert_refused(path, RANK_FILE, f"archive/{record}", "another name")

    def test_two_folders(self, path: Path) -> None:
        buffer = io.BytesIO((path / RANK_FILE).read_bytes())
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("other/data.pkl", pickle.dumps({}, protocol=2))
        (path / RANK_FILE).write_bytes(buffer.getvalue())
        assert_refused(path, RANK_FILE, "2 records data.pkl")

    def test_no_pickle(self, path: Path) -> None:
        plain = (path / RANK_FILE).read_bytes()
        (path / RANK_FILE).write_bytes(rezipped(plain, without=("data.pkl", ".format_version")))
        assert_refused(path, RANK_FILE, "0 records data.pkl")

    def test_an_empty_zip(self, path: Path) -> None:
        (path / RANK_FILE).write_bytes(b"PK\x05\x06" + b"\0" * 18)
        assert_refused(path, RANK_FILE, "0 records data.pkl")

    def test_names_for_a_terminal(self, path: Path) -> None:
        buffer = io.BytesIO((path / RANK_FILE).read_bytes())
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/\x1b[2J" + "x" * 1000, b"contents")
        (path / RANK_FILE).write_bytes(buffer.getvalue())
        message = assert_refused(path, RANK_FILE, "compressed")
        assert message.isprintable()
        assert len(message) < 600

    def test_a_huge_pickle(self, path: Path) -> None:
        contents = bytearray((path / RANK_FILE).read_bytes())
        entry = self.directory_entry(bytes(contents), "data.pkl")
        struct.pack_into("<II", contents, entry + 20, 2**30, 2**30)
        (path / RANK_FILE).write_bytes(contents)
        assert_refused(path, RANK_FILE, "data.pkl", f"{2**30} bytes")

    def test_a_storage_larger_than_its_record(self, path: Path) -> None:
        """The pickle claims twice the elements that the record has."""
        self.claim(path, elements=2 * COUNT)
        assert_refused(path, RANK_FILE, "dense_h_to_4h.weight", f"{4 * COUNT} bytes", "no such record")

    def test_a_storage_of_an_absurd_size(self, path: Path) -> None:
        self.claim(path, elements=2**62)
        assert_refused(path, RANK_FILE)

    @pytest.mark.parametrize("elements", [-1, 0, 1])
    def test_a_storage_smaller_than_its_record(self, path: Path, elements: int) -> None:
        self.claim(path, elements=elements)
        assert_refused(path, RANK_FILE, "dense_h_to_4h.weight")

    @pytest.mark.parametrize(
        ("shape", "stride", "offset"),
        [
            ((ROWS + 1, COLUMNS), (COLUMNS, 1), 0),
            ((ROWS, COLUMNS), (COLUMNS, 1), 1),
            ((ROWS, COLUMNS), (COLUMNS + 1, 1), 0),
            ((ROWS, COLUMNS), (2**40, 1), 0),
            ((2**31, 2**31), (1, 1), 0),
            ((ROWS, COLUMNS), (COLUMNS, 1), 2**62),
            ((ROWS, COLUMNS), (-COLUMNS, 1), (ROWS - 1) * COLUMNS),
            ((ROWS, COLUMNS), (COLUMNS, 1), -1),
            ((-ROWS, COLUMNS), (COLUMNS, 1), 0),
            ((ROWS, COLUMNS), (COLUMNS,), 0),
        ],
    )
    def test_a_tensor_beyond_its_storage(
        self, path: Path, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
    ) -> None:
        self.claim(path, shape=shape, stride=stride, offset=offset)
        assert_refused(path, RANK_FILE)

    def claim(
        self,
        path: Path,
        elements: int = COUNT,
        shape: tuple[int, ...] = (ROWS, COLUMNS),
        stride: tuple[int, ...] = (COLUMNS, 1),
        offset: int = 0,
    ) -> None:
        """Let the pickle say this of the up-projection, with a checksum that fits."""
        plain = (path / RANK_FILE).read_bytes()
        contents = KeepsCalls(io.BytesIO(record_of(plain, "data.pkl"))).load()
        encoder = contents["model"]["language_model"]["encoder"]
        storage, _, _, _, *rest = encoder["layers.0.mlp.dense_h_to_4h.weight"].arguments
        claimed = Storage((*storage.saved_id[:-1], elements))
        encoder["layers.0.mlp.dense_h_to_4h.weight"] = Rebuild((claimed, offset, shape, stride, *rest))
        buffer = io.BytesIO()
        WritesCalls(buffer, protocol=2).dump(contents)
        (path / RANK_FILE).write_bytes(rezipped(plain, {"data.pkl": buffer.getvalue()}))

    def test_the_claim_that_is_true(self, path: Path) -> None:
        """``claim`` itself breaks nothing, so the refusals above are of what it claims."""
        self.claim(path)
        assert_holds(open_checkpoint(path), TENSORS)

    def test_truncated(self, path: Path) -> None:
        plain = (path / RANK_FILE).read_bytes()
        for length in (0, 1, 3, 22, 100, *range(1000, len(plain), len(plain) // 40), len(plain) - 1):
            (path / RANK_FILE).write_bytes(plain[:length])
            assert_refused(path, RANK_FILE)

    @pytest.mark.slow
    def test_flipped_bits(self, path: Path) -> None:
        """A flipped bit is refused, at the latest when the tensor is read, or changes nothing at all."""
        plain = (path / RANK_FILE).read_bytes()
        generator = random.Random(0)
        directory = plain.index(b"PK\x01\x02")
        places = [generator.randrange(len(plain)) for _ in range(40)]
        places += [generator.randrange(plain.index(b"archive/data/0")) for _ in range(40)]
        places += [generator.randrange(directory, len(plain)) for _ in range(80)]
        refused = 0
        for place in places:
            changed = bytearray(plain)
            changed[place] ^= 1 << generator.randrange(8)
            (path / RANK_FILE).write_bytes(changed)
            message = outcome(path, TENSORS)
            if message is not None:
                assert "\n" not in message
                assert RANK_FILE in message
                refused += 1
        assert refused > len(places) / 2

    def test_checksums_are_those_of_the_data(self, path: Path) -> None:
        """torch writes true CRC-32s into its zips, which finding damage relies on."""
        with zipfile.ZipFile(path / RANK_FILE) as archive:
            for record in archive.infolist():
                assert zlib.crc32(archive.read(record)) == record.CRC
