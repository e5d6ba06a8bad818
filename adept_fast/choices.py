"""The values that options allow, for the command line too, which checks them before torch is imported."""

from __future__ import annotations

DTYPES = ("float32", "float16", "bfloat16")
CHECKPOINT_FORMATS = ("huggingface", "adept", "native")
PACKED_FORMATS = ("int8", "fp8", "int4-g32", "int4-g128", "int4")
PACKED_LAYOUTS = ("row_major", "cpu_tiled")  # of packed checkpoints
MAX_STEP_TOKENS = 16  # that the decode kernels accept at once
MAX_DRAFTS = MAX_STEP_TOKENS - 1  # tokens guessed ahead; the step that checks them has one more
LOG_FORMATS = ("text", "json")
