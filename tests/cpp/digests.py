"""A table: which compilers, flags, processors and instruction sets give the same bits. python tests/cpp/digests.py

Builds the core and its digest program in each way, runs it, and counts the lines that equal those of digests/*.txt:
`gradual` with gradual underflow, where the bits are the same everywhere, and `flush` with subnormal numbers taken for
zero, where they are the same on x86-64. With words, only the builds whose names hold one of them. Exits with 1 if a
line that is promised differs; a compiler or emulator that is missing is said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent  # cmake and ninja
FLAGS = {"-O3, as shipped": "", "-O0": "-O0", "-O2 -fno-tree-vectorize": "-O2 -fno-tree-vectorize"}


def emulated(processor: str) -> list[str]:
    return [
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={processor}",
        f"-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-{processor};-L;/usr/{processor}-linux-gnu",
    ]


# Name: the compiler, the Debian packages it needs, CMake's options, what runs the program, the instruction sets.
X86 = ["baseline", "avx2", "avx512"]
BUILDS: dict[str, tuple[str, str, list[str], list[str], list[str]]] = {
    "x86-64 GCC": ("g++", "g++", [], [], X86),
    "x86-64 Clang": ("clang++", "clang", [], [], X86),
}
for processor in ("aarch64", "s390x"):
    run = [f"qemu-{processor}", "-L", f"/usr/{processor}-linux-gnu"]
    package = f"g++-{processor}-linux-gnu qemu-user"
    BUILDS[f"{processor} GCC"] = (f"{processor}-linux-gnu-g++", package, emulated(processor), run, ["baseline"])
BUILDS["aarch64 Clang"] = (
    "clang++",
    "clang g++-aarch64-linux-gnu qemu-user",
    [*emulated("aarch64"), "-DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu"],
    BUILDS["aarch64 GCC"][3],
    ["baseline"],
)


def build(name: str, compiler: str, options: list[str], flags: str) -> Path:
    folder = ROOT / "build" / "digests" / f"{name} {flags}".strip().replace(" ", "_")
    configure = [
        *(
            "-S",
            ROOT,
            "-B",
            folder,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={TOOLS / 'ninja'}",
            "-DCMAKE_BUILD_TYPE=Debug",
        ),
        *("-DONEPASS_TESTS=ON", f"-DCMAKE_CXX_COMPILER={compiler}", f"-DONEPASS_FLAGS={flags}", *options),
    ]
    for command in ([TOOLS / "cmake", *configure], [TOOLS / "cmake", "--build", folder, "--target", "digest"]):
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return folder / "tests" / "cpp" / "digest"


def lines(program: Path, run: list[str], mode: str, isa: str) -> list[str] | None:
    """What the program prints; None where the processor lacks the instruction set."""
    command = [*run, str(program), mode]
    done = subprocess.run(command, env={**os.environ, "ONEPASS_ISA": isa}, stdout=subprocess.PIPE, text=True)
    if done.returncode == 77:
        return None
    done.check_returncode()
    return done.stdout.splitlines()


def main() -> int:
    words = sys.argv[1:]
    expected = {mode: (Path(__file__).parent / "digests" / f"{mode}.txt").read_text().splitlines() for mode in MODES}
    print("| build | flags | instruction set | gradual | flush |\n| --- | --- | --- | --- | --- |")
    good = True
    for name, (compiler, package, options, run, instruction_sets) in BUILDS.items():
        if words and not any(word in name for word in words):
            continue
        if missing := [tool for tool in (compiler, *run[:1]) if shutil.which(tool) is None]:
            print(f"| {name} | {' '.join(missing)} missing: apt-get install {package} | | | |")
            continue
        for label, flags in FLAGS.items():
            program = build(name, compiler, options, flags)
            for isa in instruction_sets:
                cells = []
                for mode in MODES:
                    found = lines(program, run, mode, isa)
                    if found is None:
                        cells.append("not on this processor")
                        continue
                    equal = sum(a == b for a, b in zip(found, expected[mode]))
                    promised = mode == "gradual" or name.startswith("x86-64")
                    good = good and (not promised or found == expected[mode])
                    cells.append(f"{equal} of {len(expected[mode])}")
                print(f"| {name} | {label} | {isa} | {' | '.join(cells)} |", flush=True)
    return 0 if good else 1


MODES = ("gradual", "flush")

if __name__ == "__main__":
    sys.exit(main())
