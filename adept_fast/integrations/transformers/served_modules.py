"""check_modules: whether the modules of a model compute what the runtime computes in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from adept_fast.integrations.transformers.not_served import NotServedError

# Packages whose modules compute what their class says; others may compute something else.
_KNOWN_PACKAGES = (
    "torch.nn.modules",
    "transformers.models.persimmon",
    "transformers.activations",
    "adept_fast",
)

# Packages whose modules and parameters are quantized.
_QUANTIZERS = (
    "aqlm",
    "auto_gptq",
    "auto_round",
    "awq",
    "bitsandbytes",
    "compressed_tensors",
    "eetq",
    "fbgemm_gpu",
    "gptqmodel",
    "hqq",
    "optimum.quanto",
    "quark",
    "torch.ao",
    "torchao",
    "transformers.integrations",
    "vptq",
)
_UNQUANTIZED = (
    "load it without quantization_config, or quantize it while loading by "
    "adept_fast.Runtime.load(…, weights='int8')"
)
_ONE_DEVICE = (
    "expected all layers on one device, as from_pretrained loads them without device_map, "
    "or with device_map='cuda:0'"
)

# Attributes of a module that the package accelerate has given a hook: the hook, and the forward before.
_HOOK, _FORWARD_BEFORE_HOOK = "_hf_hook", "_old_forward"
_COMPILED_FROM = "_torchdynamo_orig_callable"  # of a function that torch.compile returns


def check_modules(model: nn.Module) -> None:
    """Raises NotServedError if a module may not compute what transformers' Persimmon computes.

    Quantized and offloaded models have a message of their own, with the first such module.
    """
    _check_method(model)
    for name, module in model.named_modules():
        _check_class(name, module)
        _check_hooks(name, module)
    for name, parameter in model.named_parameters():
        kind = type(parameter)
        if _is_of(kind, _QUANTIZERS):
            raise _quantized(_method_of(kind), f" ({name} is a {kind.__module__}.{kind.__name__})")


def _check_method(model: nn.Module) -> None:
    """Raises NotServedError for a model that transformers has quantized while loading it."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", config)
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    method = get("quant_method") or getattr(model, "quantization_method", None)
    if method is not None:
        raise _quantized(getattr(method, "value", method))
    if config is not None or getattr(model, "is_quantized", False):
        raise _quantized("a method without a name")


def _check_class(name: str, module: nn.Module) -> None:
    kind = type(module)
    kind_name = f"{kind.__module__}.{kind.__name__}"
    if _is_of(kind, _QUANTIZERS):
        raise _quantized(_method_of(kind), f" ({name} is a {kind_name})")
    if "quantization_scheme" in vars(module):
        raise _quantized("compressed_tensors", f" ({name} has a quantization_scheme)")
    if not _is_of(kind, _KNOWN_PACKAGES):
        raise NotServedError(f"{name or 'the model'}, a {kind_name}")


def _check_hooks(name: str, module: nn.Module) -> None:
    for hook in _placing_hooks(module):
        if type(hook).__name__ == "CpuOffload" or getattr(hook, "offload", False):
            place = _place_of(name, hook)
            raise NotServedError(f"offloaded layers: {name or 'the model'} is on the {place}; {_ONE_DEVICE}")
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # transformers' own hooks record outputs, and stay after the first request for outputs.
    foreign = any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)
    if foreign or not _has_own_forward(module):
        raise NotServedError(f"a hook on {name or 'the model'}")


def _quantized(method: str, reason: str = "") -> NotServedError:
    return NotServedError(f"a model quantized by {method}{reason}; {_UNQUANTIZED}")


def _is_of(kind: type, packages: tuple[str, ...]) -> bool:
    return f"{kind.__module__}.".startswith(tuple(f"{package}." for package in packages))


def _method_of(kind: type) -> str:
    package = next(package for package in _QUANTIZERS if _is_of(kind, (package,)))
    return kind.__module__ if package == "transformers.integrations" else package


def _placing_hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of the package accelerate, which place a module's inputs and parameters on devices."""
    hook = vars(module).get(_HOOK)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _place_of(name: str, hook: Any) -> str:
    """``CPU`` or ``disk``: where the parameters of an offloaded module are."""
    stored = getattr(getattr(hook, "weights_map", None), "dataset", None)
    on_disk = any(key.startswith(f"{name}.") for key in getattr(stored, "index", ()))
    return "disk" if on_disk else "CPU"


def _has_own_forward(module: nn.Module) -> bool:
    """Whether ``module.forward`` is of its class, compiled or not, below hooks that only place tensors."""
    forward: Callable[..., Any] | None = vars(module).get("forward")
    if forward is None:
        return True
    placing = list(_placing_hooks(module))
    if placing and all(type(hook).__name__ == "AlignDevicesHook" for hook in placing):
        forward = vars(module).get(_FORWARD_BEFORE_HOOK)
    forward = getattr(forward, _COMPILED_FROM, forward)
    kind = type(module)
    # A model that was accelerated may keep the forward that it had then.
    accelerated = [each for each in kind.__subclasses__() if _is_of(each, ("adept_fast",))]
    known = [vars(each).get("forward") for each in (*kind.__mro__, *accelerated)]
    return getattr(forward, "__self__", None) is module and getattr(forward, "__func__", None) in known
