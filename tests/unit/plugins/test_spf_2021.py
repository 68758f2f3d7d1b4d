# SPDX-License-Identifier: GPL-2.0-only
"""plugins/strategies/_spf_2021: options, which faults are speculative, why the others are not."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from arch_under_test import ARCH, GEOMETRY, PAGE, TABLE, frames, make_arch
from fault_counts import aborted, check_speculative_sums, counted

from pykmm import BusError, SegmentationFault
from pykmm.plugin import get_plugin_manager
from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.memory_test import lock_ptl
from pykmm_plugins.arch._x86 import X86, X86Paravirt
from pykmm_plugins.scenarios import spf_2021 as scenarios
from pykmm_plugins.strategies._spf_2021 import OPTIONS, SPF2021

R, W = 1, 2
SHARED, PRIVATE, FIXED, ANON, GROWSDOWN = 1, 2, 0x10, 0x20, 0x100
BASE = 0x7000_0000_0000
SMALL_TABLES = pytest.mark.skipif(TABLE < 128 * PAGE, reason="its mappings are to lie below one PTE table")
NAMES = [
    "attempts", "speculative", "retried", "odd", "unmapped", "vma_copy", "no_speculate", "access_error", "pud", "pmd",
    "anon_vma", "file_seq", "page_cache", "pte_map_lock_seq1", "pte_map_lock_pmd", "pte_map_lock_ptl",
    "pte_map_lock_seq2", "fault",
]


@pytest.fixture(params=[X86, X86Paravirt] if ARCH == "x86" else [make_arch])
def m(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param(), SPF2021(), cpus=2, memory=frames(64 << 20), fault_around=frames("64K")) as machine:
        yield machine
        check_speculative_sums(machine)
        machine.validate()


def test_names_and_options() -> None:
    assert SPF2021().counter_names == tuple(NAMES)
    assert SPF2021().name == "spf-2021"
    assert SPF2021(ptl="spin", free="now").name == "spf-2021[ptl=spin,free=now]"
    strategies = get_plugin_manager().strategies
    assert isinstance(strategies.make("spf-2021"), SPF2021)
    assert strategies.make("spf-2021[walk=irq]").name == "spf-2021[walk=irq]"


@pytest.mark.parametrize(("options", "message"), [
    ({"lock": "spin"}, "spf-2021 has no option 'lock'; known: munmap, ptl, walk,"),
    ({"ptl": "maybe"}, "spf-2021: ptl is trylock or loop or spin, not 'maybe'"),
])
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPF2021(**options)


@pytest.mark.parametrize("option", [f"{name}={value}" for name, values in OPTIONS.items() for value in values])
def test_every_option_resolves_faults(option: str) -> None:
    name, value = option.split("=")
    with Machine(X86Paravirt(), SPF2021(**{name: value}), cpus=1, memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 16 * PAGE, R | W, PRIVATE | ANON | FIXED)
        for page in range(16):
            mm.store(a + page * PAGE, bytes([page]))
        assert [mm.load(a + page * PAGE, 1)[0] for page in range(16)] == list(range(16))
        mm.munmap(a, 8 * PAGE)
        mm.exit()
        assert m.counters["speculative"] == 15
        check_speculative_sums(m)
        m.validate()


def test_only_the_first_fault_below_a_pmd_takes_mmap_sem(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * TABLE, R | W, PRIVATE | ANON | FIXED)
    assert counted(m, lambda: mm.store(a, b"x")) == aborted("pud")
    assert counted(m, lambda: mm.touch(a, 2 * TABLE, "w")) == {
        "speculative": 2 * TABLE // PAGE - 2, "retried": 1, "pmd": 1}


def test_first_write_needs_an_anon_vma(m: Machine, mm: MmStruct) -> None:
    mm.mmap(BASE, PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(BASE, b"x")
    a = mm.mmap(BASE + 8 * PAGE, 4 * PAGE, R | W, PRIVATE | ANON | FIXED)
    assert counted(m, lambda: mm.load(a, 1)) == {"speculative": 1}  # the zero page needs none
    assert counted(m, lambda: mm.store(a, b"x")) == aborted("anon_vma")
    assert counted(m, lambda: mm.store(a + PAGE, b"x")) == {"speculative": 1}


@SMALL_TABLES
def test_file_faults_come_from_the_page_cache(m: Machine, mm: MmStruct) -> None:
    """A page that is not in the cache is read under mmap_sem; from then on any mapping of it is speculative."""
    f = m.file("f", data=b"f" * (64 * PAGE))
    a = mm.mmap(BASE, 64 * PAGE, R | W, PRIVATE | FIXED, file=f)
    s = mm.mmap(BASE + 64 * PAGE, 64 * PAGE, R, SHARED | FIXED, file=f)
    mm.store(a, b"x")
    assert counted(m, lambda: mm.load(a + 16 * PAGE, 1)) == aborted("page_cache")
    assert counted(m, lambda: mm.load(s + 16 * PAGE, 1)) == {"speculative": 1}
    assert counted(m, lambda: mm.store(a + 16 * PAGE, b"x")) == {"speculative": 1}  # a copy of a mapped page
    assert counted(m, lambda: mm.load(a + 17 * PAGE, 1)) == aborted("page_cache")
    assert counted(m, lambda: mm.store(a + 17 * PAGE, b"x")) == {"speculative": 1}
    assert counted(m, lambda: mm.store(a + 18 * PAGE, b"x")) == aborted("page_cache")
    mm.madvise(s, 64 * PAGE, 3)
    assert counted(m, lambda: mm.store(a + 19 * PAGE, b"x")) == {"speculative": 1}  # was never mapped
    assert m.vmstat["fault_file_cow"] == 3
    assert mm.load(a + 19 * PAGE, 2) == b"xf"
    assert mm.load(s + 19 * PAGE, 2) == b"ff"


@SMALL_TABLES
def test_fault_around(m: Machine, mm: MmStruct) -> None:
    """One speculative fault maps what the cache has of its window of 16 pages, inside the VMA."""
    f = m.file("f", data=b"f" * (64 * PAGE))
    mm.mmap(BASE, PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(BASE, b"x")
    a = mm.mmap(BASE + 20 * PAGE, 40 * PAGE, R, SHARED | FIXED, file=f)
    mm.madvise(a, 40 * PAGE, 3)
    before = m.vmstat["fault_around_pages"]
    assert counted(m, lambda: mm.load(a, 1)) == {"speculative": 1}
    assert m.vmstat["fault_around_pages"] - before == 11        # the window begins before the VMA
    assert counted(m, lambda: mm.touch(a, 40 * PAGE, "r")) == {"speculative": 2}


def test_writes_to_shared_mappings_are_not_speculative(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", size=4 * PAGE)
    s = mm.mmap(BASE, 4 * PAGE, R | W, SHARED | FIXED, file=f)
    mm.load(s, 1)
    mm.madvise(s, 4 * PAGE, 3)
    assert counted(m, lambda: mm.store(s + PAGE, b"y")) == aborted("no_speculate")
    assert counted(m, lambda: mm.load(s + 2 * PAGE, 1)) == {"speculative": 1}


def test_reasons_of_bad_accesses(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"f")
    a = mm.mmap(BASE, 2 * PAGE, R, PRIVATE | FIXED, file=f)
    mm.load(a, 1)
    assert counted(m, lambda: mm.store(a, b"x"), SegmentationFault) == aborted("access_error")
    assert counted(m, lambda: mm.load(a - PAGE, 1), SegmentationFault) == aborted("unmapped")
    assert counted(m, lambda: mm.load(a + 2 * PAGE, 1), SegmentationFault) == aborted("unmapped")
    assert counted(m, lambda: mm.load(a + PAGE, 1), BusError) == aborted("page_cache")


def test_pages_behind_the_end_of_a_truncated_file(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"f" * (4 * PAGE))
    a = mm.mmap(BASE, 4 * PAGE, R, SHARED | FIXED, file=f)
    mm.touch(a, 4 * PAGE, "r")
    f.truncate(PAGE)
    assert counted(m, lambda: mm.load(a + PAGE, 1), BusError) == aborted("page_cache")
    assert mm.load(a, 1) == b"f"


def test_stack_growth_is_not_speculative(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED | GROWSDOWN)
    mm.store(a, b"x")
    assert counted(m, lambda: mm.store(a - PAGE, b"x")) == aborted("unmapped")
    assert mm.vmas[0].start == a - PAGE
    assert counted(m, lambda: mm.store(a + PAGE, b"x")) == {"speculative": 1}


def test_out_of_memory_is_not_speculative() -> None:
    with Machine(make_arch(), SPF2021(), cpus=1, memory=64 * PAGE) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 128 * PAGE, R | W, PRIVATE | ANON | FIXED)
        with pytest.raises((MemoryError, BusError)):
            mm.touch(a, 128 * PAGE, "w")
        assert m.counters["fault"] == 1
        check_speculative_sums(m)


def held(m: Machine, mm: MmStruct, a: int, reason: str) -> None:
    """A store to the page after `a` on another CPU while the PTL is held: given up, done under mmap_sem."""
    lock_ptl(mm, a, True)
    thread = threading.Thread(target=mm.store, args=(a + PAGE, b"y"), kwargs={"cpu": 1})
    try:
        thread.start()
        while m.counters[reason] == 0 and thread.is_alive():
            pass
    finally:
        lock_ptl(mm, a, False)
        thread.join()
    assert m.counters[reason] == 1
    assert mm.load(a + PAGE, 1) == b"y"


def test_held_page_table_lock_is_not_waited_for(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(a, b"x")
    held(m, mm, a, "pte_map_lock_ptl")


@pytest.mark.skipif(bool(GEOMETRY["rcu_table_free"]), reason="a walk leaves IRQs on: the lock is waited for")
def test_held_page_table_lock_is_tried_several_times_at_most() -> None:
    with Machine(make_arch(), SPF2021(ptl="loop"), cpus=2, memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.store(a, b"x")
        held(m, mm, a, "pte_map_lock_ptl")


def test_held_page_table_lock_is_waited_for_where_walks_leave_irqs_on() -> None:
    with Machine(X86Paravirt(), SPF2021(ptl="loop"), cpus=2, memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.store(a, b"x")
        lock_ptl(mm, a, True)
        thread = threading.Thread(target=mm.store, args=(a + PAGE, b"y"), kwargs={"cpu": 1})
        try:
            thread.start()
            while m.counters["attempts"] == 1:
                pass
            assert thread.is_alive()
        finally:
            lock_ptl(mm, a, False)
            thread.join()
        assert m.counters["speculative"] == 1
        assert m.counters["retried"] == 1   # the first store


def test_copies_after_fork(m: Machine, mm: MmStruct) -> None:
    """The pte_spinlock() side: a write to a write-protected page, shared and then not any more."""
    a = mm.mmap(BASE, PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(a, b"xf")
    child = mm.fork()
    assert counted(m, lambda: mm.store(a, b"y")) == {"speculative": 1}
    assert child.load(a, 2) == b"xf"
    assert counted(m, lambda: child.store(a, b"z")) == {"speculative": 1}
    assert (m.vmstat["fault_wp_copy"], m.vmstat["fault_wp_reuse"]) == (1, 1)


def test_unmapped_vmas_and_their_files_are_freed_after_a_grace_period(m: Machine, mm: MmStruct) -> None:
    for i in range(300):
        a = mm.mmap(BASE + 2 * i * PAGE, PAGE, R | W, SHARED | ANON | FIXED)
        mm.store(a, b"x")
    mm.munmap(BASE, 600 * PAGE)
    m.validate()
    assert counted(m, lambda: mm.load(BASE, 1), SegmentationFault) == aborted("unmapped")


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenarios_have_speculative_faults(scenario: Any) -> None:
    """What is to race is there: of a hundred runs on real threads at least one has a speculative fault."""
    for _ in range(100):
        with scenario.fixed.machine(cpus=scenario.cpus) as machine:
            machine.run(scenario.tape())
            if machine.counters["speculative"]:
                return
    pytest.fail("no fault was speculative")
