"""The native extension: what is built anew, what is not, and what is said when it fails."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from own_process import python

import adept_fast
from adept_fast.extension import recipe
from adept_fast.extension.recipe import BuildError

PACKAGE = Path(adept_fast.__file__).resolve().parent

BINDINGS = """
#include <Python.h>
#include <torch/csrc/stable/library.h>
int adept_answer();
STABLE_TORCH_LIBRARY(adept_fast_test, library) { library.def("nothing() -> int"); }
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C"};
  PyObject* made = PyModule_Create(&definition);
  PyModule_AddIntConstant(made, "answer", adept_answer());
  return made;
}
"""
KERNEL = "namespace ADEPT_ISA { int answer() { return 42; } }\n"
DISPATCH = "namespace portable { int answer(); }\nint adept_answer() { return portable::answer(); }\n"

LOAD = (
    "from adept_fast.extension import load; e = load(); print(e.loaded, '|', e.reason, '|', e.path, sep='')"
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CUDA", "BUILD", "SANITIZE", "CACHE"):
        monkeypatch.delenv(f"ADEPT_FAST_{name}", raising=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose sources are stubs and which nobody has built."""
    root = tmp_path / "checkout"
    kept = shutil.ignore_patterns("__pycache__", "_C.*", "csrc")
    shutil.copytree(PACKAGE, root / "adept_fast", ignore=kept)
    (root / "csrc" / "cpu").mkdir(parents=True)
    (root / "csrc" / "cpu_ops.cpp").write_text(BINDINGS)
    (root / "csrc" / "cpu" / "kernel.cpp").write_text(KERNEL)
    (root / "csrc" / "cpu" / "dispatch.cpp").write_text(DISPATCH)
    return root


