"""Every code block of README, CONTRIBUTING and docs runs, and prints what it says; links and paths are there.

``python`` blocks are executed. In ``console`` blocks a line ``$ …`` is a command and the lines below it are
what it prints, in which ``…`` stands for anything; where none are given, anything goes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from own_process import python_file

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
BLOCKS = [(page, kind, text) for page in PAGES for kind, text in BLOCK.findall(TEXTS[page])]


def blocks(language: str) -> list[object]:
    return [
        pytest.param(text, id=f"{page.stem}: {text.partition(chr(10))[0]}")
        for page, kind, text in BLOCKS
        if kind == language
    ]


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
    python_file(binaries / "python")
    for name, module in {"adept-fast": "adept_fast", "lm_eval": "lm_eval"}.items():
        python_file(binaries / name, "-m", module)
    for name in ("tools", "benchmarks"):
        (place / name).symlink_to(ROOT / name)
    for marker in ("torch", "installed", "installed-test"):
        (place / "venv" / marker).touch()
    return place


def test_all_blocks_are_of_a_kind_that_is_tested() -> None:
    assert {kind for _, kind, _ in BLOCKS} == {"python", "console", "text"}
    assert {page for page, kind, _ in BLOCKS if kind == "python"} >= {README, ROOT / "docs" / "python.md"}
    assert sum(len(commands(text)) for _, kind, text in BLOCKS if kind == "console") >= 12


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "from transformers import" in block:
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})  # noqa: S102


def test_the_first_python_block_prints_what_its_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    block = next(text for _, kind, text in BLOCKS if kind == "python")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102
    said = re.search(r"print\(generation\.text\)  #(.*)", block)
    assert said is not None
    assert capsys.readouterr().out.splitlines()[0] == said[1].removeprefix(" ")


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("console"))
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


def test_the_readme_is_short() -> None:
    assert len(TEXTS[README].splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", TEXTS[page])
    for target in re.findall(r"(?:\]\(|src(?:set)?=\")([^)\" ]+)", text):
        name, _, anchor = target.partition("#")
        if name.startswith("https:"):
            continue
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings]
    for name in re.findall(r"`((?:adept_fast|csrc|tests|tools|benchmarks|docs|\.github)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())  # type: ignore[index]


def test_targets_of_make_are_there() -> None:
    named = {target for text in TEXTS.values() for target in re.findall(r"[`$^] ?make ([a-z][a-z-]*)", text)}
    assert {"demo", "test", "lint", "bench", "gpu-check"} <= named
    assert named <= targets()


def test_the_workflow_runs_what_a_change_has_to_pass() -> None:
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    required = re.findall(r"^make ([\w=. -]*\w)", run, flags=re.MULTILINE)
    assert {target.split()[0] for target in required} <= targets()
    assert set(re.findall(r'target: "(.*?)"', workflow)) == set(required)
    assert "secrets" not in workflow
