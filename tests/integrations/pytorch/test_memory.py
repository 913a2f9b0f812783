"""Parameters whose memory a program replaces, lays out differently, shares or frees between steps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import NAMES, assert_fast, assert_same_as_pytorch, gradient

# ---- Replaced memory ----


@pytest.mark.parametrize("name", NAMES)
def test_parameters_whose_data_is_replaced_are_stepped_on_the_fast_path(name: str) -> None:
    def run(module: Any) -> list[Any]:
        params = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3))]
        optimizer = getattr(module, name)(params, lr=0.1)
        replaced = []
        for t in range(6):
            for p in params:
                replaced.append(p.data)
                p.data = torch.clamp(p.data, -0.9, 0.95)
                p.grad = gradient(p, t)
            optimizer.step()
        assert_fast(optimizer)
        return [*params, *replaced]

    assert_same_as_pytorch(run)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "reshaped": lambda data: data.reshape(3, 2),
    "resized": lambda data: torch.ones(2, 5),
    "transposed": lambda data: data.t(),
    "double": lambda data: data.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parameter_whose_shape_layout_or_dtype_changes_is_stepped(change: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        optimizer = module.SGD([p], lr=0.5)
        for t in range(4):
            if t == 2:
                new = CHANGES[change](p.data)
                p.data, p.grad = new, None
            p.grad = torch.ones_like(p)
            optimizer.step()
        return [p]

    assert_same_as_pytorch(run)


def test_square_matrix_transposed_in_place_is_stepped() -> None:
    """The data keep their address and shape, and only the strides change."""

    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(4)))
        optimizer = module.Adam([p], lr=0.1)
        for t in range(6):
            if t == 3:
                p.data = p.data.t()
            p.grad = gradient(p, t)
            if t > 3:
                p.grad = p.grad.t()
            optimizer.step()
        return [p]

    assert_same_as_pytorch(run)


def test_a_parameter_replaced_by_one_of_equal_value_is_stepped() -> None:
    p, q = (torch.nn.Parameter(torch.full((1,), 0.25)) for _ in range(2))
    optimizer = ours.Adam([p], lr=0.1)
    p.grad, q.grad = torch.zeros(1), torch.ones(1)
    optimizer.step()
    optimizer.step()
    optimizer.param_groups[0]["params"] = [q]
    optimizer.step()
    assert p.item() == 0.25 and q.item() < 0.25


# ---- Layouts ----


def test_channels_last_parameter_keeps_its_layout() -> None:
    def run(module: Any) -> list[Any]:
        values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(3))
        p = torch.nn.Parameter(values.contiguous(memory_format=torch.channels_last))
        optimizer = module.Adam([p], lr=0.1)
        for t in range(4):
            p.grad = gradient(p, t)
            if t % 2:
                p.grad = p.grad.contiguous(memory_format=torch.channels_last)
            optimizer.step()
        assert p.is_contiguous(memory_format=torch.channels_last)
        assert optimizer.state[p]["exp_avg"].stride() == p.stride()
        return [p]

    assert_same_as_pytorch(run)


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_parameter_with_gaps_is_stepped_in_place(name: str, steps_before: int) -> None:
    def run(module: Any) -> list[Any]:
        base = torch.arange(8.0)
        p = torch.nn.Parameter(base[:4])
        optimizer = getattr(module, name)([p], lr=0.5)
        for t in range(4):
            if t == steps_before:
                p.data = base[::2]
            p.grad = torch.full((4,), 1.0 + t)
            optimizer.step()
        assert p.stride() == (2,) and p.data_ptr() == base.data_ptr()
        return [base, p]

    assert_same_as_pytorch(run)


def test_lazily_negated_parameter_is_stepped_in_place() -> None:
    def run(module: Any) -> list[Any]:
        base = torch.tensor([1 + 2j, 3 - 4j])
        p = base.conj().imag.detach().requires_grad_()
        optimizer = module.SGD([p], lr=1.0)
        p.grad = torch.ones(2)
        optimizer.step()
        return [base, p]

    assert_same_as_pytorch(run)


# ---- Shared memory ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["shared", "overlapping"])
def test_parameters_that_share_memory_are_stepped_in_sequence(name: str, how: str) -> None:
    def run(module: Any) -> list[Any]:
        base = torch.arange(6.0)
        a, b = torch.nn.Parameter(base[:4]), torch.nn.Parameter(base[:4] if how == "shared" else base[2:])
        optimizer = getattr(module, name)([a, b], lr=0.1, weight_decay=0.1)
        for t in range(4):
            a.grad, b.grad = gradient(a, t), gradient(b, t + 10)
            optimizer.step()
        return [a, b]

    assert_same_as_pytorch(run)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("how", ["both with gaps", "one with gaps", "twice"])
def test_overlapping_parameters_with_gaps_are_stepped_unless_a_norm_is_needed(how: str) -> None:
    def parameters() -> list[Any]:
        base = torch.arange(12.0).reshape(3, 4)
        a = torch.nn.Parameter(base if how == "one with gaps" else base[:, :3])
        return [base, a, a if how == "twice" else torch.nn.Parameter(base[:, 2:])]

    def run(module: Any) -> list[Any]:
        base, a, b = parameters()
        optimizer = module.SGD([a, b], lr=0.1, momentum=0.9, foreach=False)
        for t in range(3):
            a.grad, b.grad = gradient(a, t), gradient(b, t)
            optimizer.step()
        return [base]

    assert_same_as_pytorch(run)
    if how == "both with gaps":
        _, a, b = parameters()
        a.grad, b.grad = torch.ones(3, 3), torch.ones(3, 2)
        with pytest.raises(ValueError, match="gaps that share memory"):
            ours.SGD([a, b], clip_norm=1.0).step()


# ---- Freed memory ----


def test_memory_can_be_resized_and_a_parameter_without_memory_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = ours.SGD([p], lr=0.5)
    p.grad = torch.ones(4)
    optimizer.step()
    kept = p.detach().clone()
    p.grad.resize_(8).resize_(4).fill_(1)
    storage = p.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    with pytest.raises(ValueError, match="parameter 0 has no memory"):
        optimizer.step()
    storage.resize_(size)
    p.data.copy_(kept)
    optimizer.step()
    assert not p.any()


def test_garbage_collector_frees_an_optimizer_in_a_reference_cycle() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p])
    p.optimizer = optimizer
    for _ in range(3):
        p.grad = torch.ones(2)
        optimizer.step()
    assert_fast(optimizer)
    gone = weakref.ref(optimizer)
    del p, optimizer
    gc.collect()
    assert gone() is None
