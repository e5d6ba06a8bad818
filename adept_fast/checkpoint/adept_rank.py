"""One rank's file of Adept's training code: the arguments, and tensors under Adept's names, still on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adept_fast.checkpoint.base import CheckpointError, StoredTensor, unwrap_names
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.pickle_values import PickledObject, described
from adept_fast.checkpoint.torch_file import MAX_NAME, TorchFile, read_torch_file
from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.tokenizer.tokenizer import Tokenizer

PER_RANK = "weights_per_tensor_parallel_rank_and_layer"
_PER_HEAD = "weights_per_attention_head_and_layer"
_QK_LAYERNORM = {"weights_per_layer": True, PER_RANK: True, "none": False}
_MAX_SIZE = 2**31 - 1
_MAX_NUMBER = sys.float_info.max  # below infinity, and an int up to it has a float

# Arguments of the architecture; if they are present, they must have these values.
_PERSIMMON: dict[str, bool | str] = {
    "sq_relu": True,
    "pos_emb": "rotary",
    "attn_span_type": "global_span",
    "apply_residual_connection_post_layernorm": False,
}

_NAMESPACE = "argparse.Namespace"
_WRAPPERS = ("_orig_mod", "module")  # Adept's own names begin with language_model


@dataclass(frozen=True)
class RankFile:
    """The training arguments of a rank, and its tensors by Adept's names.

    ``left_unread`` are the unknown names in the file, bounded.
    """

    file: FileRange
    args: Arguments
    tensors: dict[str, StoredTensor]
    left_unread: tuple[str, ...]


def read_rank(file: FileRange) -> RankFile:
    """Read the structure of one rank's file; no weight is read, and nothing in the file runs.

    Raises CheckpointError for a file that is no zip of torch.save, whose model or arguments are of another
    kind or of a class that is not known, or that has a tensor which its storage does not hold.
    """
    read = read_torch_file(file)
    contents = read.contents
    if not isinstance(contents, dict):
        raise CheckpointError(f"{file.label}: holds {described(contents)}; expected a dict")
    for virtual in ("model0", "model1"):
        if virtual in contents:
            raise CheckpointError(
                f"{file.label}: holds '{virtual}', a stage of interleaved (virtual) pipeline parallelism; "
                f"expected one 'model' in each file"
            )
    # A Namespace, or an object of an unknown class whose state is a dict of attributes.
    args = contents.get("args")
    attributes = args.attributes if isinstance(args, PickledObject) else None
    if not isinstance(args, PickledObject) or (attributes is None and args.maker.path != _NAMESPACE):
        raise CheckpointError(f"{file.label}: 'args' {_found(contents, 'args')}; expected an {_NAMESPACE}")
    model = contents.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{file.label}: 'model' {_found(contents, 'model')}; expected a dict")
    tensors = unwrap_names(read.tensors(_flatten(file, model)), (), _WRAPPERS)
    return RankFile(file, Arguments(attributes or {}, file.label), tensors, _left_unread(read, args))


def _left_unread(read: TorchFile, args: PickledObject) -> tuple[str, ...]:
    kind = args.maker.path
    if kind == _NAMESPACE:
        return read.left_unread
    others = (name for name in read.left_unread if name != kind)
    return (f"{kind} (args, read as {_NAMESPACE})", *others)


def _found(contents: dict[Any, Any], key: str) -> str:
    return f"is {described(contents[key])}" if key in contents else "is missing"


def _flatten(file: FileRange, model: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, each under its path joined by dots."""
    seen = {id(model)}
    waiting: list[tuple[str, dict[Any, Any]]] = [("", model)]
    while waiting:
        prefix, folder = waiting.pop()
        for key, value in folder.items():
            if not isinstance(key, str) or not key.isprintable() or len(prefix) + len(key) > MAX_NAME:
                raise CheckpointError(
                    f"{file.label}: 'model' has the key {described(key)} under {described(prefix)}; "
                    f"expected printable text, of {MAX_NAME} characters at most with all above it"
                )
            if not isinstance(value, dict):
                yield prefix + key, value
                continue
            # A dict that comes twice may hold itself, or double at every level.
            if id(value) in seen:
                raise CheckpointError(
                    f"{file.label}: 'model' holds one dict twice, the second time as {prefix + key}"
                )
            seen.add(id(value))
            waiting.append((f"{prefix}{key}.", value))


