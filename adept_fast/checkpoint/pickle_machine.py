"""The machine that a pickle's opcodes drive: a stack and a memo. It counts the objects."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from adept_fast.checkpoint.pickle_values import (
    Global,
    PickledObject,
    PickledTensor,
    UnhashedKey,
    described,
    printable,
)

# A model of 36 layers needs about 40 thousand opcodes, with its optimizer's state four times that.
MAX_OPCODES = 2**19
MAX_OBJECTS = 2**17  # lists, dicts, tuples, texts, objects, names
MAX_TEXT_BYTES = 8 * 2**20
MAX_DEPTH = 1000  # of open marks
MAX_NAMES_KEPT = 20  # of those left unread

_MAX_LINE = 1000  # bytes: a module's or a class's name, a number in digits
_MAX_KEY = 4096  # characters: equal keys are compared each time that they meet
_MAX_BYTES_KEPT = 1024  # of a bytes object; a longer one is left unread
_MAX_INTEGER_BYTES = 255  # of an integer; a longer one is left unread

_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocols 0 to 2 use its names
_NOTHING = object()  # an entry that the memo does not have
BYTES = Global("", "bytes")
_INTEGER = Global("", "int")
_PERSISTENT = Global("", "a persistent id")

# A known function receives the arguments of a call, and returns None for arguments that it does not support.
Functions = Mapping[str, Callable[[tuple[Any, ...]], object]]


class PickleError(ValueError):
    """A pickle that is damaged, or larger than a model's can be."""


