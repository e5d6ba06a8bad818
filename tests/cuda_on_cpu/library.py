"""The CUDA operators for tensors of a CPU, as ``torch.ops.adept_fast_cuda_on_cpu``.

Importing this loads them, or skips the module that does where they cannot be built. Which build it is,
ADEPT_CUDA_ON_CPU says: plain where it says nothing, address or races where the whole process is such a run;
ADEPT_CUDA_ON_CPU_LIBRARY is the file if it was built before.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from cuda_on_cpu import build
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KIND = cast(build.Kind, os.environ.get("ADEPT_CUDA_ON_CPU", "plain"))
NAMESPACE = "adept_fast_cuda_on_cpu"

# In each of these, blocks, warps and lanes run one after another in another order.
ORDERS = ("fwd", "rev", "1")

# Arguments of operators that never change while a model runs. All others earlier kernels may have written.
CONSTANTS = re.compile(r"(.*_)?(gamma|beta|scales)|[wb](_.*)?|cos|sin|embedding|table")


def _load() -> ctypes.CDLL:
    try:
        built = os.environ.get("ADEPT_CUDA_ON_CPU_LIBRARY") or build.build_operators(KIND)
    except build.UnavailableError as error:
        pytest.skip(str(error), allow_module_level=True)
    torch.ops.load_library(str(built))
    return ctypes.CDLL(str(built))


_library = _load()
_library.cuda_on_cpu_add_input.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

call = getattr(torch.ops, NAMESPACE)


@contextmanager
def order(name: str) -> Iterator[None]:
    """Run what threads there are in that order."""
    with _environment("ADEPT_CUDA_ON_CPU_ORDER", name):
        yield


@contextmanager
def multiprocessors(count: int) -> Iterator[None]:
    """A device of that size."""
    with _environment("ADEPT_CUDA_ON_CPU_MULTIPROCESSORS", str(count)):
        yield


@contextmanager
def without_bulk_copies() -> Iterator[None]:
    """A device of capability 8.0."""
    with _environment("ADEPT_CUDA_ON_CPU_BULK", "0"):
        yield


@contextmanager
def unpinned() -> Iterator[None]:
    """The host's memory cannot be reached from the device."""
    with _environment("ADEPT_CUDA_ON_CPU_PINNED", "0"):
        yield


@contextmanager
def elsewhere(tensor: Tensor) -> Iterator[None]:
    """A tensor is not in the memory of the device."""
    with _environment("ADEPT_CUDA_ON_CPU_ELSEWHERE", str(tensor.data_ptr())):
        yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class InputsArrive(TorchDispatchMode):
    """Inputs as in a model: an earlier kernel may still be writing them; a thread has to wait for that."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            names = [argument.name for argument in func._schema.arguments]
            for name, value in [*zip(names, args, strict=False), *(kwargs or {}).items()]:
                if isinstance(value, Tensor) and not CONSTANTS.fullmatch(name):
                    _library.cuda_on_cpu_add_input(value.data_ptr(), value.nbytes)
        return func(*args, **(kwargs or {}))
