"""State dicts that do not fit the optimizer are refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from checkpoint_files import StateDict, assert_equal, small_state, state_of
from onepass import _state_check


def test_a_state_dict_of_any_layout_and_numbers_is_accepted() -> None:
    like = state_of(np.ones((3, 4)), mu_product=0.5)
    state = state_of(np.zeros((4, 6)).T[::2], mu_product=1e-300)
    state["param_groups"][0] |= {"lr": None, "betas": [0, 1], "eps_mode": "hat", "params": (0,)}
    state["skipped"] = 2**53
    before = copy.deepcopy(state), copy.deepcopy(like)
    _state_check.check(state, like)
    assert_equal((state, like), before)


def put(value: Any, *keys: Any) -> Callable[[StateDict], Any]:
    """Return a function that sets a value in the state dict."""

    def edit(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return edit


def drop(*keys: Any) -> Callable[[StateDict], Any]:
    def edit(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return edit


GROUP = ("param_groups", 0)
ENTRY = ("state", 1)
F8 = np.float64


MISFITS: dict[str, tuple[Callable[[StateDict], Any], type[Exception], str]] = {
    "no version": (drop("version"), ValueError, "the state dict is missing ['version']"),
    "no optimizer": (drop("optimizer"), ValueError, "the state dict is missing ['optimizer']"),
    "no state": (drop("state"), ValueError, "the state dict is missing ['state']"),
    "an unknown key": (put(1, "rng"), ValueError, "the state dict has unknown ['rng']"),
    "a newer version": (
        put(2, "version"),
        ValueError,
        "version: expected 1, got 2 (it was written by a newer onepass)",
    ),
    "an older version": (put(0, "version"), ValueError, "version: expected 1, got 0"),
    "a string as version": (put("1", "version"), TypeError, "version: expected an integer, got '1'"),
    "a boolean as version": (put(True, "version"), TypeError, "version: expected an integer, got True"),
    "another optimizer": (put("Adam", "optimizer"), ValueError, "checkpoint is for 'Adam', not 'AdamW'"),
    "bytes as optimizer": (put(b"AdamW", "optimizer"), TypeError, "optimizer: expected a string, got b'AdamW'"),
    "a step count < 0": (put(-1, "step_count"), ValueError, "step_count: expected at least 0"),
    "a step count too large": (put(2**62 + 1, "step_count"), ValueError, "at most 2**62, got 4611686018427387905"),
    "a float step count": (put(1.0, "step_count"), TypeError, "step_count: expected an integer, got 1.0"),
    "a boolean as step count": (put(True, "step_count"), TypeError, "step_count: expected an integer, got True"),
    "skipped < 0": (put(-1, "skipped"), ValueError, "skipped: expected at least 0"),
    "groups in a mapping": (put({}, "param_groups"), TypeError, "param_groups: expected a list, got {}"),
    "no groups": (put([], "param_groups"), ValueError, "it holds 0 groups, the optimizer has 1"),
    "a string as group": (put(["a"], "param_groups"), TypeError, "group 0: expected a mapping, got 'a'"),
    "a missing option": (drop(*GROUP, "eps"), ValueError, "group 0 is missing ['eps']"),
    "an unknown option": (put(1, *GROUP, "rho"), ValueError, "group 0 has unknown ['rho']"),
    "missing and unknown": (
        put([{"params": [0]}], "param_groups"),
        ValueError,
        "group 0 is missing ['param_names', 'lr', ",
    ),
    "no names": (
        drop(*GROUP, "param_names"),
        ValueError,
        "checkpoint is for parameters without names, but this optimizer's have names: make the optimizer with an",
    ),
    "other names": (
        put(["w", "c"], *GROUP, "param_names"),
        ValueError,
        "the name of parameter 1 of its group: expected 'b', got 'c' in the checkpoint",
    ),
    "a number as name": (
        put(["w", 1], *GROUP, "param_names"),
        TypeError,
        "item 1 of param_names of group 0: expected 'b', got 1",
    ),
    "one name": (put("wb", *GROUP, "param_names"), TypeError, "param_names of group 0: expected a list, got 'wb'"),
    "fewer in a group": (
        put([0], *GROUP, "params"),
        ValueError,
        "it holds 1 parameter in params of group 0, the optimizer",
    ),
    "another order": (
        put([1, 0], *GROUP, "params"),
        ValueError,
        "the index of parameter 0 of its group: expected 0, got 1",
    ),
    "an array in params": (
        put([0, np.zeros(2)], *GROUP, "params"),
        TypeError,
        "item 1 of params of group 0: expected 1, got an array",
    ),
    "a boolean in params": (
        put([0, True], *GROUP, "params"),
        TypeError,
        "item 1 of params of group 0: expected 1, got True",
    ),
    "a schedule": (put(print, *GROUP, "lr"), TypeError, "lr of group 0: expected a number, a string or None"),
    "bytes as option": (put(b"x", *GROUP, "eps"), TypeError, "eps of group 0: expected a number, a string or None"),
    "an array as betas": (put(np.zeros(2), *GROUP, "betas"), TypeError, "betas of group 0: expected a number"),
    "a string in betas": (put(["a"], *GROUP, "betas"), TypeError, "an item of betas of group 0: expected a number"),
    "state in a list": (put([], "state"), TypeError, "state: expected a mapping, got []"),
    "more parameters": (put({}, "state", 2), ValueError, "it holds 3 parameters, the optimizer has 2"),
    "fewer parameters": (drop("state", 0), ValueError, "it holds 1 parameter, the optimizer has 2"),
    "other keys": (
        lambda d: d["state"].update({"1": d["state"].pop(1)}),
        ValueError,
        "state is missing [1] and has unknown ['1']",
    ),
    "a string as state": (put("x", *ENTRY), TypeError, "the state of parameter 1 ('b'): expected a mapping"),
    "a missing array": (drop(*ENTRY, "exp_avg"), ValueError, "the state of parameter 1 ('b') is missing ['exp_avg']"),
    "an unknown array": (
        put(0, *ENTRY, "ema"),
        ValueError,
        "the state of parameter 1 ('b'): it was saved with ema_decay",
    ),
    "another dtype": (
        put(np.zeros((), "f4"), *ENTRY, "exp_avg"),
        ValueError,
        "exp_avg of parameter 1 ('b'): expected the parameter's dtype float64, got float32",
    ),
    "the other byte order": (
        put(np.zeros((), ">f8"), *ENTRY, "exp_avg"),
        ValueError,
        "expected the parameter's dtype float64, got >f8",
    ),
    "another shape": (
        put(np.zeros(1), *ENTRY, "exp_avg"),
        ValueError,
        "exp_avg of parameter 1 ('b'): expected shape (), got (1,)",
    ),
    "a number instead of an array": (put(0.0, *ENTRY, "exp_avg"), TypeError, "('b'): expected a NumPy array, got 0.0"),
    "a NumPy number": (
        put(F8(0), *ENTRY, "exp_avg"),
        TypeError,
        "exp_avg of parameter 1 ('b'): expected a NumPy array",
    ),
    "a mask": (put(np.ma.masked_array(0.0), *ENTRY, "exp_avg"), TypeError, "expected a NumPy array, got masked_array"),
    "a step < 0": (put(-1, *ENTRY, "step"), ValueError, "step of parameter 1 ('b'): expected at least 0"),
    "a float step": (put(2.0, *ENTRY, "step"), TypeError, "step of parameter 1 ('b'): expected an integer, got 2.0"),
    "a boolean as step": (put(False, *ENTRY, "step"), TypeError, "step of parameter 1 ('b'): expected an integer"),
    "NaN": (
        put(float("nan"), *ENTRY, "mu_product"),
        ValueError,
        "mu_product of parameter 1 ('b'): expected a finite number",
    ),
    "an integer": (put(1, *ENTRY, "mu_product"), TypeError, "mu_product of parameter 1 ('b'): expected a float, got 1"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_dict_that_does_not_fit_is_refused(case: str) -> None:
    edit, error, message = MISFITS[case]
    like, state = (state_of(np.zeros(3, "f4"), np.zeros(()), names=["w", "b"], mu_product=0.5) for _ in range(2))
    edit(state)
    with pytest.raises(error, match=re.escape(message)) as caught:
        _state_check.check(state, like)
    assert caught.type is error


@pytest.mark.parametrize("value", [None, [], "state", 3])
def test_a_state_dict_must_be_a_mapping(value: Any) -> None:
    with pytest.raises(TypeError, match="a state dict: expected a mapping"):
        _state_check.check(value, small_state())


def test_parameters_without_names_are_numbered() -> None:
    state = state_of(np.zeros(3), np.zeros(2))
    del state["state"][1]["step"]
    with pytest.raises(ValueError, match=r"the state of parameter 1 is missing \['step'\]"):
        _state_check.check(state, state_of(np.zeros(3), np.zeros(2)))


def test_the_error_explains_that_only_one_side_has_parameter_names(tmp_path: Path) -> None:
    w = np.zeros(2, np.float32)
    named, bare = onepass.Adam({"w": w}), onepass.Adam(w)
    for saved, other, message in (
        (bare, named, "parameters without names, but this optimizer's have names: make the optimizer with an array"),
        (
            named,
            bare,
            "parameters with names, ['w'], but this optimizer's have none: make the optimizer with a mapping",
        ),
    ):
        saved.save(tmp_path / "adam.npz")
        with pytest.raises(ValueError, match=re.escape(f"checkpoint is for {message}")):
            other.load(tmp_path / "adam.npz")
        with pytest.raises(ValueError, match=re.escape(f"checkpoint is for {message}")):
            other.load_state_dict(saved.state_dict())


def test_loading_a_sharded_checkpoint_folder_as_a_file_is_refused(tmp_path: Path) -> None:
    optimizer = onepass.Adam(np.zeros(2, np.float32))
    with pytest.raises(OSError, match=re.escape(repr(str(tmp_path))[1:-1])) as caught:
        optimizer.load(tmp_path)
    assert "ShardedOptimizer" not in str(caught.value)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(
        IsADirectoryError,
        match="got a folder of ShardedOptimizer \\(load the folder with a ShardedOptimizer, or save with gathered=True",
    ):
        optimizer.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        optimizer.load(tmp_path / "none")
