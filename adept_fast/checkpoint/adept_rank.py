"""One rank's file of Adept's training code: the arguments, and tensors under Adept's names, still on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adept_fast.checkpoint.base import CheckpointError, StoredTensor, unwrap_names
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.pickle_values import PickledObject, described
from adept_fast.checkpoint.torch_file import MAX_NAME, TorchFile, read_torch_file

_NAMESPACE = "argparse.Namespace"
_WRAPPERS = ("_orig_mod", "module")  # Adept's own names begin with language_model


@dataclass(frozen=True)
class RankFile:
    """The training arguments of a rank by their names, and its tensors by Adept's.

    ``left_unread`` are the unknown names in the file, bounded.
    """

    file: FileRange
    args: dict[Any, Any]
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
    return RankFile(file, attributes or {}, tensors, _left_unread(read, args))


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
