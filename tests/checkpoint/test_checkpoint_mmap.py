"""Weights copied instead of mapped: the same numbers, and a file that is truncated is an error."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept, write_huggingface
from click.testing import CliRunner
from mapped import file_of
from own_process import run_python

from adept_fast import ParameterError, Runtime
from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.commands.cli import main
from adept_fast.modeling import PersimmonForCausalLM

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="Linux lists what is mapped")

CONFIG = small_config()
TENSORS = random_tensors(CONFIG)
TOKENIZER = demo_tokenizer()


def huggingface(path: Path) -> Path:
    write_huggingface(path, CONFIG, TENSORS, TOKENIZER)
    return path / "model.safetensors"


def torch_bin(path: Path) -> Path:
    huggingface(path).unlink()
    torch.save(TENSORS, path / "pytorch_model.bin")
    return path / "pytorch_model.bin"


def shards(path: Path) -> Path:
    write_huggingface(path, CONFIG, TENSORS, TOKENIZER, shards=3)
    return path / "model-00002-of-00003.safetensors"


def native(path: Path) -> Path:
    write_huggingface(path.with_name("floats"), CONFIG, TENSORS, TOKENIZER)
    convert(path.with_name("floats"), path, weights="int4", layout="cpu_tiled", progress=False)
    return path / "model.safetensors"


def release(path: Path) -> Path:
    write_adept(path, CONFIG, TENSORS, TOKENIZER, ranks=2)
    return next(path.glob("iter_*/mp_rank_01/*.pt"))


def tar(path: Path) -> Path:
    return write_adept(path, CONFIG, TENSORS, TOKENIZER, ranks=2, tar=True)


FORMATS = [huggingface, torch_bin, shards, native, release, tar]


@pytest.mark.parametrize("write", FORMATS)
def test_the_same_numbers_without_a_mapping(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    write(tmp_path / "model")
    mapped, copied = (open_checkpoint(tmp_path / "model", mmap=mmap) for mmap in (True, False))
    for name, tensor in mapped.tensors.items():
        assert torch.equal(copied.tensors[name].read(), tensor.read()), name
        assert not file_of(copied.tensors[name].read()), name
    whole = "model.final_layernorm.weight"  # on every rank, so no part of another tensor
    assert str(tmp_path / "model") in file_of(mapped.tensors[whole].read())
    scores = [
        Runtime.load(tmp_path / "model", mmap=mmap, device="cpu", progress=False).score("a b c")[0]
        for mmap in (True, False)
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("write", FORMATS)
def test_a_file_truncated_after_it_was_opened(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    file = write(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model", mmap=False)
    size = file.stat().st_size
    os.truncate(file, size // 2)
    with pytest.raises(CheckpointError) as caught:
        Runtime.load(checkpoint, mmap=False, device="cpu", progress=False)
    said = str(caught.value)
    assert str(file) in said
    assert f"ends at byte {size // 2}; it had {size} bytes before" in said
    assert "\n" not in said


@pytest.mark.slow
def test_a_mapped_file_that_is_truncated_ends_the_process(tmp_path: Path) -> None:
    """Why there is the option: no error can be raised here."""
    file = huggingface(tmp_path / "model")
    program = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "from adept_fast.checkpoint import open_checkpoint\n"
        "tensor = open_checkpoint(sys.argv[1]).tensors['lm_head.weight'].read()\n"
        "os.truncate(sys.argv[2], 4096)\n"
        "tensor.sum()\n"
    )
    done = run_python(program, tmp_path / "model", file)
    assert done.returncode == -signal.SIGBUS


def test_a_checkpoint_that_was_opened_mapped_is_not_taken_for_a_copied_one(tmp_path: Path) -> None:
    huggingface(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    with pytest.raises(ParameterError, match="mmap is False, and the checkpoint is open with True"):
        Runtime.load(checkpoint, mmap=False, device="cpu", progress=False)


def test_models_and_commands(tmp_path: Path) -> None:
    huggingface(tmp_path / "model")
    model = PersimmonForCausalLM.from_pretrained(tmp_path / "model", mmap=False)
    assert torch.equal(model.lm_head.weight, TENSORS["lm_head.weight"])
    run = CliRunner().invoke
    for mmap, shown in (("--mmap", "memory-mapped"), ("--no-mmap", "copied")):
        told = run(main, ["info", "--checkpoint", str(tmp_path / "model"), mmap, "--json"])
        assert json.loads(told.stdout)["checkpoint"]["weight files"] == shown
    asked = ["--checkpoint", str(tmp_path / "model"), "--prompt", "a", "--max-new-tokens", "5"]
    texts = [run(main, ["generate", *asked, mmap]).stdout for mmap in ("--mmap", "--no-mmap")]
    assert texts[0] == texts[1] != ""
    done = run(main, ["convert", str(tmp_path / "model"), str(tmp_path / "adept"), "--no-mmap"])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "adept").is_dir()
