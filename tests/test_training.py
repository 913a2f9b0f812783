"""Training that goes on: after a stop, through every way of saving; with groups, averages and rows."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _checkpoint, schedules
from support import Array, assert_same_bits, refused, snapshot

F = np.float32


def ones(*shape: int, dtype: Any = F) -> Array:
    return np.ones(shape, dtype)


# ---- Stopped and continued ----

# A rule, the options of the first group, and those that the second has of its own.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Adam", {}, {"betas": (0.5, 0.8), "eps_mode": "hat", "clip_value": 0.5}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}, {"amsgrad": False, "bias_correction": False}),
    ("AdamW", {"weight_decay": 0.3}, {"amsgrad": True, "maximize": True}),
    ("Adamax", {"eps": 0.1}, {"betas": (0.7, 0.6)}),
    ("NAdam", {"momentum_decay": 0.3}, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("RMSprop", {}, {"alpha": 0.5}),
    ("RMSprop", {"momentum": 0.9, "centered": True}, {"momentum": 0.0}),
    ("RMSprop", {"momentum": 0.5}, {"centered": True}),
    ("Adagrad", {"initial_accumulator_value": 0.3}, {"lr_decay": 0.5, "initial_accumulator_value": 0.0}),
    ("Adadelta", {}, {"rho": 0.5, "eps": 1e-3}),
    ("SGD", {}, {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.1}),
    ("Lion", {"weight_decay": 0.1}, {"betas": (0.5, 0.6)}),
]
NAMES = [f"{kind}-{index}" for index, (kind, _, _) in enumerate(CASES)]
EMAS = {"number": 0.75, "function": schedules.linear(0.5, 0.9, 8)}
STEPS = 12


def start() -> list[Array]:
    rng = np.random.default_rng(0)
    shapes: list[tuple[tuple[int, ...], Any, Any]] = [((6, 3), F, "C"), ((5,), np.float64, "C"), ((4, 3), F, "F")]
    return [np.asarray(rng.standard_normal(shape), dtype, order=order) for shape, dtype, order in shapes]


def made(case: tuple[str, dict[str, Any], dict[str, Any]], ema: Any, params: list[Array]) -> Any:
    kind, options, own = case
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": schedules.cosine(0.3, STEPS), **own}]
    lr = schedules.warmup(schedules.inverse_sqrt(0.2), 4)
    return getattr(onepass, kind)(groups, lr=lr, ema_decay=ema, clip_norm=3.0, nonfinite="skip", **options)


def grads_of(t: int) -> list[Any]:
    """The gradients of step t: now and then none, some rows, or one that is not finite."""
    rng = np.random.default_rng(t)
    grads: list[Any] = [rng.standard_normal(shape) for shape in [(6, 3), (5,), (4, 3)]]
    if t % 3 == 0:
        grads[1] = None
    if t % 4 == 2:
        grads[2] = None
    if t % 4 == 3:
        grads[0] = onepass.SparseRows([4, 1, 4], grads[0][:3])
    if t in (3, 8):
        grads[2] = np.full((4, 3), np.nan)
    return grads


def steps(optimizer: Any, first: int, last: int) -> Any:
    for t in range(first, last + 1):
        optimizer.step(grads_of(t))
    return optimizer


def assert_same_training(actual: Any, expected: Any) -> None:
    assert_same_bits(actual.params, expected.params)
    for one, other in zip(snapshot(actual), snapshot(expected), strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            if isinstance(value, np.ndarray):
                assert_same_bits([value], [other[name]], name)
            else:
                assert value == other[name], name
    assert (actual.step_count, actual.skipped) == (expected.step_count, expected.skipped)
    assert repr(actual) == repr(expected)


def through_file(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    optimizer.save(folder / "state.npz")
    other = again()
    other.load(folder / "state.npz")
    return other


def through_state_dict(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    saved = optimizer.state_dict()
    other = again()
    other.load_state_dict(saved)
    for state in saved["state"].values():  # it was copied
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.fill(7)
    return other


def through_pickle(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


def through_deepcopy(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    return copy.deepcopy(optimizer)


@pytest.mark.parametrize("way", [through_file, through_state_dict, through_pickle, through_deepcopy])
@pytest.mark.parametrize("ema", EMAS)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_training_that_was_stopped_gives_the_bits_of_training_that_was_not(
    case: Any, ema: str, way: Any, tmp_path: Path
) -> None:
    whole = steps(made(case, EMAS[ema], start()), 1, STEPS)
    assert whole.skipped == 2 and whole.state[1]["step"] == 7
    for k in (0, 1, 5, 9):
        stopped = steps(made(case, EMAS[ema], start()), 1, k)
        weights = [p.copy(order="K") for p in stopped.params]
        continued = way(stopped, lambda weights=weights: made(case, EMAS[ema], weights), tmp_path)
        assert_same_training(continued, stopped)
        steps(continued, k + 1, STEPS)
        assert_same_training(continued, whole)
        assert_same_bits(stopped.params, steps(made(case, EMAS[ema], start()), 1, k).params)  # it went on alone
        steps(stopped, k + 1, STEPS)
        assert_same_training(stopped, whole)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_options_come_with_the_state(case: Any) -> None:
    kind, options, _ = case
    saved = getattr(onepass, kind)(start(), **options, lr=0.25, ema_decay=0.5, clip_norm=2, nonfinite="raise")
    saved.groups[0].clip_value = 3
    buffers = {n: v for n, v in options.items() if n in ("amsgrad", "momentum", "centered")}
    other = getattr(onepass, kind)(start(), **buffers, ema_decay=0.25)
    other.load_state_dict(saved.state_dict())
    assert repr(other) == repr(saved)
    assert "lr=0.25" in repr(other) and "clip_value=3" in repr(other) and "nonfinite='raise'" in repr(other)


def test_a_function_is_not_stored_and_the_own_one_goes_on(tmp_path: Path) -> None:
    saved = onepass.SGD(ones(2), lr=lambda t: 0.5, ema_decay=lambda t: 0.5)
    saved.step(ones(2))
    for name in ("lr", "ema_decay"):
        assert saved.state_dict()["param_groups"][0][name].keys() == {"function"}
    asked: list[int] = []

    def own(t: int) -> float:
        asked.append(t)
        return 0.25

    w = ones(2)
    saved.params[:] = 1
    saved.save(tmp_path / "state.npz")
    other = onepass.SGD(w, lr=own, ema_decay=own)
    other.load(tmp_path / "state.npz")
    assert other.groups[0].lr is own and other.groups[0].ema_decay is own
    other.step(ones(2))
    assert (w == 0.75).all() and (other.ema == 0.25 * 0.75 + 0.75 * 0.75).all()
    assert asked == [2, 2]  # the count came along


# ---- What does not fit ----


def changed(**changes: Any) -> Callable[[Any], None]:
    """Changes a state dict: "group.lr" is the first group's, "state.step" the first parameter's."""

    def change(saved: Any) -> None:
        for name, value in changes.items():
            where, _, key = name.rpartition("__")
            place = {"": saved, "group": saved["param_groups"][0], "state": saved["state"][0]}[where]
            if value is None:
                del place[key]
            else:
                place[key] = value

    return change


MISFITS: dict[str, tuple[Callable[[Any], None], type[Exception], str]] = {
    "another class": (changed(optimizer="AdamW"), ValueError, "checkpoint is for 'AdamW', not 'Adam'"),
    "a newer version": (changed(version=2), ValueError, "written by a newer onepass"),
    "an older version": (changed(version=0), ValueError, "version must be 1, got 0"),
    "a key missing": (changed(step_count=None), ValueError, "lacks ['step_count']"),
    "a key unknown": (changed(color=1), ValueError, "has unknown ['color']"),
    "an option missing": (changed(group__eps=None), ValueError, "group 0 lacks ['eps']"),
    "an option unknown": (changed(group__momentum=0.5), ValueError, "group 0 has unknown ['momentum']"),
    "a state array missing": (changed(state__exp_avg=None), ValueError, "lacks ['exp_avg']"),
    "a state array unknown": (changed(state__max_exp_avg_sq=ones(2, 3)), ValueError, "saved with amsgrad"),
    "a wrong shape": (changed(state__exp_avg=ones(3, 2)), ValueError, "must have shape (2, 3), got (3, 2)"),
    "a wrong dtype": (
        changed(state__exp_avg=ones(2, 3, dtype=float)),
        ValueError,
        "expected the parameter's dtype float32",
    ),
    "a list for an array": (changed(state__exp_avg=[[0.0] * 3] * 2), TypeError, "must be a NumPy array"),
    "a negative count": (changed(state__step=-1), ValueError, "at least 0"),
    "no integer": (changed(step_count=1.0), TypeError, "step_count must be an integer"),
    "a wrong lr": (changed(group__lr=-1), ValueError, "lr must be at least 0, got -1"),
    "wrong betas": (changed(group__betas=(2, 0)), ValueError, "betas[0] must be at least 0 and less than 1"),
    "a wrong flag": (changed(group__maximize=1), TypeError, "maximize must be True or False"),
    "a wrong mode": (changed(group__eps_mode="tf"), ValueError, "eps_mode must be"),
    "a wrong ema": (changed(group__ema_decay=1.0), ValueError, "ema_decay must be at least 0 and less than 1"),
    "a wrong clip_norm": (changed(clip_norm=-1.0), ValueError, "clip_norm must be above 0"),
    "a wrong nonfinite": (changed(nonfinite="stop"), ValueError, "nonfinite must be"),
    "other names": (changed(group__param_names=["w", "c"]), ValueError, "expected 'b', got 'c'"),
    "another order": (changed(group__params=[1, 0]), ValueError, "expected 0, got 1"),
    "amsgrad without its array": (changed(group__amsgrad=True), ValueError, "it determines which state buffers exist"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_dict_that_does_not_fit_changes_nothing(case: str) -> None:
    change, error, message = MISFITS[case]
    optimizer, donor = (onepass.Adam({"w": ones(2, 3), "b": ones(3)}, lr=0.1, ema_decay=0.5) for _ in range(2))
    optimizer.step({"w": ones(2, 3), "b": ones(3)})
    saved = donor.state_dict()
    change(saved)
    with refused(error, message, optimizer):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Adam", {"amsgrad": True}),
        ("RMSprop", {"momentum": 0.9}),
        ("RMSprop", {"centered": True}),
        ("SGD", {"momentum": 0.9}),
        ("Lion", {"ema_decay": 0.9}),
    ],
)
def test_what_one_keeps_and_the_other_does_not_is_refused(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    make = getattr(onepass, kind)
    pair = make([ones(2)], lr=0.5), make([ones(2)], **options)
    for own, other in [pair, pair[::-1]]:
        with refused(ValueError, "the state of parameter 0", own):
            own.load_state_dict(other.state_dict())
        other.save(tmp_path / "state.npz")
        with refused(ValueError, "cannot load", own):
            own.load(tmp_path / "state.npz")


def test_another_number_of_groups_or_parameters_is_refused() -> None:
    optimizer = onepass.Lion([ones(2), ones(2)])
    for other in [onepass.Lion([{"params": ones(2)}, {"params": ones(2)}]), onepass.Lion([ones(2)])]:
        with refused(ValueError, "the optimizer has", optimizer):
            optimizer.load_state_dict({**other.state_dict()})


def test_a_state_dict_that_fits_only_in_the_first_group_changes_nothing() -> None:
    optimizer = onepass.Adam([{"params": ones(2)}, {"params": ones(3)}])
    saved = onepass.Adam([{"params": ones(2), "lr": 0.5}, {"params": ones(3)}]).state_dict()
    saved["param_groups"][1]["eps"] = -1.0
    with refused(ValueError, "eps must be at least 0", optimizer):
        optimizer.load_state_dict(saved)


# ---- Copies ----


def test_a_deep_copy_of_parameters_and_optimizer_keeps_what_they_share() -> None:
    w, b = ones(3), ones(2)
    model, optimizer = copy.deepcopy(({"w": w, "b": b}, onepass.SGD({"w": w, "b": b}, lr=0.5, ema_decay=0.5)))
    assert optimizer.params["w"] is model["w"] and optimizer.params["b"] is model["b"]
    optimizer.step({"w": ones(3), "b": ones(2)})
    assert (model["w"] == 0.5).all() and (w == 1).all()


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: ones(2),
    "list": lambda: [ones(2), ones(3)],
    "tuple": lambda: (ones(2), ones(3)),
    "mapping": lambda: {"w": ones(2), ("b", 1): ones(3)},
    "one group": lambda: [{"params": [ones(2), ones(3)], "lr": 0.25}],
    "groups": lambda: [{"params": ones(2)}, {"params": (ones(3),), "lr": 0.25}],
}


@pytest.mark.parametrize("again", [lambda optimizer: pickle.loads(pickle.dumps(optimizer)), copy.deepcopy])
@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_parameters_survives(form: str, again: Any) -> None:
    optimizer = onepass.Adam(FORMS[form](), ema_decay=0.5)
    other = again(optimizer)
    kind = {"array": np.ndarray, "tuple": tuple, "mapping": dict}.get(form, list)
    assert [type(x) for x in (optimizer.params, optimizer.ema, other.params, other.ema)] == [kind] * 4
    grads: Any = {"array": ones(2), "mapping": {"w": ones(2), ("b", 1): ones(3)}}.get(form, [ones(2), ones(3)])
    for each in (optimizer, other):
        each.step(grads)
    assert list(other.state) == list(optimizer.state)
    assert repr(other) == repr(optimizer)
    assert [len(group.params) for group in other.groups] == [len(group.params) for group in optimizer.groups]
    for one, same in zip(optimizer.groups, other.groups):
        assert_same_bits(same.params, one.params)


class Mine(onepass.SGD):
    """What a user may have made of it."""

    def __init__(self, size: int, note: str) -> None:
        super().__init__(np.ones(size, F), lr=0.5)
        self.note = note
        self.seen: list[int] = []


def test_what_a_users_subclass_added_survives() -> None:
    optimizer = Mine(2, "hello")
    optimizer.seen.append(3)
    optimizer.step(ones(2))
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert type(other) is Mine and other.note == "hello" and other.seen == [3]
        assert other.seen is not optimizer.seen
        other.step(ones(2))
        assert (other.params == 0).all() and other.step_count == 2
    assert (optimizer.params == 0.5).all()


class Slotted(Mine):
    """With its own attributes in slots, one of them never filled, and a way of its own to load."""

    __slots__ = ("__hidden", "empty")

    def __init__(self, size: int, note: str) -> None:
        super().__init__(size, note)
        self.__hidden = [note]

    def hidden(self) -> list[str]:
        return self.__hidden

    def load_state_dict(self, state_dict: Any) -> None:
        self.seen.append(len(self.note))
        super().load_state_dict(state_dict)


class Bare(onepass.SGD):
    """With nothing but a slot."""

    __slots__ = ("note",)


class Stated(Mine):
    """With a state of its own."""

    def __getstate__(self) -> Any:
        return "said", super().__getstate__(), self.state_dict()["step_count"]

    def __setstate__(self, state: Any) -> None:
        said, added, self.step_before = state
        super().__setstate__(added)
        self.note += said


@pytest.mark.parametrize("again", [lambda optimizer: pickle.loads(pickle.dumps(optimizer)), copy.deepcopy])
def test_what_a_users_subclass_keeps_in_slots_or_says_of_its_state_survives(again: Any) -> None:
    slotted = Slotted(2, "hello")
    other = again(slotted)
    assert other.hidden() == ["hello"] and other.hidden() is not slotted.hidden() and not hasattr(other, "empty")
    assert other.seen == []
    other.load_state_dict(slotted.state_dict())
    assert other.seen == [5] and slotted.seen == []
    bare = Bare(ones(2), lr=0.5)
    bare.note = "hello"
    assert not hasattr(bare, "__dict__") and again(bare).note == "hello"
    stated = Stated(2, "hello")
    stated.step(ones(2))
    other = again(stated)
    assert (other.note, other.seen, other.step_before, other.step_count) == ("hellosaid", [], 1, 1)


# ---- Averages ----


@pytest.mark.parametrize("form", FORMS)
def test_averages_have_the_form_of_the_parameters_and_are_live(form: str) -> None:
    params = FORMS[form]()
    optimizer = onepass.SGD(params, lr=0.5, ema_decay=0.75)
    averages = optimizer.ema
    assert type(averages) is type(optimizer.params)
    grads: Any = {"array": ones(2), "mapping": {"w": ones(2), ("b", 1): ones(3)}}.get(form, [ones(2), ones(3)])

    def flat(arrays: Any) -> list[Array]:
        if isinstance(arrays, np.ndarray):
            return [arrays]
        return list(arrays.values()) if isinstance(arrays, dict) else list(arrays)

    expected = [p.astype(np.float64) for p in flat(optimizer.params)]
    assert_same_bits(flat(averages), flat(optimizer.params))
    for _ in range(3):
        optimizer.step(grads)
        for e, p in zip(expected, flat(optimizer.params)):
            e *= 0.75
            e += 0.25 * p
        for e, average in zip(expected, flat(averages)):  # got before the step
            np.testing.assert_array_equal(average, e)  # all of it is exact
    assert "ema" not in optimizer.state[next(iter(optimizer.state))]


def test_the_decay_of_the_average_may_be_a_function_and_be_set() -> None:
    w = ones(2)
    optimizer = onepass.SGD(w, lr=1, ema_decay=lambda t: 1 - 1 / t)
    seen = []
    for t in range(1, 5):
        optimizer.step(t * ones(2))
        seen.append(w.copy())
        np.testing.assert_allclose(optimizer.ema, np.mean(seen, axis=0), rtol=1e-6)
    optimizer.groups[0].ema_decay = 0
    optimizer.step(ones(2))
    assert_same_bits([optimizer.ema], [w])


def test_a_rate_that_is_set_leaves_the_other_options_as_they_were() -> None:
    options = {"betas": (0.5, 0.25), "weight_decay": 0.5, "clip_value": 2.0, "maximize": True}
    ours, fresh = ones(3), ones(3)
    optimizer = onepass.AdamW(ours, lr=9.0, ema_decay=lambda t: 0.5 / t, **options)
    reference = onepass.AdamW(fresh, lr=lambda t: 0.5 / t, ema_decay=lambda t: 0.5 / t, **options)
    for t in range(1, 7):
        optimizer.lr = 0.5 / t if t < 4 else lambda t: 0.5 / t
        for each in (optimizer, reference):
            each.step(t * ones(3))
    assert_same_bits([ours, optimizer.ema], [fresh, reference.ema])


def test_no_average_is_none() -> None:
    assert onepass.SGD(ones(2)).ema is None


# ---- Groups ----


def test_adding_to_an_array_makes_a_sequence() -> None:
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
    with refused(TypeError, "the gradients must be a sequence", optimizer):
        optimizer.step(ones(2))


def test_adding_to_a_sequence_and_to_a_mapping() -> None:
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
        ({}, {}, ValueError, "params holds no parameters"),
        ({"b": ones(3, dtype=int)}, {}, TypeError, "parameter 'b' must be of dtype"),
        ({"b": ones(3), "c": [1.0]}, {}, TypeError, "parameter 'c' must be a NumPy array"),
        ({"b": ones(3)}, {"lr": -1}, ValueError, "lr must be at least 0"),
        ({"b": ones(3)}, {"betas": (0.9, 2)}, ValueError, "betas[1]"),
        ({"b": ones(3)}, {"momentum": 0.5}, TypeError, "unexpected option 'momentum' of a group of Adam"),
        ({"b": ones(3)}, {"clip_norm": 0.5}, TypeError, "it applies to the whole optimizer"),
        ({"b": ones(3)}, {"ema_decay": None}, ValueError, "ema_decay must be set for all groups or for none"),
    ],
)
def test_a_group_that_cannot_be_added(params: Any, options: Any, error: Any, message: str) -> None:
    w = ones(2)
    optimizer = onepass.Adam({"w": w}, lr=0.5, ema_decay=0.5)
    optimizer.step({"w": ones(2)})
    with refused(error, message, optimizer):
        optimizer.add_group(params, **options)
    optimizer.step({"w": ones(2)})
    optimizer.add_group({"b": ones(3)})
    optimizer.step({"w": ones(2), "b": ones(3)})
    assert optimizer.step_count == 3


def test_a_group_that_overlaps_or_is_in_a_mapping_among_numbers_cannot_be_added() -> None:
    w = ones(4)
    optimizer = onepass.Adam([w], lr=0.5)
    with refused(ValueError, "parameter 1 is the same memory as parameter 0", optimizer):
        optimizer.add_group(w)
    with refused(ValueError, "overlaps", optimizer):
        optimizer.add_group([ones(1), w[2:]])
    with refused(TypeError, "parameter names are missing in other groups", optimizer):
        optimizer.add_group({"b": ones(3)})
    with refused(ValueError, "params holds no parameters", optimizer):
        optimizer.add_group([])


def test_what_was_added_survives_a_copy_and_a_file(tmp_path: Path) -> None:
    def make() -> Any:
        optimizer = onepass.NAdam(ones(2), lr=0.1)
        optimizer.add_group([ones(3)], lr=0.2)
        return optimizer

    whole = make()
    for _ in range(4):
        whole.step([ones(2), ones(3)])
    stopped = make()
    for _ in range(2):
        stopped.step([ones(2), ones(3)])
    stopped.save(tmp_path / "state.npz", params=True)
    loaded = make()
    loaded.load(tmp_path / "state.npz", params=True)
    for other in (loaded, pickle.loads(pickle.dumps(stopped)), copy.deepcopy(stopped)):
        for _ in range(2):
            other.step([ones(2), ones(3)])
        assert_same_training(other, whole)


def test_state_that_was_saved_when_the_decay_was_called_ema_still_loads(tmp_path: Path) -> None:
    saved = onepass.Adam(ones(2), ema_decay=0.75)
    saved.step(ones(2))
    old = saved.state_dict()
    (group,) = old["param_groups"]
    group["ema"] = group.pop("ema_decay")
    _checkpoint.write(tmp_path / "old.npz", old)
    by_dict, by_file = (onepass.Adam(ones(2), ema_decay=0.5) for _ in range(2))
    by_dict.load_state_dict(old)
    by_file.load(tmp_path / "old.npz")
    for other in (by_dict, by_file):
        assert other.groups[0].ema_decay == 0.75
        assert_same_bits([other.ema], [saved.ema])
    both = onepass.Adam(ones(2))
    with refused(ValueError, "group 0 has unknown ['ema']", both):
        both.load_state_dict({**old, "param_groups": [{**group, "ema_decay": 0.5}]})


def test_groups_answer_as_torchs_do() -> None:
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
    with refused(ValueError, "lr must be at least 0", optimizer):
        first["lr"] = -1
    first["params"].clear()  # a list of its own
    assert len(first["params"]) == 1


def test_with_several_groups_there_is_no_one_lr() -> None:
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


# ---- Clipping, and gradients that are not finite ----


def test_clip_norm_can_be_set_and_infinity_only_measures() -> None:
    w = np.zeros(2)
    optimizer = onepass.SGD(w, lr=1)
    assert optimizer.clip_norm is None
    optimizer.step(np.array([3.0, 4.0]))
    assert optimizer.grad_norm is None and w.tolist() == [-3, -4]
    optimizer.clip_norm = float("inf")
    assert optimizer.clip_norm == float("inf")
    w.fill(0)
    optimizer.step(np.array([3.0, 4.0]), 2)
    assert optimizer.grad_norm == 10 and w.tolist() == [-6, -8]
    optimizer.clip_norm = 2.5
    w.fill(0)
    optimizer.step(np.array([3.0, 4.0]))
    assert optimizer.grad_norm == 5 and w.tolist() == [-1.5, -2]
    optimizer.clip_norm = None
    w.fill(0)
    optimizer.step(np.array([6.0, 8.0]))
    assert optimizer.grad_norm is None and w.tolist() == [-6, -8]


def test_nonfinite_can_be_set() -> None:
    w, bad = ones(2), np.array([1, np.nan], F)
    optimizer = onepass.SGD({"w": w, "b": ones(2)}, lr=0.5)
    optimizer.nonfinite = "raise"
    with refused(FloatingPointError, "gradient 'b' is not finite", optimizer):
        optimizer.step({"w": ones(2), "b": bad})
    optimizer.nonfinite = "skip"
    optimizer.step({"w": ones(2), "b": bad})
    assert (w == 1).all() and (optimizer.skipped, optimizer.step_count) == (1, 0)
    optimizer.nonfinite = "propagate"
    optimizer.step({"w": bad, "b": ones(2)})
    assert np.isnan(w[1]) and w[0] == 0.5 and optimizer.nonfinite == "propagate"


def test_the_first_gradient_that_is_not_finite_is_named() -> None:
    bad = np.array([1, np.inf], F)
    one = onepass.SGD(ones(2), nonfinite="raise")
    with refused(FloatingPointError, "the gradient is not finite", one):
        one.step(bad)
    several = onepass.Adam([ones(2)] + [ones(2) for _ in range(3)], nonfinite="raise")
    with refused(FloatingPointError, "gradient 1 is not finite", several):
        several.step([ones(2), bad, None, bad])
    with refused(FloatingPointError, "gradient 2 is not finite", several):
        several.step([ones(2), None, onepass.SparseRows([1], bad[1:]), bad])


def test_none_is_a_step_of_no_gradient() -> None:
    w = ones(2)
    optimizer = onepass.SGD(w, momentum=0.5, ema_decay=0.5, clip_norm=1, nonfinite="raise")
    optimizer.step(None)
    assert (w == 1).all() and (optimizer.step_count, optimizer.state[0]["step"], optimizer.grad_norm) == (1, 0, 0)


# ---- Rows ----


def test_rows_that_repeat_are_summed_in_the_order_given() -> None:
    for values, total in [([1e8, 1, -1e8], 0), ([1e8, -1e8, 1], 1), ([1, 1e8, -1e8], 0)]:
        w = np.zeros((5, 1), F)
        rows = np.array([*values, 2], F).reshape(4, 1)
        onepass.SGD(w, lr=1).step(onepass.SparseRows([3, 3, 3, 0], rows))
        assert w.ravel().tolist() == [-2, 0, 0, -total, 0]


def test_rows_apart_from_each_other_are_summed_in_the_order_given() -> None:
    w = np.zeros((5, 1), F)
    onepass.SGD(w, lr=1).step(
        onepass.SparseRows([3, 1, 3, 1, 3, 1], np.array([[1e8], [1], [1], [1e8], [-1e8], [-1e8]], F))
    )
    assert w.ravel().tolist() == [0, 0, 0, 0, 0]


def test_no_rows_are_a_step_that_touches_nothing() -> None:
    w = ones(3, 2)
    optimizer = onepass.AdamW(w, lr=0.5, weight_decay=0.5)
    optimizer.step(onepass.SparseRows([], np.zeros((0, 2), F)))
    assert (w == 1).all() and optimizer.state[0]["step"] == 1


@pytest.mark.parametrize(
    ("indices", "values", "error", "message"),
    [
        ([0.0, 1.0], ones(2, 3), TypeError, "indices must be integers, got float64"),
        ([True, False], ones(2, 3), TypeError, "indices must be integers, got bool"),
        ([[0, 1]], ones(2, 3), ValueError, "indices must be one-dimensional"),
        (0, ones(1, 3), ValueError, "indices must be one-dimensional"),
        ([0, -1], ones(2, 3), IndexError, "indices holds -1"),
        (np.array([2**64 - 1], np.uint64), ones(1, 3), IndexError, "no array has that many rows"),
        ([0, 1], ones(3, 3), ValueError, "values: expected 2 rows, one for each index, got shape (3, 3)"),
        ([0], np.float32(1), TypeError, "values must be a NumPy array"),
        ([0], np.array(1, F), ValueError, "values: expected 1 row, one for each index, got shape ()"),
        ([0, 1], ones(2, 3, dtype=int), TypeError, "values must be of a real floating-point dtype"),
        ([0, 1], [[1.0] * 3] * 2, TypeError, "values must be a NumPy array"),
    ],
)
def test_wrong_rows(indices: Any, values: Any, error: Any, message: str) -> None:
    with refused(error, message):
        onepass.SparseRows(indices, values)


def test_rows_that_do_not_fit_their_parameter() -> None:
    optimizer = onepass.Adam([ones(2), ones(4, 3)])
    for rows, error, message in [
        (onepass.SparseRows([0, 4], ones(2, 3)), IndexError, "gradient 1 names row 4, but its parameter has 4 rows"),
        (onepass.SparseRows([2**62], ones(1, 3)), IndexError, "gradient 1 names row"),
        (onepass.SparseRows([0], ones(1, 2)), ValueError, "gradient 1 has rows of shape (2,), its parameter of (3,)"),
        (onepass.SparseRows([0], ones(1)), ValueError, "gradient 1 has rows of shape ()"),
        (onepass.SparseRows([0], ones(1, 3, 1)), ValueError, "gradient 1 has rows of shape (3, 1)"),
    ]:
        with refused(error, message, optimizer):
            optimizer.step([ones(2), rows])
    for param in [np.ones((4, 3), F, order="F"), np.array(1, F)]:
        optimizer = onepass.Adam([param])
        with refused(ValueError, "gradient 0: SparseRows requires a parameter in C order", optimizer):
            optimizer.step([onepass.SparseRows([0], ones(1, 3))])
    single = onepass.Adam(ones(4, 3))
    with refused(IndexError, "the gradient names row 9", single):
        single.step(onepass.SparseRows([9], ones(1, 3)))
    several = onepass.Adam([ones(4, 3)])
    with refused(TypeError, "the gradients must be a sequence", several):
        several.step(onepass.SparseRows([0], ones(1, 3)))
