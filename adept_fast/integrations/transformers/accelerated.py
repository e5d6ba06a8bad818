"""accelerate and restore: a transformers model whose ``generate`` runs here, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import transformers
from torch import Tensor

from adept_fast.arguments import integer
from adept_fast.integrations.transformers.acceleration import Acceleration
from adept_fast.integrations.transformers.compatibility import (
    CACHE_NAME,
    with_both_names,
    with_installed_name,
)
from adept_fast.integrations.transformers.decoding import Ends, decode
from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.integrations.transformers.request import read_request
from adept_fast.integrations.transformers.returned_cache import mark_as_given
from adept_fast.integrations.transformers.shared_weights import restore_layout

_Theirs: Any = transformers.PersimmonForCausalLM
_ATTRIBUTE = "_adept_fast"

# What a decoding method is given beside what a model is called with.
_OF_DECODING = ("logits_processor", "stopping_criteria", "generation_config", "streamer")


def accelerate(model: Any, *, max_batch_size: int | None = None, max_seq_len: int | None = None) -> Any:
    """Have ``model.generate`` of a transformers PersimmonForCausalLM run on this runtime; returns the model.

    The weights are shared (see ``SharedWeights``), so what is trained, loaded or moved afterwards counts. All
    else is transformers': settings and their precedence, stopping criteria, streamers, ``forward``. What the
    runtime does not do (beam search, custom logits processors, …) runs on transformers' own code, which is
    said once. Sampling has the distribution that it has there, with other random numbers;
    ``torch.manual_seed`` determines them.

    Args:
        max_batch_size, max_seq_len: what the cache is made for, where a call does not need more; by default
            it is made for the call, and made anew where a later one needs more.

    Raises NotServedError for a model that the runtime does not compute, ParameterError for a size.
    """
    rows = 1 if max_batch_size is None else integer("max_batch_size", max_batch_size, 1)
    length = 1 if max_seq_len is None else integer("max_seq_len", max_seq_len, 1)
    if type(model) not in (_Theirs, PersimmonForCausalLM):
        raise NotServedError(
            f"model is a {type(model).__module__}.{type(model).__name__}; "
            f"expected transformers' PersimmonForCausalLM itself"
        )
    acceleration = Acceleration(rows, length)
    try:
        acceleration.share(model)
    except NotServedError as error:
        raise NotServedError(f"the runtime does not do {error}") from error
    model.__class__ = PersimmonForCausalLM
    setattr(model, _ATTRIBUTE, acceleration)
    return model


def restore(model: Any) -> Any:
    """Give an accelerated model its own ``generate`` back; returns the model. Any other stays as it is."""
    if type(model) is PersimmonForCausalLM:
        acceleration = model.__dict__.pop(_ATTRIBUTE, None)
        with nullcontext() if acceleration is None else acceleration.undisturbed():
            model.__class__ = _Theirs
            restore_layout(model)
    return model


class PersimmonForCausalLM(_Theirs):  # type: ignore[misc]
    """What ``accelerate`` turns a model's class into; named like transformers' own, which pipelines look at.

    ``generate`` is transformers': it merges settings, prepares processors and criteria, and then calls the
    decoding method of the mode that it is in. Those are what is replaced.
    """

    @wraps(_Theirs.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        if callable(kwargs.get("custom_generate")):
            self._say("a custom_generate")
        kwargs = with_installed_name(kwargs)
        mark_as_given(kwargs.get(CACHE_NAME))
        return with_both_names(super().generate(*args, **kwargs))

    @wraps(_Theirs.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return with_both_names(super().forward(*args, **with_installed_name(kwargs)))

    @wraps(_Theirs.load_custom_generate)
    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Any:
        self._say("a custom_generate")
        return super().load_custom_generate(*args, **kwargs)

    @wraps(_Theirs._beam_search)
    def _beam_search(self, *args: Any, **kwargs: Any) -> Any:
        self._say("beam search")
        return super()._beam_search(*args, **kwargs)

    @wraps(_Theirs._sample)
    def _sample(self, input_ids: Tensor, **arguments: Any) -> Any:
        return self._decode(super()._sample, input_ids, arguments)

    @wraps(_Theirs._assisted_decoding)
    def _assisted_decoding(self, input_ids: Tensor, **arguments: Any) -> Any:
        theirs = super()._assisted_decoding
        guesses = getattr(arguments["generation_config"], "prompt_lookup_num_tokens", None)
        alone = arguments.get("assistant_model") is None
        # Several prompts, or no cache, transformers refuses here.
        if guesses and alone and arguments["use_cache"] and len(input_ids) == 1:
            return self._decode(theirs, input_ids, arguments, guesses)
        self._say("assisted generation")
        return theirs(input_ids, **arguments)

    def _decode(
        self, theirs: Callable[..., Any], input_ids: Tensor, arguments: dict[str, Any], guesses: int = 0
    ) -> Any:
        """Decode what ``generate`` has prepared: here, or with ``theirs`` where the runtime does not."""
        acceleration = vars(self).get(_ATTRIBUTE)
        if acceleration is None:  # an instance that ``accelerate`` has not made
            return theirs(input_ids, **arguments)
        processors, config = arguments["logits_processor"], arguments["generation_config"]
        of_model = {name: value for name, value in arguments.items() if name not in _OF_DECODING}
        try:
            if self.training and (self.config.hidden_dropout or self.config.attention_dropout):
                raise NotServedError("dropout, and the model is in training mode")
            request = read_request(input_ids, processors, config, of_model, guesses)
            ends = Ends(arguments["stopping_criteria"])
            # Should nothing end it there, the cache grows.
            length = min(ends.max_length or 0, self.config.max_position_embeddings)
            length = max(length, input_ids.shape[1] + 1)
            # Older releases keep a static cache and ask for its size later: one never written has none.
            self.__dict__.pop("_cache", None)
            with acceleration.loop(self, len(input_ids), length) as loop:
                streamer = arguments.get("streamer")
                return decode(request, loop, ends, processors, config, streamer, self.dtype)
        except NotServedError as error:
            self._say(str(error))
        return theirs(input_ids, **arguments)

    def _say(self, what: str) -> None:
        if (acceleration := vars(self).get(_ATTRIBUTE)) is not None:
            acceleration.say_once(what)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """nn.Module's, of parameters that lie in memory as transformers loads them: files take no others."""
        self._lay_out_as_loaded()
        return super().state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """nn.Module's; what trains, or gathers gradients, may take each parameter as one vector."""
        if mode:
            self._lay_out_as_loaded()
        return super().train(mode)

    def _lay_out_as_loaded(self) -> None:
        """Let go of what shares the weights until the next ``generate``; give them their first layout."""
        if (acceleration := vars(self).get(_ATTRIBUTE)) is not None:
            with acceleration.undisturbed():
                acceleration.release()
                restore_layout(self)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """nn.Module's, which every way of moving parameters, or of giving them another dtype, calls."""
        acceleration = vars(self).get(_ATTRIBUTE)
        if acceleration is None:
            return super()._apply(*args, **kwargs)
        with acceleration.undisturbed():
            acceleration.release()
            return super()._apply(*args, **kwargs)
