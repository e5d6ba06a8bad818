"""What commands take as text and print as text: ends of lines, bytes that are no text, escapes, encodings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adept_fast import Runtime, Score
from adept_fast.commands.cli import main
from adept_fast.commands.escapes import unescape
from adept_fast.engine.sequence import Generation

QUESTION = "What is 6 times 7?"
ANSWER = "6 times 7 is 42."
LONG = "a " * 600


def run(*arguments: str, stdin: str | bytes | None = None, charset: str = "utf-8") -> Result:
    result = CliRunner(charset=charset).invoke(main, list(arguments), input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: Any, **_options: Any) -> Runtime:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(Runtime, "load", load)


class TestEndsOfLines:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_chat(self, end: str) -> None:
        result = run("chat", stdin=f"\ufeff{QUESTION}{end}What is 3 plus 4?{end}".encode())
        assert (result.exit_code, result.stdout.split("\n")) == (0, [ANSWER, "3 plus 4 is 7.", ""])

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("source", ["stdin", "file"])
    def test_generate(self, end: str, source: str, tmp_path: Path) -> None:
        data = f"\ufeff{end}two\x0c\u2028lines{end}{end}".encode()
        (tmp_path / "prompt").write_bytes(data)
        name = "-" if source == "stdin" else str(tmp_path / "prompt")
        result = run("generate", "--json", "--max-new-tokens", "1", "--prompt-file", name, stdin=data)
        assert json.loads(result.stdout)["prompt"] == "\ntwo\x0c\u2028lines\n"

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_score(self, end: str) -> None:
        result = run("score", "--json", stdin=f"\ufeffone{end}t\x0cw\u2028o{end}{end}three".encode())
        texts = [json.loads(line)["text"] for line in result.stdout.split("\n")[:-1]]
        assert texts == ["one", "t\x0cw\u2028o", "", "three"]

    def test_arguments_are_taken_as_they_are(self) -> None:
        result = run("generate", "--json", "--max-new-tokens", "1", "--prompt", "\ufeffa\r\n")
        assert json.loads(result.stdout)["prompt"] == "\ufeffa\r\n"


class TestBytesThatAreNoText:
    def test_chat_goes_on_with_the_next_question(self) -> None:
        result = run("chat", stdin=f"{LONG}\nWhat\xe9?\n{QUESTION}\n".encode("latin-1"))
        assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
        too_long, not_utf8 = result.stderr.splitlines()[:2]
        assert too_long.startswith("error: prompt has 6")
        assert not_utf8 == f"error: stdin: not UTF-8 text (line 2, byte {len(LONG) + 5})"

    def test_a_question_that_is_refused_forgets_no_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prompts: list[str] = []
        stream = Runtime.stream

        def record(runtime: Runtime, prompt: list[int], *arguments: Any, **options: Any) -> Any:
            prompts.append(runtime.tokenizer.decode(prompt))
            return stream(runtime, prompt, *arguments, **options)

        monkeypatch.setattr(Runtime, "stream", record)
        result = run("chat", stdin=f"{QUESTION}\n{LONG}\nWhat is 3 plus 4?\n")
        assert prompts[-1] == f"human: {QUESTION}\n\nadept: {ANSWER}\n\nhuman: What is 3 plus 4?\n\nadept:"
        assert "forgotten" not in result.stderr

    def test_stdin_is_named(self, nothing_is_loaded: None) -> None:
        result = run("generate", "--prompt-file", "-", stdin=b"a\nb\xff")
        assert (result.exit_code, result.stderr) == (1, "error: stdin: not UTF-8 text (line 2, byte 3)\n")

    def test_an_argument_is_named(self, nothing_is_loaded: None) -> None:
        result = run("generate", "--prompt", "a", "--prompt", "b\udcff")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: prompt 2 (--prompt): the text holds a lone surrogate")


class TestScore:
    def test_what_cannot_be_scored_is_an_error_of_its_line(self) -> None:
        stdin = b"one\n" + LONG.encode() + b"\nthr\xe9e\n\nfive"
        result = run("score", stdin=stdin)
        assert result.exit_code == 1
        assert [line.split("\t")[2] for line in result.stdout.splitlines()] == ["one", "", "five"]
        too_long, not_utf8 = result.stderr.splitlines()
        assert too_long.startswith("error: stdin, line 2: prompt has 6")
        assert not_utf8 == f"error: stdin: not UTF-8 text (line 3, byte {4 + len(LONG) + 1 + 3})"

    def test_arguments_have_numbers_too(self) -> None:
        result = run("score", "one", LONG, "b\udcff", "three")
        assert (result.exit_code, len(result.stdout.splitlines())) == (1, 2)
        assert [line[:13] for line in result.stderr.splitlines()] == ["error: text 2", "error: text 3"]

    def test_a_text_with_nothing_to_predict(self) -> None:
        result = run("score", "")
        assert (result.exit_code, result.stdout) == (0, "0.0000\tnan\t\n")
        assert json.loads(run("score", "--json", "--no-bos", "").stdout)["logprobs"] == []

    def test_perplexity_above_the_largest_float_is_infinite(self) -> None:
        assert Score([0, 1], [None, -800.0]).perplexity == math.inf
        assert Score([0, 1], [None, -math.inf]).perplexity == math.inf
        assert Score([0, 1], [None, -700.0]).perplexity == math.exp(700)
        assert math.isnan(Score([0], [None]).perplexity)

    def test_numbers_that_are_not_finite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Runtime, "score", lambda *_, **__: [Score([0, 1], [None, -math.inf])])
        assert run("score", "a").stdout == "-inf\tinf\ta\n"
        line = json.loads(run("score", "--json", "a").stdout, parse_constant=pytest.fail)
        assert (line["logprob"], line["logprobs"]) == (None, [None, None])


class TestEscapes:
    @pytest.mark.parametrize(
        ("spelled", "text"),
        [
            (r"\n\t\r\\", "\n\t\r\\"),
            (r"\\n", r"\n"),
            (r"\x41\xe9\u20AC", "Aé€"),
            ("a\nb", "a\nb"),
            ("", ""),
        ],
    )
    def test_what_they_spell(self, spelled: str, text: str) -> None:
        assert unescape(spelled) == text

    @pytest.mark.parametrize(
        "spelled", [r"\q", "a\\", r"\x4", r"\x4g", r"\u12", r"\N", r"\ud800", "\udc80", "\\\n", r"\0"]
    )
    def test_what_spells_nothing(self, spelled: str, nothing_is_loaded: None) -> None:
        result = run("generate", "--prompt", "a", "--stop", spelled)
        assert (result.exit_code, result.stdout) == (2, "")
        *_, line = result.stderr.splitlines()
        assert line.startswith("Error: Invalid value for '--stop': ")

    def test_the_model_stops_there(self, demo: Runtime) -> None:
        text = demo.generate("Humpty Dumpty", max_new_tokens=60).text
        assert "\n" in text.strip("\n"), "the demo recites rhymes in lines"
        for spelled in (r"\n", r"\x0a", "\n"):
            result = run("generate", "--prompt", "Humpty Dumpty", "--max-new-tokens", "60", "--stop", spelled)
            assert result.stdout == text.partition("\n")[0] + "\n"
        shown = " ".join(run("chat", "--help").stdout.split())
        assert r"escapes \n, \t, \r, \\, \xHH and \uHHHH" in shown


class TestOutput:
    """``café → 😀``, to an encoding that has it or not."""

    TEXT = "café → \U0001f600"

    @pytest.mark.parametrize(
        ("charset", "printed"),
        [
            ("ascii", rb"caf\xe9 \u2192 \U0001f600"),
            ("latin-1", b"caf\xe9 " + rb"\u2192 \U0001f600"),
            ("cp1252", b"caf\xe9 " + rb"\u2192 \U0001f600"),
            ("utf-8", TEXT.encode()),
        ],
    )
    def test_every_command(self, charset: str, printed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Runtime, "stream", lambda *_, **__: Pieces(["ca", "fé ", "→ ", "\U0001f600"]))
        for arguments, stdin in ((["generate", "--prompt", "a"], ""), (["chat"], "a\n")):
            assert run(*arguments, stdin=stdin, charset=charset).stdout_bytes == printed + b"\n"
        assert run("score", self.TEXT, charset=charset).stdout_bytes.split(b"\t")[2] == printed + b"\n"
        several = run("generate", "--prompt", "a", "--prompt", "b", "--max-new-tokens", "0", charset=charset)
        assert several.stdout_bytes == b"\n\n"

    @pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
    def test_json_stays_json(self, charset: str) -> None:
        result = run("score", "--json", self.TEXT, charset=charset)
        assert json.loads(result.stdout_bytes.decode(charset))["text"] == self.TEXT
        assert run("info", "--json", charset=charset).exit_code == 0

    def test_lone_surrogates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Runtime, "stream", lambda *_, **__: Pieces(["a\udcff", "b"]))
        assert run("generate", "--prompt", "a").stdout == "a\\udcffb\n"

    @pytest.mark.parametrize("arguments", [["info"], ["--help"], ["chat", "--help"], ["bench", "--help"]])
    def test_what_is_no_generated_text(self, arguments: list[str]) -> None:
        result = run(*arguments, charset="ascii")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout_bytes.isascii()


class Pieces:
    """A TextStream of pieces that are known."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = iter(pieces)
        self.result: Generation | SimpleNamespace = SimpleNamespace()

    def __iter__(self) -> Iterator[str]:
        return self._pieces


