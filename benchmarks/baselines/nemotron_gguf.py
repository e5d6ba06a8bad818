"""Writes a GGUF file that llama.cpp reads, of the weights of a Persimmon checkpoint.

llama.cpp no longer takes Persimmon. The nearest that it takes is Nemotron: LayerNorms with bias, an MLP of
two matrices with relu² between them, partial rotary embedding, biases on every projection. Every matrix has
Persimmon's shape. What differs:

* Nemotron has no LayerNorm of queries and keys, so llama.cpp does that much less work.
* query_key_value is laid out (q, k, v) × head, not head × (q, k, v); the rows are put in that order here.
* The tokenizer is that of ``tokenizer.json``, whose unigram model llama.cpp knows as T5's. Without that file
  there is none, and only ids can be handed over.

Every matrix is in the one named format, the embedding and lm_head too, so that bits are equal; llama.cpp's
own tool would keep lm_head in Q6_K beside Q4_0. Vectors are F32, as llama.cpp wants them.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from safetensors import safe_open
from tqdm import tqdm

FORMATS = ("BF16", "F16", "Q8_0", "Q4_0")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.query_key_value": "attn_qkv",
    "self_attn.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
}


def gguf_of(checkpoint: Path, format: str) -> Path:
    """The file of a format, beside the checkpoint's others; it is written unless it exists."""
    path = checkpoint / f"nemotron-tokenizer-{format}.gguf"
    if not path.exists():
        write_gguf(checkpoint, path, format)
    return path


def write_gguf(checkpoint: Path, path: Path, format: str) -> None:
    """Write ``path``, one tensor at a time; it appears when it is complete."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    unfinished = path.with_name(path.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, "nemotron")
    _add_settings(writer, config)
    _add_tokenizer(writer, config, checkpoint / "tokenizer.json")
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        names = list(gguf_names(file.keys()))
        for name, gguf_name in names:
            shape = tuple(file.get_slice(name).get_shape())
            kind = tensor_type(shape, format)
            writer.add_tensor_info(
                gguf_name, _stored_shape(shape, kind), _stored_dtype(kind), tensor_bytes(shape, format), kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _ in tqdm(names, desc=f"writing {path.name}", disable=None):
            values = to_nemotron(name, file.get_tensor(name).float(), config["num_attention_heads"])
            writer.write_tensor_data(quantize(values.numpy(), tensor_type(values.shape, format)))
    writer.close()
    unfinished.rename(path)


def gguf_names(names: Any) -> Iterator[tuple[str, str]]:
    """Pairs of transformers' and GGUF's name, of the tensors that Nemotron has too."""
    for name in names:
        stem, _, kind = name.rpartition(".")
        if stem in _NAMES:
            yield name, f"{_NAMES[stem]}.{kind}"
        elif ".q_layernorm" not in stem and ".k_layernorm" not in stem:
            layer, _, part = stem.removeprefix("model.layers.").partition(".")
            yield name, f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"


def to_nemotron(name: str, values: torch.Tensor, heads: int) -> torch.Tensor:
    """query_key_value: from [head, (q, k, v), head_dim] rows to [(q, k, v), head, head_dim]."""
    if ".query_key_value." not in name:
        return values
    split = values.reshape(heads, 3, values.shape[0] // (3 * heads), -1)
    return split.transpose(0, 1).reshape(values.shape).contiguous()


def tensor_type(shape: tuple[int, ...], format: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[format if len(shape) > 1 else "F32"]


def tensor_bytes(shape: tuple[int, ...], format: str) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type(shape, format)]
    return int(math.prod(shape) // block * block_bytes)


def _stored_shape(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> tuple[int, ...]:
    """The shape of the array that ``quantize`` returns, which the writer expects."""
    if _stored_dtype(kind) == np.uint8:
        return tuple(gguf.quant_shape_to_byte_shape(shape, kind))
    return shape


def _stored_dtype(kind: gguf.GGMLQuantizationType) -> np.dtype:
    dtypes = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    return np.dtype(dtypes.get(kind, np.uint8))


def _add_settings(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    rotary = config["rope_parameters"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_rope_dimension_count(int(config["hidden_size"] // heads * rotary["partial_rotary_factor"]))
    writer.add_rope_freq_base(rotary["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, config: dict[str, Any], path: Path) -> None:
    """That of the unigram model in ``path``, if there is such a file; ids can be handed over without it."""
    if not path.is_file():
        writer.add_tokenizer_model("none")
        return
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    if model["type"] != "Unigram":
        raise ValueError(f"{path.name} has a {model['type']} model; expected Unigram")
    settings = json.loads(path.with_name("tokenizer_config.json").read_text(encoding="utf-8"))
    pieces = [piece for piece, _ in model["vocab"]]
    special = {model["unk_id"]: gguf.TokenType.UNKNOWN, config["eos_token_id"]: gguf.TokenType.CONTROL}
    writer.add_tokenizer_model("t5")
    writer.add_token_list(pieces)
    writer.add_token_scores([score for _, score in model["vocab"]])
    writer.add_token_types(
        [
            special.get(at, gguf.TokenType.BYTE if _BYTE.fullmatch(piece) else gguf.TokenType.NORMAL)
            for at, piece in enumerate(pieces)
        ]
    )
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_unk_token_id(model["unk_id"])
    writer.add_add_bos_token(settings["add_bos_token"])
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(False)


if __name__ == "__main__":  # in the environment of llama.cpp: prints the path of the file
    print(gguf_of(Path(sys.argv[1]), sys.argv[2]))
