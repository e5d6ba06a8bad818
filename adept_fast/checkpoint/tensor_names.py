"""Names that a model's wrappers put before its own: torch.compile, data parallelism, models of images too."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from adept_fast.checkpoint.base import CheckpointError, StoredTensor

# No tensor of a Persimmon model has one of these among the parts of its name in transformers.
WRAPPERS = frozenset(("_orig_mod", "module", "language_model"))


def unwrap_names(
    tensors: Mapping[str, StoredTensor], required: Iterable[str], wrappers: Collection[str] = WRAPPERS
) -> dict[str, StoredTensor]:
    """The tensors under names without wrappers, which may stand anywhere in a name and in any order.

    Each StoredTensor keeps its name as it is stored. ``required`` are names that have to be there.

    Raises CheckpointError, with a name as it is stored, where wrappers were removed and a required name is
    still missing, or two names become one.
    """
    unwrapped: dict[str, StoredTensor] = {}
    wrapped: StoredTensor | None = None
    for stored, tensor in tensors.items():
        name = unwrapped_name(stored, wrappers)
        if name in unwrapped:
            raise CheckpointError(
                f"{tensor.source}: tensor {stored} and tensor {unwrapped[name].name} both mean {name}"
            )
        if name != stored and wrapped is None:
            wrapped = tensor
        unwrapped[name] = tensor
    missing = next((name for name in required if name not in unwrapped), None)
    if wrapped is not None and missing is not None:
        raise CheckpointError(
            f"{wrapped.source}: tensor {wrapped.name} would be {unwrapped_name(wrapped.name, wrappers)} "
            f"without the names of wrappers, but tensor {missing} is missing then"
        )
    return unwrapped


def unwrapped_name(name: str, wrappers: Collection[str] = WRAPPERS) -> str:
    """The name without those of its parts that are wrappers."""
    return ".".join(part for part in name.split(".") if part not in wrappers)
