"""Wrong parameters, options and groups: an error that says what was wrong, and nothing has changed."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import onepass
from cases import CLASSES, STORAGE, all_set
from onepass import _checks
from support import ones, refused

F = np.float32


read_only = ones(3)
read_only.flags.writeable = False
misaligned = np.zeros(13, np.uint8)[1:].view(F)
shared = ones(10)


PARAMETERS: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([[1.0, 2.0]], TypeError, "parameter 0: expected a NumPy array, got list"),
    "a number": (1.0, TypeError, "params: expected an array, or a sequence or mapping of arrays, got float"),
    "a string": ("weights", TypeError, "got str"),
    "a string in a mapping": ({"w": "b"}, TypeError, "parameter 'w': expected a NumPy array, got str"),
    "a NumPy scalar": ([F(1)], TypeError, "parameter 0: expected a NumPy array, got float32"),
    "float16": (
        [ones(3), ones(3, dtype=np.float16)],
        TypeError,
        "parameter 1: expected dtype float32, float64 or bfloat16, got float16 (w.astype(numpy.float32) makes",
    ),
    "longdouble": (
        [ones(3, dtype=np.longdouble)],
        TypeError,
        "float64 or bfloat16, got longdouble (w.astype(numpy.float64) makes",
    ),
    "void": (ones(3, dtype=np.float16).view("V2"), TypeError, "void16 (if it holds bfloat16, pass .view(ml_dtypes.bf"),
    "integers": (ones(3, dtype=int), TypeError, "the parameter: expected dtype float32, float64 or bfloat16"),
    "complex": (
        {"w": ones(3, dtype=complex)},
        TypeError,
        "parameter 'w': expected dtype float32, float64 or bfloat16",
    ),
    "objects": ([ones(3, dtype=object)], TypeError, "parameter 0: expected dtype"),
    "the other byte order": ([ones(3, dtype=np.dtype(F).newbyteorder())], TypeError, "expected native byte order"),
    "masked": (np.ma.masked_array(ones(3), [0, 1, 0]), TypeError, "masked array"),
    "read-only": (
        [ones(2), read_only],
        ValueError,
        "parameter 1: expected a writeable array, got a read-only one (w.copy() makes",
    ),
    "not contiguous": (
        {"w": ones(4, 4)[:, ::2]},
        ValueError,
        "parameter 'w': expected a contiguous array, got strides (16, 8)",
    ),
    "broadcast": (np.broadcast_to(F(1), (3, 3)), ValueError, "read-only"),
    "misaligned": ([misaligned], ValueError, "parameter 0: expected an array aligned to its dtype"),
    "no parameters": ([], ValueError, "params: expected at least one array, got none"),
    "no named parameters": ({}, ValueError, "params: expected at least one array, got none"),
    "the same twice": ([shared, ones(2), shared], ValueError, "parameter 2 is the same memory as parameter 0"),
    "the same under two names": ({"a": shared, "b": shared[:]}, ValueError, "parameter 'b' is the same memory as"),
    "overlapping": ([shared[:6], shared[4:]], ValueError, "parameter 1 overlaps parameter 0 in memory"),
    "inside another": ([shared, shared[2:4]], ValueError, "parameter 1 overlaps parameter 0 in memory"),
}


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.parametrize("cls", [onepass.Adam, onepass.AdamW])
def test_wrong_parameters_are_refused_at_construction(cls: Any, case: str) -> None:
    params, error, message = PARAMETERS[case]
    with refused(error, message, arrays=[shared]):
        cls(params)


def test_adjacent_parameters_in_one_buffer_do_not_overlap() -> None:
    buffer = ones(10)
    onepass.Adam([buffer[:5], buffer[5:], buffer[5:5]]).step([ones(5), ones(5), ones(0)])
    assert (buffer < 1).all()


class Matrix:
    """Tensor of another library: PyTorch's raise ValueError too."""

    shape = (2, 3)

    def __float__(self) -> float:
        raise ValueError("only one element")


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError("no text")


