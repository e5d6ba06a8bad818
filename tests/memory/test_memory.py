"""The memory plan: sizes that are really taken, and refusals that say what fits."""

from __future__ import annotations

import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import small_config
from saving import checkpoint_of

from adept_fast import InsufficientMemoryError, PersimmonConfig, Runtime
from adept_fast.checkpoint import CheckpointError
from adept_fast.checkpoint.atomic import require_space
from adept_fast.engine import loading
from adept_fast.kv_cache import StaticKVCache, bytes_per_token
from adept_fast.memory import advice as memory
from adept_fast.memory.advice import explaining_out_of_memory, out_of_memory, plan_memory
from adept_fast.memory.footprint import Footprint
from adept_fast.memory.plan import MemoryPlan, MemoryRequest, largest, pinned_bytes
from adept_fast.quantization.formats import FORMATS
from adept_fast.system.byte_counts import format_bytes, format_together
from adept_fast.weights import load_weights

PERSIMMON_8B = PersimmonConfig(rope_theta=25000.0)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
FLOATS = Footprint(None, 16_000_000_000, 2_000_000_000)
FP8 = Footprint(FORMATS["fp8"], 8_000_000_000, 2_000_000_000)
INT4 = Footprint(FORMATS["int4-g128"], 5_000_000_000, 2_000_000_000)


def request(available: int, **keywords: Any) -> MemoryRequest:
    """Of the 8B in float16, on a GPU."""
    defaults: dict[str, Any] = {"device": GPU, "weights": FLOATS, "vocab_rows": 192_144}
    return MemoryRequest(config=PERSIMMON_8B, available_bytes=available, **(defaults | keywords))


