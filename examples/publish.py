"""The program around an experiment: its options, results as JSON, figure, and tables in a page."""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from train_digits import need, positive

import onepass

Results = dict[str, Any]
INK, FAINT, GRID = "#1f2328", "#656d76", "#e6e8eb"  # colours of the figures' text, notes and grids


def publish(
    argv: Sequence[str] | None,
    *,
    description: str,
    out: Path,
    experiment: Callable[[argparse.Namespace], Results],
    sections: Mapping[str, Callable[[Results], str]],
    draw: Callable[[Results, Path], None],
    quick: str,
    seeds: str,
    options: Mapping[str, dict[str, Any]] = {},
) -> int:
    """Run the experiment, print its tables, write them into a page, draw the figure; return the exit status."""
    parser = argparse.ArgumentParser(description=description)
    option = parser.add_argument
    for name, keywords in options.items():
        option(name, **keywords)
    option("--quick", action="store_true", help=quick)
    option("--seeds", type=positive, help=seeds)
    option("--results", type=Path, metavar="JSON", help="results of an earlier run: draw and write them, train nothing")
    option("--out", type=Path, metavar="PNG", default=out, help="figure; the JSON has its name")
    option("--page", type=Path, metavar="MD", help="page with marks between which the tables are written")
    args = parser.parse_args(argv)

    need("matplotlib.figure", "matplotlib")  # if it is missing, fail before training
    saved = args.out.with_suffix(".json")
    with readable_errors():
        if saved == args.out:
            raise ValueError(f"{args.out}: expected the name of a figure, got that of the results")
        for name in sections if args.page else ():
            split_page(args.page, name)
        results = json.loads(args.results.read_text(encoding="utf-8")) if args.results else {}
        args.out.parent.mkdir(parents=True, exist_ok=True)
    if not results:
        results = experiment(args)
        write_json(results, saved)

    texts = {name: write(results) for name, write in sections.items()}
    print("\n\n".join(texts.values()))
    draw(results, args.out)
    if args.page:
        for name, text in texts.items():
            put_into_page(args.page, name, text)
    print(f"\nfigure: {args.out}, results: {args.results or saved}")
    return 0


@contextmanager
def readable_errors() -> Iterator[None]:
    """End the program with only the message of an error about a file."""
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of onepass, Python and the installed packages."""
    found = {"onepass": onepass.config()["version"], "Python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def number(value: float) -> float | None:
    """Round to five significant digits; None replaces infinity, which JSON does not have."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def rounded(found: Any) -> Any:
    """Round every float to five significant digits."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return number(found) if isinstance(found, float) else found


def write_json(results: Results, path: Path) -> None:
    """Write the results with each list of numbers and each innermost record on one line."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: re.sub(r"\n\s*", " ", found[0]), text)
    path.write_text(text + "\n", encoding="utf-8")


def markdown(rows: list[list[str]]) -> str:
    """Aligned Markdown table; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows)


def split_page(page: Path, name: str) -> tuple[str, str]:
    """Return the text up to and including the first mark, and from the second mark on."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page}: missing {begin.strip()} or {end}")
    return before + begin, end + after


def put_into_page(page: Path, name: str, text: str) -> None:
    """Replace the text between the marks."""
    before, after = split_page(page, name)
    page.write_text(f"{before}{text}\n{after}", encoding="utf-8")


def write_figure(figure: Any, results: Results, path: Path, dpi: int) -> None:
    """Write the figure as a PNG, with the versions of the packages below it."""
    found = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    figure.text(0.985, 0.011, found, fontsize=8, color=FAINT, ha="right")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    # 256 colours are enough, and make the file a third as large; matplotlib depends on Pillow.
    need("PIL.Image", "pillow").open(drawn).convert("RGB").quantize(256).save(path, format="png", optimize=True)
