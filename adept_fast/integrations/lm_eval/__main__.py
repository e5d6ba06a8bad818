"""``python -m adept_fast.integrations.lm_eval``: lm-eval's command line, with the model ``adept-fast``."""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

import adept_fast.integrations.lm_eval  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
