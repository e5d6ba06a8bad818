"""The process of a rank that the first one has started.

python -m adept_fast.engine.ranks DIRECTORY RANK PARENT
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from adept_fast.engine.ranks.follower import serve
from adept_fast.engine.ranks.meeting import Place
from adept_fast.engine.ranks.processes import end_with_parent

if __name__ == "__main__":
    _, directory, rank, parent = sys.argv
    end_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first rank
    serve(Place(Path(directory), int(rank)), int(rank))
