"""Update rules: the coefficients and the update of each.

The coefficients depend only on options and step: they are computed in double and rounded to the dtype once. The update
computes the arrays of one step, in exactly the order of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .elements import Array, Elements, Numbers, average, power, real_power, rounded

# The rules. o holds the options and the learning rate at this step, k the coefficients. A state that is None is off.


def adam_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adam's coefficients at step t."""
    beta1, beta2 = o.betas
    c1 = 1 - power(beta1, t) if o.bias_correction else 1.0
    c2 = 1 - power(beta2, t) if o.bias_correction else 1.0
    paper = o.eps_mode == "paper"
    return rounded(
        dtype,
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        a=o.lr / c1 if paper else o.lr * math.sqrt(c2) / c1,
        r=1 / math.sqrt(c2) if paper else None,
        eps=o.eps,
    )


def adam(k: Numbers, p: Elements, g: Elements, m: Elements, v: Elements, u: Elements | None) -> tuple[Any, ...]:
    """Adam: Kingma and Ba (2015), algorithm 1. With u AMSGrad: Reddi, Kale and Kumar (2018)."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    u = None if u is None else u.maximum(v)
    root = (v if u is None else u).sqrt()
    d = (root if k.r is None else root * k.r) + k.eps
    return p - k.a * (m / d), m, v, u


def adamax_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adamax's coefficients at step t."""
    beta1, beta2 = o.betas
    a = o.lr / (1 - power(beta1, t))
    return rounded(dtype, beta1=beta1, one_minus_beta1=1 - beta1, beta2=beta2, a=a, eps=o.eps)


def adamax(k: Numbers, p: Elements, g: Elements, m: Elements, u: Elements) -> tuple[Any, ...]:
    """Adamax: Kingma and Ba (2015), algorithm 2; epsilon placed as in PyTorch."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    u = (k.beta2 * u).maximum(abs(g) + k.eps)
    return p - k.a * (m / u), m, u


def nadam_mu(t: int, o: Numbers) -> float:
    """The momentum of step t."""
    return float(o.betas[0] * (1 - 0.5 * math.pow(0.96, t * o.momentum_decay)))


def advance_nadam(t: int, o: Numbers) -> dict[str, float]:
    """NAdam's scalars after step t: the product of the momenta of steps 1 to t."""
    return {"mu_product": o.mu_product * nadam_mu(t, o)}


def nadam_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """NAdam's coefficients at step t."""
    beta1, beta2 = o.betas
    mu, mu_next = nadam_mu(t, o), nadam_mu(t + 1, o)
    return rounded(
        dtype,
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        a=o.lr * (1 - mu) / (1 - o.mu_product),
        b=o.lr * mu_next / (1 - o.mu_product * mu_next),
        r=1 / math.sqrt(1 - power(beta2, t)),
        eps=o.eps,
    )


def nadam(k: Numbers, p: Elements, g: Elements, m: Elements, v: Elements) -> tuple[Any, ...]:
    """NAdam: Dozat (2016), as in PyTorch."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    d = v.sqrt() * k.r + k.eps
    return p - k.a * (g / d) - k.b * (m / d), m, v


def radam_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """RAdam's coefficients at step t. If eps is None, the second moment does not scale the step."""
    beta1, beta2 = o.betas
    beta2_t = power(beta2, t)
    c1, c2 = 1 - power(beta1, t), 1 - beta2_t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2_t / c2
    adaptive = rho > 5
    if adaptive:
        rect = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return rounded(
        dtype,
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        a=o.lr * rect * math.sqrt(c2) / c1 if adaptive else o.lr / c1,
        eps=o.eps if adaptive else None,
    )


def radam(k: Numbers, p: Elements, g: Elements, m: Elements, v: Elements) -> tuple[Any, ...]:
    """RAdam: Liu et al. (2020), algorithm 2; epsilon placed as in PyTorch."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    return p - k.a * (m if k.eps is None else m / (v.sqrt() + k.eps)), m, v


def rmsprop_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """RMSprop's coefficients."""
    return rounded(dtype, lr=o.lr, alpha=o.alpha, one_minus_alpha=1 - o.alpha, eps=o.eps, momentum=o.momentum, zero=0.0)


