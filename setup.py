"""Packaging entry point: metadata stands in pyproject.toml; what must be compiled is declared here."""

import importlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# The recipe without the package around it, which needs torch.
sys.path.insert(0, str(ROOT / "adept_fast" / "extension"))
recipe = importlib.import_module("recipe")


class BuildNative(build_ext):
    """Builds the extension by the recipe; where that fails, the package is installed without it."""

    def build_extensions(self):
        out = Path(self.build_lib) / "adept_fast"
        try:
            recipe.build(ROOT / "csrc", out, ROOT / "build" / "objects")
        except recipe.BuildError as error:
            if os.environ.get("ADEPT_FAST_CUDA") == "1":
                sys.exit(f"adept-fast: {error}")
            recipe.say(f"installing without the extension, to be tried again at first import: {error}")
            for outdated in out.glob(f"{recipe.MODULE}.*"):
                outdated.unlink()
            self.extensions = []

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        if self.extensions:
            shutil.copy(Path(self.build_lib) / "adept_fast" / recipe.RECORD, ROOT / "adept_fast")


class BuildPython(build_py):
    """Ships the sources of the extension inside the package, for building it at first import."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shipped = Path(self.build_lib) / "adept_fast" / "csrc"
            shutil.rmtree(shipped, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", shipped)


# A Python without its global lock has no limited API.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    ext_modules=[Extension(f"adept_fast.{recipe.MODULE}", sources=[], py_limited_api=limited)],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
