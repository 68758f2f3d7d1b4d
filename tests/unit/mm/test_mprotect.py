# SPDX-License-Identifier: GPL-2.0-only
"""mm/mprotect.c: permissions of mappings and of the pages in them."""
from __future__ import annotations

import errno
from typing import Any

import pytest
from vma_helpers import BASE, FIXED, NONE, PAGE, PRIV, RW, R, fails, fixed, layout, vm_flags

import pykmm
from pykmm_ext.mm import vma_test


def test_splits_and_merges_back(mm: Any) -> None:
    fixed(mm, 0, 6)
    mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, R)
    assert layout(mm) == [(0, 2, "rw-p"), (2, 4, "r--p"), (4, 6, "rw-p")]
    mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, RW)
    assert layout(mm) == [(0, 6, "rw-p")]


@pytest.mark.parametrize(("start", "pages", "after"), [
    (0, 2, [(0, 2, "r--p"), (2, 4, "rw-p"), (4, 6, "r--p")]),       # case 4's mirror: head of the middle
    (2, 1, [(0, 3, "r--p"), (3, 4, "rw-p"), (4, 6, "r--p")]),       # case 5
    (3, 1, [(0, 2, "r--p"), (2, 3, "rw-p"), (3, 6, "r--p")]),       # case 4
    (2, 2, [(0, 6, "r--p")]),                                       # case 6
])
def test_boundaries_move(mm: Any, start: int, pages: int, after: list[tuple[int, int, str]]) -> None:
    fixed(mm, 0, 6, RW)
    for i in range(6):
        mm.store(BASE + i * PAGE, bytes([i + 1]))
    mm.mprotect(BASE, 2 * PAGE, R)
    mm.mprotect(BASE + 4 * PAGE, 2 * PAGE, R)
    mm.mprotect(BASE + start * PAGE, pages * PAGE, R)
    assert layout(mm) == after
    assert [mm.load(BASE + i * PAGE, 1)[0] for i in range(6)] == [1, 2, 3, 4, 5, 6]


def test_pages_follow(mm: Any) -> None:
    fixed(mm, 0, 2)
    mm.store(BASE, b"ab")
    mm.mprotect(BASE, 2 * PAGE, R)
    assert mm.load(BASE, 2) == b"ab"
    with pytest.raises(pykmm.SegmentationFault):
        mm.store(BASE, b"x")
    mm.mprotect(BASE, 2 * PAGE, NONE)
    for access in (mm.load, mm.touch):
        with pytest.raises(pykmm.SegmentationFault):
            access(BASE, 1)
    mm.mprotect(BASE, 2 * PAGE, RW)
    faults = mm.machine.vmstat["pgfault"]
    mm.store(BASE, b"cd")
    assert mm.machine.vmstat["pgfault"] == faults, "the page is the process's own: writable at once"
    assert mm.load(BASE, 2) == b"cd"


def test_shared_pages_stay_copy_on_write(mm: Any) -> None:
    fixed(mm, 0, 1)
    mm.store(BASE, b"parent")
    child = mm.fork()
    child.mprotect(BASE, PAGE, R)
    child.mprotect(BASE, PAGE, RW)
    child.store(BASE, b"child!")
    assert mm.load(BASE, 6) == b"parent"
    child.exit()


def test_a_hole_stops_it(mm: Any) -> None:
    fixed(mm, 0, 2)
    fixed(mm, 3, 2)
    fails(errno.ENOMEM, mm.mprotect, BASE, 5 * PAGE, R)
    assert layout(mm) == [(0, 2, "r--p"), (3, 5, "rw-p")]
    fails(errno.ENOMEM, mm.mprotect, BASE + 2 * PAGE, 2 * PAGE, R)


def test_errno(mm: Any) -> None:
    fixed(mm, 0, 1)
    mm.mprotect(BASE, 0, R)
    fails(errno.EINVAL, mm.mprotect, BASE + 1, PAGE, R)
    fails(errno.EINVAL, mm.mprotect, BASE, PAGE, 0x10)
    fails(errno.EINVAL, mm.mprotect, BASE, PAGE, R | 0x03000000)
    fails(errno.EINVAL, mm.mprotect, BASE, PAGE, R | 0x01000000)
    fails(errno.ENOMEM, mm.mprotect, BASE, 2**64 - 1, R)
    assert vma_test.install(mm, BASE + 8 * PAGE, BASE + 9 * PAGE, 1 | 0x10) == 0
    fails(errno.EACCES, mm.mprotect, BASE + 8 * PAGE, PAGE, RW)


def test_grows_down(mm: Any) -> None:
    mm.mmap(BASE, 4 * PAGE, RW, PRIV | FIXED | 0x100)
    mm.mprotect(BASE + 3 * PAGE, PAGE, R | 0x01000000)
    assert layout(mm) == [(0, 4, "r--p")]


def test_accounting_flag_decides_merging(mm: Any) -> None:
    fixed(mm, 0, 2, R)
    fixed(mm, 2, 2)
    mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, R)
    assert layout(mm) == [(0, 4, "r--p")], "nothing was written: VM_ACCOUNT goes"
    fixed(mm, 6, 2, R)
    fixed(mm, 8, 2)
    mm.store(BASE + 8 * PAGE, b"x")
    mm.mprotect(BASE + 8 * PAGE, 2 * PAGE, R)
    assert layout(mm)[1:] == [(6, 8, "r--p"), (8, 10, "r--p")], "written: it stays"
    assert [("ac" in f) for f in vm_flags(mm)] == [False, False, True]


def test_stat_account(mm: Any) -> None:
    fixed(mm, 0, 4)
    mm.mprotect(BASE, 3 * PAGE, 5)
    books = vma_test.counters(mm)
    assert (books["total_vm"], books["data_vm"], books["exec_vm"]) == (4, 1, 3)
