"""The extension finds torch's function for the current stream, which it is not linked to.

In processes of their own: a library stands in for torch's, loaded as torch loads it, locally.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from own_process import run_python

from adept_fast import extension

pytestmark = pytest.mark.slow

FUNCTION = "aoti_torch_get_current_cuda_stream"
REPORT = """
import ctypes, sys
if len(sys.argv) > 1:
    library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_LOCAL)
from adept_fast import extension
assert extension.load().loaded
from adept_fast import _C
print(_C.missing_for_cuda())
"""

pytestmark = [
    pytest.mark.skipif(not extension.load().cuda, reason="the extension is built without CUDA"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch brings the library itself"),
]


def report(*arguments: str) -> str:
    """What a new process is missing, by the extension itself."""
    done = run_python(REPORT, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def library(directory: Path, function: str) -> str:
    """A libtorch_cuda.so with that function."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    source, built = directory / "double.cpp", directory / "libtorch_cuda.so"
    source.write_text(f'extern "C" int {function}(int, void** stream) {{ *stream = nullptr; return 0; }}\n')
    options = ("-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", str(source), "-o", str(built))
    subprocess.run([compiler, *options], check=True)
    return str(built)


def test_it_is_found_in_a_library_that_is_loaded_locally(tmp_path: Path) -> None:
    assert report(library(tmp_path, FUNCTION)) == ""


def test_a_library_without_it_is_named(tmp_path: Path) -> None:
    assert report(library(tmp_path, "another")) == f"libtorch_cuda.so has no function {FUNCTION}"


def test_a_torch_without_cuda_is_named() -> None:
    assert report() == "this torch has no CUDA: libtorch_cuda.so is not loaded"
