"""CPython and C libraries, built from Debian's sources: no package has CPython without the GIL or for musl."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from datetime import date
from pathlib import Path

from tools import wheels

from .record import Result, passed_and_failed
from .zig import WORK

# Sources in Debian's archive: a version and the SHA-256 of the file. Superseded versions disappear from the archive.
SOURCES = {
    "p/python3.13/python3.13_3.13.15.orig.tar.xz": "1e66a7945a48390ee4c2a4268a0e4185884059a13c4aab6d148aa208deea4a76",
    "p/python3.14/python3.14_3.14.7.orig.tar.xz": "3b48dac8fb59f62eaa67ac83c1eb12bda1b7a08406dd286e252c11a66be27f81",
    "libf/libffi/libffi_3.4.4.orig.tar.gz": "d66c56ad259a82cf2a9dfc408b32bf5da52371500b84745f7fb8b645712df676",
    "m/musl/musl_1.2.5.orig.tar.gz": "a9a118bbe84d8764da0ea0d28b3ab3fae8477fc7e4085d90102b8596fc7c75e4",
    "z/zlib/zlib_1.3.dfsg+really1.3.1.orig.tar.gz": "60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb",
}

VERSIONS = """
import numpy, onepass, platform
for version in onepass.config()["compiler"], platform.python_version(), numpy.__version__:
    print(version)
"""


def run(*command: str | Path, cwd: Path | None = None, **environment: str | Path) -> str:
    """Run a command with additional environment variables; return its output, or raise an error that holds it."""
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    ran = subprocess.run(list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))}: status {ran.returncode}\n{(ran.stdout + ran.stderr)[-20_000:]}"
        )
    return ran.stdout


def install(*packages: str) -> None:
    """Install packages of Debian."""
    run("apt-get", "-o", "DPkg::Lock::Timeout=600", "install", "-y", "--no-install-recommends", *packages)


def archive() -> str:
    """Return the address of the Debian archive that this machine installs from."""
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian")
    return found.split()[0]


def source(package: str) -> Path:
    """Download and unpack a source package, such as python3.13; return its folder."""
    (path,) = (path for path in SOURCES if path.split("/")[1] == package)
    folder = WORK / "sources" / package
    if not folder.exists():
        with urllib.request.urlopen(f"{archive()}pool/main/{path}") as answer:
            data = answer.read()
        if (digest := hashlib.sha256(data).hexdigest()) != SOURCES[path]:
            raise RuntimeError(f"{path}: expected the SHA-256 {SOURCES[path]}, got {digest}")
        packed = WORK / "sources" / path.rpartition("/")[2]
        packed.parent.mkdir(parents=True, exist_ok=True)
        packed.write_bytes(data)
        with tarfile.open(packed) as tar:
            tar.extractall(unpacked := packed.parent / f"{package}.unpacked", filter="data")
        next(unpacked.iterdir()).rename(folder)
        unpacked.rmdir()
    return folder


def built(name: str, package: str, *options: str | Path, **environment: str | Path) -> Path:
    """Configure, build and install a source package, unless done before; return the folder that it is installed in."""
    prefix, building = WORK / name, WORK / f"{name}.build"
    if building.exists() or not prefix.exists():  # an interrupted build leaves its folder
        for folder in (prefix, building):
            shutil.rmtree(folder, ignore_errors=True)
        building.mkdir(parents=True)
        run(source(package) / "configure", f"--prefix={prefix}", *options, cwd=building, **environment)
        run("make", f"-j{os.cpu_count()}", cwd=building, **environment)
        run("make", "install", "COMPILEALL_OPTS=-l", cwd=building, **environment)  # -l: bytecode of few modules
        shutil.rmtree(building)
    return prefix


def suite_result(
    platform: str, what: str, inside: Path, sdist: Path, wheel: Path, note: str = "", **variables: str
) -> Result:
    """Run the test suite of an sdist in an environment where the wheel is installed; return the row of the table."""
    run(inside, "-m", "onepass")
    compiler, python, numpy = run(inside, "-c", VERSIONS).splitlines()
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(sdist, folder)
        summary, status = wheels.pytest_summary(inside, next(Path(folder).iterdir()), [], **variables)
    return Result(
        platform,
        what,
        f"{compiler.replace('GNU', 'GCC')}, Python {python}, NumPy {numpy}",
        *passed_and_failed(platform, summary, status),
        date.today().isoformat(),
        wheel.stat().st_size,
        note,
    )
