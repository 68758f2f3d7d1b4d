# SPDX-License-Identifier: GPL-2.0-only
"""Data races of plain accesses: nothing goes wrong in any schedule, and yet the compiler may make it so.

Only a build with PYKMM_PLAIN=1 sees the buggy variants (docs: Check plain accesses).
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape

if TYPE_CHECKING:
    from pykmm.plugin import Registry

PAGE = 0x1000


def mprotect_fault(page: int = PAGE) -> Tape:
    """One thread reads a page, another changes the permissions of its VMA."""
    t = Tape()
    a = t.setup.mmap(2 * page)
    t.setup.store(a + page, b"A")
    t.thread().touch(a, access="read", expect_errno=0)
    t.thread().mprotect(a, 2 * page, "r", expect_errno=0)
    return t


def mremap_mmap(page: int = PAGE) -> Tape:
    """One thread moves a mapping, another makes a new one."""
    t = Tape()
    a = t.setup.mmap(page)
    t.thread().mremap(a, page, page, "MAYMOVE|FIXED", 0x50000000, expect_errno=0)
    t.thread().mmap(page, "r", expect_errno=0)
    return t


SCENARIOS = (
    Scenario(
        "plain-mprotect-flags", "mprotect changes vm_flags with a plain store, against a speculative fault",
        mprotect_fault, Config("spf"), Config("spf", quirks=("mprotect-plain",)), frozenset({"data-race"}),
        source="RFC v5, Speculative page faults, linux-mm, June 2017: patch 06", plain=True),
    Scenario(
        "plain-mremap-count", "mremap looks at map_count before it has mmap_sem", mremap_mmap,
        Config("mmap_sem"), Config("mmap_sem", quirks=("mremap-early-count",)), frozenset({"data-race"}),
        source="Linux 6.17, mm/mremap.c: check_mremap_params()", plain=True),
)


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register both."""
    register(registry, *SCENARIOS)
