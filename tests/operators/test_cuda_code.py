"""What nvcc made of the CUDA kernels is what was meant: no GPU is needed to see a spill or a narrow load.

What is meant of which kernel stands in KERNELS; a kernel that is not in it fails.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_disassembly import Instruction, Kernel, find_cuobjdump, find_loops, read_kernels

from adept_fast.extension import recipe

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")
REGISTERS = 65536  # of a multiprocessor, on each of them
MOST_REGISTERS = 255  # of a thread
# So that its share of an H200's memory, 4.8 TB/s over 132, is busy for the 0.7 µs that a load takes.
BYTES_IN_FLIGHT = 26_000
INSTRUCTIONS_OF_A_LOAD = 5_500  # that a multiprocessor issues in the same time: 4 in each of an H200's cycles


@dataclass(frozen=True)
class Meant:
    """What the code of a kernel has to be like."""

    threads: int  # of a block
    blocks: int  # that a multiprocessor has registers for at a time
    loads: int = 0  # of `width` bytes, at least, in the fullest of its streaming loops; 0: it need not stream
    narrow: int = 0  # other global loads in any of those loops, at most
    product: str = ""  # an instruction of the streaming loops that count
    width: int = 16
    busy: int = 0  # instructions for 1 kB, at least, where they and not memory are the limit

    @property
    def registers(self) -> int:
        """The most that a thread may have; they are given out by eights."""
        return min(MOST_REGISTERS, REGISTERS // (self.threads * self.blocks) // 8 * 8)

    @property
    def needed_in_flight(self) -> int:
        """Bytes of a multiprocessor."""
        return min(BYTES_IN_FLIGHT, INSTRUCTIONS_OF_A_LOAD * 1024 // max(self.busy, 1))


# Either of the formats in 16 bits, and in 8; 4 bits with a scale for 128 weights.
F16, EIGHT_BITS, INT4 = r"\(Format\)[12]", r"\(Format\)[35]", r"\(Format\)[46]"
# By the whole name, as a regular expression; each kernel has one entry.
KERNELS = {
    r"copy_vectors": Meant(threads=256, blocks=6, loads=4),
    r"copy_bytes": Meant(threads=256, blocks=8),
    r"read_vectors": Meant(threads=512, blocks=2, loads=8),
    # One block of 9 tokens and more has two teams, and shared memory for no second one.
    rf"multiply_rows<{F16}, 1, \w+>": Meant(threads=256, blocks=3, loads=8, product="HMMA"),
    rf"multiply_rows<{F16}, 2, true>": Meant(threads=512, blocks=1, loads=8, product="HMMA"),
    # Weights in 8 bits come by 8 bytes where a row is no multiple of 16.
    rf"multiply_rows<{EIGHT_BITS}, 1, \w+>": Meant(threads=256, blocks=3, loads=8, narrow=16, product="HMMA"),
    rf"multiply_rows<{EIGHT_BITS}, 2, true>": Meant(
        threads=512, blocks=1, loads=8, narrow=16, product="HMMA"
    ),
    # Each load of weights in 4 bits has its scale.
    rf"multiply_rows<{INT4}, 1, \w+>": Meant(threads=256, blocks=3, loads=8, narrow=8, product="HMMA"),
    rf"multiply_rows<{INT4}, 2, true>": Meant(threads=512, blocks=1, loads=8, narrow=8, product="HMMA"),
    rf"prepare_inputs<(?:{F16}|{EIGHT_BITS}|{INT4})>": Meant(threads=256, blocks=6, loads=6),
    # By the number of tokens. For many of them a lane has 8 columns in every format.
    rf"multiply_active_rows<{F16}, 1>": Meant(threads=256, blocks=4, loads=8, product="FFMA"),
    rf"multiply_active_rows<{F16}, 2>": Meant(threads=256, blocks=4, loads=6, product="FFMA"),
    rf"multiply_active_rows<{F16}, 4>": Meant(threads=256, blocks=2, loads=8, product="FFMA"),
    rf"multiply_active_rows<{F16}, 8>": Meant(threads=256, blocks=2, loads=6, product="FFMA"),
    rf"multiply_active_rows<{F16}, 16>": Meant(threads=128, blocks=2, loads=8, product="FFMA"),
    rf"multiply_active_rows<{EIGHT_BITS}, [12]>": Meant(threads=256, blocks=2, loads=8, product="FFMA"),
    rf"multiply_active_rows<{EIGHT_BITS}, 4>": Meant(threads=256, blocks=2, loads=6, product="FFMA"),
    rf"multiply_active_rows<{EIGHT_BITS}, 8>": Meant(threads=256, blocks=2, loads=8, width=8, product="FFMA"),
    rf"multiply_active_rows<{EIGHT_BITS}, 16>": Meant(
        threads=128, blocks=2, loads=8, width=8, busy=650, product="FFMA"
    ),
    rf"multiply_active_rows<{INT4}, [12]>": Meant(threads=256, blocks=1, loads=8, narrow=8, product="FFMA"),
    rf"multiply_active_rows<{INT4}, 4>": Meant(
        threads=256, blocks=2, loads=8, narrow=8, width=8, product="FFMA"
    ),
    rf"multiply_active_rows<{INT4}, 8>": Meant(
        256, blocks=2, loads=8, narrow=8, width=4, busy=900, product="FFMA"
    ),
    rf"multiply_active_rows<{INT4}, 16>": Meant(
        128, blocks=2, loads=8, narrow=8, width=4, busy=1600, product="FFMA"
    ),
    r"add_partials": Meant(threads=256, blocks=5),
    r"attend<(?:__half|__nv_bfloat16|float), \d+, 1>": Meant(threads=256, blocks=4, loads=8),
    r"attend<float, 32, 2>": Meant(threads=256, blocks=2, loads=16),  # heads of more than 128
    r"attend_tile<\(Format\)[12], 64>": Meant(threads=256, blocks=2),
    r"attend_tile<\(Format\)[12], (?:128|256)>": Meant(threads=256, blocks=1),
    r"merge_splits": Meant(threads=256, blocks=5),
    r"append_heads<\w+, 2>": Meant(threads=128, blocks=6),
    r"append_heads<\w+, [48]>": Meant(threads=128, blocks=2),  # heads of more than 128
    # A row of logits begins anywhere, and what limits these is no memory but how long one load takes.
    r"find_extremes": Meant(threads=256, blocks=6),
    r"draw": Meant(threads=256, blocks=3),
    r"find_largest": Meant(threads=256, blocks=6),
    r"merge_tiles": Meant(threads=256, blocks=4),
    # These wait for one chain of loads, and have no loop.
    r"embed_vectors<(?:__half|__nv_bfloat16|float)>": Meant(threads=256, blocks=8),
    r"embed_elements<(?:__half|__nv_bfloat16|float)>": Meant(threads=256, blocks=8),
    rf"widen_rows<(?:{F16}|{EIGHT_BITS}|{INT4}), \(Order\)[012], {F16}>": Meant(threads=512, blocks=3),
    # These have a row in registers; one of up to 4096, 8192, 16384 and 32768 columns.
    r"(?:prepare|activate)_token<\(Format\)[012], [248]>": Meant(threads=512, blocks=2),
    r"(?:prepare|activate)_token<\(Format\)[012], 16>": Meant(threads=512, blocks=1),
    r"finish_quads<\(Format\)[012]>": Meant(threads=256, blocks=5),
    r"finish_elements<(?:__half|__nv_bfloat16|float)>": Meant(threads=256, blocks=6),
    r"update_rows": Meant(threads=32, blocks=32),
}


def objections(kernel: Kernel, meant: Meant) -> Iterator[str]:
    """What is not as meant, in a few words each."""
    if kernel.stack_bytes or kernel.local_bytes or any(one.is_local for one in kernel.instructions):
        yield f"local memory ({kernel.stack_bytes} bytes of stack): spilled, or an array without registers"
    if kernel.registers > meant.registers:
        yield f"{kernel.registers} registers; {meant.blocks} blocks of {meant.threads} take {meant.registers}"
    loops = kernel.streaming_loops(meant.width)
    loops = [loop for loop in loops if any(one.opcode.startswith(meant.product) for one in loop)]
    if meant.product and not loops:
        yield f"no loop that both loads {meant.width} bytes and has {meant.product}"
    most = max((sum(one.loads(meant.width) for one in loop) for loop in loops), default=0)
    if most < meant.loads:
        yield f"at most {most} loads of {meant.width} bytes in a loop; expected {meant.loads}"
    for loop in loops if meant.loads else []:
        narrow = [one.text for one in loop if one.is_global_load and not one.loads(meant.width)]
        if len(narrow) > meant.narrow:
            yield f"{len(narrow)} narrow loads beside those of {meant.width} bytes, such as {narrow[0]}"
        if (
            len(loop)
            < meant.busy * 32 * sum(one.bytes_loaded for one in loop if one.loads(meant.width)) // 1024
        ):
            yield f"{len(loop)} instructions; expected {meant.busy} for 1 kB"
    if kernel.architecture == "sm_90" and not kernel.has("ACQBULK"):
        yield "never waits for the kernel before it"


@pytest.fixture(scope="module")
def cuobjdump() -> Path:
    found = find_cuobjdump()
    if found is None:
        pytest.skip("no cuobjdump with nvdisasm: PyPI has both for x86-64, and so has a CUDA toolkit")
    return found


@pytest.fixture(scope="module")
def kernels(cuobjdump: Path) -> list[Kernel]:
    """All of csrc/cuda for the default architectures; objects of the last build are used where they fit."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("TORCH_CUDA_ARCH_LIST", "ADEPT_FAST_CUDA", "ADEPT_FAST_SANITIZE"):
            environment.delenv(name, raising=False)
        if recipe.find_cuda()[0] is None:
            pytest.skip(f"no nvcc: {recipe.find_cuda()[1]}")
        objects = recipe.cuda_objects(ROOT / "csrc", ROOT / "build" / "objects")
    return read_kernels(objects, cuobjdump)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_code_is_what_was_meant(kernels: list[Kernel], architecture: str) -> None:
    here = [kernel for kernel in kernels if kernel.architecture == architecture]
    assert here
    wrong = []
    for kernel in here:
        entries = [meant for pattern, meant in KERNELS.items() if re.fullmatch(pattern, kernel.name)]
        if len(entries) == 1:
            wrong += [f"{kernel.name}: {objection}" for objection in objections(kernel, entries[0])]
        else:
            wrong.append(f"{kernel.name}: {len(entries)} entries of KERNELS have its name; expected one")
    assert not wrong, "\n".join(["", *wrong])


