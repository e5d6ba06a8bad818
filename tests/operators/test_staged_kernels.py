"""What is not as meant of kernels that multiply out of shared memory is seen, in code written by hand."""

from __future__ import annotations

import pytest
from cuda_disassembly import Instruction, Kernel, down_instructions, product_instructions
from staged_kernels import Staged, registers_of_thread, staged_objections

PRODUCT = [
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R0+URZ], R7",
    "LDS.128 R12, [R44]",
    *8 * ["HMMA.16816.F32 R28, R28, R24, R28"],
    "@P0 BRA {}",
]
SLOT = [
    "LDS.128 R24, [R52]",
    *32 * ["FFMA R8, R9, R10, R8"],
    "FFMA R8, R9, R10, R8",  # a row of a slot that is not full
    "@P2 BRA {-1}",
    "UBLKCP.S.G [UR12], [UR10], UR8, desc[UR4]",
    "@P3 BRA {-1}",
    "@P0 BRA {}",
]
MEANT = Staged(threads=288, product=12, down=100)


def kernel(*loops: list[str], name: str = "multiply_mlp<(Format)1, 1>", registers: int = 168) -> Kernel:
    """Loops one after the other. ``{}`` is a loop's head, ``{-1}`` the instruction before."""
    code: list[Instruction] = []
    for loop in [["ACQBULK"], *loops, ["EXIT"]]:
        head = 16 * len(code)
        for text in loop:
            at = 16 * len(code)
            bare = text.replace("{}", hex(head)).replace("{-1}", hex(at - 16)).split(maxsplit=1)
            guarded = text.startswith("@")
            code.append(Instruction(at, bare[1] if guarded else " ".join(bare), guarded))
    return Kernel(name, "sm_90", registers, 0, 0, 0, tuple(code))


def said(*loops: list[str], meant: Staged = MEANT, registers: int = 168) -> str:
    return "; ".join(staged_objections(kernel(*loops, registers=registers), meant))


def test_instructions_for_a_kilobyte_are_counted() -> None:
    both = kernel(PRODUCT, SLOT)
    assert product_instructions(both) == pytest.approx(len(PRODUCT) / 4)  # 8 of 256 weights of 2 bytes: 4 kB
    # 32 of 32 weights: 2 kB. Without the two instructions of a part slot, and the two of a copy four times.
    assert down_instructions(both) == pytest.approx((len(SLOT) - 2 + 3 * 2) / 2)


def test_what_is_as_meant_is_not_objected_to() -> None:
    assert said(PRODUCT, SLOT) == ""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("LDG.E.128 R4, [R8.64]", "accesses such as LDG.E.128 R4, [R8.64] in the loop of the product"),
        ("LD.E R4, [R8.64]", "in the loop of the product"),
        ("STL [R1], R8", "local memory"),
    ],
)
def test_memory_in_the_loop_of_a_product(more: str, words: str) -> None:
    assert words in said([PRODUCT[0], more, *PRODUCT[1:]], SLOT)


def test_a_saved_register_may_not_be_in_a_loop() -> None:
    calls = Staged(threads=288, product=12, down=100, calls=True)
    assert said(PRODUCT, SLOT, ["LDL R4, [R1]"], meant=calls) == ""
    assert "LDL R4, [R1] in the loop of the down" in said(
        PRODUCT, [SLOT[0], "LDL R4, [R1]", *SLOT[1:]], meant=calls
    )


def test_copies_instructions_and_registers() -> None:
    assert "no UBLKCP" in said(PRODUCT)
    assert "0 loops of a down-projection; expected 1" in said(PRODUCT)
    slow = [PRODUCT[0], *40 * ["NOP"], *PRODUCT[1:]]
    assert "13 instructions of the product for 1 kB; 12 are meant" in said(slow, SLOT)
    assert "176 registers; 1 blocks of 288 take 168" in said(PRODUCT, SLOT, registers=176)


def test_a_scheduler_with_three_of_nine_warps_limits_registers() -> None:
    assert registers_of_thread(288, 1) == 168
    assert registers_of_thread(288, 2) == 96
    assert registers_of_thread(256, 2) == 128
    assert registers_of_thread(256, 1) == 255
