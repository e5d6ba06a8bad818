"""The extension that ``gpu-check`` uses: the one that was carried along, or else one that it builds first.

Importing this loads no extension.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.stages import ROOT, Outcome, run_process

USE_SECONDS = 20
BUILD_SECONDS = 300  # not part of the time of the check, and only if nothing was carried along
DEVICE = "cuda"
BUILDER = "benchmarks.gpu_check.build"

# A kernel that runs is the only sure sign that the extension holds code for this GPU.
USE = """
import json, sys
import torch
from adept_fast import extension
from adept_fast.memory.bandwidth import measure_copy_bandwidth, measure_read_bandwidth
built = extension.load()
if not built.cuda:
    sys.exit(built.cuda_reason or built.reason)
device = torch.device(sys.argv[1])
if torch.ops.adept_fast.read(torch.tensor([1, 0, 0, 0], dtype=torch.int32, device=device)).item() != 1:
    sys.exit(f"{built.path} runs on {device} and reads what is not there")
print(json.dumps({
    "extension": str(built.path),
    "read_bandwidth_bytes_per_second": measure_read_bandwidth(device),
    "copy_bandwidth_bytes_per_second": measure_copy_bandwidth(device),
}))
"""


@dataclass
class FoundExtension:
    """The extension, and the stages that it took: name, outcome, seconds."""

    facts: dict[str, Any] = field(default_factory=dict)  # for the report
    stages: list[tuple[str, Outcome, float]] = field(default_factory=list)
    seconds: float = 0.0  # without those of a build

    @property
    def is_usable(self) -> bool:
        return bool(self.facts)


def find_extension(capability: str) -> FoundExtension:
    """Use the extension that is there; build one for that capability only if it cannot be used."""
    found = FoundExtension()
    refused = _use(found, "carried along or built before")
    if refused is not None:
        print(f"no extension to use: {refused}; building one, which takes minutes", flush=True)
        began = time.monotonic()
        ended = run_process([sys.executable, "-m", BUILDER, "--architecture", capability], BUILD_SECONDS)
        outcome = ended.outcome(ended.lines[-1] if ended.lines else "")
        found.stages.append(("build", outcome, time.monotonic() - began))
        if outcome.passed:
            refused = _use(found, "built now")
    if refused is not None:
        found.stages.append(("extension", Outcome(False, refused), found.seconds))
    return found


def _use(found: FoundExtension, origin: str) -> str | None:
    """Run a kernel of the extension that is there, and measure the bandwidth with it; why that cannot be."""
    began = time.monotonic()
    ended = run_process([sys.executable, "-c", USE, DEVICE], USE_SECONDS)
    found.seconds = time.monotonic() - began
    lines = [line for line in ended.lines if line.startswith("{")]
    if ended.code or not lines:
        last = ended.lines[-1] if ended.lines else f"the process ended with {ended.code}"
        return f"stopped by its limit; {last}" if ended.ran_out else last
    found.facts = json.loads(lines[-1])
    path = Path(found.facts["extension"])
    inside = path.is_relative_to(ROOT)
    found.facts["extension"] = f"{path.relative_to(ROOT) if inside else path.name}, {origin}"
    read = found.facts["read_bandwidth_bytes_per_second"]
    said = f"used {found.facts['extension']}; memory is read at {1e-12 * read:.2f} TB/s"
    found.stages.append(("extension", Outcome(True, said), found.seconds))
    return None
