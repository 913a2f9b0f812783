"""The target of checkpoint fuzzing: loads files, and checks what became of the optimizer."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import onepass

CORPUS = Path(__file__).parent / "persistence" / "corpus"
F = np.float32


def optimizers() -> list[Any]:
    """Return small optimizers with different state."""
    return [
        onepass.Adam({"w": np.zeros(3, F), "b": np.zeros(())}, ema_decay=0.5),
        onepass.NAdam(np.zeros((2, 2))),
        onepass.SGD([np.zeros(2, F), np.zeros(0)], momentum=0.5),
        onepass.SGD([{"params": np.zeros(1)}, {"params": [np.asfortranarray(np.zeros((2, 3)))], "lr": 0.5}]),
    ]


def state_of(optimizer: Any) -> list[Any]:
    """Return everything that loading may change, for comparison."""
    return [repr(plain(optimizer.state_dict())), repr(optimizer), repr(optimizer.groups)]


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


class Target:
    """Loader of files that checks the optimizer afterwards."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.npz"
        self.made = optimizers()
        self.loaded = self.refused = 0

    def __call__(self, data: bytes) -> None:
        """Load a file, and raise an error unless it is refused or loaded correctly."""
        if not data:
            return
        optimizer = self.made[data[0] % len(self.made)]
        self.path.write_bytes(data[1:])
        before = state_of(optimizer)
        params = [p.tobytes() for group in optimizer.groups for p in group.params]
        try:
            optimizer.load(self.path)
        except ValueError as error:
            if type(error) is not ValueError or error.__cause__ is None:
                raise RuntimeError(f"no plain refusal: {error!r}") from error
            assert state_of(optimizer) == before, "a file that was refused has changed the optimizer"
            self.refused += 1
        else:
            # The loaded state equals the contents of the file, read without onepass, and can be saved and loaded again.
            with zipfile.ZipFile(self.path) as archive:
                for index, state in enumerate(optimizer.state.values()):
                    for name, value in state.items():
                        if isinstance(value, np.ndarray):
                            stored = archive.read(f"state/{index}/{name}.npy")
                            order: Any = "F" if b"'fortran_order': True" in stored[:128] else "C"
                            assert stored[len(stored) - value.nbytes :] == value.tobytes(order)
            loaded = state_of(optimizer)
            optimizer.save(self.path)
            optimizer.load(self.path)
            assert state_of(optimizer) == loaded
            self.loaded += 1
        assert [p.tobytes() for group in optimizer.groups for p in group.params] == params
