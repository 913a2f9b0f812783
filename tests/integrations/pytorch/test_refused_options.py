"""Options that onepass refuses: at construction, in an added group, in a state dict, and when they change later."""

from __future__ import annotations

import inspect
from typing import Any, Generic, TypeVar

import pytest

torch = pytest.importorskip("torch")

import onepass
import onepass.integrations.torch as ours


def ones(size: int = 2) -> Any:
    return torch.nn.Parameter(torch.ones(size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capturable": True}, "capturable"),
        ({"lr": -1.0}, "learning rate"),
        ({"differentiable": True}, "differentiable"),
        ({"clip_value": -1.0}, "clip_value"),
        ({"clip_norm": 0}, "clip_norm"),
    ],
)
def test_impossible_options_are_refused_at_construction(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.Adam([ones()], **options)


def test_a_misspelt_option_gets_a_suggestion() -> None:
    class Own(ours.SGD):
        def __init__(self, params: Any, rate: float) -> None:
            super().__init__(params, rate, momentun=0.9)

    for cls in (ours.AdamW, ours.Lion, ours.AdEMAMix, ours.ScheduleFreeAdamW):
        message = rf"^{cls.__name__}\(\) got an unexpected keyword argument 'learning_rate'.*'lr'"
        with pytest.raises(TypeError, match=message):
            cls([ones()], learning_rate=0.1)
    with pytest.raises(TypeError, match=r"Own\(\) got an unexpected keyword argument 'momentun'.*'momentum'"):
        Own([ones()], 0.1)


@pytest.mark.parametrize("name", ["Lion", "AdEMAMix", "ScheduleFreeAdamW"])
def test_arguments_and_defaults_match_the_numpy_class(name: str) -> None:
    of_torch, of_numpy = (inspect.signature(getattr(module, name)).parameters for module in (ours, onepass))
    assert of_torch.keys() - {"foreach"} == of_numpy.keys()
    assert all(of_torch[option].default == parameter.default for option, parameter in of_numpy.items())
    positional = [
        [each.name for each in found.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
        for found in (of_torch, of_numpy)
    ]
    assert positional[0][: len(positional[1])] == positional[1]


def test_mixin_in_front_of_an_optimizer_keeps_its_arguments() -> None:
    item = TypeVar("item")

    class Mixin:
        pass

    class Tagged:
        def __init__(self, params: Any, tag: str, **options: Any) -> None:
            super().__init__(params, **options)  # type: ignore[call-arg]
            self.tag = tag

    class Mixed(Mixin, Generic[item], ours.AdamW):  # type: ignore[misc]
        pass

    class Own(Tagged, ours.AdamW):  # type: ignore[misc]
        pass

    optimizer = Mixed([ones()], lr=0.5, clip_value=2.0)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["clip_value"]) == (0.5, 2.0)
    assert inspect.signature(Mixed) == inspect.signature(ours.AdamW)
    with pytest.raises(TypeError, match=r"'learning_rate'.*'lr'"):
        Mixed([ones()], learning_rate=0.5)
    assert Own([ones()], lr=0.5, tag="a").tag == "a"
    assert [*inspect.signature(Own).parameters] == ["params", "tag", "options"]


@pytest.mark.parametrize(
    ("cls", "option", "value", "expected"),
    [
        (ours.Adam, "lr", None, "a number, got None"),
        (ours.Adam, "lr", [0.1], r"a number, got \[0.1\]"),
        (ours.Adam, "lr", "0.1", "a number, got '0.1'"),
        (ours.SGD, "momentum", None, "a number, got None"),
        (ours.Adam, "maximize", callable, "a number, got <built-in function callable>"),
        (ours.Adam, "weight_decay", 1j, "a number, got 1j"),
        (ours.Adam, "eps", torch.ones(2), r"a number, got an array of shape \(2,\)"),
        (ours.Adam, "betas", 0.9, "2 numbers, got 0.9"),
        (ours.Adam, "betas", (0.9, None), r"2 numbers, got \(0.9, None\)"),
        (ours.AdEMAMix, "betas", (0.9, 0.99), r"3 numbers, got \(0.9, 0.99\)"),
        (ours.AdEMAMix, "alpha_warmup", "1", "a number, got '1'"),
    ],
)
def test_options_that_are_not_numbers_are_refused_with_their_group(
    cls: Any, option: str, value: Any, expected: str
) -> None:
    params = [ones(), ones()]
    optimizer = cls([{"params": [p]} for p in params], lr=0.5)
    has_state = False
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in params]
        kept = optimizer.param_groups[1][option]
        optimizer.param_groups[1][option] = value
        with pytest.raises(TypeError, match=rf"^param_groups\[1\]\['{option}'\]: expected {expected}$"):
            optimizer.step()
        assert all(map(torch.equal, params, before)) and bool(optimizer.state) == has_state
        optimizer.param_groups[1][option] = kept
        optimizer.step()
        has_state = bool(optimizer.state)


def test_functions_in_place_of_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="lr: expected a number, got a function"):
        ours.Lion([ones()], lr=lambda t: 0.5)
    with pytest.raises(TypeError, match="ema_decay: expected a number"):
        ours.Adam([{"params": [ones()], "ema_decay": lambda t: 0.5}])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"capturable": True}, ValueError, "capturable"),
        ({"ema_decay": 2.0}, ValueError, "ema_decay"),
        ({"clip_norm": 1.0}, ValueError, "clip_norm applies to the whole optimizer"),
        ({"nonfinite": "skip"}, ValueError, "nonfinite applies to the whole optimizer"),
        ({"ema_deacy": 0.9}, TypeError, "unexpected option 'ema_deacy' of a group: did you mean 'ema_decay'"),
    ],
)
def test_group_with_impossible_options_is_refused_and_not_added(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ours.Adam([{"params": [ones()], **options}], lr=0.1)
    optimizer = ours.Adam([{"params": [ones()], "name": "of my own"}], lr=0.1)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [ones()], **options})
    assert len(optimizer.param_groups) == 1


def test_state_dict_with_an_impossible_option_is_refused() -> None:
    optimizer = ours.Adam([ones()])
    with pytest.raises(ValueError, match="capturable"):
        optimizer.load_state_dict(torch.optim.Adam([ones()], capturable=True).state_dict())
    assert optimizer.param_groups[0]["capturable"] is False


@pytest.mark.parametrize(
    ("option", "wrong", "message"),
    [
        ("capturable", True, "capturable=True is not possible"),
        ("differentiable", True, "differentiable=True is not possible"),
        ("clip_value", -1.0, "clip_value"),
        ("ema_decay", 5.0, "ema_decay"),
    ],
)
def test_option_that_becomes_impossible_is_refused_until_it_is_set_back(option: str, wrong: Any, message: str) -> None:
    p = ones()
    p.grad = torch.ones(2)
    optimizer = ours.Adam([p], lr=0.5, clip_value=1.0, ema_decay=0.5)
    optimizer.step()
    group = optimizer.param_groups[0]
    kept, group[option] = group[option], wrong
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    group[option] = kept
    optimizer.step()
    assert optimizer.state[p]["step"] == 2
