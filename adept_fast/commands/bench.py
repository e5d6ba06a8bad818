"""``adept-fast bench``: decode speed of a checkpoint on this machine, its limit, and faster settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from adept_fast.checkpoint import Checkpoint
from adept_fast.choices import MAX_STEP_TOKENS
from adept_fast.commands.loading import chosen_checkpoint, load_runtime
from adept_fast.commands.output import print_json, print_text
from adept_fast.commands.placement_words import describe_layout, describe_weights
from adept_fast.engine.runtime import Runtime
from adept_fast.memory.bandwidth import BandwidthProbe
from adept_fast.memory.footprint import tensor_bytes
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.layouts import advised_formats
from adept_fast.system.byte_counts import format_bytes
from adept_fast.weights import EMBEDDING

_SAMPLES = 5
_SAMPLE_SECONDS = 0.4
_MAX_STEPS = 64
_MIN_STEPS = 4
_MIN_GAIN = 1.05  # times as fast: a setting that gains less is not reported
_DOWN = "mlp.dense_4h_to_h.weight"
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Sample:
    """Decode steps: mean seconds and bytes of a step, and the bandwidth before and after."""

    seconds: float
    bytes_read: float
    bandwidth: float
    zero_share: float
    batch_size: int

    @property
    def tokens_per_second(self) -> float:
        return self.batch_size / self.seconds

    @property
    def limit(self) -> float:
        """Tokens a second if the bandwidth of memory were the only limit."""
        return self.batch_size * self.bandwidth / self.bytes_read


def run(options: dict[str, Any]) -> None:
    checkpoint = chosen_checkpoint(options)
    batch_size, context = options["batch_size"], options["context"]
    if options["max_seq_len"] is None:
        options["max_seq_len"] = min(context + _MAX_STEPS + 1, checkpoint.config.max_position_embeddings)
    if options["max_seq_len"] < context + _MIN_STEPS + 1:
        raise ValueError(
            f"context is {context}; expected at most {options['max_seq_len'] - _MIN_STEPS - 1}, "
            f"which leaves {_MIN_STEPS} steps"
        )
    more = min(MAX_STEP_TOKENS, 4 * batch_size)
    runtime = load_runtime(checkpoint, options, max_batch_size=more, prefix_cache=False)
    stopwatch = Stopwatch(runtime, checkpoint, context)
    samples = [stopwatch.sample(batch_size) for _ in range(_SAMPLES)]
    report = _report(runtime, samples) | {
        "advice": _narrower(runtime, checkpoint, samples)
        + _more_at_once(stopwatch, samples, more)
        + _other_threads(stopwatch, samples)
    }
    if options["as_json"]:
        print_json(report)
    else:
        print_text(_as_line(report))


class Stopwatch:
    """Times decode steps of one Runtime."""

    def __init__(self, runtime: Runtime, checkpoint: Checkpoint, context: int) -> None:
        self.device = runtime.placement.device
        self._runtime = runtime
        self._checkpoint = checkpoint
        self._probe = BandwidthProbe(self.device)
        self._context = context
        self._max_steps = min(_MAX_STEPS, runtime.max_seq_len - context)

    def sample(self, batch_size: int) -> Sample:
        """Time steps for about _SAMPLE_SECONDS, after a few for warm-up."""
        seconds, _ = self._decode(batch_size, _MIN_STEPS)
        steps = max(_MIN_STEPS, min(self._max_steps, round(_SAMPLE_SECONDS * _MIN_STEPS / seconds)))
        before = self._probe.measure()
        seconds, zero_share = self._decode(batch_size, steps)
        bandwidth = (before + self._probe.measure()) / 2
        cache = self._runtime.memory().cache_bytes_per_token * (self._context + steps // 2) * batch_size
        weights = step_bytes(self._checkpoint, self._runtime, self._runtime.placement.weights, zero_share)
        return Sample(seconds / steps, weights + cache, bandwidth, zero_share, batch_size)

    def _decode(self, batch_size: int, steps: int) -> tuple[float, float]:
        """Seconds of all steps, and the share of activations that were 0 for all sequences."""
        vocab = self._runtime.tokenizer.vocab_size
        prompts = [[(7 * row + at) % vocab for at in range(self._context)] for row in range(batch_size)]
        before = self._runtime.stats()
        generations = self._runtime.generate(prompts, max_new_tokens=steps + 1, ignore_eos=True)
        after = self._runtime.stats()
        rows = after.unit_rows - before.unit_rows
        read = after.unit_rows_read - before.unit_rows_read
        # The last prompt is read last: after its first token there are only steps of all sequences.
        return generations[-1].timings.decode_seconds, 1 - read / rows if rows else 0.0


def step_bytes(
    checkpoint: Checkpoint, runtime: Runtime, weights: WeightFormat | None, zero_share: float = 0.0
) -> float:
    """Bytes that a step reads of this checkpoint's weights in a format (None: floats).

    Of the down-projections, rows whose activation is 0 are not counted.
    """
    placement = runtime.placement
    rows = runtime.tokenizer.vocab_size
    sizes = tensor_bytes(checkpoint, placement.dtype, weights, placement.device, rows, placement.layout)
    if _HEAD in sizes:  # or the embedding is the output matrix
        del sizes[EMBEDDING]
    return sum(size * (1 - zero_share) if name.endswith(_DOWN) else size for name, size in sizes.items())


def _report(runtime: Runtime, samples: list[Sample]) -> dict[str, Any]:
    speeds = [sample.tokens_per_second for sample in samples]
    return {
        "tokens_per_second": median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "limit_tokens_per_second": median([sample.limit for sample in samples]),
        "share_of_limit": median([sample.tokens_per_second / sample.limit for sample in samples]),
        "bytes_per_step": median([sample.bytes_read for sample in samples]),
        "bandwidth_bytes_per_second": median([sample.bandwidth for sample in samples]),
        "zero_share": median([sample.zero_share for sample in samples]),
        "batch_size": samples[0].batch_size,
        "device": str(runtime.placement.device),
        "weights": describe_weights(runtime.placement),
        "layout": describe_layout(runtime.placement),
        "threads": torch.get_num_threads(),
    }


def _narrower(runtime: Runtime, checkpoint: Checkpoint, samples: list[Sample]) -> list[dict[str, Any]]:
    """Formats that would be faster; none if the weights are packed, or fit into a processor's cache."""
    device, now = runtime.placement.device, samples[0].bytes_read
    if checkpoint.weights or median([s.tokens_per_second / s.limit for s in samples]) > 1:
        return []
    bandwidth = median([sample.bandwidth for sample in samples])
    zeros = median([sample.zero_share for sample in samples])
    cache = now - step_bytes(checkpoint, runtime, runtime.placement.weights, samples[0].zero_share)
    advice = []
    for weights in advised_formats(device):
        read = step_bytes(checkpoint, runtime, weights, zeros) + cache
        if now / read > _MIN_GAIN:
            limit = samples[0].batch_size * bandwidth / read
            advice.append({"weights": weights.name, "bytes_per_step": read, "limit_tokens_per_second": limit})
    return advice