def loads_before_a_use(loop: list[Instruction]) -> int:
    """Loads of 16 bytes that are started before an instruction takes what one of them brought."""
    brought: set[str] = set()
    started = 0
    for instruction in loop:
        used = set(re.findall(r"\bR\d+", instruction.text.partition(",")[2]))
        if used & brought:
            break
        if instruction.is_wide_load:
            first = int(re.search(r"\bR(\d+)", instruction.text)[1])  # type: ignore[index]
            brought |= {f"R{first + word}" for word in range(4)}
            started += 1
    return started


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_only_reads_has_all_its_loads_in_flight(kernels: list[Kernel], architecture: str) -> None:
    (reads,) = (one for one in kernels if (one.name, one.architecture) == ("read_vectors", architecture))
    (loop,) = reads.streaming_loops()
    assert loads_before_a_use(loop) == 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_loaded_before_any_is_widened(kernels: list[Kernel], architecture: str) -> None:
    """And, where kernels overlap, before the one before it has ended; the stores have 16 bytes."""
    widening = [
        one for one in kernels if one.name.startswith("widen_rows") and one.architecture == architecture
    ]
    assert len(widening) == 28
    for kernel in widening:
        opcodes = [instruction.opcode for instruction in kernel.instructions]
        loads = [at for at, one in enumerate(kernel.instructions) if one.is_global_load]
        stores = [at for at, code in enumerate(opcodes) if code.startswith("STG")]
        assert len(loads) >= 4
        assert [opcodes[at] for at in stores] == ["STG.E.128"] * 4
        waits = [at for at, code in enumerate(opcodes) if code.startswith("ACQBULK")]
        assert max(loads) < min([*stores, *waits])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_are_attended_to_on_tensor_cores(kernels: list[Kernel], architecture: str) -> None:
    """From shared memory, into which copies of 16 bytes go past the registers."""
    tiles = [
        one for one in kernels if one.name.startswith("attend_tile") and one.architecture == architecture
    ]
    assert len(tiles) == 6
    for kernel in tiles:
        assert any(one.opcode.startswith("HMMA") for one in kernel.instructions)
        assert any(one.opcode.startswith("LDSM") and "MT" in one.opcode for one in kernel.instructions)
        copies = [one for one in kernel.instructions if one.opcode.startswith("LDGSTS")]
        assert copies
        assert all(one.is_wide_load for one in copies)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_word_for_the_host_is_one_store(kernels: list[Kernel], architecture: str) -> None:
    """That reaches the whole system, before a fence that does too."""
    (advance,) = (one for one in kernels if (one.name, one.architecture) == ("update_rows", architecture))
    opcodes = [instruction.opcode for instruction in advance.instructions]
    assert [code for code in opcodes if code.startswith("ST") and code.endswith(".SYS")] == [
        "STG.E.64.STRONG.SYS"
    ]
    assert "MEMBAR.SC.SYS" in opcodes[opcodes.index("STG.E.64.STRONG.SYS") :]


