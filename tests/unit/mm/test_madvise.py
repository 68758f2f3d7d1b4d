# SPDX-License-Identifier: GPL-2.0-only
"""mm/madvise.c, mincore.c, msync.c."""
from __future__ import annotations

import errno
from typing import Any

import pytest
from vma_helpers import BASE, PAGE, RW, SHARED, R, fails, fixed, layout, vm_flags

from pykmm_ext.mm import task_mmu


@pytest.mark.parametrize(("advice", "undo", "flag"), [
    (1, 0, "rr"), (2, 0, "sr"), (10, 11, "dc"), (14, 15, "hg"), (16, 17, "dd"), (18, 19, "wf"), (12, 13, "mg"),
])
def test_flags(mm: Any, advice: int, undo: int, flag: str) -> None:
    fixed(mm, 0, 3)
    mm.madvise(BASE + PAGE, PAGE, advice)
    assert [flag in f for f in vm_flags(mm)] == [False, True, False]
    mm.madvise(BASE + PAGE, PAGE, undo)
    assert not any(flag in f for f in vm_flags(mm))
    assert len(layout(mm)) == (3 if undo == 15 else 1)


def test_dontneed(mm: Any) -> None:
    fixed(mm, 0, 3)
    for i in range(3):
        mm.store(BASE + i * PAGE, b"x")
    mm.madvise(BASE + PAGE, PAGE, 4)
    assert mm.mincore(BASE, 3 * PAGE) == b"\1\0\1"
    assert [mm.load(BASE + i * PAGE, 1) for i in range(3)] == [b"x", b"\0", b"x"]


def test_dontneed_of_a_private_file_mapping(mm: Any) -> None:
    file = mm.machine.file("/f", b"file")
    a = mm.mmap(0, PAGE, RW, 2, file=file)
    mm.store(a, b"mine")
    mm.madvise(a, PAGE, 4)
    assert mm.load(a, 4) == b"file"


def test_free_keeps_contents_without_pressure(mm: Any) -> None:
    fixed(mm, 0, 1)
    mm.store(BASE, b"lazy")
    mm.madvise(BASE, PAGE, 8)
    assert task_mmu.smaps(mm).count("Referenced:            0 kB") == 1
    assert mm.load(BASE, 4) == b"lazy"
    mm.store(BASE, b"busy")
    assert mm.load(BASE, 4) == b"busy"


def test_populate(mm: Any) -> None:
    fixed(mm, 0, 4)
    before = mm.machine.vmstat["pgfault"]
    mm.madvise(BASE, 2 * PAGE, 22)
    mm.madvise(BASE + 2 * PAGE, 2 * PAGE, 23)
    assert mm.mincore(BASE, 4 * PAGE) == b"\1\1\1\1"
    faults = mm.machine.vmstat["pgfault"]
    assert faults == before + 4
    mm.store(BASE + 2 * PAGE, b"x")
    assert mm.machine.vmstat["pgfault"] == faults
    mm.mprotect(BASE, PAGE, R)
    fails(errno.EINVAL, mm.madvise, BASE, PAGE, 23)
    fails(errno.ENOMEM, mm.madvise, BASE, 6 * PAGE, 22)


def test_willneed_reads_the_file(mm: Any) -> None:
    file = mm.machine.file("/f", b"x" * 3 * PAGE)
    a = mm.mmap(0, 4 * PAGE, R, 2, file=file)
    assert mm.mincore(a, 4 * PAGE) == b"\0\0\0\0"
    mm.madvise(a, 4 * PAGE, 3)
    assert mm.mincore(a, 4 * PAGE) == b"\1\1\1\0"


def test_holes(mm: Any) -> None:
    fixed(mm, 0, 1)
    fixed(mm, 2, 1)
    mm.store(BASE + 2 * PAGE, b"x")
    fails(errno.ENOMEM, mm.madvise, BASE, 3 * PAGE, 4)
    assert mm.load(BASE + 2 * PAGE, 1) == b"\0", "the rest was done"
    fails(errno.ENOMEM, mm.madvise, BASE + 5 * PAGE, PAGE, 4)


def test_errno(mm: Any) -> None:
    fixed(mm, 0, 1)
    mm.madvise(BASE, 0, 4)
    for advice in (5, 7, 25, 99, -1):
        fails(errno.EINVAL, mm.madvise, BASE, PAGE, advice)
    fails(errno.EINVAL, mm.madvise, BASE + 1, PAGE, 4)
    fails(errno.EINVAL, mm.madvise, BASE, 2**64 - 1, 4)
    fails(errno.EINVAL, mm.madvise, BASE, PAGE, 9)
    mm.mlock(BASE, PAGE)
    for advice in (4, 8, 20, 21):
        fails(errno.EINVAL, mm.madvise, BASE, PAGE, advice)
    mm.madvise(BASE, PAGE, 24)
    shared = mm.mmap(0, PAGE, RW, SHARED)
    fails(errno.EINVAL, mm.madvise, shared, PAGE, 18)
    fails(errno.EINVAL, mm.madvise, shared, PAGE, 8)


def test_mincore_and_msync_errno(mm: Any) -> None:
    fixed(mm, 0, 2)
    fails(errno.EINVAL, mm.mincore, BASE + 1, PAGE)
    fails(errno.ENOMEM, mm.mincore, BASE, 3 * PAGE)
    mm.msync(BASE, 2 * PAGE, 4)
    for args in ((BASE + 1, PAGE, 4), (BASE, PAGE, 8), (BASE, PAGE, 5)):
        fails(errno.EINVAL, mm.msync, *args)
    fails(errno.ENOMEM, mm.msync, BASE, 3 * PAGE, 1)
    mm.mlock(BASE, PAGE)
    fails(errno.EBUSY, mm.msync, BASE, PAGE, 2)
