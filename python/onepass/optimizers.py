"""Optimizer classes.

The arithmetic is the core's; `_reference.py` is its specification in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

from . import _checks, _evaluation
from ._optimizer import Optimizer
from ._options import Option, declare
from ._types import Betas, EpsMode, LearningRate, Params, ThreeBetas

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import CommonOptions


def _adam(options: Mapping[str, Any]) -> str:
    return "amsgrad" if options["amsgrad"] else "adam"


@declare(_adam)
class Adam(Optimizer):
    r"""Adam: adaptive moment estimation, in place and in one pass over memory.

    At step :math:`t = 1, 2, \dots`, for each element of each parameter :math:`p` with gradient :math:`g`::

        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        p ← p − lr/(1 − beta1^t) · m / (sqrt(v/(1 − beta2^t)) + eps)

    With ``eps_mode="hat"`` epsilon stands where TensorFlow, Keras and others have it, before the bias correction::

        p ← p − lr·sqrt(1 − beta2^t)/(1 − beta1^t) · m / (sqrt(v) + eps)

    The same number acts as one up to ``1/sqrt(1 − beta2)`` times larger there.

    Names and defaults are those of ``torch.optim.Adam``. The differences: parameters are NumPy arrays, `step` takes the
    gradients, ``lr`` may be a function of the step, ``bias_correction``, ``eps_mode`` and the options from
    ``clip_norm`` on are additions, and subnormal numbers, in parameters and gradients too, count as zero by default.

    Args:
        params: an array, a sequence of arrays or a mapping of names to arrays, of dtype float32, float64 or ml_dtypes'
            bfloat16, contiguous (C or Fortran order) and writeable. They are updated in place. State takes two arrays
            of each one's size.
            Or groups: a list of mappings with an entry "params" (an array, a sequence, or in every group a mapping of
            names to arrays) and the options that differ, as ``[{"params": [w], "weight_decay": 0.1}, {"params": b}]``.
        lr: the learning rate, or a function of ``t`` that returns one.
        betas: the decays of the two moments, in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2); see `AdamW` for the other kind.
        amsgrad: divide by the root of the largest second moment so far, "max_exp_avg_sq".
        bias_correction: divide the moments by ``1 − beta^t``.
        eps_mode: ``"paper"`` or ``"hat"``.
        maximize: step along the gradient instead of against it.
        clip_norm: scale all gradients so that their global L2 norm, then in ``grad_norm``, is at most this; infinity
            only measures. None: off.
        clip_value: clamp every element of the gradient to ±this, after ``clip_norm``. None: off.
        nonfinite: ``"propagate"``; ``"skip"``: a step whose gradients hold NaN or infinity (or, for rules that square
            them, whose squares overflow the dtype) changes nothing and adds one to ``skipped``; ``"raise"``: it changes
            nothing and raises.
        ema_decay: the decay of a running average of the parameters, ``e ← e + (1 − ema_decay)·(p − e)``, or a function
            of ``t`` that returns one. The averages start as copies, are written in the same pass and read as ``ema``.
            None: off.
        state_dtype: the storage of the moments: ``"bfloat16"``, or ``"float8"`` with a scale for each 128 elements.
            None: the parameter's dtype (float32 for bfloat16). Tensors of fewer than 4,096 elements keep float32 state.
            Float8 needs a first beta of at most 0.99. Fixed at construction.
        master_bits: the bits of a bfloat16 parameter, 32, 24 or 16. The state keeps those that bfloat16 does not have;
            32 trains with the bits of a float32 parameter. Fixed at construction.
        rounding: ``"stochastic"`` or ``"nearest"``, of moments and parameters in fewer bits. Fixed at construction.
        seed: the seed of stochastic rounding, in 0 … 2^64 − 1, for the whole optimizer.
        flush_denormals: treat subnormal numbers as zero while stepping. They are numerically irrelevant here and slow
            on most CPUs.

    Raises:
        TypeError: a parameter that is no array, or of another dtype; an option of the wrong type.
        ValueError: a parameter that is read-only, not contiguous, misaligned, or that shares memory with another; no
            parameters; an option out of its range.

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

    As `Adam`, but weight decay shrinks the parameter, ``p ← p·(1 − lr·weight_decay)`` before the step, instead of
    entering the gradient and its moments.

    Args:
        params: as in `Adam`, and so are the other arguments that are not named here: ``lr``, ``betas``, ``eps``,
            ``amsgrad``, and by name ``bias_correction``, ``eps_mode``, ``maximize``, ``clip_norm``, ``clip_value``,
            ``nonfinite``, ``ema_decay``, ``state_dtype``, ``master_bits``, ``rounding``, ``seed``, ``flush_denormals``.
        weight_decay: decoupled weight decay; each step multiplies the parameter by ``1 − lr·weight_decay``.

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


