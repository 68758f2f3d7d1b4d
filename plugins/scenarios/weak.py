# SPDX-License-Identifier: GPL-2.0-only
"""Barriers of the mm and of strategies, where they do something: on an arch with weakly ordered memory.

On x86 a missing smp_wmb() or smp_rmb() changes nothing, and most scenarios run there. Each of these is the smallest
tape that notices when one of those barriers is gone (docs/explanation/mutations says which); nothing is known to be
wrong.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm.tape import Tape
from pykmm_plugins.scenarios import gup, races, speculative
from pykmm_plugins.scenarios._races import PAGE

if TYPE_CHECKING:
    from pykmm.plugin import Registry

ARCH = "ppc64-4k"
_EAGER = ("eager-callbacks",)


def split_file(page: int = PAGE) -> Tape:
    """A page of a file is read while the mapping loses its head: start and offset of the VMA change together."""
    t = Tape()
    t.file("f", data=b"A" * page + b"B" * page + b"C" * page)
    a = t.setup.mmap(3 * page, "r", shared=True, file="f")
    t.setup.madvise(a, 3 * page, "WILLNEED", expect_errno=0)
    t.setup.load(a, 1, expect=b"A")
    t.thread().load(a + 2 * page, 1, expect=b"C", expect_errno=0)
    t.thread().munmap(a, page, expect_errno=0)
    return t


def split_anon(page: int = PAGE) -> Tape:
    """The same of anonymous memory, written: nothing but the fault's own barriers orders what it reads of the VMA."""
    t = Tape()
    a = t.setup.mmap(3 * page)
    t.setup.store(a + page, b"A")
    t.thread().store(a + 2 * page, b"B", expect_errno=0)
    t.thread().munmap(a, page, expect_errno=0)
    t.final.load(a + 2 * page, 1, expect=b"B")
    return t


def cow_read(page: int = PAGE) -> Tape:
    """The first write to a private page of a file copies it, while another thread reads the page."""
    t = Tape()
    t.file("f", data=b"A" * page + b"B" * page)
    a = t.setup.mmap(2 * page, file="f")
    t.setup.store(a + page, b"C")
    x = t.thread()
    x.store(a + 8, b"D", expect_errno=0)
    x.store(a, b"A", expect_errno=0)        # a copy has a step for each word that threads store to
    t.thread().load(a, 1, expect=b"A", expect_errno=0)
    return t


def _weak(name: str, title: str, build: Callable[[int], Tape], strategy: str, **more: object) -> Scenario:
    return Scenario(f"weak-{name}", title, build, Config(strategy, ARCH, **more))  # type: ignore[arg-type]


SCENARIOS = (
    *(_weak(f"{short}-{name}", f"{title} ({strategy})", build, strategy)
      for short, strategy in (("spf", "spf"), ("spf-2021", "spf-2021"))
      for name, title, build in (
          ("split-file-fault", "a fault of a file against munmap of the pages before it", split_file),
          ("split-fault", "a fault against munmap of the pages before it", split_anon),
          ("mprotect-fault", "a fault against mprotect of its VMA", races.mprotect_fault),
          ("munmap-fault", "a fault against munmap", races.munmap_fault),
          ("mremap-dontunmap-fault", "a fault against mremap with MREMAP_DONTUNMAP",
           speculative.mremap_dontunmap_fault))),
    _weak("cow-read", "a page of a file is copied for a write, and read", cow_read, "mmap_sem"),
    _weak("gup-fork", "a pin for writing against fork", gup.pin_fork, "lockless_gup"),
)


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register the family."""
    register(registry, *SCENARIOS)
