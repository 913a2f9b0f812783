"""Closures, step hooks, the profiler and torch.compile around a step."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours


def sgd() -> tuple[Any, Any]:
    """Return a parameter of two ones with a gradient of ones, and an SGD optimizer with a learning rate of 0.5."""
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    return p, ours.SGD([p], lr=0.5)


def test_closure_runs_with_gradients_enabled_and_its_loss_is_returned() -> None:
    p, optimizer = sgd()

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 2
    assert torch.equal(p.detach(), torch.zeros(2))


def test_hooks_run_in_order_until_they_are_removed() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen: list[str] = []
    p, optimizer = sgd()
    handles = [
        register_optimizer_step_pre_hook(lambda o, a, k: seen.append("all before")),
        register_optimizer_step_post_hook(lambda o, a, k: seen.append("all after")),
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append("before")),
        optimizer.register_step_post_hook(lambda o, a, k: seen.append("after")),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["all before", "before", "after", "all after"]
    optimizer.step()
    assert len(seen) == 4 and torch.equal(p.detach(), torch.zeros(2))


def test_hooks_see_the_arguments_of_the_step_and_may_change_them() -> None:
    _, optimizer = sgd()
    seen: list[Any] = []
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append((len(args), set(kwargs))))
    optimizer.step()
    optimizer.step(closure=lambda: 1)
    handle.remove()
    assert seen == [(1, set()), (1, {"closure"})]
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: (args, {"closure": lambda: 3}))
    assert optimizer.step() == 3
    assert optimizer.step(lambda: 1) == 3
    handle.remove()
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7), {}))
    assert optimizer.step() == 7


@pytest.mark.parametrize("closure", [False, True])
def test_hooks_run_once_in_a_subclass_that_overrides_step(closure: bool) -> None:
    class Logged(ours.AdamW):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    p = torch.nn.Parameter(torch.zeros(2))
    seen = []
    for cls in (ours.AdamW, Logged):
        optimizer = cls([p], lr=0.5)
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        p.grad = torch.ones(2)
        assert optimizer.step(lambda: 7) == 7 if closure else optimizer.step() is None
        assert seen == ["before", "after"]
        seen.clear()


def test_profiler_records_the_step() -> None:
    _, optimizer = sgd()
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert any("Optimizer.step#SGD.step" in event.key for event in profile.key_averages())


def test_compiled_training_step_gives_no_warning() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p], lr=0.5)

    def step(x: Any) -> None:
        optimizer.zero_grad()
        (p * x).sum().backward()
        optimizer.step()

    compiled = torch.compile(step, backend="eager")
    for _ in range(3):
        compiled(torch.ones(3))
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.5))
