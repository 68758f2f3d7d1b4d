# SPDX-License-Identifier: GPL-2.0-only
"""plugins/strategies/_spf: which faults are speculative, why the others are not; every fault is counted once."""
from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from arch_under_test import PAGE, TABLE, frames, make_arch
from fault_counts import aborted, check_speculative_sums, counted

from pykmm import BusError, SegmentationFault
from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.memory_test import lock_ptl, section
from pykmm_plugins.strategies import spf
from pykmm_plugins.strategies._spf import SPF

R, W = 1, 2
SHARED, PRIVATE, FIXED, ANON, GROWSDOWN = 1, 2, 0x10, 0x20, 0x100
BASE = 0x7000_0000_0000
NAMES = [
    "attempts", "speculative", "retried", "vma_not_found", "vma_changed", "vma_seq_busy", "bounds", "access",
    "no_anon_vma", "unsupported", "no_page_table", "ptl_contended", "pte_changed_vma", "fault_error",
]


@pytest.fixture
def m() -> Iterator[Machine]:
    with Machine(make_arch(), SPF(), cpus=2, memory=frames(64 << 20)) as machine:
        yield machine
        check_speculative_sums(machine)
        machine.validate()


def test_names() -> None:
    assert SPF().counter_names == tuple(NAMES)


def test_registration() -> None:
    class Registry(dict[str, Any]):
        def add(self, name: str, factory: Any, description: str, options: dict[str, tuple[str, ...]]) -> None:
            assert options == {"munmap": ("write", "downgrade")}
            self[name] = factory

    registry = Registry()
    spf.pykmm_register_strategies(registry)
    assert isinstance(registry["spf"](), SPF)
    assert registry["spf"]().name == "spf"
    assert registry["spf"](munmap="downgrade").name == "spf[munmap=downgrade]"


def test_only_the_first_fault_below_a_pmd_takes_mmap_sem(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * TABLE, R | W, PRIVATE | ANON | FIXED)
    assert counted(m, lambda: mm.store(a, b"x")) == aborted("no_page_table")
    assert counted(m, lambda: mm.touch(a, 2 * TABLE, "w")) == {
        "speculative": 2 * TABLE // PAGE - 2, "retried": 1, "no_page_table": 1}


def test_first_write_needs_an_anon_vma(m: Machine, mm: MmStruct) -> None:
    mm.mmap(BASE, PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(BASE, b"x")
    a = mm.mmap(BASE + 8 * PAGE, 4 * PAGE, R | W, PRIVATE | ANON | FIXED)
    assert counted(m, lambda: mm.load(a, 1)) == {"speculative": 1}  # the zero page needs none
    assert counted(m, lambda: mm.store(a, b"x")) == aborted("no_anon_vma")
    assert counted(m, lambda: mm.store(a + PAGE, b"x")) == {"speculative": 1}


def test_cow_and_files_are_speculative(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"f" * (4 * PAGE))
    a = mm.mmap(BASE, 4 * PAGE, R | W, PRIVATE | FIXED, file=f)
    s = mm.mmap(BASE + 8 * PAGE, 4 * PAGE, R | W, SHARED | FIXED, file=f)
    mm.store(a, b"x")
    assert counted(m, lambda: mm.load(a + PAGE, 1)) == {"speculative": 1}
    assert counted(m, lambda: mm.store(a + PAGE, b"x")) == {"speculative": 1}
    assert counted(m, lambda: mm.store(a + 2 * PAGE, b"x")) == {"speculative": 1}
    assert counted(m, lambda: mm.store(s, b"y")) == {"speculative": 1}
    child = mm.fork()
    assert counted(m, lambda: mm.store(a, b"z")) == {"speculative": 1}
    assert child.load(a, 2) == b"xf"
    assert mm.load(a, 2) == b"zf"


def test_reasons_of_bad_accesses(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"f")
    a = mm.mmap(BASE, 2 * PAGE, R, PRIVATE | FIXED, file=f)
    mm.load(a, 1)
    assert counted(m, lambda: mm.store(a, b"x"), SegmentationFault) == aborted("access")
    assert counted(m, lambda: mm.load(a - PAGE, 1), SegmentationFault) == aborted("bounds")
    assert counted(m, lambda: mm.load(a + 2 * PAGE, 1), SegmentationFault) == aborted("vma_not_found")
    assert counted(m, lambda: mm.load(a + PAGE, 1), BusError) == aborted("fault_error")


def test_stack_growth_is_not_speculative(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED | GROWSDOWN)
    mm.store(a, b"x")
    assert counted(m, lambda: mm.store(a - PAGE, b"x")) == aborted("unsupported")
    assert mm.vmas[0].start == a - PAGE


def test_out_of_memory_is_not_speculative() -> None:
    with Machine(make_arch(), SPF(), cpus=1, memory=64 * PAGE) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 128 * PAGE, R | W, PRIVATE | ANON | FIXED)
        with pytest.raises((MemoryError, BusError)):
            mm.touch(a, 128 * PAGE, "w")
        assert m.counters["fault_error"] == 1
        check_speculative_sums(m)


@pytest.mark.parametrize("writers", [1, 2, 3])
def test_any_number_of_writers_keeps_faults_out(m: Machine, mm: MmStruct, writers: int) -> None:
    """Two zappers at once must not look like none (they would to a plain sequence count)."""
    a = mm.mmap(BASE, 8 * PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(a, b"x")
    before = section(mm, a)
    section(mm, a, begins=writers)
    for i in range(writers):
        untouched = a + (i + 1) * PAGE
        assert counted(m, functools.partial(mm.store, untouched, b"x")) == aborted("vma_seq_busy")
        section(mm, a, ends=1)
    assert section(mm, a) != before
    assert counted(m, lambda: mm.store(a + 7 * PAGE, b"x")) == {"speculative": 1}


def test_sequence_never_repeats_within_its_generations(mm: MmStruct) -> None:
    mm.mmap(BASE, PAGE, R | W, PRIVATE | ANON | FIXED)
    seen = {section(mm, BASE)}
    for _ in range(1000):
        section(mm, BASE, begins=2, ends=1)
        seen.add(section(mm, BASE, begins=1, ends=2))
    assert len(seen) == 1001


def test_held_page_table_lock_is_not_waited_for(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(a, b"x")
    lock_ptl(mm, a, True)
    thread = threading.Thread(target=mm.store, args=(a + PAGE, b"y"), kwargs={"cpu": 1})
    try:
        thread.start()
        while m.counters["ptl_contended"] == 0 and thread.is_alive():
            pass
    finally:
        lock_ptl(mm, a, False)
        thread.join()
    assert m.counters["ptl_contended"] == 1
    assert mm.load(a + PAGE, 1) == b"y"


def test_present_pages_are_checked_under_the_lock_too(m: Machine, mm: MmStruct) -> None:
    """The pte_spinlock() side: a write to a write-protected page."""
    a = mm.mmap(BASE, PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(a, b"x")
    mm.fork().exit()
    assert counted(m, lambda: mm.store(a, b"y")) == {"speculative": 1}
    assert m.vmstat["fault_wp_reuse"] == 1


def test_unmapped_vmas_are_freed_after_their_readers(m: Machine, mm: MmStruct) -> None:
    for i in range(300):
        a = mm.mmap(BASE + 2 * i * PAGE, PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.store(a, b"x")
    mm.munmap(BASE, 600 * PAGE)
    m.validate()
    assert counted(m, lambda: mm.load(BASE, 1), SegmentationFault) == aborted("vma_not_found")
