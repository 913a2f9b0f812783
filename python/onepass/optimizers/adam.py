"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import Betas, EpsMode, LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


def _adam(options: Mapping[str, Any]) -> str:
    return "amsgrad" if options["amsgrad"] else "adam"


@declare(_adam)
class Adam(Optimizer):
    r"""Adam: adaptive moment estimation, in place and in one pass over memory.

    At step :math:`t = 1, 2, \dots`, for each element of each parameter :math:`p` with gradient :math:`g`::

        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        p ← p − lr/(1 − beta1^t) · m / (sqrt(v/(1 − beta2^t)) + eps)

    With ``eps_mode="hat"``, epsilon is added before the bias correction, as in TensorFlow, Keras and others::

        p ← p − lr·sqrt(1 − beta2^t)/(1 − beta1^t) · m / (sqrt(v) + eps)

    The same number then acts like an epsilon that is up to ``1/sqrt(1 − beta2)`` times larger.

    Names and defaults are those of ``torch.optim.Adam``, with these differences: parameters are NumPy arrays; the
    gradients are arguments of `step`; ``lr`` may be a function of the step; ``bias_correction``, ``eps_mode``,
    ``clip_norm`` and the options after it are additions; and subnormal numbers count as zero by default, in parameters
    and gradients too.

    Args:
        params: an array, a sequence of arrays or a mapping of names to arrays, of dtype float32, float64 or ml_dtypes'
            bfloat16, contiguous (C or Fortran order) and writeable. They are updated in place. The state holds two
            arrays of the size of each parameter.
            To use groups, pass a list of mappings. Each has an entry "params" (an array, a sequence, or in every group
            a mapping of names to arrays) and the options of the group, for example
            ``[{"params": [w], "weight_decay": 0.1}, {"params": b}]``.
        lr: the learning rate, or a function of ``t`` that returns it.
        betas: the decays of the two moments, in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2). `AdamW` has decoupled weight decay.
        amsgrad: divide by the root of the largest second moment so far, "max_exp_avg_sq".
        bias_correction: divide the moments by ``1 − beta^t``.
        eps_mode: ``"paper"`` or ``"hat"``.
        maximize: step along the gradient instead of against it.
        clip_norm: the maximum global L2 norm of the gradients: larger gradients are all scaled down by one factor.
            ``grad_norm`` is the norm before clipping; ``clip_norm=float("inf")`` records the norm without clipping.
            None: off.
        clip_value: limit each element of the gradient to ``[-clip_value, clip_value]``, after ``clip_norm``. None: off.
        nonfinite: the treatment of gradients that contain NaN or infinity, and of gradients whose squares overflow the
            dtype in an optimizer that squares gradients. ``"propagate"``: step as usual; ``"skip"``: the step changes
            nothing and adds one to ``skipped``; ``"raise"``: the step changes nothing and raises.
        ema_decay: the decay of a running average of the parameters, ``e ← e + (1 − ema_decay)·(p − e)``, or a function
            of ``t`` that returns the decay. The averages start as copies of the parameters, are updated in the same
            pass, and can be read as ``ema``. None: off.
        state_dtype: the storage of the moments: ``"bfloat16"``, or ``"float8"`` with a scale for each 128 elements.
            None: the parameter's dtype (float32 for bfloat16). Tensors of fewer than 4,096 elements keep float32 state.
            ``"float8"`` needs a first beta of at most 0.99. Fixed at construction.
        master_bits: the number of bits of a bfloat16 parameter: 32, 24 or 16. The state holds the lower bits, which
            bfloat16 does not have. With 32, results have the same bits as with a float32 parameter. Fixed at
            construction.
        rounding: rounding of moments and parameters in fewer bits: ``"stochastic"`` or ``"nearest"``. Fixed at
            construction.
        seed: the seed of stochastic rounding for all groups, from 0 to 2^64 − 1.
        flush_denormals: treat subnormal numbers as zero while stepping. They are numerically irrelevant here and slow
            on most CPUs.

    Raises:
        TypeError: a parameter is not an array or has another dtype; an option has the wrong type.
        ValueError: a parameter is read-only, not contiguous or misaligned, or shares memory with another; there are no
            parameters; an option is out of range.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1 and the end of section 2;
    amsgrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (2018).

    Example:
        >>> import numpy as np, onepass
        >>> w, b = np.ones((2, 2), np.float32), np.zeros(2, np.float32)
        >>> opt = onepass.Adam([w, b], lr=0.1)
        >>> opt.step([np.full((2, 2), 3, np.float32), np.array([1, -1], np.float32)])
        >>> w
        array([[0.9, 0.9],
               [0.9, 0.9]], dtype=float32)
        >>> b
        array([-0.1,  0.1], dtype=float32)
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)
    amsgrad = Option(_checks.flag)
    bias_correction = Option(_checks.flag)
    eps_mode = Option(_checks.eps_mode)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_mode: EpsMode = "paper",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            bias_correction=bias_correction,
            eps_mode=eps_mode,
            **common,
        )


@declare(_adam, decoupled=True)
class AdamW(Adam):
    """Adam with decoupled weight decay.

    Takes the steps of `Adam`, but weight decay shrinks the parameter before the step, ``p ← p·(1 − lr·weight_decay)``,
    and does not enter the gradient and the moments.

    Args:
        params, lr, betas, eps, amsgrad, bias_correction, eps_mode: as in `Adam`.
        weight_decay: decoupled weight decay: each step multiplies the parameter by ``1 − lr·weight_decay``.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); defaults as ``torch.optim.AdamW``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> opt = onepass.AdamW(w, lr=0.5, weight_decay=0.5)
        >>> opt.step(np.array([3, 0], np.float32))
        >>> w
        array([0.25, 0.75], dtype=float32)
    """

    __slots__ = ()

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.01,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_mode: EpsMode = "paper",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            bias_correction=bias_correction,
            eps_mode=eps_mode,
            **common,
        )
