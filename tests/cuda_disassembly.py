"""What nvcc made of the kernels: registers, memory and the instructions of each loop, by cuobjdump.

``python tests/cuda_disassembly.py sm_90`` prints it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from adept_fast.extension import recipe

# ``/*0090*/  @P0 EXIT ;``, the encoding in hexadecimal digits behind it
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_GUARD = re.compile(r"^@!?U?P\w+\s+")
_TARGET = re.compile(r"\b(0x[0-9a-f]+)\b")


# In kernels whose weights lie in tiles and strips (csrc/cuda/tile_layout.h)
_ROWS_OF_SLOT = 4  # whose copies are one loop, a round for each row that has no neighbour in the slot
_BITS = {1: 16, 2: 16, 3: 8, 4: 4, 5: 8, 6: 4}  # of a weight, by the Format's number
_WEIGHTS_OF_HMMA, _WEIGHTS_OF_FFMA = 256, 32  # of a warp's instruction, for one tile of tokens, or one token


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # without its guard
    guarded: bool

    @property
    def opcode(self) -> str:
        return self.text.split()[0]

    @property
    def is_global_load(self) -> bool:
        """Into registers, or past them into shared memory (cp.async)."""
        return self.opcode.split(".")[0] in ("LDG", "LDGSTS")

    @property
    def bytes_loaded(self) -> int:
        """By one thread."""
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((widths[part] for part in self.opcode.split(".") if part in widths), 4)

    @property
    def is_wide_load(self) -> bool:
        return self.loads(16)

    def loads(self, bytes_of_thread: int) -> bool:
        """Whether it loads so many bytes from global memory."""
        return self.is_global_load and self.bytes_loaded == bytes_of_thread

    @property
    def is_local(self) -> bool:
        """Touches local memory: a spilled register, or an array that has no place in registers."""
        return self.opcode.split(".")[0] in ("LDL", "STL")


@dataclass(frozen=True)
class Kernel:
    """A kernel compiled for one architecture."""

    name: str  # demangled, without namespaces and parameters: ``matvec<(Format)1, 2>``
    architecture: str  # ``sm_90``
    registers: int  # of a thread
    stack_bytes: int
    shared_bytes: int  # of static shared memory
    local_bytes: int
    instructions: tuple[Instruction, ...]

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """By the indices of their instructions."""
        return find_loops(self.instructions)

    def has(self, opcode: str) -> bool:
        """``UBLKCP`` or, with what follows it, ``SYNCS.PHASECHK``."""
        return any(has_opcode(instruction, opcode) for instruction in self.instructions)

    def innermost_loops(self, *opcodes: str) -> list[frozenset[int]]:
        """The loops with all of these opcodes, but none around one; by their instructions' indices."""
        codes = self.instructions
        loops = [
            loop
            for loop in self.loops
            if all(any(has_opcode(codes[at], opcode) for at in loop) for opcode in opcodes)
        ]
        return [loop for loop in loops if not any(other < loop for other in loops)]

    def streaming_loops(self, bytes_of_thread: int = 16) -> list[list[Instruction]]:
        """The instructions of each loop with a global load of that width, not of loops around such a loop."""
        loops = self.loops
        wide = [at for at, one in enumerate(self.instructions) if one.loads(bytes_of_thread)]
        around = [[loop for loop in loops if at in loop] for at in wide]
        smallest = {min(some, key=len) for some in around if some}
        inner = [loop for loop in smallest if not any(other < loop for other in smallest)]
        return [[self.instructions[at] for at in sorted(loop)] for loop in inner]


def has_opcode(instruction: Instruction, opcode: str) -> bool:
    return f"{instruction.opcode}.".startswith(f"{opcode}.")


def find_loops(instructions: tuple[Instruction, ...]) -> list[frozenset[int]]:
    """The natural loops, each by the indices of its instructions; loops that share a head count as one.

    A branch back alone is no loop: the compiler puts code for rare cases at the end, which branches back too.
    """
    following = _following(instructions)
    preceding: dict[int, list[int]] = defaultdict(list)
    for at, nexts in following.items():
        for after in nexts:
            preceding[after].append(at)
    order = _topmost_first(following)
    dominator = _immediate_dominators(order, preceding)
    rank = {at: place for place, at in enumerate(order)}
    loops: dict[int, set[int]] = defaultdict(set)
    for tail, nexts in following.items():
        for head in nexts:
            if rank[head] <= rank[tail] and head in _chain(dominator, tail):
                loops[head] |= _body(head, tail, preceding)
    return [frozenset(body) for body in loops.values() if len(body) > 1]  # one alone is the trap at the end


