"""The command line: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure onepass beside its peers.")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this one (may be given several times)")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--quick", action="store_true", help="a few rounds, for trying; writes nothing without --name")
    parser.add_argument("--name", help="write to bench/results/NAME.json instead of this machine's file")
    options = parser.parse_args(arguments)

    # The libraries below NumPy read these once, when they are loaded: hence before the imports.
    for variable in ("ONEPASS_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    # A peer's idle threads sleep, as onepass's do: spinning, they would take the next peer's cores.
    for variable, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0"), ("KMP_BLOCKTIME", "0")):
        os.environ.setdefault(variable, value)
    from . import machine, plots, records, report
    from .cases import CASES, run
    from .measure import WrongResult

    if options.list:
        for name, case in CASES.items():
            print(f"{name:<14}{case.summary}")
        return 0
    names = options.case or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case is named {', '.join(unknown)}; there are {', '.join(CASES)}")

    here = machine.describe()
    software = machine.software(kind for name in names for kind in CASES[name].peers)
    print(report.machine_line(here), report.software_line(software), report.LEGEND, sep="\n")
    done: dict[str, records.CaseRecord] = {}
    failed = False
    for name in names:
        print(f"\n{name}: {CASES[name].summary}")
        try:
            result = run(CASES[name], quick=options.quick)
        except WrongResult as error:
            print(f"error: {error}; {name} is not measured")
            failed = True
        else:
            if result is not None:
                done[name] = result
    if done and (options.name or not options.quick):
        path = records.path_of(options.name or machine.slug(here, software))
        record = records.save(path, here, done)
        print(f"\nwritten: {path.relative_to(records.ROOT)}")
        if not options.quick:
            for image in plots.draw(record):
                print(f"written: {image.relative_to(records.ROOT)}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
