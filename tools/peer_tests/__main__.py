"""Runs transformers' own tests: ``python -m tools.peer_tests DIRECTORY/transformers-5.24.0.tar.gz``.

Four groups: the classes of adept_fast.modeling, an accelerated model, a tokenizer from a converted directory,
and transformers' own Persimmon, whose failures count for nobody. The outcomes are printed, and written to
``results.json`` beside the archive. Modules that the distribution lacks, such as its tests of ``generate``,
are replaced by empty ones, which the output names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click

from tools.peer_tests.archive import ArchiveError, extract
from tools.peer_tests.results import Outcomes, read_report

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "tests" / "peer"
# The name of a group, and the file and the argument of its tests.
GROUPS = {
    "adept_fast.modeling": ("models.py", "ours"),
    "accelerated": ("models.py", "accelerated"),
    "tokenizer": ("converted_tokenizer.py", ""),
    "transformers": ("models.py", "transformers"),
}


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--group", "groups", multiple=True, type=click.Choice(list(GROUPS)), help="By default all.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1))
def main(archive: Path, groups: tuple[str, ...], workers: int) -> None:
    """Run the tests that ARCHIVE, a source distribution of transformers, has."""
    directory = archive.resolve().parent
    try:
        extract(archive, directory)
    except ArchiveError as error:
        raise click.ClickException(str(error)) from error
    models = directory / "tests" / "utils" / "tiny_model_summary.json"  # of the hub, for tests of pipelines
    models.parent.mkdir(exist_ok=True)
    if not models.exists():
        models.write_text("{}\n", encoding="utf-8")
    absent: set[str] = set()
    found = {name: _run(name, directory, workers, absent) for name in groups or GROUPS}
    known = set(found["transformers"].failed) if "transformers" in found else set()
    for name, outcomes in found.items():
        print(
            f"{name:20} passed {len(outcomes.passed):4} of {outcomes.run:4}, "
            f"failed {len(outcomes.failed):3}, skipped {len(outcomes.skipped):4}"
        )
        for test, line in outcomes.failed.items():
            also = " (transformers' own fails too)" if name != "transformers" and test in known else ""
            print(f"    {test}{also}: {line[:200]}")
    print("Not in this distribution, and left out:", ", ".join(sorted(absent)) or "nothing")
    contents = {name: asdict(outcomes) for name, outcomes in found.items()}
    (directory / "results.json").write_text(
        json.dumps({"groups": contents, "left_out": sorted(absent)}, indent=1) + "\n", encoding="utf-8"
    )


def _run(name: str, directory: Path, workers: int, absent: set[str]) -> Outcomes:
    """The outcomes of a group; adds the modules that are not there to ``absent``."""
    file, argument = GROUPS[name]
    report, log = directory / f"{name}.xml", directory / f"{name}.log"
    noted = directory / "stand-ins.txt"
    report.unlink(missing_ok=True)
    noted.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (directory, SUITE, ROOT))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ADEPT_FAST_PEER_GROUP": argument,
        "ADEPT_FAST_PEER_STAND_INS": str(noted),
    }
    if name == "tokenizer":
        converted = directory / "converted"
        environment["ADEPT_FAST_TOKENIZER"] = str(converted)
        _convert(converted, environment)
    own = ("--import-mode=importlib", "-c", os.devnull, f"--rootdir={directory}", "-p", "stand_ins")
    quiet = ("-q", "-p", "no:cacheprovider", "--disable-warnings", "--tb=short", f"--junitxml={report}")
    parallel = ("-n", str(workers))
    command = [sys.executable, "-m", "pytest", *own, *quiet, *parallel, str(SUITE / file)]
    with log.open("wb") as output:
        subprocess.run(command, cwd=directory, env=environment, stdout=output, stderr=output, check=False)
    if not report.exists():
        raise click.ClickException(f"pytest wrote no report of {name}; see {log}")
    if noted.exists():
        absent.update(noted.read_text(encoding="utf-8").split())
    return read_report(report)


def _convert(directory: Path, environment: dict[str, str]) -> None:
    if directory.exists():
        return
    command = [sys.executable, "-m", "adept_fast", "convert", "demo", str(directory), "--to", "huggingface"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
