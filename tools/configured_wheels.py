"""Check that cibuildwheel will build the wheels in docs/installing.md: python -m tools.configured_wheels.

Its settings are also checked with its schema, since cibuildwheel reads some of them only during a build.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files

import jsonschema
import tomllib
from cibuildwheel.options import CommandLineArguments, Options
from ruamel.yaml import YAML

from .wheels import ROOT, documented

# Platform and processor of GitHub's runners, by name.
RUNNERS = {
    r"ubuntu-[\d.]+": ("linux", "x86_64"),
    r"ubuntu-[\d.]+-arm": ("linux", "aarch64"),
    r"macos-\d+-intel": ("macos", "x86_64"),
    r"macos-\d+": ("macos", "arm64"),
    r"windows-\d+": ("windows", "AMD64"),
}


def runners() -> list[tuple[str, str]]:
    """Return the runners in the matrix of the wheels workflow."""
    workflow = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "wheels.yml")
    names = workflow["jobs"]["wheels"]["strategy"]["matrix"]["os"]
    if unknown := [runner for runner in names if not any(re.fullmatch(name, runner) for name in RUNNERS)]:
        sys.exit(f"tools/configured_wheels.py does not know the runners {unknown}")
    return [what for runner in names for name, what in RUNNERS.items() if re.fullmatch(name, runner)]


def configured() -> dict[str, str]:
    """Return the identifiers that cibuildwheel would build, each with its oldest supported system, if that is set."""
    found: dict[str, str] = {}
    for platform, architecture in runners():
        command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
        ran = subprocess.run([*command, "--archs", architecture, ROOT], capture_output=True, text=True, check=True)
        arguments = CommandLineArguments.defaults()
        arguments.package_dir = ROOT
        options = Options(platform=platform, command_line_arguments=arguments, env={})  # type: ignore[arg-type]
        for identifier in ran.stdout.split():
            settings = options.build_options(identifier)
            oldest = settings.environment.as_dictionary({}).get("MACOSX_DEPLOYMENT_TARGET", "")
            images = settings.musllinux_images if "musllinux" in identifier else settings.manylinux_images
            if images is not None:
                (numbers,) = re.findall(r"linux_(\d+_\d+)", images[architecture])
                oldest = numbers.replace("_", ".")
            found[identifier] = oldest.removesuffix(".0")
    return found


def main() -> int:
    """Compare the configuration with the documentation; return the exit status."""
    schema = json.loads((files("cibuildwheel") / "resources" / "cibuildwheel.schema.json").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    jsonschema.validate(project["tool"]["cibuildwheel"], schema)
    here, there = configured(), documented()
    problems = [f"does not list {name}" for name in sorted(here.keys() - there.keys())]
    problems += [f"lists {name}, which cibuildwheel would not make" for name in sorted(there.keys() - here.keys())]
    for name in sorted(here.keys() & there.keys()):
        if re.findall(r" (\d[\d.]*) or newer", there[name]) != [here[name]] * (here[name] != ""):
            problems.append(f"says that {name} is for {there[name]}; its wheel is for {here[name] or 'any'} or newer")
    for problem in problems:
        print(f"docs/installing.md {problem}")
    print(f"platforms: {len(here)} wheels are configured")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
