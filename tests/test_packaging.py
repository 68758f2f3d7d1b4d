# SPDX-License-Identifier: GPL-2.0-only
"""What is installed is complete: sdist, wheel from the sdist, install, a third party's plugin against the install."""
from __future__ import annotations

import email
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile

import pytest

import pykmm
import pykmm_ext
import pykmm_plugins

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SOURCES = {"pykmm": "pykmm", "pykmm_ext": "pykmm_ext", "pykmm_plugins": "plugins"}


def run(*command: object, cwd: pathlib.Path, **environment: str) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": "", "PYKMM_ONLY": "",
                               "PYKMM_SANITIZE": "", **environment})
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_one_installation() -> None:
    """The three packages come from one place, and from the installed distribution if there is one.

    An installed pykmm that is shadowed by the checkout (which has no compiled modules) would be a test of nothing.
    """
    base = pathlib.Path(pykmm.__file__).parents[1]
    assert pathlib.Path(pykmm_ext.__file__).parents[1] == base
    plugins = pathlib.Path(pykmm_plugins.__file__).resolve().parent
    assert plugins in (base.resolve() / "pykmm_plugins", base.resolve() / "plugins")
    try:
        distribution = importlib.metadata.distribution("pykmm")
    except importlib.metadata.PackageNotFoundError:
        assert base == ROOT, "neither installed nor run from a checkout that was built in place"
    else:
        installed = pathlib.Path(str(distribution.locate_file("pykmm"))).parent
        assert base in (installed, ROOT)
        if base == installed:
            assert distribution.version == pykmm.__version__


def test_get_include() -> None:
    include = pathlib.Path(pykmm_ext.get_include())
    assert (include / "kmm" / "strategy.h").is_file()
    assert (include / "kmm" / "arch.h").is_file()


def test_every_package_is_listed() -> None:
    """Setuptools is told every package by name: compare the list with the tree."""
    found = []
    for package, directory in SOURCES.items():
        for init in (ROOT / directory).rglob("__init__.py"):
            found.append(".".join((package, *init.parent.relative_to(ROOT / directory).parts)))
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_cimportable_directory_has_its_init_pxd() -> None:
    """Cython finds a package's .pxd files reliably only beside an __init__ of its own."""
    missing = {str(path.parent) for path in (ROOT / "pykmm_ext").rglob("*.pxd")
               if not (path.parent / "__init__.pxd").exists() or not (path.parent / "__init__.py").exists()}
    assert not missing


