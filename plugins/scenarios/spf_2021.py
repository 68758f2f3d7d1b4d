# SPDX-License-Identifier: GPL-2.0-only
"""The speculative faults of 2021: each decision with and without it, and faults against every writer.

Setup runs on the CPU of the first thread, which keeps its translations; so the thread that shall fault touches pages
that setup has left alone, in a page table that setup has made (speculative faults populate none), of a VMA whose
anon_vma exists where they write (they make none), and of files whose pages are in the cache (they read none).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm.tape import Address, OpStream, Tape
from pykmm_plugins.scenarios import _races as races
from pykmm_plugins.scenarios import _speculative as speculative
from pykmm_plugins.scenarios._races import PAGE

if TYPE_CHECKING:
    from pykmm.plugin import Registry

Writer = Callable[[OpStream, Address, int], object]

_SERIES = "Speculative page faults, linux-mm, April 2021"
_EAGER = ("eager-callbacks",)
_GONE = frozenset({"use-after-free", "broken-structure", "leak"})
GUEST = "x86-paravirt"
PLACE = 0x50000000


def _config(options: str = "", arch: str = "x86", **more: object) -> Config:
    return Config(f"spf-2021[{options}]" if options else "spf-2021", arch, **more)  # type: ignore[arg-type]


# ---- tapes -----------------------------------------------------------------------------------------------------------

def cached(shared: bool, page: int) -> tuple[Tape, Address]:
    """Three pages of a file, all in the page cache; the second is mapped and, if private, was written."""
    t = Tape()
    t.file("f", size=3 * page)
    a = t.setup.mmap(3 * page, shared=shared, file="f")
    t.setup.madvise(a, 3 * page, "WILLNEED", expect_errno=0)
    t.setup.store(a + page, b"A")
    return t, a


def file_read(writer: Writer, shared: bool = True) -> Callable[[int], Tape]:
    """A thread reads the first page of such a mapping, against `writer`."""
    def build(page: int = PAGE) -> Tape:
        t, a = cached(shared, page)
        t.thread().load(a, 1)
        writer(t.thread(), a, page)
        return t
    return build


def file_cow(writer: Writer) -> Callable[[int], Tape]:
    """A thread writes the first page of such a private mapping, against `writer`."""
    def build(page: int = PAGE) -> Tape:
        t, a = cached(False, page)
        t.thread().store(a, b"B")
        writer(t.thread(), a, page)
        return t
    return build


def anonymous(writer: Writer, access: str = "write", final: Writer | None = None) -> Callable[[int], Tape]:
    """A thread touches the first of three anonymous pages, the second of which was written, against `writer`."""
    def build(page: int = PAGE) -> Tape:
        t = Tape()
        a = t.setup.mmap(3 * page)
        t.setup.store(a + page, b"A")
        t.thread().touch(a, access=access)
        writer(t.thread(), a, page)
        if final is not None:
            final(t.final, a, page)
        return t
    return build


def flush_under_ptl(page: int = PAGE) -> Tape:
    """Zapping a dirty page of a shared file flushes under the PTL, while the other thread wants that PTL."""
    t, a = cached(True, page)
    t.thread().load(a, 1, expect_errno=0)
    t.thread().madvise(a + page, page, "DONTNEED", expect_errno=0)
    return t


def hidden_file(page: int = PAGE) -> Tape:
    """A shared anonymous mapping: its file goes with it. One thread reads a page of it, another unmaps it."""
    t = Tape()
    a = t.setup.mmap(2 * page, shared=True)
    t.setup.madvise(a, 2 * page, "WILLNEED", expect_errno=0)
    t.setup.touch(a + page)
    t.thread().load(a, 1)
    t.thread().munmap(a, 2 * page, expect_errno=0)
    return t


def truncate_file(page: int = PAGE) -> Tape:
    """A page of the cache is mapped while the file is cut before it: afterwards it is beyond the end."""
    t, a = cached(True, page)
    t.thread().load(a + 2 * page, 1)
    t.thread().truncate("f", page, expect_errno=0)
    t.final.load(a + 2 * page, 1, expect_errno="EFAULT")
    return t


def truncate_cow(page: int = PAGE) -> Tape:
    """A private copy of a page is made while the file is cut before it: the copy goes too."""
    t, a = cached(False, page)
    t.thread().store(a + 2 * page, b"B")
    t.thread().truncate("f", page, expect_errno=0)
    t.final.load(a + 2 * page, 1, expect_errno="EFAULT")
    return t


def brk_fault(page: int = PAGE) -> Tape:
    """A page of the heap is written while the heap shrinks below it."""
    t = Tape()
    a = t.setup.brk(0)
    t.setup.brk(a + 2 * page)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B")
    t.thread().brk(a)
    return t


def brk_grow_fault(page: int = PAGE) -> Tape:
    """A page of the heap is written while the heap grows: the VMA's end moves under the fault."""
    t = Tape()
    a = t.setup.brk(0)
    t.setup.brk(a + 2 * page)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().brk(a + 3 * page)
    t.final.load(a, 1, expect=b"B")
    return t


