"""GeneratesOnRuntime: ``generate`` of a transformers model on this runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

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
from adept_fast.integrations.transformers.stream import Stream

ATTRIBUTE = "_adept_fast"  # of a model: its Acceleration

# Arguments of a decoding method that are not for the model.
_OF_DECODING = ("logits_processor", "stopping_criteria", "generation_config", "streamer")

_Base: Any = object  # a class that inherits has the methods of torch's Module and of GenerationMixin


class GeneratesOnRuntime(_Base):  # type: ignore[misc]
    """The first base class of a Persimmon, before its PreTrainedModel and transformers' GenerationMixin.

    transformers' ``generate`` merges settings, prepares processors and criteria, and calls the decoding
    method of its mode. This class replaces the decoding methods.
    """

    def _acceleration(self) -> Acceleration | None:
        """The runtime of this model, created at first use; None if transformers' own code runs every call."""
        acceleration: Acceleration = self.__dict__.setdefault(ATTRIBUTE, Acceleration())
        return acceleration

    @wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        if callable(kwargs.get("custom_generate")):
            self._warn("a custom_generate")
        kwargs = with_installed_name(kwargs)
        mark_as_given(kwargs.get(CACHE_NAME))
        return with_both_names(super().generate(*args, **kwargs))

    @wraps(GenerationMixin.load_custom_generate)
    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Any:
        self._warn("a custom_generate")
        return super().load_custom_generate(*args, **kwargs)

    @wraps(GenerationMixin._beam_search)
    def _beam_search(self, *args: Any, **kwargs: Any) -> Any:
        self._warn("beam search")
        return super()._beam_search(*args, **kwargs)

    @wraps(GenerationMixin._sample)
    def _sample(self, input_ids: Tensor, **arguments: Any) -> Any:
        return self._decode(super()._sample, input_ids, arguments)

    @wraps(GenerationMixin._assisted_decoding)
    def _assisted_decoding(self, input_ids: Tensor, **arguments: Any) -> Any:
        theirs = super()._assisted_decoding
        draft_tokens = getattr(arguments["generation_config"], "prompt_lookup_num_tokens", None)
        alone = arguments.get("assistant_model") is None
        # transformers raises for several prompts, or without a cache.
        if draft_tokens and alone and arguments["use_cache"] and len(input_ids) == 1:
            return self._decode(theirs, input_ids, arguments, draft_tokens)
        self._warn("assisted generation")
        return theirs(input_ids, **arguments)

    def _decode(
        self, theirs: Callable[..., Any], input_ids: Tensor, arguments: dict[str, Any], draft_tokens: int = 0
    ) -> Any:
        """Decode a prepared call on the runtime, or with ``theirs`` if the runtime does not support it."""
        acceleration = self._acceleration()
        if acceleration is None:
            return theirs(input_ids, **arguments)
        processors, config = arguments["logits_processor"], arguments["generation_config"]
        of_model = {name: value for name, value in arguments.items() if name not in _OF_DECODING}
        try:
            if self.training and (self.config.hidden_dropout or self.config.attention_dropout):
                raise NotServedError("dropout, and the model is in training mode")
            request = read_request(input_ids, processors, config, of_model, draft_tokens)
            ends = Ends(arguments["stopping_criteria"])
            # The cache grows if no criterion ends the texts there.
            length = min(ends.max_length or 0, self.config.max_position_embeddings)
            length = max(length, input_ids.shape[1] + 1)
            # Older releases keep a static cache and read its size later, which it lacks until it is written.
            self.__dict__.pop("_cache", None)
            with acceleration.loop(self, len(input_ids), length) as loop:
                stream = Stream(arguments.get("streamer"), assisted=draft_tokens > 0)
                return decode(request, loop, ends, processors, config, stream, self.dtype)
        except NotServedError as error:
            self._warn(str(error))
        return theirs(input_ids, **arguments)

    def _warn(self, reason: str) -> None:
        if (acceleration := self._acceleration()) is not None:
            acceleration.warn_once(reason)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """nn.Module's, in transformers' memory layout, since files support no other."""
        with self._released():
            restore_layout(self)
        return super().state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """nn.Module's; training code may view each parameter as one vector, so the layout is restored."""
        if mode:
            with self._released():
                restore_layout(self)
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """nn.Module's, which every conversion of the parameters calls."""
        with self._released():
            return super()._apply(*args, **kwargs)

    @contextmanager
    def _released(self) -> Iterator[None]:
        """Wait for runs of other threads, and release the shared weights until the next ``generate``."""
        acceleration = vars(self).get(ATTRIBUTE)
        with nullcontext() if acceleration is None else acceleration.undisturbed():
            if acceleration is not None:
                acceleration.release()
            yield
