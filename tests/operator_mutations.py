"""Changes to an operator's arguments, drawn at random: most make them wrong, some leave them right."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from guarded_memory import bytes_of
from sharing_memory import WRITTEN, pairs, placed
from torch import Tensor

Arguments = dict[str, Any]

INTEGERS = (-(2**63), -(2**62), -(2**31), -2, -1, 0, 1, 2, 3, 12, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1)
REALS = (float("nan"), float("inf"), float("-inf"), -1.0, -0.0, 0.0, 1e-45, 3e38, -3e38)
SCALARS = (*REALS, 1e308)
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
)


class Mutator:
    """Draws from one generator, so that a call is the same whenever its number is."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.changes: list[str] = []  # that were made, in words
        self.has_odd_numbers = False  # floats that no bound on errors holds for
        self._tensor_changes: list[Callable[[Tensor], Tensor | None]] = [
            self._another_dtype,
            self._another_shape,
            self._no_elements,
            self._huge_without_elements,
            self._strided,
            self._repeated,
            self._transposed,
            self._misaligned,
            self._extreme_numbers,
            self._extreme_numbers,
            self._extreme_numbers,
            lambda x: x.to("meta"),
            lambda x: x.to_sparse() if x.dim() else x,
            lambda x: None,
        ]

    def mutate(self, operator: str, arguments: Arguments) -> Arguments:
        """The arguments with one to three changes, seldom with none."""
        for _ in range(self._random.choice((0, 1, 1, 1, 1, 2, 2, 3))):
            if operator in WRITTEN and self._random.random() < 0.15:
                arguments = self._shared(operator, arguments)
                continue
            name = self._random.choice(list(arguments))
            arguments = {**arguments, name: self._changed(name, arguments[name])}
        return arguments

    def _shared(self, operator: str, arguments: Arguments) -> Arguments:
        one, other = self._random.choice(pairs(operator, arguments) or [("", "")])
        first, second = arguments.get(one), arguments.get(other)
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return arguments
        if self._random.random() < 0.3:
            self.changes.append(f"{other} is {one}")
            return {**arguments, other: first}
        if any(tensor.layout != torch.strided or tensor.is_meta for tensor in (first, second)):
            return arguments
        shared = self._random.choice((0, 8, 16)) if first.nbytes >= 16 and second.nbytes >= 16 else 0
        self.changes.append(f"{one} and {other} share {shared} bytes")
        return placed(arguments, one, other, bytes_shared=shared)

    def _changed(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            changed = self._changed_tensor(value)
            self.changes.append(f"{name} {described(value)} became {described(changed)}")
            return changed
        if isinstance(value, list):
            return self._changed_list(name, value)
        if isinstance(value, float):
            value = self._random.choice(SCALARS)
            self.has_odd_numbers = True
        elif isinstance(value, int):
            value = self._random.choice(INTEGERS)
        self.changes.append(f"{name} became {value}")
        return value

    def _changed_tensor(self, x: Tensor) -> Tensor | None:
        try:
            return self._random.choice(self._tensor_changes)(x)
        except (RuntimeError, NotImplementedError):  # torch has no such tensor
            return x

    def _changed_list(self, name: str, values: list[Tensor]) -> list[Tensor]:
        if not values or self._random.random() < 0.2:
            self.changes.append(f"{name} lost its last half")
            return values[: len(values) // 2]
        index = self._random.randrange(len(values))
        changed = self._changed_tensor(values[index])
        if changed is None:
            changed = torch.empty(0)
        self.changes.append(f"{name}[{index}] {described(values[index])} became {described(changed)}")
        return [*values[:index], changed, *values[index + 1 :]]

    def _another_dtype(self, x: Tensor) -> Tensor:
        return x if x.is_complex() else x.to(self._random.choice(DTYPES))

    def _another_shape(self, x: Tensor) -> Tensor:
        """One dimension more, fewer, or one of them longer or shorter."""
        dim = self._random.randrange(x.dim()) if x.dim() else 0
        changes: list[Callable[[], Tensor]] = [lambda: x[None], lambda: x[..., None], x.flatten]
        if x.numel():
            changes += [
                lambda: x[0] if x.dim() else x,
                lambda: x.narrow(dim, 0, x.shape[dim] - 1).contiguous() if x.dim() else x,
                lambda: torch.cat((x, x), dim).contiguous() if x.dim() else x,
                lambda: torch.cat((x, x.narrow(dim, 0, 1)), dim).contiguous() if x.dim() else x,
            ]
        return self._random.choice(changes)()

    def _no_elements(self, x: Tensor) -> Tensor:
        sizes = list(x.shape)
        if sizes:
            sizes[self._random.randrange(len(sizes))] = 0
        return x.new_zeros(sizes or [0])

    def _huge_without_elements(self, x: Tensor) -> Tensor:
        sizes = [0, *([1] * (x.dim() - 1))]
        for index in range(1, len(sizes)):
            sizes[index] = self._random.choice((x.shape[index], 2**31, 2**61))
            if sizes[index] > 2**30:
                break
        self._random.shuffle(sizes)
        return x.new_zeros(sizes)

    def _strided(self, x: Tensor) -> Tensor:
        return torch.stack((x, x), -1)[..., 0]

    def _repeated(self, x: Tensor) -> Tensor:
        return x[:1].expand_as(x) if x.dim() and len(x) else x

    def _transposed(self, x: Tensor) -> Tensor:
        return x.transpose(0, -1) if x.dim() else x

    def _misaligned(self, x: Tensor) -> Tensor:
        if x.layout != torch.strided or x.is_meta or not x.numel():
            return x
        memory = bytearray(x.nbytes + 1)
        memory[1:] = bytes_of(x).numpy().tobytes()
        return torch.frombuffer(memory, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)

    def _extreme_numbers(self, x: Tensor) -> Tensor:
        if x.layout != torch.strided or x.is_meta or not x.numel() or x.dtype.itemsize == 1:
            return x
        changed = x.clone().contiguous()
        for _ in range(self._random.choice((1, 1, 2))):
            at = self._random.randrange(changed.numel())
            if x.dtype == torch.int64:
                changed.view(-1)[at] = self._random.choice(INTEGERS)
            elif x.dtype.is_floating_point:
                changed.view(-1)[at] = self._random.choice(REALS)
                self.has_odd_numbers = True
        return changed


def described(value: Any) -> str:
    """A value in a few words."""
    if not isinstance(value, Tensor):
        return repr(value)
    plain = value.layout == torch.strided and not value.is_meta
    words = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if not plain:
        return f"{words} {value.layout} on {value.device}"
    if value.dtype == torch.int64 and 0 < value.numel() <= 4:
        words += f" of {value.flatten().tolist()}"
    return words if value.is_contiguous() else f"{words} with strides {value.stride()}"
