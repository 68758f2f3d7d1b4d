# SPDX-License-Identifier: GPL-2.0-only
"""Tests of mm/mmu_gather: pages go after the flush, tables go last, nothing is lost."""
from __future__ import annotations

import pytest
from arch_under_test import INTERRUPTS, PAGE, TABLE, make_arch

from pykmm_ext.machine.machine_test import Rig, Space, entry

BASE = 0x40000000
NOTHING = {"mms": 0, "vmas": 0, "anon_vmas": 0, "avcs": 0, "files": 0, "frames": 0}


def make(pages: int, cpus: int = 1, frames: int = 16384) -> tuple[Rig, Space]:
    rig = Rig(make_arch(), cpus, frames * PAGE)
    space = rig.space(BASE, BASE + pages * PAGE, 3)
    rig.switch(0, space)
    for i in range(pages):
        assert rig.touch(0, BASE + i * PAGE, 1) == 0
    return rig, space


def finish(rig: Rig, space: Space) -> None:
    rig.validate_tlb()
    for cpu in space.cpumask:
        rig.switch(cpu, None)
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING


@pytest.mark.parametrize("pages", [1, 31, 32, 33, 100, 541, 542, 543, 3000])
def test_every_page_is_freed_once(pages: int) -> None:
    rig, space = make(pages)
    tables = space.nr_ptes
    assert rig.used() == pages + tables
    assert space.unmap(0, BASE, BASE + pages * PAGE) == (pages, 0)
    assert rig.used() == tables  # batches included
    rig.validate()
    finish(rig, space)


def test_a_large_unmap_flushes_in_between() -> None:
    mapped = 10100 + PAGE // 8      # MAX_GATHER_BATCH_COUNT, and a batch
    rig, space = make(mapped, frames=mapped + 8000)
    pages, full = space.unmap(0, BASE, BASE + mapped * PAGE)
    assert pages == mapped
    assert full >= 1
    assert rig.used() == space.nr_ptes
    finish(rig, space)


def test_without_memory_for_batches_it_flushes_more_often() -> None:
    rig, space = make(200, frames=1000)
    frames = []
    while (pfn := rig.alloc()) is not None:
        frames.append(pfn)
    pages, full = space.unmap(0, BASE, BASE + 32 * PAGE)
    assert (pages, full) == (32, 1)
    for pfn in frames:
        rig.put(pfn)
    finish(rig, space)


def test_tables_are_unlinked_and_freed() -> None:
    pages = 2 * TABLE // PAGE   # two PTE tables
    rig, space = make(pages)
    tables = space.nr_ptes
    assert space.unmap(0, BASE, BASE + 2 * TABLE, tables=True) == (pages, 0)
    assert space.nr_ptes == tables - 2
    rig.wait()              # where they are freed by RCU
    assert rig.used() == tables - 2
    finish(rig, space)


def test_one_flush_for_all() -> None:
    rig, space = make(500, cpus=2)
    rig.switch(1, space)
    before = rig.events(0), rig.events(1)
    space.unmap(0, BASE, BASE + 500 * PAGE)
    after = rig.events(0), rig.events(1)
    assert after[0]["TLB_FLUSH_LOCAL"] - before[0]["TLB_FLUSH_LOCAL"] == 1
    assert after[0]["TLB_FLUSH_REMOTE"] - before[0]["TLB_FLUSH_REMOTE"] == 1
    assert after[1]["TLB_FLUSH_RECEIVED"] - before[1]["TLB_FLUSH_RECEIVED"] == INTERRUPTS
    finish(rig, space)


def test_nothing_unmapped_is_not_flushed() -> None:
    rig, space = make(1)
    before = rig.events()["TLB_FLUSH_LOCAL"]
    assert space.unmap(0, BASE + (1 << 30), BASE + (1 << 30) + 100 * PAGE) == (0, 0)
    assert rig.events()["TLB_FLUSH_LOCAL"] == before
    finish(rig, space)


def recording(pages: int) -> tuple[Rig, Space, int]:
    rig = Rig(make_arch(), 1, 4096 * PAGE, record=True)
    space = rig.space(BASE, BASE + pages * PAGE, 3)
    rig.switch(0, space)
    for i in range(pages):
        rig.touch(0, BASE + i * PAGE, 1)
    pfn = entry(make_arch(), "pte_pfn", space.walk(BASE)[-1][2])
    space.watch(pfn)
    return rig, space, pfn


def test_pages_are_freed_after_the_flush_and_tables_last() -> None:
    rig, space, pfn = recording(10)
    space.unmap(0, BASE, BASE + 10 * PAGE, tables=True)
    assert space.records == [("range+tables", 1), ("remove_tables", 0)]
    assert rig.refcount(pfn) == 0
    finish(rig, space)


def test_without_tables_only_the_range_is_flushed() -> None:
    rig, space, _ = recording(10)
    space.unmap(0, BASE, BASE + 10 * PAGE)
    assert space.records == [("range", 1)]
    finish(rig, space)


def test_the_end_of_an_address_space_is_one_flush() -> None:
    rig, space, _ = recording(10)
    space.unmap(0, BASE, BASE + 10 * PAGE, tables=True, fullmm=True)
    assert space.records == [("mm", 1), ("remove_tables", 0)]
    finish(rig, space)


def test_shared_pages_survive_in_the_other_mapping() -> None:
    rig, space = make(1)
    pfn = entry(make_arch(), "pte_pfn", space.walk(BASE)[-1][2])
    rig.get(pfn)
    space.unmap(0, BASE, BASE + PAGE)
    assert rig.refcount(pfn) == 1
    rig.put(pfn)
    finish(rig, space)


def test_unmapped_page_faults_again_and_is_zero() -> None:
    rig, space = make(10)
    assert rig.store(0, BASE, b"\xff" * PAGE * 10) == 0
    space.unmap(0, BASE, BASE + 10 * PAGE)
    assert rig.load(0, BASE, 10 * PAGE) == bytes(10 * PAGE)
    finish(rig, space)


def test_forgotten_flush_is_visible() -> None:
    """What the flush is for: without it the Cpu goes on reading a frame that is somebody else's."""
    rig, space = make(1)
    rig.store(0, BASE, b"mine")
    space.unmap(0, BASE, BASE + PAGE, flush=False)
    assert rig.load(0, BASE, 4) == b"mine"
    with pytest.raises(AssertionError, match="not present"):
        rig.validate_tlb()
    space.flush(0, "mm")
    assert rig.load(0, BASE, 4) == bytes(4)
    finish(rig, space)
