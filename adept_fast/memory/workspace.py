"""What a model works with beside its weights and cache, in bytes: upper bounds, known before it is loaded.

On a GPU they are those of the CUDA kernels; what plain PyTorch takes in their place may be more.
"""

from __future__ import annotations

import torch

from adept_fast.config import PersimmonConfig
from adept_fast.graph_buckets import GraphBuckets
from adept_fast.model import PREFILL_CHUNK
from adept_fast.sampling import MOST_DRAFTS

SCORED_ROWS = 64  # logits are made for this many tokens at once: a row of the 8B's takes a megabyte

# An allowance, not a measurement: what the driver and torch take by themselves on a GPU, for the code of
# kernels, for cuBLAS's workspaces and for allocations that are rounded up.
CUDA_ALLOWANCE_BYTES = 1 << 29

_FLOAT = 4
_EAGER_SAMPLING = (
    64  # bytes a logit: itself, its probability in float64, those sorted, where from, and their sums
)

# Of csrc/cuda: what decode_attention.cu, sample_row.cuh and sparse_down_proj.cuh say.
_SPLIT = 256  # positions of a block of decode_attention
_TILE = 2048  # logits of a block of sample, and its bins
_STRIP = 512  # columns of a block of the down-projection
_MOST_MULTIPROCESSORS = 256  # more than any GPU has; the down-projection has a block on each


def most_rows(max_batch_size: int) -> int:
    """Of a decode step: a sequence each, or one with all that is guessed ahead."""
    return max(max_batch_size, 1 + MOST_DRAFTS)


def fixed_bytes(
    config: PersimmonConfig, device: torch.device, max_seq_len: int, max_batch_size: int, vocab_rows: int
) -> int:
    """What is held from loading on: rotary tables, and for every slot the tokens that it has seen and those
    that end it (of which graphs have a second set to rehearse on)."""
    tables = config.rotary_dim * max_seq_len * _FLOAT
    allowance = CUDA_ALLOWANCE_BYTES if device.type == "cuda" else 0
    return tables + 3 * max_batch_size * vocab_rows + allowance


def prompt_bytes(
    config: PersimmonConfig,
    device: torch.device,
    max_seq_len: int,
    vocab_rows: int,
    cache_dtype: torch.dtype = torch.float16,
) -> int:
    """What reading a chunk of a prompt takes, or scoring some of it: activations in float32 (qkv, attention,
    MLP units and their squares), what each token sees, as bools and floats, and two copies of the logits.

    On a CPU, attention widens a layer's keys and values to float32.
    """
    tokens = min(PREFILL_CHUNK, max_seq_len)
    activations = tokens * (8 * config.hidden_size + 3 * config.intermediate_size) * _FLOAT
    visible = tokens * max_seq_len * (1 + _FLOAT)
    is_widened = device.type == "cpu" and cache_dtype != torch.float32
    widened = 2 * config.hidden_size * max_seq_len * _FLOAT if is_widened else 0
    scored = 2 * tokens * config.hidden_size + 2 * min(SCORED_ROWS, tokens) * vocab_rows
    ids = 2 * max_seq_len  # in 64 bits
    return max(activations + visible + widened, scored * _FLOAT) + ids * _FLOAT


def step_bytes(config: PersimmonConfig, device: torch.device, rows: int, length: int, vocab_rows: int) -> int:
    """What a decode step of so many rows over so many positions takes: activations in float32, logits, and
    the operators' workspaces, as if none were given back before the step's end."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    activations = rows * (8 * hidden + 2 * intermediate) * _FLOAT
    if device.type == "cpu":
        return activations + rows * vocab_rows * _EAGER_SAMPLING
    inputs = rows * (2 * max(hidden, intermediate) + 1024) + 256  # float16, padded, with a scale each
    splits = -(-length // _SPLIT)
    attention = rows * config.num_attention_heads * splits * (config.head_dim + 2) * _FLOAT
    down = rows * max(_MOST_MULTIPROCESSORS * _STRIP, hidden) * _FLOAT
    tiles = -(-vocab_rows // _TILE)
    sampling = rows * (tiles * (8 * _TILE + 24) + 12 * _TILE + 8)
    logits = rows * vocab_rows * _FLOAT
    return activations + inputs + attention + down + sampling + logits


def graphs_bytes(
    config: PersimmonConfig, device: torch.device, max_seq_len: int, max_batch_size: int, vocab_rows: int
) -> int:
    """What the graphs of all shapes hold once each has been captured; 0 where there are none.

    Each keeps its logits. All else they share, as they run one after the other: room for the largest step,
    and as much again for smaller ones that were captured before it and whose room it could not take.
    """
    if device.type != "cuda":
        return 0
    rows = most_rows(max_batch_size)
    shapes = GraphBuckets.few(rows, max_seq_len)
    logits = sum(shapes.batch_sizes) * len(shapes.lengths) * vocab_rows * _FLOAT
    return logits + 2 * step_bytes(config, device, rows, max_seq_len, vocab_rows)
