"""Kinds of parameters: lazy, frozen, repeated, distributed, and parameters that onepass cannot step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_same_as_pytorch, gradient


def test_lazy_modules_can_be_passed_before_their_first_batch() -> None:
    def run(module: Any) -> list[Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.ReLU(), torch.nn.LazyLinear(1))
        optimizer = module.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(3, 5)).sum().backward()
            optimizer.step()
        return list(model.parameters())

    assert_same_as_pytorch(run)


def test_parameters_without_gradients_may_have_any_dtype_and_device() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(2))
        frozen = [torch.nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.bfloat16, torch.complex64)]
        meta = torch.nn.Parameter(torch.ones(2, device="meta"))
        optimizer = module.AdamW([*frozen, p, meta], lr=0.1)
        for t in range(3):
            p.grad = gradient(p, t)
            optimizer.step()
        assert len(optimizer.state) == 1
        return [p]

    assert_same_as_pytorch(run)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.ones(2, dtype=torch.float16), TypeError, "float16"),
        (
            lambda: torch.ones(2, dtype=torch.complex64),
            TypeError,
            r"got torch.complex64 \(use its real form, torch.view_as_real\)",
        ),
        (lambda: torch.ones(2, device="meta"), ValueError, "is on meta"),
        (lambda: torch.ones(1).expand(3).detach(), RuntimeError, "overlaps itself"),
        (lambda: torch._efficientzerotensor((2,)), ValueError, "has no memory"),
    ],
    ids=["float16", "complex64", "meta", "expanded", "without memory"],
)
def test_impossible_parameter_is_refused_once_it_has_a_gradient(make: Any, error: Any, message: str) -> None:
    p, impossible = torch.nn.Parameter(torch.ones(2)), make().requires_grad_()
    optimizer = ours.Adam([p, impossible], lr=0.5)
    for t in range(3):
        p.grad = torch.ones(2)
        optimizer.step()
        assert optimizer.state[p]["step"] == t + 1 and impossible not in optimizer.state
    before = p.detach().clone()
    impossible.grad = torch.ones_like(impossible)
    with pytest.raises(error, match=f"parameter 1.*{message}"):
        optimizer.step()
    assert torch.equal(p.detach(), before) and optimizer.state[p]["step"] == 3


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_parameter_that_occurs_twice_is_stepped_twice(name: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(module, name)([p, p], lr=0.1, foreach=False, **options)
        for t in range(4):
            p.grad = gradient(p, t)
            optimizer.step()
        return [p, *optimizer.state[p].values()]

    assert_same_as_pytorch(run)


# ---- DTensors ----


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Provide a device mesh of this process only."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("PyTorch without torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield pytest.importorskip("torch.distributed.device_mesh").init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_dtensors_are_stepped_in_their_shards(mesh: Any) -> None:
    tensors = pytest.importorskip("torch.distributed.tensor")

    def run(module: Any) -> list[Any]:
        shard = tensors.distribute_tensor(torch.ones(4, 2), mesh, [tensors.Shard(0)])
        replica = tensors.distribute_tensor(torch.ones(3), mesh, [tensors.Replicate()])
        params = [torch.nn.Parameter(shard), torch.nn.Parameter(replica), torch.nn.Parameter(torch.ones(2))]
        optimizer = module.Adam(params, lr=0.1)
        for t in range(3):
            optimizer.zero_grad()
            loss = (params[0] * (t + 1)).pow(2).sum() + (params[1] - t).pow(2).sum()
            loss.full_tensor().backward()
            params[2].grad = torch.ones(2)
            optimizer.step()
        assert type(optimizer.state[params[0]]["exp_avg"]) is type(shard)
        return [params[0].full_tensor(), params[1].full_tensor(), params[2]]

    assert_same_as_pytorch(run)


def test_clip_norm_of_dtensors_is_refused(mesh: Any) -> None:
    tensors = pytest.importorskip("torch.distributed.tensor")
    p = torch.nn.Parameter(tensors.distribute_tensor(torch.ones(4), mesh, [tensors.Shard(0)]))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="DTensors"):
        ours.Adam([p], clip_norm=1.0).step()
