"""Compilers, their flags, and the options in the environment."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"
# GCC warns about the undefined vectors of its own intrinsics.
WARNINGS = ("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
OPTIMIZED = ("-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off")
KERNEL_FLAGS = (*OPTIMIZED, *WARNINGS, "-std=c++17")
# No -std: each torch adds the one for its headers.
STABLE_ABI = ("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030A0000")
BINDING_FLAGS = (*OPTIMIZED, "-Wall", *STABLE_ABI)
NVCC_FLAGS = ("-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden")
CUDA_LIBRARIES = ("-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL")

AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mavx2")
X86_INSTRUCTION_SETS = {"avx2": AVX2, "avx512": AVX512, "avx512_vnni": (*AVX512, "-mavx512vnni")}


class BuildError(Exception):
    """The extension cannot be built here; the message is one sentence that says why."""


@dataclass(frozen=True)
class Options:
    """The options of a build, from the environment."""

    cuda_home: Path | None
    cuda_reason: str
    architectures: tuple[str, ...]
    sanitize: str

    @property
    def sanitizer_flags(self) -> tuple[str, ...]:
        """For compiling and for linking; after the others, so that -O0 holds, which compiles fastest."""
        if not self.sanitize:
            return ()
        # One flag each: nvcc splits the flags of the host compiler at commas.
        names = [name for name in self.sanitize.split(",") if name]
        return (*(f"-fsanitize={name}" for name in names), "-fno-omit-frame-pointer", "-g1", "-O0")


def read_options() -> Options:
    """The options in the environment. Raises BuildError for an invalid or impossible one."""
    sanitize = os.environ.get("ADEPT_FAST_SANITIZE", "")
    if not re.fullmatch(r"[a-z,-]*", sanitize):
        raise BuildError(f"ADEPT_FAST_SANITIZE is {sanitize!r}; expected names such as address,undefined")
    home, reason = find_cuda()
    return Options(home, reason, gencode_flags() if home else (), sanitize)


def find_cuda() -> tuple[Path | None, str]:
    """The CUDA toolkit or None, and the reason. Raises BuildError if a required one is missing."""
    wanted = os.environ.get("ADEPT_FAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise BuildError(f"ADEPT_FAST_CUDA is {wanted!r}; expected 0 or 1")
    if wanted == "0":
        return None, "ADEPT_FAST_CUDA is 0"
    if "CUDA_HOME" in os.environ:
        candidates = [Path(os.environ["CUDA_HOME"])]
    else:
        on_path = shutil.which("nvcc")
        # nvcc on PATH may be a script that calls the real one, so the default directory is a candidate too.
        candidates = [Path(os.path.realpath(on_path)).parent.parent] if on_path else []
        candidates.append(Path("/usr/local/cuda"))
    missing = [f"{home}: {what}" for home in candidates if (what := _missing_of_cuda(home))]
    if len(missing) < len(candidates):
        home = next(home for home in candidates if not _missing_of_cuda(home))
        return home, f"nvcc of {home}"
    reason = f"no CUDA toolkit ({'; '.join(missing)})"
    if wanted == "1":
        raise BuildError(f"ADEPT_FAST_CUDA is 1, but there is {reason}")
    return None, reason


def _missing_of_cuda(home: Path) -> str:
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        if not (home / name).is_file():
            return f"no {name}"
    return "" if cudart_directory(home) else "no libcudart_static.a"


def cudart_directory(home: Path) -> Path | None:
    """The directory of the toolkit's static runtime library; None if it has none."""
    directories = [home / "lib64", home / "lib", *home.glob("targets/*/lib")]
    return next((found for found in directories if (found / "libcudart_static.a").is_file()), None)


def gencode_flags() -> tuple[str, ...]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST. Raises BuildError if it is not a list of capabilities."""
    flags = []
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or DEFAULT_ARCHITECTURES
    for architecture in re.split(r"[;,\s]+", listed.strip(" ;,")):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", architecture)
        if not match:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {architecture!r}; expected such as 8.0 or 9.0+PTX")
        number = match[1] + match[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return tuple(flags)


def find_compiler() -> tuple[str, ...]:
    """The command of the C++ compiler. Raises BuildError if there is none."""
    if named := shlex.split(os.environ.get("CXX", "")):
        found = shutil.which(named[0])
        if found is None:
            raise BuildError(f"no C++ compiler: CXX names {named[0]}, which is not there")
        return (found, *named[1:])
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    raise BuildError("no C++ compiler: neither c++ nor g++ nor clang++ is on PATH")


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The instruction sets of the CPU kernels on this kind of machine, the baseline first, with flags."""
    x86_64 = platform.machine().lower() in ("x86_64", "amd64")
    return {"portable": (), **(X86_INSTRUCTION_SETS if x86_64 else {})}


def accepts(compiler: tuple[str, ...], flags: tuple[str, ...]) -> bool:
    """Whether the compiler knows the flags."""
    # The preprocessor alone checks flags, and is fast. A broken compiler fails later.
    command = (*compiler, *flags, "-x", "c++", "-E", os.devnull, "-o", os.devnull)
    return not flags or subprocess.run(command, capture_output=True, check=False).returncode == 0
