"""The three heads on the decoder: next token, a sequence's class, each token's class."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from adept_fast.arguments import integer
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.modeling.cache import KeyValueCache
from adept_fast.modeling.decoder import PersimmonModel
from adept_fast.modeling.losses import (
    next_token_loss,
    sequence_classification_loss,
    token_classification_loss,
)
from adept_fast.modeling.outputs import (
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from adept_fast.modeling.pretrained import PersimmonPreTrainedModel


class PersimmonForCausalLM(PersimmonPreTrainedModel):
    """The decoder, and the logits of the next token."""

    head_names = ("lm_head.weight",)

    def __init__(self, config: Architecture) -> None:
        super().__init__(config)
        self.model = PersimmonModel(config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.initialise()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        *,
        past_key_values: KeyValueCache | None = None,
    ) -> CausalLMOutputWithPast | tuple[object, ...]:
        """As ``PersimmonModel.forward``, to logits [batch, kept, vocab].

        Args:
            labels: int64 [batch, sequence], the ids themselves, -100 where there is nothing to learn; the
                loss is that of each by what stands before it.
            logits_to_keep: of the last so many tokens, 0 for all; or int64 [kept], which tokens; or int64
                [batch, kept], which of each row; or bool [batch, sequence], for logits [kept, vocab].
            num_items_in_batch: what the loss is divided by, where a batch is read in parts.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
            return_dict=True,
            past_key_values=past_key_values,
        )
        logits = self.lm_head(_kept(outputs.last_hidden_state, logits_to_keep))
        loss = None if labels is None else next_token_loss(logits, labels, num_items_in_batch)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if self.returns_dict(return_dict) else result.to_tuple()


class PersimmonForSequenceClassification(PersimmonPreTrainedModel):
    """The decoder, and logits of ``config.num_labels`` labels by each sequence's last token."""

    head_names = ("score.weight",)

    def __init__(self, config: Architecture) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.model = PersimmonModel(config)
        self.score = nn.Linear(self.config.hidden_size, self.num_labels, bias=False)
        self.initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: KeyValueCache | None = None,
    ) -> SequenceClassifierOutputWithPast | tuple[object, ...]:
        """As ``PersimmonModel.forward``, to logits [batch, labels].

        A sequence ends with its last token that is not ``config.pad_token_id``; of ``inputs_embeds`` it is
        the last of all.

        Args:
            labels: by ``config.problem_type``: int64 [batch], or floats [batch, labels], or of a regression
                with one output [batch].

        Raises ValueError for several sequences where the config has no pad_token_id.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
            return_dict=True,
            past_key_values=past_key_values,
        )
        states = outputs.last_hidden_state  # [batch, sequence, hidden]
        last = self._last_token(input_ids, states)
        logits = self.score(states[torch.arange(len(states), device=states.device), last])  # [batch, labels]
        loss = None if labels is None else sequence_classification_loss(logits, labels, self.config)
        result = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if self.returns_dict(return_dict) else result.to_tuple()

    def _last_token(self, input_ids: Tensor | None, states: Tensor) -> Tensor | int:
        pad = self.config.pad_token_id
        if pad is None and len(states) > 1:
            raise ValueError(
                f"pad_token_id is None and the batch has {len(states)} sequences; expected an id"
            )
        if pad is not None and input_ids is None:
            warnings.warn(
                "inputs_embeds do not show what is padding: the last position of each sequence is classified",
                stacklevel=3,
            )
        if pad is None or input_ids is None:
            return -1
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return (places * (input_ids != pad)).argmax(-1)


class PersimmonForTokenClassification(PersimmonPreTrainedModel):
    """The decoder, and logits of ``config.num_labels`` labels of every token."""

    head_names = ("score.weight", "score.bias")

    def __init__(self, config: Architecture) -> None:
        super().__init__(config)
        config = self.config
        self.num_labels = config.num_labels
        self.model = PersimmonModel(config)
        dropout = config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(config.hidden_size, self.num_labels)
        self.initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        past_key_values: KeyValueCache | None = None,
    ) -> TokenClassifierOutput | tuple[object, ...]:
        """As ``PersimmonModel.forward``, to logits [batch, sequence, labels].

        Args:
            labels: int64 [batch, sequence], -100 for a token that does not count.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
            return_dict=True,
            past_key_values=past_key_values,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else token_classification_loss(logits, labels)
        result = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return result if self.returns_dict(return_dict) else result.to_tuple()


def _kept(states: Tensor, logits_to_keep: int | Tensor) -> Any:
    """The hidden states [batch, sequence, hidden] whose logits are wanted."""
    if not isinstance(logits_to_keep, Tensor):
        return states[:, -integer("logits_to_keep", logits_to_keep, 0) :]  # 0 keeps all
    if logits_to_keep.dtype == torch.bool and logits_to_keep.dim() == 2:
        return states[logits_to_keep]  # [kept, hidden]
    if logits_to_keep.dim() == 2:
        return states.take_along_dim(logits_to_keep[..., None], dim=1)
    return states[:, logits_to_keep]