NAN, INF = float("nan"), float("inf")
LIMITS = ["clip_norm", "clip_value"]
OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    *[(name, value, ValueError, name) for name in ["lr", "eps", "weight_decay"] for value in [-1e-9, NAN, INF, -INF]],
    *[(name, value, TypeError, name) for name in ["eps", "weight_decay"] for value in ["1", None, 1j, [1.0], len]],
    *[("lr", value, TypeError, "lr: expected a number") for value in ["0.1", None, 1j, [0.1], b"1"]],
    ("lr", 10**400, ValueError, "lr: expected a finite number"),
    ("lr", Matrix(), ValueError, "lr: expected a finite number, got an array of shape (2, 3)"),
    ("lr", Unprintable(), TypeError, "lr: expected a number, got a value of type Unprintable"),
    ("lr", [0.5] * 100, TypeError, f"lr: expected a number, got [{'0.5, ' * 15}0..."),
    ("betas", [0.5] * 100, ValueError, f"a pair of numbers, got [{'0.5, ' * 15}0..."),
    *[
        ("betas", value, ValueError, "betas")
        for value in [(-0.1, 0.9), (1.0, 0.9), (0.9, 1.0), (0.9, 1.5), (NAN, 0.9), (0.9, INF), (0.9,), (0.1, 0.2, 0.3)]
    ],
    *[("betas", value, TypeError, "betas") for value in [0.9, None, "ab", ("a", 0.9), (0.9, None), {0.1: 1, 0.2: 2}]],
    *[
        (name, value, TypeError, f"{name}: expected True or False")
        for name in ["amsgrad", "bias_correction", "maximize", "flush_denormals"]
        for value in [1, None, "yes"]
    ],
    ("eps_mode", "Paper", ValueError, "eps_mode: expected 'paper' or 'hat', got 'Paper'"),
    ("eps_mode", None, TypeError, "eps_mode: expected 'paper' or 'hat', got None"),
    ("momentum", 0.9, TypeError, "momentum"),
    *[
        ("betas", value, TypeError, "betas: expected a pair of numbers")
        for value in [{0.9, 0.99}, frozenset({0.9}), b"ab"]
    ],
    *[(name, value, ValueError, f"{name}: expected more than 0 or None") for name in LIMITS for value in [0, -1.0]],
    *[(name, value, ValueError, f"{name}: expected") for name in LIMITS for value in [NAN, -INF, 10**400]],
    *[(name, value, TypeError, f"{name}: expected a number") for name in LIMITS for value in ["1", 1j, [1.0], len]],
    *[
        ("nonfinite", value, ValueError, "nonfinite: expected 'propagate', 'skip' or")
        for value in ["", "Skip", "ignore"]
    ],
    *[("nonfinite", value, TypeError, "nonfinite: expected 'propagate', 'skip' or") for value in [None, True, b"skip"]],
    *[("ema_decay", value, ValueError, "ema_decay: expected at least 0 and less than 1") for value in [-0.1, 1, 1.5]],
    *[("ema_decay", value, ValueError, "ema_decay: expected a finite number") for value in [NAN, INF]],
    *[("ema_decay", value, TypeError, "ema_decay: expected a number") for value in ["0.9", 1j, [0.9]]],
]
FIXED = ["amsgrad", "flush_denormals", "momentum"]  # or no options of a group
WHOLE = ["clip_norm", "nonfinite"]  # the optimizer's


@pytest.mark.parametrize(("name", "value", "error", "message"), OPTIONS)
@pytest.mark.parametrize("cls", [onepass.Adam, onepass.AdamW])
def test_wrong_options_are_refused_at_construction(
    cls: Any, name: str, value: Any, error: type[Exception], message: str
) -> None:
    w = ones(3)
    with refused(error, message, arrays=[w]):
        cls(w, **{name: value})


@pytest.mark.parametrize(("name", "value", "error", "message"), [case for case in OPTIONS if case[0] not in FIXED])
def test_wrong_options_are_refused_when_set(name: str, value: Any, error: type[Exception], message: str) -> None:
    optimizer = onepass.Adam([ones(3)], ema_decay=0.5)
    with refused(error, message, optimizer):
        setattr(optimizer if name in WHOLE else optimizer.groups[0], name, value)


