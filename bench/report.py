"""Results as text for a terminal, and the format of numbers everywhere."""

from __future__ import annotations

from .records import Comparison, Machine, Point, Software, Statistic, TargetRecord

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


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"


def size(number: float) -> str:
    """Write a number of bytes with four digits: 128.2 MB."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"


def ratio(of: Comparison, name: str, statistic: Statistic) -> float:
    """Return a peer's time divided by the time of onepass, the first peer."""
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
    """Write a line for each peer of one problem, with the bytes that it holds a parameter, and one for its sizes."""
    held = point.get("held", {})
    lines = [
        f"\n{point['problem']}, {point['rounds']} rounds",
        f"  {'':<28}{'a step':>10}{'quartiles':>24}{'ns/element':>12}"
        f"{'/ onepass':>11}{'by rounds':>11}{'of baseline':>14}{'bytes held' if held else '':>12}",
    ]
    for name, timing in point["timings"].items():
        median, ratio = timing["median_ns"], point["over_onepass"][name]
        of_baseline = percent(baseline_ns(point, name) / median) if "stream baseline" in point["timings"] else ""
        lines.append(
            f"  {name:<28}{duration(median):>10}{duration(timing['q1_ns']) + ' to ' + duration(timing['q3_ns']):>24}"
            f"{median / point['elements']:>12.3g}"
            f"{digits(ratio['of_medians']):>11}{digits(ratio['median_of_rounds']):>11}{of_baseline:>14}"
            f"{digits(held[name]) if name in held else '':>12}"
        )
    lines += [f"  {name}: {size(number)}" for name, number in point.get("bytes", {}).items()]
    return "\n".join(lines)


def loop_table(point: Point) -> str:
    """Write the steps of one network's peers, and then their whole iterations."""
    lines = [f"\n{point['problem']}, {point['rounds']} rounds"]
    for title, part in (("a step", point["step"]), ("an iteration", point)):
        lines.append(f"  {title:<28}{''.join(f'{text:>22}' for text in STATISTICS.values())}")
        for name, timing in part["timings"].items():
            cells = (f"{duration(timing[each])} ({digits(ratio(part, name, each))})" for each in STATISTICS)
            lines.append(f"  {name:<28}{''.join(f'{cell:>22}' for cell in cells)}")
    return "\n".join(lines)


def baseline_ns(point: Point, name: str) -> float:
    """Return the stream baseline in proportion to the bytes that the peer's step moves: seven streams are measured."""
    streams = point["moved"][name] / 4 if name in point.get("moved", {}) else point["streams"]
    return point["timings"]["stream baseline"]["median_ns"] * streams / 7


LEGEND = (
    "a step: median over the rounds; / onepass: ratio to onepass's median; by rounds: median of the ratios in each "
    "round;\nof baseline: speed as a percentage of the stream baseline, scaled to the bytes that the step moves; "
    "in brackets:\nratio to onepass's time. Targets compare medians unless they name another statistic."
)


def measured(target: TargetRecord, value: float) -> str:
    """Write a value with the unit of its target."""
    if target["peer"] == "stream baseline":
        return percent(value)
    return times(value) if target["peer"] else f"{digits(value)} ns"


def target_line(target: TargetRecord) -> str:
    """Write one target and its result."""
    text = f"{target['problem']}: {target['target']}"
    if target["measured"] is None:
        return f"not measured  {text}"
    by_rounds = "" if target["by_rounds"] is None else f" ({measured(target, target['by_rounds'])} by rounds)"
    return f"{'met' if target['met'] else 'missed':<6}  {text}: {measured(target, target['measured'])}{by_rounds}"
