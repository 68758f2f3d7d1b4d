# SPDX-License-Identifier: GPL-2.0-only
"""Races of speculative faults that are known from the discussion of the series: each with and without its fix.

Addresses are fixed only where a race needs them. Setup runs on the CPU of the first thread, which keeps its
translations; so the thread that shall fault touches pages that setup has left alone, in a page table that setup has
made (speculative faults populate none), of a VMA whose anon_vma exists (they make none).
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape

if TYPE_CHECKING:
    from pykmm.plugin import Registry

PAGE = 0x1000       # of a tape that is built without saying for which pages
PMD = 0x200000      # what a PTE table maps, on every arch so far

_V5 = "RFC v5, Speculative page faults, linux-mm, June 2017"
#: The series with everything corrected: what the buggy variants differ from in one point.
FIXED = "spf-rfc5[fixes=all]"


def _rfc5(options: str) -> str:
    return f"spf-rfc5[fixes=all,{options}]"


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


def collapse_fault(page: int = PAGE) -> Tape:
    """One thread writes a page, another tries to collapse the page table that it belongs to."""
    t = Tape()
    a = t.setup.mmap(PMD, fixed=0x40000000)
    t.setup.store(a, b"A")
    t.thread().store(a + page, b"B", expect_errno=0)
    t.thread().madvise(a, PMD, "COLLAPSE", expect_errno="ENOMEM")
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


_GONE = frozenset({"use-after-free", "broken-structure", "leak"})
_EAGER = ("eager-callbacks",)

SCENARIOS = (
    Scenario(
        "R1-ptl-spin", "spinning on the PTL with IRQs off, against a flush under that PTL", spin_on_ptl,
        Config(FIXED), Config(_rfc5("ptl=spin")), frozenset({"deadlock", "lock-order"}), "R1", f"{_V5}: patch 09",
        needs=frozenset({"flush-ipi"})),
    Scenario(
        "R2-i-mmap-order", "vm_sequence and i_mmap_rwsem: __vma_adjust() against truncation", truncate_split,
        Config(_rfc5("seq=plain")), Config(_rfc5("seq=plain"), quirks=("vma-adjust-order",)),
        frozenset({"lock-order"}), "R2",
        f"{_V5}: patch 05"),
    Scenario(
        "R3-instantiate-tables", "a speculative fault makes page tables, against free_pgtables()", instantiate_tables,
        Config(FIXED), Config(_rfc5("tables=alloc")), _GONE, "R3", f"{_V5}: patches 01 and 08"),
    Scenario(
        "R4-irqs-off-walk", "a walk with IRQs off only, where page tables are freed by RCU", munmap_fault,
        Config(FIXED, arch="x86-paravirt", quirks=_EAGER),
        Config(_rfc5("walk=irq"), arch="x86-paravirt", quirks=_EAGER), _GONE, "R4",
        "arch/x86: MMU_GATHER_RCU_TABLE_FREE for paravirtualised flushes", needs=frozenset({"rcu-tables"})),
    Scenario(
        "R5-vma-freed-at-once", "munmap frees the VMA that a lockless lookup holds", munmap_fault,
        Config(FIXED, quirks=_EAGER), Config(_rfc5("free=now")), _GONE, "R5", f"{_V5}: patch 07"),
    Scenario(
        "R6-rbtree-rotation", "a lockless descent against a rotation: the VMA is not found", rotation,
        Config(_rfc5("miss=sigsegv")), Config(_rfc5("miss=sigsegv,mm_seq=once")), frozenset({"assertion"}), "R6",
        f"{_V5}: patch 07"),
    Scenario(
        "R7-mprotect-recheck", "mprotect between the check of the VMA and the new entry", mprotect_fault,
        Config(FIXED), Config(_rfc5("recheck=before")),
        frozenset({"assertion", "broken-structure", "stale-tlb", "wrong-value"}), "R7", f"{_V5}: patches 02, 04, 06"),
    Scenario(
        "R8-late-section-end", "the write section of a merged VMA ends after the VMA was freed", merge_fault,
        Config(FIXED, quirks=_EAGER), Config(FIXED, quirks=(*_EAGER, "vma-adjust-late-end")),
        frozenset({"use-after-free"}), "R8", f"{_V5}: patches 04 and 07"),
    Scenario(
        "R9-alloc-irqs-off", "p4d_alloc() and pud_alloc() with IRQs off", munmap_fault,
        Config(FIXED), Config(_rfc5("tables=posted")), frozenset({"sleep-in-atomic", "leak", "broken-structure"}),
        "R9", f"{_V5}: patch 08"),
    Scenario(
        "R10-collapse", "a pmd that a collapse has emptied taken for one not populated yet", collapse_fault,
        Config(FIXED), Config(_rfc5("pmd=trust")),
        frozenset({"broken-structure", "leak", "use-after-free", "wrong-value", "assertion"}), "R10",
        f"{_V5}: discussion of patch 08"),
    Scenario(
        "R11-mprotect-populate", "mprotect faults pages in inside its own write section", mprotect_locked,
        Config(_rfc5("seq=plain")), Config(_rfc5("seq=plain"), quirks=("mprotect-populate",)),
        frozenset({"lock-order"}), "R11",
        f"{_V5}: patch 06"),
    Scenario(
        "R16-vmacache-wrap", "a VMA cache whose sequence number has wrapped", vmacache_wrap,
        Config("mmap_sem"), Config("mmap_sem", quirks=("vmacache-narrow",)), frozenset({"use-after-free"}), "R16",
        "mm: get rid of vmacache_flush_all() entirely (2018)"),
)


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register R1 to R11 and R16."""
    register(registry, *SCENARIOS)
