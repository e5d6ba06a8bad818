"""On an NVIDIA GPU: whether the kernels run, and the arguments that they support."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import kernels
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import is_in_tiles
from adept_fast.quantization.matrix import Matrix

MAX_TOKENS = 16  # that the kernels take in one call
MAX_HEAD_DIM = 256
MAX_TOP_LOGPROBS = 20
MAX_VOCAB = 1 << 19
VECTOR = 8  # the kernels take rows in multiples of this many elements
_HALVES = (torch.float16, torch.bfloat16)
_TRIAL_WORDS = 4096  # that are read to see whether kernels run


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """The reason that the kernels cannot run on a device; None if they can."""
    built = extension.load()
    if not built.loaded:
        return built.reason
    if device.type != "cuda":
        return f"{device} is no NVIDIA GPU"
    if not built.cuda:
        return f"the extension is built without CUDA: {built.cuda_reason}"
    major, minor = compute_capability(device)
    if major < 8:
        return f"its compute capability is {major}.{minor}, and the kernels need 8.0"
    return extension.missing_for_cuda() or None


def compute_capability(device: torch.device) -> tuple[int, int]:
    """Such as (9, 0)."""
    return torch.cuda.get_device_capability(device)


def fault(device: torch.device) -> str | None:
    """The reason that kernels fail on a device, found by running a small one; None if they run."""
    if (reason := unavailable(device)) is not None:
        return reason
    words = torch.arange(1, _TRIAL_WORDS + 1, dtype=torch.int32, device=device)
    expected = _TRIAL_WORDS * (_TRIAL_WORDS + 1) // 2
    try:
        found = int(kernels.operators.read(words))
    except RuntimeError as error:
        return f"one that reads ended with: {str(error).strip().splitlines()[0]}"
    return None if found == expected else f"one that reads gave {found}; expected {expected}"


def language() -> str:
    return "CUDA"


def refuses_matrices(x: Tensor, *matrices: Matrix) -> str | None:
    """The reason that the kernels do not multiply x by these matrices; None if they do."""
    if x.shape[0] > MAX_TOKENS:
        return f"{x.shape[0]} tokens, and the kernels take at most {MAX_TOKENS}"
    if len(set(map(is_in_tiles, matrices))) > 1:
        return "one matrix is in tiles and another is not, and the kernels take both in one layout"
    for w in matrices:
        if isinstance(w, Tensor):
            if (refusal := refuses_floats(w.dtype)) is not None:
                return refusal
        elif not isinstance(w, GpuMatrix) and not is_in_tiles(w):
            return f"the kernels do not read {w.spec.format.name} in the layout {w.layout}"
        if (refusal := refuses_hidden_size(w.shape[1])) is not None:
            return refusal
    return None


def refuses_floats(dtype: torch.dtype) -> str | None:
    """The reason that the kernels do not multiply by matrices of this dtype; None if they do."""
    return None if dtype in _HALVES else f"the kernels take float16 and bfloat16, not {dtype}"


def refuses_hidden_size(size: int) -> str | None:
    """The reason that the kernels do not multiply by rows of this size; None if they do."""
    return f"the kernels take a hidden_size in multiples of {VECTOR}, not {size}" if size % VECTOR else None


def refuses_cache(x: Tensor, cache_layer: Tensor) -> str | None:
    """The reason that the kernels do not support this cache; None if they do."""
    head_dim = cache_layer.shape[-1]
    if head_dim % VECTOR or head_dim > MAX_HEAD_DIM:
        return f"the kernels take a head_dim in multiples of {VECTOR} up to {MAX_HEAD_DIM}, not {head_dim}"
    return None


def refuses_queries(q: Tensor, cache_layer: Tensor) -> str | None:
    """The reason that the kernel does not attend to these queries one by one; None if it does."""
    if q.shape[0] > MAX_TOKENS:
        return f"{q.shape[0]} tokens, and the kernels take at most {MAX_TOKENS}"
    return refuses_cache(q, cache_layer)


def refuses_prompt(q: Tensor, cache_layer: Tensor) -> str | None:
    """The reason that the kernel of prompts does not attend to this cache; None if it does."""
    if cache_layer.dtype not in _HALVES:
        return f"the kernel takes a cache in float16 or bfloat16, not {cache_layer.dtype}"
    return refuses_cache(q, cache_layer)


def attend_in_groups(q: Tensor, cache_layer: Tensor, slot: int, start: int, scale: float) -> Tensor:
    """``prefill_attention`` by the kernel of decode steps, with as many queries at a time as it takes."""
    attended = [
        kernels.prefill_attention(queries, cache_layer, slot, start + index * MAX_TOKENS, scale)
        for index, queries in enumerate(q.split(MAX_TOKENS))
    ]
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def refuses_table(ids: Tensor, table: Tensor) -> str | None:
    """The reason that the kernel does not look up rows of this table, which may be pinned; None if it does.

    It returns zeros for an id outside the table. After torch's lookup of one, the process cannot use the GPU.
    """
    if table.dtype in (*_HALVES, torch.float32):
        return None
    return f"the kernel takes float16, bfloat16 and float32, not {table.dtype}"


def refuses_logprobs(logits: Tensor, count: int) -> str | None:
    """The reason that the kernel does not find so many log-probabilities; None if it does."""
    if count > MAX_TOP_LOGPROBS:
        return f"{count} tokens besides the chosen one, and the kernel finds at most {MAX_TOP_LOGPROBS}"
    if not 0 < logits.shape[1] <= MAX_VOCAB:
        return f"a vocabulary of {logits.shape[1]}, and the kernel takes 1 to {MAX_VOCAB}"
    return None
