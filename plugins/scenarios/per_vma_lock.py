# SPDX-License-Identifier: GPL-2.0-only
"""Races of per-VMA locks (R13 to R15 and their relatives), and both forms of the lock against every writer.

Where a VMA is recycled, it is so on the CPU that freed it: the CPU that unmaps is the one that maps.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm.tape import OpStream, Tape
from pykmm_plugins.scenarios import _races as races
from pykmm_plugins.scenarios import _speculative as speculative
from pykmm_plugins.scenarios._races import PAGE

if TYPE_CHECKING:
    from pykmm.plugin import Registry

RWSEM = "per_vma_lock"
REFCOUNT = "per_vma_lock-refcount"
EAGER = ("eager-callbacks",)
_GONE = frozenset({"use-after-free", "broken-structure", "leak", "assertion", "wrong-value", "crash", "data-race"})
_R13 = "mm: lock newly mapped VMA which can be modified after it becomes visible (6.5)"
_R14 = "mm: lock_vma_under_rcu() must check vma->anon_vma under vma lock (6.5)"
_TYPESAFE = "mm: make vma cache SLAB_TYPESAFE_BY_RCU (6.15)"


def mremap_into_fault(page: int = PAGE) -> Tape:
    """A mapping moves to where another thread writes: the write comes too early or lands in the moved page."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.store(a, b"A")
    t.thread().store(0x50000000, b"B")
    t.thread().mremap(a, 2 * page, 2 * page, "MAYMOVE|FIXED", 0x50000000, expect_errno=0)
    t.final.touch(0x50000000, access="read", expect_errno=0)
    return t


def _anon_vma_lost(page: int) -> tuple[Tape, OpStream]:
    """A write to a mapping that loses its anon_vma: its pages move away. What else that thread does is still to come.

    The neighbour differs in its permissions only, so its anon_vma would serve.
    """
    t = Tape()
    a = t.setup.mmap(2 * page, fixed=0x40000000)
    t.setup.store(a, b"A")
    t.setup.mprotect(a, page, "r")
    t.thread().store(a + page, b"B", expect_errno=0)
    return t, t.thread()


def anon_vma_lost(page: int = PAGE) -> Tape:
    """A mapping is written while it loses its anon_vma, and then its neighbour is unmapped."""
    t, y = _anon_vma_lost(page)
    y.mremap(0x40000000 + page, page, page, "MAYMOVE|DONTUNMAP", expect_errno=0)
    y.munmap(0x40000000, page, expect_errno=0)
    return t


def anon_vma_freed(page: int = PAGE) -> Tape:
    """As `anon_vma_lost`, and the moved pages go too: with the neighbour goes the last user of its anon_vma."""
    t, y = _anon_vma_lost(page)
    b = y.mremap(0x40000000 + page, page, page, "MAYMOVE|DONTUNMAP", expect_errno=0)
    y.munmap(b, page, expect_errno=0)
    y.munmap(0x40000000, page, expect_errno=0)
    return t


def recycle(page: int = PAGE) -> Tape:
    """A mapping goes and another one comes elsewhere, in the same memory, while a fault looks the first one up."""
    t = Tape()
    a = t.setup.mmap(page, fixed=0x40000000)
    t.thread().touch(a, access="read")
    y = t.thread()
    y.munmap(a, page, expect_errno=0)
    y.mmap(page, fixed=0x50000000, expect_errno=0)
    return t


def _other_mm(page: int) -> tuple[Tape, OpStream, OpStream]:
    """A fault in a parent, and one CPU that works for the parent and for its child, which inherits nothing."""
    t = Tape()
    a = t.setup.mmap(page, fixed=0x40000000)
    t.setup.madvise(a, page, "DONTFORK")
    child = t.setup.fork()
    t.thread().touch(a, access="read")
    return t, OpStream(t, child.thread_index, t.setup.mm, 1), child


def recycle_other_mm(page: int = PAGE) -> Tape:
    """As `recycle`, but the second mapping is another process's, at the same address, and goes at once."""
    t, parent, child = _other_mm(page)
    parent.munmap(0x40000000, page, expect_errno=0)
    child.mmap(page, fixed=0x40000000, expect_errno=0)
    child.munmap(0x40000000, page, expect_errno=0)
    return t


