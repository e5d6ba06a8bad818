"""The shape of the package: imports point down one list, files are short, nothing optional is needed."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from own_process import run_python

import adept_fast

PACKAGE = Path(adept_fast.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOT = Path(__file__).resolve().parents[2]
OTHERS = [
    file for folder in ("benchmarks", "tests", "tools") for file in sorted((ROOT / folder).rglob("*.py"))
]

# A module may import those of its own line and of the lines below it.
ORDER = [
    ["commands"],
    ["modeling"],
    ["integrations"],
    ["server"],
    ["engine"],
    ["memory"],
    ["model"],
    ["sampling"],
    ["ops"],
    ["kv_cache", "weights"],
    ["checkpoint"],
    ["quantization"],
    ["tokenizer"],
    ["chat", "config", "extension"],
    ["arguments"],
    ["choices", "system"],
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


def test_rooms_are_few_and_loosely_tied() -> None:
    """Fewer than 94 arrows, none of which points up or to a room of the same floor: so there is no circle."""
    arrows = {(room(file), other) for file in FILES for other in imported_rooms(file)}
    arrows = {(above, below) for above, below in arrows if above != below and above in RANK}
    assert len(RANK) <= 20
    assert len(arrows) < 94
    assert [arrow for arrow in arrows if RANK[arrow[0]] >= RANK[arrow[1]]] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    if room(file) in ("__init__", "__main__"):
        return
    assert room(file) in RANK, "a new room needs a place in ORDER"
    for other in imported_rooms(file):
        assert RANK[room(file)] <= RANK[other], f"{room(file)} imports {other}"


@pytest.mark.parametrize("file", [*FILES, *OTHERS], ids=lambda file: "/".join(file.parts[-3:]))
def test_a_file_is_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name


def test_no_file_edits_the_path_of_modules() -> None:
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in files.stdout.split()}
    edit = re.compile(r"\bsys\.path(\[[^]]*\])? *(\+?=[^=]|\.(append|extend|insert)\()|\baddsitedir\(")
    # An interpreter sets the path, and so does what stands in for one.
    assert [name for name, text in texts.items() if edit.search(text)] == ["tests/forked_python.py"]


# What torch would make on its default device, and in its default dtype, which a user may have set.
CREATED = ("empty", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
CREATED_OF_ONE_DTYPE = ("arange", "as_tensor", "eye", "randint", "randperm")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_tensors_are_made_on_a_device_and_in_a_dtype_that_are_named(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        is_call = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.")
        if not is_call or not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        if name.removeprefix("torch.") in (*CREATED, *CREATED_OF_ONE_DTYPE):
            assert "device" in given, f"line {node.lineno}: {name} has no device"
        if name.removeprefix("torch.") in CREATED:
            assert "dtype" in given, f"line {node.lineno}: {name} has no dtype"


@pytest.mark.slow
def test_it_runs_without_what_only_tests_need() -> None:
    absent = ("transformers", "tokenizers", "scipy", "pytest", "hypothesis", "pandas", "lm_eval", "datasets")
    absent += ("huggingface_hub", "fastapi", "starlette", "uvicorn", "prometheus_client", "httpx", "openai")
    absent += ("ray",)
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from adept_fast import Runtime\n"
        "print(Runtime.load('demo', progress=False).generate('Once', max_new_tokens=3).finish_reason)\n"
    )
    done = run_python(program)
    assert (done.stdout, done.returncode) == ("length\n", 0), done.stderr
