"""Base class of the optimizers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, SupportsFloat

from . import _checks, _copying, _core, _gradients, _state_dict
from ._allocate import state_folder
from ._conversion import warn_of_losses
from ._group import Group
from ._options import OPTIMIZER_CHECKS, Option, Spec, represent, with_defaults
from ._params import (
    GroupParams,
    ParameterRecord,
    added_params,
    normalize_params,
    register_groups,
)
from ._types import Array, Form, Nonfinite, Params


class Optimizer(_core.Optimizer):
    """Shared base class of `Adam`, `SGD` and the other optimizers."""

    __slots__ = ("_flush_denormals", "_scratch", "_state_folder")

    _spec: ClassVar[Spec]  # by the decorator `declare`
    _record: ParameterRecord  # held by the core, which replaces it when it takes a group

    lr = Option(_checks.learning_rate)
    weight_decay = Option(_checks.non_negative)
    maximize = Option(_checks.flag)
    clip_value = Option(_checks.positive_or_none)
    ema_decay = Option(_checks.ema_decay)
    state_dtype = Option(_checks.state_dtype)
    master_bits = Option(_checks.master_bits)
    rounding = Option(_checks.rounding)

    def __init__(self, params: Params, **options: Any) -> None:
        if hasattr(self, "_record"):
            raise RuntimeError(
                f"this {type(self).__name__} is already initialized: create another one, or use add_group"
            )
        spec, options = with_defaults(type(self), options)
        _checks.refuse_array("lr", options["lr"], hint="pass the parameters as one list: [W, b]")
        form, groups = normalize_params(params)
        whole = {option: check(option, options[option]) for option, check in OPTIMIZER_CHECKS.items()}
        defaults = {option: options[option] for option in spec.checks}
        self._init(form, isinstance(params, tuple), [(named, defaults | own) for named, own in groups], whole)

    def _init(self, form: Form, as_tuple: bool, groups: list[GroupParams], options: Mapping[str, Any]) -> None:
        self._state_folder = state_folder()
        self._flush_denormals = options["flush_denormals"]
        record = ParameterRecord(form, as_tuple and len(groups) == 1)
        _core.Optimizer.__init__(self, self._flush_denormals, self._state_folder is not None, record)
        self._scratch: dict[int, Array] = {}
        self.clip_norm = options["clip_norm"]
        self.nonfinite = options["nonfinite"]
        self._seed = options["seed"]
        register_groups(self, form, groups)

    def add_group(self, params: Params, **options: Any) -> None:
        """Add a group of parameters with its own options.

        From the next step on, pass the gradients of all groups in one sequence, with the gradients of the new group
        last; if parameters have names, pass one mapping.

        Args:
            params: an array or a sequence; a mapping if the first parameters were passed as a mapping.
            options: the options that differ from the options of the first group.

        Raises:
            TypeError, ValueError: as at construction. Nothing has changed.

        Example:
            >>> import numpy as np, onepass
            >>> w, b = np.ones(2, np.float32), np.ones(2, np.float32)
            >>> opt = onepass.SGD(w, lr=0.5)
            >>> opt.add_group(b, lr=0.25)
            >>> opt.step([np.ones(2, np.float32), np.ones(2, np.float32)])
            >>> b
            array([0.75, 0.75], dtype=float32)
        """
        form, keyed = added_params(self._record, params)

        def add() -> None:
            record = self._record
            if record.is_evaluating:
                raise RuntimeError("add_group: expected training mode, got evaluation mode (call train() first)")
            named = keyed if form == "mapping" else dict(enumerate(keyed.values(), len(record.params)))
            register_groups(self, form, [(named, {**record.groups[0]._values, **options})])

        self._locked(add)

    @property
    def params(self) -> Any:
        """The parameters, in the form in which you passed them; with groups, one list of all parameters."""
        return self._record.like_input(self._record.params)

    @property
    def ema(self) -> Any:
        """Live views of the running averages, in the form of the parameters; None without ``ema_decay``."""
        record = self._record
        if record.groups[0].ema_decay is None:
            return None
        return record.like_input([state["ema"].view() for state in record.states])

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of parameters. Read and set their options here; `add_group` adds a group."""
        return self._record.groups

    param_groups = groups  # PyTorch's name

    @property
    def clip_norm(self) -> float | None:
        """The maximum global norm of the gradients, or None."""
        clip_norm = self._clip_norm  # read once: another thread may set it
        return None if clip_norm == _core.no_clip_norm else clip_norm

    @clip_norm.setter
    def clip_norm(self, value: SupportsFloat | None) -> None:
        self._clip_norm = _state_dict.core_clip_norm(_checks.positive_or_none("clip_norm", value))

    @property
    def nonfinite(self) -> Nonfinite:
        """The treatment of gradients that are not finite: ``"propagate"``, ``"skip"`` or ``"raise"``."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, value: Nonfinite) -> None:
        self._nonfinite = _checks.nonfinite("nonfinite", value)

    @property
    def seed(self) -> int:
        """The seed of stochastic rounding, saved with the state."""
        return self._seed

    def decoded_state(self, key: Any) -> dict[str, Any]:
        """Return the state of one parameter, by name or index, with narrow arrays decoded into float32 copies.

        Example:
            >>> import numpy as np, onepass
            >>> opt = onepass.Adam(np.zeros(4096, np.float32), state_dtype="float8")
            >>> opt.step(np.ones(4096, np.float32))
            >>> opt.state[0]["exp_avg"].dtype.itemsize, opt.decoded_state(0)["exp_avg"][:2]
            (1, array([0.1, 0.1], dtype=float32))
        """
        return self._locked(lambda: _state_dict.decoded(self, key))  # type: ignore[no-any-return]

    @property
    def flush_denormals(self) -> bool:
        """True if subnormal numbers count as zero while stepping."""
        return bool(self._flush_denormals)

    @property
    def state(self) -> Mapping[Any, dict[str, Any]]:
        """The state of each parameter, by name or index: ``"step"`` and live views of the arrays.

        Each entry is a new dict. Writing into its arrays changes the state; replacing its values does not.

        Example:
            >>> import numpy as np, onepass
            >>> opt = onepass.Adam({"w": np.zeros(2, np.float32)})
            >>> opt.step({"w": np.array([1, 2], np.float32)})
            >>> opt.state["w"]["step"], opt.state["w"]["exp_avg"]
            (1, array([0.1, 0.2], dtype=float32))
        """
        return _state_dict.StateView(self)

    def __repr__(self) -> str:
        return represent(self)

    def state_dict(self, *, params: bool = False) -> dict[str, Any]:
        """Return copies of the state, step counts, options and averages, as a dict of arrays, numbers and strings.

        The layout resembles PyTorch's (``"state"`` by index, ``"param_groups"``), but neither library loads the
        other's dict. A schedule of `onepass.schedules` is stored by its name and arguments, any other function only by
        its name.

        Args:
            params: include the parameters, each as ``"param"`` of its state.

        Example:
            >>> import numpy as np, onepass
            >>> opt = onepass.SGD(np.zeros(2, np.float32), lr=0.5, momentum=0.9)
            >>> opt.step(np.ones(2, np.float32))
            >>> opt.state_dict()["state"]
            {0: {'step': 1, 'momentum_buffer': array([1., 1.], dtype=float32)}}
        """
        return self._locked(lambda: _state_dict.copy_arrays(_state_dict.snapshot(self, params)))  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: Mapping[str, Any], *, params: bool = False, **options: Any) -> None:
        """Load a copy of a state dict, to continue from there.

        Args:
            state_dict: a dict from `state_dict`, of an optimizer of the same class whose parameters have the same
                shapes and dtypes in the same order, and the same names if they have any. Its options, including
                ``lr``, replace the options of this optimizer. If ``lr`` or ``ema_decay`` was a function of your own,
                this optimizer keeps its function. It also keeps ``state_dtype``, ``master_bits`` and ``rounding``:
                state in other storage is converted, rounded to nearest, and so are float32 weights to bfloat16 and
                back.
            params: load the parameters too; the state dict must come from ``state_dict(params=True)``.
            options: options that replace the loaded options in every group, for example ``lr=1e-4``.

        Raises:
            TypeError, ValueError: the state dict does not fit: an entry is missing, is unknown or has another shape or
                dtype; an option is out of range; the state dict belongs to another class of optimizer; or a function or
                schedule would be lost. Nothing has changed.

        Warns:
            UserWarning: the conversion loses bits of weights, or lower bits are missing for some parameters.
        """
        _state_dict.load(self, state_dict, params, **options)

    def save(self, path: str | os.PathLike[str], *, params: bool = False) -> None:
        """Save the state dict atomically as an ``.npz`` file at exactly this path.

        Without ``params=True`` the file holds only checksums of the parameters: save the parameters yourself.

        After a crash at any moment, the path holds the complete old or the complete new file: `save` writes a temporary
        file, flushes it to disk and renames it. `numpy.load` can read the file; nothing in it is pickled.

        Raises:
            OSError: the file could not be written, and the old file is still there; or the folder could not be flushed,
                and the new file is in place but may not survive a power failure.

        Example:
            >>> import numpy as np, onepass
            >>> opt = onepass.Adam(np.zeros(2, np.float32))
            >>> opt.save("adam.npz", params=True)
            >>> opt.load("adam.npz", params=True)
        """
        _state_dict.write(self, path, params)

    def load(self, path: str | os.PathLike[str], *, params: bool = False, **options: Any) -> None:
        """Load a file of `save`, to continue from there; the arguments are those of `load_state_dict`.

        The options in the file, including ``lr``, replace the options of this optimizer, unless you pass them again:
        ``load(path, lr=1e-4)``. Warns if the parameters differ from the saved ones, unless ``params=True`` loads them,
        and if a conversion loses bits of weights.

        Raises:
            OSError: the file could not be read; `FileNotFoundError` if it does not exist.
            ValueError: the file is damaged, was not written by onepass, or does not fit. Nothing has changed.
        """
        _state_dict.check_names("load", self, options, "params")
        found, conversion = _state_dict.read(self, path, params)
        if not params:
            _state_dict.warn_of_other_params(self._record, path, found, conversion)
        warn_of_losses([conversion], not params)
        try:
            self.load_state_dict(found, **({"params": True} if params else {}), **options)
        except (TypeError, ValueError) as error:  # such as an option out of its range
            raise ValueError(f"cannot load {os.fspath(path)!r}: {error}") from error

    # ---- Pickles and copies: see _copying.py ----

    def __getstate__(self) -> Any:
        return _copying.added_attributes(self, Optimizer.__slots__)

    def __setstate__(self, added: Any) -> None:
        _copying.set_added_attributes(self, added)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _copying.rebuild, (type(self), *self._locked(lambda: _copying.arguments_of(self))), self.__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _copying.deep_copy(self, memo)

    def __copy__(self) -> Any:
        raise TypeError("two optimizers must not share parameters and state: use copy.deepcopy")

    def _prepare(self, grads: Any, *grad_scale: SupportsFloat) -> tuple[list[Any], float | None]:
        """Return gradients that the core can read, and the scale as a number, or None without a scale."""
        scale = _gradients.checked_scale(self._record, *grad_scale) if grad_scale else None
        return _gradients.prepare(self._record, grads, self._scratch, self._fits), scale

    def _explain(self, kind: str, *details: Any) -> None:
        """Raise the error of a step."""
        raise getattr(_gradients, kind)(self._record, *details)
