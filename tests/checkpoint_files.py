"""Checkpoint files for tests: state dicts to write, members to forge, refusals to expect."""

from __future__ import annotations

import copy
import io
import os
import re
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onepass import _checkpoint
from support import bits

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
SHAPES = [(), (0, 4), (1,), (7,), (1, 5), (3, 4), (2, 3, 4)]
StateDict = dict[str, Any]


def state_of(*parameters: Any, names: Any = None, **scalars: Any) -> StateDict:
    """Return a state dict whose parameters have these arrays as exp_avg, and their negatives as exp_avg_sq."""
    group = {
        "params": list(range(len(parameters))),
        **({"param_names": list(names)} if names else {}),
        "lr": 0.1 + 0.2,
        "betas": (0.9, 1 / 3),
        "eps": 1e-08,
        "maximize": False,
        "clip_value": None,
        "clip_norm": float("inf"),
        "eps_mode": "paper",
        "state_dtype": None,
        "master_bits": 32,
        "rounding": "stochastic",
    }
    states = {i: {"step": 12, "exp_avg": a, "exp_avg_sq": np.asarray(-a), **scalars} for i, a in enumerate(parameters)}
    own = {"version": 1, "optimizer": "AdamW", "step_count": 2**53, "skipped": 0}
    return {**own, "state": states, "param_groups": [group]}


def small_state() -> StateDict:
    return state_of(np.array([1.5, -2, np.nan], np.float32), np.array(3.0), names=["w", "b"])


def assert_equal(found: Any, expected: Any) -> None:
    """Assert that values are bit-identical, with equal types and equal order in memory."""
    if isinstance(expected, np.ndarray):
        assert type(found) is np.ndarray and found.dtype == expected.dtype and found.shape == expected.shape
        assert np.array_equal(bits(found), bits(expected))
        assert found.flags.writeable
        if expected.flags.forc:
            assert found.flags.c_contiguous == expected.flags.c_contiguous
    elif isinstance(expected, dict):
        assert type(found) is dict and found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for item, other in zip(found, expected):
            assert_equal(item, other)
    else:
        assert type(found) is type(expected) and found == expected


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob(".onepass-*.tmp"))


@contextmanager
def allocating_at_most(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak} bytes"


def refused(path: Path, like: StateDict, message: str = "cannot load", cause: type[BaseException] = Exception) -> str:
    """Assert that reading raises a ValueError that names the file and has a cause, and needs little memory."""
    before = copy.deepcopy(like)
    with allocating_at_most(4 << 20), pytest.raises(ValueError, match=re.escape(message)) as caught:
        _checkpoint.read(path, like)
    assert caught.type is ValueError and repr(str(path)) in str(caught.value)
    assert isinstance(caught.value.__cause__, cause)
    assert len(str(caught.value)) < len(repr(str(path))) + 300
    assert_equal(like, before)
    return str(caught.value)


def archive(path: Path, members: Any, **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members.items() if isinstance(members, dict) else members:
            file.writestr(name, data)


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
