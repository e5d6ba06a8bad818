"""Convert a checkpoint: the same as ``adept-fast convert``, from a checkout of the repository.

Usage: python tools/convert.py SOURCE DESTINATION [OPTIONS]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adept_fast.commands.cli import convert  # noqa: E402

if __name__ == "__main__":
    convert()
