"""SharedWeights: the parameters of a transformers model as the runtime's weights, in the same memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, dtype_name
from adept_fast.checkpoint.base import StoredTensor
from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.weights import EMBEDDING, load_weights

_DOWN_PROJECTION = "mlp.dense_4h_to_h.weight"

Address = tuple[str, int, torch.dtype, torch.device, torch.Size, tuple[int, ...]]


class TransposedParameter(nn.Parameter):
    """A matrix whose memory holds its transpose. It can still be viewed as a vector and written to a file.

    An existing parameter gets this class, so that references to it, such as an optimizer's, stay valid.
    """

    def view(self, *shape: Any) -> Any:
        """torch's; a copy if the layout has no such view."""
        return super().contiguous().view(*shape)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As an ordinary parameter, since a loaded model has no runtime."""
        return nn.Parameter(self.data.contiguous(), self.requires_grad).__reduce_ex__(protocol)


class SharedWeights:
    """The weights of a PersimmonForCausalLM, without a copy of its matrices.

    Matrices are the parameters themselves. The down-projection becomes transposed in memory, as the runtime
    reads it, and its parameter a transposed view: the module computes the same, and writes to the parameter
    reach the runtime. Vectors are float32 in the runtime: those of float32 models are shared too, others are
    copies, which ``refresh`` updates.

    Raises NotServedError for a model that the runtime does not support.
    """

    def __init__(self, model: nn.Module) -> None:
        self.config = _config_of(model)
        parameters = _parameters_of(model, self.config)
        self.dtype = parameters[EMBEDDING].dtype
        self.device = parameters[EMBEDDING].device
        self._narrow = [p for p in parameters.values() if p.ndim == 1 and p.dtype != torch.float32]
        # Tensors of inference mode cannot be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in parameters.items():
                _lay_out(name, parameter)
            self._wide = [parameter.detach().float() for parameter in self._narrow]
            copies = {id(p): copy for p, copy in zip(self._narrow, self._wide, strict=True)}
            tensors = {name: copies.get(id(p), p.detach()) for name, p in parameters.items()}
            self.weights = load_weights(
                _checkpoint_of(self.config, tensors), dtype=self.dtype, device=self.device, check_finite=False
            )
        self._addresses = _addresses_of(model)

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype of the cache: float16 unless weights are float32, since bfloat16 is less precise."""
        return torch.float32 if self.dtype == torch.float32 else torch.float16

    def refresh(self) -> None:
        """Update the copies from their parameters."""
        if self._narrow:
            # Always, since not every write changes a tensor's version.
            with torch.no_grad():
                torch._foreach_copy_(self._wide, [p.detach() for p in self._narrow])

    def are_of(self, model: nn.Module) -> bool:
        """Whether the parameters have not moved, as by ``model.to(…)``."""
        return self._addresses == _addresses_of(model)


def _config_of(model: Any) -> PersimmonConfig:
    try:
        return PersimmonConfig.from_dict(model.config.to_dict())
    except ConfigError as error:
        raise NotServedError(f"a model whose {error}") from error


def _parameters_of(model: nn.Module, config: PersimmonConfig) -> dict[str, nn.Parameter]:
    """The parameters that the config calls for, by transformers' names, checked."""
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
            raise NotServedError(f"{name} of shape {list(parameter.shape)}; the config has {list(shape)}")
        parameters[name] = parameter
    _check_alike(parameters)
    return parameters


def _check_alike(parameters: dict[str, nn.Parameter]) -> None:
    first = parameters[EMBEDDING]
    if first.device.type not in ("cpu", "cuda"):
        raise NotServedError(f"a model on {first.device}")
    for name, parameter in parameters.items():
        if parameter.device != first.device:
            raise NotServedError(f"a model on several devices, {first.device} and {parameter.device}")
        if parameter.ndim == 2 and parameter.dtype != first.dtype:
            raise NotServedError(
                f"matrices of several dtypes: {EMBEDDING} is {dtype_name(first.dtype)}, "
                f"{name} {dtype_name(parameter.dtype)}"
            )


def _lay_out(name: str, parameter: nn.Parameter) -> None:
    """Give a parameter the memory layout of the runtime; its values and shape do not change."""
    if name.endswith(_DOWN_PROJECTION):
        if not parameter.t().is_contiguous():
            parameter.data = parameter.data.t().contiguous().t()
        parameter.__class__ = TransposedParameter
    elif not parameter.is_contiguous():
        parameter.data = parameter.data.contiguous()


def restore_layout(model: nn.Module) -> None:
    """Give the down-projections the memory layout of transformers."""
    for name, parameter in model.named_parameters():
        if name.endswith(_DOWN_PROJECTION):
            parameter.data = parameter.data.contiguous()
            if type(parameter) is TransposedParameter:
                parameter.__class__ = nn.Parameter  # type: ignore[assignment]


def _checkpoint_of(config: PersimmonConfig, tensors: dict[str, Tensor]) -> Checkpoint:
    """Tensors in memory as a checkpoint without a tokenizer."""

    def stored(name: str, tensor: Tensor) -> StoredTensor:
        return StoredTensor(name, tuple(tensor.shape), tensor.dtype, "transformers", lambda: tensor)

    return Checkpoint(
        path=Path(),
        format="transformers",
        config=config,
        tensors={name: stored(name, tensor) for name, tensor in tensors.items()},
        tokenizer=cast(Any, None),
    )


def _addresses_of(model: nn.Module) -> list[Address]:
    return [
        (name, p.data_ptr(), p.dtype, p.device, p.shape, p.stride()) for name, p in model.named_parameters()
    ]
