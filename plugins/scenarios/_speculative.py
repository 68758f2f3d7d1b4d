# SPDX-License-Identifier: GPL-2.0-only
"""Tapes of a fault against every writer: those of ``speculative.py``, for other strategies too."""
from __future__ import annotations

from collections.abc import Callable

from pykmm.tape import Address, OpStream, Tape
from pykmm_plugins.scenarios._races import PAGE, TABLE


def _base(page: int) -> tuple[Tape, Address]:
    """Three writable pages; the second was written, so the page table and the anon_vma are there."""
    t = Tape()
    a = t.setup.mmap(3 * page)
    t.setup.store(a + page, b"A")
    return t, a


def against(writer: Callable[[OpStream, Address, int], object], faults: int = 1) -> Callable[[int], Tape]:
    """`faults` threads that each write a page of their own (the first one, then the third), against `writer`."""
    def build(page: int = PAGE) -> Tape:
        t, a = _base(page)
        for i in range(faults):
            t.thread().store(a + 2 * i * page, b"B")
        writer(t.thread(), a, page)
        return t
    return build


def fault_fault(page: int = PAGE) -> Tape:
    """Two threads write the same untouched page: both writes are there in the end."""
    t, a = _base(page)
    t.thread().store(a, b"B")
    t.thread().store(a + 8, b"C")
    t.final.load(a, 1, expect=b"B")
    t.final.load(a + 8, 1, expect=b"C")
    return t


def dontneed_fault(page: int = PAGE) -> Tape:
    """A page is written and read while it is thrown away: the reader finds its own byte or zero."""
    t, a = _base(page)
    x = t.thread()
    x.store(a, b"B", expect_errno=0)
    x.load(a, 1, expect_errno=0)
    t.thread().madvise(a, 2 * page, "DONTNEED", expect_errno=0)
    t.final.load(a + page, 1, expect=b"\0")
    return t


def dontneed_dontneed(page: int = PAGE) -> Tape:
    """Two zappers of one VMA, both under mmap_sem held for reading."""
    t, a = _base(page)
    t.thread().madvise(a, 2 * page, "DONTNEED", expect_errno=0)
    t.thread().madvise(a, 2 * page, "DONTNEED", expect_errno=0)
    t.final.load(a + page, 1, expect=b"\0")
    return t


def dontneed_dontneed_fault(page: int = PAGE) -> Tape:
    """Two zappers and a fault, of one page."""
    t, a = _base(page)
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().madvise(a, page, "DONTNEED", expect_errno=0)
    t.thread().madvise(a, page, "DONTNEED", expect_errno=0)
    t.final.load(a + page, 1, expect=b"A")
    return t