@declare("adamax")
class Adamax(Optimizer):
    """Adamax: Adam with the infinity norm in place of the second moment.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        u ← max(beta2·u, |g| + eps)              infinity norm, "exp_inf"
        p ← p − lr/(1 − beta1^t) · m / u

    Args:
        params: as in `Adam`. State takes two arrays of each one's size.
        lr: the learning rate, or a function of ``t`` that returns one.
        betas: the decays of the first moment and of the infinity norm, in [0, 1).
        eps: added to the size of the gradient.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Kingma and Ba (2015), section 7.1; names, defaults and the place of epsilon as ``torch.optim.Adamax``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> onepass.Adamax(w, lr=0.5).step(np.array([3, -1], np.float32))
        >>> w
        array([0.5, 1.5], dtype=float32)
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)


@declare("nadam", decoupled="decoupled_weight_decay")
class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        mu(t) = beta1·(1 − 0.5·0.96^(t·momentum_decay)),  P(t) = mu(1)·mu(2)·…·mu(t)
        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        d = sqrt(v/(1 − beta2^t)) + eps
        p ← p − lr·(1 − mu(t))/(1 − P(t)) · g/d − lr·mu(t+1)/(1 − P(t+1)) · m/d

    The product ``P`` of momenta is kept in the state, as "mu_product".

    Args:
        params: as in `Adam`. State takes two arrays of each one's size.
        lr: the learning rate, or a function of ``t`` that returns one.
        betas: the decays of the two moments, in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2), or is decoupled.
        momentum_decay: how fast the momentum rises to ``beta1``.
        decoupled_weight_decay: weight decay shrinks the parameter instead, as in `AdamW`.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam" (2016); names, defaults and the schedule of the momentum
    as ``torch.optim.NAdam``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.NAdam(w, lr=0.5).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.4718, 1.5282])
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)
    momentum_decay = Option(_checks.non_negative)
    decoupled_weight_decay = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        momentum_decay: SupportsFloat = 4e-3,
        decoupled_weight_decay: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )


@declare("radam", decoupled="decoupled_weight_decay")
class RAdam(Optimizer):
    """RAdam: Adam without the second moment in the first steps, until its variance is known.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        rho_inf = 2/(1 − beta2) − 1,  rho = rho_inf − 2·t·beta2^t/(1 − beta2^t)
        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        p ← p − lr/(1 − beta1^t) · m             while rho ≤ 5 (5 steps with the default betas), then
        p ← p − lr·rect·sqrt(1 − beta2^t)/(1 − beta1^t) · m / (sqrt(v) + eps)
        rect = sqrt((rho − 4)·(rho − 2)·rho_inf / ((rho_inf − 4)·(rho_inf − 2)·rho))

    The first steps are steps with momentum, proportional to the gradients. Then ``rect`` rises from 0 to 1 and
    serves as a warmup.

    Args:
        params: as in `Adam`. State takes two arrays of each one's size.
        lr: the learning rate, or a function of ``t`` that returns one.
        betas: the decays of the two moments, in [0, 1).
        eps: added to the root of the second moment for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2), or is decoupled.
        decoupled_weight_decay: weight decay shrinks the parameter instead, as in `AdamW`.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (2020); names, defaults and the place
    of epsilon as ``torch.optim.RAdam``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.RAdam(w, lr=0.5).step(np.array([1.0, -0.5]))
        >>> w
        array([0.5 , 1.25])
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)
    decoupled_weight_decay = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )


def _rmsprop(options: Mapping[str, Any]) -> str:
    return f"rmsprop{'_centered' * options['centered']}{'_momentum' * (options['momentum'] != 0)}"


