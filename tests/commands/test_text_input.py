"""Text from outside: what ends a line, what is no text, and where errors say that it stands."""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_fast import ConfigError, PersimmonConfig
from adept_fast.checkpoint import CheckpointError
from adept_fast.checkpoint.huggingface import read_json
from adept_fast.system import text_input
from adept_fast.system.text_input import LineReader, TextError, decode_text, read_text

NOT_LINE_ENDS = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"  # each of which str.splitlines splits at


class InPieces(io.RawIOBase):
    """A stream that gives what it was given, piece by piece, as a terminal or a pipe does."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = [piece for piece in pieces if piece]

    def read1(self, size: int = -1, /) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def lines_of(*pieces: bytes) -> list[str]:
    reader, lines = LineReader(InPieces(list(pieces)), "pipe"), []
    while (line := reader.read()) is not None:
        lines.append(line)
        assert reader.number == len(lines)
    assert reader.read() is None
    return lines


@given(st.lists(st.text(alphabet="ab\r\n\x0c\u2028é\ufeff", max_size=6), max_size=8))
def test_lines_are_those_of_the_text_however_it_is_cut_into_pieces(pieces: list[str]) -> None:
    text = "".join(pieces)
    expected = re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))
    if expected[-1] == "":  # what stands behind the last end of a line is a line only if it has characters
        expected.pop()
    # A byte order mark counts only as the beginning of the stream, also where nothing but it is there.
    assert lines_of(*(piece.encode() for piece in pieces)) == (expected or [""] * (text == "\ufeff"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_a_line_is_read_as_lf(end: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(f"\ufeffone{end}{end}{NOT_LINE_ENDS}{end}".encode())
    assert read_text(tmp_path / "text") == f"one\n\n{NOT_LINE_ENDS}\n"
    assert lines_of((tmp_path / "text").read_bytes()) == ["one", "", NOT_LINE_ENDS]


def test_a_question_is_there_before_what_follows_its_cr() -> None:
    stream = InPieces([b"one\r", b"\ntwo\r", b"three"])
    reader = LineReader(stream, "pipe")
    assert (reader.read(), len(stream.pieces)) == ("one", 2)
    assert (reader.read(), len(stream.pieces)) == ("two", 1)
    assert (reader.read(), reader.read()) == ("three", None)


@pytest.mark.parametrize(
    ("data", "line", "byte"),
    [
        (b"caf\xe9", 1, 3),
        (b"a\r\nb\rc\n\xc3\n", 4, 7),
        (codecs.BOM_UTF8 + b"\n\xff", 2, 4),
        (b"\xed\xa0\x80", 1, 0),  # a surrogate, encoded
        (b"\x0c\xe2\x80\xa8\x80", 1, 4),
        (b"ab\xe2\x80", 1, 2),  # the end of the file inside a character
    ],
)
def test_bytes_that_are_not_utf8_are_located(data: bytes, line: int, byte: int, tmp_path: Path) -> None:
    message = f"not UTF-8 text (line {line}, byte {byte})"
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(TextError, match=re.escape(f"{tmp_path / 'file'}: {message}")):
        read_text(tmp_path / "file")
    reader = LineReader(io.BytesIO(data), "stdin")
    with pytest.raises(TextError, match=re.escape(f"stdin: {message}")):
        [reader.read() for _ in range(line)]


def test_a_line_that_is_no_text_spoils_no_other() -> None:
    reader = LineReader(io.BytesIO(b"one\n\xff\xfe\r\nthree\n"), "stdin")
    assert reader.read() == "one"
    with pytest.raises(TextError):
        reader.read()
    assert (reader.read(), reader.number, reader.read()) == ("three", 3, None)


def test_text_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text_input, "MAX_BYTES", 5)
    (tmp_path / "file").write_bytes(b"12345")
    assert read_text(tmp_path / "file") == "12345"
    with pytest.raises(TextError, match="/dev/zero: has more than 5 bytes"):
        read_text("/dev/zero")
    reader = LineReader(InPieces([b"12", b"345\n123", b"456", b"7\nnext"]), "stdin")
    assert reader.read() == "12345"
    with pytest.raises(TextError, match="stdin: line 2 has 7 bytes; expected at most 5"):
        reader.read()
    assert reader.read() == "next"


def test_decoding_says_where_the_part_began() -> None:
    with pytest.raises(TextError, match=r"here: not UTF-8 text \(line 8, byte 102\)"):
        decode_text(b"a\n\xff", "here", first_line=7, first_byte=100)
    assert decode_text(codecs.BOM_UTF8, "here", first_byte=100) == "\ufeff"


def test_an_error_of_reading_names_the_source() -> None:
    class Failing(io.RawIOBase):
        def read1(self, size: int = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error: 'stdin'"):
        LineReader(Failing(), "stdin").read()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_files_follow_the_same_rule(end: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(f'\ufeff{{"hidden_size":{end}256}}{end}'.encode())
    assert read_json(tmp_path / "config.json") == {"hidden_size": 256}
    assert PersimmonConfig.from_json(tmp_path / "config.json").hidden_size == 256


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1,\n"caf\xe9": 2}', r"not UTF-8 text \(line 2, byte 13\)"),
        (b"{", "not valid JSON"),
        (b"[" * 200_000, "is nested too deeply"),
        (b"9" * 5000, "the document is 9"),
    ],
    ids=["latin", "cut", "deep", "digits"],
)
def test_json_that_is_none_names_its_file(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    for read, error in (
        (read_json, CheckpointError),
        (PersimmonConfig.from_json, ConfigError),
    ):
        with pytest.raises(error, match=f"config.json: {message}"):
            read(tmp_path / "config.json")
