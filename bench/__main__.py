"""The command line: ``python -m bench --help``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure onepass and its peers.")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this one (may be given several times)")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--quick", action="store_true", help="a few rounds, for a trial; writes nothing without --name")
    parser.add_argument("--name", help="write to bench/results/NAME.json instead of this machine's file")
    parser.add_argument(
        "--env", action="append", default=[], metavar="VARIABLE=VALUE", help="set this on top of the case's environment"
    )
    parser.add_argument("--affinity", metavar="0,1", help="let the cases use these processors only")
    options = parser.parse_args(arguments)

    from . import cases, environment, machine, records, report
    from .measure import WrongResult

    if options.list:
        for name, case in cases.CASES.items():
            print(f"{name:<40}{case.summary}")
        return 0
    names = options.case or list(cases.CASES)
    if unknown := [name for name in names if name not in cases.CASES]:
        parser.error(f"no case is named {', '.join(unknown)}; there are {', '.join(cases.CASES)}")
    settings = [*options.env, *([environment.AFFINITY + options.affinity] if options.affinity else [])]
    if wrong := [setting for setting in settings if "=" not in setting or " " in setting]:
        parser.error(f"expected VARIABLE=VALUE, got {', '.join(wrong)}")

    here, software = machine.describe(), machine.software()
    print(report.machine_line(here), report.LEGEND, sep="\n")
    done: dict[str, records.CaseRecord] = {}
    failed = False
    for name in (" ".join([name, *settings]) for name in names):
        case = cases.find(name)
        print(f"\n{name}: {case.summary}", flush=True)
        try:
            result = environment.call(case.environment, case.settings, cases.run_named, name, options.quick)
        except WrongResult as error:
            print(f"error: {error}; {name} is not measured")
            failed = True
        else:
            if result is not None:
                done[name] = result
    if done and (options.name or not options.quick):
        path = records.path_of(options.name or machine.slug(here, software))
        records.save(path, here, done)
        print(f"\nwritten: {path.relative_to(records.ROOT)}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
