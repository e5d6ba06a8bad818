"""The token that the ``post_processor`` of a ``tokenizer.json`` puts before a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adept_fast.tokenizer.vocabulary import TokenizerError


def leading_token(contents: Mapping[str, Any], source: str) -> str | None:
    """The name of the token that is put before a single text, None without one. Tokens after the text are
    ignored, since a prompt does not end it.

    Raises TokenizerError if the post-processor is malformed.
    """
    for name, step in _steps(contents.get("post_processor"), source):
        if step.get("type") != "TemplateProcessing":
            continue
        single = step.get("single")
        if not isinstance(single, list):
            raise _malformed(source, f"{name}.single", single, "a list")
        for at, part in enumerate(single):
            if not isinstance(part, dict):
                raise _malformed(source, f"{name}.single[{at}]", part, "an object")
        token = single[0].get("SpecialToken") if single else None
        if token is None:
            continue
        if not isinstance(token, dict) or not isinstance(token.get("id"), str):
            raise _malformed(source, f"{name}.single[0].SpecialToken", token, "an object with an id")
        return str(token["id"])
    return None


def _steps(processor: object, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the settings of each processor."""
    if processor is None:
        return
    if not isinstance(processor, dict):
        raise _malformed(source, "post_processor", processor, "an object")
    if processor.get("type") != "Sequence":
        yield "post_processor", processor
        return
    processors = processor.get("processors")
    if not isinstance(processors, list):
        raise _malformed(source, "post_processor.processors", processors, "a list")
    for at, step in enumerate(processors):
        if not isinstance(step, dict):
            raise _malformed(source, f"post_processor.processors[{at}]", step, "an object")
        yield f"post_processor.processors[{at}]", step


def _malformed(source: str, name: str, found: object, expected: str) -> TokenizerError:
    return TokenizerError(f"{source}: {name} is {found!r:.80}; expected {expected}")
