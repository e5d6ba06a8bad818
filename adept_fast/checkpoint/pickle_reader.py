"""Reads a pickle as data: it follows the opcodes, and imports and calls nothing that the pickle names.

An unknown name becomes a Global, and an object built from one a PickledObject, which accepts every operation
of the pickle and keeps its name and its state. Only texts are hashed, as nested values can need endless time
to hash. Opcodes, objects, texts and nesting are counted, so that a small file cannot use much time or memory.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adept_fast.checkpoint.pickle_machine import BYTES, MAX_OPCODES, Functions, Machine, PickleError
from adept_fast.checkpoint.pickle_values import Global, PickledObject

__all__ = ["Functions", "PickleError", "Pickled", "read_pickle"]

_MAX_ENCODED_TEXT = 1024  # characters
_OPCODE_NAMES = {ord(info.code): info.name for info in pickletools.opcodes}
_SET = Global("", "set")
_BUFFER = Global("", "an out-of-band buffer")
_EXTENSIONS = "copyreg's extension"
_U1, _U2, _U4, _U8 = (struct.Struct(letter) for letter in ("B", "<H", "<I", "<Q"))
_S4, _DOUBLE = struct.Struct("<i"), struct.Struct(">d")

Handler = Callable[[Machine], object]  # one opcode's effect on the machine


@dataclass(frozen=True)
class Pickled:
    """The contents of a pickle, and the unknown names in it (some of them, if there are many)."""

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
        functions: substitutes for the functions that the pickle calls, by name.
        constants: values for names in the pickle.
        persistent: returns the value for a persistent id, None for an unknown one.

    Raises PickleError if the pickle is damaged or beyond the limits.
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


def _reconstructed(arguments: tuple[Any, ...]) -> object:
    """The function by which protocols 0 and 1 build an object of a class."""
    return PickledObject(arguments[0]) if arguments and isinstance(arguments[0], Global) else None


def _encoded(arguments: tuple[Any, ...]) -> object:
    """The function by which protocols 0 to 2 build bytes."""
    if not arguments:
        return b""
    text, *encoding = arguments
    if encoding == ["latin1"] and isinstance(text, str) and len(text) <= _MAX_ENCODED_TEXT:
        return text.encode("latin-1", "replace")
    return PickledObject(BYTES)


def _nothing(_arguments: tuple[Any, ...]) -> None:
    """A known class, whose objects are read as their state."""


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...]], object]] = {
    "argparse.Namespace": _nothing,
    "collections.OrderedDict": lambda arguments: None if arguments else {},
    "copyreg._reconstructor": _reconstructed,
    "_codecs.encode": _encoded,
    "builtins.bytes": _encoded,
    "builtins.object": _nothing,
}


def _integer_line(machine: Machine) -> None:
    line = machine.line()
    known = {b"00": False, b"01": True}
    machine.push(known[line] if line in known else int(line[:-1] if line.endswith(b"L") else line))


def _string_line(machine: Machine) -> None:
    line = machine.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"') or b"\\" in line:
        raise PickleError("the text has no quotes, or escapes")
    machine.push_text(line[1:-1])


def _two_lines(machine: Machine) -> None:
    machine.push_global(machine.line().decode("utf-8"), machine.line().decode("utf-8"))


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_global(module, name)


def _reduce(machine: Machine) -> None:
    arguments, maker = machine.pop(), machine.pop()
    machine.push_call(maker, arguments)


def _new_object_with_keywords(machine: Machine) -> None:
    machine.pop()
    _reduce(machine)


def _instance(machine: Machine) -> None:
    arguments = tuple(machine.pop_to_mark())
    _two_lines(machine)
    machine.push_call(machine.pop(), arguments)


def _object(machine: Machine) -> None:
    maker, *arguments = machine.pop_to_mark() or [None]
    machine.push_call(maker, tuple(arguments))


def _extension(machine: Machine, format_: struct.Struct) -> None:
    machine.push_global(_EXTENSIONS, str(machine.number(format_)))


def _text_line(machine: Machine) -> None:
    line = machine.line()
    if b"\\" in line:
        raise PickleError("the text has escapes")
    machine.push_text(line.decode("latin-1").encode())


def _frame(machine: Machine) -> None:
    """A frame announces a number of bytes; they must exist, and nothing else depends on it."""
    machine.require(machine.number(_U8))


def _set_of_marked(machine: Machine) -> None:
    machine.pop_to_mark()
    machine.push_new(PickledObject(_SET))


def _pushes(value: object) -> Handler:
    return lambda machine: machine.push(value)


def _pushes_number(format_: struct.Struct) -> Handler:
    return lambda machine: machine.push(machine.number(format_))


def _pushes_text(length: struct.Struct) -> Handler:
    return lambda machine: machine.push_text(machine.take(machine.number(length)))


def _pushes_bytes(length: struct.Struct) -> Handler:
    return lambda machine: machine.push_bytes(machine.number(length))


_BY_OPCODE: dict[bytes, Handler] = {
    pickle.PROTO: lambda machine: machine.skip(1),
    pickle.FRAME: _frame,
    pickle.MARK: Machine.mark,
    pickle.POP: Machine.discard,
    pickle.POP_MARK: Machine.pop_to_mark,
    pickle.DUP: lambda machine: machine.push(machine.top()),
    # Constants and numbers.
    pickle.NONE: _pushes(None),
    pickle.NEWTRUE: _pushes(True),
    pickle.NEWFALSE: _pushes(False),
    pickle.EMPTY_TUPLE: _pushes(()),
    pickle.INT: _integer_line,
    pickle.LONG: _integer_line,
    pickle.FLOAT: lambda machine: machine.push(float(machine.line())),
    pickle.BININT: _pushes_number(_S4),
    pickle.BININT1: _pushes_number(_U1),
    pickle.BININT2: _pushes_number(_U2),
    pickle.BINFLOAT: _pushes_number(_DOUBLE),
    pickle.LONG1: lambda machine: machine.push_integer(machine.number(_U1)),
    pickle.LONG4: lambda machine: machine.push_integer(machine.number(_U4)),
    # Texts and bytes. Protocol 2 as Python 2 writes it has texts in byte strings.
    pickle.STRING: _string_line,
    pickle.UNICODE: _text_line,
    pickle.SHORT_BINSTRING: _pushes_text(_U1),
    pickle.BINSTRING: _pushes_text(_U4),
    pickle.SHORT_BINUNICODE: _pushes_text(_U1),
    pickle.BINUNICODE: _pushes_text(_U4),
    pickle.BINUNICODE8: _pushes_text(_U8),
    pickle.SHORT_BINBYTES: _pushes_bytes(_U1),
    pickle.BINBYTES: _pushes_bytes(_U4),
    pickle.BINBYTES8: _pushes_bytes(_U8),
    pickle.BYTEARRAY8: _pushes_bytes(_U8),
    pickle.NEXT_BUFFER: lambda machine: machine.push_new(PickledObject(_BUFFER)),
    pickle.READONLY_BUFFER: Machine.top,
    # Containers.
    pickle.EMPTY_LIST: lambda machine: machine.push_new([]),
    pickle.EMPTY_DICT: lambda machine: machine.push_new({}),
    pickle.EMPTY_SET: lambda machine: machine.push_new(PickledObject(_SET)),
    pickle.LIST: lambda machine: machine.push_new(machine.pop_to_mark()),
    pickle.DICT: lambda machine: machine.push_dict(machine.pop_to_mark()),
    pickle.FROZENSET: _set_of_marked,
    pickle.TUPLE: lambda machine: machine.push_new(tuple(machine.pop_to_mark())),
    pickle.TUPLE1: lambda machine: machine.push_new(tuple(machine.pop_last(1))),
    pickle.TUPLE2: lambda machine: machine.push_new(tuple(machine.pop_last(2))),
    pickle.TUPLE3: lambda machine: machine.push_new(tuple(machine.pop_last(3))),
    pickle.APPEND: lambda machine: machine.append([machine.pop()]),
    pickle.APPENDS: lambda machine: machine.append(machine.pop_to_mark()),
    pickle.ADDITEMS: lambda machine: machine.append(machine.pop_to_mark()),
    pickle.SETITEM: lambda machine: machine.set_items(machine.pop_last(2)),
    pickle.SETITEMS: lambda machine: machine.set_items(machine.pop_to_mark()),
    # The memo.
    pickle.PUT: lambda machine: machine.remember(int(machine.line())),
    pickle.BINPUT: lambda machine: machine.remember(machine.number(_U1)),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number(_U4)),
    pickle.MEMOIZE: Machine.remember_next,
    pickle.GET: lambda machine: machine.recall(int(machine.line())),
    pickle.BINGET: lambda machine: machine.recall(machine.number(_U1)),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number(_U4)),
    # Classes, functions, and objects.
    pickle.GLOBAL: _two_lines,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.EXT1: lambda machine: _extension(machine, _U1),
    pickle.EXT2: lambda machine: _extension(machine, _U2),
    pickle.EXT4: lambda machine: _extension(machine, _U4),
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _reduce,
    pickle.NEWOBJ_EX: _new_object_with_keywords,
    pickle.INST: _instance,
    pickle.OBJ: _object,
    pickle.BUILD: Machine.build,
    pickle.PERSID: lambda machine: machine.push_persistent(machine.line().decode("utf-8")),
    pickle.BINPERSID: lambda machine: machine.push_persistent(machine.pop()),
}
_HANDLERS = [_BY_OPCODE.get(bytes([code])) for code in range(256)]
_STOP = ord(pickle.STOP)
