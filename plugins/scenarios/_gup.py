# SPDX-License-Identifier: GPL-2.0-only
"""Tapes of a pin against every writer.

A ``pin`` stands for a driver that hands pages to a device, ``unpin`` for the end of its transfer: it says what the
device must read from the pages, or what it writes to them.
"""
from __future__ import annotations

from collections.abc import Callable

from pykmm.tape import Address, OpStream, Tape
from pykmm_plugins.scenarios._races import PAGE, TABLE


def pin_munmap(page: int = PAGE) -> Tape:
    """A page is pinned while its mapping and its page table go: the device reads what was there, or there is no pin."""
    t = Tape()
    a = t.setup.mmap(page)
    t.setup.store(a, b"A")
    x = t.thread()
    x.pin(a, page)
    x.unpin(a, page, expect=b"A")
    t.thread().munmap(a, page, expect_errno=0)
    return t


def pin_collapse(page: int = PAGE, table: int = TABLE) -> Tape:
    """A page is pinned for writing while a collapse looks whether anybody uses the pages of its page table."""
    t = Tape()
    a = t.setup.mmap(table, fixed=0x40000000)
    t.setup.store(a, b"A")
    x = t.thread()
    x.pin(a, page, write=True, expect_errno=0)
    x.unpin(a, page, write=b"B")
    t.thread().madvise(a, table, "COLLAPSE")
    t.final.load(a, 1, expect=b"B")
    return t


def pin_fork(page: int = PAGE) -> Tape:
    """A page is pinned for writing while the process forks: the device's data is the parent's, not the child's."""
    t = Tape()
    a = t.setup.mmap(page)
    t.setup.store(a, b"A")
    x = t.thread()
    x.pin(a, page, write=True, expect_errno=0)
    x.store(a, b"B", expect_errno=0)
    x.unpin(a, page, expect=b"B")
    t.thread().fork(expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    return t


def against(writer: Callable[[OpStream, Address, int], object], *, write: bool = False) -> Callable[[int], Tape]:
    """One page is pinned and given up, against `writer`."""
    def build(page: int = PAGE) -> Tape:
        t = Tape()
        a = t.setup.mmap(2 * page)
        t.setup.store(a, b"A")
        x = t.thread()
        x.pin(a, page, write=write)
        if write:
            x.unpin(a, page, write=b"B")
        else:
            x.unpin(a, page)
        writer(t.thread(), a, page)
        return t
    return build


def pin_cow(page: int = PAGE) -> Tape:
    """A shared page is pinned for reading by the parent, while the child writes it: each keeps its own."""
    t = Tape()
    a = t.setup.mmap(page)
    t.setup.store(a, b"A")
    child = t.setup.fork()
    x = t.thread()
    x.pin(a, page, expect_errno=0)
    x.store(a, b"B", expect_errno=0)
    x.unpin(a, page, expect=b"B")
    child.store(a, b"C", expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    return t


def pin_mremap(page: int = PAGE) -> Tape:
    """The mapping moves while it is pinned: the page that the device writes moves with it, if there is a pin."""
    t = Tape()
    a = t.setup.mmap(page, fixed=0x30000000)
    t.setup.store(a, b"A")
    x = t.thread()
    x.pin(a, page, write=True)
    x.unpin(a, page, write=b"B")
    t.thread().mremap(a, page, page, "MAYMOVE|FIXED", 0x30400000, expect_errno=0)
    return t


def pin_pin(page: int = PAGE) -> Tape:
    """Two threads pin the same page, one for writing: both hold the page that is mapped."""
    t = Tape()
    a = t.setup.mmap(page)
    t.setup.store(a, b"A")
    x = t.thread()
    x.pin(a, page, write=True, expect_errno=0)
    x.unpin(a, page, write=b"B")
    y = t.thread()
    y.pin(a, page, expect_errno=0)
    y.unpin(a, page)
    t.final.load(a, 1, expect=b"B")
    return t
