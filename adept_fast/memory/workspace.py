"""Workspace: upper bounds of the memory that a model needs beside its weights and cache, in bytes.

On a GPU they are those of the CUDA kernels, which the extension computes; plain PyTorch may need more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adept_fast import extension
from adept_fast.choices import MAX_STEP_TOKENS
from adept_fast.config import PersimmonConfig
from adept_fast.memory.graph_buckets import GraphBuckets
from adept_fast.model import PREFILL_CHUNK
from adept_fast.ops.row_tiles import largest_tile

SCORED_ROWS = 64  # logits are computed for this many tokens at once: a row of the 8B's takes a megabyte

# Estimated: a GPU's memory for the driver, torch, kernels' code, cuBLAS and the rounding of allocations.
CUDA_ALLOWANCE_BYTES = 1 << 29

# Estimated workspaces of a row's decode step without the extension: twice the 8B's at its whole context.
ROW_ALLOWANCE_BYTES = 13 << 19

_FLOAT = 4
# Bytes a logit: itself, its bias and count, its probability in float64, those sorted, their ids and sums.
_EAGER_SAMPLING = 80


def max_rows(max_batch_size: int) -> int:
    """The rows of a decode step: one for each sequence, or one sequence with all its drafts."""
    return max(max_batch_size, MAX_STEP_TOKENS)


@dataclass(frozen=True)
class Workspace:
    """The upper bounds for a model with ``vocab_rows`` rows of the vocabulary on a device."""

    config: PersimmonConfig
    device: torch.device
    vocab_rows: int
    cache_dtype: torch.dtype = torch.float16

    def fixed_bytes(self, max_seq_len: int, max_batch_size: int) -> int:
        """Allocated at loading: rotary tables; the biases, counts and seen tokens of each slot and of rows
        without one; and, twice for graphs, each slot's end tokens."""
        tables = self.config.rotary_dim * max_seq_len * _FLOAT
        allowance = CUDA_ALLOWANCE_BYTES if self.device.type == "cuda" else 0
        sampler = (max_batch_size + 1) * (2 * _FLOAT + 1)
        return tables + (sampler + 2 * max_batch_size) * self.vocab_rows + allowance

    def prompt_bytes(self, max_seq_len: int) -> int:
        """For a chunk of a prompt, or the scores of a part of it: activations in float32 (qkv, attention, the
        MLP's and their squares), a mask as bools and floats, two copies of the logits, and on a CPU a layer's
        keys and values in float32."""
        hidden, is_cpu = self.config.hidden_size, self.device.type == "cpu"
        tokens = min(PREFILL_CHUNK, max_seq_len) if is_cpu else PREFILL_CHUNK  # a GPU pads them to a tile
        scored_rows = min(SCORED_ROWS, tokens) if is_cpu else max(SCORED_ROWS, largest_tile(self.vocab_rows))
        activations = tokens * (8 * hidden + 3 * self.config.intermediate_size) * _FLOAT
        visible = tokens * max_seq_len * (1 + _FLOAT)
        is_widened = is_cpu and self.cache_dtype != torch.float32
        widened = 2 * hidden * max_seq_len * _FLOAT if is_widened else 0
        scored = 2 * tokens * hidden + 2 * scored_rows * self.vocab_rows
        ids = 2 * max_seq_len  # in 64 bits
        return max(activations + visible + widened, scored * _FLOAT) + ids * _FLOAT

    def step_bytes(self, rows: int, length: int) -> int:
        """For a decode step of ``rows`` rows over ``length`` positions, as if it reused no memory."""
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        if self.device.type == "cpu":
            return rows * ((8 * hidden + 2 * intermediate) * _FLOAT + self.vocab_rows * _EAGER_SAMPLING)
        return rows * (8 * hidden + self.vocab_rows) * _FLOAT + self._kernels_bytes(rows, length)

    def graphs_bytes(self, max_seq_len: int, max_batch_size: int) -> int:
        """Held by the captured graphs of all buckets; 0 without graphs.

        Each keeps its logits. They share the rest, since they run one after the other: the memory of the
        largest step, and as much again for smaller steps captured before it, whose memory did not suffice.
        """
        if self.device.type != "cuda":
            return 0
        rows = max_rows(max_batch_size)
        buckets = GraphBuckets.few(rows, max_seq_len)
        logits = sum(buckets.batch_sizes) * len(buckets.lengths) * self.vocab_rows * _FLOAT
        return logits + 2 * self.step_bytes(rows, max_seq_len)

    def _kernels_bytes(self, rows: int, length: int) -> int:
        if allowance_reason() is not None:
            return rows * ROW_ALLOWANCE_BYTES
        from adept_fast import _C

        config = self.config
        sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads, config.head_dim)
        return _C.cuda_step_bytes(rows, length, *sizes, self.vocab_rows)


def allowance_reason() -> str | None:
    """The reason that the kernels' workspaces are estimated; None if the extension computes them."""
    return None if extension.load().loaded else "the extension is not loaded"
