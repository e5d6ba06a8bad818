"""Runtimes as a GPU's, with its layouts of matrices, on kernels that run on the emulator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from backends import EMULATED
from dispatch_double import as_cuda

from adept_fast import Runtime
from adept_fast import weights as weights_module
from adept_fast.checkpoint import Checkpoint
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon
from adept_fast.quantization.formats import FORMATS
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuTiles
from adept_fast.quantization.layouts import ROW_MAJOR, TILES


class Recording:
    """The emulator's operators; steps of decode_layers are counted by whether one kernel runs, and tokens."""

    def __init__(self) -> None:
        self.steps: Counter[tuple[bool, int]] = Counter()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator: Callable[..., Any] = getattr(EMULATED.operators, name)

        def decode_layers(x: torch.Tensor, *others: Any) -> Any:
            self.steps[others[-1], len(x)] += 1
            return operator(x, *others)

        return decode_layers if name == "decode_layers" else operator


@contextmanager
def as_emulated_gpu() -> Iterator[Recording]:
    """While it lasts, a CPU goes by the rules and has the layouts of a GPU."""

    def layout_of(device: torch.device, layout: str = ROW_MAJOR) -> Any:
        return GpuTiles if layout == TILES else GpuMatrix

    recording = Recording()
    with pytest.MonkeyPatch.context() as patch, as_cuda(recording):
        patch.setattr(weights_module, "layout_of", layout_of)
        yield recording


def load(
    checkpoint: Checkpoint, fmt: str, layout: str, *, slots: int, context: int, exact_prefill: bool = False
) -> Runtime:
    """In a layout that a CPU is not asked for."""
    plain = Runtime.load(checkpoint, device="cpu", max_batch_size=slots, max_seq_len=context, progress=False)
    packed = FORMATS.get(fmt)
    weights = weights_module.load_weights(
        checkpoint,
        dtype=torch.float16 if packed else getattr(torch, fmt),
        device=torch.device("cpu"),
        weights=packed,
        layout=layout,
        huge_pages=True,  # what stays in a file is not aligned
    )
    vocab_size = plain.tokenizer.vocab_size
    model = Persimmon(
        checkpoint.config, weights, max_seq_len=context, vocab_size=vocab_size, exact_prefill=exact_prefill
    )
    cache = StaticKVCache(checkpoint.config, max_batch_size=slots, max_seq_len=context, dtype=torch.float16)
    return Runtime(model, plain.tokenizer, cache, plain.memory(), plain.placement, 0.0)
