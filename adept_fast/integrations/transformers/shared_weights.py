"""SharedWeights: a transformers model's parameters as the runtime takes them, in one and the same memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, dtype_name
from adept_fast.checkpoint.base import StoredTensor
from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.weights import load_weights

_EMBEDDING = "model.embed_tokens.weight"
_DOWN_PROJECTION = "mlp.dense_4h_to_h.weight"

# Modules that compute what their class says. Others may have the same parameters and do something else.
_KNOWN_MODULES = ("torch.nn.modules.", "transformers.", "adept_fast.")

Place = tuple[str, int, torch.dtype, torch.device, torch.Size, tuple[int, ...]]


class TransposedParameter(nn.Parameter):
    """A matrix whose memory holds its transpose. It can still be read as one vector, or be written to a file.

    A parameter becomes one by its class, so that whoever holds it, such as an optimizer, goes on doing so.
    """

    def view(self, *shape: Any) -> Any:
        """torch's; a copy where the layout has no such view."""
        return super().contiguous().view(*shape)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As an ordinary parameter, since what is loaded has no runtime."""
        return nn.Parameter(self.data.contiguous(), self.requires_grad).__reduce_ex__(protocol)


class SharedWeights:
    """The weights of a PersimmonForCausalLM, without a copy of its matrices.

    Matrices are the parameters themselves. The runtime wants the down-projection transposed, so that becomes
    its layout in memory and the parameter a transposed view of it: the module computes what it did, and
    whoever writes to a parameter writes to both. Vectors are float32 in the runtime: those of float32 models
    are shared too, those of others are copies, which ``refresh`` brings up to date.

    Raises NotServedError for a model that the runtime does not compute, saying what of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.config = _config_of(model)
        parameters = _parameters_of(model, self.config)
        self.dtype = parameters[_EMBEDDING].dtype
        self.device = parameters[_EMBEDDING].device
        self._narrow = [p for p in parameters.values() if p.ndim == 1 and p.dtype != torch.float32]
        # Made in inference mode, they could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in parameters.items():
                _lay_out(name, parameter)
            self._wide = [parameter.detach().float() for parameter in self._narrow]
            copies = {id(p): copy for p, copy in zip(self._narrow, self._wide, strict=True)}
            tensors = {name: copies.get(id(p), p.detach()) for name, p in parameters.items()}
            self.weights = load_weights(
                _checkpoint_of(self.config, tensors), dtype=self.dtype, device=self.device, check_finite=False
            )
        self._places = _places_of(model)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of the cache that suits the weights: float16, which says more of a key than bfloat16 would."""
        return torch.float32 if self.dtype == torch.float32 else torch.float16

    def refresh(self) -> None:
        """Take over what has been written to the parameters that are copied."""
        if self._narrow:
            # However they were written to: not every way counts as a new version.
            with torch.no_grad():
                torch._foreach_copy_(self._wide, [p.detach() for p in self._narrow])

    def are_of(self, model: nn.Module) -> bool:
        """Whether the parameters are where they were; ``model.to(…)`` moves them."""
        return self._places == _places_of(model)


def check_modules(model: nn.Module) -> None:
    """Raises NotServedError where the modules compute something else than transformers' Persimmon does."""
    for name, module in model.named_modules():
        kind = type(module)
        if not f"{kind.__module__}.".startswith(_KNOWN_MODULES):
            raise NotServedError(f"{name or 'the model'}, a {kind.__module__}.{kind.__name__}")
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # transformers' own hooks record outputs, and stay once they have been asked for.
        foreign = any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)
        if foreign or "forward" in vars(module):
            raise NotServedError(f"a hook on {name or 'the model'}")


def _config_of(model: Any) -> PersimmonConfig:
    try:
        return PersimmonConfig.from_dict(model.config.to_dict())
    except ConfigError as error:
        raise NotServedError(f"a model whose {error}") from error


def _parameters_of(model: nn.Module, config: PersimmonConfig) -> dict[str, nn.Parameter]:
    """transformers' name → parameter, of all that the config calls for, checked."""
    found = dict(model.named_parameters())
    parameters = {}
    for name, shape in config.tensor_shapes().items():
        parameter = found.get(name)
        if parameter is None:
            raise NotServedError(f"a model without the parameter {name}")
        if (
            type(parameter) not in (nn.Parameter, TransposedParameter)
            or parameter.dtype not in WEIGHT_DTYPES.values()
        ):
            raise NotServedError(f"{name}, a {type(parameter).__name__} of {dtype_name(parameter.dtype)}")
        if tuple(parameter.shape) != shape:
            raise NotServedError(
                f"{name} of shape {list(parameter.shape)}, where the config has {list(shape)}"
            )
        parameters[name] = parameter
    _check_alike(parameters)
    return parameters


def _check_alike(parameters: dict[str, nn.Parameter]) -> None:
    first = parameters[_EMBEDDING]
    if first.device.type not in ("cpu", "cuda"):
        raise NotServedError(f"a model on {first.device}")
    for name, parameter in parameters.items():
        if parameter.device != first.device:
            raise NotServedError(f"a model on several devices, {first.device} and {parameter.device}")
        if parameter.ndim == 2 and parameter.dtype != first.dtype:
            raise NotServedError(
                f"matrices of several dtypes: {_EMBEDDING} is {dtype_name(first.dtype)}, "
                f"{name} {dtype_name(parameter.dtype)}"
            )


def _lay_out(name: str, parameter: nn.Parameter) -> None:
    """Have a parameter lie in memory as the runtime reads it, its values and its shape unchanged."""
    if name.endswith(_DOWN_PROJECTION):
        if not parameter.t().is_contiguous():
            parameter.data = parameter.data.t().contiguous().t()
        parameter.__class__ = TransposedParameter
    elif not parameter.is_contiguous():
        parameter.data = parameter.data.contiguous()


def restore_layout(model: nn.Module) -> None:
    """Have the down-projections lie in memory as transformers loads them."""
    for name, parameter in model.named_parameters():
        if name.endswith(_DOWN_PROJECTION):
            parameter.data = parameter.data.contiguous()
            if type(parameter) is TransposedParameter:
                parameter.__class__ = nn.Parameter  # type: ignore[assignment]


def _checkpoint_of(config: PersimmonConfig, tensors: dict[str, Tensor]) -> Checkpoint:
    """Tensors in memory, to be read as those of a checkpoint are; text is transformers' business."""

    def stored(name: str, tensor: Tensor) -> StoredTensor:
        return StoredTensor(name, tuple(tensor.shape), tensor.dtype, "transformers", lambda: tensor)

    return Checkpoint(
        path=Path(),
        format="transformers",
        config=config,
        tensors={name: stored(name, tensor) for name, tensor in tensors.items()},
        tokenizer=cast(Any, None),
    )


def _places_of(model: nn.Module) -> list[Place]:
    return [
        (name, p.data_ptr(), p.dtype, p.device, p.shape, p.stride()) for name, p in model.named_parameters()
    ]
