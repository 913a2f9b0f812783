"""The PyTorch adapter in programs that move, share and replace tensors; onepass's own options."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass  # noqa: E402
import onepass.integrations.torch as ours  # noqa: E402
from onepass.integrations.torch import _engine  # noqa: E402
from onepass.presets import presets  # noqa: E402

NAMES = ["Adam", "AdamW", "Adamax", "NAdam", "RMSprop", "Adagrad", "Adadelta", "SGD"]
has_exchange = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")


def gradient(p: Any, seed: int) -> Any:
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype)


def assert_both(run: Callable[[Any], list[Any]], rtol: float = 2e-5) -> None:
    """Assert that the run returns the same numbers with onepass's module and with PyTorch's module."""
    for got, want in zip(run(ours), run(torch.optim), strict=True):
        torch.testing.assert_close(got.detach(), want.detach(), rtol=rtol, atol=1e-6)


# ---- Moved and replaced memory ----


@pytest.mark.parametrize("name", NAMES)
def test_data_replaced_before_each_step_is_stepped(name: str) -> None:
    def run(module: Any) -> list[Any]:
        params = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3))]
        optimizer = getattr(module, name)(params, lr=0.1)
        kept = []
        for t in range(6):
            for p in params:
                kept.append(p.data)
                p.data = torch.clamp(p.data, -0.9, 0.95)
                p.grad = gradient(p, t)
            optimizer.step()
        if has_exchange and module is ours:
            assert optimizer.slow_steps == 1
        return [*params, *kept]

    assert_both(run)


@pytest.mark.parametrize("change", ["reshaped", "resized", "transposed", "double"])
def test_a_parameter_whose_shape_layout_or_dtype_changes_is_stepped(change: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        optimizer = module.SGD([p], lr=0.5)
        for t in range(4):
            if t == 2:
                new = {
                    "reshaped": lambda: p.data.reshape(3, 2),
                    "resized": lambda: torch.ones(2, 5),
                    "transposed": lambda: p.data.t(),
                    "double": lambda: p.data.double(),
                }[change]()
                p.data, p.grad = new, None
            p.grad = torch.ones_like(p)
            optimizer.step()
        return [p]

    assert_both(run)


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
        return [p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"], optimizer.state[p]["step"]]

    assert_both(run)


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

    assert_both(run)


def test_a_state_tensor_of_wrong_shape_or_dtype_is_refused_and_nothing_changes() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = ours.Adam([p], lr=0.5)
    p.grad = torch.ones(4)
    optimizer.step()
    kept = optimizer.state[p]["exp_avg"]
    before = p.detach().clone()
    for wrong in (torch.ones(3), torch.ones(4, dtype=torch.float64), torch.ones(4, device="meta")):
        optimizer.state[p]["exp_avg"] = wrong
        with pytest.raises(ValueError, match="the state of parameter 0: expected"):
            optimizer.step()
        assert torch.equal(p.detach(), before) and optimizer.state[p]["step"] == 1
    optimizer.state[p]["exp_avg"] = p.data
    with pytest.raises(ValueError, match="state of parameter 0 overlaps"):
        optimizer.step()
    optimizer.state[p]["exp_avg"] = kept
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_a_first_step_that_fails_leaves_no_state(name: str) -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    options: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    optimizer = getattr(ours, name)([p, q], lr=0.1, nonfinite="raise", **options)
    p.grad, q.grad = torch.ones(3), torch.full((3,), float("nan"))
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert not optimizer.state and torch.equal(p.detach(), torch.ones(3))
    q.grad = torch.ones(3)
    optimizer.step()
    other = getattr(torch.optim, name)([r := torch.nn.Parameter(torch.ones(3))], lr=0.1, **options)
    r.grad = torch.ones(3)
    other.step()
    torch.testing.assert_close(p, r)


def test_a_step_number_below_zero_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    optimizer = ours.Adam([p])
    optimizer.step()
    optimizer.state[p]["step"].fill_(-3)
    with pytest.raises(ValueError, match="the step number of parameter 0: expected 0 or more, got -3"):
        optimizer.step()


# ---- Parameters are checked when they are stepped ----


def test_workers_that_step_one_state_at_the_same_time_lose_no_count() -> None:
    p = torch.nn.Parameter(torch.zeros(300_000))
    p.grad = torch.ones_like(p)
    first, second = ours.Adam([p], lr=1e-4), ours.Adam([p], lr=1e-4)
    first.step()
    second.state = first.state

    def work(optimizer: Any) -> None:
        for _ in range(60):
            optimizer.step()

    threads = [threading.Thread(target=work, args=(optimizer,)) for optimizer in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 119 <= first.state[p]["step"] <= 121  # PyTorch too may lose a count at the very same moment


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

    assert_both(run)


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

    assert_both(run)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["shared", "overlapping"])
def test_parameters_that_share_memory_are_stepped_one_after_the_other(name: str, how: str) -> None:
    def run(module: Any) -> list[Any]:
        base = torch.arange(6.0)
        a, b = torch.nn.Parameter(base[:4]), torch.nn.Parameter(base[:4] if how == "shared" else base[2:])
        optimizer = getattr(module, name)([a, b], lr=0.1, weight_decay=0.1)
        for t in range(4):
            a.grad, b.grad = gradient(a, t), gradient(b, t + 10)
            optimizer.step()
        return [a, b]

    assert_both(run)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_a_parameter_that_occurs_twice_is_stepped_twice(name: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(module, name)([p, p], lr=0.1, foreach=False, **options)
        for t in range(4):
            p.grad = gradient(p, t)
            optimizer.step()
        return [p, *optimizer.state[p].values()]

    assert_both(run)


def test_a_gradient_can_be_the_parameter_itself() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = module.SGD([p], lr=0.5)
        for _ in range(3):
            p.grad = p.detach()
            optimizer.step()
        return [p]

    assert_both(run)


@pytest.fixture
def group() -> Iterator[Any]:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("PyTorch without torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed
    distributed.destroy_process_group()


def test_dtensors_are_stepped_in_their_shards(group: Any) -> None:
    mesh = pytest.importorskip("torch.distributed.device_mesh").init_device_mesh("cpu", (1,))
    tensors = pytest.importorskip("torch.distributed.tensor")

    def run(module: Any) -> list[Any]:
        shard = tensors.distribute_tensor(torch.ones(4, 2), mesh, [tensors.Shard(0)])
        copies = tensors.distribute_tensor(torch.ones(3), mesh, [tensors.Replicate()])
        params = [torch.nn.Parameter(shard), torch.nn.Parameter(copies), torch.nn.Parameter(torch.ones(2))]
        optimizer = module.Adam(params, lr=0.1)
        for t in range(3):
            optimizer.zero_grad()
            loss = (params[0] * (t + 1)).pow(2).sum() + (params[1] - t).pow(2).sum()
            loss.full_tensor().backward()
            params[2].grad = torch.ones(2)
            optimizer.step()
        assert type(optimizer.state[params[0]]["exp_avg"]) is type(shard)
        return [params[0].full_tensor(), params[1].full_tensor(), params[2]]

    assert_both(run)
    p = torch.nn.Parameter(tensors.distribute_tensor(torch.ones(4), mesh, [tensors.Shard(0)]))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="DTensors"):
        ours.Adam([p], clip_norm=1.0).step()


# ---- Changing options ----

SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("LambdaLR", {"lr_lambda": lambda t: 1 - t / 5}),
    ("MultiplicativeLR", {"lr_lambda": lambda t: 0.5}),
    ("StepLR", {"step_size": 2}),
    ("MultiStepLR", {"milestones": [2, 4]}),
    ("ConstantLR", {"total_iters": 3}),
    ("LinearLR", {"end_factor": 0.0, "total_iters": 5}),
    ("ExponentialLR", {"gamma": 0.5}),
    ("PolynomialLR", {"total_iters": 5}),
    ("CosineAnnealingLR", {"T_max": 5}),
    ("CosineAnnealingWarmRestarts", {"T_0": 2}),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2, "cycle_momentum": False}),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 8}),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULERS, ids=[name for name, _ in SCHEDULERS])
def test_every_scheduler_works_to_its_end_and_beyond(name: str, options: dict[str, Any]) -> None:
    def run(module: Any) -> list[Any]:
        params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = module.AdamW([{"params": [p]} for p in params], lr=0.1)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
        for t in range(7):
            for p in params:
                p.grad = gradient(p, t)
            optimizer.step()
            scheduler.step()
        if has_exchange and module is ours:
            assert optimizer.slow_steps == 1
        again = module.AdamW([{"params": [p]} for p in params])
        again.load_state_dict(optimizer.state_dict())
        again.step()
        return params

    assert_both(run)


def test_momentum_can_be_switched_on_later() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = module.SGD([p], lr=0.1)
        for t in range(6):
            optimizer.param_groups[0]["momentum"] = 0.0 if t < 2 else 0.9 / t
            p.grad = gradient(p, t)
            optimizer.step()
        return [p, optimizer.state[p]["momentum_buffer"]]

    assert_both(run)


# ---- Hooks, compilation, threads ----


@pytest.mark.parametrize("closure", [False, True])
def test_hooks_run_once_in_a_subclass_whose_step_calls_ours(closure: bool) -> None:
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


def test_a_compiled_training_step_gives_no_warning() -> None:
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


def test_threads_that_change_groups_and_state_do_not_corrupt_parameters() -> None:
    params = [torch.nn.Parameter(torch.ones(50)) for _ in range(8)]
    optimizer = ours.Adam([{"params": [p]} for p in params], lr=0.001)
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            groups = optimizer.param_groups
            groups.append(groups.pop())
            optimizer.state.clear()
            groups[0]["lr"] = 0.001
            groups[1]["amsgrad"] = False
            params[2].data = params[2].data.clone()

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(300):
            for p in params:
                p.grad = torch.ones(50)
            with suppress(KeyError, IndexError, RuntimeError):  # state that was removed during the step
                optimizer.step()
    finally:
        done.set()
        thread.join()
    assert all(torch.isfinite(p).all() and len(p) == 50 for p in params)


# ---- Faults that a review found ----


def test_a_rate_that_changed_before_a_refused_step_is_taken_by_the_next() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = ours.SGD([p], lr=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    group = optimizer.param_groups[0]
    group["lr"], group["differentiable"] = 10.0, True
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.step()
    group["differentiable"] = False
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -10.1))


NUMBERS: dict[str, Callable[[float], Any]] = {
    "float32": np.float32,
    "array": np.array,
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "float64 tensor": lambda x: torch.tensor(x, dtype=torch.float64),
    "tensor of one": lambda x: torch.tensor([x]),
}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", NUMBERS)
def test_options_may_be_any_kind_of_number(kind: str, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(_engine, "exchange", None)
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    mine, theirs = ours.AdamW([p]), ours.AdamW([q])
    for t in range(4):
        for optimizer, make in ((mine, NUMBERS[kind]), (theirs, float)):
            group = optimizer.param_groups[0]
            group["lr"], group["weight_decay"] = make(0.5 / (t + 1)), make(0.25)
            group["betas"] = (make(0.5), make(0.75))
        p.grad, q.grad = gradient(p, t), gradient(q, t)
        mine.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-2 if kind == "bfloat16" else 1e-6, atol=1e-3 if kind == "bfloat16" else 0)


def test_betas_may_be_an_array_or_a_tensor() -> None:
    def run(betas: Any) -> Any:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = ours.Adam([p], lr=0.1)
        optimizer.param_groups[0]["betas"] = betas
        for t in range(3):
            p.grad = gradient(p, t)
            optimizer.step()
        return p.detach()

    for betas in (np.array([0.5, 0.75]), torch.tensor([0.5, 0.75]), [0.5, 0.75]):
        assert torch.equal(run(betas), run((0.5, 0.75)))


def test_functions_and_impossible_own_options_are_refused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match="lr: expected a number, got a function"):
        ours.Lion([p], lr=lambda t: 0.5)
    with pytest.raises(TypeError, match="ema_decay: expected a number"):
        ours.Adam([{"params": [p], "ema_decay": lambda t: 0.5}])
    optimizer = ours.Adam([p], clip_value=1.0, ema_decay=0.5)
    optimizer.step()
    for name, wrong in (("clip_value", -1.0), ("ema_decay", 5.0)):
        kept, optimizer.param_groups[0][name] = optimizer.param_groups[0][name], wrong
        with pytest.raises(ValueError, match=name):
            optimizer.step()
        optimizer.param_groups[0][name] = kept
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("how", ["both with gaps", "one with gaps", "twice"])
def test_parameters_with_gaps_that_share_memory(how: str) -> None:
    def run(module: Any) -> list[Any]:
        base = torch.arange(12.0).reshape(3, 4)
        a = torch.nn.Parameter(base if how == "one with gaps" else base[:, :3])
        b = a if how == "twice" else torch.nn.Parameter(base[:, 2:])
        optimizer = module.SGD([a, b], lr=0.1, momentum=0.9, foreach=False)
        for t in range(3):
            a.grad, b.grad = gradient(a, t), gradient(b, t)
            optimizer.step()
        return [base]

    assert_both(run)
    if how != "twice":
        base = torch.arange(12.0).reshape(3, 4)
        a, b = torch.nn.Parameter(base[:, :3]), torch.nn.Parameter(base[:, 2:])
        a.grad, b.grad = torch.ones(3, 3), torch.ones(3, 2)
        with pytest.raises(ValueError, match="gaps that share memory"):
            ours.SGD([a, b], clip_norm=1.0).step()


def test_autograd_notices_that_an_average_has_changed() -> None:
    p, x = torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)
    optimizer = ours.SGD([p], lr=0.5, ema_decay=0.5)
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    y = (x * optimizer.ema[0]).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_skipped_first_step_leaves_no_momentum() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=0.1, momentum=0.9, dampening=0.5, nonfinite="skip")
    p.grad = torch.full((2,), float("nan"))
    optimizer.step()
    assert not optimizer.state and optimizer.skipped == 1
    p.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.9))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_sparse_gradient_touches_its_rows_only_whatever_the_layout(layout: str) -> None:
    values = torch.ones(4, 2)
    p = torch.nn.Parameter(values if layout == "rows" else values.t().contiguous().t())
    optimizer = ours.Adam([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = p.detach().clone()
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2))
    optimizer.step()
    changed = (p.detach() != before).any(dim=1)
    assert changed.tolist() == [False, True, False, False]


def test_a_step_tensor_that_two_parameters_share_counts_twice() -> None:
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

    assert_both(run)


def test_averages_before_and_after_there_are_any() -> None:
    p, lazy = torch.nn.Parameter(torch.ones(2)), torch.nn.UninitializedParameter()
    plain = ours.Adam([p])
    p.grad = torch.ones(2)
    plain.step()
    assert plain.ema is None
    with pytest.raises(ValueError, match="create the optimizer with ema_decay"), plain.averaged():
        pass
    optimizer = ours.Adam([p, lazy], ema_decay=0.5, lr=0.1)
    optimizer.state[p] = dict(plain.state[p])  # as loaded from PyTorch's
    assert torch.equal(optimizer.ema[0], p.detach())
    optimizer.step()
    with optimizer.averaged():
        assert torch.equal(p.detach(), optimizer.ema[0])
        p.grad = None
        (p * 2).sum().backward()
    assert p.grad is not None


@pytest.mark.parametrize("line", range(12))
def test_ctrl_c_at_any_line_of_a_first_step_leaves_the_optimizer_usable(line: int) -> None:
    p, q = torch.nn.Parameter(torch.ones(4, 2)[:, 0]), torch.nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p, q], lr=0.1)
    p.grad, q.grad = torch.ones(4), torch.ones(2)
    left = 5 * line

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line" and frame.f_code.co_name in {"_initialize", "step", "_try", "_substitutes"}:
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    with suppress(KeyboardInterrupt):
        optimizer.step()
    sys.settrace(None)
    done = int(optimizer.state.get(p, {}).get("step", 0))
    assert torch.equal(p.detach(), torch.full((4,), 1.0)) == (done == 0)
    assert torch.equal(q.detach(), torch.full((2,), 1.0)) == (done == 0)
    optimizer.step()
    assert optimizer.state[p]["step"] == optimizer.state[q]["step"] == done + 1


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_rows_that_only_say_that_they_are_coalesced() -> None:
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = ours.SGD([p], lr=1.0, clip_norm=1e9)
    indices = torch.tensor([[2, 0, 2, 2, 2, 2]])
    p.grad = torch.sparse_coo_tensor(indices, torch.ones(6, 2), (3, 2), is_coalesced=True)
    optimizer.step()
    assert p.tolist() == [[0.0, 0.0], [1.0, 1.0], [-4.0, -4.0]]
    p.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 1000000, 2]]), torch.ones(3, 2), (3, 2), is_coalesced=True, check_invariants=False
    )
    with pytest.raises((IndexError, RuntimeError)):
        optimizer.step()


def test_a_gradient_whose_memory_was_freed_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p])
    p.grad = torch.ones(3)
    optimizer.step()
    p.grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="the gradient of parameter 0 has no memory"):
        optimizer.step()


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


def test_a_second_gradient_before_the_step_is_refused_and_the_parameter_stays() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=0.5)
    ours.step_in_backward(optimizer)
    p.sum().backward()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="parameter 0 got a second gradient"):
        p.sum().backward()
    assert torch.equal(p.detach(), before)
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


def test_a_step_in_the_backward_pass_is_noticed_by_a_later_use_in_the_same_pass() -> None:
    """Without a new version, the gradient of the first use would silently be computed from the new weight."""
    p = torch.nn.Parameter(torch.full((1,), 3.0))
    q = torch.nn.Parameter(torch.ones(1))
    optimizer = ours.SGD([p, q], lr=0.5)
    ours.step_in_backward(optimizer)
    version = p._version
    (p * q).sum().backward()
    assert p._version == version + 1 and p.item() == 2.5 and q.item() == -0.5


# ---- onepass's own options ----


def test_clip_norm_matches_clip_grad_norm() -> None:
    runs = []
    for module in (ours, torch.optim):
        params = [torch.nn.Parameter(torch.ones(40)), torch.nn.Parameter(torch.ones(3, 5))]
        optimizer = module.AdamW(params, lr=0.1, **({"clip_norm": 1.0} if module is ours else {}))
        for t in range(4):
            for i, p in enumerate(params):
                p.grad = gradient(p, t + 10 * i)
            if module is torch.optim:
                norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
        if module is ours:
            ours_norm = optimizer.grad_norm
        runs.append(params)
    assert ours_norm == pytest.approx(norm.item(), rel=1e-5)
    torch.testing.assert_close(*runs, rtol=2e-5, atol=1e-6)


def test_clip_value_matches_clip_grad_value() -> None:
    runs = []
    for module in (ours, torch.optim):
        p = torch.nn.Parameter(torch.ones(40))
        optimizer = module.SGD([p], lr=0.1, **({"clip_value": 0.5} if module is ours else {}))
        for t in range(4):
            p.grad = gradient(p, t)
            if module is torch.optim:
                torch.nn.utils.clip_grad_value_([p], 0.5)
            if t == 3 and module is ours:
                optimizer.param_groups[0]["clip_value"] = 0.25
            elif t == 3:
                torch.nn.utils.clip_grad_value_([p], 0.25)
            optimizer.step()
        runs.append(p)
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-7)


def test_gradients_that_are_not_finite_are_skipped_or_refused() -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p, q], nonfinite="skip", lr=0.5)
    for t, bad in enumerate([1.0, float("nan"), float("inf"), 1.0]):
        p.grad, q.grad = torch.ones(3), torch.full((3,), bad)
        version = p._version
        optimizer.step()
        assert optimizer.skipped == min(t, 2) and p._version == version + (t in (0, 3))
    assert optimizer.state[p]["step"] == 2
    optimizer.nonfinite = "raise"
    q.grad = torch.full((3,), float("nan"))
    before = p.detach().clone()
    with pytest.raises(FloatingPointError, match="the gradient of parameter 1 is not finite"):
        optimizer.step()
    assert torch.equal(p.detach(), before) and optimizer.skipped == 2


def test_running_averages_are_tensors_of_the_state_and_can_be_evaluated() -> None:
    p, late = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((2,), 5.0))
    optimizer = ours.SGD([p, late], lr=1.0, ema_decay=0.5)
    want = p.detach().clone()
    for _ in range(4):
        p.grad = torch.ones(3)
        optimizer.step()
        want.lerp_(p.detach(), 0.5)
    assert torch.equal(optimizer.ema[0], want) and torch.equal(optimizer.ema[1], late.detach())
    assert optimizer.state_dict()["state"][0]["ema"].equal(want)
    own = p.detach().clone()
    with suppress(RuntimeError), optimizer.averaged():
        assert torch.equal(p.detach(), want)
        raise RuntimeError
    assert torch.equal(p.detach(), own)
    again = ours.SGD([p, late], lr=1.0, ema_decay=0.5)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.ema[0], want)
    plain = torch.optim.SGD([p, late], lr=1.0)
    plain.step()
    again.load_state_dict(plain.state_dict())  # has no average: the average begins with the parameter
    assert again.param_groups[0]["ema_decay"] == 0.5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {"eps_mode": "hat", "bias_correction": False, "clip_value": 0.5}),
        ("Lion", {"weight_decay": 0.1, "clip_norm": 0.7, "maximize": True}),
        ("Adam", presets["keras3"]),
        ("SGD", {"flush_denormals": False, "ema_decay": 0.9}),
    ],
)
def test_own_options_are_bit_identical_to_the_numpy_optimizers(name: str, options: Any) -> None:
    w = np.linspace(-1, 1, 37, dtype=np.float32)
    p = torch.nn.Parameter(torch.from_numpy(w.copy()))
    theirs, mine = (
        getattr(onepass, name)(w, **{"lr": 0.1, **options}),
        getattr(ours, name)([p], **{"lr": 0.1, **options}),
    )
    for t in range(5):
        p.grad = gradient(p, t)
        theirs.step(p.grad.numpy().copy())
        mine.step()
    assert p.detach().numpy().tobytes() == w.tobytes()


def test_tiny_gradients_are_kept_if_eps_is_tiny() -> None:
    for eps, tiny in ((0.0, 1e-18), (1e-30, 1e-20)):

        def run(module: Any, eps: float = eps, tiny: float = tiny) -> list[Any]:
            p = torch.nn.Parameter(torch.zeros(1))
            optimizer = module.Adam([p], lr=0.1, eps=eps)
            for _ in range(3):
                p.grad = torch.full((1,), tiny)
                optimizer.step()
            return [p]

        assert_both(run, rtol=0.02)


def test_own_options_are_copied_pickled_and_kept_when_a_state_dict_of_pytorch_is_loaded() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([{"params": [p], "clip_value": 2.0}], clip_norm=1.0, nonfinite="skip", ema_decay=0.9)
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (again.clip_norm, again.nonfinite, again.flush_denormals) == (1.0, "skip", True)
        assert (again.param_groups[0]["clip_value"], again.param_groups[0]["ema_decay"]) == (2.0, 0.9)
    optimizer.load_state_dict(torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.5).state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["clip_value"], group["ema_decay"], optimizer.clip_norm) == (0.5, 2.0, 0.9, 1.0)


def test_defaults_add_nothing_to_pytorchs_groups() -> None:
    for name in NAMES:
        p = torch.nn.Parameter(torch.ones(3))
        mine, theirs = getattr(ours, name)([p], lr=0.1), getattr(torch.optim, name)([p], lr=0.1)
        assert (
            mine.defaults == theirs.defaults
            and mine.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
        )
        options = inspect.signature(getattr(ours, name)).parameters
        assert {"lr", "clip_norm", "clip_value", "nonfinite", "ema_decay", "flush_denormals"} <= options.keys()


def test_zero_grad_behaves_as_in_pytorch() -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p], lr=0.1)
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        assert not p.grad.any()
        optimizer.zero_grad()
        assert p.grad is None
    optimizer.add_param_group({"params": [q]})
    q.grad = torch.ones(3)
    optimizer.zero_grad()
    assert q.grad is None


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_only_the_first_step_along_sparse_gradients_is_slow(momentum: float) -> None:
    weights, slow = [], []
    for module in (torch.optim, ours):
        p = torch.nn.Parameter(torch.ones(10, 3))
        optimizer = module.SGD([p], lr=0.125, momentum=momentum)
        generator = torch.Generator().manual_seed(0)
        for t in range(8):
            rows = torch.randint(0, 10, (1, [6, 0, 10, 5][t % 4]), generator=generator)
            values = torch.randint(-8, 8, (rows.shape[1], 3), generator=generator) / 8
            gradient = torch.sparse_coo_tensor(rows, values, (10, 3))
            p.grad = gradient.to_dense() if module is torch.optim or t == 6 else gradient
            optimizer.step()
            if module is ours:
                slow.append(optimizer.slow_steps)
        weights.append(p.detach())
    if momentum == 0:  # otherwise the momentum of other rows would move them in PyTorch
        assert torch.equal(*weights)
    assert slow == [1] * 6 + [2] + [3] or not has_exchange  # step 6 has a dense gradient


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("row", [-1, 4])
def test_rows_out_of_range_are_refused_at_every_step(row: int) -> None:
    p = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = ours.SGD([p], lr=0.1)
    for rows in ([1, 0], [1, 2]):
        p.grad = torch.sparse_coo_tensor(torch.tensor([rows]), torch.ones(2, 2), (4, 2))
        optimizer.step()
    before = p.detach().clone()
    p.grad = torch.sparse_coo_tensor(torch.tensor([[row]]), torch.ones(1, 2), (4, 2), check_invariants=False)
    with pytest.raises(IndexError, match="parameter 0: expected rows from 0 to 3"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("where", ["parameter", "momentum"])
@pytest.mark.parametrize("coalesced", [True, False])
def test_values_of_a_sparse_gradient_may_lie_in_the_parameter_or_its_state(where: str, coalesced: bool) -> None:
    weights = []
    for apart in (True, False):
        p = torch.nn.Parameter(torch.arange(10.0).reshape(5, 2))
        optimizer = ours.SGD([p], lr=0.5, momentum=0.5)
        p.grad = torch.ones(5, 2)
        optimizer.step()
        for _ in range(3):
            values = (p.detach() if where == "parameter" else optimizer.state[p]["momentum_buffer"])[0:3]
            rows = torch.tensor([[1, 2, 3]])
            p.grad = torch.sparse_coo_tensor(rows, values.clone() if apart else values, (5, 2), is_coalesced=coalesced)
            optimizer.step()
        weights.append(p.detach())
    assert torch.equal(*weights)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("shape", [(3, 6), (3, 1), (3, 2, 2), (3,)])
@pytest.mark.parametrize("steps", [0, 2])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...], steps: int) -> None:
    p = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = ours.SGD([p], lr=1.0)
    for _ in range(steps):
        p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2))
        optimizer.step()
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2))
    p.data = torch.zeros(shape)
    with pytest.raises(ValueError, match="gradient of parameter 0: expected rows of shape"):
        optimizer.step()
    assert not p.detach().any()


def test_threads_that_take_the_first_sparse_steps_lose_no_count() -> None:
    embedding = torch.nn.Embedding(50, 4, sparse=True)
    optimizer = ours.Adagrad(embedding.parameters(), lr=0.1)
    embedding(torch.arange(30)).sum().backward()
    threads = [threading.Thread(target=lambda: [optimizer.step() for _ in range(50)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(optimizer.state[embedding.weight]["step"]) == 150


def test_only_the_first_step_with_momentum_is_slow() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=0.1, momentum=0.9)
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.slow_steps == 1 or not has_exchange


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_norm": 1.0}, ValueError, "clip_norm applies to the whole optimizer"),
        ({"nonfinite": "skip"}, ValueError, "nonfinite applies to the whole optimizer"),
        ({"ema_deacy": 0.9}, TypeError, "unexpected option 'ema_deacy' of a group: did you mean 'ema_decay'"),
    ],
)
def test_options_that_a_group_cannot_have_are_refused(options: Any, error: Any, message: str) -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with pytest.raises(error, match=message):
        ours.SGD([{"params": [p], **options}], lr=0.1)
    optimizer = ours.SGD([{"params": [p], "name": "of my own"}], lr=0.1)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [q], **options})
    assert len(optimizer.param_groups) == 1
