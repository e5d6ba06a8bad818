"""MemoryPlan: the memory of a model and its cache. MemoryRequest: what it is planned for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from adept_fast.config import PersimmonConfig
from adept_fast.kv_cache import bytes_per_token
from adept_fast.memory.footprint import Footprint
from adept_fast.memory.workspace import Workspace, max_rows
from adept_fast.system import huge_pages

UNLIMITED_BYTES = 2**63 - 1


@dataclass(frozen=True)
class MemoryRequest:
    """A model and cache to load, and the free memory.

    ``max_seq_len`` None is the longest context that fits. ``embedding`` is ``device``, ``host`` for pinned
    memory of the host, or ``auto``: on the device if everything fits there. ``pinning_refusal`` is the reason
    that it cannot be on the host; None if it can. ``other_weights`` are other formats, for advice.
    """

    config: PersimmonConfig
    device: torch.device
    weights: Footprint
    vocab_rows: int  # of the vocabulary, that are loaded
    available_bytes: int
    logits_rows: int = 0  # of the vocabulary, on all ranks together; 0 for ``vocab_rows``
    host_available_bytes: int = UNLIMITED_BYTES
    cache_dtype: torch.dtype = torch.float16
    max_seq_len: int | None = None
    max_batch_size: int = 1
    embedding: str = "device"
    pinning_refusal: str | None = None
    other_weights: tuple[Footprint, ...] = ()

    @property
    def can_pin(self) -> bool:
        """Whether the embedding may be on the host, and the host has room for it."""
        room = pinned_bytes(self.weights.embedding_bytes) <= self.host_available_bytes
        return self.pinning_refusal is None and room

    @property
    def small_pages_reason(self) -> str | None:
        """The reason that matrices are not copied to huge pages; None if they are."""
        if self.device.type != "cpu":
            return "as its driver has them"
        if self.weights.total_bytes > self.available_bytes // 2:
            return "a copy of the weights would take more than half the memory"
        return huge_pages.unavailable()

    def chosen_embedding(self) -> str:
        """``device`` or ``host``."""
        if self.embedding != "auto":
            return self.embedding
        wanted = self.max_seq_len or self.config.max_position_embeddings
        return "host" if self.can_pin and not self.plan(wanted, "device").fits else "device"

    def longest_context(self, embedding: str) -> int:
        """The tokens that a slot can hold, at most the context of the model; 0 if nothing fits."""
        return largest(self.config.max_position_embeddings, lambda count: self.plan(count, embedding).fits)

    def plan(self, max_seq_len: int, embedding: str) -> MemoryPlan:
        """The sizes, whether they fit or not, without ``longest_context``."""
        workspace = Workspace(self.config, self.device, self.logits_rows or self.vocab_rows, self.cache_dtype)
        at_work = max(
            workspace.prompt_bytes(max_seq_len) + self.weights.unpacking_bytes,
            workspace.step_bytes(max_rows(self.max_batch_size), max_seq_len),
        )
        on_host = embedding == "host"
        return MemoryPlan(
            device=str(self.device),
            weights_bytes=self.weights.other_bytes if on_host else self.weights.total_bytes,
            workspace_bytes=workspace.fixed_bytes(max_seq_len, self.max_batch_size) + at_work,
            cache_bytes_per_token=bytes_per_token(self.config, self.cache_dtype),
            max_seq_len=max_seq_len,
            max_batch_size=self.max_batch_size,
            available_bytes=self.available_bytes,
            longest_context=0,
            graphs_bytes=workspace.graphs_bytes(max_seq_len, self.max_batch_size),
            pinned_bytes=pinned_bytes(self.weights.embedding_bytes) if on_host else 0,
            host_available_bytes=self.host_available_bytes,
            embedding=embedding,
            request=self,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes in bytes: ``pinned_bytes`` on the host, the others on the device.

    ``available_bytes`` was free on the device before loading. ``longest_context`` is the number of tokens
    that a slot can hold, at most those of the model. ``workspace_bytes`` and ``graphs_bytes`` are upper
    bounds. ``embedding`` is ``device`` or ``host``.
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
        """The maximum after loading."""
        return self.weights_bytes + self.workspace_bytes + self.graphs_bytes + self.cache_bytes

    @property
    def peak_bytes(self) -> int:
        """The maximum, loading included."""
        return max(self.total_bytes, self.weights_bytes + self.request.weights.loading_bytes)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes and self.pinned_bytes <= self.host_available_bytes


def pinned_bytes(size: int) -> int:
    """The bytes that torch allocates to pin ``size`` bytes: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``limit`` that fits, if all below it do too; 0 if none does."""
    return bisect_left(range(1, limit + 1), True, key=lambda count: not fits(count))
