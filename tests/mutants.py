"""Break the arithmetic in one place at a time: a test must fail each time. python tests/mutants.py [WORD ...]

Builds a copy of the sources with one change, runs the tests against it, and prints a table: what was broken, the first
test that failed, and the first that failed of those that know nothing of the executable specification (where it is not
"-", a mistake that the kernel and the specification share would be noticed too). With words, only the mutants whose
description holds one of them. Exits with 1 if a mutant survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "mutants"
TESTS = ["test_bits.py", "test_power.py", "test_paper.py", "test_optimizer.py", "test_wrong_input.py"]
INDEPENDENT = ["test_paper.py", "test_power.py", "test_optimizer.py", "test_wrong_input.py"]

ADAM, SWEEP, CORE = "src/rules/adam.hpp", "src/sweep.hpp", "src/optimizer.cpp"
PYTHON, BASE = "python/onepass/optimizers.py", "python/onepass/base.py"

# Where, what it says, what it is made to say. The text must occur; the first occurrence is changed.
MUTANTS: dict[str, tuple[str, str, str]] = {
    "beta1 of m": (ADAM, "m = beta1 * m", "m = beta2 * m"),
    "1 - beta1 of g": (ADAM, "one_minus_beta1 * g;", "one_minus_beta2 * g;"),
    "1 - beta1 in float": (ADAM, "static_cast<T>(1 - options.beta1)", "1 - static_cast<T>(options.beta1)"),
    "beta2 of v": (ADAM, "v = beta2 * v", "v = beta1 * v"),
    "1 - beta2 of g*g": (ADAM, "one_minus_beta2 * (g * g);", "one_minus_beta1 * (g * g);"),
    "1 - beta2 in float": (ADAM, "static_cast<T>(1 - options.beta2)", "1 - static_cast<T>(options.beta2)"),
    "order of the product in v": (ADAM, "one_minus_beta2 * (g * g);", "one_minus_beta2 * g * g;"),
    "square of g": (ADAM, "(g * g)", "g"),
    "order of sqrt and eps": (ADAM, "square_root(u) * correct_v + eps", "square_root(u * correct_v + eps)"),
    "eps before the correction": (ADAM, "square_root(u) * correct_v + eps", "(square_root(u) + eps) * correct_v"),
    "eps left out": (ADAM, "* correct_v + eps", "* correct_v"),
    "order of division and step size": (ADAM, "step_size * (m / d)", "step_size * m / d"),
    "sign of the step": (ADAM, "p = p - step_size", "p = p + step_size"),
    "v of the step before": (ADAM, "move(p, m, v);", "move(p, m, (v - one_minus_beta2 * (g * g)) / beta2);"),
    "first bias correction": (ADAM, "1 - power(options.beta1, t)", "1"),
    "second bias correction": (ADAM, "1 - power(options.beta2, t)", "1"),
    "bias corrections exchanged": (ADAM, "1 - power(options.beta1, t)", "1 - power(options.beta2, t)"),
    "bias correction a step late": (ADAM, "power(options.beta1, t)", "power(options.beta1, t - 1)"),
    "bias_correction ignored": (ADAM, "options.bias_correction != 0", "true"),
    "eps_mode ignored": (ADAM, "options.hat != 0", "false"),
    "order in hat's step size": (ADAM, "lr * square_root(c2) / c1", "lr * (square_root(c2) / c1)"),
    "division by the correction": (ADAM, "1 / square_root(c2)", "square_root(1 / c2)"),
    "amsgrad's maximum": (ADAM, "u > v || u != u ? u : v", "v"),
    "amsgrad's NaN": (ADAM, "u > v || u != u ? u : v", "u > v ? u : v"),
    "amsgrad steps along v": (ADAM, "this->move(p, m, u)", "this->move(p, m, v)"),
    "amsgrad's first moment": (ADAM, "m = this->beta1 * m", "m = this->beta2 * m"),
    "amsgrad's second moment": (ADAM, "v = this->beta2 * v", "v = this->beta1 * v"),
    "L2 weight decay": (SWEEP, "g + k.weight_decay * p", "g"),
    "decoupled weight decay": (SWEEP, "p = p * k.shrink", "p = p"),
    "decay without the learning rate": (SWEEP, "1 - common.lr * decoupled", "1 - decoupled"),
    "decay after the scale": (SWEEP, "g = g * k.scale", "g = gradient == Gradient::decayed ? g : g * k.scale"),
    "scale of the gradient": (SWEEP, "g = g * k.scale", "g = g"),
    "scale without decay": (SWEEP, "if (folded.scale != 1)", "if (folded.scale > 1)"),
    "overflow of a number": (SWEEP, "if (!is_finite(all[i])) return nullptr;", ""),
    "the tail": (SWEEP, "i < count; ++i", "i < count - count % 8; ++i"),
    "one element too many": (SWEEP, "i < count; ++i", "i < count + (count % 8 == 3); ++i"),
    "state not written back": (SWEEP, "~Slot() { *where_ = value_; }", "~Slot() {}"),
    "contraction to fused multiply-add": ("CMakeLists.txt", "-ffp-contract=off", "-ffp-contract=fast -mfma"),
    "fast-math's square roots": ("CMakeLists.txt", "-fno-math-errno", "-ffast-math"),
    "rounding of beta^t": ("src/power.cpp", "++bits;", ";"),
    "ties of beta^t": ("src/power.cpp", "x.lo != 0 || (bits & 1) != 0", "x.lo != 0"),
    "low half of beta^t": ("src/power.cpp", "top.lo += cross2;", ""),
    "beta^t below the range": ("src/power.cpp", "if (x.exponent < smallest_exponent) return 0;", ""),
    "subnormals not flushed": ("src/float_mode.hpp", "gradual | 0x8040", "gradual"),
    "results flushed, inputs not": ("src/float_mode.hpp", "gradual | 0x8040", "gradual | 0x8000"),
    "inputs flushed, results not": ("src/float_mode.hpp", "gradual | 0x8040", "gradual | 0x0040"),
    "flushing where it is off": ("src/float_mode.hpp", "flush_denormals ? flushing : gradual", "flushing"),
    "mode not restored": ("src/float_mode.hpp", "if (read() != before_) write(before_);", ""),
    "folding in the caller's mode": (CORE, "const FloatMode mode(false);", ""),
    "own step counts": (CORE, "known.step == step && ", ""),
    "own dtypes": (CORE, "&& known.dtype == parameter.dtype", ""),
    "counting of steps": (CORE, "++parameters_[i].step;", "{}"),
    "None skipped": (CORE, "if (grads[i] == nullptr) continue;", "if (i > 0 && grads[i] == nullptr) continue;"),
    "overlap with the range before": ("src/module.cpp", "std::prev(after)->second > begin", "false"),
    "overlap with the range after": ("src/module.cpp", "after->first < begin + bytes", "false"),
    "sign for maximize": (BASE, '-1.0 if values["maximize"] else 1.0', "1.0"),
    "adam_step's order check": (PYTHON, "not (same_order and alone", "not (alone"),
    "adam_step's overlap check": (PYTHON, "same_order and alone and", "same_order and"),
    "AdamW not decoupled": (PYTHON, "    _decoupled = True", "    _decoupled = False"),
    "AdamW's default decay": (PYTHON, "weight_decay: float = 0.01", "weight_decay: float = 0.02"),
    "default eps": (PYTHON, "eps: float = 1e-8", "eps: float = 1e-7"),
}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment}, cwd=TREE, capture_output=True, text=True
    )


def prepare() -> None:
    """A fresh copy of the sources, configured: from then on only what a mutant changes is compiled again."""
    shutil.rmtree(TREE, ignore_errors=True)
    for name in ("src", "python", "tests"):
        shutil.copytree(ROOT / name, TREE / name)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, TREE)
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
    ninja = Path(sys.executable).parent / "ninja"
    options = [f"-Dpybind11_DIR={pybind11}", f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    release = ["-DCMAKE_BUILD_TYPE=Release", "-DSKBUILD_PROJECT_VERSION=0", "-DSKBUILD_PROJECT_VERSION_FULL=0"]
    configured = run(*cmake(), "-S", ".", "-B", "build", "-G", "Ninja", *release, *options)
    if configured.returncode:
        sys.exit(configured.stdout + configured.stderr)


def cmake() -> list[str | Path]:
    return [Path(sys.executable).parent / "cmake"]


def build() -> None:
    """The tree as it is, where Python will find it."""
    built = run(*cmake(), "--build", "build")
    if built.returncode:
        sys.exit(built.stdout)
    for library in (TREE / "build").glob("_core.*"):
        shutil.copy2(library, TREE / "python" / "onepass")


def first_failure(files: list[str]) -> str | None:
    """The first test that fails; None if all pass."""
    tests = [TREE / "tests" / name for name in files]
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    tested = run(*pytest, *tests, PYTHONPATH=str(TREE / "python"))
    if tested.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (?:.*/)?(.+?)(?: - .*)?$", tested.stdout, re.MULTILINE)
    return failed.group(1) if failed else f"the interpreter crashed ({tested.returncode})"


def main(words: list[str]) -> int:
    prepare()
    build()
    if (failure := first_failure(TESTS)) is not None:
        sys.exit(f"the tests fail without any change: {failure}")
    chosen = {name: m for name, m in MUTANTS.items() if not words or any(word in name for word in words)}
    survivors = 0
    print("| what is broken | the first test that fails | without the specification |\n| --- | --- | --- |", flush=True)
    for name, (file, old, new) in chosen.items():
        path = TREE / file
        text = path.read_text()
        assert old in text, f"{file} no longer says {old!r}"
        path.write_text(text.replace(old, new, 1))
        try:
            build()
            failure = first_failure(TESTS)
            independent = first_failure(INDEPENDENT) if failure else None
        finally:
            path.write_text(text)
        survivors += failure is None
        print(f"| {name} | {failure or 'NONE: it survives'} | {independent or '-'} |", flush=True)
    print(f"\n{len(chosen)} mutants, {survivors} of them unnoticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
