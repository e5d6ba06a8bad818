"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from adept_fast.choices import LOG_FORMATS, MAX_DRAFTS, SERVER_LIMITS
from adept_fast.commands.escapes import unescape
from adept_fast.system.short_text import short_repr

COUNT = click.IntRange(1, 2**31 - 1)  # of tokens, or of sequences

Command = TypeVar("Command", bound=Callable[..., Any])


def _together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator for several options, which ``--help`` lists in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """An option whose default, if it is given, is shown."""
    return click.option(*names, **{"show_default": "default" in settings} | settings)


def _limit(name: str, **settings: Any) -> Callable[[Any], Any]:
    """The option of one of SERVER_LIMITS."""
    bounds = SERVER_LIMITS[name.removeprefix("--").replace("-", "_")]
    if isinstance(bounds.default, float):
        kind: click.ParamType[Any] = click.FloatRange(bounds.lowest, bounds.highest)
    else:
        kind = click.IntRange(int(bounds.lowest), int(bounds.highest))
    return _option(name, type=kind, default=bounds.default, **settings)


def _unescape_all(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    try:
        return tuple(map(unescape, values))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _biases(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, float], ...]:
    """The pairs in ``ID=NUMBER``; SamplingParams checks their ranges."""
    pairs = []
    for value in values:
        token_id, _, bias = value.partition("=")
        try:
            pairs.append((int(token_id), float(bias)))
        except ValueError as error:
            raise click.BadParameter(f"{short_repr(value)} is not ID=NUMBER, such as 5=-100") from error
    return tuple(pairs)


