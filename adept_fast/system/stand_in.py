"""Recognises what stands in a file's place: a Git LFS pointer, or the page that a server sent for it."""

from __future__ import annotations

import codecs

LOOKED_AT = 512  # bytes of a file's beginning that suffice

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<error>")


def stand_in(beginning: bytes) -> str | None:
    """What a file that begins so is, and what to do about it, to follow its name; None for anything else."""
    if beginning.startswith(_LFS_POINTER):
        return "is a Git LFS pointer; expected the file itself, which `git lfs pull` downloads"
    text = beginning.removeprefix(codecs.BOM_UTF8).lstrip()[:20].lower()
    if text.startswith(_PAGES):
        return "is an HTML or XML page, as a server sends for an error; expected the file itself"
    return None


def why_unreadable(label: str, beginning: bytes, otherwise: str) -> str:
    """The sentence on a file that failed to parse: what stands in its place, or else ``otherwise``."""
    return f"{label}: {stand_in(beginning[:LOOKED_AT]) or otherwise}"
