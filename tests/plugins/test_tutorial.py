# SPDX-License-Identifier: GPL-2.0-only
"""The strategy of the tutorial: installed as its page says, with its own tests."""
from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "vma_lock"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with nothing but what the page shows, and the package installed beside it."""
    work = tmp_path_factory.mktemp("tutorial")
    for path in TUTORIAL.glob("*.*"):
        shutil.copy(path, work)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target",
         str(work / "site"), str(work)], cwd=work, capture_output=True, text=True, check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    assert done.returncode == 0, done.stderr
    return work


def run(work: pathlib.Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(work / "site"), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run([sys.executable, *command], cwd=work, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": path})


def test_it_is_short() -> None:
    assert len((TUTORIAL / "vma_lock.py").read_text("utf-8").splitlines()) <= 60


def test_its_own_tests_pass(installed: pathlib.Path) -> None:
    done = run(installed, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_vma_lock.py")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_command_line_knows_it(installed: pathlib.Path) -> None:
    done = run(installed, "-m", "pykmm.cli", "list")
    assert re.search(r"vma-lock +a reader-writer lock per VMA, in Python +\[vma-lock 1\.0\]", done.stdout), done.stderr
    done = run(installed, "-m", "pykmm.cli", "replay", "--example", "--strategy", "mmap_sem,vma-lock", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    assert "vma-lock on native ended with" in done.stdout


def test_the_mistake_that_the_page_makes_is_found(installed: pathlib.Path) -> None:
    """Without the second look at the VMA its first test fails with the violation that the page shows."""
    source = (installed / "site" / "vma_lock.py").read_text("utf-8")
    broken = re.sub(r"        if vma\.detached .*\n            return .*, \"changed\"\n", "", source)
    assert broken != source
    other = installed / "broken"
    shutil.copytree(installed / "site", other / "site")
    (other / "site" / "vma_lock.py").write_text(broken, "utf-8")
    shutil.copy(installed / "test_vma_lock.py", other)
    done = run(other, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_vma_lock.py", "-k", "every_schedule")
    assert done.returncode == 1, done.stderr
    failed = dict(re.findall(r"^FAILED .*\[(\w+)\] - Failed: ([\w-]+)", done.stdout, flags=re.MULTILINE))
    assert failed == {"munmap": "broken-structure", "mprotect": "livelock"}
    assert len(done.stdout.splitlines()) < 2000     # one turn of the livelock, not a thousand
    page = (ROOT / "docs" / "tutorial" / "strategy.rst").read_text("utf-8")
    shown = re.search(r"violation: (broken-structure: .*), 0x", page)
    assert shown
    assert shown[1] in done.stdout
    assert re.search(r"vma_lock\.py:\d+ handle_fault", done.stdout)     # lines of the strategy in the trace


@pytest.mark.parametrize(("right", "wrong"), [
    ("address < vma.vm_end", "address < vma.vm_end + 0x1000"), ("not vma.vm_start <= address", "not 0 <= address")])
def test_wrong_bounds_fail_the_conformance_kit(installed: pathlib.Path, right: str, wrong: str) -> None:
    """A VMA that loses its end, or its beginning, between the lookup and the lock."""
    source = (TUTORIAL / "vma_lock.py").read_text("utf-8")
    assert right in source
    (installed / "site" / "bounds.py").write_text(source.replace(right, wrong), "utf-8")
    code = ("from bounds import VmaLock; from pykmm.testing import check_conformance\n"
            "print(check_conformance(VmaLock, effort='quick', only=['catalogue']).text())")
    done = run(installed, "-W", "error", "-c", code)
    assert re.search(r"^catalogue +FAIL", done.stdout, flags=re.MULTILINE), done.stdout + done.stderr


def test_weak_memory_needs_the_acquire(installed: pathlib.Path) -> None:
    """What the page says about ppc64: without smp_load_acquire() the catalogue fails there, and on x86 it does not."""
    source = (TUTORIAL / "vma_lock.py").read_text("utf-8")
    broken = source.replace("kernel.smp_load_acquire(cpu, mm)", "mm.strategy_data")
    assert broken != source
    (installed / "site" / "relaxed.py").write_text(broken, "utf-8")
    code = ("from relaxed import VmaLock; from pykmm.testing import check_conformance\n"
            "for arch in 'x86', 'ppc64':\n"
            "    print(arch, check_conformance(VmaLock, arch, effort='quick', only=['catalogue']).text())")
    done = run(installed, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    x86, _, ppc64 = done.stdout.partition("ppc64 conformance")
    assert re.search(r"^catalogue +pass", x86, flags=re.MULTILINE)
    assert re.search(r"^catalogue +FAIL", ppc64, flags=re.MULTILINE)
    assert "a page is mapped outside of every VMA" in ppc64
