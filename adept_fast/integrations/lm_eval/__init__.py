"""The runtime as a model of lm-eval (0.4); importing this registers it under the name ``adept-fast``.

lm-eval has no plugins: it knows a model after the import of the module that registers it.
``python -m adept_fast.integrations.lm_eval`` is lm-eval's command line after that import, for any task. The
task files in tools/evaluation import this module themselves, so lm-eval's own command works with them too:
``lm_eval --model adept-fast --tasks tools/evaluation/arc_easy.yaml``.
"""

try:
    import lm_eval  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "adept_fast.integrations.lm_eval needs the package lm-eval, which is not installed: "
        "pip install 'lm-eval>=0.4.13,<0.5'"
    ) from error

from adept_fast.integrations.lm_eval.language_model import AdeptFastLM

__all__ = ["AdeptFastLM"]
