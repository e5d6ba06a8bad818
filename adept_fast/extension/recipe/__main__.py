"""``python -m adept_fast.extension.recipe --out DIR``: one build."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adept_fast.extension.recipe import BuildError, build, say


def main() -> int:
    """Build as the command line says. The exit code of a failure is 1, and the last line is the reason."""
    root = Path(__file__).resolve().parents[3]
    parser = argparse.ArgumentParser(description="Build adept-fast's extension.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the extension and its record")
    parser.add_argument("--csrc", type=Path, default=root / "csrc", help="the sources")
    parser.add_argument("--objects", type=Path, default=Path("build/objects"), help="objects to reuse")
    arguments = parser.parse_args()
    try:
        build(arguments.csrc.resolve(), arguments.out.resolve(), arguments.objects.resolve())
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