def fork_fault(page: int = PAGE) -> Tape:
    """A first write against fork: the child, if it runs, sees the page as it was or the write."""
    t, a = _base(page)
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().fork(expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    return t


def fork_cow(page: int = PAGE) -> Tape:
    """One thread writes through the translation that it has, one forks, one writes and so may copy the page.

    No write may be lost, whichever copy it went to.
    """
    t, a = _base(page)
    t.thread().store(a + page, b"B", expect_errno=0)    # on the CPU of setup: its translation allows writing
    t.thread().fork(expect_errno=0)
    t.thread().store(a + page + 8, b"C", expect_errno=0)
    t.final.load(a + page, 1, expect=b"B")
    t.final.load(a + page + 8, 1, expect=b"C")
    return t


def munmap_end(page: int = PAGE) -> Tape:
    """The VMA of a fault loses its end, with the faulting page: it is another range than when it was looked up."""
    t = Tape()
    a = t.setup.mmap(3 * page)
    t.setup.store(a, b"A")          # the page table and the anon_vma are there
    t.thread().store(a + page, b"B")
    t.thread().munmap(a + page, 2 * page, expect_errno=0)
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t


def munmap_begin(page: int = PAGE) -> Tape:
    """The same with its beginning."""
    t = Tape()
    a = t.setup.mmap(3 * page)
    t.setup.store(a + 2 * page, b"A")
    t.thread().store(a + page, b"B")
    t.thread().munmap(a, 2 * page, expect_errno=0)
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t


def munmap_table(page: int = PAGE, table: int = TABLE) -> Tape:
    """A mapping goes with its page table, next to one that is about to get one; both hang in one table above."""
    t = Tape()
    a = t.setup.mmap(page, fixed=0x40000000)
    b = t.setup.mmap(page, fixed=0x40000000 + table)
    t.setup.store(a, b"A")
    t.thread().store(b, b"B", expect_errno=0)
    t.thread().munmap(a, page, expect_errno=0)
    t.final.load(b, 1, expect=b"B")
    t.final.load(a, 1, expect_errno="EFAULT")
    return t


def munmap_munmap(page: int = PAGE) -> Tape:
    """Two threads unmap a half each: the second takes the page table with it."""
    t, a = _base(page)
    t.thread().munmap(a, page, expect_errno=0)
    t.thread().munmap(a + page, 2 * page, expect_errno=0)
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t


def mremap_shrink(page: int = PAGE) -> Tape:
    """mremap() cuts off the last pages of a mapping, next to a fault in its first one, which must succeed."""
    t, a = _base(page)
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().mremap(a, 3 * page, page, expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t


def brk_shrink(page: int = PAGE) -> Tape:
    """The same with brk()."""
    t = Tape()
    a = t.setup.brk()
    t.setup.brk(a + 3 * page)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().brk(a + page)
    t.final.load(a, 1, expect=b"B")
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t


def munmap_elsewhere(page: int = PAGE) -> Tape:
    """Of two writers, one after the other, the second alone concerns the VMA of the fault: the end of the first must
    not let the fault in."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    b = t.setup.mmap(page, "r")
    t.setup.store(a, b"A")
    t.thread().store(a + page, b"B")
    t.thread().munmap(a + page, page, expect_errno=0)
    t.thread().munmap(b, page, expect_errno=0)
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t


def munmap_stack(page: int = PAGE, table: int = TABLE) -> Tape:
    """A stack grows to where a mapping goes with its page table; not before, where the guard gap is wider than that."""
    t = Tape()
    a = t.setup.mmap(page, fixed=0x40000000)
    stack = t.setup.mmap(page, flags="GROWSDOWN", fixed=0x40000000 + table)
    t.setup.store(a, b"A")
    t.thread().store(stack - page, b"B")
    t.thread().munmap(a, page, expect_errno=0)
    return t


#: Who unmaps, beside what stays: name, title, tape. Some strategies let faults in before it has ended.
UNMAPPING: tuple[tuple[str, str, Callable[..., Tape]], ...] = (
    ("munmap-table", "a fault that makes a page table against munmap next to it", munmap_table),
    ("munmap-stack", "a stack that grows against munmap below it", munmap_stack),
    ("munmap-munmap", "two munmaps of one mapping", munmap_munmap),
    ("mremap-shrink-fault", "a fault against mremap that shrinks its VMA", mremap_shrink),
    ("brk-shrink-fault", "a fault against a heap that shrinks", brk_shrink),
)
#: The same with two writers. Without eager callbacks, or there are too many schedules.
ELSEWHERE = ("munmap-elsewhere", "a fault against munmap of its page, and another munmap elsewhere", munmap_elsewhere)


def mprotect_split(page: int = PAGE) -> Tape:
    """Splitting a VMA moves a bound under a fault behind it: that fault must succeed."""
    t, a = _base(page)
    t.thread().store(a + 2 * page, b"B", expect_errno=0)
    t.thread().mprotect(a, page, "r", expect_errno=0)
    t.final.load(a + 2 * page, 1, expect=b"B")
    t.final.store(a, b"C", expect_errno="EFAULT")
    return t


def mremap_fault(page: int = PAGE) -> Tape:
    """A mapping moves away under a fault: what was written before has moved with it."""
    t, a = _base(page)
    t.thread().store(a, b"B")
    b = t.thread().mremap(a, 3 * page, 3 * page, "MAYMOVE|FIXED", 0x50000000, expect_errno=0)
    t.final.load(b + page, 1, expect=b"A")
    t.final.load(a, 1, expect_errno="EFAULT")
    return t


def mremap_dontunmap_fault(page: int = PAGE) -> Tape:
    """The pages move away, the mapping stays: a write finds the new empty place, or has moved."""
    t, a = _base(page)
    t.thread().store(a, b"B", expect_errno=0)
    b = t.thread().mremap(a, 3 * page, 3 * page, "MAYMOVE|DONTUNMAP", expect_errno=0)
    t.final.load(b + page, 1, expect=b"A")
    t.final.load(a + page, 1, expect=b"\0")
    return t


def munmap_mmap_fault(page: int = PAGE) -> Tape:
    """Another mapping takes the place: the write goes with the old one or faults, and never appears in the new one."""
    t, a = _base(page)
    t.thread().store(a, b"B")
    y = t.thread()
    y.munmap(a, 3 * page, expect_errno=0)
    y.mmap(3 * page, "r", fixed=a)
    t.final.load(a, 1, expect=b"\0")
    return t


def truncate_fault(page: int = PAGE) -> Tape:
    """A page of a file is touched while the file is cut before it: afterwards it is beyond the end."""
    t = Tape()
    t.file("f", size=2 * page)
    a = t.setup.mmap(2 * page, shared=True, file="f")
    t.setup.store(a, b"A")
    t.thread().touch(a + page)
    t.thread().truncate("f", page, expect_errno=0)
    t.final.load(a, 1, expect=b"A")
    t.final.load(a + page, 1, expect_errno="EFAULT")
    return t
