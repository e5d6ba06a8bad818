"""Writes a checkpoint of random weights, for benchmarks: any shape, and a chosen share of zero MLP units.

    python -m tools.random_checkpoint 0.7g random-0.7g --zeros 0.9
    python -m tools.random_checkpoint 8b random-8b-int4 --weights int4

A Hugging Face directory that adept-fast and transformers load, or with ``--weights`` a packed one. Weights
are made and written one tensor at a time. The tokenizer knows as many pieces as the embedding has rows, so
that every runtime computes the same logits: adept-fast leaves out rows that no piece uses. Packed weights
are drawn as they are packed, since rounding the 8B's takes long.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import Tensor

from adept_fast.checkpoint import (
    Checkpoint,
    PackedMatrix,
    StoredTensor,
    demo_path,
    packed_matrices,
)
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.checkpoint.save_native import save_native
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.formats import NAMES
from adept_fast.quantization.layout_cpu import TILE, TiledMatrix
from adept_fast.quantization.matrix import QuantizedMatrix
from adept_fast.tokenizer.tokenizer import Tokenizer

DESCRIPTION_FILE = "random_checkpoint.json"
PRESETS = {
    "tiny": {"hidden": 128, "layers": 2, "heads": 4, "intermediate": 512, "vocab": 4224},
    "0.7g": {"hidden": 2048, "layers": 12, "heads": 32, "intermediate": 8192, "vocab": 32768},
    "small": {"hidden": 512, "layers": 8, "heads": 8, "intermediate": 2048, "vocab": 16384},
    "8b": {"hidden": 4096, "layers": 36, "heads": 64, "intermediate": 16384, "vocab": 262144},
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Standard deviations of the units' mean above 0 if none is to be 0: one unit of 1e9 is below it.
_FAR = 6.0
_NORMAL_PIECE_SCORE = -1000.0  # so unlikely that text is still cut into the pieces of the demo's tokenizer


@click.command()
@click.argument("preset", type=click.Choice([*PRESETS, "custom"]))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--hidden", type=click.IntRange(min=1), help="Width of the residual stream.")
@click.option("--layers", type=click.IntRange(min=1))
@click.option("--heads", type=click.IntRange(min=1))
@click.option("--intermediate", type=click.IntRange(min=1), help="Units of the MLP.")
@click.option(
    "--vocab", type=click.IntRange(min=1), help="Rows of the embedding, and pieces of the tokenizer."
)
@click.option("--context", default=4096, show_default=True, type=click.IntRange(min=1), help="Of the model.")
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--weights", type=click.Choice(list(NAMES)), help="Round the matrices and pack them.")
@click.option("--zeros", default=0.5, show_default=True, help="Share of the MLP's units that relu² makes 0.")
@click.option("--seed", default=0, show_default=True)
def main(
    preset: str,
    destination: Path,
    context: int,
    dtype: str,
    weights: str | None,
    zeros: float,
    seed: int,
    **shape: int | None,
) -> None:
    """Write the shapes of PRESET, with what the options change, to DESTINATION."""
    sizes = PRESETS.get(preset, {}) | {name: size for name, size in shape.items() if size is not None}
    missing = [f"--{name}" for name in shape if name not in sizes]
    if missing:
        raise click.UsageError(f"'custom' needs {', '.join(missing)}")
    try:
        config = make_config(**sizes, context=context)
        saved = write_random(destination, config, DTYPES[dtype], zeros, seed, weights, progress=True)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    parameters = f"{config.num_parameters / 1e6:.0f} M parameters"
    click.echo(f"{saved}: {parameters}, {weights or dtype}, {zeros:.0%} zero units")


def make_config(
    *, hidden: int, layers: int, heads: int, intermediate: int, vocab: int, context: int = 4096
) -> PersimmonConfig:
    """The family's config with these sizes."""
    return PersimmonConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        rope_theta=25000.0,
    )


def write_random(
    destination: Path,
    config: PersimmonConfig,
    dtype: torch.dtype = torch.float16,
    zeros: float = 0.5,
    seed: int = 0,
    weights: str | None = None,
    progress: bool = False,
) -> Path:
    """Write the checkpoint, in the format ``weights``, and a note of how it was made; returns its path."""
    checkpoint = random_checkpoint(destination, config, dtype, zeros, seed)
    if weights is None:
        # One file: llama.cpp's and OpenVINO's converters read shards too, but they gain nothing here.
        path = save_huggingface(checkpoint, destination, max_shard_bytes=2**62, progress=progress).path
    else:
        packed = {
            name: functools.partial(random_packed, matrix, seed)
            for name, matrix in packed_matrices(config, NAMES[weights], TiledMatrix).items()
        }
        checkpoint = replace(checkpoint, weights=NAMES[weights], packed=packed)
        saved = save_native(
            checkpoint, destination, weights=weights, layout=TiledMatrix.layout, progress=progress
        )
        path = saved.path
    _write_note(path, dtype, zeros, seed)
    return path