revision_option = click.option(
    "--revision", help="With owner/name: a branch, a tag or a commit.  [default: main]"
)
checkpoint_options = _together(
    _option(
        "--checkpoint",
        envvar="ADEPT_FAST_CHECKPOINT",
        default="demo",
        show_envvar=True,
        help="A Hugging Face directory, Adept's release (directory or .tar), a packed checkpoint, demo, or "
        "owner/name on the Hugging Face hub.",
    ),
    revision_option,
)
mmap_option = _option(
    "--mmap/--no-mmap",
    default=True,
    help="Map weight files into memory, or copy them: a truncated file is then an error.",
)
# The device and the dtypes; ``loading.load_runtime`` reads them.
placement_options = _together(
    _option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
    _option("--dtype", default="auto", help="auto, float32, float16 or bfloat16."),
    _option(
        "--weights",
        help="Pack the matrices: int8, int4 or int4-g32, on a GPU also fp8.  "
        "[default: no, or as a packed checkpoint has them]",
    ),
    _option(
        "--weight-layout",
        default="auto",
        help="Of the matrices on a GPU: row_major, tiles, or auto.",
    ),
    _option("--cache-dtype", default="float16", help="Of keys and values."),
    _option(
        "--embedding",
        default="auto",
        help="On a GPU: device, host (pinned memory), or auto (device if everything fits).",
    ),
    _option(
        "--max-seq-len",
        type=COUNT,
        help="Tokens of prompt and text together.  [default: the model's context, or what fits]",
    ),
    _option(
        "--check-weights/--no-check-weights", default=True, help="Refuse weights with a NaN or an infinity."
    ),
    mmap_option,
    _option(
        "--cuda-graphs",
        default="auto",
        help="On a GPU: auto, required (fail if a step cannot be captured) or off.",
    ),
    _option(
        "--tensor-parallel",
        type=click.IntRange(1, 256),
        default=1,
        help="Processes that each have a part of the model, on a GPU or some threads of their own.",
    ),
    _option(
        "--warmup/--no-warmup",
        default=False,
        help="Load libraries and capture steps while loading, instead of on first use.",
    ),
)
# How text is continued; ``loading.sampling_params`` reads them.
sampling_options = _together(
    _option("--max-new-tokens", type=click.IntRange(min=0), default=128),
    _option(
        "--temperature", type=click.FloatRange(min=0), default=0.0, help="0 selects the most likely token."
    ),
    _option("--top-k", type=click.IntRange(min=0), default=0, help="0 for all."),
    _option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0),
    _option("--min-p", type=click.FloatRange(0, 1, max_open=True), default=0.0),
    _option("--repetition-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0),
    _option(
        "--frequency-penalty",
        type=click.FloatRange(-2, 2),
        default=0.0,
        help="Subtracted from a token's logit each time the text has it.",
    ),
    _option(
        "--presence-penalty",
        type=click.FloatRange(-2, 2),
        default=0.0,
        help="Subtracted once from the logits of tokens that the text has.",
    ),
    _option(
        "--logit-bias",
        metavar="ID=NUMBER",
        multiple=True,
        callback=_biases,
        help="Add a number from -100 to 100 to the logit of a token id; repeatable.",
    ),
    _option("--seed", type=click.IntRange(min=0), help="The same seed gives the same text."),
    _option(
        "--prompt-lookup",
        type=click.IntRange(0, MAX_DRAFTS),
        default=0,
        help="Guess up to this many tokens ahead from earlier text: the same text in fewer steps.",
    ),
    _option(
        "--stop",
        multiple=True,
        callback=_unescape_all,
        help=r"A string that ends the text, with the escapes \n, \t, \r, \\, \xHH and \uHHHH; repeatable.",
    ),
)
# A model elsewhere; ``remote_chat`` reads them.
remote_options = _together(
    _option(
        "--server",
        metavar="URL",
        help="Talk with the model of a server, such as http://127.0.0.1:8000, instead of loading one.",
    ),
    _option(
        "--api-key",
        envvar="ADEPT_FAST_API_KEY",
        show_envvar=True,
        help="With --server: its key. The variable is not seen by other users of this machine.",
    ),
)
bos_option = click.option(
    "--bos/--no-bos",
    "add_bos",
    default=None,
    help="Put the BOS token before the text.  [default: as the checkpoint says]",
)
# The work on a file of requests; ``batch`` reads them.
batch_options = _together(
    _limit("--batch-size", help="Answers that run at the same time, of each worker with --ray."),
    _option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=0,
        help="Seeds of lines that have none are derived from it and from their custom_id.",
    ),
    _option("--model-name", help="The model's id in requests.  [default: the checkpoint's name]"),
    _option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: host:port, auto for the one that runs here, or local for a new one.",
    ),
    _option("--ray-workers", type=COUNT, help="Copies of the model.  [default: one a GPU, or one a machine]"),
    _option(
        "--ray-gpus",
        type=click.FloatRange(min=0),
        help="Of each worker.  [default: one a rank, or 0 if the cluster has none]",
    ),
    _option(
        "--ray-cpus", type=click.FloatRange(min=0), help="Of each worker: its threads too.  [default: 1]"
    ),
    _option("--quiet", is_flag=True, help="Print errors only."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")

# The address, the limits and the users of a server; ``serve`` reads them.
serving_options = _together(
    _option("--host", default="127.0.0.1", help="An address of this machine; 0.0.0.0 for all of IPv4."),
    _option("--port", type=click.IntRange(0, 65535), default=8000, help="0 for any that is free."),
    _option("--model-name", help="The model's id for clients.  [default: the checkpoint's name]"),
    _limit("--batch-size", help="Answers that run at the same time."),
    _limit("--max-queue", help="Answers that wait beyond them."),
    _option(
        "--step-tokens",
        type=COUNT,
        help="Tokens of prompts and answers in one step: fewer bound the time between tokens, more read "
        "prompts faster.  [default: as many for prompts as for answers, more where they cost little]",
    ),
    _limit("--request-seconds", help="A longer request fails; 0 for no limit."),
    _limit("--grace-seconds", help="At SIGTERM, running requests get this long."),
    _option(
        "--api-key",
        envvar="ADEPT_FAST_API_KEY",
        show_envvar=True,
        help="Admit requests with this key alone. Other users of a machine see options, not variables.",
    ),
    _option(
        "--api-key-file",
        type=click.Path(exists=True, dir_okay=False),
        help="Admit requests with a key of this file: one a line, # begins a comment.",
    ),
    _option("--no-auth", is_flag=True, help="Serve all who reach --host, without a key."),
    _option(
        "--allowed-host",
        "allowed_hosts",
        multiple=True,
        help="A name that requests may have in Host; repeatable.  [default: localhost, if --host is a "
        "loopback address and there are no keys; else any]",
    ),
    _option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        help="An origin whose pages may use the server, such as https://example.org, or *; repeatable.",
    ),
    _option("--log-format", type=click.Choice(LOG_FORMATS), default="text", help="Of the lines on stderr."),
    _option("--log-prompts", is_flag=True, help="Log prompts and answers too."),
    _limit("--max-body-bytes", help="Of a request's body."),
    _limit("--max-prompts", help="In one request."),
    _limit("--max-choices", help="Answers to one prompt (n)."),
    _limit("--max-stops", help="Stop strings of one request."),
    _limit("--max-stop-characters", help="Of a stop string."),
    _limit("--max-logprobs", help="Likeliest tokens that are reported at each position."),
)
