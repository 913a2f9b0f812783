"""The results as text for a terminal, and how numbers are written everywhere."""

from __future__ import annotations

from .records import BarRecord, Machine, Point, Software


def count(number: int) -> str:
    """Write a number, in words where it is round and long: 100, 10,000, 1 million."""
    return f"{number // 10**6} million" if number >= 10**6 and number % 10**6 == 0 else f"{number:,}"


def duration(ns: float) -> str:
    """Write a time with three digits: 0.41 µs, 12.3 µs, 4.56 ms."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if ns >= size:
            return f"{digits(ns / size)} {unit}"
    return f"{digits(ns / 1e3)} µs"


def digits(number: float) -> str:
    """Write a number with three digits, two below one: 1,234, 123, 12.3, 1.23, 0.12."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"


def times(ratio: float) -> str:
    """Write a ratio with a multiplication sign."""
    return f"{digits(ratio)}\N{MULTIPLICATION SIGN}"


def machine_line(machine: Machine) -> str:
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    parts = [machine["cpu"], f"{machine['cores']} cores", caches, f"{machine['memory_gib']} GiB", machine["system"]]
    return ", ".join(part for part in parts if part)


def software_line(software: Software) -> str:
    peers = "".join(f", {name} {version}" for name, version in software["peers"].items())
    built = f"{software['compiler']}, {software['instruction_set']}"
    return f"onepass {software['onepass']} ({built}), {software['python']}, NumPy {software['numpy']}{peers}"


def table(point: Point) -> str:
    """Write one problem's peers, a line each."""
    limit = point["timings"].get("stream limit")
    plural = "" if point["threads"] == 1 else "s"
    tensors = "" if point["tensors"] == 1 else f"{point['tensors']} tensors of "
    lines = [
        f"\n{tensors}{count(point['elements'])} elements, {point['dtype']}, {point['threads']} thread{plural}, "
        f"{point['rounds']} rounds",
        f"  {'':<28}{'a step':>10}{'quartiles':>24}{'ns/element':>12}"
        f"{'/ onepass':>11}{'by rounds':>11}{'of the limit':>14}",
    ]
    for name, timing in point["timings"].items():
        median, ratio = timing["median_ns"], point["over_onepass"][name]
        of_limit = f"{limit['median_ns'] / median:.2f}" if limit else ""
        lines.append(
            f"  {name:<28}{duration(median):>10}{duration(timing['q1_ns']) + ' to ' + duration(timing['q3_ns']):>24}"
            f"{median / point['elements'] / point['tensors']:>12.3g}"
            f"{digits(ratio['of_medians']):>11}{digits(ratio['median_of_rounds']):>11}{of_limit:>14}"
        )
    return "\n".join(lines)


LEGEND = (
    "a step: median over the rounds; / onepass: that over onepass's median; by rounds: the median of each round's own "
    "ratio;\nof the limit: the stream limit's median over this one. Bars are judged by the ratio of medians."
)


def bar_line(bar: BarRecord) -> str:
    """Write one bar, and whether it is reached."""
    ratio, by_rounds = bar["ratio_of_medians"], bar["median_ratio_of_rounds"]
    if ratio is None or by_rounds is None:
        return f"not measured  {bar['bar']}"
    return f"{'holds' if bar['holds'] else 'missed':<6}  {bar['bar']}: {digits(ratio)} ({digits(by_rounds)} by rounds)"
