"""Names that wrappers put before those of tensors: removed where the rest fits, named as stored where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import (
    adept_args,
    adept_model,
    assert_holds,
    assert_refused,
    saved,
    write_huggingface,
    write_one_rank,
)
from small_checkpoint import CONFIG, TENSORS, TOKENIZER
from torch import Tensor, nn

from adept_fast import CheckpointError, modeling
from adept_fast.checkpoint import open_checkpoint

EMBEDDING = "model.embed_tokens.weight"

PREFIXES = [
    "_orig_mod.",
    "module.",
    "language_model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "_orig_mod.module.language_model.",
    "language_model._orig_mod.module.module.",
]


def within_layers(name: str) -> str:
    """As torch.compile of each layer names them."""
    return name.replace(".self_attn.", "._orig_mod.self_attn.").replace(".mlp.", "._orig_mod.mlp.")


RENAMED: dict[str, Callable[[str], str]] = {
    **{prefix: (lambda name, prefix=prefix: prefix + name) for prefix in PREFIXES},  # type: ignore[misc]
    "each layer": within_layers,
    "some": lambda name: f"_orig_mod.{name}" if "layers.1" in name else name,
    "inside the model": lambda name: name.replace("model.", "model.language_model."),
}


def written(path: Path, tensors: Mapping[str, Tensor], as_bin: bool) -> Path:
    write_huggingface(path, CONFIG, tensors, TOKENIZER)
    if as_bin:
        (path / "model.safetensors").unlink()
        (path / "pytorch_model.bin").write_bytes(saved(dict(tensors)))
    return path


@pytest.mark.parametrize("as_bin", [False, True])
@pytest.mark.parametrize("rename", RENAMED)
def test_removed(tmp_path: Path, rename: str, as_bin: bool) -> None:
    tensors = {RENAMED[rename](name): tensor for name, tensor in TENSORS.items()}
    path = written(tmp_path, tensors, as_bin)
    assert_holds(open_checkpoint(path), TENSORS)
    model = modeling.PersimmonForCausalLM.from_pretrained(path)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_those_of_torch_itself(tmp_path: Path) -> None:
    """The names that torch.compile and DataParallel give, whatever they are."""
    model = modeling.PersimmonForCausalLM(CONFIG).half()
    model.load_state_dict(TENSORS)
    wrapped = nn.DataParallel(torch.compile(model))  # type: ignore[arg-type]
    state = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    assert next(iter(state)).startswith("module._orig_mod.")
    assert_holds(open_checkpoint(written(tmp_path, state, False)), TENSORS)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_decoder_without_a_head(tmp_path: Path, prefix: str) -> None:
    base = modeling.PersimmonModel(CONFIG)
    path = written(tmp_path, {prefix + name: tensor for name, tensor in base.state_dict().items()}, False)
    again = modeling.PersimmonModel.from_pretrained(path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in base.state_dict().items())


class TestRefused:
    def test_one_is_missing(self, tmp_path: Path) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in TENSORS.items() if name != "lm_head.weight"}
        path = written(tmp_path, tensors, False)
        message = assert_refused(
            path, "model.safetensors", "tensor module.model.", "lm_head.weight is missing"
        )
        assert message.count("module.") == 1

    def test_one_is_missing_for_a_head_of_another_kind(self, tmp_path: Path) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in TENSORS.items() if name != EMBEDDING}
        path = written(tmp_path, tensors, False)
        with pytest.raises(CheckpointError, match=rf"tensor module\..*{EMBEDDING} is missing"):
            modeling.PersimmonForSequenceClassification.from_pretrained(path)

    def test_one_does_not_belong(self, tmp_path: Path) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in TENSORS.items()}
        path = written(tmp_path, tensors | {"module.vision.weight": torch.ones(1)}, False)
        assert_refused(path, "tensor module.vision.weight does not belong")

    def test_one_is_misshapen(self, tmp_path: Path) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in TENSORS.items()}
        path = written(tmp_path, tensors | {f"module.{EMBEDDING}": torch.ones(3, 4)}, False)
        assert_refused(path, f"tensor module.{EMBEDDING} has shape [3, 4]")

    def test_two_become_one(self, tmp_path: Path) -> None:
        path = written(tmp_path, TENSORS | {f"module.{EMBEDDING}": torch.ones(1)}, False)
        assert_refused(path, f"module.{EMBEDDING}", f"both mean {EMBEDDING}")

    def test_another_prefix(self, tmp_path: Path) -> None:
        path = written(tmp_path, {f"net.{name}": tensor for name, tensor in TENSORS.items()}, False)
        assert_refused(path, "missing")


class TestAdept:
    """Its own names begin with language_model, which stays."""

    def nested(self, path: Path, *wrappers: str) -> Path:
        model = adept_model(TENSORS)
        for wrapper in wrappers:
            model = {wrapper: model}
        return write_one_rank(path, {"model": model, "args": adept_args(CONFIG)}, TOKENIZER)

    @pytest.mark.parametrize("wrappers", [(), ("module",), ("_orig_mod", "module"), ("module", "module")])
    def test_removed(self, tmp_path: Path, wrappers: tuple[str, ...]) -> None:
        assert_holds(open_checkpoint(self.nested(tmp_path, *wrappers)), TENSORS)

    def test_its_own_names_are_no_wrappers(self, tmp_path: Path) -> None:
        path = self.nested(tmp_path, "language_model")
        assert_refused(path, "language_model.embedding.word_embeddings.weight is missing", "first tensor is")

    def test_two_become_one(self, tmp_path: Path) -> None:
        model = adept_model(TENSORS) | {"module": adept_model(TENSORS)}
        path = write_one_rank(tmp_path, {"model": model, "args": adept_args(CONFIG)}, TOKENIZER)
        assert_refused(path, "module.", "both mean")
