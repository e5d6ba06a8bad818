"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.commands.escapes import unescape
from adept_fast.engine.runtime import Runtime
from adept_fast.sampling import MOST_DRAFTS, SamplingParams

COUNT = click.IntRange(1, 2**31 - 1)  # of tokens, or of sequences

Command = TypeVar("Command", bound=Callable[..., Any])

_SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "prompt_lookup",
)
_PLACEMENT = (
    "device",
    "dtype",
    "weights",
    "cache_dtype",
    "embedding",
    "max_seq_len",
    "check_weights",
    "mmap",
    "cuda_graphs",
    "warmup",
)


def checkpoint_option(command: Command) -> Command:
    command = revision_option(command)
    return click.option(
        "--checkpoint",
        envvar="ADEPT_FAST_CHECKPOINT",
        default="demo",
        show_default=True,
        show_envvar=True,
        help="A Hugging Face directory, Adept's release (directory or .tar), a native checkpoint, demo, or "
        "owner/name on the Hugging Face hub.",
    )(command)


def revision_option(command: Command) -> Command:
    return click.option("--revision", help="With owner/name: a branch, a tag or a commit.  [default: main]")(
        command
    )


def mmap_option(command: Command) -> Command:
    return click.option(
        "--mmap/--no-mmap",
        default=True,
        show_default=True,
        help="Map weight files into memory, or copy from them: then one that is truncated is an error.",
    )(command)


def placement_options(command: Command) -> Command:
    """Where and in which dtypes the checkpoint runs; ``load_runtime`` takes them."""
    for option in reversed(
        (
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
            click.option(
                "--dtype", default="auto", show_default=True, help="auto, float32, float16 or bfloat16."
            ),
            click.option(
                "--weights",
                help="Pack the matrices: int8 or int4 on a CPU, fp8 or int4 on a GPU.  "
                "[default: no, or as a native checkpoint has them]",
            ),
            click.option(
                "--cache-dtype", default="float16", show_default=True, help="Of the keys and values."
            ),
            click.option(
                "--embedding",
                default="auto",
                show_default=True,
                help="Where a GPU has it: device, host (in pinned memory) or auto: there if not all fits.",
            ),
            click.option(
                "--max-seq-len",
                type=COUNT,
                help="Tokens of prompt and text together.  [default: the model's context, or what fits]",
            ),
            click.option(
                "--check-weights/--no-check-weights",
                default=True,
                show_default=True,
                help="Refuse weights with a NaN or an infinity.",
            ),
            mmap_option,
            click.option(
                "--cuda-graphs",
                default="auto",
                show_default=True,
                help="On a GPU: auto, required (an error where steps cannot be captured) or off.",
            ),
            click.option(
                "--warmup/--no-warmup",
                default=False,
                show_default=True,
                help="Load libraries and capture steps while loading, not when they are first needed.",
            ),
        )
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """How text is continued; ``sampling_params`` takes them."""
    for option in reversed(
        (
            click.option("--max-new-tokens", type=click.IntRange(min=0), default=128, show_default=True),
            click.option(
                "--temperature",
                type=click.FloatRange(min=0),
                default=0.0,
                show_default=True,
                help="0 takes the most likely token.",
            ),
            click.option(
                "--top-k", type=click.IntRange(min=0), default=0, help="0 for all.", show_default=True
            ),
            click.option(
                "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True
            ),
            click.option(
                "--min-p", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True
            ),
            click.option(
                "--repetition-penalty",
                type=click.FloatRange(min=0, min_open=True),
                default=1.0,
                show_default=True,
            ),
            click.option("--seed", type=click.IntRange(min=0), help="The same seed gives the same text."),
            click.option(
                "--prompt-lookup",
                type=click.IntRange(0, MOST_DRAFTS),
                default=0,
                show_default=True,
                help="Guess this many tokens ahead from what was said before: the same text in fewer steps.",
            ),
            click.option(
                "--stop",
                multiple=True,
                callback=_unescape_all,
                help="A string that ends the text; repeatable. "
                r"It may have the escapes \n, \t, \r, \\, \xHH and \uHHHH.",
            ),
        )
    ):
        command = option(command)
    return command


def _unescape_all(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    try:
        return tuple(unescape(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def bos_option(command: Command) -> Command:
    return click.option(
        "--bos/--no-bos",
        "add_bos",
        default=None,
        help="Put the BOS token before the text.  [default: as the checkpoint says]",
    )(command)


def chosen_checkpoint(options: dict[str, Any]) -> Checkpoint:
    """The checkpoint that the values of ``checkpoint_option`` and ``mmap_option`` name, open."""
    return open_checkpoint(options["checkpoint"], options["revision"], mmap=options["mmap"])


def load_runtime(
    checkpoint: Checkpoint, options: dict[str, Any], *, max_batch_size: int = 1, progress: bool = True
) -> Runtime:
    """A Runtime from the values of ``placement_options``."""
    placement = {name: options[name] for name in _PLACEMENT}
    return Runtime.load(checkpoint, max_batch_size=max_batch_size, progress=progress, **placement)


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
