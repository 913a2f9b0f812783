"""Typical mistakes: each message names the subject, the given value and a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import Adam, SparseRows, schedules

F = np.float32


def w(*shape: int) -> Any:
    return np.zeros(shape or 3, F)


def object_of(library: str, **attributes: Any) -> Any:
    """Return an object whose class comes from this library."""
    return type("Thing", (), {"__module__": f"{library}.sub", **attributes})()


def raising(error: Exception) -> Callable[..., Any]:
    def function(*args: Any, **keywords: Any) -> Any:
        raise error

    return function


CSR = SimpleNamespace(indptr=np.array([0, 0, 2]), indices=np.array([2, 0]), data=np.array([1.0, 3.0]), shape=(2, 3))
TWO_GROUPS: Any = [{"params": [np.zeros(3)]}, {"params": [np.zeros(3)]}]
UNREADABLE = object_of(
    "torch", __dlpack__=raising(BufferError("use tensor.detach()")), __dlpack_device__=lambda self: (1, 0)
)

# For each mistake: an action, the type of its error, and words of the message.
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    # Parameters
    "tensors of PyTorch": (
        lambda: Adam([object_of("torch")]),
        TypeError,
        ["parameter 0", "onepass.integrations.torch"],
    ),
    "arrays of JAX": (
        lambda: Adam([object_of("jaxlib")]),
        TypeError,
        ["parameter 0", "numpy.array(parameter)", "only the copy is updated"],
    ),
    "a sparse matrix": (
        lambda: Adam([object_of("scipy")]),
        TypeError,
        ["parameter 0", ".toarray()", "only the copy is updated"],
    ),
    "pairs": (lambda: Adam([(w(), w())]), TypeError, ["parameter 0", "tuple", "flatten"]),  # type: ignore[list-item]
    "nested lists": (lambda: Adam([[w()], [w()]]), TypeError, ["parameter 0", "list", "flatten"]),  # type: ignore[list-item]
    "nested mappings": (lambda: Adam({"a": {"w": w()}}), TypeError, ["parameter 'a'", "dict", "flatten"]),
    "items of a mapping": (lambda: Adam({"w": w()}.items()), TypeError, ["parameter 0", "mapping itself"]),  # type: ignore[arg-type]
    "numbers": (lambda: Adam([1.0]), TypeError, ["parameter 0", "float", "numpy.array"]),  # type: ignore[list-item]
    "a number": (lambda: Adam(1.0), TypeError, ["params", "float"]),  # type: ignore[arg-type]
    "nothing": (lambda: Adam(None), TypeError, ["params", "NoneType"]),  # type: ignore[arg-type]
    "no parameters": (lambda: Adam([]), ValueError, ["params", "at least one array", "used up"]),
    "integers": (
        lambda: Adam(np.arange(3)),
        TypeError,
        ["the parameter", "int64", ".astype(numpy.float32)", "keep it"],
    ),
    "float16": (lambda: Adam(np.zeros(3, np.float16)), TypeError, ["float16", ".astype(numpy.float32)"]),
    "float128": (lambda: Adam(np.zeros(3, np.longdouble)), TypeError, ["float32, float64", "only the copy is updated"]),
    "complex numbers": (lambda: Adam(np.zeros(3, complex)), TypeError, ["complex128", "real and imaginary"]),
    "a read-only array": (
        lambda: Adam(np.broadcast_to(np.zeros(1), (3,))),
        ValueError,
        ["read-only", "w.copy()", "only the copy is updated"],
    ),
    "every other column": (
        lambda: Adam(w(4, 4)[:, ::2]),
        ValueError,
        ["contiguous", "(16, 8)", "numpy.ascontiguousarray(w)", "only the copy is updated"],
    ),
    "one array twice": (lambda: Adam([CSR.data, CSR.data]), ValueError, ["parameter 1", "parameter 0", "once"]),
    "one group without its list": (lambda: Adam({"params": [w()], "lr": 0.1}), TypeError, ["in a list", "[{'params'"]),
    "a group without params": (lambda: Adam([{"param": [w()]}]), ValueError, ["group 0", "'params'", "'param'"]),
    "groups and arrays": (
        lambda: Adam([w(), {"params": [w()]}]),
        TypeError,
        ["params[0]", "ndarray", "{'params': [...]}"],
    ),
    # Options
    "T_max": (lambda: schedules.cosine(0.1, T_max=10), TypeError, ["'T_max'", "Did you mean 'steps'?"]),  # type: ignore[call-arg]
    "learning_rate": (lambda: Adam(w(), learning_rate=0.1), TypeError, ["'learning_rate'", "Did you mean 'lr'?"]),  # type: ignore[call-arg]
    "epsilon": (lambda: Adam(w(), epsilon=0.1), TypeError, ["'epsilon'", "Did you mean 'eps'?"]),  # type: ignore[call-arg]
    "momentum of Adam": (lambda: Adam(w(), momentum=0.9), TypeError, ["'momentum'", "Did you mean 'betas'?"]),  # type: ignore[call-arg]
    "weightdecay": (lambda: Adam(w(), weightdecay=0.1), TypeError, ["Did you mean 'weight_decay'?"]),  # type: ignore[call-arg]
    "ema": (lambda: Adam(w(), ema=0.9), TypeError, ["'ema'", "Did you mean 'ema_decay'?"]),  # type: ignore[call-arg]
    "Keras' decay": (lambda: Adam(w(), decay=0.1), TypeError, ["'decay'", "schedules.inverse_time", "weight_decay"]),  # type: ignore[call-arg]
    "several parameters": (
        lambda: Adam(w(), w(2)),
        TypeError,
        ["lr: expected a number", "shape (2,)", "one list: [W, b]"],
    ),  # type: ignore[arg-type]
    "betas of an array": (
        lambda: Adam(w(), betas=w(3)),
        ValueError,
        ["betas: expected a pair", "an array of shape (3,)"],
    ),  # type: ignore[arg-type]
    "fused": (lambda: Adam(w(), fused=True), TypeError, ["'fused'", "PyTorch's own implementations"]),  # type: ignore[call-arg]
    "minimize": (lambda: Adam(w(), args=()), TypeError, ["'args'", "onepass.integrations.scipy", "method=adam"]),  # type: ignore[call-arg]
    "an option of a group": (lambda: Adam([{"params": [w()], "lrr": 1}]), TypeError, ["'lrr'", "Did you mean 'lr'?"]),
    "a class of schedules": (lambda: Adam(w(), lr=schedules.cosine), TypeError, ["lr", "class cosine", "instance"]),  # type: ignore[arg-type]
    "lr=True": (lambda: Adam(w(), lr=True), TypeError, ["lr: expected a number", "True"]),
    "lr='0.1'": (lambda: Adam(w(), lr="0.1"), TypeError, ["lr: expected a number", "'0.1'"]),  # type: ignore[arg-type]
    "lr=None": (lambda: Adam(w(), lr=None), TypeError, ["lr: expected a number", "None"]),  # type: ignore[arg-type]
    "lr=-1": (lambda: Adam(w(), lr=-1), ValueError, ["lr: expected at least 0", "-1"]),
    "lr=nan": (lambda: Adam(w(), lr=np.nan), ValueError, ["lr: expected a finite number", "nan"]),
    "ema_decay=True": (lambda: Adam(w(), ema_decay=True), TypeError, ["ema_decay: expected a number", "True"]),
    "one beta": (lambda: Adam(w(), betas=0.9), TypeError, ["betas: expected a pair", "0.9"]),  # type: ignore[arg-type]
    "a beta of 1": (lambda: Adam(w(), betas=(0.9, 1)), ValueError, ["betas[1]", "less than 1"]),
    "clip_norm=0": (lambda: Adam(w(), clip_norm=0), ValueError, ["clip_norm: expected more than 0 or None", "0"]),
    "another word": (lambda: Adam(w(), nonfinite="ignore"), ValueError, ["nonfinite", "'skip'", "'ignore'"]),  # type: ignore[arg-type]
    "amsgrad='yes'": (lambda: Adam(w(), amsgrad="yes"), TypeError, ["amsgrad: expected True or False", "'yes'"]),  # type: ignore[arg-type]
    "nesterov alone": (lambda: onepass.SGD(w(), nesterov=True), ValueError, ["nesterov", "momentum"]),
    "lr of two groups": (lambda: setattr(Adam(TWO_GROUPS), "lr", 1), AttributeError, ["2 groups", "opt.groups[i].lr"]),
    "amsgrad afterwards": (lambda: setattr(Adam(w()), "amsgrad", True), AttributeError, ["amsgrad", "construction"]),
    # Gradients
    "a tensor that requires grad": (lambda: Adam(w()).step(UNREADABLE), TypeError, ["the gradient", "tensor.detach()"]),
    "a complex gradient": (lambda: Adam(w()).step(np.ones(3, complex)), TypeError, ["complex128", ".real"]),
    "an integer gradient": (lambda: Adam(w()).step(np.ones(3, int)), TypeError, ["int64", ".astype(numpy.float32)"]),
    "no return": (lambda: Adam(w()).step(None), TypeError, ["the gradient", "shape (3,)", "None", "return"]),
    "two arrays": (lambda: Adam([w()]).step(w(), w(2)), TypeError, ["grad_scale", "shape (2,)", "step([dW, db])"]),  # type: ignore[arg-type]
    "three arrays": (lambda: Adam([w()]).step(w(), w(), w()), TypeError, ["2 arguments", "step([dW, db])"]),  # type: ignore[call-arg]
    "a list of numbers": (lambda: Adam(w()).step([1.0, 2.0, 3.0]), TypeError, ["got list", "numpy.array(..., numpy."]),  # type: ignore[list-item]
    "a list of lists": (lambda: Adam(w(2, 1)).step([[1.0], [2.0]]), TypeError, ["got list", "numpy.array(..., numpy."]),  # type: ignore[list-item]
    "lists in a list": (lambda: Adam([w()]).step([[1.0] * 3]), TypeError, ["gradient 0", "got list", "numpy.array("]),  # type: ignore[list-item]
    "a number in a list": (lambda: Adam([w(1)]).step([1.0]), TypeError, ["gradient 0", "got float", "numpy.array("]),  # type: ignore[list-item]
    "a function": (lambda: Adam(w()).step(w), TypeError, ["the gradient", "got function", "call it", "result"]),  # type: ignore[arg-type]
    "another shape": (lambda: Adam(w(1, 3)).step(w(3)), ValueError, ["(1, 3)", "(3,)", ".reshape(1, 3)"]),
    "no list": (lambda: Adam([w()]).step(w()), TypeError, ["sequence", "ndarray", "[gradient]"]),
    "no mapping": (lambda: Adam({"w": w()}).step([w()]), TypeError, ["mapping of names", "list"]),
    "other names": (lambda: Adam({"w": w()}).step({"v": w()}), ValueError, ["missing ['w']", "unexpected ['v']"]),
    "too many": (lambda: Adam([w()]).step([w(), w()]), ValueError, ["1 gradient", "got 2", "None"]),
    "a sparse gradient": (
        lambda: Adam(w(2, 3)).step(CSR),
        TypeError,
        ["the gradient", "SparseRows.from_csr(gradient)"],
    ),  # type: ignore[arg-type]
    "a gradient by columns": (
        lambda: Adam(w(2, 3)).step(object_of("scipy", format="csc", tocsr=None)),
        TypeError,
        ["the gradient", "SparseRows.from_csr(gradient.tocsr())"],
    ),
    "rows for one dimension": (
        lambda: Adam(w(3)).step(SparseRows([0], w(1, 1))),
        ValueError,
        ["the gradient", "rows of shape ()", "(1,)", "(3, 1)", "rows.values[:, 0]"],
    ),
    "rows in Fortran order": (
        lambda: Adam(np.zeros((2, 3), order="F")).step(SparseRows([0], np.ones((1, 3)))),
        ValueError,
        ["the gradient", "C order", "transposed"],
    ),
    "too many rows": (lambda: SparseRows([1], np.ones((2, 3))), ValueError, ["values", "1 row,", "(2, 3)"]),
    "a negative row": (lambda: SparseRows([-1], np.ones((1, 3))), IndexError, ["indices", "-1"]),
    "columns": (lambda: SparseRows.from_csr(SimpleNamespace(format="csc", tocsr=None)), TypeError, ["CSR", "tocsr()"]),
    # Checkpoints
    "another class": (
        lambda: Adam(w()).load_state_dict(onepass.SGD(w()).state_dict()),
        ValueError,
        ["'SGD'", "'Adam'"],
    ),
    "a state dict of PyTorch": (
        lambda: Adam(w()).load_state_dict({"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}),
        ValueError,
        ["onepass.Adam", "torch.optim", "opt.state_dict()"],
    ),
    "params of load": (lambda: Adam(w()).load("x", param=True), TypeError, ["'param'", "Did you mean 'params'?"]),
    "params of load_state_dict": (
        lambda: Adam(w()).load_state_dict(Adam(w()).state_dict(), param=True),
        TypeError,
        ["'param'", "Did you mean 'params'?"],
    ),
    "saved with amsgrad": (
        lambda: Adam(w()).load_state_dict(Adam(w(), amsgrad=True).state_dict()),
        ValueError,
        ["saved with amsgrad", "create the optimizer with amsgrad"],
    ),
    "saved without an average": (
        lambda: Adam(w(), ema_decay=0.9).load_state_dict(Adam(w()).state_dict()),
        ValueError,
        ["saved without ema_decay", "create the optimizer without ema_decay"],
    ),
    "another dtype": (
        lambda: Adam(w()).load_state_dict(Adam(np.zeros(3)).state_dict()),
        ValueError,
        ["exp_avg of parameter 0", "float32", "float64"],
    ),
    # Names
    "adam": (lambda: onepass.adam, AttributeError, ["'adam'", "did you mean 'Adam'?"]),  # type: ignore[attr-defined]
    "a schedule": (lambda: schedules.cosin, AttributeError, ["'cosin'", "Did you mean 'cosine'?", "warmup"]),  # type: ignore[attr-defined]
    "another name of a parameter": (lambda: Adam({"w": w()}).state["W"], KeyError, ["parameter 'W'", "expected 'w'"]),
    "another index of a parameter": (lambda: Adam([w()]).state[1], KeyError, ["parameter 1", "expected 0"]),
    "a preset": (lambda: onepass.presets["tf"], KeyError, ["'tf'", "tensorflow"]),
    "an integration": (lambda: onepass.integrations.nothing, AttributeError, ["'onepass.integrations'", "'nothing'"]),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_error_names_the_mistake_and_the_remedy(name: str) -> None:
    act, error, words = MISTAKES[name]
    with pytest.raises(error) as caught:
        act()
    message = str(caught.value)
    assert not [word for word in words if word not in message], message


def test_a_gradient_of_another_library_is_read_without_a_copy() -> None:
    class Foreign:
        def __init__(self, array: Any) -> None:
            self.array = array

    class ForeignDLPack(Foreign):
        def __dlpack__(self, **keywords: Any) -> Any:
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    class ForeignArray(Foreign):
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return self.array

    gradient = np.array([1, 2, 3], F)
    for foreign in (ForeignDLPack(gradient), ForeignArray(gradient)):
        p = w()
        optimizer = onepass.SGD(p, lr=1.0)
        optimizer.step(foreign)  # type: ignore[arg-type]
        assert p.tolist() == [-1, -2, -3]
        assert not optimizer._scratch  # type: ignore[attr-defined]
        optimizer.step(type(foreign)(gradient.astype(np.float64)))  # type: ignore[arg-type]
        assert p.tolist() == [-2, -4, -6]


def test_a_csr_matrix_is_converted_to_sparse_rows() -> None:
    rows = SparseRows.from_csr(CSR)
    assert rows.indices.tolist() == [1] and rows.values.tolist() == [[3, 0, 1]]
    twice = SimpleNamespace(indptr=np.array([0, 2]), indices=np.array([1, 1]), data=np.array([1, 2], F), shape=(1, 2))
    assert SparseRows.from_csr(twice).values.tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("parameter", "gradient", "hint"),
    [((3, 4), (4, 3), ": use .T"), ((1, 3), (3,), ": use .reshape(1, 3)"), ((4, 4, 1), (1, 4, 4), ""),
     ((2, 6), (3, 4), "")],
)  # fmt: skip
def test_the_error_about_a_shape_suggests_a_valid_fix(parameter: Any, gradient: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=f"expected shape {re.escape(str(parameter))}.*{re.escape(hint)}$"):
        Adam(w(*parameter)).step(w(*gradient))
