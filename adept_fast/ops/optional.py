"""Optional packages for prompts on a GPU: flash-attn and NVIDIA's apex.

ADEPT_FAST_OPTIONAL names the packages to use, ``flash-attn,apex``, or ``none``; none by default, as their
order of sums is not known to be the same for all chunks of a prompt. Each is imported at the first call on a
GPU that could use it, and used only if its error on a small input on that GPU is at most twice torch's.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.ops import reference

# As in ops/reference.py: q, cache_layer, slot, start, scale → attended; x, gamma, beta, eps → normed.
Attention: TypeAlias = Callable[[Tensor, Tensor, int, int, float], Tensor]
LayerNorm: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Tensor]

NAMES = ("flash-attn", "apex")
_VARIABLE = "ADEPT_FAST_OPTIONAL"

# Errors of a package that is broken, of another version, or another package of the same name.
_FAILURES = (ImportError, OSError, AttributeError, TypeError, ValueError, RuntimeError)


class OptionalPackageError(ValueError):
    """ADEPT_FAST_OPTIONAL names an unknown package."""


@dataclass(frozen=True)
class Choice:
    """Whether a package is used, and why. ``version`` is None if it is not installed."""

    version: str | None
    used: bool
    reason: str
    function: Callable[..., Tensor] | None = None

    def __str__(self) -> str:
        found = "not found" if self.version is None else f"{self.version}, {'' if self.used else 'not '}used"
        return f"{found}: {self.reason}"


def refuses_cache(q: Tensor, cache_layer: Tensor) -> str | None:
    """The reason that flash-attn does not support this cache; None if it does."""
    choice = flash_attention(cache_layer.device, cache_layer.dtype, cache_layer.shape[-1])
    return None if choice.used else f"flash-attn {choice}"


def prefill_attention(q: Tensor, cache_layer: Tensor, slot: int, start: int, scale: float) -> Tensor:
    """As ``ops/reference.py`` defines it, for a cache that ``refuses_cache`` does not refuse."""
    reference.check_start(start, len(q), cache_layer.shape[3])
    attend = flash_attention(cache_layer.device, cache_layer.dtype, cache_layer.shape[-1]).function
    assert attend is not None
    return attend(q, cache_layer, slot, start, scale)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    normalize = apex_layer_norm(x.device).function
    if normalize is None or x.dtype != torch.float32:
        return F.layer_norm(x, gamma.shape, gamma, beta, eps)
    return normalize(x, gamma, beta, eps)


def allowed() -> frozenset[str]:
    """The packages that may be used. Raises OptionalPackageError for an unknown name."""
    names = {name.strip() for name in os.environ.get(_VARIABLE, "").split(",")} - {"", "none"}
    if unknown := sorted(names.difference(NAMES)):
        raise OptionalPackageError(
            f"{_VARIABLE} names {unknown[0]!r}; expected {', '.join(NAMES)} with commas between, or none"
        )
    return frozenset(names)


@functools.cache
def flash_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> Choice:
    """Whether flash-attn is used for a cache of this dtype and head_dim."""
    version = _version("flash-attn", "flash_attn")
    if version is None:
        return Choice(None, False, "pip install flash-attn")
    if reason := _unfit(device, "flash-attn"):
        return Choice(version, False, reason)
    if dtype not in (torch.float16, torch.bfloat16):
        return Choice(version, False, f"it takes caches in float16 or bfloat16, not {dtype}")
    if head_dim % 8 or head_dim > 256:
        return Choice(version, False, f"it takes a head_dim in multiples of 8 up to 256, not {head_dim}")
    return _tried(
        version, _load_flash_attention, lambda attend: _attention_error(attend, device, dtype, head_dim)
    )


@functools.cache
def apex_layer_norm(device: torch.device) -> Choice:
    """Whether apex's fused LayerNorm is used."""
    version = _version("apex", "apex")
    if version is None:
        return Choice(None, False, "https://github.com/NVIDIA/apex, built with its CUDA extensions")
    if reason := _unfit(device, "apex"):
        return Choice(version, False, reason)
    return _tried(version, _load_apex_layer_norm, lambda normalize: _layer_norm_error(normalize, device))


def choices(device: torch.device, cache_dtype: torch.dtype, head_dim: int) -> dict[str, Choice]:
    """The choice for each package, for a model on a device."""
    return {"flash-attn": flash_attention(device, cache_dtype, head_dim), "apex": apex_layer_norm(device)}


def forget() -> None:
    """Forget the choices, for tests."""
    flash_attention.cache_clear()
    apex_layer_norm.cache_clear()


