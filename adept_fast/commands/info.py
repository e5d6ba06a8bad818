"""``adept-fast info``: a checkpoint, the memory it needs, and the operators that would run it here."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import click
import torch

from adept_fast import __version__, ops
from adept_fast.checkpoint import Checkpoint, Location, dtype_name, locate, open_checkpoint
from adept_fast.checkpoint.published import release_checksum
from adept_fast.commands.output import print_json, print_text
from adept_fast.commands.placement_words import (
    describe_embedding,
    describe_layout,
    describe_pages,
    describe_weights,
)
from adept_fast.engine.graphs import launch_description
from adept_fast.engine.loading import request_memory
from adept_fast.engine.placement import Placement
from adept_fast.engine.ranks.launch import check_ranks
from adept_fast.engine.ranks.layout import RankLayout, choose_layout
from adept_fast.engine.ranks.loading import plan_rank
from adept_fast.memory.advice import InsufficientMemoryError, plan_memory
from adept_fast.memory.plan import MemoryPlan, MemoryRequest
from adept_fast.memory.workspace import allowance_reason
from adept_fast.ops import cuda, step_kernels
from adept_fast.ops.optional import choices
from adept_fast.quantization.layouts import TILES
from adept_fast.system.byte_counts import format_bytes, format_together
from adept_fast.system.short_text import printable


def run(options: dict[str, Any]) -> None:
    # First: the rest fails for a damaged tar, and would download a hub id, which is no tar.
    verified = {"release": _verify(options["checkpoint"])} if options["verify"] else {}
    if verified and not options["as_json"]:
        print_text(_as_text(verified))
    try:
        report = _report(locate(options["checkpoint"], options["revision"]), options)
    except (ValueError, OSError):
        if verified and options["as_json"]:
            print_json(verified)
        raise
    if options["as_json"]:
        print_json(verified | report)
    else:
        print_text(_as_text(report))


def _verify(path: str) -> dict[str, Any]:
    found = release_checksum(Path(os.path.expanduser(path)))
    release = found.release
    known = f"{release.file_name} ({release.license})" if release else "not one of the published releases"
    return {"MD5": found.md5, "published": release is not None, "release": known}


def _report(location: Location, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    checkpoint = open_checkpoint(location.path, mmap=options["mmap"])
    is_absent = options["gpu_memory"] is not None
    part, placement, request, ranks = _first_rank(checkpoint, options)
    try:
        plan, refusal = plan_memory(request), ""
    except InsufficientMemoryError as error:
        plan, refusal = None, str(error)
    return {
        "checkpoint": _describe_checkpoint(checkpoint, location),
        "config": dataclasses.asdict(checkpoint.config),
        "placement": {
            "device": _device_name(placement.device, is_absent),
            "weights": describe_weights(placement),
            "layout": describe_layout(placement),
            "pages": describe_pages(request),
            "cache": dtype_name(placement.cache_dtype),
            **({} if ranks is None else {"ranks": str(ranks)}),
            "decode steps": launch_description(placement.device, _graphs(options, ranks)),
            **_describe_layers(placement, checkpoint),
            **({} if is_absent else _describe_kernels(placement.device)),
        },
        "memory": {
            "embedding": describe_embedding(request, plan),
            "vocabulary": _vocabulary(request),
            **({} if ranks is None else _describe_part(part)),
            **({"does not fit": refusal} if plan is None else _describe_plan(plan)),
        },
        **({} if is_absent else _describe_software(checkpoint, placement)),
        "versions": {
            "adept-fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _describe_layers(placement: Placement, checkpoint: Checkpoint) -> dict[str, str]:
    if placement.layout != TILES:
        return {}
    return {"layers of a step": step_kernels.description(checkpoint.config.head_dim)}


def _describe_checkpoint(checkpoint: Checkpoint, location: Location) -> dict[str, Any]:
    tokenizer, config, hub = checkpoint.tokenizer, checkpoint.config, location.hub
    return {
        **({"hub": hub.hub_id, "revision": hub.revision, "commit": hub.commit} if hub else {}),
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "stored dtype": dtype_name(checkpoint.dtype),
        **({"packed weights": checkpoint.weights.name} if checkpoint.weights else {}),
        "weight files": "memory-mapped" if checkpoint.mmap else "copied",
        **({"left unread": list(checkpoint.left_unread)} if checkpoint.left_unread else {}),
        "parameters": config.num_parameters,
        "pieces in the tokenizer": tokenizer.vocab_size,
        "unused vocabulary rows": config.vocab_size - tokenizer.vocab_size,
        "end tokens": ", ".join(f"{at} {tokenizer.piece(at)!r}" for at in tokenizer.eos_ids) or "none",
        "BOS token": tokenizer.bos_id,
        "BOS put before text": tokenizer.add_bos,
        "chat format": str(tokenizer.chat_format),
    }


def _first_rank(
    checkpoint: Checkpoint, options: dict[str, Any]
) -> tuple[Checkpoint, Placement, MemoryRequest, RankLayout | None]:
    """What the first rank loads, where, and where the others are; None if there is one."""
    if options["gpu_memory"] is not None and options["device"] not in ("auto", "cuda"):
        raise click.UsageError(f"--gpu-memory plans for a GPU, and --device is {options['device']}")
    asked = ("device", "dtype", "cache_dtype", "weights", "weight_layout", "embedding")
    sizes = ("max_seq_len", "gpu_memory")
    settings = {name: options[name] for name in (*asked, *sizes)} | {"max_batch_size": options["batch_size"]}
    count = check_ranks(options["tensor_parallel"])
    if count == 1:
        return checkpoint, *request_memory(checkpoint, **settings), None
    is_here, device = options["gpu_memory"] is None, settings.pop("device")
    layout = choose_layout(checkpoint.config, count, device if is_here else None, options["cuda_graphs"])
    own = plan_rank(checkpoint, layout, 0, **settings)
    return own.checkpoint, own.placement, own.request, layout


def _graphs(options: dict[str, Any], ranks: RankLayout | None) -> str:
    return str(options["cuda_graphs"] if ranks is None else ranks.cuda_graphs(options["cuda_graphs"]))


def _describe_part(part: Checkpoint) -> dict[str, str]:
    """What the first rank has; the others have as much."""
    config, whole = part.config, part.config.whole
    parts = {
        "heads": (config.num_attention_heads, whole.num_attention_heads),
        "neurons": (config.intermediate_size, whole.intermediate_size),
        "rows of the vocabulary": (config.vocab_size, whole.vocab_size),
    }
    shown = ", ".join(f"{own} of {all_} {name}" for name, (own, all_) in parts.items())
    return {"of each rank": shown}


def _describe_software(checkpoint: Checkpoint, placement: Placement) -> dict[str, dict[str, str]]:
    optional = choices(placement.device, placement.cache_dtype, checkpoint.config.head_dim)
    return {
        "operators": _describe_operators(checkpoint, placement),
        "optional packages": {name: str(choice) for name, choice in optional.items()},
    }


def _describe_operators(checkpoint: Checkpoint, placement: Placement) -> dict[str, str]:
    """The implementation of each operator for one token, and for a long prompt if that differs."""
    decode, prefill = (
        ops.explain(
            placement.device,
            tokens,
            dtype=placement.dtype,
            weights=placement.weights,
            layout=placement.layout,
            hidden_size=checkpoint.config.hidden_size,
            cache_dtype=placement.cache_dtype,
            head_dim=checkpoint.config.head_dim,
        )
        for tokens in (1, 512)
    )
    return {
        one.operator: f"{one.implementation} ({one.reason})"
        + ("" if one.implementation == many.implementation else f"; {many.implementation} ({many.reason})")
        for one, many in zip(decode, prefill, strict=True)
    }


def _describe_kernels(device: torch.device) -> dict[str, str]:
    """Whether the CUDA kernels run on this GPU, found by running one; empty for other devices."""
    if device.type != "cuda":
        return {}
    fault = cuda.fault(device)
    return {"CUDA kernels": "run" if fault is None else f"do not run: {fault}"}


def _vocabulary(request: MemoryRequest) -> str:
    rows, held = request.config.vocab_size, request.vocab_rows
    return f"all {rows} rows" if held == rows else f"{held} of {rows} rows, which the tokenizer uses"


def _describe_plan(plan: MemoryPlan) -> dict[str, Any]:
    total, free = format_together(plan.total_bytes, plan.available_bytes)
    return {
        "weights": format_bytes(plan.weights_bytes),
        **({"pinned on the host": format_bytes(plan.pinned_bytes)} if plan.pinned_bytes else {}),
        "working memory": _working_memory(plan),
        **({"decode graphs": f"at most {format_bytes(plan.graphs_bytes)}"} if plan.graphs_bytes else {}),
        "cache a token": format_bytes(plan.cache_bytes_per_token),
        "cache": f"{format_bytes(plan.cache_bytes)} for {plan.max_batch_size} × {plan.max_seq_len} tokens",
        "total": total,
        "free here": free,
        "longest context that fits": plan.longest_context,
    }


def _working_memory(plan: MemoryPlan) -> str:
    reason = allowance_reason() if plan.request.device.type == "cuda" else None
    allowance = f" (an allowance for the CUDA kernels, as {reason})" if reason else ""
    return format_bytes(plan.workspace_bytes) + allowance


def _device_name(device: torch.device, is_absent: bool) -> str:
    if is_absent:
        return f"{device} (not here: planned as if its kernels run and the host has room for pinned memory)"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def _as_text(report: dict[str, dict[str, Any]]) -> str:
    lines = []
    for section, entries in report.items():
        lines.append(section)
        width = max(len(name) for name in entries)
        lines += [f"  {name:<{width}}  {_shown(value)}" for name, value in entries.items()]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(value)
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}".replace(",", " ")
    return printable(str(value))
