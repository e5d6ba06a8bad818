"""BatchOrigin: what makes the answers of a batch its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_SEED_BITS = 63


@dataclass(frozen=True)
class BatchOrigin:
    """Where answers come from. The same origin and line give the same bytes, whenever and wherever it runs.

    Attributes:
        fingerprint: of the input, the options and the checkpoint, in hexadecimal digits.
        seed: the seeds of lines that have none are derived from it.
        created: the time at which the batch began, in seconds since 1970.
        model_name: what requests name as ``model``.
    """

    fingerprint: str
    seed: int
    created: int
    model_name: str

    def id_of(self, number: int) -> str:
        """The id of the answer to a line, by its number in the file."""
        return f"batch_req_{self.token_of(number)}"

    def token_of(self, number: int) -> str:
        """What ids in the answer to a line have in common."""
        return f"{self.fingerprint}_{number}"

    def seed_of(self, number: int, custom_id: str | None) -> int:
        """The seed of a line that has none: with its custom_id, it goes with the line into other files."""
        name = f"line {number}" if custom_id is None else f"id {custom_id}"
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return int.from_bytes(digest, "big") >> (8 * len(digest) - _SEED_BITS)