def _version(distribution: str, module: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    if module in sys.modules:
        return str(getattr(sys.modules[module], "__version__", "unknown version"))
    return None if importlib.util.find_spec(module) is None else "unknown version"


def _unfit(device: torch.device, name: str) -> str:
    """The reason that a package is not tried; empty if it is."""
    if name not in allowed():
        verb = "does not" if _VARIABLE in os.environ else "would have to"
        return f"{_VARIABLE} {verb} name it"
    capability = _capability(device)
    if capability is None:
        return "it is for GPUs"
    if capability < (8, 0):
        return f"it needs compute capability 8.0; this GPU has {capability[0]}.{capability[1]}"
    return ""


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _tried(
    version: str,
    load: Callable[[], Callable[..., Tensor]],
    error_of: Callable[[Callable[..., Tensor]], tuple[float, float]],
) -> Choice:
    """Use a package's function if it loads and its error is at most twice torch's."""
    try:
        function = load()
        error, torchs = error_of(function)
    except _FAILURES as failure:
        sentence = str(failure).strip().split("\n")[0]
        return Choice(version, False, f"it failed: {type(failure).__name__}: {sentence}")
    if not error <= 2 * torchs:  # a NaN too
        return Choice(version, False, f"its error is {error:.2g}, torch's {torchs:.2g}")
    return Choice(version, True, f"its error is {error:.2g}, torch's {torchs:.2g}", function)


def _load_flash_attention() -> Attention:
    attend: Any = importlib.import_module("flash_attn").flash_attn_func

    def prefill_attention(q: Tensor, cache_layer: Tensor, slot: int, start: int, scale: float) -> Tensor:
        tokens, heads, head_dim = q.shape
        k, v = cache_layer[:, slot, :, : start + tokens].transpose(1, 2)[
            :, None
        ]  # each [1, end, heads, head_dim]
        # The mask aligns the last query with the last key, from flash-attn 2.1 on.
        attended = attend(q[None].to(k.dtype), k, v, softmax_scale=scale, causal=True)
        narrow: Tensor = attended.reshape(tokens, heads * head_dim)
        return narrow.float()

    return prefill_attention


def _attention_error(
    attend: Attention, device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[float, float]:
    """The root mean square errors of the package and of torch in the same dtype."""
    generator = torch.Generator("cpu").manual_seed(0)
    tokens, start, heads, scale = 24, 9, 2, head_dim**-0.5
    q = torch.randn(tokens, heads, head_dim, generator=generator, dtype=torch.float32, device="cpu")
    cache = torch.randn(2, 1, heads, 40, head_dim, generator=generator, dtype=torch.float32, device="cpu").to(
        dtype
    )
    exact, found, torchs = [], [], []
    for first in (0, start):
        exact.append(reference.prefill_attention(q, cache, 0, first, scale))  # on a CPU, in float32
        found.append(attend(q.to(device), cache.to(device), 0, first, scale).float().cpu())
        visible = torch.ones(tokens, first + tokens, dtype=torch.bool, device="cpu").tril(first).to(device)
        k, v = cache[:, :, :, : first + tokens].to(device)
        narrow = q.transpose(0, 1)[None].to(k)
        attended = F.scaled_dot_product_attention(narrow, k, v, attn_mask=visible, scale=scale)
        torchs.append(attended[0].transpose(0, 1).flatten(1).float().cpu())
    return _mean_error(found, exact), _mean_error(torchs, exact)


def _load_apex_layer_norm() -> LayerNorm:
    try:
        module: Any = importlib.import_module("apex.normalization.fused_layer_norm")
        _ = importlib.import_module("apex.normalization").FusedLayerNorm
        normalize = module.fused_layer_norm_affine
    except (ImportError, AttributeError) as error:
        raise ImportError("this is not NVIDIA's apex: it has no apex.normalization.FusedLayerNorm") from error
    importlib.import_module("fused_layer_norm_cuda")

    def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        normed: Tensor = normalize(x, gamma, beta, tuple(gamma.shape), eps)
        return normed

    return layer_norm


def _layer_norm_error(normalize: LayerNorm, device: torch.device) -> tuple[float, float]:
    generator = torch.Generator("cpu").manual_seed(0)
    x, gamma, beta = (
        3 + torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        for size in ((33, 520), (520,), (520,))
    )
    exact = F.layer_norm(x.double(), gamma.shape, gamma.double(), beta.double(), 1e-5)
    there = [tensor.to(device) for tensor in (x, gamma, beta)]
    found = normalize(there[0], there[1], there[2], 1e-5)
    torchs = F.layer_norm(there[0], gamma.shape, there[1], there[2], 1e-5)
    return _mean_error([found.cpu()], [exact]), _mean_error([torchs.cpu()], [exact])


def _mean_error(found: list[Tensor], exact: list[Tensor]) -> float:
    if any(one.shape != other.shape for one, other in zip(found, exact, strict=True)):
        raise ValueError("its result has another shape")
    off = [(one.double() - other.double()).flatten() for one, other in zip(found, exact, strict=True)]
    return float(torch.cat(off).square().mean().sqrt())
