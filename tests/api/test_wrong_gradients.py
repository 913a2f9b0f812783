"""Wrong gradients and schedules: the error names the problem, and nothing has changed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onepass
from support import ones, refused

F = np.float32


NAN, INF = float("nan"), float("inf")


GRADIENTS: dict[str, tuple[Any, type[Exception], str]] = {
    "too few": ([ones(2, 3)], ValueError, "expected 2 gradients, got 1"),
    "too many": ([ones(2, 3), ones(3), ones(3)], ValueError, "expected 2 gradients, got 3"),
    "an empty list": ([], ValueError, "expected 2 gradients, got 0"),
    "a bare array": (ones(2, 3), TypeError, "the gradients: expected a sequence like the parameters, got ndarray"),
    "a mapping": ({0: ones(2, 3), 1: ones(3)}, TypeError, "the gradients: expected a sequence"),
    "a number": (3.0, TypeError, "the gradients: expected a sequence"),
    "None": (None, TypeError, "the gradients: expected a sequence"),
    "a string": ("ab", TypeError, "the gradients: expected a sequence"),
    "another shape": ([ones(2, 3), ones(4)], ValueError, "gradient 1: expected shape (3,), got (4,)"),
    "transposed": ([ones(3, 2), ones(3)], ValueError, "gradient 0: expected shape (2, 3), got (3, 2)"),
    "to be broadcast": ([ones(2, 3), ones(1)], ValueError, "gradient 1: expected shape (3,), got (1,)"),
    "a scalar to be broadcast": ([ones(2, 3), F(1)], ValueError, "gradient 1: expected shape (3,), got ()"),
    "with a dimension more": ([ones(1, 2, 3), ones(3)], ValueError, "gradient 0: expected shape (2, 3), got (1, 2, 3)"),
    "a list": ([ones(2, 3), [1.0, 1.0, 1.0]], TypeError, "gradient 1: expected a NumPy array of real floating"),
    "a Python number": ([ones(2, 3), 1.0], TypeError, "gradient 1: expected a NumPy array"),
    "integers": ([ones(2, 3), ones(3, dtype=int)], TypeError, "gradient 1: expected a real floating-point dtype"),
    "bools": ([ones(2, 3), ones(3, dtype=bool)], TypeError, "gradient 1: expected a real floating-point dtype"),
    "complex": ([ones(2, 3), ones(3, dtype=complex)], TypeError, "gradient 1: expected a real floating-point dtype"),
    "objects": ([ones(2, 3), ones(3, dtype=object)], TypeError, "gradient 1: expected a real floating-point dtype"),
    "masked": ([ones(2, 3), np.ma.masked_array(ones(3), [0, 1, 0])], TypeError, "gradient 1 is a masked array"),
}


def two(**options: Any) -> onepass.Adam:
    """Return an optimizer of two parameters that has taken a step."""
    optimizer = onepass.Adam([ones(2, 3), ones(3)], **options)
    optimizer.step([ones(2, 3), ones(3)])
    return optimizer


@pytest.mark.parametrize("case", GRADIENTS)
def test_wrong_gradients_are_refused_and_change_nothing(case: str) -> None:
    grads, error, message = GRADIENTS[case]
    optimizer = two()
    with refused(error, message, optimizer):
        optimizer.step(grads)
    optimizer.step([ones(2, 3), ones(3)])
    assert optimizer.step_count == 2


def test_gradients_in_one_container_too_many_are_refused() -> None:
    g = ones(3)
    alone = onepass.Adam(ones(3))
    for grads in ([g], (g,), {"w": g}, [None]):
        with refused(TypeError, "pass the array itself, without a list or mapping around it", alone):
            alone.step(grads)  # type: ignore[arg-type]
    named = onepass.Adam([{"params": {"w": ones(3)}}, {"params": {"b": ones(3)}}])
    with refused(TypeError, "gradient 'w': expected a NumPy array, got list (pass the array itself", named):
        named.step({"w": [g], "b": g})  # type: ignore[dict-item]
    pair = onepass.Adam([ones(3), ones(3)])
    with refused(ValueError, "expected 2 gradients, got 1 (gradients come as one flat sequence)", pair):
        pair.step([[g, g]])  # type: ignore[list-item]
    flat = "gradients come as one flat sequence, in the order of the groups"
    groups = onepass.Adam([{"params": [ones(3)]}, {"params": [ones(3)]}])
    with refused(TypeError, f"gradient 0: expected a NumPy array, got list ({flat})", groups):
        groups.step([[g], [g]])  # type: ignore[list-item]
    groups = onepass.Adam([{"params": [ones(3), ones(3)]}, {"params": [ones(3)]}])
    with refused(ValueError, f"expected 3 gradients, got 2 ({flat})", groups):
        groups.step([[g, g], [g]])  # type: ignore[list-item]
    one = onepass.Adam([ones(3)])
    with refused(TypeError, "gradient 0: expected a NumPy array, got list (gradients come as one flat sequence", one):
        one.step([[g]])  # type: ignore[list-item]
    with refused(ValueError, "expected 1 gradient, got 2", one):
        one.step([g, g])
    assert repr(one).startswith("Adam(1 parameter, 3 elements, ")


def test_adding_a_group_as_a_dictionary_like_pytorch_is_refused() -> None:
    for optimizer in (onepass.Adam([ones(3)]), onepass.Adam({"w": ones(3)})):
        with refused(TypeError, "their options as arguments: add_group(params, lr=...)", optimizer):
            optimizer.add_group({"params": ones(3), "lr": 0.1})


def test_gradients_with_wrong_names_are_refused() -> None:
    optimizer = onepass.Adam({"w": ones(2), "b": ones(1)})
    good = {"w": ones(2), "b": ones(1)}
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({"w": ones(2)}, ValueError, "missing ['b']"),
        ({**good, "c": ones(1)}, ValueError, "unexpected ['c']"),
        ({"w": ones(2), "c": ones(1)}, ValueError, "missing ['b'], unexpected ['c']"),
        (
            [ones(2), ones(1)],
            TypeError,
            "the gradients: expected a mapping of names to arrays like the parameters, got list",
        ),
        ({**good, "b": ones(2)}, ValueError, "gradient 'b': expected shape (1,), got (2,)"),
        ({**good, "b": [1.0]}, TypeError, "gradient 'b': expected a NumPy array"),
    ]
    for grads, error, message in wrong:
        with refused(error, message, optimizer):
            optimizer.step(grads)


@pytest.mark.parametrize(
    ("scale", "error"), [(NAN, ValueError), (INF, ValueError), ("2", TypeError), (None, TypeError), (1j, TypeError)]
)
def test_a_wrong_grad_scale_is_refused(scale: Any, error: type[Exception]) -> None:
    optimizer = two()
    with refused(error, "grad_scale: expected", optimizer):
        optimizer.step([ones(2, 3), ones(3)], grad_scale=scale)


def fails(t: int) -> float:
    raise KeyError("no such step")


@pytest.mark.parametrize(
    ("schedule", "cause", "message"),
    [
        (fails, KeyError, "the schedule of group 0 failed at step 2: KeyError('no such step')"),
        (lambda t: -INF, ValueError, "the schedule of group 0 returned -inf at step 2"),
        (lambda t: NAN, ValueError, "the schedule of group 0 returned nan at step 2"),
        (lambda t: None, TypeError, "the schedule of group 0 returned None at step 2"),
        (lambda t: "0.1", TypeError, "the schedule of group 0 returned '0.1' at step 2"),
        (lambda: 0.1, TypeError, "the schedule of group 0 failed at step 2"),
    ],
)
def test_a_schedule_that_returns_an_invalid_number_is_refused(
    schedule: Callable[..., Any], cause: type[Exception], message: str
) -> None:
    optimizer = two()
    optimizer.lr = schedule
    with refused(ValueError, message, optimizer) as caught:
        optimizer.step([ones(2, 3), ones(3)])
    assert isinstance(caught.value.__cause__, cause)


def test_a_keyboard_interrupt_in_a_schedule_is_not_hidden() -> None:
    def interrupted(t: int) -> float:
        raise KeyboardInterrupt

    optimizer = two()
    optimizer.lr = interrupted
    with pytest.raises(KeyboardInterrupt):
        optimizer.step([ones(2, 3), ones(3)])
    assert optimizer.step_count == 1


def test_a_step_inside_a_schedule_is_refused() -> None:
    optimizer = two()

    def again(t: int) -> float:
        optimizer.step([ones(2, 3), ones(3)])
        return 0.1

    optimizer.lr = again
    with refused(ValueError, "this optimizer is in use by this thread", optimizer):
        optimizer.step([ones(2, 3), ones(3)])
    optimizer.lr = 0.1
    optimizer.step([ones(2, 3), ones(3)])


@pytest.mark.parametrize(
    "options", [{"lr": 1e39}, {"eps": 1e39}, {"weight_decay": 1e39}, {"lr": 3e37, "betas": (0.99, 0.999)}]
)
def test_options_whose_coefficients_overflow_are_refused_at_the_step(options: dict[str, Any]) -> None:
    optimizer = onepass.Adam([ones(2, dtype=np.float64), ones(2)], **options)
    with refused(ValueError, "overflows float32 at step 1 of parameter 1: use smaller numbers", optimizer):
        optimizer.step([ones(2, dtype=np.float64), ones(2)])
    optimizer.step([ones(2, dtype=np.float64), None])
    assert optimizer.step_count == 1


def test_a_grad_scale_that_overflows_is_refused() -> None:
    optimizer = two()
    with refused(ValueError, "grad_scale=1e+39", optimizer):
        optimizer.step([ones(2, 3), ones(3)], 1e39)


def test_a_parameter_made_read_only_later_is_refused() -> None:
    w = ones(3)
    optimizer = onepass.Adam([ones(2), w])
    w.flags.writeable = False
    with refused(ValueError, "parameter 1 was made read-only", optimizer):
        optimizer.step([ones(2), ones(3)])
    optimizer.step([ones(2), None])


def test_a_parameter_that_was_reallocated_is_refused() -> None:
    w = ones(3)
    optimizer = onepass.Adam([w])
    w.__setstate__((1, (300,), np.dtype(F), False, b"\0" * 1200))
    with refused(ValueError, "parameter 0 was reallocated", optimizer):
        optimizer.step([ones(3)])


def test_a_parameter_made_read_only_by_a_schedule_is_refused() -> None:
    w = ones(3)

    def schedule(t: int) -> float:
        w.flags.writeable = False
        return 0.1

    optimizer = onepass.Adam([w], lr=schedule)
    with refused(ValueError, "parameter 0 was made read-only", optimizer):
        optimizer.step([ones(3)])


@pytest.mark.parametrize("form", [list, dict])
def test_gradients_cleared_while_they_are_read_are_refused(form: Any) -> None:
    grads: Any = form()
    cleared: list[int] = []

    class Meddler(np.ndarray):  # type: ignore[type-arg]
        @property
        def dtype(self) -> Any:  # the optimizer reads the dtype of foreign arrays
            cleared.append(len(grads))
            grads.clear()
            gc.collect()
            return np.dtype(F)

    params = {0: ones(2, 3), 1: ones(30_000)}
    optimizer = onepass.SGD(params if form is dict else list(params.values()), lr=0.5)
    meddler, other = ones(2, 3).view(Meddler), ones(30_000)
    grads.update({0: meddler, 1: other}) if form is dict else grads.extend([meddler, other])
    del other
    optimizer.step(grads)
    assert cleared[0] == 2 and len(grads) == 0
    assert optimizer.step_count == 1
    assert all((param == 0.5).all() for param in params.values())


def test_a_subclass_that_does_not_call_init_is_refused() -> None:
    class Broken(onepass.Adam):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="__init__"):
        Broken()


def test_a_shallow_copy_is_refused() -> None:
    with pytest.raises(TypeError, match="must not share parameters and state"):
        copy.copy(two())
