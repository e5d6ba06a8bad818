"""The small model that many tests write in one format or another: its config, tensors and tokenizer."""

from __future__ import annotations

import torch
from checkpoints import demo_tokenizer, random_tensors, small_config

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, dtype=torch.float16)
TOKENIZER = demo_tokenizer()
