"""Native checkpoints: they hold what loading would have packed, stay in place, and nothing else is read."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_refused, small_config
from click.testing import CliRunner
from mapped import file_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saving import checkpoint_of

from adept_fast.checkpoint import CheckpointError, open_checkpoint, save_native
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.native import packed_matrices, tensors_of
from adept_fast.commands.cli import convert as convert_command
from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.memory.footprint import footprint
from adept_fast.quantization.formats import FORMATS, NAMES, WeightFormat
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.matrix import QuantizedMatrix, quantize
from adept_fast.weights import ModelWeights, load_weights

CPU = torch.device("cpu")
CONFIGS = {
    "usual": small_config(),
    "no qk_layernorm": small_config(qk_layernorm=False),
    "tied": small_config(tie_word_embeddings=True),
    "awkward sizes": small_config(
        hidden_size=88, intermediate_size=100, num_attention_heads=2, vocab_size=4097
    ),
}
DENSE = "model.layers.1.self_attn.dense.weight"
DOWN = "model.layers.0.mlp.dense_4h_to_h.weight"

every_format = pytest.mark.parametrize("weights", ["int8", "int4-g32"])
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def parts_of(weights: ModelWeights) -> list[torch.Tensor]:
    """Every tensor, in order; of packed matrices the values and the scales."""
    layers = [part for layer in weights.layers for part in vars(layer).values() if part is not None]
    parts = [weights.embedding, *layers, weights.final_gamma, weights.final_beta, weights.lm_head]
    return [
        tensor
        for part in parts
        for tensor in ((part.values, part.scales) if isinstance(part, QuantizedMatrix) else (part,))
    ]


def load(path: Path, weights: WeightFormat | None = None, dtype: torch.dtype = torch.float16) -> ModelWeights:
    return load_weights(open_checkpoint(path), dtype=dtype, device=CPU, weights=weights)


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """A sound packed checkpoint in int4-g32, which a CPU loads without a copy."""
    checkpoint_of(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "native", weights="int4-g32", layout="cpu_tiled", progress=False)
    return tmp_path / "native"


class TestRoundTrip:
    @every_format
    @every_config
    def test_it_holds_what_loading_would_have_packed(
        self, tmp_path: Path, config: PersimmonConfig, weights: str
    ) -> None:
        source = checkpoint_of(tmp_path / "source", config)
        report = convert(tmp_path / "source", tmp_path / "native", weights=weights, progress=False)
        native = open_checkpoint(tmp_path / "native")
        assert (native.format, native.weights, report.format) == ("native", FORMATS[weights], "native")
        assert (native.config, native.dtype) == (source.config, source.dtype)
        assert native.tokenizer.model == source.tokenizer.model
        assert native.tokenizer.add_bos == source.tokenizer.add_bos
        found, expected = load(native.path), load(source.path, FORMATS[weights])
        for one, other in zip(parts_of(found), parts_of(expected), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        held = footprint(source, torch.float16, FORMATS[weights])
        assert footprint(native, torch.float16).total_bytes == held.total_bytes

    @every_format
    @every_config
    def test_its_tensors_are_the_weights_unpacked(
        self, tmp_path: Path, config: PersimmonConfig, weights: str
    ) -> None:
        source = checkpoint_of(tmp_path / "source", config)
        convert(tmp_path / "source", tmp_path / "native", weights=weights, progress=False)
        native = open_checkpoint(tmp_path / "native")
        matrices = packed_matrices(config, FORMATS[weights], TiledMatrix)
        assert list(native.tensors) == list(config.tensor_shapes())
        for name, stored in source.tensors.items():
            tensor = native.tensors[name].read()
            assert (tuple(tensor.shape), tensor.dtype) == (stored.shape, native.tensors[name].dtype)
            if name not in matrices:
                assert torch.equal(tensor, stored.read().to(tensor.dtype))
            else:
                assert 0 < (tensor - stored.read()).square().mean().sqrt() < 0.1 * stored.read().std()

    def test_weights_stay_in_the_file(self, native: Path) -> None:
        checkpoint = open_checkpoint(native)
        loaded = load_weights(checkpoint, dtype=checkpoint.dtype, device=CPU)
        for name, matrix in (
            ("model.layers.1.mlp.dense_4h_to_h.weight", loaded.layers[1].w_down_t),
            ("lm_head.weight", loaded.lm_head),
        ):
            assert name in checkpoint.packed
            assert isinstance(matrix, QuantizedMatrix)
            assert file_of(matrix.values) == file_of(matrix.scales) == str(native / "model.safetensors")
            assert matrix.values.data_ptr() % 64 == 0
        assert file_of(loaded.embedding) == str(native / "model.safetensors")

    def test_the_header_says_what_is_there(self, native: Path) -> None:
        with safe_open(native / "model.safetensors", framework="pt") as opened:
            metadata = opened.metadata()
        assert [metadata[name] for name in ("format", "version", "weights", "layout")] == [
            "adept-fast",
            "2",
            "int4-g32",
            "cpu_tiled",
        ]
        assert "scale * (q - 8)" in metadata["rounding"]
        assert "lm_head: weight = scale * q" in metadata["rounding"]

    def test_the_embedding_can_be_halved(self, tmp_path: Path) -> None:
        source = checkpoint_of(tmp_path / "source", dtype=torch.float32)
        convert(source.path, tmp_path / "kept", weights="int8", progress=False)
        convert(source.path, tmp_path / "halved", weights="int8", dtype=torch.float16, progress=False)
        assert open_checkpoint(tmp_path / "kept").dtype == torch.float32
        assert open_checkpoint(tmp_path / "halved").dtype == torch.float16
        kept, halved = load(tmp_path / "kept", dtype=torch.float32), load(tmp_path / "halved")
        for one, other in zip(parts_of(kept)[1:], parts_of(halved)[1:], strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("to", ["huggingface", "adept"])
    def test_it_converts_back_to_floats(self, native: Path, tmp_path: Path, to: Any) -> None:
        convert(native, tmp_path / "back", to=to, dtype=torch.float32, progress=False)
        found, expected = open_checkpoint(tmp_path / "back"), open_checkpoint(native)
        for name, stored in expected.tensors.items():
            assert torch.equal(found.tensors[name].read(), stored.read().float()), name


class TestWriting:
    def test_never_more_than_one_matrix_is_held(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint_of(tmp_path / "source")
        alive: list[weakref.ref[torch.Tensor]] = []
        most = 0

        def counted(matrix: torch.Tensor, *others: Any) -> QuantizedMatrix:
            nonlocal most
            result = quantize(matrix, *others)
            alive.append(weakref.ref(result.values))
            most = max(most, sum(reference() is not None for reference in alive))
            return result

        monkeypatch.setattr("adept_fast.quantization.matrix.quantize", counted)
        convert(tmp_path / "source", tmp_path / "native", weights="int8", progress=False)
        assert len(alive) == 9
        assert most <= 2  # the one before lives until its name is taken

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_a_failure_midway_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
    ) -> None:
        checkpoint_of(tmp_path / "source")
        calls = 0

        def fail_late(tensor: torch.Tensor) -> memoryview:
            nonlocal calls
            calls += 1
            if calls == 9:
                raise error
            return tensor.reshape(-1).view(torch.uint8).numpy().data

        monkeypatch.setattr(save_native, "bytes_of", fail_late)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            convert(tmp_path / "source", tmp_path / "native", weights="int4", progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_weight_that_is_not_finite_is_refused(self, tmp_path: Path, bad: float) -> None:
        source = checkpoint_of(tmp_path / "source")
        tensors = load_file(source.path / "model.safetensors")
        tensors[DENSE][3, 5] = bad
        save_file(tensors, tmp_path / "source" / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"tensor {DENSE} has a NaN or an infinity"):
            convert(tmp_path / "source", tmp_path / "native", weights="int4", progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    def test_a_packed_one_is_copied_as_it_is(self, native: Path, tmp_path: Path) -> None:
        convert(native, tmp_path / "copy", weights="int4", layout="cpu_tiled", progress=False)
        file = "model.safetensors"
        assert (tmp_path / "copy" / file).read_bytes() == (native / file).read_bytes()

    def test_what_can_not_be_asked_for(self, native: Path, tmp_path: Path) -> None:
        for arguments, needle in (
            ({"to": "native"}, "weights is None; expected 'int8' or 'fp8' or 'int4-g32'"),
            ({"layout": "row_major"}, "layout is 'row_major' and weights None"),
            (
                {"weights": "int8", "layout": "tiled"},
                "layout is 'tiled'; expected 'row_major' or 'cpu_tiled'",
            ),
            ({"weights": "fp8", "layout": "cpu_tiled"}, "weights is 'fp8'; expected 'int8' or 'int4-g32'"),
            ({"to": "adept", "weights": "int8"}, "the format adept; only the native one packs weights"),
            ({"weights": "int5"}, "weights is 'int5'; expected 'int8' or 'fp8' or 'int4-g32'"),
            ({"weights": "int8", "dtype": torch.float64}, "the dtype is float64; expected float32"),
        ):
            with pytest.raises(CheckpointError, match=needle):
                convert(tmp_path / "source", tmp_path / "new", progress=False, **arguments)
        with pytest.raises(CheckpointError, match="packed as int4-g32; expected floats or int8"):
            convert(native, tmp_path / "new", weights="int8", progress=False)
        with pytest.raises(CheckpointError, match="exists already"):
            convert(tmp_path / "source", native, weights="int4", progress=False)
        assert not (tmp_path / "new").exists()

    def test_a_full_disk_is_foreseen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint_of(tmp_path / "source")
        monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
        with pytest.raises(CheckpointError, match=r"needs [\d.]+ [kM]B of disk space; [\d.]+ k?B are free"):
            convert(tmp_path / "source", tmp_path / "native", weights="int4", progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    def test_from_the_command_line(self, tmp_path: Path) -> None:
        source = str(checkpoint_of(tmp_path / "source").path)
        done = CliRunner().invoke(convert_command, [source, str(tmp_path / "a"), "--weights", "int4"])
        assert (done.exit_code, done.stdout) == (0, "")
        assert "(huggingface) → " in done.stderr
        assert "(native)" in done.stderr
        assert open_checkpoint(tmp_path / "a").weights == NAMES["int4"]
        done = CliRunner().invoke(convert_command, [source, str(tmp_path / "b"), "--to", "native"])
        assert done.exit_code == 1
        assert "weights is None" in done.stderr
        done = CliRunner().invoke(convert_command, [source, str(tmp_path / "b"), "--weights", "int3"])
        assert done.exit_code == 2


class TestRefusal:
    def change_config(self, path: Path, **changes: Any) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def change_section(self, path: Path, **changes: Any) -> None:
        section = json.loads((path / "config.json").read_text())["quantization_config"]
        self.change_config(path, quantization_config=section | changes)

    def change_file(
        self, path: Path, change: Callable[[dict[str, torch.Tensor]], object], **metadata: str
    ) -> None:
        file = path / "model.safetensors"
        with safe_open(file, framework="pt") as opened:
            kept = opened.metadata()
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(tensors)
        save_file(tensors, file, kept | metadata)

    @pytest.mark.parametrize("version", [3, 0, None, "one", 1.5, [1], True, "x" * 500])
    def test_another_version(self, native: Path, version: Any) -> None:
        self.change_section(native, version=version)
        assert_refused(native, "config.json", "of version", "expected 1 or 2")

    @pytest.mark.parametrize("weights", ["int3", None, 4, ["int4"], {}])
    def test_another_format(self, native: Path, weights: Any) -> None:
        self.change_section(native, weights=weights)
        assert_refused(native, "config.json", "has weights", "expected 'int8' or 'fp8'")

    def test_config_and_header_disagree(self, native: Path) -> None:
        self.change_section(native, weights="int8")
        assert_refused(native, "model.safetensors", "has int4-g32 weights", "config.json says int8 weights")

    def test_a_header_of_another_version(self, native: Path) -> None:
        self.change_file(native, lambda tensors: None, version="3")
        assert_refused(native, "model.safetensors", "of version '3'")

    def test_a_header_that_says_nothing(self, native: Path) -> None:
        tensors = load_file(native / "model.safetensors")
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, native / "model.safetensors")
        assert_refused(native, "model.safetensors", "of version None")

    @pytest.mark.parametrize("size", ["hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"])
    @pytest.mark.parametrize("factor", [2, 1000])
    def test_a_config_of_a_larger_model(self, native: Path, size: str, factor: int) -> None:
        self.change_config(native, **{size: factor * json.loads((native / "config.json").read_text())[size]})
        assert_refused(native, "model.safetensors", "the config calls for")

    @pytest.mark.parametrize("size", [0, -1, 2**31, 1e30, "64", None])
    def test_a_config_of_no_model(self, native: Path, size: Any) -> None:
        self.change_config(native, intermediate_size=size)
        assert_refused(native, "config.json", "intermediate_size", error=ConfigError)

    @pytest.mark.parametrize("part", ["values", "scales"])
    @pytest.mark.parametrize("name", [DENSE, DOWN, "lm_head.weight"])
    def test_each_part_is_needed_and_of_its_shape_and_dtype(self, native: Path, name: str, part: str) -> None:
        key = f"{name}.{part}"
        whole = (native / "model.safetensors").read_bytes()
        for change, needle in (
            (lambda tensors: tensors.pop(key), "is missing"),
            (lambda tensors: tensors.update({key: tensors[key][:-1].clone()}), "has shape"),
            (lambda tensors: tensors.update({key: tensors[key].flatten()[None]}), "has shape"),
            (lambda tensors: tensors.update({key: tensors[key].double()}), "has dtype float64"),
            (lambda tensors: tensors.update({key: tensors[key].bool()}), "has dtype bool"),
            (lambda tensors: tensors.update({key + "x": tensors[key].clone()}), "does not belong"),
            (lambda tensors: tensors.update({name: torch.zeros(64, 64)}), "does not belong"),
        ):
            (native / "model.safetensors").write_bytes(whole)
            self.change_file(native, change)
            assert_refused(native, "model.safetensors", name, needle)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
    def test_vectors_are_float32(self, native: Path, dtype: torch.dtype) -> None:
        bias = "model.layers.0.mlp.dense_4h_to_h.bias"
        self.change_file(native, lambda tensors: tensors.update({bias: tensors[bias].to(dtype)}))
        assert_refused(native, bias, "expected float32")

    @pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.model"])
    def test_a_file_is_missing(self, native: Path, file: str) -> None:
        (native / file).unlink()
        assert_refused(native, f"{file} is missing")

    def test_a_file_that_was_cut_off(self, native: Path) -> None:
        whole = (native / "model.safetensors").read_bytes()
        for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
            (native / "model.safetensors").write_bytes(whole[:length])
            assert_refused(native, "not a valid safetensors file")
        (native / "model.safetensors").write_bytes(whole + b"more")
        assert_refused(native, "not a valid safetensors file")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_scale_that_is_not_finite_is_refused_when_it_is_loaded(self, native: Path, bad: float) -> None:
        self.change_file(native, lambda tensors: tensors[f"{DENSE}.scales"].view(-1)[7:8].fill_(bad))
        checkpoint = open_checkpoint(native)
        with pytest.raises(CheckpointError, match=rf"{DENSE}\.scales has a NaN or an infinity in float16"):
            load_weights(checkpoint, dtype=torch.float16, device=CPU)
        load_weights(checkpoint, dtype=torch.float16, device=CPU, check_finite=False)

    def test_any_bytes_are_some_weights(self, native: Path) -> None:
        generator = torch.Generator().manual_seed(0)

        def scramble(tensors: dict[str, torch.Tensor]) -> None:
            for name, tensor in tensors.items():
                if name.endswith(".values"):
                    tensor.view(torch.uint8).random_(0, 256, generator=generator)

        self.change_file(native, scramble)
        for stored in open_checkpoint(native).tensors.values():
            assert stored.read().isfinite().all()


def test_the_format_names_every_tensor_once() -> None:
    for config in CONFIGS.values():
        matrices = packed_matrices(config, NAMES["int4"], TiledMatrix)
        names = tensors_of(config, matrices)
        assert len(matrices) == 4 * config.num_hidden_layers + 1
        floats = len(config.tensor_shapes()) - len(matrices.keys() & config.tensor_shapes().keys())
        assert len(names) == 2 * len(matrices) + floats
