"""The program around an experiment: its options, results as JSON, figure, and tables in a page."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from comparison.report import put_into_page, split_page
from comparison.run import number, write_json
from train_digits import need, positive

import onepass

Results = dict[str, Any]


def publish(
    argv: Sequence[str] | None,
    *,
    description: str,
    out: Path,
    experiment: Callable[[bool, int | None], Results],
    sections: Mapping[str, Callable[[Results], str]],
    draw: Callable[[Results, Path], None],
    quick: str,
    seeds: str,
) -> int:
    """Run the experiment, print its tables, write them into a page, draw the figure; return the exit status."""
    parser = argparse.ArgumentParser(description=description)
    option = parser.add_argument
    option("--quick", action="store_true", help=quick)
    option("--seeds", type=positive, help=seeds)
    option("--results", type=Path, metavar="JSON", help="results of an earlier run: draw and write them, train nothing")
    option("--out", type=Path, metavar="PNG", default=out, help="figure; the JSON has its name")
    option("--page", type=Path, metavar="MD", help="page with marks between which the tables are written")
    args = parser.parse_args(argv)

    need("matplotlib.figure", "matplotlib")  # if it is missing, fail before the training
    saved = args.out.with_suffix(".json")
    try:
        if saved == args.out:
            raise ValueError(f"{args.out}: expected the name of a figure, got that of the results")
        for name in sections if args.page else ():
            split_page(args.page, name)
        results = json.loads(args.results.read_text(encoding="utf-8")) if args.results else {}
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if not results:
        results = experiment(args.quick, args.seeds)
        write_json(results, saved)

    texts = {name: write(results) for name, write in sections.items()}
    print("\n\n".join(texts.values()))
    draw(results, args.out)
    if args.page:
        for name, text in texts.items():
            put_into_page(args.page, name, text)
    print(f"\nfigure: {args.out}, results: {args.results or saved}")
    return 0


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of onepass, Python and the installed packages."""
    found = {"onepass": onepass.config()["version"], "Python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def rounded(found: Any) -> Any:
    """Round every float to five significant digits."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return number(found) if isinstance(found, float) else found
