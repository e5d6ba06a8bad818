"""Files of torch.save with classes that are not here: named if they matter, never imported or called."""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    adept_args,
    adept_model,
    assert_holds,
    assert_refused,
    rank_path,
    record_of,
    saved,
    write_adept,
    write_one_rank,
)
from own_process import python
from tiny_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import open_checkpoint


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


@pytest.mark.slow
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
        [*python(), *paths], capture_output=True, text=True, check=False, cwd=tmp_path / "trap",
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
