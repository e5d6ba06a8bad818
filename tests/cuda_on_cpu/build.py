"""Compiles the CUDA sources for a CPU, with the emulator they run on.

Objects are kept by the hash of what they were made from, under build/cuda_on_cpu in a checkout, so that
nothing is compiled twice. By hand, from tests/::

    python -m cuda_on_cpu.build plain address races
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from adept_fast.extension import recipe
from adept_fast.extension.loader import find_sources
from adept_fast.extension.recipe.record import content_hash
from adept_fast.extension.recipe.toolchain import STABLE_ABI

HERE = Path(__file__).resolve().parent
COMPILERS_AT_ONCE = 2

Kind = Literal["plain", "address", "races"]


@dataclass(frozen=True)
class Flags:
    """How one kind of build is compiled."""

    all: tuple[str, ...]
    kernels: tuple[str, ...] = ()
    link: tuple[str, ...] = ()


SANITIZERS = "-fsanitize=address,undefined"
FLAGS: dict[Kind, Flags] = {
    "plain": Flags(("-O3",)),
    "address": Flags(
        ("-O1", SANITIZERS, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"), link=(SANITIZERS,)
    ),
    # Each access of a kernel calls a function of ThreadSanitizer's; runtime/races.cpp has others for it.
    "races": Flags(
        ("-O1", "-DCUDA_ON_CPU_RACES"),
        kernels=("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
    ),
}
COMMON = ("-std=c++20", "-fPIC", "-g1", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra")
# What a kernel file is full of and nvcc does not mind.
QUIET = ("-Wno-unknown-pragmas", "-Wno-unused-function")


class UnavailableError(Exception):
    """The emulator cannot be built here; the message is one sentence that says why."""


@dataclass(frozen=True)
class Toolchain:
    """What there is to build with."""

    compiler: str
    csrc: Path
    cuda_includes: tuple[Path, ...]

    @property
    def build(self) -> Path:
        """Where everything that is built goes."""
        return self.csrc.parent / "build" / "cuda_on_cpu"

    @property
    def includes(self) -> tuple[str, ...]:
        """The shadows come first, so that they stand in for the headers they are twins of."""
        ours = (HERE / "shadow", HERE, self.csrc)
        return (*(f"-I{place}" for place in ours), *(f"-isystem{place}" for place in self.cuda_includes))


@functools.cache
def find_toolchain() -> Toolchain:
    """The compiler, the sources and CUDA's headers. Raises UnavailableError."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform != "linux":
        raise UnavailableError("the emulator's fibers are written for x86-64 and Linux")
    compiler = shutil.which("g++")
    if compiler is None:
        raise UnavailableError("no g++")
    csrc = find_sources()
    if csrc is None:
        raise UnavailableError("the sources of the extension are not here")
    return Toolchain(compiler, csrc, _cuda_headers())


def _cuda_headers() -> tuple[Path, ...]:
    """Of a toolkit, or of the packages nvidia-cuda-runtime, -crt (-nvcc in CUDA 12) and -cccl."""
    home, reason = recipe.find_cuda()
    if home:
        return (home / "include",)
    wanted = ("cuda_runtime.h", "cuda_fp8.h", "crt/host_defines.h", "nv/target")
    places = dict.fromkeys(place for name in wanted for place in _places_of_header(name))
    if all(any((place / name).is_file() for place in places) for name in wanted):
        return tuple(places)
    raise UnavailableError(f"no CUDA headers: {reason}, and no packages that bring them")


def _places_of_header(name: str) -> list[Path]:
    found = []
    for package in metadata.distributions():
        if (package.metadata["Name"] or "").lower().replace("_", "-").startswith("nvidia-cuda-"):
            files = [file for file in package.files or [] if file.as_posix().endswith(f"include/{name}")]
            found += [Path(str(file.locate())).parents[name.count("/")] for file in files]
    return found


@dataclass(frozen=True)
class _Object:
    source: Path
    command: tuple[str, ...]
    key: str
    suffix: str = "o"

    def file(self, directory: Path) -> Path:
        return directory / f"{self.source.stem}.{self.key[:24]}.{self.suffix}"


def build_operators(kind: Kind) -> Path:
    """The library of all operators. Raises UnavailableError, or RuntimeError with what the compiler says."""
    tools = find_toolchain()
    kernels = sorted((tools.csrc / "cuda").glob("*.cu"))
    # All but the one that registers them for torch's CUDA.
    sources = sorted(set(tools.csrc.glob("cuda_*.cpp")) - {tools.csrc / "cuda_register.cpp"})
    bindings = [*(_bindings(tools.build, source) for source in sources), HERE / "operators.cpp"]
    objects = [
        _runtime_object(tools, kind),
        *(_binding_object(tools, kind, source) for source in bindings),
        *(_kernel_object(tools, kind, source) for source in kernels),
    ]
    return _link(tools, kind, "operators", objects, ("-shared", "-Wl,-z,defs", *_torch_libraries()))


