"""The model card of a directory that is written: its model, how to run it, and its licence."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from adept_fast.checkpoint.base import Checkpoint, dtype_name
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.system.regular_file import is_there

_CARD_FILE = "README.md"
_MAX_BYTES = 100_000  # of a source's card that are read
_LICENSE = re.compile(r"^license:[ \t]*['\"]?([A-Za-z0-9][A-Za-z0-9.+-]{0,99})['\"]?[ \t]*\r?$", re.MULTILINE)


def known_license(source: Path) -> str | None:
    """The licence that the header of a checkpoint's own card names, if it has one.

    Raises CheckpointError if the card is not a regular file.
    """
    if not is_there(source / _CARD_FILE):
        return None
    card = FileRange.whole(source / _CARD_FILE)
    text = card.read_at(0, min(card.size, _MAX_BYTES)).decode("utf-8", errors="replace")
    header = re.match(r"---\r?\n(.*?)^---\r?$", text, flags=re.MULTILINE | re.DOTALL)
    named = _LICENSE.search(header[1]) if header else None
    return named[1] if named else None


def model_card(checkpoint: Checkpoint, name: str, dtype: torch.dtype, license_name: str | None) -> str:
    """The contents of a ``README.md``."""
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    license_line = f"license: {license_name}\n" if license_name else ""
    chat = (
        "The chat template beside this file writes conversations."
        if tokenizer.chat_format.writes_special_tokens
        else "Chat models of this family are tuned on `human: …`, a blank line, `adept: …`, which the chat "
        "template in\n`tokenizer_config.json` writes; there is no system role."
    )
    ask = (
        'messages = [{"role": "user", "content": "How are you?"}]\n'
        "prompt = runtime.tokenizer.apply_chat_template(messages, add_generation_prompt=True)\n"
        "print(runtime.generate([prompt])[0].text)"
        if tokenizer.chat_format.writes_special_tokens
        else r'print(runtime.generate("human: How are you?\n\nadept:", stop="\n\nhuman:").text)'
    )
    bos = "puts the token that begins a text first" if tokenizer.add_bos else "puts no token first"
    licence = (
        f"`{license_name}`, with what lies beside this file."
        if license_name
        else "That of the checkpoint from which this one was written, which did not name it. (Adept released "
        "Persimmon-8B under Apache-2.0; what was tuned from it may be under other terms.)"
    )
    shape = (
        f"{_millions(config.num_parameters)} parameters in {dtype_name(dtype)}, "
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, "
        f"a context of {config.max_position_embeddings} tokens, {tokenizer.vocab_size} pieces"
    )
    return f"""---
{license_line}library_name: transformers
pipeline_tag: text-generation
tags:
- persimmon
---

# {name}

A language model of the Persimmon family, a decoder with squared-ReLU MLPs:
{shape}.
It was written by adept-fast; transformers loads it too.

## Run it

```python
from adept_fast import Runtime

runtime = Runtime.load("{name}")  # the path of this directory
{ask}
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
messages = [{{"role": "user", "content": "How are you?"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))
```

{chat} The tokenizer {bos}.
`generation_config.json` is greedy.

## Licence

{licence}
"""


def _millions(count: int) -> str:
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
