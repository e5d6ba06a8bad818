"""What the rows of test_dependencies.py try where no signature tells: each is given the object of its row,
and an empty directory, and gives what it found."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers_for_tests import train


def dispatched(mode: Any, directory: Path) -> tuple[str, str, list[str]]:
    calls = []

    class Recorder(mode):  # type: ignore[misc]  # found by name
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append((func.name(), func.namespace, [given.name for given in func._schema.arguments]))
            return func(*args, **(kwargs or {}))

    with Recorder():
        torch.zeros(2).add(torch.ones(2))
    return calls[-1]


def safetensors_by_descriptor(module: Any, directory: Path) -> tuple[Any, ...]:
    from safetensors.torch import save_file

    path = directory / "a.safetensors"
    save_file({"a": torch.zeros(2, 3, dtype=torch.float16)}, path, {"b": "c"})
    with path.open("rb") as file:
        path.unlink()
        named = f"/dev/fd/{file.fileno()}"
        with module.safe_open(named, framework="np") as opened:
            found = opened.keys(), opened.metadata()
    path.write_bytes(b"damaged")
    try:
        module.safe_open(path, framework="np")
    except module.SafetensorError as error:
        return *map(list, found), "deserializing header" in str(error)
    return ()


def sentencepiece_methods(module: Any, directory: Path) -> tuple[Any, ...]:
    processor = module.SentencePieceProcessor(model_proto=train())
    ids = processor.encode(b"the quick fox")  # bytes: str may hold what is no UTF-8
    piece = processor.id_to_piece(ids[0])
    kinds = [processor.is_control(0), processor.is_unknown(0), processor.is_byte(0)]
    same = processor.piece_to_id(piece) == ids[0] and processor.decode(ids) == "the quick fox"
    same = same and processor.normalize("a b") == "▁a▁b"
    ends = processor.bos_id(), processor.eos_id()
    return same, ids == processor.encode("the quick fox"), kinds, type(processor.get_score(ids[0])), ends


def stream_of_click(testing: Any, directory: Path) -> tuple[str, str]:
    import click

    @click.command()
    def both() -> None:
        click.echo("out")
        click.echo("err", err=True)

    result = testing.CliRunner().invoke(both)
    return result.stdout, result.stderr


def option_of_click(option: Any, directory: Path) -> list[Any]:
    import click
    from click.testing import CliRunner

    told: list[Any] = []

    def remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        ctx.meta["here"] = value
        told.append((parameter.name, ctx.meta["here"]))

    command = click.Command("x", callback=lambda: None)
    command.params.append(option(["--flag"], is_flag=True, envvar="X", expose_value=False, callback=remember))
    CliRunner().invoke(command, ["--flag"], catch_exceptions=False)
    return told


def static_length(static_cache: Any, directory: Path) -> bool:
    from transformers import PersimmonConfig, PersimmonForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = PersimmonForCausalLM(PersimmonConfig(vocab_size=9, **sizes))
    cache = static_cache(config=model.config, max_cache_len=4)
    accepted = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    model(torch.tensor([[1, 2]]), **{accepted: cache}, use_cache=True)
    return int(cache.layers[0].cumulative_length) == 2 and bool(model.config._attn_implementation)


def what_was_compiled(compile_module: Any, _: Any) -> tuple[bool, bool]:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    module = Module()
    compiled, forward = (compile_module(each, backend="eager") for each in (module, module.forward))
    return compiled._orig_mod is module, forward._torchdynamo_orig_callable == module.forward


def hook_that_places(hooks: Any, _: Any) -> tuple[bool, bool, bool, list[str]]:
    """Whether a module has its hook and its forward from before, if it is offloaded, and names of hooks."""
    module = torch.nn.Linear(1, 1)
    forward, hook = module.forward, hooks.AlignDevicesHook(execution_device="cpu")
    hooks.add_hook_to_module(module, hook)
    names = [name for name in ("AlignDevicesHook", "CpuOffload", "SequentialHook") if hasattr(hooks, name)]
    return module._hf_hook is hook, module._old_forward == forward, hook.offload, names


def header_declares(torch_module: Any, directory: Path) -> str:
    from torch.utils.cpp_extension import include_paths

    found = [
        match[0]
        for folder in include_paths()
        for header in Path(folder).glob("torch/csrc/inductor/aoti_torch/c/shim.h")
        for match in [re.search(r"aoti_torch_get_current_cuda_stream\(.*?\)", header.read_text(), re.S)]
        if match
    ]
    return " ".join(found[0].split()) if found else "nothing"


def what_a_decoding_method_is_given(transformers: Any, _: Any) -> tuple[bool, bool, bool, int]:
    """Whether ids, use_cache and one cache come there, and the padding id."""
    given: dict[str, Any] = {}

    class Model(transformers.PersimmonForCausalLM):  # type: ignore[misc]
        def _sample(self, input_ids: Any, **arguments: Any) -> Any:
            given.update(arguments, input_ids=input_ids)
            return input_ids

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = Model(transformers.PersimmonConfig(vocab_size=9, **sizes))
    model.generate(torch.tensor([[3, 4]]), max_new_tokens=1, pad_token_id=0, do_sample=False)
    caches = [name for name in ("cache", "past_key_values") if name in given]
    pad = int(given["generation_config"]._pad_token_tensor)
    return given["input_ids"].shape == (1, 2), given["use_cache"] is True, len(caches) == 1, pad
