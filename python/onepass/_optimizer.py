"""What all optimizers share: parameters, state, groups, and the slow path of a step."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping
from copy import deepcopy
from types import MemberDescriptorType
from typing import Any, ClassVar, SupportsFloat

import numpy as np

from . import _checks, _core
from ._allocate import address, all_zeros_like, pin, state_folder, zeros_like
from ._checks import check_disjoint, check_storage, plural
from ._gradients import checked_gradient, copy_into
from ._group import Group, evaluate_schedule
from ._options import COMMON_DEFAULTS, OPTIMIZER_CHECKS, Option, Spec, suggestion
from ._params import group_params, normalize_params
from ._types import Array, Nonfinite, Params
from .sparse import SparseRows, coalesced


class _State(Mapping[Any, "dict[str, Any]"]):
    """Each parameter's state: its step count and live views of its arrays."""

    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __getitem__(self, key: Hashable) -> dict[str, Any]:
        optimizer = self._optimizer
        index = optimizer._index[key]
        state = optimizer._counts(index)
        state |= {name: array.view() for name, array in optimizer._states[index].items() if name != "ema"}
        return state

    def __iter__(self) -> Iterator[Any]:
        return iter(self._optimizer._index)

    def __len__(self) -> int:
        return len(self._optimizer._index)

    def __repr__(self) -> str:
        return repr(dict(self))


