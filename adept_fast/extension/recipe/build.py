"""The steps of a build: compile the kernels, then compile the bindings and link them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from .record import MODULE, Record, build_key, content_hash, install, source_files, sources_hash
from .toolchain import (
    BINDING_FLAGS,
    CUDA_LIBRARIES,
    KERNEL_FLAGS,
    NVCC_FLAGS,
    BuildError,
    Options,
    accepts,
    cudart_directory,
    find_compiler,
    instruction_sets,
    read_options,
)


def build(csrc: Path, out: Path, objects: Path) -> Record:
    """Build the extension and its record into ``out``; unchanged objects in ``objects`` are reused.

    Raises BuildError.
    """
    start = time.perf_counter()
    compiler = check_prerequisites(csrc)
    options = read_options()
    torch_version = _torch_version()
    sources, key = sources_hash(csrc), build_key(csrc, options)
    objects.mkdir(parents=True, exist_ok=True)
    compiled_sets = {name: flags for name, flags in instruction_sets().items() if accepts(compiler, flags)}
    linked = _compile(_cpu_jobs(csrc, compiler, compiled_sets, options), csrc, objects)
    if options.cuda_home:
        try:
            linked += _compile(_cuda_jobs(csrc, compiler, options), csrc, objects)
        except BuildError as error:
            # A sanitized build must not pass without the CUDA sources.
            if os.environ.get("ADEPT_FAST_CUDA") == "1" or options.sanitize:
                raise
            say(f"continuing without CUDA: {error}")
            options = replace(options, cuda_home=None, cuda_reason=str(error))
    with tempfile.TemporaryDirectory(dir=objects, prefix="link-") as work:
        built = _link(csrc, compiler, linked, options, Path(work))
        if sources_hash(csrc) != sources:
            raise BuildError("the sources changed while they were compiled")
        record = Record(
            file=built.name,
            key=key,
            sources=sources,
            sanitize=options.sanitize,
            cuda=options.cuda_home is not None,
            cuda_reason=options.cuda_reason,
            instruction_sets=tuple(compiled_sets),
            compiler=shlex.join(compiler),
            torch=torch_version,
        )
        install(built, record, out)
    say(f"built {out / record.file} in {time.perf_counter() - start:.1f} s")
    return record


def check_prerequisites(csrc: Path) -> tuple[str, ...]:
    """The compiler's command. Raises BuildError if it, the sources or Python's headers are missing."""
    if not (csrc / "cpu_ops.cpp").is_file():
        raise BuildError(f"{csrc} has no cpu_ops.cpp; expected the sources of the extension")
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise BuildError(f"Python's headers are missing from {headers}; python3-dev has them on Debian")
    return find_compiler()


def cuda_objects(csrc: Path, objects: Path, others: Sequence[Path] = ()) -> list[Path]:
    """The objects of the CUDA kernels as in a build, compiled if they are not in ``objects`` yet.

    ``others``: sources of a program that calls the kernels, compiled in the same way.

    Raises BuildError, also if there is no nvcc.
    """
    compiler, options = check_prerequisites(csrc), read_options()
    if options.cuda_home is None:
        raise BuildError(options.cuda_reason)
    objects.mkdir(parents=True, exist_ok=True)
    return _compile(_cuda_jobs(csrc, compiler, options, others), csrc, objects)


@dataclass(frozen=True)
class _Job:
    source: Path
    variant: str
    command: tuple[str, ...]


def _cpu_jobs(
    csrc: Path, compiler: tuple[str, ...], sets: dict[str, tuple[str, ...]], options: Options
) -> list[_Job]:
    command = (*compiler, *KERNEL_FLAGS, *options.sanitizer_flags, f"-I{csrc}", "-c")
    dispatch = csrc / "cpu" / "dispatch.cpp"
    present = [f"-DADEPT_HAS_{name.upper()}" for name in sets]
    jobs = [_Job(dispatch, "baseline", (*command, *present))]
    # The baseline first: of equal inline functions the linker keeps the first, which must run on every CPU.
    for name, flags in sets.items():
        kernels = [source for source in sorted((csrc / "cpu").glob("*.cpp")) if source != dispatch]
        jobs += [_Job(source, name, (*command, *flags, f"-DADEPT_ISA={name}")) for source in kernels]
    return jobs


def _cuda_jobs(
    csrc: Path, compiler: tuple[str, ...], options: Options, others: Sequence[Path] = ()
) -> list[_Job]:
    host = [f"-Xcompiler={flag}" for flag in options.sanitizer_flags]
    if len(compiler) == 1:  # nvcc cannot call a host compiler with arguments, such as ccache
        host += ["-ccbin", compiler[0]]
    command = (f"{options.cuda_home}/bin/nvcc", *NVCC_FLAGS, *options.architectures, *host, f"-I{csrc}", "-c")
    return [_Job(source, "cuda", command) for source in (*sorted((csrc / "cuda").glob("*.cu")), *others)]


def _compile(jobs: list[_Job], csrc: Path, directory: Path) -> list[Path]:
    """The object of each job. Raises BuildError with the first line of the first failure."""

    def run(job: _Job) -> Path:
        how = content_hash([("command", json.dumps(job.command).encode())])
        what = _hash_of_read_files(job.source, csrc)
        name = f"{job.source.stem}.{job.variant}.{how[:8]}"
        finished = directory / f"{name}.{what[:16]}.o"
        if not finished.exists():
            partial = finished.with_suffix(".partial.o")
            _run((*job.command, str(job.source), "-o", str(partial)), f"{job.source.name} ({job.variant})")
            if _hash_of_read_files(job.source, csrc) != what:
                raise BuildError(f"{job.source.name}, or what it includes, changed while it was compiled")
            for outdated in directory.glob(f"{name}.*.o"):
                if outdated != partial:
                    outdated.unlink()
            os.replace(partial, finished)
        return finished

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(run, jobs))


def _hash_of_read_files(source: Path, csrc: Path) -> str:
    return content_hash([(str(file), file.read_bytes()) for file in read_files(source, csrc)])


def read_files(source: Path, csrc: Path) -> list[Path]:
    """The files of ``csrc`` that compiling ``source`` may read, itself among them, sorted."""
    found, to_read = {source}, [source]
    while to_read:
        file = to_read.pop()
        text = file.read_text(encoding="utf-8", errors="replace")
        for directive in re.findall(r"^\s*#\s*include\s+(.*)", text, re.MULTILINE):
            if directive[0] not in '"<':  # a macro: only the compiler knows the file
                return source_files(csrc)
            name = directive[1:].partition('"' if directive[0] == '"' else ">")[0]
            # Uncompiled branches and both directories count: too many files are harmless, too few are not.
            near = {(directory / name).resolve() for directory in (csrc, file.parent)}
            new = {path for path in near if path.is_file()} - found
            found |= new
            to_read += new
    return sorted(found)


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    output = done.stdout + done.stderr
    if output.strip():
        say(f"{what}\n{output.rstrip()}")
    if done.returncode:
        first = next((line for line in output.splitlines() if "error" in line.lower()), "no message")
        raise BuildError(f"compiling {what} failed: {first.strip()}")


def _torch_version() -> str:
    try:
        import torch
    except ImportError as error:
        raise BuildError(f"no torch to build against ({error})") from error
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 11):
        raise BuildError(f"torch {torch.__version__} is too old; 2.11 or newer is needed")
    return str(torch.__version__)


def _link(csrc: Path, compiler: tuple[str, ...], linked: list[Path], options: Options, work: Path) -> Path:
    """The shared object, linked in ``work``. Raises BuildError."""
    try:
        from setuptools import Distribution
        from setuptools.errors import BaseError, CCompilerError
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        raise BuildError(f"setuptools, which torch builds extensions with, is missing ({error})") from error
    compile_flags = [*BINDING_FLAGS, f"-I{csrc}"]
    link_flags: list[str] = []
    sources = [file for file in sorted(csrc.glob("*.cpp")) if not file.name.startswith("cuda_")]
    if options.cuda_home:
        sources += sorted(csrc.glob("cuda_*.cpp"))
        compile_flags += ["-DADEPT_FAST_WITH_CUDA", f"-I{options.cuda_home}/include"]
        link_flags += [f"-L{cudart_directory(options.cuda_home)}", *CUDA_LIBRARIES]
    extension = CppExtension(
        MODULE,
        [str(source) for source in sources],
        extra_objects=[str(file) for file in linked],
        extra_compile_args=[*compile_flags, *options.sanitizer_flags],
        extra_link_args=[*link_flags, *options.sanitizer_flags],
        py_limited_api=True,
    )
    # Not the compiler that built Python, which may be missing.
    os.environ["CC"] = os.environ["CXX"] = shlex.join(compiler)
    command = BuildExtension.with_options(use_ninja=False)(Distribution({"ext_modules": [extension]}))
    command.build_lib, command.build_temp = str(work), str(work / "bindings")
    try:
        command.ensure_finalized()
        command.run()
    except (BaseError, CCompilerError, OSError, subprocess.CalledProcessError) as error:
        raise BuildError("compiling or linking the bindings failed; see the compiler's messages") from error
    return next(work.glob(f"{MODULE}.*"))


def say(message: str) -> None:
    """One line to stderr, at once."""
    sys.stderr.write(f"adept-fast: {message}\n")
    sys.stderr.flush()
