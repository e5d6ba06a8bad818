"""Runs the benchmarks that the README shows, one after the other, and rewrites it.

    python -m benchmarks suite             # the short form: under five minutes on two cores
    python -m benchmarks suite --full --model-folder FOLDER --python llama.cpp=PATH

Results belong to a commit. On a tree without uncommitted changes they go to ``benchmarks/results/DEVICE``
when all have been measured, and the README and its plots are rewritten; else they go to a temporary folder,
and the README stays. On a GPU (``--device cuda``) other programs run than on a CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.machine import device_name, results_folder
from benchmarks.models import random_model
from benchmarks.options import PYTHON, choose_device, device_option
from benchmarks.result_file import git, has_uncommitted_changes
from benchmarks.workers import ROOT, environment

OURS = "adept-fast:float16 adept-fast:bfloat16 adept-fast:int8 adept-fast:int4"
LLAMA_CPP = "llama.cpp:F16 llama.cpp:BF16 llama.cpp:Q8_0 llama.cpp:Q4_0"
BASELINES = f"{LLAMA_CPP} openvino:float16 eager:bfloat16 transformers:bfloat16"
COMPILED = "eager-compiled:bfloat16 transformers-compiled:bfloat16"  # compiling takes a minute
STARTED = f"{OURS} transformers:bfloat16 llama.cpp:F16 llama.cpp:Q4_0"
OURS_ON_CUDA = "adept-fast:float16 adept-fast:fp8 adept-fast:int4"
BASELINES_ON_CUDA = "eager:float16 transformers:float16"


@dataclass(frozen=True)
class Run:
    """A case, the result it writes, its options, its random model (preset and zeros) and its runtimes."""

    program: str
    result: str
    options: str
    model: tuple[str, float] | None = None
    runtimes: str = ""

    @property
    def arguments(self) -> list[str]:
        named = [part for name in self.runtimes.split() for part in ("--runtime", name)]
        return [*self.options.split(), *named]

    @property
    def takes_baselines(self) -> bool:
        """Whether some of its runtimes may be installed elsewhere."""
        return self.model is not None and bool(self.runtimes)


SMALL, MIDDLE, MIDDLE_90 = ("small", 0.5), ("0.7g", 0.5), ("0.7g", 0.9)
DEMO = Run("demo", "demo", "--samples 9")
SHORT = (
    DEMO,
    Run("decode", "decode-small", "--steps 32 --samples 5 --attempts 2", SMALL, f"{OURS} {BASELINES}"),
    Run(
        "scaling",
        "scaling-small",
        "--layers 4,8,12 --hidden 256,512,1024 --context 64,1024,2048 --batch 1,2,4 "
        "--zeros 0,0.5,0.9,0.95 --samples 5 --attempts 2",
    ),
)
LONG_STEPS = "--samples 7 --steps 16 --longest-sample 1.0"
EVERYONE = f"{OURS} {BASELINES} {COMPILED}"
FULL = (
    DEMO,
    Run("decode", "decode-small", "--steps 96 --samples 9", SMALL, EVERYONE),
    Run("decode", "decode-0.7g", f"{LONG_STEPS} --attempts 4", MIDDLE, EVERYONE),
    Run(
        "decode",
        "decode-0.7g-90",
        LONG_STEPS,
        MIDDLE_90,
        "adept-fast:float16 adept-fast:bfloat16 llama.cpp:F16 llama.cpp:BF16",
    ),
    Run("batch", "batch-0.7g", "--samples 5", MIDDLE),
    Run(
        "prefill",
        "prefill-0.7g",
        "--samples 5 --attempts 2 --max-bandwidth-change 9 "
        "--prompt-tokens 128 --prompt-tokens 512 --prompt-tokens 2048",
        MIDDLE,
        f"{OURS} transformers:bfloat16",
    ),
    Run("load", "load-0.7g", "--samples 5 --attempts 2", MIDDLE, STARTED),
    Run("memory", "memory-0.7g", "--samples 3", MIDDLE, STARTED),
    Run("scaling", "scaling-small", "--samples 7 --format float16 --format int8"),
    Run("operators", "operators-8b", "--model 8b --samples 7 --attempts 3"),
    Run("quality", "quality", "--every 7"),
)
ON_8B = (
    "--device cuda --model 8b --samples 5 --batch 1 --batch 4 --batch 16 "
    "--context 128 --context 2048 --context 16384"
)
GPU_SHORT = (
    Run("decode", "decode-small", "--device cuda --model small --zeros 0,50,90,95 --samples 5"),
    Run("operators", "operators-small", "--device cuda --model small --samples 5"),
)
GPU_FULL = (
    # All runtimes in the best setting of each; ours, and baselines that need no compiling, in all settings.
    Run(
        "decode",
        "decode-8b",
        "--device cuda --model 8b --zeros 0,50,90,95 --batch 1 --context 128 --steps 64 --samples 5",
    ),
    Run("decode", "decode-8b-settings", f"{ON_8B} --zeros 0,90", runtimes=OURS_ON_CUDA),
    Run("decode", "decode-8b-rivals", f"{ON_8B} --zeros 0", runtimes=BASELINES_ON_CUDA),
    Run("operators", "operators-8b", "--device cuda --model 8b --tokens 1 --tokens 4 --tokens 16"),
    Run(
        "prefill",
        "prefill-0.7g",
        "--device cuda --samples 5 --prompt-tokens 128 --prompt-tokens 2048 --prompt-tokens 16384",
        MIDDLE,
        f"{OURS_ON_CUDA} {BASELINES_ON_CUDA}",
    ),
)


@click.command()
@click.option("--full", is_flag=True, help="All of them, on larger models.")
@device_option("auto")
@click.option("--only", multiple=True, metavar="RESULT", help="Of them only this one; several times.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: one for each core]")
@click.option(
    "--model-folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where random models, and what baselines convert them to, are kept.  [default: nowhere]",
)
@PYTHON
@click.option("--dry-run", is_flag=True, help="Print the commands.")
def main(
    full: bool,
    device: str,
    only: tuple[str, ...],
    threads: int | None,
    model_folder: Path | None,
    pythons: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Measure, and bring the README up to date."""
    place = choose_device(device)
    runs = {("cpu", False): SHORT, ("cpu", True): FULL, ("cuda", False): GPU_SHORT, ("cuda", True): GPU_FULL}
    offered = runs[place.type, full]
    chosen = [run for run in offered if not only or run.result in only]
    unknown = set(only) - {run.result for run in chosen}
    if unknown:
        known = ", ".join(run.result for run in offered)
        raise click.BadParameter(f"--only is {', '.join(sorted(unknown))}; expected one of {known}")
    threads = threads or os.cpu_count() or 1
    reason = why_no_result()
    cores = os.cpu_count() if place.type == "cpu" else None
    folder = ROOT / "benchmarks" / "results" / results_folder(device_name(place), cores)
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(tempfile.mkdtemp(prefix="adept-fast-results-"))
        failed: list[str] = []
        for run in chosen:
            models = (model_folder or Path(temporary)).resolve()
            command = command_of(run, models, output, threads, pythons)
            click.echo(f"$ python {' '.join(command[1:])}", err=True)
            if dry_run:
                continue
            if run.model:
                random_model(*run.model, models)
            began = time.monotonic()
            done = subprocess.run(command, check=False, cwd=ROOT, env=os.environ | environment())
            failed += [run.result] if done.returncode else []
            click.echo(f"{run.result}: {time.monotonic() - began:.0f} s\n")
    if dry_run:
        output.rmdir()
    elif reason:
        click.echo(f"{reason}: the results are in {output}, and not in the README")
    else:
        keep(output, folder)
    if failed:
        raise click.ClickException(f"of the rest there is no result: {', '.join(failed)} failed")