@declare(_rmsprop)
class RMSprop(Optimizer):
    """RMSprop: the gradient over the root of its mean square.

    For each element of each parameter ``p`` with gradient ``g``::

        v ← alpha·v + (1 − alpha)·g²             mean square, "square_avg"
        x = g / (sqrt(v) + eps)
        p ← p − lr·x

    With ``centered`` the root is the standard deviation's, ``sqrt(max(v − s², 0))``, with the mean
    ``s ← alpha·s + (1 − alpha)·g``, "grad_avg". With ``momentum`` the step is along ``b ← momentum·b + x``,
    "momentum_buffer".

    Args:
        params: as in `Adam`. State takes one to three arrays of each one's size.
        lr: the learning rate, or a function of the step that returns one.
        alpha: the decay of the averages, in [0, 1].
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        momentum: the decay of the steps' sum. On (above 0) or off is fixed at construction.
        centered: divide by the standard deviation. PyTorch does not take the maximum with 0 and may give NaN.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Tieleman and Hinton, "Neural Networks for Machine Learning", lecture 6.5 (2012); centered: Graves,
    "Generating Sequences With Recurrent Neural Networks" (2013); names and defaults as ``torch.optim.RMSprop``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.RMSprop(w, lr=0.05).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.5, 1.5])
    """

    __slots__ = ()

    alpha = Option(_checks.unit_interval)
    eps = Option(_checks.non_negative)
    momentum = Option(_checks.non_negative)
    centered = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        alpha: SupportsFloat = 0.99,
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        momentum: SupportsFloat = 0.0,
        centered: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            **common,
        )


@declare("adagrad", initial="initial_accumulator_value")
class Adagrad(Optimizer):
    """Adagrad: the gradient over the root of the sum of all squares so far.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        s ← s + g²                               "sum"
        p ← p − lr/(1 + (t − 1)·lr_decay) · g / (sqrt(s) + eps)

    Args:
        params: as in `Adam`. State takes one array of each one's size.
        lr: the learning rate, or a function of ``t`` that returns one.
        lr_decay: how fast the learning rate falls.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        initial_accumulator_value: the initial value of the sums.
        eps: added to the denominator for numerical stability.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization"
    (2011); names and defaults as ``torch.optim.Adagrad``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> onepass.Adagrad(w, lr=0.5).step(np.array([3, -1], np.float32))
        >>> w
        array([0.5, 1.5], dtype=float32)
    """

    __slots__ = ()

    lr_decay = Option(_checks.non_negative)
    initial_accumulator_value = Option(_checks.non_negative)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        lr_decay: SupportsFloat = 0.0,
        weight_decay: SupportsFloat = 0.0,
        initial_accumulator_value: SupportsFloat = 0.0,
        eps: SupportsFloat = 1e-10,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            **common,
        )


@declare("adadelta", flush_from_eps=1e-32)
class Adadelta(Optimizer):
    """Adadelta: steps scaled by the ratio of RMS updates to RMS gradients, without a tuned learning rate.

    For each element of each parameter ``p`` with gradient ``g``::

        s ← rho·s + (1 − rho)·g²                 mean square of the gradients, "square_avg"
        x = sqrt(acc + eps) / sqrt(s + eps) · g
        acc ← rho·acc + (1 − rho)·x²             mean square of the steps, "acc_delta"
        p ← p − lr·x

    Args:
        params: as in `Adam`. State takes two arrays of each one's size.
        lr: a factor for the steps, or a function of the step that returns one.
        rho: the decay of both averages, in [0, 1].
        eps: added under the roots; it gives the first steps their size.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012); names and defaults as ``torch.optim.Adadelta``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.Adadelta(w).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.9968, 1.0032])
    """

    __slots__ = ()

    rho = Option(_checks.unit_interval)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1.0,
        rho: SupportsFloat = 0.9,
        eps: SupportsFloat = 1e-6,
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, **common)


def _check_nesterov(options: Mapping[str, Any]) -> None:
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        raise ValueError(
            "nesterov needs a momentum above 0 and no dampening, got "
            f"momentum={options['momentum']!r}, dampening={options['dampening']!r}"
        )


