"""Packaging entry point: metadata stands in pyproject.toml; what must be compiled is declared here."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODULE = "_C"


class BuildExtension(build_ext):
    """Builds the extension by its recipe; if that fails, the package is installed without it."""

    def build_extensions(self):
        out = Path(self.build_lib).resolve() / "adept_fast"
        command = [sys.executable, "-m", "adept_fast.extension.recipe", f"--out={out}"]
        if subprocess.run(command, cwd=ROOT, env=environment_with_torch(), check=False).returncode == 0:
            return
        if os.environ.get("ADEPT_FAST_CUDA") == "1":
            sys.exit("adept-fast: the extension cannot be built with CUDA; the reason is above")
        self.warn("adept-fast is installed without the extension, which the first import will try to build")
        for outdated in out.glob(f"{MODULE}.*"):
            outdated.unlink()
        self.extensions = []

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        if self.extensions:
            shutil.copy(Path(self.build_lib) / "adept_fast" / f"{MODULE}.build.json", ROOT / "adept_fast")


class BuildPython(build_py):
    """Ships the sources of the extension inside the package, for building it at first import."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shipped = Path(self.build_lib) / "adept_fast" / "csrc"
            shutil.rmtree(shipped, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", shipped)


def environment_with_torch():
    """The variables of a process that finds the torch that is installed.

    An isolated build finds only its requirements. If torch were one of them, each installation would download
    a second torch and compile against it. So the recipe runs without the variables by which pip isolates. A
    tool that isolates by another environment has no torch there; the extension is then built at first import.
    """
    isolation = () if importlib.util.find_spec("torch") else ("PYTHONPATH", "PYTHONNOUSERSITE")
    return {name: value for name, value in os.environ.items() if name not in isolation}


# A Python without its global lock has no limited API.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    ext_modules=[Extension(f"adept_fast.{MODULE}", sources=[], py_limited_api=limited)],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
