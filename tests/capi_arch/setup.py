# SPDX-License-Identifier: GPL-2.0-only
"""The compiled half of the package: built against the pykmm that is installed."""
from Cython.Build import cythonize
from setuptools import Extension, setup

import pykmm_ext

setup(
    ext_modules=cythonize([
        Extension("x86_low._x86_low", ["src/x86_low/_x86_low.pyx"],
                  include_dirs=[pykmm_ext.get_include()],
                  extra_compile_args=["-std=gnu11", "-fno-strict-aliasing", "-O2"]),
    ]),
)
