"""Gradients: the slow path, which converts gradients to arrays that the core can read, and the errors of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ._allocate import all_zeros
from ._checks import finite, plural, real_floating, refuse_array, shown, unit_interval_open
from ._core import sum_rows
from ._params import ParameterRecord
from ._storage import is_bfloat16, value_dtype
from ._types import Array
from .sparse import SparseRows

Fits = Callable[[int, Any], bool]  # signature of _core.Optimizer._fits

_IN_ONE_ARGUMENT = {
    "array": "pass the gradient of the only parameter: step(dW)",
    "sequence": "pass the gradients as one list: step([dW, db])",
    "mapping": "pass the gradients as one mapping: step({'W': dW, 'b': db})",
}


def prepare(record: ParameterRecord, grads: Any, scratch: dict[int, Array], fits: Fits) -> list[Any]:
    """Return one gradient per parameter that the core can read: an array, None, or a pair of arrays for sparse rows."""
    return [
        grad if grad is None or fits(index, grad) else convert(record, index, grad, scratch, fits)
        for index, grad in enumerate(arrange(record, grads))
    ]


def arrange(record: ParameterRecord, grads: Any) -> list[Any]:
    """Return the gradients as one list, in the order of the parameters."""
    keys = record.keys
    if record.form == "array":
        if grads is None:
            hint = "does the function that computes it return it?"
            raise TypeError(f"the gradient: expected an array of shape {record.shapes[0]}, got None ({hint})")
        return [grads]
    if record.form == "mapping":
        if not isinstance(grads, Mapping):
            kind = type(grads).__name__
            raise TypeError(f"the gradients: expected a mapping of names to arrays like the parameters, got {kind}")
        missing = [key for key in keys if key not in grads]
        unexpected = [key for key in grads if key not in record.index]
        if missing or unexpected:
            wrong = [f"missing {missing}"] * bool(missing) + [f"unexpected {unexpected}"] * bool(unexpected)
            raise ValueError(f"gradient names do not match the parameters: {', '.join(wrong)}")
        return [grads[key] for key in keys]
    if isinstance(grads, (np.ndarray, SparseRows, Mapping, str, bytes)) or not isinstance(grads, Iterable):
        hint = " (pass [gradient])" if isinstance(grads, (np.ndarray, SparseRows)) and len(keys) == 1 else ""
        raise TypeError(f"the gradients: expected a sequence like the parameters, got {type(grads).__name__}{hint}")
    arranged = list(grads)
    if len(arranged) != len(keys):
        hint = _flat_hint(record, *arranged) or "pass None to skip a parameter"
        raise ValueError(f"expected {plural(len(keys), 'gradient')}, got {len(arranged)} ({hint})")
    return arranged


def checked_scale(record: ParameterRecord, grad_scale: Any) -> float:
    """Return ``grad_scale`` as a number, or raise."""
    refuse_array("grad_scale", grad_scale, hint=_IN_ONE_ARGUMENT[record.form])
    return finite("grad_scale", grad_scale)


def _flat_hint(record: ParameterRecord, *grads: Any) -> str:
    """Return a hint if the gradients of a sequence are nested, such as in one list per group."""
    if record.form != "sequence" or not any(isinstance(grad, (list, tuple)) for grad in grads):
        return ""
    return "gradients come as one flat sequence" + ", in the order of the groups" * (len(record.groups) > 1)


def convert(
    record: ParameterRecord, index: int, grad: Any, scratch: dict[int, Array], fits: Fits
) -> Array | tuple[Array, Array]:
    """Return a gradient that the core can read: itself, a copy in scratch memory, or two arrays for sparse rows."""
    label = record.gradient_label(index)
    if isinstance(grad, SparseRows):
        group = next(group for group, indices in record.ranges() if index in indices)
        if is_bfloat16(record.params[index]):
            raise ValueError(f"{label}: expected a dense gradient for a bfloat16 parameter, got SparseRows")
        if group.state_dtype is not None:
            raise ValueError(
                f"{label}: expected a dense gradient with state_dtype={group.state_dtype!r}, got SparseRows (put this "
                "parameter into a group with state_dtype=None)"
            )
        return coalesced(label, grad, record.params[index])
    if isinstance(grad, (list, tuple, Mapping)) and not hasattr(grad, "tocsr"):
        numbers = (float, int, list, tuple, np.number)
        if isinstance(grad, Mapping) or not all(isinstance(x, numbers) for x in grad):
            hint = _flat_hint(record, grad) or "pass the array itself, without a list or mapping around it"
            raise TypeError(f"{label}: expected a NumPy array, got {type(grad).__name__} ({hint})")
    array = checked_gradient(label, grad, record.shapes[index])
    if array is not grad and fits(index, array):
        return array
    if index not in scratch:
        scratch[index] = all_zeros([(record.params[index], value_dtype(record.params[index]))])[0]
    return cast_into(scratch[index], array)


def coalesced(label: str, sparse: SparseRows, param: Array) -> tuple[Array, Array]:
    """Return copies of the rows in ascending order, each once, and of their values in the parameter's dtype."""
    param = np.asarray(param)
    if param.ndim == 0 or not param.flags.c_contiguous:
        raise ValueError(
            f"{label}: expected a parameter in C order for SparseRows (create it with order='C', or store it "
            "transposed)"
        )
    real_floating(label, sparse.values)
    if len(sparse.values) != len(sparse.indices):
        raise ValueError(f"{label} has {len(sparse.indices)} indices but {len(sparse.values)} rows of values")
    if sparse.values.shape[1:] != param.shape[1:]:
        row = sparse.values.shape[1:]
        hint = ""
        if param.ndim == 1 and row == (1,):
            hint = f" (use weights of shape ({len(param)}, 1), or SparseRows(rows.indices, rows.values[:, 0]))"
        raise ValueError(f"{label}: expected rows of shape {param.shape[1:]}, got {row}{hint}")
    if sparse.indices.size and int(sparse.indices.max()) >= param.shape[0]:
        raise IndexError(f"{label} names row {int(sparse.indices.max())}, but its parameter has {param.shape[0]} rows")
    with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
        values = np.asarray(sparse.values).astype(param.dtype, order="C")
    return sum_rows(sparse.indices.copy(), values)


