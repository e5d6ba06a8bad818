"""The double of a GPU's memory refuses what a GPU refuses, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from backends import EMULATED
from device_double import DEVICE, OnDevice
from torch import Tensor


@pytest.fixture
def device() -> Iterator[torch.device]:
    with EMULATED.memory():
        yield DEVICE


@pytest.fixture
def on_device(device: torch.device) -> Tensor:
    return torch.arange(6.0, device=device)


def test_what_is_made_there_is_there(device: torch.device) -> None:
    host = torch.arange(6.0)
    made = [
        torch.zeros(6, device=device),
        host.to(device),
        host.to(device, copy=True),
        host.to(device=device),
    ]
    found = [
        *made,
        made[0] + 1,
        made[0].double(),
        made[0][:2],
        torch.empty_like(made[0]),
        made[0].new_zeros(1),
    ]
    assert all(isinstance(tensor, OnDevice) and tensor.device == device for tensor in found)
    back = [made[0].cpu(), made[0].to("cpu"), torch.zeros(6), host.double(), host.to(torch.float64)]
    assert not any(isinstance(tensor, OnDevice) or tensor.device == device for tensor in back)


def test_moves_are_copies(device: torch.device) -> None:
    host = torch.arange(6.0)
    moved = host.to(device)
    host += 1
    assert moved.tolist() == [0, 1, 2, 3, 4, 5]
    back = moved.cpu()
    moved.zero_()
    assert back.tolist() == [0, 1, 2, 3, 4, 5]
    assert moved.to(device).data_ptr() == moved.data_ptr()


REFUSED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda device, host: device + host,
    "sum, the other way": lambda device, host: host + device,
    "equal": lambda device, host: torch.equal(device, host),
    "in a list": lambda device, host: torch.cat([host, device]),
    "in place": lambda device, host: host.add_(device),
    "by name": lambda device, host: torch.where(device > 0, input=device, other=host),
    "index of the host's": lambda device, host: host[device.long()],
    "mask of the host's": lambda device, host: host[device > 2],
    "values for an index": lambda device, host: device.__setitem__(torch.tensor([0, 1]), host[:2]),
    "numpy": lambda device, host: device.numpy(),
    "pinned": lambda device, host: device.pin_memory(),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_gpu_refuses_is_refused(on_device: Tensor, case: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"same device|device of the indexed|on the device"):
        REFUSED[case](on_device, torch.arange(6.0))


def test_tensors_of_both_are_not_close(on_device: Tensor) -> None:
    with pytest.raises(AssertionError, match="device"):
        torch.testing.assert_close(on_device, torch.arange(6.0))


def test_what_a_gpu_takes_is_taken(on_device: Tensor) -> None:
    host = torch.arange(6.0)
    assert (on_device * torch.tensor(2.0)).tolist() == [0, 2, 4, 6, 8, 10]
    assert on_device[torch.tensor([4, 1])].tolist() == [4, 1]
    assert on_device[host > 3].tolist() == [4, 5]
    on_device[:2] = host[4:]
    on_device[torch.tensor([2])] = 7.0
    on_device.copy_(on_device.cpu())
    host[:3] = on_device[:3]
    assert host.tolist() == [4, 5, 7, 3, 4, 5]
    assert int(on_device.argmax()) == 2
    assert torch.equal(on_device.cpu(), host)


def test_operators_take_tensors_of_the_device(on_device: Tensor) -> None:
    table, ids = torch.randn(5, 8), torch.tensor([4, 0])
    call = EMULATED.operators
    with pytest.raises(RuntimeError, match="embed: ids is in the host's memory"):
        call.embed(table.to(DEVICE), ids)
    with pytest.raises(RuntimeError, match="copy: source is in the host's memory"):
        call.copy(source=table)
    for found in (
        call.embed(table.to(DEVICE), ids.to(DEVICE)),
        call.embed(EMULATED.pinned(table), ids.to(DEVICE)),
    ):
        assert isinstance(found, OnDevice)
        assert torch.equal(found.cpu(), table[ids])
    assert torch.equal(call.copy(on_device), on_device)


def test_without_it_tensors_are_the_cpus() -> None:
    assert not isinstance(torch.zeros(2, device=DEVICE), OnDevice)
    assert torch.equal(EMULATED.operators.copy(torch.ones(3)), torch.ones(3))
