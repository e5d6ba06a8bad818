"""``adept-fast info``: what a checkpoint is, what it takes, and what would run it here."""

from __future__ import annotations

import dataclasses
import json
import platform
from typing import Any

import click
import torch

from adept_fast import __version__, ops
from adept_fast.checkpoint import Checkpoint, dtype_name, open_checkpoint
from adept_fast.commands.errors import OneLineErrors
from adept_fast.commands.options import checkpoint_option, placement_options
from adept_fast.memory import InsufficientMemoryError, MemoryPlan, format_bytes, plan_memory
from adept_fast.ops.optional import Choice, choices
from adept_fast.placement import Placement, choose_placement
from adept_fast.weights import weights_bytes


@click.command(cls=OneLineErrors)
@checkpoint_option
@placement_options
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(**options: Any) -> None:
    """Describe a checkpoint and plan its memory, without reading its weights."""
    checkpoint = open_checkpoint(options["checkpoint"])
    placement = choose_placement(
        checkpoint, options["device"], options["dtype"], options["cache_dtype"], options["weights"]
    )
    optional = choices(placement.device, placement.cache_dtype, checkpoint.config.head_dim)
    report = {
        "checkpoint": _describe_checkpoint(checkpoint),
        "config": dataclasses.asdict(checkpoint.config),
        "placement": {
            "device": _device_name(placement.device),
            "weights": placement.weights_in_words,
            "pages": placement.pages_in_words,
            "cache": dtype_name(placement.cache_dtype),
        },
        "memory": _describe_memory(checkpoint, placement, options),
        "operators": _describe_operators(placement, optional),
        "optional packages": {name: str(choice) for name, choice in optional.items()},
        "versions": {
            "adept-fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    click.echo(json.dumps(report, ensure_ascii=False) if options["as_json"] else _as_text(report))


def _describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "stored dtype": dtype_name(checkpoint.dtype),
        **({"packed weights": checkpoint.weights} if checkpoint.weights else {}),
        "parameters": config.num_parameters,
        "pieces in the tokenizer": tokenizer.vocab_size,
        "unused vocabulary rows": config.vocab_size - tokenizer.vocab_size,
        "end token": tokenizer.eos_id,
        "BOS token": tokenizer.bos_id,
        "BOS put before text": tokenizer.add_bos,
    }


def _describe_memory(checkpoint: Checkpoint, placement: Placement, options: dict[str, Any]) -> dict[str, Any]:
    try:
        plan = plan_memory(
            checkpoint.config,
            weights_bytes=weights_bytes(checkpoint, placement.dtype, placement.weights, placement.device),
            device=placement.device,
            cache_dtype=placement.cache_dtype,
            max_seq_len=options["max_seq_len"],
            max_batch_size=options["batch_size"],
            unpacking_bytes=placement.unpacking_bytes,
        )
    except InsufficientMemoryError as error:
        return {"does not fit": str(error)}
    return _describe_plan(plan)


def _describe_operators(placement: Placement, optional: dict[str, Choice]) -> dict[str, str]:
    attention = optional["flash-attn"]
    entries = ops.implementations(
        placement.device, placement.unreadable, f"flash-attn {attention.version}" if attention.used else None
    )
    return {entry.operator: f"{entry.kind} ({entry.reason})" for entry in entries}


def _describe_plan(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "weights": format_bytes(plan.weights_bytes),
        "working memory": format_bytes(plan.workspace_bytes),
        "cache a token": format_bytes(plan.cache_bytes_per_token),
        "cache": f"{format_bytes(plan.cache_bytes)} for {plan.max_batch_size} × {plan.max_seq_len} tokens",
        "total": format_bytes(plan.total_bytes),
        "free here": format_bytes(plan.available_bytes),
        "longest context that fits": plan.longest_context,
    }


def _device_name(device: torch.device) -> str:
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
    return f"{value:,}".replace(",", " ") if isinstance(value, int) and value >= 10_000 else str(value)
