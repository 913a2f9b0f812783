"""onepass's optimizers for PyTorch beside PyTorch's own: the same numbers, and what works on those works."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib.util
import io
import itertools
import pickle
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours  # noqa: E402
from onepass.integrations.torch import _compat, _engine  # noqa: E402

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-4}),
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "weight_decay": 0.2, "fused": True}),
    ("Adamax", {"weight_decay": 0.1}),
    ("NAdam", {}),
    ("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "foreach": True}),
    ("Adagrad", {"initial_accumulator_value": 0.1, "lr_decay": 0.1}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
]
IDS = [f"{name}-{'-'.join(options) or 'defaults'}" for name, options in OPTIONS]


def tensors(seed: int = 0, dtype: Any = None) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    dtype = dtype or torch.float32
    shapes = [(5, 3), (7,), (), (2, 3, 4), (0,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def give_gradients(params: list[Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


# The way without Python.
needs_exchange = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="before PyTorch 2.10 there is none"
)


def assert_close(left: list[Any], right: list[Any], dtype: Any = None) -> None:
    rtol, atol = (1e-12, 1e-13) if dtype == torch.float64 else (2e-5, 1e-6)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=atol)


def assert_same_state(mine: Any, other: Any) -> None:
    mine, other = mine.state_dict(), other.state_dict()
    assert mine["state"].keys() == other["state"].keys()
    for index, state in other["state"].items():
        assert mine["state"][index].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(mine["state"][index][name], value, rtol=1e-4, atol=1e-5)
    assert mine["param_groups"] == other["param_groups"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
def test_the_same_numbers_as_pytorchs(name: str, options: dict[str, Any], dtype: Any) -> None:
    if name == "NAdam" and dtype == torch.float64:
        torch.set_default_dtype(torch.float64)  # or PyTorch keeps its product of momenta in float32
    try:
        mine, others = tensors(dtype=dtype), tensors(dtype=dtype)
        own, other = getattr(ours, name)(mine, **options), getattr(torch.optim, name)(others, **options)
        for t in range(20):
            give_gradients(mine, t)
            give_gradients(others, t)
            own.step()
            other.step()
        assert_close(mine, others, dtype)
        assert_same_state(own, other)
    finally:
        torch.set_default_dtype(torch.float32)
    assert isinstance(own, getattr(torch.optim, name))


@pytest.mark.parametrize("to_ours", [True, False])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
def test_a_state_dict_goes_from_either_to_the_other(name: str, options: dict[str, Any], to_ours: bool) -> None:
    first, second = (torch.optim, ours) if to_ours else (ours, torch.optim)
    params, through = tensors(), tensors()
    a, straight = getattr(first, name)(params, **options), getattr(torch.optim, name)(through, **options)
    for t in range(5):
        for those, optimizer in ((params, a), (through, straight)):
            give_gradients(those, t)
            optimizer.step()
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    b = getattr(second, name)(params, **options)
    b.load_state_dict(torch.load(file))
    for t in range(5, 10):
        for those, optimizer in ((params, b), (through, straight)):
            give_gradients(those, t)
            optimizer.step()
    assert_close(params, through)
    assert_same_state(b, straight)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
def test_copies_and_pickles_go_on_with_the_same_bits(name: str, options: dict[str, Any]) -> None:
    params = tensors()
    optimizer = getattr(ours, name)(params, **options)
    give_gradients(params, 1)
    optimizer.step()
    copied, (again, unpickled) = copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))
    for those, one in ((params, optimizer), copied, (again, unpickled)):
        for t in range(2, 5):
            give_gradients(those, t)
            one.step()
    for a, b, c in zip(params, copied[0], again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_state_is_live_and_lies_where_pytorch_has_it() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p], lr=0.5)
    assert not optimizer.state
    for t in range(1, 4):
        p.grad = torch.ones(3)
        optimizer.step()
        assert optimizer.state[p]["step"] == t
    optimizer.state[p]["exp_avg"].zero_()
    before = p.detach().clone()
    p.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(p.detach(), before)


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda s, o: s.StepLR(o, 2),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 10),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, max_lr=0.1, total_steps=20),  # moves the momentum or beta1 too
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda t: 1 / (1 + t)),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    "SequentialLR": lambda s, o: s.SequentialLR(o, [s.ConstantLR(o), s.ExponentialLR(o, 0.9)], [3]),
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_schedulers_drive_it(name: str, scheduler: str) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    runs = []
    for module in (ours, torch.optim):
        params = tensors()
        optimizer = getattr(module, name)(params, lr=0.1, **options)
        schedule = SCHEDULERS[scheduler](torch.optim.lr_scheduler, optimizer)
        for t in range(8):
            give_gradients(params, t)
            optimizer.step()
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
        runs.append((params, optimizer.param_groups[0]["lr"]))
    assert_close(runs[0][0], runs[1][0])
    assert runs[0][1] == pytest.approx(runs[1][1])


def test_groups_have_options_of_their_own_and_may_be_added() -> None:
    runs = []
    for module in (ours, torch.optim):
        params = tensors()
        groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:4], "weight_decay": 0.3}]
        optimizer = module.AdamW(groups, lr=0.02)
        for t in range(8):
            if t == 3:
                optimizer.add_param_group({"params": params[4:], "betas": (0.5, 0.6)})
            if t == 5:
                optimizer.param_groups[1]["lr"] = 0.5
                optimizer.param_groups[0]["betas"] = (0.3, 0.4)
            give_gradients(params, t)
            optimizer.step()
        runs.append((params, optimizer))
    assert_close(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=0.5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 2
    assert torch.equal(p.detach(), torch.zeros(2))


def test_hooks_are_run_in_order_and_may_change_the_arguments() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen: list[str] = []
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=0.5)
    p.grad = torch.ones(2)
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
    handle = optimizer.register_step_pre_hook(lambda o, a, k: ((o, lambda: 7), {}))
    assert optimizer.step() == 7
    handle.remove()


def test_a_profiler_sees_the_step() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=0.5)
    p.grad = torch.ones(2)
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert any("Optimizer.step#SGD.step" in event.key for event in profile.key_averages())


def test_gradients_of_any_layout() -> None:
    """Expanded, transposed, of a negative bit, in float64 where the parameter is not, on memory of the parameter."""
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    negative = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(2))
    gradients = {
        "expanded": torch.ones(1, 1).expand(6, 4),
        "transposed": base.t().contiguous().t(),
        "strided": torch.cat([base, base], 1)[:, ::2],
        "negative": torch.view_as_complex(negative).conj().imag,
        "plain": base,
    }
    for name, gradient in gradients.items():
        p, q = (torch.nn.Parameter(torch.ones(6, 4)) for _ in range(2))
        mine, other = ours.Adam([p]), torch.optim.Adam([q])
        for _ in range(3):
            p.grad, q.grad = gradient, gradient.clone()
            mine.step()
            other.step()
        assert_close([p], [q])
        assert torch.equal(p.grad, gradient), name
    p = torch.nn.Parameter(torch.ones(1))
    p.grad = torch.view_as_complex(torch.tensor([[0.0, 1.0]])).conj().imag  # -1, and contiguous
    optimizer = ours.SGD([p], lr=1)
    optimizer.step()
    optimizer.step()
    assert p.item() == 3
    p = torch.nn.Parameter(torch.full((3,), 2.0))
    optimizer = ours.SGD([p], lr=0.5)
    for _ in range(2):
        p.grad = p.detach()
        optimizer.step()
    assert torch.equal(p.detach(), torch.full((3,), 0.5))


def test_parameters_in_channels_last_keep_their_layout() -> None:
    values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    runs = []
    for module in (ours, torch.optim):
        p = torch.nn.Parameter(values.clone().contiguous(memory_format=torch.channels_last))
        optimizer = module.Adam([p], lr=0.1)
        for t in range(4):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
            if t % 2:
                p.grad = p.grad.contiguous(memory_format=torch.channels_last)
            optimizer.step()
        assert p.is_contiguous(memory_format=torch.channels_last)
        assert optimizer.state[p]["exp_avg"].stride() == p.stride()
        runs.append(p)
    assert_close(runs[:1], runs[1:])


def test_none_leaves_a_parameter_its_state_and_its_count_alone() -> None:
    runs = []
    for module in (ours, torch.optim):
        params = tensors()
        optimizer = module.Adam(params, lr=0.1)
        for t in range(6):
            give_gradients(params, t)
            if t < 3:
                params[1].grad = None
            if t == 4:
                params[0].grad = None
            optimizer.step()
            assert (params[1] in optimizer.state) == (t >= 3)
        runs.append((params, optimizer))
    assert_close(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of PyTorch's own Adagrad
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_gradients_touch_their_rows_alone(name: str) -> None:
    runs = []
    for module in (ours, torch.optim):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(10, 3, sparse=True)
        optimizer = getattr(module, name)(embedding.parameters(), lr=0.1)
        for rows in ([1, 4, 4], [2], [1, 9, 2]):
            optimizer.zero_grad()
            embedding(torch.tensor(rows)).pow(2).sum().backward()
            optimizer.step()
        runs.append(embedding.weight)
    assert_close(runs[:1], runs[1:])


def test_grad_scaler_unscales_and_leaves_steps_out() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), torch.zeros(2))
    p.grad = torch.tensor([float("inf"), 1.0])
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), torch.zeros(2)) and scaler.get_scale() == 2


def test_what_others_do_to_state_and_groups_is_noticed() -> None:
    """What pruning, warm restarts and the like do between steps."""
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = ours.Adam([p], lr=0.5)

    def step(gradient: float = 1.0) -> None:
        parameter = optimizer.param_groups[0]["params"][0]
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()

    step()
    optimizer.state.clear()
    step()
    assert optimizer.state[p]["step"] == 1
    optimizer.state[p]["exp_avg"] = torch.full((4,), 5.0)
    step(0.0)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full((4,), 4.5))
    optimizer.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    step()
    assert optimizer.state[p]["step"] == 1
    optimizer.state = type(optimizer.state)(dict)
    step()
    assert optimizer.state[p]["step"] == 1
    kept = optimizer.state.pop(p)  # as when points are pruned
    q = torch.nn.Parameter(p.detach()[:2].clone())
    optimizer.param_groups[0]["params"][0] = q
    optimizer.state[q] = {name: x[:2].clone() if x.dim() else x for name, x in kept.items()}
    before = p.detach().clone()
    step()
    assert optimizer.state[q]["step"] == 2 and torch.equal(p.detach(), before)
    q.data = torch.full((2,), 3.0)
    step()
    assert optimizer.state[q]["step"] == 3 and (q < 3).all()


def test_a_learning_rate_that_is_a_tensor_may_be_changed_in_place() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    lr = torch.tensor(0.5)
    optimizer = ours.SGD([p], lr=lr)
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
        lr.fill_(0.25)
    assert torch.equal(p.detach(), torch.full((2,), 0.25))


def test_autograd_refuses_to_go_back_through_a_parameter_that_was_stepped() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p, q], lr=0.5)
    for _ in range(3):
        loss, other = (p**2).sum(), (q**2).sum()
        p.grad = torch.ones(2)
        optimizer.step()
        other.backward()  # which was not stepped
        q.grad = None
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capturable": True}, "capturable"),
        ({"lr": -1.0}, "learning rate"),
        ({"differentiable": True}, "differentiable"),
        ({"clip_value": -1.0}, "clip_value"),
        ({"clip_norm": 0}, "clip_norm"),
    ],
)
def test_impossible_options_are_refused_at_construction(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.Adam([torch.nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.ones(2, dtype=torch.float16), TypeError, "float16"),
        (lambda: torch.ones(2, dtype=torch.complex64), TypeError, "complex64"),
        (lambda: torch.ones(2, device="meta"), ValueError, "is on meta"),
        (lambda: torch.ones(1).expand(3).detach(), RuntimeError, "overlaps itself"),
        (lambda: torch._efficientzerotensor((2,)), ValueError, "has no memory"),
    ],
)
def test_an_impossible_parameter_is_refused_once_it_has_a_gradient(make: Any, error: Any, message: str) -> None:
    p, odd = torch.nn.Parameter(torch.ones(2)), make().requires_grad_()
    optimizer = ours.Adam([p, odd], lr=0.5)
    for t in range(3):
        p.grad = torch.ones(2)
        optimizer.step()
        assert optimizer.state[p]["step"] == t + 1 and odd not in optimizer.state
    before = p.detach().clone()
    odd.grad = torch.ones_like(odd)
    with pytest.raises(error, match=f"parameter 1.*{message}"):
        optimizer.step()
    assert torch.equal(p.detach(), before) and optimizer.state[p]["step"] == 3


def test_a_group_that_is_refused_is_not_added() -> None:
    optimizer = ours.Adam([torch.nn.Parameter(torch.ones(2))])
    for options, error in (({"capturable": True}, "capturable"), ({"ema_decay": 2.0}, "ema_decay")):
        with pytest.raises(ValueError, match=error):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **options})
        assert len(optimizer.param_groups) == 1
    state = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], capturable=True).state_dict()
    with pytest.raises(ValueError, match="capturable"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["capturable"] is False


@needs_exchange
def test_without_the_way_around_python_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a PyTorch before 2.10."""
    runs = []
    for way in (True, False):
        if not way:
            for module in (_engine, _compat):
                monkeypatch.setattr(module, "exchange", None)
        params = tensors()
        optimizer = ours.Adam(params)
        for t in range(4):
            give_gradients(params, t)
            optimizer.step()
        assert (optimizer.slow_steps == 1) == way
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(*runs))


