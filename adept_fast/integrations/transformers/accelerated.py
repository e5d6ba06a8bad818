"""accelerate and restore: switch ``generate`` of a transformers model to this runtime and back."""

from __future__ import annotations

from contextlib import nullcontext
from functools import wraps
from typing import Any

import transformers
from torch import nn

from adept_fast.arguments import integer
from adept_fast.integrations.transformers.acceleration import Acceleration
from adept_fast.integrations.transformers.compatibility import with_both_names, with_installed_name
from adept_fast.integrations.transformers.generation import ATTRIBUTE, GeneratesOnRuntime
from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.integrations.transformers.shared_weights import restore_layout

_Theirs: Any = transformers.PersimmonForCausalLM
_COMPILED_FROM = "_orig_mod"  # of a module that torch.compile returns


def accelerate(model: Any, *, max_batch_size: int | None = None, max_seq_len: int | None = None) -> Any:
    """Run ``model.generate`` of a transformers PersimmonForCausalLM on this runtime; returns the model.

    The weights are shared (see ``SharedWeights``), so later training, loading and moving take effect.
    A model that ``torch.compile`` returned keeps its compiled ``forward``.
    Settings and their precedence, stopping criteria, streamers and ``forward`` are those of transformers.
    Calls that the runtime does not support (beam search, custom logits processors, …) run on transformers'
    code, with one warning for each reason. Sampling has the same distribution with other random numbers,
    which ``torch.manual_seed`` determines.

    Args:
        max_batch_size, max_seq_len: the minimal size of the cache; it grows when a call needs more.

    Raises NotServedError for a model that the runtime does not support, ParameterError for a size.
    """
    rows = 1 if max_batch_size is None else integer("max_batch_size", max_batch_size, 1)
    length = 1 if max_seq_len is None else integer("max_seq_len", max_seq_len, 1)
    inner = _without_compilation(model)
    if type(inner) not in (_Theirs, PersimmonForCausalLM):
        raise NotServedError(
            f"model is a {type(model).__module__}.{type(model).__name__}; "
            f"expected transformers' PersimmonForCausalLM itself"
        )
    acceleration = Acceleration(rows, length)
    try:
        acceleration.share(inner)
    except NotServedError as error:
        raise NotServedError(f"the runtime does not do {error}") from error
    inner.__class__ = PersimmonForCausalLM
    setattr(inner, ATTRIBUTE, acceleration)
    return model


def restore(model: Any) -> Any:
    """Undo ``accelerate``; returns the model. A model that is not accelerated does not change."""
    inner = _without_compilation(model)
    if type(inner) is PersimmonForCausalLM:
        acceleration = inner.__dict__.pop(ATTRIBUTE, None)
        with nullcontext() if acceleration is None else acceleration.undisturbed():
            inner.__class__ = _Theirs
            restore_layout(inner)
    return model


def _without_compilation(model: Any) -> Any:
    """The model itself, of one that ``torch.compile`` returned."""
    return getattr(model, _COMPILED_FROM, model) if isinstance(model, nn.Module) else model


class PersimmonForCausalLM(GeneratesOnRuntime, _Theirs):  # type: ignore[misc]
    """The class of an accelerated model; it has the name of transformers' own, which pipelines check."""

    def _acceleration(self) -> Acceleration | None:
        """As ``accelerate`` set it; an instance of another origin has none."""
        return vars(self).get(ATTRIBUTE)

    @wraps(_Theirs.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # By name, since a restored model of the other class may keep this method, compiled or below a hook.
        return with_both_names(_Theirs.forward(self, *args, **with_installed_name(kwargs)))
