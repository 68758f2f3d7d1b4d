# SPDX-License-Identifier: GPL-2.0-only
"""Tapes of the races in ``races.py``, for the other scenarios too.

Addresses are fixed only where a race needs them. Setup runs on the CPU of the first thread, which keeps its
translations; so the thread that shall fault touches pages that setup has left alone, in a page table that setup has
made (speculative faults populate none), of a VMA whose anon_vma exists (they make none).
"""
from __future__ import annotations

from pykmm.tape import Tape

PAGE = 0x1000       # of a tape that is built without saying for which pages
TABLE = 0x200000    # what a table of PTEs maps then


def munmap_fault(page: int = PAGE) -> Tape:
    """One thread writes a page that was never touched, another unmaps the mapping; its page table goes too."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B")
    t.thread().munmap(a, 2 * page)
    return t


def spin_on_ptl(page: int = PAGE) -> Tape:
    """Zapping a dirty page of a shared file flushes under the PTL, while the other thread wants that PTL."""
    t = Tape()
    t.file("f", size=2 * page)
    a = t.setup.mmap(2 * page, shared=True, file="f")
    t.setup.store(a, b"A")
    t.thread().touch(a + page, access="read")
    t.thread().madvise(a, page, "DONTNEED", expect_errno=0)
    return t


def truncate_split(page: int = PAGE) -> Tape:
    """Truncation zaps under i_mmap_rwsem; splitting a VMA of the file takes i_mmap_rwsem."""
    t = Tape()
    t.file("f", size=2 * page)
    a = t.setup.mmap(2 * page, shared=True, file="f")
    t.setup.touch(a + page)
    t.thread().truncate("f", page, expect_errno=0)
    t.thread().mprotect(a, page, "r", expect_errno=0)
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t


def instantiate_tables(page: int = PAGE) -> Tape:
    """The mapping has no page table yet when one thread reads it and the other unmaps it."""
    t = Tape()
    a = t.setup.mmap(page)
    t.thread().touch(a, access="read")
    t.thread().munmap(a, page)
    return t


def rotation(page: int = PAGE) -> Tape:
    """The third VMA makes the tree rotate around the root; the reader's VMA is there all the time."""
    t = Tape()
    t.setup.mmap(page, fixed=0x30000000)
    b = t.setup.mmap(page, fixed=0x20000000)
    t.thread().load(b, 1, expect=b"\0", expect_errno=0)
    t.thread().mmap(page, fixed=0x10000000)
    return t


def mprotect_fault(page: int = PAGE) -> Tape:
    """One thread writes a page, another takes the permission away; afterwards nobody may write."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B")
    t.thread().mprotect(a, 2 * page, "r", expect_errno=0)
    t.final.store(a, b"C", expect_errno="EFAULT")
    return t


def merge_fault(page: int = PAGE) -> Tape:
    """Giving a page its permission back merges two VMAs: one of them goes."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.mprotect(a, page, "r")
    t.thread().touch(a + page)
    t.thread().mprotect(a, page, "rw", expect_errno=0)
    return t


def collapse_fault(page: int = PAGE, table: int = TABLE) -> Tape:
    """One thread writes a page, another tries to collapse the page table that it belongs to."""
    t = Tape()
    a = t.setup.mmap(table, fixed=0x40000000)
    t.setup.store(a, b"A")
    t.thread().store(a + page, b"B", expect_errno=0)
    t.thread().madvise(a, table, "COLLAPSE", expect_errno="ENOMEM")
    t.final.load(a, 1, expect=b"A")
    t.final.load(a + page, 1, expect=b"B")
    return t


def mprotect_locked(page: int = PAGE) -> Tape:
    """Making a locked mapping writable faults its pages in; splitting it takes the locks in their order."""
    t = Tape()
    a = t.setup.mmap(2 * page, "r")
    t.setup.mlock(a, 2 * page)
    t.thread().touch(a, access="read")
    y = t.thread()
    y.mprotect(a, 2 * page, "rw", expect_errno=0)
    y.munmap(a, page, expect_errno=0)
    return t


def vmacache_wrap(page: int = PAGE) -> Tape:
    """A CPU has a VMA in its cache; two changes of the layout later it asks for the same address."""
    t = Tape()
    a = t.setup.mmap(page, fixed=0x30000000)
    b = t.setup.mmap(page, fixed=0x20000000)
    y = t.thread()
    y.munmap(a, page, expect_errno=0)
    y.munmap(b, page, expect_errno=0)
    x = t.thread()
    x.touch(a)
    x.touch(a)
    return t
