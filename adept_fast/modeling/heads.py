"""The three heads on the decoder: next token, a sequence's class, each token's class."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from adept_fast.arguments import integer
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.modeling.base import BaseConfig, GeneratesText, GenerationMixin
from adept_fast.modeling.cache import Cache
from adept_fast.modeling.decoder import PersimmonModel
from adept_fast.modeling.losses import (
    next_token_loss,
    sequence_classification_loss,
    token_classification_loss,
)
from adept_fast.modeling.outputs import (
    CausalLMOutputWithPast,
    OutputWithLogits,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from adept_fast.modeling.pretrained import PersimmonPreTrainedModel


class PersimmonForCausalLM(GeneratesText, PersimmonPreTrainedModel, GenerationMixin):
    """The decoder with the logits of the next token.

    ``generate`` is transformers' own, with its arguments; it decodes on the runtime.
    """

    head_names = ("lm_head.weight",)
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = True  # tells transformers' Trainer that forward has num_items_in_batch

    def __init__(self, config: Architecture | BaseConfig) -> None:
        super().__init__(config)
        self.model = PersimmonModel(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        *,
        past_key_values: Cache | None = None,
        cache_position: Tensor | None = None,
        **options: Tensor | None,
    ) -> CausalLMOutputWithPast | tuple[object, ...]:
        """As ``PersimmonModel.forward``, to logits [batch, kept, vocab].

        Args:
            labels: int64 [batch, sequence], the ids themselves; -100 is ignored. The loss predicts each id
                from the tokens before it.
            logits_to_keep: the number of last tokens that get logits, 0 for all; or their indices, int64
                [kept], or for each row [batch, kept]; or bool [batch, sequence], for logits [kept, vocab].
            num_items_in_batch: divisor of the loss if a batch is read in parts.
            options: ``shift_labels``, int64 [batch, sequence], the labels of the next tokens, instead of
                ``labels``.
        """
        # No parameter, since transformers' Trainer takes each one that has "label" in its name for required.
        shift_labels = options.pop("shift_labels", None)
        if options:
            raise TypeError(f"forward has no argument {next(iter(options))}")
        inputs = (input_ids, attention_mask, position_ids, cache, inputs_embeds)
        wanted = (use_cache, output_hidden_states, output_attentions)
        other = {"past_key_values": past_key_values, "cache_position": cache_position}
        decoded = self.model(*inputs, *wanted, return_dict=True, **other)
        logits = self.lm_head(_kept(decoded.last_hidden_state, logits_to_keep))
        has_labels = labels is not None or shift_labels is not None
        loss = next_token_loss(logits, labels, num_items_in_batch, shift_labels) if has_labels else None
        result = CausalLMOutputWithPast.of(decoded, loss, logits)
        return result if self.returns_dict(return_dict) else result.to_tuple()


class _Classifier(PersimmonPreTrainedModel):
    """The decoder with a head ``score`` of ``config.num_labels`` labels."""

    output_type: type[OutputWithLogits]

    def __init__(self, config: Architecture | BaseConfig) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.model = PersimmonModel(self.config)
        self.score = nn.Linear(self.config.hidden_size, self.num_labels, bias="score.bias" in self.head_names)
        self.post_init()

    def logits(self, states: Tensor, input_ids: Tensor | None) -> Tensor:
        """The logits from hidden states [batch, sequence, hidden]."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: Cache | None = None,
        cache_position: Tensor | None = None,
    ) -> OutputWithLogits | tuple[object, ...]:
        """As ``PersimmonModel.forward``, to the logits and with the labels that the class describes."""
        inputs = (input_ids, attention_mask, position_ids, cache, inputs_embeds)
        wanted = (use_cache, output_hidden_states, output_attentions)
        other = {"past_key_values": past_key_values, "cache_position": cache_position}
        decoded = self.model(*inputs, *wanted, return_dict=True, **other)
        logits = self.logits(decoded.last_hidden_state, input_ids)
        loss = None if labels is None else self.loss(logits, labels)
        result = self.output_type.of(decoded, loss, logits)
        return result if self.returns_dict(return_dict) else result.to_tuple()


class PersimmonForSequenceClassification(_Classifier):
    """The decoder with logits [batch, labels] from the last token of each sequence.

    A sequence ends with its last token that is not ``config.pad_token_id``; ``inputs_embeds`` end with their
    last position. ``config.problem_type`` determines the ``labels`` of ``forward``: int64 [batch], floats
    [batch, labels], or [batch] for a regression with one output.

    ``forward`` raises ValueError for several sequences if the config has no pad_token_id.
    """

    head_names = ("score.weight",)
    output_type = SequenceClassifierOutputWithPast

    def logits(self, states: Tensor, input_ids: Tensor | None) -> Tensor:
        last = self._last_token(input_ids, states)
        logits: Tensor = self.score(states[torch.arange(states.shape[0], device=states.device), last])
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return sequence_classification_loss(logits, labels, self.config)

    def _last_token(self, input_ids: Tensor | None, states: Tensor) -> Tensor | int:
        pad = self.config.pad_token_id
        if pad is None and states.shape[0] > 1:
            raise ValueError(
                f"pad_token_id is None and the batch has {states.shape[0]} sequences; expected an id"
            )
        if pad is not None and input_ids is None:
            warnings.warn(
                "inputs_embeds do not show what is padding: the last position of each sequence is classified",
                stacklevel=4,
            )
        if pad is None or input_ids is None:
            return -1
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last: Tensor = (positions * (input_ids != pad)).argmax(-1)
        return last


class PersimmonForTokenClassification(_Classifier):
    """The decoder with logits [batch, sequence, labels] of every token.

    The ``labels`` of ``forward`` are int64 [batch, sequence]; -100 is ignored.
    """

    head_names = ("score.weight", "score.bias")
    output_type = TokenClassifierOutput

    def __init__(self, config: Architecture | BaseConfig) -> None:
        super().__init__(config)
        own = getattr(self.config, "classifier_dropout", None)
        self.dropout = nn.Dropout(self.config.hidden_dropout if own is None else own)

    def logits(self, states: Tensor, input_ids: Tensor | None) -> Tensor:
        logits: Tensor = self.score(self.dropout(states))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return token_classification_loss(logits, labels)


def _kept(states: Tensor, logits_to_keep: int | Tensor) -> Any:
    """The hidden states [batch, sequence, hidden] that need logits."""
    if not isinstance(logits_to_keep, Tensor):
        return states[:, -integer("logits_to_keep", logits_to_keep, 0) :]  # 0 keeps all
    if logits_to_keep.dtype == torch.bool and logits_to_keep.dim() == 2:
        return states[logits_to_keep]  # [kept, hidden]
    if logits_to_keep.dim() == 2:
        return states.take_along_dim(logits_to_keep[..., None], dim=1)
    return states[:, logits_to_keep]