def command_of(run: Run, models: Path, output: Path, threads: int, pythons: tuple[str, ...]) -> list[str]:
    command = [sys.executable, "-m", "benchmarks", run.program]
    if run.program == "decode" and "--device" not in run.options:
        command += ["--device", "cpu"]
    if run.model:
        preset, zeros = run.model
        command += ["--checkpoint", str(models / f"{preset}-{100 * zeros:g}")]
    if run.program == "scaling":  # which takes several numbers of threads
        command += ["--threads", ",".join(map(str, sorted({1, threads})))]
    else:
        command += ["--threads", str(threads)]
    if run.takes_baselines:
        command += [part for python in pythons for part in ("--python", python)]
    return [*command, *run.arguments, "--output", str(output / f"{run.result}.json")]


def why_no_result() -> str:
    """Why a measurement now is no result; empty if it is one."""
    if not git("rev-parse", "HEAD"):
        return "this is no checkout of git, so there is no commit to name"
    return "the tree has uncommitted changes" if has_uncommitted_changes() else ""


def keep(output: Path, folder: Path) -> None:
    """Move the results to their folder, and rewrite the README with them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(output.iterdir()):
        shutil.move(file, folder / file.name)
    output.rmdir()
    command = [sys.executable, "-m", "benchmarks", "readme", "--device", folder.name]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | environment())