def _following(instructions: tuple[Instruction, ...]) -> dict[int, list[int]]:
    """Which instructions may come next, for each that can be reached."""
    index = {instruction.address: at for at, instruction in enumerate(instructions)}
    following: dict[int, list[int]] = {}
    waiting = [0] if instructions else []
    while waiting:
        at = waiting.pop()
        if at in following:
            continue
        instruction = instructions[at]
        kind = instruction.opcode.split(".")[0]
        nexts = []
        if kind in ("BRA", "CALL") and (target := _TARGET.search(instruction.text)):
            nexts.append(
                index[int(target[1], 16)]
            )  # what is called is part of the kernel, and returns to no one
        # A branch may have a second condition among its operands: ``BRA P1, 0x240``, ``BRA.DIV UR4, 0x240``.
        always = not instruction.guarded and re.fullmatch(r"BRA(\.U)? 0x[0-9a-f]+", instruction.text)
        ends = kind in ("EXIT", "RET") and not instruction.guarded
        if not always and not ends and at + 1 < len(instructions):
            nexts.append(at + 1)
        following[at] = nexts
        waiting += nexts
    return following


def _topmost_first(following: dict[int, list[int]]) -> list[int]:
    """Each instruction before those that are reached only through it: the reverse of the post-order."""
    finished: list[int] = []
    seen = {0}
    stack = [(0, iter(following[0]))] if following else []
    while stack:
        at, nexts = stack[-1]
        after = next((one for one in nexts if one not in seen), None)
        if after is None:
            finished.append(at)
            stack.pop()
        else:
            seen.add(after)
            stack.append((after, iter(following[after])))
    return finished[::-1]


def _immediate_dominators(order: list[int], preceding: dict[int, list[int]]) -> dict[int, int]:
    """The last instruction that every way to each passes (Cooper, Harvey and Kennedy, 2001)."""
    rank = {at: place for place, at in enumerate(order)}
    dominator = {at: at for at in order[:1]}
    changed = True
    while changed:
        changed = False
        for at in order[1:]:
            common, *others = [before for before in preceding[at] if before in dominator]
            for other in others:
                while common != other:
                    if rank[common] > rank[other]:
                        common = dominator[common]
                    else:
                        other = dominator[other]
            changed |= dominator.get(at) != common
            dominator[at] = common
    return dominator


def _chain(dominator: dict[int, int], at: int) -> Iterator[int]:
    """``at`` and all that dominate it."""
    yield at
    while dominator[at] != at:
        at = dominator[at]
        yield at


def _body(head: int, tail: int, preceding: dict[int, list[int]]) -> set[int]:
    body, waiting = {head}, [tail]
    while waiting:
        at = waiting.pop()
        if at not in body:
            body.add(at)
            waiting += preceding[at]
    return body


def _format_of(kernel: Kernel) -> int:
    return int(re.search(r"\(Format\)(\d)", kernel.name)[1])  # type: ignore[index]


def product_loops(kernel: Kernel) -> list[frozenset[int]]:
    """A chunk of weights on tensor cores, with the wait for its stage."""
    return kernel.innermost_loops("HMMA")


def down_loops(kernel: Kernel) -> list[frozenset[int]]:
    """A slot's rows and the copies of the next ones."""
    return kernel.innermost_loops("FFMA", _copies_of(kernel))


def _copies_of(kernel: Kernel) -> str:
    return "UBLKCP" if kernel.architecture == "sm_90" else "LDGSTS"


def _count(kernel: Kernel, loop: frozenset[int], opcode: str) -> int:
    return sum(has_opcode(kernel.instructions[at], opcode) for at in loop)


def product_instructions(kernel: Kernel) -> float:
    """For 1 kB of weights, in a kernel for one tile of tokens; without what other warps' stages take."""
    (loop,) = product_loops(kernel)
    weights = _WEIGHTS_OF_HMMA * _count(kernel, loop, "HMMA")
    return len(loop) * 8 * 1024 / (weights * _BITS[_format_of(kernel)])


def down_instructions(kernel: Kernel) -> float:
    """For 1 kB of weights, in a kernel for one token, of slots that are full of rows without neighbours."""
    (loop,) = down_loops(kernel)
    inner = [other for other in kernel.loops if other < loop]
    tail = {at for other in inner if _count(kernel, other, "FFMA") for at in other}
    copies = {at for other in inner if _count(kernel, other, "UBLKCP") for at in other}
    whole = loop - tail
    weights = _WEIGHTS_OF_FFMA * _count(kernel, frozenset(whole), "FFMA")
    instructions = len(whole) + (_ROWS_OF_SLOT - 1) * len(copies)
    return instructions * 8 * 1024 / (weights * _BITS[_format_of(kernel)])


def is_counted(kernel: Kernel) -> bool:
    """Whether it is for 9.0 and one token: a tile of tokens in a product, one in the down-projection."""
    return kernel.architecture == "sm_90" and bool(re.search(r"\(Format\)\d, 1\b", kernel.name))


