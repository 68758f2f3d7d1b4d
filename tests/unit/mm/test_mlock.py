# SPDX-License-Identifier: GPL-2.0-only
"""mm/mlock.c: locking mappings and what counts as locked."""
from __future__ import annotations

import errno
from typing import Any

from vma_helpers import BASE, NONE, PAGE, RW, R, fails, fixed, layout, vm_flags

from pykmm_ext.mm import vma_test


def locked(mm: Any) -> int:
    return vma_test.counters(mm)["locked_vm"]


def test_splits_populates_and_merges_back(mm: Any) -> None:
    fixed(mm, 0, 4)
    mm.mlock(BASE + PAGE + 5, PAGE)
    assert ["lo" in f for f in vm_flags(mm)] == [False, True, False], "rounded to whole pages"
    assert mm.mincore(BASE, 4 * PAGE) == b"\0\1\1\0"
    assert locked(mm) == 2
    mm.mlock(BASE, 4 * PAGE)
    assert (locked(mm), len(layout(mm))) == (4, 1)
    mm.munlock(BASE, 4 * PAGE)
    assert (locked(mm), len(layout(mm))) == (0, 1)
    assert not any("lo" in f for f in vm_flags(mm))


def test_onfault(mm: Any) -> None:
    fixed(mm, 0, 2)
    mm.mlock(BASE, 2 * PAGE, 1)
    assert mm.mincore(BASE, 2 * PAGE) == b"\0\0"
    assert vm_flags(mm)[0] >= {"lo", "lf"}
    mm.mlock(BASE, 2 * PAGE)
    assert "lf" not in vm_flags(mm)[0]
    assert locked(mm) == 2


def test_errno(mm: Any) -> None:
    fixed(mm, 0, 1)
    fixed(mm, 2, 1)
    fails(errno.EINVAL, mm.mlock, BASE, PAGE, 2)
    fails(errno.ENOMEM, mm.mlock, BASE, 3 * PAGE)
    assert locked(mm) == 1, "as far as the hole"
    fails(errno.ENOMEM, mm.munlock, BASE + PAGE, PAGE)
    fails(errno.EINVAL, mm.mlock, BASE, 2**64 - 2 * PAGE)
    fixed(mm, 4, 1, NONE)
    fails(errno.ENOMEM, mm.mlock, BASE + 4 * PAGE, PAGE)
    mm.mlock(BASE, 0)


def test_mlockall(mm: Any) -> None:
    fixed(mm, 0, 2)
    for flags in (0, 8, 4):
        fails(errno.EINVAL, mm.mlockall, flags)
    mm.mlockall(3)
    assert mm.mincore(BASE, 2 * PAGE) == b"\1\1"
    fixed(mm, 4, 2)
    assert mm.mincore(BASE + 4 * PAGE, 2 * PAGE) == b"\1\1", "MCL_FUTURE"
    old = mm.brk(0)
    mm.brk(old + PAGE)
    assert locked(mm) == 5
    mm.munlockall()
    assert locked(mm) == 0
    fixed(mm, 8, 1)
    assert locked(mm) == 0


def test_unmapping_unlocks(mm: Any) -> None:
    fixed(mm, 0, 4)
    mm.mlock(BASE, 4 * PAGE)
    mm.munmap(BASE + PAGE, PAGE)
    assert locked(mm) == 3


def test_making_a_locked_mapping_writable_breaks_cow(mm: Any) -> None:
    fixed(mm, 0, 1, R)
    mm.mlock(BASE, PAGE)
    mm.mprotect(BASE, PAGE, RW)
    faults = mm.machine.vmstat["pgfault"]
    mm.store(BASE, b"x")
    assert mm.machine.vmstat["pgfault"] == faults
