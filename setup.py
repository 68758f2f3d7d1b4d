# SPDX-License-Identifier: GPL-2.0-only
"""The Cython build: every .pyx below pykmm_ext/ and plugins/ is one extension. Metadata is in pyproject.toml.

Environment: PYKMM_SANITIZE=address,undefined (or thread) builds with sanitizers; PYKMM_ONLY=mod,mod
builds only the modules whose dotted name contains one of these words; PYKMM_CFLAGS is appended to
the compiler's options (``-g`` for a debugger, ``-O0`` for a quick build).
"""
import os
import pathlib

from Cython.Build import cythonize
from setuptools import Extension, setup

HERE = pathlib.Path(__file__).parent
os.chdir(HERE)
SANITIZE = os.environ.get("PYKMM_SANITIZE", "")
ONLY = [word for word in os.environ.get("PYKMM_ONLY", "").split(",") if word]
JOBS = os.cpu_count() or 1

CFLAGS = ["-O2", "-std=gnu11", "-fno-strict-aliasing", "-Wall", "-Wextra",
          "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-missing-field-initializers",
          "-Wno-unused-but-set-variable", "-Wno-cast-function-type", "-Wno-sign-compare", "-U_FORTIFY_SOURCE",
          # Debug information would make the modules five times as large; symbol names stay for perf(1).
          "-g0"]
LDFLAGS: list[str] = []
if SANITIZE:
    CFLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g"]
    LDFLAGS += [f"-fsanitize={SANITIZE}"]
CFLAGS += os.environ.get("PYKMM_CFLAGS", "").split()


def extensions() -> list[Extension]:
    """One Extension per .pyx; plugins/ is installed as pykmm_plugins."""
    found = []
    for top, package in (("pykmm_ext", "pykmm_ext"), ("plugins", "pykmm_plugins")):
        for path in sorted(pathlib.Path(top).rglob("*.pyx")):
            name = ".".join((package, *path.with_suffix("").parts[1:]))
            if ONLY and not any(word in name for word in ONLY):
                continue
            found.append(Extension(name, [str(path)], include_dirs=["pykmm_ext/include"],
                                   depends=[str(h) for h in sorted(pathlib.Path("pykmm_ext/include").rglob("*.h"))],
                                   extra_compile_args=CFLAGS, extra_link_args=LDFLAGS))
    return found


setup(
    ext_modules=cythonize(
        extensions(), include_path=["."], nthreads=JOBS,
        compiler_directives={
            "language_level": 3, "binding": True, "embedsignature": True, "embedsignature.format": "python",
            "freethreading_compatible": True, "auto_pickle": False, "autotestdict": False,
        },
    ),
    options={"build_ext": {"parallel": JOBS}},
)
