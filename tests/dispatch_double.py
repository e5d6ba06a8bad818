"""Doubles for tests of which implementation runs: a CPU that stands for a GPU, recorded calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from adept_fast.ops import cpu, cuda, cuda_gemm, dispatch, kernels, optional


@contextmanager
def as_cuda(operators: Any, unavailable: str | None = None) -> Iterator[None]:
    """A CPU goes by the rules of a GPU whose kernels are ``operators``, or that has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "operators", operators)
        patch.setattr(cuda, "unavailable", lambda device: unavailable)
        patch.setattr(cuda, "compute_capability", lambda device: (9, 0))
        patch.setattr(dispatch, "device_type", lambda device: "cuda")
        dispatch.forget()
        yield
    dispatch.forget()


class Recorder:
    """Operators that return a zero and write down their names."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        def operator(*arguments: Any) -> Tensor:
            self.called.append(name)
            return torch.zeros(1)

        return operator


@contextmanager
def recorded() -> Iterator[list[tuple[str, str]]]:
    """Nothing is computed; yields (implementation, operator) of each call."""
    calls: list[tuple[str, str]] = []

    class Named:
        def __init__(self, implementation: str) -> None:
            self.implementation = implementation

        def __getattr__(self, operator: str) -> Callable[..., None]:
            return lambda *arguments: calls.append((self.implementation, operator))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "operators", Named("kernel"))
        for backend in (cpu, cuda_gemm):
            patch.setattr(backend, "gemm", Named("gemm"))
        patch.setattr(kernels, "prefill_attention", Named("kernel").prefill_attention)
        patch.setattr(cuda, "attend_in_groups", Named("decode kernel").prefill_attention)
        patch.setattr(optional, "prefill_attention", Named("flash-attn").prefill_attention)
        for name, definition in dispatch.DEFINITIONS.items():
            double = functools.wraps(definition)(getattr(Named("reference"), name))
            patch.setitem(dispatch.DEFINITIONS, name, double)
        dispatch.forget()
        yield calls
    dispatch.forget()