def refusal(asked: MemoryRequest) -> str:
    with pytest.raises(InsufficientMemoryError) as caught:
        plan_memory(asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_8b_caches_590_kilobytes_a_token() -> None:
    assert bytes_per_token(PERSIMMON_8B) == 36 * 2 * 4096 * 2 == 589_824
    assert PERSIMMON_8B.num_parameters == pytest.approx(9.4e9, rel=0.01)


def test_the_longest_context_is_the_last_that_fits() -> None:
    assert plan_memory(request(80_000_000_000)).max_seq_len == 16384
    assert plan_memory(request(80_000_000_000)).longest_context == 16384
    for device in (CPU, GPU):
        for batch_size in (1, 3):
            asked = request(24_000_000_000, device=device, max_batch_size=batch_size)
            plan = plan_memory(asked)
            assert plan.max_seq_len == (longest := plan.longest_context) // 64 * 64
            assert plan.total_bytes <= 24_000_000_000
            fits = [asked.plan(count, "device").total_bytes for count in (longest, longest + 1)]
            assert fits[0] <= 24_000_000_000 < fits[1]
            assert plan_memory(replace(asked, max_seq_len=longest)).max_seq_len == longest
            assert f"max_seq_len up to {longest} fits" in refusal(replace(asked, max_seq_len=longest + 1))


def test_a_refusal_says_what_was_asked_and_what_is_free() -> None:
    asked = request(24_000_000_000, max_seq_len=8192, max_batch_size=2)
    said = refusal(asked)
    cache = format_bytes(8192 * 2 * 589_824)
    needed = format_bytes(asked.plan(8192, "device").peak_bytes)
    assert said.startswith(
        f"cuda has 24 GB free, and {needed} are needed; the weights take 18 GB, working memory "
    )
    assert f"a cache of max_batch_size 2 × max_seq_len 8192 takes {cache}: max_seq_len up to " in said


# What is asked of how many bytes, and the setting that is to be named.
ADVICE: list[tuple[int, dict[str, Any], str]] = [
    (24_000_000_000, {"max_seq_len": 16384}, "max_seq_len"),
    (22_000_000_000, {"max_batch_size": 200}, "max_batch_size"),
    (22_000_000_000, {"max_batch_size": 200, "max_seq_len": 500}, "max_batch_size"),
    (18_000_000_000, {}, 'embedding "host"'),
    (18_000_000_000, {"max_seq_len": 16384, "max_batch_size": 4}, 'embedding "host"'),
    (15_000_000_000, {}, 'weights "fp8"'),
    (15_000_000_000, {"embedding": "auto"}, 'weights "fp8"'),
    (8_500_000_000, {}, 'weights "int4-g128"'),
    (8_500_000_000, {"other_weights": (INT4,), "weights": FP8}, 'weights "int4-g128"'),
    (50_000_000_000, {"embedding": "host", "host_available_bytes": 2**31 - 1}, 'embedding "device"'),
    (
        8_000_000_000,
        {"cache_dtype": torch.float32, "weights": INT4, "other_weights": (), "max_batch_size": 3},
        'cache_dtype "float16"',
    ),
    (
        6_500_000_000,
        {"max_batch_size": 2},
        'only max_batch_size 1 and embedding "host" and weights "int4-g128"',
    ),
    (1_000_000_000, {}, "no context fits; the least, max_batch_size 1 and embedding"),
]


@pytest.mark.parametrize(("available", "keywords", "named"), ADVICE)
def test_a_refusal_names_the_first_setting_that_suffices(
    available: int, keywords: dict[str, Any], named: str
) -> None:
    asked = request(available, **({"other_weights": (FP8, INT4)} | keywords))
    if "cache_dtype" in keywords:  # so little that only narrower keys and values leave room for a context
        asked = replace(
            asked, pinning_refusal="it is tied", max_batch_size=1, available_bytes=least_for_a_cache(asked)
        )
    advice = refusal(asked).rpartition(": ")[2]
    assert advice.startswith(named)
    if named.startswith("no context"):
        return
    changed, longest = follow(asked, advice)
    assert plan_memory(replace(changed, max_seq_len=longest)).max_seq_len == longest
    if longest < PERSIMMON_8B.max_position_embeddings:
        refusal(replace(changed, max_seq_len=longest + 1))


def least_for_a_cache(asked: MemoryRequest) -> int:
    """Bytes for 64 tokens of half the cache that is asked for."""
    narrow = replace(asked, cache_dtype=torch.float16, max_batch_size=1)
    return narrow.plan(64, "device").peak_bytes


def follow(asked: MemoryRequest, advice: str) -> tuple[MemoryRequest, int]:
    """The request with what the advice says, and the context that it promises."""
    settings = dict(re.findall(r'(max_batch_size|embedding|weights|cache_dtype) "?([\w-]+)"?', advice))
    if "max_batch_size" in settings:
        asked = replace(asked, max_batch_size=int(settings["max_batch_size"]))
    if "embedding" in settings:
        asked = replace(asked, embedding=settings["embedding"])
    if "weights" in settings:
        asked = replace(asked, weights={"fp8": FP8, "int4-g128": INT4}[settings["weights"]])
    if "cache_dtype" in settings:
        asked = replace(asked, cache_dtype=getattr(torch, settings["cache_dtype"]))
    found = re.search(r"max_seq_len up to (\d+)", advice)
    assert found is not None
    return asked, int(found[1])


def test_the_largest_batch_that_fits_is_named() -> None:
    asked = request(22_000_000_000, max_batch_size=200)
    changed, _ = follow(asked, refusal(asked).rpartition(": ")[2])
    one_more = replace(asked, max_batch_size=changed.max_batch_size + 1)
    assert changed.longest_context("device") >= 64 > one_more.longest_context("device")
    assert f": max_batch_size {changed.max_batch_size} fits" in refusal(one_more)


def test_earlier_settings_do_not_suffice_where_a_later_one_is_named() -> None:
    asked = request(8_500_000_000, other_weights=(FP8, INT4))
    for changed in (asked, replace(asked, embedding="host"), replace(asked, weights=FP8)):
        assert changed.longest_context(changed.embedding) < 64


class TestEmbedding:
    def test_auto_is_on_the_device_where_all_that_is_asked_for_fits(self) -> None:
        whole = request(0).plan(16384, "device").total_bytes
        for available, place in ((whole, "device"), (whole - 1, "host")):
            plan = plan_memory(request(available, embedding="auto"))
            assert (plan.embedding, plan.pinned_bytes) == (place, 0 if place == "device" else 2**31)
        some = request(0).plan(4096, "device").total_bytes
        for available, place in ((some, "device"), (some - 1, "host")):
            assert plan_memory(request(available, embedding="auto", max_seq_len=4096)).embedding == place

    def test_what_is_on_the_host_leaves_room_for_cache(self) -> None:
        device, host = (plan_memory(request(24_000_000_000, embedding=at)) for at in ("device", "host"))
        assert device.weights_bytes - host.weights_bytes == FLOATS.embedding_bytes
        gained = (host.longest_context - device.longest_context) * 589_824
        assert gained == pytest.approx(FLOATS.embedding_bytes, rel=0.05)

    def test_auto_stays_on_the_device_where_the_host_has_no_room(self) -> None:
        asked = request(24_000_000_000, embedding="auto")
        for room, place in ((2**31, "host"), (2**31 - 1, "device")):
            assert plan_memory(replace(asked, host_available_bytes=room)).embedding == place
        assert plan_memory(replace(asked, pinning_refusal="it is tied")).embedding == "device"

    def test_a_host_without_room_is_named(self) -> None:
        said = refusal(request(50_000_000_000, embedding="host", host_available_bytes=10**9))
        assert "2.15 GB pinned on the host, which has 1 GB free" in said

    @pytest.mark.parametrize(("size", "pinned"), [(0, 0), (1, 1), (5, 8), (2**31, 2**31), (2**31 + 1, 2**32)])
    def test_torch_pins_powers_of_two(self, size: int, pinned: int) -> None:
        assert pinned_bytes(size) == pinned


def test_loading_may_take_more_than_what_is_then_held() -> None:
    moving = replace(INT4, loading_bytes=3_000_000_000)
    least = request(0, weights=INT4).plan(64, "device").peak_bytes
    assert plan_memory(request(least, weights=INT4)).max_seq_len == 64
    said = refusal(request(least, weights=moving, max_seq_len=64))
    assert "(while loading, 3 GB more)" in said
    enough = INT4.other_bytes + INT4.embedding_bytes + moving.loading_bytes
    assert plan_memory(request(enough, weights=moving, max_seq_len=64)).peak_bytes == enough


def test_room_for_unpacking_weights_comes_off_the_context() -> None:
    plain = plan_memory(request(24_000_000_000))
    unpacking = plan_memory(request(24_000_000_000, weights=replace(FLOATS, unpacking_bytes=10**9)))
    assert unpacking.workspace_bytes - plain.workspace_bytes == pytest.approx(10**9, rel=0.05)
    lost = (plain.longest_context - unpacking.longest_context) * plain.cache_bytes_per_token
    assert lost == pytest.approx(10**9, rel=0.05)


def test_the_plan_is_what_the_runtime_takes(demo: Runtime) -> None:
    planned = demo.memory()
    weights = demo.engine.runner.model.weights
    tensors = {id(weights.embedding): weights.embedding, id(weights.lm_head): weights.lm_head}
    assert planned.weights_bytes == (
        weights.bytes_per_step(demo.config.vocab_size)
        - weights.lm_head.nbytes
        + sum(tensor.nbytes for tensor in tensors.values())
    )
    assert planned.cache_bytes == demo.engine.runner.cache.data.nbytes
    assert demo.bytes_read_per_step(10) - demo.bytes_read_per_step(0) == 10 * planned.cache_bytes_per_token


def test_the_cache_is_one_allocation_of_the_stated_layout() -> None:
    config = PersimmonConfig(hidden_size=160, num_attention_heads=2, num_hidden_layers=3)
    cache = StaticKVCache(config, max_batch_size=4, max_seq_len=7)
    assert cache.data.shape == (3, 2, 4, 2, 7, 80)
    assert cache.data.dtype == torch.float16
    assert cache.layer(1).data_ptr() == cache.data[1].data_ptr()
    assert cache.data.nbytes == bytes_per_token(config) * 7 * 4


class TestOutOfMemory:
    @pytest.fixture
    def plan(self) -> MemoryPlan:
        return plan_memory(request(24_000_000_000, embedding="device", other_weights=(FP8,)))

    def test_what_is_free_now_bounds_the_advice(
        self, plan: MemoryPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of the memory that was free, another process took half a gigabyte."""
        free = plan.available_bytes - plan.weights_bytes - plan.cache_bytes - 500_000_000
        monkeypatch.setattr(memory, "available_bytes", lambda device: free)
        error = out_of_memory(plan)
        assert isinstance(error, InsufficientMemoryError)
        said = str(error)
        assert said.startswith(
            f"cuda ran out of memory while capturing a decode graph, with {format_bytes(free)} free now, "
            f"and {format_bytes(plan.peak_bytes)} planned; "
            f"the weights take {format_bytes(plan.weights_bytes)}"
        )
        _, longest = follow(plan.request, said.rpartition(": ")[2])
        room = plan.available_bytes - 500_000_000
        assert plan.request.plan(longest, "device").peak_bytes <= room
        assert plan.request.plan(longest + 1, "device").peak_bytes > room
        assert f": max_seq_len up to {longest} fits" in said

    def test_a_plan_that_was_too_low_is_undercut(
        self, plan: MemoryPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All that was planned is still free, and it did not suffice."""
        monkeypatch.setattr(memory, "available_bytes", lambda device: plan.available_bytes)
        said = str(out_of_memory(plan, "loading", held_bytes=0))
        _, longest = follow(plan.request, said.rpartition(": ")[2])
        assert 0 < longest < plan.max_seq_len
        assert plan.request.plan(longest, "device").peak_bytes <= 0.95 * plan.peak_bytes

    @pytest.mark.parametrize(
        "raised",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 128.00 MiB."),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        ],
    )
    def test_loading_turns_torchs_errors_into_ours(
        self, raised: RuntimeError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held: list[weakref.ref[torch.Tensor]] = []

        def load(*arguments: Any, **keywords: Any) -> None:
            tensor = torch.zeros(1000)
            held.append(weakref.ref(tensor))
            raise raised

        def free(device: torch.device) -> int:
            assert not held or held[0]() is None, "what was allocated is still held"
            return 12_000_000

        monkeypatch.setattr(loading, "load_weights", load)
        monkeypatch.setattr(memory, "available_bytes", free)
        with pytest.raises(
            InsufficientMemoryError, match="cpu ran out of memory while loading, with 12 MB free"
        ):
            Runtime.load("demo", device="cpu", progress=False, max_seq_len=500)
        assert held

    def test_what_is_loaded_counts_as_held(self, plan: MemoryPlan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "available_bytes", lambda device: 300_000_000)
        with (
            pytest.raises(InsufficientMemoryError) as caught,
            explaining_out_of_memory(plan, during="generating"),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert str(caught.value) == str(out_of_memory(plan, "generating"))
        _, longest = follow(plan.request, str(caught.value).rpartition(": ")[2])
        room = plan.weights_bytes + plan.cache_bytes + 300_000_000
        assert plan.request.plan(longest, "device").peak_bytes <= room
        assert plan.request.plan(longest + 1, "device").peak_bytes > room

    def test_loading_holds_nothing_once_it_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(*arguments: Any, **keywords: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(loading, "load_weights", load)
        monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
        with pytest.raises(InsufficientMemoryError, match="no context fits; the least, "):
            Runtime.load("demo", device="cpu", progress=False)

    def test_other_errors_stay_what_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(*arguments: Any, **keywords: Any) -> None:
            raise RuntimeError("an illegal memory access was encountered")

        monkeypatch.setattr(loading, "load_weights", load)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            Runtime.load("demo", device="cpu", progress=False)

    def test_pinned_memory_that_there_is_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(tensor: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

        monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
        with pytest.raises(ValueError, match=r"could not pin \d+ bytes .*error: out of memory\); expected"):
            load_weights(
                checkpoint_of(tmp_path, small_config()),
                dtype=torch.float16,
                device=torch.device("meta"),
                embedding_on_host=True,
                check_finite=False,
            )


@pytest.mark.parametrize(("highest", "limit"), [(0, 9), (1, 0), (1, 1), (10, 3), (10, 10), (10, 99), (63, 0)])
def test_the_largest_number_that_fits(highest: int, limit: int) -> None:
    assert largest(highest, lambda count: count <= limit) == min(highest, limit)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (589_824, "590 kB"),
        (16_640_000_000, "16.6 GB"),
        (3e12, "3 TB"),
    ],
)
def test_bytes_are_written_in_decimal_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("counts", "texts"),
    [
        ((24_000_000_000, 16_000_000_000), ("24 GB", "16 GB")),
        ((24_010_000_000, 23_990_000_000), ("24.01 GB", "23.99 GB")),
        ((24_000_000_001, 24_000_000_000), ("24.000000001 GB", "24 GB")),
        ((24_000_000_000, 24_000_000_000), ("24 GB", "24 GB")),
        ((999_600_000, 1_000_000_000), ("999.6 MB", "1 GB")),
        ((1_000, 1_001, 2_000_000), ("1 kB", "1.001 kB", "2 MB")),
        ((2**62, 2**62 + 1), (f"{2**62} B", f"{2**62 + 1} B")),
        ((0, 1), ("0 B", "1 B")),
    ],
)
def test_sizes_side_by_side_have_the_digits_that_tell_them_apart(
    counts: tuple[int, ...], texts: tuple[str, ...]
) -> None:
    assert format_together(*counts) == texts


@pytest.mark.parametrize("missing", [1, 1000, 10**6])
def test_no_message_compares_a_size_with_itself(missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in: needs 24.0 GB; 24.0 GB are free."""
    whole = request(0).plan(4096, "device").peak_bytes
    said = refusal(request(whole - missing, max_seq_len=4096))
    free, needed = re.findall(r"([\d.]+ GB) (?:free|are needed)", said)[:2]
    assert float(free.split()[0]) < float(needed.split()[0])
    said = refusal(request(10**11, embedding="host", host_available_bytes=2**31 - missing, max_seq_len=64))
    pinned, room = re.findall(r"([\d.]+ GB) (?:pinned|free;?)", said)[-2:]
    assert pinned != room
    least = request(0, max_batch_size=1).plan(1, "device").peak_bytes
    said = refusal(request(least - missing, pinning_refusal="it is tied"))
    needed, free = re.findall(r"takes ([\d.]+ GB) of ([\d.]+ GB)", said)[0]
    assert float(free.split()[0]) < float(needed.split()[0])
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(CheckpointError) as caught:
        require_space(Path("/saved"), 10**9 + missing)
    needed, free = re.findall(r"([\d.]+) GB", str(caught.value))
    assert float(free) < float(needed)
