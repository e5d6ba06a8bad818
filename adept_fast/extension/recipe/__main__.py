"""``python adept_fast/extension/recipe --out DIR``: a build in a process without adept_fast."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Build where the command line says; the exit code is 1 where that failed, its reason the last line."""
    sys.path[0] = str(HERE.parent)  # a directory that is run is no package, until it is imported as one
    recipe = importlib.import_module(HERE.name)
    parser = argparse.ArgumentParser(description="Build adept-fast's extension.")
    parser.add_argument("--out", type=Path, required=True, help="where the extension and its record go")
    parser.add_argument("--csrc", type=Path, default=HERE.parents[2] / "csrc", help="the sources")
    parser.add_argument("--objects", type=Path, default=Path("build/objects"), help="objects to use again")
    arguments = parser.parse_args()
    try:
        recipe.build(arguments.csrc.resolve(), arguments.out.resolve(), arguments.objects.resolve())
    except recipe.BuildError as error:
        recipe.say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