def recycle_exit(page: int = PAGE) -> Tape:
    """As `recycle_other_mm`, but the other process ends."""
    t, parent, child = _other_mm(page)
    parent.munmap(0x40000000, page, expect_errno=0)
    child.mmap(page, fixed=0x40000000, expect_errno=0)
    child.exit(expect_errno=0)
    return t


def unlock_order(page: int = PAGE) -> Tape:
    """Permissions go where no page is yet: a read that comes later must not find the old ones."""
    t = Tape()
    a = t.setup.mmap(page)
    t.thread().load(a, 1)
    t.thread().mprotect(a, page, 0, expect_errno=0)
    t.final.load(a, 1, expect_errno="EFAULT")
    return t


def stack_fault(page: int = PAGE) -> Tape:
    """One thread grows a stack, another writes to it: both writes are there in the end."""
    t = Tape()
    a = t.setup.mmap(2 * page, flags="GROWSDOWN", fixed=0x40000000)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().store(a - page, b"C", expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    t.final.load(a - page, 1, expect=b"C")
    t.final.load(a + page, 1, expect=b"A")
    return t


def stack_munmap(page: int = PAGE) -> Tape:
    """A stack grows while it is unmapped: by then, or not at all."""
    t = Tape()
    a = t.setup.mmap(2 * page, flags="GROWSDOWN", fixed=0x40000000)
    t.setup.store(a + page, b"A")
    t.thread().store(a - page, b"C")
    t.thread().munmap(a, 2 * page, expect_errno=0)
    return t


def first_write(page: int = PAGE) -> Tape:
    """Two first writes of a mapping that has no anon_vma yet, against a change of its permissions."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().mprotect(a + page, page, "r", expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    t.final.store(a + page, b"C", expect_errno="EFAULT")
    return t


def file_fault(page: int = PAGE) -> Tape:
    """A private copy of a page of a file is made while the mapping goes."""
    t = Tape()
    t.file("f", size=2 * page)
    a = t.setup.mmap(2 * page, file="f")
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B")
    t.thread().munmap(a, 2 * page, expect_errno=0)
    return t


def mbind_fault(page: int = PAGE) -> Tape:
    """A policy splits a mapping under a fault."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.store(a + page, b"A")
    t.thread().store(a, b"B", expect_errno=0)
    t.thread().mbind(a, page, "BIND", expect_errno=0)
    t.final.load(a, 1, expect=b"B")
    return t


def recycle_uncounted(page: int = PAGE) -> Tape:
    """As `recycle`, but the first mapping is one that a fault holds without being counted in it."""
    t = Tape()
    a = t.setup.mmap(2 * page, fixed=0x40000000)
    t.setup.touch(a + page, access="read")
    t.thread().touch(a, access="read")
    y = t.thread()
    y.munmap(a, 2 * page, expect_errno=0)
    y.mmap(2 * page, fixed=0x50000000, expect_errno=0)
    return t


def recycle_exit_uncounted(page: int = PAGE) -> Tape:
    """As `recycle_exit`, and the child's mapping has been held so as well when the child ends."""
    t = Tape()
    a = t.setup.mmap(2 * page, fixed=0x40000000)
    t.setup.madvise(a, 2 * page, "DONTFORK")
    t.setup.touch(a + page, access="read")
    child = t.setup.fork()
    t.thread().touch(a, access="read")
    OpStream(t, child.thread_index, t.setup.mm, 1).munmap(a, 2 * page, expect_errno=0)
    child.mmap(2 * page, fixed=0x40000000, expect_errno=0)
    child.touch(0x40000000, access="read", expect_errno=0)
    child.exit(expect_errno=0)
    return t


def _race(name: str, title: str, build: Callable[..., Tape], wrong: str, expected: frozenset[str], race: str,
          source: str, *, strategy: str = RWSEM, config: Config | None = None,
          needs: frozenset[str] = frozenset()) -> Scenario:
    fixed = replace(config or Config(), strategy=strategy)
    return Scenario(name, title, build, fixed, replace(fixed, strategy=f"{strategy}[{wrong}]"), expected, race, source,
                    needs=needs)


RACES = (
    _race("R13-new-vma-unlocked", "a new VMA is visible while mremap still moves pages to it", mremap_into_fault,
          "new_vma=unlocked", _GONE, "R13", _R13),
    _race("R13-new-vma-unlocked-refcount", "the same with the reference count", mremap_into_fault, "new_vma=unlocked",
          _GONE, "R13", _R13,
          strategy=REFCOUNT),
    _race("R14-anon-vma-early", "anon_vma looked at before the VMA is locked: one is made without mmap_sem",
          anon_vma_lost, "anon_vma=early", _GONE, "R14", _R14, config=Config(quirks=EAGER)),
    _race("R14-anon-vma-early-refcount", "the same with the reference count", anon_vma_freed, "anon_vma=early",
          _GONE, "R14", _R14,
          strategy=REFCOUNT, config=Config(quirks=EAGER)),
    _race("R15-detached-late", "the bounds of a VMA that has been unmapped and recycled", recycle, "detached=late",
          _GONE, "R15", _TYPESAFE, strategy=REFCOUNT),
    _race("R15-detached-ignored", "a fault in a VMA that has been unmapped", races.munmap_fault, "detached=ignored",
          _GONE, "R15", "mm: introduce vma detached flag (6.4)",
          config=Config(quirks=EAGER)),
    _race("per-vma-recycled-mm", "a VMA that has been recycled into another address space", recycle_other_mm,
          "vm_mm=ignored", _GONE | {"deadlock"}, "", _TYPESAFE, strategy=REFCOUNT),
    _race("per-vma-recycled-wake", "waking the writer of an address space that has ended", recycle_exit, "wake=plain",
          _GONE, "", "mm: fix a UAF when vma->mm is freed after vma->vm_refcnt got dropped (6.16)", strategy=REFCOUNT),
    _race("per-vma-bulk-unlock", "the end of all write locks overtakes what was written under them", unlock_order,
          "bulk_unlock=relaxed", _GONE, "", "mm: fix memory ordering for mm_lock_seq and vm_lock_seq (6.5)",
          config=Config(arch="ppc64-4k"), needs=frozenset({"weak-memory"})),
    *(Scenario(f"per-vma{suffix}-bias-unchecked", "a fault that goes in uncounted, as a writer ends that way",
               races.munmap_fault, Config(f"{strategy}[readers=biased]", quirks=EAGER),
               Config(f"{strategy}[readers=unchecked]", quirks=EAGER), _GONE)
      for suffix, strategy in (("", RWSEM), ("-refcount", REFCOUNT))),
    Scenario("per-vma-fork-unlocked", "fork without locking the parent's VMAs: a lost write", speculative.fork_cow,
             Config(RWSEM), Config(RWSEM, quirks=("fork-no-section",)),
             frozenset({"wrong-value", "assertion", "stale-tlb"}), "",
             "fork: lock VMAs of the parent process when forking (6.5)"),
)

#: What every form has to stand, and one line each.
FAMILIES: tuple[tuple[str, str, Callable[..., Tape]], ...] = (
    ("fault-fault", "two faults on one page", speculative.fault_fault),
    ("munmap-fault", "a fault against munmap", races.munmap_fault),
    ("munmap-begin-fault", "a fault against munmap of the first pages of its VMA", speculative.munmap_begin),
    ("munmap-end-fault", "a fault against munmap of the last pages of its VMA", speculative.munmap_end),
    ("munmap-mmap-fault", "a fault against munmap and a new mapping in its place", speculative.munmap_mmap_fault),
    *speculative.UNMAPPING,
    ("mprotect-fault", "a fault against mprotect of its VMA", races.mprotect_fault),
    ("mprotect-split-fault", "a fault against mprotect of the pages before it", speculative.mprotect_split),
    ("merge-fault", "a fault against a change that merges its VMA away", races.merge_fault),
    ("mbind-fault", "a fault against a policy that splits its VMA", mbind_fault),
    ("first-write", "a fault that needs an anon_vma against a split", first_write),
    ("dontneed-fault", "a fault against MADV_DONTNEED", speculative.dontneed_fault),
    ("fork-fault", "a fault against fork", speculative.fork_fault),
    ("fork-cow", "a stale translation, fork, and a copy: a lost write", speculative.fork_cow),
    ("mremap-fault", "a fault against mremap", speculative.mremap_fault),
    ("mremap-into-fault", "a fault where mremap moves pages to", mremap_into_fault),
    ("mremap-dontunmap-fault", "a fault against mremap with MREMAP_DONTUNMAP", speculative.mremap_dontunmap_fault),
    ("truncate-fault", "a fault against truncation of its file", speculative.truncate_fault),
    ("file-fault", "a copy of a file's page against munmap", file_fault),
    ("collapse-fault", "a fault against MADV_COLLAPSE", races.collapse_fault),
    ("stack-fault", "a fault against growing its stack", stack_fault),
    ("stack-munmap", "growing a stack against munmap", stack_munmap),
    ("rotation", "a fault against a rotation of the tree", races.rotation),
    ("recycle", "a fault against a VMA's memory getting another VMA's", recycle),
)

#: The same where memory is weak, as far as the search ends soon.
WEAK = tuple(family for family in FAMILIES if family[0] in (
    "munmap-fault", "mprotect-fault", "merge-fault", "fork-cow", "stack-munmap", "mremap-dontunmap-fault"))

#: The same with faults that are not counted: in the first mapping of these tapes the setup has been at fault.
UNCOUNTED = (
    *(family for family in FAMILIES if family[0] in (
        "munmap-fault", "munmap-mmap-fault", "mprotect-fault", "mprotect-split-fault", "merge-fault", "mbind-fault",
        "fork-fault", "fork-cow", "mremap-fault", "mremap-dontunmap-fault", "file-fault", "collapse-fault",
        "stack-fault", "stack-munmap")),
    ("recycle", "a fault against a VMA's memory getting another VMA's", recycle_uncounted),
    ("recycle-exit", "a fault against a VMA's memory getting the VMA of a process that ends", recycle_exit_uncounted),
)


def _families() -> list[Scenario]:
    scenarios = []
    for suffix, strategy in (("", RWSEM), ("-refcount", REFCOUNT)):
        for name, title, build in FAMILIES:
            scenarios.append(Scenario(f"per-vma{suffix}-{name}", title, build, Config(strategy, quirks=EAGER)))
        scenarios.append(Scenario(f"per-vma{suffix}-{speculative.ELSEWHERE[0]}", *speculative.ELSEWHERE[1:],
                                  Config(strategy)))
        scenarios.append(Scenario(
            f"per-vma{suffix}-paravirt-munmap-fault", "a fault against munmap where page tables are freed by RCU",
            races.munmap_fault, Config(strategy, arch="x86-paravirt", quirks=EAGER)))
        for name, title, build in UNCOUNTED:
            scenarios.append(Scenario(f"per-vma{suffix}-uncounted-{name}", f"{title}, uncounted", build,
                                      Config(f"{strategy}[readers=biased]", quirks=EAGER)))
        for name in ("munmap-fault", "mprotect-fault"):
            title, build = next(family[1:] for family in FAMILIES if family[0] == name)
            scenarios.append(Scenario(f"per-vma{suffix}-ppc64-uncounted-{name}", f"{title}, uncounted, weak memory",
                                      build, Config(f"{strategy}[readers=biased]", arch="ppc64-4k", quirks=EAGER)))
        for name, title, build in WEAK:
            scenarios.append(Scenario(f"per-vma{suffix}-ppc64-{name}", f"{title}, with weak memory", build,
                                      Config(strategy, arch="ppc64-4k", quirks=EAGER)))
    return scenarios


SCENARIOS = (*RACES, *_families())


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register R13 to R15, their relatives and the families."""
    register(registry, *SCENARIOS)
