# SPDX-License-Identifier: GPL-2.0-only
"""Three threads against the shipped strategies: too many schedules for a search that ends, so samples."""
from __future__ import annotations

from collections.abc import Callable

import pytest

import pykmm
from pykmm.tape import Address, Tape
from pykmm.testing import assert_checked

PAGE = 0x1000


def _base() -> tuple[Tape, Address]:
    t = Tape()
    a = t.setup.mmap(3 * PAGE)
    t.setup.store(a + PAGE, b"A")
    return t, a


def munmap_mprotect_fault() -> Tape:
    t, a = _base()
    t.thread().store(a, b"B")
    t.thread().munmap(a, PAGE, expect_errno=0)
    t.thread().mprotect(a + PAGE, 2 * PAGE, "r", expect_errno=0)
    t.final.load(a + PAGE, 1, expect=b"A")
    return t


def fork_dontneed_fault() -> Tape:
    t, a = _base()
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().fork(expect_errno=0)
    t.thread().madvise(a + PAGE, PAGE, "DONTNEED", expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    t.final.load(a + PAGE, 1, expect=b"\0")
    return t


def mremap_faults() -> Tape:
    t, a = _base()
    t.thread().store(a, b"B")
    t.thread().store(a + 2 * PAGE, b"C")
    b = t.thread().mremap(a, 3 * PAGE, 3 * PAGE, "MAYMOVE|FIXED", 0x50000000, expect_errno=0)
    t.final.load(b + PAGE, 1, expect=b"A")
    return t


def dontneed_dontneed_fault() -> Tape:
    t, a = _base()
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().madvise(a, 2 * PAGE, "DONTNEED", expect_errno=0)
    t.thread().madvise(a, 2 * PAGE, "DONTNEED", expect_errno=0)
    t.final.load(a + PAGE, 1, expect=b"\0")
    return t


@pytest.mark.parametrize("explorer", ["random", "pct"])
@pytest.mark.parametrize("strategy", ["spf", "spf-2021", "mmap_sem", "per_vma_lock", "per_vma_lock-refcount"])
@pytest.mark.parametrize("build", [munmap_mprotect_fault, fork_dontneed_fault, mremap_faults, dontneed_dontneed_fault])
def test_family(build: Callable[[], Tape], strategy: str, explorer: str) -> None:
    report = pykmm.check(build(), strategy=strategy, explorer=explorer, seed=7, memory="1M", max_executions=5000)
    assert report.memory_model == "tso"
    assert_checked(report, complete=False)
    assert report.executions == 5000


def meeting_munmap() -> Tape:
    t = Tape()
    a = t.setup.mmap(2 * PAGE)
    t.thread().touch(a, access="read")
    t.thread().touch(a + PAGE, access="read")
    t.thread().munmap(a, 2 * PAGE, expect_errno=0)
    return t


@pytest.mark.parametrize("explorer", ["random", "pct"])
@pytest.mark.parametrize("form", ["per_vma_lock", "per_vma_lock-refcount"])
def test_faults_that_meet(form: str, explorer: str) -> None:
    """The way of not being counted opens and closes in some of these."""
    assert_checked(pykmm.check(meeting_munmap(), strategy=form, explorer=explorer, seed=7, max_executions=20_000),
                   complete=False)
