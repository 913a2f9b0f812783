"""scikit-learn's MLPClassifier fitted with onepass.Adam, on handwritten digits.

python examples/sklearn_mlp.py
"""

from __future__ import annotations

import os
import time
import warnings
from typing import Any

# Before NumPy is loaded: its OpenBLAS then lets its threads sleep, so that onepass may use every processor.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import onepass


class Adam:
    """Optimizer interface of MLPClassifier, implemented with onepass.Adam and scikit-learn's default options.

    The interface is private to scikit-learn; it is the same in versions 1.0 to 1.9.
    """

    def __init__(self, own: Any):
        self.options: dict[str, Any] = {
            **onepass.presets["sklearn"],
            "lr": own.learning_rate_init,
            "betas": (own.beta_1, own.beta_2),
            "eps": own.epsilon,
        }
        self.params: list[Any] = []
        self.optimizer: onepass.Adam | None = None

    def update_params(self, params: list[Any], grads: list[Any]) -> None:
        if self.optimizer is None or any(a is not b for a, b in zip(self.params, params, strict=True)):
            before = self.optimizer  # early stopping, for example, replaces the weights: keep the state
            self.params, self.optimizer = list(params), onepass.Adam(params, **self.options)
            if before is not None:
                self.optimizer.load_state_dict(before.state_dict())
        self.optimizer.step(grads)

    def iteration_ends(self, time_step: int) -> None:
        """Keep the learning rate after an epoch."""

    def trigger_stopping(self, msg: str, verbose: bool) -> bool:
        if verbose:
            print(msg)
        return True


class FasterMLPClassifier(MLPClassifier):  # type: ignore[misc]
    """MLPClassifier(solver="adam") that steps with onepass: the attribute with its optimizer is replaced."""

    @property
    def _optimizer(self) -> Adam:
        return self._stepper

    @_optimizer.setter
    def _optimizer(self, own: Any) -> None:
        self._stepper = Adam(own)

    def _fit(self, *arguments: Any, **named: Any) -> Any:
        if self.solver != "adam":
            raise ValueError(f"FasterMLPClassifier steps with Adam, not {self.solver}")
        return super()._fit(*arguments, **named)


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = split
    for cls in (MLPClassifier, FasterMLPClassifier):
        model = cls((512, 512), max_iter=15, tol=0, n_iter_no_change=100, random_state=0)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 15 epochs are enough to compare
            model.fit(train_images, train_labels)
        took = time.perf_counter() - began
        print(
            f"{cls.__name__:20} loss after 1, 5, 15 epochs {model.loss_curve_[0]:.6f} {model.loss_curve_[4]:.6f} "
            f"{model.loss_curve_[14]:.6f}, {model.score(test_images, test_labels):.2%} right, {took:.2f} s"
        )


if __name__ == "__main__":
    main()