def write_recipe(
    destination: Path,
    config: PersimmonConfig,
    dtype: torch.dtype = torch.float16,
    zeros: float = 0.5,
    seed: int = 0,
) -> Path:
    """Write the config and the note alone, from which ``open_random`` draws the weights; returns the path."""
    bias_for_zeros(zeros)  # what is wrong with it is said now
    destination.mkdir(parents=True)
    text = json.dumps(config.to_dict(), indent=2)
    (destination / "config.json").write_text(text + "\n", encoding="utf-8")
    _write_note(destination, dtype, zeros, seed)
    return destination


def open_random(recipe: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint of a recipe: each tensor is drawn when it is read, on ``device``, by its own seed.

    A GPU draws other numbers than a CPU.
    """
    config = PersimmonConfig.from_json(recipe / "config.json")
    note = json.loads((recipe / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    return random_checkpoint(recipe, config, DTYPES[note["dtype"]], note["zeros"], note["seed"], device)


def random_checkpoint(
    path: Path,
    config: PersimmonConfig,
    dtype: torch.dtype,
    zeros: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """A checkpoint whose tensors are drawn on ``device`` whenever they are read."""
    up_bias = bias_for_zeros(zeros)
    tensors = {
        name: StoredTensor(
            name,
            shape,
            dtype,
            "random",
            functools.partial(random_tensor, name, shape, dtype, up_bias, seed, device),
        )
        for name, shape in config.tensor_shapes().items()
    }
    return Checkpoint(path, "random", config, tensors, Tokenizer(tokenizer_model(config.vocab_size)))


def _write_note(path: Path, dtype: torch.dtype, zeros: float, seed: int) -> None:
    note = {"zeros": zeros, "seed": seed, "dtype": str(dtype).removeprefix("torch.")}
    (path / DESCRIPTION_FILE).write_text(json.dumps(note) + "\n", encoding="utf-8")


def bias_for_zeros(zeros: float) -> float:
    """The bias b of the up-projection for which a share ``zeros`` of the units N(b, 1) is not above 0."""
    if not 0 <= zeros < 1:
        raise ValueError(f"zeros is {zeros}; expected a share from 0 to below 1")
    return _FAR if zeros == 0 else -statistics.NormalDist().inv_cdf(zeros)


def random_tensor(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    up_bias: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A tensor of this seed, the same in any order of tensors.

    A matrix keeps the variance of its input, so the pre-activations of the MLP, whose input is normalised,
    are N(bias, 1). A LayerNorm only normalises, and other biases are 0.
    """
    if name.endswith("layernorm.weight"):
        return torch.ones(shape, dtype=dtype, device=device)
    if name.endswith("bias"):
        bias = up_bias if name.endswith("dense_h_to_4h.bias") else 0.0
        return torch.full(shape, bias, dtype=dtype, device=device)
    generator = generator_of(name, seed, device)
    scale = 1.0 if name == "model.embed_tokens.weight" else 1 / math.sqrt(shape[1])
    return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, scale, generator=generator)


def random_packed(matrix: PackedMatrix[QuantizedMatrix], seed: int) -> QuantizedMatrix:
    """A packed matrix of evenly spread integers, with the variance of ``random_tensor``.

    Raises ValueError for a shape that would need padding.
    """
    spec, (rows, columns) = matrix.spec, matrix.spec.shape
    if columns % 128 or rows % TILE:
        raise ValueError(f"{matrix.name} has shape {[rows, columns]}; packed ones need multiples of 128")
    inputs = rows if spec.transposed else columns
    spread = math.sqrt((2 ** (2 * spec.format.bits) - 1) / 12)  # of integers with that many bits
    packed = matrix.layout.empty(spec, torch.device("cpu"))
    packed.values.view(torch.uint8).random_(0, 256, generator=generator_of(matrix.name, seed))
    packed.scales.fill_(1 / math.sqrt(inputs) / spread)
    return packed


def generator_of(name: str, seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of the tensor of that name."""
    # Not hash(): that of a string differs from process to process. torch looks at 32 bits of a seed only.
    return torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def tokenizer_model(vocab: int) -> bytes:
    """The demo's sentencepiece model with pieces added to its end until there are ``vocab``."""
    model = (demo_path() / "tokenizer.model").read_bytes()
    known = Tokenizer(model).vocab_size
    if vocab < known:
        raise ValueError(f"vocab is {vocab}; expected at least the {known} pieces of the demo's tokenizer")
    # protobuf: entries of a repeated field may be anywhere, so entries can be appended to the file.
    return model + b"".join(_pieces(range(known, vocab)))


def _pieces(numbers: range) -> Iterator[bytes]:
    for number in numbers:
        text = f"▁piece{number}".encode()
        # ModelProto.pieces is field 1; in it text is field 1, score (a float) field 2; the type is NORMAL.
        piece = bytes([1 << 3 | 2, len(text)]) + text + b"\x15" + struct.pack("<f", _NORMAL_PIECE_SCORE)
        yield bytes([1 << 3 | 2, len(piece)]) + piece


if __name__ == "__main__":
    main()
