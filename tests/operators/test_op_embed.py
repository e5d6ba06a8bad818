"""embed: the table's rows, bit by bit. A CPU has no kernel for it."""

from __future__ import annotations

import pytest
import torch
from backends import BACKENDS, CPU, CUDA, FLOATS, THIN, Backend, on, on_the_emulator, same_bits
from dispatch_double import as_cuda
from torch import Tensor

from adept_fast import ops

# Pieces of 16 bytes or not, of one block and of several.
HIDDEN = [1, 4, 7, 8, 64, 72, 255, 260, 1024, 2056, 4160]
TOKENS = [1, 3, 16, 512]
if THIN:
    HIDDEN, TOKENS = [7, 72, 260, 2056], [1, 3]

every_dtype = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
every_backend = on([one for one in BACKENDS if one.kind != "cpu"])


def embed(backend: Backend, table: Tensor, ids: Tensor) -> Tensor:
    """From a table in the device's memory, and from one in the host's, pinned: they give the same bits."""
    found: Tensor = backend.run("embed", table=table, ids=ids)
    again: Tensor = backend.run("embed", host=("table",), table=table, ids=ids)
    assert same_bits(again, found)
    return found


@every_dtype
@pytest.mark.parametrize("hidden", HIDDEN)
@every_backend
def test_embed(backend: Backend, hidden: int, dtype: torch.dtype) -> None:
    table = torch.randn(11, hidden).to(dtype)
    for tokens in TOKENS if hidden < 100 else TOKENS[:3]:
        ids = torch.randint(11, (tokens,))
        found = embed(backend, table, ids)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert torch.equal(found, table[ids].float()), f"embed on {backend}, {tokens} tokens"


@every_dtype
@pytest.mark.parametrize("hidden", [7, 72])
@every_backend
def test_an_id_that_is_no_row_gives_zeros(backend: Backend, hidden: int, dtype: torch.dtype) -> None:
    """Nothing is read for it: before and behind the table there may be nothing."""
    table = torch.randn(5, hidden).to(dtype)
    found = embed(backend, table, torch.tensor([4, 5, -1, 0, 2**40, -(2**40), 2**62]))
    assert torch.equal(found[[0, 3]], table[[4, 0]].float())
    assert not found[[1, 2, 4, 5, 6]].any()


@every_dtype
@on(CUDA)
def test_a_table_that_begins_anywhere(backend: Backend, dtype: torch.dtype) -> None:
    """Rows of whole pieces, which do not begin at a multiple of 16 bytes."""
    memory = torch.randn(1 + 6 * 64).to(dtype).to(backend.device)
    table, ids = memory[1:].view(6, 64), torch.tensor([5, 0, 3])
    found = backend.operators.embed(table, ids.to(backend.device)).cpu()
    assert torch.equal(found, table.cpu()[ids].float())


@every_dtype
@every_backend
def test_what_is_not_finite_stays(backend: Backend, dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 6e-8, 65504.0, 1.0])
    for table in (special.to(dtype)[None], special.to(dtype)[None, :5].contiguous()):
        found, expected = embed(backend, table, torch.tensor([0])), table.float()
        same = ~expected.isnan()
        assert torch.equal(found.isnan(), expected.isnan())
        assert same_bits(found[same], expected[same])


@on(CUDA)
def test_the_same_bits_in_any_order(backend: Backend) -> None:
    table, ids = torch.randn(9, 2056).half(), torch.tensor([3, 3, 8, 0])
    for schedule in backend.schedules():
        with schedule:
            assert torch.equal(embed(backend, table, ids), table[ids].float())


@on(CUDA)
def test_no_tokens_and_no_hidden(backend: Backend) -> None:
    assert embed(backend, torch.randn(5, 8), torch.zeros(0).long()).shape == (0, 8)
    assert embed(backend, torch.randn(5, 0), torch.tensor([2])).shape == (1, 0)


@on_the_emulator
def test_a_table_that_the_device_cannot_read_is_refused(backend: Backend) -> None:
    call = backend.operators.embed
    from cuda_on_cpu import library

    with (
        library.unpinned(),
        pytest.raises(RuntimeError, match=r"^table is in memory of the host that the GPU"),
    ):
        call(torch.randn(5, 8), torch.tensor([2]))


@every_dtype
@on(CUDA)
def test_the_operator_calls_it(backend: Backend, dtype: torch.dtype) -> None:
    table, ids = (
        torch.randn(5, 8).to(dtype).to(backend.device),
        torch.tensor([1, 4, 9], device=backend.device),
    )
    with as_cuda(backend.operators):
        assert not ops.embed(table, ids)[2].any()  # torch's lookup would refuse the id


@every_dtype
@on(CPU[:1])
def test_on_a_cpu_torch_looks_rows_up(backend: Backend, dtype: torch.dtype) -> None:
    table, ids = torch.randn(9, 5).to(dtype), torch.tensor([8, 0, 8])
    found = ops.embed(table, ids)
    assert found.dtype == torch.float32
    assert torch.equal(found, table[ids].float())
