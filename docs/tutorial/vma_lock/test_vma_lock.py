# SPDX-License-Identifier: GPL-2.0-only
"""Tests of the strategy: every interleaving of a small race, real threads, and the running Linux as the oracle."""
import pytest

import pykmm
import pykmm.testing

MADV_DONTNEED = 4


def race(change):
    """A store to a page against a system call that changes the mapping around it."""
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.setup.store(a, b"A")               # there is an anon_vma now, and a page table
    tape.thread().store(a + 0x1000, b"B")
    other = tape.thread()
    if change == "munmap":
        other.munmap(a + 0x1000, 0x1000)
    elif change == "mprotect":
        other.mprotect(a + 0x1000, 0x1000, "r")
    else:
        other.madvise(a + 0x1000, 0x1000, MADV_DONTNEED)
    return tape


@pytest.mark.parametrize("change", ["munmap", "mprotect", "dontneed"])
def test_every_schedule(change):
    report = pykmm.check(race(change), strategy="vma-lock", memory_model="sc")
    pykmm.testing.assert_checked(report)


def threads(pages=64):
    """Two threads that store to every page; the second gives a part of them back, and has one page to itself."""
    tape = pykmm.Tape()
    a = tape.setup.mmap((pages + 1) * 0x1000, prot="rw")
    x, y = tape.thread(), tape.thread()
    for page in range(pages):
        x.store(a + page * 0x1000, b"x")
        y.store(a + page * 0x1000 + 8, b"y")
        if page % 8 == 7:
            y.madvise(a + (page - 3) * 0x1000, 0x1000, MADV_DONTNEED)
    last = a + pages * 0x1000
    y.mprotect(last, 0x1000, "r")
    y.store(last, b"no", expect_errno=14)   # EFAULT: as a system call that stores there would fail
    return tape


def test_on_real_threads():
    with pykmm.testing.quiet_machine(strategy="vma-lock") as machine:
        result = machine.run(threads())
    assert result.mismatch_count == 0, result.mismatches
    counters = result.counters
    assert counters["attempts"] == counters["successes"] + counters["retried"]
    assert counters["successes"] > 0


def test_as_linux_does_it():
    comparison = pykmm.compare(threads(), strategies=["mmap_sem", "vma-lock"], engines=["native", "host"])
    native, vma_lock, linux = (row.result for row in comparison.rows)
    assert linux.mismatch_count == vma_lock.mismatch_count == 0
    assert list(vma_lock.errnos) == list(native.errnos) == list(linux.errnos)


class TestConformance(pykmm.testing.StrategyConformance):
    """What every strategy promises."""

    strategy = "vma-lock"
    arches = ("x86", "ppc64")       # strong and weak memory
    effort = "quick"
