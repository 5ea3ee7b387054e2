"""Sphinx's settings for the manual: ``make docs``."""

import importlib.util
import os
import sys
from pathlib import Path

# Without this Sphinx 8.2 and later read the .pyi stubs beside the extension modules, which carry no
# docstrings, instead of the modules.
os.environ["SPHINX_AUTODOC_IGNORE_NATIVE_MODULE_TYPE_STUBS"] = "1"

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import xenpm  # noqa: E402

project = "xenpm"
author = "The xenpm developers"
copyright = author
release = version = xenpm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "xenpm_docs",
]
needs_sphinx = "7.2"
exclude_patterns = ["_build"]
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

doctest_global_setup = "import xenpm"

html_theme = "furo"
html_title = f"xenpm {release.partition('+')[0]}" if release != "unknown" else "xenpm"
html_static_path = ["_static"]
html_css_files = ["xenpm.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

# Named after what is typed, for Xen has a program and a manual page called xenpm.
man_pages = [("cli", "python-xenpm", "power management of Xen guests", author, 8)]

# The pages about the compiled layer are made from the compiled layer. Without it (XENPM_PURE=1)
# the rest of the manual is still built.
MODULES = ("xenctrl", "xenstore", "xenlight")
if not all(importlib.util.find_spec(f"xenpm._ext.{name}") for name in MODULES):
    exclude_patterns.append("api-low-level.rst")
    suppress_warnings = ["toc.excluded"]
