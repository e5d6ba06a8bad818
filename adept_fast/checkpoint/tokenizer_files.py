"""The tokenizer of a Hugging Face directory, from the several files that describe it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adept_fast.chat.budget import MAX_SOURCE
from adept_fast.chat.format import ChatFormat, HumanAdeptFormat
from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.special_tokens import added_tokens, end_ids, listed_names, special_names
from adept_fast.system.file_limits import max_bytes
from adept_fast.system.regular_file import is_there
from adept_fast.tokenizer.added_tokens import AddedToken
from adept_fast.tokenizer.fast_vocabulary import FastVocabulary, normalizer_steps
from adept_fast.tokenizer.post_processor import leading_token
from adept_fast.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary
from adept_fast.tokenizer.tokenizer import Tokenizer
from adept_fast.tokenizer.vocabulary import Vocabulary, is_text

MODEL_FILE = "tokenizer.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
# The files that describe the tokenizer.
JSON_FILES = (
    CONFIG_FILE,
    FAST_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
)
TEMPLATE_FILE = "chat_template.jinja"
_DEFAULT = "default"  # the name of the template for plain conversations, if there are several

Contents = Mapping[str, Mapping[str, Any]]


def tokenizer_of(path: Path, contents: Contents, rows: int) -> Tokenizer:
    """The tokenizer of a directory: its ``tokenizer.model``, or if there is none its ``tokenizer.json``.

    Other files name added tokens, special tokens, end tokens and a chat template, and whether BOS is put
    first. The name of a special token that is no piece is ignored.

    Args:
        contents: the contents of ``config.json`` and of those of ``JSON_FILES`` that exist, by file name.
        rows: the number of rows of the embedding.

    Raises CheckpointError or TokenizerError, which name the file, the value found and the expected one.
    """
    every = {name: contents.get(name, {}) for name in (*JSON_FILES, "config.json")}
    settings, special_map = every[CONFIG_FILE], every["special_tokens_map.json"]
    named = special_names(settings, special_map, path)
    special = {*named.values(), *listed_names(settings, special_map, path)}
    added = added_tokens(every[FAST_FILE], settings, every["added_tokens.json"], special, path)
    for token in added:
        if token.token_id >= rows:
            raise CheckpointError(
                f"{path}: the added token {token.content!r:.80} has the id {token.token_id}, "
                f"but the embedding only {rows} rows"
            )
    vocabulary, file = _vocabulary(path, every, added, special)
    known = {key: name for key, name in named.items() if vocabulary.find(name) is not None}
    add_bos, bos_token = _bos(path, every, known, vocabulary)
    tokenizer = Tokenizer(
        vocabulary,
        add_bos=add_bos,
        bos_token=bos_token,
        source=file,
        special_tokens=known,
        end_ids=end_ids(every["generation_config.json"], every["config.json"], rows, path),
        chat_format=_chat_format(path, every),
    )
    for key, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if key in named and key not in known and token_id is not None:
            # This piece replaces the name that is no piece.
            tokenizer.special_tokens[key] = tokenizer.piece(token_id)
    return tokenizer


def _vocabulary(
    path: Path, contents: Contents, added: list[AddedToken], special: Iterable[str]
) -> tuple[Vocabulary, Path]:
    """The vocabulary, and its file."""
    splits = contents[CONFIG_FILE].get("split_special_tokens", False)
    if not isinstance(splits, bool):
        raise CheckpointError(
            f"{path / CONFIG_FILE}: split_special_tokens is {splits!r:.80}; expected true or false"
        )
    if is_there(path / MODEL_FILE):
        model = FileRange.whole(path / MODEL_FILE).read(max_bytes(MODEL_FILE))
        plain = SentencePieceVocabulary(model, str(path / MODEL_FILE))
        listed = {token.content for token in added}
        only_named = [
            AddedToken(token_id, name, special=True)
            for name in sorted(set(special) - listed)
            if (token_id := plain.find(name)) is not None
        ]
        # transformers finds special tokens in text as soon as they are named. Here text that spells one stays
        # text, unless the checkpoint lists added tokens: then it was trained with them.
        tokens = {"added": added + only_named} if added else {"named": only_named}
        normalizer = contents[FAST_FILE].get("normalizer")
        vocabulary = SentencePieceVocabulary(
            model,
            str(path / MODEL_FILE),
            splits_special_tokens=splits,
            prefixes_names=not contents[FAST_FILE]
            or any(step.get("type") == "Prepend" for step in normalizer_steps(normalizer)),
            **tokens,
        )
        return vocabulary, path / MODEL_FILE
    if contents[FAST_FILE]:
        fast = FastVocabulary(
            contents[FAST_FILE],
            str(path / FAST_FILE),
            added=added,
            named=sorted(set(special)),
            splits_special_tokens=splits,
        )
        return fast, path / FAST_FILE
    raise CheckpointError(f"{path}: {MODEL_FILE} is missing, and so is {FAST_FILE}")


def _bos(
    path: Path, contents: Contents, named: Mapping[str, str], vocabulary: Vocabulary
) -> tuple[bool, str | None]:
    """Whether BOS is put before text, and its name if one is given."""
    leading = leading_token(contents[FAST_FILE], str(path / FAST_FILE))
    if isinstance(vocabulary, FastVocabulary):
        return leading is not None, leading or named.get("bos_token")
    chosen = contents[CONFIG_FILE].get("add_bos_token")
    if chosen is not None and not isinstance(chosen, bool):
        raise CheckpointError(
            f"{path / CONFIG_FILE}: add_bos_token is {chosen!r:.80}; expected true or false"
        )
    return leading is not None if chosen is None else chosen, named.get("bos_token")


def _chat_format(path: Path, contents: Contents) -> ChatFormat:
    """The template of ``chat_template.jinja``, else of ``tokenizer_config.json``, else of
    ``chat_template.json``; the built-in format if there is none, or if the template is that format's.

    Args:
        contents: the contents of the directory's JSON files, by file name.

    Raises CheckpointError for a template that is no text. Errors of jinja are raised on first use.
    """
    source, label = _template(path, contents)
    built_in = HumanAdeptFormat()
    if source is None or source in (built_in.source(False), built_in.source(True)):
        return built_in
    if not is_text(source):
        raise CheckpointError(
            f"{label}: the chat template holds a lone surrogate, which UTF-8 cannot express"
        )
    from adept_fast.chat.chat_template import ChatTemplate  # importing jinja is slow

    return ChatTemplate(source, label)


def _template(path: Path, contents: Contents) -> tuple[str | None, str]:
    """The template, and its file for messages."""
    if is_there(path / TEMPLATE_FILE):
        try:
            text = FileRange.whole(path / TEMPLATE_FILE).read(4 * MAX_SOURCE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path / TEMPLATE_FILE}: not UTF-8 text (byte {error.start})") from error
        return text.replace("\r\n", "\n").replace("\r", "\n"), str(path / TEMPLATE_FILE)
    for file in ("tokenizer_config.json", "chat_template.json"):
        given = contents.get(file, {}).get("chat_template")
        if given is not None:
            return _chosen(given, f"{path / file}"), f"{path / file}"
    return None, ""


def _chosen(given: object, label: str) -> str:
    """The default template of those that are given by name, or the only one."""
    if isinstance(given, list):
        named = {}
        for at, entry in enumerate(given):
            if (
                not isinstance(entry, dict)
                or not isinstance(entry.get("name"), str)
                or "template" not in entry
            ):
                raise CheckpointError(
                    f"{label}: chat_template[{at}] is {entry!r:.80}; expected a name and a template"
                )
            named[entry["name"]] = entry["template"]
        given = named
    if isinstance(given, dict):
        if _DEFAULT not in given:
            names = ", ".join(map(repr, given))
            raise CheckpointError(f"{label}: chat_template has {names:.80}; expected one named {_DEFAULT!r}")
        given = given[_DEFAULT]
    if not isinstance(given, str):
        raise CheckpointError(f"{label}: chat_template is {given!r:.80}; expected text")
    return given
