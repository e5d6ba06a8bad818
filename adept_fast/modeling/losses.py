"""The losses of the heads in float32, as in transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.modeling.base import BaseConfig

IGNORED = -100  # a label without a loss


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each label except the first of a row, from the logits of the token before it.

    Args:
        logits: [batch, sequence, vocab].
        labels: int64 [batch, sequence], -100 is ignored.
        num_items_in_batch: divisor of the sum; by default the number of labels that are not ignored.
        shift_labels: int64 [batch, sequence], the labels of the next tokens, instead of ``labels``.

    Raises ValueError for labels of another shape.
    """
    for name, given in (("labels", labels), ("shift_labels", shift_labels)):
        if given is not None and logits.shape[:-1] != given.shape:
            raise ValueError(
                f"{name} has shape {list(given.shape)}; expected {list(logits.shape[:-1])} as for the logits"
            )
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # [batch, sequence]
    return _cross_entropy(logits, shift_labels.to(logits.device), num_items_in_batch)


def token_classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of int64 labels [batch, sequence] from logits [batch, sequence, labels]."""
    return _cross_entropy(logits, labels.to(logits.device))


def sequence_classification_loss(logits: Tensor, labels: Tensor, config: BaseConfig) -> Tensor:
    """The loss of logits [batch, labels] for the problem_type of the config.

    If that is None, the labels set it: one output is a regression, integers are single labels [batch], and
    floats are multiple labels [batch, labels].
    """
    labels = labels.to(logits.device)
    if config.problem_type is None:
        config.problem_type = _problem_type(labels, config.num_labels)
    logits = logits.float()
    if config.problem_type == "regression":
        if config.num_labels == 1:
            return F.mse_loss(logits.squeeze(), labels.float().squeeze())
        return F.mse_loss(logits, labels.float())
    if config.problem_type == "single_label_classification":
        return _cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.float())


def _problem_type(labels: Tensor, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    is_integer = labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if is_integer else "multi_label_classification"


def _cross_entropy(logits: Tensor, labels: Tensor, items: Tensor | int | None = None) -> Tensor:
    flat = logits.float().flatten(0, -2)  # [rows, classes]
    reduction = "mean" if items is None else "sum"
    loss = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction=reduction)
    return loss if items is None else loss / torch.as_tensor(items, device=loss.device)
