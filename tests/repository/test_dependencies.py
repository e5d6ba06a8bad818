"""What this project takes from other packages although they never promised it, each with a test of its own.

``pyproject.toml`` bounds no package from above, so a release may break any of these; the test that then fails
says which. A row is there only where there is no public way, and says why. What is used of a package is
added by a row: a Name that has to exist, a Signature, or a Behaviour with what tries it in relied_probes.py.

Not in the tables: CUDA's words ``out of memory`` in a RuntimeError (adept_fast/engine/graphs.py), which
take a GPU to see, and flash-attn and apex, which are tried against torch before each use
(adept_fast/ops/optional.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import relied_probes as probes
from fake_graph import DATA_DEPENDENT
from relied_upon import Behaviour, Name, Signature

from adept_fast.extension.recipe.toolchain import STABLE_ABI

ROOT = Path(__file__).resolve().parents[2]
FORMAT = "the file format of torch.save names it, and a checkpoint is written without its weights in memory"
OVERRIDDEN = "lm-eval calls ours in its place"
DECODES = "generate prepares a request and calls this; there is no public place between the two"
NO_MODE = "torch documents it, but under no public name"
NAMES = [
    Name("torch.FloatStorage", FORMAT),
    Name("torch.HalfStorage", FORMAT),
    Name("torch.BFloat16Storage", FORMAT),
    Name("torch._dynamo.mark_static_address", "torch.compiler has no name for it (a rival's CUDA graph)"),
    Name(
        "torch._foreach_copy_",
        "the public copy_ takes one tensor a call, and a model has hundreds of vectors",
    ),
    Name("transformers.PersimmonForCausalLM._beam_search", DECODES),
    Name("transformers.PersimmonForCausalLM.load_custom_generate", "a custom generate is announced here"),
    Name("transformers.generation.utils.GenerateBeamDecoderOnlyOutput", "what generate returns"),
    Name("torch.utils._pytree.register_pytree_node", "how torch.export is told of classes of outputs"),
    Name("transformers.PreTrainedModel._hf_peft_config_loaded", "it alone tells a model with adapters"),
    Name("setuptools.command.build_py.build_py.editable_mode", "it alone says that nothing is to be copied"),
    Name("setuptools.errors.BaseError", "what a failing build_ext raises is documented nowhere"),
    Name("setuptools.errors.CCompilerError", "the same"),
    Name(
        "os._exit", "documented, in spite of its name; nothing else ends a process in the middle of an import"
    ),
    Name("ray.serve.request_router.RequestRouter.max_num_routing_tasks", "each request may wait alone"),
    Name("ray.serve.request_router.RequestRouter.supports_rejection_protocol", "the router counts by itself"),
    Name("ray.serve.request_router.RequestRouter.curr_replicas", "it has no page of its own"),
    Name("lm_eval.__main__.cli_evaluate", "lm-eval's command line has no other function"),
    Name("lm_eval.models.MODEL_MAPPING", "it fills the registry when first imported, so that is done early"),
    Name("lm_eval.api.model.TemplateLM.prefix_token_id", OVERRIDDEN),
    Name("lm_eval.api.model.TemplateLM.tokenizer_name", OVERRIDDEN),
    Name("lm_eval.api.instance.Instance.args", "the only way to a request's texts"),
]

DECODING = ("input_ids", "logits_processor", "stopping_criteria", "generation_config")
LM = "lm_eval.api.model.TemplateLM"
EXT = "setuptools.command.build_ext.build_ext"
BUILD = "setuptools calls ours in its place"
SANDBOX = "jinja2.sandbox.SandboxedEnvironment"
JINJA = "jinja calls ours in its place"
CLICK = "click calls ours in its place"
SERVER = "uvicorn's serve calls ours in its place"
ROUTER = "ray.serve.request_router.RequestRouter"
ROUTES = "Ray Serve calls ours in its place, and documents request routers as alpha"
SIGNATURES = [
    Signature(
        "torch._utils._rebuild_tensor_v2",
        FORMAT,
        ("storage", "storage_offset", "size", "stride", "requires_grad", "backward_hooks"),
    ),
    Signature("torch.utils.cpp_extension.CppExtension", "its page has no signature", ("name", "sources")),
    Signature("torch.utils.cpp_extension.BuildExtension.with_options", "the same", ("use_ninja",)),
    Signature("torch.utils.cpp_extension.include_paths", "where torch's headers are", ()),
    Signature("torch.utils.cpp_extension.library_paths", "on no page of torch's", ()),
    Signature(f"{EXT}.build_extensions", BUILD, ("self",), "override"),
    Signature(
        "setuptools.command.build_ext.build_ext.copy_extensions_to_source", BUILD, ("self",), "override"
    ),
    Signature("setuptools.command.build_py.build_py.run", BUILD, ("self",), "override"),
    Signature("click.Command.invoke", CLICK, ("self", "ctx"), "override"),
    Signature(
        "click.Command.make_context", CLICK, ("self", "info_name", "args", "parent", "extra"), "override"
    ),
    Signature(
        "click.Command.main",
        "the program and click.testing call ours in its place",
        ("self", "args", "prog_name", "complete_var", "standalone_mode", "windows_expand_args", "extra"),
        "override",
    ),
    Signature("click.ClickException.show", CLICK, ("self", "file"), "override"),
    Signature("click.ParamType.convert", CLICK, ("self", "value", "param", "ctx"), "override"),
    Signature("uvicorn.Server.capture_signals", SERVER, ("self",), "override"),
    Signature("uvicorn.Server.startup", SERVER, ("self", "sockets"), "override"),
    Signature(f"{LM}.tok_encode", OVERRIDDEN, ("self", "string", "add_special_tokens", "kwargs"), "override"),
    Signature(f"{LM}._loglikelihood_tokens", OVERRIDDEN, ("self", "requests", "kwargs"), "override"),
    Signature(f"{LM}.loglikelihood_rolling", OVERRIDDEN, ("self", "requests", "disable_tqdm"), "override"),
    Signature(f"{LM}.generate_until", OVERRIDDEN, ("self", "requests", "disable_tqdm"), "override"),
    Signature(f"{LM}.chat_template", OVERRIDDEN, ("self", "chat_template"), "override"),
    Signature(
        f"{LM}.apply_chat_template", OVERRIDDEN, ("self", "chat_history", "add_generation_prompt"), "override"
    ),
    Signature(f"{LM}.loglikelihood", "it calls _loglikelihood_tokens", ("self", "requests", "disable_tqdm")),
    Signature(f"{LM}._encode_pair", "it cuts a text by tok_encode", ("self", "context", "continuation")),
    Signature(
        "lm_eval.api.model.CacheHook.add_partial",
        "lm-eval keeps answers by it",
        ("self", "attr", "req", "res"),
    ),
    Signature("lm_eval.api.registry.register_model", "lm-eval has no plugins", ("names",)),
    Signature("lm_eval.api.registry.get_model", "the same", ("model_name",)),
    Signature(
        "lm_eval.utils.get_rolling_token_windows",
        "its windows are those of lm-eval's own models",
        ("token_list", "prefix_token", "max_seq_len", "context_len"),
    ),
    Signature("lm_eval.utils.make_disjoint_window", "the same", ("pair",)),
    Signature("sentencepiece.SentencePieceProcessor.__init__", "its code alone", ("self", "model_proto")),
    Signature(
        "sentencepiece.SentencePieceNormalizer.__init__",
        "the same",
        ("self", "model_proto", "add_dummy_prefix", "escape_whitespaces", "remove_extra_whitespaces"),
    ),
    Signature(f"{ROUTER}.initialize_state", ROUTES, ("self", "kwargs"), "override"),
    Signature(f"{ROUTER}.update_replicas", ROUTES, ("self", "replicas"), "override"),
    Signature(f"{ROUTER}.on_replica_actor_died", ROUTES, ("self", "replica_id"), "override"),
    Signature(f"{ROUTER}.on_send_request", ROUTES, ("self", "replica_id"), "override"),
    Signature(f"{ROUTER}.decrement_queue_len_cache", ROUTES, ("self", "replica_id"), "override"),
    Signature(
        f"{ROUTER}.choose_replicas", ROUTES, ("self", "candidate_replicas", "pending_request"), "override"
    ),
    Signature(f"{SANDBOX}.call_binop", JINJA, ("self", "context", "operator", "left", "right"), "override"),
    Signature(f"{SANDBOX}.wrap_str_format", JINJA, ("self", "value"), "override"),
    Signature("jinja2.ext.Extension.parse", JINJA, ("self", "parser"), "override"),
    Signature(
        "torch.nn.Module._apply",
        "every way of moving parameters calls it",
        ("self", "fn", "recurse"),
        "override",
    ),
    Signature("transformers.PersimmonForCausalLM._sample", DECODES, ("self", *DECODING)),
    Signature("transformers.PersimmonForCausalLM._assisted_decoding", DECODES, ("self", *DECODING)),
    Signature(
        "transformers.Cache.update",
        "a returned cache is filled by it",
        ("self", "key_states", "value_states", "layer_idx"),
    ),
    Signature("transformers.StaticCache.__init__", "a rival's cache", ("self", "config", "max_cache_len")),
    Signature(
        "transformers.models.persimmon.modeling_persimmon.PersimmonRotaryEmbedding.__init__",
        "a rival made on the meta device has no buffers",
        ("self", "config"),
    ),
    Signature(
        "transformers.PersimmonForCausalLM.forward",
        "a rival's; it has been renamed once, so transformers_worker.py reads what its cache is called",
        ("self", "input_ids", "use_cache", "logits_to_keep"),
    ),
]


BEHAVIOURS = [
    Behaviour(
        "torch.utils._python_dispatch.TorchDispatchMode",
        f"{NO_MODE}, and the names of arguments only in func._schema",
        probes.dispatched,
        ("aten::add.Tensor", "aten", ["self", "other", "alpha"]),
    ),
    Behaviour(
        "torch._C._dispatch_get_all_op_names",
        "nothing public lists operators, and fake_graph.py goes by the names of some",
        lambda names, _: sorted(DATA_DEPENDENT - set(names())),
        [],
    ),
    Behaviour(
        "torch",
        "torch_device.h declares this function itself, weakly, and its header must agree",
        probes.header_declares,
        "aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream)",
    ),
    Behaviour(
        "safetensors",
        "it checks a header, of a file without a name too, and says what is wrong in one type of error",
        probes.safetensors_by_descriptor,
        (["a"], ["b"], True),
    ),
    Behaviour(
        "sentencepiece",
        "it has no reference, and these names are made at import",
        probes.sentencepiece_methods,
        (True, True, [False, True, False], float, (1, 2)),
    ),
    Behaviour("click.testing", "tests tell the streams apart", probes.stream_of_click, ("out\n", "err\n")),
    Behaviour(
        "click.Option", "a command's own list takes one more", probes.option_of_click, [("flag", True)]
    ),
    Behaviour(
        f"{LM}.__abstractmethods__",
        "AdeptFastLM has just these",
        lambda names, _: sorted(names),
        ["_loglikelihood_tokens", "eot_token_id", "generate_until", "loglikelihood_rolling", "tok_encode"],
    ),
    Behaviour(
        "torch.nn.Module",
        "nothing public lists the hooks of a module: _forward_hooks, _forward_pre_hooks",
        lambda module, _: [
            name for name in ("_forward_hooks", "_forward_pre_hooks") if hasattr(module(), name)
        ],
        ["_forward_hooks", "_forward_pre_hooks"],
    ),
    Behaviour(
        "torch.compile",
        "only _orig_mod of a module and _torchdynamo_orig_callable of a function say what was compiled",
        probes.what_was_compiled,
        (True, True),
    ),
    Behaviour(
        "accelerate.hooks",
        "only _hf_hook and _old_forward of a module say what its hook is, and which forward it replaced",
        probes.hook_that_places,
        (True, True, False, ["AlignDevicesHook", "CpuOffload", "SequentialHook"]),
    ),
    Behaviour(
        "transformers",
        "a decoding method reads _pad_token_tensor, use_cache and the cache, which have no public way there",
        probes.what_a_decoding_method_is_given,
        (True, True, True, 0),
    ),
    Behaviour(
        "transformers.StaticCache",
        "a rival rewinds by cumulative_length, reads _attn_implementation",
        probes.static_length,
        True,
    ),
]


@pytest.mark.parametrize("row", [*NAMES, *SIGNATURES], ids=lambda row: row.name)
def test_it_is_as_it_was(row: Name) -> None:
    row.check()


@pytest.mark.parametrize("row", BEHAVIOURS, ids=lambda row: row.name)
def test_it_does_what_it_did(row: Behaviour, tmp_path: Path) -> None:
    row.check_in(tmp_path)


def sources() -> dict[str, ast.Module]:
    folders = ("adept_fast", "benchmarks", "tests", "tools")
    files = [ROOT / "setup.py", *(file for name in folders for file in sorted((ROOT / name).rglob("*.py")))]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def made_here(tree: ast.Module) -> Iterator[str]:
    """The names that a file gives to something of its own."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def private_names(tree: ast.Module) -> Iterator[str]:
    """The private names that a file imports or looks up."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            yield from (str(given.value) for given in node.args if isinstance(given, ast.Constant))


@pytest.mark.slow
def test_no_private_name_of_another_package_is_without_a_row() -> None:
    trees = sources()
    ours = {name for tree in trees.values() for name in made_here(tree)}
    ours |= {"_C"}  # the extension's own; what is under torch's has a name of its own
    listed = " ".join(f"{row.name} {row.why}" for row in [*NAMES, *SIGNATURES, *BEHAVIOURS])
    known = ours | set(re.findall(r"\w+", listed))
    unlisted = [
        f"{file} uses {name}"
        for file, tree in trees.items()
        for name in sorted(set(filter(is_private, private_names(tree))) - known)
    ]
    assert not unlisted


def test_the_oldest_torch_is_the_one_that_the_extension_is_compiled_for() -> None:
    """Torch's headers hide what came later, so the binary runs on every torch from that one on."""
    target = next(flag.partition("=")[2] for flag in STABLE_ABI if "TORCH_TARGET_VERSION" in flag)
    bound = re.search(r'"torch>=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert bound is not None
    assert int(target, 16) == int(bound[1]) << 56 | int(bound[2]) << 48
