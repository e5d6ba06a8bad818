"""What an extension was built from: hashes of its sources and flags, and the record that lies beside it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from .toolchain import BINDING_FLAGS, CUDA_LIBRARIES, KERNEL_FLAGS, NVCC_FLAGS, Options, instruction_sets

MODULE = "_C"
RECORD = f"{MODULE}.build.json"


@dataclass(frozen=True)
class Record:
    """What stands beside a built file: what it was built from."""

    file: str
    key: str
    sources: str
    sanitize: str
    cuda: bool
    cuda_reason: str
    instruction_sets: tuple[str, ...]
    compiler: str
    torch: str


def source_files(csrc: Path) -> list[Path]:
    """Every file that is compiled or included, sorted."""
    return sorted(file for file in csrc.rglob("*") if file.suffix in (".cpp", ".cu", ".h", ".cuh", ".inc"))


def sources_hash(csrc: Path) -> str:
    """Of the sources alone: the same for the same files wherever they lie."""
    return content_hash(
        [(file.relative_to(csrc).as_posix(), file.read_bytes()) for file in source_files(csrc)]
    )


def build_key(csrc: Path, options: Options) -> str:
    """Of the sources and all flags: two builds with the same key do the same on the same machine."""
    flags = {
        "machine": (sys.platform, platform.machine()),
        "instruction sets": instruction_sets(),
        "kernels": KERNEL_FLAGS,
        "bindings": BINDING_FLAGS,
        "cuda": (NVCC_FLAGS, options.architectures, CUDA_LIBRARIES) if options.cuda_home else None,
        "sanitizer": options.sanitizer_flags,
    }
    return content_hash([("sources", sources_hash(csrc).encode()), ("flags", json.dumps(flags).encode())])


def read_record(directory: Path) -> Record | None:
    """What was built in ``directory``; None where nothing usable was."""
    try:
        fields = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        record = Record(**{**fields, "instruction_sets": tuple(fields["instruction_sets"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # unfinished, or of another version of this file: as good as not built
    return record if (directory / record.file).is_file() else None


def place(built: Path, record: Record, out: Path) -> None:
    """Put a built file and its record into ``out``."""
    # Without its record a file counts as not built, so nobody trusts what is half replaced. The file is moved
    # into place, not written to, because another process may have mapped the one that it replaces.
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).unlink(missing_ok=True)
    partial = out / f".{record.file}.partial"
    shutil.copyfile(built, partial)
    os.replace(partial, out / record.file)
    (out / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def content_hash(parts: list[tuple[str, bytes]]) -> str:
    """Of names and what stands under them."""
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
