"""What ends a text: |ENDOFTEXT|, the checkpoint's eos_token, and the ids of its configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from click.testing import CliRunner

from adept_fast import Runtime
from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.commands.cli import main
from adept_fast.tokenizer.tokenizer import Tokenizer

END = 1  # |ENDOFTEXT| in the demo's vocabulary
CONFIG = small_config(num_hidden_layers=1)
TENSORS = random_tensors(CONFIG, dtype=torch.float16)


def write(path: Path, config_end: Any = ..., **files: dict[str, Any]) -> Path:
    write_huggingface(path, CONFIG, TENSORS, demo_tokenizer(), eos_token_id=config_end)
    for name, contents in files.items():
        (path / f"{name}.json").write_text(json.dumps(contents))
    return path


@pytest.mark.parametrize(
    ("config_end", "files", "expected"),
    [
        (..., {}, (END,)),
        (None, {}, (END,)),
        (-1, {}, (END,)),
        (1, {}, (END,)),
        (7, {}, (END, 7)),
        ([9, 7, 9, -1, None], {}, (END, 9, 7)),
        ([], {}, (END,)),
        (7, {"generation_config": {"eos_token_id": [8, 9]}}, (END, 8, 9)),
        (7, {"generation_config": {"eos_token_id": None}}, (END,)),
        (7, {"generation_config": {"do_sample": False}}, (END, 7)),
        (7, {"tokenizer_config": {"eos_token": "▁the"}}, (END, "▁the", 7)),
        (..., {"special_tokens_map": {"eos_token": {"content": "▁the", "lstrip": False}}}, (END, "▁the")),
        (..., {"tokenizer_config": {"eos_token": "<nowhere>"}}, (END,)),
        (
            ...,
            {"added_tokens": {"<|im_end|>": 4096}, "tokenizer_config": {"eos_token": "<|im_end|>"}},
            (1, 4096),
        ),
        (4159, {}, (END,)),  # a row of the embedding that has no piece: it is never chosen
    ],
)
def test_which_tokens_end_a_text(
    tmp_path: Path, config_end: Any, files: dict[str, Any], expected: tuple[int | str, ...]
) -> None:
    tokenizer = open_checkpoint(write(tmp_path, config_end, **files)).tokenizer
    ids = tuple(tokenizer.vocabulary.find(end) if isinstance(end, str) else end for end in expected)
    assert tokenizer.eos_ids == ids
    assert tokenizer.eos_id == ids[0]


@pytest.mark.parametrize("end", [4160, -2, 2**70, "1", True, 1.0, [5, [6]], {"id": 5}])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_is_no_end_token(tmp_path: Path, file: str, end: object) -> None:
    path = write(tmp_path, 1)
    values = json.loads((path / "config.json").read_text())
    (path / file).write_text(json.dumps(values | {"eos_token_id": end}))
    with pytest.raises(ValueError, match="eos_token_id") as caught:
        open_checkpoint(path)
    assert str(path / file) in str(caught.value)


def test_each_of_them_ends_a_generation(tmp_path: Path) -> None:
    runtime = Runtime.load(write(tmp_path / "plain"), dtype="float32", progress=False)
    prompts = ["Once upon a time", "The quick brown fox", "human: hi", "1 2 3"]
    free = runtime.generate(prompts, max_new_tokens=12)
    firsts = [generation.token_ids[3] for generation in free]
    ends = sorted(set(firsts))
    assert len(ends) > 1
    ended = Runtime.load(write(tmp_path / "ended", ends), dtype="float32", max_batch_size=4, progress=False)
    for before, after in zip(free, ended.generate(prompts, max_new_tokens=12), strict=True):
        length = next(at for at, token_id in enumerate(before.token_ids) if token_id in ends)
        assert after.finish_reason == "eos"
        assert after.token_ids == before.token_ids[:length]
    unended = ended.generate(prompts, max_new_tokens=12, ignore_eos=True)
    assert [generation.token_ids for generation in unended] == [generation.token_ids for generation in free]


@pytest.mark.parametrize("to", ["huggingface", "native"])
def test_they_survive_conversion(tmp_path: Path, to: Any) -> None:
    files = {"tokenizer_config": {"eos_token": "▁the"}, "generation_config": {"eos_token_id": [1, 9]}}
    path = write(tmp_path / "source", **files)
    convert(path, tmp_path / "out", to=to, weights="int8" if to == "native" else None, progress=False)
    before, after = open_checkpoint(path).tokenizer, open_checkpoint(tmp_path / "out").tokenizer
    assert set(after.eos_ids) == set(before.eos_ids)
    assert len(after.eos_ids) == 3
    assert after.special_tokens["eos_token"] == "▁the"


def test_what_adepts_format_loses_is_said(tmp_path: Path) -> None:
    report = convert(write(tmp_path / "source", 9), tmp_path / "out", to="adept", progress=False)
    name = Tokenizer(demo_tokenizer()).piece(9)
    assert report.saved.notes == (f"Adept's format has no place to say that {name!r} ends a text",)


def test_info_lists_them(tmp_path: Path) -> None:
    path = write(tmp_path, [1, 9])
    result = CliRunner().invoke(main, ["info", "--checkpoint", str(path), "--json"])
    name = Tokenizer(demo_tokenizer()).piece(9)
    assert json.loads(result.stdout)["checkpoint"]["end tokens"] == f"1 '|ENDOFTEXT|', 9 {name!r}"


def test_a_misspelt_bos_of_a_conversion_script(tmp_path: Path) -> None:
    """One bar is missing in what transformers' own conversion names."""
    files = {"tokenizer_config": {"bos_token": "|ENDOFTEXT", "eos_token": None, "add_bos_token": True}}
    tokenizer = open_checkpoint(write(tmp_path, **files)).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (END, (END,))
    assert tokenizer.encode("a")[0] == END


def test_malformed_configs_of_the_embedding_are_refused_first(tmp_path: Path) -> None:
    path = write(tmp_path, "x")
    with pytest.raises((CheckpointError, ValueError), match="eos_token_id is 'x'"):
        open_checkpoint(path)