def rmsprop(
    k: Numbers, p: Elements, g: Elements, v: Elements, s: Elements | None, b: Elements | None
) -> tuple[Any, ...]:
    """RMSprop: Tieleman and Hinton (2012); with s: centered, as in Graves (2013); with b: momentum."""
    v = variance = average(k.alpha, k.one_minus_alpha, v, g * g)
    if s is not None:
        s = average(k.alpha, k.one_minus_alpha, s, g)
        variance = (v - s * s).maximum(k.zero)
    x = g / (variance.sqrt() + k.eps)
    if b is not None:
        x = b = k.momentum * b + x
    return p - k.lr * x, v, s, b


def adagrad_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adagrad's coefficients at step t."""
    return rounded(dtype, a=o.lr / (1 + (t - 1) * o.lr_decay), eps=o.eps)


def adagrad(k: Numbers, p: Elements, g: Elements, s: Elements) -> tuple[Any, ...]:
    """Adagrad: Duchi, Hazan and Singer (2011)."""
    s = s + g * g
    return p - k.a * (g / (s.sqrt() + k.eps)), s


def adadelta_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adadelta's coefficients."""
    return rounded(dtype, lr=o.lr, rho=o.rho, one_minus_rho=1 - o.rho, eps=o.eps)


def adadelta(k: Numbers, p: Elements, g: Elements, s: Elements, acc: Elements) -> tuple[Any, ...]:
    """Adadelta: Zeiler (2012), algorithm 1, with a learning rate."""
    s = average(k.rho, k.one_minus_rho, s, g * g)
    x = ((acc + k.eps).sqrt() / (s + k.eps).sqrt()) * g
    acc = average(k.rho, k.one_minus_rho, acc, x * x)
    return p - k.lr * x, s, acc


def sgd_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """SGD's coefficients at step t."""
    k = rounded(dtype, lr=o.lr, momentum=o.momentum, one_minus_dampening=1 - o.dampening)
    k.first, k.nesterov = t == 1, o.nesterov
    return k


def sgd(k: Numbers, p: Elements, g: Elements, b: Elements | None) -> tuple[Any, ...]:
    """SGD as in PyTorch; b is the momentum buffer, which starts as a copy of the gradient."""
    x = g
    if b is not None:
        b = g if k.first else average(k.momentum, k.one_minus_dampening, b, g)
        x = g + k.momentum * b if k.nesterov else b
    return p - k.lr * x, b


def lion_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Lion's coefficients."""
    beta1, beta2 = o.betas
    return rounded(dtype, lr=o.lr, beta1=beta1, one_minus_beta1=1 - beta1, beta2=beta2, one_minus_beta2=1 - beta2)


def lion(k: Numbers, p: Elements, g: Elements, m: Elements) -> tuple[Any, ...]:
    """Lion: Chen et al. (2023), algorithm 2."""
    x = average(k.beta1, k.one_minus_beta1, m, g).sign()
    return p - k.lr * x, average(k.beta2, k.one_minus_beta2, m, g)


def ademamix_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """AdEMAMix's coefficients at step t."""
    beta1, beta2, beta3 = o.betas
    alpha = o.alpha
    if o.beta3_warmup is not None and t < o.beta3_warmup and beta3 > 0:
        x = t / o.beta3_warmup
        fast = (1 - x) / math.log(beta1) if beta1 > 0 else 0.0
        beta3 = min(math.exp(1 / (fast + x / math.log(beta3))), beta3)
    if o.alpha_warmup is not None:
        alpha *= min(1.0, t / o.alpha_warmup)
    return rounded(
        dtype,
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        beta3=beta3,
        one_minus_beta3=1 - beta3,
        k1=o.lr / (1 - power(beta1, t)),
        k2=o.lr * alpha,
        r=1 / math.sqrt(1 - power(beta2, t)),
        eps=o.eps,
    )


