"""The PEP 517 backend: setuptools, which is shown the torch that is already installed.

An isolated build sees only what it asked for. Were torch among that, every installation would download a
second one, by gigabytes, and compile against it. So the packages of the environment that pip installs into
are appended to the path, after the build's own. A tool that isolates by another environment has none to show;
the extension is then built at first import.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def directories_of_torch() -> list[str]:
    """The package directories of this interpreter without pip's isolation, if one of them has torch."""
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE")  # pip isolates by these
    outside = {name: value for name, value in os.environ.items() if name not in isolation}
    program = "import sys; print(*filter(lambda path: path.endswith('-packages'), sys.path), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=outside, capture_output=True, text=True, check=True
    )
    directories = done.stdout.splitlines()
    return directories if any((Path(directory) / "torch").is_dir() for directory in directories) else []


sys.path += [directory for directory in directories_of_torch() if directory not in sys.path]
