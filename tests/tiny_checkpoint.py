"""A smaller model, of one layer, for tests that damage its files: its config, tensors and tokenizer."""

from __future__ import annotations

import torch
from checkpoints import demo_tokenizer, random_tensors, small_config

CONFIG = small_config(vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
TENSORS = random_tensors(CONFIG, dtype=torch.float16)
TOKENIZER = demo_tokenizer()
