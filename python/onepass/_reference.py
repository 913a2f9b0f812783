"""Executable specification of the kernels in NumPy, one operation at a time.

Each rule is a fold (the numbers that depend only on options and step, in double, rounded to the dtype once) and an
update of one step's arrays, in exactly the order in which the kernels do it. All rules share `around`,
the class `Reference` a whole optimizer; `_reference_storage` has storage in fewer bits. The kernels must give the same
bits. Input is taken to be valid.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Context, Decimal
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _reference_storage as storage
from . import optimizers

Array = npt.NDArray[Any]
Numbers = SimpleNamespace


class Elements:
    """An array of which every operation is one IEEE-754 operation of its dtype.

    With ``flush``, subnormal numbers count as zero of the same sign, as inputs and as results, and a result counts as
    subnormal if it is so after rounding to full precision: what x86 processors do with FTZ and DAZ set.
    """

    __array_ufunc__ = None  # make NumPy scalars defer to Elements' operators

    def __init__(self, values: Any, flush: bool) -> None:
        self.values = np.asarray(values)
        self.flush = flush

    def _operands(self, other: Any) -> tuple[Array, Array]:
        b = other.values if isinstance(other, Elements) else np.asarray(other)
        assert self.values.dtype == b.dtype
        return (flushed(self.values), flushed(b)) if self.flush else (self.values, b)

    def __add__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        return Elements(flushed(a + b) if self.flush else a + b, self.flush)  # a subnormal sum is exact

    def __sub__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        return Elements(flushed(a - b) if self.flush else a - b, self.flush)

    def __mul__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        if not self.flush:
            return Elements(a * b, self.flush)
        # Scaled up, the product is rounded to full precision. Where it may be tiny, the smaller factor has room.
        big = scale(a.dtype)
        smaller, larger = np.where(abs(a) < abs(b), a, b), np.where(abs(a) < abs(b), b, a)
        return Elements(flushed_if(abs((smaller * big) * larger) < tiny(a.dtype) * big, a * b), self.flush)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        if not self.flush:
            return Elements(a / b, self.flush)
        big = scale(a.dtype)
        return Elements(flushed_if(abs((a * big) / b) < tiny(a.dtype) * big, a / b), self.flush)

    def sqrt(self) -> Elements:
        return Elements(np.sqrt(flushed(self.values) if self.flush else self.values), self.flush)

    # Comparisons and copies. Comparisons take subnormals for zero, copies do not flush.

    def __abs__(self) -> Elements:
        return Elements(abs(self.values), self.flush)

    def maximum(self, other: Any) -> Elements:
        """``(a > b or a is NaN) ? a : b``."""
        a, b = self._operands(other)
        return Elements(np.where((a > b) | np.isnan(a), self.values, getattr(other, "values", other)), self.flush)

    def clamped(self, limit: Any) -> Elements:
        """``a < -limit ? -limit : a``, then ``a > limit ? limit : a``: NaN passes."""
        a, c = self._operands(limit)
        return Elements(np.where(a < -c, -limit, np.where(a > c, limit, self.values)), self.flush)

    def sign(self) -> Elements:
        """``a > 0 ? 1 : a < 0 ? -1 : a is NaN ? a : +0``."""
        a, zero = self._operands(self.values.dtype.type(0))
        return Elements(np.where(np.isnan(a), a, (a > zero).astype(a.dtype) - (a < zero)), self.flush)


def tiny(dtype: Any) -> Any:
    """The smallest normal number."""
    return np.finfo(dtype).tiny


def scale(dtype: Any) -> Any:
    """A power of two that lifts every subnormal result into the normal range."""
    return dtype.type(2.0**64 if dtype == np.float32 else 2.0**512)


def flushed_if(condition: Any, values: Any) -> Array:
    return np.asarray(np.where(condition, np.copysign(np.zeros_like(values), values), values))


def flushed(values: Any) -> Array:
    return flushed_if(abs(values) < tiny(values.dtype), values)


@lru_cache(maxsize=4096)
def power(base: float, exponent: int) -> float:
    """The double nearest to base**exponent: 60 digits, rounded once."""
    context = Context(prec=60, Emin=-(10**17), Emax=10**17)
    return float(context.power(Decimal(base), exponent))


def rounded(dtype: Any, **numbers: float | None) -> Numbers:
    """Each number rounded to the dtype, once."""
    to = np.dtype(dtype).type
    return Numbers(**{name: None if x is None else to(x) for name, x in numbers.items()})


def average(decay: Any, one_minus_decay: Any, old: Elements, new: Elements) -> Elements:
    """The running average that most rules are made of."""
    return decay * old + one_minus_decay * new  # type: ignore[no-any-return]


# The rules. o holds the options and the learning rate at this step, k the folded numbers. A state that is None is off.


def fold_adam(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adam's numbers at step t."""
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