class TestPrompts:
    def test_stdin_is_read_once(self, nothing_is_loaded: None, tmp_path: Path) -> None:
        for second in ("-", "/dev/stdin"):
            result = run("generate", "--prompt-file", "-", "--prompt-file", second, stdin="a")
            assert (result.exit_code, result.stdout) == (2, "")
            assert "--prompt-file is stdin more than once" in result.stderr

    def test_the_prompt_that_is_too_long_is_named(
        self, nothing_is_loaded: None, tmp_path: Path, demo: Runtime
    ) -> None:
        (tmp_path / "long").write_text(LONG)
        result = run("generate", "--prompt", "short", "--prompt-file", str(tmp_path / "long"))
        assert (result.exit_code, result.stdout) == (1, "")
        tokens = len(demo.tokenizer.encode(LONG))
        which = f"prompt 2 ({tmp_path / 'long'})"
        assert result.stderr == f"error: {which} has {tokens} tokens; expected at most max_seq_len 512\n"

    def test_by_the_context_that_is_asked_for(self, nothing_is_loaded: None) -> None:
        result = run("generate", "--prompt-file", "-", "--max-seq-len", "5", stdin="a b c d e f g h")
        assert result.stderr.startswith("error: prompt 1 (stdin) has ")
        assert result.stderr.endswith(" tokens; expected at most max_seq_len 5\n")

    def test_by_the_context_that_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        load = Runtime.load
        monkeypatch.setattr(Runtime, "load", lambda *given, **more: load(*given, **more | {"max_seq_len": 5}))
        result = run("generate", "--prompt", "a b c d e f g h")
        assert result.exit_code == 1
        assert "error: prompt 1 (--prompt) has " in result.stderr
        assert "expected at most max_seq_len 5\n" in result.stderr


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"]])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-new-tokens", "9" * 400),
        ("--max-new-tokens", "9" * 5000),
        ("--max-new-tokens", "-1"),
        ("--temperature", "1e400"),
        ("--temperature", "nan"),
        ("--temperature", "-0.5"),
        ("--top-p", "nan"),
        ("--min-p", "nan"),
        ("--top-k", "9" * 400),
        ("--repetition-penalty", "inf"),
        ("--frequency-penalty", "2.5"),
        ("--frequency-penalty", "nan"),
        ("--presence-penalty", "-2.5"),
        ("--logit-bias", "5"),
        ("--logit-bias", "=5"),
        ("--logit-bias", "five=5"),
        ("--logit-bias", "5=five"),
        ("--logit-bias", "5=101"),
        ("--logit-bias", "5=nan"),
        ("--logit-bias", "-5=1"),
        ("--logit-bias", "9" * 5000 + "=1"),
        ("--seed", "9" * 400),
        ("--max-seq-len", "9" * 400),
        ("--stop", ""),
    ],
)
def test_values_out_of_range(command: list[str], option: str, value: str, nothing_is_loaded: None) -> None:
    result = run(*command, option, value, stdin=f"{QUESTION}\n")
    assert (result.exit_code, result.stdout) == (2, "")
    usage, hint, blank, line = result.stderr.splitlines()
    assert (usage[:6], blank, line[:7]) == ("Usage:", "", "Error: ")
    assert len(line) < 700


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"]])
def test_a_bias_beyond_the_vocabulary(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before weights are read."""
    monkeypatch.setattr(Runtime, "load", None)
    result = run(*command, "--logit-bias", "4096=1", stdin=f"{QUESTION}\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: logit_bias has the token id 4096; expected 0 to 4095\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "--batch-size", "9" * 400],
        ["info", "--max-seq-len", "9" * 400],
        ["bench", "--context", "9" * 400],
        ["convert", "demo", "converted", "--shard-size", "9" * 400],
        ["generate", "--prompt", "a", "--batch-size", "9" * 400],
    ],
)
def test_sizes_out_of_range(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()[-1]) < 700
