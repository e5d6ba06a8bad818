"""What a decode step should take on a GPU, kernel by kernel: predicted, not measured.

    python benchmarks/step_model.py --device h100
    python benchmarks/decode.py --predict h100

A model of the step as csrc/cuda launches it, to be held against the measurement. A kernel takes a gap, in
which the one before drains and it starts, and the time of its bytes. Those are shared out evenly over its
pieces of work (tiles of rows, splits of positions), as many at once as have places; the last wave may leave
places empty, and then what is in flight may be too little to keep memory busy (Little's law). Kernels that
stream nothing are a chain of a few loads. Where a run of ``make gpu-check`` is committed, what it measured
stands beside.

The bytes are those that the package counts: of the packed matrices as they are planned before loading, and of
a call as ``tools/gpu_check_cases.py`` has it.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import device

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from gpu_check_cases import Case, Shapes, moved_bytes  # noqa: E402
from harness import table  # noqa: E402

from adept_fast.checkpoint import packed_matrices  # noqa: E402
from adept_fast.config import PersimmonConfig  # noqa: E402
from adept_fast.quantization.layout_gpu import GpuMatrix  # noqa: E402
from adept_fast.quantization.layouts import formats_of  # noqa: E402

# Assumed, not measured: a share of the published bandwidth; from a kernel's end to the next one's first
# bytes; the chain of loads of a kernel that streams nothing; and how long a load from memory takes.
ACHIEVABLE = 0.90
GAP_SECONDS = 1.0e-6
CHAIN_SECONDS = 1.0e-6
LATENCY_SECONDS = 0.7e-6

FORMATS = ("float16", "fp8", "int4")
BATCHES, CONTEXTS, ZEROS = (1, 4, 16), (128, 2048, 16384), (0.0, 0.5, 0.9, 0.95)
# As csrc/cuda has them.
TILE_ROWS, TEAMS, BYTES_OF_TEAM = 16, 2, 32768  # linear.cuh: teams of a multiprocessor, and in flight of each
SPLIT, SPLITS_AT_ONCE, BYTES_OF_SPLIT = 256, 4, 28672  # decode_attention.cu
STRIP_COLUMNS, BYTES_OF_STRIP = 512, 65536  # sparse_down_proj.cuh, a block a multiprocessor
TOKENS_PREPARED_IN_BLOCK = 2  # linear.cu; for more a kernel goes before


@dataclass(frozen=True)
class Device:
    """As its maker publishes it."""

    name: str
    multiprocessors: int
    bytes_per_second: float
    memory_bytes: float


DEVICES = {"h100": Device("H100 SXM", 132, 3.35e12, 80e9), "h200": Device("H200", 132, 4.8e12, 141e9)}


@dataclass(frozen=True)
class Step:
    """A step's setting; ``zeros`` is the share of units that are 0 for one token."""

    format: str
    batch: int = 1
    context: int = 128
    zeros: float = 0.0

    def __str__(self) -> str:
        return f"{self.format}, batch {self.batch}, context {self.context}, {self.zeros:.0%} zeros"

    @property
    def zeros_of_all(self) -> float:
        """The share of units that are 0 for every token, which are independent in a random model."""
        return self.zeros**self.batch


@dataclass(frozen=True)
class Kernel:
    """One launch: its bytes, and in how many pieces they are read, of which so many have places at once."""

    name: str
    operator: str
    launches: int  # in a step
    weights: int = 0
    cache: int = 0
    activations: int = 0
    pieces: int = 0  # 0 where nothing is streamed
    places: int = 1
    bytes_of_piece: int = 0  # in flight

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.activations

    @property
    def last_wave(self) -> float:
        """The share of places that have work in it."""
        return ((self.pieces - 1) % self.places + 1) / self.places if self.pieces else 0.0

    def seconds(self, device: Device) -> float:
        """Of one launch."""
        if not self.pieces:
            return GAP_SECONDS + CHAIN_SECONDS + self.bytes / (ACHIEVABLE * device.bytes_per_second)
        full, last = divmod(self.pieces, self.places)
        waves = [(full * self.places, self.places), (last, last)]
        streaming = sum(
            pieces * self.bytes / self.pieces / self._rate(device, busy) for pieces, busy in waves if pieces
        )
        return GAP_SECONDS + streaming

    def _rate(self, device: Device, busy: int) -> float:
        in_flight = busy * self.bytes_of_piece / (device.bytes_per_second * LATENCY_SECONDS)
        return ACHIEVABLE * device.bytes_per_second * min(1.0, in_flight)


