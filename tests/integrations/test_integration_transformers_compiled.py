"""``accelerate`` and torch.compile, in either order: generate is the runtime's, forward is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerated_models import IDS, assert_served, small_model, text
from transformers import PersimmonForCausalLM

from adept_fast.integrations.transformers import NotServedError, accelerate, restore


class Compiler:
    """A backend that runs the graphs as they are, and counts the calls of compiled code."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run


def one_layer(seed: int = 0) -> PersimmonForCausalLM:
    return small_model(seed, num_hidden_layers=1)


def compiled_first(compiler: Compiler) -> Any:
    return accelerate(torch.compile(one_layer(), backend=compiler))


def compiled_last(compiler: Compiler) -> Any:
    return torch.compile(accelerate(one_layer()), backend=compiler)


def in_place_first(compiler: Compiler) -> Any:
    model = one_layer()
    model.compile(backend=compiler)
    return accelerate(model)


def in_place_last(compiler: Compiler) -> Any:
    model = accelerate(one_layer())
    model.compile(backend=compiler)
    return model


def forward_first(compiler: Compiler) -> Any:
    model: Any = one_layer()
    model.forward = torch.compile(model.forward, backend=compiler)
    return accelerate(model)


def forward_last(compiler: Compiler) -> Any:
    model = accelerate(one_layer())
    model.forward = torch.compile(model.forward, backend=compiler)
    return model


def layer_by_layer(compiler: Compiler) -> Any:
    model = one_layer()
    for layer in model.model.layers:
        layer.compile(backend=compiler)
    return accelerate(model)


@pytest.fixture(autouse=True)
def _no_code_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    "make",
    [
        compiled_first,
        compiled_last,
        in_place_first,
        in_place_last,
        forward_first,
        forward_last,
        layer_by_layer,
    ],
)
def test_generate_is_the_runtimes_and_forward_is_compiled(make: Callable[[Compiler], Any]) -> None:
    compiler, reference = Compiler(), one_layer()
    model = make(compiler)
    expected = reference(IDS).logits
    for _ in range(2):  # generate changes the layout of parameters, which compiled code must notice
        assert_served(model, reference)
        compiler.calls = 0
        torch.testing.assert_close(model(IDS).logits, expected)
        assert compiler.calls > 0
    model.train()
    model(IDS, labels=IDS).loss.backward()
    reference.train()(IDS, labels=IDS).loss.backward()
    ours = dict(getattr(model, "_orig_mod", model).named_parameters())
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad)
    with torch.no_grad():
        for parameter in (ours["lm_head.weight"], reference.lm_head.weight):
            parameter.neg_()
    assert_served(model.eval(), reference)


@pytest.mark.parametrize("make", [compiled_first, compiled_last, in_place_last, forward_last])
def test_restore_keeps_a_model_compiled(make: Callable[[Compiler], Any]) -> None:
    compiler = Compiler()
    model = make(compiler)
    text(model)
    assert restore(model) is model
    assert type(getattr(model, "_orig_mod", model)) is PersimmonForCausalLM
    assert torch.equal(text(model, max_new_tokens=2), text(one_layer(), max_new_tokens=2))
    compiler.calls = 0
    torch.testing.assert_close(model(IDS).logits, one_layer()(IDS).logits)
    assert compiler.calls > 0
    assert_served(accelerate(model), one_layer())


def test_a_compiled_forward_of_another_function_is_a_hook() -> None:
    """Also of another model's forward."""
    other, model = one_layer(1), one_layer()
    for forward in (lambda *args, **kwargs: None, other.forward, other.model.forward):
        model.forward = torch.compile(forward, backend="eager")
        with pytest.raises(NotServedError, match="a hook on the model"):
            accelerate(model)


def test_a_compiled_module_of_another_class_is_refused() -> None:
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    with pytest.raises(NotServedError, match="OptimizedModule; expected transformers' PersimmonForCausalLM"):
        accelerate(compiled)
