"""Gradients of the modeling classes: transformers' own, and enough to train with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_modeling import HEADS, LEFT, RIGHT, assert_close, ids_of, labels_of, pair_of

from adept_fast import modeling

FAMILY: dict[str, dict[str, Any]] = {
    "as it is": {},
    "tied": {"tie_word_embeddings": True},
    "no qk_layernorm": {"qk_layernorm": False},
}


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("changes", list(FAMILY))
@pytest.mark.parametrize("head", HEADS[1:])
def test_every_gradient_is_theirs(head: str, changes: str, padding: str) -> None:
    ours, theirs = pair_of(head, **FAMILY[changes])
    mask = {"none": None, "left": LEFT, "right": RIGHT}[padding]
    ids = ids_of(ours) if mask is None else ids_of(ours) * mask
    labels = labels_of(head, ours, ids)
    assert labels is not None
    if mask is not None and labels.shape == mask.shape:
        labels = labels.masked_fill(mask == 0, -100)
    for model in (ours.train(), theirs.train()):
        model(ids, attention_mask=mask, labels=labels).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        largest = expected[name].grad.abs().max().item()
        torch.testing.assert_close(
            parameter.grad,
            expected[name].grad,
            atol=1e-4 * max(1, largest),
            rtol=0,
            msg=lambda m: f"{name}: {m}",  # noqa: B023
        )
    assert ours.model.layers[0].mlp.dense_4h_to_h.weight.grad.abs().max() > 0


def test_gradients_reach_embeddings_that_are_given() -> None:
    ours, theirs = pair_of("ForCausalLM")
    values = torch.randn(2, 5, 36, generator=torch.Generator().manual_seed(3))
    gradients = []
    for model in (ours, theirs):
        embeds = values.clone().requires_grad_()
        model(inputs_embeds=embeds).logits.square().sum().backward()
        gradients.append(embeds.grad)
    assert_close(gradients[0] / gradients[1].abs().max(), gradients[1] / gradients[1].abs().max())


def test_gradients_with_a_past_are_of_the_new_tokens() -> None:
    """What is cached is a constant: the rest is what theirs gives for a past that has no gradient."""
    ours, theirs = pair_of("ForCausalLM")
    ids = ids_of(ours)
    for model in (ours, theirs):
        with torch.no_grad():
            past = model(ids[:, :4]).past_key_values
        model(ids[:, 4:], past_key_values=past, labels=ids[:, 4:]).loss.backward()
    for (name, parameter), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(parameter.grad, expected.grad, 1e-4 * max(1, expected.grad.abs().max().item())), name


@pytest.mark.parametrize("head", HEADS[1:])
def test_recomputed_gradients_are_those_that_were_kept(head: str) -> None:
    ours, _ = pair_of(head)
    ours.train()
    ids = ids_of(ours)
    gradients = []
    for recompute in (False, True):
        (ours.gradient_checkpointing_enable if recompute else ours.gradient_checkpointing_disable)()
        ours.zero_grad()
        out = ours(ids, attention_mask=RIGHT, labels=labels_of(head, ours, ids), output_attentions=recompute)
        out.loss.backward()
        gradients.append([parameter.grad.clone() for parameter in ours.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept, atol=1e-5 * max(1, kept.abs().max().item()), rtol=0)
    assert "cache" not in out
    assert len(out.attentions) == ours.config.num_hidden_layers
    cache = modeling.KeyValueCache(ours.config, max_batch_size=3, max_seq_len=9)
    with pytest.raises(ValueError, match="a cache is given; expected None with gradient checkpointing"):
        ours(ids, past_key_values=cache)


@pytest.mark.parametrize("whole", [False, True], ids=["the head alone", "the whole model"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head", HEADS[1:])
def test_a_few_steps_lower_the_loss(head: str, dtype: torch.dtype, whole: bool) -> None:
    torch.manual_seed(0)
    config = pair_of("Model")[0].config
    model = getattr(modeling, f"Persimmon{head}")(config).to(dtype).train()
    model.model.requires_grad_(whole)
    ids = ids_of(model, (4, 9), seed=4)
    labels = labels_of(head, model, ids)
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        out = model(ids, attention_mask=torch.ones_like(ids), labels=labels)
        out.loss.backward()
        optimiser.step()
        losses.append(out.loss.item())
        assert out.logits.dtype == dtype
    assert losses[-1] < 0.97 * losses[0]
    assert all(now < before + 0.05 for before, now in zip(losses, losses[1:], strict=False))
    assert all(each.dtype == dtype for each in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_theirs(dtype: torch.dtype) -> None:
    ours, theirs = pair_of("ForCausalLM")
    ids = ids_of(ours)
    exact = theirs(ids, labels=ids)
    out, their_out = ours.to(dtype)(ids, labels=ids), theirs.to(dtype)(ids, labels=ids)
    assert out.logits.dtype == their_out.logits.dtype == dtype
    fields = ours(ids, output_attentions=True, output_hidden_states=True)
    assert {each.dtype for each in (*fields.attentions, *fields.hidden_states)} == {dtype}
    error = (out.logits - exact.logits).square().mean().sqrt()
    # Weights are rounded in both; the rest of the error is made less here.
    assert error <= 1.2 * (their_out.logits - exact.logits).square().mean().sqrt()
    assert out.past_key_values.update(*torch.zeros(2, 3, 3, 1, 12), 0)[0].dtype == torch.float32


class TestDropout:
    """Where everything is dropped, what is left is known."""

    def test_of_the_mlp(self) -> None:
        ours, theirs = pair_of("Model", hidden_dropout=1.0)
        ids = ids_of(ours)
        assert_close(ours.train()(ids)[0], theirs.train()(ids)[0])
        assert (ours(ids)[0] - ours.eval()(ids)[0]).abs().max() > 0.1

    @pytest.mark.parametrize("weights", [False, True])
    def test_of_attention(self, weights: bool) -> None:
        ours, theirs = pair_of("Model", attention_dropout=1.0)
        theirs.set_attn_implementation("eager")
        ids = ids_of(ours)
        assert_close(ours.train()(ids, output_attentions=weights)[0], theirs.train()(ids)[0])
        assert (ours(ids)[0] - ours.eval()(ids)[0]).abs().max() > 0.1

    def test_before_a_tokens_class(self) -> None:
        ours, _ = pair_of("ForTokenClassification", classifier_dropout=1.0)
        logits = ours.train()(ids_of(ours)).logits
        assert_close(logits, ours.score.bias.expand(logits.shape))

    def test_keeps_the_mean(self) -> None:
        ours, _ = pair_of("Model", hidden_dropout=0.3, attention_dropout=0.3, num_hidden_layers=1)
        layer = ours.layers[0].train()
        x = torch.randn(4000, 36, generator=torch.Generator().manual_seed(0))[:1].repeat(4000, 1)
        torch.manual_seed(0)
        dropped = layer(x, lambda qkv, weights: qkv[:, :36]).detach()
        kept = layer.eval()(x, lambda qkv, weights: qkv[:, :36]).detach()
        spread = dropped.std(0) / 4000**0.5
        assert ((dropped.mean(0) - kept[0]).abs() < 5 * spread + 1e-5).all()
        assert dropped.std(0).max() > 0.1
