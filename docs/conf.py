"""The documentation site: ``make docs`` builds it in build/docs/, and a warning ends the build.

The built site needs nothing from the network, formulas included, and neither does the build.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon.docstring import GoogleDocstring

import onepass

project = "onepass"
author = "The onepass developers"
copyright = "The onepass developers, BSD-3-Clause"
release = version = onepass.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
nitpicky = True
default_role = "py:obj"  # `Adam` in a docstring is a link
nitpick_ignore_regex = [("py:.*", r"(numpy|np|npt|scipy|collections|os|torch)\..*")]  # other libraries' names

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings describe the type of each argument
autodoc_mock_imports = ["torch", "thinc", "scipy", "mpi4py"]  # the page uses only the docstring's text
add_module_names = False
maximum_signature_line_length = 90
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor output

html_theme = "furo"
html_title = f"onepass {release}"
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "light_css_variables": {"color-brand-primary": "#0550ae", "color-brand-content": "#0969da"},
    "dark_css_variables": {"color-brand-primary": "#79c0ff", "color-brand-content": "#58a6ff"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# MathJax in one file, fonts included, next to the pages.
_mathjax = find_spec("sphinx-mathjax-offline")
assert _mathjax is not None and _mathjax.origin is not None
html_static_path = ["static", str(Path(_mathjax.origin).parent / "static" / "mathjax" / "tex-svg.js")]
html_css_files = ["site.css"]
mathjax_path = "tex-svg.js"


def link_from_anywhere(app: Sphinx, env: BuildEnvironment, node: Any, text: nodes.Element) -> nodes.Element | None:
    """Resolve links such as `Adam` and `step` from every docstring, in onepass and in its class Optimizer."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    for name in (f"onepass.{target}", f"onepass.Optimizer.{target.rpartition('.')[2]}"):
        found = env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)
        if found is not None:
            return found
    return None


def leave_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading the first line of a property as "type: description": a comment comes before it."""
    if what == "property":
        lines[:] = ["..", "", *GoogleDocstring(lines, app.config, app, "method", name, obj, options).lines()]


def setup(app: Sphinx) -> None:
    """Connect the handlers below; Sphinx calls this function."""
    app.connect("missing-reference", link_from_anywhere)
    app.connect("autodoc-process-docstring", leave_colons, priority=400)  # before napoleon
