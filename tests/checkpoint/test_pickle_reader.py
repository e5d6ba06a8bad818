"""The reader of pickles: plain values as Python reads them, all others left alone, and bombs defused."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import functools
import math
import operator
import pickle
import pickletools
import random
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from adept_fast.checkpoint.pickle_reader import Pickled, PickleError, read_pickle
from adept_fast.checkpoint.pickle_values import Global, PickledObject, UnhashedKey, described

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(stream: bytes) -> Pickled:
    return read_pickle(stream, {}, {"torch.bfloat16": torch.bfloat16}, lambda identity: None)


def contents(value: Any, protocol: int = 2) -> Any:
    return read(pickle.dumps(value, protocol=protocol)).contents


def random_value(generator: random.Random, protocol: int, depth: int = 4) -> Any:
    """Plain values of all kinds, nested; no bytes for protocol 0, which escapes them."""
    if depth and generator.random() < 0.6:
        length = generator.choice((0, 1, 2, 3, 4, 9))
        values = [random_value(generator, protocol, depth - 1) for _ in range(length)]
        kind = generator.choice(("list", "tuple", "dict"))
        if kind == "dict":
            return {f"k{at}": value for at, value in enumerate(values)}
        return values if kind == "list" else tuple(values)
    return generator.choice(
        ([b"", b"\x00\xff", b"b" * 300] if protocol else [])
        + [
            None, True, False, 0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**64), 10**300,
            0.5, -1e300, math.inf, "", "a", "text " * 99,
        ]
    )  # fmt: skip


class TestPlainValues:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_as_python_reads_them(self, protocol: int) -> None:
        generator = random.Random(protocol)
        for _ in range(100):
            value = random_value(generator, protocol)
            stream = pickle.dumps(value, protocol=protocol)
            for variant in (stream, pickletools.optimize(stream)):
                found = read(variant)
                assert found.contents == value
                assert repr(found.contents) == repr(value)  # 1 is not True, and 1.0 not 1
                assert found.left_unread == ()

    @pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("text", ["ä", "\n\\'\"", "日本\U0001f600", "\ud800", "x" * 70_000])
    def test_texts(self, text: str, protocol: int) -> None:
        assert contents({text: [text]}, protocol) in ({text: [text]}, None) or len(text) > 4096
        assert contents([text], protocol) == [text]

    def test_what_is_shared_stays_shared(self) -> None:
        shared = [1]
        found = contents({"a": shared, "b": (shared,)})
        assert found["a"] is found["b"][0]
        loop: list[Any] = []
        loop.append(loop)
        found = contents(loop)
        assert found[0] is found
        assert "list of length 1" in described(found)

    def test_an_ordered_dict_is_a_dict(self) -> None:
        value = collections.OrderedDict(b=1, a=2)
        value.note = "an attribute"  # type: ignore[attr-defined]
        for protocol in PROTOCOLS[2:]:
            found = contents(value, protocol)
            assert type(found) is dict
            assert list(found.items()) == [("b", 1), ("a", 2)]

    def test_texts_of_python_2(self) -> None:
        assert read(b"\x80\x02U\x03abcT\x02\0\0\0de\x86.").contents == ("abc", "de")

    def test_long_texts_are_read_and_not_keys(self) -> None:
        [key] = contents({"k" * 5000: 1})
        assert isinstance(key, UnhashedKey)
        assert key.value == "k" * 5000

    @pytest.mark.parametrize("key", [1, 0.5, None, True, (1, "a"), b"a", (), frozenset((1,)), torch.bfloat16])
    def test_keys_that_are_no_texts_are_kept_unhashed(self, key: object) -> None:
        [(found, value)] = contents({key: "value"}).items()
        assert isinstance(found, UnhashedKey)
        assert value == "value"
        assert isinstance(key, frozenset) or found.value == key


class Colour(enum.Enum):
    RED = 1


class Flags(enum.IntFlag):
    A = 1


class Plain:
    def __init__(self) -> None:
        self.size = 3


class Slotted:
    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 3


class SlottedBelow(Plain):
    __slots__ = ("other",)


class Reduces:
    def __reduce__(self) -> Any:
        return operator.methodcaller("never"), (1, [2]), {"state": 3}, iter([4]), iter([("five", 6)])


class ReducesEx:
    def __reduce_ex__(self, protocol: Any) -> Any:
        return print, (f"printed in protocol {protocol}",)


class NewArguments:
    def __getnewargs_ex__(self) -> Any:
        return (1, 2), {"three": 4}


class SetsState:
    def __getstate__(self) -> Any:
        return [1, 2]

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("it ran")


class OfDict(dict):  # type: ignore[type-arg]
    pass


class OfList(list):  # type: ignore[type-arg]
    pass


class OfTuple(tuple):  # type: ignore[type-arg]
    __slots__ = ()


class OfText(str):
    __slots__ = ()


class OfInt(int):
    pass


Named = collections.namedtuple("Named", "a b")
HERE = __name__
OBJECTS: dict[str, tuple[Any, str]] = {
    "enum": (Colour.RED, f"{HERE}.Colour"),
    "flags": (Flags.A, f"{HERE}.Flags"),
    "path": (PurePosixPath("/a/b"), "pathlib"),
    "concrete path": (Path("/a/b"), "pathlib"),
    "device": (torch.device("cpu"), "torch.device"),
    "layout": (torch.strided, "layout"),
    "numpy state": (np.random.get_state()[1], "numpy."),
    "numpy array": (np.arange(3.0), "numpy."),
    "numpy scalar": (np.float32(1), "numpy."),
    "numpy dtype": (np.dtype("f4"), "numpy.dtype"),
    "plain": (Plain(), f"{HERE}.Plain"),
    "slots": (Slotted(), f"{HERE}.Slotted"),
    "slots below a class without": (SlottedBelow(), f"{HERE}.SlottedBelow"),
    "__reduce__": (Reduces(), "operator.methodcaller"),
    "__reduce_ex__": (ReducesEx(), "builtins.print"),
    "__getnewargs_ex__": (NewArguments(), ""),  # protocols 2 and 3 call functools.partial for it
    "__setstate__": (SetsState(), f"{HERE}.SetsState"),
    "dict subclass": (OfDict(a=1), f"{HERE}.OfDict"),
    "list subclass": (OfList([1]), f"{HERE}.OfList"),
    "tuple subclass": (OfTuple((1, 2)), f"{HERE}.OfTuple"),
    "text subclass": (OfText("a"), f"{HERE}.OfText"),
    "int subclass": (OfInt(3), f"{HERE}.OfInt"),
    "named tuple": (Named(1, 2), f"{HERE}.Named"),
    "class": (Plain, f"{HERE}.Plain"),
    "function": (read, f"{HERE}.read"),
    "builtin": (eval, "builtins.eval"),
    "method": ([1].append, "builtins.getattr"),
    "partial": (functools.partial(print, 1), "functools.partial"),
    "set": ({1, 2}, "set"),
    "frozenset": (frozenset((1, 2)), "set"),
    "bytearray": (bytearray(b"abc"), ""),  # bytes from protocol 5 on
    "long bytes": (b"b" * 5000, "bytes"),
    "complex": (1j, "builtins.complex"),
    "range": (range(3), "range"),
    "slice": (slice(1, 2), "builtins.slice"),
    "deque": (collections.deque([1]), "collections.deque"),
    "defaultdict": (collections.defaultdict(list, a=[1]), "collections.defaultdict"),
    "counter": (collections.Counter("ab"), "collections.Counter"),
    "datetime": (datetime.datetime(2020, 1, 1), "datetime.datetime"),
    "decimal": (decimal.Decimal("1.5"), "decimal.Decimal"),
    "fraction": (fractions.Fraction(1, 3), "fractions.Fraction"),
    "uuid": (uuid.UUID(int=5), "uuid.UUID"),
    "exception": (ValueError("a"), "ValueError"),  # Python 2 has another module for it
}


class TestOtherValues:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("name", OBJECTS)
    def test_it_stands_for_itself_and_the_rest_is_read(self, name: str, protocol: int) -> None:
        value, named = OBJECTS[name]
        stream = pickle.dumps({"before": 1, "it": value, "again": [value], "after": [2]}, protocol=protocol)
        for variant in (stream, pickletools.optimize(stream)):
            found = read(variant).contents
            assert (found["before"], found["after"]) == (1, [2])
            it = found["it"]
            assert isinstance(it, (PickledObject, Global, bytes))
            assert named in described(it)
            assert found["again"][0] is it or isinstance(it, (Global, bytes))

    def test_unknown_names_are_listed(self) -> None:
        found = read(pickle.dumps([Colour.RED, Plain(), eval, collections.OrderedDict()], protocol=4))
        assert found.left_unread == ("builtins.eval", f"{HERE}.Colour", f"{HERE}.Plain")

    def test_of_many_unknown_names_some_are_listed(self) -> None:
        names = b"".join(b"cmodule\nname%d\n0" % at for at in range(1000))
        listed = read(b"\x80\x02" + names + b"N.").left_unread
        assert len(listed) == 21
        assert listed[-1] == "others"

    @pytest.mark.parametrize("name", ["a\x1b[2J", "a\tb", "a" * 900, "ä\u202e"])
    def test_names_are_fit_for_a_terminal(self, name: str) -> None:
        found = read(b"\x80\x02c" + b"m\n" + name.encode() + b"\n)R.")
        for text in (*found.left_unread, described(found.contents)):
            assert text.isprintable()
            assert len(text) < 400

    def test_the_state_is_kept_as_it_is(self) -> None:
        for protocol in (2, 3, 4, 5):
            assert contents(Plain(), protocol).attributes == {"size": 3}
            assert contents(Slotted(), protocol).attributes == {"size": 3}
            assert contents(SetsState(), protocol).attributes is None

    def test_a_constant(self) -> None:
        assert contents([torch.bfloat16])[0] is torch.bfloat16

    @pytest.mark.parametrize(
        ("opcodes", "named"),
        [
            (b"(K\x01K\x02ia\nB\n", "a.B"),  # INST
            (b"(ca\nB\nK\x01o", "a.B"),  # OBJ
            (b"\x8c\x01a\x8c\x01B\x93)\x81", "a.B"),  # STACK_GLOBAL, NEWOBJ
            (b"ca\nB\n)}\x92", "a.B"),  # NEWOBJ_EX
            (b"ca\nB\nNR", "a.B"),  # arguments that are no tuple
            (b"ca\nB\nca\nC\nR", "a.B"),
            (b"ca\nB\n)R)R", "a.B"),  # a call of what a call made
            (b"ca\nB\n)R)\x81", "a.B"),
            (b"ca\nB\n)RK\x01K\x02s", "a.B"),  # SETITEM
            (b"ca\nB\n)R(K\x01K\x02u", "a.B"),
            (b"ca\nB\n)RK\x01a", "a.B"),  # APPEND
            (b"ca\nB\n)R(K\x01e", "a.B"),
            (b"ca\nB\n)R(K\x01\x90", "a.B"),  # ADDITEMS
            (b"ca\nB\n)RK\x01b", "a.B"),  # BUILD
            (b"ca\nB\n)RN}\x86b", "a.B"),
            (b"ca\nB\n}b", "a.B"),  # BUILD of a class
            (b"ca\nB\n(K\x01K\x02u", "a.B"),
            (b"\x82\x05", "copyreg's extension.5"),  # EXT1
            (b"\x83\x05\x01", "copyreg's extension.261"),
            (b"\x84\x05\x01\0\0", "copyreg's extension.261"),
            (b"\x97", "an out-of-band buffer"),  # NEXT_BUFFER
            (b"\x97\x98", "an out-of-band buffer"),  # READONLY_BUFFER
            (b"Pan id\n", "a persistent id"),
            (b"K\x01Q", "a persistent id"),
            (b"(K\x01K\x02tQ", "a persistent id"),
            (b"ca\nB\n)RQ", "a persistent id"),
            (b"\x8f(K\x01\x90", "set"),
            (b"(K\x01\x91", "set"),
            (b"\x96\x03\0\0\0\0\0\0\0abc", ""),
        ],
    )
    def test_opcodes(self, opcodes: bytes, named: str) -> None:
        found = read(b"\x80\x05}\x8c\x02it" + opcodes + b"s.").contents
        assert list(found) == ["it"]
        assert named in described(found["it"])

    @pytest.mark.parametrize(
        ("opcodes", "found"),
        [
            (b"", "ends at byte 2"),
            (b".", "STOP at 2: the stack is empty"),
            (b"N", "ends at byte 3"),
            (b"\xff.", "0xff is no opcode"),
            (b"K\x01)R.", "REDUCE at 5: 1 is called"),
            (b"])R.", "a list of length 0 is called"),
            (b"(o.", "None is called"),
            (b"R.", "the stack is empty"),
            (b"NK\x01a.", "None is appended to"),
            (b")K\x01a.", "a tuple of length 0 is appended to"),
            (b"]K\x01K\x02s.", "items of a list of length 0 are set"),
            (b"}(K\x01u.", "a key has no value"),
            (b"(K\x01d.", "a key has no value"),
            (b"]}b.", "the state of a list of length 0 is set"),
            (b"t.", "there is no mark"),
            (b"1.", "there is no mark"),
            (b"0.", "there is no mark"),
            (b"(a.", "the stack is empty"),
            (b"K\x01\x86.", "the stack is empty"),
            (b"h\0.", "the memo has no entry 0"),
            (b"Nq\x05h\x04.", "the memo has no entry 4"),
            (b"Nr\xff\xff\xff\xff.", "no room for an entry 4294967295"),
            (b"Np-1\n.", "no room for an entry -1"),
            (b"Ng-1\n.", "the memo has no entry -1"),
            (b"X\xff\xff\xff\x7fabc.", "2147483647 bytes are called for, and 4 are left"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.", "bytes are called for"),
            (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.", "bytes are called for"),
            (b"\x96\xff\xff\xff\xff\xff\xff\xff\xffabc.", "bytes are called for"),
            (b"\x95\xff\xff\0\0\0\0\0\0N.", "65535 bytes are called for"),
            (b"\x8b\xff\xff\xff\xff.", "bytes are called for"),
            (b"J\0\0", "4 bytes are called for, and 2 are left"),
            (b"X\x01\0\0\0\xff.", "can't decode"),
            (b"ca", "does not end"),
            (b"c" + b"a" * 2000 + b"\nb\n.", "does not end within"),
            (b"K\x01K\x02\x93.", "is no text"),
            (b"I" + b"9" * 900 + b"x\n.", "invalid literal"),
            (b"S'\\n'\n.", "escapes"),
            (b"Sabc\n.", "quotes"),
            (b"V\\u0041\n.", "escapes"),
            (b"Fx\n.", "could not convert"),
        ],
    )
    def test_damaged(self, opcodes: bytes, found: str) -> None:
        with pytest.raises(PickleError) as raised:
            read(b"\x80\x02" + opcodes)
        assert found in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_an_empty_file(self) -> None:
        with pytest.raises(PickleError, match="ends at byte 0"):
            read(b"")

    def test_random_streams(self) -> None:
        """Any bytes at all are read or refused."""
        generator = random.Random(1)
        plain = pickle.dumps([value for value, _ in OBJECTS.values()], protocol=4)
        codes = [ord(info.code) for info in pickletools.opcodes]
        outcomes = collections.Counter()
        for _ in range(2000):
            if generator.random() < 0.5:
                stream = bytearray(plain)
                for _ in range(generator.choice((1, 3, 10))):
                    stream[generator.randrange(len(stream))] = generator.randrange(256)
            else:
                stream = bytearray(generator.choice((*codes, 0, 1)) for _ in range(60))
            try:
                described(read(bytes(stream)).contents)
                outcomes["read"] += 1
            except PickleError:
                outcomes["refused"] += 1
        assert min(outcomes["read"], outcomes["refused"]) > 50