def test_tensors_laid_out_anew_are_stepped_where_they_lie() -> None:
    """What replaces ``data`` may lie at the same address, in another order or with gaps."""
    for layout in ("transposed", "other memory"):
        runs = []
        for module in (ours, torch.optim):
            values = torch.randn(4, 4, generator=torch.Generator().manual_seed(4))
            p = torch.nn.Parameter(values.clone())
            optimizer = module.Adam([p], lr=0.1)
            for t in range(6):
                if t == 3:
                    p.data = p.data.t() if layout == "transposed" else p.data.clone()
                p.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(t))
                if t > 3 and layout == "transposed":
                    p.grad = p.grad.t()
                optimizer.step()
            runs.append(p)
        assert_close(runs[:1], runs[1:])


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_tensor_with_gaps_is_stepped_as_by_pytorch(name: str, steps_before: int) -> None:
    runs = []
    for module in (ours, torch.optim):
        base = torch.arange(8.0)
        p = torch.nn.Parameter(base[:4])
        optimizer = getattr(module, name)([p], lr=0.5)
        for t in range(4):
            if t == steps_before:
                p.data = base[::2]
            p.grad = torch.full((4,), 1.0 + t)
            optimizer.step()
        assert p.stride() == (2,) and p.data_ptr() == base.data_ptr()
        runs.append([base, p])
    assert_close(*runs)


