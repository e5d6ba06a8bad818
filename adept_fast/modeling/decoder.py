"""PersimmonModel: the decoder as torch modules, with gradients.

The modules hold the parameters under transformers' names. ``decoder_layer`` of ``adept_fast.model`` computes
with them on the operators of ``adept_fast.ops.reference``, so this runs at the speed of plain torch, not of
``Runtime``. Sums, LayerNorms and softmax are float32, and so are products on a CPU; outputs have the dtype of
the parameters. A layer calls no module, so hooks and adapters that wrap one of its ``Linear`` have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.model import decoder_layer
from adept_fast.modeling.attention import attend, attend_with_weights, packed_sequences, visible_keys
from adept_fast.modeling.cache import KeyValueCache, one_cache
from adept_fast.modeling.config import PersimmonConfig
from adept_fast.modeling.outputs import BaseModelOutputWithPast
from adept_fast.modeling.pretrained import PersimmonPreTrainedModel
from adept_fast.ops import reference
from adept_fast.system.short_text import short_repr
from adept_fast.weights import LayerWeights, read_layer

_SMALLEST_CACHE = 64  # positions

Attention: TypeAlias = Callable[[Tensor, LayerWeights], Tensor]  # qkv [tokens, 3 · hidden] → [tokens, hidden]


class PersimmonAttention(nn.Module):
    """The parameters of a layer's attention."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(config.head_dim, eps=eps)
            self.k_layernorm = nn.LayerNorm(config.head_dim, eps=eps)


class PersimmonMLP(nn.Module):
    """The parameters of a layer's MLP."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)


class PersimmonDecoderLayer(nn.Module):
    """One layer, from residual sums float32 [tokens, hidden] to the next."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.hidden_dropout = config.hidden_dropout
        # The order of transformers, because the state of an optimiser has this order.
        self.self_attn = PersimmonAttention(config)
        self.mlp = PersimmonMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=self.eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=self.eps)

    def forward(self, x: Tensor, attend_to: Attention) -> Tensor:
        weights = self.weights()
        operators = _Operators(self.hidden_dropout if self.training else 0.0)
        return decoder_layer(x, weights, self.eps, lambda qkv: attend_to(qkv, weights), operators)

    def weights(self) -> LayerWeights:
        """The parameters as the operators take them: vectors float32, the down-projection transposed."""
        return read_layer(
            "",
            hasattr(self.self_attn, "q_layernorm"),
            vector=lambda name: attrgetter(name)(self).float(),
            matrix=lambda name: attrgetter(name)(self),
            transposed=lambda name: attrgetter(name)(self).t(),
        )


class PersimmonModel(PersimmonPreTrainedModel):
    """The decoder without a head, from ids or their embeddings to hidden states."""

    base_model_prefix = ""

    def __init__(self, config: Architecture) -> None:
        super().__init__(config)
        config = self.config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(PersimmonDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: KeyValueCache | None = None,
    ) -> BaseModelOutputWithPast | tuple[object, ...]:
        """Process [batch, sequence] tokens after those of ``cache``.

        Args:
            input_ids: int64 [batch, sequence]; or
            inputs_embeds: [batch, sequence, hidden].
            attention_mask: [batch, past + sequence], 0 for padding, on the left or on the right.
            position_ids: int64 [batch or 1, sequence]; by default they continue from the past, padding
                included. Without a mask and a cache, a position that is not its predecessor plus one begins
                another sequence, which does not attend to those before it.
            cache: a cache returned by an earlier call; this call writes to it.
            use_cache: return a cache; by default as in the config, and never with gradient checkpointing.
            return_dict: False for a tuple.
            past_key_values: the name of ``cache`` in transformers up to 5.23.

        Raises ValueError for arguments that contradict each other, TypeError for another package's cache.
        """
        config = self.config
        for name, value in (("attention_mask", attention_mask), ("position_ids", position_ids)):
            if value is not None and not isinstance(value, Tensor):
                raise ValueError(f"{name} is {short_repr(value)}; expected a tensor, or None")
        embeds = self._embeddings(input_ids, inputs_embeds)
        batch, tokens, hidden = embeds.shape
        recomputes = self.gradient_checkpointing and self.training
        use_cache = (config.use_cache if use_cache is None else use_cache) and not recomputes
        cache = one_cache(cache, past_key_values)
        if cache is not None and recomputes:
            raise ValueError("a cache is given; expected None with gradient checkpointing in training")
        if cache is None and use_cache:
            room = max(_SMALLEST_CACHE, 2 * tokens)
            cache = KeyValueCache(
                config, max_batch_size=batch, max_seq_len=room, dtype=embeds.dtype, device=embeds.device
            )
        if cache is not None:
            if not isinstance(cache, KeyValueCache):
                found = type(cache).__name__
                raise TypeError(f"the cache is a {found}; expected a KeyValueCache of this package")
            cache.make_room(batch, tokens)
        call = _Call(config, embeds, attention_mask, position_ids, cache, self.training)
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        weights: list[Tensor] | None = [] if with_weights else None
        states = [embeds]
        x = embeds.reshape(-1, hidden).float()  # [batch * sequence, hidden]
        for index, layer in enumerate(self.layers):
            attend_to = call.attention(index, weights)
            x = checkpoint(layer, x, attend_to, use_reentrant=False) if recomputes else layer(x, attend_to)
            states.append(x.view(embeds.shape).to(embeds.dtype))
        norm = self.final_layernorm
        x = reference.layernorm(x, norm.weight.float(), norm.bias.float(), config.layer_norm_eps)
        states[-1] = x.view(embeds.shape).to(embeds.dtype)
        if cache is not None:
            cache.length += tokens
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        outputs = BaseModelOutputWithPast(
            last_hidden_state=states[-1],
            cache=cache,
            hidden_states=tuple(states) if with_states else None,
            attentions=None if weights is None else tuple(weights),
        )
        return outputs if self.returns_dict(return_dict) else outputs.to_tuple()

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


