"""Copies and pickles of optimizers: forms of parameters, shared arrays, users' subclasses."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import onepass
from cases import FORMS
from support import assert_same_bits, ones

F = np.float32


def test_parameters_deep_copied_with_their_optimizer_stay_shared() -> None:
    w, b = ones(3), ones(2)
    model, optimizer = copy.deepcopy(({"w": w, "b": b}, onepass.SGD({"w": w, "b": b}, lr=0.5, ema_decay=0.5)))
    assert optimizer.params["w"] is model["w"] and optimizer.params["b"] is model["b"]
    optimizer.step({"w": ones(3), "b": ones(2)})
    assert (model["w"] == 0.5).all() and (w == 1).all()


@pytest.mark.parametrize("again", [lambda optimizer: pickle.loads(pickle.dumps(optimizer)), copy.deepcopy])
@pytest.mark.parametrize("form", FORMS)
def test_a_copy_keeps_the_form_of_the_parameters(form: str, again: Any) -> None:
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
    """Subclass that a user may write."""

    def __init__(self, size: int, note: str) -> None:
        super().__init__(np.ones(size, F), lr=0.5)
        self.note = note
        self.seen: list[int] = []


def test_a_copy_keeps_the_attributes_of_a_users_subclass() -> None:
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
    """Subclass with attributes in slots, one of them never set, and its own load_state_dict."""

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
    """Subclass with only a slot."""

    __slots__ = ("note",)


class Stated(Mine):
    """Subclass with its own __getstate__."""

    def __getstate__(self) -> Any:
        return "said", super().__getstate__(), self.state_dict()["step_count"]

    def __setstate__(self, state: Any) -> None:
        said, added, self.step_before = state
        super().__setstate__(added)
        self.note += said


@pytest.mark.parametrize("again", [lambda optimizer: pickle.loads(pickle.dumps(optimizer)), copy.deepcopy])
def test_a_copy_respects_slots_and_getstate_of_a_users_subclass(again: Any) -> None:
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


def test_parameter_names_may_be_objects_that_compare_by_identity() -> None:
    class Name:
        pass

    optimizer = onepass.SGD({Name(): np.ones(2)}, lr=0.5)
    assert next(iter(copy.deepcopy(optimizer).params.values())).tolist() == [1, 1]


class Busy:
    """Schedule that uses its optimizer while it is copied, also from another thread."""

    optimizer: Any

    def __call__(self, t: int) -> float:
        return 0.5

    def __deepcopy__(self, memo: Any) -> float:
        thread = threading.Thread(target=self.optimizer.step, args=(ones(2),), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        self.optimizer.add_group(ones(3))
        return 0.25


def test_a_schedule_may_use_its_optimizer_while_it_is_deep_copied() -> None:
    schedule = Busy()
    schedule.optimizer = optimizer = onepass.SGD(ones(2), lr=schedule, momentum=0.5)
    copied = copy.deepcopy(optimizer)
    assert (copied.step_count, copied.lr, copied.params.tolist()) == (0, 0.25, [1, 1])
    assert copied.state[0]["momentum_buffer"].tolist() == [0, 0]
    assert optimizer.step_count == 1 and len(optimizer.groups) == 2
    assert_same_bits(optimizer.params, [ones(2) / 2, ones(3)])
