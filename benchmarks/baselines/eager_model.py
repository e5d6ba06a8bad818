"""Persimmon in plain PyTorch, as a good engineer writes it in an evening: what ours is compared with.

Nothing but ``torch.nn`` and scaled_dot_product_attention, and a static cache; no operator of adept_fast's. It
runs in any dtype, on any device, as it is or through torch.compile. Modules bear transformers' names, so a
checkpoint's tensors are its state dict. In float16 the squares of activations above 256 overflow, here as in
transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adept_fast.checkpoint import Checkpoint
from adept_fast.config import PersimmonConfig


class Cache:
    """Keys and values of every layer: each a list of [batch, heads, capacity, head_dim]."""

    def __init__(
        self, config: PersimmonConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (batch, config.num_attention_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]


class Rotary(nn.Module):
    """Cosines and sines of the angles by which the first ``rotary_dim`` dimensions of a head turn."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.dim = config.rotary_dim
        self.theta = config.rope_theta

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``positions`` [tokens] → twice [tokens, rotary_dim]."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device=positions.device) / self.dim
        angles = positions[:, None].float() * self.theta**-exponents  # [tokens, rotary_dim / 2]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first dimensions of [batch, heads, tokens, head_dim]; the others stay."""
    turning, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turning.chunk(2, dim=-1)
    return torch.cat((turning * cos + torch.cat((-second, first), dim=-1) * sin, still), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.q_layernorm: nn.Module = nn.Identity()
        self.k_layernorm: nn.Module = nn.Identity()
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(config.head_dim, eps=config.layer_norm_eps)
            self.k_layernorm = nn.LayerNorm(config.head_dim, eps=config.layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        length: int,
        mask: Tensor | None,
    ) -> Tensor:
        batch, tokens, hidden = x.shape
        qkv = self.query_key_value(x).view(batch, tokens, self.heads, 3, self.head_dim)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each [batch, heads, tokens, head_dim]
        q, k = rotate(self.q_layernorm(q), cos, sin), rotate(self.k_layernorm(k), cos, sin)
        keys.index_copy_(2, positions, k)
        values.index_copy_(2, positions, v)
        attended = F.scaled_dot_product_attention(
            q, keys[:, :, :length], values[:, :, :length], attn_mask=mask
        )  # [batch, heads, tokens, head_dim]
        return self.dense(attended.transpose(1, 2).reshape(batch, tokens, hidden))


class Mlp(nn.Module):
    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(x).relu().square())


class Layer(nn.Module):
    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, *attention: Tensor | int | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary = Rotary(config)

    def forward(self, ids: Tensor, positions: Tensor, cache: Cache, length: int | None = None) -> Tensor:
        x = self.embed_tokens(ids)  # [batch, tokens, hidden]
        cos, sin = self.rotary(positions, x.dtype)
        mask = None
        if length is None or len(positions) > 1:
            length = length or cache.keys[0].shape[2]
            mask = torch.arange(length, device=ids.device) <= positions[:, None]  # [tokens, length]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x = layer(x, cos, sin, positions, keys, values, length, mask)
        return self.final_layernorm(x)


class Persimmon(nn.Module):
    """The model; made by ``load``."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, positions: Tensor, cache: Cache, length: int | None = None) -> Tensor:
        """Logits of every token: [batch, tokens, vocab].

        Args:
            ids: int64 [batch, tokens].
            positions: int64 [tokens], in every sequence of the batch.
            length: how many positions of the cache are looked at, those of these tokens included; None for
                all it has room for, so that no shape changes from step to step.
        """
        return self.lm_head(self.model(ids, positions, cache, length))

    def last_logits(self, ids: Tensor, positions: Tensor, cache: Cache, length: int | None = None) -> Tensor:
        """As ``forward``, after the last token only: [batch, vocab]."""
        return self.lm_head(self.model(ids, positions, cache, length)[:, -1])

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> Persimmon:
        """A checkpoint's weights in that dtype, there."""
        with torch.device("meta"):
            model = cls(checkpoint.config)
        tensors = {
            name: stored.read().to(device=device, dtype=dtype, copy=True)
            for name, stored in checkpoint.tensors.items()
        }
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
        model.load_state_dict(tensors, assign=True)
        return model.eval()
