"""Prompts on a GPU: few launches a layer, none of which waits, and sums in float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import EMULATED
from checkpoints import small_config
from dispatch_double import as_cuda
from saving import checkpoint_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adept_fast import ops
from adept_fast import weights as weights_module
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon, Segment
from adept_fast.ops import cuda_gemm, reference
from adept_fast.quantization.formats import FORMATS, MatrixSpec
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layouts import ROW_MAJOR, TILES
from adept_fast.quantization.matrix import quantize
from adept_fast.weights import load_weights

CPU = torch.device("cpu")
TOKENS = 50
# What reads a tensor's values on the host, and so waits for the device.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select", "item")
KERNELS = {
    "prepare_rows": 3,
    "activate_rows": 1,
    "finish_rows": 3,
    "rotary_append": 1,
    "prefill_attention": 1,
}


class Launches(TorchDispatchMode):
    """Counts the operators that a GPU would launch something for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in ("empty", "new_empty", "empty_like"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def emulated() -> Iterator[None]:
    with as_cuda(EMULATED.operators):
        yield


@pytest.fixture
def chunk_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, int], Counter[str]]:
    """What a chunk of a model with so many layers launches, after one that has tried the tiles."""

    def launches(fmt: str, layout: str, layers: int) -> Counter[str]:
        if layout == ROW_MAJOR:
            monkeypatch.setattr(weights_module, "layout_of", lambda *_: GpuMatrix)
        config = small_config(hidden_size=64, num_attention_heads=1, num_hidden_layers=layers)
        path = tmp_path / str(layers)
        path.mkdir()
        checkpoint = checkpoint_of(path, config, torch.float16)
        packed = FORMATS.get(fmt)
        weights = load_weights(checkpoint, dtype=torch.float16, device=CPU, weights=packed, layout=layout)
        model = Persimmon(config, weights, max_seq_len=64, vocab_size=256)
        cache = StaticKVCache(config, max_batch_size=2, max_seq_len=64, dtype=torch.float16)
        chunk = [Segment(0, 0, list(range(TOKENS)))]
        with torch.inference_mode():
            model.prefill_chunk(chunk, cache)
            with Launches() as counted:
                model.prefill_chunk(chunk, cache)
        return counted.counts

    return launches


@pytest.mark.parametrize(
    ("fmt", "layout"),
    [
        ("float16", ROW_MAJOR),
        ("float16", TILES),
        ("fp8", ROW_MAJOR),
        ("int4-g128", ROW_MAJOR),
        ("int4-g128", TILES),
    ],
)
def test_a_layer_is_a_few_launches(
    emulated: None, chunk_launches: Callable[[str, str, int], Counter[str]], fmt: str, layout: str
) -> None:
    """13 in float16; each block of any other matrix is widened by one launch and multiplied by another."""
    one, two = chunk_launches(fmt, layout, 1), chunk_launches(fmt, layout, 2)
    layer = two - one
    as_it_is = (fmt, layout) == ("float16", ROW_MAJOR)
    products = {"linear": 3, "matmul": 1} if as_it_is else {"widen": 4, "mm": 4}
    assert layer == Counter(KERNELS) + Counter(products)
    assert not [name for name in two if name in WAITING]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("fmt", ["fp8", "int4-g32"])
def test_blocks_are_widened_by_the_kernel(
    emulated: None, monkeypatch: pytest.MonkeyPatch, fmt: str, transposed: bool
) -> None:
    """Each block once, and the sums are those of plain PyTorch."""
    monkeypatch.setattr(cuda_gemm, "_BLOCK_ELEMENTS", 1000)
    shape = (72, 136) if transposed else (136, 72)
    w = quantize(torch.randn(shape) / 9, MatrixSpec(FORMATS[fmt], shape, transposed), GpuMatrix)
    multiply = cuda_gemm.gemm.project_transposed if transposed else cuda_gemm.gemm.project
    defined = reference.project_transposed if transposed else reference.project
    x = torch.rand(16, 72)
    with Launches() as counted:
        found = multiply(x, w)
    blocks = -(-shape[0] // (1000 // shape[1]))
    assert counted.counts == Counter(prepare_rows=1, finish_rows=1, widen=blocks, mm=blocks)
    torch.testing.assert_close(found, defined(x, w), atol=4e-3, rtol=2e-3)


def test_odd_columns_run_on_plain_torch(emulated: None) -> None:
    """Which kernels of a GPU do not take."""
    w = torch.randn(30, 68).half()
    norm = torch.ones(68), torch.zeros(68), 1e-5
    with Launches() as counted:
        found = ops.lm_head(torch.randn(3, 68), *norm, w)
    assert "prepare_rows" not in counted.counts
    assert found.shape == (3, 30)


NARROW = ("allow_fp16_accumulation", "allow_fp16_reduced_precision_reduction")
NARROW += ("allow_bf16_reduced_precision_reduction",)


@pytest.mark.parametrize("allowed", [False, True])
def test_products_add_up_in_float32_and_leave_the_settings(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    settings: Any = torch.backends.cuda.matmul
    seen: list[bool] = []

    def linear(x: Tensor, w: Tensor) -> Tensor:
        seen.extend(getattr(settings, name) for name in NARROW)
        return x @ w.T

    monkeypatch.setattr(cuda_gemm.F, "linear", linear)
    before = [getattr(settings, name) for name in NARROW]
    try:
        for name in NARROW:
            setattr(settings, name, allowed)
        cuda_gemm.prefill_gemm.project(torch.randn(3, 8), torch.randn(5, 8).half())
        assert [getattr(settings, name) for name in NARROW] == [allowed] * 3
    finally:
        for name, value in zip(NARROW, before, strict=True):
            setattr(settings, name, value)
    assert seen
    assert not any(seen)


def test_settings_return_when_the_last_thread_is_done() -> None:
    settings: Any = torch.backends.cuda.matmul
    before = settings.allow_fp16_reduced_precision_reduction
    try:
        settings.allow_fp16_reduced_precision_reduction = True
        with ThreadPoolExecutor(1) as other:
            other.submit(cuda_gemm.sums_in_float32.__enter__).result()
            with cuda_gemm.sums_in_float32, cuda_gemm.sums_in_float32:
                assert not settings.allow_fp16_reduced_precision_reduction
            assert not settings.allow_fp16_reduced_precision_reduction
            other.submit(cuda_gemm.sums_in_float32.__exit__).result()
        assert settings.allow_fp16_reduced_precision_reduction
    finally:
        settings.allow_fp16_reduced_precision_reduction = before
