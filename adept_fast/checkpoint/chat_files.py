"""The chat format of a Hugging Face directory: its own template, or the one that is built in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adept_fast.chat.budget import MAX_SOURCE
from adept_fast.chat.format import ChatFormat, HumanAdeptFormat
from adept_fast.checkpoint.base import CheckpointError
from adept_fast.system.regular_file import FileError, is_there, read_regular
from adept_fast.tokenizer.vocabulary import is_text

TEMPLATE_FILE = "chat_template.jinja"
_DEFAULT = "default"  # of several templates, the one for plain conversations


def chat_format(path: Path, contents: Mapping[str, Mapping[str, Any]]) -> ChatFormat:
    """The template of ``chat_template.jinja``, else of ``tokenizer_config.json``, else of
    ``chat_template.json``; the built-in format where there is none, or where the template is that format's.

    Args:
        contents: those of the directory's JSON files, by their names.

    Raises CheckpointError for a template that is no text. Whether it is jinja, its first use says.
    """
    source, label = _source(path, contents)
    built_in = HumanAdeptFormat()
    if source is None or source in (built_in.source(False), built_in.source(True)):
        return built_in
    if not is_text(source):
        raise CheckpointError(
            f"{label}: the chat template holds a lone surrogate, which UTF-8 cannot express"
        )
    from adept_fast.chat.chat_template import ChatTemplate  # jinja takes a while to import

    return ChatTemplate(source, label)


def _source(path: Path, contents: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, str]:
    """The template, and where it is."""
    if is_there(path / TEMPLATE_FILE):
        try:
            text = read_regular(path / TEMPLATE_FILE, 4 * MAX_SOURCE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path / TEMPLATE_FILE}: not UTF-8 text (byte {error.start})") from error
        except FileError as error:
            raise CheckpointError(str(error)) from error
        return text.replace("\r\n", "\n").replace("\r", "\n"), str(path / TEMPLATE_FILE)
    for file in ("tokenizer_config.json", "chat_template.json"):
        given = contents.get(file, {}).get("chat_template")
        if given is not None:
            return _chosen(given, f"{path / file}"), f"{path / file}"
    return None, ""


def _chosen(given: object, label: str) -> str:
    """One template of those that are given by name, or the only one."""
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
