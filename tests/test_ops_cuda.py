"""The operators for a GPU from Python: who is called for what, and a whole model on the emulated kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import EMULATED
from checkpoints import small_config
from dispatch_double import Recorder, as_cuda
from saving import checkpoint_of
from torch import Tensor

from adept_fast import ops
from adept_fast import weights as weights_module
from adept_fast.extension import Extension
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon, Segment, chunks
from adept_fast.ops import cuda, cuda_gemm, reference
from adept_fast.quantization.formats import FORMATS, MatrixSpec, float_format
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles, GpuTiles
from adept_fast.quantization.matrix import Matrix, QuantizedMatrix, quantize, repack
from adept_fast.sampling import Sampler, SamplingParams
from adept_fast.weights import load_weights

CPU = torch.device("cpu")
FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PACKED = {"int8": FORMATS["int8"], "fp8": FORMATS["fp8"], "int4": FORMATS["int4-g128"]}
OF_A_CPU = {"int8 of a CPU": FORMATS["int8"], "int4 of a CPU": FORMATS["int4-g32"]}
READABLE = (*FLOATS, *PACKED)
NAMES = ("layernorm_qkv", "rotary_append", "decode_attention", "linear_residual", "mlp", "lm_head")
EPS = 1e-5


@pytest.fixture
def emulated() -> Iterator[None]:
    with as_cuda(EMULATED.operators):
        yield


def matrix(fmt: str, rows: int, columns: int, layout: Any = "rows") -> Matrix:
    generator = torch.Generator().manual_seed(rows + columns)
    drawn = torch.randn(rows, columns, generator=generator) / columns**0.5
    if fmt in PACKED:
        return packed_for_a_gpu(fmt, drawn, layout)
    if fmt in OF_A_CPU:
        return quantize(drawn, MatrixSpec(OF_A_CPU[fmt], (rows, columns), layout == "units"), TiledMatrix)
    return drawn.to(getattr(torch, fmt))


def in_tiles(w: Matrix, layout: Any = "rows") -> Matrix:
    """The same weights."""
    if isinstance(w, QuantizedMatrix):
        return repack(w, GpuTiles, CPU)
    assert isinstance(w, Tensor)
    spec = MatrixSpec(float_format(w.dtype), (w.shape[0], w.shape[1]), layout == "units")
    return GpuFloatTiles.pack(w, spec, CPU)


def packed_for_a_gpu(fmt: str, values: Tensor, layout: Any = "rows") -> GpuMatrix:
    spec = MatrixSpec(PACKED[fmt], (values.shape[0], values.shape[1]), layout == "units")
    return quantize(values, spec, GpuMatrix)


def exact(w: Matrix) -> Tensor:
    return (w if isinstance(w, Tensor) else w.dequantize()).double()


def all_products(by: Any, tokens: int, fmt: str, tiles: bool = False) -> list[Tensor]:
    hidden = 64
    x, norm = torch.randn(tokens, hidden), (torch.ones(hidden), torch.zeros(hidden), EPS)
    w, bias = matrix(fmt, 48, hidden), torch.randn(48)
    down = matrix(fmt, 48, hidden, "units")
    if tiles:
        w, down = in_tiles(w), in_tiles(down, "units")
    return [
        by.layernorm_qkv(x, *norm, w, bias),
        by.linear_residual(x, w, bias, torch.randn(tokens, 48)),
        by.mlp(x, *norm, w, bias, down, torch.randn(hidden), None),
        by.lm_head(x, *norm, w),
    ]


class TestUnavailable:
    @pytest.mark.parametrize(
        ("built", "capability", "says"),
        [
            (Extension(False, "no compiler"), (9, 0), "no compiler"),
            (Extension(True, "built", cuda_reason="no nvcc"), (9, 0), "built without CUDA: no nvcc"),
            (Extension(True, "built", cuda=True), (7, 5), "capability is 7.5, and the kernels need 8.0"),
            (Extension(True, "built", cuda=True), (8, 0), None),
        ],
    )
    def test_why_there_are_no_kernels(
        self,
        monkeypatch: pytest.MonkeyPatch,
        built: Extension,
        capability: tuple[int, int],
        says: str | None,
    ) -> None:
        monkeypatch.setattr(cuda.extension, "load", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(cuda.extension, "missing_for_cuda", lambda: "")
        found = cuda.unavailable.__wrapped__(torch.device("cuda"))
        assert found is None if says is None else says in str(found)

    def test_what_the_extension_misses_of_torch_is_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        missing = "libtorch_cuda.so has no function that gives the stream"
        monkeypatch.setattr(cuda.extension, "load", lambda: Extension(True, "built", cuda=True))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(cuda.extension, "missing_for_cuda", lambda: missing)
        assert cuda.unavailable.__wrapped__(torch.device("cuda")) == missing


class TestFault:
    """On a CPU that stands for a GPU; what reads a tensor there gives the same sum."""

    def test_none_where_a_kernel_runs(self, emulated: None) -> None:
        assert cuda.fault(CPU) is None

    def test_why_there_are_none(self) -> None:
        with as_cuda(None, "no nvcc"):
            assert cuda.fault(CPU) == "no nvcc"

    def test_an_error_is_one_line(self) -> None:
        def fail(words: Tensor) -> Tensor:
            raise RuntimeError("read: no kernel image is available\nfor this device")

        with as_cuda(SimpleNamespace(read=fail)):
            assert cuda.fault(CPU) == "one that reads ended with: read: no kernel image is available"

    def test_a_kernel_that_does_nothing_is_noticed(self) -> None:
        with as_cuda(Recorder()):
            assert cuda.fault(CPU) == "one that reads gave 0; expected 8390656"


class TestManyTokens:
    @pytest.mark.parametrize("fmt", [*READABLE, "float32"])
    def test_they_are_the_reference(self, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda_gemm, "_BLOCK_ELEMENTS", 1000)
        torch.manual_seed(1)
        ours = all_products(cuda_gemm.gemm, 20, fmt)
        torch.manual_seed(1)
        coarser = 8 if fmt == "bfloat16" else 1  # than float16
        for found, expected in zip(ours, all_products(reference, 20, fmt), strict=True):
            torch.testing.assert_close(found, expected, atol=coarser * 4e-3, rtol=coarser * 2e-3)

    @pytest.mark.parametrize("fmt", READABLE)
    def test_they_are_the_same_in_tiles(self, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of packed weights bit for bit; of floats, whose products are float32 here, but for rounding."""
        monkeypatch.setattr(cuda_gemm, "_BLOCK_ELEMENTS", 1000)
        products = []
        for by, tiles in (
            (cuda_gemm.gemm, True),
            (cuda_gemm.gemm, False),
            (reference, True),
            (reference, False),
        ):
            torch.manual_seed(1)
            products.append(all_products(by, 20, fmt, tiles))
        for tiled, rows, by_reference, expected in zip(*products, strict=True):
            assert torch.equal(tiled, rows) or fmt in FLOATS
            off = 3e-2 if fmt == "bfloat16" else 4e-3
            torch.testing.assert_close(tiled, expected, atol=off, rtol=off / 2)
            torch.testing.assert_close(by_reference, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("layout", ["rows", "units"])
    @pytest.mark.parametrize("fmt", PACKED)
    @pytest.mark.parametrize("floats", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e9])
    def test_no_size_of_inputs_loses_more_than_torch_does(
        self, size: float, floats: torch.dtype, fmt: str, layout: Any
    ) -> None:
        w = packed_for_a_gpu(fmt, (torch.randn(200, 264) / 16).to(floats), layout)
        assert w.spec.product_dtype == floats
        x = torch.randn(30, 264 if layout == "rows" else 200)
        weights = exact(w).T if layout == "rows" else exact(w)
        product = cuda_gemm.gemm.project if layout == "rows" else cuda_gemm.gemm.project_transposed
        off = product(x * size, w).double() / size - x.double() @ weights
        torchs = (x.to(floats) @ weights.to(floats)).double() - x.double() @ weights
        assert off.square().mean() <= 4 * torchs.square().mean()

    @pytest.mark.parametrize("layout", ["rows", "units"])
    def test_sums_all_of_one_sign_do_not_overflow(self, layout: Any) -> None:
        w = packed_for_a_gpu("fp8", torch.full((8, 4096) if layout == "rows" else (4096, 8), 0.05), layout)
        product = cuda_gemm.gemm.project if layout == "rows" else cuda_gemm.gemm.project_transposed
        found = product(torch.full((1, 4096), 7.0), w)
        torch.testing.assert_close(found, torch.full((1, 8), 7 * 0.05 * 4096), rtol=1e-3, atol=0)

    def test_no_inputs_at_all(self) -> None:
        w = matrix("fp8", 48, 64)
        assert isinstance(w, GpuMatrix)
        assert not cuda_gemm.gemm.project(torch.zeros(3, 64), w).any()


