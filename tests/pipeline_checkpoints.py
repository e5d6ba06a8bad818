"""Adept's checkpoints of several pipeline stages, as training leaves them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from checkpoints import adept_args, adept_model, demo_tokenizer, random_tensors, saved, small_config
from torch import Tensor

from adept_fast.config import PersimmonConfig

CONFIG = small_config(num_hidden_layers=4)
TENSORS = random_tensors(CONFIG, dtype=torch.float16)
TOKENIZER = demo_tokenizer()
HOME = "iter_0001251"


def stage_path(rank: int, stage: int, name: str = "model_optim_rng.pt") -> str:
    return f"{HOME}/mp_rank_{rank:02d}_{stage:03d}/{name}"


def stage_of(tensors: Mapping[str, Tensor], stage: int, stages: int, layers: int) -> dict[str, Tensor]:
    """The tensors that a stage has, its layers numbered from 0 as Megatron numbers them."""
    share = layers // stages
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if match and int(match[1]) // share == stage:
            found[f"model.layers.{int(match[1]) % share}.{match[2]}"] = tensor
        elif not match and stage == (0 if "embed_tokens" in name else stages - 1):
            found[name] = tensor
    return found


def pipeline_files(
    stages: int,
    ranks: int = 1,
    config: PersimmonConfig = CONFIG,
    tensors: Mapping[str, Tensor] = TENSORS,
    **args: Any,
) -> dict[str, bytes]:
    given = adept_args(config, ranks, **({"pipeline_model_parallel_size": stages} | args))
    files = {"adept_vocab.model": TOKENIZER}
    for stage in range(stages):
        share = stage_of(tensors, stage, stages, config.num_hidden_layers)
        for rank in range(ranks):
            contents = {"model": adept_model(share, rank, ranks), "args": given, "iteration": 1251}
            files[stage_path(rank, stage)] = saved(contents)
    return files
