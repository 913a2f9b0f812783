"""The whole interface in any order, with wrong calls in between, gives the bits of the executable specification.

`make fuzz-api EXAMPLES=10000` runs more examples, different ones each time.
"""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import onepass
from cases import NUMBERS, accepts
from onepass._reference import RULES, Reference
from strategies import (
    AVERAGES,
    FIXED,
    GRADIENTS,
    NARROW_SHAPES,
    PARAMETERS,
    SHAPES,
    STATES,
    WHOLE,
    by_check,
    drawn_options,
    is_refused,
)
from support import BFLOAT16, MODE, Array, assert_same_bits, comparable, mode, refused

EXAMPLES = int(os.environ.get("ONEPASS_API_EXAMPLES", "0"))


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.saved: list[tuple[Any, Any]] = []  # a state dict or a path, and the model's
        self.files = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(data=st.data(), kind=st.sampled_from(list(RULES)), seed=st.integers(0, 2**32))
    def create(self, data: Any, kind: str, seed: int) -> None:
        self.kind, self.rng = kind, np.random.default_rng(seed)
        self.form = data.draw(st.sampled_from(["array", "list", "tuple", "mapping", "groups"]), "form")
        averaged = data.draw(st.booleans(), "averaged")
        count = 1 if self.form == "array" else data.draw(st.integers(1, 4), "parameters")
        state_dtype = data.draw(st.sampled_from(STATES), "state_dtype")
        options = drawn_options(data, kind, averaged, state_dtype)
        own: dict[str, Any] = {}  # options of a second group
        if self.form == "groups" and count > 1:
            own = {"lr": data.draw(by_check(kind)["lr"], "own lr"), "weight_decay": 0.25}
            other = {**options, "state_dtype": data.draw(st.sampled_from(STATES), "own state_dtype")}
            if not is_refused(kind, other):
                own["state_dtype"] = other["state_dtype"]
        seconds = own.get("state_dtype", state_dtype)
        arrays = [self.parameter(data, seconds if own and i else state_dtype) for i in range(count)]
        narrow = state_dtype is not None or seconds is not None
        whole = {name: data.draw(values, name) for name, values in WHOLE.items()}
        whole["flush_denormals"] = narrow or data.draw(st.booleans(), "flush_denormals")
        whole["seed"] = data.draw(st.integers(0, 2**64 - 1), "seed")
        if own:
            own["master_bits"] = self.master_bits(data, arrays[1:])
        first = {"master_bits": self.master_bits(data, arrays[:1] if own else arrays)}
        given: Any = {
            "array": lambda: arrays[0],
            "list": lambda: arrays,
            "tuple": lambda: tuple(arrays),
            "mapping": lambda: {f"p{i}": a for i, a in enumerate(arrays)},
            "groups": lambda: [{"params": arrays}],
        }[self.form]()
        modelled: Any = arrays
        if own:
            given = modelled = [{"params": arrays[:1], **first}, {"params": arrays[1:], **own}]
        else:
            options |= first
        self.model = Reference(kind, modelled, **options, **whole)
        self.opt = getattr(onepass, kind)(given, **options, **whole)
        self.arrays = arrays

    def parameter(self, data: Any, state_dtype: str | None) -> Array:
        shape = data.draw(st.sampled_from(SHAPES if state_dtype is None else SHAPES[:4] + NARROW_SHAPES))
        dtypes = [dtype for dtype in PARAMETERS if state_dtype is None or dtype is not np.float64]
        values = NUMBERS[data.draw(st.sampled_from(["ordinary", "ordinary", "hostile", "small"]))]
        array = self.numbers(values, shape, data.draw(st.sampled_from(dtypes)))
        return np.array(array, order=data.draw(st.sampled_from("CF")))

    def numbers(self, values: Any, shape: Any, dtype: Any) -> Array:
        """Draw numbers of a dtype, of bfloat16 as float32 numbers that are converted."""
        if dtype != BFLOAT16 or BFLOAT16 is None:
            return np.asarray(values(self.rng, shape, dtype))
        with np.errstate(all="ignore"):
            return np.asarray(values(self.rng, shape, np.float32)).astype(dtype)

    def master_bits(self, data: Any, arrays: list[Array]) -> int:
        has_bfloat16 = BFLOAT16 is not None and any(array.dtype == BFLOAT16 for array in arrays)
        return int(data.draw(st.sampled_from([32, 24, 16]), "master_bits")) if has_bfloat16 else 32

    def takes_rows(self, index: int) -> bool:
        param, group = self.arrays[index], self.model.group_of[index]
        narrow = group["state_dtype"] is not None or param.dtype.kind != "f"
        return bool(param.ndim) and param.flags.c_contiguous and not narrow

    # Gradients, one for the optimizer and one for the model.

    def gradient(self, data: Any, index: int) -> tuple[Any, Any]:
        param = self.arrays[index]
        values = NUMBERS[data.draw(st.sampled_from(["ordinary", "ordinary", "ordinary", "hostile", "small"]))]
        how = data.draw(st.sampled_from(["same", "same", "none", "dtype", "strided", "swapped", "itself", "rows"]))
        if how == "none":
            return None, None
        if how == "itself":
            return param, param.copy()
        if how == "rows" and self.takes_rows(index):
            size = int(self.rng.integers(0, 2 * param.shape[0] + 1))
            indices = self.rng.integers(0, max(param.shape[0], 1), size if param.shape[0] else 0)
            rows = np.asarray(values(self.rng, (len(indices), *param.shape[1:]), param.dtype))
            return onepass.SparseRows(indices, rows), (indices, rows)
        if how == "dtype":
            with np.errstate(all="ignore"):
                array = self.numbers(values, param.shape, param.dtype).astype(data.draw(st.sampled_from(GRADIENTS)))
            return array, array
        array = self.numbers(values, param.shape, param.dtype)
        if how == "strided":
            wide = np.empty((2, *param.shape), param.dtype).T
            wide[..., 0] = array.T
            array = wide[..., 0].T
        if how == "swapped":
            array = array.astype(array.dtype.newbyteorder())
        return array, array

    def formed(self, grads: list[Any]) -> Any:
        if self.form == "array" and len(grads) == 1:
            return grads[0]
        return {f"p{i}": g for i, g in enumerate(grads)} if self.form == "mapping" else grads

    @rule(data=st.data(), scale=st.sampled_from([1.0, 1.0, 0.5, -3e-3, 0.0, 1000.0]))
    def step(self, data: Any, scale: float) -> None:
        pairs = [self.gradient(data, index) for index in range(len(self.arrays))]
        grads, modelled = [p[0] for p in pairs], [p[1] for p in pairs]
        if self.formed(grads) is None:
            with refused(TypeError, "the gradient: expected an array", self.opt):
                self.opt.step(None, scale)
            return
        if self.model.nonfinite == "raise":
            before = copy.deepcopy(self.model)
            try:
                self.model.step(modelled, scale)
            except FloatingPointError:
                self.model = before
                with refused(FloatingPointError, "is not finite", self.opt):
                    self.opt.step(self.formed(grads), scale)
                return
        else:
            self.model.step(modelled, scale)
        self.opt.step(self.formed(grads), grad_scale=scale)

    @rule(data=st.data())
    def change_an_option(self, data: Any) -> None:
        index = data.draw(st.integers(0, len(self.opt.groups) - 1))
        group, options = self.opt.groups[index], self.model.groups[index]
        strategies = {**by_check(self.kind), "ema_decay": st.sampled_from(AVERAGES)}
        name = data.draw(st.sampled_from([name for name in strategies if name not in FIXED]))
        value = data.draw(strategies[name])
        kept = {"momentum", "ema_decay"}
        if name in kept and (value in (0.0, None)) != (options[name] in (0.0, None)) and name == "momentum":
            nesterov = bool(options.get("nesterov"))  # which needs momentum
            message = "nesterov needs" if nesterov else "it determines which state buffers exist"
            with refused(ValueError if nesterov else AttributeError, message, self.opt):
                group.momentum = value
        elif name == "ema_decay" and options["ema_decay"] is None:
            with refused(AttributeError, "it determines which state buffers exist", self.opt):
                group["ema_decay"] = value
        elif name == "dampening" and options["nesterov"] and value:
            with refused(ValueError, "nesterov needs", self.opt):
                group.dampening = value
        elif not accepts(self.kind, {name: value}):
            with refused(ValueError, f"{name}:", self.opt):
                group[name] = value
        elif is_refused(self.kind, {**options, name: value}):
            with refused(ValueError, "state_dtype=", self.opt):
                group[name] = value
        else:
            group[name] = options[name] = value

    @rule(data=st.data(), name=st.sampled_from(list(WHOLE)))
    def change_an_option_of_the_whole(self, data: Any, name: str) -> None:
        value = data.draw(WHOLE[name])
        setattr(self.opt, name, value)
        setattr(self.model, name, value)

    @precondition(lambda self: len(self.arrays) < 6)
    @rule(data=st.data())
    def add_group(self, data: Any) -> None:
        first = self.model.groups[0]
        array = self.parameter(data, first["state_dtype"])
        options = {"lr": data.draw(by_check(self.kind)["lr"]), "weight_decay": 0.125}
        options["master_bits"] = self.master_bits(data, [array])
        given = {f"p{len(self.arrays)}": array} if self.form == "mapping" else array
        self.opt.add_group(given, **options)
        self.model.groups.append({**first, **options})
        self.model._add(array, self.model.groups[-1])
        self.arrays = [*self.arrays, array]
        if self.form == "array":
            self.form = "list"

    # Saved, and loaded at another time.

    @rule(file=st.booleans(), params=st.booleans())
    def save(self, file: bool, params: bool) -> None:
        saved: Any
        if file:
            self.files += 1
            saved = Path(self.folder.name) / str(self.files)
            self.opt.save(saved, params=params)
        else:
            saved = self.opt.state_dict(params=params)
        self.saved.append((saved, params, copy.deepcopy(self.model)))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def load(self, data: Any) -> None:
        saved, params, model = data.draw(st.sampled_from(self.saved))
        load = self.opt.load if isinstance(saved, Path) else self.opt.load_state_dict
        pairs = [(a[name], b[name]) for a, b in zip(model.groups, self.model.groups) for name in ("lr", "ema_decay")]
        loses_a_schedule = any(callable(own) and own != loaded for loaded, own in pairs)
        if len(model.groups) != len(self.model.groups) or loses_a_schedule:
            with refused(ValueError, "", self.opt), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other parameters
                load(saved, params=params)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(saved, params=params)
        old, self.model = self.model, copy.deepcopy(model)
        self.model.flush, self.model.grad_norm = old.flush, old.grad_norm
        if not params:
            self.model.params = old.params

    @rule(how=st.sampled_from([copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]))
    def go_on_with_a_copy(self, how: Any) -> None:
        old = self.opt
        self.opt = how(old)
        with refused(TypeError, "state dict: expected a mapping", old):
            old.load_state_dict(None)
        self.arrays = [p for group in self.opt.groups for p in group.params]
        self.model.grad_norm = None

    # Wrong calls.

    @rule(
        data=st.data(), wrong=st.sampled_from(["shape", "dtype", "object", "count", "scale", "nan", "row", "schedule"])
    )
    def step_wrongly(self, data: Any, wrong: str) -> None:
        grads: list[Any] = [np.ones(p.shape, np.float32) for p in self.arrays]
        last, scale, error = self.arrays[-1], 1.0, ValueError
        if wrong == "shape":
            grads[-1] = np.ones((*last.shape, 2), last.dtype)
        elif wrong == "dtype":
            grads[-1], error = np.ones(last.shape, int), TypeError
        elif wrong == "object":
            grads[-1], error = object(), TypeError
        elif wrong == "count":
            grads.append(grads[0])
            error = TypeError if self.form == "array" else ValueError
        elif wrong == "scale":
            scale, error = "1", TypeError
        elif wrong == "nan":
            scale = float("nan")
        elif wrong == "row":
            rows = [i for i, p in enumerate(self.arrays) if p.ndim and p.flags.c_contiguous]
            if not rows:
                return
            grads[rows[-1]] = onepass.SparseRows(
                [self.arrays[rows[-1]].shape[0]], np.ones((1, *self.arrays[rows[-1]].shape[1:]))
            )
            error = IndexError if self.takes_rows(rows[-1]) else ValueError
        elif wrong == "schedule":
            group, lr = self.opt.groups[-1], self.opt.groups[-1].lr
            group.lr = data.draw(
                st.sampled_from([lambda t: float("-inf"), lambda t: 1 / 0, lambda t: float("nan"), lambda t: str(t)])
            )
            with refused(ValueError, "the schedule of group", self.opt):
                self.opt.step(self.formed(grads))
            group.lr = lr
            return
        with refused(error, "", self.opt, arrays=self.arrays):
            self.opt.step(self.formed(grads), scale)

    @rule(
        wrong=st.sampled_from(
            [
                (ValueError, "lr", -1.0),
                (TypeError, "lr", "x"),
                (ValueError, "weight_decay", float("nan")),
                (ValueError, "clip_value", 0.0),
                (ValueError, "ema_decay", 1.0),
                (TypeError, "maximize", 1),
                (AttributeError, "rate", 1),
                (ValueError, "rounding", "up"),
                (ValueError, "master_bits", 8),
                (TypeError, "state_dtype", 8),
                (AttributeError, "params", []),
            ]
        )
    )
    def change_an_option_wrongly(self, wrong: Any) -> None:
        error, name, value = wrong
        with refused(error, "", self.opt):
            self.opt.groups[-1][name] = value

    @rule(wrong=st.sampled_from([("clip_norm", 0.0), ("clip_norm", float("nan")), ("nonfinite", "stop")]))
    def change_the_whole_wrongly(self, wrong: Any) -> None:
        with refused(ValueError, wrong[0], self.opt):
            setattr(self.opt, *wrong)

    @rule(
        wrong=st.sampled_from(
            ["again", "overlap", "int", "read-only", "strided", "option", "range", "ema", "nothing", "storage"]
        )
    )
    def add_wrongly(self, wrong: str) -> None:
        options: dict[str, Any] = {}
        array: Any = np.ones(3, np.float32)
        error: type[Exception] = ValueError
        if wrong in ("again", "overlap"):
            sized = [a for a in self.arrays if a.size]
            if not sized:
                return
            array = sized[0] if wrong == "again" else sized[0].reshape(-1, order="A")[:1]
        elif wrong == "int":
            array, error = np.ones(3, int), TypeError
        elif wrong == "read-only":
            array.flags.writeable = False
        elif wrong == "strided":
            array = np.ones(6, np.float32)[::2]
        elif wrong == "option":
            options, error = {"nothing": 1}, TypeError
        elif wrong == "range":
            options = {"lr": -1}
        elif wrong == "ema":
            options = {"ema_decay": 0.5 if self.model.groups[0]["ema_decay"] is None else None}
        elif wrong == "storage":
            array = np.ones(3)
            options = {"state_dtype": "bfloat16"}
        arrays = [] if wrong == "nothing" else [np.ones(2, np.float32), array]
        given = {f"q{i}": a for i, a in enumerate(arrays)} if self.form == "mapping" else arrays
        with refused(error, "", self.opt):
            self.opt.add_group(given, **options)

    @rule(
        wrong=st.sampled_from(["missing", "unknown", "shape", "dtype", "other", "range", "count", "fixed", "nothing"])
    )
    def load_wrongly(self, wrong: str) -> None:
        state: Any = self.opt.state_dict()
        last = state["state"][len(self.arrays) - 1]
        error: type[Exception] = ValueError
        if wrong == "missing":
            del last["step"]
        elif wrong == "unknown":
            last["rows"] = 1
        elif wrong in ("shape", "dtype"):
            names = [name for name, value in last.items() if isinstance(value, np.ndarray)]
            if not names:
                return
            array = last[names[-1]]
            last[names[-1]] = np.ones((*array.shape, 2)) if wrong == "shape" else np.ones(array.shape, int)
        elif wrong == "other":
            state["optimizer"] = "Adam" if self.kind != "Adam" else "SGD"
        elif wrong == "range":
            state["param_groups"][-1]["lr"] = -1.0
        elif wrong == "count":
            last["step"], error = 1.0, TypeError
        elif wrong == "fixed":
            state["nonfinite"] = "stop"
        elif wrong == "nothing":
            state, error = 3, TypeError
        with refused(error, "", self.opt):
            self.opt.load_state_dict(state)

    @rule(seed=st.integers(0, 2**32))
    def load_a_damaged_file(self, seed: int) -> None:
        path, rng = Path(self.folder.name) / "damaged", np.random.default_rng(seed)
        self.opt.save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(rng.integers(0, len(whole)))])
        with refused(ValueError, "cannot load", self.opt):
            self.opt.load(path)
        with refused(FileNotFoundError, "", self.opt):
            self.opt.load(path.with_name("nowhere"))

    @rule()
    def misuse(self) -> None:
        with refused(TypeError, "two optimizers must not share", self.opt):
            copy.copy(self.opt)
        with refused(RuntimeError, "is already initialized", self.opt):
            self.opt.__init__([np.ones(2)])
        with refused(FileNotFoundError, "", self.opt):
            self.opt.save(Path(self.folder.name) / "nowhere" / "x")

    # Invariants after every call.

    @invariant()
    def is_the_reference(self) -> None:
        if not hasattr(self, "opt"):
            return
        opt, model = self.opt, self.model
        assert_same_bits(map(comparable, self.arrays), map(comparable, model.params), "parameters")
        for own, expected in zip(opt.state.values(), model.state, strict=True):
            assert own.keys() == expected.keys()
            for name, value in expected.items():
                if isinstance(value, np.ndarray):
                    assert_same_bits([comparable(own[name])], [comparable(value)], name)
                else:
                    assert own[name] == value, name
        if model.groups[0]["ema_decay"] is None:
            assert opt.ema is None
        else:
            averages = opt.ema.values() if isinstance(opt.ema, dict) else [opt.ema] if len(model.ema) == 1 else opt.ema
            assert_same_bits([np.asarray(a) for a in flat(averages)], model.ema, "averages")
        assert (opt.step_count, opt.skipped, opt.clip_norm, opt.nonfinite, opt.seed) == (
            model.step_count,
            model.skipped,
            model.clip_norm,
            model.nonfinite,
            model.seed,
        )
        assert repr(opt.grad_norm) == repr(model.grad_norm)
        for group, options in zip(opt.groups, model.groups, strict=True):
            assert {name: options[name] for name in group if name != "params"} == {
                name: value for name, value in group.items() if name != "params"
            }
        assert mode() == MODE, "the processor's mode has changed"


def flat(averages: Any) -> list[Any]:
    """Return a list of the arrays, from items that are arrays or sequences of arrays."""
    return [a for item in averages for a in (item if isinstance(item, (list, tuple)) else [item])]


TestTheWholeInterface = Machine.TestCase
TestTheWholeInterface.settings = settings(
    max_examples=EXAMPLES or 80,
    stateful_step_count=40,
    derandomize=not EXAMPLES,
    database=None,
    phases=[Phase.generate, *([Phase.shrink] if EXAMPLES else [])],  # shrinking takes minutes
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
TestTheWholeInterface.pytestmark = [pytest.mark.filterwarnings("error")]
