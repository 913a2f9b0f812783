"""Default options of Adam in other libraries, as keyword arguments for `Adam`.

``presets`` maps the name of a library to ``lr``, ``betas``, ``eps`` and ``eps_mode``. Libraries differ most in
``eps_mode``, the place of epsilon: ``"paper"`` adds it to the root of the bias-corrected second moment, ``"hat"`` to
the root of the uncorrected second moment, where the same number acts like an epsilon up to ``1/sqrt(1 − beta2)`` times
larger. Presets do not include clipping, weight decay or averages. The mapping and its entries cannot be changed.

==============  ====================================  ==================================================================
name            library                               how it was checked (``tests/integrations/test_presets.py``)
==============  ====================================  ==================================================================
``tensorflow``  TensorFlow 1, ``tf.train``            the article's values, the formula in its documentation
``keras``       Keras 1 and early 2, ``decay=0.0``    the article's values, the formula of ``Adam.get_updates``
``blocks``      Blocks, with ``decay_factor=1``       the article's values, the formula of ``Adam.compute_step``
``lasagne``     Lasagne                               the article's values, the formula of ``lasagne.updates.adam``
``caffe``       Caffe                                 the article's values, the formula of ``AdamSolver``
``mxnet``       MXNet                                 the article's values, the formula in its documentation
``torch``       PyTorch                               the article's values; compared with PyTorch 2.13.0
``keras3``      Keras 3                               compared with Keras 3.15.1 (JAX backend, float64)
``optax``       optax, with ``learning_rate=1e-3``    compared with optax 0.2.8
``sklearn``     scikit-learn's ``MLPClassifier``      compared with scikit-learn 1.9.1
``thinc``       thinc (spaCy), without its clipping   compared with thinc 9.1.1 (float32)
``pennylane``   PennyLane's ``AdamOptimizer``         compared with PennyLane 0.45.1
``qiskit``      Qiskit Algorithms' ``ADAM``           compared with qiskit-algorithms 0.4.0
==============  ====================================  ==================================================================

"The article" is Jason Brownlee's "Gentle Introduction to the Adam Optimization Algorithm for Deep Learning" (2017); the
first seven names come from its list of defaults. "Compared with" a library means that a test runs 20 steps of the
library's own optimizer and requires the same results. It uses the library's defaults and an epsilon of 0.01, with
ordinary gradients and with gradients as small as epsilon, whose results depend on the place of epsilon.

Example:
    >>> import numpy as np, onepass
    >>> w = np.zeros(3, np.float32)
    >>> opt = onepass.Adam(w, **onepass.presets["keras3"])
    >>> opt.groups[0].eps, opt.groups[0].eps_mode
    (1e-07, 'hat')
    >>> opt = onepass.Adam(w, **{**onepass.presets["keras3"], "lr": 0.01})
    >>> opt.lr
    0.01
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["presets"]


def _adam(lr: float, beta1: float, beta2: float, eps: float, eps_mode: str) -> Mapping[str, Any]:
    return MappingProxyType({"lr": lr, "betas": (beta1, beta2), "eps": eps, "eps_mode": eps_mode})


class _Presets(dict[str, Mapping[str, Any]]):
    def __missing__(self, name: object) -> Mapping[str, Any]:
        raise KeyError(f"there is no preset {name!r}, only {', '.join(self)}")


presets: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    _Presets(
        {
            # The article's list.
            # tf.train.AdamOptimizer, whose documentation calls it "epsilon hat"; also tf.compat.v1
            "tensorflow": _adam(0.001, 0.9, 0.999, 1e-8, "hat"),
            # keras.optimizers.Adam of Keras 1 and early Keras 2 (later 1e-7); decay=0.0 is inverse_time(lr, decay=0.0)
            "keras": _adam(0.001, 0.9, 0.999, 1e-8, "hat"),
            # blocks.algorithms.Adam since its decay_factor is 1
            "blocks": _adam(0.002, 0.9, 0.999, 1e-8, "hat"),
            # lasagne.updates.adam
            "lasagne": _adam(0.001, 0.9, 0.999, 1e-8, "hat"),
            # AdamSolver: momentum, momentum2, and delta, which its source calls eps_hat; base_lr has no default there
            "caffe": _adam(0.001, 0.9, 0.999, 1e-8, "hat"),
            # mxnet.optimizer.Adam
            "mxnet": _adam(0.001, 0.9, 0.999, 1e-8, "hat"),
            # torch.optim.Adam. Lua Torch's optim.adam and PyTorch until 2019 (its pull request 22628) had these values
            # with epsilon in the hat place
            "torch": _adam(0.001, 0.9, 0.999, 1e-8, "paper"),
            # Today's.
            # keras.optimizers.Adam, whose documentation calls it "epsilon hat"
            "keras3": _adam(0.001, 0.9, 0.999, 1e-7, "hat"),
            # optax.adam: eps, outside the root and after the bias correction (eps_root, inside, is 0); no default rate
            "optax": _adam(0.001, 0.9, 0.999, 1e-8, "paper"),
            # sklearn.neural_network.MLPClassifier and MLPRegressor, solver="adam"
            "sklearn": _adam(0.001, 0.9, 0.999, 1e-8, "hat"),
            # thinc.optimizers.Adam; by default it also clips each gradient to a norm of 1
            "thinc": _adam(0.001, 0.9, 0.999, 1e-8, "hat"),
            # pennylane.AdamOptimizer: 0.01 is what it uses, its documentation says 0.1
            "pennylane": _adam(0.01, 0.9, 0.99, 1e-8, "hat"),
            # qiskit_algorithms.optimizers.ADAM: epsilon is its noise_factor; its eps is for finite differences
            "qiskit": _adam(0.001, 0.9, 0.99, 1e-8, "hat"),
        }
    )
)
"""The defaults of other libraries' Adam under the library's name, as keyword arguments for `Adam`."""
