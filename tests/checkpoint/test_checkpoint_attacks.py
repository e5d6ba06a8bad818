"""Hostile pickles: nothing in them runs, nothing is written, one sentence says why."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    adept_args,
    adept_files,
    adept_model,
    assert_refused,
    outcome,
    rank_path,
    record_of,
    rezipped,
    saved,
    write_adept,
    write_directory,
    write_tar,
)
from tiny_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import open_checkpoint

RANK_FILE = rank_path(0)


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Attacks run in an empty directory, which is still empty afterwards."""
    trap = tmp_path / "trap"
    trap.mkdir()
    monkeypatch.chdir(trap)
    yield
    assert list(trap.iterdir()) == []


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class NamespaceOfAnotherKind(argparse.Namespace):
    """A class that a file may name, and that is not argparse's."""


class SlyDict(OrderedDict):  # type: ignore[type-arg]
    pass


def rank_file(change: Callable[[dict[str, Any]], None], **options: Any) -> dict[str, bytes]:
    """A release's files, its contents changed before they were saved."""
    contents = {"model": adept_model(TENSORS), "args": adept_args(CONFIG), "iteration": 1}
    change(contents)
    return {RANK_FILE: saved(contents, **options), "adept_vocab.model": TOKENIZER}


class TestPickles:
    ATTACKS: dict[str, tuple[Calls, str]] = {
        "os.system": (Calls(os.system, "echo > canary"), f"{os.system.__module__}.system"),
        "eval": (Calls(eval, "open('canary', 'w')"), "builtins.eval"),
        "exec": (Calls(exec, "open('canary', 'w')"), "builtins.exec"),
        "open": (Calls(open, "canary", "w"), "io.open"),
        "getattr": (Calls(getattr, Calls(open, "canary", "w"), "close"), "builtins.getattr"),
        "torch.load": (Calls(torch.load, "canary"), "torch.serialization.load"),
        "torch.save": (Calls(torch.save, 3, "canary"), "torch.serialization.save"),
        "import": (Calls(builtins.__import__, "antigravity"), "builtins.__import__"),
    }

    @pytest.mark.parametrize("attack", ATTACKS)
    @pytest.mark.parametrize("where", ["top", "model", "list in model", "args", "dict key", "beside"])
    def test_call(self, tmp_path: Path, attack: str, where: str) -> None:
        call, name = self.ATTACKS[attack]

        def plant(contents: dict[str, Any]) -> None:
            if where == "top":
                contents["model"] = call
            elif where == "model":
                contents["model"]["language_model"]["encoder"]["final_layernorm.bias"] = call
            elif where == "list in model":
                contents["model"]["language_model"]["more"] = [torch.ones(1), [3, (call,)]]
            elif where == "args":
                contents["args"].hidden_size = call
            elif where == "dict key":
                contents["model"][("key", call)] = 1
            else:
                contents["optimizer"] = {"state": [call]}

        path = write_directory(tmp_path / "release", rank_file(plant))
        if where == "beside":
            assert name in open_checkpoint(path).left_unread
            return
        field = {
            "top": "'model'",
            "model": "language_model.encoder.final_layernorm.bias",
            "list in model": "language_model.more",
            "args": "args.hidden_size",
            "dict key": "the key",
        }[where]
        assert_refused(path, RANK_FILE, field, f"an object of {name}, which was left unread")

    def test_call_in_a_tar(self, tmp_path: Path) -> None:
        files = rank_file(lambda contents: contents.update(args=Calls(exec, "open('canary', 'w')")))
        assert_refused(write_tar(tmp_path / "release.tar", files), "release.tar", RANK_FILE, "builtins.exec")

    def test_the_canary_can_sing(self) -> None:
        """The attacks are real: unpickled without care, this one writes the file."""
        pickle.loads(pickle.dumps(Calls(exec, "open('canary', 'w').close()"), protocol=2))
        Path("canary").unlink()

    @pytest.mark.parametrize("value", [NamespaceOfAnotherKind(a=1), Path("."), SlyDict(a=1)])
    def test_classes_that_are_not_known(self, tmp_path: Path, value: object) -> None:
        files = rank_file(lambda contents: setattr(contents["args"], "extra", value))
        kind = type(value).__reduce__(value)[0] if isinstance(value, Path) else type(value)
        checkpoint = open_checkpoint(write_directory(tmp_path / "release", files))
        assert checkpoint.left_unread == (f"{kind.__module__}.{kind.__name__}",)
        files = rank_file(lambda contents: setattr(contents["args"], "num_layers", value))
        path = write_directory(tmp_path / "refused", files)
        assert_refused(
            path, RANK_FILE, "args.num_layers is an object of", f"{kind.__module__}.{kind.__name__}"
        )

    def test_args_of_an_unknown_class_are_read_as_a_namespace(self, tmp_path: Path) -> None:
        def plant(contents: dict[str, Any]) -> None:
            contents["args"] = NamespaceOfAnotherKind(**vars(contents["args"]))

        checkpoint = open_checkpoint(write_directory(tmp_path / "release", rank_file(plant)))
        assert checkpoint.config == CONFIG
        assert checkpoint.left_unread == (
            f"{__name__}.NamespaceOfAnotherKind (args, read as argparse.Namespace)",
        )

    def test_several_are_all_named(self, tmp_path: Path) -> None:
        calls = [Calls(eval, "1"), Calls(exec, "1")]
        path = write_directory(tmp_path / "r", rank_file(lambda contents: contents.update(extra=calls)))
        assert open_checkpoint(path).left_unread == ("builtins.eval", "builtins.exec")

    def test_only_the_second_rank_is_hostile(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path / "release", CONFIG, TENSORS, TOKENIZER, ranks=2)
        contents = {"model": adept_model(TENSORS, 1, 2), "args": Calls(exec, "open('canary', 'w')")}
        (path / rank_path(1)).write_bytes(saved(contents))
        assert_refused(path, rank_path(1), "exec")

    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_protocols(self, tmp_path: Path, protocol: int) -> None:
        """Protocol 0 cannot refer to storages; torch writes them as text, and loads no such file either."""
        files = rank_file(
            lambda contents: contents.update(extra=Calls(exec, "open('canary', 'w')")),
            pickle_protocol=protocol,
        )
        path = write_directory(tmp_path / "release", files)
        if protocol == 0:
            assert_refused(path, RANK_FILE, "torch._utils._rebuild_tensor_v2", "expected a tensor")
        else:
            assert open_checkpoint(path).left_unread == ("builtins.exec",)
            assert outcome(path, TENSORS) is None

    def test_legacy_file(self, tmp_path: Path) -> None:
        files = rank_file(
            lambda contents: contents.update(extra=Calls(exec, "open('canary', 'w')")),
            _use_new_zipfile_serialization=False,
        )
        assert_refused(
            write_directory(tmp_path / "release", files), RANK_FILE, "before version 1.6", "torch.load("
        )

    def test_torchscript(self, tmp_path: Path) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        buffer = io.BytesIO(files[RANK_FILE])
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("archive/constants.pkl", pickle.dumps(()))
        files[RANK_FILE] = buffer.getvalue()
        assert_refused(write_directory(tmp_path / "release", files), RANK_FILE, "torchscript")

    @pytest.mark.parametrize(
        "stream",
        [
            b"\x80\x02cbuiltins\nbytearray\n\x8a\x08\0\0\0\0\0\0\0\x40\x85R.",  # bytearray(2**62)
            b"\x80\x02cargparse\nNamespace\n)R}(X\x01\0\0\0axu\x62.",  # truncated opcodes
            b"\x80\x02" + b"\x5d" * 50_000 + b"a" * 49_999 + b".",  # lists in lists
            b"\x80\x02" + b"(" * 100_000,
            b"\x80\x02Nt.",
            b"\x80\x02h\x07.",
            b"\x80\x02K\x01Q.",  # a persistent id that is no storage
            b".",
            b"",
        ],
    )
    def test_handmade_streams(self, tmp_path: Path, stream: bytes) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        files[RANK_FILE] = rezipped(files[RANK_FILE], {"data.pkl": stream})
        assert_refused(write_directory(tmp_path / "release", files), RANK_FILE)

    def test_random_streams(self, tmp_path: Path) -> None:
        """A pickle changed anywhere, its checksum right, is refused in one sentence if it is not harmless."""
        path = write_adept(tmp_path / "release", CONFIG, TENSORS, TOKENIZER)
        plain = (path / RANK_FILE).read_bytes()
        stream = record_of(plain, "data.pkl")
        generator = random.Random(0)
        refused = 0
        for _ in range(80):
            changed = bytearray(stream)
            for _ in range(generator.choice((1, 1, 4))):
                changed[generator.randrange(len(changed))] = generator.randrange(256)
            (path / RANK_FILE).write_bytes(rezipped(plain, {"data.pkl": bytes(changed)}))
            message = outcome(path, TENSORS)
            if message is not None:
                assert "\n" not in message
                assert str(path) in message
                refused += 1
        assert refused > 40
