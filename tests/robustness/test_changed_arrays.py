"""Arrays that misreport themselves or that change after the optimizer was created."""

from __future__ import annotations

import numpy as np
import pytest

import onepass
from support import ones, refused

F = np.float32


class Key:
    """Name that is not a string; all names have the same repr."""

    def __repr__(self) -> str:
        return "key"


def test_an_array_passed_twice_under_names_that_print_alike_is_refused() -> None:
    w = ones(2)
    with refused(ValueError, "parameter key is the same memory as parameter key", arrays=[w]):
        onepass.Adam({Key(): w, Key(): w})
    optimizer = onepass.Adam({Key(): w})
    with refused(ValueError, "parameter key is the same memory as parameter key", optimizer):
        optimizer.add_group({Key(): w})


class Liar(np.ndarray):  # type: ignore[type-arg]
    """Array that reports a smaller size, a contiguous layout and another address."""

    shape = property(lambda self: (2,))  # type: ignore[assignment]
    size = property(lambda self: 0)  # type: ignore[assignment]
    nbytes = property(lambda self: 0)  # type: ignore[assignment]
    ndim = property(lambda self: 1)  # type: ignore[assignment]
    flags = property(lambda self: np.ones(1).flags)  # type: ignore[assignment]
    __array_interface__ = property(lambda self: np.ones(1).__array_interface__)  # type: ignore[assignment]


def test_a_parameter_with_a_false_size_attribute_is_stepped_completely() -> None:
    w = ones(1000)
    optimizer = onepass.Adam([w.view(Liar)], lr=0.5, ema_decay=0.5)
    optimizer.step([ones(1000)])
    assert (w == 0.5).all() and optimizer.state[0]["exp_avg"].shape == (1000,)
    with refused(ValueError, "gradient 0: expected shape (1000,), got (2,)", optimizer):
        optimizer.step([ones(2)])


def test_parameters_with_false_layout_or_address_attributes_are_refused() -> None:
    w = ones(1000)
    read_only = ones(3)
    read_only.flags.writeable = False
    for lying, message in [
        ([w.view(Liar), w.view(Liar)], "parameter 1 is the same memory as parameter 0"),
        ([w[:600].view(Liar), w[500:]], "overlaps"),
        ([w[::-1].view(Liar)], "parameter 0: expected a contiguous array"),
        ([read_only.view(Liar)], "parameter 0: expected a writeable array"),
    ]:
        with refused(ValueError, message, arrays=[w]):
            onepass.Adam(lying)


def test_adam_step_refuses_arrays_with_false_attributes() -> None:
    p, m = ones(1000), ones(1000)
    for arrays, message in [
        ((p.view(Liar), ones(2), m.view(Liar), ones(2)), "exp_avg_sq: expected the shape of param, (1000,), got (2,)"),
        ((p[::-1].view(Liar), ones(1000), m, ones(1000)), "param: expected a contiguous array"),
        ((p, ones(1000), m.view(Liar), m.view(Liar)), "exp_avg_sq is the same memory as exp_avg"),
    ]:
        with refused(ValueError, message, arrays=[p, m]):
            onepass.adam_step(*arrays, 1)


def test_sparse_rows_of_a_scalar_with_a_false_shape_are_refused() -> None:
    optimizer = onepass.SGD(np.array(1, F).view(Liar))
    with refused(ValueError, "expected a parameter in C order for SparseRows", optimizer):
        optimizer.step(onepass.SparseRows([0], np.array([1], F)))


def test_a_gradient_with_a_false_shape_attribute_is_refused() -> None:
    optimizer = onepass.Adam([ones(2)])
    with refused(ValueError, "gradient 0: expected shape (2,), got (1000,)", optimizer):
        optimizer.step([ones(1000).view(Liar)])
    with refused(ValueError, "got shape (3, 3)", optimizer):
        optimizer.step([onepass.SparseRows([0, 1], ones(3, 3).view(Liar))])
    optimizer.step([ones(4)[::2].view(Liar)])
    assert optimizer.step_count == 1


def test_state_cannot_be_added_as_a_parameter() -> None:
    optimizer = onepass.Adam(np.ones(3))
    with pytest.raises(ValueError, match="state 'exp_avg' is the same memory as parameter 1"):
        optimizer.add_group(optimizer.state[0]["exp_avg"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_parameter_whose_dtype_is_changed_in_place_is_refused() -> None:
    w = np.ones(3)
    optimizer = onepass.Adam(w)
    w.dtype = np.int64
    with pytest.raises(ValueError, match="create a new optimizer"):
        optimizer.step(np.ones(3))


@pytest.mark.parametrize("change", ["strides", "shape"])
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_a_parameter_whose_layout_is_changed_in_place_is_refused(change: str) -> None:
    w = np.zeros((2, 3))
    optimizer = onepass.SGD(w, lr=1.0)
    setattr(w, change, {"strides": (8, 16), "shape": (3, 2)}[change])
    with pytest.raises(ValueError, match="after the optimizer was created"):
        optimizer.step(np.ones((2, 3)))
    assert not w.any()
