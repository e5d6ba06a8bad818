"""Which matrices of a model a weight format packs, and packing them from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from adept_fast.checkpoint.base import CheckpointError, StoredTensor
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.formats import MatrixSpec, QuantizationError, WeightFormat, spec_of
from adept_fast.quantization.matrix import QuantizedMatrix, quantize


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix that a weight format packs: ``spec`` of the checkpoint's ``tensor``, in ``layout``."""

    name: str
    tensor: str
    spec: MatrixSpec
    layout: type[QuantizedMatrix]

    @property
    def nbytes(self) -> int:
        return self.layout.bytes_of(self.spec)

    def first_rows(self, count: int) -> PackedMatrix:
        """As if the matrix had its first ``count`` rows only."""
        return replace(self, spec=replace(self.spec, shape=(count, self.spec.shape[1])))

    def pack(self, stored: StoredTensor, device: torch.device | None = None) -> QuantizedMatrix:
        """The matrix on ``device`` (None: the CPU), rounded and packed there.

        Raises CheckpointError naming a tensor that cannot be rounded.
        """
        matrix = stored.read().to(device=device)
        try:
            return quantize(matrix.t() if self.spec.transposed else matrix, self.spec, self.layout)
        except QuantizationError as error:
            raise CheckpointError(f"{stored.source}: tensor {stored.name} {error}") from error


def packed_matrices(
    config: PersimmonConfig, weights: WeightFormat, layout: type[QuantizedMatrix]
) -> dict[str, PackedMatrix]:
    """By name, the matrices that ``weights`` packs.

    With tied embeddings the output matrix is among them, and made from the embedding, which stays beside it:
    one is read whole in every step, of the other a row is looked up.
    """
    shapes = config.tensor_shapes()
    sources = {name: name for name in shapes}
    sources.setdefault("lm_head.weight", "model.embed_tokens.weight")
    matrices = {}
    for name, tensor in sources.items():
        spec = spec_of(name, shapes[tensor], weights)
        if spec is not None:
            matrices[name] = PackedMatrix(name, tensor, spec, layout)
    return matrices