def stack_growth(page: int = PAGE) -> Tape:
    """A page of a stack is written while another fault makes it grow: start and offset of the VMA move together."""
    t = Tape()
    a = t.setup.mmap(2 * page, flags="MAP_GROWSDOWN", fixed=PLACE)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().store(a - page, b"C", expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    t.final.load(a - page, 1, expect=b"C")
    return t


def stack_growth_twice(page: int = PAGE) -> Tape:
    """Two faults below one stack: both make it grow, or one finds it grown."""
    t = Tape()
    a = t.setup.mmap(2 * page, flags="MAP_GROWSDOWN", fixed=PLACE)
    t.setup.store(a + page, b"A")
    t.thread().store(a - 2 * page, b"B", expect_errno=0)
    t.thread().store(a - page, b"C", expect_errno=0)
    t.final.load(a - 2 * page, 1, expect=b"B")
    t.final.load(a - page, 1, expect=b"C")
    return t


def merge_fault(page: int = PAGE) -> Tape:
    """Giving a page its permission back merges two VMAs, one of which goes; a page of that one is written."""
    t = Tape()
    a = t.setup.mmap(3 * page)
    t.setup.store(a + 2 * page, b"A")
    t.setup.mprotect(a, page, "r", expect_errno=0)
    t.thread().store(a + page, b"B", expect_errno=0)
    t.thread().mprotect(a, page, "rw", expect_errno=0)
    t.final.load(a + page, 1, expect=b"B")
    return t


def first_write(page: int = PAGE) -> Tape:
    """A classic fault gives the VMA its anon_vma while a speculative one looks."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.touch(a, access="read")
    t.thread().store(a + page, b"B", expect_errno=0)
    t.thread().store(a + page + 8, b"C", expect_errno=0)
    t.final.load(a + page, 1, expect=b"B")
    t.final.load(a + page + 8, 1, expect=b"C")
    return t


def dontneed_cow(page: int = PAGE) -> Tape:
    """A page that fork has shared is written while it is thrown away: the child keeps its own."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.store(a + page, b"A")
    child = t.setup.fork(expect_errno=0)
    t.thread().store(a + page, b"B", expect_errno=0)
    t.thread().madvise(a, 2 * page, "DONTNEED", expect_errno=0)
    child.load(a + page, 1, expect=b"A")
    return t


# ---- scenarios -------------------------------------------------------------------------------------------------------

def _both(name: str, title: str, build: Callable[[int], Tape], **more: object) -> tuple[Scenario, ...]:
    """On x86, and where page tables are freed by RCU."""
    return (
        Scenario(f"spf-2021-{name}", title, build, _config(), others=(Config("spf"), Config("mmap_sem")),
                 **more),  # type: ignore[arg-type]
        Scenario(f"spf-2021-{name}-paravirt", f"{title}, page tables freed by RCU", build,
                 _config(arch=GUEST, quirks=_EAGER), others=(Config("spf", GUEST, _EAGER),)),
    )


_RACES = (
    Scenario(
        "spf-2021-ptl-spin", "spinning on the PTL with IRQs off, against a flush under that PTL", flush_under_ptl,
        _config("ptl=loop"), _config("ptl=spin"), frozenset({"deadlock", "lock-order"}), "R1", _SERIES,
        needs=frozenset({"flush-ipi", "irqs-off-keep-tables"})),
    Scenario(
        "spf-2021-ptl-spin-paravirt", "spinning on the PTL where a walk leaves IRQs on", flush_under_ptl,
        _config("ptl=spin", GUEST), _config("ptl=spin,walk=irq", GUEST), frozenset({"deadlock", "lock-order"}), "R1",
        _SERIES, needs=frozenset({"flush-ipi"})),
    Scenario(
        "spf-2021-irqs-off-walk", "a walk with IRQs off only, where page tables are freed by RCU", races.munmap_fault,
        _config(arch=GUEST, quirks=_EAGER), _config("walk=irq", GUEST, quirks=_EAGER), _GONE, "R4",
        f"{_SERIES}: A. Lutomirski on patch 13", needs=frozenset({"rcu-tables"})),
    Scenario(
        "spf-2021-vma-freed-at-once", "munmap frees the VMA that a lockless lookup holds", races.munmap_fault,
        _config(quirks=_EAGER), _config("free=now"), _GONE, "R5", _SERIES),
    Scenario(
        "spf-2021-no-copy", "the VMA is looked at after the read section that found it", races.munmap_fault,
        _config(quirks=_EAGER), _config("copy=late", quirks=_EAGER), _GONE, "R5", _SERIES),
    Scenario(
        "spf-2021-recheck", "mprotect between the check of the copy and the new entry", races.mprotect_fault,
        _config(), _config("recheck=before"),
        frozenset({"assertion", "broken-structure", "stale-tlb", "wrong-value"}), "R7", _SERIES),
    Scenario(
        "spf-2021-recheck-before", "the PTL of a page table that is gone", races.munmap_fault,
        _config(quirks=_EAGER), _config("recheck=under", quirks=_EAGER), _GONE, "R3", _SERIES),
    Scenario(
        "spf-2021-odd", "a fault that begins while a writer is there, and sees the count not move", races.munmap_fault,
        _config("munmap=write"), _config("odd=ignore,munmap=write"), _GONE, source=_SERIES),
    Scenario(
        "spf-2021-file-freed-at-once", "munmap gives up the file whose page cache a fault looks into", hidden_file,
        _config(quirks=_EAGER), _config("file=now", quirks=_EAGER), _GONE, source=_SERIES),
    Scenario(
        "spf-2021-page-cache", "the page cache of a file that the copy of a VMA does not keep", hidden_file,
        _config(quirks=_EAGER), _config("cache=bare", quirks=_EAGER), _GONE, source=_SERIES),
)

_FAMILIES = (
    *_both("fault-fault", "two faults on one page", speculative.fault_fault),
    *_both("first-write", "two first writes of a mapping", first_write),
    *_both("munmap-fault", "a fault against munmap", races.munmap_fault),
    *_both("munmap-read", "a fault of the zero page against munmap",
           anonymous(lambda y, a, page: y.munmap(a, 3 * page), "read")),
    *_both("munmap-mmap-fault", "a fault against munmap and a new mapping in its place", speculative.munmap_mmap_fault),
    Scenario(f"spf-2021-{speculative.ELSEWHERE[0]}", *speculative.ELSEWHERE[1:], _config()),
    *_both("mremap-shrink-fault", "a fault against mremap that shrinks its VMA", speculative.mremap_shrink),
    *_both("brk-shrink-fault", "a fault against a heap that shrinks", speculative.brk_shrink),
    *_both("mprotect-fault", "a fault against mprotect of its VMA", races.mprotect_fault),
    *_both("munmap-begin-fault", "a fault against munmap of the first pages of its VMA", speculative.munmap_begin),
    *_both("munmap-end-fault", "a fault against munmap of the last pages of its VMA", speculative.munmap_end),
    *_both("mprotect-split-fault", "a fault against mprotect of the pages before it", speculative.mprotect_split),
    *_both("merge-fault", "a fault against two VMAs that merge", merge_fault),
    *_both("mremap-fault", "a fault against mremap", speculative.mremap_fault),
    *_both("mremap-dontunmap-fault", "a fault against mremap with MREMAP_DONTUNMAP",
           speculative.mremap_dontunmap_fault),
    *_both("fork-fault", "a fault against fork", speculative.fork_fault),
    *_both("fork-cow", "a stale translation, fork, and a copy", speculative.fork_cow),
    *_both("dontneed-fault", "a fault against MADV_DONTNEED", speculative.dontneed_fault),
    *_both("dontneed-cow", "a copy against MADV_DONTNEED", dontneed_cow),
    *_both("free-fault", "a fault against MADV_FREE", anonymous(lambda y, a, page: y.madvise(a, 3 * page, "FREE"))),
    *_both("collapse-fault", "a fault against MADV_COLLAPSE", races.collapse_fault),
    *_both("brk-fault", "a fault against brk that shrinks the heap", brk_fault),
    *_both("brk-grow-fault", "a fault against brk that lets the heap grow", brk_grow_fault),
    *_both("stack-growth", "a fault in a stack that grows", stack_growth),
    *_both("stack-growth-twice", "two faults below a stack", stack_growth_twice),
    *_both("mlock-fault", "a fault against mlock", anonymous(lambda y, a, page: y.mlock(a, 2 * page, expect_errno=0))),
    *_both("file-munmap", "a fault from the page cache against munmap",
           file_read(lambda y, a, page: y.munmap(a, 3 * page))),
    *_both("file-hidden", "a fault from the page cache against the end of its file", hidden_file),
    *_both("file-mprotect", "a fault from the page cache against mprotect",
           file_read(lambda y, a, page: y.mprotect(a, 3 * page, "", expect_errno=0))),
    *_both("file-mremap", "a fault from the page cache against mremap",
           file_read(lambda y, a, page: y.mremap(a, 3 * page, 3 * page, "MAYMOVE|FIXED", PLACE, expect_errno=0))),
    *_both("file-fork", "a fault from the page cache against fork",
           file_read(lambda y, a, page: y.fork(expect_errno=0), shared=False)),
    *_both("file-dontneed", "a fault from the page cache against MADV_DONTNEED",
           file_read(lambda y, a, page: y.madvise(a, 3 * page, "DONTNEED", expect_errno=0))),
    *_both("file-truncate", "a fault from the page cache against truncation", truncate_file),
    *_both("cow-munmap", "a private copy of a cached page against munmap",
           file_cow(lambda y, a, page: y.munmap(a, 3 * page))),
    *_both("cow-mprotect", "a private copy of a cached page against mprotect",
           file_cow(lambda y, a, page: y.mprotect(a, 3 * page, "r", expect_errno=0))),
    *_both("cow-truncate", "a private copy of a cached page against truncation", truncate_cow),
    Scenario("spf-2021-fault-around", "fault-around from the page cache against munmap of its file", hidden_file,
             _config(quirks=_EAGER, fault_around="16K")),
    Scenario("spf-2021-fault-around-truncate", "fault-around against truncation", truncate_file,
             _config(fault_around="16K")),
)

SCENARIOS = (*_RACES, *_FAMILIES)


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register them."""
    register(registry, *SCENARIOS)
