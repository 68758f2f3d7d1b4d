# SPDX-License-Identifier: GPL-2.0-only
"""Speculative faults against every writer: nothing is known to be wrong with the corrected strategy here.

The same tapes are of interest under the series as posted (``others``), and where one point of it is known to be wrong,
as the buggy variant.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape
from pykmm_plugins.scenarios._races import collapse_fault, mprotect_fault, munmap_fault
from pykmm_plugins.scenarios._speculative import (
    ELSEWHERE,
    UNMAPPING,
    against,
    dontneed_dontneed,
    dontneed_dontneed_fault,
    dontneed_fault,
    fault_fault,
    fork_cow,
    fork_fault,
    mprotect_split,
    mremap_dontunmap_fault,
    mremap_fault,
    munmap_begin,
    munmap_end,
    munmap_mmap_fault,
    munmap_stack,
    truncate_fault,
)

if TYPE_CHECKING:
    from pykmm.plugin import Registry

#: The series with everything corrected.
FIXED = "spf-rfc5[fixes=all]"
POSTED = Config("spf-rfc5")
SPF = Config("spf")
#: munmap() that goes on as a reader, as Linux since 4.20.
DOWNGRADE = (Config("spf[munmap=downgrade]"), Config("mmap_sem[munmap=downgrade]"))


def _family(name: str, title: str, build: Callable[[int], Tape], fixed: Config = SPF, **more: object) -> Scenario:
    return Scenario(name, title, build, fixed, others=(POSTED, Config("mmap_sem")), **more)  # type: ignore[arg-type]


SCENARIOS = (
    _family("spf-fault-fault", "two faults on one page", fault_fault),
    Scenario("spf-munmap-fault", "a fault against munmap", munmap_fault, SPF,
             others=(POSTED, Config("mmap_sem"), *DOWNGRADE)),
    _family("spf-munmap-faults", "two faults against munmap", against(lambda y, a, page: y.munmap(a, 3 * page), 2)),
    _family("spf-munmap-begin-fault", "a fault against munmap of the first pages of its VMA", munmap_begin),
    _family("spf-munmap-end-fault", "a fault against munmap of the last pages of its VMA", munmap_end),
    _family("spf-munmap-mmap-fault", "a fault against munmap and a new mapping in its place", munmap_mmap_fault),
    _family("spf-mprotect-fault", "a fault against mprotect of its VMA", mprotect_fault),
    _family("spf-mprotect-faults", "two faults against mprotect",
            against(lambda y, a, page: y.mprotect(a, 3 * page, "r"), 2)),
    _family("spf-mprotect-split-fault", "a fault against mprotect of the pages before it", mprotect_split),
    _family("spf-dontneed-fault", "a fault against MADV_DONTNEED", dontneed_fault),
    _family("spf-dontneed-dontneed", "two zappers of one VMA", dontneed_dontneed,
            buggy=Config("spf-rfc5[fixes=all,seq=plain]"),
            expected=frozenset({"broken-structure", "data-race", "lock-order"})),
    _family("spf-dontneed-dontneed-fault", "a fault against two zappers of its VMA", dontneed_dontneed_fault,
            # simplified: with store buffers there are too many schedules; those are sampled (explorers random, pct).
            Config("spf", memory_model="sc", preemptions=2)),
    _family("spf-fork-fault", "a fault against fork", fork_fault),
    _family("spf-fork-cow", "a stale translation, fork, and a copy: a lost write", fork_cow,
            buggy=Config(FIXED, quirks=("fork-no-section",)),
            expected=frozenset({"wrong-value", "assertion", "stale-tlb"})),
    _family("spf-mremap-fault", "a fault against mremap", mremap_fault),
    _family("spf-mremap-dontunmap-fault", "a fault against mremap with MREMAP_DONTUNMAP", mremap_dontunmap_fault),
    _family("spf-truncate-fault", "a fault against truncation of its file", truncate_fault),
    _family("spf-collapse-fault", "a fault against MADV_COLLAPSE", collapse_fault),
    Scenario("spf-paravirt-munmap-fault", "a fault against munmap where page tables are freed by RCU", munmap_fault,
             Config("spf", arch="x86-paravirt", quirks=("eager-callbacks",)),
             others=(Config("spf-rfc5", arch="x86-paravirt", quirks=("eager-callbacks",)),)),
    Scenario("munmap-stack-grow-read", "a stack that grows under mmap_sem R against a munmap below it that holds R",
             munmap_stack, Config("mmap_sem[munmap=downgrade]"),
             Config("mmap_sem[munmap=downgrade]", quirks=("stack-grow-read",)),
             frozenset({"use-after-free", "broken-structure", "leak"}), "",
             "mm/mmap.c: close race between munmap() and expand_upwards()/downwards() (5.8)"),
    *(Scenario(f"spf-{name}", title, build, SPF, others=(POSTED, Config("mmap_sem"), *DOWNGRADE))
      for name, title, build in (*UNMAPPING, ELSEWHERE)),
)


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register the families."""
    register(registry, *SCENARIOS)
