"""Steps: forms of parameters and gradients, layouts and dtypes, None, state, options that change."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import onepass
from support import DTYPES, Array, assert_same_bits, layouts, ones, python_memory, refused


def array(*values: float, dtype: Any = np.float32) -> Array:
    return np.array(values, dtype)


def test_an_array_is_updated_in_place() -> None:
    w = array(1, 2)
    optimizer = onepass.Adam(w, lr=0.5)
    assert optimizer.step(array(1, -1)) is None
    assert w.tolist() == [0.5, 2.5]
    assert optimizer.params is w
    assert optimizer.step_count == 1


@pytest.mark.parametrize("form", [list, tuple])
def test_params_is_a_sequence_of_the_given_type_and_arrays(form: Any) -> None:
    w, b = array(1, 2), array(3)
    optimizer = onepass.Adam(form([w, b]), lr=0.5)
    optimizer.step([array(1, -1), array(1)])
    assert (w.tolist(), b.tolist()) == ([0.5, 2.5], [2.5])
    params = optimizer.params
    assert type(params) is form and params[0] is w and params[1] is b
    assert list(optimizer.state) == [0, 1]


def test_parameters_and_gradients_may_come_from_a_generator() -> None:
    arrays = [array(1), array(2)]
    optimizer = onepass.Adam((a for a in arrays), lr=0.5)
    optimizer.step(array(1) for _ in range(2))
    assert [a.item() for a in arrays] == [0.5, 1.5]


@pytest.mark.parametrize("mapping", [dict, OrderedDict, MappingProxyType])
def test_gradients_in_a_mapping_are_matched_by_name_in_any_order(mapping: Any) -> None:
    w, b = array(1), array(2)
    optimizer = onepass.Adam(mapping({"w": w, "b": b}), lr=0.5)
    optimizer.step(mapping({"b": array(-1), "w": array(1)}))
    assert (w.item(), b.item()) == (0.5, 2.5)
    assert optimizer.params == {"w": w, "b": b}
    assert list(optimizer.state) == ["w", "b"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_and_zero_dimensional_parameters_work(dtype: Any) -> None:
    empty, scalar = np.zeros((0, 3), dtype), np.array(1, dtype)
    optimizer = onepass.Adam([empty, scalar], lr=0.5)
    optimizer.step([np.zeros((0, 3), dtype), np.array(2, dtype)])
    np.testing.assert_allclose(scalar, 0.5, rtol=1e-6)
    optimizer.step([np.zeros((0, 3), dtype), dtype(2)])  # a NumPy scalar is a gradient of no dimensions
    np.testing.assert_allclose(scalar, 0, atol=1e-6)
    assert optimizer.state[0]["exp_avg"].shape == (0, 3)


def test_dtypes_may_differ_between_parameters() -> None:
    a, b = np.ones(3, np.float32), np.ones(3, np.float64)
    optimizer = onepass.Adam([a, b], lr=0.1)
    optimizer.step([np.ones(3, np.float64), np.ones(3, np.float32)])
    np.testing.assert_allclose(a, 0.9)
    np.testing.assert_allclose(b, 0.9)
    assert optimizer.state[1]["exp_avg"].dtype == np.float64


def test_a_memory_map_serves_as_a_parameter(tmp_path: Path) -> None:
    w = np.memmap(tmp_path / "w", np.float32, "w+", shape=(4,))
    optimizer = onepass.Adam(w, lr=0.5)
    optimizer.step(np.ones(4, np.float32))
    w.flush()
    assert np.fromfile(tmp_path / "w", np.float32).tolist() == [-0.5] * 4


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_may_have_any_layout_and_floating_dtype(dtype: Any, order: Any) -> None:
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((5, 7)).astype(dtype)
    start = np.asarray(rng.standard_normal((5, 7)), dtype, order=order)
    expected = start.copy(order="K")
    onepass.Adam(expected).step(grad)
    for name, other in layouts(grad).items():
        before = other.copy()
        w = start.copy(order="K")
        optimizer = onepass.Adam(w)
        optimizer.step(other)
        assert_same_bits([w], [expected], name)
        assert (other == before).all(), name
        assert w.flags.f_contiguous == optimizer.state[0]["exp_avg"].flags.f_contiguous


def test_float16_gradients_are_widened_and_float64_gradients_rounded() -> None:
    w = np.zeros(3, np.float32)
    optimizer = onepass.Adam(w)
    optimizer.step(np.array([0.1, 0.2, 6e4], np.float16))
    assert_same_bits([optimizer.state[0]["exp_avg"]], [np.float32(1 - 0.9) * np.float32(np.float16([0.1, 0.2, 6e4]))])
    optimizer.step(np.array([0.1, 1e300, -1e300]))  # too large for float32: infinite, without a warning
    assert np.isinf(optimizer.state[0]["exp_avg"]).tolist() == [False, True, True]


def test_the_scratch_buffer_is_reused_by_the_next_step() -> None:
    w = np.zeros(1000, np.float32)
    optimizer = onepass.Adam(w)
    optimizer.step(np.ones(1000))
    first = optimizer._scratch[0]
    optimizer.step(np.ones(1000))
    assert optimizer._scratch[0] is first


def test_a_gradient_that_shares_memory_with_a_parameter_or_state_is_copied() -> None:
    w, other = np.arange(8, dtype=np.float32), np.ones(8, np.float32)
    independent = [w.copy(), other.copy()]
    overlapping = onepass.Adam([w, other], lr=0.5)
    apart = onepass.Adam(independent, lr=0.5)
    for _ in range(3):
        overlapping.step([other, w])  # each updated in the step that reads it for the other
        apart.step([independent[1].copy(), independent[0].copy()])
        assert_same_bits([w, other], independent)
    overlapping.step([overlapping.state[0]["exp_avg"], overlapping.state[1]["exp_avg_sq"][::-1]])
    apart.step([apart.state[0]["exp_avg"].copy(), apart.state[1]["exp_avg_sq"][::-1].copy()])
    assert_same_bits([w, other], independent)
    assert_same_bits(
        [overlapping.state[i][name] for i in (0, 1) for name in ("exp_avg", "exp_avg_sq")],
        [apart.state[i][name] for i in (0, 1) for name in ("exp_avg", "exp_avg_sq")],
    )


@pytest.mark.parametrize("shift", [-999, -500, -1, 0, 1, 500, 999])
def test_a_gradient_that_partly_overlaps_a_parameter_is_copied(shift: int) -> None:
    for stepped in ("optimizer", "adam_step"):
        buffer = np.sin(np.arange(3000, dtype=np.float32))
        w, g = buffer[1000:2000], buffer[1000 + shift : 2000 + shift]
        expected, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
        onepass.Adam(expected, lr=0.5).step(g.copy())
        if stepped == "optimizer":
            onepass.Adam(w, lr=0.5).step(g)
        else:
            onepass.adam_step(w, g, m, v, 1, lr=0.5)
        assert_same_bits([w], [expected], stepped)


def test_gradients_may_be_views_of_one_buffer_that_lies_between_the_parameters() -> None:
    buffer = np.arange(30, dtype=np.float32)
    a, grads, b = buffer[:10], buffer[10:20], buffer[20:]
    expected = [a.copy(), b.copy()]
    onepass.Adam(expected).step([grads.copy(), grads.copy()])
    optimizer = onepass.Adam([a, b])
    optimizer.step([grads, grads])
    assert_same_bits([a, b], expected)
    assert optimizer._scratch == {}, "these gradients overlap nothing and need no copy"


def test_nothing_is_allocated_in_a_step() -> None:
    params = [np.zeros((50, 20), np.float32), np.zeros(20, np.float32)]
    grads = [np.ones((50, 20), np.float32), np.ones(20, np.float32)]
    optimizer = onepass.Adam(params)
    optimizer.step(grads)
    kept, peak = python_memory(lambda: optimizer.step(grads), times=1000)
    assert kept < 1000 and peak < 2000


def test_a_gradient_of_none_leaves_parameter_state_and_step_count_unchanged() -> None:
    a, b, alone = array(1, 2), array(3), array(3)
    optimizer, reference = onepass.Adam([a, b]), onepass.Adam(alone)
    for t in range(10):
        optimizer.step([array(1, 1), array(2) if t % 2 else None])
        if t % 2:
            reference.step(array(2))
    assert (optimizer.state[0]["step"], optimizer.state[1]["step"], optimizer.step_count) == (10, 5, 10)
    assert_same_bits([b], [alone])


@pytest.mark.parametrize("form", [list, dict])
def test_a_single_gradient_in_a_container_may_be_none(form: Any) -> None:
    w = array(1)
    optimizer = onepass.Adam(form({0: w}) if form is dict else [w])
    optimizer.step({0: None} if form is dict else [None])
    assert (w.item(), optimizer.state[0]["step"], optimizer.step_count) == (1, 0, 1)


def test_a_bare_gradient_must_not_be_none() -> None:
    calls: list[int] = []
    message = "the gradient: expected an array of shape (3,), got None (does the function that computes it return it?)"
    optimizer = onepass.Adam(ones(3), lr=lambda t: calls.append(t) or 0.1)  # type: ignore[func-returns-value]
    for scale in (1.0, 2):
        with refused(TypeError, message, optimizer):
            optimizer.step(None, scale)
    assert calls == []
    optimizer.step(ones(3))
    assert optimizer.step_count == 1


def test_state_equals_only_state_of_the_same_optimizer() -> None:
    one, other = onepass.Adam([ones(3), ones(2)]), onepass.Adam([ones(3), ones(2)])
    assert one.state == one.state and hash(one.state) == hash(one.state)
    assert one.state != other.state and one.state != dict(one.state)
    assert len({one.state, one.state, other.state}) == 2
    assert one.groups == one.groups and one.groups != other.groups  # a group has its parameters as an item


def test_state_holds_live_views_under_pytorchs_names() -> None:
    w = np.zeros((3, 2), np.float32)
    optimizer = onepass.Adam({"w": w}, amsgrad=True)
    state = optimizer.state["w"]
    assert list(state) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert all((state[name] == 0).all() and state[name].shape == (3, 2) for name in list(state)[1:])
    optimizer.step({"w": np.ones((3, 2), np.float32)})
    np.testing.assert_allclose(state["exp_avg"], 0.1, rtol=1e-6)  # the view from before the step
    state["exp_avg"][...] = 0
    np.testing.assert_allclose(optimizer.state["w"]["exp_avg"], 0)
    assert optimizer.state["w"]["step"] == 1 and len(optimizer.state) == 1 and "w" in optimizer.state
    with pytest.raises(KeyError):
        optimizer.state["v"]


def test_state_of_adam_takes_two_arrays_per_parameter() -> None:
    optimizer = onepass.Adam([np.zeros(10, np.float32), np.zeros(10)])
    sizes = [sum(a.nbytes for n, a in optimizer.state[i].items() if n != "step") for i in (0, 1)]
    assert sizes == [80, 160]


def test_arrays_used_by_an_optimizer_cannot_be_resized() -> None:
    w, base = np.ones(4, np.float32), np.ones(8, np.float32)
    optimizer = onepass.Adam([w, base[:4]])
    for a in [w, base, optimizer.state[0]["exp_avg"], optimizer.state[0]["exp_avg"].base]:
        with pytest.raises(ValueError, match="resize"):
            a.resize(10**6, refcheck=False)
    optimizer.step([np.ones(4, np.float32)] * 2)


def test_an_optimizer_is_freed_with_its_last_reference() -> None:
    w = np.ones(3, np.float32)
    optimizer = onepass.Adam(w, lr=lambda t: 0.1)
    optimizer.step(w.copy())
    gone = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert gone() is None
    finally:
        gc.enable()


def test_the_repr_of_an_optimizer_lists_its_options() -> None:
    assert repr(onepass.Adam([np.zeros(3), np.zeros((2, 2))], lr=0.5, maximize=True)) == (
        "Adam(2 parameters, 7 elements, lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, "
        "amsgrad=False, bias_correction=True, eps_mode='paper', maximize=True, clip_value=None, ema_decay=None)"
    )


def test_lr_may_be_a_function_of_the_step() -> None:
    seen = []

    def schedule(t: int) -> float:
        seen.append(t)
        return 0.5 / t

    w, expected = np.zeros(1), 0.0
    optimizer = onepass.Adam(w, lr=schedule)
    for t in range(1, 4):
        optimizer.step(np.ones(1))
        expected -= 0.5 / t
    assert seen == [1, 2, 3]
    np.testing.assert_allclose(w, expected)
    assert optimizer.lr is schedule


def test_a_schedule_may_return_any_number() -> None:
    for value in [np.float32(0.5), np.array(0.5), 1, True, np.int64(1)]:
        w = np.zeros(1)
        onepass.Adam(w, lr=lambda t, value=value: value).step(np.ones(1))
        np.testing.assert_allclose(w, -float(value), rtol=1e-6)


def test_a_schedule_may_return_a_tiny_negative_number() -> None:
    w = np.zeros(1)
    optimizer = onepass.SGD(w, lr=lambda t: -1e-20)
    optimizer.step(np.ones(1))
    assert w == 1e-20


def test_options_may_change_between_steps() -> None:
    w, v = np.zeros(1), np.zeros(1)
    optimizer = onepass.Adam(w, lr=0.1)
    fresh = onepass.Adam(v, lr=lambda t: [0.1, 0.3, 0.7][t - 1])
    for lr in [0.1, 0.3, lambda t: 0.7]:
        optimizer.lr = lr
        optimizer.step(np.ones(1))
        fresh.step(np.ones(1))
    assert_same_bits([w], [v])
    optimizer.groups[0].betas = (0.5, 0.5)
    assert optimizer.groups[0].betas == (0.5, 0.5)
    before = optimizer.state[0]["exp_avg"].copy()
    optimizer.step(np.zeros(1))
    assert optimizer.state[0]["exp_avg"] == before * 0.5
    optimizer.groups[0].maximize = True
    optimizer.groups[0].weight_decay = 1
    assert isinstance(optimizer.groups[0].weight_decay, float)
    assert "eps_mode" in dir(optimizer.groups[0])


def test_grad_scale_multiplies_every_gradient() -> None:
    rng = np.random.default_rng(0)
    g = [rng.standard_normal(9).astype(np.float32) for _ in range(2)]
    a, b = [np.ones(9, np.float32) for _ in g], [np.ones(9, np.float32) for _ in g]
    onepass.Adam(a).step(g, grad_scale=0.3)
    onepass.Adam(b).step([x * np.float32(0.3) for x in g])
    assert_same_bits(a, b)


def test_maximize_equals_a_negative_grad_scale() -> None:
    a, b = np.ones(9), np.ones(9)
    onepass.Adam(a, maximize=True).step(np.arange(9.0))
    onepass.Adam(b).step(np.arange(9.0), -1)
    assert_same_bits([a], [b])
    assert (a[1:] > 1).all()


def test_the_repr_of_state_and_rows_is_readable() -> None:
    optimizer = onepass.SGD({"w": np.zeros(2)}, momentum=0.5)
    assert repr(optimizer.state) == "{'w': {'step': 0, 'momentum_buffer': array([0., 0.])}}"
    assert repr(onepass.SparseRows([1, 1], np.ones((2, 3), np.float32))) == "SparseRows(2 rows of shape (3,), float32)"