def build_program(kind: Kind, name: str, sources: Sequence[Path]) -> Path:
    """A program of .cu files, of which one has a main."""
    tools = find_toolchain()
    objects = [_kernel_object(tools, kind, source) for source in sources]
    return _link(tools, kind, name, [_runtime_object(tools, kind), *objects], ("-pie",))


def _bindings(build: Path, source: Path) -> Path:
    # A quoted include is looked for beside the file first, where the shadows would come too late.
    link = build / "sources" / source.name
    if not link.is_symlink() or link.resolve() != source:
        link.parent.mkdir(parents=True, exist_ok=True)
        partial = link.with_suffix(f".{os.getpid()}")
        partial.symlink_to(source)
        os.replace(partial, link)
    return link


def _object(tools: Toolchain, source: Path, flags: Sequence[str], headers: bytes) -> _Object:
    command = (tools.compiler, *COMMON, *QUIET, *tools.includes, *flags)
    read = [(str(file), file.read_bytes()) for file in recipe.read_files(source.resolve(), tools.csrc)]
    made_from = [("command", json.dumps(command).encode()), ("headers", headers), *read]
    return _Object(source, command, content_hash(made_from))


@functools.cache
def _emulator_headers() -> bytes:
    files = sorted(file for file in HERE.rglob("*") if file.suffix in (".h", ".cuh"))
    return content_hash([(str(file), file.read_bytes()) for file in files]).encode()


def _kernel_object(tools: Toolchain, kind: Kind, source: Path) -> _Object:
    # In front of a file that is named C++, a C++ compiler takes CUDA.
    header = _header_object(tools, kind).file(tools.build / kind).with_suffix("")
    flags = (*FLAGS[kind].all, *FLAGS[kind].kernels, "-include", str(header), "-x", "c++")
    return _object(tools, source, flags, _emulator_headers())


def _header_object(tools: Toolchain, kind: Kind) -> _Object:
    """What stands in front of every kernel, precompiled: most kernels are shorter than the toolkit's."""
    flags = (*FLAGS[kind].all, *FLAGS[kind].kernels, "-x", "c++-header")
    return replace(_object(tools, HERE / "cuda_on_cpu.h", flags, _emulator_headers()), suffix="h.gch")


def _runtime_object(tools: Toolchain, kind: Kind) -> _Object:
    """All of the emulator at once: more than half of compiling its files is reading the same headers."""
    source = tools.build / "sources" / "runtime.cpp"
    text = "".join(f'#include "{file}"\n' for file in sorted((HERE / "runtime").glob("*.cpp")))
    if not source.is_file() or source.read_text(encoding="utf-8") != text:
        source.parent.mkdir(parents=True, exist_ok=True)
        partial = source.with_suffix(f".{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, source)
    return _object(tools, source, FLAGS[kind].all, _emulator_headers())


def _binding_object(tools: Toolchain, kind: Kind, source: Path) -> _Object:
    import torch
    from torch.utils.cpp_extension import include_paths

    torch_headers = [part for path in include_paths() for part in ("-isystem", path)]
    headers = _emulator_headers() + torch.__version__.encode()
    return _object(tools, source, (*FLAGS[kind].all, *STABLE_ABI, *torch_headers), headers)


def _torch_libraries() -> tuple[str, ...]:
    from torch.utils.cpp_extension import library_paths

    return (*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10")


def _compile(objects: Sequence[_Object], directory: Path) -> list[Path]:
    def compile_one(item: _Object) -> Path:
        finished = item.file(directory)
        if not finished.exists():
            partial = finished.with_suffix(f".{os.getpid()}.o")
            _run((*item.command, "-c", str(item.source), "-o", str(partial)))
            os.replace(partial, finished)
        return finished

    with ThreadPoolExecutor(COMPILERS_AT_ONCE) as pool:
        return list(pool.map(compile_one, objects))


def _link(tools: Toolchain, kind: Kind, name: str, objects: Sequence[_Object], flags: Sequence[str]) -> Path:
    # Kernels come last: of an inline function of std that several objects hold, the linker keeps the first,
    # and the runtime must not call one that is checked as if it were a kernel's.
    directory = tools.build / kind
    directory.mkdir(parents=True, exist_ok=True)
    with (tools.build / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed: of several processes of tests, one compiles
        _compile([_header_object(tools, kind)], directory)
        files = _compile(objects, directory)
        command = (tools.compiler, *FLAGS[kind].link, *map(str, files), *flags)
        linked = directory / f"{name}.{content_hash([('command', json.dumps(command).encode())])[:24]}.so"
        if not linked.exists():
            partial = linked.with_suffix(f".{os.getpid()}.so")
            _run((*command, "-o", str(partial)))
            os.replace(partial, linked)
            _forget_outdated(directory)
        return linked


def _forget_outdated(directory: Path) -> None:
    """The files that were built longest ago; precompiled headers are large."""
    for pattern, kept in (("*.gch", 2), ("*", 200)):
        files = sorted(directory.glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[kept:]:
            file.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        raise RuntimeError("\n".join(errors[:20] or [done.stderr[-2000:]]))


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("plain",):
        sys.stdout.write(f"{build_operators(wanted)}\n")  # type: ignore[arg-type]