def test_plugins_cimport_the_core_only() -> None:
    """A plugin that cimports another plugin does not build: pykmm_plugins is a mapped directory."""
    bad = [f"{path.relative_to(ROOT)}: {line}" for path in (ROOT / "plugins").rglob("*.p[yx][xd]")
           for line in path.read_text("utf-8").splitlines()
           if " cimport " in line and not line.startswith(("from pykmm_ext", "from libc", "from cpython", "cimport"))]
    assert not bad, "\n".join(bad)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """The sdist, and the wheel built from it (unoptimised: this is about what is inside).

    PYKMM_SDIST and PYKMM_WHEEL name files that were built already.
    """
    if os.environ.get("PYKMM_SDIST") and os.environ.get("PYKMM_WHEEL"):
        return pathlib.Path(os.environ["PYKMM_SDIST"]), pathlib.Path(os.environ["PYKMM_WHEEL"])
    work = tmp_path_factory.mktemp("distributions")
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "_build", "__pycache__", "*.so",
                                     "*.html", ".*_cache", ".hypothesis", ".benchmarks")
    shutil.copytree(ROOT, work / "tree", ignore=ignored, symlinks=True)  # .c files too: an sdist must not
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", work / "dist", work / "tree",
        cwd=work, PYKMM_CFLAGS="-O0")
    shutil.rmtree(work / "tree")
    (sdist,) = (work / "dist").glob("*.tar.gz")
    (wheel,) = (work / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_has_the_sources(distributions: tuple[pathlib.Path, pathlib.Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for directory in ("pykmm", "pykmm_ext", "plugins", "tests", "benchmarks", "docs"):
        for path in (ROOT / directory).rglob("*"):
            if "_build" not in path.parts and path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".h", ".xz", ".rst"):
                assert str(path.relative_to(ROOT)) in names
    assert {"LICENSE", "README.md", "CHANGELOG.md", ".ci/run"} <= names
    generated = [name for name in names if name.endswith((".so", ".c", ".pyc"))]
    assert not generated


@pytest.mark.slow
def test_wheel_is_complete(distributions: tuple[pathlib.Path, pathlib.Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        headers = email.message_from_string(archive.read(metadata).decode())
    assert headers["Version"] == pykmm.__version__
    assert headers["License-Expression"] == "GPL-2.0-only"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for package, directory in SOURCES.items():
        for path in (ROOT / directory).rglob("*"):
            inside = str(pathlib.PurePath(package, path.relative_to(ROOT / directory)))
            if path.suffix in (".py", ".pxd", ".pyi", ".h") or path.name == "py.typed" or \
                    (path.parent.name == "data" and path.suffix in (".xz", ".txt")):
                assert inside in names
            elif path.suffix == ".pyx":
                assert inside.removesuffix(".pyx") + suffix in names
    strangers = [name for name in names if name.endswith((".pyx", ".c")) or name.split("/")[0] in ("plugins", "tests")]
    assert not strangers


@pytest.mark.slow
def test_third_party_builds_against_the_wheel(distributions: tuple[pathlib.Path, pathlib.Path],
                                              tmp_path: pathlib.Path) -> None:
    """Install the wheel into a new environment, build and install tests/capi against it, use it by its name."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, distributions[1], cwd=tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1")
    # The dependencies come from the environment that runs the tests, after the new environment's own packages.
    packages = pathlib.Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                                cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(python, "-c", "import pykmm, pykmm_plugins; print(pykmm.__file__)", cwd=tmp_path)
    assert where.startswith(str(packages))

    source = tmp_path / "third_party"
    shutil.copytree(ROOT / "tests" / "capi", source)
    run(*pip, "--no-build-isolation", source, cwd=tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert (packages / "reader_only").is_dir()
    assert run(python, "-W", "error", source / "check.py", cwd=tmp_path) == "machine: ok\nnative: ok\ncheck: ok\n"
    pykmm_command = home / "bin" / "pykmm"
    listed = run(pykmm_command, "list", cwd=tmp_path)
    assert re.search(r"reader_only +a third party's strategy: .*\[pykmm-reader-only 1\.0\]", listed)
    assert re.search(r"mmap_sem .*\[built in\]", listed)
    assert "reader_only" in run(pykmm_command, "replay", "--example", "--strategy", "reader_only", "--repeat", "1",
                                cwd=tmp_path)
    # Left out by its entry point's name.
    assert "reader_only" not in run(pykmm_command, "list", cwd=tmp_path, PYKMM_DISABLE_PLUGINS="reader-only")

    # What the other pages have: the tutorial's strategy, its compiled form, and an arch.
    for name in ("capi_vma_lock", "capi_arch"):
        shutil.copytree(ROOT / "tests" / name, tmp_path / name)
    shutil.copytree(ROOT / "docs" / "tutorial" / "vma_lock", tmp_path / "vma_lock")
    run(*pip, "--no-build-isolation", tmp_path / "capi_vma_lock", tmp_path / "capi_arch", tmp_path / "vma_lock",
        cwd=tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert re.search(r"x86-low .*\[x86-low 1\.0\]", run(pykmm_command, "list", "arches", cwd=tmp_path))
    seen = {}
    for name in ("reader_only", "vma-lock", "vma-lock-c", "x86-low"):
        text = run(pykmm_command, "conformance", name, "--quick", cwd=tmp_path)
        assert "passed: every check that was made" in text, text
        found = re.search(r"^catalogue +pass +[0-9.]+  (.*)$", text, flags=re.MULTILINE)
        assert found
        seen[name] = found[1]
    assert seen["vma-lock-c"] == seen["vma-lock"]       # as many executions in every scenario

    # The same package compiled against headers of another version: something in them has changed; a vm_fault is longer.
    headers = tmp_path / "headers"
    shutil.copytree(packages / "pykmm_ext" / "include", headers)
    setup = (source / "setup.py").read_text("utf-8").replace("pykmm_ext.get_include()", repr(str(headers)))
    (source / "setup.py").write_text(setup, "utf-8")
    for header, old, new, message in (
            ("abi.h", r"KMM_ABI_DIGEST 0x\w+", "KMM_ABI_DIGEST 0x1", "its headers are others"),
            ("mm_types.h", r"(struct vm_fault \{.*?)\n\};", r"\1\n\tunsigned long one_more;\n};",
             r"struct vm_fault has \d+ bytes there and \d+ here")):
        path = headers / "kmm" / header
        edited, count = re.subn(old, new, path.read_text("utf-8"), count=1, flags=re.DOTALL)
        assert count
        path.write_text(edited, "utf-8")
        shutil.rmtree(source / "build", ignore_errors=True)
        run(*pip, "--no-build-isolation", "--force-reinstall", source, cwd=tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1")
        done = subprocess.run([pykmm_command, "replay", "--example", "--strategy", "reader_only"], cwd=tmp_path,
                              capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
        assert done.returncode == 2, done.stdout
        assert re.search(rf"strategy 'reader_only': .*_reader_only.* was compiled against another pykmm: {message}; "
                         "compile it again", done.stderr), done.stderr
        assert "Traceback" not in done.stderr