@pytest.mark.parametrize("pattern", [pattern for pattern, meant in KERNELS.items() if meant.loads])
def test_enough_loads_are_meant_to_be_in_flight(pattern: str) -> None:
    meant = KERNELS[pattern]
    assert meant.width * meant.loads * meant.threads * meant.blocks >= meant.needed_in_flight


def test_every_entry_is_of_a_kernel(kernels: list[Kernel]) -> None:
    names = {kernel.name for kernel in kernels}
    assert [pattern for pattern in KERNELS if not any(re.fullmatch(pattern, name) for name in names)] == []


def test_every_file_of_kernels_is_read_for_every_architecture(kernels: list[Kernel]) -> None:
    per_architecture = {one: {k.name for k in kernels if k.architecture == one} for one in ARCHITECTURES}
    assert len(set(map(frozenset, per_architecture.values()))) == 1
    defined = re.compile(r"__global__\s+(?:void\s+)?(?:__launch_bounds__\([^)]*\)\s*)?(?:void\s+)?(\w+)\s*\(")
    for file in (ROOT / "csrc" / "cuda").glob("*.cu*"):
        names = defined.findall(text := file.read_text(encoding="utf-8"))
        assert len(names) == text.count("__global__"), file.name
        for name in names:
            assert any(re.match(rf"{name}\b", other) for other in per_architecture["sm_90"]), name