def fold_adamax(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adamax's numbers at step t."""
    beta1, beta2 = o.betas
    a = o.lr / (1 - power(beta1, t))
    return rounded(dtype, beta1=beta1, one_minus_beta1=1 - beta1, beta2=beta2, a=a, eps=o.eps)


def adamax(k: Numbers, p: Elements, g: Elements, m: Elements, u: Elements) -> tuple[Any, ...]:
    """Adamax: Kingma and Ba (2015), algorithm 2; epsilon where torch has it."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    u = (k.beta2 * u).maximum(abs(g) + k.eps)
    return p - k.a * (m / u), m, u


def nadam_mu(t: int, o: Numbers) -> float:
    """The momentum of step t."""
    return float(o.betas[0] * (1 - 0.5 * math.pow(0.96, t * o.momentum_decay)))


def advance_nadam(t: int, o: Numbers) -> dict[str, float]:
    """NAdam's scalars after step t: the product of the momenta of steps 1 to t."""
    return {"mu_product": o.mu_product * nadam_mu(t, o)}


def fold_nadam(dtype: Any, t: int, o: Numbers) -> Numbers:
    """NAdam's numbers at step t."""
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
    """NAdam: Dozat (2016), as torch has it."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    d = v.sqrt() * k.r + k.eps
    return p - k.a * (g / d) - k.b * (m / d), m, v


def fold_radam(dtype: Any, t: int, o: Numbers) -> Numbers:
    """RAdam's numbers at step t. Without epsilon the second moment does not scale the step."""
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
    """RAdam: Liu et al. (2020), algorithm 2; epsilon where torch has it."""
    m = average(k.beta1, k.one_minus_beta1, m, g)
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    return p - k.a * (m if k.eps is None else m / (v.sqrt() + k.eps)), m, v


def fold_rmsprop(dtype: Any, t: int, o: Numbers) -> Numbers:
    """RMSprop's numbers."""
    return rounded(dtype, lr=o.lr, alpha=o.alpha, one_minus_alpha=1 - o.alpha, eps=o.eps, momentum=o.momentum, zero=0.0)


def rmsprop(
    k: Numbers, p: Elements, g: Elements, v: Elements, s: Elements | None, b: Elements | None
) -> tuple[Any, ...]:
    """RMSprop: Tieleman and Hinton (2012); with s centered, as Graves (2013) has it; with momentum b."""
    v = variance = average(k.alpha, k.one_minus_alpha, v, g * g)
    if s is not None:
        s = average(k.alpha, k.one_minus_alpha, s, g)
        variance = (v - s * s).maximum(k.zero)
    x = g / (variance.sqrt() + k.eps)
    if b is not None:
        x = b = k.momentum * b + x
    return p - k.lr * x, v, s, b


def fold_adagrad(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adagrad's numbers at step t."""
    return rounded(dtype, a=o.lr / (1 + (t - 1) * o.lr_decay), eps=o.eps)


def adagrad(k: Numbers, p: Elements, g: Elements, s: Elements) -> tuple[Any, ...]:
    """Adagrad: Duchi, Hazan and Singer (2011)."""
    s = s + g * g
    return p - k.a * (g / (s.sqrt() + k.eps)), s


def fold_adadelta(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Adadelta's numbers."""
    return rounded(dtype, lr=o.lr, rho=o.rho, one_minus_rho=1 - o.rho, eps=o.eps)


def adadelta(k: Numbers, p: Elements, g: Elements, s: Elements, acc: Elements) -> tuple[Any, ...]:
    """Adadelta: Zeiler (2012), algorithm 1, with a learning rate."""
    s = average(k.rho, k.one_minus_rho, s, g * g)
    x = ((acc + k.eps).sqrt() / (s + k.eps).sqrt()) * g
    acc = average(k.rho, k.one_minus_rho, acc, x * x)
    return p - k.lr * x, s, acc


def fold_sgd(dtype: Any, t: int, o: Numbers) -> Numbers:
    """SGD's numbers at step t."""
    k = rounded(dtype, lr=o.lr, momentum=o.momentum, one_minus_dampening=1 - o.dampening)
    k.first, k.nesterov = t == 1, o.nesterov
    return k


def sgd(k: Numbers, p: Elements, g: Elements, b: Elements | None) -> tuple[Any, ...]:
    """SGD, as torch has it: with momentum b, which starts as a copy of the gradient."""
    x = g
    if b is not None:
        b = g if k.first else average(k.momentum, k.one_minus_dampening, b, g)
        x = g + k.momentum * b if k.nesterov else b
    return p - k.lr * x, b


def fold_lion(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Lion's numbers."""
    beta1, beta2 = o.betas
    return rounded(dtype, lr=o.lr, beta1=beta1, one_minus_beta1=1 - beta1, beta2=beta2, one_minus_beta2=1 - beta2)


def lion(k: Numbers, p: Elements, g: Elements, m: Elements) -> tuple[Any, ...]:
    """Lion: Chen et al. (2023), algorithm 2."""
    x = average(k.beta1, k.one_minus_beta1, m, g).sign()
    return p - k.lr * x, average(k.beta2, k.one_minus_beta2, m, g)


def fold_ademamix(dtype: Any, t: int, o: Numbers) -> Numbers:
    """AdEMAMix's numbers at step t."""
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


def real_power(base: float, exponent: float) -> float:
    """A power by the C library, but for squares."""
    return base * base if exponent == 2 else math.pow(base, exponent)


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


def fold_schedule_free(dtype: Any, t: int, o: Numbers) -> Numbers:
    """Schedule-Free AdamW's numbers at step t."""
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
        is_first=t == 1,
    )


def schedule_free_adamw(k: Numbers, y: Elements, g: Elements, v: Elements, z: Elements) -> tuple[Any, ...]:
    """Schedule-Free AdamW: Defazio et al. (2024), as the authors' package has it."""
    v = average(k.beta2, k.one_minus_beta2, v, g * g)
    u = g / (v.sqrt() * k.r + k.eps) + k.weight_decay * y
    z = y if k.is_first else z
    y = z if k.c == 1 else y + k.c * (z - y)
    return y - k.a * u, v, z - k.lr * u


def evaluated(beta1: float, y: Array, z: Array) -> Array:
    """Schedule-Free's weights in evaluation mode: the average x, of which y = (1 - beta1)·z + beta1·x consists."""
    return np.asarray(y + y.dtype.type(1 - 1 / beta1) * (z - y))


# Operations before and after every rule.


def around(p: Elements, g: Elements, scale: float, o: Numbers) -> tuple[Elements, Elements]:
    """Return the parameter and the gradient as the rule sees them."""
    k = rounded(
        p.values.dtype,
        scale=-scale if o.maximize else scale,
        clip_value=o.clip_value,
        weight_decay=o.weight_decay,
        shrink=1 - o.lr * o.weight_decay,
    )
    if k.scale != 1:
        g = g * k.scale
    if o.clip_value is not None:
        g = g.clamped(k.clip_value)
    if o.weight_decay != 0 and not o.decoupled_weight_decay:
        g = g + k.weight_decay * p
    if o.weight_decay != 0 and o.decoupled_weight_decay:
        p = p * k.shrink
    return p, g


def running_average(decay: float, e: Elements, p: Elements) -> Elements:
    """The average of the weights after the rule: e + w·(p - e), which a constant p does not move; w = 1: p itself."""
    k = rounded(p.values.dtype, w=1 - decay)
    return p if k.w == 1 else e + k.w * (p - e)


def global_norm(grads: Iterable[Array], grad_scale: float = 1.0) -> float:
    """|grad_scale| times the root of the sum of all squares, in double, of the elements as they lie in memory."""
    total = 0.0
    for grad in grads:
        elements = grad.ravel(order="K").astype(np.float64)
        for start in range(0, elements.size, 4096):
            total += sum_of_squares(elements[start : start + 4096])
    return abs(grad_scale) * math.sqrt(total)


def sum_of_squares(block: Array) -> float:
    """Element i goes to accumulator i % 16; the accumulators are added as a tree."""
    squares = np.zeros((-(-block.size // 16), 16))
    squares.flat[: block.size] = block * block
    lanes = np.add.accumulate(squares)[-1]  # one row after the other
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def is_usable(grad: Array, grad_scale: float, squares: bool) -> bool:
    """Return True if a scaled gradient is finite, and so are its squares if the rule takes them."""
    scale = grad.dtype.type(grad_scale)
    g = grad if scale == 1 else grad * scale
    return bool(np.isfinite(g * g if squares else g).all())


def summed_rows(indices: Iterable[int], values: Array) -> tuple[list[int], Array]:
    """Each row that occurs, ascending, and the sum of its values in the order given."""
    sums: dict[int, Array] = {}
    for row, value in zip(indices, values):
        sums[int(row)] = sums[int(row)] + value if int(row) in sums else value
    rows = sorted(sums)
    return rows, np.array([sums[row] for row in rows], values.dtype).reshape(len(rows), *values.shape[1:])


# Whole optimizers.


class Rule(NamedTuple):
    """A rule with what its optimizer needs to know."""

    fold: Callable[[Any, int, Numbers], Numbers]
    update: Callable[..., tuple[Any, ...]]
    states: tuple[str, ...]  # in the order in which the update takes them
    squares: bool = True  # it takes squares of the gradient, which must not overflow
    scalars: Mapping[str, float] = {}  # the numbers that it keeps, before the first step
    advance: Callable[[int, Numbers], dict[str, float]] = lambda t, o: {}  # these numbers after step t
    decays: bool = False  # it takes the weight decay itself


MOMENTS = ("exp_avg", "exp_avg_sq")
SWITCHES = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered", "momentum_buffer": "momentum"}  # states of options
RULES = {
    "Adam": Rule(fold_adam, adam, (*MOMENTS, "max_exp_avg_sq")),
    "AdamW": Rule(fold_adam, adam, (*MOMENTS, "max_exp_avg_sq")),
    "Adamax": Rule(fold_adamax, adamax, ("exp_avg", "exp_inf"), squares=False),
    "NAdam": Rule(fold_nadam, nadam, MOMENTS, scalars={"mu_product": 1.0}, advance=advance_nadam),
    "RAdam": Rule(fold_radam, radam, MOMENTS),
    "RMSprop": Rule(fold_rmsprop, rmsprop, ("square_avg", "grad_avg", "momentum_buffer")),
    "Adagrad": Rule(fold_adagrad, adagrad, ("sum",)),
    "Adadelta": Rule(fold_adadelta, adadelta, ("square_avg", "acc_delta")),
    "SGD": Rule(fold_sgd, sgd, ("momentum_buffer",), squares=False),
    "Lion": Rule(fold_lion, lion, ("exp_avg",), squares=False),
    "AdEMAMix": Rule(fold_ademamix, ademamix, (*MOMENTS, "exp_avg_slow")),
    "ScheduleFreeAdamW": Rule(
        fold_schedule_free,
        schedule_free_adamw,
        ("exp_avg_sq", "z"),
        scalars={"lr_max": 0.0, "weight_sum": 0.0},
        advance=advance_schedule_free,
        decays=True,
    ),
}


STORAGE: dict[str, Any] = {"state_dtype": None, "master_bits": 32, "rounding": "stochastic"}  # options of a group


def defaults(kind: str) -> dict[str, Any]:
    """Return the options of a group and their defaults, which the constructor of the public class declares."""
    cls = getattr(optimizers, kind)
    parameters = inspect.signature(cls).parameters
    decoupled = {"decoupled_weight_decay": cls._spec.decoupled is True}
    return STORAGE | decoupled | {name: parameters[name].default for name in cls._spec.checks}


class Reference:
    """A whole optimizer, on copies of the parameters.

    ``kind`` is the name of the public class; parameters (an array, a sequence, or a list of groups) and options are as
    that class takes them. A gradient is an array, None, or a pair of row indices and values.

    Narrow storage: ``state[i]`` holds the bits of a state as uint8 (with ``name_scale``) or uint16, and the lower bits
    of a bfloat16 parameter as ``param_low``.
    """

    def __init__(
        self,
        kind: str,
        params: Any,
        *,
        clip_norm: float | None = None,
        nonfinite: str = "propagate",
        flush_denormals: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.rule = RULES[kind]
        self.clip_norm, self.nonfinite, self.flush, self.seed = clip_norm, nonfinite, flush_denormals, seed
        self.groups: list[dict[str, Any]] = []  # the options, which may change between steps
        self.group_of: list[dict[str, Any]] = []  # what follows has one item for each parameter
        self.params: list[Array] = []
        self.state: list[dict[str, Any]] = []
        self.ema: list[Any] = []
        self.step_count = self.skipped = 0
        self.grad_norm: float | None = None
        params = [params] if isinstance(params, np.ndarray) else params
        for group in params if isinstance(params[0], Mapping) else [{"params": params}]:
            own = {name: value for name, value in group.items() if name != "params"}
            self.groups.append(chosen(defaults(kind), {**options, **own}))
            arrays = [group["params"]] if isinstance(group["params"], np.ndarray) else group["params"]
            for array in arrays:
                self._add(array, self.groups[-1])

    def _add(self, array: Array, options: dict[str, Any]) -> None:
        names = [name for name in self.rule.states if name not in SWITCHES or options[SWITCHES[name]]]
        start = options.get("initial_accumulator_value", 0.0)
        self.group_of.append(options)
        self.params.append(array.copy("K"))
        weights = storage.decode(self.params[-1], None)
        self.state.append({"step": 0})
        for name in names:
            if name in storage.WEIGHTS:
                self.state[-1][name] = weights.copy("K")
            else:
                numbers = np.full_like(weights, start)
                self.state[-1] |= storage.stored_state(name, numbers, options["state_dtype"])
        if storage.is_bfloat16(array) and options["master_bits"] > 16:
            low = np.int16 if options["master_bits"] == 32 else np.int8
            self.state[-1]["param_low"] = np.zeros_like(weights, low)
        self.state[-1] |= self.rule.scalars
        self.ema.append(None if options["ema_decay"] is None else weights.copy("K"))

    def step(self, grads: Sequence[Any], grad_scale: float = 1.0) -> None:
        with np.errstate(all="ignore"):
            pairs = zip(self.params, grads, strict=True)
            given = [None if grad is None else located(param, grad) for param, grad in pairs]
            scale = self._scale([pair[1] for pair in given if pair is not None], float(grad_scale))
            if scale is None:
                self.skipped += 1
                return
            self.step_count += 1
            for index, pair in enumerate(given):
                if pair is not None:
                    self._update(index, *pair, scale)

    def eval(self) -> None:
        """Put Schedule-Free's averages into the parameters, in training mode."""
        for index, param in enumerate(self.params):
            state, beta1 = self.state[index], self.group_of[index]["betas"][0]
            state["y"] = (param.view(np.uint16) if storage.is_narrow(param) else param).copy("K")
            with np.errstate(all="ignore"):
                x = evaluated(beta1, self._decoded(index)[0], state["z"])
            if storage.is_narrow(param):
                storage.encode(x, param, None, None)
            else:
                param[...] = x

    def train(self) -> None:
        """Put Schedule-Free's trained weights back, in evaluation mode."""
        for param, state in zip(self.params, self.state):
            y = state.pop("y")
            param[...] = y.view(param.dtype)

    def _scale(self, grads: Sequence[Array], grad_scale: float) -> float | None:
        """grad_scale times the clip factor; None when the step must be skipped."""
        root = 0.0 if self.clip_norm is None else global_norm(grads)
        usable = math.isfinite(root) and all(is_usable(grad, grad_scale, self.rule.squares) for grad in grads)
        if self.nonfinite == "raise" and not usable:
            raise FloatingPointError("a gradient is not finite")
        self.grad_norm = None
        if self.clip_norm is not None:
            self.grad_norm = norm = abs(grad_scale) * root
            small = norm <= self.clip_norm or math.isinf(self.clip_norm)  # infinity only measures
            grad_scale = grad_scale * (1.0 if small else self.clip_norm / norm)
        return None if self.nonfinite == "skip" and not usable else grad_scale

    def _update(self, index: int, rows: Any, grad: Array, scale: float) -> None:
        state, ema = self.state[index], self.ema[index]
        state["step"] += 1
        o = Numbers(**self.group_of[index])
        o.lr = at(o.lr, self.step_count)
        vars(o).update({name: state[name] for name in self.rule.scalars})
        state |= self.rule.advance(state["step"], o)
        vars(o).update({name: state[name] for name in self.rule.scalars})
        k = self.rule.fold(grad.dtype, state["step"], o)

        flush = self.flush and not keeps_subnormals(self.rule, self.group_of[index])
        arrays = self._decoded(index)
        before: list[Any] = [None if array is None else Elements(array[rows], flush) for array in arrays]
        surrounding = Numbers(**{**vars(o), "weight_decay": 0.0}) if self.rule.decays else o
        p, g = around(before[0], Elements(grad, flush), scale, surrounding)
        after = self.rule.update(k, p, g, *before[1:])
        if ema is not None:
            ema[rows] = running_average(at(o.ema_decay, self.step_count), Elements(ema[rows], flush), after[0]).values
        for array, elements in zip(arrays, after):
            if array is not None:
                array[rows] = elements.values
        self._encode(index, arrays)

    def _decoded(self, index: int) -> list[Any]:
        """Return the parameter and its states as the rule takes them. A state that is off is None."""
        state, param = self.state[index], self.params[index]
        arrays = [(state.get(name), state.get(f"{name}_scale")) for name in self.rule.states]
        arrays.insert(0, (param, state.get("param_low")))
        return [None if stored is None else storage.decode(stored, companion) for stored, companion in arrays]

    def _encode(self, index: int, arrays: list[Any]) -> None:
        """Store the parameter and its states where storage is narrow. Each has a slot for its random bits."""
        state, param = self.state[index], self.params[index]
        stochastic = self.group_of[index]["rounding"] == "stochastic"

        def random(slot: int) -> Array | None:
            return storage.r16(self.seed, state["step"], index, slot, 0, param.size) if stochastic else None

        if storage.is_narrow(param):
            storage.encode(arrays[0], param, state.get("param_low"), random(storage.WEIGHT_SLOT))
        present = [(name, array) for name, array in zip(self.rule.states, arrays[1:]) if array is not None]
        for slot, (name, array) in enumerate(present):
            if storage.is_narrow(state[name]):
                scales = state.get(f"{name}_scale")
                storage.encode(array, state[name], scales, random(slot), name in storage.DIVISORS)


def keeps_subnormals(rule: Rule, options: Mapping[str, Any]) -> bool:
    """True if eps is so small that flushing would leave eps as the divisor of tiny gradients."""
    return bool(options.get("eps", 1.0) < (1e-32 if rule.update is adadelta else 1e-16))


def chosen(defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with the defaults of missing options."""
    if unknown := options.keys() - defaults.keys():
        raise TypeError(f"unknown options: {sorted(unknown)}")
    return {**defaults, **options}


def at(number: Any, t: int) -> float:
    """Evaluate a schedule at step t; numbers are returned unchanged."""
    return float(number(t) if callable(number) else number)


def located(param: Array, grad: Any) -> tuple[Any, Array]:
    """Return the gradient's place in the parameter, and its elements in the parameter's layout, in full width."""
    dtype = np.float32 if storage.is_narrow(param) else param.dtype
    if isinstance(grad, tuple):
        indices, values = grad
        return summed_rows(indices, np.asarray(storage.widened(values), dtype))
    elements = np.empty_like(param, dtype)
    elements[...] = storage.widened(grad)
    return ..., elements


def adam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    step: int,
    *,
    max_exp_avg_sq: Array | None = None,
    grad_scale: float = 1.0,
    flush_denormals: bool = True,
    **options: Any,
) -> tuple[Array, ...]:
    """Compute param, exp_avg, exp_avg_sq (and max_exp_avg_sq) after `onepass.adam_step`, as new arrays."""
    o = Numbers(**chosen(defaults("Adam"), options))
    arrays = [param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq]
    with np.errstate(all="ignore"):
        k = fold_adam(param.dtype, step, o)
        flush = flush_denormals and not keeps_subnormals(RULES["Adam"], vars(o))
        before: list[Any] = [None if array is None else Elements(array, flush) for array in arrays]
        after = adam(k, *around(before[0], before[1], grad_scale, o), *before[2:])
    return tuple(elements.values for elements in after if elements is not None)
