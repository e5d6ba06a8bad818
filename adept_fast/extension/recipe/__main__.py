"""``python adept_fast/extension/recipe --out DIR``: a build in a process without adept_fast."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Build as the command line says. The exit code of a failure is 1, and the last line is the reason."""
    sys.path[0] = str(HERE.parent)  # Python runs this directory as a script, not as a package
    recipe = importlib.import_module(HERE.name)
    parser = argparse.ArgumentParser(description="Build adept-fast's extension.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the extension and its record")
    parser.add_argument("--csrc", type=Path, default=HERE.parents[2] / "csrc", help="the sources")
    parser.add_argument(
        "--objects",
        type=Path,
        default=Path("build/objects"),
        help="objects to reuse",
    )
    arguments = parser.parse_args()
    try:
        recipe.build(arguments.csrc.resolve(), arguments.out.resolve(), arguments.objects.resolve())
    except recipe.BuildError as error:
        recipe.say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
