# SPDX-License-Identifier: GPL-2.0-only
"""The compiled core of pykmm: hardware model, kernel primitives, mm, engines, and the plugin C API."""
from __future__ import annotations

import os

__all__ = ["get_include"]


def get_include() -> str:
    """Return the directory of pykmm's C headers (``kmm/*.h``), for a third-party extension's ``include_dirs``.

    The ``.pxd`` files lie beside the modules of this package, where Cython finds them by itself when
    pykmm is installed; for an editable checkout, hand the checkout's root to ``cythonize(include_path=[...])``.
    """
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")
