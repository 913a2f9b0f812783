"""Arguments of `step`: how they are passed, and `grad_scale`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onepass
from support import ones, refused


class Interrupted:
    def __float__(self) -> float:
        raise KeyboardInterrupt("interrupted")


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (Interrupted(), KeyboardInterrupt, "interrupted"),
        (10**400, ValueError, "grad_scale: expected a finite number"),
        (1 + 0j, TypeError, "grad_scale: expected a number, got (1+0j)"),
        (np.complex64(1), TypeError, "grad_scale: expected a number"),
        (float("nan"), ValueError, "grad_scale: expected a finite number, got nan"),
        (
            ones(2, 3),
            TypeError,
            "grad_scale: expected a number, got an array of shape (2, 3) (pass the gradients as one list: step([dW, db",
        ),
    ],
)
def test_a_grad_scale_that_is_not_a_finite_number_is_refused(
    scale: Any, error: type[BaseException], message: str
) -> None:
    optimizer = onepass.Adam([ones(2)], lr=0.5)
    with refused(error, message, optimizer):
        optimizer.step([ones(2)], grad_scale=scale)
    optimizer.step([ones(2)], np.float64(2))
    optimizer.step([ones(2)], np.int8(2))
    assert optimizer.step_count == 2


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "step() is missing the argument 'grads'"),
        ((), {"grad_scale": 1.0}, "step() is missing the argument 'grads'"),
        (([],), {"scale": 1.0}, "step() got an unexpected keyword argument 'scale'"),
        (([],), {"grads": []}, "step() got multiple values for argument 'grads'"),
        (([], 1.0), {"grad_scale": 1.0}, "step() got multiple values for argument 'grad_scale'"),
        (([], 1.0, 2.0), {}, "but 3 were given (pass the gradients as one list: step([dW, db]))"),
    ],
)
def test_step_refuses_wrong_arguments(arguments: Any, named: Any, message: str) -> None:
    optimizer = onepass.Adam([ones(2)])
    with refused(TypeError, message, optimizer):
        optimizer.step(*arguments, **named)
    optimizer.step(grad_scale=1.0, grads=[ones(2)])


@pytest.mark.parametrize(
    ("params", "grads", "hint"),
    [
        (ones(2), ones(2), "pass the gradient of the only parameter: step(dW)"),
        ([ones(2)], [ones(2)], "pass the gradients as one list: step([dW, db])"),
        ({"w": ones(2)}, {"w": ones(2)}, "pass the gradients as one mapping: step({'W': dW, 'b': db})"),
    ],
)
def test_the_advice_about_too_many_arguments_fits_the_form_of_the_parameters(
    params: Any, grads: Any, hint: str
) -> None:
    optimizer = onepass.Adam(params)
    with refused(TypeError, f"grad_scale: expected a number, got an array of shape (2,) ({hint})", optimizer):
        optimizer.step(ones(2), ones(2))
    with refused(TypeError, f"step() takes 2 arguments, grads and grad_scale, but 3 were given ({hint})", optimizer):
        optimizer.step(ones(2), ones(2), ones(2))  # type: ignore[call-arg]
    optimizer.step(grads)


def test_a_grad_scale_that_overflows_is_not_counted_as_a_skipped_step() -> None:
    optimizer = onepass.Adam(np.ones(3, np.float32), nonfinite="skip")
    with pytest.raises(ValueError, match="overflows float32"):
        optimizer.step(np.ones(3, np.float32), 1e300)
    assert optimizer.skipped == 0