def start(checkout: Path, program: str = LOAD, **environment: str) -> subprocess.Popen[str]:
    ours = {
        "ADEPT_FAST_CACHE": str(checkout.parent / "cache"),
        "ADEPT_FAST_CUDA": "0",
        "PYTHONPATH": str(checkout),
    }
    return subprocess.Popen(
        [*python(), "-c", program],
        cwd=checkout.parent,
        env={**os.environ, **ours, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(checkout: Path, program: str = LOAD, **environment: str) -> tuple[str, str]:
    """What it printed, and what it said on stderr."""
    return start(checkout, program, **environment).communicate()


def toolkit(home: Path) -> Path:
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    (home / "bin" / "nvcc").chmod(stat.S_IRWXU)
    return home


def test_the_key_is_of_sources_and_flags(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csrc = checkout / "csrc"

    def key() -> str:
        return recipe.build_key(csrc, recipe.read_options())

    monkeypatch.setenv("ADEPT_FAST_CUDA", "0")
    keys = [key()]
    monkeypatch.setenv("ADEPT_FAST_SANITIZE", "undefined")
    keys.append(key())
    monkeypatch.delenv("ADEPT_FAST_SANITIZE")
    monkeypatch.delenv("ADEPT_FAST_CUDA")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda")))
    keys.append(key())
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "12.0")
    keys.append(key())
    (csrc / "cpu" / "kernel.h").write_text("#pragma once\n")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    (csrc / "cpu" / "kernel.h").unlink()
    assert key() == keys[-2]
    moved = shutil.copytree(csrc, tmp_path / "elsewhere")
    assert recipe.sources_hash(moved) == recipe.sources_hash(csrc)


def test_what_an_object_depends_on(checkout: Path) -> None:
    csrc = checkout / "csrc"
    kernel = csrc / "cpu" / "kernel.cpp"
    for name, content in (("a.h", '#include "cpu/b.h"\n'), ("b.h", '#include "a.h"\n'), ("c.h", "\n")):
        (csrc / "cpu" / name).write_text(content)
    kernel.write_text(
        '#include <vector>\n  #  include "a.h"  // both ways of naming one\n#include <cpu/none.h>\n'
    )
    assert [file.name for file in recipe.read_files(kernel, csrc)] == ["a.h", "b.h", "kernel.cpp"]
    (csrc / "cpu" / "b.h").write_text("#include ANY\n")
    assert recipe.read_files(kernel, csrc) == recipe.source_files(csrc)


def test_finding_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert recipe.find_cuda() == (home, f"nvcc of {home}")
    monkeypatch.setenv("ADEPT_FAST_CUDA", "0")
    assert recipe.find_cuda() == (None, "ADEPT_FAST_CUDA is 0")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("ADEPT_FAST_CUDA", "1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(home / "bin" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert recipe.find_cuda()[0] == home.resolve()


def test_a_toolkit_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = toolkit(tmp_path / "cuda")
    (home / "lib64" / "libcudart_static.a").unlink()
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert recipe.find_cuda() == (None, f"no CUDA toolkit ({home}: no libcudart_static.a)")
    monkeypatch.setenv("ADEPT_FAST_CUDA", "1")
    with pytest.raises(BuildError, match="ADEPT_FAST_CUDA is 1, but there is no CUDA toolkit"):
        recipe.find_cuda()
    monkeypatch.setenv("ADEPT_FAST_CUDA", "yes")
    with pytest.raises(BuildError, match="'yes'; expected 0 or 1"):
        recipe.find_cuda()


@pytest.mark.parametrize(
    ("listed", "flags"),
    [
        ("9.0", ["arch=compute_90,code=sm_90"]),
        ("8.0 9.0a", ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a"]),
        ("12.0+PTX;", ["arch=compute_120,code=sm_120", "arch=compute_120,code=compute_120"]),
    ],
)
def test_architectures(listed: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert recipe.gencode_flags() == tuple(f"-gencode={flag}" for flag in flags)


def test_architectures_by_default_and_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [flag.rpartition("=")[2] for flag in recipe.gencode_flags()]
    assert codes == ["sm_80", "sm_86", "sm_89", "sm_90", "compute_90"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(BuildError, match="'Hopper'; expected such as"):
        recipe.gencode_flags()


def test_a_sanitizer_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADEPT_FAST_SANITIZE", "address;rm")
    with pytest.raises(BuildError, match="expected names such as address,undefined"):
        recipe.read_options()


def test_each_sanitizer_is_a_flag_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvcc cuts what it hands to the host's compiler at commas."""
    monkeypatch.setenv("ADEPT_FAST_CUDA", "0")
    monkeypatch.setenv("ADEPT_FAST_SANITIZE", "address,undefined")
    flags = recipe.read_options().sanitizer_flags
    assert flags[:2] == ("-fsanitize=address", "-fsanitize=undefined")
    assert not any("," in flag for flag in flags)


def test_sanitizers_reach_what_nvcc_compiles(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if recipe.find_cuda()[0] is None:
        pytest.skip(recipe.find_cuda()[1])
    kernel = checkout / "csrc" / "cuda" / "kernel.cu"
    kernel.parent.mkdir()
    kernel.write_text("__global__ void kernel() {}\nint add(const int* a, int b) { return a[b] + b; }\n")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("ADEPT_FAST_SANITIZE", "address,undefined")
    (compiled,) = recipe.cuda_objects(checkout / "csrc", tmp_path / "objects")
    assert all(symbol in compiled.read_bytes() for symbol in (b"__asan_", b"__ubsan_"))


@pytest.mark.slow
def test_a_build_with_sanitizers_leaves_no_cuda_out(checkout: Path, tmp_path: Path) -> None:
    """Else what was not compiled would count as clean."""
    try:
        recipe.check_prerequisites(checkout / "csrc")
    except BuildError as error:
        pytest.skip(str(error))
    home = toolkit(tmp_path / "cuda")
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho 'fatal error: no such card' >&2\nexit 1\n")
    (checkout / "csrc" / "cuda").mkdir()
    (checkout / "csrc" / "cuda" / "kernel.cu").write_text("")
    printed, said = run(checkout, ADEPT_FAST_SANITIZE="undefined", ADEPT_FAST_CUDA="", CUDA_HOME=str(home))
    assert printed.startswith("False|compiling kernel.cu (cuda) failed: fatal error: no such card"), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "/nonexistent"}, "no C++ compiler: CXX names /nonexistent, which is not there"),
        ({"ADEPT_FAST_BUILD": "0"}, "the extension is not built, and ADEPT_FAST_BUILD is 0"),
        ({"ADEPT_FAST_CUDA": "2"}, "ADEPT_FAST_CUDA is '2'; expected 0 or 1"),
    ],
    ids=["no compiler", "forbidden", "mistake"],
)
def test_without_the_extension_the_package_works(
    checkout: Path, environment: dict[str, str], reason: str
) -> None:
    program = (
        f"{LOAD}; load()\n"
        "from adept_fast import Runtime\n"
        "print(Runtime.load('demo', progress=False).generate('Once', max_new_tokens=3).finish_reason)\n"
    )
    printed, said = run(checkout, program, **environment)
    assert printed == f"False|{reason}|None\nlength\n", said
    assert said == f"adept-fast: running on the reference operators, which are slow: {reason}\n"


@pytest.mark.slow
def test_without_sources_the_reason_is_said(checkout: Path) -> None:
    shutil.rmtree(checkout / "csrc")
    printed, said = run(checkout)
    assert printed == "False|the extension is not built and its sources are missing|None\n"
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_it_is_built_once_for_its_sources(checkout: Path) -> None:
    """One process builds while another waits; a third finds it; what changed is built again, or fails."""
    try:
        recipe.check_prerequisites(checkout / "csrc")
    except BuildError as error:
        pytest.skip(str(error))
    (checkout / "adept_fast" / "__init__.py").write_text("")  # which wants more operators than the stubs have
    program = f"{LOAD}; import adept_fast._C; print(adept_fast._C.answer)"
    both = [process.communicate() for process in [start(checkout, program), start(checkout, program)]]
    printed, said = run(checkout, program)
    assert said == ""
    assert printed.startswith("True|built at first import|")
    assert printed.endswith("\n42\n")
    assert {first for first, _ in both} == {printed}
    assert sum("building the extension" in second for _, second in both) == 1, both

    kernel = checkout / "csrc" / "cpu" / "kernel.cpp"
    kernel.write_text(KERNEL.replace("42", "forty_three"))
    printed_of_broken, said_of_broken = run(checkout)
    assert printed_of_broken.startswith("False|compiling kernel.cpp ("), said_of_broken
    assert "error:" in printed_of_broken
    assert "build.log" in printed_of_broken
    assert len(said_of_broken.splitlines()) == 2

    kernel.write_text(KERNEL)
    assert run(checkout, program) == (printed, "")


@pytest.mark.slow
def test_what_an_installation_built_is_used_while_its_sources_are_the_same(checkout: Path) -> None:
    csrc, package = checkout / "csrc", checkout / "adept_fast"
    file, sources = "_C.abi3.so", recipe.sources_hash(csrc)
    built = recipe.Record(file, "key", sources, "", False, "no nvcc", ("portable",), "c++", "2.11")
    (checkout / file).write_text("no shared object")
    recipe.install(checkout / file, built, package)
    printed, said = run(checkout, ADEPT_FAST_BUILD="0")
    assert printed.startswith(f"False|{package / file} does not load: ")
    assert len(said.splitlines()) == 1
    not_built = "False|the extension is not built, and ADEPT_FAST_BUILD is 0|None\n"
    assert run(checkout, ADEPT_FAST_BUILD="0", ADEPT_FAST_SANITIZE="undefined")[0] == not_built
    (csrc / "cpu" / "kernel.cpp").write_text("int other;\n")
    assert run(checkout, ADEPT_FAST_BUILD="0")[0] == not_built


def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    for content in ("", "{}", "[]", '{"instruction_sets": [], "file": "_C.abi3.so"}'):
        (tmp_path / recipe.RECORD).write_text(content)
        assert recipe.read_record(tmp_path) is None


@pytest.mark.slow
def test_asan_is_not_loaded_without_its_runtime(checkout: Path) -> None:
    """How it is loaded with it, the loader's docstring says."""
    printed, _ = run(checkout, ADEPT_FAST_SANITIZE="address", LD_PRELOAD="")
    assert printed.startswith("False|AddressSanitizer is not preloaded")
