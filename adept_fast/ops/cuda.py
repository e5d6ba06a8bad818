"""On an NVIDIA GPU: the arguments that the kernels support, and products by torch's GEMM for all others.

A GEMM takes its rows in tiles (``row_tiles.py``), so that a token's bits do not depend on the other rows.
Packed weights are dequantized block by block for it. Inputs and weights are rounded to the matrix's product
dtype, sums are float32. A power of two scales each token's inputs to near 1. That is exact, and keeps float16
from overflowing: relu² exceeds its range, and so could sums of 8-bit weights, whose scales are applied after
the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import kernels, optional, reference
from adept_fast.ops.gemm import Gemm
from adept_fast.ops.row_tiles import in_tiles
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layouts import kernel_formats
from adept_fast.quantization.matrix import Matrix, QuantizedMatrix

MAX_TOKENS = 16  # that the kernels take in one call
MAX_HEAD_DIM = 256
MAX_TOP_LOGPROBS = 20
MAX_VOCAB = 1 << 19
VECTOR = 8  # the kernels take rows in multiples of this many elements
_FORMATS = kernel_formats(torch.device("cuda"))
_HALVES = (torch.float16, torch.bfloat16)
_TRIAL_WORDS = 4096  # that are read to see whether kernels run
_BLOCK_ELEMENTS = 1 << 24
DEQUANTIZING_BYTES = 6 * _BLOCK_ELEMENTS  # for a block of 4 bits, at once: its bytes twice, floats twice


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """The reason that the kernels cannot run on a device; None if they can."""
    built = extension.load()
    if not built.loaded:
        return built.reason
    if not built.cuda:
        return f"the extension is built without CUDA: {built.cuda_reason}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"its compute capability is {major}.{minor}, and the kernels need 8.0"
    return extension.missing_for_cuda() or None


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
    for w in matrices:
        if isinstance(w, QuantizedMatrix):
            if not isinstance(w, GpuMatrix) or w.spec.format not in _FORMATS:
                return f"the kernels do not read {w.spec.format.name} in the layout {w.layout}"
        elif w.dtype not in _HALVES:
            return f"the kernels take float16 and bfloat16, not {w.dtype}"
        if w.shape[1] % VECTOR:
            return f"the kernels take a hidden_size in multiples of {VECTOR}, not {w.shape[1]}"
    return None


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


def project(x: Tensor, w: Matrix, few: int = 0) -> Tensor:
    """x · wᵀ: float32 [tokens, out], for w of [out, in]; ``few`` as in ``row_tiles.in_tiles``."""
    if not isinstance(w, GpuMatrix):
        return in_tiles(reference.project, x.to(reference.compute_dtype(w)), w, w.shape[0], few)
    narrow, exponents = _narrowed(x, w)
    return _scaled(in_tiles(_unscaled, narrow, w, w.shape[0], few), w, exponents)


def project_transposed(x: Tensor, w_t: Matrix, few: int = 0) -> Tensor:
    """x · w_t: float32 [tokens, out], for w_t of [in, out]; ``few`` as in ``row_tiles.in_tiles``."""
    outputs = w_t.shape[1]
    if isinstance(w_t, GpuMatrix):
        narrow, exponents = _narrowed(x, w_t)
        return _scaled(in_tiles(_unscaled_transposed, narrow, w_t, outputs, few), w_t, exponents)
    dtype = reference.compute_dtype(w_t)
    if dtype == torch.float32:
        return in_tiles(reference.project_transposed, x, w_t, outputs, few)
    exponents = _exponents(x)
    narrow = torch.ldexp(x, -exponents).to(dtype)
    return torch.ldexp(in_tiles(_product_transposed, narrow, w_t, outputs, few), exponents)


def _product_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    assert isinstance(w_t, Tensor)
    return (x @ w_t).float()


def _unscaled(x: Tensor, w: Matrix) -> Tensor:
    assert isinstance(w, GpuMatrix)
    out = x.new_empty(x.shape[0], w.shape[0], dtype=torch.float32)
    for rows in _blocks(w):
        out[:, rows] = F.linear(x, w.unscaled(rows.start, rows.stop, w.spec.product_dtype))
    return out


def _unscaled_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    assert isinstance(w_t, GpuMatrix)
    out = x.new_zeros(x.shape[0], w_t.shape[1], dtype=torch.float32)
    for rows in _blocks(w_t):
        out += x[:, rows] @ w_t.unscaled(rows.start, rows.stop, w_t.spec.product_dtype)
    return out


def _blocks(w: GpuMatrix) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, w.shape[1]))
    for start in range(0, w.shape[0], step):
        yield slice(start, min(start + step, w.shape[0]))


def _exponents(x: Tensor) -> Tensor:
    """int32 [tokens, 1]: each token's inputs · 2^-exponent are at most 1."""
    return torch.frexp(x.float().abs().amax(-1, keepdim=True)).exponent


def _narrowed(x: Tensor, w: GpuMatrix) -> tuple[Tensor, Tensor]:
    """x · 2^-exponent in the products' dtype, and the exponents, int32 [tokens, 1]."""
    exponents = _exponents(x)
    if w.bits == 8:
        largest_sum = w.shape[0 if w.spec.transposed else 1] * w.spec.format.max_value
        exponents = exponents + int(largest_sum).bit_length() - 15  # no sum exceeds 2¹⁵
    exponents = exponents.clamp(min=-100)  # smaller inputs become 0, as float32 has no 2¹³⁰ to scale them by
    return torch.ldexp(x.float(), -exponents).to(w.spec.product_dtype), exponents


def _scaled(out: Tensor, w: GpuMatrix, exponents: Tensor) -> Tensor:
    if w.bits == 8:
        out *= w.scales
    return torch.ldexp(out, exponents)


# Of decode steps that the kernels do not take, and of prompts, whose tokens have one order, few or many.
gemm = Gemm(
    optional.layer_norm,
    functools.partial(project, few=MAX_TOKENS),
    functools.partial(project_transposed, few=MAX_TOKENS),
)
prefill_gemm = Gemm(optional.layer_norm, project, project_transposed)
