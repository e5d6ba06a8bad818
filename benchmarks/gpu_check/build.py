"""Builds what ``python -m benchmarks gpu-check`` runs, for one GPU's architecture; needs no GPU.

    python -m benchmarks.gpu_check.build --architecture 90            # both, or: make gpu-build ARCH=90
    python -m benchmarks.gpu_check.build --architecture 90 --step     # the program alone: make step ARCH=90

The extension goes to ``adept_fast``, and is used as long as its sources are the same; the program
of ``benchmarks/step`` to ``build/step``. Both hold the CUDA runtime, so that they can be carried to a machine
without a toolkit. The kernels are compiled once for both; nvcc is found as for every build.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from adept_fast.extension import recipe

ROOT = Path(__file__).resolve().parents[2]

CSRC, OBJECTS, PROGRAM = ROOT / "csrc", ROOT / "build" / "objects", ROOT / "build" / "step"


def main() -> int:
    """Build; the exit code is 1 if that failed, its reason the last line."""
    parser = argparse.ArgumentParser(description="Build the extension and the step program for a GPU.")
    parser.add_argument("--architecture", default="", help="such as 90, or 9.0; by default of the GPU here")
    parser.add_argument("--step", action="store_true", help="the step program alone")
    arguments = parser.parse_args()
    try:
        os.environ["TORCH_CUDA_ARCH_LIST"] = capability_of(arguments.architecture or architecture_here())
        os.environ["ADEPT_FAST_CUDA"] = "1"
        build_step(PROGRAM)
        recipe.say(f"built {PROGRAM.relative_to(ROOT)}")
        if not arguments.step:
            recipe.build(CSRC, ROOT / "adept_fast", OBJECTS)
    except recipe.BuildError as error:
        recipe.say(str(error))
        return 1
    return 0


def capability_of(architecture: str) -> str:
    """``90`` → ``9.0``. Raises BuildError."""
    match = re.fullmatch(r"(\d+)\.?(\d[af]?)", architecture)
    if match is None:
        raise recipe.BuildError(f"the architecture is {architecture!r}; expected such as 90, or 9.0")
    return f"{match[1]}.{match[2]}"


def architecture_here() -> str:
    """Of the first GPU of this machine. Raises BuildError."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--id=0", "--query-gpu=compute_cap", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    raise recipe.BuildError("there is no GPU here whose architecture to build for; name one, such as ARCH=90")


def step_sources() -> list[Path]:
    """Of the program alone; the kernels are csrc's."""
    return sorted(file for file in (ROOT / "benchmarks" / "step").iterdir() if file.suffix in (".cpp", ".cu"))


def build_step(program: Path) -> None:
    """The step program, for the architectures of TORCH_CUDA_ARCH_LIST. Raises BuildError."""
    objects = recipe.cuda_objects(CSRC, OBJECTS, step_sources())
    home, _ = recipe.find_cuda()
    partial = program.with_suffix(".partial")
    # The C++ library goes into it too: that of the machine it is carried to may be older.
    link = [f"{home}/bin/nvcc", *recipe.gencode_flags(), "-cudart=static", "-Xcompiler=-static-libstdc++"]
    done = subprocess.run(
        [*link, *map(str, objects), "-o", str(partial)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise recipe.BuildError(f"linking {program.name} failed: {(done.stderr or done.stdout).strip()}")
    os.replace(partial, program)


if __name__ == "__main__":
    sys.exit(main())