def test_counts_that_are_changed_in_place_count() -> None:
    """What resets an optimizer by zeroing its state."""
    for name in ("Adam", "NAdam"):
        runs = []
        for module in (ours, torch.optim):
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
            runs.append(p)
        assert_close(runs[:1], runs[1:])


@needs_exchange
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD", "Adagrad"])
def test_state_moved_into_shared_memory_is_followed(name: str) -> None:
    runs = []
    for module in (ours, torch.optim):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = getattr(module, name)([p], lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        for t in range(6):
            p.grad = torch.full((3,), 1.0 + t)
            if t == 3:
                for value in (p.detach(), *optimizer.state[p].values()):
                    value.share_memory_()
            optimizer.step()
        runs.append((p, optimizer))
        if module is ours:
            assert optimizer.slow_steps == 1
    assert_close([runs[0][0]], [runs[1][0]])
    assert_same_state(runs[0][1], runs[1][1])


def quick(optimizer: Any) -> None:
    """Step, and fail if the step was a slow one."""
    before = optimizer.slow_steps
    optimizer.step()
    assert optimizer.slow_steps == before


@needs_exchange
@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD", "Adagrad"])
def test_parameters_that_are_empty_or_have_no_gradient_do_not_slow_the_others_down(name: str) -> None:
    runs = []
    for module in (ours, torch.optim):
        params = tensors()
        optimizer = getattr(module, name)(params, lr=0.1)
        for t in range(6):
            give_gradients(params, t)
            if t < 4:
                params[0].grad = None
            if module is ours and t not in (0, 4):
                quick(optimizer)
            else:
                optimizer.step()
        runs.append((params, optimizer))
    assert_close(runs[0][0], runs[1][0])
    assert_same_state(runs[0][1], runs[1][1])


def test_one_number_in_the_place_of_an_equal_one_is_noticed() -> None:
    p, q = (torch.nn.Parameter(torch.full((1,), 0.25)) for _ in range(2))
    optimizer = ours.Adam([p], lr=0.1)
    p.grad, q.grad = torch.zeros(1), torch.ones(1)
    optimizer.step()
    optimizer.step()
    optimizer.param_groups[0]["params"] = [q]
    optimizer.step()
    assert p.item() == 0.25 and q.item() < 0.25


@needs_exchange
def test_the_garbage_collector_finds_cycles_through_it() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p])
    p.optimizer = optimizer
    for _ in range(3):
        p.grad = torch.ones(2)
        optimizer.step()
    assert optimizer.slow_steps == 1
    gone = weakref.ref(optimizer)
    del p, optimizer
    gc.collect()
    assert gone() is None


