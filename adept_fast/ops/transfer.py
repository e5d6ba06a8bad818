"""Copies between host and device that wait for no kernel, or once for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    rows: Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Numbers of the host on the device: [rows, columns] of the dtype. The host waits for no kernel.

    A copy from pageable memory would wait for all kernels queued before it.
    """
    host = torch.tensor(rows, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The values of tensors, each [n], of bools, floats or integers below 2⁵³; waits for the device once."""
    values = torch.cat([tensor.double() for tensor in tensors]).tolist()
    found, start = [], 0
    for tensor in tensors:
        found.append(values[start : start + len(tensor)])
        start += len(tensor)
    return found