def checked_gradient(label: str, grad: Any, shape: tuple[int, ...]) -> Array:
    """Return the gradient as a plain array, or raise."""
    if isinstance(grad, np.floating):
        grad = np.asarray(grad)
    grad = array_of(label, grad)
    real_floating(label, grad)
    plain: Array = np.asarray(grad)  # subclasses may override these attributes
    if plain.shape != shape:
        raise ValueError(f"{label}: expected shape {shape}, got {plain.shape}{_shape_hint(plain.shape, shape)}")
    return plain


def _shape_hint(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Return a hint for a shape mismatch if the remedy is certain, else an empty string."""
    if len(found) == 2 and found[::-1] == expected and 1 not in found:
        return ": use .T"
    if len(found) < 3 and [n for n in found if n != 1] == [n for n in expected if n != 1]:
        return f": use .reshape{expected}"
    return ""


def array_of(label: str, grad: Any) -> Any:
    """Return an array of another library (PyTorch, JAX) as a NumPy array, without a copy if it is in CPU memory."""
    if isinstance(grad, np.ndarray):
        return grad
    if hasattr(grad, "tocsr") or all(hasattr(grad, name) for name in ("indptr", "indices", "data")):
        csr = "gradient" if getattr(grad, "format", "csr") == "csr" else "gradient.tocsr()"
        raise TypeError(f"{label} is a sparse matrix, {type(grad).__name__}: use SparseRows.from_csr({csr})")
    try:
        if hasattr(grad, "__array__"):
            return np.asarray(grad)
        return np.from_dlpack(grad) if hasattr(grad, "__dlpack__") else grad
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"{label}, of type {type(grad).__name__}, cannot be read as a NumPy array: {error}") from error


def cast_into(scratch: Array, grad: Array) -> Array:
    """Copy the gradient into the scratch array, in the array's dtype and order, and return the array."""
    with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
        np.copyto(scratch, grad, casting="unsafe" if grad.dtype.kind == "V" else "same_kind")
    return scratch


# ---- Errors of a step that the core detects: see Optimizer._explain ----


def surplus_arguments(record: ParameterRecord, number: int) -> TypeError:
    """Return the error for a call of `step` with more arguments than it has."""
    hint = _IN_ONE_ARGUMENT[record.form]
    return TypeError(f"step() takes 2 arguments, grads and grad_scale, but {number} were given ({hint})")


def overflow(record: ParameterRecord, index: int, t: int, grad_scale: float) -> ValueError:
    """Return the error for coefficients that overflow a parameter's dtype."""
    array = record.params[index]
    group = next(group for group in record.groups if any(param is array for param in group.params))
    return ValueError(
        f"a coefficient made from the options overflows {array.dtype} at step {t} of {record.label(index)}: use "
        f"smaller numbers, or float64 parameters (grad_scale={grad_scale!r}, {group!r})"
    )


def nonfinite_gradient(record: ParameterRecord, index: int) -> FloatingPointError:
    """Return the error for a gradient that is not finite."""
    label = record.gradient_label(index)
    return FloatingPointError(f"{label} is not finite, or its squares are not; nothing has changed")


def evaluation_mode(record: ParameterRecord) -> RuntimeError:
    """Return the error for a step in evaluation mode."""
    return RuntimeError("step: expected training mode, got evaluation mode (call train() first)")


def read_only_parameter(record: ParameterRecord, index: int) -> ValueError:
    """Return the error for a parameter that was made read-only."""
    return _changed(record, index, "made read-only")


def reallocated_parameter(record: ParameterRecord, index: int) -> ValueError:
    """Return the error for a parameter whose memory, shape or dtype has changed."""
    return _changed(record, index, "reallocated")


def _changed(record: ParameterRecord, index: int, change: str) -> ValueError:
    label = record.label(index)
    return ValueError(f"{label} was {change} after the optimizer was created: create a new optimizer")


def failed_schedule(record: ParameterRecord, group: int, name: str, t: int, error: Exception) -> ValueError:
    """Return the error of a schedule that has raised an error."""
    failed = ValueError(f"{_schedule_label(group, name)} failed at step {t}: {error!r}")
    failed.__cause__ = error
    return failed


def wrong_rate(record: ParameterRecord, group: int, name: str, t: int, result: Any) -> Exception:
    """Return the error of a schedule that has returned no usable number."""
    check = finite if name == "lr" else unit_interval_open
    try:
        check(name, result)
    except MemoryError as error:  # which is not the schedule's fault
        return error
    except Exception as error:
        wrong = ValueError(f"{_schedule_label(group, name)} returned {shown(result)} at step {t}: {error}")
        wrong.__cause__ = error
        return wrong
    return ValueError(f"{_schedule_label(group, name)} returned {shown(result)} at step {t}, which is no usable number")


def _schedule_label(group: int, name: str) -> str:
    return f"the {'schedule' if name == 'lr' else name} of group {group}"
