# SPDX-License-Identifier: GPL-2.0-only
"""Sphinx configuration. The autodoc pages need the installed (compiled) pykmm."""
import pathlib
import re
import sys

import pykmm

sys.path.append(str(pathlib.Path(__file__).parent / "_ext"))

project = "pykmm"
copyright = "the pykmm developers; GPL-2.0-only"
version = release = pykmm.__version__
extensions = ["sphinx.ext.autodoc", "fidelity"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "how Linux handles page faults concurrently, executable", "page_width": "1100px"}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
primary_domain = "py"
highlight_language = "none"


def families_of_constants(app, what, name, obj, options, lines):
    """``MADV_`` or ``MADV_*`` in a docstring means a family of constants, not a link named MADV."""
    lines[:] = [re.sub(r"(?<![`\w])([A-Z]+_)\*?(?![`\w])", r"``\1*``", line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", families_of_constants)