def test_a_gradient_without_memory_is_a_gradient() -> None:
    runs = []
    for module in (ours, torch.optim):
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = module.SGD([p], lr=0.1, momentum=0.9)
        for t in range(4):
            p.grad = torch.ones(2) if t < 2 else torch._efficientzerotensor((2,))
            optimizer.step()
        runs.append(p)
    assert_close(runs[:1], runs[1:])


def test_groups_of_an_older_pytorch_will_do() -> None:
    for name in ("Adam", "AdamW"):
        runs = []
        for older in (True, False):
            params = tensors()
            optimizer = getattr(ours, name)(params, weight_decay=0.1)
            if older:
                del optimizer.param_groups[0]["decoupled_weight_decay"]
            give_gradients(params, 0)
            optimizer.step()
            runs.append(params)
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@needs_exchange
def test_a_foreign_exchange_interface_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", 7)
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=0.5)
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    assert not p.any()


def test_memory_can_still_be_resized() -> None:
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


def test_betas_that_are_tensors_may_be_changed_in_place() -> None:
    runs = []
    for module in (ours, torch.optim):
        p, beta1 = torch.nn.Parameter(torch.ones(2)), torch.tensor(0.9)
        optimizer = module.Adam([p], lr=0.1, betas=(beta1, torch.tensor(0.99)), foreach=False)
        for t in range(4):
            if t == 2:
                beta1.fill_(0.0)
            p.grad = torch.full((2,), 1.0 - t)
            optimizer.step()
        runs.append(p)
    assert_close(runs[:1], runs[1:])


