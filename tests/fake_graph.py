"""FakeCapture: CUDA's capture and replay, played on a CPU.

What a step calls is recorded and, at a replay, called again with the very same tensors and numbers, as a
graph would: what the host decided at the capture stays decided. What a capture would refuse is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from adept_fast.engine.graphs import Captured

# By these the host would read the device, or hand it values that it has made itself.
READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "is_nonzero"}
FROM_THE_HOST = {"tensor", "as_tensor", "from_numpy", "asarray"}
# The sizes of what comes out depend on values, so the host has to wait for them.
DATA_DEPENDENT = {"aten::nonzero", "aten::masked_select", "aten::_local_scalar_dense", "aten::equal"}
DATA_DEPENDENT |= {"aten::_unique2", "aten::unique_dim", "aten::repeat_interleave.Tensor", "aten::lift_fresh"}
WAITS = ("torch.cuda.synchronize", "torch.cuda.Stream.synchronize", "torch.cuda.Event.synchronize")


class NotCapturableError(AssertionError):
    """A step did what cannot be captured, or what a replay would not repeat."""


@dataclass(frozen=True)
class _Call:
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS | FROM_THE_HOST:
            raise NotCapturableError(f"{name} within a captured step")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in DATA_DEPENDENT or _selects(func.name(), args):
            raise NotCapturableError(f"{func.name()} within a captured step")
        out = func(*args, **(kwargs or {}))
        results = list(_tensors(out))
        self.calls.append(_Call(func, args, kwargs or {}, results))
        return out


def _tensors(nested: Any) -> Iterator[Tensor]:
    """Those in what an operator takes or gives: lists, tuples and dicts of anything."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (list, tuple, dict)):
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors(part)


def _selects(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a tensor is indexed by a mask: how much that selects, the host has to find out."""
    by = args[1] if name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put") else ()
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in by)


class FakeCapture:
    """Counts what was launched, and knows the memory that replays use and did not make."""

    bytes_held = 0

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0
        self.inputs: dict[int, Tensor] = {}  # address of its memory → what lies outside

    def __call__(self, warmup: Callable[[], Tensor], step: Callable[[], Tensor]) -> Captured:
        warmup()
        self.captures += 1
        recorder = _Recorder()
        with _no_waits(), _NoReads(), recorder:
            logits = step()
        # The capture itself ran the step, which CUDA's does not: the first replay is already done.
        made = {id(result) for call in recorder.calls for result in call.results}
        for call in recorder.calls:
            for leaf in _tensors((call.args, call.kwargs)):
                if id(leaf) not in made:
                    self.inputs[leaf.untyped_storage().data_ptr()] = leaf
        is_first = True

        def replay() -> None:
            nonlocal is_first
            self.replays += 1
            if not is_first:
                for call in recorder.calls:
                    _call_again(call)
            is_first = False

        return Captured(replay, logits)


def _call_again(call: _Call) -> None:
    """What comes out goes where it lay at the capture."""
    again = _tensors(call.function(*call.args, **call.kwargs))
    for held, made in zip(call.results, again, strict=True):
        if held.shape != made.shape or held.dtype != made.dtype:
            raise NotCapturableError(f"{call.function.name()} gave {held.shape}, and now {made.shape}")
        if held.data_ptr() != made.data_ptr():  # neither a view nor written in place
            held.copy_(made)


@contextmanager
def _no_waits() -> Iterator[None]:
    def wait(*args: Any, **kwargs: Any) -> None:
        raise NotCapturableError("a wait within a captured step")

    with mock.patch(WAITS[0], wait), mock.patch(WAITS[1], wait), mock.patch(WAITS[2], wait):
        yield
