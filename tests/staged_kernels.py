"""What is meant of kernels that multiply the weights which copies have brought to shared memory.

A warp multiplies one chunk of a tile at a time in a product, and four rows in the down-projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cuda_disassembly import (
    Kernel,
    down_instructions,
    down_loops,
    has_opcode,
    is_counted,
    product_instructions,
    product_loops,
)

SCHEDULERS, REGISTERS_OF_SCHEDULER = 4, 16384
MOST_REGISTERS = 255  # of a thread
# What a multiprocessor can issue while 1 kB arrives, if 132 share 4.5 TB/s: 4 in each cycle of 1.755 GHz.
ISSUED_FOR_KILOBYTE = 4 * 1.755e9 * 1024 / (4.5e12 / 132)


def registers_of_thread(threads: int, blocks: int) -> int:
    """The most that a thread may have: they are given out by eights, and a warp stays with one scheduler."""
    warps = math.ceil(blocks * threads / 32 / SCHEDULERS)
    return min(MOST_REGISTERS, REGISTERS_OF_SCHEDULER // (warps * 32) // 8 * 8)


@dataclass(frozen=True)
class Staged:
    """Bounds are instructions for 1 kB of weights, at one token; 0: the kernel has no such loop."""

    threads: int  # of a block
    blocks: int = 1  # of a multiprocessor
    product: int = 0
    down: int = 0
    calls: bool = False  # a function that is not inlined; a few registers are saved around it, in no loop
    only: str = ""  # the architecture that runs it; for others it has no code


def staged_objections(kernel: Kernel, meant: Staged) -> Iterator[str]:
    """What is not as meant, in a few words each."""
    if meant.only and kernel.architecture != meant.only:
        if any(has_opcode(one, "STG") for one in kernel.instructions):
            yield f"code for an architecture that never runs it: {len(kernel.instructions)} instructions"
        return
    allowed = registers_of_thread(meant.threads, meant.blocks)
    if kernel.registers > allowed:
        yield f"{kernel.registers} registers; {meant.blocks} blocks of {meant.threads} take {allowed}"
    if not meant.calls and (kernel.stack_bytes or any(one.is_local for one in kernel.instructions)):
        yield f"local memory ({kernel.stack_bytes} bytes of stack): spilled, or an array without registers"
    if any(one.is_local for loop in kernel.streaming_loops() for one in loop):
        yield "local memory in a loop over keys and values"
    yield from _objections_to_copies(kernel)
    for what, loops, instructions, most in (
        ("product", product_loops(kernel), product_instructions, meant.product),
        ("down-projection", down_loops(kernel), down_instructions, meant.down),
    ):
        if len(loops) != (most > 0):
            yield f"{len(loops)} loops of a {what}; expected {int(most > 0)}"
            continue
        for loop in loops:
            yield from _objections_to_loop(kernel, loop, what)
            if is_counted(kernel) and instructions(kernel) > most:
                yield f"{instructions(kernel):.0f} instructions of the {what} for 1 kB; {most} are meant"


def _objections_to_copies(kernel: Kernel) -> Iterator[str]:
    if kernel.architecture == "sm_90":
        expected = ("UBLKCP", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "ACQBULK")
    else:
        expected = ("LDGSTS", "ARRIVES.LDGSTSBAR")
    for opcode in expected:
        if not kernel.has(opcode):
            yield f"no {opcode}"
    narrow = [one.text for one in kernel.instructions if has_opcode(one, "LDGSTS") and not one.is_wide_load]
    if narrow:
        yield f"copies of less than 16 bytes, such as {narrow[0]}"


def _objections_to_loop(kernel: Kernel, loop: frozenset[int], what: str) -> Iterator[str]:
    codes = [kernel.instructions[at] for at in sorted(loop)]
    for opcode in ("LDG", "LD", "LDL", "STL"):
        found = [one.text for one in codes if has_opcode(one, opcode)]
        if found:
            yield f"{len(found)} accesses such as {found[0]} in the loop of the {what}"
    if not any(has_opcode(one, "LDS.128") for one in codes):
        yield f"no loads of 16 bytes from shared memory in the loop of the {what}"