def config_from_args(
    given: Arguments, *, ranks: int, embedding_rows: int, has_head: bool, tokenizer: Tokenizer
) -> PersimmonConfig:
    """The architecture that the arguments describe.

    Args:
        given: the arguments of one rank.
        ranks: the number of tensor-parallel ranks.
        embedding_rows: the vocabulary's size, if the arguments do not have it.
        has_head: whether the checkpoint has an output matrix of its own.
        tokenizer: has the ids of BOS and end of text.

    Raises CheckpointError naming the argument that is missing, of another type, or of another architecture,
    ConfigError if the arguments contradict each other.
    """
    for name, expected in _PERSIMMON.items():
        given.require(name, expected)
    given.require_parallel("tensor_model_parallel_size", ranks, f"{ranks} mp_rank_* directories are there")
    hidden, heads = given.size("hidden_size"), given.size("num_attention_heads")
    if given.has("kv_channels") and given.size("kv_channels") * heads != hidden:
        raise given.error("kv_channels", f"hidden_size / num_attention_heads = {hidden} / {heads}")
    try:
        return PersimmonConfig(
            vocab_size=given.size("padded_vocab_size") if given.has("padded_vocab_size") else embedding_rows,
            hidden_size=hidden,
            intermediate_size=given.size("ffn_hidden_size") if given.has("ffn_hidden_size") else 4 * hidden,
            num_hidden_layers=given.size("num_layers"),
            num_attention_heads=heads,
            max_position_embeddings=given.size("max_position_embeddings"),
            layer_norm_eps=given.number("layernorm_epsilon"),
            rope_theta=given.number("rotary_emb_base"),
            partial_rotary_factor=given.number("rotary_pct"),
            qk_layernorm=given.qk_layernorm(),
            tie_word_embeddings=given.tied(has_head),
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
        )
    except ConfigError as error:
        raise ConfigError(f"{given.source}: args: {error}") from error


class Arguments:
    """Arguments read with checks. An argument that is None was not given, as in Adept's own code."""

    def __init__(self, args: Mapping[Any, Any], source: str) -> None:
        self._values = args
        self.source = source

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str) -> object:
        return self._values.get(name)

    def error(self, name: str, allowed: str) -> CheckpointError:
        found = f"is {described(self._values[name])}" if name in self._values else "is missing"
        return CheckpointError(f"{self.source}: args.{name} {found}; expected {allowed}")

    def require(self, name: str, expected: bool | str) -> None:
        """Raises CheckpointError if the argument is present and has another value."""
        found = self._values.get(name, expected)
        if type(found) is not type(expected) or found != expected:
            raise self.error(name, repr(expected))

    def require_parallel(self, name: str, expected: int, why: str) -> None:
        if self.has(name) and self.size(name) != expected:
            raise self.error(name, f"{expected}, as {why}")

    def size(self, name: str) -> int:
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZE:
            raise self.error(name, f"an integer from 1 to {_MAX_SIZE}")
        return value

    def number(self, name: str) -> float:
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _MAX_NUMBER:
            raise self.error(name, "a positive finite number")
        return float(value)

    def qk_layernorm(self) -> bool:
        mode = self._values.get("qk_layernorm")
        if mode == _PER_HEAD:
            raise self.error("qk_layernorm", "one q/k LayerNorm a layer (one for each head is not read)")
        if not isinstance(mode, str) or mode not in _QK_LAYERNORM:
            raise self.error("qk_layernorm", " or ".join(repr(known) for known in _QK_LAYERNORM))
        return _QK_LAYERNORM[mode]

    def tied(self, has_head: bool) -> bool:
        """Whether the embedding is the output matrix too; only an untied model saves a second one."""
        if not self.has("untie_embeddings"):
            return not has_head
        untied = self._values["untie_embeddings"]
        if not isinstance(untied, bool):
            raise self.error("untie_embeddings", "true or false")
        if has_head and not untied:
            raise self.error("untie_embeddings", "true, as word_embeddings_for_head is there")
        return not untied