def ademamix(k: Numbers, p: Elements, g: Elements, m: Elements, v: Elements, slow: Elements) -> tuple[Any, ...]:
    """AdEMAMix: Pagliardini, Ablin and Grangier (2024), algorithm 1."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    slow = average(k.beta3, k.one_minus_beta3, slow, g)
    return p - (k.k1 * m + k.k2 * slow) / (v.sqrt() * k.r + k.eps), m, v, slow


def warmed_up(t: int, o: Numbers) -> float:
    """The learning rate of step t."""
    return float(o.lr * (t / o.warmup_steps if t < o.warmup_steps else 1.0))


def schedule_free_weight(t: int, o: Numbers) -> float:
    """The weight of step t in the average."""
    return real_power(float(t), o.r) * real_power(o.lr_max, o.weight_lr_power)


def advance_schedule_free(t: int, o: Numbers) -> dict[str, float]:
    """Schedule-Free's scalars after step t: the largest learning rate, and the sum of the weights."""
    o.lr_max = max(o.lr_max, warmed_up(t, o))
    return {"lr_max": o.lr_max, "weight_sum": o.weight_sum + schedule_free_weight(t, o)}


def schedule_free_coefficients(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Schedule-Free AdamW's coefficients at step t."""
    beta1, beta2 = o.betas
    lr = warmed_up(t, o)
    c = schedule_free_weight(t, o) / o.weight_sum if o.weight_sum != 0 else 0.0
    return rounded(
        dtype,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        r=1 / math.sqrt(1 - power(beta2, t)),
        eps=o.eps,
        weight_decay=o.weight_decay,
        c=c,
        a=lr * (1 - beta1 * (1 - c)),
        lr=lr,
    )


def schedule_free_adamw(k: Numbers, y: Elements, g: Elements, v: Elements, z: Elements) -> tuple[Any, ...]:
    """Schedule-Free AdamW: Defazio et al. (2024), as in the authors' package."""
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    u = g / (v.sqrt() * k.r + k.eps) + k.weight_decay * y
    y = z if k.c == 1 else y + k.c * (z - y)
    return y - k.a * u, v, z - k.lr * u


def evaluated(beta1: float, y: Array, z: Array) -> Array:
    """Schedule-Free's weights in evaluation mode: the average x, of which y = (1 - beta1)·z + beta1·x consists."""
    return np.asarray(y + y.dtype.type(1 - 1 / beta1) * (z - y))


class Rule(NamedTuple):
    """A rule with what its optimizer needs to know."""

    coefficients: Callable[[Any, int, Numbers], Numbers]
    update: Callable[..., tuple[Any, ...]]
    states: tuple[str, ...]  # in the order in which the update takes them
    squares: bool = True  # it takes squares of the gradient, which must not overflow
    scalars: Mapping[str, float] = {}  # the numbers that it keeps, before the first step
    advance: Callable[[int, Numbers], dict[str, float]] = lambda t, o: {}  # these numbers after step t
    decays: bool = False  # it takes the weight decay itself


MOMENTS = ("exp_avg", "exp_avg_sq")
SWITCHES = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered", "momentum_buffer": "momentum"}  # states of options
RULES = {
    "Adam": Rule(adam_coefficients, adam, (*MOMENTS, "max_exp_avg_sq")),
    "AdamW": Rule(adam_coefficients, adam, (*MOMENTS, "max_exp_avg_sq")),
    "Adamax": Rule(adamax_coefficients, adamax, ("exp_avg", "exp_inf"), squares=False),
    "NAdam": Rule(nadam_coefficients, nadam, MOMENTS, scalars={"mu_product": 1.0}, advance=advance_nadam),
    "RAdam": Rule(radam_coefficients, radam, MOMENTS),
    "RMSprop": Rule(rmsprop_coefficients, rmsprop, ("square_avg", "grad_avg", "momentum_buffer")),
    "Adagrad": Rule(adagrad_coefficients, adagrad, ("sum",)),
    "Adadelta": Rule(adadelta_coefficients, adadelta, ("square_avg", "acc_delta")),
    "SGD": Rule(sgd_coefficients, sgd, ("momentum_buffer",), squares=False),
    "Lion": Rule(lion_coefficients, lion, ("exp_avg",), squares=False),
    "AdEMAMix": Rule(ademamix_coefficients, ademamix, (*MOMENTS, "exp_avg_slow")),
    "ScheduleFreeAdamW": Rule(
        schedule_free_coefficients,
        schedule_free_adamw,
        ("exp_avg_sq", "z"),
        scalars={"lr_max": 0.0, "weight_sum": 0.0},
        advance=advance_schedule_free,
        decays=True,
    ),
}