# Values out of range with the message about them, by the check that refuses them.
FINITE = [
    (NAN, "expected a finite number, got nan"),
    (INF, "expected a finite number, got inf"),
    (-INF, "expected a finite number, got -inf"),
]
NEGATIVE = (-1e-9, "expected at least 0, got -1e-09")
AVERAGE = [
    (1.0, "expected at least 0 and less than 1, got 1.0"),
    (-0.5, "expected at least 0 and less than 1, got -0.5"),
]
OUT_OF_RANGE: dict[Any, list[tuple[Any, str]]] = {
    _checks.non_negative: [NEGATIVE, *FINITE],
    _checks.learning_rate: [NEGATIVE, *FINITE],
    _checks.unit_interval: [(x, f"expected at least 0 and at most 1, got {x}") for x in (-0.1, 1.1)] + FINITE,
    _checks.finite: FINITE,
    _checks.positive_or_none: [
        (0.0, "expected more than 0 or None, got 0.0"),
        (NAN, "expected a finite number, got nan"),
    ],
    _checks.betas: [((0.9, 1.0), "expected at least 0 and less than 1, got 1.0"), ((-0.1, 0), "at least 0")],
    _checks.three_betas: [
        ((0.9, 0.9, 1.0), "[2]: expected at least 0 and less than 1, got 1.0"),
        ((0, 0), "three numbers"),
    ],
    _checks.steps_or_none: [
        (x, f"expected at least 1 and at most 2**53, or None, got {x}") for x in (0, -3, 2**53 + 1)
    ],
    _checks.ema_decay: [*AVERAGE, (NAN, "expected a finite number, got nan")],
    _checks.count: [(-1, "expected at least 0 and at most 2**53, got -1")],
    _checks.master_bits: [(8, "expected 32, 24 or 16, got 8")],
    _checks.flag: [],
    _checks.eps_mode: [("tf", "expected 'paper' or 'hat', got 'tf'")],
    _checks.state_dtype: [("float16", "expected None, 'bfloat16' or 'float8', got 'float16'")],
    _checks.rounding: [("up", "expected 'stochastic' or 'nearest', got 'up'")],
}
WORDS = {"eps_mode", "state_dtype", "rounding"}
NEEDED = {"momentum": 0.5}  # dampening and nesterov need it, and momentum can be set later only if it was not zero


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in CLASSES.values() for name in cls._spec.checks])
def test_every_optimizer_refuses_options_out_of_range(cls: Any, name: str) -> None:
    w = ones(3)
    options = {key: value for key, value in NEEDED.items() if key in cls._spec.checks}
    optimizer = cls([ones(3)], **options)
    check = cls._spec.checks[name]
    for value, message in OUT_OF_RANGE[check]:
        with refused(ValueError, message, arrays=[w]) as caught:
            cls(w, **{**options, name: value})
        assert str(caught.value).startswith(name)
        with refused(ValueError, message, optimizer):
            setattr(optimizer.groups[0], name, value)
    may_be_none = check in (_checks.positive_or_none, _checks.steps_or_none, _checks.ema_decay, _checks.state_dtype)
    for value in [1, "yes", None] if check is _checks.flag else ["0.5", 1j, *[None] * (not may_be_none)]:
        error = ValueError if name in WORDS and value == "0.5" else TypeError
        with refused(error, name, arrays=[w]):
            cls(w, **{**options, name: value})
        with refused(error, name, optimizer):
            setattr(optimizer.groups[0], name, value)


def test_options_at_the_ends_of_their_ranges_are_allowed() -> None:
    for end in (0, 1):
        onepass.RMSprop(ones(3), alpha=end, momentum=1.5).step(ones(3))
        onepass.Adadelta(ones(3), rho=end).step(ones(3))
    onepass.SGD(ones(3), momentum=0.5, dampening=-1).step(ones(3))
    optimizer = onepass.Lion(ones(3), betas=(0, 0), ema_decay=0, lr=0, clip_norm=INF, clip_value=INF)
    optimizer.step(ones(3))
    assert optimizer.grad_norm == np.sqrt(3)


