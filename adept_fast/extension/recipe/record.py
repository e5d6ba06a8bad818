"""The record beside a built extension, with hashes of its sources and flags."""

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
    """The sources, flags and tools of a built file."""

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
    """A hash of the sources, independent of their directory."""
    return content_hash(
        [(file.relative_to(csrc).as_posix(), file.read_bytes()) for file in source_files(csrc)]
    )


def build_key(csrc: Path, options: Options) -> str:
    """A hash of the sources and all flags: builds with the same key are equal on the same machine."""
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
    """The record of the build in ``directory``; None if there is no usable one."""
    try:
        fields = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        record = Record(**{**fields, "instruction_sets": tuple(fields["instruction_sets"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # unfinished, or from another version of this module
    return record if (directory / record.file).is_file() else None


def install(built: Path, record: Record, out: Path) -> None:
    """Put a built file and its record into ``out``."""
    # A file without its record counts as not built, so a half-replaced build is not used. The new file is
    # moved over the old one, because another process may have mapped that.
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).unlink(missing_ok=True)
    partial = out / f".{record.file}.partial"
    shutil.copyfile(built, partial)
    os.replace(partial, out / record.file)
    (out / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def content_hash(parts: list[tuple[str, bytes]]) -> str:
    """A hash of named contents."""
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
