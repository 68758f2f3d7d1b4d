# SPDX-License-Identifier: GPL-2.0-only
"""How a third party builds a compiled strategy against an installed pykmm."""
from Cython.Build import cythonize
from setuptools import Extension, setup

import pykmm_ext

setup(
    name="reader-only",
    py_modules=[],
    ext_modules=cythonize([
        Extension("_reader_only", ["_reader_only.pyx"], include_dirs=[pykmm_ext.get_include()],
                  extra_compile_args=["-std=gnu11", "-fno-strict-aliasing", "-O1"]),
    ]),
)