def test_nesterov_without_momentum_or_with_dampening_is_refused() -> None:
    message = "nesterov needs a momentum above 0 and no dampening"
    for options in [{}, {"momentum": 0.5, "dampening": 0.1}, {"dampening": 0.1}]:
        with refused(ValueError, message):
            onepass.SGD([ones(3)], nesterov=True, **options)
        plain = onepass.SGD([ones(3)], **options)
        with refused(ValueError, message, plain):
            plain.groups[0].nesterov = True
    with refused(ValueError, message):
        onepass.SGD([{"params": ones(3)}, {"params": ones(3), "nesterov": True}])
    optimizer = onepass.SGD([ones(3)], momentum=0.5, nesterov=True)
    for name, value in [("momentum", 0), ("dampening", 0.5)]:
        with refused(ValueError, message, optimizer):
            setattr(optimizer.groups[0], name, value)


@pytest.mark.parametrize("cls", [onepass.Adamax, onepass.Adagrad, onepass.Lion])
def test_an_option_of_another_rule_is_refused(cls: Any) -> None:
    with refused(TypeError, "amsgrad"):
        cls(ones(3), amsgrad=True)
    with refused(TypeError, f"unexpected option 'amsgrad' of a group of {cls.__name__}"):
        cls([{"params": ones(3), "amsgrad": True}])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([{"params": ones(3)}, {"lr": 0.1}], ValueError, "group 1 has no 'params', only ['lr']"),
        ([{}], ValueError, "group 0 has no 'params', only []"),
        (
            [{"params": ones(3), "momentum": 0.9}],
            TypeError,
            "unexpected option 'momentum' of a group of Adam. Did you mean 'betas'?",
        ),
        ([{"params": ones(3), "nonfinite": "skip"}], TypeError, "it applies to the whole optimizer"),
        ([{"params": ones(3), "clip_norm": 1.0}], TypeError, "it applies to the whole optimizer"),
        (
            [{"params": ones(3)}, ones(3)],
            TypeError,
            "params[1]: expected a group, {'params': [...]}, got ndarray (pass only groups or only arrays)",
        ),
        (
            [ones(3), {"params": ones(3)}],
            TypeError,
            "params[0]: expected a group, {'params': [...]}, got ndarray (pass only groups or only arrays)",
        ),
        ([{"params": []}, {"params": ones(3)}], ValueError, "each group: expected parameters, got none"),
        ([{"params": []}], ValueError, "params: expected at least one array, got none"),
        ([{"params": {"w": ones(3)}}, {"params": ones(3)}], TypeError, "parameter names are missing in group 1"),
        ([{"params": {"w": ones(3)}}, {"params": {"w": ones(3)}}], ValueError, "duplicate parameter name 'w'"),
        ([{"params": 1.0}], TypeError, "a group's params: expected an array, or a sequence"),
        ([{"params": "ab"}], TypeError, "a group's params: expected an array, or a sequence"),
        ([{"params": [ones(3)]}, {"params": [ones(3), [1.0]]}], TypeError, "parameter 2: expected a NumPy array"),
        ([{"params": shared}, {"params": [ones(2), shared]}], ValueError, "parameter 2 is the same memory as"),
        ([{"params": ones(3), "lr": -1}], ValueError, "lr: expected at least 0"),
        ([{"params": ones(3)}, {"params": ones(3), "eps": None}], TypeError, "eps: expected a number"),
        (
            [{"params": ones(3), "ema_decay": 0.5}, {"params": ones(3)}],
            ValueError,
            "ema_decay: expected a value in all groups or in none",
        ),
    ],
)
def test_wrong_groups_are_refused(groups: Any, error: type[Exception], message: str) -> None:
    with refused(error, message, arrays=[shared]):
        onepass.Adam(groups)


def test_options_that_determine_the_buffers_cannot_be_set() -> None:
    for optimizer, name, value in [
        (onepass.Adam([ones(3)]), "amsgrad", True),
        (onepass.Adam([ones(3)]), "ema_decay", 0.5),
        (onepass.Adam([ones(3)], ema_decay=0.5), "ema_decay", None),
        (onepass.SGD([ones(3)]), "momentum", 0.9),
        (onepass.SGD([ones(3)], momentum=0.9), "momentum", 0.0),
        (onepass.RMSprop([ones(3)]), "centered", True),
    ]:
        with refused(
            AttributeError,
            f"{name} cannot be changed after construction: it determines which state buffers exist",
            optimizer,
        ):
            setattr(optimizer.groups[0], name, value)
    adagrad = onepass.Adagrad([ones(3)])
    with refused(AttributeError, "initial_accumulator_value cannot be changed after", adagrad):
        adagrad.groups[0].initial_accumulator_value = 1.0


