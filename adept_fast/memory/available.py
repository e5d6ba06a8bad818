"""How much memory a device can still hold."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from adept_fast.system.cgroup_memory import cgroup_room


def available_bytes(device: torch.device) -> int:
    """A GPU's free memory and torch's cache; the host's, within its control groups and without swap."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = cgroup_room()
    free = _free_on_host()
    return free if room is None else min(free, room)


def _free_on_host() -> int:
    """Without swapping; limits of control groups are not considered."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
