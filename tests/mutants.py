"""Break the arithmetic in one place at a time: a test must fail each time. python tests/mutants.py [WORD ...]

Builds a copy of the sources with one change, runs the tests against it, and prints a table: what was broken, the first
test that failed, and the first that failed of those that know nothing of the executable specification (where it is not
"-", a mistake that the kernel and the specification share would be noticed too). With words, only the mutants whose
description or file holds one of them. Exits with 1 if a mutant survives.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREES = ROOT / "build" / "mutants"
TESTS = [
    "test_rules.py",
    "test_family.py",
    "test_bits.py",
    "test_paper.py",
    "test_power.py",
    "test_wrong_input.py",
    "test_optimizer.py",
    "test_shares.py",
]
INDEPENDENT = ["test_family.py", "test_paper.py", "test_power.py", "test_wrong_input.py", "test_optimizer.py"]
# For speed only one instruction set is built and tested; these files become tables of nothing.
WIDER = ["avx2", "avx512"]

RULES = "src/kernels/rules/"
ADAM, ADAMAX, NADAM, RMSPROP = (RULES + name for name in ("adam.hpp", "adamax.hpp", "nadam.hpp", "rmsprop.hpp"))
ADAGRAD, ADADELTA, SGD, LION = (RULES + name for name in ("adagrad.hpp", "adadelta.hpp", "sgd.hpp", "lion.hpp"))
SWEEP, MEASURE, CORE, MODULE = (
    "src/kernels/loop.hpp",
    "src/kernels/reduce.hpp",
    "src/core/optimizer.cpp",
    "src/python/optimizer.cpp",
)
PYTHON, PARAMS, GROUPS = "python/onepass/optimizers.py", "python/onepass/_params.py", "python/onepass/_group.py"
STEP, SPARSE = "python/onepass/functional.py", "python/onepass/sparse.py"

# Where, what it says, what it is made to say. The text must occur; the first occurrence is changed.
MUTANTS: dict[str, tuple[str, str, str]] = {
    "adam: beta1 of m": (ADAM, "m = beta1 * m", "m = beta2 * m"),
    "adam: 1 - beta1 of g": (ADAM, "one_minus_beta1 * g;", "one_minus_beta2 * g;"),
    "adam: 1 - beta1 in float": (ADAM, "static_cast<T>(1 - options.beta1)", "1 - static_cast<T>(options.beta1)"),
    "adam: beta2 of v": (ADAM, "v = beta2 * v", "v = beta1 * v"),
    "adam: 1 - beta2 of g*g": (ADAM, "one_minus_beta2 * (g * g);", "one_minus_beta1 * (g * g);"),
    "adam: 1 - beta2 in float": (ADAM, "static_cast<T>(1 - options.beta2)", "1 - static_cast<T>(options.beta2)"),
    "adam: order of the product in v": (ADAM, "one_minus_beta2 * (g * g);", "one_minus_beta2 * g * g;"),
    "adam: square of g": (ADAM, "(g * g)", "g"),
    "adam: order of sqrt and eps": (ADAM, "square_root(u) * correct_v + eps", "square_root(u * correct_v + eps)"),
    "adam: eps before the correction": (ADAM, "square_root(u) * correct_v + eps", "(square_root(u) + eps) * correct_v"),
    "adam: eps left out": (ADAM, "* correct_v + eps", "* correct_v"),
    "adam: order of division and step size": (ADAM, "step_size * (m / d)", "step_size * m / d"),
    "adam: sign of the step": (ADAM, "p = p - step_size", "p = p + step_size"),
    "adam: v of the step before": (ADAM, "move(p, m, v);", "move(p, m, (v - one_minus_beta2 * (g * g)) / beta2);"),
    "adam: first bias correction": (ADAM, "1 - power(options.beta1, now.t)", "1"),
    "adam: second bias correction": (ADAM, "1 - power(options.beta2, now.t)", "1"),
    "adam: bias corrections exchanged": (ADAM, "1 - power(options.beta1, now.t)", "1 - power(options.beta2, now.t)"),
    "adam: bias correction a step late": (ADAM, "power(options.beta1, now.t)", "power(options.beta1, now.t - 1)"),
    "adam: bias_correction ignored": (ADAM, "options.bias_correction != 0", "true"),
    "adam: eps_mode ignored": (ADAM, "options.hat != 0", "false"),
    "adam: order in hat's step size": (ADAM, "now.lr * square_root(c2) / c1", "now.lr * (square_root(c2) / c1)"),
    "adam: division by the correction": (ADAM, "1 / square_root(c2)", "square_root(1 / c2)"),
    "adam: squares not watched": (ADAM, "squares_gradient = true", "squares_gradient = false"),
    "amsgrad's maximum": (ADAM, "u = maximum(u, v)", "u = v"),
    "amsgrad steps along v": (ADAM, "this->move(p, m, u)", "this->move(p, m, v)"),
    "amsgrad's first moment": (ADAM, "m = this->beta1 * m", "m = this->beta2 * m"),
    "amsgrad's 1 - beta1": (ADAM, "this->one_minus_beta1 * g", "this->one_minus_beta2 * g"),
    "amsgrad's second moment": (ADAM, "v = this->beta2 * v", "v = this->beta1 * v"),
    "amsgrad's 1 - beta2": (ADAM, "this->one_minus_beta2 * (g * g)", "this->one_minus_beta1 * (g * g)"),
    "adamax: beta1 of m": (ADAMAX, "m = beta1 * m", "m = beta2 * m"),
    "adamax: 1 - beta1 of g": (ADAMAX, "+ one_minus_beta1 * g", "+ (1 - beta2) * g"),
    "adamax: 1 - beta1 in float": (ADAMAX, "static_cast<T>(1 - options.beta1)", "1 - static_cast<T>(options.beta1)"),
    "adamax: beta2 of u": (ADAMAX, "maximum(beta2 * u", "maximum(beta1 * u"),
    "adamax: the decay of u": (ADAMAX, "maximum(beta2 * u", "maximum(u"),
    "adamax: the size of g": (ADAMAX, "absolute(g) + eps", "g + eps"),
    "adamax: the maximum": (ADAMAX, "maximum(beta2 * u, absolute(g) + eps)", "absolute(g) + eps"),
    "adamax: order of the maximum": (
        ADAMAX,
        "maximum(beta2 * u, absolute(g) + eps)",
        "beta2 * u > absolute(g) + eps ? beta2 * u : absolute(g) + eps",
    ),
    "adamax: eps left out": (ADAMAX, "absolute(g) + eps", "absolute(g)"),
    "adamax: eps after the maximum": (
        ADAMAX,
        "maximum(beta2 * u, absolute(g) + eps)",
        "maximum(beta2 * u, absolute(g)) + eps",
    ),
    "adamax: bias correction": (ADAMAX, "now.lr / (1 - power(options.beta1, now.t))", "now.lr"),
    "adamax: bias correction of beta2": (ADAMAX, "power(options.beta1, now.t)", "power(options.beta2, now.t)"),
    "adamax: bias correction a step late": (ADAMAX, "power(options.beta1, now.t)", "power(options.beta1, now.t + 1)"),
    "adamax: order of division and step size": (ADAMAX, "step_size * (m / u)", "step_size * m / u"),
    "adamax: sign of the step": (ADAMAX, "p = p - step_size", "p = p + step_size"),
    "adamax: squares watched": (ADAMAX, "squares_gradient = false", "squares_gradient = true"),
    "nadam: beta1 of m": (NADAM, "m = beta1 * m", "m = beta2 * m"),
    "nadam: 1 - beta1 of g": (NADAM, "+ one_minus_beta1 * g", "+ one_minus_beta2 * g"),
    "nadam: 1 - beta1 in float": (NADAM, "static_cast<T>(1 - options.beta1)", "1 - static_cast<T>(options.beta1)"),
    "nadam: beta2 of v": (NADAM, "v = beta2 * v", "v = beta1 * v"),
    "nadam: 1 - beta2 of g*g": (NADAM, "one_minus_beta2 * (g * g)", "one_minus_beta1 * (g * g)"),
    "nadam: 1 - beta2 in float": (NADAM, "static_cast<T>(1 - options.beta2)", "1 - static_cast<T>(options.beta2)"),
    "nadam: order of the product in v": (NADAM, "one_minus_beta2 * (g * g)", "one_minus_beta2 * g * g"),
    "nadam: square of g": (NADAM, "(g * g)", "g"),
    "nadam: momentum's base": (NADAM, "0.96", "0.95"),
    "nadam: momentum's half": (NADAM, "1 - 0.5 * real_power", "1 - real_power"),
    "nadam: momentum_decay ignored": (NADAM, " * options.momentum_decay", ""),
    "nadam: momentum of beta2": (NADAM, "options.beta1 * (1 - 0.5", "options.beta2 * (1 - 0.5"),
    "nadam: momentum a step late": (NADAM, "momentum(options, now.t);", "momentum(options, now.t - 1);"),
    "nadam: next momentum": (NADAM, "now.t + 1", "now.t"),
    "nadam: mu_product of one step": (NADAM, "now.mu_product = now.mu_product * mu", "now.mu_product = mu"),
    "nadam: mu_product a step late": (NADAM, "now.lr * (1 - mu) / (1 - now.mu_product)", "now.lr * (1 - mu)"),
    "nadam: mu in the gradient's step": (NADAM, "now.lr * (1 - mu)", "now.lr * (1 - next_mu)"),
    "nadam: mu in the momentum's step": (NADAM, "now.lr * next_mu / ", "now.lr * mu / "),
    "nadam: product in the momentum's step": (NADAM, "now.mu_product * next_mu", "now.mu_product"),
    "nadam: order in the gradient's step": (
        NADAM,
        "(1 - mu) / (1 - now.mu_product)",
        "((1 - mu) / (1 - now.mu_product))",
    ),
    "nadam: second bias correction": (NADAM, "1 - power(options.beta2, now.t)", "1.0"),
    "nadam: division by the correction": (
        NADAM,
        "1 / square_root(1 - power(options.beta2, now.t))",
        "square_root(1 / (1 - power(options.beta2, now.t)))",
    ),
    "nadam: order of sqrt and eps": (NADAM, "square_root(v) * correct_v + eps", "square_root(v * correct_v + eps)"),
    "nadam: eps left out": (NADAM, "* correct_v + eps", "* correct_v"),
    "nadam: eps before the correction": (
        NADAM,
        "square_root(v) * correct_v + eps",
        "(square_root(v) + eps) * correct_v",
    ),
    "nadam: without the gradient": (NADAM, "(p - gradient_step * (g / d))", "p"),
    "nadam: without the momentum": (NADAM, " - momentum_step * (m / d)", ""),
    "nadam: order of the steps": (
        NADAM,
        "(p - gradient_step * (g / d)) - momentum_step * (m / d)",
        "p - (gradient_step * (g / d) + momentum_step * (m / d))",
    ),
    "nadam: order of division and step size": (NADAM, "momentum_step * (m / d)", "momentum_step * m / d"),
    "nadam: steps exchanged": (NADAM, "gradient_step * (g / d)", "momentum_step * (g / d)"),
    "nadam: squares not watched": (NADAM, "squares_gradient = true", "squares_gradient = false"),
    "rmsprop: alpha of v": (RMSPROP, "v = alpha * v", "v = v"),
    "rmsprop: 1 - alpha of g*g": (RMSPROP, "one_minus_alpha * (g * g)", "alpha * (g * g)"),
    "rmsprop: 1 - alpha in float": (RMSPROP, "static_cast<T>(1 - options.alpha)", "1 - static_cast<T>(options.alpha)"),
    "rmsprop: order of the product in v": (RMSPROP, "one_minus_alpha * (g * g)", "one_minus_alpha * g * g"),
    "rmsprop: square of g": (RMSPROP, "(g * g)", "g"),
    "rmsprop: order of sqrt and eps": (RMSPROP, "(square_root(v) + eps)", "square_root(v + eps)"),
    "rmsprop: eps left out": (RMSPROP, "(square_root(v) + eps)", "square_root(v)"),
    "rmsprop: sign of the step": (RMSPROP, "p = p - lr * scaled", "p = p + lr * scaled"),
    "rmsprop: lr ignored": (RMSPROP, "p = p - lr * scaled", "p = p - scaled"),
    "rmsprop centered: alpha of v": (
        RMSPROP,
        "T& s) const noexcept {\n    v = alpha * v",
        "T& s) const noexcept {\n    v = v",
    ),
    "rmsprop centered: 1 - alpha of g*g": (
        RMSPROP,
        "one_minus_alpha * (g * g);\n    s =",
        "alpha * (g * g);\n    s =",
    ),
    "rmsprop centered: order of the product in v": (
        RMSPROP,
        "one_minus_alpha * (g * g);\n    s =",
        "one_minus_alpha * g * g;\n    s =",
    ),
    "rmsprop centered: alpha of s": (RMSPROP, "s = alpha * s", "s = s"),
    "rmsprop centered: 1 - alpha of g": (RMSPROP, "one_minus_alpha * g;", "alpha * g;"),
    "rmsprop centered: square of s": (RMSPROP, "v - s * s", "v - s"),
    "rmsprop centered: mean not taken away": (RMSPROP, "maximum(v - s * s, T(0))", "v"),
    "rmsprop centered: no maximum": (RMSPROP, "maximum(v - s * s, T(0))", "(v - s * s)"),
    "rmsprop centered: eps left out": (RMSPROP, "T(0))) + eps)", "T(0))))"),
    "rmsprop centered: order of sqrt and eps": (
        RMSPROP,
        "(square_root(maximum(v - s * s, T(0))) + eps)",
        "square_root(maximum(v - s * s, T(0)) + eps)",
    ),
    "rmsprop centered: lr ignored": (RMSPROP, "p - this->lr * this", "p - this"),
    "rmsprop momentum: momentum of b": (RMSPROP, "b = momentum * b + x", "b = b + x"),
    "rmsprop momentum: no momentum": (RMSPROP, "b = momentum * b + x", "b = x"),
    "rmsprop momentum: lr in b": (
        RMSPROP,
        "b = momentum * b + x;\n    p = p - lr * b",
        "b = momentum * b + lr * x;\n    p = p - b",
    ),
    "rmsprop momentum: sign of the step": (RMSPROP, "p = p - lr * b", "p = p + lr * b"),
    "rmsprop: squares not watched": (RMSPROP, "squares_gradient = true", "squares_gradient = false"),
    "rmsprop: the rule of the options": (PYTHON, "'_centered' * options['centered']", "'_centered' * False"),
    "adagrad: the sum": (ADAGRAD, "s = s + g * g", "s = g * g"),
    "adagrad: square of g": (ADAGRAD, "s + g * g", "s + g"),
    "adagrad: order of sqrt and eps": (ADAGRAD, "(square_root(s) + eps)", "square_root(s + eps)"),
    "adagrad: eps left out": (ADAGRAD, "(square_root(s) + eps)", "square_root(s)"),
    "adagrad: order of division and step size": (
        ADAGRAD,
        "step_size * (g / (square_root(s) + eps))",
        "step_size * g / (square_root(s) + eps)",
    ),
    "adagrad: sign of the step": (ADAGRAD, "p = p - step_size", "p = p + step_size"),
    "adagrad: lr_decay ignored": (ADAGRAD, " * options.lr_decay", " * 0"),
    "adagrad: lr_decay a step early": (ADAGRAD, "now.t - 1", "now.t"),
    "adagrad: decay of the rate's form": (
        ADAGRAD,
        "now.lr / (1 + static_cast<double>(now.t - 1) * options.lr_decay)",
        "now.lr * (1 / (1 + static_cast<double>(now.t - 1) * options.lr_decay))",
    ),
    "adagrad: initial_accumulator_value": (PYTHON, ', initial="initial_accumulator_value"', ""),
    "adagrad: squares not watched": (ADAGRAD, "squares_gradient = true", "squares_gradient = false"),
    "adadelta: rho of s": (ADADELTA, "s = rho * s", "s = s"),
    "adadelta: 1 - rho of g*g": (ADADELTA, "one_minus_rho * (g * g)", "rho * (g * g)"),
    "adadelta: 1 - rho in float": (ADADELTA, "static_cast<T>(1 - options.rho)", "1 - static_cast<T>(options.rho)"),
    "adadelta: order of the product in s": (ADADELTA, "one_minus_rho * (g * g)", "one_minus_rho * g * g"),
    "adadelta: square of g": (ADADELTA, "(g * g)", "g"),
    "adadelta: eps of acc": (ADADELTA, "square_root(acc + eps)", "square_root(acc)"),
    "adadelta: eps of s": (ADADELTA, "square_root(s + eps)", "square_root(s)"),
    "adadelta: eps after the root of acc": (ADADELTA, "square_root(acc + eps)", "(square_root(acc) + eps)"),
    "adadelta: eps after the root of s": (ADADELTA, "square_root(s + eps)", "(square_root(s) + eps)"),
    "adadelta: one root": (
        ADADELTA,
        "(square_root(acc + eps) / square_root(s + eps))",
        "square_root((acc + eps) / (s + eps))",
    ),
    "adadelta: order of the division": (
        ADADELTA,
        "(square_root(acc + eps) / square_root(s + eps)) * g",
        "square_root(acc + eps) * (g / square_root(s + eps))",
    ),
    "adadelta: rho of acc": (ADADELTA, "acc = rho * acc", "acc = acc"),
    "adadelta: 1 - rho of x*x": (ADADELTA, "one_minus_rho * (x * x)", "rho * (x * x)"),
    "adadelta: order of the product in acc": (ADADELTA, "one_minus_rho * (x * x)", "one_minus_rho * x * x"),
    "adadelta: square of x": (ADADELTA, "(x * x)", "x"),
    "adadelta: acc of g": (ADADELTA, "(x * x)", "(g * g)"),
    "adadelta: lr in acc": (ADADELTA, "(x * x)", "((lr * x) * (lr * x))"),
    "adadelta: lr ignored": (ADADELTA, "p - lr * x", "p - x"),
    "adadelta: sign of the step": (ADADELTA, "p - lr * x", "p + lr * x"),
    "adadelta: squares not watched": (ADADELTA, "squares_gradient = true", "squares_gradient = false"),
    "sgd: sign of the step": (SGD, "p = p - lr * g", "p = p + lr * g"),
    "sgd: lr ignored": (SGD, "p = p - lr * g", "p = p - g"),
    "sgd: squares watched": (SGD, "squares_gradient = false", "squares_gradient = true"),
    "sgd momentum: momentum of b": (SGD, ": momentum * b +", ": b +"),
    "sgd momentum: dampening ignored": (SGD, "one_minus_dampening * g;", "g;"),
    "sgd momentum: dampening for 1 - dampening": (
        SGD,
        "static_cast<T>(1 - options.dampening)",
        "static_cast<T>(options.dampening)",
    ),
    "sgd momentum: 1 - dampening in float": (
        SGD,
        "static_cast<T>(1 - options.dampening)",
        "1 - static_cast<T>(options.dampening)",
    ),
    "sgd momentum: first step dampened": (SGD, "now.t == 1 ? 1 : 0", "0"),
    "sgd momentum: second step taken for the first": (SGD, "now.t == 1 ? 1 : 0", "now.t <= 2 ? 1 : 0"),
    "sgd momentum: nesterov ignored": (SGD, "nesterov != 0 ? g + momentum * b : b", "b"),
    "sgd momentum: nesterov always": (SGD, "nesterov != 0 ? g + momentum * b : b", "g + momentum * b"),
    "sgd momentum: nesterov without momentum": (SGD, "g + momentum * b", "g + b"),
    "sgd momentum: nesterov without the gradient": (SGD, "g + momentum * b", "momentum * b"),
    "sgd momentum: sign of the step": (SGD, "p - lr * x", "p + lr * x"),
    "sgd momentum: lr ignored": (SGD, "p - lr * x", "p - x"),
    "lion: beta1 of m": (LION, "sign(beta1 * m", "sign(beta2 * m"),
    "lion: 1 - beta1 of g": (LION, "+ one_minus_beta1 * g", "+ one_minus_beta2 * g"),
    "lion: 1 - beta1 in float": (LION, "static_cast<T>(1 - options.beta1)", "1 - static_cast<T>(options.beta1)"),
    "lion: sign left out": (LION, "sign(beta1 * m + one_minus_beta1 * g)", "(beta1 * m + one_minus_beta1 * g)"),
    "lion: sign of the step": (LION, "p = p - lr", "p = p + lr"),
    "lion: lr ignored": (LION, "p - lr * sign", "p - sign"),
    "lion: beta2 of m": (LION, "m = beta2 * m", "m = beta1 * m"),
    "lion: 1 - beta2 of g": (LION, "+ one_minus_beta2 * g", "+ one_minus_beta1 * g"),
    "lion: 1 - beta2 in float": (LION, "static_cast<T>(1 - options.beta2)", "1 - static_cast<T>(options.beta2)"),
    "lion: momentum first": (
        LION,
        "p = p - lr * sign(beta1 * m + one_minus_beta1 * g)",
        "m = beta2 * m + one_minus_beta2 * g, p = p - lr * sign(m)",
    ),
    "lion: squares watched": (LION, "squares_gradient = false", "squares_gradient = true"),
    "maximum of NaN": ("src/kernels/builtins.hpp", "a > b || a != a ? a : b", "a > b ? a : b"),
    "maximum is the minimum": ("src/kernels/builtins.hpp", "a > b || a != a", "a < b || a != a"),
    "sign of zero": ("src/kernels/builtins.hpp", "x == 0 ? T(0) : x", "x == 0 ? T(1) : x"),
    "sign of NaN": ("src/kernels/builtins.hpp", "x == 0 ? T(0) : x", "T(0)"),
    "L2 weight decay": (SWEEP, "g + k.weight_decay * p", "g"),
    "L2 weight decay scaled as the gradient": (SWEEP, "k.weight_decay * p", "k.scale * k.weight_decay * p"),
    "decoupled weight decay": (SWEEP, "p = p * k.shrink", "p = p"),
    "decay without the learning rate": (SWEEP, "1 - common.lr * decoupled", "1 - decoupled"),
    "decoupled decay is coupled too": (SWEEP, "common.decoupled ? 0 : common.weight_decay", "common.weight_decay"),
    "coupled decay is decoupled too": (SWEEP, "common.decoupled ? common.weight_decay : 0", "common.weight_decay"),
    "scale of the gradient": (SWEEP, "g = g * k.scale", "g = g"),
    "scale of 1 multiplies what is copied": (SWEEP, "if (folded.scale == 1 && is_finite", "if (false && is_finite"),
    "scale of 1 multiplies what is copied, with an average": (SWEEP, "folded.scale == 1 && common.averaged", "false"),
    "maximize ignored": (SWEEP, "common.maximize ? -step.grad_scale : step.grad_scale", "step.grad_scale"),
    "scale without decay": (SWEEP, "if (folded.scale != 1 ||", "if (folded.scale > 1 ||"),
    "scale of NaN refused": (SWEEP, "all[1] = scale != scale ? T(0) : all[1];", ""),
    "overflow of a number": (SWEEP, "if (!is_finite(number)) return nullptr;", "(void)number;"),
    "overflow of the scale": (SWEEP, "all[1] = scale != scale ? T(0) : all[1];", "all[1] = 0;"),
    "overflow of clip_value": (SWEEP, "is_finite(common.clip_value) ? all[0] : T(0)", "T(0)"),
    "clip_value ignored": (SWEEP, "absolute(g) > k.clip_value", "false"),
    "clip_value alone": (SWEEP, " || is_finite(common.clip_value)) return", ") return"),
    "clip_value above only": (SWEEP, "absolute(g) > k.clip_value", "g > k.clip_value"),
    "clip_value below only": (SWEEP, "absolute(g) > k.clip_value", "-g > k.clip_value"),
    "clip_value's sign": (SWEEP, "g < 0 ? -k.clip_value", "g < 0 ? k.clip_value"),
    "clip_value of NaN": (SWEEP, "absolute(g) > k.clip_value", "!(absolute(g) <= k.clip_value)"),
    "clip_value before the scale": (
        SWEEP,
        "absolute(g) > k.clip_value",
        "absolute(grad[i]) > k.clip_value",
    ),
    "clip_value after the decay": (
        SWEEP,
        "if (decayed) g = g + k.weight_decay * p;",
        "if (decayed) g = g + k.weight_decay * p;\n"
        "    if (scaled) g = absolute(g) > k.clip_value ? (g < 0 ? -k.clip_value : k.clip_value) : g;",
    ),
    "clip_value of each group": (GROUPS, "math.inf if clip_value is None else clip_value", "math.inf"),
    "ema's decay": (SWEEP, "k.ema_decay * average[i]", "average[i]"),
    "ema's 1 - decay": (SWEEP, "k.one_minus_ema * p", "p"),
    "ema's 1 - decay in float": (SWEEP, "static_cast<T>(1 - ema_decay)", "1 - static_cast<T>(ema_decay)"),
    "ema of the parameter before": (
        SWEEP,
        "param[i] = p;\n    if (averaged) average[i] = k.ema_decay * average[i] + k.one_minus_ema * p;",
        "if (averaged) average[i] = k.ema_decay * average[i] + k.one_minus_ema * param[i];\n    param[i] = p;",
    ),
    "ema loses the decay": (
        SWEEP,
        "? &sweep<Around::decayed_averaged, T, Rule> :",
        "? &sweep<Around::scaled_averaged, T, Rule> :",
    ),
    "ema where there is decay": (
        SWEEP,
        "? &sweep<Around::decayed_averaged, T, Rule> :",
        "? &sweep<Around::decayed, T, Rule> :",
    ),
    "ema where there is none": (
        SWEEP,
        "return &sweep<Around::scaled_averaged, T, Rule>;",
        "return &sweep<Around::scaled, T, Rule>;",
    ),
    "ema's first value": (PARAMS, 'np.copyto(state["ema"], array)', "pass"),
    "ema of the group": (GROUPS, "ema_decay=ema_decay,", "ema_decay=0.0,"),
    "the tail": (SWEEP, "i < count; ++i", "i < count - count % 8; ++i"),
    "one element too many": (SWEEP, "i < count; ++i", "i < count + (count % 8 == 3); ++i"),
    "the elements before a cache line": (SWEEP, "if (aligned != begin) unpack", "if (false) unpack"),
    "state not written back": (SWEEP, "~Slot() { *where_ = value_; }", "~Slot() {}"),
    "mu_product not kept": (SWEEP, "step.mu_product = now.mu_product;", ""),
    "norm: lanes": (MEASURE, "lanes = 16", "lanes = 8"),
    "norm: the tree": (MEASURE, "sums[lane] = sums[lane] + sums[lane + half]", "sums[0] = sums[0] + sums[lane + half]"),
    "norm: half the lanes": (MEASURE, "half = lanes / 2; half != 0;", "half = lanes / 2; half > 1;"),
    "norm: squares in the dtype": (
        MEASURE,
        "sums[lane] + x * x;\n    }\n  }",
        "sums[lane] + static_cast<double>(g[i + lane] * g[i + lane]) + 0 * x;\n    }\n  }",
    ),
    "norm: no squares": (MEASURE, "sums[lane] + x * x", "sums[lane] + x"),
    "norm: the tail": (MEASURE, "i < count; ++i, ++lane", "i + 1 < count; ++i, ++lane"),
    "norm: the tail's lanes": (MEASURE, "i < count; ++i, ++lane", "i < count; ++i"),
    "norm: block size": ("src/kernels/table.hpp", "norm_block = 4096", "norm_block = 8192"),
    "norm: the last block": ("src/core/optimizer.hpp", "(size + norm_block - 1) / norm_block", "size / norm_block"),
    "norm: of the last gradient": (CORE, "squares += block->", "squares = block->"),
    "norm: the root": (CORE, "std::sqrt(sum)", "sum"),
    "norm: grad_scale": (CORE, "std::fabs(grad_scale) * std::sqrt", "std::sqrt"),
    "norm: grad_scale's sign": (CORE, "std::fabs(grad_scale) *", "grad_scale *"),
    "clip_norm's factor without grad_scale": (CORE, "grad_scale * (clip_norm / measured)", "clip_norm / measured"),
    "clip_norm's factor": (CORE, "grad_scale * (clip_norm / measured)", "grad_scale / measured"),
    "clip_norm's order": (CORE, "grad_scale * (clip_norm / measured)", "grad_scale * clip_norm / measured"),
    "clip_norm's factor in the caller's mode": (
        CORE,
        "const FloatMode mode(false);\n  return product",
        "return product",
    ),
    "clip_norm ignored": (MODULE, "!(measured.norm <= clip_norm)", "false"),
    "clip_norm raises small norms": (MODULE, "!(measured.norm <= clip_norm)", "true"),
    "clip_norm of NaN": (MODULE, "!(measured.norm <= clip_norm)", "measured.norm > clip_norm"),
    "clip_norm of infinity and NaN": (MODULE, "std::isfinite(clip_norm) && !(", "!("),
    "grad_norm of a step": (MODULE, "  remember(measured, clip_norm);\n}\n", "}\n"),
    "grad_norm of a skipped step": (MODULE, "remember(measured, clip_norm);\n    ++skipped_;", "++skipped_;"),
    "skipped steps counted": (MODULE, "++skipped_;", ""),
    "skipped steps taken": (MODULE, "++skipped_;\n    return;", "++skipped_;"),
    "nonfinite: nothing found": (MEASURE, "zero += x - x", "zero += 0 * (x > x)"),
    "nonfinite: squares not looked at": (MEASURE, "squared ? g * g : g", "g"),
    "nonfinite: squares always looked at": (MEASURE, "squared ? g * g : g", "g * g"),
    "nonfinite: without the scale": (MEASURE, "grad[i] * scale", "grad[i] * (scale - scale + 1)"),
    "nonfinite: the tail": (
        MEASURE,
        "i < count; ++i) {\n    const T g",
        "i < count - count % 4; ++i) {\n    const T g",
    ),
    "nonfinite: the last instead of the first": (CORE, "!good && found.first_nonfinite == Measured::none", "!good"),
    "nonfinite: only the first gradient": (
        CORE,
        "good = good && block->finite != 0",
        "good = good && (i != 0 || block->finite != 0)",
    ),
    "nonfinite: sum of squares": (CORE, "good = good && (!finite || std::isfinite(squares));", ""),
    "parts: the first parameter left out": (CORE, "if (planned->parameter == parameter)", "if (parameter != 0)"),
    "parts: those without a gradient": (CORE, "if (planned->parameter == parameter)", "if (true)"),
    "parts: steps not counted": (MODULE, "core_.count_step();", ""),
    "parts: blocks of missing gradients": (CORE, "std::fill(blocks + own, blocks + all, Block{0, 1});", ""),
    "parts: where blocks belong": (CORE, "blocks += all;\n  }\n}", "blocks += own;\n  }\n}"),
    "parts: the steps in the digest": (CORE, "add(static_cast<double>(step_count_));", ""),
    "parts: the rates in the digest": (CORE, "{common.lr, common.weight_decay,", "{common.weight_decay,"),
    "sparse: size": (CORE, "gradient.row_count * parameter.row_size", "gradient.row_count"),
    "sparse: runs of one row": (CORE, "gradient.rows[end - 1] + 1", "gradient.rows[end - 1] + 2"),
    "sparse: size of a run": (CORE, "(end - begin) * parameter.row_size", "parameter.row_size"),
    "size of an element": (
        "src/core/optimizer.hpp",
        "dtype == float32 ? sizeof(float) : sizeof(double)",
        "dtype == float32 ? sizeof(float) : sizeof(float)",
    ),
    "sparse: the parameter's row": (CORE, "behind(part.operands.param, offset)", "behind(part.operands.param, 0)"),
    "sparse: the gradient's row": (
        CORE,
        "behind(part.operands.grad, begin * row_bytes)",
        "behind(part.operands.grad, 0)",
    ),
    "sparse: the state's row": (CORE, "state = behind(state, offset)", "state = behind(state, 0)"),
    "sparse: the average's row": (CORE, "behind(part.operands.average, offset)", "behind(part.operands.average, 0)"),
    "sparse: values out of order": (SPARSE, "np.asarray(sparse.values)[order]", "np.asarray(sparse.values)"),
    "sparse: the first value twice": (SPARSE, "again[first] = False", ""),
    "sparse: the last value alone": (
        SPARSE,
        "np.add.at(summed, which[again], values[again])",
        "summed[which[again]] = values[again]",
    ),
    "sparse: summed in the order backwards": (
        SPARSE,
        "np.add.at(summed, which[again], values[again])",
        "np.add.at(summed, which[again][::-1], values[again][::-1])",
    ),
    "sparse: the row past the end": (
        SPARSE,
        "int(sparse.indices.max()) >= param.shape[0]",
        "int(sparse.indices.max()) > param.shape[0]",
    ),
    "contraction to fused multiply-add": (
        "CMakeLists.txt",
        "PUBLIC ${flags})",
        "PUBLIC ${flags} -O2 -ffp-contract=fast -mfma)",
    ),
    "fast-math's square roots": (
        "CMakeLists.txt",
        "PUBLIC ${flags})",
        "PUBLIC ${flags} -O2 -ffast-math -mrecip -U__FAST_MATH__ -U__FINITE_MATH_ONLY__ -U__ASSOCIATIVE_MATH__ "
        "-U__RECIPROCAL_MATH__ -U__NO_SIGNED_ZEROS__)",
    ),
    "rounding of beta^t": ("src/kernels/power.cpp", "++bits;", ";"),
    "ties of beta^t": ("src/kernels/power.cpp", "x.lo != 0 || (bits & 1) != 0", "x.lo != 0"),
    "low half of beta^t": ("src/kernels/power.cpp", "top.lo += cross2;", ""),
    "beta^t below the range": ("src/kernels/power.cpp", "if (x.exponent < smallest_exponent) return 0;", ""),
    "subnormals not flushed": ("src/core/float_mode.hpp", "gradual | 0x8040", "gradual"),
    "results flushed, inputs not": ("src/core/float_mode.hpp", "gradual | 0x8040", "gradual | 0x8000"),
    "inputs flushed, results not": ("src/core/float_mode.hpp", "gradual | 0x8040", "gradual | 0x0040"),
    "flushing where it is off": ("src/core/float_mode.hpp", "flush_denormals ? flushing : gradual", "flushing"),
    "mode not restored": ("src/core/float_mode.hpp", "if (read() != before_) write(before_);", ""),
    "folding in the caller's mode": (CORE, "const FloatMode mode(false);\n  folds_", "folds_"),
    "adam_step folding in the caller's mode": (CORE, "const FloatMode mode(false);\n    StepNumbers", "StepNumbers"),
    "measuring in the caller's mode": (CORE, "const FloatMode mode(false);\n    const Kernels", "const Kernels"),
    "own step counts": (CORE, "step == parameter.step + 1 && ", ""),
    "own groups": (CORE, "group == parameter.group && ", ""),
    "own dtypes": (CORE, "dtype == parameter.dtype &&\n", "\n"),
    "own mu_products": (CORE, "mu_product == parameter.mu_product", "true"),
    "counting of a parameter's steps": (CORE, "++parameter.step;", ""),
    "counting of all steps": (CORE, "++step_count_;", ""),
    "keeping of mu_product": (CORE, "parameter.mu_product = planned.mu_product;", ""),
    "None skipped": (
        CORE,
        "if (gradient.data == nullptr) continue;",
        "if (i > 0 && gradient.data == nullptr) continue;",
    ),
    "None counted": (
        CORE,
        "if (gradient.data == nullptr) continue;",
        "if (gradient.data == nullptr) planned_.push_back({i, parameters_[i].mu_product});\n"
        "    if (gradient.data == nullptr) continue;",
    ),
    "schedules see the step before": (MODULE, "core_.step_count() + 1", "core_.step_count()"),
    "schedule of lr": ("src/core/optimizer.hpp", "taken_[group].common.lr = lr;", "static_cast<void>(lr);"),
    "schedule of ema": (
        "src/core/optimizer.hpp",
        "taken_[group].common.ema_decay = ema_decay;",
        "static_cast<void>(ema_decay);",
    ),
    "overlap with the range before": ("src/python/arrays.cpp", "std::prev(after)->second > begin", "false"),
    "overlap with the range after": ("src/python/arrays.cpp", "after->first < begin + bytes", "false"),
    "maximize of the group": (GROUPS, 'maximize=values["maximize"]', "maximize=False"),
    "adam_step's maximize": (STEP, 'checks.flag("maximize", maximize)', 'checks.flag("maximize", False)'),
    "adam_step's decay": (STEP, "decoupled=_checks.flag(", "decoupled=False and _checks.flag("),
    "adam_step's order check": (STEP, "not (same_order and alone", "not (alone"),
    "adam_step's overlap check": (STEP, "same_order and alone and", "same_order and"),
    "AdamW not decoupled": (PYTHON, "@declare(_adam, decoupled=True)", "@declare(_adam)"),
    "Lion not decoupled": (PYTHON, '@declare("lion", decoupled=True)', '@declare("lion")'),
    "NAdam's decoupled_weight_decay ignored": (PYTHON, ', decoupled="decoupled_weight_decay"', ""),
    "AdamW's default decay": (PYTHON, "weight_decay: SupportsFloat = 0.01", "weight_decay: SupportsFloat = 0.02"),
    "Adam's default eps": (PYTHON, "eps: SupportsFloat = 1e-8", "eps: SupportsFloat = 1e-7"),
    "Adam's default lr": (PYTHON, "lr: LearningRate = 1e-3", "lr: LearningRate = 2e-3"),
    "Adamax's default lr": (PYTHON, "lr: LearningRate = 2e-3", "lr: LearningRate = 1e-3"),
    "NAdam's default momentum_decay": (
        PYTHON,
        "momentum_decay: SupportsFloat = 4e-3",
        "momentum_decay: SupportsFloat = 5e-3",
    ),
    "RMSprop's default lr": (PYTHON, "lr: LearningRate = 1e-2", "lr: LearningRate = 1e-3"),
    "RMSprop's default alpha": (PYTHON, "alpha: SupportsFloat = 0.99", "alpha: SupportsFloat = 0.9"),
    "Adagrad's default eps": (PYTHON, "eps: SupportsFloat = 1e-10", "eps: SupportsFloat = 1e-8"),
    "Adadelta's default rho": (PYTHON, "rho: SupportsFloat = 0.9", "rho: SupportsFloat = 0.95"),
    "Adadelta's default eps": (PYTHON, "eps: SupportsFloat = 1e-6", "eps: SupportsFloat = 1e-8"),
    "Adadelta's default lr": (PYTHON, "lr: LearningRate = 1.0", "lr: LearningRate = 0.9"),
    "Lion's default betas": (PYTHON, "(0.9, 0.99),", "(0.9, 0.999),"),
    "Lion's default lr": (PYTHON, "lr: LearningRate = 1e-4", "lr: LearningRate = 1e-3"),
}


def run(tree: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment}, cwd=tree, capture_output=True, text=True
    )


def prepare(tree: Path) -> None:
    """A fresh copy of the sources, configured: from then on only what a mutant changes is compiled again."""
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("src", "python", "tests"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    for name in WIDER:
        empty = f'constexpr Kernels kernels_{name} = {{"{name}", {{}}, 0, {{}}, {{}}, {{}}}};'
        lines = [
            '#include "kernels/table.hpp"',
            "namespace onepass {",
            f"extern const Kernels kernels_{name};",
            empty,
            "}",
            "",
        ]
        (tree / "src" / "kernels" / f"{name}.cpp").write_text("\n".join(lines))
    pybind11 = run(tree, sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
    ninja = Path(sys.executable).parent / "ninja"
    options = [f"-Dpybind11_DIR={pybind11}", f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    quick = "-DONEPASS_FLAGS=-O1"  # which compiles in half the time
    release = ["-DCMAKE_BUILD_TYPE=Release", quick, "-DSKBUILD_PROJECT_VERSION=0", "-DSKBUILD_PROJECT_VERSION_FULL=0"]
    configured = run(tree, *cmake(), "-S", ".", "-B", "build", "-G", "Ninja", *release, *options)
    if configured.returncode:
        sys.exit(configured.stdout + configured.stderr)
    if not build(tree):
        sys.exit("the sources do not compile without any change")


def cmake() -> list[str | Path]:
    return [Path(sys.executable).parent / "cmake"]


def build(tree: Path) -> bool:
    """The tree as it is, where Python will find it; False if it does not compile."""
    if run(tree, *cmake(), "--build", "build").returncode:
        return False
    for library in (tree / "build").glob("_core.*"):
        shutil.copy2(library, tree / "python" / "onepass")
    return True


def first_failure(tree: Path, files: list[str], *options: str) -> str | None:
    """The first test that fails; None if all pass."""
    tests = [tree / "tests" / name for name in files]
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *options]
    tested = run(tree, *pytest, *tests, PYTHONPATH=str(tree / "python"), ONEPASS_ISA="baseline")
    if tested.returncode in (0, 5):  # 5: none was chosen
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (?:.*/)?(.+?)(?: - .*)?$", tested.stdout, re.MULTILINE)
    return failed.group(1) if failed else f"the interpreter crashed ({tested.returncode})"


def tried_alone(tree: Path, rule: Path) -> tuple[str | None, str | None]:
    """The tests that name a rule, in a build of that rule alone, which takes a second."""
    path = tree / "src" / "kernels" / "table.inl"
    text = path.read_text()
    own = re.findall(r"^struct (\w+)(?: : .*)? \{\n(?:.*using.*\n)?.*name = ", rule.read_text(), re.MULTILINE)
    path.write_text(re.sub(r"^ +rule<(\w+)>\(\),\n", lambda m: m[0] if m[1] in own else "", text, flags=re.MULTILINE))
    try:
        if not build(tree):
            return "it does not compile", None
        independent = first_failure(tree, ["test_family.py"], "-k", rule.stem)
        return first_failure(tree, ["test_rules.py"], "-k", rule.stem) or independent, independent
    finally:
        path.write_text(text)


def tried(tree: Path, file: str, old: str, new: str) -> tuple[str | None, str | None]:
    """What fails first with this change, and what of the independent tests."""
    path = tree / file
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    try:
        failure = independent = None
        if file.startswith(RULES) and file != ADAM:
            failure, independent = tried_alone(tree, path)
        if failure is None or independent is None:
            if not build(tree):
                return "it does not compile", None
            failure = failure or first_failure(tree, TESTS)
            independent = independent or (first_failure(tree, INDEPENDENT) if failure else None)
        return failure, independent
    finally:
        path.write_text(text)


def main(words: list[str]) -> int:
    chosen = {
        name: m for name, m in MUTANTS.items() if not words or any(word in name or word in m[0] for word in words)
    }
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for worker in range(os.cpu_count() or 1):
        prepare(TREES / str(worker))
        trees.put(TREES / str(worker))
    if (failure := first_failure(TREES / "0", TESTS)) is not None:
        sys.exit(f"the tests fail without any change: {failure}")

    def row(mutant: tuple[str, str, str]) -> tuple[str | None, str | None]:
        tree = trees.get()
        try:
            return tried(tree, *mutant)
        finally:
            trees.put(tree)

    survivors = 0
    print("| what is broken | the first test that fails | without the specification |\n| --- | --- | --- |", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (failure, independent) in zip(chosen, pool.map(row, chosen.values())):
            survivors += failure is None
            print(f"| {name} | {failure or 'NONE: it survives'} | {independent or '-'} |", flush=True)
    print(f"\n{len(chosen)} mutants, {survivors} of them unnoticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
