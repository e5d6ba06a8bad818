"""Files of torch.save: the same as torch reads where all is known, and nothing that they name is imported."""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    adept_args,
    adept_files,
    adept_model,
    assert_holds,
    assert_refused,
    rank_path,
    record_of,
    rezipped,
    saved,
    write_adept,
    write_directory,
)
from click.testing import CliRunner
from pickle_bombs import BOMBS
from tiny_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import CheckpointError, open_checkpoint, torch_zip
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.pickle_values import PickledTensor
from adept_fast.checkpoint.torch_file import TorchFile, read_torch_file
from adept_fast.commands.cli import main

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


def read(path: Path, contents: Any, **options: Any) -> TorchFile:
    path.write_bytes(saved(contents, **options))
    return read_torch_file(FileRange.whole(path))


def assert_same(file: TorchFile, ours: Any, theirs: Any) -> int:
    """Both are the same structure; how many tensors are in it."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, PickledTensor)
        tensor = file.tensor("it", ours)
        found = tensor.read()
        assert (tensor.shape, tensor.dtype) == (tuple(theirs.shape), theirs.dtype)
        assert (found.shape, found.dtype, found.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        # As bytes, since some dtypes have no comparison.
        bits = [each.detach().clone().contiguous().view(-1).view(torch.uint8) for each in (found, theirs)]
        assert torch.equal(*bits)
        return 1
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        return sum(assert_same(file, ours[key], value) for key, value in theirs.items())
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        assert isinstance(ours, tuple) == isinstance(theirs, tuple)
        return sum(assert_same(file, each, other) for each, other in zip(ours, theirs, strict=True))
    assert type(ours) is type(theirs)
    assert ours == theirs
    return 0


class TestAsTorch:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_structures(self, tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch itself reads protocol 2 alone without running what a file names."""
        monkeypatch.setattr(torch_zip, "_CHECKED_BYTES", 7)  # so that a storage has several such parts
        base = torch.arange(24, dtype=torch.float32)
        contents = {
            **{str(dtype): torch.ones(3, 2).to(dtype) for dtype in DTYPES},
            "view": base.view(4, 6)[1:3, ::2],
            "transposed": base.view(4, 6).t(),
            "expanded": base[:1].expand(5),
            "scalar": torch.tensor(3.5),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "nested": [({"a": torch.ones(1)}, [torch.zeros(2), None]), OrderedDict(b=base)],
            "plain": [1, 2.5, "text", True, None, (), b"bytes", torch.float16, torch.Size((3, 4))],
        }
        file = read(tmp_path / "a.pt", contents, pickle_protocol=protocol)
        loaded = torch.load(tmp_path / "a.pt", weights_only=protocol == 2)
        loaded["plain"][-1] = tuple(loaded["plain"][-1])
        assert assert_same(file, file.contents, loaded) == len(DTYPES) + 8
        assert file.left_unread == ()

    def test_arguments(self, tmp_path: Path) -> None:
        args = adept_args(CONFIG, device_name="cuda:0", sizes=[1, 2], nothing=None, fraction=0.1)
        file = read(tmp_path / "a.pt", {"args": args})
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert_same(file, file.contents["args"].attributes, vars(loaded["args"]))  # type: ignore[index]

    def test_a_rank_of_the_release(self, tmp_path: Path) -> None:
        file = read(tmp_path / "a.pt", {"model": adept_model(TENSORS)})
        assert (
            assert_same(file, file.contents, torch.load(tmp_path / "a.pt", weights_only=True))
            == len(TENSORS) + 1
        )

    @pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 100, 3])
    def test_written_by_this_package(
        self, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its own writer packs with Python's zipfile, whose zips are of another kind than torch's.

        Above the limit, as if that were 2 GiB, sizes and offsets of records have 64 bits.
        """
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        path = tmp_path / "a.pt"
        path.write_bytes(rezipped(saved({"a": torch.ones(3)})))
        file = read_torch_file(FileRange.whole(path))
        assert assert_same(file, file.contents, torch.load(path, weights_only=True)) == 1

    @pytest.mark.parametrize("name", ["a.pt", "b.bin", "archive.x.y", "ä.pt"])
    def test_the_folder_in_the_zip_is_the_files_name(self, tmp_path: Path, name: str) -> None:
        torch.save({"a": torch.ones(3)}, tmp_path / name)
        file = read_torch_file(FileRange.whole(tmp_path / name))
        assert assert_same(file, file.contents, torch.load(tmp_path / name, weights_only=True)) == 1


class TestBombs:
    @pytest.mark.parametrize("bomb", ["nested tuples as a key", "bytearray of 6 GB"])
    def test_info_of_one_beside_the_model(self, tmp_path: Path, bomb: str) -> None:
        """The model is whole, and what is beside it costs nothing."""
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        stream = record_of(files[rank_path(0)], "data.pkl")
        assert stream.endswith(b"u.")
        built = b"X\x05\0\0\0extra(" + BOMBS[bomb][0]() + b"ls."
        # The memo of the bomb goes over the model's, which is not needed any more.
        files[rank_path(0)] = rezipped(files[rank_path(0)], {"data.pkl": stream[:-1] + built})
        path = write_directory(tmp_path, files)
        assert_holds(open_checkpoint(path), TENSORS)
        result = CliRunner().invoke(main, ["info", "--device", "cpu", "--checkpoint", str(path)])
        assert result.exit_code == 0, result.output
        assert ("builtins.bytearray" in result.output) == (bomb == "bytearray of 6 GB")

    def test_many_empty_dicts(self, tmp_path: Path) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        bomb = b"\x80\x02ccollections\nOrderedDict\nq\0(" + b"h\0)R" * 3_000_000 + b"l."
        files[rank_path(0)] = rezipped(files[rank_path(0)], {"data.pkl": bomb})
        assert_refused(write_directory(tmp_path, files), rank_path(0), "objects")

    def test_a_structure_that_is_shared_in_a_message(self, tmp_path: Path) -> None:
        shared: Any = ["x" * 100] * 100
        for _ in range(50):
            shared = [shared] * 100
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, hidden_size=shared)
        assert len(assert_refused(path, "args.hidden_size is a list of length 100; expected")) < 500

    def test_long_names_of_nested_dicts(self, tmp_path: Path) -> None:
        """Each level makes the names below it longer."""
        model: dict[str, Any] = {}
        inner = model
        for _ in range(2000):
            inner["level"] = {}
            inner = inner["level"]
        buffer = io.BytesIO()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "recursionlimit", 10**6, raising=False)
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(50_000)
            try:
                torch.save({"model": model, "args": adept_args(CONFIG)}, buffer)
            finally:
                sys.setrecursionlimit(limit)
        files = {rank_path(0): buffer.getvalue(), "adept_vocab.model": TOKENIZER}
        message = assert_refused(write_directory(tmp_path, files), "has the key 'level'", "1000 characters")
        assert len(message) < 500


class TestStorages:
    def test_a_checksum_is_computed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first of many views into one storage checks it; else reading all would take forever."""
        flat = torch.arange(1000.0)
        file = read(tmp_path / "a.pt", {str(at): flat[at : at + 10] for at in range(100)})
        tensors = [file.tensor(name, value) for name, value in file.contents.items()]  # type: ignore[attr-defined]
        checked: list[int] = []
        crc32 = torch_zip.zlib.crc32
        monkeypatch.setattr(
            torch_zip.zlib, "crc32", lambda data, *start: (checked.append(len(data)), crc32(data, *start))[1]
        )
        assert all(torch.equal(tensor.read(), flat[at : at + 10]) for at, tensor in enumerate(tensors))
        assert checked == [4000]
        assert tensors[0].read().untyped_storage().nbytes() == 40  # no more than that is mapped

    def test_a_tensor_whose_state_is_set(self, tmp_path: Path) -> None:
        """torch would let it change the tensor, whatever it was made from."""
        contents = saved({"a": torch.ones(2)})
        stream = record_of(contents, "data.pkl")
        assert stream.endswith(b"s.")
        (tmp_path / "a.pt").write_bytes(rezipped(contents, {"data.pkl": stream[:-2] + b"}bs."}))
        file = read_torch_file(FileRange.whole(tmp_path / "a.pt"))
        with pytest.raises(CheckpointError, match="tensor a has a state of its own; expected a plain one"):
            file.tensor("a", file.contents["a"])  # type: ignore[index]

    def test_a_damaged_storage_fails_each_time(self, tmp_path: Path) -> None:
        contents = bytearray(saved({"a": torch.arange(10.0), "b": 1}))
        contents[contents.index(torch.arange(10.0).numpy().tobytes())] ^= 1
        (tmp_path / "a.pt").write_bytes(contents)
        file = read_torch_file(FileRange.whole(tmp_path / "a.pt"))
        stored = file.tensor("a", file.contents["a"])  # type: ignore[index]
        for _ in range(2):
            with pytest.raises(CheckpointError, match="tensor a is damaged"):
                stored.read()
