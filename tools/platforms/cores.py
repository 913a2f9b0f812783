"""Other processors and WebAssembly: the core's own tests, which make cross-… builds and runs in an emulator."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date

from tools.wheels import output

from .record import ROOT, Result
from .zig import WORK, compilers, version

PLATFORMS = {  # by the target of make: the platform, the compiler, and the emulator if there is one
    "cross-aarch64": ("Linux on 64-bit Arm", "aarch64-linux-gnu-g++", "qemu-aarch64"),
    "cross-s390x": ("Linux on s390x (big-endian)", "s390x-linux-gnu-g++", "qemu-s390x"),
    "cross-riscv64": ("Linux on 64-bit RISC-V", "riscv64-linux-gnu-g++", "qemu-riscv64"),
    "cross-powerpc64le": ("Linux on 64-bit POWER (little-endian)", "powerpc64le-linux-gnu-g++", "qemu-ppc64le"),
    "cross-arm": ("Linux on 32-bit Arm", "arm-linux-gnueabihf-g++", "qemu-arm"),
    "cross-i686": ("Linux on 32-bit x86", "i686-linux-gnu-g++"),
    "cross-wasm32": ("WebAssembly without threads", "em++", "node"),
}
WHAT = "the core's own tests"


def named(program: str) -> str:
    """Return the name and the version of a program."""
    found = re.search(r"\d+\.\d+[.\d]*", output(program, "--version"))
    name = {"em++": "Emscripten", "node": "Node.js"}.get(program, "qemu" if program.startswith("qemu") else "GCC")
    return f"{name} {found[0] if found else 'of unknown version'}"


def tested(platform: str, versions: str, *arguments: str) -> Result:
    """Run a target of make that tests the core; return the row of the table."""
    log = WORK / f"{arguments[0]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(["make", "-C", ROOT, *arguments, "ARGS=-V"], stdout=file, stderr=file)
    text = log.read_text(encoding="utf-8")
    summary = re.search(r"% tests passed(?:, (\d+) tests? failed)? out of", text)
    if summary is None:
        sys.exit(f"{platform}: the tests did not run: {log}")
    passed, failed = (len(re.findall(rf"^\d+: {word} ", text, re.MULTILINE)) for word in ("ok    ", "FAILED"))
    failed = max(failed, int(summary[1] or 0))  # a program that crashes prints no failed test
    return Result(platform, WHAT, versions, passed, failed, date.today().isoformat())


def run() -> list[Result]:
    """Test the core on each platform."""
    results = [
        tested(platform, ", ".join(map(named, programs)), target) for target, (platform, *programs) in PLATFORMS.items()
    ]
    versions = f"{version()}, {named('qemu-aarch64')}"
    zig = compilers("aarch64-linux-musl")["c++"]
    return [*results, tested("Linux on 64-bit Arm with musl, static", versions, "cross-musl", f"ZIG={zig}")]
