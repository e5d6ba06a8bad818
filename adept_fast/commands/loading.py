"""The checkpoint, the Runtime and the sampling settings that the options of a command name."""

from __future__ import annotations

from typing import Any

import click

from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.choices import PLACEMENT
from adept_fast.engine.runtime import Runtime
from adept_fast.sampling import SamplingParams

_SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "prompt_lookup",
)
_PLACEMENT = (
    *PLACEMENT,
    "check_weights",
    "mmap",
    "cuda_graphs",
    "tensor_parallel",
    "warmup",
)


def chosen_checkpoint(options: dict[str, Any]) -> Checkpoint:
    """Open the checkpoint that the values of ``checkpoint_options`` and ``mmap_option`` name."""
    return open_checkpoint(options["checkpoint"], options["revision"], mmap=options["mmap"])


def load_runtime(
    checkpoint: Checkpoint, options: dict[str, Any], *, progress: bool = True, **settings: Any
) -> Runtime:
    """A Runtime from the values of ``placement_options``, and other settings of ``Runtime.load``."""
    return Runtime.load(checkpoint, progress=progress, **placement_settings(options), **settings)


def placement_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The values of ``placement_options``, as settings of ``Runtime.load``."""
    return {name: options[name] for name in _PLACEMENT}


def sampling_params(
    options: dict[str, Any], *, stop: tuple[str, ...] = (), logprobs: int | None = None
) -> SamplingParams:
    """SamplingParams from the values of ``sampling_options``, and the stop strings in ``stop`` too.

    Raises click.UsageError for a value out of its range, which is why it is called before a model is loaded.
    """
    chosen = {name: options[name] for name in _SAMPLING}
    try:
        return SamplingParams(stop=(*options["stop"], *stop), logprobs=logprobs, **chosen)
    except ParameterError as error:
        raise click.UsageError(str(error)) from error
