"""Packed checkpoints of version 2, which every device repacks while it loads, and those of version 1."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_refused, small_config, write_huggingface
from mapped import file_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saving import checkpoint_of

from adept_fast import Runtime
from adept_fast import weights as weights_module
from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.config import PersimmonConfig
from adept_fast.engine.placement import choose_placement
from adept_fast.memory.footprint import footprint
from adept_fast.quantization.formats import FORMATS, NAMES
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_plain import RowMajorMatrix
from adept_fast.quantization.matrix import QuantizedMatrix
from adept_fast.weights import ModelWeights, load_weights

CPU = torch.device("cpu")
FILE = "model.safetensors"
OLD = Path(__file__).resolve().parent.parent / "data"
CONFIGS = {
    "usual": small_config(),
    "tied": small_config(tie_word_embeddings=True),
    "awkward sizes": small_config(
        hidden_size=88, intermediate_size=100, num_attention_heads=2, vocab_size=4097
    ),
}
DENSE = "model.layers.1.self_attn.dense.weight"
DOWN = "model.layers.0.mlp.dense_4h_to_h.weight"

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_format = pytest.mark.parametrize("weights", FORMATS)
each_device = pytest.mark.parametrize("layout", [TiledMatrix, GpuMatrix], ids=["cpu", "gpu"])


def tensors_of(weights: ModelWeights) -> list[torch.Tensor]:
    """Every tensor, in order; of packed matrices the values and the scales."""
    layers = [part for layer in weights.layers for part in vars(layer).values() if part is not None]
    parts = [weights.embedding, *layers, weights.final_gamma, weights.final_beta, weights.lm_head]
    return [
        tensor for part in parts for tensor in (part.parts if isinstance(part, QuantizedMatrix) else (part,))
    ]


def assert_same(found: ModelWeights, expected: ModelWeights) -> None:
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A sound checkpoint in fp8, whose values may hold a NaN."""
    checkpoint_of(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "packed", weights="fp8", progress=False)
    return tmp_path / "packed"


