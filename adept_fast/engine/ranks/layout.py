"""RankLayout: the devices of tensor-parallel ranks, and how they exchange numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adept_fast.arguments import ParameterError
from adept_fast.config import PersimmonConfig
from adept_fast.engine.placement import find_device


@dataclass(frozen=True)
class RankLayout:
    """``is_shared``: all ranks are on one device, share its memory, and exchange through that of the host;
    else rank n is on the nth GPU, and they exchange by NCCL."""

    count: int
    device: torch.device
    is_shared: bool

    def device_of(self, rank: int) -> torch.device:
        return self.device if self.is_shared else torch.device("cuda", rank)

    @property
    def threads(self) -> int:
        """Of each rank, on the CPU."""
        return max(1, torch.get_num_threads() // self.count)

    def cuda_graphs(self, requested: str) -> str:
        """No graph captures an exchange through the host."""
        return "off" if self.is_shared else requested

    def __str__(self) -> str:
        if not self.is_shared:
            return f"{self.count}, on cuda:0 to cuda:{self.count - 1} (they exchange by NCCL)"
        threads = f", with {self.threads} threads each" if self.device.type == "cpu" else ""
        return f"{self.count}, all on {self.device}{threads} (they exchange through memory of the host)"


def choose_layout(
    config: PersimmonConfig, count: int, device: object, cuda_graphs: str = "auto"
) -> RankLayout:
    """The layout of ``count`` ranks on the device that a user names; None for as many GPUs, absent ones too.

    Raises ParameterError if the model has no such parts, or this machine no such devices.
    """
    heads = config.num_attention_heads
    if heads % count:
        numbers = " or ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise ParameterError(
            f"tensor_parallel is {count}; expected {numbers}, as the model has {heads} heads"
        )
    if device is None:
        return RankLayout(count, torch.device("cuda"), is_shared=False)
    found = find_device(device)
    if found.type == "cpu" or found.index is not None:
        if found.type == "cuda" and cuda_graphs == "required":
            raise ParameterError(
                "cuda_graphs is 'required'; expected auto or off for several ranks on one GPU"
            )
        return RankLayout(count, found, is_shared=True)
    if torch.cuda.device_count() < count:
        raise ParameterError(
            f"tensor_parallel is {count}, and this torch sees {torch.cuda.device_count()} CUDA devices; "
            f"expected one for each rank, or device 'cuda:0' to have all ranks share that one"
        )
    return RankLayout(count, found, is_shared=False)
