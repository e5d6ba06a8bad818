"""Reads special, added and end tokens from the files of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.tokenizer.added_tokens import AddedToken

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_NONE = -1  # the value in some files for no such token


def special_names(settings: Mapping[str, Any], special_map: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Attribute → name of the special tokens, such as ``eos_token`` → ``</s>``.

    Args:
        settings: the contents of ``tokenizer_config.json``.
        special_map: those of ``special_tokens_map.json``, which is used, as in transformers, only if
            ``settings`` lists no added tokens.

    Raises CheckpointError for a name that is no text.
    """
    named: dict[str, str] = {}
    sources = [("tokenizer_config.json", settings)]
    if "added_tokens_decoder" not in settings:
        sources.append(("special_tokens_map.json", special_map))
    for file, values in sources:
        for key, value in values.items():
            if key.endswith("_token") and value is not None and not isinstance(value, bool):
                named[key] = _name(value, f"{path / file}: {key}")
    return named


def listed_names(settings: Mapping[str, Any], special_map: Mapping[str, Any], path: Path) -> list[str]:
    """The names of further special tokens, which have no attribute."""
    names = []
    for file, values in (("tokenizer_config.json", settings), ("special_tokens_map.json", special_map)):
        for key in _LISTS:
            listed = values.get(key) or []
            if isinstance(listed, dict):
                listed = list(listed.values())
            if not isinstance(listed, list):
                raise CheckpointError(f"{path / file}: {key} is {listed!r:.80}; expected a list")
            names += [_name(value, f"{path / file}: {key}[{at}]") for at, value in enumerate(listed)]
    return names


def added_tokens(
    fast: Mapping[str, Any],
    settings: Mapping[str, Any],
    legacy: Mapping[str, Any],
    special: set[str],
    path: Path,
) -> list[AddedToken]:
    """The tokens added to the vocabulary.

    Args:
        fast: the contents of ``tokenizer.json``.
        settings: of ``tokenizer_config.json``.
        legacy: of ``added_tokens.json``, names → ids.
        special: the names of special tokens.

    Raises CheckpointError if an entry is malformed, or two files disagree.
    """
    found: dict[int, AddedToken] = {}
    for source, token in (
        *_of_fast(fast, path / "tokenizer.json"),
        *_of_settings(settings, path / "tokenizer_config.json"),
        *_of_legacy(legacy, special, path / "added_tokens.json"),
    ):
        known = found.setdefault(token.token_id, token)
        if known.content != token.content:
            raise CheckpointError(
                f"{source}: the added token {token.content!r:.80} has the id {token.token_id}, which "
                f"{known.content!r:.80} has too"
            )
    return [replace(token, special=token.special or token.content in special) for token in found.values()]


def end_ids(generation: Mapping[str, Any], config: Mapping[str, Any], rows: int, path: Path) -> list[int]:
    """The ``eos_token_id`` of ``generation_config.json``, else of ``config.json``: one, several or none.

    Raises CheckpointError for a value that is no id below ``rows``, the rows of the embedding.
    """
    in_generation = "eos_token_id" in generation
    file, values = ("generation_config.json", generation) if in_generation else ("config.json", config)
    listed = values.get("eos_token_id")
    ids = listed if isinstance(listed, list) else [listed]
    for token_id in ids:
        if token_id is not None and (type(token_id) is not int or not _NONE <= token_id < rows):
            raise CheckpointError(
                f"{path / file}: eos_token_id has {token_id!r:.80}; expected ids from 0 to {rows - 1}"
            )
    return [token_id for token_id in ids if token_id not in (None, _NONE)]


def _name(value: object, label: str) -> str:
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise CheckpointError(f"{label} is {value!r:.80}; expected the text of a token")
    return name


def _of_fast(fast: Mapping[str, Any], source: Path) -> Iterator[tuple[Path, AddedToken]]:
    listed = fast.get("added_tokens") or []
    if not isinstance(listed, list):
        raise CheckpointError(f"{source}: added_tokens is {listed!r:.80}; expected a list")
    for at, entry in enumerate(listed):
        token_id = entry.get("id") if isinstance(entry, dict) else None
        yield source, _token(token_id, entry, f"{source}: added_tokens[{at}]")


def _of_settings(settings: Mapping[str, Any], source: Path) -> Iterator[tuple[Path, AddedToken]]:
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CheckpointError(f"{source}: added_tokens_decoder is {listed!r:.80}; expected an object")
    for key, entry in listed.items():
        token_id = int(key) if key.isascii() and key.isdecimal() and len(key) < 11 else None
        yield source, _token(token_id, entry, f"{source}: added_tokens_decoder[{key!r:.40}]")


def _of_legacy(
    legacy: Mapping[str, Any], special: set[str], source: Path
) -> Iterator[tuple[Path, AddedToken]]:
    for name, token_id in legacy.items():
        entry = {"content": name, "normalized": name not in special, "special": name in special}
        yield source, _token(token_id, entry, f"{source}: {name!r:.40}")


def _token(token_id: object, entry: object, label: str) -> AddedToken:
    if type(token_id) is not int or token_id < 0:
        raise CheckpointError(f"{label} has the id {token_id!r:.80}; expected a number of at least 0")
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise CheckpointError(f"{label} is {entry!r:.80}; expected an object with the content of a token")
    special = entry.get("special", False)
    flags = {name: entry.get(name, not special if name == "normalized" else False) for name in _FLAGS}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise CheckpointError(f"{label}: {name} is {flag!r:.80}; expected true or false")
    return AddedToken(token_id, entry["content"], **flags)
