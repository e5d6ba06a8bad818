"""The values that options allow, for the command line too, which checks them before torch is imported."""

from __future__ import annotations

from typing import NamedTuple

DTYPES = ("float32", "float16", "bfloat16")
CHECKPOINT_FORMATS = ("huggingface", "adept", "native")
PACKED_FORMATS = ("int8", "fp8", "int4-g32", "int4-g128", "int4")
PACKED_LAYOUTS = ("row_major", "cpu_tiled")  # of packed checkpoints
MAX_STEP_TOKENS = 16  # that the decode kernels accept at once
MAX_DRAFTS = MAX_STEP_TOKENS - 1  # tokens guessed ahead; the step that checks them has one more
LOG_FORMATS = ("text", "json")


class Bounds(NamedTuple):
    """The default of a number, and the least and the greatest one that are allowed."""

    default: int | float
    lowest: int | float
    highest: int | float


_MAX_COUNT = 2**31 - 1
_MAX_SECONDS = 10.0**6
# The limits of a server, whether it is one process or many.
SERVER_LIMITS = {
    "batch_size": Bounds(8, 1, _MAX_COUNT),
    "max_queue": Bounds(128, 0, 10**6),
    "request_seconds": Bounds(600.0, 0.0, _MAX_SECONDS),
    "grace_seconds": Bounds(30.0, 0.0, _MAX_SECONDS),
    "max_body_bytes": Bounds(4 * 2**20, 1024, 2**30),
    "max_prompts": Bounds(128, 1, _MAX_COUNT),
    "max_choices": Bounds(16, 1, _MAX_COUNT),
    "max_stops": Bounds(16, 0, _MAX_COUNT),
    "max_stop_characters": Bounds(256, 1, _MAX_COUNT),
    "max_logprobs": Bounds(20, 0, 1000),
}

# The settings of ``Runtime.load`` that say where and in what form a model is put, and that may change a text.
PLACEMENT = ("device", "dtype", "weights", "weight_layout", "cache_dtype", "embedding", "max_seq_len")
