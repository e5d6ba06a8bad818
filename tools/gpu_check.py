"""Builds, tests and times the CUDA operators on this machine's GPU, without a network, in a few minutes.

    make gpu-check
    python tools/gpu_check.py --minutes 9 --output gpu-check.json

What matters most comes first, and the result file is written anew after every stage: a run that is stopped
keeps what it has. Operators run at the 8B's shapes and are judged by their floor: the bytes that they have to
move, over what a copy of the device's memory reaches in the same run, its reads and writes counted.

Exits with 0 where everything passed, 1 where something did not, 2 where there is no GPU.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_check_stages import Stage, build  # noqa: E402

BUILD = Stage("build", 240, 5, build)


@click.command()
@click.option("--minutes", default=9.0, show_default=True, help="How long it may take in all.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the JSON goes.  [default: benchmarks/results/DEVICE/gpu-check.json]",
)
@click.option("--commit", help="What is checked, where this is no checkout of git.")
def main(minutes: float, output: Path | None, commit: str | None) -> None:
    """Check the CUDA operators on this machine's GPU."""
    deadline = time.monotonic() + 60 * minutes
    if reason := without_gpu():
        click.echo(reason, err=True)
        sys.exit(2)
    signal.signal(signal.SIGTERM, stop)
    # For this device alone, which takes a quarter of the time; the same in every process that follows.
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", capability)
    os.environ["ADEPT_FAST_CUDA"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began = time.monotonic()
    built = build(BUILD.seconds(deadline - began))
    os.environ["ADEPT_FAST_BUILD"] = "0"  # what could not be built is not tried again
    from gpu_check_report import folder_of, print_of
    from gpu_check_run import Check, new_report, say

    report = new_report(commit)
    say(*(f"{name}: {value}" for name, value in {**report["gpu"], **report["versions"]}.items()))
    output = output or ROOT / "benchmarks" / "results" / folder_of(report["device"]) / "gpu-check.json"
    check = Check(report, output)
    try:
        check.keep(BUILD.name, built, time.monotonic() - began)
        if built.passed:
            check.run(deadline)
    except KeyboardInterrupt:
        say("interrupted; what there is:")
    check.write()
    say("", print_of(report["measured"]), "", f"written to {output}")
    sys.exit(0 if check.passed else 1)


def without_gpu() -> str:
    """Why there is nothing to check; empty where there is a GPU."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"nothing to check: this torch ({torch.__version__}) is built without CUDA"
    return f"nothing to check: torch {torch.__version__} sees no GPU"


def stop(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