def find_cuobjdump() -> Path | None:
    """From the package of that name, PATH or the toolkit; None too where nvdisasm, which it calls, is not."""
    places = [*_package_directories(), os.environ.get("PATH", "")]
    home, _ = recipe.find_cuda()
    if home is not None:
        places.append(str(home / "bin"))
    path = os.pathsep.join(places)
    found = shutil.which("cuobjdump", path=path)
    return Path(found) if found and shutil.which("nvdisasm", path=path) else None


def _package_directories() -> list[str]:
    directories = []
    for package in ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        directories += [str(Path(file.locate()).parent) for file in files if file.parent.name == "bin"]
    return directories


def read_kernels(objects: Iterable[Path], cuobjdump: Path) -> list[Kernel]:
    """Every kernel of every architecture in the objects."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return sum(pool.map(lambda file: _kernels_of(file, cuobjdump), objects), [])


def _kernels_of(file: Path, cuobjdump: Path) -> list[Kernel]:
    resources = _read_resources(_run(cuobjdump, "-res-usage", file))
    if not resources:  # disassembling takes time, even nothing
        return []
    code = _read_code(_run(cuobjdump, "-sass", file))
    names = _demangled({name for _, name in code})
    return [
        Kernel(names[name], architecture, *resources[architecture, name], instructions)
        for (architecture, name), instructions in code.items()
    ]


def _run(cuobjdump: Path, *arguments: object) -> str:
    path = os.pathsep.join([*_package_directories(), str(cuobjdump.parent), os.environ.get("PATH", "")])
    command, environment = [str(cuobjdump), *map(str, arguments)], {**os.environ, "PATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def _read_code(printed: str) -> dict[tuple[str, str], tuple[Instruction, ...]]:
    code: dict[tuple[str, str], list[Instruction]] = {}
    architecture, current = "", None
    for line in printed.splitlines():
        if match := re.match(r"\s*code for (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            current = code.setdefault((architecture, match[1]), [])
        elif current is not None and (match := _INSTRUCTION.match(line)):
            text = _GUARD.sub("", match[2])
            current.append(Instruction(int(match[1], 16), text, text != match[2]))
    return {key: tuple(instructions) for key, instructions in code.items()}


def _read_resources(printed: str) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """Registers, stack, shared and local memory."""
    resources = {}
    architecture = name = ""
    for line in printed.splitlines():
        if match := re.match(r"\s*arch = (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := _RESOURCES.search(line):
            registers, stack, shared, local = map(int, match.groups())
            resources[architecture, name] = (registers, stack, shared, local)
    return resources


def _demangled(names: set[str]) -> dict[str, str]:
    ordered = sorted(names)
    done = subprocess.run(
        ["c++filt"], input="\n".join(ordered), capture_output=True, text=True, check=True
    )  # a part of binutils, without which nothing is compiled
    return {name: _short(full) for name, full in zip(ordered, done.stdout.splitlines(), strict=True)}


def _short(full: str) -> str:
    """``void adept::cuda::…::matvec<(adept::Format)1, 2>(adept::Linear)`` → ``matvec<(Format)1, 2>``."""
    bare = re.sub(r"\b\w+::", "", full.replace("(anonymous namespace)::", "")).removeprefix("void ")
    depth = 0
    for at, character in enumerate(bare):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return bare[:at]
    return bare


def _described(kernel: Kernel) -> str:
    # Of each streaming loop its loads of 16 bytes and its narrower ones, and its products on tensor cores.
    loops = []
    for loop in kernel.streaming_loops():
        loads = [one.is_wide_load for one in loop if one.is_global_load]
        products = sum(one.opcode.startswith("HMMA") for one in loop)
        loops.append(f"{sum(loads)} + {len(loads) - sum(loads)}" + (f", {products} HMMA" if products else ""))
    local = sum(one.is_local for one in kernel.instructions)
    memory = f"{local} local accesses, {kernel.shared_bytes} bytes shared"
    streams = "; ".join(loops) or "without streams"
    of_kilobyte = [
        f"{count(kernel):.0f} instructions for 1 kB of the {what}"
        for what, loops, count in (
            ("product", product_loops, product_instructions),
            ("down-projection", down_loops, down_instructions),
        )
        if is_counted(kernel) and len(loops(kernel)) == 1
    ]
    return "; ".join(
        [f"{kernel.name}: {kernel.registers} registers, {memory}, loops {streams}", *of_kilobyte]
    )


def main(architecture: str = "sm_90") -> None:
    root = Path(__file__).resolve().parent.parent
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        sys.exit("no cuobjdump with nvdisasm")
    kernels = read_kernels(recipe.cuda_objects(root / "csrc", root / "build" / "objects"), cuobjdump)
    ours = [kernel for kernel in kernels if kernel.architecture == architecture]
    sys.stdout.write("".join(f"{_described(kernel)}\n" for kernel in ours))


if __name__ == "__main__":
    main(*sys.argv[1:])
