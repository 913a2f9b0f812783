"""Types, signatures and docstrings: what an editor shows and a type checker accepts, of the installed package."""

from __future__ import annotations

import ast
import enum
import inspect
import json
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass

# Typical user code. A line that carries an ignore is wrong, and mypy must report it: under --strict an ignore that
# ignores nothing is an error too.
PROGRAM = """
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import onepass
from onepass import schedules

W: npt.NDArray[np.float32] = np.zeros((3, 2), np.float32)
b = np.zeros(2, np.float32)


def warm(t: int) -> float:
    return min(1.0, t / 10)


one = onepass.Adam(W)
several = onepass.AdamW([W, b], lr=warm, betas=(0.8, 0.9), clip_norm=1.0, nonfinite="skip", ema_decay=0.9)
named = onepass.SGD({"W": W, "b": b}, lr=schedules.warmup(schedules.cosine(0.1, 100), 10), momentum=0.9)
groups: list[dict[str, Any]] = [{"params": [W], "lr": 0.1}, {"params": b}]
grouped = onepass.RMSprop(groups)
onepass.Adam([{"params": [W], "weight_decay": 0.1}, {"params": b}])
onepass.Adam([{"params": [W], "weight_decay": 0.1}, {"params": [b]}], lr=1e-3)
weights: list[npt.NDArray[Any]] = [W, np.zeros(3)]
mixed = onepass.Adam(weights)
mixed.step([W, np.zeros(3)])
mixed.step(np.ones(p.shape) for p in weights)
onepass.Adam((W, np.zeros(3)), lr=np.float32(0.1), betas=[0.9, 0.99], eps=np.float64(1e-8), ema_decay=np.float32(0.9))
onepass.Adam({"W": W, "b": np.zeros(3)}, lr=lambda t: np.float32(0.1)).step({"W": W, "b": None})
onepass.SGD(np.zeros(())).step(np.float32(1))
flat: npt.NDArray[Any] = onepass.flatten(W)
V, c = onepass.flatten([W, b])
onepass.flatten((V, c))[0].base
onepass.flatten({"W": V})["W"].sum()
onepass.flatten([{"params": [W]}, {"params": b}])[0]["params"]
onepass.adam_step(W, W, W, W, np.int64(1), lr=np.float32(0.1), betas=[0.9, 0.99], eps_mode="hat")
preset = onepass.Adam(W, **onepass.presets["keras"])
kinds: list[type[onepass.Optimizer]] = [onepass.Adam, onepass.SGD]
made = [kind(W, lr=0.1) for kind in kinds]
variants: list[type[onepass.Optimizer]] = [onepass.Adamax, onepass.NAdam, onepass.RAdam, onepass.Adagrad]
for kind in (*variants, onepass.Adadelta, onepass.Lion, onepass.AdEMAMix):
    optimizer: onepass.Optimizer = kind(W)
one.step(W)
several.step([W, None], grad_scale=0.5)
several.step([W, b], np.float32(0.5))
named.step({"W": onepass.SparseRows([0, 1], W[:2]), "b": b})
one.add_group(b, lr=0.5)
one.groups[0].lr = 0.5
one.groups[0].lr *= 0.5
one.groups[0].eps = np.float32(1e-6)
rate: float = one.groups[0].lr
half: float = one.groups[0].eps / 2 + one.groups[0].betas[0]
one.groups[0].betas = [0.8, 0.9]
one.param_groups[0]["lr"] *= 0.5
one.lr = warm
one.lr = np.float32(0.1)
one.nonfinite = "skip"
one.clip_norm = np.float32(1)
one.betas = [0.8, 0.9]
one.ema_decay = warm
first: float = one.betas[0] + one.weight_decay
named_groups = onepass.Adam([{"params": {"w": W}, "lr": 0.1}, {"params": {"b": b}}])
state: Mapping[Any, dict[str, Any]] = one.state
steps: int = one.step_count + one.skipped
norm: float | None = several.grad_norm
one.load_state_dict(one.state_dict())
one.save("adam.npz")
onepass.adam_step(W, W, W, W, 1, lr=0.1, max_exp_avg_sq=W)
onepass.set_num_threads(onepass.get_num_threads())
version: str = onepass.__version__
config: dict[str, Any] = onepass.config()
onepass.show_config()

onepass.Adam(W, lr="0.1")  # type: ignore[arg-type]
onepass.Adam("W")  # type: ignore[arg-type]
onepass.Adam(W, nonfinite="bad")  # type: ignore[arg-type]
onepass.Adam(W, eps_mode="bad")  # type: ignore[arg-type]
onepass.Adam(W, beta=0.9)  # type: ignore[call-arg]
onepass.Adam(W, betas=0.9)  # type: ignore[arg-type]
onepass.Adam(5)  # type: ignore[arg-type]
onepass.Adam()  # type: ignore[call-arg]
one.step()  # type: ignore[call-arg]
one.step(W, grad_scale="half")  # type: ignore[arg-type]
one.step("abc")  # type: ignore[arg-type]
one.step(0.5)  # type: ignore[arg-type]
one.step([[1.0]])  # type: ignore[list-item]
one.learning_rate = 0.1  # type: ignore[attr-defined]
one.momentum  # type: ignore[attr-defined]
one.betas = 0.9  # type: ignore[assignment]
one.nonfinite = "x"  # type: ignore[assignment]
one.groups[0].betaz = 3  # type: ignore[attr-defined]
one.groups[0].eps = "small"  # type: ignore[assignment]
one.step_count = 5  # type: ignore[misc]
rate_text: str = one.groups[0].lr  # type: ignore[assignment]
length: str = one.step_count  # type: ignore[assignment]
onepass.set_num_threads("two")  # type: ignore[arg-type]
onepass.Adm(W)  # type: ignore[attr-defined]
schedules.cosine("0.1", 100)  # type: ignore[arg-type]
"""


