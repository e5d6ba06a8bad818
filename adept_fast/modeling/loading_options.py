"""LoadingOptions: the arguments of transformers' from_pretrained, and what they mean here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from adept_fast.arguments import ParameterError, flag
from adept_fast.checkpoint import WEIGHT_DTYPES, StoredTensor
from adept_fast.system.short_text import short_repr

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
_ATTENTION = ("sdpa", "eager")

# Arguments that change nothing here, since loading is as they ask in any case.
_WITHOUT_EFFECT = (
    "low_cpu_mem_usage",
    "trust_remote_code",
    "use_safetensors",
    "weights_only",
    "force_download",
)
# Arguments that scripts pass for what is done in another way here.
_ELSEWHERE = {
    "quantization_config": "adept_fast.Runtime.load(…, weights='int8') quantises",
    "load_in_8bit": "adept_fast.Runtime.load(…, weights='int8') quantises",
    "load_in_4bit": "adept_fast.Runtime.load(…, weights='int4') quantises",
    "cache_dir": "the environment variable HF_HUB_CACHE moves the cache",
    "local_files_only": "HF_HUB_OFFLINE=1 forbids downloads",
    "proxies": "HTTPS_PROXY sets one",
    "variant": "another directory holds other weights",
    "from_tf": "there is no such format of Persimmon",
    "from_flax": "there is no such format of Persimmon",
    "gguf_file": "there is no such format of Persimmon",
    "offload_folder": "weights are not offloaded to a disk",
    "tp_plan": "a model is on one device, or split by layers with device_map",
}


@dataclass(frozen=True)
class LoadingOptions:
    """How weights are read.

    Args:
        dtype: ``"auto"``: as stored; or float32, float16 or bfloat16, as a torch.dtype or a name.
        torch_dtype: the older name of ``dtype``.
        device: where the model goes, if no ``device_map`` says.
        device_map: a device, ``"auto"`` (or another policy of the package accelerate), or a dict from names
            of modules to devices; several devices need that package.
        max_memory: of ``device_map="auto"``, as the package accelerate takes it.
        ignore_mismatched_sizes: initialise parameters that have another shape in the checkpoint.
        attn_implementation: ``"sdpa"``, or ``"eager"`` for explicit attention weights.
        token: of the hub.
        subfolder: a folder below a directory.
    """

    dtype: torch.dtype | str = "auto"
    torch_dtype: torch.dtype | str | None = None
    device: torch.device | str = "cpu"
    device_map: Any = None
    max_memory: dict[Any, Any] | None = None
    ignore_mismatched_sizes: bool = False
    attn_implementation: str | None = None
    token: str | bool | None = None
    subfolder: str = ""

    def __post_init__(self) -> None:
        _checked_dtype(self._dtype)
        _checked_device("device", self.device)
        flag("ignore_mismatched_sizes", self.ignore_mismatched_sizes)
        if self.attn_implementation not in (None, *_ATTENTION):
            found = short_repr(self.attn_implementation)
            raise ParameterError(f"attn_implementation is {found}; expected 'sdpa' or 'eager'")
        if isinstance(self.device_map, Mapping):
            for name, device in self.device_map.items():
                _checked_device(f"device_map[{name!r}]", device)
        elif self.device_map is not None and self.device_map not in _AUTOMATIC:
            _checked_device("device_map", self.device_map)

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> tuple[LoadingOptions, dict[str, Any]]:
        """The options among keyword arguments, and the others. Raises ParameterError."""
        own = {field.name for field in fields(cls)}
        for name, instead in _ELSEWHERE.items():
            if options.get(name):
                raise ParameterError(f"{name} is {short_repr(options[name])}; expected none, as {instead}")
        others = {
            name: value
            for name, value in options.items()
            if name not in (*own, *_WITHOUT_EFFECT, *_ELSEWHERE)
        }
        return cls(**{name: value for name, value in options.items() if name in own}), others

    @property
    def _dtype(self) -> torch.dtype | str:
        return self.dtype if self.torch_dtype is None else self.torch_dtype

    def dtype_of(self, stored: Mapping[str, StoredTensor]) -> torch.dtype:
        chosen = _checked_dtype(self._dtype)
        return stored["model.embed_tokens.weight"].dtype if chosen is None else chosen

    def place(self, model: Any) -> None:
        """Allocate the parameters of a model without storage, on their devices."""
        devices = self._devices(model)
        if set(devices) == {""}:
            model.to_empty(device=devices[""])
            return
        for name, module in model.named_modules():
            for own, parameter in list(module.named_parameters(recurse=False)):
                device = _device_of(f"{name}.{own}".lstrip("."), devices)
                empty = torch.empty_like(parameter, device=device)
                setattr(module, own, nn.Parameter(empty, parameter.requires_grad))

    def dispatch(self, model: Any) -> None:
        """Have a loaded model's inputs moved to the devices of its layers, if it has several."""
        if self.device_map is None:
            return
        devices = self._devices(model)
        if len({torch.device(device) for device in devices.values()}) > 1:
            _accelerate().dispatch_model(model, devices, skip_keys=["cache", "past_key_values"])
        model.hf_device_map = devices

    def _devices(self, model: Any) -> dict[str, Any]:
        """Names of modules → devices; the name of all is empty."""
        if self.device_map is None:
            return {"": torch.device(self.device)}
        if isinstance(self.device_map, Mapping):
            return dict(self.device_map)
        if self.device_map not in _AUTOMATIC:
            return {"": _checked_device("device_map", self.device_map)}
        return self._automatic_devices(model)

    def _automatic_devices(self, model: Any) -> dict[str, Any]:
        if not torch.cuda.is_available():
            return {"": torch.device("cpu")}
        accelerate = _accelerate()
        own = {"no_split_module_classes": list(model._no_split_modules)}
        memory = self.max_memory
        if self.device_map != "sequential":
            low_zero = self.device_map == "balanced_low_0"
            memory = accelerate.utils.get_balanced_memory(model, memory, low_zero=low_zero, **own)
        devices: dict[str, Any] = accelerate.infer_auto_device_map(model, memory, **own)
        if on_disk := [name for name, device in devices.items() if device == "disk"]:
            raise ParameterError(
                f"device_map is {self.device_map!r}, and there is no memory for {on_disk[0]} and "
                f"what follows; expected a smaller dtype, or adept_fast.Runtime with packed weights"
            )
        return devices


