"""embed in CUDA: the table's rows, bit by bit."""

from __future__ import annotations

import pytest
import torch
from cuda_place import EMULATED, THIN, Place, every_place
from cuda_place import inputs_arrive as inputs_arrive
from dispatch_double import as_cuda
from torch import Tensor

from adept_fast import ops
from adept_fast.ops import reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# Pieces of 16 bytes or not, of one block and of several.
HIDDEN = [1, 4, 7, 8, 64, 72, 255, 260, 1024, 2056, 4160]
TOKENS = [1, 3, 16, 512]
if THIN:
    HIDDEN, TOKENS = [7, 72, 260, 2056], [1, 3]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def embed(place: Place, table: Tensor, ids: Tensor) -> Tensor:
    """From a table in the device's memory, and from one in the host's, pinned: they give the same bits."""
    found: Tensor = place.operators.embed(table.to(place.device), ids.to(place.device)).cpu()
    again: Tensor = place.operators.embed(place.pinned(table), ids.to(place.device)).cpu()
    assert torch.equal(again.view(torch.int32), found.view(torch.int32))  # a NaN is not equal to itself
    return found


@every_dtype
@pytest.mark.parametrize("hidden", HIDDEN)
@every_place
def test_embed(place: Place, hidden: int, dtype: torch.dtype) -> None:
    table = torch.randn(11, hidden).to(dtype)
    for tokens in TOKENS:
        ids = torch.randint(11, (tokens,))
        found = embed(place, table, ids)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert torch.equal(found, reference.embed(table, ids))


@every_dtype
@pytest.mark.parametrize("hidden", [7, 72])
@every_place
def test_an_id_that_is_no_row_gives_zeros(place: Place, hidden: int, dtype: torch.dtype) -> None:
    """Nothing is read for it: before and behind the table there may be nothing."""
    table = torch.randn(5, hidden).to(dtype)
    ids = torch.tensor([4, 5, -1, 0, 2**40, -(2**40), 2**62])
    found = embed(place, table, ids)
    assert torch.equal(found[[0, 3]], table[[4, 0]].float())
    assert not found[[1, 2, 4, 5, 6]].any()


@every_dtype
@every_place
def test_a_table_that_begins_anywhere(place: Place, dtype: torch.dtype) -> None:
    """Rows of whole pieces, which do not begin at a multiple of 16 bytes."""
    memory = torch.randn(1 + 6 * 64).to(dtype).to(place.device)
    table = memory[1:].view(6, 64)
    ids = torch.tensor([5, 0, 3])
    found = place.operators.embed(table, ids.to(place.device)).cpu()
    assert torch.equal(found, table.cpu()[ids].float())


@every_dtype
@every_place
def test_what_is_not_finite_stays(place: Place, dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 6e-8, 65504.0, 1.0])
    for table in (special.to(dtype)[None], special.to(dtype)[None, :5].contiguous()):
        found = embed(place, table, torch.tensor([0]))
        expected = table.float()
        same = ~expected.isnan()
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found[same].view(torch.int32), expected[same].view(torch.int32))


@every_place
def test_the_same_bits_in_any_order(place: Place) -> None:
    table, ids = torch.randn(9, 2056).half(), torch.tensor([3, 3, 8, 0])
    for order in place.orders:
        with place.order(order):
            assert torch.equal(embed(place, table, ids), table[ids].float())


@every_place
def test_no_tokens_and_no_hidden(place: Place) -> None:
    assert embed(place, torch.randn(5, 8), torch.zeros(0).long()).shape == (0, 8)
    assert embed(place, torch.randn(5, 0), torch.tensor([2])).shape == (1, 0)


def test_a_table_that_the_device_cannot_read_is_refused() -> None:
    call = EMULATED.operators.embed
    from cuda_on_cpu import library

    with (
        library.unpinned(),
        pytest.raises(RuntimeError, match=r"^table is in memory of the host that the GPU"),
    ):
        call(torch.randn(5, 8), torch.tensor([2]))


@pytest.mark.parametrize(
    ("table", "ids", "says"),
    [
        (torch.zeros(5), torch.tensor([0]), "table has shape [5]; expected [vocab, hidden]"),
        (torch.zeros(5, 8).double(), torch.tensor([0]), "table has dtype Double"),
        (torch.zeros(5, 8).int(), torch.tensor([0]), "table has dtype Int"),
        (torch.zeros(8, 5).t(), torch.tensor([0]), "table is not contiguous"),
        (torch.zeros(5, 8), torch.tensor([0]).int(), "ids has dtype Int; expected Long"),
        (torch.zeros(5, 8), torch.tensor([[0]]), "ids has shape [1, 1]; expected [1]"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_wrong_argument_is_named(table: Tensor, ids: Tensor, says: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        EMULATED.operators.embed(table, ids)
    assert says in str(caught.value)


@every_dtype
@every_place
def test_the_operator_calls_it(place: Place, dtype: torch.dtype) -> None:
    table, ids = torch.randn(5, 8).to(dtype).to(place.device), torch.tensor([1, 4, 9], device=place.device)
    with as_cuda(place.operators):
        assert not ops.embed(table, ids)[2].any()  # torch's lookup would refuse the id