def test_mypy_accepts_a_users_program_and_reports_its_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="make test installs it")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    assert mypy(tmp_path) == "Success: no issues found in 1 source file\n"


def mypy(folder: Path, *options: str) -> str:
    programs = [path.name for path in folder.glob("*.py")]
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", *options, *programs]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Create a folder with one program for each of the first pages, which holds all code of the page."""
    root = Path(__file__).parents[2]
    if not (root / "docs").exists():
        pytest.skip("the documentation is missing")
    for page in ("README.md", "docs/quickstart.md", "docs/options.md", "docs/checkpoints.md"):
        text, code = (root / page).read_text(encoding="utf-8"), []
        for kind, block in re.findall(r"^```(python|pycon)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines = block.splitlines()
            code += lines if kind == "python" else [line[4:] for line in lines if line.startswith((">>> ", "... "))]
        (tmp_path / Path(page).with_suffix(".py").name).write_text("\n".join(code), encoding="utf-8")
    return tmp_path


def test_the_code_of_the_first_pages_passes_mypys_strict_mode(pages: Path) -> None:
    pytest.importorskip("mypy", reason="make test installs it")
    assert mypy(pages, "--allow-redefinition") == "Success: no issues found in 4 source files\n"


def test_the_code_of_the_first_pages_passes_pyrights_strict_mode(pages: Path) -> None:
    pytest.importorskip("basedpyright", reason="make test installs it")
    # A page joins several programs, and sessions that end in an expression.
    settings = {"typeCheckingMode": "strict", "reportUnusedExpression": False, "reportDuplicateImport": False}
    (pages / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=pages, capture_output=True, text=True, check=False)
    assert result.stdout == "0 errors, 0 warnings, 0 notes\n", result.stdout + result.stderr


def public() -> Iterator[tuple[str, Any]]:
    """Return all public names, including the members of classes and of the module of schedules."""
    for name in onepass.__all__:
        item = getattr(onepass, name)
        yield name, item
        if inspect.ismodule(item):
            yield from ((f"{name}.{member}", getattr(item, member)) for member in item.__all__)
        elif inspect.isclass(item):
            members = (member for member in dir(item) if not member.startswith("_"))
            yield from ((f"{name}.{member}", inspect.getattr_static(item, member)) for member in members)


PUBLIC = dict(public())


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "presets"])  # a mapping, which can hold none
def test_everything_public_has_a_docstring(name: str) -> None:
    assert len(inspect.getdoc(PUBLIC[name]) or "") > 10


@pytest.mark.parametrize(
    "name", [name for name, item in PUBLIC.items() if callable(item) and not isinstance(item, enum.EnumMeta)]
)
def test_signatures_of_public_callables_list_their_arguments(name: str) -> None:
    parameters = inspect.signature(PUBLIC[name]).parameters
    vague = [parameter.name for parameter in parameters.values() if parameter.kind is parameter.VAR_POSITIONAL]
    assert not vague, "an editor would show nothing but *args"


def test_the_package_contains_its_type_information() -> None:
    folder = Path(onepass.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_core.pyi").exists()


def test_group_has_a_type_annotation_for_every_option() -> None:
    kinds = [getattr(onepass, name) for name in onepass.__all__]
    kinds = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, onepass.Optimizer)]
    options = {name for kind in kinds if kind is not onepass.Optimizer for name in kind._spec.checks}
    assert len(options) > 15
    assert {name for name in onepass.Group.__annotations__ if not name.startswith("_")} == options


def test_help_shows_the_full_signature_of_each_constructor() -> None:
    for name in ("Optimizer", "Adam", "AdamW", "SGD"):
        cls = getattr(onepass, name)
        assert inspect.signature(cls).parameters["params"].default is inspect.Parameter.empty
        if name != "Optimizer":
            # Editors read the source and would show a docstring of __init__ instead of the docstring of the class.
            assert inspect.getdoc(cls.__init__) == "See the class." and '"""' not in inspect.getsource(cls.__init__)
            assert "**" not in str(inspect.signature(cls))


def test_help_lists_the_options_with_their_defaults() -> None:
    shown = pydoc.render_doc(onepass.Adam, renderer=pydoc.plaintext)
    shown = re.sub(r": '(\w+)' =", r": \1 =", shown)  # before Python 3.14 with quotes
    for said in (
        "nonfinite: Nonfinite = 'propagate'",
        "ema_decay: Average = None",
        "betas: the decays of",
        "The only",
    ):
        assert said in shown, said


def test_dir_lists_only_public_names() -> None:
    for module, more in ((onepass, {"integrations"}), (onepass.schedules, set())):
        assert {name for name in dir(module) if not name.startswith("__")} == {*module.__all__} | more
    assert onepass.integrations.__name__ == "onepass.integrations"
    for item in (onepass.Optimizer, onepass.Adam(np.zeros(3))):
        assert [name for name in dir(item) if name[0].isupper()] == []


@pytest.mark.parametrize("name", ["step", "step_count", "skipped", "grad_norm"])
def test_editors_show_the_docstrings_of_compiled_methods(name: str) -> None:
    stub = ast.parse(Path(onepass.__file__).with_name("_core.pyi").read_text())
    (optimizer,) = (node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "Optimizer")
    (method,) = (node for node in optimizer.body if isinstance(node, ast.FunctionDef) and node.name == name)
    assert ast.get_docstring(method) == inspect.getdoc(getattr(onepass.Optimizer, name))