def test_prompts_with_a_cache_in_float32(emulated: None) -> None:
    """By the kernel of decode steps, 16 queries at a time: the chunks of a prompt change no bit."""
    cache, q = torch.randn(2, 3, 2, 60, 24), torch.randn(50, 2, 24)
    cache[:, :, :, 57:] = float("nan")
    whole = ops.prefill_attention(q, cache, 1, 7, 0.2)
    torch.testing.assert_close(whole, reference.prefill_attention(q, cache, 1, 7, 0.2))
    for start, end in ((0, 1), (3, 30), (33, 50)):
        assert torch.equal(ops.prefill_attention(q[start:end], cache, 1, 7 + start, 0.2), whole[start:end])


VOCABULARY, STEPS = 256, 6


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The logits of each step of two sequences, by the operators of a module."""

    def decode(model: Persimmon, cache_dtype: torch.dtype, ids: Tensor, module: Any) -> Tensor:
        cache = StaticKVCache(model.config, max_batch_size=3, max_seq_len=16, dtype=cache_dtype)
        cache.data.fill_(float("nan"))
        cache.data[:, :, 0, :, :2] = 0.5  # the second sequence begins behind two positions
        slots, first = torch.tensor([2, 0]), torch.tensor([0, 2])
        with monkeypatch.context() as patch, torch.inference_mode():
            for name in NAMES:
                patch.setattr(ops, name, getattr(module, name))
            steps = [
                model.decode_step_by_operators(ids[step], slots, first + step, cache, step + 3)
                for step in range(STEPS)
            ]
        return torch.stack(steps)

    return decode


def in_dtype_of_weights(patch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The reference as it is on a GPU: products in the weights' dtype, attention in the cache's."""

    def rounded(w: Matrix) -> Tensor:
        return exact(w).to(dtype)

    def transposed(x: Tensor, w_t: Matrix) -> Tensor:
        exponents = torch.frexp(x.amax(-1, keepdim=True)).exponent
        return torch.ldexp((torch.ldexp(x, -exponents).to(dtype) @ rounded(w_t)).float(), exponents)

    patch.setattr(reference, "project", lambda x, w: F.linear(x.to(dtype), rounded(w)).float())
    patch.setattr(reference, "project_transposed", transposed)
    patch.setattr(reference, "_attention_dtype", lambda cache: cache.dtype)


