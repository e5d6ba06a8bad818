"""What the classes are built on: transformers' base classes where it is installed, else ``standalone.py``.

With transformers the classes are its models: its Trainer, pipelines, adapters and ``generate`` take them, and
they have its methods. Without it they are torch modules with the methods that are used most.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adept_fast.checkpoint.huggingface import GENERATION_FILE, read_json
from adept_fast.system.regular_file import is_there

if TYPE_CHECKING:
    _has_transformers = True
else:
    try:
        import transformers  # noqa: F401

        _has_transformers = True
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        _has_transformers = False

if TYPE_CHECKING or not _has_transformers:
    from adept_fast.modeling.standalone import (
        BaseConfig,
        BaseModel,
        GeneratesText,
        GenerationMixin,
        RecomputedLayer,
    )
else:
    from transformers import GenerationConfig, GenerationMixin
    from transformers import PersimmonConfig as BaseConfig
    from transformers import PreTrainedModel as BaseModel
    from transformers.modeling_layers import GradientCheckpointingLayer as RecomputedLayer

    from adept_fast.integrations.transformers.generation import GeneratesOnRuntime

    class GeneratesText(GeneratesOnRuntime):
        """The settings of ``generate``, which decodes on the runtime."""

        def read_generation_config(self, path: Path) -> None:
            """Take the settings of ``generate`` that a checkpoint has."""
            if path.is_dir() and is_there(path / GENERATION_FILE):
                settings = vars(GenerationConfig())  # names of methods would replace them
                stored = read_json(path / GENERATION_FILE).items()
                own = {name: value for name, value in stored if name in settings}
                self.generation_config = GenerationConfig.from_dict(own)


__all__ = [
    "BaseConfig",
    "BaseModel",
    "GeneratesText",
    "GenerationMixin",
    "RecomputedLayer",
]