FAULTY = """
#include <cstdint>

__global__ void __launch_bounds__(256) indexes_an_array(const int* from, int* to) {
  int held[64];
  for (int i = 0; i < 64; ++i) held[i] = from[3 * i];
  int sum = 0;
  for (int i = 0; i < 64; ++i) sum ^= held[(i * from[0]) & 63];
  to[threadIdx.x] = sum;
}

__global__ void __launch_bounds__(256) loads_little(const uint16_t* weights, int* to, int count) {
  int sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += 256) sum += weights[i];
  to[threadIdx.x] = sum;
}

__global__ void __launch_bounds__(256) loads_x_too(const uint4* weights, const int* x, int* to, int count) {
  uint32_t sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += 256) {
    const uint4 held = weights[i];
    sum += (held.x ^ held.y ^ held.z ^ held.w) * x[i];
  }
  to[threadIdx.x] = sum;
}
"""


def test_what_is_not_meant_is_seen(tmp_path: Path, cuobjdump: Path) -> None:
    home, reason = recipe.find_cuda()
    if home is None:
        pytest.skip(f"no nvcc: {reason}")
    source, built = tmp_path / "faulty.cu", tmp_path / "faulty.o"
    source.write_text(FAULTY, encoding="utf-8")
    options = ("-O3", "-std=c++17", "-gencode=arch=compute_90,code=sm_90", "-c", source, "-o", built)
    subprocess.run(list(map(str, (home / "bin" / "nvcc", *options))), check=True)
    faulty = {kernel.name: kernel for kernel in read_kernels([built], cuobjdump)}
    meant = Meant(threads=256, blocks=8, loads=4)
    seen = {name: " ".join(objections(kernel, meant)) for name, kernel in faulty.items()}
    assert "local memory (256 bytes of stack)" in seen["indexes_an_array"]
    assert "at most 0 loads of 16 bytes" in seen["loads_little"]
    assert "4 narrow loads beside those of 16 bytes, such as LDG" in seen["loads_x_too"]
    assert all("never waits" in words for words in seen.values())
    busy = Meant(threads=1024, blocks=8, product="HMMA")
    words = " ".join(objections(faulty["loads_x_too"], busy))
    assert "registers; 8 blocks of 1024 take 8" in words
    assert "no loop that both loads 16 bytes and has HMMA" in words


def test_a_branch_back_from_code_that_was_moved_away_is_no_loop() -> None:
    listing = [
        "MOV R1, R2",  # 0
        "@P1 BRA 0x90",  # 1: a rare case, at 9
        "LDG.E R3, [R4]",  # 2: back from there
        "LDG.E.128 R4, [R8]",  # 3: the outer loop's head
        "IADD3 R5, R5, 1",  # 4: the inner loop's head
        "@P0 BRA 0x40",  # 5
        "@!P2 BRA 0x30",  # 6
        "EXIT",  # 7
        "BRA 0x80",  # 8: the trap behind every kernel
        "MOV R7, R8",  # 9
        "BRA 0x20",  # 10
    ]
    code = tuple(
        Instruction(16 * at, text.split(maxsplit=1)[1] if text[0] == "@" else text, text[0] == "@")
        for at, text in enumerate(listing)
    )
    assert set(find_loops(code)) == {frozenset({3, 4, 5, 6}), frozenset({4, 5})}
