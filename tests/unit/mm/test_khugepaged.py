# SPDX-License-Identifier: GPL-2.0-only
"""mm/khugepaged.c: MADV_COLLAPSE is refused as Linux refuses it, and changes nothing."""
from __future__ import annotations

import errno
from typing import Any

import pytest
from arch_under_test import PAGE
from arch_under_test import TABLE as PMD

PRIVATE, SHARED, FIXED, ANON = 2, 1, 0x10, 0x20
BASE = 0x4000_0000
COLLAPSE, NOHUGEPAGE = 25, 15


def refused(mm: Any, address: int, length: int) -> int | None:
    try:
        mm.madvise(address, length, COLLAPSE)
    except OSError as error:
        return error.errno
    return None


def test_contents_stay(mm: Any) -> None:
    mm.mmap(BASE, 2 * PMD, 3, PRIVATE | ANON | FIXED)
    mm.store(BASE, b"a")
    mm.store(BASE + PMD + 5 * PAGE, b"b")
    before = mm.walk(BASE)
    assert refused(mm, BASE, 2 * PMD) == errno.ENOMEM
    assert mm.walk(BASE) == before
    assert mm.load(BASE, 1) == b"a"
    assert mm.load(BASE + PMD + 5 * PAGE, 1) == b"b"


def test_what_holds_no_page_table(mm: Any) -> None:
    mm.mmap(BASE, PMD, 3, PRIVATE | ANON | FIXED)
    assert refused(mm, BASE, PMD) == errno.EINVAL
    mm.load(BASE + PAGE, 1)
    assert refused(mm, BASE, PMD) == errno.ENOMEM


@pytest.mark.parametrize(("start", "length", "number"), [
    (0, PAGE, None), (0, PMD - PAGE, None), (PAGE, PAGE, errno.EINVAL), (PAGE, PMD - PAGE, None), (0, 0, None),
    (PAGE, PMD, None), (PAGE, 2 * PMD - PAGE, errno.ENOMEM),
])
def test_ranges(mm: Any, start: int, length: int, number: int | None) -> None:
    """Only whole page tables count; a range that lies inside one wraps around, as Linux's arithmetic does."""
    mm.mmap(BASE, 2 * PMD, 3, PRIVATE | ANON | FIXED)
    mm.touch(BASE, 2 * PMD)
    assert refused(mm, BASE + start, length) == number


def test_mappings_that_have_no_huge_pages(mm: Any) -> None:
    mm.mmap(BASE, PMD - PAGE, 3, PRIVATE | ANON | FIXED)
    mm.touch(BASE, PAGE)
    assert refused(mm, BASE, PAGE) == errno.EINVAL
    mm.mmap(BASE + PMD, PMD, 3, PRIVATE | ANON | FIXED)
    mm.touch(BASE + PMD, PAGE)
    mm.madvise(BASE + PMD, PMD, NOHUGEPAGE)
    assert refused(mm, BASE + PMD, PMD) == errno.EINVAL
    assert refused(mm, BASE + 4 * PMD, PMD) == errno.ENOMEM     # nothing is there