class _Operators:
    """The reference operators, with dropout of the output of the MLP."""

    layernorm_qkv = staticmethod(reference.layernorm_qkv)
    linear_residual = staticmethod(reference.linear_residual)

    def __init__(self, dropout: float) -> None:
        self.dropout = dropout

    def mlp(self, x: Tensor, *parts: object) -> Tensor:
        out = reference.mlp(x, *parts)  # type: ignore[arg-type]
        return x + F.dropout(out - x, self.dropout) if self.dropout else out


class _Call:
    """The state that all layers of one forward pass share: visible keys, rotations, the cache."""

    def __init__(
        self,
        config: PersimmonConfig,
        embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: KeyValueCache | None,
        training: bool,
    ) -> None:
        batch, tokens, _ = embeds.shape
        past = 0 if cache is None else cache.length
        sequences = None
        if position_ids is None:
            position_ids = torch.arange(past, past + tokens, device=embeds.device)[None]
        elif position_ids.shape not in ((batch, tokens), (1, tokens)):
            raise ValueError(
                f"position_ids has shape {list(position_ids.shape)}; "
                f"expected {[batch, tokens]} or {[1, tokens]}"
            )
        elif attention_mask is None and cache is None:
            sequences = packed_sequences(position_ids)
        self.config = config
        self.cache = cache
        self.batch = batch
        self.returned_dtype = embeds.dtype
        self.dtype = embeds.dtype if embeds.is_cuda else torch.float32
        self.visible = visible_keys(attention_mask, batch, tokens, past, sequences, embeds.device)
        positions = position_ids.expand(batch, tokens).reshape(-1)  # [batch * sequence]
        angles = reference.rotary_angles(positions, config.rotary_dim, config.rope_theta)
        self.cos, self.sin = angles.cos(), angles.sin()  # each [batch * sequence, rotary_dim / 2]
        self.dropout = config.attention_dropout if training else 0.0

    def attention(self, index: int, kept_weights: list[Tensor] | None) -> Attention:
        """Rotation and attention of one layer; ``kept_weights`` receives the weights unless it is None."""
        config, scale = self.config, self.config.head_dim**-0.5

        def attend_to(qkv: Tensor, layer: LayerWeights) -> Tensor:
            norms = (layer.q_gamma, layer.q_beta, layer.k_gamma, layer.k_beta)
            parts = reference.normalise_and_rotate(
                qkv, config.num_attention_heads, norms, config.layer_norm_eps, self.cos, self.sin
            )
            # each [batch, heads, sequence, head_dim]
            q, k, v = (part.unflatten(0, (self.batch, -1)).transpose(1, 2).to(self.dtype) for part in parts)
            if self.cache is not None:
                k, v = self.cache.append(index, k, v)
            if kept_weights is None:
                out = attend(q, k, v, self.visible, scale, self.dropout)
            else:
                out, weights = attend_with_weights(q, k, v, self.visible, scale, self.dropout)
                kept_weights.append(weights.to(self.returned_dtype))
            return out.transpose(1, 2).flatten(2).flatten(0, 1).float()  # [batch * sequence, hidden]

        return attend_to
