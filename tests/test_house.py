"""The shape of the package: imports point down one list, files are short, nothing optional is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adept_fast

PACKAGE = Path(adept_fast.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import those of its own line and of the lines below it.
ORDER = [
    ["cli"],
    ["commands", "integrations"],
    ["runtime", "modeling"],
    ["decode_loop"],
    ["scoring", "sequence", "text_stream", "stats"],
    ["loading"],
    ["placement"],
    ["memory"],
    ["memory_plan"],
    ["working_memory"],
    ["model"],
    ["graphs", "decode_state", "bandwidth"],
    ["sampling", "stopping"],
    ["ops"],
    ["kv_cache", "weights"],
    ["quantize_wide"],
    ["checkpoint"],
    [
        "tokenizer",
        "config",
        "quantize",
        "chat",
        "extension",
        "huge_pages",
        "mapped_files",
        "speculation",
    ],
    ["regular_file"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "adept_fast":
            names |= {f"adept_fast.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    rooms = {name.split(".")[1] for name in names if name.startswith("adept_fast.")}
    return rooms & RANK.keys()  # adept_fast.__version__ is no room


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    if room(file) in ("__init__", "__main__"):
        return
    assert room(file) in RANK, "a new room needs a place in ORDER"
    for other in imported_rooms(file):
        assert RANK[room(file)] <= RANK[other], f"{room(file)} imports {other}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_is_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name


def test_it_runs_without_what_only_tests_need() -> None:
    absent = ("transformers", "tokenizers", "scipy", "pytest", "hypothesis", "pandas", "lm_eval", "datasets")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from adept_fast import Runtime\n"
        "print(Runtime.load('demo', progress=False).generate('Once', max_new_tokens=3).finish_reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("length\n", 0), done.stderr
