"""Progress bars on stderr."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(description: str, total: int, unit: str, *, shown: bool) -> Any:
    """A bar over ``total`` units, if it is ``shown``, on a terminal only and after half a second."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        disable=None if shown else True,  # None shows it only to a terminal
        delay=0.5,
        leave=False,
    )
