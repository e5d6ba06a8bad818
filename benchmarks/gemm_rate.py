"""The limit of a prompt: its operations, and the rate of torch's GEMM on the same device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

ROWS = (512, 4096)  # of a chunk of ours, and enough for any GPU's best
_REPEATS, _PRODUCTS = 5, 4


def prompt_operations(config: Mapping[str, Any], tokens: int) -> int:
    """Multiplications and additions that give the logits after the last token, with causal attention."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    layer = 2 * tokens * (4 * hidden * hidden + 2 * hidden * intermediate)
    attention = 4 * hidden * tokens * (tokens + 1) // 2
    return config["num_hidden_layers"] * (layer + attention) + 2 * config["vocab_size"] * hidden


def measure_gemm_rates(config: Mapping[str, Any], device: torch.device) -> dict[str, float]:
    """Operations a second of torch's GEMM in float16, of the MLP's shape, for each of ROWS; none on a CPU."""
    if device.type != "cuda":
        return {}
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    w = torch.randn(intermediate, hidden, dtype=torch.float16, device=device)
    return {str(rows): rate(torch.randn(rows, hidden, dtype=w.dtype, device=device), w) for rows in ROWS}


def rate(x: torch.Tensor, w: torch.Tensor) -> float:
    """Operations a second of x · wᵀ."""

    def seconds() -> float:
        _synchronize(x.device)
        started = time.perf_counter()
        for _ in range(_PRODUCTS):
            torch.nn.functional.linear(x, w)
        _synchronize(x.device)
        return time.perf_counter() - started

    seconds()  # cuBLAS chooses its kernel, and clocks rise
    operations = 2 * x.shape[0] * x.shape[1] * w.shape[0]
    return _PRODUCTS * operations / median(seconds() for _ in range(_REPEATS))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