NUMERIC = [
    (cls, name)
    for cls in CLASSES.values()
    for name, parameter in inspect.signature(cls).parameters.items()
    if name != "params" and type(parameter.default) not in (bool, str) and name != "state_dtype"
]


@pytest.mark.parametrize(("cls", "name"), NUMERIC, ids=lambda x: getattr(x, "__name__", x))
def test_an_integer_far_too_large_is_refused_by_the_name_of_its_option(cls: Any, name: str) -> None:
    default = inspect.signature(cls).parameters[name].default
    for value in (10**400, -(10**400), 10**5000):  # repr refuses the last one
        given = (value,) * len(default) if isinstance(default, tuple) else value
        with pytest.raises(ValueError, match=rf"^{name}\b.*, got (-?1000|a value of type int)"):
            cls([ones(3)], **{name: given})


@pytest.mark.parametrize("name", ["flush_denormals", "clip_norm", "momentum", "learning_rate", "__class__"])
def test_options_that_do_not_exist_cannot_be_set(name: str) -> None:
    optimizer = onepass.Adam([ones(3)])
    with refused(AttributeError, f"a group of Adam has no option {name!r}", optimizer):
        setattr(optimizer.groups[0], name, True)
    with pytest.raises(AttributeError):
        _ = optimizer.groups[0].momentum


def test_every_option_can_be_set_on_an_optimizer_with_one_group() -> None:
    for kind, cls in CLASSES.items():
        for options in ({}, all_set(kind), {"lr": 0.0, "ema_decay": lambda t: 0.5}):
            optimizer = cls([ones(3)], **options)
            group = optimizer.groups[0]
            for name in cls._spec.checks.keys() - STORAGE:
                value = getattr(optimizer, name)
                assert value is group[name]
                others = {
                    "eps_mode": "hat" if value == "paper" else "paper",
                    "betas": (0.25, 0.5, 0.75)[: len(value)] if name == "betas" else None,
                    "alpha_warmup": 3,
                    "beta3_warmup": 3,
                    "warmup_steps": 3,
                }
                other = others.get(name, 0.25)
                wanted = not value if isinstance(value, bool) else other
                try:
                    setattr(optimizer, name, wanted)
                except ValueError:
                    assert name in ("nesterov", "dampening")  # not without another option
                except AttributeError:
                    assert name in ("amsgrad", "centered", "momentum", "ema_decay", "initial_accumulator_value")
                else:
                    assert getattr(optimizer, name) == group[name] == wanted


def test_options_of_a_single_group_can_be_read_and_set_on_the_optimizer() -> None:
    optimizer = onepass.Adam([ones(3)], ema_decay=0.5)
    optimizer.betas = (0.1, 0.2)
    optimizer.ema_decay = 0.75
    assert optimizer.betas == optimizer.groups[0].betas == (0.1, 0.2) and optimizer.groups[0].ema_decay == 0.75
    assert {"betas", "lr", "ema_decay"} < set(dir(optimizer)) and "momentum" not in dir(optimizer)
    with refused(ValueError, "betas[1]: expected at least 0 and less than 1, got 1", optimizer):
        optimizer.betas = (0.1, 1)
    two_groups = onepass.Adam([{"params": ones(3)}, {"params": ones(2)}])
    for name in ("lr", "betas", "ema_decay"):
        for access in (getattr, lambda opt, name: setattr(opt, name, 0.1)):
            with refused(AttributeError, f"{name} is ambiguous with 2 groups: use opt.groups[i].{name}", two_groups):
                access(two_groups, name)
    for name in ("momentum", "nothing"):
        with refused(AttributeError, f"'Adam' object has no attribute {name!r}"):
            getattr(optimizer, name)


@pytest.mark.parametrize("name", ["step_count", "skipped", "grad_norm", "flush_denormals", "groups", "params", "state"])
def test_read_only_attributes_cannot_be_set(name: str) -> None:
    optimizer = onepass.Adam([ones(3)])
    with refused(AttributeError, "", optimizer):
        setattr(optimizer, name, 0)


