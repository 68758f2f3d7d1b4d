# SPDX-License-Identifier: GPL-2.0-only
"""Pins: lockless walks against whoever changes page tables, and what a pin promises.

R19 is not here: nothing reaches the page tables of an address space without a lock from a CPU that is not in its
``mm_cpumask`` (there are no huge pages of files, and pins of another process take mmap_sem).
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.checking.scenario import Config, Scenario, register
from pykmm.hookspecs import hookimpl
from pykmm_plugins.scenarios._gup import against, pin_collapse, pin_cow, pin_fork, pin_mremap, pin_munmap, pin_pin

if TYPE_CHECKING:
    from pykmm.plugin import Registry

_THREAD = "lockless page-table walk monitoring, linux-mm, October 2019"
_EAGER = ("eager-callbacks",)


def _gup(*options: str, arch: str = "x86", quirks: tuple[str, ...] = ()) -> Config:
    return Config(f"lockless_gup[{','.join(options)}]" if options else "lockless_gup", arch=arch, quirks=quirks)


def _paravirt(*options: str) -> Config:
    return _gup(*options, arch="x86-paravirt", quirks=_EAGER)


_LOST = frozenset({"pinned-page", "wrong-value"})
_GONE = frozenset({"use-after-free"})
_RCU = frozenset({"rcu-tables"})

SCENARIOS = (
    Scenario(
        "R17-walk-counter", "the count of a lockless walk in the store buffer, while it reads a page table", pin_munmap,
        _paravirt("monitor=percpu"), _paravirt("monitor=percpu", "order=none"), _GONE, "R17", _THREAD,
        others=(_paravirt("monitor=atomic"), _paravirt("monitor=percpu", "serialize=ipi")), needs=_RCU),
    Scenario(
        "R17-walk-counter-atomic", "the same with an atomic count, where that is no barrier (ppc64)", pin_munmap,
        _gup("monitor=atomic", arch="ppc64", quirks=_EAGER),
        _gup("monitor=atomic", "order=none", arch="ppc64", quirks=_EAGER), _GONE, "R17", _THREAD,
        others=(_gup("monitor=percpu", arch="ppc64", quirks=_EAGER),), needs=frozenset({"weak-memory"})),
    Scenario(
        "R17-walk-counter-collapse", "the same against a collapse, which then does not wait", pin_collapse,
        _paravirt("monitor=percpu", "recheck=pte"), _paravirt("monitor=percpu", "recheck=pte", "order=none"), _LOST,
        "R17", _THREAD, needs=_RCU),
    Scenario(
        "R18-tables-freed-at-once", "page tables are freed and nobody has waited for lockless walks", pin_munmap,
        _paravirt("serialize=rcu"), _paravirt("serialize=none"), _GONE, "R18", _THREAD,
        others=(_paravirt("serialize=ipi"), _gup("serialize=rcu")), needs=_RCU),
    Scenario(
        "R18-walk-irqs-on", "a lockless walk that keeps IRQs on: no flush waits for it", pin_munmap,
        _gup(quirks=_EAGER), _gup("walk=open", quirks=_EAGER), _GONE, "R18", "mm/gup.c: get_user_pages_fast()"),
    Scenario(
        "R18-collapse", "a collapse that does not wait for who has found the page table before", pin_collapse,
        _paravirt("recheck=pte", "serialize=ipi"), _paravirt("recheck=pte", "serialize=none"), _LOST, "R18", _THREAD,
        needs=_RCU),
    Scenario(
        "R20-detached-table", "a page taken from a page table that is not linked any more: the pmd is not read again",
        pin_collapse, _paravirt("serialize=none"), _paravirt("recheck=pte", "serialize=none"), _LOST, "R20",
        "mm: gup: fix the fast GUP race against THP collapse (2022)", needs=_RCU),
    Scenario(
        "gup-fork-seq", "a lockless pin that fork has not seen: the parent's next write leaves the pinned page",
        pin_fork, _gup(), _gup("fork=none"), frozenset({"wrong-value"}), "",
        "mm: prevent gup_fast from racing with COW during fork (2020)"),
    Scenario("gup-fork", "a pin against fork", pin_fork, Config("mmap_sem")),
    Scenario("gup-munmap", "a pin against munmap of the mapping and its page table", pin_munmap, _gup(),
             others=(_paravirt(), _gup("monitor=atomic"), _gup(arch="ppc64", quirks=_EAGER))),
    Scenario("gup-dontneed", "a pin for reading against MADV_DONTNEED",
             against(lambda s, a, page: s.madvise(a, page, "DONTNEED", expect_errno=0)), _gup()),
    Scenario("gup-dontneed-write", "a pin for writing against MADV_DONTNEED: the write requirement is kept (R21)",
             against(lambda s, a, page: s.madvise(a, page, "DONTNEED", expect_errno=0), write=True), _gup()),
    Scenario("gup-mprotect", "a pin for writing against mprotect",
             against(lambda s, a, page: s.mprotect(a, page, "r", expect_errno=0), write=True), _gup()),
    Scenario("gup-mremap", "a pin against mremap", pin_mremap, _gup()),
    Scenario("gup-cow", "a pin for reading of a page that a child shares and writes (R22)", pin_cow, _gup()),
    Scenario("gup-collapse", "a pin against a collapse", pin_collapse, _gup()),
    Scenario("gup-gup", "two pins of one page", pin_pin, _gup("monitor=percpu")),
)


@hookimpl
def pykmm_register_scenarios(registry: Registry) -> None:
    """Register R17, R18, R20 and the gup family."""
    register(registry, *SCENARIOS)