@needs_exchange
def test_numbers_that_change_need_no_slow_step() -> None:
    runs = []
    for module in (ours, torch.optim):
        first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        groups = [{"params": [first]}, {"params": []}, {"params": [second], "weight_decay": 0.1}]
        optimizer = module.Adam(groups, lr=torch.tensor(0.1), foreach=False)
        for t in range(1, 6):
            first.grad, second.grad = torch.full((2,), 1.0 / t), torch.full((2,), -1.0 * t)
            optimizer.param_groups[0]["lr"] = [torch.tensor(0.1), 0.1 / t][t > 2]
            optimizer.param_groups[2]["lr"].mul_(0.5)
            optimizer.param_groups[2]["betas"] = (0.9 / t, 0.99)
            optimizer.step()
        if module is ours:
            assert optimizer.slow_steps == 1
        runs.append([first, second])
    assert_close(*runs)


@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_what_is_refused_at_first_is_refused_later(option: str) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = ours.Adam([p], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0][option] = True
    with pytest.raises(ValueError, match=f"{option}=True is not possible"):
        optimizer.step()
    optimizer.param_groups[0][option] = False
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def test_state_under_another_name_is_missed() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = ours.Adam([p], lr=0.5)
    optimizer.step()
    optimizer.step()
    optimizer.state[p]["other"] = optimizer.state[p].pop("exp_avg_sq")  # in the same place, with the same value
    with pytest.raises(KeyError, match="no tensor 'exp_avg_sq'"):
        optimizer.step()


def test_groups_without_parameters_are_no_hindrance() -> None:
    optimizer = ours.Adam([{"params": []}])
    optimizer.step()
    p = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [p], "lr": 0.5})
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 1.0
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), -1.0))


def test_a_step_that_failed_leaves_no_options_behind() -> None:
    p, q = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = ours.SGD([{"params": [p]}, {"params": [q]}], lr=1.0)
    p.grad, q.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    optimizer.step()
    first, second = optimizer.param_groups
    lr, kept = torch.tensor(1e39, dtype=torch.float64), second["lr"]
    first["lr"] = lr
    with pytest.raises(ValueError, match="overflows"):
        optimizer.step()
    lr.fill_(0.5)
    optimizer.step()
    assert p.tolist() == [-2.5] * 2 and q.tolist() == [-3.0] * 2
    second["lr"] = float("inf")
    with pytest.raises(ValueError, match="overflows"):
        optimizer.step()
    second["lr"] = kept
    lr.fill_(0.25)
    optimizer.step()
    assert p.tolist() == [-2.75] * 2 and q.tolist() == [-4.0] * 2


