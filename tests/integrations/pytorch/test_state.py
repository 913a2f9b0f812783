"""State tensors that a program reads, replaces, shares or moves between steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_fast, assert_same_as_pytorch, gradient


def stepped_adam() -> tuple[Any, Any]:
    """Return a parameter of four ones and an Adam that has taken one step with a learning rate of 0.5."""
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = ours.Adam([p], lr=0.5)
    assert not optimizer.state
    p.grad = torch.ones(4)
    optimizer.step()
    return p, optimizer


def test_state_holds_the_step_count_and_changed_moments_are_used() -> None:
    p, optimizer = stepped_adam()
    for t in range(1, 4):
        assert optimizer.state[p]["step"] == t
        optimizer.step()
    optimizer.state[p]["exp_avg"].zero_()
    before = p.detach().clone()
    p.grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(p.detach(), before)


def zero_state() -> dict[str, Any]:
    return {"step": torch.tensor(0.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}


RESETS: dict[str, Callable[[Any, Any], Any]] = {
    "cleared": lambda optimizer, p: optimizer.state.clear(),
    "entry replaced": lambda optimizer, p: optimizer.state.update({p: zero_state()}),
    "mapping replaced": lambda optimizer, p: setattr(optimizer, "state", defaultdict(dict)),
}


@pytest.mark.parametrize("reset", RESETS)
def test_removed_or_replaced_state_starts_from_zero(reset: str) -> None:
    p, optimizer = stepped_adam()
    optimizer.step()
    RESETS[reset](optimizer, p)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full((4,), 0.1))


def test_pruned_parameter_continues_with_its_pruned_state() -> None:
    p, optimizer = stepped_adam()
    kept = optimizer.state.pop(p)
    q = torch.nn.Parameter(p.detach()[:2].clone())
    optimizer.param_groups[0]["params"][0] = q
    optimizer.state[q] = {name: x[:2].clone() if x.dim() else x for name, x in kept.items()}
    before = p.detach().clone()
    for t, start in ((2, q.detach().clone()), (3, torch.full((2,), 3.0))):
        q.data = start.clone()
        q.grad = torch.ones(2)
        optimizer.step()
        assert optimizer.state[q]["step"] == t and (q < start).all()
    assert torch.equal(p.detach(), before)


def test_replaced_state_tensors_are_used_by_the_next_step() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = module.Adam([p], lr=0.1)
        for t in range(6):
            p.grad = gradient(p, t)
            if t == 2:
                optimizer.state[p]["exp_avg"] = torch.full((3, 2), 0.5)
            if t == 3:
                optimizer.state[p]["exp_avg_sq"].data = torch.full((3, 2), 2.0)
            if t == 4:  # a different order of dimensions
                optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].t().contiguous().t()
            optimizer.step()
        return [p, optimizer]

    assert_same_as_pytorch(run)


@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_state_zeroed_in_place_starts_again(name: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = getattr(module, name)([p], lr=0.1)
        for t in range(8):
            if t == 4:
                for value in optimizer.state[p].values():
                    value.zero_()
                if name == "NAdam":
                    optimizer.state[p]["mu_product"].fill_(1)
            p.grad = torch.full((3,), 1.0 + t)
            optimizer.step()
        assert optimizer.state[p]["step"] == 4
        return [p]

    assert_same_as_pytorch(run)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD", "Adagrad"])
def test_state_moved_into_shared_memory_is_stepped_on_the_fast_path(name: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = getattr(module, name)([p], lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        for t in range(6):
            p.grad = torch.full((3,), 1.0 + t)
            if t == 3:
                for value in (p.detach(), *optimizer.state[p].values()):
                    value.share_memory_()
            optimizer.step()
        assert_fast(optimizer)
        return [p, optimizer]

    assert_same_as_pytorch(run)


def test_two_optimizers_can_share_state_and_step_alternately() -> None:
    """Step shared tensors with one optimizer per worker, as in A3C."""

    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(5).share_memory_())
        first, second = module.NAdam([p], lr=0.1), module.NAdam([p], lr=0.1)
        for t in range(8):
            p.grad = gradient(p, t)
            (first, second)[t % 2].step()
            if t == 0:
                second.state[p] = dict(first.state[p])
        assert second.state[p]["step"] == 8
        return [p, second.state[p]["exp_avg"]]

    assert_same_as_pytorch(run)


def test_step_tensor_shared_by_two_parameters_counts_the_steps_of_both() -> None:
    def run(module: Any) -> list[Any]:
        params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        optimizer = module.Adam(params, lr=0.1, foreach=False)
        for t in range(4):
            for p in params:
                p.grad = gradient(p, t)
            if t == 1:
                optimizer.state[params[1]]["step"] = optimizer.state[params[0]]["step"]
            optimizer.step()
        return [*params, optimizer.state[params[0]]["step"]]

    assert_same_as_pytorch(run)


def test_state_tensor_of_wrong_shape_dtype_or_memory_is_refused_and_nothing_changes() -> None:
    p, optimizer = stepped_adam()
    kept = optimizer.state[p]["exp_avg"]
    before = p.detach().clone()
    for wrong, message in (
        (torch.ones(3), "the state of parameter 0: expected"),
        (torch.ones(4, dtype=torch.float64), "the state of parameter 0: expected"),
        (torch.ones(4, device="meta"), "the state of parameter 0: expected"),
        (p.data, "state of parameter 0 overlaps"),
    ):
        optimizer.state[p]["exp_avg"] = wrong
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert torch.equal(p.detach(), before) and optimizer.state[p]["step"] == 1
    optimizer.state[p]["exp_avg"] = kept
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def test_negative_step_count_is_refused() -> None:
    p, optimizer = stepped_adam()
    optimizer.state[p]["step"].fill_(-3)
    with pytest.raises(ValueError, match="the step number of parameter 0: expected 0 or more, got -3"):
        optimizer.step()


def test_renamed_state_tensor_is_reported_as_missing() -> None:
    p, optimizer = stepped_adam()
    optimizer.step()
    optimizer.state[p]["other"] = optimizer.state[p].pop("exp_avg_sq")  # in the same place, with the same value
    with pytest.raises(KeyError, match="no tensor 'exp_avg_sq'"):
        optimizer.step()
