"""Hugging Face directories whose weights are in files of torch.save: read as torch reads them, or refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    assert_holds,
    assert_refused,
    random_tensors,
    saved,
    small_config,
    write_huggingface,
)
from small_checkpoint import CONFIG, TENSORS, TOKENIZER
from torch import Tensor

from adept_fast import Runtime, modeling
from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.config import PersimmonConfig

UP = "model.layers.1.mlp.dense_h_to_4h.weight"
DOWN = "model.layers.1.mlp.dense_4h_to_h.weight"
PATH_CLASS = f"{type(Path()).__module__}.{type(Path()).__name__}"
SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def write_bin(
    path: Path, tensors: Any, config: PersimmonConfig = CONFIG, shards: int = 1, **options: Any
) -> Path:
    """A directory as transformers wrote it before safetensors; ``options`` are those of torch.save."""
    write_huggingface(path, config, {"a": torch.ones(1)}, TOKENIZER)
    (path / "model.safetensors").unlink()
    if shards == 1:
        (path / SINGLE).write_bytes(saved(tensors, **options))
        return path
    weight_map = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = {name: tensor for at, (name, tensor) in enumerate(tensors.items()) if at % shards == shard}
        (path / name).write_bytes(saved(part, **options))
        weight_map.update(dict.fromkeys(part, name))
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def loaded(path: Path) -> dict[str, Tensor]:
    """The independent reference: the weights as torch reads them."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.bin")):
        tensors |= torch.load(file, weights_only=True)
    return tensors


