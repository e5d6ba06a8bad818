"""The ``adept-fast`` program: a group of commands, one file each in ``commands/``."""

from __future__ import annotations

import click

from adept_fast import __version__
from adept_fast.commands.bench import bench
from adept_fast.commands.chat import chat
from adept_fast.commands.convert import convert
from adept_fast.commands.errors import OneLineErrorsGroup
from adept_fast.commands.generate import generate
from adept_fast.commands.info import info
from adept_fast.commands.score import score


@click.group(cls=OneLineErrorsGroup)
@click.version_option(__version__, prog_name="adept-fast")
def main() -> None:
    """Run Persimmon language models."""


for command in (generate, chat, score, info, bench, convert):
    main.add_command(command)
