"""Differences between releases of transformers, read from the signatures of the installed one.

The cache of keys and values is ``past_key_values`` up to 5.23 and ``cache`` since 5.24, in the arguments and
results of ``generate`` and ``forward`` and in the arguments of a decoding method. Only this module of the
package names it, so that both names work with every release.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAMES = ("cache", "past_key_values")  # the newest first
OLDEST = (5, 2)  # before, its Persimmon does not read several tokens after a cache


def require_supported(version: str) -> None:
    """Raises ImportError for a release before ``OLDEST``."""
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise ImportError(
            f"transformers {version} is installed; expected 5.2 or newer: pip install --upgrade transformers"
        )


require_supported(transformers.__version__)


def _installed_name() -> str:
    parameters = inspect.signature(transformers.PersimmonForCausalLM.forward).parameters
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    raise ImportError(
        f"transformers {transformers.__version__}: PersimmonForCausalLM.forward has no parameter for a cache "
        f"among {', '.join(parameters)}; expected one of {', '.join(CACHE_NAMES)}"
    )


CACHE_NAME = _installed_name()


def with_installed_name(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments, with the installed release's name for the cache.

    Raises ValueError if both names have a cache.
    """
    given = {name: arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(CACHE_NAMES)} are both given; expected one of them")
    others = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    for cache in given.values():
        others[CACHE_NAME] = cache
    return others


class _ReadsNewName:
    """Adds ``output.cache`` and ``output["cache"]`` to an output of an older release."""

    @property
    def cache(self) -> Any:
        return self.past_key_values  # type: ignore[attr-defined]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(CACHE_NAME if key == "cache" else key)  # type: ignore[misc]


def _with_new_name(output: type[Any]) -> type[Any]:
    return type(output.__name__, (_ReadsNewName, output), {"__module__": output.__module__})


# Each class of outputs with a cache; empty if the installed release has both names itself.
_BOTH_NAMES = {
    output: _with_new_name(output)
    for output in (CausalLMOutputWithPast, GenerateDecoderOnlyOutput, GenerateBeamDecoderOnlyOutput)
    if CACHE_NAME == "past_key_values"
}


def with_both_names(output: Any) -> Any:
    """The output of a model, with a cache that both names read."""
    both = _BOTH_NAMES.get(type(output))
    return output if both is None else both(**output)