def _more_at_once(stopwatch: Stopwatch, samples: list[Sample], more: int) -> list[dict[str, Any]]:
    """A larger batch, if it was faster."""
    if more == samples[0].batch_size:
        return []
    speed = stopwatch.sample(more).tokens_per_second
    return [{"batch_size": more, "tokens_per_second": speed}] if _is_faster(speed, samples) else []


def _other_threads(stopwatch: Stopwatch, samples: list[Sample]) -> list[dict[str, Any]]:
    """All cores of a CPU, or half of the threads, if that was faster."""
    now = torch.get_num_threads()
    advice = []
    if stopwatch.device.type == "cpu":
        for threads in sorted({available_cores(), max(1, now // 2)} - {now}):
            torch.set_num_threads(threads)
            try:
                speed = stopwatch.sample(samples[0].batch_size).tokens_per_second
            finally:
                torch.set_num_threads(now)
            if _is_faster(speed, samples):
                advice.append({"threads": threads, "tokens_per_second": speed})
    return advice


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_faster(speed: float, samples: list[Sample]) -> bool:
    return speed > _MIN_GAIN * max(sample.tokens_per_second for sample in samples)


def _as_line(report: dict[str, Any]) -> str:
    """``28.3 tokens/s of 34.1 possible (1.14 GB a step at 39 GB/s, 83%); int8 would read 575 MB: …``"""
    speed, limit = report["tokens_per_second"], report["limit_tokens_per_second"]
    step = "token" if report["batch_size"] == 1 else "step"
    read = (
        f"{format_bytes(report['bytes_per_step'])} a {step} "
        f"at {format_bytes(report['bandwidth_bytes_per_second'])}/s"
    )
    if report["share_of_limit"] > 1:
        first = (
            f"{speed:.1f} tokens/s, more than the {limit:.1f} of memory ({read}): a cache holds the weights"
        )
    else:
        first = f"{speed:.1f} tokens/s of {limit:.1f} possible ({read}, {report['share_of_limit']:.0%})"
    return "; ".join([first, *map(_advice_in_words, report["advice"])])


def _advice_in_words(advice: dict[str, Any]) -> str:
    if "weights" in advice:
        return (
            f"--weights {advice['weights']} would read {format_bytes(advice['bytes_per_step'])}: "
            f"up to {advice['limit_tokens_per_second']:.1f} tokens/s"
        )
    gave = f"{advice['tokens_per_second']:.1f} tokens/s"
    if "batch_size" in advice:
        return f"{advice['batch_size']} sequences at once gave {gave} in total"
    return f"OMP_NUM_THREADS={advice['threads']} gave {gave}"
