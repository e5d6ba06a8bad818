"""The benchmark ``compare``: each tree runs its own adept_fast, in turn; a slower commit gives over 1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.cases import compare
from benchmarks.cases.compare import THIS, Tree
from benchmarks.options import Arguments
from benchmarks.samples import Limits
from benchmarks.workers import ROOT, Variant, Worker, WorkerError

INT8 = Variant.parse("adept-fast:int8")
PACKAGE = "__version__ = 'planted'\nextension = Runtime = None\n"


def tree(folder: Path, packages: Path) -> Tree:
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return Tree("other", packages, folder)


def test_a_tree_runs_its_own_package(tmp_path: Path) -> None:
    """Even if its checkout has benchmarks of its own."""
    other, folder = tmp_path / "other", tmp_path / "folder"
    for name, text in {"adept_fast": PACKAGE, "benchmarks": "raise AssertionError"}.items():
        (other / name).mkdir(parents=True)
        (other / name / "__init__.py").write_text(text, encoding="utf-8")
    folder.mkdir()
    worker = tree(folder, other).worker(INT8, 1)
    assert worker.call("hello")["versions"]["adept-fast"] == "planted"
    worker.close()


def test_a_tree_without_its_package_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"was imported from|ended during hello"):
        tree(tmp_path, tmp_path / "empty").worker(INT8, 1)


def test_the_trees_take_turns_and_the_ratio_is_the_others_time_over_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, str]] = []
    seconds = {THIS: 0.25, "0123abc": 0.5}

    class FakeWorker(Worker):
        def __init__(self, name: str) -> None:
            self.name, self.variant = name, INT8

        @property
        def pid(self) -> int:
            return id(self)

        def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
            calls.append((self.name, operation))
            return {"seconds": seconds[self.name] * arguments.get("steps", 1), "without_extension": ""}

        def close(self) -> None:
            calls.append((self.name, "close"))

    class FakeProbe:
        def __init__(self, device: object) -> None: ...

        def measure(self) -> float:
            return 100.0

    monkeypatch.setattr(Tree, "worker", lambda self, variant, threads: FakeWorker(self.name))
    monkeypatch.setattr("benchmarks.samples.BandwidthProbe", FakeProbe)
    monkeypatch.setattr("benchmarks.samples.CpuTime.now", lambda pids: compare_no_time)
    report: dict[str, Any] = {"measured": {}, "times_as_fast": {}}
    arguments = Arguments(3, 1, Limits(others_share=9.0), None)
    trees = [Tree(name, tmp_path, tmp_path) for name in seconds]
    compare.compare(arguments, trees, tmp_path, INT8, report)
    assert report["times_as_fast"].keys() == {
        f"adept-fast:int8 {measure}" for measure in (*compare.MEASURES, compare.LOAD)
    }
    for measure in compare.MEASURES:
        found = report["times_as_fast"][f"adept-fast:int8 {measure}"]
        assert found["speedup"] == {"median": 2.0, "p10": 2.0, "p90": 2.0}
        assert found["rounds"] == 3
    order = [name for name, operation in calls if operation == "prefill"]
    assert order.count(THIS) == order.count("0123abc")
    assert report["measured"]["adept-fast:int8 batch of 4, this tree"]["tokens_per_second"]["median"] == 16.0
    # Each start is a process that is ended, besides the two that decode.
    assert [operation for _, operation in calls].count("close") == 2 + 2 * (3 + 1)


class NoTime:
    def others_share_since(self, before: object) -> float:
        return 0.0


compare_no_time = NoTime()


def test_a_tree_without_its_extension_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would run in plain PyTorch, and be slower for that alone."""
    worker = SimpleNamespace(
        facts={"without_extension": "no compiler"}, load=lambda *_, **__: None, close=lambda: None
    )
    monkeypatch.setattr(Tree, "worker", lambda self, variant, threads: worker)
    with pytest.raises(WorkerError, match="0123abc has no extension: no compiler"):
        Tree("0123abc", tmp_path, tmp_path).loaded_worker(tmp_path, INT8, 1)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="commits are of a clone")
def test_a_commit_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(compare.main, ["--against", "no-such-commit"])
    assert result.exit_code == 2
    assert "--against is 'no-such-commit'; expected a commit of this repository" in result.output


@pytest.mark.parametrize("module", ["llama_cpp", "openvino"])
def test_a_baseline_in_its_own_environment_needs_neither_torch_nor_ours(module: str, tmp_path: Path) -> None:
    program = (
        "import runpy, sys; sys.modules.update(torch=None, adept_fast=None)\n"
        f"runpy.run_module('benchmarks.baselines.{module}', run_name='imported')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
