"""The model's weights as the operators take them: matrices in one dtype or packed, vectors in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adept_fast.checkpoint import (
    Checkpoint,
    CheckpointError,
    PackedMatrix,
    dtype_name,
    packed_matrices,
)
from adept_fast.checkpoint.shares import is_summed_over_ranks
from adept_fast.quantization.formats import WeightFormat, float_format
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles
from adept_fast.quantization.layouts import ROW_MAJOR, TILES, layout_of
from adept_fast.quantization.matrix import LayoutMatrix, Matrix, QuantizedMatrix, first_rows, repack
from adept_fast.quantization.rounding import Agree, of_whole_matrix
from adept_fast.system.huge_pages import HugePages
from adept_fast.system.mapped_files import release_pages
from adept_fast.system.progress import progress_bar

EMBEDDING = "model.embed_tokens.weight"
_LM_HEAD = "lm_head.weight"
_OF_THE_VOCABULARY = (EMBEDDING, _LM_HEAD)
_CPU = torch.device("cpu")


class PinnedMemoryError(ValueError):
    """The host cannot pin enough memory for the embedding."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Matrices are [out, in]; the down-projection is transposed, so that each neuron has a row."""

    input_gamma: Tensor  # [hidden]
    input_beta: Tensor  # [hidden]
    w_qkv: Matrix  # [3 * hidden, hidden], rows laid out [head, (q, k, v), head_dim]
    b_qkv: Tensor  # [3 * hidden]
    q_gamma: Tensor | None  # [head_dim], None if the model has no q/k LayerNorm
    q_beta: Tensor | None  # [head_dim]
    k_gamma: Tensor | None  # [head_dim]
    k_beta: Tensor | None  # [head_dim]
    w_dense: Matrix  # [hidden, hidden]
    b_dense: Tensor  # [hidden]
    mlp_gamma: Tensor  # [hidden]
    mlp_beta: Tensor  # [hidden]
    w_up: Matrix  # [intermediate, hidden]
    b_up: Tensor  # [intermediate]
    w_down_t: Matrix  # [intermediate, hidden]
    b_down: Tensor  # [hidden]


def read_layer(
    prefix: str,
    qk_layernorm: bool,
    *,
    vector: Callable[[str], Tensor],
    matrix: Callable[[str], Matrix],
    transposed: Callable[[str], Matrix],
) -> LayerWeights:
    """One layer, from functions that take transformers' name of a tensor; ``prefix`` begins each name."""

    def pair(module: str, weight: Callable[[str], Any]) -> tuple[Any, Tensor]:
        return weight(f"{prefix}{module}.weight"), vector(f"{prefix}{module}.bias")

    in_order: list[Any] = [
        *pair("input_layernorm", vector),
        *pair("self_attn.query_key_value", matrix),
        *(pair("self_attn.q_layernorm", vector) if qk_layernorm else (None, None)),
        *(pair("self_attn.k_layernorm", vector) if qk_layernorm else (None, None)),
        *pair("self_attn.dense", matrix),
        *pair("post_attention_layernorm", vector),
        *pair("mlp.dense_h_to_4h", matrix),
        *pair("mlp.dense_4h_to_h", transposed),
    ]
    return LayerWeights(*in_order)


@dataclass(frozen=True)
class ModelWeights:
    embedding: Tensor  # [vocab, hidden], on the device or in pinned memory of the host
    layers: tuple[LayerWeights, ...]
    final_gamma: Tensor  # [hidden]
    final_beta: Tensor  # [hidden]
    lm_head: Matrix  # [vocab, hidden]; if tied, the embedding itself or its packed copy

    @property
    def device(self) -> torch.device:
        return self.lm_head.device

    def bytes_per_step(self, vocab_size: int) -> int:
        """Bytes that a decode step reads: all but the embedding, with ``vocab_size`` rows of the lm_head."""
        parts: list[Matrix] = [
            part for layer in self.layers for part in vars(layer).values() if part is not None
        ]
        parts += [self.final_gamma, self.final_beta, first_rows(self.lm_head, vocab_size)]
        return sum(int(part.nbytes) for part in parts)


