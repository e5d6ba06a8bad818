"""Which matrices of a model a weight format packs, and packing them from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adept_fast.checkpoint.base import CheckpointError, StoredTensor
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.quantize import Packing, QuantizationError, QuantizedMatrix, packing_of, quantize


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix that a weight format packs.

    ``tensor`` is the checkpoint's tensor that holds its weights, and ``shape`` what is packed of it: in the
    ``units`` layout its transpose.
    """

    name: str
    tensor: str
    shape: tuple[int, int]
    packing: Packing

    @property
    def nbytes(self) -> int:
        return self.packing.nbytes(self.shape)

    @property
    def is_transposed(self) -> bool:
        return self.packing.layout == "units"

    def pack(self, stored: StoredTensor, device: torch.device | None = None) -> QuantizedMatrix:
        """The matrix on ``device`` (None: the CPU), rounded and packed there.

        Raises CheckpointError naming a tensor that cannot be rounded.
        """
        matrix = stored.read().to(device=device)
        try:
            return quantize(matrix.t() if self.is_transposed else matrix, self.packing)
        except QuantizationError as error:
            raise CheckpointError(f"{stored.source}: tensor {stored.name} {error}") from error


def packed_matrices(config: PersimmonConfig, weights: str) -> dict[str, PackedMatrix]:
    """By name, the matrices that ``weights``, one of WEIGHT_FORMATS, packs.

    With tied embeddings the output matrix is among them, and made from the embedding, which stays beside it:
    one is read whole in every step, of the other a row is looked up.
    """
    shapes = config.tensor_shapes()
    sources = {name: name for name in shapes}
    sources.setdefault("lm_head.weight", "model.embed_tokens.weight")
    matrices = {}
    for name, tensor in sources.items():
        packing = packing_of(name, weights)
        if packing is not None:
            rows, columns = shapes[tensor]
            shape = (columns, rows) if packing.layout == "units" else (rows, columns)
            matrices[name] = PackedMatrix(name, tensor, shape, packing)
    return matrices