def _accelerate() -> Any:
    try:
        import accelerate
    except ModuleNotFoundError as error:
        raise ImportError(
            "a device_map of several devices needs the package accelerate, which is not installed: "
            "pip install accelerate"
        ) from error
    return accelerate


def _device_of(parameter: str, devices: Mapping[str, Any]) -> Any:
    """The device of the longest name that the parameter's begins with."""
    fitting = [name for name in devices if not name or parameter == name or parameter.startswith(f"{name}.")]
    if not fitting:
        raise ParameterError(f"device_map has no device for {parameter}; expected one for each parameter")
    return devices[max(fitting, key=len)]


def _checked_dtype(dtype: object) -> torch.dtype | None:
    """The dtype, None for "auto"."""
    if isinstance(dtype, str) and dtype == "auto":
        return None
    for name, chosen in WEIGHT_DTYPES.items():
        if dtype is chosen or (isinstance(dtype, str) and dtype == name):
            return chosen
    raise ParameterError(f"dtype is {short_repr(dtype)}; expected 'auto', float32, float16 or bfloat16")


def _checked_device(name: str, device: object) -> torch.device:
    is_index = isinstance(device, int) and not isinstance(device, bool) and 0 <= device < 2**31
    named = f"cuda:{device}" if is_index else device
    if not isinstance(named, (str, torch.device)):
        raise ParameterError(f"{name} is {short_repr(device)}; expected a torch.device or its name")
    try:
        chosen = torch.device(named)
    except RuntimeError as error:
        raise ParameterError(f"{name} is {short_repr(device)}; expected a device of torch") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ParameterError(
            f"{name} is {short_repr(device)}, and torch finds {count} GPUs; expected one of them, or cpu"
        )
    if chosen.type == "meta":
        raise ParameterError(f"{name} is {short_repr(device)}; expected a device that holds weights")
    return chosen