@declare(lambda options: "sgd_momentum" if options["momentum"] else "sgd", validate=_check_nesterov)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum or Nesterov's momentum.

    For each element of each parameter ``p`` with gradient ``g``::

        p ← p − lr·g                             without momentum
        b ← momentum·b + (1 − dampening)·g       with it, "momentum_buffer"; b ← g at the first step
        p ← p − lr·b                             or, with nesterov, p ← p − lr·(g + momentum·b)

    Args:
        params: as in `Adam`. State takes one array of each one's size with momentum, none without.
        lr: the learning rate, or a function of the step that returns one.
        momentum: the decay of the momentum. On (above 0) or off is fixed at construction.
        dampening: the share of the gradient that does not enter the momentum.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        nesterov: use Nesterov momentum. It needs a momentum above 0 and no dampening.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`; ValueError: nesterov without momentum or with dampening.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods" (1964); Sutskever et al., "On the
    importance of initialization and momentum in deep learning" (2013), in the form of ``torch.optim.SGD``, whose names
    and defaults these are.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> opt = onepass.SGD(w, lr=0.25, momentum=0.5, nesterov=True)
        >>> opt.step(np.array([1, -1], np.float32))
        >>> w
        array([0.625, 1.375], dtype=float32)
    """

    __slots__ = ()

    momentum = Option(_checks.non_negative)
    dampening = Option(_checks.finite)
    nesterov = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        momentum: SupportsFloat = 0.0,
        dampening: SupportsFloat = 0.0,
        weight_decay: SupportsFloat = 0.0,
        nesterov: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            **common,
        )


@declare("lion", decoupled=True, moment_beta=1)
class Lion(Optimizer):
    """Lion: steps by the sign of the momentum.

    For each element of each parameter ``p`` with gradient ``g``::

        p ← p·(1 − lr·weight_decay)              decoupled weight decay
        p ← p − lr·sign(beta1·m + (1 − beta1)·g)
        m ← beta2·m + (1 − beta2)·g              momentum, "exp_avg"

    Every step has the size ``lr``, so Lion wants one three to ten times smaller than Adam's, and a larger decay.

    Args:
        params: as in `Adam`. State takes one array of each one's size.
        lr: the learning rate, or a function of the step that returns one.
        betas: the momentum's share in the step, and its decay; in [0, 1).
        weight_decay: decoupled weight decay; each step multiplies the parameter by ``1 − lr·weight_decay``.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023).

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(3, np.float32)
        >>> onepass.Lion(w, lr=0.5).step(np.array([3, 0, -1], np.float32))
        >>> w
        array([0.5, 1. , 1.5], dtype=float32)
    """

    __slots__ = ()

    betas = Option(_checks.betas)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, **common)


@declare("ademamix", decoupled=True)
class AdEMAMix(Optimizer):
    """AdEMAMix: AdamW with a second, slow average of the gradients.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        m ← beta1·m + (1 − beta1)·g              fast first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        n ← beta3(t)·n + (1 − beta3(t))·g        slow first moment, "exp_avg_slow"
        p ← p·(1 − lr·weight_decay)              decoupled weight decay
        p ← p − lr·(m/(1 − beta1^t) + alpha(t)·n) / (sqrt(v/(1 − beta2^t)) + eps)

    The slow moment remembers about ``1/(1 − beta3)`` gradients, 10,000 by default. The warmups keep the first steps
    small: with ``x = t/beta3_warmup`` and ``t`` below the warmups ::

        alpha(t) = alpha·t/alpha_warmup
        beta3(t) = min(exp(1/((1 − x)/ln(beta1) + x/ln(beta3))), beta3)

    The paper sets both to the number of all steps.

    Args:
        params: as in `Adam`. State takes three arrays of each one's size.
        lr: the learning rate, or a function of ``t`` that returns one.
        betas: the decays of the fast first moment, of the second moment and of the slow first moment, in [0, 1).
        alpha: the weight of the slow first moment.
        alpha_warmup: the number of steps in which alpha rises from 0 to its value. None: it has its value from the
            first step on.
        beta3_warmup: the number of steps in which the decay of the slow moment rises from the first beta to the third.
            None: it has its value from the first step on.
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight decay; each step multiplies the parameter by ``1 − lr·weight_decay``.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`; with ``state_dtype="float8"`` the slow moment, for which
            float8 is too coarse, is stored in bfloat16.

    Raises:
        TypeError, ValueError: as `Adam`.

    Source: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older" (2024), algorithm 1.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.AdEMAMix(w, lr=0.5, betas=(0.9, 0.999, 0.99), alpha=10.0).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.45, 1.55])
    """

    __slots__ = ()

    betas = Option(_checks.three_betas)
    alpha = Option(_checks.non_negative)
    alpha_warmup = Option(_checks.steps_or_none)
    beta3_warmup = Option(_checks.steps_or_none)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: ThreeBetas = (0.9, 0.999, 0.9999),
        alpha: SupportsFloat = 5.0,
        alpha_warmup: int | None = None,
        beta3_warmup: int | None = None,
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            alpha=alpha,
            alpha_warmup=alpha_warmup,
            beta3_warmup=beta3_warmup,
            eps=eps,
            weight_decay=weight_decay,
            **common,
        )


def _check_schedule_free(options: Mapping[str, Any]) -> None:
    if options["betas"][0] == 0:
        raise ValueError(f"betas: expected betas[0] above 0, got {options['betas'][0]!r} (0.9 to 0.98 are common)")


@declare(
    "schedule_free_adamw",
    validate=_check_schedule_free,
    moment_beta=None,
    evaluation_weight=lambda options: 1 - 1 / options["betas"][0],
)
class ScheduleFreeAdamW(Optimizer):
    """Schedule-Free AdamW: an average of the weights in place of a schedule of the learning rate.

    At step ``t = 1, 2, …``, for each element of each parameter ``y`` with gradient ``g``::

        lr(t) = lr·min(1, t/warmup_steps)        "lr_max": the largest of these so far
        q(t) = t^r · lr_max^weight_lr_power,  c = q(t) / (q(1) + … + q(t))
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        u = g / (sqrt(v/(1 − beta2^t)) + eps) + weight_decay·y
        z ← z − lr(t)·u                          plain steps, "z"
        x ← (1 − c)·x + c·z                      their weighted average
        y = (1 − beta1)·z + beta1·x

    While training the parameters hold ``y``, where gradients must be taken. `eval` puts the average ``x`` into them,
    the weights to evaluate and to deploy, and `train` puts ``y`` back. A new optimizer is in training mode, with
    ``x = y = z``. The sum of all ``q`` is kept in the state, as "weight_sum".

    Args:
        params: as in `Adam`. State takes two arrays of each one's size, and one more in evaluation mode.
        lr: the learning rate, or a function of ``t`` that returns one. A constant, larger than Adam's, is common.
        betas: the share of ``x`` in ``y``, in (0, 1), and the decay of the second moment, in [0, 1). ``x`` is computed
            from ``y`` and ``z``, with rounding errors that grow as ``1/betas[0]``.
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·y`` to the normalized gradient.
        warmup_steps: the number of steps in which the learning rate rises linearly.
        r: the power of ``t`` in the weight of a step.
        weight_lr_power: the power of the largest learning rate so far in the weight of a step.
        maximize, clip_norm, clip_value, nonfinite, flush_denormals: as in `Adam`.
        ema_decay: as in `Adam`, an average of ``y``. ``x`` needs no other average.
        state_dtype, master_bits, rounding, seed: as in `Adam`; "z" always has the dtype of the arithmetic.

    Raises:
        TypeError, ValueError: as `Adam`; ValueError: ``betas[0]`` is 0.

    Source: Defazio et al., "The Road Less Scheduled" (2024); names, defaults and steps as ``AdamWScheduleFree`` in the
    authors' package schedulefree 1.4.1, which starts in evaluation mode.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> opt = onepass.ScheduleFreeAdamW(w, lr=0.25, betas=(0.5, 0.999))
        >>> for _ in range(2):
        ...     opt.step(np.array([3, -1], np.float32))
        >>> w
        array([0.5625, 1.4375], dtype=float32)
        >>> opt.eval()
        >>> w
        array([0.625, 1.375], dtype=float32)
        >>> opt.train()
        >>> w
        array([0.5625, 1.4375], dtype=float32)
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)
    warmup_steps = Option(_checks.count)
    r = Option(_checks.non_negative)
    weight_lr_power = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2.5e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        warmup_steps: int = 0,
        r: SupportsFloat = 0.0,
        weight_lr_power: SupportsFloat = 2.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            **common,
        )

    def eval(self) -> None:
        """Put the averages ``x`` into the parameters, in place: to evaluate, or to save the weights for use.

        The state keeps a copy of ``y`` until `train`, as ``"y"``. Steps and `add_group` are refused until then. Does
        nothing in evaluation mode. What is saved in evaluation mode resumes in it. bfloat16 parameters take ``x``
        rounded to nearest.

        Raises:
            MemoryError: no room for the copy. Nothing has changed.
        """
        _evaluation.switch(self, True)

    def train(self) -> None:
        """Put ``y`` back into the parameters, in place, bit for bit. Does nothing in training mode."""
        _evaluation.switch(self, False)