class Machine:
    """A stack of values, the stacks below its marks, a memo. ``read_pickle`` describes the arguments."""

    def __init__(
        self,
        contents: bytes,
        functions: Functions,
        constants: Mapping[str, object],
        persistent: Callable[[object], object],
    ) -> None:
        self._contents = contents
        self._size = len(contents)
        self.position = 0  # of the next byte
        self._functions = functions
        self._constants = constants
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: list[Any] = []
        self._objects = 0
        self._text_bytes = 0
        self._unknown: set[str] = set()
        self._more_unknown = False

    @property
    def left_unread(self) -> tuple[str, ...]:
        """The names that are not known, in order, up to MAX_NAMES_KEPT of them."""
        return (*sorted(self._unknown), *(("others",) if self._more_unknown else ()))

    # The bytes.

    def take(self, length: int) -> bytes:
        piece = self._contents[self.position : self.position + length]
        self.skip(length)
        return piece

    def skip(self, length: int) -> None:
        if self.position + length > self._size:
            self.require(length)
        self.position += length

    def require(self, length: int) -> None:
        """Raises PickleError if fewer bytes than these are left."""
        left = self._size - self.position
        if length > left:
            raise PickleError(f"{length} bytes are called for, and {left} are left")

    def number(self, format_: struct.Struct) -> Any:
        at = self.position
        self.skip(format_.size)
        return format_.unpack_from(self._contents, at)[0]

    def line(self) -> bytes:
        end = self._contents.find(b"\n", self.position, self.position + _MAX_LINE + 1)
        if end < 0:
            raise PickleError(f"a line does not end within {_MAX_LINE} bytes")
        line = self._contents[self.position : end]
        self.position = end + 1
        return line

    # The stack.

    def push(self, value: object) -> None:
        self._stack.append(value)

    def push_new(self, value: object) -> None:
        """Push a new object, and count it."""
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise PickleError(f"the pickle has more than {MAX_OBJECTS} objects")
        self._stack.append(value)

    def push_text(self, encoded: bytes) -> None:
        self._text_bytes += len(encoded)
        if self._text_bytes > MAX_TEXT_BYTES:
            raise PickleError(f"the pickle has more than {MAX_TEXT_BYTES} bytes of text")
        self.push_new(encoded.decode("utf-8", "surrogatepass"))

    def push_bytes(self, length: int) -> None:
        if length > _MAX_BYTES_KEPT:
            self.skip(length)
            self.push_new(PickledObject(BYTES))
        else:
            self.push_new(self.take(length))

    def push_integer(self, length: int) -> None:
        if length > _MAX_INTEGER_BYTES:
            self.skip(length)
            self.push_new(PickledObject(_INTEGER))
        else:
            self.push(int.from_bytes(self.take(length), "little", signed=True))

    def top(self) -> Any:
        if not self._stack:
            raise PickleError("the stack is empty")
        return self._stack[-1]

    def pop(self) -> Any:
        if not self._stack:
            raise PickleError("the stack is empty")
        return self._stack.pop()

    def discard(self) -> None:
        """Pop a value, or the mark if there is none above it."""
        if self._stack:
            self._stack.pop()
        else:
            self.pop_to_mark()

    def mark(self) -> None:
        if len(self._below) == MAX_DEPTH:
            raise PickleError(f"more than {MAX_DEPTH} marks are open")
        self._below.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self._below:
            raise PickleError("there is no mark")
        values = self._stack
        self._stack = self._below.pop()
        return values

    def pop_last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise PickleError("the stack is empty")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    # The memo.

    def remember(self, index: int) -> None:
        value = self.top()
        if not 0 <= index < MAX_OPCODES:
            raise PickleError(f"the memo has no room for an entry {index}")
        missing = index + 1 - len(self._memo)
        if missing > 0:
            self._memo += [_NOTHING] * missing
        self._memo[index] = value

    def remember_next(self) -> None:
        self._memo.append(self.top())

    def recall(self, index: int) -> None:
        value = self._memo[index] if 0 <= index < len(self._memo) else _NOTHING
        if value is _NOTHING:
            raise PickleError(f"the memo has no entry {index}")
        self._stack.append(value)

    # Names, and objects built from them.

    def push_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _MAX_LINE:
            raise PickleError("the name of a class or function is no text, or too long")
        module = _PYTHON_2_MODULES.get(module, module)
        path = f"{module}.{name}"
        if path in self._constants:
            self.push(self._constants[path])
            return
        if path not in self._functions:
            self._note(path)
        self.push_new(Global(module, name))

    def _note(self, path: str) -> None:
        shown = printable(path)
        if len(self._unknown) < MAX_NAMES_KEPT:
            self._unknown.add(shown)
        elif shown not in self._unknown:
            self._more_unknown = True

    def push_call(self, maker: object, arguments: object) -> None:
        """Push the result of a call: interpreted if the class or function is known, else left unread."""
        if isinstance(maker, PickledObject):
            maker = maker.maker
        if not isinstance(maker, Global):
            raise PickleError(f"{described(maker)} is called")
        value = None
        known = self._functions.get(f"{maker.module}.{maker.name}")
        if known is not None and isinstance(arguments, tuple):
            value = known(arguments)
        if value is None:
            first = arguments[0] if isinstance(arguments, tuple) and arguments else None
            value = PickledObject(maker, first if isinstance(first, Global) else None)
        self.push_new(value)

    def push_persistent(self, identity: object) -> None:
        value = self._persistent(identity)
        self.push_new(PickledObject(_PERSISTENT) if value is None else value)

    # Filling objects.

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, (PickledObject, Global)):
            raise PickleError(f"{described(target)} is appended to")

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise PickleError("a key has no value")
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                if type(key) is not str or len(key) > _MAX_KEY:
                    self.push_new(key)
                    key = UnhashedKey(self._stack.pop())
                target[key] = value
        elif not isinstance(target, (PickledObject, Global)):
            raise PickleError(f"items of {described(target)} are set")

    def push_dict(self, values: list[Any]) -> None:
        self.push_new({})
        self.set_items(values)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, PickledObject):
            # The state of a class with slots is a pair: its dict's, and its slots'.
            if isinstance(state, tuple) and len(state) == 2:
                state = state[0] if isinstance(state[0], dict) else state[1]
            target.state = state
        elif isinstance(target, PickledTensor):
            target.flaw = "has a state of its own"
        elif not isinstance(target, (dict, Global)):  # a dict's attributes are of no use
            raise PickleError(f"the state of {described(target)} is set")
