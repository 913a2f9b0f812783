"""The backward pass after a step, and steps taken in the backward pass."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import interrupted

# ---- The backward pass after a step ----


def test_backward_pass_through_a_stepped_parameter_is_refused_by_autograd() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p, q], lr=0.5)
    for _ in range(3):
        loss, loss_of_q = (p**2).sum(), (q**2).sum()
        p.grad = torch.ones(2)
        optimizer.step()
        loss_of_q.backward()  # q had no gradient and was not stepped
        q.grad = None
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("is_slow", [False, True])
def test_backward_pass_through_a_stepped_average_is_refused_by_autograd(is_slow: bool) -> None:
    p, x = torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)
    optimizer = ours.SGD([p], lr=0.5, ema_decay=0.5)
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    p.grad = torch.ones(1).expand(2) if is_slow else torch.ones(2)
    y = (x * optimizer.ema[0]).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


# ---- Steps in the backward pass ----


def small_model() -> Any:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam"])
def test_steps_in_the_backward_pass_give_the_same_numbers_and_free_gradients(name: str) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
    models = [small_model(), small_model()]
    optimizers = [getattr(ours, name)(model.parameters(), lr=0.05, **options) for model in models]
    handle = ours.step_in_backward(optimizers[0])
    for t in range(5):
        for model, optimizer in zip(models, optimizers):
            optimizer.zero_grad()
            model(torch.full((4, 3), 1.0 + t)).pow(2).mean().backward()
            if optimizer is optimizers[0]:
                assert all(p.grad is None for p in model.parameters())
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        assert torch.equal(a, b)
    handle.remove()
    models[0](torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None for p in models[0].parameters())
    optimizers[0].step()
    assert optimizers[0].state[next(models[0].parameters())].get("step", 6) == 6


def test_step_in_the_backward_pass_increases_the_version_of_the_parameter() -> None:
    """Without a new version, the gradient of the first use would silently be computed from the new weight."""
    p = torch.nn.Parameter(torch.full((1,), 3.0))
    q = torch.nn.Parameter(torch.ones(1))
    optimizer = ours.SGD([p, q], lr=0.5)
    ours.step_in_backward(optimizer)
    version = p._version
    (p * q).sum().backward()
    assert p._version == version + 1 and p.item() == 2.5 and q.item() == -0.5


def test_second_gradient_before_the_step_is_refused_and_changes_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    ours.step_in_backward(ours.SGD([p], lr=0.5))
    p.sum().backward()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="parameter 0 got a second gradient"):
        p.sum().backward()
    assert torch.equal(p.detach(), before)


def test_second_gradient_is_refused_and_not_used_later() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=0.5)
    ours.step_in_backward(optimizer)
    p.sum().backward()
    with pytest.raises(RuntimeError, match="second gradient"):
        p.sum().backward()
    optimizer.step()
    assert p.tolist() == [0.5] * 3 and p.grad is None


def test_parameters_that_become_trainable_later_are_stepped() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    q.requires_grad_(False)
    optimizer = ours.SGD([p, q], lr=0.25)
    handle = ours.step_in_backward(optimizer)
    p.sum().backward()
    optimizer.step()
    q.requires_grad_(True)
    for left in (0.75, 0.5):
        (p.sum() + q.sum()).backward()
        assert (q.grad is None) == (left == 0.5), "from the second backward pass on, the gradient is freed at once"
        optimizer.step()
        assert q.tolist() == [left] * 2 and q.grad is None
    assert p.tolist() == [0.25] * 2
    handle.remove()
    q.sum().backward()
    assert q.grad is not None and q.tolist() == [0.5] * 2


def test_gradients_set_by_hand_are_stepped_once() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = ours.Adam([p, q], lr=0.25, betas=(0.0, 0.0))
    ours.step_in_backward(optimizer)
    p.sum().backward()
    p.grad, q.grad = torch.ones(2), torch.ones(2)  # p has been stepped
    for _ in range(2):
        optimizer.step()
        torch.testing.assert_close((p.detach(), q.detach()), (torch.full((2,), 0.75), torch.full((2,), 0.75)))
    assert p.grad is None and q.grad is None


def test_zero_grad_does_not_allow_a_second_gradient() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=0.25)
    ours.step_in_backward(optimizer)
    p.sum().backward()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="second gradient"):
        p.sum().backward()
    assert p.tolist() == [0.75] * 2


def test_every_backward_pass_steps_if_the_user_has_replaced_zero_grad() -> None:
    class Own(ours.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            raise AssertionError("not called by step()")

    p = torch.nn.Parameter(torch.ones(2))
    optimizer = Own([p], lr=0.25)
    ours.step_in_backward(optimizer)
    for left in (0.75, 0.5):
        p.sum().backward()
        optimizer.step()
        assert p.tolist() == [left] * 2


def test_ctrl_c_at_any_line_of_the_backward_pass_never_steps_a_parameter_twice() -> None:
    seen, moment, came = set(), 0, True
    while came:
        moment += 1
        p = torch.nn.Parameter(torch.ones(()))
        optimizer = ours.SGD([p], lr=0.25)
        ours.step_in_backward(optimizer)
        p.backward()
        optimizer.step()
        came = interrupted(moment, (p * 1.0).backward)
        optimizer.step()
        seen.add(p.item())
    assert seen == {0.75, 0.5}


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        raise ValueError("failed on purpose")


def test_backward_pass_can_be_repeated_after_a_failed_one() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = ours.SGD([p, q], lr=0.25)
    ours.step_in_backward(optimizer)
    with pytest.raises(ValueError, match="on purpose"):  # the latest operation runs first
        (Fails.apply(p).sum() + q.sum()).backward()
    assert q.tolist() == [0.75] * 2
    with pytest.raises(
        RuntimeError, match=r"call optimizer.step\(\) after each backward pass, even after a failed one"
    ):
        q.sum().backward()
    optimizer.step()
    (p.sum() + q.sum()).backward()
    optimizer.step()
    assert p.tolist() == [0.75] * 2 and q.tolist() == [0.5] * 2


def test_options_that_need_all_gradients_are_refused_with_steps_in_the_backward_pass() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=0.5)
    ours.step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(lambda: None)
    with pytest.raises(RuntimeError, match="already"):
        ours.step_in_backward(optimizer)
    with pytest.raises(ValueError, match="clip_norm"):
        optimizer.clip_norm = 1.0
    with pytest.raises(RuntimeError, match="added"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="clip_norm and nonfinite"):
        ours.step_in_backward(ours.SGD([p], nonfinite="skip"))
    with pytest.raises(TypeError, match="expected one of"):
        ours.step_in_backward(torch.optim.SGD([p]))
