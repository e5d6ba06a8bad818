"""Every code block of the README runs, and prints what it says.

``python`` blocks are executed. In ``console`` blocks a line ``$ …`` is a command and the lines below it are
what it prints, in which ``…`` stands for anything; where none are given, anything goes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def commands(block: str) -> list[tuple[str, str]]:
    """Each command of a console block, and what it is said to print."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where ``adept-fast`` is this very code, and ``make`` finds its environment made."""
    place = tmp_path_factory.mktemp("readme")
    binaries = place / "venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "adept-fast").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adept_fast "$@"\n')
    (binaries / "adept-fast").chmod(0o755)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "lm_eval").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lm_eval "$@"\n')
    (binaries / "lm_eval").chmod(0o755)
    (place / "tools").symlink_to(ROOT / "tools")
    for marker in ("torch", "installed", "installed-test"):
        (place / "venv" / marker).touch()
    return place


def test_all_blocks_are_of_a_kind_that_is_tested() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "console", "text"}
    assert len(blocks("python")) >= 2
    assert sum(len(commands(block)) for block in blocks("console")) >= 6


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split("\n")[0])
def test_python_blocks_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102


def test_the_first_python_block_prints_what_its_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    block = blocks("python")[0]
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102
    said = re.search(r"print\(generation\.text\)  #(.*)", block)
    assert said is not None
    assert capsys.readouterr().out.splitlines()[0] == said[1].removeprefix(" ")


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.split("\n")[0])
def test_console_blocks_print_what_they_say(block: str, workplace: Path) -> None:
    environment = os.environ | {
        "PATH": f"{workplace / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    for command, expected in commands(block):
        if command.startswith("lm_eval ") and importlib.util.find_spec("lm_eval") is None:
            pytest.skip("lm-eval is not installed")
        if command.startswith("make "):
            if shutil.which("make") is None:
                pytest.skip("make is not installed")
            # What make would install is there already; the suite is not run inside itself.
            dry_run = "" if command == "make demo" else " --dry-run"
            command = f"{command} --silent{dry_run} --directory {ROOT} VENV={workplace / 'venv'}"
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=workplace,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if expected:
            pattern = re.escape(expected).replace("…", ".*")
            assert re.fullmatch(pattern, done.stdout, flags=re.DOTALL), done.stdout
