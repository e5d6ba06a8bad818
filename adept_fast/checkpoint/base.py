"""A checkpoint of any format: a config, named tensors that are still on disk, and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adept_fast.choices import DTYPES
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.matrix import QuantizedMatrix
from adept_fast.tokenizer.tokenizer import Tokenizer

# The dtypes of weights in files and in memory, by the names that users write.
WEIGHT_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
FLOATS = tuple(WEIGHT_DTYPES.values())

ExpectedTensor = tuple[tuple[int, ...], tuple[torch.dtype, ...]]  # shape, and the dtypes that are allowed

_MAX_NAMES = 20  # in the list of names left unread

# Buffers that older files carry and that the config determines.
_DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)

# Parts that torch.compile, data parallelism and models of images add to names; Persimmon's have none.
WRAPPERS = frozenset(("_orig_mod", "module", "language_model"))


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete, hostile, or of another architecture."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No file, directory or hub id of this name."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its name, shape and dtype are known, its values are read by ``read``.

    ``read`` returns it on the CPU, in its stored dtype, memory-mapped where the format allows. ``read_part``
    takes a dimension, a start and an end, and returns the slices from start to end along the dimension
    without reading the others; None where a view of ``read`` does as much.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str
    read: Callable[[], Tensor]
    read_part: Callable[[int, int, int], Tensor] | None = None

    def part(self, dimension: int, start: int, stop: int) -> StoredTensor:
        """The slices from ``start`` to ``stop`` along a dimension, as a tensor of its own."""
        whole, count = self.shape[dimension], stop - start
        if count == whole:
            return self
        shape = (*self.shape[:dimension], count, *self.shape[dimension + 1 :])
        if self.read_part is not None:
            read_part = partial(self.read_part, dimension, start, stop)
            return replace(self, shape=shape, read=read_part, read_part=None)
        read = self.read
        return replace(self, shape=shape, read=lambda: read().narrow(dimension, start, count))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose structure has been checked; its weights are still on disk.

    ``tensors`` has exactly the names and shapes of ``config.tensor_shapes()``. In a packed checkpoint,
    ``weights`` is the format of the matrices, and ``packed`` reads them by name; ``tensors`` dequantizes the
    same matrices to float32. ``left_unread`` lists content that was not read: classes that pickles name, and
    other files. ``mmap`` is whether tensors are memory-mapped or copied from the files.
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


def check_model(
    path: Path, config: PersimmonConfig, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors that the config calls for, in its order, each named as its key.

    Raises CheckpointError as ``check_tensors`` does, and for a tensor that is not of a float dtype. A tied
    model's ``lm_head.weight`` and buffers that the config determines are ignored.
    """
    expected = {name: (shape, FLOATS) for name, shape in config.tensor_shapes().items()}
    relevant = without_derived(tensors)
    if config.tie_word_embeddings:
        relevant.pop("lm_head.weight", None)
    check_tensors(path, expected, relevant)
    return {name: replace(tensors[name], name=name) for name in expected}


def without_derived(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """All but the buffers that the config determines, which older files carry."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_DERIVED_SUFFIXES)}


def check_tensors(
    path: Path, expected: Mapping[str, ExpectedTensor], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raises CheckpointError for a tensor that is missing, left over, misshapen, or of another dtype, by its
    stored name; ``path`` is the file or directory of the tensors."""
    missing = [name for name in expected if name not in tensors]
    if missing:
        wanted = list(expected[missing[0]][0])
        raise CheckpointError(
            f"{path}: tensor {_first_of(missing)} is missing; the config calls for shape {wanted}"
        )
    left_over = [tensor for name, tensor in tensors.items() if name not in expected]
    if left_over:
        raise CheckpointError(
            f"{left_over[0].source}: tensor {_first_of([tensor.name for tensor in left_over])} does not "
            f"belong to the model that the config describes"
        )
    for name, (shape, dtypes) in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.source}: tensor {tensor.name} has shape {list(tensor.shape)}; "
                f"the config calls for {list(shape)}"
            )
        if tensor.dtype not in dtypes:
            raise CheckpointError(
                f"{tensor.source}: tensor {tensor.name} has dtype {dtype_name(tensor.dtype)}; "
                f"expected {' or '.join(map(dtype_name, dtypes))}"
            )


def check_vocabulary(path: Path, config: PersimmonConfig, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError if the tokenizer has ids without a row in the embedding."""
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
    """The writable bytes as a flat tensor, which shares their memory if they are aligned."""
    if not len(contents):
        return torch.empty(0, dtype=dtype, device="cpu")
    flat = torch.frombuffer(contents, dtype=torch.uint8)
    # Other programs write files without alignment.
    return (flat.clone() if flat.data_ptr() % dtype.itemsize else flat).view(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def unwrap_names(
    tensors: Mapping[str, StoredTensor], required: Iterable[str], wrappers: Collection[str] = WRAPPERS
) -> dict[str, StoredTensor]:
    """The tensors under names without wrappers, which may stand anywhere in a name and in any order.

    Each StoredTensor keeps its name as it is stored. ``required`` are names that have to be there.

    Raises CheckpointError, with a name as it is stored, if wrappers were removed and a required name is
    still missing, or two names become one.
    """
    unwrapped: dict[str, StoredTensor] = {}
    wrapped: StoredTensor | None = None
    for stored, tensor in tensors.items():
        name = unwrapped_name(stored, wrappers)
        if name in unwrapped:
            raise CheckpointError(
                f"{tensor.source}: tensor {stored} and tensor {unwrapped[name].name} both mean {name}"
            )
        if name != stored and wrapped is None:
            wrapped = tensor
        unwrapped[name] = tensor
    missing = next((name for name in required if name not in unwrapped), None)
    if wrapped is not None and missing is not None:
        raise CheckpointError(
            f"{wrapped.source}: tensor {wrapped.name} would be {unwrapped_name(wrapped.name, wrappers)} "
            f"without the names of wrappers, but tensor {missing} is missing then"
        )
    return unwrapped


def unwrapped_name(name: str, wrappers: Collection[str] = WRAPPERS) -> str:
    """The name without those of its parts that are wrappers."""
    return ".".join(part for part in name.split(".") if part not in wrappers)
