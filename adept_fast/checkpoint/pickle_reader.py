"""Reads a pickle as data: it follows the opcodes, and imports and calls nothing that the pickle names.

A name that is not known becomes a Global, and whatever is made from one a PickledObject, which takes all that
the pickle does to it and keeps its name and its state. Only texts are hashed, as what a pickle nests can take
forever to hash. Opcodes, objects, texts and nesting are counted, so that a small file cannot take much time
or memory.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adept_fast.checkpoint.pickle_machine import BYTES, MAX_OPCODES, Functions, Machine, PickleError
from adept_fast.checkpoint.pickle_opcodes import HANDLERS, Handler
from adept_fast.checkpoint.pickle_values import Global, PickledObject

__all__ = ["Functions", "PickleError", "Pickled", "read_pickle"]

_LONGEST_TEXT_ENCODED = 1024  # characters
_OPCODE_NAMES = {ord(info.code): info.name for info in pickletools.opcodes}
_HANDLERS: list[Handler | None] = [HANDLERS.get(bytes([code])) for code in range(256)]


@dataclass(frozen=True)
class Pickled:
    """What a pickle holds, and which unknown names are in it (some of them, where they are many)."""

    contents: object
    left_unread: tuple[str, ...]


def read_pickle(
    contents: bytes,
    functions: Functions,
    constants: Mapping[str, object],
    persistent: Callable[[object], object],
) -> Pickled:
    """The structure in a pickle of any protocol.

    Args:
        functions: by the names in the pickle, what to do in place of calling them.
        constants: by the names in the pickle, what stands for them.
        persistent: from a persistent id what stands for it, None where that is nothing known.

    Raises PickleError where the pickle is damaged or beyond the limits.
    """
    machine = Machine(contents, _FUNCTIONS | dict(functions), constants, persistent)
    at, size = 0, len(contents)
    try:
        for _ in range(MAX_OPCODES):
            at = machine.position
            if at >= size:
                raise PickleError(f"the pickle ends at byte {at}, before its STOP")
            code = contents[at]
            machine.position = at + 1
            if code == _STOP:
                return Pickled(machine.pop(), machine.left_unread)
            handler = _HANDLERS[code]
            if handler is None:
                raise PickleError(f"{code:#04x} is no opcode")
            handler(machine)
    except ValueError as error:
        opcode = f"{_OPCODE_NAMES.get(contents[at], 'a byte')} at {at}: " if at < size else ""
        raise PickleError(f"{opcode}{error}") from error
    raise PickleError(f"the pickle has more than {MAX_OPCODES} opcodes")


_STOP = ord(pickle.STOP)


def _reconstructed(arguments: tuple[Any, ...]) -> object:
    """What protocols 0 and 1 make an object of a class by."""
    return PickledObject(arguments[0]) if arguments and isinstance(arguments[0], Global) else None


def _encoded(arguments: tuple[Any, ...]) -> object:
    """What protocols 0 to 2 make bytes by."""
    if not arguments:
        return b""
    text, *encoding = arguments
    if encoding == ["latin1"] and isinstance(text, str) and len(text) <= _LONGEST_TEXT_ENCODED:
        return text.encode("latin-1", "replace")
    return PickledObject(BYTES)


def _nothing(_arguments: tuple[Any, ...]) -> None:
    """A class that is known, and whose objects are read as their state."""


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...]], object]] = {
    "argparse.Namespace": _nothing,
    "collections.OrderedDict": lambda arguments: None if arguments else {},
    "copyreg._reconstructor": _reconstructed,
    "_codecs.encode": _encoded,
    "builtins.bytes": _encoded,
    "builtins.object": _nothing,
}
