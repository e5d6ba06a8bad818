"""The program as a process: its standard streams, its environment and Ctrl-C."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner
from own_process import run_module

from adept_fast import Runtime, choices
from adept_fast.checkpoint import WEIGHT_DTYPES, convert
from adept_fast.checkpoint.native import LAYOUTS
from adept_fast.commands.cli import main
from adept_fast.ops import cuda
from adept_fast.quantization.formats import NAMES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
INTERRUPTED = 130


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell gives that runs a script in which ``$A`` is the program."""
    return subprocess.run(
        ["sh", "-c", script],
        env={**ENVIRONMENT, "A": f"{sys.executable} -m adept_fast", **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", ["chat", "generate --prompt-file -"])
def test_a_closed_stdin(arguments: str) -> None:
    done = shell(f"$A {arguments} <&-")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: stdin is closed; expected text to read\n"


def test_a_closed_stdout() -> None:
    done = shell("$A generate --prompt Once --max-new-tokens 3 >&-")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: stdout is closed; expected it open")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_stdout_that_cannot_be_written() -> None:
    done = shell("$A score a b >/dev/full; echo $? >&2; $A --help >/dev/full")
    assert done.returncode == 1
    line = b"error: stdout: No space left on device\n"
    assert done.stderr == line + b"1\n" + line


def test_a_closed_stderr_and_characters_that_stdout_lacks() -> None:
    too_long = "a " * 600
    done = shell(f"$A score 'caf\u00e9 \u2192' '{too_long}' 2>&-", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.split(b"\t")[2] == rb"caf\xe9 \u2192" + b"\n", "the error is not on stdout"


def test_no_file_gets_the_descriptor_of_a_closed_stream() -> None:
    program = (
        "import os, sys; from adept_fast import __main__ as program; program._fill_closed_descriptors(); "
        "print(sys.stdin, os.open(os.devnull, os.O_RDONLY) > 2, file=open(3, 'w'))"
    )
    done = shell(f'exec 3>&1; {sys.executable} -c "{program}" <&- >&- 2>&-')
    assert (done.returncode, done.stdout) == (0, b"None True\n")


def test_an_instruction_set_that_there_is_not() -> None:
    done = run_module("adept_fast", "chat", ADEPT_FAST_CPU="nonsense\x1b[31m" + "x" * 5000)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: ADEPT_FAST_CPU is 'nonsense[ -~]*'; this machine runs [a-z0-9_, ]*portable\n", done.stderr
    )
    assert len(done.stderr) < 700


def interrupt_after(module: str, *arguments: str, **options: Any) -> tuple[int, str, str]:
    """The exit code, stdout and what is no import on stderr, of the program that gets a SIGINT when it has
    imported a module."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "adept_fast", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.split("|")[-1].strip() == module:
            break
    else:
        pytest.fail(f"{module} was not imported")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    lines = [line for line in stderr.splitlines() if not line.startswith("import time:")]
    return process.returncode, stdout, "".join(lines)


@pytest.mark.parametrize(
    "module",
    [
        "signal",
        "adept_fast.commands.errors",
        "adept_fast.commands.cli",
        "torch.version",
        "adept_fast.tokenizer",
        "adept_fast.system.text_input",
    ],
)
def test_ctrl_c_while_it_starts(module: str) -> None:
    assert interrupt_after(module, "score", "a") == (INTERRUPTED, "", "")


def test_a_caller_that_wants_ctrl_c_ignored() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    exit_code, stdout, stderr = interrupt_after("torch.version", "score", "a", preexec_fn=ignore)
    assert (exit_code, stdout[-3:], stderr) == (0, "\ta\n", "")


def test_a_conversation_in_a_terminal() -> None:
    """A line is answered when it has been typed; Ctrl-C at the prompt says what leaves, and Ctrl-D leaves."""
    pty = pytest.importorskip("pty", reason="no terminals here")
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adept_fast", "chat"],
        env=ENVIRONMENT,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None

    def wait_for(text: bytes) -> None:
        seen = b""
        while not seen.endswith(text):
            byte = process.stderr.read(1)
            assert byte, seen
            seen += byte

    try:
        wait_for(b"human: ")
        os.write(ours, b"What is 6 times 7?\n")
        assert process.stdout.readline() == b"6 times 7 is 42.\n"
        wait_for(b"human: ")
        os.write(ours, b"What is")
        process.send_signal(signal.SIGINT)
        wait_for(b"(Ctrl-D leaves)\nhuman: ")
        os.write(ours, b"\x15\x04")  # Ctrl-U first: no terminal has sent the signal, and forgotten the line
        assert process.communicate(timeout=120)[0] == b""
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(terminal)


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"], ["score", "a"], ["bench"]])
def test_ctrl_c_while_a_model_is_loaded(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: Any, **_options: Any) -> Runtime:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runtime, "load", interrupt)
    result = CliRunner().invoke(main, command, input="a")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (INTERRUPTED, "", "")


COMMANDS = sorted(main.commands)


HEAVY = {"torch", "numpy", "sentencepiece", "jinja2", "tqdm", "safetensors", "tokenizers", "transformers"}


def imported_by(*arguments: str) -> tuple[int, set[str]]:
    """The exit code of the program, and the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "adept_fast", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.split("|")[-1].strip() for line in lines}


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["-h"], 0),
        *(([command, "--help"], 0) for command in COMMANDS),
        (["generate", "--top-p", "2"], 2),
        (["convert", "demo", "there", "--weights", "int3"], 2),
        (["no-such-command"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_and_usage_errors_need_no_torch(arguments: list[str], exit_code: int) -> None:
    found, imported = imported_by(*arguments)
    assert (found, "click" in imported) == (exit_code, True)
    assert not HEAVY & imported


def test_info_imports_only_what_it_needs() -> None:
    exit_code, imported = imported_by("info")
    assert (exit_code, "torch" in imported) == (0, True)
    assert not {"jinja2", "tokenizers", "transformers", "huggingface_hub", "torch._dynamo"} & imported


def test_each_command_has_a_module_that_runs_it() -> None:
    for command in COMMANDS:
        assert callable(importlib.import_module(f"adept_fast.commands.{command}").run)


def test_options_offer_what_the_modules_behind_them_take() -> None:
    """``choices`` is what the command line checks without those modules."""
    assert tuple(WEIGHT_DTYPES.values()) == (torch.float32, torch.float16, torch.bfloat16)
    assert set(get_args(convert.Format)) == set(choices.CHECKPOINT_FORMATS)
    assert cuda.MAX_TOKENS == choices.MAX_STEP_TOKENS
    assert set(choices.PACKED_FORMATS) == set(NAMES)
    assert tuple(LAYOUTS) == choices.PACKED_LAYOUTS


def test_the_script_that_is_installed_is_this_program() -> None:
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert scripts is not None
    assert scripts[1] == 'adept-fast = "adept_fast.__main__:main"'


def test_modules_are_left_out_of_garbage_collection() -> None:
    """A search of them takes half a second at the end of a process that imported torch."""
    program = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 100_000, file=sys.stderr))\n"
        "from adept_fast.__main__ import main\n"
        "sys.argv = ['adept-fast', 'info', '--json']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "True True\n"


def test_the_package_imports_torch_only_when_it_is_needed() -> None:
    program = (
        "import sys, adept_fast; assert 'torch' not in sys.modules and 'typing' not in sys.modules\n"
        "from adept_fast import *\n"
        "assert {name for name in adept_fast.__all__} <= globals().keys() & {*dir(adept_fast)}\n"
        "assert adept_fast.Runtime is sys.modules['adept_fast.engine.runtime'].Runtime\n"
        "adept_fast.Nothing\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.endswith("AttributeError: module 'adept_fast' has no attribute 'Nothing'\n")
