"""Finds the extension, builds it if necessary, and loads it.

The extension that an installation built is used while its sources have not changed. Otherwise it is
built once for the present sources and flags, into a directory of the user's cache.

Read from the environment, besides the recipe's variables: ADEPT_FAST_CACHE, the directory to build in
(default ``~/.cache/adept-fast``); ADEPT_FAST_BUILD, 0 to build nothing at import.

A build with sanitizers has its own directory in the cache. If there is nvcc, it has the CUDA sources too and
fails if they do; ADEPT_FAST_CUDA=0 leaves them out. AddressSanitizer must be loaded before Python, and Python
itself leaks by design::

    ADEPT_FAST_SANITIZE=address,undefined ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \\
        LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" python -m pytest
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adept_fast.extension import recipe
from adept_fast.extension.recipe import BuildError, Record

PACKAGE = Path(__file__).resolve().parent.parent
KEPT_BUILDS = 8


@dataclass(frozen=True)
class Extension:
    """Whether the extension is loaded, and the reason."""

    loaded: bool
    reason: str
    path: Path | None = None
    cuda: bool = False
    cuda_reason: str = ""
    instruction_sets: tuple[str, ...] = ()


@functools.cache
def load() -> Extension:
    """The extension, built first if necessary. Never raises: ``reason`` is the error.

    A build, or running without the extension, is reported once on stderr.
    """
    try:
        directory, record, how = _find()
        path = directory / record.file
        _load_module(path)
    except (BuildError, OSError) as error:
        recipe.say(f"running on the reference operators, which are slow: {error}")
        return Extension(False, str(error))
    return Extension(True, how, path, record.cuda, record.cuda_reason, record.instruction_sets)


def missing_for_cuda() -> str:
    """The names that CUDA kernels need from torch and that are missing; empty if none is."""
    module = sys.modules[f"adept_fast.{recipe.MODULE}"]
    missing: str = module.missing_for_cuda()
    return missing


def find_sources() -> Path | None:
    """The directory of the sources: inside an installed package, beside the package in a checkout."""
    for csrc in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (csrc / "cpu_ops.cpp").is_file():
            return csrc
    return None


def cache_directory() -> Path:
    """The directory for builds at import. Raises BuildError if the user has no home."""
    if named := os.environ.get("ADEPT_FAST_CACHE"):
        return Path(named).resolve()
    try:
        return Path.home() / ".cache" / "adept-fast"
    except RuntimeError as error:
        raise BuildError(f"no directory to build in: {error}; set ADEPT_FAST_CACHE") from error


def _find() -> tuple[Path, Record, str]:
    # Without its preloaded runtime, AddressSanitizer ends the whole process.
    sanitizers, preloaded = (os.environ.get(name, "") for name in ("ADEPT_FAST_SANITIZE", "LD_PRELOAD"))
    if "address" in sanitizers and "asan" not in preloaded:
        raise BuildError("AddressSanitizer is not preloaded: LD_PRELOAD=$(gcc -print-file-name=libasan.so)")
    csrc = find_sources()
    installed = recipe.read_record(PACKAGE)
    if installed and _is_wanted(installed, csrc):
        return PACKAGE, installed, "built when it was installed"
    if csrc is None:
        raise BuildError("the extension is not built and its sources are missing")
    key = recipe.build_key(csrc, recipe.read_options())
    directory = cache_directory() / key[:32]
    cached = _read_cached(directory, key)
    if cached is None:
        if os.environ.get("ADEPT_FAST_BUILD") == "0":
            raise BuildError("the extension is not built, and ADEPT_FAST_BUILD is 0")
        cached = _build(csrc, directory, key)
    return directory, cached, "built at first import"


def _is_wanted(record: Record, csrc: Path | None) -> bool:
    # Flags are not compared, so that nvcc on the PATH of one shell only does not cause a build.
    if csrc is not None and record.sources != recipe.sources_hash(csrc):
        return False
    cuda = os.environ.get("ADEPT_FAST_CUDA", "")
    same_cuda = cuda == "" or cuda == str(int(record.cuda))
    return same_cuda and record.sanitize == os.environ.get("ADEPT_FAST_SANITIZE", "")


def _read_cached(directory: Path, key: str) -> Record | None:
    record = recipe.read_record(directory)
    return record if record and record.key == key else None


def _build(csrc: Path, directory: Path, key: str) -> Record:
    recipe.check_prerequisites(csrc)  # before the message that building starts
    cache = directory.parent
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        if built := _read_cached(directory, key):  # by the previous holder of the lock
            return built
        partial, log = cache / "partial", cache / "build.log"
        recipe.say(f"building the extension for these sources, once, which takes minutes: {directory}")
        shutil.rmtree(partial, ignore_errors=True)
        _run_recipe(csrc, partial, cache / "objects", log)
        record = _read_cached(partial, key)
        if record is None:
            raise BuildError("the sources or the flags changed while the extension was built; start again")
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(partial, directory)
        _forget_old_builds(cache)
        return record


def _run_recipe(csrc: Path, out: Path, objects: Path, log: Path) -> None:
    paths = (f"--csrc={csrc}", f"--out={out}", f"--objects={objects}")
    # It finds the modules that this process finds. A preloaded sanitizer would report on the compiler.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": ""}
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, "-m", recipe.__name__, *paths],
            cwd=PACKAGE.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        reason = lines[-1].removeprefix("adept-fast: ") if lines else f"exit code {done.returncode}"
        raise BuildError(f"{reason} (full output: {log})")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise BuildError("building at import is not supported on this system") from error
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            recipe.say("waiting for another process that builds the extension")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock


def _forget_old_builds(cache: Path) -> None:
    builds = sorted(cache.glob(f"*/{recipe.RECORD}"), key=lambda record: record.stat().st_mtime, reverse=True)
    for record in builds[KEPT_BUILDS:]:
        shutil.rmtree(record.parent, ignore_errors=True)


def _load_module(path: Path) -> None:
    package, name = "adept_fast", recipe.MODULE
    full_name = f"{package}.{name}"
    if full_name in sys.modules:  # defining an operator twice ends the process
        raise BuildError(f"{full_name} was loaded before, from {sys.modules[full_name].__file__}")
    loader = importlib.machinery.ExtensionFileLoader(full_name, str(path))
    spec = importlib.util.spec_from_file_location(full_name, path, loader=loader)
    assert spec is not None
    import torch  # noqa: F401  (loads the libraries that the extension is linked to)

    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise BuildError(f"{path} does not load: {error}") from error
    sys.modules[full_name] = module
    setattr(sys.modules[package], name, module)
