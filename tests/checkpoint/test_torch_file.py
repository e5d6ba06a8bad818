"""Files of torch.save: the same as torch reads where all is known, and nothing that they name is imported."""

from __future__ import annotations

import argparse
import enum
import io
import json
import os
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    adept_args,
    adept_files,
    adept_model,
    assert_holds,
    assert_refused,
    demo_tokenizer,
    random_tensors,
    rank_path,
    record_of,
    rezipped,
    saved,
    small_config,
    write_adept,
    write_directory,
    write_one_rank,
)
from click.testing import CliRunner
from test_pickle_reader import BOMBS

from adept_fast.checkpoint import CheckpointError, open_checkpoint, torch_zip
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.pickle_values import PickledTensor
from adept_fast.checkpoint.torch_file import TorchFile, read_torch_file
from adept_fast.commands.cli import main

CONFIG = small_config(vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
TENSORS = random_tensors(CONFIG, dtype=torch.float16)
TOKENIZER = demo_tokenizer()
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
    def test_structures(self, tmp_path: Path, protocol: int) -> None:
        """torch itself reads protocol 2 alone without running what a file names."""
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

    def test_written_by_this_package(self, tmp_path: Path) -> None:
        """Its own writer packs with Python's zipfile, whose zips are of another kind than torch's."""
        path = tmp_path / "a.pt"
        path.write_bytes(rezipped(saved({"a": torch.ones(3)})))
        file = read_torch_file(FileRange.whole(path))
        assert assert_same(file, file.contents, torch.load(path, weights_only=True)) == 1

    @pytest.mark.parametrize("name", ["a.pt", "b.bin", "archive.x.y", "ä.pt"])
    def test_the_folder_in_the_zip_is_the_files_name(self, tmp_path: Path, name: str) -> None:
        torch.save({"a": torch.ones(3)}, tmp_path / name)
        file = read_torch_file(FileRange.whole(tmp_path / name))
        assert assert_same(file, file.contents, torch.load(tmp_path / name, weights_only=True)) == 1


class Colour(enum.Enum):
    RED = 1


NEEDED = [
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "kv_channels",
    "ffn_hidden_size",
    "max_position_embeddings",
    "padded_vocab_size",
    "layernorm_epsilon",
    "rotary_emb_base",
    "rotary_pct",
    "qk_layernorm",
    "untie_embeddings",
    "sq_relu",
    "pos_emb",
    "attn_span_type",
    "apply_residual_connection_post_layernorm",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
]


@contextmanager
def class_elsewhere(module: str, name: str, bases: tuple[type, ...] = (), **members: Any) -> Iterator[type]:
    """A class of a module that is there for as long as it is saved, as the training code's are."""
    kind = type(name, bases, {"__module__": module, **members})
    made = types.ModuleType(module)
    setattr(made, name, kind)
    parents = [module.rpartition(".")[0]] if "." in module else []
    with pytest.MonkeyPatch.context() as patched:
        for parent in parents:
            patched.setitem(sys.modules, parent, types.ModuleType(parent))
        patched.setitem(sys.modules, module, made)
        yield kind


class TestUnknownClasses:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("name", NEEDED)
    def test_where_a_field_is_needed_both_are_named(self, tmp_path: Path, name: str, protocol: int) -> None:
        for value in (Colour.RED, [1, {"inside": Colour.RED}]):
            contents = {"model": adept_model(TENSORS), "args": adept_args(CONFIG, **{name: value})}
            path = write_one_rank(tmp_path, contents, TOKENIZER, pickle_protocol=protocol)
            assert_refused(path, rank_path(0), f"args.{name} is ", f"an object of {__name__}.Colour")

    def test_elsewhere_they_do_not_matter(self, tmp_path: Path) -> None:
        others: dict[str, Any] = {
            "enum": Colour.RED,
            "path": Path("/data"),
            "device": torch.device("cuda:0"),
            "array": np.arange(3),
            "state": np.random.get_state(),
            "sparse": torch.eye(2).to_sparse(),
            "function": os.system,
        }
        contents = {
            "args": adept_args(
                CONFIG, **{name: value for name, value in others.items() if name != (1, Colour.RED)}
            )
        }
        contents |= {"model": adept_model(TENSORS), "optimizer": others, ("a", "b"): 3}
        for protocol in (2, 3, 4, 5):
            checkpoint = open_checkpoint(
                write_one_rank(tmp_path, contents, TOKENIZER, pickle_protocol=protocol)
            )
            assert checkpoint.config == CONFIG
            assert_holds(checkpoint, TENSORS)
            assert {f"{__name__}.Colour", "torch.device", "torch._utils._rebuild_sparse_tensor"} <= set(
                checkpoint.left_unread
            )

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("slots", [False, True])
    def test_args_of_a_class_of_the_training_code(self, tmp_path: Path, slots: bool, protocol: int) -> None:
        given = vars(adept_args(CONFIG))
        members = {"__slots__": tuple(given)} if slots else {}
        with class_elsewhere("megatron.config", "Arguments", **members) as kind:
            args = kind()
            for name, value in given.items():
                setattr(args, name, value)
            path = write_one_rank(
                tmp_path, {"model": adept_model(TENSORS), "args": args}, TOKENIZER, pickle_protocol=protocol
            )
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == CONFIG
        assert checkpoint.left_unread == ("megatron.config.Arguments (args, read as argparse.Namespace)",)

    def test_args_that_keep_no_dict(self, tmp_path: Path) -> None:
        with class_elsewhere("megatron.config", "Arguments", (dict,)) as kind:
            contents = {"model": adept_model(TENSORS), "args": kind(vars(adept_args(CONFIG)))}
            path = write_one_rank(tmp_path, contents, TOKENIZER)
        assert_refused(
            path, "'args' is an object of megatron.config.Arguments", "expected an argparse.Namespace"
        )

    def test_a_model_of_a_class_of_the_training_code(self, tmp_path: Path) -> None:
        with class_elsewhere("megatron.state", "StateDict", (dict,)) as kind:
            contents = {"model": kind(adept_model(TENSORS)), "args": adept_args(CONFIG)}
            path = write_one_rank(tmp_path, contents, TOKENIZER)
        assert_refused(path, "'model' is an object of megatron.state.StateDict", "expected a dict")

    @pytest.mark.parametrize(
        ("value", "named"),
        [
            (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
            (torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
            (np.ones(2), "numpy"),
            (Colour.RED, f"{__name__}.Colour"),
        ],
        ids=str,
    )
    def test_a_tensor_of_another_kind(self, tmp_path: Path, value: object, named: str) -> None:
        model = adept_model(TENSORS)
        model["language_model"]["encoder"]["final_layernorm.bias"] = value
        path = write_one_rank(tmp_path, {"model": model, "args": adept_args(CONFIG)}, TOKENIZER)
        assert_refused(path, "language_model.encoder.final_layernorm.bias is an object of", named)


PROGRAM = """
import json, pickle, sys
from adept_fast.checkpoint import open_checkpoint

benign, hostile, stream = sys.argv[1:]
for stored in open_checkpoint(benign).tensors.values():
    stored.read()
events, listening = [], True
sys.addaudithook(lambda event, given: events.append([event, ascii(given)[:999]]) if listening else None)
modules = set(sys.modules)
checkpoint = open_checkpoint(hostile)
for stored in checkpoint.tensors.values():
    stored.read()
listening = False
found = {"events": events, "modules": sorted(set(sys.modules) - modules), "left": checkpoint.left_unread}
events, listening = [], True
try:
    pickle.loads(open(stream, "rb").read())
except Exception:
    pass
listening = False
found["theirs"] = sorted({event for event, _ in events})
print(json.dumps(found))
"""


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_runs_and_nothing_is_imported(tmp_path: Path) -> None:
    """Python announces imports, calls and files to a hook: none while a file of attacks is read.

    Its own reader, given some of the same, sets the hook off.
    """
    with class_elsewhere("antigravity", "Balloon") as kind:
        attacks = [
            Calls(os.system, "echo > canary"),
            Calls(exec, "open('canary', 'w').close()"),
            Calls(getattr, Calls(open, "canary", "w"), "close"),
            Calls(__import__, "this"),
            Calls(torch.load, "canary"),
            Colour.RED,
            Path("."),
            np.random.get_state(),
            torch.device("cpu"),
            kind(),
        ]
        contents = {
            "model": adept_model(TENSORS),
            "args": adept_args(CONFIG, attacks=attacks),
            "more": attacks,
        }
        write_one_rank(tmp_path / "hostile", contents, TOKENIZER)
    (tmp_path / "stream").write_bytes(record_of(saved(attacks[:5]), "data.pkl"))
    write_adept(tmp_path / "benign", CONFIG, TENSORS, TOKENIZER)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "trap").mkdir()
    paths = [str(tmp_path / name) for name in ("program.py", "benign", "hostile", "stream")]
    done = subprocess.run(
        [sys.executable, *paths], capture_output=True, text=True, check=False, cwd=tmp_path / "trap",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])  # Python's reader has printed what it was told to
    assert found["modules"] == []
    # It looks for files, opens them to read, and maps their weights.
    harmless = {"os.listdir", "os.scandir", "mmap.__new__", "builtins.id"}
    others = [(event, given) for event, given in found["events"] if event not in harmless]
    assert {event for event, _ in others} == {"open"}
    assert all(str(tmp_path / "hostile") in given for _, given in others)
    assert {"antigravity.Balloon", "builtins.exec", f"{os.system.__module__}.system"} <= set(found["left"])
    assert {"pickle.find_class", "os.system"} <= set(found["theirs"])


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
