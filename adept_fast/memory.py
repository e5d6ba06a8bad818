"""MemoryPlan: what a model and its cache take on a device, decided before anything is allocated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from adept_fast.config import PersimmonConfig
from adept_fast.kv_cache import bytes_per_token
from adept_fast.model import PREFILL_CHUNK

_CONTEXT_STEP = 64  # a context that is chosen to fit is a multiple of this many tokens


class InsufficientMemoryError(ValueError):
    """What was asked for does not fit on the device."""


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes in bytes.

    ``available_bytes`` is what the device had free before loading. ``longest_context`` is how many tokens a
    slot can hold there beside the weights, at most what the model was trained for.
    """

    device: str
    weights_bytes: int
    workspace_bytes: int
    cache_bytes_per_token: int
    max_seq_len: int
    max_batch_size: int
    available_bytes: int
    longest_context: int

    @property
    def cache_bytes(self) -> int:
        return self.cache_bytes_per_token * self.max_seq_len * self.max_batch_size

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.workspace_bytes + self.cache_bytes


def plan_memory(
    config: PersimmonConfig,
    *,
    weights_bytes: int,
    device: torch.device,
    cache_dtype: torch.dtype = torch.float16,
    max_seq_len: int | None = None,
    max_batch_size: int = 1,
    available: int | None = None,
    unpacking_bytes: int = 0,
) -> MemoryPlan:
    """Lay out weights, workspace and cache; None for ``max_seq_len`` takes the longest context that fits.

    ``unpacking_bytes`` is what turning packed weights into floats for a long prompt takes beside the rest.

    Raises InsufficientMemoryError when it does not fit, saying what would.
    """
    available = available_bytes(device) if available is None else available
    per_token = bytes_per_token(config, cache_dtype)
    workspace = _workspace_bytes(config) + unpacking_bytes
    room = available - weights_bytes - workspace
    fitting = max(0, room // (per_token * max_batch_size))
    longest = min(config.max_position_embeddings, fitting)
    if max_seq_len is None:
        max_seq_len = longest
        if longest < config.max_position_embeddings:
            max_seq_len = longest // _CONTEXT_STEP * _CONTEXT_STEP
    if max_seq_len < 1 or max_seq_len > fitting:
        asked = max(max_seq_len, 1)
        raise InsufficientMemoryError(
            f"{device} has {format_bytes(available)} free; the weights take {format_bytes(weights_bytes)}, "
            f"working memory {format_bytes(workspace)}, and a cache of max_batch_size {max_batch_size} × "
            f"max_seq_len {asked} takes {format_bytes(per_token * asked * max_batch_size)}: "
            f"{_what_fits(fitting)}"
        )
    return MemoryPlan(
        device=str(device),
        weights_bytes=weights_bytes,
        workspace_bytes=workspace,
        cache_bytes_per_token=per_token,
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
        available_bytes=available,
        longest_context=longest,
    )


def available_bytes(device: torch.device) -> int:
    """How much a device can still hold: free GPU memory, or what the system can give without swapping."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_room())
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def format_bytes(count: int) -> str:
    """``16.6 GB``: decimal units, three digits."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _cgroup_room() -> int:
    """What a container's limit leaves, or no limit."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        return 2**63 - 1 if text == "max" else int(text) - int(used.read_text())
    except (OSError, ValueError):
        return 2**63 - 1


def _workspace_bytes(config: PersimmonConfig) -> int:
    """A prefill chunk's activations in float32 (qkv, attention, MLP units and their squares) and two rows of
    logits."""
    activations = PREFILL_CHUNK * (8 * config.hidden_size + 3 * config.intermediate_size)
    return 4 * (activations + 2 * config.vocab_size)


def _what_fits(fitting: int) -> str:
    if fitting < 1:
        return "no context fits; a smaller dtype or max_batch_size might"
    return f"max_seq_len up to {fitting} fits"