@pytest.mark.parametrize("cls", CLASSES.values())
def test_the_error_about_an_unknown_keyword_suggests_an_option(cls: Any) -> None:
    options = set(list(inspect.signature(cls).parameters)[1:])
    assert {"lr", "ema_decay", "clip_norm", *cls._spec.checks} <= options
    for name, hint in [("learning_rate", "Did you mean 'lr'? "), ("fused", "It selects among PyTorch's"), ("none", "")]:
        with refused(TypeError, f"{cls.__name__}() got an unexpected keyword argument {name!r}. {hint}") as caught:
            cls(ones(3), **{name: 0.1})
        valid = str(caught.value).rpartition("Valid options: ")[2].split(", ")
        assert set(valid) == options and len(valid) == len(options)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[(name, "betas") for name in ("beta1", "beta2", "beta_1", "b2", "betaz")],
        *[("epsilon", "eps"), ("alpha", "lr"), ("clipnorm", "clip_norm"), ("weight_deacy", "weight_decay")],
        *[("ema_momentum", "ema_decay"), ("ema", "ema_decay")],
    ],
)
def test_misspelt_options_and_names_of_other_libraries_get_a_suggestion(name: str, meant: str) -> None:
    with refused(TypeError, f"{name!r}. Did you mean {meant!r}? Valid options: "):
        onepass.Adam(ones(3), **{name: 0.1})
    if meant != "clip_norm":  # an option of the optimizer, not of a group
        with refused(TypeError, f"{name!r} of a group of Adam. Did you mean {meant!r}? Valid options: "):
            onepass.Adam([{"params": ones(3), name: 0.1}])
        with refused(AttributeError, f"{name!r}. Did you mean {meant!r}? Valid options: "):
            setattr(onepass.Adam(ones(3)).groups[0], name, 0.1)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'eps_root'\. Valid"):  # another quantity than eps
        onepass.Adam(ones(3), eps_root=1e-8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'beta1'\. Valid"):  # SGD has no betas
        onepass.SGD(ones(3), beta1=0.9)  # type: ignore[call-arg]


def test_a_subclass_may_have_options_of_its_own() -> None:
    class Mine(onepass.Adam):
        def __init__(self, params: Any, *, alpha: float, **options: Any) -> None:
            self.alpha = alpha
            super().__init__(params, **options)

    assert Mine(ones(3), alpha=2.0, lr=0.5).alpha == 2
    with refused(TypeError, "Mine() got an unexpected keyword argument 'epsilon'. Did you mean 'eps'?"):
        Mine(ones(3), alpha=2.0, epsilon=1)


def test_a_subclass_may_define_a_property_named_like_an_option() -> None:
    class Mine(onepass.Adam):
        @property
        def betas(self) -> Any:
            return self.groups[0].betas

        @betas.setter
        def betas(self, value: Any) -> None:
            self.groups[0].betas = value

    optimizer = Mine(ones(3))
    optimizer.betas = (0.1, 0.2)
    assert optimizer.betas == (0.1, 0.2) and "betas" in dir(optimizer)


@pytest.mark.parametrize("name", ["betas", "lr", "ema_decay"])
def test_a_subclass_that_sets_an_option_before_super_init_is_refused(name: str) -> None:
    class Mine(onepass.Adam):
        def __init__(self, params: Any, value: Any) -> None:
            setattr(self, name, value)

    with refused(AttributeError, f"{name}: expected super().__init__() to run first (pass {name} to it)"):
        Mine(ones(3), 0.5)


def test_the_abstract_base_class_cannot_be_instantiated() -> None:
    for options in ({}, {"lr": 0.1}):
        with refused(TypeError, "Optimizer is abstract: use a subclass such as onepass.Adam"):
            onepass.Optimizer(ones(3), **options)


def test_the_error_about_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(KeyError, match=r"there is no preset 'pytorch', only tensorflow, keras, .*torch"):
        _ = onepass.presets["pytorch"]
    assert "pytorch" not in onepass.presets and onepass.presets.get("pytorch") is None


def test_lr_is_checked_when_set() -> None:
    optimizer = onepass.Adam([ones(3)])
    with refused(ValueError, "lr: expected at least 0, got -1", optimizer):
        optimizer.lr = -1


def test_an_initial_state_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match="overflows float32"):
        onepass.Adagrad(np.ones(3, np.float32), initial_accumulator_value=1e39)
