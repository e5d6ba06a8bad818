"""The 8B's memory on paper, and ``adept-fast info`` for a GPU that is not here."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import small_config
from click.testing import CliRunner
from saving import checkpoint_of

from adept_fast import InsufficientMemoryError, PersimmonConfig, Runtime
from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.commands.cli import main
from adept_fast.engine import loading
from adept_fast.engine.loading import request_memory
from adept_fast.memory.advice import plan_memory
from adept_fast.system.byte_counts import format_bytes
from tools.random_checkpoint import tokenizer_model

PIECES = 262_144 - 70_000  # about so many of the 8B's rows are in use
GB = 10**9


@pytest.fixture(scope="module")
def persimmon_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 8B in float16, in a file that is all holes."""
    path = tmp_path_factory.mktemp("8b")
    config = PersimmonConfig(rope_theta=25000.0)
    (path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    (path / "tokenizer.model").write_bytes(tokenizer_model(PIECES))
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in config.tensor_shapes().items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return path


def info(*options: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["info", "--json", *options])
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def floats_of_the_layers() -> int:
    """Bytes of the 8B's layers: matrices in float16, vectors in float32, and the last LayerNorm."""
    matrices = 4096 * (3 * 4096) + 4096 * 4096 + 2 * 4096 * 16384
    vectors = 2 * 2 * 4096 + 3 * 4096 + 4096 + 16384 + 4096 + 4 * 64
    return 36 * (2 * matrices + 4 * vectors) + 4 * 2 * 4096


def other_memory(context: int) -> int:
    """What the 8B works with for one sequence of so many tokens, on a GPU."""
    sampler = 2 * (4 + 4 + 1) * PIECES  # biases, counts, seen tokens: of the slot, and of rows without one
    fixed = 4 * 32 * context + sampler + 2 * PIECES + 2**29
    prompt = 512 * 4 * (8 * 4096 + 3 * 16384) + 512 * 5 * context + 8 * context
    attention = 16 * 64 * math.ceil(context / 256) * (64 + 2) * 4
    mlp = 16 * 4 * 16384 + 256 + 32 * 16 * 4 * 4096
    tiles = math.ceil(PIECES / 2048) * (1024 * 8 + 2048 * 2 + 24)
    sampling = 16 * math.ceil((tiles + 64 * 12 + 4) / 16) * 16
    inputs = 3 * (256 + 16 * (2 * 4096 + 64))
    step = 16 * 4 * 8 * 4096 + inputs + attention + mlp + sampling + 16 * 4 * PIECES
    buckets = 1 + sum(length < context for length in (256, 512, 1024, 2048, 4096, 8192))
    return fixed + max(prompt, step) + 2 * step + 31 * buckets * 4 * PIECES


def longest_on_paper(free: int, weights: int) -> int:
    fitting = [
        context
        for context in range(1, 16385)
        if weights + other_memory(context) + 36 * 2 * 4096 * 2 * context <= free
    ]
    return max(fitting, default=0)


def test_the_8b_in_float16_fits_24_gigabytes_with_this_context(persimmon_8b: Path) -> None:
    table = PIECES * 4096 * 2
    weights = floats_of_the_layers() + table  # of the output matrix; the embedding is on the host
    assert weights == pytest.approx(16.1e9, rel=0.01)
    longest = longest_on_paper(24 * GB, weights)
    assert 10_000 < longest < 13_500
    report = info("--checkpoint", str(persimmon_8b), "--gpu-memory", "24GB")
    memory = report["memory"]
    assert memory["longest context that fits"] == longest
    assert memory["cache"].endswith(f" for 1 × {longest // 64 * 64} tokens")
    assert memory["weights"] == "16.1 GB"
    assert memory["pinned on the host"] == "2.15 GB"  # 1.57 GB, rounded up to a power of two
    assert memory["free here"] == "24 GB"
    assert memory["embedding"] == "pinned on the host (with it on the device not all would fit)"
    assert memory["vocabulary"] == "192144 of 262144 rows, which the tokenizer uses"
    assert "not here" in report["placement"]["device"]
    assert not {"operators", "optional packages"} & set(report)


def test_the_embedding_on_the_device_costs_so_many_tokens(persimmon_8b: Path) -> None:
    weights = floats_of_the_layers() + 2 * PIECES * 4096 * 2
    report = info("--checkpoint", str(persimmon_8b), "--gpu-memory", "24 GB", "--embedding", "device")
    assert report["memory"]["longest context that fits"] == longest_on_paper(24 * GB, weights)
    whole = info("--checkpoint", str(persimmon_8b), "--gpu-memory", "80GB")
    assert whole["memory"]["embedding"] == "on the device (all fits there)"
    assert whole["memory"]["longest context that fits"] == 16384


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "named"),
    [("24GB", "max_seq_len up to"), ("16GB", 'weights "fp8" fits'), ("8GB", 'weights "int4-g128" fits')],
)
def test_what_would_make_the_8b_fit(persimmon_8b: Path, memory: str, named: str) -> None:
    options = ["--checkpoint", str(persimmon_8b), "--gpu-memory", memory, "--max-seq-len", "16384"]
    said = info(*options)["memory"]["does not fit"]
    assert said.partition(": ")[2].startswith(named)
    assert said.startswith(f"cuda has {memory.removesuffix('GB')} GB free, and ")
    context = said.rpartition("max_seq_len up to ")[2].removesuffix(" fits")
    options[-1] = context
    if "weights" in named:
        options += ["--weights", named.split('"')[1]]
    assert info(*options)["memory"]["longest context that fits"] == int(context)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1500MB", 1_500_000_000), ("1.5 gb", 1_500_000_000), ("2GiB", 2**31), ("1000000000", 10**9)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert info("--gpu-memory", text)["memory"]["free here"] == format_bytes(size)


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "24 apples", "0", "nan", "1e9", "24GB more", "٢٤GB"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    result = CliRunner().invoke(main, ["info", "--gpu-memory", text])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a size; expected a number with a unit" in result.stderr


