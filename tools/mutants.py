"""Mutation testing: break the sources in one place at a time and check that a test fails.

``python -m tools.mutants [--sample N] [WORD ...]`` builds each mutant of ``mutations.py`` and runs the core's own tests
and, if they pass, the Python tests. A mutant with unchanged machine code counts as detected. The tool prints the
failure of each mutant, and exits with status 1 if a mutant survives. With words, it tests only files whose names
contain one of the words. With --sample, it tests N random mutants, the same mutants for the same --seed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.mutations import ROOT, Mutant, equivalent, generate

KERNELS = "src/kernels/"
CORE_TESTS = ["test_golden", "test_rules", "test_optimizer", "test_float_mode", "test_threads"]
FEW_RULES_TESTS = ["test_golden", "test_rules single_elements", "test_rules squares"]  # for any table of rules
PYTHON_TESTS = [
    *(f"numerics/test_{name}.py" for name in ["power", "paper", "family", "rules", "bits", "prepared_steps"]),
    *(
        f"api/test_{name}.py"
        for name in ["step", "adam_step", "sparse_rows", "wrong_options", "wrong_gradients", "schedules", "flatten"]
    ),
]
SURVIVES = {"core": "survives the core's own tests", "module": "SURVIVES ALL TESTS"}
TIMEOUT = 300  # seconds: detects mutants with endless loops
MEMORY = 8 << 30  # limit of one process, in bytes


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; a timeout is a failure."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "FAILED (timeout)", "")


def write(path: Path, text: bytes | str) -> None:
    """Write a file unless it has these contents: an untouched file is not compiled again."""
    data = text.encode() if isinstance(text, str) else text
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Tree:
    """Copy of the sources, with builds of the core's tests and of the module that have only the baseline kernels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.originals: dict[str, str] = {}  # hash of the unmutated machine code, by mutated file
        for folder in ("src", "python", "tests"):
            for source in (found for found in (ROOT / folder).rglob("*") if found.is_file()):
                write(path / source.relative_to(ROOT), source.read_bytes())
        write(path / "pyproject.toml", (ROOT / "pyproject.toml").read_bytes())
        lists = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
        write(path / "CMakeLists.txt", lists.replace("if(processor MATCHES", "if(FALSE AND processor MATCHES"))
        self.table = (path / KERNELS / "table.inl").read_text(encoding="utf-8")

    def prepare(self, name: str) -> None:
        """Build the core's tests or the module without a mutation, and run the tests."""
        tools = Path(sys.executable).parent
        options = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_BUILD_TYPE=Release"]
        options += ["-DONEPASS_FLAGS=-O1"]  # compiles in half the time
        if name == "core":
            options += ["-DONEPASS_TESTS=ON"]
        else:
            pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
            options += [f"-Dpybind11_DIR={pybind11}", f"-DPython_EXECUTABLE={sys.executable}"]
            options += ["-DSKBUILD_PROJECT_VERSION=0", "-DSKBUILD_PROJECT_VERSION_FULL=0"]
        made = run(tools / "cmake", "-S", self.path, "-B", self.path / name, *options)
        if made.returncode or not self.build(name):
            sys.exit(f"the sources do not compile without a mutation\n{made.stderr}")
        if failure := self.core_failure(*CORE_TESTS) if name == "core" else self.python_failure():
            sys.exit(f"the tests fail without a mutation: {failure}")

    def build(self, name: str) -> bool:
        """Build the core's tests or the module; return False if the build fails."""
        cmake = Path(sys.executable).parent / "cmake"
        targets = CORE_TESTS if name == "core" else ["_core"]
        return run(cmake, "--build", self.path / name, "--target", *targets).returncode == 0

    def core_failure(self, *programs: str) -> str | None:
        """Return the first failure of the core's own tests; a program may be followed by a part of a test name."""
        for program in programs:
            ran = run(self.path / "core" / "tests" / "cpp" / program.split()[0], *program.split()[1:])
            if ran.returncode:
                failed = re.search(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
                return failed[1] if failed else f"{program} crashes"
        return None

    def python_failure(self) -> str | None:
        """Build the module and return the first failure of the Python tests."""
        if not self.build("module"):
            return "it does not compile"
        for library in (self.path / "module").glob("_core.*"):
            shutil.copy2(library, self.path / "python" / "onepass")
        tests = [self.path / "tests" / name for name in PYTHON_TESTS]
        environment = {"PYTHONPATH": str(self.path / "python"), "ONEPASS_ISA": "baseline"}
        ran = run(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests, **environment)
        failed = re.search(r"^(?:FAILED|ERROR) (?:.*/)?(.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
        return None if ran.returncode == 0 else failed[1] if failed else "the interpreter crashes"

    def machine_code(self, name: str) -> str:
        """Return a hash of the machine code of the sources, without the tests."""
        objects = sorted((self.path / name / "CMakeFiles").rglob("*.o"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in objects)).hexdigest()

    def unchanged(self, mutant: Mutant, text: str, name: str) -> str | None:
        """Mutate the source and build it; return the reason if no test can detect the mutant, else None."""
        if mutant.file not in self.originals:
            self.build(name)
            self.originals[mutant.file] = self.machine_code(name)
        write(self.path / mutant.file, mutant.changed(text))
        if not self.build(name):
            return "it does not compile"
        return "the machine code is the same" if self.machine_code(name) == self.originals[mutant.file] else None

    def core_outcome(self, mutant: Mutant, text: str) -> str | None:
        """Return the first of the core's own tests that fails, or the reason why no test can fail."""
        table = self.path / KERNELS / "table.inl"
        own = set(re.findall(r"^(?:struct|using) (\w+)", text, re.MULTILINE))
        own = own if "/rules/" in mutant.file else {"Adam", "SGDMomentum"}
        few = re.sub(r" +make_entry<(\w+)>\(\),\n", lambda entry: entry[0] * (entry[1] in own), self.table)
        try:
            if not mutant.file.startswith(KERNELS):
                return self.unchanged(mutant, text, "core") or self.core_failure(*CORE_TESTS)
            write(table, few)  # a few rules compile in seconds
            if failure := self.unchanged(mutant, text, "core") or self.core_failure(*FEW_RULES_TESTS):
                return failure
            write(table, self.table)
            return self.core_failure(*CORE_TESTS) if self.build("core") else "it does not compile"
        finally:
            write(self.path / mutant.file, text)
            write(table, self.table)

    def python_outcome(self, mutant: Mutant, text: str) -> str | None:
        """Return the first of the Python tests that fails for a mutant."""
        try:
            failure = None if mutant.file.endswith(".py") else self.unchanged(mutant, text, "module")
            write(self.path / mutant.file, mutant.changed(text))
            return failure or self.python_failure()
        finally:
            write(self.path / mutant.file, text)


def main(arguments: Sequence[str]) -> int:
    """Print the failure of each mutant, and the number of mutants per failure."""
    parser = argparse.ArgumentParser(
        description="Break the sources in one place at a time and check that a test fails."
    )
    parser.add_argument("words", nargs="*", help="test only files whose names contain one of these words")
    parser.add_argument("--sample", type=int, default=0, help="test this number of random mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    options = parser.parse_args(arguments)
    everything, known = generate(), equivalent()
    files = {name for name in everything if any(word in name.split(": ")[0] for word in options.words or [""])}
    names = [name for name in everything if name in files - known]
    if 0 < options.sample < len(names):
        names = [names[i] for i in sorted(random.Random(options.seed).sample(range(len(names)), options.sample))]
    if options.list:
        print("\n".join(names))
        return 0
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    start = time.perf_counter()

    def outcomes_of(worker: int) -> Counter[str]:
        tree = Tree(ROOT / "build" / "mutants" / str(worker))
        found = Counter[str]()
        rest = names[worker :: options.workers]
        for build, outcome in (("core", tree.core_outcome), ("module", tree.python_outcome)):
            own = [name for name in rest if build == "module" or name.startswith(("src/kernels/", "src/core/"))]
            if own:
                tree.prepare(build)
            for name in own:
                failure = outcome(*everything[name]) or SURVIVES[build]
                print(f"{name}: {failure}", flush=True)
                if failure != SURVIVES["core"]:
                    found[failure] += 1
                    rest.remove(name)
            tree.originals.clear()
        return found

    with ThreadPoolExecutor(options.workers) as pool:
        outcomes = sum(pool.map(outcomes_of, range(options.workers)), Counter[str]())
    for failure, count in outcomes.most_common():
        print(f"{count:5d} {failure}")
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(names)} mutants in {minutes:.0f} minutes with {options.workers} workers")
    return 1 if outcomes[SURVIVES["module"]] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
