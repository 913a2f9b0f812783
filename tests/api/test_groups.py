"""Groups of parameters: added, saved, named, with options of their own."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

import onepass
from onepass import schedules
from support import Array, assert_same_bits, ones, refused

STEPS = 12


def made(case: tuple[str, dict[str, Any], dict[str, Any]], ema: Any, params: list[Array]) -> Any:
    kind, options, own = case
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": schedules.cosine(0.3, STEPS), **own}]
    lr = schedules.warmup(schedules.inverse_sqrt(0.2), 4)
    return getattr(onepass, kind)(groups, lr=lr, ema_decay=ema, clip_norm=3.0, nonfinite="skip", **options)


def test_adding_a_group_to_a_single_array_makes_params_a_list() -> None:
    w, b, c = ones(2), ones(3), ones(4)
    optimizer = onepass.SGD(w, lr=0.5, momentum=0.5, ema_decay=0.5)
    optimizer.step(ones(2))
    optimizer.add_group(b, lr=0.25)
    optimizer.add_group((c,), momentum=0.0, clip_value=0.5)
    assert [type(optimizer.params), type(optimizer.ema), list(optimizer.state)] == [list, list, [0, 1, 2]]
    optimizer.step([ones(2), ones(3), ones(4)])
    assert w.tolist() == [-0.25] * 2  # 1 − 0.5 − 0.5·1.5
    assert b.tolist() == [0.75] * 3 and c.tolist() == [0.75] * 4
    assert optimizer.ema[1].tolist() == [0.875] * 3
    assert [s["step"] for s in optimizer.state.values()] == [2, 1, 1]
    assert list(optimizer.state[2]) == ["step"]  # no momentum there
    with refused(TypeError, "the gradients: expected a sequence", optimizer):
        optimizer.step(ones(2))


def test_groups_can_be_added_to_a_sequence_and_to_a_mapping() -> None:
    a, b, c = ones(1), ones(2), ones(3)
    optimizer = onepass.SGD((a,), lr=0.5)
    optimizer.add_group([b, c], lr=0.25)
    assert type(optimizer.params) is list
    optimizer.step((ones(1), None, ones(3)))
    assert (a.item(), b[0], c[0]) == (0.5, 1, 0.75)
    named = onepass.SGD({"a": a}, lr=0.5)
    named.add_group({"b": b}, lr=0.125)
    named.step({"b": ones(2), "a": ones(1)})
    assert (a.item(), b[0], list(named.params), list(named.state)) == (0, 0.875, ["a", "b"], ["a", "b"])


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        ({"w": ones(3)}, {}, ValueError, "duplicate parameter name 'w'"),
        ([ones(3)], {}, TypeError, "the parameters have names: add a mapping"),
        (ones(3), {}, TypeError, "the parameters have names: add a mapping"),
        ({}, {}, ValueError, "params: expected at least one array, got none"),
        ({"b": ones(3, dtype=int)}, {}, TypeError, "parameter 'b': expected dtype"),
        ({"b": ones(3), "c": [1.0]}, {}, TypeError, "parameter 'c': expected a NumPy array"),
        ({"b": ones(3)}, {"lr": -1}, ValueError, "lr: expected at least 0"),
        ({"b": ones(3)}, {"betas": (0.9, 2)}, ValueError, "betas[1]"),
        ({"b": ones(3)}, {"momentum": 0.5}, TypeError, "unexpected option 'momentum' of a group of Adam"),
        ({"b": ones(3)}, {"clip_norm": 0.5}, TypeError, "it applies to the whole optimizer"),
        (
            {"b": ones(3)},
            {"ema_decay": None},
            ValueError,
            "ema_decay: expected a value in all groups or in none, got one in some groups",
        ),
    ],
)
def test_adding_an_invalid_group_is_refused_and_changes_nothing(
    params: Any, options: Any, error: Any, message: str
) -> None:
    w = ones(2)
    optimizer = onepass.Adam({"w": w}, lr=0.5, ema_decay=0.5)
    optimizer.step({"w": ones(2)})
    with refused(error, message, optimizer):
        optimizer.add_group(params, **options)
    optimizer.step({"w": ones(2)})
    optimizer.add_group({"b": ones(3)})
    optimizer.step({"w": ones(2), "b": ones(3)})
    assert optimizer.step_count == 3


def test_adding_an_overlapping_empty_or_differently_named_group_is_refused() -> None:
    w = ones(4)
    optimizer = onepass.Adam([w], lr=0.5)
    with refused(ValueError, "parameter 1 is the same memory as parameter 0", optimizer):
        optimizer.add_group(w)
    with refused(ValueError, "overlaps", optimizer):
        optimizer.add_group([ones(1), w[2:]])
    with refused(TypeError, "parameter names are missing in other groups", optimizer):
        optimizer.add_group({"b": ones(3)})
    with refused(ValueError, "params: expected at least one array, got none", optimizer):
        optimizer.add_group([])


def test_groups_can_be_used_as_dictionaries_as_in_pytorch() -> None:
    w, b = ones(2), ones(3)
    optimizer = onepass.SGD([{"params": [w]}, {"params": b, "lr": 0.25}], lr=0.5)
    first, second = optimizer.param_groups
    assert (first["lr"], second["lr"]) == (0.5, 0.25)
    assert first["params"][0] is w and second["params"][0] is b
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    optimizer.step([ones(2), ones(3)])
    assert (w[0], b[0]) == (0.75, 0.875)
    assert dict(second)["lr"] == 0.125 and "params" in second and len(second) == len(list(second))
    with pytest.raises(KeyError):
        first["betas"]
    with refused(ValueError, "lr: expected at least 0", optimizer):
        first["lr"] = -1
    first["params"].clear()  # a new list
    assert len(first["params"]) == 1


def test_lr_of_an_optimizer_with_several_groups_is_ambiguous() -> None:
    optimizer = onepass.SGD([{"params": ones(2)}, {"params": ones(3)}])
    with pytest.raises(AttributeError, match="ambiguous with 2 groups"):
        _ = optimizer.lr
    with refused(AttributeError, "ambiguous with 2 groups", optimizer):
        optimizer.lr = 0.5


def test_parameters_of_groups_may_have_names(tmp_path: Path) -> None:
    def made() -> Any:
        groups = [{"params": {"w": ones(2)}, "lr": 0.5}, {"params": {"b": ones(3), "c": ones(1)}}]
        return onepass.SGD(groups, lr=0.25, momentum=0.5, ema_decay=0.5)

    optimizer = made()
    optimizer.step({"c": None, "b": ones(3), "w": ones(2)})
    assert list(optimizer.state) == list(optimizer.params) == list(optimizer.ema) == ["w", "b", "c"]
    assert (optimizer.params["w"][0], optimizer.params["b"][0], optimizer.params["c"][0]) == (0.5, 0.75, 1)
    with refused(ValueError, "missing ['b'], unexpected ['d']", optimizer):
        optimizer.step({"w": ones(2), "c": ones(1), "d": ones(3)})
    optimizer.add_group({"d": ones(2)}, lr=1.0)
    optimizer.save(tmp_path / "state.npz", params=True)
    loaded = made()
    loaded.add_group({"d": ones(2)})
    loaded.load(tmp_path / "state.npz", params=True)
    gradients = {"w": ones(2), "b": ones(3), "c": ones(1), "d": ones(2)}
    others = [loaded, pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)]
    for each in (optimizer, *others):
        each.step(gradients)
    for other in others:
        assert_same_bits(other.params.values(), optimizer.params.values())
        assert_same_bits(other.ema.values(), optimizer.ema.values())
        assert repr(other) == repr(optimizer) and list(other.params) == ["w", "b", "c", "d"]
    flat = onepass.flatten([{"params": {"w": ones(2)}, "lr": 0.5}, {"params": {"b": ones(3)}}])
    assert [list(group["params"]) for group in flat] == [["w"], ["b"]] and flat[0]["lr"] == 0.5
    assert flat[0]["params"]["w"].base is flat[1]["params"]["b"].base
