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


class Arriving:
    """A tensor's copy on the host. Taking it waits for the kernels queued before the copy, and no others."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._copy = tensor
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.current_stream(tensor.device).record_event()

    def take(self) -> Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
