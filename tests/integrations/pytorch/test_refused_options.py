"""Options that onepass refuses: at construction, in an added group, in a state dict, and when they change later."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

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

    with pytest.raises(TypeError, match=r"AdamW\(\) got an unexpected keyword argument 'learning_rate'.*'lr'"):
        ours.AdamW([ones()], learning_rate=0.1)
    with pytest.raises(TypeError, match=r"Own\(\) got an unexpected keyword argument 'momentun'.*'momentum'"):
        Own([ones()], 0.1)


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
