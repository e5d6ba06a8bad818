"""``accelerate`` and ``restore``: ``generate`` of transformers' PersimmonForCausalLM on this runtime."""

from __future__ import annotations

try:
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "adept_fast.integrations.transformers needs the package transformers, which is not installed: "
        "pip install 'transformers>=5.2'"
    ) from error

from adept_fast.integrations.transformers.accelerated import accelerate, restore
from adept_fast.integrations.transformers.not_served import NotServedError

__all__ = ["NotServedError", "accelerate", "restore"]
