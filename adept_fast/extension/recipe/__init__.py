"""How the extension is built; the same steps for an installation and for a first import.

The kernels know nothing of torch: they are compiled here, the CPU's once per instruction set, nvcc's where it
is found. The bindings use torch's stable ABI and Python's limited API, so that one file serves every torch
from 2.11 and every Python from 3.10; torch's own BuildExtension compiles and links those.

This package imports nothing of adept_fast, itself by relative names, and torch only to build: setup.py needs
it before any of that is there. While working on kernels, this compiles what changed::

    python adept_fast/extension/recipe --out adept_fast

Read from the environment: CXX; ADEPT_FAST_CUDA (0 for none, 1 for an error where nvcc is missing); CUDA_HOME;
TORCH_CUDA_ARCH_LIST; ADEPT_FAST_SANITIZE, such as `address,undefined`.
"""

from .build import build, check_prerequisites, cuda_objects, read_files, say
from .record import MODULE, RECORD, Record, build_key, place, read_record, source_files, sources_hash
from .toolchain import BuildError, Options, find_compiler, find_cuda, gencode_flags, read_options

__all__ = [
    "MODULE",
    "RECORD",
    "BuildError",
    "Options",
    "Record",
    "build",
    "build_key",
    "check_prerequisites",
    "cuda_objects",
    "find_compiler",
    "find_cuda",
    "gencode_flags",
    "place",
    "read_files",
    "read_options",
    "read_record",
    "say",
    "source_files",
    "sources_hash",
]
