# SPDX-License-Identifier: GPL-2.0-only
"""Tests of mm/pgtable: descending and populating page tables."""
from __future__ import annotations

import threading

from arch_under_test import GEOMETRY, LEVELS, PAGE, ROOT, SHIFTS, TABLE, TASK_SIZE, make_arch
from hypothesis import given, settings
from hypothesis import strategies as st

from pykmm_ext.machine.machine_test import Rig, entry
from pykmm_ext.machine.machine_torture import Flag, populate_race

BITS = GEOMETRY["level_bits"]
UPPER = SHIFTS[:0:-1]       # what an entry maps, log2: from the root to what points to a PTE table
NOTHING = {"mms": 0, "vmas": 0, "anon_vmas": 0, "avcs": 0, "files": 0, "frames": 0}

addresses = st.integers(0, TASK_SIZE - 1).map(lambda address: address & -PAGE)


def make(cpus: int = 1, frames: int = 4096) -> Rig:
    return Rig(make_arch(), cpus, frames * PAGE)


def test_empty_space_is_one_zeroed_table() -> None:
    rig = make()
    space = rig.space()
    assert space.nr_ptes == rig.used() == ROOT
    assert space.pgd % (ROOT * PAGE) == 0
    assert rig.read(space.pgd, ROOT * PAGE) == bytes(ROOT * PAGE)
    assert space.find_pmd(PAGE) is None
    assert space.walk(PAGE) == [(space.pgd, 0, 0)]
    assert rig.events()["NR_PGTABLE_ALLOC"] == 1
    space.free()
    assert rig.events()["NR_PGTABLE_FREE"] == 1
    assert rig.destroy() == NOTHING


def test_tables_are_shared_by_what_they_cover() -> None:
    rig = make()
    space = rig.space()
    tables = ROOT + LEVELS - 1
    for address, more in ((0, 0), (PAGE, 0), (TABLE - PAGE, 0), *((1 << shift, n) for n, shift in enumerate(SHIFTS)),
                          ((1 << SHIFTS[-1]) + TABLE, 1)):
        assert space.pte_alloc(address) == 0
        tables += more
        assert space.nr_ptes == tables, hex(address)
        assert len(space.walk(address)) == LEVELS
    assert rig.used() == tables
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING


def test_pte_table_has_its_own_lock() -> None:
    rig = make()
    space = rig.space()
    for address in (0, TABLE, PAGE):
        space.pte_alloc(address)
    assert space.ptl_is_split(0, TABLE)
    assert not space.ptl_is_split(0, PAGE)
    space.free()
    assert rig.destroy() == NOTHING


@given(st.lists(addresses, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_slots_are_where_the_address_says(where: list[int]) -> None:
    rig, arch = make(), make_arch()
    space = rig.space()
    stored = {}
    for address in where:
        raw = entry(arch, "pfn_pte", 0x123 + len(stored), entry(arch, "vm_get_page_prot", 1))
        space.set_entry(address, 0, raw)
        stored[address] = raw
        pmd = space.find_pmd(address)
        assert pmd == space.alloc_pmd(address)
    for address, raw in stored.items():
        walk = space.walk(address)
        assert [index for _, index, _ in walk] == [
            address >> shift & (1 << bits) - 1 for shift, bits in zip(SHIFTS[::-1], BITS[::-1], strict=True)]
        assert walk[-1][2] == raw
        table = space.pgd
        for at, index, value in walk:  # the words lie in the frames
            assert at == table
            assert int.from_bytes(rig.read(at + 8 * index, 8), "little") == value
            table = entry(arch, "table_paddr", value)
        space.set_entry(address, 0, 0)
    tables = ROOT + sum(len({address >> shift for address in where}) for shift in UPPER)
    assert space.nr_ptes == tables
    space.free()
    assert rig.destroy() == NOTHING


def test_out_of_memory_leaves_nothing_behind() -> None:
    rig = make(frames=32 + ROOT)
    space = rig.space()
    frames = []
    while (pfn := rig.alloc()) is not None:
        frames.append(pfn)
    assert space.alloc_pmd(0) is None
    assert space.pte_alloc(0) == -12
    for _ in range(LEVELS - 2):             # enough for the upper levels
        assert space.alloc_pmd(0) is None
        rig.put(frames.pop())
    assert space.alloc_pmd(0) is not None
    assert space.pte_alloc(0) == -12
    assert space.walk(0)[-1][2] == 0
    rig.put(frames.pop())
    assert space.pte_alloc(0) == 0
    for pfn in frames:
        rig.put(pfn)
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING


def test_two_cpus_populate_the_same_tables() -> None:
    """Whoever comes second uses the first one's table and gives its own back."""
    rig = make(cpus=2, frames=16384)
    space = rig.space()
    gate, bad = Flag(), []
    threads = [threading.Thread(target=lambda cpu=cpu: bad.append(populate_race(space, cpu, 3000, 100 * TABLE, gate)))
               for cpu in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bad == [0, 0]
    tables = ROOT + sum(len({i * 100 * TABLE >> shift for i in range(3000)}) for shift in UPPER)
    assert space.nr_ptes == tables
    assert rig.used() == tables
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING
