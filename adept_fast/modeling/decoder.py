"""PersimmonModel: the decoder as torch modules, with gradients.

``decoder_layer`` of ``adept_fast.model`` computes with the modules, whose products are those of
``adept_fast.ops.reference``, so this runs at the speed of plain torch, not of ``Runtime``. Sums, LayerNorms
and softmax are float32, and so are products on a CPU; outputs have the dtype of the parameters. Each Linear
and LayerNorm is called as a module, so that hooks and adapters see its inputs and change its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.model import decoder_layer
from adept_fast.modeling.attention import (
    VisibleKeys,
    attend,
    attend_with_weights,
    is_traced,
    packed_sequences,
)
from adept_fast.modeling.base import BaseConfig, RecomputedLayer
from adept_fast.modeling.cache import Cache, KeyValueCache, one_cache
from adept_fast.modeling.config import architecture_of
from adept_fast.modeling.outputs import BaseModelOutputWithPast
from adept_fast.modeling.pretrained import PersimmonPreTrainedModel
from adept_fast.ops import reference
from adept_fast.system.short_text import short_repr

_SMALLEST_CACHE = 64  # positions

# The attention of one layer: qkv [batch, sequence, 3 * hidden] → [batch, sequence, hidden].
Attention: TypeAlias = Callable[[Tensor, "PersimmonAttention"], Tensor]


class Linear(nn.Linear):
    """torch's Linear with sums in float32 whatever the dtype of the weights: → float32 [.., out]."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.product(x.flatten(0, -2).float()).unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias.float()

    def product(self, x: Tensor) -> Tensor:
        """float32 [tokens, in] → [tokens, out]."""
        return reference.project(x, self.weight)


class DownProjection(Linear):
    """A Linear of activations that are 0 or above, and may exceed float16."""

    def product(self, x: Tensor) -> Tensor:
        return reference.project_transposed(x, self.weight.t())


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return reference.layernorm(x.float(), self.weight.float(), self.bias.float(), self.eps)


class PersimmonAttention(nn.Module):
    """The projections and norms of a layer's attention."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.query_key_value = Linear(hidden, 3 * hidden)
        self.dense = Linear(hidden, hidden)
        if config.qk_layernorm:
            self.q_layernorm = LayerNorm(config.head_dim, eps=eps)
            self.k_layernorm = LayerNorm(config.head_dim, eps=eps)

    def normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q and k [.., heads, head_dim], each normalised per head if the model does so."""
        return (self.q_layernorm(q), self.k_layernorm(k)) if hasattr(self, "q_layernorm") else (q, k)


class PersimmonMLP(nn.Module):
    """The MLP of a layer: down(relu²(up(x))), whose activations are float32."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = DownProjection(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense_4h_to_h(F.relu(self.dense_h_to_4h(x)).square())
        return out


class PersimmonDecoderLayer(RecomputedLayer):
    """One layer, from residual sums float32 [batch, sequence, hidden] to the next."""

    def __init__(self, config: Architecture, hidden_dropout: float) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        # The order of transformers, because the state of an optimiser has this order.
        self.self_attn = PersimmonAttention(config)
        self.mlp = PersimmonMLP(config)
        self.input_layernorm = LayerNorm(hidden, eps=eps)
        self.post_attention_layernorm = LayerNorm(hidden, eps=eps)
        self.dropout = nn.Dropout(hidden_dropout)

    def forward(self, x: Tensor, attend_to: Attention) -> Tensor:
        return decoder_layer(x, self, lambda qkv: attend_to(qkv, self.self_attn))

    def project_qkv(self, x: Tensor) -> Tensor:
        qkv: Tensor = self.self_attn.query_key_value(self.input_layernorm(x))
        return qkv

    def add_attention(self, attended: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.self_attn.dense(attended)
        return x + out

    def add_mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return x + out


class PersimmonModel(PersimmonPreTrainedModel):
    """The decoder without a head, from ids or their embeddings to hidden states."""

    def __init__(self, config: Architecture | BaseConfig) -> None:
        super().__init__(config)
        architecture = architecture_of(self.config)
        hidden, dropout = architecture.hidden_size, self.config.hidden_dropout
        self.architecture = architecture
        self.embed_tokens = nn.Embedding(architecture.vocab_size, hidden, self.config.pad_token_id)
        self.layers = nn.ModuleList(
            PersimmonDecoderLayer(architecture, dropout) for _ in range(architecture.num_hidden_layers)
        )
        self.final_layernorm = LayerNorm(hidden, eps=architecture.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: Cache | None = None,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[object, ...]:
        """Process [batch, sequence] tokens after those of ``cache``.

        Args:
            input_ids: int64 [batch, sequence]; or
            inputs_embeds: [batch, sequence, hidden].
            attention_mask: [batch, past + sequence], 0 for padding, on the left or on the right; or
                [batch or 1, heads or 1, sequence, past + sequence], True for visible, or floats that are
                added to the scores.
            position_ids: int64 [batch or 1, sequence]; by default they continue from the past, padding
                included. Without a mask and a cache, a position that is not its predecessor plus one begins
                another sequence, which does not attend to those before it.
            cache: a cache returned by an earlier call, or one of transformers; this call writes to it.
            use_cache: return a cache; by default as in the config, and never with gradient checkpointing.
            return_dict: False for a tuple.
            past_key_values: the name of ``cache`` in transformers up to 5.23.
            cache_position: int64 [sequence], the positions in the cache, by default those after the past.

        Raises ValueError for arguments that contradict each other, TypeError for what is no cache.
        """
        config = self.config
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "cache_position": cache_position,
        }
        for name, value in given.items():
            if value is not None and not isinstance(value, Tensor):
                raise ValueError(f"{name} is {short_repr(value)}; expected a tensor, or None")
        embeds = self._embeddings(input_ids, inputs_embeds)
        cache = self._cache(embeds, one_cache(cache, past_key_values), use_cache)
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        weights: list[Tensor] | None = [] if with_weights else None
        call = _Call(self, embeds, attention_mask, position_ids, cache, cache_position, weights)
        states = [embeds]
        x = embeds.float()  # [batch, sequence, hidden]
        for index, layer in enumerate(self.layers):
            x = layer(x, call.attention(index))
            states.append(x.to(embeds.dtype))
        states[-1] = self.final_layernorm(x).to(embeds.dtype)
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        outputs = BaseModelOutputWithPast(
            last_hidden_state=states[-1],
            cache=cache,
            hidden_states=tuple(states) if with_states else None,
            attentions=None if weights is None else tuple(weights),
        )
        return outputs if self.returns_dict(return_dict) else outputs.to_tuple()

    def _cache(self, embeds: Tensor, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache that this call writes to: the caller's, or a new one if it is asked for."""
        if self.training and any(layer.gradient_checkpointing for layer in self.layers):
            if cache is not None:
                raise ValueError("a cache is given; expected None with gradient checkpointing in training")
            return None
        if isinstance(cache, KeyValueCache):
            cache.require_batch(embeds.shape[0])
        if cache is not None or not (self.config.use_cache if use_cache is None else use_cache):
            return cache
        batch, tokens, _ = embeds.shape
        return KeyValueCache(
            self.architecture,
            max_batch_size=batch,
            max_seq_len=max(_SMALLEST_CACHE, 2 * tokens),
            dtype=embeds.dtype,
            device=embeds.device,
        )

    def _embeddings(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            found = "neither" if input_ids is None else "both"
            raise ValueError(f"input_ids and inputs_embeds: {found} given; expected one of them")
        if input_ids is not None:
            if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"input_ids is {short_repr(input_ids)}; expected a tensor of int64 or int32")
            if input_ids.dim() != 2:
                raise ValueError(f"input_ids has shape {list(input_ids.shape)}; expected [batch, sequence]")
            embeds: Tensor = self.embed_tokens(input_ids)
            return embeds
        if not isinstance(inputs_embeds, Tensor):
            raise ValueError(f"inputs_embeds is {short_repr(inputs_embeds)}; expected a tensor")
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"inputs_embeds has shape {list(inputs_embeds.shape)}; "
                f"expected [batch, sequence, {self.config.hidden_size}]"
            )
        return inputs_embeds.to(self.embed_tokens.weight.dtype)


class _Call:
    """The state that all layers of one forward pass share: visible keys, rotations, the cache.

    ``weights`` receives the attention weights of each layer unless it is None.
    """

    def __init__(
        self,
        model: PersimmonModel,
        embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        cache_position: Tensor | None,
        weights: list[Tensor] | None,
    ) -> None:
        batch, tokens, _ = embeds.shape
        config, self.architecture = model.config, model.architecture
        past = 0 if cache is None else cache.get_seq_length()
        columns = torch.arange(tokens, device=embeds.device) + past  # of the cache
        if cache_position is not None:
            _check_cache_position(cache_position, columns, past)
            columns = cache_position
        sequences = None
        if position_ids is None:
            position_ids = columns[None]
        elif position_ids.shape not in ((batch, tokens), (1, tokens)):
            raise ValueError(
                f"position_ids has shape {list(position_ids.shape)}; "
                f"expected {[batch, tokens]} or {[1, tokens]}"
            )
        elif attention_mask is None and cache is None:
            sequences = packed_sequences(position_ids)
        known = past if isinstance(past, int) else None
        self.visible = VisibleKeys(attention_mask, batch, columns, known, sequences)
        if cache is None:
            self.visible.among(tokens)  # now, as what is recomputed in a graph may not store it
        self.cache = cache
        self.cache_kwargs = {"cache_position": columns}  # of transformers' static caches up to 5.2
        self.weights = weights
        self.is_explicit = weights is not None or getattr(config, "_attn_implementation", None) == "eager"
        self.returned_dtype = embeds.dtype
        self.dtype = embeds.dtype if embeds.is_cuda else torch.float32
        angles = reference.rotary_angles(
            position_ids.reshape(-1), self.architecture.rotary_dim, self.architecture.rope_theta
        )
        angles = angles.unflatten(0, position_ids.shape)[
            :, :, None
        ]  # [batch or 1, sequence, 1, rotary_dim / 2]
        self.cos, self.sin = angles.cos(), angles.sin()
        self.dropout = config.attention_dropout if model.training else 0.0

    def attention(self, index: int) -> Attention:
        """Rotation and attention of one layer."""
        heads, scale = self.architecture.num_attention_heads, self.architecture.head_dim**-0.5

        def attend_to(qkv: Tensor, layer: PersimmonAttention) -> Tensor:
            q, k, v = reference.split_heads(qkv, heads)  # each [batch, sequence, heads, head_dim]
            q, k = layer.normalise(q, k)
            q, k = reference.rotate(q, self.cos, self.sin), reference.rotate(k, self.cos, self.sin)
            q, k, v = (part.transpose(1, 2).to(self.dtype) for part in (q, k, v))
            if self.cache is not None:
                k, v = self.cache.update(k, v, index, self.cache_kwargs)
            visible = self.visible.among(k.shape[2])
            if self.is_explicit:
                out, weights = attend_with_weights(q, k, v, visible, scale, self.dropout)
                if self.weights is not None:
                    self.weights.append(weights.to(self.returned_dtype))
            else:
                out = attend(q, k, v, visible, scale, self.dropout)
            return out.transpose(1, 2).flatten(2).float()  # [batch, sequence, hidden]

        return attend_to


def _check_cache_position(found: Tensor, expected: Tensor, past: object) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"cache_position has shape {list(found.shape)}; expected {list(expected.shape)}")
    if isinstance(past, int) and not is_traced() and not torch.equal(found.to(expected.device), expected):
        raise ValueError(
            f"cache_position is {short_repr(found.tolist())}; "
            f"expected the {len(expected)} positions from {past}, the length of the cache"
        )