class TestReading:
    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_as_torch_does(self, tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
        path = write_bin(tmp_path, random_tensors(CONFIG, dtype=dtype), shards=shards)
        checkpoint = open_checkpoint(path)
        assert (checkpoint.format, checkpoint.config, checkpoint.dtype) == ("huggingface", CONFIG, dtype)
        assert_holds(checkpoint, loaded(path))
        assert checkpoint.left_unread == ()

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_protocols(self, tmp_path: Path, protocol: int) -> None:
        assert_holds(open_checkpoint(write_bin(tmp_path, TENSORS, pickle_protocol=protocol)), TENSORS)

    def test_a_state_dict_of_a_module(self, tmp_path: Path) -> None:
        """An OrderedDict with an attribute of its own, and buffers that the config determines."""
        model = modeling.PersimmonForCausalLM(CONFIG)
        state = model.state_dict()
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        assert hasattr(state, "_metadata")
        path = write_bin(tmp_path, state)
        assert_holds(open_checkpoint(path), loaded(path))

    def test_parameters_with_attributes(self, tmp_path: Path) -> None:
        """Training marks parameters; torch then pickles the mark beside the data."""
        marked = torch.nn.Parameter(TENSORS[UP].clone())
        marked.tensor_model_parallel = True  # type: ignore[attr-defined]
        plain = TENSORS[DOWN].clone()
        plain.shared = False  # type: ignore[attr-defined]
        path = write_bin(tmp_path, TENSORS | {UP: marked, DOWN: plain})
        assert b"_with_state" in (path / SINGLE).read_bytes()
        assert b"_rebuild_from_type_v2" in (path / SINGLE).read_bytes()
        assert_holds(open_checkpoint(path), TENSORS)

    def test_one_storage_of_all(self, tmp_path: Path) -> None:
        """Flattened parameters: every tensor is a view with an offset into one storage."""
        flat = torch.cat([tensor.flatten() for tensor in TENSORS.values()])
        views, at = {}, 0
        for name, tensor in TENSORS.items():
            views[name] = flat[at : at + tensor.numel()].view(tensor.shape)
            at += tensor.numel()
        path = write_bin(tmp_path, views)
        with zipfile.ZipFile(path / SINGLE) as archive:
            assert sum("/data/" in name for name in archive.namelist()) == 1
        assert_holds(open_checkpoint(path), loaded(path))

    def test_transposed(self, tmp_path: Path) -> None:
        path = write_bin(tmp_path, TENSORS | {UP: TENSORS[UP].t().contiguous().t()})
        assert_holds(open_checkpoint(path), loaded(path))

    def test_tied_embeddings_share_a_storage(self, tmp_path: Path) -> None:
        config = small_config(tie_word_embeddings=True)
        tensors = random_tensors(config)
        both = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
        checkpoint = open_checkpoint(write_bin(tmp_path / "tied", both, config))
        assert_holds(checkpoint, tensors)
        untied = open_checkpoint(write_bin(tmp_path / "untied", both, small_config()))
        assert_holds(untied, both)

    def test_safetensors_beside_it_is_preferred(self, tmp_path: Path) -> None:
        path = write_bin(tmp_path, TENSORS)
        other = random_tensors(CONFIG, seed=5, dtype=torch.float16)
        for shards in (1, 2):
            assert_holds(open_checkpoint(write_huggingface(path, CONFIG, other, TOKENIZER, shards)), other)

    def test_weights_are_mapped_when_they_are_asked_for(self, tmp_path: Path) -> None:
        path = write_bin(tmp_path, TENSORS)
        stored = open_checkpoint(path).tensors[UP]
        maps = Path("/proc/self/maps")
        if not maps.exists():
            pytest.skip("the system does not list its mappings")
        assert SINGLE not in maps.read_text()
        tensor = stored.read()
        [line] = [line for line in maps.read_text().splitlines() if SINGLE in line]
        first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
        assert first <= tensor.data_ptr() < last

    def test_it_runs_like_the_same_weights_elsewhere(self, tmp_path: Path) -> None:
        tensors = random_tensors(CONFIG)
        paths = [
            write_bin(tmp_path / "bin", tensors, shards=2),
            write_huggingface(tmp_path / "safetensors", CONFIG, tensors, TOKENIZER),
        ]
        runs = [Runtime.load(path, device="cpu", progress=False) for path in paths]
        texts = [run.generate("Once", max_new_tokens=5).token_ids for run in runs]
        assert texts[0] == texts[1]
        models = [modeling.PersimmonForCausalLM.from_pretrained(path) for path in paths]
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(models[0](ids).logits, models[1](ids).logits)

    def test_what_else_is_named_is_left_unread(self, tmp_path: Path) -> None:
        """An attribute of a mark is of no use to a model, so it may be of any class."""
        marked = TENSORS[UP].clone()
        marked.where = Path(".")  # type: ignore[attr-defined]
        checkpoint = open_checkpoint(write_bin(tmp_path, TENSORS | {UP: marked}))
        assert_holds(checkpoint, TENSORS)
        assert checkpoint.left_unread == (PATH_CLASS,)


class Subclass(torch.Tensor):
    pass


def quantized() -> Tensor:
    if not hasattr(torch, "quantize_per_tensor"):
        pytest.skip("this torch has no quantized tensors")
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


class TestRefusals:
    @pytest.mark.parametrize(
        ("made", "found"),
        [
            (lambda: torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
            (lambda: torch.eye(3).to_sparse_csr(), "torch._utils._rebuild_sparse_tensor"),
            (quantized, "torch._utils._rebuild_qtensor"),
        ],
    )
    @pytest.mark.filterwarnings("ignore")  # torch warns that these kinds are in beta, or going
    def test_a_tensor_of_another_kind(self, tmp_path: Path, made: Callable[[], Tensor], found: str) -> None:
        path = write_bin(tmp_path, TENSORS | {UP: made()})
        assert_refused(path, SINGLE, UP, found)

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            (torch.ones(3, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
            (torch.ones(3).as_subclass(Subclass), f"an object of {__name__}.Subclass"),
            (torch.ones(2, dtype=torch.complex64).conj(), "has metadata, as a lazy view does"),
            (torch.ones(0), "does not fit its storage"),
            ({"nested": torch.ones(3)}, "is a dict of length 1"),
            (3.5, "is 3.5; expected a tensor"),
            (None, "is None; expected a tensor"),
            (torch.float16, "is torch.float16; expected a tensor"),
            (Path("."), f"is an object of {PATH_CLASS}, which was left unread"),
        ],
        ids=str,
    )
    def test_no_plain_tensor(self, tmp_path: Path, value: object, found: str) -> None:
        path = write_bin(tmp_path, TENSORS | {UP: value})
        assert_refused(path, SINGLE, UP, found)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn, torch.complex64])
    def test_dtypes(self, tmp_path: Path, dtype: torch.dtype) -> None:
        path = write_bin(tmp_path, TENSORS | {UP: TENSORS[UP].to(dtype)})
        assert_refused(path, SINGLE, UP, str(dtype).removeprefix("torch."), "expected float32")

    @pytest.mark.parametrize("key", [3, None, ("a", "b"), "a\nb", "a" * 2000])
    def test_keys_that_are_no_names(self, tmp_path: Path, key: object) -> None:
        assert_refused(write_bin(tmp_path, TENSORS | {key: torch.ones(1)}), SINGLE, "expected the name")

    def test_more_tensors_than_a_model_has(self, tmp_path: Path) -> None:
        one = torch.ones(1)
        path = write_bin(tmp_path, TENSORS | {str(at): one for at in range(20_000)})
        assert_refused(path, SINGLE, "has more than 16384 tensors")

    @pytest.mark.parametrize("contents", [[1], TENSORS[UP], 7])
    def test_no_dict(self, tmp_path: Path, contents: object) -> None:
        assert_refused(write_bin(tmp_path, contents), SINGLE, "expected a dict of tensors")

    def test_the_format_before_zips(self, tmp_path: Path) -> None:
        path = write_bin(tmp_path, TENSORS, _use_new_zipfile_serialization=False)
        assert_refused(path, SINGLE, "before version 1.6", "torch.save(torch.load(")

    @pytest.mark.parametrize("contents", [b"", b"damaged", b"\0" * 5000])
    def test_no_file_of_torch(self, tmp_path: Path, contents: bytes) -> None:
        path = write_bin(tmp_path, TENSORS)
        (path / SINGLE).write_bytes(contents)
        assert_refused(path, SINGLE, "not a zip")

    def test_a_damaged_weight_is_found_when_read(self, tmp_path: Path) -> None:
        path = write_bin(tmp_path, TENSORS)
        contents = bytearray((path / SINGLE).read_bytes())
        at = contents.index(TENSORS[UP].numpy().tobytes())
        contents[at] ^= 1
        (path / SINGLE).write_bytes(contents)
        stored = open_checkpoint(path).tensors
        stored[DOWN].read()
        with pytest.raises(CheckpointError, match=f"{UP} is damaged"):
            stored[UP].read()

    def test_nothing_there(self, tmp_path: Path) -> None:
        path = write_bin(tmp_path, TENSORS)
        (path / SINGLE).unlink()
        assert_refused(path, "model.safetensors", SINGLE, INDEX)

    def test_a_shard_that_the_index_does_not_describe(self, tmp_path: Path) -> None:
        path = write_bin(tmp_path, TENSORS, shards=2)
        index = json.loads((path / INDEX).read_text())
        index["weight_map"][UP] = "pytorch_model-00001-of-00002.bin"
        index["weight_map"][DOWN] = "pytorch_model-00002-of-00002.bin"
        (path / INDEX).write_text(json.dumps(index))
        assert_refused(path, "which the index puts there, is missing")
