"""What stands in for transformers' base classes where it is not installed: their methods used most.

Names, arguments and defaults are those of transformers 5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Fields and defaults of transformers' PersimmonConfig.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "hidden_act": "relu2",
    "max_position_embeddings": 16384,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "use_cache": True,
    "tie_word_embeddings": False,
    "qk_layernorm": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "problem_type": None,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "architectures": None,
    "dtype": None,
}
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


class BaseConfig:
    """A config whose fields are attributes, as transformers' PersimmonConfig."""

    model_type = "persimmon"
    problem_type: str | None
    _attn_implementation: str | None

    def __init__(self, **values: Any) -> None:
        rope = values.pop("rope_parameters", None) or values.pop("rope_scaling", None) or {}
        named = {name: values.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in values}
        self.rope_parameters = _DEFAULT_ROPE | named | rope
        labels = values.pop("id2label", None)
        count = values.pop("num_labels", None)
        self.id2label: dict[int, str] = {}
        self.label2id: dict[str, int] = {}
        self.num_labels = 2 if count is None else count
        if labels is not None:
            self.id2label = {int(at): label for at, label in labels.items()}
            self.label2id = {label: at for at, label in self.id2label.items()}
        values.pop("model_type", None)
        for name, value in {**_DEFAULTS, **values}.items():
            setattr(self, name, value)

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != len(self.id2label):
            self.id2label = {at: f"LABEL_{at}" for at in range(count)}
            self.label2id = {label: at for at, label in self.id2label.items()}

    def to_dict(self) -> dict[str, Any]:
        """The contents of a ``config.json``."""
        values = {**vars(self), "model_type": self.model_type}
        values.pop("name_or_path", None)
        if isinstance(self.dtype, torch.dtype):
            values["dtype"] = str(self.dtype).removeprefix("torch.")
        values["id2label"] = {str(at): label for at, label in self.id2label.items()}
        return dict(sorted(values.items()))

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> Any:
        """Build from the contents of a ``config.json``, with some values replaced."""
        if "num_labels" in changes and "id2label" not in changes:
            values = {name: value for name, value in values.items() if name not in ("id2label", "label2id")}
        return cls(**{**values, **changes})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is not a field of {type(self).__name__}")


class BaseModel(nn.Module):
    """The methods of transformers' PreTrainedModel that need no other package."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Initialise the modules of this class, with deviation ``config.initializer_range``; then tie."""
        for child in self.children():
            if not isinstance(child, BaseModel):
                child.apply(self._init_weights)
        self.tie_weights()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def tie_weights(self, **options: Any) -> None:
        """Share the parameters that the config ties."""
        if self.config.tie_word_embeddings and (head := self.get_output_embeddings()) is not None:
            head.weight = self.get_input_embeddings().weight

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def base_model(self) -> nn.Module:
        return getattr(self, "model", self)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        embeddings = {id(self.get_input_embeddings().weight)} if exclude_embeddings else set()
        return sum(
            each.numel()
            for each in self.parameters()
            if (each.requires_grad or not only_trainable) and id(each) not in embeddings
        )

    def get_input_embeddings(self) -> Any:
        return self.base_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.embed_tokens = value

    def get_output_embeddings(self) -> Any:
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, value: nn.Module) -> None:
        if not hasattr(self, "lm_head"):
            raise NotImplementedError(f"{type(self).__name__} has no output embeddings")
        self.lm_head = value

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """In training, keep only the input of each layer and recompute the rest for the gradients."""
        options = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
        self._set_gradient_checkpointing(True, functools.partial(checkpoint, **options))

    def gradient_checkpointing_disable(self) -> None:
        self._set_gradient_checkpointing(False, checkpoint)

    def _set_gradient_checkpointing(self, enabled: bool, function: Callable[..., Any]) -> None:
        for module in self.modules():
            if isinstance(module, RecomputedLayer):
                module.gradient_checkpointing = enabled
                module._gradient_checkpointing_func = function


class RecomputedLayer(nn.Module):
    """A layer that in training may keep only its input, and then runs again for the gradients."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(super().__call__, *args)
        return super().__call__(*args)


class GenerationMixin:
    """Nothing of transformers' class of this name."""


class GeneratesText:
    """``generate``, which needs transformers for its settings, processors and criteria."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        raise ImportError(
            "generate needs the package transformers, which is not installed: "
            "pip install 'transformers>=5.2', or use adept_fast.Runtime"
        )