@pytest.mark.parametrize("fmt", READABLE)
def test_a_model_says_what_the_reference_says(
    emulated: None,
    decode: Callable[..., Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fmt: str,
) -> None:
    dtype = FLOATS.get(fmt, torch.float16)
    monkeypatch.setattr(weights_module, "layout_of", lambda *_: GpuMatrix)
    config = small_config(hidden_size=64, num_attention_heads=1)
    checkpoint = checkpoint_of(tmp_path, config, dtype)
    packed = PACKED.get(fmt)
    weights = load_weights(checkpoint, dtype=dtype, device=CPU, weights=packed)
    model = Persimmon(config, weights, max_seq_len=16, vocab_size=VOCABULARY)
    ids = torch.randint(0, VOCABULARY, (STEPS, 2), generator=torch.Generator().manual_seed(0))
    expected = decode(model, torch.float32, ids, reference)
    model.neuron_counts.zero_()
    found = decode(model, dtype, ids, ops)
    assert model.neuron_counts[1] == STEPS * 2 * config.intermediate_size
    assert 0 < model.neuron_counts[0] < model.neuron_counts[1]
    with monkeypatch.context() as patch:
        in_dtype_of_weights(patch, dtype)
        torchs = decode(model, dtype, ids, reference)
    error, torchs_error = ((logits - expected).square().mean().sqrt() for logits in (found, torchs))
    assert error <= 2 * torchs_error
    best = expected.topk(2).values
    clear = best[..., 0] - best[..., 1] > 4 * (torchs - expected).abs().amax(-1)
    assert clear.float().mean() > 0.5
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize(
    ("fmt", "cache_dtype", "layout"),
    [
        ("float16", torch.float16, "row_major"),
        ("fp8", torch.bfloat16, "row_major"),
        ("int4", torch.float32, "row_major"),
        ("bfloat16", torch.float16, "tiles"),
        ("int4", torch.float16, "tiles"),
    ],
)
def test_chunks_of_a_prompt_and_company_change_no_bit(
    emulated: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fmt: str,
    cache_dtype: torch.dtype,
    layout: str,
) -> None:
    if layout == "row_major":
        monkeypatch.setattr(weights_module, "layout_of", lambda *_: GpuMatrix)
    config = small_config(hidden_size=64, num_attention_heads=1)
    checkpoint = checkpoint_of(tmp_path, config, torch.float16)
    dtype = FLOATS.get(fmt, torch.float16)
    weights = load_weights(checkpoint, dtype=dtype, device=CPU, weights=PACKED.get(fmt), layout=layout)
    model = Persimmon(config, weights, max_seq_len=96, vocab_size=VOCABULARY)
    ids = [at * 37 % VOCABULARY for at in range(90)]

    def states(segments: list[Segment], max_tokens: int) -> Tensor:
        """Of slot 2."""
        cache = StaticKVCache(config, max_batch_size=3, max_seq_len=96, dtype=cache_dtype)
        cache.data.fill_(float("nan"))
        found = []
        for chunk in chunks(segments, max_tokens):
            hidden = model.prefill_chunk(chunk, cache).split([len(segment.ids) for segment in chunk])
            found += [own for segment, own in zip(chunk, hidden, strict=True) if segment.slot == 2]
        return torch.cat(found)

    with torch.inference_mode():
        whole = states([Segment(2, 0, ids)], 512)
        assert torch.isfinite(whole).all()
        for max_tokens in (7, 16, 17, 64, 89):
            assert torch.equal(states([Segment(2, 0, ids)], max_tokens), whole), max_tokens
        others = [Segment(0, 0, ids[5:30]), Segment(2, 0, ids), Segment(1, 0, ids[:1])]
        for max_tokens in (33, 512):
            assert torch.equal(states(others, max_tokens), whole), max_tokens


class TestSampler:
    PARAMS = (
        SamplingParams(),
        SamplingParams(temperature=0.9, seed=3),
        SamplingParams(temperature=1.2, top_k=9, top_p=0.8, seed=4),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(temperature=0.7, min_p=0.1, repetition_penalty=1.2, seed=5),
        SamplingParams(frequency_penalty=1.5, presence_penalty=-0.5),
        SamplingParams(temperature=0.8, top_p=0.9, presence_penalty=1.0, logit_bias={7: 4, 299: -9}, seed=6),
    )

    def started(self) -> Sampler:
        sampler = Sampler(8, 300, CPU)
        for slot, params in enumerate(self.PARAMS):
            sampler.start(slot, params, range(slot, 40), generated_ids=[5, 60, 5, 299])
        return sampler

    def test_it_is_the_same_in_one_call(self) -> None:
        by_torch = self.started()
        with as_cuda(EMULATED.operators):
            by_kernel = self.started()
        rows = [4, 1, 6, 0, 5, 3, 2]
        logits = torch.randn(4, len(rows), 300, generator=torch.Generator().manual_seed(2)) * 3
        for step in range(4):
            at = logits[step], torch.tensor(rows), torch.full((len(rows),), 39 + step)
            assert torch.equal(by_kernel.choose(*at), by_torch.choose(*at))

    def test_one_call_whatever_is_asked_for(self) -> None:
        recorder = Recorder()
        with as_cuda(recorder):
            sampler = self.started()
        for slot in range(len(self.PARAMS)):
            sampler.choose(torch.randn(1, 300), torch.tensor([slot]), torch.tensor([40]))
        assert recorder.called == ["sample"] * len(self.PARAMS)
