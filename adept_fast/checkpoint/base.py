"""What every checkpoint format is read into: a config, named tensors that are still on disk, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from adept_fast.choices import DTYPES
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.matrix import QuantizedMatrix
from adept_fast.tokenizer.tokenizer import Tokenizer

# What weights may be stored in and held in, by the names that users write.
WEIGHT_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}

_MAX_NAMES = 20  # in a list of what was left unread


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete, hostile, or of another architecture."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: known by name, shape and dtype, read only when asked for.

    ``read`` returns it on the CPU, in its stored dtype, memory-mapped where the format allows.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose structure has been checked; its weights are still on disk.

    ``tensors`` has exactly the names and shapes of ``config.tensor_shapes()``. Of a native checkpoint,
    ``weights`` is the format in which its matrices are packed, and ``packed`` reads them, memory-mapped, by
    name; in ``tensors`` the same matrices are unpacked to float32 when they are read. ``left_unread`` names
    what is in its files and was not read: classes that pickles name, and files beside those that were read.
    ``mmap`` is whether what is read is memory-mapped or copied from the files.
    """

    path: Path
    format: str
    config: PersimmonConfig
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer
    weights: WeightFormat | None = None
    packed: Mapping[str, Callable[[], QuantizedMatrix]] = field(default_factory=dict)
    mmap: bool = True
    left_unread: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the matrices are stored (that of the embedding)."""
        return self.tensors["model.embed_tokens.weight"].dtype


def check_tensors(
    path: Path, config: PersimmonConfig, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors that the config calls for, in its order, each named as its key.

    Raises what ``check_stored`` raises.
    """
    expected = config.tensor_shapes()
    ignored = {"lm_head.weight"} if config.tie_word_embeddings else set()
    check_stored(path, expected, tensors, ignored=ignored | derived_names(tensors))
    return {name: replace(tensors[name], name=name) for name in expected}


def check_stored(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
    *,
    dtypes: Mapping[str, Collection[torch.dtype]] = MappingProxyType({}),
    ignored: Collection[str] = (),
) -> None:
    """Raises CheckpointError for a tensor that is missing, left over, misshapen, or of another dtype.

    Args:
        dtypes: allowed for a tensor; by default those of ``WEIGHT_DTYPES``.
        ignored: tensors that may be there without being expected.

    Messages have the names in the file.
    """
    missing = [name for name in shapes if name not in tensors]
    if missing:
        wanted = list(shapes[missing[0]])
        raise CheckpointError(
            f"{path}: tensor {_first_of(missing)} is missing; the config calls for shape {wanted}"
        )
    left_over = [tensors[name].name for name in tensors if name not in shapes and name not in ignored]
    if left_over:
        source = next(tensor.source for tensor in tensors.values() if tensor.name == left_over[0])
        raise CheckpointError(
            f"{source}: tensor {_first_of(left_over)} does not belong to the model that the config describes"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.source}: tensor {tensor.name} has shape {list(tensor.shape)}; "
                f"the config calls for {list(shape)}"
            )
        allowed = dtypes.get(name, WEIGHT_DTYPES.values())
        if tensor.dtype not in allowed:
            raise CheckpointError(
                f"{tensor.source}: tensor {tensor.name} has dtype {dtype_name(tensor.dtype)}; "
                f"expected {' or '.join(map(dtype_name, allowed))}"
            )


def derived_names(names: Iterable[str]) -> set[str]:
    """The names of buffers that older files carry and that the config determines."""
    return {name for name in names if name.endswith("rotary_emb.inv_freq")}


def check_vocabulary(path: Path, config: PersimmonConfig, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError when the tokenizer knows ids that the embedding has no row for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, "
            f"but the embedding only {config.vocab_size} rows"
        )


def bounded_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repetition, up to 20 of them and how many more there are."""
    distinct = tuple(dict.fromkeys(names))
    more = len(distinct) - _MAX_NAMES
    return distinct if more <= 0 else (*distinct[:_MAX_NAMES], f"and {more} more")


def tensor_of(contents: memoryview, dtype: torch.dtype) -> Tensor:
    """The bytes, which can be written to, as a flat tensor that shares their memory if they are aligned."""
    if not len(contents):
        return torch.empty(0, dtype=dtype, device="cpu")
    flat = torch.frombuffer(contents, dtype=torch.uint8)
    # Other writers than ours do not align.
    return (flat.clone() if flat.data_ptr() % dtype.itemsize else flat).view(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
