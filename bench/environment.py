"""Environment of the process in which a case is measured.

The libraries below NumPy read these variables only once, when they are loaded, so each case needs a new process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

VARIABLES: dict[str, dict[str, str]] = {
    # The settings of most users: none.
    "default": {},
    # One thread for the products of NumPy and PyTorch, and idle threads that sleep: spinning threads would take the
    # next peer's cores.
    "quiet": {
        **dict.fromkeys(("ONEPASS_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        **{"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
    },
}
# Prefixes of variables about threads, which the process does not inherit.
PREFIXES = (
    "ONEPASS_NUM_THREADS",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "NUMBA_NUM_THREADS",
    "NUMBA_THREADING_",
)
AFFINITY = "affinity="  # a setting that is not a variable: the usable processors, such as affinity=0,1

P = ParamSpec("P")
T = TypeVar("T")


def call(environment: str, settings: Sequence[str], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function in a new process in this environment, with settings such as ``OMP_NUM_THREADS=1`` on top."""
    with _changed(environment, settings), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


@contextmanager
def _changed(environment: str, settings: Sequence[str]) -> Iterator[None]:
    """Change the environment of this process, which the new one inherits, within the block."""
    chosen = dict(setting.split("=", 1) for setting in settings if not setting.startswith(AFFINITY))
    processors = {int(n) for s in settings if s.startswith(AFFINITY) for n in s.removeprefix(AFFINITY).split(",")}
    variables = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    before, allowed = dict(os.environ), os.sched_getaffinity(0) if processors else set()
    if processors:
        os.sched_setaffinity(0, processors)
    try:
        os.environ.clear()
        os.environ.update({**variables, **VARIABLES[environment], **chosen})
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        if processors:
            os.sched_setaffinity(0, allowed)
