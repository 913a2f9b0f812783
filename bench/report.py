"""The results as text for a terminal, and how numbers are written everywhere."""

from __future__ import annotations

from .records import BarRecord, Comparison, Machine, Point, Software, Statistic

STATISTICS: dict[Statistic, str] = {"median_ns": "median", "mean_ns": "mean", "p90_ns": "90th percentile"}


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


def ratio(of: Comparison, name: str, statistic: Statistic) -> float:
    """A peer's time over onepass's, which is the first."""
    first, *_ = of["timings"].values()
    return float(f"{of['timings'][name][statistic] / first[statistic]:.5g}")


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
    lines = [
        f"\n{point['problem']}, {point['rounds']} rounds",
        f"  {'':<28}{'a step':>10}{'quartiles':>24}{'ns/element':>12}"
        f"{'/ onepass':>11}{'by rounds':>11}{'of the limit':>14}",
    ]
    for name, timing in point["timings"].items():
        median, ratio = timing["median_ns"], point["over_onepass"][name]
        of_limit = f"{limit_ns(point) / median:.2f}" if "stream limit" in point["timings"] else ""
        lines.append(
            f"  {name:<28}{duration(median):>10}{duration(timing['q1_ns']) + ' to ' + duration(timing['q3_ns']):>24}"
            f"{median / point['elements']:>12.3g}"
            f"{digits(ratio['of_medians']):>11}{digits(ratio['median_of_rounds']):>11}{of_limit:>14}"
        )
    return "\n".join(lines)


def loop_table(point: Point) -> str:
    """Write one network's peers: first their steps, then the whole iterations."""
    lines = [f"\n{point['problem']}, {point['rounds']} rounds"]
    for what, part in (("a step", point["step"]), ("an iteration", point)):
        lines.append(f"  {what:<28}{''.join(f'{text:>22}' for text in STATISTICS.values())}")
        for name, timing in part["timings"].items():
            cells = (f"{duration(timing[each])} ({digits(ratio(part, name, each))})" for each in STATISTICS)
            lines.append(f"  {name:<28}{''.join(f'{cell:>22}' for cell in cells)}")
    return "\n".join(lines)


def limit_ns(point: Point) -> float:
    """The stream limit of this problem's rule: it was measured with Adam's seven streams."""
    return point["timings"]["stream limit"]["median_ns"] * point["streams"] / 7


LEGEND = (
    "a step: median over the rounds; / onepass: that over onepass's median; by rounds: the median of each round's own "
    "ratio;\nof the limit: the stream limit's median over this one, in proportion to the arrays that the rule moves; "
    "in brackets:\nthe time over onepass's. Bars are judged by the ratio of medians unless they name something else."
)


def bar_line(bar: BarRecord) -> str:
    """Write one bar, and whether it is reached."""
    text = f"{bar['problem']}: {bar['bar']}"
    if bar["measured"] is None:
        return f"not measured  {text}"
    by_rounds = "" if bar["by_rounds"] is None else f" ({digits(bar['by_rounds'])} by rounds)"
    return f"{'holds' if bar['holds'] else 'missed':<6}  {text}: {digits(bar['measured'])}{by_rounds}"