def load_weights(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    weights: WeightFormat | None = None,
    layout: str = ROW_MAJOR,
    vocab_rows: int | None = None,
    embedding_on_host: bool = False,
    check_finite: bool = True,
    huge_pages: bool = False,
    agree: Agree = of_whole_matrix,
    progress: bool = False,
) -> ModelWeights:
    """Move a checkpoint's weights to ``device``, tensor by tensor.

    Memory never holds more than the moved tensors and another one. On a CPU, tensors without conversion stay
    memory-mapped: matrices stored in ``dtype``, and all matrices of a packed checkpoint.

    Args:
        dtype: of the matrices, or of the embedding if they are packed.
        weights: the format to pack the matrices in; None for the checkpoint's.
        layout: of the matrices. In ``tiles``, an lm_head that is the embedding too stays as it is, since a
            step looks up its rows, and a copy would take more memory.
        vocab_rows: load and check only the first rows of the embedding and of the lm_head; None for all.
        embedding_on_host: keep the embedding in pinned memory of the host, unless it is the lm_head too.
        agree: that of ``round_rows``, for the matrices of which a rank has some columns.
        huge_pages: on a CPU, copy the matrices to huge pages; nothing stays memory-mapped.

    Raises CheckpointError for a tensor with a NaN or an infinity (a matrix packed here is checked even
    without ``check_finite``) or a checkpoint packed in another format, and PinnedMemoryError if the host
    cannot pin enough memory.
    """
    weights = weight_format(checkpoint, weights)
    checkpoint = with_vocabulary(checkpoint, vocab_rows)
    with progress_bar("loading", len(checkpoint.tensors), "tensor", shown=progress) as bar:
        config = checkpoint.config
        matrices = matrices_to_pack(checkpoint, dtype, weights, device, layout)
        huge = HugePages() if huge_pages and device.type == "cpu" else None
        loader = _Loader(checkpoint, dtype, device, matrices, check_finite, huge, agree, bar)
        tied = is_tied(checkpoint, weights)
        at = _CPU if embedding_on_host and not tied else device
        embedding = loader.floats(EMBEDDING, embedding_dtype(checkpoint, dtype, weights), at)
        return ModelWeights(
            embedding=_pinned(embedding) if at != device else embedding,
            layers=tuple(
                read_layer(
                    f"model.layers.{index}.",
                    config.qk_layernorm,
                    vector=loader.vector,
                    matrix=loader.matrix,
                    transposed=loader.transposed,
                )
                for index in range(config.num_hidden_layers)
            ),
            final_gamma=loader.vector("model.final_layernorm.weight"),
            final_beta=loader.vector("model.final_layernorm.bias"),
            lm_head=embedding if tied else loader.matrix(_LM_HEAD),
        )


def is_tied(checkpoint: Checkpoint, weights: WeightFormat | None) -> bool:
    """Whether the embedding is the lm_head too; a packed lm_head is a matrix of its own."""
    return checkpoint.config.tie_word_embeddings and weights is None


def with_vocabulary(checkpoint: Checkpoint, rows: int | None) -> Checkpoint:
    """The checkpoint with only the first ``rows`` rows of its vocabulary; None for all."""
    if rows is None or rows >= checkpoint.config.vocab_size:
        return checkpoint

    def first_packed(read: Callable[[], QuantizedMatrix]) -> Callable[[], QuantizedMatrix]:
        return lambda: read().rows(rows)

    tensors, packed = checkpoint.tensors, checkpoint.packed
    cut = {name: tensors[name].part(0, 0, rows) for name in _OF_THE_VOCABULARY if name in tensors}
    cut_packed = {name: first_packed(packed[name]) for name in _OF_THE_VOCABULARY if name in packed}
    config = replace(checkpoint.config, vocab_size=rows)
    return replace(checkpoint, config=config, tensors={**tensors, **cut}, packed={**packed, **cut_packed})


def weight_format(checkpoint: Checkpoint, weights: WeightFormat | None) -> WeightFormat | None:
    """The format of the loaded matrices, by default the checkpoint's; None if they are not packed.

    Raises CheckpointError if the checkpoint is packed in another format.
    """
    if checkpoint.weights is not None and weights not in (None, checkpoint.weights):
        assert weights is not None
        raise CheckpointError(
            f"{checkpoint.path}: its weights are packed as {checkpoint.weights.name}; "
            f"expected weights to be that or to be left out, not {weights.name!r}"
        )
    return weights or checkpoint.weights


