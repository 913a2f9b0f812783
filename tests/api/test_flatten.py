"""`flatten`: parameters in one array for each dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onepass
from onepass._flatten import one_array


def test_flat_parameters_are_copies_in_one_array_of_each_dtype() -> None:
    given = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.array(7, np.float32),
        "d": np.zeros((0, 2), np.float32),
    }
    flat = onepass.flatten(given)
    assert list(flat) == ["a", "b", "c", "d"]
    assert flat["a"].base.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert flat["b"].base.tolist() == [0, 3, 1, 4, 2, 5]
    assert all((flat[key] == given[key]).all() and flat[key].shape == given[key].shape for key in given)
    assert flat["b"].flags.f_contiguous and flat["c"].base is flat["a"].base
    flat["c"][...] = 8
    assert given["c"] == 7 and flat["a"].base[-1] == 8


def test_flat_parameters_have_the_form_of_the_given_parameters() -> None:
    w, b = np.ones((2, 2), np.float32), np.zeros(2, np.float32)
    assert onepass.flatten(w).shape == (2, 2)
    for kind in (list, tuple):
        flat = onepass.flatten(kind([w, b]))
        assert type(flat) is kind and [x.shape for x in flat] == [(2, 2), (2,)]
    assert [x.shape for x in onepass.flatten(x for x in (w, b))] == [(2, 2), (2,)]
    groups = onepass.flatten([{"params": w, "lr": 0.5}, {"params": [b]}])
    assert groups[0]["lr"] == 0.5 and groups[0]["params"].base is groups[1]["params"][0].base
    opt = onepass.SGD(groups, lr=1.0)
    opt.step([np.ones((2, 2), np.float32), np.ones(2, np.float32)])
    assert groups[0]["params"].base.tolist() == [0.5] * 4 + [-1] * 2


def test_flat_groups_have_the_form_of_the_given_groups() -> None:
    def form(params: Any) -> Any:
        if isinstance(params, dict):
            return {name: form(value) for name, value in params.items()}
        return type(params)(map(form, params)) if isinstance(params, (list, tuple)) else np.shape(params)

    w, b, c = np.ones((2, 2), np.float32), np.zeros(2, np.float32), np.zeros(3, np.float32)
    unnamed = [{"params": w, "lr": 0.5}, {"lr": 0.25, "params": (b,)}, {"params": [c]}]
    named = [{"params": {"w": w}, "lr": 0.5}, {"params": {"b": b, "c": c}}]
    for groups in (unnamed, named):
        for given in (groups, tuple(groups)):
            flat = onepass.flatten(given)
            assert form(flat) == form(given) and [list(group) for group in flat] == [list(group) for group in given]
    [group] = onepass.flatten([{"params": (x for x in (w, b))}])
    assert form(group) == {"params": [(2, 2), (2,)]}


def test_flatten_refuses_wrong_parameters() -> None:
    w = np.ones(4, np.float32)
    for wrong, error, message in [
        ([1], TypeError, "parameter 0: expected a NumPy array"),
        ([w.astype(int)], TypeError, "parameter 0: expected dtype float32, float64 or bfloat16"),
        ({"w": w[::2]}, ValueError, "parameter 'w': expected a contiguous array"),
        ([w, w], ValueError, "parameter 1 is the same memory as parameter 0"),
        ([w, w[1:]], ValueError, "parameter 1 overlaps parameter 0"),
        ([], ValueError, "params: expected at least one array, got none"),
        (3, TypeError, "params: expected an array"),
    ]:
        with pytest.raises(error, match=message):
            onepass.flatten(wrong)


def test_only_adjacent_arrays_are_joined_to_one_array() -> None:
    base = np.arange(24, dtype=np.float32)
    a, b, c = base[2:8].reshape(2, 3), base[8:8], base[8:20].reshape(3, 4, order="F")
    one = one_array([a, b, c], np.float32)
    assert one is not None and one.tolist() == list(range(2, 20)) and np.shares_memory(one, base)
    other = np.zeros(3)
    assert one_array([a, other, c], np.float32) is not None  # an array of another dtype is ignored
    assert one_array([other], np.float32).tolist() == []  # type: ignore[union-attr]
    for apart in ([c, a], [a, base[9:12]], [a, base[7:12]], [a, np.zeros(3, np.float32)], [a, a]):
        assert one_array(apart, np.float32) is None
    table = np.zeros((4, 6), np.float32)
    assert one_array([table[0], table[1]], np.float32) is None  # the rows of a table with gaps are not contiguous
    writeable = [base[:3], base[3:6]]
    base.flags.writeable = False
    assert one_array(writeable, np.float32) is None  # MPI would write to a read-only array
