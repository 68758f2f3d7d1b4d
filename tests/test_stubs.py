# SPDX-License-Identifier: GPL-2.0-only
"""The .pyi files say what the compiled modules are (mypy's stubtest)."""
from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import pykmm_ext
import pykmm_plugins

ROOT = pathlib.Path(__file__).resolve().parents[1]
INSTALLED = {"pykmm_ext": pathlib.Path(pykmm_ext.__file__).parent,
             "pykmm_plugins": pathlib.Path(pykmm_plugins.__file__).parent}


def stubbed() -> list[str]:
    """Return the dotted names of the modules that have a .pyi."""
    found = []
    for package, directory in (("pykmm_ext", "pykmm_ext"), ("pykmm_plugins", "plugins")):
        for path in sorted((ROOT / directory).rglob("*.pyi")):
            found.append(".".join((package, *path.relative_to(ROOT / directory).with_suffix("").parts)))
    return [name.removesuffix(".__init__") for name in found]


@pytest.mark.slow
def test_stubs_agree_with_the_modules(tmp_path: pathlib.Path) -> None:
    modules = stubbed()
    assert "pykmm_ext.binding" in modules
    # stubtest finds the stubs through MYPYPATH, the modules through sys.path; both must be what is installed.
    for package, directory in INSTALLED.items():
        (tmp_path / package).symlink_to(directory, target_is_directory=True)
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "--concise",
         "--allowlist", str(ROOT / "tests" / "stubtest-allowlist.txt"), "--ignore-unused-allowlist", *modules],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, [
            str(tmp_path), os.environ.get("PYTHONPATH")]))})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_compiled_module_has_a_stub() -> None:
    missing = [str(path.relative_to(ROOT)) for top in ("pykmm_ext", "plugins") for path in (ROOT / top).rglob("*.pyx")
               if not path.with_suffix(".pyi").exists()]
    assert not missing
