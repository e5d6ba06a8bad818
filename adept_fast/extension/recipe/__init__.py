"""Builds the extension, with the same steps for an installation and for a first import.

The kernels do not use torch. They are compiled here: those for a CPU once for each instruction set, those for
CUDA if there is nvcc. The bindings use torch's stable ABI and Python's limited API, so one file works with
every torch from 2.11 and every Python from 3.10; torch's BuildExtension compiles and links them.

A build is a process of its own, as setuptools changes the one that it runs in. Torch is imported only to
build. While working on kernels, this compiles the changed sources::

    python -m adept_fast.extension.recipe --out adept_fast

Read from the environment: CXX; ADEPT_FAST_CUDA (0 for none, 1 for an error if nvcc is missing); CUDA_HOME;
TORCH_CUDA_ARCH_LIST; ADEPT_FAST_SANITIZE, such as `address,undefined`.
"""

from .build import build, check_prerequisites, cuda_objects, read_files, say
from .record import MODULE, RECORD, Record, build_key, install, read_record, source_files, sources_hash
from .toolchain import BuildError, find_cuda, gencode_flags, read_options

__all__ = [
    "MODULE",
    "RECORD",
    "BuildError",
    "Record",
    "build",
    "build_key",
    "check_prerequisites",
    "cuda_objects",
    "find_cuda",
    "gencode_flags",
    "install",
    "read_files",
    "read_options",
    "read_record",
    "say",
    "source_files",
    "sources_hash",
]
