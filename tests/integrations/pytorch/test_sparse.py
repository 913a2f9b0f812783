"""Sparse gradients: only their rows are stepped."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_same_as_pytorch, has_exchange

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")


def sparse(rows: list[int], values: Any, shape: tuple[int, ...], **options: Any) -> Any:
    """Return a sparse gradient of a parameter with this shape."""
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, **options)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_steps_with_sparse_gradients_of_an_embedding_match_pytorch(name: str) -> None:
    def run(module: Any) -> list[Any]:
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(10, 3, sparse=True)
        optimizer = getattr(module, name)(embedding.parameters(), lr=0.1)
        for rows in ([1, 4, 4], [2], [1, 9, 2]):
            optimizer.zero_grad()
            embedding(torch.tensor(rows)).pow(2).sum().backward()
            optimizer.step()
        return [embedding.weight]

    assert_same_as_pytorch(run)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_sparse_gradient_changes_only_its_rows_in_any_layout_of_the_parameter(layout: str) -> None:
    values = torch.ones(4, 2)
    p = torch.nn.Parameter(values if layout == "rows" else values.t().contiguous().t())
    optimizer = ours.Adam([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = p.detach().clone()
    p.grad = sparse([1], torch.ones(1, 2), (4, 2))
    optimizer.step()
    changed = (p.detach() != before).any(dim=1)
    assert changed.tolist() == [False, True, False, False]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_only_the_first_step_with_sparse_gradients_takes_the_slow_path(momentum: float) -> None:
    weights, slow = [], []
    for module in (torch.optim, ours):
        p = torch.nn.Parameter(torch.ones(10, 3))
        optimizer = module.SGD([p], lr=0.125, momentum=momentum)
        generator = torch.Generator().manual_seed(0)
        for t in range(8):
            rows = torch.randint(0, 10, ([6, 0, 10, 5][t % 4],), generator=generator)
            values = torch.randint(-8, 8, (len(rows), 3), generator=generator) / 8
            gradient = sparse(rows.tolist(), values, (10, 3))
            p.grad = gradient.to_dense() if module is torch.optim or t == 6 else gradient
            optimizer.step()
            if module is ours:
                slow.append(optimizer.slow_steps)
        weights.append(p.detach())
    if momentum == 0:  # otherwise the momentum of other rows would move them in PyTorch
        assert torch.equal(*weights)
    assert slow == [1] * 6 + [2] + [3] or not has_exchange  # step 6 has a dense gradient


@pytest.mark.parametrize("where", ["parameter", "momentum"])
@pytest.mark.parametrize("coalesced", [True, False])
def test_values_of_a_sparse_gradient_may_lie_in_the_parameter_or_its_state(where: str, coalesced: bool) -> None:
    weights = []
    for is_copied in (True, False):
        p = torch.nn.Parameter(torch.arange(10.0).reshape(5, 2))
        optimizer = ours.SGD([p], lr=0.5, momentum=0.5)
        p.grad = torch.ones(5, 2)
        optimizer.step()
        for _ in range(3):
            values = (p.detach() if where == "parameter" else optimizer.state[p]["momentum_buffer"])[0:3]
            p.grad = sparse([1, 2, 3], values.clone() if is_copied else values, (5, 2), is_coalesced=coalesced)
            optimizer.step()
        weights.append(p.detach())
    assert torch.equal(*weights)


def test_repeated_rows_marked_as_coalesced_are_added_up() -> None:
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = ours.SGD([p], lr=1.0, clip_norm=1e9)
    p.grad = sparse([2, 0, 2, 2, 2, 2], torch.ones(6, 2), (3, 2), is_coalesced=True)
    optimizer.step()
    assert p.tolist() == [[0.0, 0.0], [1.0, 1.0], [-4.0, -4.0]]
    p.grad = sparse([1, 1_000_000, 2], torch.ones(3, 2), (3, 2), is_coalesced=True, check_invariants=False)
    with pytest.raises((IndexError, RuntimeError)):
        optimizer.step()


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_out_of_range_are_refused_on_the_fast_path(row: int) -> None:
    p = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = ours.SGD([p], lr=0.1)
    for rows in ([1, 0], [1, 2]):
        p.grad = sparse(rows, torch.ones(2, 2), (4, 2))
        optimizer.step()
    before = p.detach().clone()
    p.grad = sparse([row], torch.ones(1, 2), (4, 2), check_invariants=False)
    with pytest.raises(IndexError, match="parameter 0: expected rows from 0 to 3"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("shape", [(3, 6), (3, 1), (3, 2, 2), (3,)])
@pytest.mark.parametrize("steps", [0, 2])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...], steps: int) -> None:
    p = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = ours.SGD([p], lr=1.0)
    for _ in range(steps):
        p.grad = sparse([1], torch.ones(1, 2), (3, 2))
        optimizer.step()
    p.grad = sparse([1], torch.ones(1, 2), (3, 2))
    p.data = torch.zeros(shape)
    with pytest.raises(ValueError, match="gradient of parameter 0: expected rows of shape"):
        optimizer.step()
    assert not p.detach().any()
