"""The machine in a result file: its processor or GPU, and their clocks as far as they are visible."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from adept_fast import extension

# Instruction sets that decide which kernels run.
INSTRUCTIONS = ("f16c", "fma", "avx2", "avx_vnni", "avx512", "amx", "asimd", "sve", "bf16", "i8mm")
CPU_FILES = Path("/sys/devices/system/cpu/cpu0")
CPUINFO = Path("/proc/cpuinfo")
GPU_FACTS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")


def device_name(device: torch.device | None = None) -> str:
    """Of the GPU, or of the processor."""
    if device is not None and device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return cpuinfo("model name") or platform.processor() or platform.machine()


def results_folder(device: str, cores: int | None) -> str:
    """``AMD EPYC``, 2 → ``amd-epyc-2-cores``; a GPU goes by its name alone, with None."""
    name = device if cores is None else f"{device} {cores} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    flags = cpuinfo("flags", "Features").split()
    facts: dict[str, Any] = {
        "cores": os.cpu_count(),
        "instructions": sorted(flag for flag in flags if flag.startswith(INSTRUCTIONS) or "bf16" in flag),
        "kernels": instruction_set(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "clocks": clocks(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()}",
    }
    if device is not None and device.type == "cuda":
        facts["gpu"] = describe_gpu(device)
    return facts


def instruction_set() -> str:
    """That of the CPU's kernels; empty if the extension is not loaded."""
    if not extension.load().loaded:
        return ""
    from adept_fast.ops.cpu import instruction_set as in_use

    return in_use()


def last_level_cache_bytes(caches: Path = CPU_FILES / "cache") -> int:
    """Of one processor; 0 if the system does not report it."""
    sizes = [read(folder / "size") for folder in sorted(caches.glob("index*"))]
    factors = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * factors[size[-1]] for size in sizes if size[-1:] in factors), default=0)


def clocks(frequencies: Path = CPU_FILES / "cpufreq") -> dict[str, Any]:
    """The first processor's clock as the system reports it; in a virtual machine often only a nominal one."""
    names = {"governor": "scaling_governor", "highest_khz": "cpuinfo_max_freq", "now_khz": "scaling_cur_freq"}
    facts: dict[str, Any] = {name: read(frequencies / file) for name, file in names.items()}
    facts["said_mhz"] = cpuinfo("cpu MHz")
    return {name: value for name, value in facts.items() if value}


def describe_gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", f"--id={device.index or 0}", "--format=csv,noheader"]
        query.append(f"--query-gpu={','.join(GPU_FACTS)}")
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().split(", ")
        facts |= dict(zip(GPU_FACTS, said, strict=False))
    return facts


def cpuinfo(*names: str) -> str:
    """The first entry of /proc/cpuinfo with one of these names; empty if there is none."""
    for line in CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []:
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def read(file: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
