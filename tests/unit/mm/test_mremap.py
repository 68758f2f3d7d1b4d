# SPDX-License-Identifier: GPL-2.0-only
"""mm/mremap.c: resizing and moving, contents and errno."""
from __future__ import annotations

import errno
from typing import Any

import pytest
from arch_under_test import TASK_SIZE
from vma_helpers import BASE, FIXED, PAGE, RW, SHARED, R, fails, fixed, layout

import pykmm
from pykmm_ext.mm import vma_test

MAYMOVE, FIX, DONTUNMAP = 1, 2, 4


def test_shrink_and_grow_in_place(mm: Any) -> None:
    fixed(mm, 0, 4)
    mm.store(BASE, b"keep")
    assert mm.mremap(BASE, 4 * PAGE, 2 * PAGE) == BASE
    assert layout(mm) == [(0, 2, "rw-p")]
    assert mm.mremap(BASE, 2 * PAGE, 6 * PAGE) == BASE
    assert layout(mm) == [(0, 6, "rw-p")]
    assert mm.load(BASE, 4) == b"keep"
    assert mm.mremap(BASE, PAGE, PAGE) == BASE
    assert vma_test.counters(mm)["total_vm"] == 6


def test_growing_merges_with_what_comes_next(mm: Any) -> None:
    fixed(mm, 0, 2)
    fixed(mm, 3, 1)
    assert mm.mremap(BASE, 2 * PAGE, 3 * PAGE) == BASE
    assert layout(mm) == [(0, 4, "rw-p")]


@pytest.mark.parametrize("pages", [1, 3, 600])
def test_move_keeps_contents(mm: Any, pages: int) -> None:
    fixed(mm, 0, pages)
    marks = {0, pages // 2, pages - 1}
    for p in marks:
        mm.store(BASE + p * PAGE, b"page %d" % p)
    fixed(mm, pages, 1, R)
    new = mm.mremap(BASE, pages * PAGE, (pages + 1) * PAGE, MAYMOVE)
    assert new != BASE
    for p in marks:
        mark = b"page %d" % p
        assert mm.load(new + p * PAGE, len(mark)) == mark
    with pytest.raises(pykmm.SegmentationFault):
        mm.load(BASE, 1)
    mm.store(new, b"again")
    assert mm.load(new + pages * PAGE, 1) == b"\0"


def test_move_to_a_place(mm: Any) -> None:
    fixed(mm, 0, 4)
    mm.store(BASE + PAGE, b"moved")
    fixed(mm, 10, 3, R)
    to = BASE + 10 * PAGE
    assert mm.mremap(BASE + PAGE, 2 * PAGE, 2 * PAGE, MAYMOVE | FIX, to) == to
    assert layout(mm) == [(0, 1, "rw-p"), (3, 4, "rw-p"), (10, 12, "rw-p"), (12, 13, "r--p")]
    assert mm.load(to, 5) == b"moved"
    assert mm.mremap(to, 2 * PAGE, 2 * PAGE, MAYMOVE | FIX, BASE + PAGE) == BASE + PAGE
    assert layout(mm) == [(0, 4, "rw-p"), (12, 13, "r--p")], "back home: one mapping again"


def test_several_mappings_move_together(mm: Any) -> None:
    fixed(mm, 0, 1)
    fixed(mm, 2, 1, R)
    assert mm.mremap(BASE, 3 * PAGE, 3 * PAGE, MAYMOVE | FIX, BASE + 8 * PAGE) == BASE + 8 * PAGE
    assert layout(mm) == [(8, 9, "rw-p"), (10, 11, "r--p")]
    fails(errno.EFAULT, mm.mremap, BASE + 7 * PAGE, 4 * PAGE, 4 * PAGE, MAYMOVE | FIX, BASE)


def test_dontunmap(mm: Any) -> None:
    fixed(mm, 0, 2)
    mm.store(BASE, b"data")
    new = mm.mremap(BASE, 2 * PAGE, 2 * PAGE, MAYMOVE | DONTUNMAP)
    assert mm.load(new, 4) == b"data"
    assert mm.load(BASE, 4) == b"\0\0\0\0", "still mapped, empty"
    mm.store(BASE, b"new!")
    assert mm.load(new, 4) == b"data"
    assert vma_test.counters(mm)["total_vm"] == 4


def test_dontunmap_beside_itself(mm: Any) -> None:
    fixed(mm, 0, 3)
    assert mm.mremap(BASE + PAGE, 2 * PAGE, 2 * PAGE, 7, BASE + 3 * PAGE) == BASE + 3 * PAGE
    assert layout(mm) == [(0, 5, "rw-p")], "never written: source and destination merge"


def test_old_len_zero_duplicates_shared(mm: Any) -> None:
    shared = mm.mmap(0, PAGE, RW, SHARED)
    mm.store(shared, b"one")
    twin = mm.mremap(shared, 0, PAGE, MAYMOVE)
    mm.store(twin, b"two")
    assert mm.load(shared, 3) == b"two"
    fixed(mm, 0, 1)
    fails(errno.EINVAL, mm.mremap, BASE, 0, PAGE, MAYMOVE)


def test_errno(mm: Any) -> None:
    fixed(mm, 0, 2)
    fixed(mm, 2, 1, R)
    for args in ((BASE, PAGE, 0), (BASE + 1, PAGE, PAGE), (BASE, PAGE, PAGE, 8), (BASE, PAGE, 2 * TASK_SIZE, MAYMOVE),
                 (BASE, PAGE, PAGE, FIX, BASE + 9 * PAGE), (BASE, PAGE, PAGE, 3, BASE + 1), (BASE, PAGE, PAGE, 3, BASE),
                 (BASE, PAGE, 2 * PAGE, 5), (BASE, 2 * PAGE, 2 * PAGE, 3, BASE + PAGE)):
        fails(errno.EINVAL, mm.mremap, *args)
    fails(errno.EFAULT, mm.mremap, BASE + 5 * PAGE, PAGE, PAGE)
    fails(errno.EFAULT, mm.mremap, BASE, 3 * PAGE, 4 * PAGE, MAYMOVE)
    fails(errno.ENOMEM, mm.mremap, BASE, 2 * PAGE, 3 * PAGE)
    assert layout(mm) == [(0, 2, "rw-p"), (2, 3, "r--p")]


def test_file_offset_moves_along(mm: Any) -> None:
    data = bytes(i // PAGE for i in range(8 * PAGE))
    file = mm.machine.file("/f", data)
    mm.mmap(BASE, 4 * PAGE, R, 2 | FIXED, file=file, offset=2 * PAGE)
    to = BASE + 16 * PAGE
    mm.mremap(BASE + PAGE, 2 * PAGE, 4 * PAGE, MAYMOVE | FIX, to)
    assert mm.load(to, 1) + mm.load(to + 3 * PAGE, 1) == bytes([3, 6])
    assert {v.start: v.offset // PAGE for v in mm.vmas} == {BASE: 2, BASE + 3 * PAGE: 5, to: 3}


def test_locked(mm: Any) -> None:
    fixed(mm, 0, 2)
    mm.mlock(BASE, 2 * PAGE)
    fixed(mm, 2, 1, R)
    new = mm.mremap(BASE, 2 * PAGE, 4 * PAGE, MAYMOVE)
    assert vma_test.counters(mm)["locked_vm"] == 4
    assert mm.mincore(new, 4 * PAGE) == b"\1\1\1\1"
    mm.munmap(new, 4 * PAGE)
    assert vma_test.counters(mm)["locked_vm"] == 0