class TestEveryDevice:
    @pytest.mark.slow
    @every_format
    @every_config
    @each_device
    def test_loading_gives_the_bits_of_packing_floats(
        self,
        tmp_path: Path,
        config: PersimmonConfig,
        weights: str,
        layout: type[QuantizedMatrix],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        chosen = FORMATS[weights]
        if not layout.holds(chosen):
            pytest.skip("there is no such order")
        monkeypatch.setattr(weights_module, "layout_of", lambda *_: layout)
        source = checkpoint_of(tmp_path / "source", config, torch.bfloat16)
        convert(source.path, tmp_path / "packed", weights=weights, progress=False)
        checkpoint = open_checkpoint(tmp_path / "packed")
        assert checkpoint.weights == chosen
        found, expected = (
            load_weights(one, dtype=torch.bfloat16, device=CPU, weights=chosen)
            for one in (checkpoint, source)
        )
        assert_same(found, expected)
        assert isinstance(found.lm_head, layout)
        assert isinstance(expected.lm_head, layout)
        assert found.lm_head.spec == expected.lm_head.spec
        counted = [footprint(one, torch.bfloat16, chosen) for one in (checkpoint, source)]
        assert counted[0].total_bytes == counted[1].total_bytes

    @pytest.mark.parametrize("weights", ["int8", "int4"])
    def test_a_runtime_says_what_it_says_of_the_floats(self, tmp_path: Path, weights: str) -> None:
        convert("demo", tmp_path / "packed", weights=weights, progress=False)
        one, other = (
            Runtime.load(name, weights=weights, device="cpu", progress=False)
            for name in (tmp_path / "packed", "demo")
        )
        prompt = "Tell me a story."
        assert one.score([prompt])[0].logprobs == other.score([prompt])[0].logprobs
        found, expected = (runtime.generate(prompt, max_new_tokens=6, logprobs=2) for runtime in (one, other))
        assert (found.text, found.logprobs) == (expected.text, expected.logprobs)
        assert one.bytes_read_per_step(9) == other.bytes_read_per_step(9)

    def test_the_rows_of_the_vocabulary_can_be_cut(
        self, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(weights_module, "layout_of", lambda *_: GpuMatrix)
        checkpoint = open_checkpoint(packed)
        whole, some = (
            load_weights(checkpoint, dtype=torch.float16, device=CPU, vocab_rows=rows)
            for rows in (None, 4090)
        )
        assert isinstance(whole.lm_head, GpuMatrix)
        assert isinstance(some.lm_head, GpuMatrix)
        assert torch.equal(some.lm_head.dequantize(), whole.lm_head.dequantize(0, 4090))
        assert some.embedding.shape == (4090, 64)

    def test_never_more_than_one_matrix_is_held_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint_of(tmp_path / "source")
        convert(tmp_path / "source", tmp_path / "packed", weights="int4", progress=False)
        checkpoint = open_checkpoint(tmp_path / "packed", mmap=False)
        alive: list[weakref.ref[torch.Tensor]] = []
        highest = 0

        def counted(read: Callable[[], QuantizedMatrix]) -> QuantizedMatrix:
            nonlocal highest
            matrix = read()
            alive.append(weakref.ref(matrix.values))
            highest = max(highest, sum(reference() is not None for reference in alive))
            return matrix

        watched = {name: (lambda read=read: counted(read)) for name, read in checkpoint.packed.items()}
        load_weights(replace(checkpoint, packed=watched), dtype=torch.float16, device=CPU)
        assert (len(alive), highest) == (9, 1)

    def test_float8_is_not_run_on_a_cpu(self, packed: Path) -> None:
        with pytest.raises(ParameterError, match="weights is fp8; expected int8 or int4-g32 or .* on cpu"):
            choose_placement(open_checkpoint(packed), CPU, "auto", "float16")

    def test_int4_is_whichever_a_checkpoint_has(self, tmp_path: Path) -> None:
        checkpoint_of(tmp_path / "source")
        convert(tmp_path / "source", tmp_path / "packed", weights="int4-g32", progress=False)
        checkpoint = open_checkpoint(tmp_path / "packed")
        for asked in ("int4", "int4-g32", None):
            placed = choose_placement(checkpoint, CPU, "auto", "float16", asked)
            assert placed.weights == FORMATS["int4-g32"]
        with pytest.raises(CheckpointError, match="packed as int4-g32; .* not 'int4-g128'"):
            choose_placement(checkpoint, CPU, "auto", "float16", "int4-g128")


class TestFiles:
    @every_format
    def test_values_and_scales_lie_in_plain_rows(self, tmp_path: Path, weights: str) -> None:
        source = checkpoint_of(tmp_path / "source")
        convert(source.path, tmp_path / "packed", weights=weights, progress=False)
        stored = load_file(tmp_path / "packed" / FILE)
        checkpoint = open_checkpoint(tmp_path / "packed")
        for name, shape in ((DENSE, (64, 64)), (DOWN, (192, 64))):
            values, scales = stored[f"{name}.values"], stored[f"{name}.scales"].float()
            if weights.startswith("int4"):
                group = int(weights.removeprefix("int4-g"))
                both = torch.stack((values & 15, values >> 4), -1).flatten(1).float() - 8
                found = (both * scales.repeat_interleave(group, 1))[:, : shape[1]]
            else:
                found = values.float() * (scales if name == DOWN else scales[:, None])
            assert found.shape == shape
            expected = checkpoint.tensors[name].read()
            assert torch.equal(found, expected.t() if name == DOWN else expected)

    @pytest.mark.parametrize("weights", ["int8", "int4-g32", "int4-g128"])
    def test_layouts_convert_into_each_other(self, tmp_path: Path, weights: str) -> None:
        checkpoint_of(tmp_path / "source")
        for source, name, layout in (
            ("source", "plain", "row_major"),
            ("source", "tiled", "cpu_tiled"),
            ("plain", "tiled of plain", "cpu_tiled"),
            ("tiled", "plain of tiled", "row_major"),
        ):
            convert(tmp_path / source, tmp_path / name, weights=weights, layout=layout, progress=False)
        for kind in ("plain", "tiled"):
            (found,) = (tmp_path / f"{kind} of {other}" for other in ("plain", "tiled") if other != kind)
            for file in (FILE, "config.json"):
                assert (found / file).read_bytes() == (tmp_path / kind / file).read_bytes()

    def test_the_header_says_what_is_there(self, packed: Path) -> None:
        with safe_open(packed / FILE, framework="pt") as opened:
            assert opened.metadata() == {
                "format": "adept-fast",
                "version": "2",
                "weights": "fp8",
                "layout": "row_major",
                "rounding": "weight = scale * q, q float8 e4m3, one float32 scale for each output",
            }
        section = json.loads((packed / "config.json").read_text())["quantization_config"]
        assert section == {
            "quant_method": "adept-fast",
            "version": 2,
            "weights": "fp8",
            "layout": "row_major",
        }

    def test_tensors_are_aligned_to_their_elements(self, tmp_path: Path) -> None:
        checkpoint_of(tmp_path / "source", CONFIGS["awkward sizes"])
        convert(tmp_path / "source", tmp_path / "packed", weights="int4", progress=False)
        checkpoint = open_checkpoint(tmp_path / "packed")
        for name, read in checkpoint.packed.items():
            for part in read().parts:
                assert file_of(part) == str(tmp_path / "packed" / FILE), name
                assert part.data_ptr() % part.dtype.itemsize == 0


def arithmetic_checkpoint(folder: Path) -> Checkpoint:
    """That from which the checkpoints of version 1 in tests/data were made."""
    config = small_config(
        vocab_size=288, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    tensors = {}
    for number, (name, shape) in enumerate(config.tensor_shapes().items()):
        at = torch.arange(torch.Size(shape).numel()) + 1000 * number
        tensors[name] = ((at * 40503 % 65521 - 32760) / 65536).reshape(shape).half()
    tokenizer = (OLD / "packed_version_1_int8" / "tokenizer.model").read_bytes()
    return open_checkpoint(write_huggingface(folder, config, tensors, tokenizer))


@pytest.mark.parametrize(("name", "weights"), [("int8", "int8"), ("int4", "int4-g32")])
class TestVersion1:
    """Files that an earlier release wrote."""

    def test_they_hold_the_bytes_that_are_written_today(
        self, tmp_path: Path, name: str, weights: str
    ) -> None:
        source = arithmetic_checkpoint(tmp_path / "source")
        convert(source.path, tmp_path / "new", weights=weights, layout="cpu_tiled", progress=False)
        old, new = (load_file(path / FILE) for path in (OLD / f"packed_version_1_{name}", tmp_path / "new"))
        assert list(old) == list(new)
        for tensor, values in old.items():
            assert values.dtype == new[tensor].dtype
            assert torch.equal(values, new[tensor]), tensor

    @each_device
    def test_they_are_loaded_on_every_device(
        self,
        tmp_path: Path,
        name: str,
        weights: str,
        layout: type[QuantizedMatrix],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(weights_module, "layout_of", lambda *_: layout)
        old = open_checkpoint(OLD / f"packed_version_1_{name}")
        assert old.weights == FORMATS[weights]
        source = arithmetic_checkpoint(tmp_path / "source")
        found, expected = (
            load_weights(one, dtype=torch.float16, device=CPU, weights=FORMATS[weights])
            for one in (old, source)
        )
        assert_same(found, expected)
        if layout is TiledMatrix:  # without a copy
            assert isinstance(found.lm_head, TiledMatrix)
            assert file_of(found.lm_head.values) == str(OLD / f"packed_version_1_{name}" / FILE)

    def test_they_are_converted(self, tmp_path: Path, name: str, weights: str) -> None:
        old = OLD / f"packed_version_1_{name}"
        convert(old, tmp_path / "new", weights=name, progress=False)
        new = open_checkpoint(tmp_path / "new")
        assert new.weights == FORMATS[weights]
        for tensor, stored in open_checkpoint(old).tensors.items():
            assert torch.equal(new.tensors[tensor].read(), stored.read())


class TestRefusal:
    def change(
        self, path: Path, change: Callable[[dict[str, torch.Tensor]], object], **metadata: str
    ) -> None:
        file = path / FILE
        with safe_open(file, framework="pt") as opened:
            kept = opened.metadata()
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(tensors)
        save_file(tensors, file, kept | metadata)

    @pytest.mark.parametrize("layout", ["gpu_row_major", None, 1, ["row_major"], "x" * 500])
    def test_an_unknown_layout(self, packed: Path, layout: Any) -> None:
        config = json.loads((packed / "config.json").read_text())
        config["quantization_config"]["layout"] = layout
        (packed / "config.json").write_text(json.dumps(config))
        assert_refused(packed, "config.json", "has the layout", "expected 'row_major' or 'cpu_tiled'")

    def test_a_layout_without_such_weights(self, packed: Path) -> None:
        config = json.loads((packed / "config.json").read_text())
        config["quantization_config"]["layout"] = "cpu_tiled"
        (packed / "config.json").write_text(json.dumps(config))
        assert_refused(packed, "config.json", "has fp8 weights in the order cpu_tiled")

    def test_config_and_header_disagree(self, packed: Path) -> None:
        self.change(packed, lambda tensors: None, weights="int8")
        assert_refused(packed, FILE, "has int8 weights", "config.json says fp8 weights")

    @pytest.mark.parametrize("name", [DENSE, DOWN, "lm_head.weight"])
    @pytest.mark.parametrize("part", ["values", "scales"])
    def test_each_part_has_its_shape_and_dtype(self, packed: Path, name: str, part: str) -> None:
        key = f"{name}.{part}"
        whole = (packed / FILE).read_bytes()
        for change, needle in (
            (lambda tensors: tensors.pop(key), "is missing"),
            (lambda tensors: tensors.update({key: tensors[key][:-1].clone()}), "has shape"),
            (
                lambda tensors: tensors.update({key: tensors[key].repeat(2, *[1] * (tensors[key].ndim - 1))}),
                "has shape",
            ),
            (lambda tensors: tensors.update({key: tensors[key].double()}), "has dtype float64"),
            (lambda tensors: tensors.update({f"{name}.minima": tensors[key].clone()}), "does not belong"),
        ):
            (packed / FILE).write_bytes(whole)
            self.change(packed, change)
            assert_refused(packed, FILE, name, needle)

    @pytest.mark.parametrize("size", ["hidden_size", "intermediate_size", "vocab_size"])
    def test_a_config_of_a_larger_model_allocates_nothing(self, packed: Path, size: str) -> None:
        config = json.loads((packed / "config.json").read_text())
        config[size] *= 1 << 16
        (packed / "config.json").write_text(json.dumps(config))
        assert_refused(packed, FILE, "the config calls for")

    @pytest.mark.parametrize("kept", [0, 8, 5000, -1])
    def test_a_truncated_file(self, packed: Path, kept: int) -> None:
        whole = (packed / FILE).read_bytes()
        (packed / FILE).write_bytes(whole[:kept])
        assert_refused(packed, FILE)

    def test_numbers_that_are_not_finite_are_refused_when_they_are_loaded(
        self, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(weights_module, "layout_of", lambda *_: GpuMatrix)
        whole = (packed / FILE).read_bytes()
        for part, bad in (("scales", float("inf")), ("scales", float("nan")), ("values", float("nan"))):
            (packed / FILE).write_bytes(whole)
            self.change(packed, lambda tensors, p=part, b=bad: tensors[f"{DENSE}.{p}"].view(-1)[7:8].fill_(b))
            checkpoint = open_checkpoint(packed)
            with pytest.raises(CheckpointError, match=rf"{DENSE}\.{part} has a NaN"):
                load_weights(checkpoint, dtype=torch.float16, device=CPU)
            load_weights(checkpoint, dtype=torch.float16, device=CPU, check_finite=False)


def test_the_default_is_the_layout_of_every_device(tmp_path: Path) -> None:
    checkpoint_of(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "packed", weights="int4", progress=False)
    checkpoint = open_checkpoint(tmp_path / "packed")
    assert checkpoint.weights == NAMES["int4"] == FORMATS["int4-g128"]
    assert isinstance(checkpoint.packed[DENSE](), RowMajorMatrix)
