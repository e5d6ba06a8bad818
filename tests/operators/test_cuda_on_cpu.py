"""The emulator that runs CUDA kernels on a CPU computes what a GPU would, and finds planted mistakes."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_on_cpu import build
from cuda_on_cpu.build import Kind

KINDS: tuple[Kind, ...] = ("plain", "address", "races")
ORDERS = ("fwd", "rev", "1", "2")

# Which builds find a mistake, in one order of threads and blocks at least; the others may.
FOUND_BY: dict[str, tuple[Kind, ...]] = {
    "copy_of_global_fenced_early": ("races",),
    "copy_of_global_not_fenced": ("races",),
    "copy_of_others_not_fenced": ("races",),
    "copy_over_shared_not_fenced": ("races",),
    "copy_source_written": KINDS,
    "different_masks": KINDS,
    "different_operations": KINDS,
    "divergent_barrier": KINDS,
    "divergent_shuffle": KINDS,
    "dynamic_shared_overrun": ("address",),
    "ended_lane": KINDS,
    "fence_of_another_reader": ("races",),
    "global_overrun": ("address",),
    "grid_adds_first": ("races",),
    "grid_buffer_reused_too_early": KINDS,
    "grid_larger_than_device": KINDS,
    "grid_last_before_all_wrote": ("races",),
    "grid_plain_counter": ("races",),
    "grid_readers_not_met": KINDS,
    "grid_target_too_high": KINDS,
    "grid_target_too_low": KINDS,
    "grid_warp_not_met": ("races",),
    "launch_too_large": KINDS,
    "misaligned_load": KINDS,
    "misaligned_pointer": ("address",),
    "missing_barrier": KINDS,
    "missing_copy_wait": KINDS,
    "missing_fence": ("races",),
    "missing_fence_of_all": ("races",),
    "missing_fence_of_reader": ("races",),
    "missing_syncwarp": KINDS,
    "missing_wait": ("races",),
    "missing_wait_for_input": ("races",),
    "much_shared": KINDS,
    "order_of_blocks": KINDS,
    "overlapping_shares": ("races",),
    "overwritten_scratch": KINDS,
    "part_counts_differ": KINDS,
    "part_not_whole_warps": KINDS,
    "part_one_number": ("races",),
    "part_too_few": KINDS,
    "part_too_many": KINDS,
    "plain_counter": ("races",),
    "refilled_too_early": ("races",),
    "ring_8x_arrives_before_copies": KINDS,
    "ring_8x_one_does_not_arrive": KINDS,
    "ring_8x_overwritten": KINDS,
    "ring_8x_read_without_wait": KINDS,
    "ring_arrives_twice": KINDS,
    "ring_empty_too_few": KINDS,
    "ring_init_not_fenced": KINDS,
    "ring_init_not_met": KINDS,
    "ring_initialised_twice": KINDS,
    "ring_misaligned": KINDS,
    "ring_not_initialised": KINDS,
    "ring_odd_size": KINDS,
    "ring_overwritten": KINDS,
    "ring_past_the_end": KINDS,
    "ring_read_after_arrival": ("races",),
    "ring_read_without_wait": KINDS,
    "ring_too_few_bytes": KINDS,
    "ring_too_many_bytes": KINDS,
    "ring_under_way_at_end": KINDS,
    "ring_wrong_parity": KINDS,
    "second_wait": KINDS,
    "shuffle_for_syncwarp": ("races",),
    "static_shared_overrun": ("address",),
    "uninitialised_shared": KINDS,
    "wait_of_one_thread": ("races",),
    "write_before_wait": ("races",),
}


@functools.cache
def program(kind: Kind) -> Path:
    try:
        csrc = build.find_toolchain().csrc
    except build.UnavailableError as error:
        pytest.skip(str(error))
    sources = [file for room in ("faults", "primitives") for file in sorted((build.HERE / room).glob("*.cu"))]
    return build.build_program(kind, "faults", [*sources, csrc / "cuda" / "launch.cu"])


def run(kind: Kind, what: str, order: str = "fwd") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ADEPT_CUDA_ON_CPU_ORDER": order,
        "ASAN_OPTIONS": "detect_leaks=0:symbolize=0",
        "UBSAN_OPTIONS": "symbolize=0",
    }
    for setting in ("ADEPT_CUDA_ON_CPU_MULTIPROCESSORS", "ADEPT_FAST_OVERLAP", "LD_PRELOAD"):
        environment.pop(setting, None)
    return subprocess.run(
        [program(kind), what], env=environment, capture_output=True, text=True, errors="replace", check=False
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_passes(kind: Kind, order: str) -> None:
    done = run(kind, "all", order)
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.endswith(": right")] == [], done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(lines) > len(FOUND_BY)


def test_every_fault_is_tried() -> None:
    assert run("plain", "list").stdout.split() == sorted(FOUND_BY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FOUND_BY)
def test_faults_are_found(fault: str, kind: Kind) -> None:
    if kind not in FOUND_BY[fault]:
        return
    assert any(run(kind, fault, order).returncode != 0 for order in ORDERS)


@pytest.mark.parametrize(
    ("kind", "fault", "said"),
    [
        ("plain", "divergent_barrier", "waits at a barrier that others of its block have not come to"),
        ("plain", "divergent_shuffle", "a lane waits for lanes of its warp that wait elsewhere"),
        ("plain", "different_operations", "lanes of a warp meet with different masks or in different"),
        ("plain", "misaligned_load", "an access of 16 bytes at an address that is not aligned to them"),
        ("plain", "ring_odd_size", "a bulk copy of 132 bytes, which are no multiple of 16"),
        ("plain", "ring_misaligned", "an access of 16 bytes at an address that is not aligned to them"),
        ("plain", "ring_init_not_fenced", "a bulk copy uses an mbarrier whose initialisation is not fenced"),
        (
            "plain",
            "ring_arrives_twice",
            "an mbarrier gets more arrivals in one phase than it was initialised",
        ),
        ("plain", "ring_under_way_at_end", "a bulk copy is under way when the block ends"),
        (
            "plain",
            "ring_too_many_bytes",
            "no thread can go on; thread 0,0,0 waits for phase 0 (parity 0) of mbarrier 1 of its block, to "
            "which 2 of 2 arrivals and 0 bytes have not come; thread 32,0,0 waits for phase 0 (parity 0) of "
            "mbarrier 0 of its block, to which 0 of 1 arrivals and 16 bytes have not come",
        ),
        ("plain", "grid_target_too_high", "thread 0,0,0 waits for a counter that has reached 4 of 5"),
        (
            "plain",
            "grid_larger_than_device",
            "a grid of 5 blocks, which is larger than the 4 that run at once",
        ),
        ("plain", "part_too_many", "thread 0,0,0 waits for barrier 1, which too few threads come to"),
        (
            "races",
            "ring_read_without_wait",
            "4 bytes of shared memory that a copy of its block writes, and nothing",
        ),
        ("races", "copy_of_global_not_fenced", "writes, and no fence_before_bulk_copies is between the two"),
        ("races", "copy_source_written", "4 bytes of global memory that a copy of its block reads"),
        (
            "races",
            "grid_adds_first",
            "a thread reads 4 bytes of global memory that thread 0 of block 0 writes",
        ),
        ("plain", "second_wait", "a thread calls pdl_wait a second time (block 0,0,0, thread 3,0,0)"),
        ("races", "plain_counter", "4 bytes of shared memory that thread 0 of its block writes"),
        ("races", "overlapping_shares", "4 bytes of global memory that thread 63 of block 0 writes"),
        ("races", "missing_wait", "that an earlier kernel of this operator uses, before it has called"),
        ("races", "missing_wait_for_input", "that are an input, before it has called pdl_wait"),
        ("races", "write_before_wait", "before it has called pdl_wait: an earlier kernel may still"),
    ],
)
def test_what_is_said_of_a_fault(kind: Kind, fault: str, said: str) -> None:
    assert said in run(kind, fault).stdout


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("dynamic_shared_overrun", "heap-buffer-overflow"),
        ("global_overrun", "heap-buffer-overflow"),
        ("misaligned_pointer", "misaligned address"),
    ],
)
def test_sanitizers_see_what_threads_do(fault: str, said: str) -> None:
    assert said in run("address", fault).stderr


def test_inputs_are_told_from_what_never_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda_on_cpu import library

    told = []
    monkeypatch.setattr(
        library, "_library", SimpleNamespace(cuda_on_cpu_add_input=lambda *at: told.append(at))
    )
    x, w, b, residual = torch.ones(2, 64), torch.ones(8, 64).half(), torch.zeros(8), torch.zeros(2, 8)
    with library.InputsArrive():
        out = library.call.linear_residual(x, w, None, b, residual)
    assert told == [(x.data_ptr(), x.nbytes), (residual.data_ptr(), residual.nbytes)]
    assert torch.equal(out, torch.full((2, 8), 64.0))


@pytest.mark.parametrize("name", ["fwd", "rev", "5"])
def test_an_operator_runs_in_any_order(name: str) -> None:
    from cuda_on_cpu import library

    x = torch.randn(5000)
    with library.order(name), library.multiprocessors(1):
        assert torch.equal(library.call.copy(x[1:]), x[1:])


def test_what_is_built_is_kept() -> None:
    first = program("plain")
    program.cache_clear()
    before = {file: file.stat().st_mtime_ns for file in first.parent.iterdir()}
    assert program("plain") == first
    assert {file: file.stat().st_mtime_ns for file in first.parent.iterdir()} == before


@pytest.fixture
def no_toolchain_is_kept() -> Iterator[None]:
    build.find_toolchain.cache_clear()
    yield
    build.find_toolchain.cache_clear()


@pytest.mark.usefixtures("no_toolchain_is_kept")
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.UnavailableError, match=r"no g\+\+"):
        build.find_toolchain()
    monkeypatch.undo()
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(build.UnavailableError, match="x86-64"):
        build.find_toolchain()
    monkeypatch.undo()
    monkeypatch.setattr(build.recipe, "find_cuda", lambda: (None, "no CUDA toolkit"))
    monkeypatch.setattr(build.metadata, "distributions", list)
    with pytest.raises(build.UnavailableError, match="no CUDA headers: no CUDA toolkit"):
        build.find_toolchain()
