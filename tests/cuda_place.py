"""Where tests of the CUDA operators run: emulated on this CPU, and on a GPU where there is one.

ADEPT_FAST_PLACE says which: ``emulated``, ``gpu``, or both where it is not set. A test takes a place and
calls what it names::

    @every_place
    def test_it(place: Place) -> None:
        out = place.operators.layernorm_qkv(x.to(place.device), …)

A module of tests imports ``inputs_arrive`` too, which does nothing but under the build that looks for races.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import device_double
import pytest
import torch
from torch import Tensor

from adept_fast import extension

# Under sanitizers every kernel is many times slower, and few shapes reach every branch.
THIN = os.environ.get("ADEPT_FAST_TESTS") == "thin"


@dataclass(frozen=True)
class Place:
    """A device, and the namespace of the operators that run CUDA kernels on its tensors."""

    name: str
    device: torch.device

    @property
    def operators(self) -> Any:
        """Skips the test that asks where they cannot be emulated."""
        if self.name == "emulated":
            from cuda_on_cpu import library  # compiles what changed

            return device_double.guarded(library.call)
        return torch.ops.adept_fast

    def memory(self) -> AbstractContextManager[None]:
        """Emulated, tensors of the device do not mix with the host's while it lasts."""
        return device_double.double() if self.name == "emulated" else nullcontext()

    def pinned(self, tensor: Tensor) -> Tensor:
        """A copy in memory of the host that the device reaches; emulated, all memory is that."""
        return tensor.clone() if self.name == "emulated" else tensor.pin_memory()

    @property
    def orders(self) -> tuple[str, ...]:
        """In which blocks and threads can be run; a GPU has its own, which is never quite the same."""
        if self.name == "emulated":
            from cuda_on_cpu import library

            return library.ORDERS
        return ("first", "second", "third")

    def order(self, name: str) -> AbstractContextManager[None]:
        """Run kernels in that order, one of ``orders``."""
        if self.name == "emulated":
            from cuda_on_cpu import library

            return library.order(name)
        return nullcontext()


EMULATED = Place("emulated", device_double.DEVICE)
GPU = Place("gpu", torch.device("cuda"))


def _why_no_gpu() -> str:
    if not torch.cuda.is_available():
        return "there is no GPU that this torch can use"
    built = extension.load()
    if not built.loaded:
        return f"the extension is not loaded: {built.reason}"
    return "" if built.cuda else f"the extension is built without CUDA: {built.cuda_reason}"


def _places() -> list[Place]:
    wanted = os.environ.get("ADEPT_FAST_PLACE", "")
    if wanted:
        return [{place.name: place for place in (EMULATED, GPU)}[wanted]]
    return [EMULATED] if _why_no_gpu() else [EMULATED, GPU]


def _as_parameter(place: Place) -> Any:
    reason = _why_no_gpu() if place is GPU else ""
    return pytest.param(place, id=place.name, marks=[pytest.mark.skip(reason=reason)] if reason else [])


PLACES = _places()


def every_place(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in each place; emulated, with a memory of the device's own."""
    places = pytest.mark.parametrize("place", [_as_parameter(place) for place in PLACES])
    return pytest.mark.usefixtures("device_memory")(places(test))


@pytest.fixture(autouse=os.environ.get("ADEPT_CUDA_ON_CPU") == "races")
def inputs_arrive() -> Iterator[None]:
    """Inputs count as written by an earlier kernel, which a kernel has to wait for."""
    from cuda_on_cpu import library

    with library.InputsArrive():
        yield