class StepModel:
    """The kernels of a step of a model on a device."""

    def __init__(self, config: PersimmonConfig, device: Device) -> None:
        self.config = config
        self.device = device
        self.shapes = Shapes(
            config.hidden_size,
            config.num_attention_heads,
            config.rotary_dim,
            config.intermediate_size,
            config.vocab_size,
            config.max_position_embeddings,
        )

    def kernels(self, step: Step) -> list[Kernel]:
        """In the order in which they run."""
        config, layers = self.config, self.config.num_hidden_layers
        hidden, tokens = config.hidden_size, step.batch
        splits = math.ceil(step.context / SPLIT)
        attention = self._operator("decode_attention", step)
        merge = [Kernel("merge_splits", "decode_attention", layers)] if splits > 1 else []
        at_once = SPLITS_AT_ONCE * self.device.multiprocessors
        return [
            self._small("embed", "embed", step),
            *self._matmul("layernorm_qkv", step, 3 * hidden, layers),
            Kernel("rotary_append", "rotary_append", layers, **self._operator("rotary_append", step)),
            Kernel(
                "attend",
                "decode_attention",
                layers,
                **attention,
                pieces=splits * config.num_attention_heads * tokens,
                places=at_once,
                bytes_of_piece=BYTES_OF_SPLIT,
            ),
            *merge,
            *self._matmul("linear_residual", step, hidden, layers),
            *self._mlp(step),
            *self._matmul("lm_head", step, config.vocab_size, 1),
            *(self._small(f"sample {part}", "sample", step) for part in range(1, 4)),
            self._small("update_decode_state", "update_decode_state", step),
        ]

    def seconds(self, step: Step) -> float:
        return sum(kernel.launches * kernel.seconds(self.device) for kernel in self.kernels(step))

    def bytes_read(self, step: Step) -> int:
        """Weights and cache that a step needs, as ``Runtime.bytes_read_per_step`` counts them."""
        return sum(kernel.launches * (kernel.weights + kernel.cache) for kernel in self.kernels(step))

    def floor_seconds(self, step: Step) -> float:
        """Of those bytes, at the bandwidth that is thought to be achievable."""
        return self.bytes_read(step) / (ACHIEVABLE * self.device.bytes_per_second)

    def fits(self, step: Step) -> bool:
        """Whether weights, embedding and cache do."""
        dense = Step(step.format, step.batch, step.context)
        embedding = 2 * self.config.vocab_size * self.config.hidden_size
        return self.bytes_read(dense) + embedding < self.device.memory_bytes

    def case(self, operator: str, step: Step) -> Case:
        """As ``benchmarks/step`` times the operator."""
        if operator == "decode_attention":
            return Case(operator, step.batch, positions=step.context)
        if operator in OF_NO_WEIGHTS:
            return Case(operator, step.batch, *OF_NO_WEIGHTS[operator])
        # Four bits would cost the logits too much.
        fmt = "fp8" if operator == "lm_head" and step.format == "int4" else step.format
        return Case(operator, step.batch, fmt, step.zeros_of_all if operator == "mlp" else 0.0)

    def _operator(self, operator: str, step: Step) -> dict[str, int]:
        """An operator's bytes, by kind; what is counted beside weights and cache is activations."""
        case, weights = self.case(operator, step), weights_bytes(self.config, operator, step.format)
        moved = moved_bytes(case, self.shapes)
        dense = moved_bytes(Case(operator, step.batch, case.format, 0.0, case.positions), self.shapes)
        cache = self.config.hidden_size * 2 * 2 * step.batch * case.positions
        activations = dense - weights - cache
        return {"weights": moved - cache - activations, "cache": cache, "activations": activations}

    def _matmul(self, operator: str, step: Step, rows: int, launches: int) -> Iterator[Kernel]:
        if step.batch > TOKENS_PREPARED_IN_BLOCK:
            yield Kernel("prepare_inputs", operator, launches)
        yield self._rows_kernel(operator, operator, rows, launches, self._operator(operator, step))

    def _mlp(self, step: Step) -> Iterator[Kernel]:
        layers, units = self.config.num_hidden_layers, self.config.intermediate_size
        whole = self._operator("mlp", step)
        none_needed = Step(step.format, step.batch, step.context, 1.0)
        # Of the down-projection, read by whoever adds up: its bias, and its scales in 8 bits.
        vectors = 4 * self.config.hidden_size * (2 if step.format == "fp8" else 1)
        up = self._operator("mlp", none_needed)["weights"] - vectors
        if step.batch > TOKENS_PREPARED_IN_BLOCK:
            yield Kernel("prepare_inputs", "mlp", layers)
        half = whole["activations"] // 2
        yield self._rows_kernel("up", "mlp", units, layers, {"weights": up, "activations": half})
        strips = -(-self.config.hidden_size // STRIP_COLUMNS)
        blocks = strips * max(1, self.device.multiprocessors // strips)
        yield Kernel(
            "down",
            "mlp",
            layers,
            weights=whole["weights"] - up - vectors,
            activations=whole["activations"] - half,
            pieces=blocks,
            places=self.device.multiprocessors,
            bytes_of_piece=BYTES_OF_STRIP,
        )
        yield Kernel("add_partials", "mlp", layers, weights=vectors)

    def _rows_kernel(
        self, name: str, operator: str, rows: int, launches: int, counted: dict[str, int]
    ) -> Kernel:
        return Kernel(
            name,
            operator,
            launches,
            **counted,
            pieces=-(-rows // TILE_ROWS),
            places=TEAMS * self.device.multiprocessors,
            bytes_of_piece=BYTES_OF_TEAM,
        )

    def _small(self, name: str, operator: str, step: Step) -> Kernel:
        return Kernel(name, operator, 1, activations=moved_bytes(self.case(operator, step), self.shapes))


@functools.cache
def weights_bytes(config: PersimmonConfig, operator: str, fmt: str) -> int:
    """What the tensors of an operator take, in one layer, as they are held on the device."""
    weights = formats_of(device("cuda")).get(fmt)
    packed = packed_matrices(config, weights, GpuMatrix) if weights else {}
    total = 0
    for name, shape in config.tensor_shapes().items():
        if re.fullmatch(OPERATOR_TENSORS.get(operator, ""), name):
            size = 2 if len(shape) > 1 else 4
            total += packed[name].nbytes if name in packed else size * math.prod(shape)
    return total


# Whose cases say nothing of weights: a case's format, zeros, positions and filter.
OF_NO_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "rotary_append": ("float16",),
    "embed": ("float16",),
    "sample": ("float32", 0.0, 0, "greedy"),
    "update_decode_state": ("int64",),
}
_LAYER = r"model\.layers\.0\."
# Of the first layer, as all layers are alike.
OPERATOR_TENSORS = {
    "layernorm_qkv": _LAYER + r"(input_layernorm|self_attn\.query_key_value)\.\w+",
    "rotary_append": _LAYER + r"self_attn\.[qk]_layernorm\.\w+",
    "linear_residual": _LAYER + r"self_attn\.dense\.\w+",
    "mlp": _LAYER + r"(post_attention_layernorm|mlp\.dense_\w+)\.\w+",
    "lm_head": r"(model\.final_layernorm|lm_head)\.\w+",
}


def predict(
    device: str,
    batches: list[int] | None = None,
    contexts: list[int] | None = None,
    zeros: list[float] | None = None,
    config: PersimmonConfig | None = None,
) -> None:
    """Print it: of each format the kernels of one setting, and a line for every setting."""
    model = StepModel(config or PersimmonConfig(rope_theta=25000.0), DEVICES[device])
    measured = measured_on(device)
    steps = [
        Step(fmt, batch, context, share)
        for fmt in FORMATS
        for batch in batches or BATCHES
        for context in contexts or CONTEXTS
        for share in zeros or ZEROS
    ]
    chip = model.device
    click.echo(
        f"PREDICTED, NOT MEASURED: a decode step on one {chip.name}, to be held against the measurement.\n"
        f"Published: {chip.bytes_per_second / 1e12:.2f} TB/s, {chip.multiprocessors} multiprocessors. "
        f"Assumed: {ACHIEVABLE:.0%} of that is achievable, {1e6 * GAP_SECONDS:.1f} µs between kernels, "
        f"{1e6 * CHAIN_SECONDS:.1f} µs in one that streams nothing."
    )
    for fmt in FORMATS:
        step = next(step for step in steps if step.format == fmt)
        click.echo(f"\n{step}\n{kernel_table(model, step)}")
        if measured:
            click.echo(f"\n{operator_table(model, step, measured)}")
    click.echo(f"\n{step_table(model, steps)}")
    if not measured:
        click.echo("\nNothing measured stands beside: no gpu-check.json of this device is committed.")


def kernel_table(model: StepModel, step: Step) -> str:
    header = ["kernel", "launches", "weights MB", "cache MB", "other MB", "last wave", "µs", "µs in all"]
    rows = []
    for kernel in model.kernels(step):
        seconds = kernel.seconds(model.device)
        sizes = [f"{size / 1e6:.2f}" for size in (kernel.weights, kernel.cache, kernel.activations)]
        wave = f"{kernel.last_wave:.2f}" if kernel.pieces else "-"
        times = [f"{1e6 * seconds:.1f}", f"{1e6 * kernel.launches * seconds:.0f}"]
        rows.append([f"{kernel.operator}: {kernel.name}", str(kernel.launches), *sizes, wave, *times])
    rows.append(["all", "", *[""] * 5, f"{1e6 * model.seconds(step):.0f}"])
    return table(header, rows)


def step_table(model: StepModel, steps: list[Step]) -> str:
    header = ["predicted, not measured", "MB", "ms", "tokens/s", "of the floor", "of the dense floor"]
    rows = []
    for step in steps:
        if not model.fits(step):
            rows.append([str(step), "does not fit", *["-"] * 4])
            continue
        seconds = model.seconds(step)
        dense = Step(step.format, step.batch, step.context)
        shares = [f"{model.floor_seconds(of) / seconds:.2f}" for of in (step, dense)]
        size = f"{model.bytes_read(step) / 1e6:.0f}"
        rows.append([str(step), size, f"{1e3 * seconds:.2f}", f"{step.batch / seconds:.0f}", *shares])
    return table(header, rows)


def operator_table(model: StepModel, step: Step, measured: dict[str, Any]) -> str:
    """Each operator's kernels together, beside what was measured of the same call."""
    predicted: dict[str, float] = {}
    for kernel in model.kernels(step):
        calls = model.config.num_hidden_layers if kernel.launches > 1 else 1
        seconds = kernel.launches / calls * kernel.seconds(model.device)
        predicted[kernel.operator] = predicted.get(kernel.operator, 0.0) + seconds
    rows = []
    for operator, seconds in predicted.items():
        entry = measured.get(model.case(operator, step).name, {})
        found = f"{1e6 * entry['seconds']['median']:.1f}" if "seconds" in entry else "-"
        rows.append([operator, f"{1e6 * seconds:.1f}", found])
    return table(["a call, µs", "predicted", "measured"], rows)


def measured_on(device: str) -> dict[str, Any]:
    """What a committed run of ``gpu_check`` on such a device found, by the names of its cases."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/gpu-check.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if device in re.split(r"[^a-z0-9]+", report["device"].lower()):
            found: dict[str, Any] = report["measured"]
            return found
    return {}


@click.command()
@click.option("--device", default="h100", show_default=True, type=click.Choice(list(DEVICES)))
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1, 16))
@click.option("--context", "contexts", multiple=True, type=click.IntRange(min=1))
def main(device: str, batches: tuple[int, ...], contexts: tuple[int, ...]) -> None:
    """Say what a decode step of the 8B should take on a GPU."""
    predict(device, list(batches), list(contexts))


if __name__ == "__main__":
    main()
