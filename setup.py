# SPDX-License-Identifier: GPL-2.0-only
"""The Cython build: every .pyx below pykmm_ext/ and plugins/ is one extension. Metadata is in pyproject.toml.

Environment: PYKMM_SANITIZE=address,undefined (or thread) builds with sanitizers; PYKMM_PLAIN=1 lets the check engine
see plain accesses (include/kmm/plain.h; GCC), and PYKMM_PLAIN=part builds only the modules in which such a build
differs from another, to be laid over one; PYKMM_ONLY=mod,mod builds only the modules whose dotted name contains one
of these words; PYKMM_CFLAGS is appended to the compiler's options (``-g`` for a debugger, ``-O0`` for a quick build).
"""
import os
import pathlib
import re
import shlex
import subprocess
import sysconfig

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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

#: PYKMM_PLAIN: what runs on the check engine's vCPUs. Not the engine, not what stands in for the host's allocator.
PLAIN = os.environ.get("PYKMM_PLAIN", "")
INSTRUMENTED = re.compile(r"pykmm_ext\.(mm\.\w+|kernel\.(rbtree|rcu|rwsem|srcu)|machine\.(memory|irq|tlb))(?<!_test)"
                          r"|pykmm_plugins\..*")
PLAIN_CFLAGS = ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1", "--param=tsan-instrument-func-entry-exit=0",
                "-Wno-tsan"]    # fences: the engine has its own
PLAIN_ENGINE = ("pykmm_ext.engine.check", "pykmm_ext.engine.check_tape")
PLAIN_LIBRARY = "libkmm_plain.so"


def extensions() -> list[Extension]:
    """One Extension per .pyx; plugins/ is installed as pykmm_plugins."""
    found = []
    for top, package in (("pykmm_ext", "pykmm_ext"), ("plugins", "pykmm_plugins")):
        for path in sorted(pathlib.Path(top).rglob("*.pyx")):
            name = ".".join((package, *path.with_suffix("").parts[1:]))
            if ONLY and not any(word in name for word in ONLY):
                continue
            cflags, ldflags = CFLAGS, LDFLAGS
            instrumented = INSTRUMENTED.fullmatch(name) is not None
            if PLAIN == "part" and not instrumented and name not in PLAIN_ENGINE:
                continue
            if PLAIN:
                cflags = [*CFLAGS, "-DKMM_PLAIN", *(PLAIN_CFLAGS if instrumented else [])]
                up = "/".join([".."] * name.count(".")) or "."
                ldflags = [*LDFLAGS, f"-Wl,-rpath,$ORIGIN/{up}/pykmm_ext", "-l:" + PLAIN_LIBRARY]
            found.append(Extension(name, [str(path)], include_dirs=["pykmm_ext/include"],
                                   depends=[str(h) for h in sorted(pathlib.Path("pykmm_ext/include").rglob("*.h"))],
                                   extra_compile_args=cflags, extra_link_args=ldflags))
    return found


class build_plain(build_ext):
    """PYKMM_PLAIN: first the library of hooks that every module is linked with, beside pykmm_ext/__init__.py."""

    def build_extensions(self) -> None:
        where = (HERE if self.inplace else pathlib.Path(self.build_lib)) / "pykmm_ext"
        where.mkdir(parents=True, exist_ok=True)
        subprocess.run([*shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC")), "-shared", "-fPIC", "-O2",
                        "-Wall", "-Wextra", "-Wno-builtin-declaration-mismatch", "-Ipykmm_ext/include", "-x", "c",
                        "pykmm_ext/include/kmm/plain_hooks.h", "-o", str(where / PLAIN_LIBRARY)], check=True)
        for extension in self.extensions:
            extension.library_dirs.append(str(where))
        super().build_extensions()


setup(
    ext_modules=cythonize(
        extensions(), include_path=["."], nthreads=JOBS,
        compiler_directives={
            "language_level": 3, "binding": True, "embedsignature": True, "embedsignature.format": "python",
            "freethreading_compatible": True, "auto_pickle": False, "autotestdict": False,
        },
    ),
    options={"build_ext": {"parallel": JOBS}},
    cmdclass={"build_ext": build_plain} if PLAIN else {},
)
