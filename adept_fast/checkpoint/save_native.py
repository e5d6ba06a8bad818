"""Writes native checkpoints, matrix by matrix: never more than one is held in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from adept_fast.checkpoint.atomic import atomic_directory, require_free, require_space
from adept_fast.checkpoint.base import WEIGHT_DTYPES, Checkpoint, CheckpointError, dtype_name
from adept_fast.checkpoint.huggingface import SINGLE_FILE
from adept_fast.checkpoint.native import EMBEDDING, METHOD, SECTION, VERSION, tensors_of
from adept_fast.checkpoint.packed import packed_matrices
from adept_fast.checkpoint.save import ROOM_FOR_SMALL_FILES, Saved, files_in, progress_bar, write_json
from adept_fast.checkpoint.save_tokenizer import end_ids, size_of_files, tokenizer_config
from adept_fast.checkpoint.weight_files import bytes_of, read_as, require_little_endian, safetensors_header
from adept_fast.quantization.quantize import WEIGHT_FORMATS

_IN_WORDS = {
    "int8": "weight = scale * q, q int8, one float32 scale for each output",
    "int4": (
        "weight = scale * (q - 8), q uint4, one float16 scale for each 32 weights side by side; "
        "lm_head: weight = scale * q, q int8, one float32 scale for each output"
    ),
}
_LAYOUTS = (
    "values of [out, in] matrices: [out / 16, in / c, 16, 4], c 4 for int8, 8 for int4 (columns 0-3 in low "
    "nibbles, 4-7 in high ones); of dense_4h_to_h, transposed, rows of 64-byte blocks, column 16 i + 4 l + b "
    "in byte 16 l + 4 i + b (int4: of 128 columns, the second 64 in high nibbles)"
)


def save_native(
    checkpoint: Checkpoint,
    destination: str | Path,
    *,
    weights: str,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Saved:
    """Write a native checkpoint; it appears when it is complete.

    Args:
        checkpoint: what to write; its tensors are read one at a time.
        destination: a new name, or an empty directory.
        weights: ``int8`` or ``int4``.
        dtype: that of the embedding (default: as it is stored).
        progress: whether to show progress on stderr.

    Raises CheckpointError where the destination is taken, the disk too full, the weights packed in another
    format, or one of them a NaN, an infinity or too large.
    """
    destination = Path(destination).expanduser()
    if weights not in WEIGHT_FORMATS:
        raise CheckpointError(f"weights is {weights!r}; expected {' or '.join(map(repr, WEIGHT_FORMATS))}")
    if dtype is not None and dtype not in WEIGHT_DTYPES.values():
        raise CheckpointError(f"the dtype is {dtype_name(dtype)}; expected float32, float16 or bfloat16")
    if checkpoint.weights not in (None, weights):
        raise CheckpointError(
            f"{checkpoint.path}: its weights are packed as {checkpoint.weights}; expected floats or {weights}"
        )
    require_little_endian(destination)
    require_free(destination)
    entries = _entries(checkpoint, weights, dtype)
    header, places = safetensors_header(entries, _metadata(weights))
    size = sum(math.prod(shape) * kept.itemsize for _, kept, shape in entries)
    require_space(
        destination, len(header) + size + size_of_files(checkpoint.tokenizer) + ROOM_FOR_SMALL_FILES
    )
    with atomic_directory(destination) as directory, progress_bar(destination, size, progress) as bar:
        write_json(directory / "config.json", _config(checkpoint, weights, dtype))
        write_json(directory / "tokenizer_config.json", tokenizer_config(checkpoint))
        for name, data in checkpoint.tokenizer.vocabulary.files.items():
            (directory / name).write_bytes(data)
        _write_weights(directory / SINGLE_FILE, checkpoint, weights, dtype, header, places, bar.update)
        files = files_in(directory)
    tokenizer_names = ", ".join(checkpoint.tokenizer.vocabulary.files)
    return Saved(destination, files, len(entries), f"that of the source, {tokenizer_names}")


def _entries(
    checkpoint: Checkpoint, weights: str, dtype: torch.dtype | None
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor in the file, in its order."""
    matrices = packed_matrices(checkpoint.config, weights)
    return [
        (name, (dtype or checkpoint.dtype) if name == EMBEDDING else dtypes[0], shape)
        for name, (shape, dtypes) in tensors_of(checkpoint.config, matrices).items()
    ]


def _metadata(weights: str) -> dict[str, str]:
    return {
        "format": METHOD,
        "version": str(VERSION),
        "weights": weights,
        "rounding": _IN_WORDS[weights],
        "layout": _LAYOUTS,
    }


def _config(checkpoint: Checkpoint, weights: str, dtype: torch.dtype | None) -> dict[str, object]:
    tokenizer = checkpoint.tokenizer
    section = {"quant_method": METHOD, "version": VERSION, "weights": weights}
    return checkpoint.config.to_dict() | {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": end_ids(tokenizer),
        "dtype": dtype_name(dtype or checkpoint.dtype),
        SECTION: section,
    }


def _write_weights(
    path: Path,
    checkpoint: Checkpoint,
    weights: str,
    dtype: torch.dtype | None,
    header: bytes,
    places: dict[str, int],
    progress: Callable[[int], object],
) -> None:
    matrices = packed_matrices(checkpoint.config, weights)
    with path.open("xb") as file:
        file.write(header)
        for name, matrix in matrices.items():
            as_stored = checkpoint.packed.get(name)
            packed = as_stored() if as_stored else matrix.pack(checkpoint.tensors[matrix.tensor])
            for part, tensor in (("values", packed.values), ("scales", packed.scales)):
                file.seek(places[f"{name}.{part}"])
                file.write(bytes_of(tensor))
            progress(packed.nbytes)
        for name, stored in checkpoint.tensors.items():
            if name not in matrices:
                tensor = read_as(stored, dtype if name == EMBEDDING else torch.float32)
                file.seek(places[name])
                file.write(bytes_of(tensor))
                progress(tensor.nbytes)
