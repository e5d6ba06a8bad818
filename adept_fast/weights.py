"""The model's weights as the operators take them: matrices in one dtype, vectors in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from adept_fast.checkpoint import Checkpoint, CheckpointError, dtype_name


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Matrices are [out, in] row-major, but for the down-projection, which is transposed so that
    a hidden unit is a row: a unit that is exactly 0 costs no read."""

    input_gamma: Tensor  # [hidden]
    input_beta: Tensor  # [hidden]
    w_qkv: Tensor  # [3 * hidden, hidden], rows laid out [head, (q, k, v), head_dim]
    b_qkv: Tensor  # [3 * hidden]
    q_gamma: Tensor | None  # [head_dim], None where the model has no q/k LayerNorm
    q_beta: Tensor | None  # [head_dim]
    k_gamma: Tensor | None  # [head_dim]
    k_beta: Tensor | None  # [head_dim]
    w_dense: Tensor  # [hidden, hidden]
    b_dense: Tensor  # [hidden]
    mlp_gamma: Tensor  # [hidden]
    mlp_beta: Tensor  # [hidden]
    w_up: Tensor  # [intermediate, hidden]
    b_up: Tensor  # [intermediate]
    w_down_t: Tensor  # [intermediate, hidden]
    b_down: Tensor  # [hidden]


@dataclass(frozen=True)
class ModelWeights:
    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    final_gamma: Tensor  # [hidden]
    final_beta: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]; the embedding itself where the two are tied

    @property
    def device(self) -> torch.device:
        return self.lm_head.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrices."""
        return self.lm_head.dtype

    def bytes_per_step(self, vocab_size: int) -> int:
        """What a decode step reads: everything but the embedding, of the lm_head ``vocab_size`` rows."""
        tensors = [tensor for layer in self.layers for tensor in vars(layer).values() if tensor is not None]
        tensors += [self.final_gamma, self.final_beta, self.lm_head[:vocab_size]]
        return sum(int(tensor.nbytes) for tensor in tensors)


def load_weights(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    check_finite: bool = True,
    progress: bool = False,
) -> ModelWeights:
    """Move a checkpoint's weights to ``device``, tensor by tensor, the matrices in ``dtype``.

    At any time memory holds what has been moved and one tensor more. On a CPU, a matrix that is stored in
    ``dtype`` already stays memory-mapped. Raises CheckpointError naming a tensor with a NaN or an infinity.
    """
    with tqdm(
        total=len(checkpoint.tensors),
        desc="loading",
        unit="tensor",
        disable=None if progress else True,  # None shows it only to a terminal
        delay=0.5,
        leave=False,
    ) as bar:

        def take(name: str, dtype: torch.dtype = dtype) -> Tensor:
            stored = checkpoint.tensors[name]
            tensor = stored.read().to(device=device, dtype=dtype)
            if check_finite and not _all_finite(tensor):
                raise CheckpointError(
                    f"{stored.source}: tensor {name} has a NaN or an infinity in {dtype_name(dtype)}"
                )
            bar.update()
            return tensor

        def vector(name: str) -> Tensor:
            return take(name, torch.float32)

        config = checkpoint.config
        embedding = take("model.embed_tokens.weight", _embedding_dtype(checkpoint, dtype))
        return ModelWeights(
            embedding=embedding,
            layers=tuple(
                _load_layer(f"model.layers.{index}.", config.qk_layernorm, take, vector)
                for index in range(config.num_hidden_layers)
            ),
            final_gamma=vector("model.final_layernorm.weight"),
            final_beta=vector("model.final_layernorm.bias"),
            lm_head=embedding if config.tie_word_embeddings else take("lm_head.weight"),
        )


def weights_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """How many bytes ``load_weights`` will hold."""
    total = 0
    for name, tensor in checkpoint.tensors.items():
        kept = torch.float32 if len(tensor.shape) == 1 else dtype
        if name == "model.embed_tokens.weight":
            kept = _embedding_dtype(checkpoint, dtype)
        total += torch.Size(tensor.shape).numel() * kept.itemsize
    return total


def _embedding_dtype(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.dtype:
    # Rows are looked up and widened one by one, so a wider table would only cost memory.
    narrower = checkpoint.dtype.itemsize < dtype.itemsize
    return checkpoint.dtype if narrower and not checkpoint.config.tie_word_embeddings else dtype


def _load_layer(
    prefix: str, qk_layernorm: bool, matrix: Callable[[str], Tensor], vector: Callable[[str], Tensor]
) -> LayerWeights:
    def qk(name: str) -> Tensor | None:
        return vector(f"{prefix}self_attn.{name}") if qk_layernorm else None

    return LayerWeights(
        input_gamma=vector(prefix + "input_layernorm.weight"),
        input_beta=vector(prefix + "input_layernorm.bias"),
        w_qkv=matrix(prefix + "self_attn.query_key_value.weight"),
        b_qkv=vector(prefix + "self_attn.query_key_value.bias"),
        q_gamma=qk("q_layernorm.weight"),
        q_beta=qk("q_layernorm.bias"),
        k_gamma=qk("k_layernorm.weight"),
        k_beta=qk("k_layernorm.bias"),
        w_dense=matrix(prefix + "self_attn.dense.weight"),
        b_dense=vector(prefix + "self_attn.dense.bias"),
        mlp_gamma=vector(prefix + "post_attention_layernorm.weight"),
        mlp_beta=vector(prefix + "post_attention_layernorm.bias"),
        w_up=matrix(prefix + "mlp.dense_h_to_4h.weight"),
        b_up=vector(prefix + "mlp.dense_h_to_4h.bias"),
        w_down_t=matrix(prefix + "mlp.dense_4h_to_h.weight").t().contiguous(),
        b_down=vector(prefix + "mlp.dense_4h_to_h.bias"),
    )


def _all_finite(tensor: Tensor) -> bool:
    # NaN and infinity both show in the extremes, and finding those allocates nothing.
    lowest, highest = torch.aminmax(tensor)
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))