@pytest.mark.parametrize("expanded", [False, True])
def test_ctrl_c_during_a_step_leaves_a_whole_step(monkeypatch: pytest.MonkeyPatch, expanded: bool) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p], lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    core = optimizer._engine.core

    class Interrupted:
        """The core, with a signal that arrives while it steps."""

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def step(self, *arguments: Any) -> bool:
            if core.step(*arguments):
                raise KeyboardInterrupt
            return False

    p.grad = torch.ones(1).expand(2) if expanded else torch.ones(2)
    version = p._version
    with monkeypatch.context() as patched:
        patched.setattr(optimizer._engine, "core", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert state["step"] == 2 and state["exp_avg"].all() and p._version == version + 1


def test_betas_in_a_list_may_be_changed_in_place() -> None:
    runs = []
    for module in (ours, torch.optim):
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = module.Adam([p], lr=0.1, foreach=False)
        optimizer.param_groups[0]["betas"] = betas = [0.9, 0.99]
        for t in range(4):
            if t == 2:
                betas[0] = 0.0
            p.grad = torch.full((2,), 1.0 - t)
            optimizer.step()
        runs.append(p)
    assert_close(runs[:1], runs[1:])


def test_what_else_groups_and_state_hold_is_the_users_own() -> None:
    p, q = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    p.grad, q.grad = torch.ones(2), torch.ones(2)
    optimizer = ours.SGD([{"params": [p], "decay": "mine"}, {"params": [q]}], lr=1.0)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "name": True})
    optimizer.state["epoch"] = 3
    optimizer.step()
    optimizer.param_groups[1]["decay"] = 0.5
    del optimizer.param_groups[0]["decay"]
    optimizer.param_groups[0]["params"] = (p,)
    optimizer.step()
    optimizer.step()
    assert p.tolist() == q.tolist() == [-3.0] * 2 and optimizer.state["epoch"] == 3


def test_tensors_that_are_negated_lazily() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = ours.SGD([p], lr=1.0)
    for t in range(1, 4):
        p.grad = torch._neg_view(torch.full((3,), -1.0)) if t > 1 else torch.ones(3)
        optimizer.step()
        assert p.tolist() == [-t] * 3
    runs = []
    for module in (ours, torch.optim):
        base = torch.tensor([1 + 2j, 3 - 4j])
        q = base.conj().imag.detach().requires_grad_()
        optimizer = module.SGD([q], lr=1.0)
        q.grad = torch.ones(2)
        optimizer.step()
        runs.append([base, q])
    assert_close(*runs)


def test_an_older_pytorch_that_counts_the_changes_of_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch._C._increment_version

    def count_one(tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise RuntimeError("increment_version expect a Tensor as input")
        count((tensor,))

    monkeypatch.setattr(torch._C, "_increment_version", count_one)
    spec = importlib.util.spec_from_file_location("onepass.integrations.torch._older", _compat.__file__)
    assert spec is not None and spec.loader is not None
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    monkeypatch.setattr(_engine, "count_changes", older.count_changes)
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = ours.Adam([first, second])
    for t in range(1, 4):
        first.grad, second.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
        assert first._version == second._version == t


def test_flags_may_be_numbers_as_in_pytorch() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p], lr=0.5, amsgrad=1, maximize=0)
    p.grad = torch.ones(2)
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[p]


def test_hooks_see_the_arguments_as_pytorch_hands_them_on() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=0.5)
    seen: list[Any] = []
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append((len(args), set(kwargs))))
    optimizer.step()
    optimizer.step(closure=lambda: 1)
    handle.remove()
    assert seen == [(1, set()), (1, {"closure"})]
    optimizer.register_step_pre_hook(lambda o, args, kwargs: (args, {"closure": lambda: 3}))
    assert optimizer.step() == 3
    assert optimizer.step(lambda: 1) == 3


def test_what_a_hook_makes_of_a_state_dict_counts() -> None:
    params = [torch.nn.Parameter(torch.ones(2))]
    optimizer = ours.Adam(params)
    state = torch.optim.Adam(params, capturable=True).state_dict()

    def mend(_: Any, state_dict: Any) -> None:
        state_dict["param_groups"][0]["capturable"] = False

    handle = optimizer.register_load_state_dict_pre_hook(mend)
    optimizer.load_state_dict(state)
    handle.remove()

    def spoil(_: Any, state_dict: Any) -> None:
        state_dict["param_groups"][0]["differentiable"] = True

    optimizer.register_load_state_dict_pre_hook(spoil)
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["differentiable"] is False


def test_the_examples_run() -> None:
    tested = doctest.testmod(ours)
    assert tested.attempted > 5 and tested.failed == 0
