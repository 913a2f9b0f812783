"""Resuming from a checkpoint: parameters, state and schedules are restored, and none is lost silently."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import schedules

SCHEDULES = [
    schedules.inverse_sqrt(0.1),
    schedules.inverse_time(0.1, 0.5),
    schedules.exponential(0.1, 0.5, 10),
    schedules.piecewise([10, 20], [0.1, 0.01, 0.001]),
    schedules.linear(0.1, 0.0, 10),
    schedules.cosine(0.1, 10, 0.01),
    schedules.warmup(schedules.cosine(0.1, 10), 5),
    schedules.warmup(0.1, 5),
]


def test_every_schedule_has_a_test_case() -> None:
    assert {type(schedule).__name__ for schedule in SCHEDULES} == set(schedules.__all__)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_is_saved_in_a_file_and_loaded(schedule: Any, tmp_path: Path) -> None:
    w = np.zeros(2, np.float32)
    onepass.Adam(w, lr=schedule).save(tmp_path / "adam.npz")
    resumed = onepass.Adam(w)
    resumed.load(tmp_path / "adam.npz")
    assert resumed.lr == schedule
    same = onepass.Adam(w, lr=schedule)
    same.load(tmp_path / "adam.npz")
    assert same.lr == schedule


def test_a_schedule_of_ema_decay_is_saved_and_loaded() -> None:
    saved = onepass.SGD(np.zeros(2), lr=0.1, ema_decay=schedules.linear(0.0, 0.999, 100)).state_dict()
    resumed = onepass.SGD(np.zeros(2), lr=0.1, ema_decay=0.5)
    resumed.load_state_dict(saved)
    assert resumed.ema_decay == schedules.linear(0.0, 0.999, 100)


def constant(t: int) -> float:
    return 0.5


class Falling:
    def __call__(self, t: int) -> float:
        return 1 / t


@pytest.mark.parametrize("function", [constant, Falling(), schedules.warmup(constant, 5)])
@pytest.mark.parametrize("reader", ["file", "state dict"])
def test_loading_where_a_function_was_saved_is_refused_unless_it_is_given(
    function: Any, reader: str, tmp_path: Path
) -> None:
    w = np.zeros(2)
    saved = onepass.SGD(w, lr=function)
    saved.save(tmp_path / "sgd.npz")

    def load(optimizer: onepass.SGD, **options: Any) -> None:
        if reader == "file":
            optimizer.load(tmp_path / "sgd.npz", **options)
        else:
            optimizer.load_state_dict(saved.state_dict(), **options)

    resumed = onepass.SGD(w, lr=0.25)
    with pytest.raises(ValueError, match=r"lr of group 0 was a function \(.*, or load with lr=\.\.\."):
        load(resumed)
    assert resumed.lr == 0.25
    load(resumed, lr=0.125)
    assert resumed.lr == 0.125
    load(resumed, lr=function)
    assert resumed.lr is function
    own = onepass.SGD(w, lr=constant)
    load(own)
    assert own.lr is constant


@pytest.mark.parametrize("saved", [0.1, schedules.cosine(0.1, 10)])
@pytest.mark.parametrize("own", [constant, schedules.cosine(0.1, 20)])
def test_loading_another_schedule_is_refused_unless_one_is_chosen(own: Any, saved: Any) -> None:
    state_dict = onepass.SGD(np.zeros(2), lr=saved).state_dict()
    resumed = onepass.SGD(np.zeros(2), lr=own)
    with pytest.raises(ValueError, match=r"lr of group 0: the checkpoint has.*to choose"):
        resumed.load_state_dict(state_dict)
    assert resumed.lr == own
    resumed.load_state_dict(state_dict, lr=own)
    assert resumed.lr == own


def test_options_given_to_load_apply_to_every_group() -> None:
    w, b = np.zeros(2), np.zeros(3)
    groups: Any = [{"params": [w], "lr": 0.5}, {"params": [b]}]
    state_dict = onepass.AdamW(groups, clip_norm=1.0).state_dict()
    resumed = onepass.AdamW(groups)
    resumed.load_state_dict(state_dict, weight_decay=0.25, betas=(0.5, 0.75), clip_norm=2.0)
    assert [(g.lr, g.weight_decay, g.betas) for g in resumed.groups] == [
        (0.5, 0.25, (0.5, 0.75)),
        (1e-3, 0.25, (0.5, 0.75)),
    ]
    assert resumed.clip_norm == 2.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lrr": 0.1}, TypeError, "unexpected keyword argument 'lrr'.*Did you mean 'lr'"),
        ({"lr": -1}, ValueError, "lr"),
        ({"amsgrad": True}, ValueError, "amsgrad cannot be changed"),
    ],
)
def test_wrong_options_given_to_load_are_refused_and_change_nothing(
    options: Any, error: Any, message: str, tmp_path: Path
) -> None:
    w = np.ones(2, np.float32)
    saved = onepass.Adam(w, lr=0.5)
    saved.step(w)
    saved.save(tmp_path / "adam.npz", params=True)
    w[:] = 7
    resumed = onepass.Adam(w)
    before = resumed.state_dict()
    with pytest.raises(error, match=message):
        resumed.load(tmp_path / "adam.npz", params=True, **options)
    assert repr(resumed.state_dict()) == repr(before)
    assert w.tolist() == [7, 7]


def test_the_error_about_an_unknown_option_names_the_method_that_was_called(tmp_path: Path) -> None:
    optimizer = onepass.Adam(np.ones(2))
    with pytest.raises(TypeError, match=r"^load_state_dict\(\) got an unexpected keyword argument 'lrr'"):
        optimizer.load_state_dict(optimizer.state_dict(), lrr=0.1)
    with pytest.raises(TypeError, match=r"^load\(\) got an unexpected keyword argument 'lrr'"):
        optimizer.load(tmp_path / "missing.npz", lrr=0.1)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("form", ["array", "sequence", "mapping"])
def test_parameters_and_state_are_loaded_from_one_file(form: str, order: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def arrays() -> tuple[Any, list[Any]]:
        made = [np.asarray(rng.standard_normal(shape), np.float32, order=order) for shape in ((3, 4), (5,), ())]
        if form == "array":
            return made[0], made[:1]
        return (made if form == "sequence" else dict(zip("abc", made))), made

    params, whole = arrays()
    uninterrupted = onepass.Adam(params)
    grads, _ = arrays()
    for t in range(6):
        if t == 3:
            uninterrupted.save(tmp_path / "all.npz", params=True)
        uninterrupted.step(grads)
    other, own = arrays()
    resumed = onepass.Adam(other)
    resumed.load(tmp_path / "all.npz", params=True)
    for _ in range(3):
        resumed.step(grads)
    for a, b in zip(own, whole):
        assert a.tobytes() == b.tobytes()


def test_parameters_are_loaded_from_a_state_dict() -> None:
    w = np.ones(3)
    saved = onepass.SGD(w, lr=0.5)
    state_dict = saved.state_dict(params=True)
    saved.step(np.ones(3))
    assert state_dict["state"][0]["param"].tolist() == [1, 1, 1]
    saved.load_state_dict(state_dict, params=True)
    assert w.tolist() == [1, 1, 1]


def test_loading_parameters_from_a_file_without_them_is_refused(tmp_path: Path) -> None:
    w = np.ones(3)
    onepass.SGD(w, lr=0.5).save(tmp_path / "sgd.npz")
    with pytest.raises(ValueError, match=r"saved without parameters.*save\(path, params=True\)"):
        onepass.SGD(w, lr=0.5).load(tmp_path / "sgd.npz", params=True)


def test_loading_into_read_only_parameters_is_refused(tmp_path: Path) -> None:
    w = np.ones(3)
    optimizer = onepass.SGD(w, lr=0.5)
    optimizer.save(tmp_path / "sgd.npz", params=True)
    w.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.load(tmp_path / "sgd.npz", params=True)


@pytest.mark.parametrize("params", [True, False])
def test_loading_with_parameters_that_differ_from_the_saved_ones_warns(params: bool, tmp_path: Path) -> None:
    saved = {"w": np.ones((2, 3), order="F"), "b": np.zeros(0), "c": np.array(1.0)}
    onepass.Adam(saved).save(tmp_path / "adam.npz", params=params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onepass.Adam({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in saved.items()})
        onepass.Adam(saved).load(tmp_path / "adam.npz")
    other = saved | {"c": np.array(2.0)}
    resumed = onepass.Adam(other)
    with pytest.warns(UserWarning, match=r"other values or another dtype of parameter 'c': .*params=True") as caught:
        resumed.load(tmp_path / "adam.npz")
    assert caught[0].filename == __file__


def test_a_long_schedule_is_saved_and_loaded(tmp_path: Path) -> None:
    schedule = schedules.piecewise(range(1, 3000), [0.1234567 + 1 / i for i in range(1, 3001)])
    onepass.SGD(np.zeros(2), lr=schedule).save(tmp_path / "sgd.npz")
    resumed = onepass.SGD(np.zeros(2), lr=0.1)
    resumed.load(tmp_path / "sgd.npz")
    assert resumed.lr == schedule


def test_equal_states_with_functions_are_saved_as_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        onepass.SGD(np.zeros(2), lr=partial(pow, 0.5)).save(tmp_path / name)
        onepass.SGD(np.zeros(2), lr=Falling()).save(tmp_path / (name + name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "aa").read_bytes() == (tmp_path / "bb").read_bytes()


def test_parameters_in_a_state_dict_are_loaded_only_on_request() -> None:
    w = np.ones(3)
    optimizer = onepass.Adam(w)
    saved = optimizer.state_dict(params=True)
    w[:] = 7
    optimizer.load_state_dict(saved)
    assert w.tolist() == [7, 7, 7]
    with pytest.raises(ValueError, match=r"holds no parameters: use state_dict\(params=True\)"):
        optimizer.load_state_dict(optimizer.state_dict(), params=True)


@pytest.mark.parametrize("checksums", [5, None, [1, 2], ["1"], [1.0], [True]])
def test_malformed_checksums_are_refused(checksums: Any) -> None:
    optimizer = onepass.SGD(np.zeros(2), lr=0.1)
    with pytest.raises(ValueError, match="params_crc32: expected a list of 1 integer"):
        optimizer.load_state_dict({**optimizer.state_dict(), "params_crc32": checksums})


def test_an_option_that_would_have_no_effect_is_refused() -> None:
    optimizer = onepass.Adagrad(np.zeros(2), lr=0.1)
    with pytest.raises(TypeError, match="initial_accumulator_value"):
        optimizer.load_state_dict(optimizer.state_dict(), initial_accumulator_value=0.5)


def test_files_of_earlier_versions_load() -> None:
    w = np.zeros(2)
    old = onepass.SGD(w, lr=constant).state_dict()
    old["param_groups"][0]["lr"] = None  # a function was None
    own = onepass.SGD(w, lr=constant)
    own.load_state_dict(old)
    assert own.lr is constant
    with pytest.raises(ValueError, match="lr of group 0 was a function"):
        onepass.SGD(w, lr=0.1).load_state_dict(old)


@pytest.mark.parametrize(
    "description",
    [{"name": "nothing"}, {"name": "cosine"}, {"name": "cosine", "lr": -1.0, "steps": 3}, {}, {"name": ["cosine"]}],
)
def test_a_state_dict_with_an_invalid_schedule_is_refused(description: Any) -> None:
    optimizer = onepass.SGD(np.zeros(2), lr=0.1)
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0]["lr"] = description
    with pytest.raises(ValueError, match="lr of group 0: expected a schedule, got one with a wrong argument"):
        optimizer.load_state_dict(state_dict)


def test_a_pickle_with_read_only_parameters_is_refused() -> None:
    optimizer = onepass.SGD({"w": np.ones(3)}, lr=0.5)
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(optimizer, protocol=5, buffer_callback=buffers.append)
    with pytest.raises(ValueError, match=r"parameter 'w' is read-only in this pickle.*max_nbytes"):
        pickle.loads(pickled, buffers=[bytes(buffer.raw()) for buffer in buffers])
    again = pickle.loads(pickled, buffers=[bytearray(buffer.raw()) for buffer in buffers])
    again.step({"w": np.ones(3)})
    assert again.params["w"].tolist() == [0.5, 0.5, 0.5]