class Optimizer(_core.Optimizer):
    """Shared base class of `Adam`, `SGD` and the other optimizers."""

    __slots__ = (
        "_as_tuple",
        "_flush_denormals",
        "_form",
        "_groups",
        "_index",
        "_keys",
        "_params",
        "_pins",
        "_scratch",
        "_shapes",
        "_state_folder",
        "_states",
    )

    _spec: ClassVar[Spec]  # by the decorator `declare`

    lr = Option(_checks.learning_rate)
    weight_decay = Option(_checks.non_negative)
    maximize = Option(_checks.flag)
    clip_value = Option(_checks.positive_or_none)
    ema_decay = Option(_checks.ema_decay)

    _number = staticmethod(_checks.finite)  # for the core, of an odd grad_scale

    def __init__(self, params: Params, **options: Any) -> None:
        name, spec = type(self).__name__, getattr(type(self), "_spec", None)
        if spec is None:
            raise TypeError("Optimizer is abstract: use a subclass such as onepass.Adam")
        if hasattr(self, "_groups"):
            raise RuntimeError(f"this {name} is already initialized: create another one, or use add_group")
        valid = [*spec.checks, *OPTIMIZER_CHECKS]
        if unknown := [option for option in options if option not in valid]:
            hint = suggestion(unknown[0], valid)
            raise TypeError(f"{name}() got an unexpected keyword argument {unknown[0]!r}{hint}")
        options = {**COMMON_DEFAULTS, **options}
        form, groups = normalize_params(params)
        whole = {option: check(option, options[option]) for option, check in OPTIMIZER_CHECKS.items()}
        defaults = {option: options[option] for option in spec.checks}
        self._make(form, isinstance(params, tuple), [(named, defaults | own) for named, own in groups], whole)

    def _make(
        self,
        form: _core.Optimizer._Form,
        as_tuple: bool,
        groups: list[tuple[dict[Any, Any], dict[str, Any]]],
        whole: Mapping[str, Any],
    ) -> None:
        self._state_folder = state_folder()
        _core.Optimizer.__init__(self, whole["flush_denormals"], self._state_folder is not None)
        self._form = form
        self._as_tuple = as_tuple and len(groups) == 1
        self._flush_denormals = whole["flush_denormals"]
        self._groups: list[Group] = []
        self._index: dict[Any, int] = {}
        self._keys: list[Any] = []
        self._params: list[Array] = []
        self._shapes: list[tuple[int, ...]] = []
        self._states: list[dict[str, Array]] = []
        self._scratch: dict[int, Array] = {}
        self._pins: list[Any] = []
        self.clip_norm = whole["clip_norm"]
        self.nonfinite = whole["nonfinite"]
        self._add(form, groups)

    def _add(self, form: _core.Optimizer._Form, groups: list[tuple[dict[Any, Any], dict[str, Any]]]) -> None:
        """Take groups in: all of them or, when it raises, none."""
        arrays = dict(zip(self._keys, self._params))
        made: list[Group] = []
        for named, options in groups:
            if again := [key for key in named if key in arrays]:
                raise ValueError(f"duplicate parameter name {again[0]!r}")
            for key, array in named.items():
                check_storage(self._parameter(key, form), array)
            arrays |= named
            made.append(Group(self._spec, list(named.values()), options))
        known = [(f"state {name!r}", array) for state in self._states for name, array in state.items()]
        check_disjoint([*known, *((self._parameter(key, form), array) for key, array in arrays.items())])
        averaged = [group.ema_decay is not None for group in (*self._groups, *made)]
        if any(averaged) and not all(averaged):
            raise ValueError("ema_decay must be set for all groups or for none")

        states: list[list[dict[str, Array]]] = []
        for group in made:
            names = _core.rules[self._spec.rule_name(group)][1]
            first = self._spec.initial_value(group)
            count = len(names) + (group.ema_decay is not None)
            rooms = iter(all_zeros_like([array for array in group.params for _ in range(count)], self._state_folder))
            states.append([])
            for array in group.params:
                state = {name: next(rooms) for name in names}
                for values in state.values():
                    if first:
                        with np.errstate(over="ignore"):
                            values.fill(first)
                        if not np.isfinite(values).all():
                            raise ValueError(f"{self._spec.initial}={first!r} overflows {values.dtype}")
                if group.ema_decay is not None:
                    state["ema"] = next(rooms)
                    np.copyto(state["ema"], array)
                states[-1].append(state)

        for group, (named, _), own in zip(made, groups, states):
            self._take(form, group, list(named), own)

    def _take(self, form: _core.Optimizer._Form, group: Group, keys: list[Any], states: list[dict[str, Array]]) -> None:
        """Take one group in, and remember it, in one moment."""
        pins = [pin(array) for array in group.params]
        pins += [pin(array) for state in states for array in state.values()]
        all_keys = [*self._keys, *keys]
        averages = [state.get("ema") for state in states]
        own = [[array for name, array in state.items() if name != "ema"] for state in states]
        slots = {
            "_form": form,
            "_keys": all_keys,
            "_index": {key: index for index, key in enumerate(all_keys)},
            "_params": [*self._params, *group.params],
            "_shapes": [*self._shapes, *(np.asarray(array).shape for array in group.params)],
            "_states": [*self._states, *states],
            "_pins": [*self._pins, *pins],
            "_groups": [*self._groups, group],
        }
        self._add_group(form, group._core, keys, group.params, own, averages, slots)

    def add_group(self, params: Params, **options: Any) -> None:
        """Add parameters, with options of their own.

        From the next step on their gradients come behind those of the others, in one sequence; where parameters have
        names, under their names.

        Args:
            params: as at construction: an array or a sequence, or a mapping where the first parameters came as one.
            options: those that differ from the first group's.

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
        form = self._form.mapping if self._form is self._form.mapping else self._form.sequence
        items: dict[Any, Any] | list[Any]
        if isinstance(params, Mapping) and "params" in params:  # PyTorch's way
            raise TypeError("add_group takes the parameters, and their options as arguments: add_group(params, lr=...)")
        if form is form.mapping:
            if not isinstance(params, Mapping):
                raise TypeError("the parameters have names: add a mapping of names to arrays")
            items = dict(params)
        else:
            items = group_params(params)
        if not items:
            raise ValueError("params holds no parameters")

        def add() -> None:
            named = items if isinstance(items, dict) else dict(enumerate(items, len(self._params)))
            first = {name: value for name, value in self._groups[0].items() if name != "params"}
            self._add(form, [(named, first | options)])

        self._locked(add)

    @property
    def params(self) -> Any:
        """The parameters, in the form in which they came; with groups one list of all."""
        return self._formed(self._params)

    @property
    def ema(self) -> Any:
        """The running averages of the parameters, live, in the parameters' form; None without ``ema_decay``."""
        if self._groups[0].ema_decay is None:
            return None
        return self._formed([state["ema"].view() for state in self._states])

    def _formed(self, arrays: list[Array]) -> Any:
        if self._form is self._form.array:
            return arrays[0]
        if self._form is self._form.mapping:
            return dict(zip(self._keys, arrays))
        return tuple(arrays) if self._as_tuple and len(self._groups) == 1 else list(arrays)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of parameters: their options can be read and set. `add_group` adds one."""
        return tuple(self._groups)

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The same as `groups`, under PyTorch's name: ``opt.param_groups[0]["lr"] = 0.1``."""
        return self.groups

    @property
    def clip_norm(self) -> float | None:
        """What the global norm of the gradients is scaled down to; None: nothing is."""
        return None if self._clip_norm == _core.no_clip_norm else self._clip_norm

    @clip_norm.setter
    def clip_norm(self, value: SupportsFloat | None) -> None:
        self._clip_norm = _in_core(_checks.positive_or_none("clip_norm", value))

    @property
    def nonfinite(self) -> Nonfinite:
        """What becomes of a step whose gradients are not finite: ``"propagate"``, ``"skip"`` or ``"raise"``."""
        return self._nonfinite.name  # type: ignore[return-value]

    @nonfinite.setter
    def nonfinite(self, value: Nonfinite) -> None:
        self._nonfinite = _core.Optimizer._Nonfinite[_checks.nonfinite("nonfinite", value)]

    @property
    def flush_denormals(self) -> bool:
        """Whether subnormal numbers count as zero while stepping."""
        return bool(self._flush_denormals)

    @property
    def state(self) -> Mapping[Any, dict[str, Any]]:
        """Each parameter's state under its name or index: ``"step"`` and live views of the arrays.

        Each is a dict made anew: what is written into its arrays counts, what is put into the dict does not.

        Example:
            >>> import numpy as np, onepass
            >>> opt = onepass.Adam({"w": np.zeros(2, np.float32)})
            >>> opt.step({"w": np.array([1, 2], np.float32)})
            >>> opt.state["w"]["step"], opt.state["w"]["exp_avg"]
            (1, array([0.1, 0.2], dtype=float32))
        """
        return _State(self)

    def _counts(self, index: int) -> dict[str, Any]:
        """Return a parameter's state other than arrays."""
        return {"step": self._parameter_step(index)} | dict.fromkeys(self._spec.scalars, self._mu_product(index))

    def __repr__(self) -> str:
        elements = sum(array.size for array in self._params)
        whole = {name: getattr(self, name) for name in OPTIMIZER_CHECKS}
        ends = {"clip_norm": None, "nonfinite": "propagate", "flush_denormals": True}  # what need not be said
        said = "".join(f", {name}={value!r}" for name, value in whole.items() if value != ends[name])
        if len(self._groups) == 1:
            said = f", {repr(self._groups[0]).partition('(')[2][:-1]}{said}"
        else:
            said = f"{said}, {self._groups!r}"
        size = f"{plural(len(self._params), 'parameter')}, {plural(elements, 'element')}"
        return f"{type(self).__name__}({size}{said})"

    # Saving.

    def _snapshot(self) -> dict[str, Any]:
        """The state dict, with the live arrays."""
        from . import _checkpoint  # takes longer to import than all the rest

        groups, first = [], 0
        for group in self._groups:
            last = first + len(group.params)
            saved: dict[str, Any] = {"params": list(range(first, last))}
            if self._form is self._form.mapping:
                saved["param_names"] = [key if isinstance(key, str) else repr(key) for key in self._keys[first:last]]
            saved |= {name: None if callable(value) else value for name, value in group._values.items()}
            groups.append(saved)
            first = last
        return {
            "version": _checkpoint.VERSION,
            "optimizer": type(self).__name__,
            "step_count": self.step_count,
            "skipped": self.skipped,
            "clip_norm": self.clip_norm,
            "nonfinite": self.nonfinite,
            "state": {index: self._counts(index) | state for index, state in enumerate(self._states)},
            "param_groups": groups,
        }

    def state_dict(self) -> dict[str, Any]:
        """State, step counts, options and averages, copied: a dict of arrays, numbers and strings in PyTorch's layout.

        The parameters themselves are not in it, and a callable ``lr`` or ``ema_decay`` is None.

        Example:
            >>> import numpy as np, onepass
            >>> opt = onepass.SGD(np.zeros(2, np.float32), lr=0.5, momentum=0.9)
            >>> opt.step(np.ones(2, np.float32))
            >>> opt.state_dict()["state"]
            {0: {'step': 1, 'momentum_buffer': array([1., 1.], dtype=float32)}}
        """

        def copied() -> dict[str, Any]:
            saved = self._snapshot()
            for state in saved["state"].values():
                state.update({name: value.copy() for name, value in state.items() if isinstance(value, np.ndarray)})
            return saved

        return self._locked(copied)  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where the optimizer that made this state dict was. It is copied.

        Args:
            state_dict: what `state_dict` returned, of an optimizer of the same class whose parameters have the same
                shapes and dtypes in the same order, and the same names if they have any. Its options replace this
                optimizer's, ``lr`` among them; where ``lr`` or ``ema_decay`` is None, because it was a function, this
                optimizer's own goes on.

        Raises:
            TypeError, ValueError: it does not fit: something is missing or unknown, of another shape or dtype, an
                option out of its range, another optimizer's. Nothing has changed.
        """

        def load() -> None:
            while not self._load(state_dict):
                pass

        self._locked(load)

    def _load(self, state_dict: Mapping[str, Any]) -> bool:
        """Take a state dict in; False, and nothing has changed, where another thread has set an option meanwhile."""
        from . import _checkpoint

        like, state_dict = self._snapshot(), _checkpoint.upgraded(state_dict)
        _checkpoint.check(state_dict, like)
        whole = {name: OPTIMIZER_CHECKS[name](name, state_dict[name]) for name in ("clip_norm", "nonfinite")}
        known = [group._values for group in self._groups]
        options = []
        for index, (group, saved) in enumerate(zip(self._groups, state_dict["param_groups"])):
            changes = {name: saved[name] for name in group._values}
            for name in ("lr", "ema_decay"):
                if changes[name] is None:
                    changes[name] = group._values[name]
            try:
                options.append(group._changed(changes))
            except AttributeError as error:
                raise ValueError(f"the state dict does not fit group {index}: {error}") from None
        copies = []
        mine = sorted((address(array), array.nbytes) for state in self._states for array in state.values())
        for index, state in enumerate(self._states):
            for name, array in state.items():
                order: Any = "C" if array.flags.c_contiguous else "F"
                saved_array = np.asarray(state_dict["state"][index][name], order=order)
                # The last of ours that begins before it ends: does it reach into it?
                last = bisect_left(mine, (address(saved_array) + saved_array.nbytes,)) - 1
                live = last >= 0 and sum(mine[last]) > address(saved_array)
                copies.append((array, saved_array.copy(order) if live else saved_array))
        saved_states = [state_dict["state"][index] for index in range(len(self._states))]
        core_groups = [
            (group._core, *group._numbers(values), group, old, values)
            for group, old, values in zip(self._groups, known, options)
        ]
        return self._restore(
            copies,
            core_groups,
            _in_core(whole["clip_norm"]),
            _core.Optimizer._Nonfinite[whole["nonfinite"]],
            state_dict["step_count"],
            state_dict["skipped"],
            [int(state["step"]) for state in saved_states],
            [float(state.get("mu_product", 1.0)) for state in saved_states],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what `state_dict` holds to one ``.npz`` file at exactly this path.

        The parameters themselves are not in it, as in PyTorch: save them too.

        A crash at any moment leaves the old file or the new one: the file is written beside its place, flushed to disk
        and renamed. `numpy.load` can read it; nothing in it is pickled.

        Raises:
            OSError: the file could not be written, and what was there before still is; or the folder could not be
                flushed, and the new file is in its place but may not outlive a loss of power.

        Example:
            >>> import numpy as np, onepass, pathlib, tempfile
            >>> opt = onepass.Adam(np.zeros(2, np.float32))
            >>> opt.step(np.ones(2, np.float32))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder) / "adam.npz"
            ...     opt.save(path)
            ...     again = onepass.Adam(np.zeros(2, np.float32))
            ...     again.load(path)
            >>> again.step_count
            1
        """
        from . import _checkpoint

        self._locked(lambda: _checkpoint.write(path, self._snapshot()))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from a file that `save` wrote, as `load_state_dict` does.

        The parameters themselves are not in it: put those that were saved with it into the arrays. The options are, and
        replace this optimizer's.

        Raises:
            OSError: the file could not be read, `FileNotFoundError` if there is none.
            ValueError: the file is damaged or foreign, or does not fit. Nothing has changed.
        """
        from . import _checkpoint

        own, rooms = self._snapshot(), dict[int, Array]()

        def room(array: Array) -> Array:
            if not rooms:  # all at once: with a folder for state that is one file
                arrays = _checkpoint.arrays(own)
                rooms.update(zip(map(id, arrays), all_zeros_like(arrays, self._state_folder)))
            return rooms[id(array)]

        found = _checkpoint.read(path, own, room=room)
        try:
            self.load_state_dict(found)
        except (TypeError, ValueError) as error:  # an option that is out of its range, say
            raise ValueError(f"cannot load {os.fspath(path)!r}: {error}") from error

    def _made_of(self) -> tuple[Any, ...]:
        """What `_unpickled` makes an equal one of, with the live arrays."""
        groups, first = [], 0
        for group in self._groups:
            keys = self._keys[first : first + len(group.params)]
            groups.append((dict(zip(keys, group.params)), dict(group._values)))
            first += len(keys)
        whole = {name: getattr(self, name) for name in OPTIMIZER_CHECKS}
        return self._form, self._as_tuple, groups, whole, self._snapshot()

    def __getstate__(self) -> Any:
        """What a user's subclass added, as `object.__getstate__` has it: its attributes, and those of them in slots."""
        attributes = getattr(self, "__dict__", None) or None
        members = [item for kind in type(self).__mro__ for item in vars(kind).items()]
        slots = {name for name, member in members if isinstance(member, MemberDescriptorType)} - {*Optimizer.__slots__}
        filled = {name: getattr(self, name) for name in slots if hasattr(self, name)}
        return (attributes, filled) if filled else attributes

    def __setstate__(self, added: Any) -> None:
        attributes, filled = added if isinstance(added, tuple) else (added, {})
        if attributes:
            self.__dict__.update(attributes)
        for name, value in filled.items():
            setattr(self, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (type(self), *self._locked(self._made_of)), self.__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self)] = type(self).__new__(type(self))  # before a schedule that knows of this one is copied
        live = self.__getstate__()
        made_of, added = self._locked(lambda: deepcopy((self._made_of(), live), memo))
        _fill(copied, *made_of)
        if added is not None:
            copied.__setstate__(added)
        return copied

    def __copy__(self) -> Any:
        raise TypeError("two optimizers must not share parameters and state: use copy.deepcopy")

    # What the core asks for when its fast path does not serve.

    def _parameter(self, key: Any, form: _core.Optimizer._Form) -> str:
        return "the parameter" if form is form.array else f"parameter {key!r}"

    def _label(self, index: int) -> str:
        return "the gradient" if self._form is self._form.array else f"gradient {self._keys[index]!r}"

    def _arrange(self, grads: Any) -> list[Any]:
        """The gradients as one list, in the order of the parameters."""
        if self._form is self._form.mapping:
            if not isinstance(grads, Mapping):
                raise TypeError(f"the gradients must be a mapping, as the parameters were, got {type(grads).__name__}")
            missing = [key for key in self._keys if key not in grads]
            unknown = [key for key in grads if key not in self._index]
            if missing or unknown:
                wrong = [f"missing {missing}"] * bool(missing) + [f"unexpected {unknown}"] * bool(unknown)
                raise ValueError(f"gradient names do not match the parameters: {', '.join(wrong)}")
            return [grads[key] for key in self._keys]
        if isinstance(grads, (np.ndarray, SparseRows, Mapping, str, bytes)) or not isinstance(grads, Iterable):
            hint = ": pass [gradient]" if isinstance(grads, (np.ndarray, SparseRows)) and len(self._keys) == 1 else ""
            raise TypeError(
                f"the gradients must be a sequence, as the parameters were, got {type(grads).__name__}{hint}"
            )
        arranged = list(grads)
        if len(arranged) != len(self._keys):
            hint = self._flat_hint(*arranged) or "pass None to skip a parameter"
            raise ValueError(f"expected {plural(len(self._keys), 'gradient')}, got {len(arranged)} ({hint})")
        return arranged

    def _flat_hint(self, *grads: Any) -> str:
        """What to say of a sequence among gradients, if there is one and it is there for a group."""
        nested = len(self._groups) > 1 and any(isinstance(grad, (list, tuple)) for grad in grads)
        return "gradients come as one flat sequence, in the order of the groups" if nested else ""

    def _convert(self, index: int, grad: Any) -> Array | tuple[Array, Array]:
        """A gradient that the core can read: the given one if it only looked different, or a copy; rows as a pair."""
        if isinstance(grad, SparseRows):
            return coalesced(self._label(index), grad, self._params[index])
        if isinstance(grad, (list, tuple, Mapping)):
            alone = "pass the gradient itself, as the parameter was" if self._form is self._form.array else ""
            if hint := alone or self._flat_hint(grad):
                raise TypeError(f"{self._label(index)} must be a NumPy array, got {type(grad).__name__}: {hint}")
        array = checked_gradient(self._label(index), grad, self._shapes[index])
        if self._fits(index, array):
            return array
        if index not in self._scratch:
            self._scratch[index] = zeros_like(self._params[index])
        return copy_into(self._scratch[index], array)

    def _scheduled(self, group: int, t: int) -> tuple[float, float]:
        """The learning rate of a group at step t, and the decay of its average."""
        options = self._groups[group]._values
        lr = evaluate_schedule(f"the schedule of group {group}", options["lr"], "lr", _checks.non_negative, t)
        if options["ema_decay"] is None:
            return lr, 0.0
        check = _checks.unit_interval_open
        return lr, evaluate_schedule(f"the ema_decay of group {group}", options["ema_decay"], "ema_decay", check, t)

    def _overflow(self, index: int, t: int, grad_scale: float) -> None:
        array = self._params[index]
        group = next(group for group in self._groups if any(param is array for param in group.params))
        raise ValueError(
            f"a coefficient made from the options overflows {array.dtype} at step {t} of "
            f"{self._parameter(self._keys[index], self._form)}: use smaller numbers, or float64 parameters "
            f"(grad_scale={grad_scale!r}, {group!r})"
        )

    def _nonfinite_gradient(self, index: int) -> None:
        raise FloatingPointError(f"{self._label(index)} is not finite, or its squares are not; nothing has changed")

    def _parameter_changed(self, index: int, same_memory: bool) -> None:
        change = "was made read-only" if same_memory else "was reallocated"
        label = self._parameter(self._keys[index], self._form)
        raise ValueError(f"{label} {change} after the optimizer was created: create a new optimizer")


def _in_core(clip_norm: float | None) -> float:
    """A norm to clip to, as the core has it."""
    return _core.no_clip_norm if clip_norm is None else clip_norm


def _unpickled(kind: type[Optimizer], *made_of: Any) -> Optimizer:
    optimizer = kind.__new__(kind)
    _fill(optimizer, *made_of)
    return optimizer


def _fill(
    optimizer: Optimizer,
    form: _core.Optimizer._Form,
    as_tuple: bool,
    groups: list[tuple[dict[Any, Any], dict[str, Any]]],
    whole: dict[str, Any],
    state: dict[str, Any],
) -> None:
    for named, _ in groups:  # buffers that a pickle was read from may be read-only
        named.update({key: array.copy(order="K") for key, array in named.items() if not array.flags.writeable})
    optimizer._make(form, as_tuple, groups, whole)
    for saved, own in zip(state["param_groups"], optimizer._snapshot()["param_groups"]):
        saved.update({name: own[name] for name in own if name == "param_names"})  # which came as they were
    Optimizer.load_state_dict(optimizer, state)  # a user's own may want what the subclass adds, which comes later