def matrices_to_pack(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    weights: WeightFormat | None,
    device: torch.device,
    layout: str = ROW_MAJOR,
) -> Mapping[str, PackedMatrix[LayoutMatrix]]:
    """The matrices that ``load_weights`` packs, or only lays in tiles, by name."""
    if weights is not None:
        return packed_matrices(checkpoint.config, weights, layout_of(device, layout))
    if layout != TILES:
        return {}
    matrices = packed_matrices(checkpoint.config, float_format(dtype), GpuFloatTiles)
    return {name: one for name, one in matrices.items() if name != _LM_HEAD or not is_tied(checkpoint, None)}


def embedding_dtype(checkpoint: Checkpoint, dtype: torch.dtype, weights: WeightFormat | None) -> torch.dtype:
    """The dtype in which ``load_weights`` keeps the embedding."""
    # A step looks up and widens single rows, so a wider table would only cost memory.
    narrower = checkpoint.dtype.itemsize < dtype.itemsize
    return checkpoint.dtype if narrower and not is_tied(checkpoint, weights) else dtype


@dataclass(frozen=True)
class _Loader:
    """Reads one tensor after another, with the arguments of ``load_weights``."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device
    matrices: Mapping[str, PackedMatrix[LayoutMatrix]]
    check_finite: bool
    huge: HugePages | None
    agree: Agree
    bar: Any

    def floats(self, name: str, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        tensor = self.checkpoint.tensors[name].read().to(device=device or self.device, dtype=dtype)
        self._check(tensor, name)
        self.bar.update()
        return tensor

    def vector(self, name: str) -> Tensor:
        return self.floats(name, torch.float32)

    def matrix(self, name: str) -> Matrix:
        """[out, in], contiguous."""
        if name in self.matrices:
            return self._packed(name)
        return self._placed(self.floats(name, self.dtype)).contiguous()

    def transposed(self, name: str) -> Matrix:
        """[in, out], contiguous."""
        if name in self.matrices:
            return self._packed(name)
        return self._placed(self.floats(name, self.dtype).t()).contiguous()

    def _packed(self, name: str) -> LayoutMatrix:
        plan = self.matrices[name]
        if name in self.checkpoint.packed:
            matrix: LayoutMatrix = self._repacked(name, plan.layout)
        else:
            agree = self.agree if is_summed_over_ranks(name) else of_whole_matrix
            matrix = plan.pack(self.checkpoint.tensors[plan.tensor], self.device, agree)
            if not isinstance(matrix, QuantizedMatrix):
                self._check(matrix.values, name)
        self.bar.update()
        # A part of a matrix that is packed already may be a view of it.
        return matrix.map(lambda tensor: self._placed(tensor).contiguous())

    def _repacked(self, name: str, layout: type[LayoutMatrix]) -> QuantizedMatrix:
        assert issubclass(layout, QuantizedMatrix)
        matrix = repack(self.checkpoint.packed[name](), layout, self.device)
        self._check(matrix.scales, f"{name}.scales")
        if self.check_finite and matrix.has_nan_values():
            source = self.checkpoint.tensors[name].source
            raise CheckpointError(f"{source}: tensor {name}.values has a NaN")
        return matrix

    def _placed(self, tensor: Tensor) -> Tensor:
        if self.huge is None:
            return tensor
        copied = self.huge.copy(tensor)
        release_pages(tensor)  # so that memory does not hold the model twice
        return copied

    def _check(self, tensor: Tensor, name: str) -> None:
        if self.check_finite and not _all_finite(tensor):
            source = self.checkpoint.tensors[name.removesuffix(".scales")].source
            raise CheckpointError(
                f"{source}: tensor {name} has a NaN or an infinity in {dtype_name(tensor.dtype)}"
            )


def _pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory of the host."""
    try:
        copied = tensor.pin_memory()
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise PinnedMemoryError(
            f"the host could not pin {tensor.nbytes} bytes for the embedding ({reason}); "
            f"expected embedding 'device', or a host that can lock more memory"
        ) from error
    release_pages(tensor)
    return copied


def _all_finite(tensor: Tensor) -> bool:
    # The extremes show both NaN and infinity, and computing them allocates nothing.
    lowest, highest = torch.aminmax(tensor)
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))
