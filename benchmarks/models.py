"""The models that benchmarks run: a checkpoint that exists, or random weights of a preset's shapes."""

from __future__ import annotations

from pathlib import Path

from adept_fast.checkpoint import Checkpoint, open_checkpoint
from tools.random_checkpoint import (
    DESCRIPTION_FILE,
    PRESETS,
    make_config,
    open_random,
    write_random,
    write_recipe,
)

LONGEST_CONTEXT = 32768  # tokens, of models made here: past any that is measured


def random_model(
    preset: str, zeros: float, folder: Path, *, drawn: bool = False, layers: int | None = None
) -> Path:
    """The path of a checkpoint of random weights in ``folder``, written unless it exists.

    With ``drawn`` it is a recipe alone, whose weights each worker draws on its device: that takes seconds
    instead of minutes of writing and reading. ``layers``: instead of the preset's.
    """
    sizes = PRESETS[preset] | ({} if layers is None else {"layers": layers})
    fewer = "" if layers is None else f"-{layers}-layers"
    path = folder / f"{preset}{fewer}-{100 * zeros:g}{'-drawn' if drawn else ''}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = make_config(**sizes, context=LONGEST_CONTEXT)
        write = write_recipe if drawn else write_random
        write(path, config, zeros=zeros)
    return path


def is_recipe(path: Path) -> bool:
    """Whether the weights are to be drawn."""
    return (path / DESCRIPTION_FILE).is_file() and not any(path.glob("*.safetensors*"))


def open_model(path: Path, device: object = "cpu") -> Checkpoint:
    """The checkpoint at a path; the weights of a recipe are drawn on ``device``."""
    return open_random(path, str(device)) if is_recipe(path) else open_checkpoint(path)