def test_a_gpu_is_not_imagined_for_a_cpu() -> None:
    result = CliRunner().invoke(main, ["info", "--gpu-memory", "24GB", "--device", "cpu"])
    assert result.exit_code == 2
    assert "--gpu-memory plans for a GPU, and --device is cpu" in result.stderr


class TestPlanning:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Checkpoint:
        return checkpoint_of(tmp_path, small_config())

    def test_on_a_cpu_all_rows_are_counted_and_no_graphs(self, checkpoint: Checkpoint) -> None:
        _, request = request_memory(checkpoint, device="cpu", max_batch_size=2)
        plan = plan_memory(request)
        assert (plan.graphs_bytes, plan.pinned_bytes, plan.embedding) == (0, 0, "device")
        assert plan.weights_bytes == 2 * sum(
            math.prod(shape) * (1 if len(shape) == 2 else 2)
            for shape in checkpoint.config.tensor_shapes().values()
        )
        assert request.vocab_rows == 4160

    def test_a_gpus_free_memory_and_its_hosts_are_asked_for(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(loading.cuda, "unavailable", lambda device: None)
        free = {"cuda": 600_000_000, "cpu": 1000}
        monkeypatch.setattr(loading, "available_bytes", lambda device: free[device.type])
        _, request = request_memory(checkpoint, device="cuda")
        assert (request.available_bytes, request.host_available_bytes) == (600_000_000, 1000)
        assert request.vocab_rows == 4096
        _, on_host = request_memory(checkpoint, device="cuda", embedding="host")
        with pytest.raises(InsufficientMemoryError, match=r"524 kB pinned on the host, which has 1 kB free"):
            plan_memory(on_host)

    @pytest.mark.parametrize(
        ("weights", "device", "others"),
        [
            (None, "cpu", ["int8", "int4-g128"]),
            ("int8", "cpu", ["int4-g128"]),
            ("int4", "cpu", []),
            (None, "cuda", ["fp8", "int4-g128"]),
            ("fp8", "cuda", ["int4-g128"]),
        ],
    )
    def test_only_smaller_formats_are_advised(
        self, checkpoint: Checkpoint, weights: str | None, device: str, others: list[str]
    ) -> None:
        _, request = request_memory(
            checkpoint, device=device, weights=weights, gpu_memory=None if device == "cpu" else GB
        )
        assert [other.weights.name for other in request.other_weights if other.weights] == others
        taken = [footprint.other_bytes for footprint in (request.weights, *request.other_weights)]
        assert taken == sorted(taken, reverse=True)

    def test_what_is_advised_is_what_that_setting_takes(self, checkpoint: Checkpoint) -> None:
        for dtype in ("auto", "float32"):
            _, request = request_memory(checkpoint, gpu_memory=GB, dtype=dtype)
            for other, weights in zip(request.other_weights, ("fp8", "int4"), strict=True):
                _, packed = request_memory(checkpoint, gpu_memory=GB, dtype=dtype, weights=weights)
                assert packed.weights == other

    def test_a_runtime_says_where_its_embedding_is(self) -> None:
        runtime = Runtime.load("demo", device="cpu", embedding="host", progress=False)
        assert runtime.memory().embedding == "device"
        with pytest.raises(ParameterError, match="embedding is 'disk'"):
            Runtime.load("demo", device="cpu", embedding="disk", progress=False)

    def test_a_native_checkpoint_has_no_other_format(self, tmp_path: Path, checkpoint: Checkpoint) -> None:
        done = CliRunner().invoke(
            main, ["convert", str(checkpoint.path), str(tmp_path / "native"), "--weights", "int8", "--quiet"]
        )
        assert done.exit_code == 0, done.stderr
        native = open_checkpoint(tmp_path / "native")
        assert request_memory(native, gpu_memory=GB)[1].other_weights == ()
