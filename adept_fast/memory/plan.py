"""MemoryPlan: what a model and its cache take, worked out from what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from adept_fast.config import PersimmonConfig
from adept_fast.kv_cache import bytes_per_token
from adept_fast.memory.workspace import fixed_bytes, graphs_bytes, most_rows, prompt_bytes, step_bytes

UNLIMITED_BYTES = 2**63 - 1


@dataclass(frozen=True)
class HeldWeights:
    """What the weights take in one of the ways to hold them, in bytes.

    ``embedding_bytes`` are of a table that is only looked up: 0 where it is the output matrix too.
    ``moving_bytes`` is the most that loading a matrix takes beside what is held, ``unpacking_bytes`` what a
    long prompt takes to turn packed weights into floats.
    """

    setting: str  # such as ``weights "int4"``
    other_bytes: int
    embedding_bytes: int = 0
    moving_bytes: int = 0
    unpacking_bytes: int = 0


@dataclass(frozen=True)
class MemoryRequest:
    """What is to be held, and how much memory there is for it.

    ``max_seq_len`` None is the longest context that fits. ``embedding`` is ``device``, ``host`` for pinned
    memory of the host, or ``auto``: on the device where all that is asked for fits there. ``other_weights``
    are other ways to hold them, for advice. ``vocab_rows`` are those of the vocabulary that are held.
    """

    config: PersimmonConfig
    device: torch.device
    weights: HeldWeights
    vocab_rows: int
    available_bytes: int
    host_available_bytes: int = UNLIMITED_BYTES
    cache_dtype: torch.dtype = torch.float16
    max_seq_len: int | None = None
    max_batch_size: int = 1
    embedding: str = "device"
    may_pin: bool = False  # whether the embedding may be on the host
    other_weights: tuple[HeldWeights, ...] = ()

    def longest_context(self, embedding: str) -> int:
        """How many tokens a slot can hold, at most what the model was trained for; 0 where nothing fits."""
        return most(self.config.max_position_embeddings, lambda count: lay_out(self, count, embedding).fits)


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes in bytes, on the device but for ``pinned_bytes``, which are of the host.

    ``available_bytes`` is what the device had free before loading. ``longest_context`` is how many tokens a
    slot can hold there beside the weights, at most what the model was trained for. ``workspace_bytes`` and
    ``graphs_bytes`` are upper bounds. ``embedding`` is where it will be: ``device`` or ``host``.
    """

    device: str
    weights_bytes: int
    workspace_bytes: int
    cache_bytes_per_token: int
    max_seq_len: int
    max_batch_size: int
    available_bytes: int
    longest_context: int
    graphs_bytes: int
    pinned_bytes: int
    host_available_bytes: int
    embedding: str
    request: MemoryRequest = field(repr=False)

    @property
    def cache_bytes(self) -> int:
        return self.cache_bytes_per_token * self.max_seq_len * self.max_batch_size

    @property
    def total_bytes(self) -> int:
        """What is taken at most once everything is loaded."""
        return self.weights_bytes + self.workspace_bytes + self.graphs_bytes + self.cache_bytes

    @property
    def peak_bytes(self) -> int:
        """What is taken at most, on the way there too."""
        return max(self.total_bytes, self.weights_bytes + self.request.weights.moving_bytes)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes and self.pinned_bytes <= self.host_available_bytes


def lay_out(request: MemoryRequest, max_seq_len: int, embedding: str) -> MemoryPlan:
    """The sizes, whether they fit or not; ``longest_context`` is left at 0."""
    config, device, weights = request.config, request.device, request.weights
    size = (config, device, max_seq_len, request.max_batch_size, request.vocab_rows)
    rows = most_rows(request.max_batch_size)
    at_work = max(
        prompt_bytes(config, device, max_seq_len, request.vocab_rows, request.cache_dtype)
        + weights.unpacking_bytes,
        step_bytes(config, device, rows, max_seq_len, request.vocab_rows),
    )
    on_host = embedding == "host"
    return MemoryPlan(
        device=str(device),
        weights_bytes=weights.other_bytes + (0 if on_host else weights.embedding_bytes),
        workspace_bytes=fixed_bytes(*size) + at_work,
        cache_bytes_per_token=bytes_per_token(config, request.cache_dtype),
        max_seq_len=max_seq_len,
        max_batch_size=request.max_batch_size,
        available_bytes=request.available_bytes,
        longest_context=0,
        graphs_bytes=graphs_bytes(*size),
        pinned_bytes=pinned_bytes(weights.embedding_bytes) if on_host else 0,
        host_available_bytes=request.host_available_bytes,
        embedding=embedding,
        request=request,
    )


def pinned_bytes(size: int) -> int:
    """What torch takes to pin so many bytes: it rounds what it pins up to a power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def most(highest: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``highest`` that fits, where all below it do too; 0 where none does."""
    lowest = 0
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        if fits(middle):
            lowest = middle
        else:
            highest = middle - 1
    return lowest


def place_of_embedding(request: MemoryRequest) -> str:
    if request.embedding != "auto":
        return request.embedding
    wanted = request.max_seq_len or request.config.max_position_embeddings
    room = pinned_bytes(request.weights.embedding_bytes) <= request.host_available_bytes
    if not (request.may_pin and room) or lay_out(request, wanted, "device").fits:
        return "device"
    return "host"
