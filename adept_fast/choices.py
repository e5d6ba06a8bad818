"""The values that options allow, for the command line too, which checks them before torch is imported."""

from __future__ import annotations

DTYPES = ("float32", "float16", "bfloat16")
CHECKPOINT_FORMATS = ("huggingface", "adept", "native")
PACKED_FORMATS = ("int8", "int4")  # of packed checkpoints, and of matrices that are packed for a CPU
MAX_STEP_TOKENS = 16  # that the decode kernels take at once
MAX_DRAFTS = MAX_STEP_TOKENS - 1  # tokens guessed ahead; the step that checks them has one more
