"""Small models of transformers' class for the tests of ``accelerate``, and what they generate."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from checkpoints import random_tensors, small_config
from torch import Tensor
from transformers import PersimmonConfig as TheirConfig
from transformers import PersimmonForCausalLM

IDS = torch.tensor([[5, 9, 33, 8]])
HANDED_OVER = "transformers' own generate runs, as the runtime does not do "


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PersimmonForCausalLM:
    config = small_config(**{"vocab_size": 97} | changes)
    model = PersimmonForCausalLM(TheirConfig(**config.to_dict())).eval()
    model.load_state_dict(random_tensors(config, seed), strict=not config.tie_word_embeddings)
    return model.to(dtype)


def long_model(seed: int = 0, **changes: Any) -> PersimmonForCausalLM:
    """One that was made for 512 positions."""
    return small_model(seed, **{"max_position_embeddings": 512} | changes)


def batch(rows: int, columns: int, seed: int = 0, vocab_size: int = 97) -> Tensor:
    return torch.randint(5, vocab_size, (rows, columns), generator=torch.Generator().manual_seed(seed))


def left_padded(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    columns = max(lengths)
    mask = torch.tensor([[0] * (columns - length) + [1] * length for length in lengths])
    return {"input_ids": batch(len(lengths), columns, seed) * mask, "attention_mask": mask}


def text(model: PersimmonForCausalLM, **settings: Any) -> Tensor:
    return model.generate(IDS, **{"max_new_tokens": 12, "eos_token_id": None} | settings)


def logits(model: PersimmonForCausalLM) -> Tensor:
    out = text(model, return_dict_in_generate=True, output_logits=True)
    return torch.cat(out.logits)


def handed_over(recorded: list[warnings.WarningMessage]) -> list[str]:
    messages = [str(entry.message) for entry in recorded]
    return [message.removeprefix(HANDED_OVER) for message in messages if message.startswith(HANDED_OVER)]


def assert_served(model: PersimmonForCausalLM, reference: PersimmonForCausalLM) -> None:
    """The runtime gives what a model of the same weights gives by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", HANDED_OVER)
        torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=0)
