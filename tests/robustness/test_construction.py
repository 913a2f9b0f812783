"""Optimizers that are constructed twice or never, and groups without their optimizer."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import onepass
from support import ones, refused


@pytest.mark.parametrize("kind", [onepass.Adam, onepass.SGD])
def test_calling_init_twice_is_refused(kind: Any) -> None:
    w = ones(2)
    optimizer = kind([w], lr=0.5, ema_decay=0.5)
    optimizer.step([ones(2)])
    with refused(RuntimeError, f"this {kind.__name__} is already initialized", optimizer):
        optimizer.__init__([ones(3)], lr=0.25)
    optimizer.step([ones(2)])
    assert optimizer.params[0] is w and optimizer.step_count == 2


def test_using_an_optimizer_whose_init_was_not_called_is_refused(tmp_path: Path) -> None:
    optimizer = onepass.Adam.__new__(onepass.Adam)
    for name in ("step_count", "skipped", "grad_norm", "clip_norm", "nonfinite"):
        with pytest.raises(TypeError, match="__init__ was not called"):
            getattr(optimizer, name)
    with pytest.raises(TypeError, match="__init__ was not called"):
        optimizer.step(ones(2))
    uses: list[Callable[[], Any]] = [
        partial(pickle.dumps, optimizer),
        partial(copy.deepcopy, optimizer),
        partial(optimizer.save, tmp_path / "state.npz"),
        partial(optimizer.load_state_dict, {}),
        optimizer.state_dict,
        partial(optimizer._add_group, "array", None, [], [], [], [], [], {}),  # type: ignore[arg-type]
        partial(optimizer._restore, [], [], 0.0, "skip", 0, 0, 0, [], [], None, False),
        partial(optimizer._swap_arrays, [], None, False),
        partial(optimizer._parameter_scalars, 0),
        partial(optimizer._prepare_step, [], 1.0),
        partial(optimizer._commit_step, 0.0, None),
    ]
    while uses:
        with pytest.raises(TypeError, match="__init__ was not called"):
            uses.pop()()
    gc.collect()  # which visits it
    del optimizer
    gc.collect()


def test_the_base_class_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match=r"use a subclass such as onepass\.Adam"):
        onepass.Optimizer([ones(2)])


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copying_a_group_without_its_optimizer_is_refused(use: Any) -> None:
    optimizer = onepass.Adam(ones(2))
    with refused(TypeError, "a group is part of its optimizer: copy or pickle the optimizer", optimizer):
        use(optimizer.groups[0])


def test_properties_of_the_class_refuse_other_objects() -> None:
    for name in ("step_count", "grad_norm", "skipped"):
        with pytest.raises(TypeError, match="not an optimizer"):
            getattr(onepass.Adam, name).__get__(object())
