"""Writes packed checkpoints, matrix by matrix: never more than one is held in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from adept_fast.checkpoint.atomic import atomic_directory, require_free, require_space
from adept_fast.checkpoint.base import WEIGHT_DTYPES, Checkpoint, CheckpointError, dtype_name
from adept_fast.checkpoint.huggingface import SINGLE_FILE
from adept_fast.checkpoint.native import EMBEDDING, LAYOUTS, METHOD, SECTION, VERSION, Packing, tensors_of
from adept_fast.checkpoint.packed import packed_matrices
from adept_fast.checkpoint.save import ROOM_FOR_SMALL_FILES, Saved, files_in, progress_bar, write_json
from adept_fast.checkpoint.save_tokenizer import end_ids, size_of_files, tokenizer_config
from adept_fast.checkpoint.weight_files import bytes_of, read_as, require_little_endian, safetensors_header
from adept_fast.quantization.formats import FORMATS, NAMES
from adept_fast.quantization.layout_plain import RowMajorMatrix
from adept_fast.quantization.matrix import repack

_CPU = torch.device("cpu")


def save_native(
    checkpoint: Checkpoint,
    destination: str | Path,
    *,
    weights: str,
    layout: str = RowMajorMatrix.layout,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Saved:
    """Write a packed checkpoint; it appears when it is complete.

    Args:
        checkpoint: what to write; its tensors are read one at a time.
        destination: a new name, or an empty directory.
        weights: the format, one of ``formats.NAMES``.
        layout: ``row_major``, which every device repacks while it loads, or ``cpu_tiled``, which a CPU loads
            without a copy.
        dtype: that of the embedding (default: as it is stored).
        progress: whether to show progress on stderr.

    Raises CheckpointError where the destination is taken, the disk too full, the weights packed in another
    format, or one of them a NaN, an infinity or too large.
    """
    destination = Path(destination).expanduser()
    packing = _packing(checkpoint, weights, layout)
    if dtype is not None and dtype not in WEIGHT_DTYPES.values():
        raise CheckpointError(f"the dtype is {dtype_name(dtype)}; expected float32, float16 or bfloat16")
    require_little_endian(destination)
    require_free(destination)
    entries = _entries(checkpoint, packing, dtype)
    header, places = safetensors_header(entries, _metadata(packing))
    size = sum(math.prod(shape) * kept.itemsize for _, kept, shape in entries)
    require_space(
        destination, len(header) + size + size_of_files(checkpoint.tokenizer) + ROOM_FOR_SMALL_FILES
    )
    with atomic_directory(destination) as directory, progress_bar(destination, size, progress) as bar:
        write_json(directory / "config.json", _config(checkpoint, packing, dtype))
        write_json(directory / "tokenizer_config.json", tokenizer_config(checkpoint))
        for name, data in checkpoint.tokenizer.vocabulary.files.items():
            (directory / name).write_bytes(data)
        _write_weights(directory / SINGLE_FILE, checkpoint, packing, dtype, header, places, bar.update)
        files = files_in(directory)
    tokenizer_names = ", ".join(checkpoint.tokenizer.vocabulary.files)
    return Saved(destination, files, len(entries), f"that of the source, {tokenizer_names}")


def _packing(checkpoint: Checkpoint, weights: str, layout: str) -> Packing:
    """By the names that users write; CheckpointError for one that is unknown or does not fit."""
    for parameter, name, known in (("weights", weights, NAMES), ("layout", layout, LAYOUTS)):
        if name not in known:
            raise CheckpointError(f"{parameter} is {name!r}; expected {' or '.join(map(repr, known))}")
    packing = Packing(NAMES[weights], LAYOUTS[layout])
    if checkpoint.weights is not None and weights == "int4" and checkpoint.weights.bits == 4:
        packing = Packing(checkpoint.weights, LAYOUTS[layout])
    if checkpoint.weights not in (None, packing.weights):
        raise CheckpointError(
            f"{checkpoint.path}: its weights are packed as {checkpoint.weights.name}; "
            f"expected floats or {packing.weights.name}"
        )
    if not packing.layout.holds(packing.weights):
        allowed = " or ".join(repr(name) for name, known in FORMATS.items() if packing.layout.holds(known))
        raise CheckpointError(f"weights is {weights!r}; expected {allowed} for the layout {layout}")
    return packing


def _entries(
    checkpoint: Checkpoint, packing: Packing, dtype: torch.dtype | None
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor in the file, in its order."""
    matrices = packed_matrices(checkpoint.config, packing.weights, packing.layout)
    entries = [
        (name, (dtype or checkpoint.dtype) if name == EMBEDDING else dtypes[0], shape)
        for name, (shape, dtypes) in tensors_of(checkpoint.config, matrices).items()
    ]
    if packing.layout is RowMajorMatrix:
        # Wider elements first, so that every tensor is aligned to its own.
        entries.sort(key=lambda entry: -entry[1].itemsize)
    return entries


def _describe(packing: Packing) -> dict[str, object]:
    return {"version": VERSION, "weights": packing.weights.name, "layout": packing.layout.layout}


def _metadata(packing: Packing) -> dict[str, str]:
    lm_head = FORMATS[packing.weights.lm_head]
    rounding = packing.weights.description
    if lm_head != packing.weights:
        rounding = f"{rounding}; lm_head: {lm_head.description}"
    described = {name: str(value) for name, value in _describe(packing).items()}
    return {"format": METHOD, **described, "rounding": rounding}


def _config(checkpoint: Checkpoint, packing: Packing, dtype: torch.dtype | None) -> dict[str, object]:
    tokenizer = checkpoint.tokenizer
    return checkpoint.config.to_dict() | {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": end_ids(tokenizer),
        "dtype": dtype_name(dtype or checkpoint.dtype),
        SECTION: {"quant_method": METHOD, **_describe(packing)},
    }


def _write_weights(
    path: Path,
    checkpoint: Checkpoint,
    packing: Packing,
    dtype: torch.dtype | None,
    header: bytes,
    places: dict[str, int],
    progress: Callable[[int], object],
) -> None:
    matrices = packed_matrices(checkpoint.config, packing.weights, packing.layout)
    with path.open("xb") as file:
        file.write(header)
        for name, matrix in matrices.items():
            if name in checkpoint.packed:
                packed = repack(checkpoint.packed[name](), packing.layout, _CPU)
            else:
                packed = matrix.pack(checkpoint.tensors[matrix.tensor])
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
