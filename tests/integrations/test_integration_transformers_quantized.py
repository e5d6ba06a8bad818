"""``accelerate`` refuses quantized models, by the name of the method and with what to do instead."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerated_models import assert_served, handed_over, small_model, text
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PersimmonForCausalLM
from transformers.utils.quantization_config import QuantizationMethod

from adept_fast.integrations.transformers import NotServedError, accelerate

LAYER = "model.layers.1.mlp.dense_h_to_4h"
ADVICE = (
    "; load it without quantization_config, or quantize it while loading by "
    "adept_fast.Runtime.load(…, weights='int8')"
)


def kind_of(module: str, name: str, base: type) -> Any:
    """A stand-in for a class of another package; it computes what its base computes."""
    return type(name, (base,), {"__module__": module})


# The module and name of a class as the package has it, and the name of the method in the message.
MODULES = [
    ("bitsandbytes.nn.modules", "Linear4bit", "bitsandbytes"),
    ("bitsandbytes.nn.modules", "Linear8bitLt", "bitsandbytes"),
    ("optimum.quanto.nn.qlinear", "QLinear", "optimum.quanto"),
    ("gptqmodel.nn_modules.qlinear.torch", "TorchQuantLinear", "gptqmodel"),
    ("auto_gptq.nn_modules.qlinear.qlinear_cuda", "QuantLinear", "auto_gptq"),
    ("awq.modules.linear.gemm", "WQLinear_GEMM", "awq"),
    ("compressed_tensors.linear.compressed_linear", "CompressedLinear", "compressed_tensors"),
    ("hqq.core.quantize", "HQQLinear", "hqq"),
    ("torchao.float8.float8_linear", "Float8Linear", "torchao"),
    ("torch.ao.nn.quantized.dynamic.modules.linear", "Linear", "torch.ao"),
    ("transformers.integrations.finegrained_fp8", "FP8Linear", "transformers.integrations.finegrained_fp8"),
    ("transformers.integrations.bitnet", "BitLinear", "transformers.integrations.bitnet"),
]
PARAMETERS = [
    ("torchao.quantization", "Int8Tensor", "torchao"),
    ("torchao.dtypes.affine_quantized_tensor", "AffineQuantizedTensor", "torchao"),
    ("optimum.quanto.tensor.weights.qbytes", "WeightQBytesTensor", "optimum.quanto"),
    ("bitsandbytes.nn.modules", "Params4bit", "bitsandbytes"),
]


def replace_module(model: Any, kind: Any) -> None:
    model.get_submodule(LAYER).__class__ = kind


def replace_parameter(model: Any, kind: Any) -> None:
    layer = model.get_submodule(LAYER)
    layer.weight = kind(layer.weight.detach(), requires_grad=False)


CASES = [
    *(
        (replace_module, (module, name, nn.Linear), f"{method} ({LAYER} is a {module}.{name})")
        for module, name, method in MODULES
    ),
    *(
        (replace_parameter, (module, name, nn.Parameter), f"{method} ({LAYER}.weight is a {module}.{name})")
        for module, name, method in PARAMETERS
    ),
]


def assert_refused(model: Any, reason: str) -> None:
    before = [(name, id(value), value.stride()) for name, value in model.named_parameters()]
    with pytest.raises(NotServedError) as caught:
        accelerate(model)
    assert str(caught.value) == f"the runtime does not do a model quantized by {reason}{ADVICE}"
    assert type(model) is PersimmonForCausalLM
    assert [(name, id(value), value.stride()) for name, value in model.named_parameters()] == before


@pytest.mark.parametrize(("replace", "kind", "reason"), CASES, ids=[reason for _, _, reason in CASES])
def test_a_quantized_module_or_parameter(replace: Any, kind: tuple[str, str, type], reason: str) -> None:
    model = small_model()
    replace(model, kind_of(*kind))
    assert_refused(model, reason)
    # A model that is quantized later runs on transformers' own code.
    model = accelerate(small_model())
    expected = text(model)
    replace(model, kind_of(*kind))
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(text(model), expected)
    assert handed_over(recorded) == [f"a model quantized by {reason}{ADVICE}"]


def test_a_scheme_of_compressed_tensors_on_a_linear_of_torch() -> None:
    model = small_model()
    model.get_submodule(LAYER).quantization_scheme = SimpleNamespace(weights="int8")
    assert_refused(model, f"compressed_tensors ({LAYER} has a quantization_scheme)")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"hf_quantizer": SimpleNamespace(quantization_config=BitsAndBytesConfig())},
            "bitsandbytes",
        ),
        ({"config.quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "bitsandbytes"),
        ({"config.quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_method": QuantizationMethod.GPTQ}, "gptq"),
        ({"config.quantization_config": {"bits": 4}}, "a method without a name"),
        ({"is_quantized": True}, "a method without a name"),
    ],
    ids=str,
)
def test_a_model_that_transformers_quantized(changes: dict[str, Any], reason: str) -> None:
    model = small_model()
    for name, value in changes.items():
        owner, _, attribute = name.rpartition(".")
        setattr(getattr(model, owner) if owner else model, attribute, value)
    assert_refused(model, reason)


def test_a_model_that_is_dequantized_is_served() -> None:
    """With what ``dequantize`` of transformers leaves."""
    model = small_model()
    model.is_quantized = False
    model.is_loaded_in_4bit = True
    assert_served(accelerate(model), small_model())


def test_dynamic_quantization_of_torch() -> None:
    """A real package, which every torch has; its modules have no parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of torchao
        model = torch.ao.quantization.quantize_dynamic(small_model(), {nn.Linear}, dtype=torch.qint8)
    name = next(name for name, module in model.named_modules() if _is_of_torch_ao(module))
    kind = type(model.get_submodule(name))
    assert_refused(model, f"torch.ao ({name} is a {kind.__module__}.{kind.__name__})")


def _is_of_torch_ao(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.ao.")


def test_an_unknown_module_is_named() -> None:
    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = small_model()
    model.get_submodule(LAYER).__class__ = Other
    with pytest.raises(NotServedError, match=rf"does not do {LAYER}, a .*Other"):
        accelerate(model)
