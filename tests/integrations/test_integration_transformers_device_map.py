"""``accelerate`` and device_map: a model on one device is served, one with offloaded layers refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate as placement
import pytest
import torch
from accelerated_models import assert_served, handed_over, small_model, text
from transformers import PersimmonForCausalLM

from adept_fast.integrations.transformers import NotServedError, accelerate, restore

EXPECTED = "; expected all layers on one device, as from_pretrained loads them without device_map, or with "
MODULES = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.final_layernorm", "lm_head")


def on_cpu_but(place: dict[str, str]) -> dict[str, str]:
    return dict.fromkeys((*MODULES, "model.layers.1"), "cpu") | place


def to_cpu(model: Any, folder: Path) -> None:
    placement.cpu_offload(model, execution_device=torch.device("cpu"))


def to_disk(model: Any, folder: Path) -> None:
    placement.disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def by_map(model: Any, folder: Path) -> None:
    placement.dispatch_model(model, on_cpu_but({"model.layers.1": "disk"}), offload_dir=str(folder))


def by_map_to_both(model: Any, folder: Path) -> None:
    """As on a machine with an accelerator, whose place meta takes: what is mapped to the CPU is offloaded."""
    state = {name: value for name, value in model.state_dict().items() if name.startswith("model.layers.0.")}
    places = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    device_map = dict.fromkeys(MODULES, "meta") | places
    placement.dispatch_model(model, device_map, main_device="meta", state_dict=state, offload_dir=str(folder))


def whole(model: Any, folder: Path) -> None:
    placement.cpu_offload_with_hook(model, torch.device("cpu"))


OFFLOADED: list[tuple[Callable[[Any, Path], None], str]] = [
    (to_cpu, "model.embed_tokens is on the CPU"),
    (to_disk, "model.embed_tokens is on the disk"),
    (by_map, "model.layers.1.self_attn.query_key_value is on the disk"),
    (by_map_to_both, "model.layers.0.self_attn.query_key_value is on the CPU"),
    (whole, "the model is on the CPU"),
]


@pytest.mark.parametrize(("offload", "where"), OFFLOADED)
def test_offloaded_layers_are_refused(offload: Any, where: str, tmp_path: Path) -> None:
    model = small_model()
    offload(model, tmp_path)
    before = [(name, id(value), value.device) for name, value in model.named_parameters()]
    with pytest.raises(NotServedError) as caught:
        accelerate(model)
    assert str(caught.value).startswith(f"the runtime does not do offloaded layers: {where}{EXPECTED}")
    assert "\n" not in str(caught.value)
    assert type(model) is PersimmonForCausalLM
    assert [(name, id(value), value.device) for name, value in model.named_parameters()] == before


@pytest.mark.parametrize(("offload", "where"), [row for row in OFFLOADED if row[0] is not by_map_to_both])
def test_layers_that_are_offloaded_later_are_handed_over(offload: Any, where: str, tmp_path: Path) -> None:
    model = accelerate(small_model())
    expected = text(model)
    offload(model, tmp_path)
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(text(model), expected)
    assert len(handed_over(recorded)) == 1
    assert handed_over(recorded)[0].startswith(f"offloaded layers: {where}{EXPECTED}")
    placement.hooks.remove_hook_from_module(model, recurse=True)
    assert_served(model, small_model())  # the hooks have brought the parameters back
    assert torch.equal(text(restore(model)), expected)
    assert_served(accelerate(model), small_model())


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, on_cpu_but({})], ids=str)
def test_a_device_map_of_one_device_is_served(device_map: Any, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    model = PersimmonForCausalLM.from_pretrained(tmp_path, device_map=device_map)
    assert_served(accelerate(model), small_model())
    assert torch.equal(text(restore(model)), text(small_model()))


def test_hooks_that_only_place_inputs_are_served() -> None:
    """As those of a device_map whose modules are all on one accelerator."""
    model = small_model()
    placement.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True, offload_buffers=False)
    hooked = [vars(module).get("_hf_hook") for module in model.modules()]
    assert any(hook is not None and not hook.offload for hook in hooked)
    assert_served(accelerate(model), small_model())
    # A further hook may compute something.
    placement.hooks.add_hook_to_module(model.lm_head, placement.hooks.ModelHook(), append=True)
    with pytest.warns(UserWarning, match="a hook on lm_head"):
        text(model)


def test_a_forward_of_ones_own_below_such_a_hook_is_noticed() -> None:
    model = small_model()
    forward = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: 2 * forward(x)
    placement.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    with pytest.raises(NotServedError, match="a hook on model.layers.1.mlp"):
        accelerate(model)


def test_the_package_accelerate_is_not_needed() -> None:
    package = Path(__file__).resolve().parents[2] / "adept_fast" / "integrations"
    for file in package.rglob("*.py"):
        text_of_file = file.read_text(encoding="utf-8")
        assert "import accelerate\n" not in text_of_file.replace(os.linesep, "\n"), file
        assert "from accelerate" not in text_of_file, file
