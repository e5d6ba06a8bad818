"""The tolerance of the operators' tests: it does not depend on torch's luck, and finds what is wrong."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close, attention_size, product_size, rotary_size
from torch import Tensor


@pytest.fixture
def operands() -> tuple[Tensor, Tensor]:
    """[3, 200] and [5, 200]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 200, generator=generator), torch.randn(5, 200, generator=generator)


def test_where_torch_is_exact_rounding_is_allowed(operands: tuple[Tensor, Tensor]) -> None:
    x, w = operands
    exact = x.double() @ w.double().T
    assert not torch.equal((x @ w.T).double(), exact)
    assert_close(x @ w.T, exact, exact, product_size(x, w))
    narrow = (x.bfloat16().float() @ w.T).bfloat16()
    assert_close(narrow, exact, exact, product_size(x, w), inputs=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_rounded_to_a_narrower_dtype_than_it_may_be_is_found(
    operands: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    x, w = operands
    exact = x.double() @ w.double().T
    with pytest.raises(AssertionError, match=r"^where: off by"):
        assert_close(x.to(dtype).float() @ w.T, exact, x @ w.T, product_size(x, w), "where")


@pytest.mark.parametrize("inputs", [torch.float32, torch.float16, torch.bfloat16])
def test_a_term_left_out_is_found(operands: tuple[Tensor, Tensor], inputs: torch.dtype) -> None:
    x, w = operands
    exact = x.double() @ w.double().T
    with pytest.raises(AssertionError, match="off by"):
        assert_close(x[:, 1:] @ w[:, 1:].T, exact, x @ w.T, product_size(x, w), inputs=inputs)


def test_an_error_of_all_elements_is_found_in_the_mean(operands: tuple[Tensor, Tensor]) -> None:
    x, w = operands
    exact = x.double() @ w.double().T
    allowed = 4 * torch.finfo(torch.float32).eps * product_size(x, w).max()
    with pytest.raises(AssertionError, match="in the mean"):
        assert_close(exact + 0.75 * allowed, exact, exact, product_size(x, w))


def test_a_torch_that_gives_nan_is_no_yardstick(operands: tuple[Tensor, Tensor]) -> None:
    x, w = operands
    exact = x.double() @ w.double().T
    theirs = torch.full_like(exact, float("nan"))
    with pytest.raises(AssertionError, match=r"^length 1: torch's result is not finite"):
        assert_close(exact.float(), exact, theirs, product_size(x, w), "length 1")


def test_sizes_are_those_of_the_terms() -> None:
    x, w = torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0, 0.5], [0.0, 2.0]])
    assert product_size(x, w).tolist() == [[13**0.5, 8.0]]
    cache = torch.tensor([[[[[3.0, 4.0], [0.0, 1.0]]]], [[[[2.0, -6.0], [1.0, 1.0]]]]])  # one slot, one head
    operands = (torch.ones(1, 1, 2), cache, torch.tensor([0]), torch.tensor([2]), 0.5)
    assert attention_size(*operands).tolist() == [[6.0 * (2 + 2.5)]]
    assert attention_size(*operands, exact_scores=True).tolist() == [[12.0]]
    assert not attention_size(*operands[:3], torch.tensor([0]), 0.5).any()
    head = torch.tensor([[1.0, -1.0, 3.0, -3.0]])
    assert rotary_size(head, None, 0.0).tolist() == [[6.0]]
    gamma, beta = torch.tensor([0.5, -2.0, 1.0, 1.0]), torch.tensor([0.0, 0.25, 0.0, 0.0])
    assert rotary_size(head, (gamma, beta), 0.0).tolist() == [[2 * (3 / 5**0.5 * 2 + 0.25)]]
