"""Build for other platforms and run as much as this machine can: python -m tools.platforms [TARGET …].

Writes the results to tools/platforms/results.json and the table of them into docs/installing.md. ``--list`` names the
targets. Each target says in its module what it needs: Debian's packages, and others from PyPI, which it installs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from . import arm, cores, free_threaded, macos, musl, windows
from .record import Result, save

TARGETS: dict[str, Callable[[], list[Result]]] = {
    "free-threaded": free_threaded.run,
    "linux-aarch64": arm.run,
    "linux-musl": musl.run,
    "macos": macos.run,
    "other-cores": cores.run,
    "windows": windows.run,
}


def main() -> int:
    """Run the targets; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.platforms", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; without: all")
    parser.add_argument("--list", action="store_true", help="name the targets and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(TARGETS))
        return 0
    if unknown := [target for target in options.targets if target not in TARGETS]:
        parser.error(f"targets: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    failed = 0
    for target in options.targets or TARGETS:
        results = TARGETS[target]()
        save(target, results)
        for row in results:
            print(f"{target}: {row.platform}: {row.run}: {row.passed:,} passed, {row.failed:,} failed", flush=True)
        failed += sum(row.failed for row in results)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
