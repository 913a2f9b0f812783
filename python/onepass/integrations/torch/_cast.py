"""Models with bfloat16 weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TypeVar

from .. import needed

with needed("torch"):
    import torch

Model = TypeVar("Model", bound="torch.nn.Module")
_NORM = re.compile(r"Norm(\dd)?$")  # LayerNorm, BatchNorm2d, RMSNorm, and norm layers of other libraries


def cast_model(model: Model, keep_float32: Iterable[type | str] = ()) -> Model:
    """Cast the float32 parameters of a model to bfloat16, in place, except those of norm layers.

    Norm layers are modules with a class whose name ends in ``Norm``, such as ``LayerNorm``, ``RMSNorm`` or (with a
    number of dimensions) ``BatchNorm2d``. Parameters stay the same objects. Buffers do not change. Run the model
    under ``torch.autocast("cpu", torch.bfloat16)``, which casts the tensors that pass between layers.

    Args:
        model: any module.
        keep_float32: further modules and parameters that stay float32: types of modules, and patterns, as in
            ``fnmatch``, of the names of modules or parameters. A module includes all modules inside it.

    Returns:
        The model.

    Raises:
        TypeError: the model is not a module, or an item of ``keep_float32`` is neither a type nor a string.
        ValueError: a pattern matches nothing; the model has not changed.

    Example:
        >>> import torch, onepass.integrations.torch as onepass_torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        >>> model = onepass_torch.cast_model(model, keep_float32=["2"])
        >>> [str(param.dtype) for param in model.parameters()]  # doctest: +NORMALIZE_WHITESPACE
        ['torch.bfloat16', 'torch.bfloat16', 'torch.float32', 'torch.float32', 'torch.float32', 'torch.float32']
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    kept = {id(param) for module in model.modules() if _is_norm(module) for param in module.parameters(recurse=False)}
    modules = dict(model.named_modules(remove_duplicate=False))
    params = dict(model.named_parameters(remove_duplicate=False))
    for item in [keep_float32] if isinstance(keep_float32, (str, type)) else keep_float32:
        if isinstance(item, str):
            within = [module for name, module in modules.items() if name and fnmatchcase(name, item)]
            named = [param for name, param in params.items() if fnmatchcase(name, item)]
            if not within and not named:
                raise ValueError(f"keep_float32: expected the name of a module or parameter, got {item!r}")
        elif isinstance(item, type):
            within, named = [module for module in modules.values() if isinstance(module, item)], []
        else:
            raise TypeError(f"keep_float32: expected module types and name patterns, got {item!r}")
        kept |= {id(param) for module in within for param in module.parameters()} | {id(param) for param in named}
    for param in {id(param): param for param in params.values()}.values():
        if param.dtype == torch.float32 and id(param) not in kept:
            gradient, param.grad = param.grad, None
            param.data = param.data.to(torch.bfloat16)
            param.grad = None if gradient is None else gradient.to(torch.bfloat16)
    return model


def _is_norm(module: torch.nn.Module) -> bool:
    """Return True for a norm layer."""
    return any(_NORM.search(cls.__name__) for cls in type(module).__mro__)
