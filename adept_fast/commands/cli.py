"""The ``adept-fast`` program: its commands and their options.

``--help`` and usage errors need no other module. A command imports the module of its name, and torch with it.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any

import click
from click.core import ParameterSource

from adept_fast import __version__
from adept_fast.choices import CHECKPOINT_FORMATS, DTYPES, MAX_STEP_TOKENS, PACKED_FORMATS, PACKED_LAYOUTS
from adept_fast.commands.byte_size import byte_size
from adept_fast.commands.errors import OneLineErrorsGroup
from adept_fast.commands.interrupts import interrupts_exit
from adept_fast.commands.options import (
    COUNT,
    batch_options,
    bos_option,
    checkpoint_options,
    json_option,
    mmap_option,
    placement_options,
    remote_options,
    revision_option,
    sampling_options,
    serving_options,
)


@click.group(cls=OneLineErrorsGroup)
@click.version_option(__version__, prog_name="adept-fast")
def main() -> None:
    """Run Persimmon language models."""


@main.command()
@click.option("--prompt", "prompts", multiple=True, help="The text to continue; repeatable.")
@click.option(
    "--prompt-file",
    "prompt_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="A file whose text is continued, - for stdin (once); the newline at its end is left out.",
)
@click.option("--chat", "as_chat", is_flag=True, help="Treat each prompt as a question in the chat format.")
@checkpoint_options
@placement_options
@sampling_options
@bos_option
@click.option(
    "--batch-size",
    type=COUNT,
    default=4,
    show_default=True,
    help="How many prompts are continued at the same time.",
)
@click.option(
    "--logprobs",
    type=click.IntRange(min=0),
    help="With --json: the log-probability of each token and of the N most likely ones.",
)
@json_option
@click.option("--stats", is_flag=True, help="Print speed, and its share of the memory bandwidth, to stderr.")
def generate(**options: Any) -> None:
    """Continue each prompt with text from the model."""
    _run("generate", options)


@main.command()
@checkpoint_options
@placement_options
@sampling_options
@bos_option
@remote_options
def chat(**options: Any) -> None:
    """Talk with the model. Ctrl-C stops an answer, Ctrl-D leaves.

    A question that is too long or not UTF-8 is an error on stderr; the next one is read.
    """
    if options["server"] is not None:
        _run("remote_chat", options)
        return
    if click.get_current_context().get_parameter_source("api_key") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--api-key is given without --server; expected both or none")
    _run("chat", options)


@main.command()
@click.argument("texts", nargs=-1)
@checkpoint_options
@placement_options
@bos_option
@json_option
def score(**options: Any) -> None:
    """Print the log-probability and the perplexity of each text.

    TEXTS default to the lines of stdin. A text with nothing to predict, such as an empty line, has
    log-probability 0 and perplexity nan. A text that is too long or not UTF-8 is an error on stderr with its
    number; the others are scored, and the exit code is 1.
    """
    _run("score", options)


@main.command()
@checkpoint_options
@placement_options
@click.option("--batch-size", type=COUNT, default=1, show_default=True)
@click.option(
    "--gpu-memory",
    metavar="SIZE",
    callback=byte_size,
    help="Plan for a GPU with this much free memory, such as 24GB; it need not be here.",
)
@click.option("--verify", is_flag=True, help="Read a .tar and compare its MD5 with Adept's releases.")
@json_option
def info(**options: Any) -> None:
    """Describe a checkpoint and plan its memory; weights are not read.

    Files of owner/name that are not in the hub's cache are downloaded first.
    """
    _run("info", options)


@main.command()
@checkpoint_options
@placement_options
@click.option("--batch-size", type=click.IntRange(1, MAX_STEP_TOKENS), default=1, show_default=True)
@click.option("--context", type=COUNT, default=64, show_default=True, help="Tokens before the first step.")
@json_option
def bench(**options: Any) -> None:
    """Measure decode speed, its limit, and what would be faster."""
    _run("bench", options)


# Once it says that it serves, the first answer waits for nothing.
@main.command(context_settings={"default_map": {"warmup": True}})
@serving_options
@checkpoint_options
@placement_options
def serve(**options: Any) -> None:
    """Answer requests over HTTP: OpenAI's API, Adept's, and a page to chat at /.

    Prints one line when it takes requests. SIGTERM and Ctrl-C end it in order, a second one at once.
    """
    _run("serve", options)


@main.command()
@click.argument("source", metavar="INPUT", type=click.Path())
@click.argument("destination", metavar="OUTPUT", type=click.Path())
@checkpoint_options
@placement_options
@batch_options
def batch(**options: Any) -> None:
    """Answer the lines of a file, and write the answers in their order.

    INPUT has a JSON object on each line: a request of OpenAI's batch API, or a prompt with fields of
    SamplingParams. OUTPUT appears when it is complete. Until then OUTPUT.partial keeps the answers, and the
    same command goes on with the others after an interrupt, or a crash. The exit code is 3 if OUTPUT is
    complete, and some of its lines are errors.
    """
    _run("batch", options)


@main.command()
@click.argument("source")
@click.argument("destination", type=click.Path())
@revision_option
@click.option(
    "--to",
    type=click.Choice(CHECKPOINT_FORMATS),
    help="The format to write.  [default: native with --weights, else the other one]",
)
@click.option(
    "--weights", type=click.Choice(PACKED_FORMATS), help="Pack the matrices, for the native format."
)
@click.option(
    "--layout",
    type=click.Choice(PACKED_LAYOUTS),
    help="Of packed matrices: row_major for every device, or cpu_tiled, which a CPU maps without a copy.  "
    "[default: row_major]",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Convert the weights.  [default: as stored]")
@click.option(
    "--shard-size",
    callback=byte_size,
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="The largest size of a Hugging Face weight file.",
)
@mmap_option
@click.option("--quiet", is_flag=True, help="Print errors only.")
def convert(**options: Any) -> None:
    """Write a checkpoint in another format.

    SOURCE is demo, a path, or owner/name on the Hugging Face hub. DESTINATION must not exist, or be an empty
    directory, and appears when it is complete: an interrupted conversion leaves nothing, and the next one
    removes what a killed one left.
    """
    _run("convert", options)


def _run(command: str, options: dict[str, Any]) -> None:
    with interrupts_exit():
        module = importlib.import_module(f"adept_fast.commands.{command}")
    if not gc.isenabled():  # in the program, which __main__ starts
        gc.freeze()  # modules are no garbage; to search them takes half a second at the end of the process
        gc.enable()
    module.run(options)
