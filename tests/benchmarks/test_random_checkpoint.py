"""tools/random_checkpoint.py: what it writes loads, is the same for a seed, and has the zeros asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adept_fast import Runtime
from adept_fast.checkpoint import open_checkpoint
from adept_fast.tokenizer.tokenizer import Tokenizer
from tools.random_checkpoint import (
    PRESETS,
    bias_for_zeros,
    make_config,
    random_tensor,
    tokenizer_model,
    write_random,
)

ROOT = Path(__file__).resolve().parents[2]

TOY = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 256, "vocab": 4200, "context": 128}


@pytest.mark.parametrize("zeros", [0.0, 0.1, 0.5, 0.9])
def test_the_bias_gives_the_share_of_zeros(zeros: float) -> None:
    units = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) + bias_for_zeros(zeros)
    assert (units <= 0).float().mean().item() == pytest.approx(zeros, abs=0.005)


@pytest.mark.parametrize("zeros", [1.0, -1.0, 2.0, float("nan")])
def test_a_share_of_zeros_that_no_bias_gives_is_refused(zeros: float) -> None:
    with pytest.raises(ValueError, match="zeros is .* expected a share from 0 to below 1"):
        bias_for_zeros(zeros)


@pytest.mark.parametrize("zeros", [0.5, 0.9])
def test_it_loads_and_decoding_finds_the_zeros(tmp_path: Path, zeros: float) -> None:
    path = write_random(tmp_path / "toy", make_config(**TOY), zeros=zeros)
    runtime = Runtime.load(path, device="cpu", progress=False)
    assert runtime.tokenizer.vocab_size == runtime.config.vocab_size == TOY["vocab"]
    generation = runtime.generate([range(5, 21)], max_new_tokens=40, ignore_eos=True)[0]
    assert len(generation.token_ids) == 40
    assert runtime.stats().zero_share == pytest.approx(zeros, abs=0.05)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_packed_ones_decode_with_the_variance_and_the_zeros_of_floats(tmp_path: Path, weights: str) -> None:
    config = make_config(**TOY | {"hidden": 128, "vocab": 4224})
    path = write_random(tmp_path / "packed", config, zeros=0.9, weights=weights)
    matrix = open_checkpoint(path).packed["model.layers.0.mlp.dense_h_to_4h.weight"]().dequantize()
    assert matrix.std().item() == pytest.approx(128**-0.5, rel=0.05)
    runtime = Runtime.load(path, device="cpu", progress=False)
    runtime.generate([range(5, 21)], max_new_tokens=40, ignore_eos=True)
    assert runtime.stats().zero_share == pytest.approx(0.9, abs=0.05)


def test_a_packed_one_that_needs_padding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has shape .*; packed ones need multiples of 128"):
        write_random(tmp_path / "packed", make_config(**TOY), weights="int8")


def test_a_seed_makes_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    config = make_config(**TOY)
    seeds = {"one": 1, "same": 1, "other": 2}
    files = {
        name: load_file(write_random(tmp_path / name, config, seed=seed) / "model.safetensors")
        for name, seed in seeds.items()
    }
    assert files["one"].keys() == config.tensor_shapes().keys()
    assert all(torch.equal(tensor, files["same"][name]) for name, tensor in files["one"].items())
    assert not torch.equal(files["one"]["lm_head.weight"], files["other"]["lm_head.weight"])


def test_matrices_keep_the_variance_of_their_input() -> None:
    matrix = random_tensor("a.mlp.dense_4h_to_h.weight", (128, 4096), torch.float32, 0.0, 0)
    assert matrix.std().item() == pytest.approx(1 / 64, rel=0.01)


def test_the_tokenizer_has_a_piece_for_every_row() -> None:
    text = "The capital of France is Paris."
    demo, larger = (Tokenizer(tokenizer_model(size)) for size in (4096, 5000))
    assert (demo.vocab_size, larger.vocab_size) == (4096, 5000)
    assert demo.encode(text) == larger.encode(text)
    assert larger.decode([4999]) == "piece4999"


def test_a_vocabulary_below_the_demos_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab is 100; expected at least the 4096 pieces"):
        tokenizer_model(100)


@pytest.mark.parametrize(("preset", "parameters"), [("0.7g", 0.7e9), ("small", 42e6), ("8b", 9.4e9)])
def test_presets_have_the_sizes_of_their_names(preset: str, parameters: float) -> None:
    assert make_config(**PRESETS[preset]).num_parameters == pytest.approx(parameters, rel=0.06)
