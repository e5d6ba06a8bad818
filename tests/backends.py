"""What runs the operators in tests: plain PyTorch, C++ for each instruction set, the emulator, and a GPU.

A test takes a backend, and calls operators of it with tensors of the CPU::

    @every_backend
    def test_it(backend: Backend) -> None:
        out = backend.run("linear_residual", x=x, w=w, scales=None, b=b, residual=residual)

ADEPT_FAST_BACKENDS names the kinds to run, such as ``cpu`` or ``emulated,gpu``; unset, it is all that this
machine has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import device_double
import pytest
import torch
from operator_definitions import defined
from sharing_memory import WRITTEN
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import reference

# Under sanitizers every kernel is many times slower, and few shapes reach every branch.
THIN = os.environ.get("ADEPT_FAST_TESTS") == "thin"
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
EPS = 1e-5
MARGIN, FILLER = 4096, 0xFF  # bytes before and behind every argument: NaN, or -1

last_call = ""  # for the report of a test that fails


class Backend:
    """Operators, and the device that their tensors are on."""

    kind = ""
    family = "cpu"  # whose formats of packed weights it reads
    formats: tuple[str, ...] = tuple(FLOATS)
    refuses_values = False  # slots, positions and ids that do not exist; others leave such tokens out
    max_tokens = 1 << 20  # of a product
    device = torch.device("cpu")
    name = ""

    def __str__(self) -> str:
        return self.name

    @property
    def operators(self) -> Any:
        """The namespace of the operators."""
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run one test: nothing here outlasts it."""
        yield

    def schedules(self) -> list[AbstractContextManager[None]]:
        """Numbers of threads, or orders of them, none of which may change a bit."""
        return []

    def sizes(self) -> list[AbstractContextManager[None]]:
        """Devices of several sizes, for which work may be cut otherwise."""
        return []

    def pinned(self, tensor: Tensor) -> Tensor:
        """A copy in memory of the host that the device reaches."""
        return tensor.clone()

    def synchronize(self) -> None:
        """Wait until everything is computed."""

    def product_dtype(self, fmt: str) -> torch.dtype:
        """To which torch rounds inputs of a product with such weights, to be compared with."""
        return torch.float32

    def run(self, operator: str, /, *, host: Sequence[str] = (), **arguments: Any) -> Any:
        """Call an operator by name, and return its result on the CPU.

        Every tensor is copied into memory of the device with NaN before and behind it, those in ``host`` into
        pinned memory of the host. What the operator writes is copied back; it may write nothing beside that.
        """
        global last_call  # noqa: PLW0603
        last_call = f"{operator} on {self}: " + ", ".join(
            f"{name} {described(value)}" for name, value in arguments.items()
        )
        written = [name for name in WRITTEN.get(operator, ()) if arguments.get(name) is not None]
        moved, memories = dict(arguments), {}
        for name, value in arguments.items():
            if name in host:
                moved[name] = self.pinned(value)
            elif isinstance(value, Tensor):
                moved[name], memories[name] = self.surrounded(value)
            elif isinstance(value, list):
                moved[name] = [self.surrounded(one)[0] for one in value]
        result = getattr(self.operators, operator)(**moved)
        self.synchronize()
        for name in written:
            arguments[name].copy_(moved[name].cpu())
            if name in memories:
                edges = [part.cpu() for part in (memories[name][:MARGIN], memories[name][-MARGIN:])]
                assert bool((torch.cat(edges) == FILLER).all()), f"{last_call}: wrote beside {name}"
        if isinstance(result, tuple):
            return tuple(one.cpu() for one in result)
        return result.cpu() if isinstance(result, Tensor) else result

    def surrounded(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """A copy on the device, and the memory in whose middle it lies, which is NaN or -1 around it."""
        memory = torch.full((2 * MARGIN + tensor.nbytes,), FILLER, dtype=torch.uint8, device=self.device)
        middle = memory[MARGIN : MARGIN + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return middle.copy_(tensor.to(self.device)), memory


class Reference(Backend):
    """Plain PyTorch. With ``narrow``, products are in the weights' dtype, as on a GPU."""

    kind = "reference"

    def __init__(self, narrow: bool) -> None:
        self.narrow = narrow
        self.name = "reference-narrow" if narrow else "reference"

    @property
    def operators(self) -> Any:
        names = ("layernorm_qkv", "linear_residual", "lm_head", "mlp", "rotary_append", "decode_attention")
        names += ("token_logprobs", "update_decode_state", "embed", "copy", "read")
        return SimpleNamespace(
            **{name: lambda name=name, **arguments: defined(name, arguments) for name in names}
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if self.narrow:
                patch.setattr(reference, "compute_dtype", lambda matrix: matrix.dtype)
            yield

    def product_dtype(self, fmt: str) -> torch.dtype:
        return FLOATS[fmt] if self.narrow else torch.float32


class Cpu(Backend):
    """C++ for one instruction set, with one thread unless a test sets more."""

    kind = "cpu"
    formats = (*FLOATS, "int8", "int4")
    refuses_values = True

    def __init__(self, instruction_set: str) -> None:
        self.instruction_set = instruction_set
        self.name = f"cpu-{instruction_set}"

    @property
    def operators(self) -> Any:
        return torch.ops.adept_fast

    @contextmanager
    def running(self) -> Iterator[None]:
        before = _C.instruction_set()
        assert _C.use_instruction_set(self.instruction_set)
        try:
            with threads(1):
                yield
        finally:
            _C.use_instruction_set(before)

    def schedules(self) -> list[AbstractContextManager[None]]:
        return [threads(2), threads(5)]

    def product_dtype(self, fmt: str) -> torch.dtype:
        return torch.bfloat16 if fmt in ("int8", "int4") else torch.float32


class Cuda(Backend):
    """CUDA kernels."""

    family = "cuda"
    formats = ("float16", "bfloat16", "int8", "fp8", "int4-g32", "int4")
    max_tokens = 16

    def product_dtype(self, fmt: str) -> torch.dtype:
        return torch.bfloat16 if fmt == "bfloat16" else torch.float16


class Emulated(Cuda):
    """The CUDA sources, compiled for this CPU; skips the test that asks where they cannot be."""

    kind = name = "emulated"
    device = device_double.DEVICE

    @property
    def operators(self) -> Any:
        from cuda_on_cpu import library  # compiles what changed

        return device_double.guarded(library.call)

    def memory(self) -> AbstractContextManager[None]:
        """While it lasts, tensors of the device do not mix with the host's."""
        return device_double.double()

    @contextmanager
    def running(self) -> Iterator[None]:
        from cuda_on_cpu import library

        with ExitStack() as stack:
            stack.enter_context(self.memory())
            # Where races are looked for, inputs count as written by an earlier kernel.
            stack.enter_context(library.InputsArrive() if library.KIND == "races" else nullcontext())
            yield

    def schedules(self) -> list[AbstractContextManager[None]]:
        from cuda_on_cpu import library

        return [library.order(name) for name in library.ORDERS[1:]]

    def sizes(self) -> list[AbstractContextManager[None]]:
        from cuda_on_cpu import library

        return [library.multiprocessors(count) for count in (1, 7, 132)]


class Gpu(Cuda):
    """The GPU of this machine, which shares work out otherwise each time."""

    kind = name = "gpu"
    device = torch.device("cuda")

    @property
    def operators(self) -> Any:
        return torch.ops.adept_fast

    def schedules(self) -> list[AbstractContextManager[None]]:
        return [nullcontext(), nullcontext()]

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def synchronize(self) -> None:
        torch.cuda.synchronize()


EMULATED, GPU = Emulated(), Gpu()
INSTRUCTION_SETS: list[str] = []  # the best first
if extension.load().loaded:
    from adept_fast import _C

    INSTRUCTION_SETS = _C.runnable_instruction_sets().split(",")


def _why_no_gpu() -> str:
    if not torch.cuda.is_available():
        return "there is no GPU that this torch can use"
    built = extension.load()
    if not built.loaded:
        return f"the extension is not loaded: {built.reason}"
    return "" if built.cuda else f"the extension is built without CUDA: {built.cuda_reason}"


def _backends() -> list[Backend]:
    found = [Reference(False), Reference(True), *map(Cpu, INSTRUCTION_SETS), EMULATED, GPU]
    wanted = os.environ.get("ADEPT_FAST_BACKENDS", "")
    kinds = (
        wanted.split(",") if wanted else {one.kind for one in found} - ({"gpu"} if _why_no_gpu() else set())
    )
    assert {one.kind for one in found}.issuperset(kinds), f"ADEPT_FAST_BACKENDS is {wanted}"
    return [one for one in found if one.kind in kinds]


BACKENDS = _backends()
CPU = [one for one in BACKENDS if one.kind == "cpu"]
CUDA = [one for one in BACKENDS if one.family == "cuda"]
KERNELS = [*CPU, *CUDA]


def parameter(backend: Backend, *others: Any, name: str = "") -> Any:
    """Of a test: the backend, what else it takes, and what stands for that in the test's id."""
    marks = [pytest.mark.gpu] if backend is GPU else []
    if backend is GPU and _why_no_gpu():
        marks.append(pytest.mark.skip(reason=_why_no_gpu()))
    return pytest.param(backend, *others, id=f"{backend}-{name}" if name else backend.name, marks=marks)


def on(backends: Sequence[Backend]) -> Any:
    """Run a test on each of these backends."""
    return pytest.mark.parametrize("backend", [parameter(one) for one in backends], indirect=True)


every_backend = on(BACKENDS)
on_the_emulator = pytest.mark.parametrize("backend", [one for one in CUDA if one is EMULATED], ids=str)


def in_formats(backends: Sequence[Backend], formats: Sequence[str] = ()) -> Any:
    """Run a test on each of these backends, in each of its formats of weights, or those of ``formats``."""
    cases = [
        parameter(one, fmt, name=fmt)
        for one in backends
        for fmt in one.formats
        if fmt in formats or not formats
    ]
    return pytest.mark.parametrize(("backend", "fmt"), cases, indirect=["backend"])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same, NaNs too."""
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)
    )


def described(value: Any) -> str:
    """A tensor by dtype and shape."""
    return f"{str(value.dtype)[6:]}{list(value.shape)}" if isinstance(value, Tensor) else str(value)
