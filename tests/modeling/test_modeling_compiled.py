"""The modeling classes under torch.compile and torch.export: whole graphs with the results of eager calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_modeling import HEADS, LEFT, RIGHT, assert_close, ids_of, labels_of, pair_of
from torch import Tensor

from adept_fast import modeling

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4}
VISIBLE = torch.ones(9, 9).tril().bool() & (LEFT[:, None, None].bool() | torch.eye(9).bool())  # [3, 1, 9, 9]
PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2], [*range(9)], [0, 1, 2, 3, 4, 5, 6, 7, 0]])
CALLS: dict[str, dict[str, Any]] = {
    "ids": {},
    "left": {"attention_mask": LEFT},
    "right": {"attention_mask": RIGHT},
    "no zero": {"attention_mask": torch.ones(3, 9).long()},
    "4-D bool": {"attention_mask": VISIBLE},
    "4-D float": {"attention_mask": torch.zeros(VISIBLE.shape).masked_fill(~VISIBLE, -1e9)},
    "labels": {"labels": None},
    "positions": {"position_ids": torch.arange(9)[None] + 3},
    "packed": {"position_ids": PACKED},
    "every field": {"output_hidden_states": True, "output_attentions": True, "attention_mask": LEFT},
    "a tuple": {"return_dict": False},
}


def model_and_call(head: str, call: str) -> tuple[Any, dict[str, Any]]:
    ours, _ = pair_of(head, **SMALL, num_hidden_layers=1)
    ids = ids_of(ours)
    given = CALLS[call]
    if "labels" in given:
        given = {"labels": labels_of(head, ours, ids)}
    return ours, {"input_ids": ids, **given}


def assert_fields(found: Any, expected: Any) -> None:
    """The same tensors by the same names; of caches, the same lengths."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert_close(found, expected, 1e-5)
    elif isinstance(expected, modeling.KeyValueCache):
        assert found.get_seq_length() == expected.get_seq_length()
    elif isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            assert_fields(one, other)
    else:
        assert list(found) == list(expected)
        assert_fields(found.to_tuple(), expected.to_tuple())


def compiled(model: Any, backend: str = "eager", **options: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend=backend, **options)


CASES = [
    *(("ForCausalLM", call) for call in CALLS),
    ("Model", "left"),
    *((head, "labels") for head in HEADS[2:]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "call"), CASES)
def test_a_compiled_call(head: str, call: str) -> None:
    model, given = model_and_call(head, call)
    fast = compiled(model)
    for use_cache in (False, True) if call in ("left", "packed") else (True,):
        assert_fields(fast(**given, use_cache=use_cache), model(**given, use_cache=use_cache))


def test_compiled_steps_with_the_returned_cache() -> None:
    model, given = model_and_call("ForCausalLM", "ids")
    ids, fast = given["input_ids"], compiled(model)
    cache, parts = None, []
    with torch.no_grad():
        for part in ids.split((4, 1, 1, 3), dim=1):
            out = fast(part, past_key_values=cache)
            cache = out.past_key_values
            parts.append(out.logits)
    assert_close(torch.cat(parts, 1), model(ids).logits)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("head", HEADS[1:])
def test_gradients_of_a_compiled_call(head: str) -> None:
    model, given = model_and_call(head, "labels")
    model.train()
    model(**given).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    compiled(model, "aot_eager")(**given).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_compiled_model_recomputes(reentrant: bool) -> None:
    model, _ = pair_of("ForCausalLM", **SMALL)
    ids = ids_of(model)
    given = {"input_ids": ids, "labels": ids, "attention_mask": LEFT}
    model.train()
    model(**given).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    compiled(model, "aot_eager")(**given).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient)


def test_one_graph_serves_every_batch_and_length() -> None:
    model, _ = model_and_call("ForCausalLM", "left")
    graphs = []

    def counts(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    fast = torch.compile(model, fullgraph=True, backend=counts, dynamic=True)
    for shape in ((3, 9), (2, 5), (5, 70)):
        ids = ids_of(model, shape)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        with torch.no_grad():
            found = fast(ids, attention_mask=mask, use_cache=False).logits
            assert_close(found, model(ids, attention_mask=mask).logits, 1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "call", "strict"),
    [(*case, False) for case in CASES]
    + [("ForCausalLM", call, True) for call in ("left", "labels", "packed", "4-D float")],
)
def test_an_exported_call(head: str, call: str, strict: bool) -> None:
    model, given = model_and_call(head, call)
    given |= {"use_cache": False}
    expected = model(**given)
    exported = torch.export.export(model, (), given, strict=strict).module()
    assert_fields(exported(**given), expected)


@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_an_export_serves_every_batch_and_length(strict: bool) -> None:
    model, given = model_and_call("ForCausalLM", "left")
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("sequence", min=2, max=64)}
    exported = torch.export.export(
        model,
        (),
        given | {"use_cache": False},
        dynamic_shapes={"input_ids": dims, "attention_mask": dims, "use_cache": None},
        strict=strict,
    ).module()
    for shape in ((3, 9), (2, 5), (4, 33)):
        ids = ids_of(model, shape)
        for padding in (0, 2):
            mask = torch.ones_like(ids)
            mask[0, :padding] = 0
            expected = model(ids, attention_mask=mask, use_cache=False)
            assert_fields(exported(input_ids=ids, attention_mask=mask, use_cache=False), expected)


def test_a_mask_has_no_part_in_what_the_graph_does() -> None:
    """A graph recorded with a mask of ones serves one with zeros."""
    model, given = model_and_call("ForCausalLM", "no zero")
    fast = compiled(model)
    with torch.no_grad():
        for mask in (given["attention_mask"], LEFT, RIGHT):
            found = fast(given["input_ids"], attention_mask=mask, use_cache=False).logits
            assert_close(found, model(given["input_ids"], attention_mask=mask).logits, 1e-5)
