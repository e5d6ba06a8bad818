"""The placement of a batch: what was chosen for ``auto``, as answers depend on it."""

from __future__ import annotations

from adept_fast.engine.runtime import Runtime


def placement_of(runtime: Runtime) -> dict[str, str]:
    """The choices, by the names of the options."""
    placement = runtime.placement
    return {
        "device": placement.device.type,
        "dtype": str(placement.dtype).removeprefix("torch."),
        "weights": "None" if placement.weights is None else placement.weights.name,
        "weight_layout": placement.layout,
        "cache_dtype": str(placement.cache_dtype).removeprefix("torch."),
        "max_seq_len": str(runtime.max_seq_len),
    }
