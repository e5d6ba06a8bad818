"""JSON of untrusted files: what is ambiguous, endless or no number is one sentence, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.system.json_file import parse_json, read_json
from adept_fast.system.regular_file import FileError, why_unreadable
from adept_fast.system.short_text import short_repr

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def refusal(contents: bytes) -> str:
    with pytest.raises(FileError) as caught:
        parse_json(contents, "the file")
    said = str(caught.value)
    assert said.startswith("the file: ")
    assert "\n" not in said
    assert len(said) < 250
    return said


def test_what_json_writes_is_read(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "a": [1, -2.5, 1e300, None, True, {"b": "ü\n"}],
        "model_max_length": 1000000000000000019884624838656,  # as transformers writes it for no limit
        "c": {"a": {}},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert read_json(path) == values


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"\xff{}", "not UTF-8 text"),
        (b"[]", "holds a list; expected a JSON object"),
        (b"3", "holds a int"),
        (b'{"a": 1, "b": {"a": 1, "c": 2, "c": 3}}', "has the key 'c' twice in one object"),
        (b'{"' + b"x" * 10**6 + b'": 1, "' + b"x" * 10**6 + b'": 1}', "twice in one object"),
        (b'{"size": NaN}', "size is NaN; expected a finite number"),
        (b'{"a": {"size": [1, [-Infinity]]}}', "size is -Infinity; expected a finite number"),
        (b'{"size": 1e400}', "size is 1e400; expected a finite number"),
        (
            b'{"size": ' + b"9" * 400 + b"}",
            "(400 characters); expected a finite number of at most 308 digits",
        ),
        (b'{"size": ' + b"9" * 10**6 + b"}", "(1000000 characters)"),
        (b'{"size": -' + b"9" * 400 + b".5}", "(403 characters)"),
        (b'{"' + b"x" * 10**6 + b'": NaN}', "is NaN"),
        (b"NaN", "the document is NaN"),
        (b"[" * 100_000, "nested too deeply; expected at most 64 levels"),
        (b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested too deeply"),
        (LFS_POINTER, "is a Git LFS pointer; expected the file itself, which `git lfs pull` downloads"),
        (b"\n <!DOCTYPE html><html>", "is an HTML or XML page"),
        (b"\xef\xbb\xbf<HTML lang=en>", "is an HTML or XML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an HTML or XML page"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_refused(contents: bytes, says: str) -> None:
    assert says in refusal(contents)


def test_as_deep_as_allowed() -> None:
    assert parse_json(b'{"a":' * 64 + b"1" + b"}" * 64, "x")
    assert parse_json(b'{"n": ' + b"9" * 308 + b"}", "x") == {"n": 10**308 - 1}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "x.safetensors.index.json", "other.json"])
def test_no_endless_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(FileError, match=f"{name}: is a FIFO; expected a regular file"):
        read_json(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(FileError, match="is a character device"):
        read_json(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(64 * 2**30)
    with pytest.raises(FileError, match=r"has 68719476736 bytes; expected at most \d+$"):
        read_json(path)


@pytest.mark.slow
def test_limits_leave_room_for_a_large_vocabulary(tmp_path: Path) -> None:
    vocabulary = [[f"▁piece{at}", -at / 3] for at in range(262_144)]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": vocabulary}}, ensure_ascii=False), encoding="utf-8")
    assert read_json(path)["model"]["vocab"] == vocabulary
    path.rename(tmp_path / "config.json")
    with pytest.raises(FileError, match="expected at most 1048576"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "name", ["vocab_size", "layer_norm_eps", "rope_theta", "bos_token_id", "qk_layernorm"]
)
@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 10**5000, "x" * 10**6, [10**5000] * 1000],
    ids=["400 digits", "negative", "5000 digits", "text", "list"],
)
def test_any_number_of_a_config(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PersimmonConfig(**{name: value})
    assert str(caught.value).startswith(f"{name} is ")
    assert len(str(caught.value)) < 300


def test_a_config_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": ' + "9" * 400 + "}")
    with pytest.raises(
        ConfigError, match=rf"^{path}: hidden_size is 99999999999999999999… \(400 characters\)"
    ):
        PersimmonConfig.from_json(path)
    path.unlink()
    path.symlink_to("../../blobs/0123abcd")
    with pytest.raises(
        ConfigError, match=rf"{path}: is a link, and its target .*/blobs/0123abcd is missing, so"
    ):
        PersimmonConfig.from_json(path)


def test_values_are_shortened() -> None:
    assert short_repr("model.safetensors") == "'model.safetensors'"
    assert short_repr(10**5000) == f"an integer of {(10**5000).bit_length()} bits"
    assert len(short_repr({"x" * 1000: ["y" * 1000] * 1000})) < 200


def test_other_failures_keep_their_words() -> None:
    assert why_unreadable("x.bin", b"\x80\x02", "not a zip") == "x.bin: not a zip"
