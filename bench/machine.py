"""Anonymous description of the benchmark machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

import onepass

from .peer import Peer
from .records import Machine, Software


def describe() -> Machine:
    """Describe this machine."""
    return Machine(
        cpu=_cpu(),
        cores=cores(),
        caches=_caches(),
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        architecture=platform.machine(),
    )


def software(kinds: Iterable[type[Peer]] = ()) -> Software:
    """Return the versions of onepass, of its surroundings and of these peers."""
    config = onepass.config()
    packages = {package for kind in kinds if kind.why_missing() is None for package in kind.packages}
    versions = {}
    for package in sorted(packages):
        with suppress(importlib.metadata.PackageNotFoundError):  # such as mpich, if the system's MPI is in its place
            versions[package] = importlib.metadata.version(package)
    return Software(
        onepass=config["version"],
        compiler=config["compiler"],
        instruction_set=config["instruction_set"],
        python=f"{platform.python_implementation()} {platform.python_version()}",
        numpy=np.__version__,
        peers=versions,
    )


def slug(machine: Machine, software: Software) -> str:
    """Name the machine for a file, such as ``amd-epyc-2-cores-avx512``."""
    name = f"{machine['cpu']} {machine['cores']} cores {software['instruction_set']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu() -> str:
    """Return the processor's model without empty words."""
    model = ""
    if platform.system() == "Linux":
        found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
        model = found.group(1) if found else ""
    elif platform.system() == "Darwin":
        model = _sysctl("machdep.cpu.brand_string")
    model = model or platform.processor() or platform.machine() or "unknown processor"
    model = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b|@.*", "", model)
    return " ".join(model.split())


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def process_bytes(name: str) -> int:
    """Return bytes of this process from /proc, such as ``RssAnon``; 0 where there is no such file."""
    lines = _text(Path("/proc/self/status")).splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), 0)


def _caches() -> dict[str, str]:
    """Return the caches of one core, such as ``{"L1d": "48 KiB", "L2": "1 MiB"}``; empty if they are unknown."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_text(index / "type"), "")
        caches[f"L{_text(index / 'level')}{kind}"] = _size(_text(index / "size"))
    if platform.system() == "Darwin":
        for name, key in {"L1d": "l1dcachesize", "L1i": "l1icachesize", "L2": "l2cachesize"}.items():
            if size := _sysctl(f"hw.{key}"):
                caches[name] = _size(f"{int(size) // 1024}K")
    return caches


def _size(text: str) -> str:
    """Write ``"48K"`` as 48 KiB, ``"1024K"`` as 1 MiB."""
    kib = int(text.rstrip("K")) if re.fullmatch(r"\d+K", text) else 0
    return f"{kib // 1024} MiB" if kib and kib % 1024 == 0 else f"{kib} KiB" if kib else text


def _memory_gib() -> int:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):
        return 0  # Windows has no sysconf


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _sysctl(key: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
