"""Tests and times the CUDA operators on this machine's GPU in less than five minutes, without a network.

    make gpu-build ARCH=90        # on a machine with nvcc, which needs no GPU
    make gpu-check                # on the machine with the GPU; gpu-baselines measures the others
    make gpu-check ARGS=--layouts # times steps in each layout of the matrices

Between the two, the checkout is carried along with what the first made, which git ignores:
``adept_fast/_C.abi3.so``, ``adept_fast/_C.build.json`` and ``build/step``. The check uses that extension
if its sources are those of the checkout and its kernels run on the GPU. If there is none, it builds
first, which needs nvcc and takes minutes more.

Every stage has a limit of time, and the result file is written anew after each: a run that is stopped keeps
what it has. Figures are judged by their lower bound: the bytes that have to be moved, at the read bandwidth
that was measured in the same run.

Exits with 0 if everything passed, 1 if something failed, 2 without a GPU.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
import torch

from benchmarks.gpu_check.extension import find_extension
from benchmarks.gpu_check.stages import ROOT


@click.command()
@click.option("--minutes", default=5.0, show_default=True, help="How long all stages may take; not a build.")
@click.option("--baselines", is_flag=True, help="Measure other runtimes' steps and prompts, nothing else.")
@click.option("--layouts", is_flag=True, help="Time steps in each layout of the matrices, and nothing else.")
@click.option("--sanitize", is_flag=True, help="compute-sanitizer too, in the time that is left at the end.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the JSON goes.  [default: benchmarks/results/DEVICE/gpu-check.json, gpu-layouts.json, …]",
)
@click.option("--commit", help="The commit that is checked, if this is no checkout of git.")
@click.pass_context
def main(
    context: click.Context,
    minutes: float,
    baselines: bool,
    layouts: bool,
    sanitize: bool,
    output: Path | None,
    commit: str | None,
) -> None:
    """Check the CUDA operators on this machine's GPU."""
    if baselines + layouts + sanitize > 1:
        raise click.UsageError(
            "--sanitize belongs to the check, and --baselines and --layouts measure others"
        )
    if reason := without_gpu():
        click.echo(reason, err=True)
        sys.exit(2)
    signal.signal(signal.SIGTERM, stop)
    # The same in every process that follows; none of them builds.
    os.environ |= {"ADEPT_FAST_CUDA": "1", "ADEPT_FAST_BUILD": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = find_extension("{}.{}".format(*torch.cuda.get_device_capability()))
    # These load the extension.
    from benchmarks.gpu_check.report import print_of
    from benchmarks.gpu_check.run import (
        BASELINES_MINUTES,
        LAYOUTS_MINUTES,
        Check,
        baseline_stages,
        check_stages,
        layout_stages,
        new_report,
        say,
    )
    from benchmarks.machine import results_folder

    name = "gpu-baselines" if baselines else "gpu-layouts" if layouts else "gpu-check"
    if context.get_parameter_source("minutes") is click.core.ParameterSource.DEFAULT:
        minutes = {"gpu-baselines": BASELINES_MINUTES, "gpu-layouts": LAYOUTS_MINUTES}.get(name, minutes)
    deadline = time.monotonic() + 60 * minutes - found.seconds
    report = new_report(name, commit, found)
    say(*(f"{key}: {value}" for key, value in {**report["gpu"], **report["versions"]}.items()))
    output = (
        output or ROOT / "benchmarks" / "results" / results_folder(report["device"], None) / f"{name}.json"
    )
    others = {"gpu-baselines": baseline_stages, "gpu-layouts": layout_stages}
    stages = others[name](report) if name in others else check_stages(report, sanitize=sanitize)
    check = Check(report, output)
    try:
        for stage, outcome, seconds in found.stages:
            check.keep(stage, outcome, seconds)
        if found.is_usable:
            check.run(stages, deadline)
    except KeyboardInterrupt:
        say("interrupted; what there is:")
    check.write()
    say("", print_of(report), "", f"written to {output}")
    sys.exit(0 if check.passed else 1)


def without_gpu() -> str:
    """Why there is nothing to check; empty if there is a GPU."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"nothing to check: this torch ({torch.__version__}) is built without CUDA"
    return f"nothing to check: torch {torch.__version__} sees no GPU"


def stop(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
