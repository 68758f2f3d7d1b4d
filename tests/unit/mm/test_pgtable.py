# SPDX-License-Identifier: GPL-2.0-only
"""Tests of mm/pgtable: descending and populating page tables."""
from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from pykmm_ext.machine.machine_test import Rig
from pykmm_ext.machine.machine_torture import Flag, populate_race
from pykmm_plugins.arch._x86 import make_arch

PAGE = 4096
PMD = 1 << 21
PUD = 1 << 30
PGD = 1 << 39
NOTHING = {"mms": 0, "vmas": 0, "anon_vmas": 0, "avcs": 0, "files": 0, "frames": 0}

addresses = st.integers(0, 0x7ffffffff000 - 1).map(lambda address: address & -PAGE)


def make(cpus: int = 1, frames: int = 4096) -> Rig:
    return Rig(make_arch(), cpus, frames * PAGE)


def test_empty_space_is_one_zeroed_table() -> None:
    rig = make()
    space = rig.space()
    assert space.nr_ptes == 1
    assert rig.used() == 1
    assert rig.read(space.pgd, PAGE) == bytes(PAGE)
    assert space.find_pmd(0x1000) is None
    assert space.walk(0x1000) == [(space.pgd, 0, 0)]
    assert rig.events()["NR_PGTABLE_ALLOC"] == 1
    space.free()
    assert rig.events()["NR_PGTABLE_FREE"] == 1
    assert rig.destroy() == NOTHING


def test_tables_are_shared_by_what_they_cover() -> None:
    rig = make()
    space = rig.space()
    for address, tables in ((0, 4), (PAGE, 4), (PMD - PAGE, 4), (PMD, 5), (PUD, 7), (PGD, 10), (PGD + PMD, 11)):
        assert space.pte_alloc(address) == 0
        assert space.nr_ptes == tables, hex(address)
        assert len(space.walk(address)) == 4
    assert rig.used() == 11
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING


def test_pte_table_has_its_own_lock() -> None:
    rig = make()
    space = rig.space()
    for address in (0, PMD, PAGE):
        space.pte_alloc(address)
    assert space.ptl_is_split(0, PMD)
    assert not space.ptl_is_split(0, PAGE)
    space.free()
    assert rig.destroy() == NOTHING


@given(st.lists(addresses, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_slots_are_where_the_address_says(where: list[int]) -> None:
    rig = make()
    space = rig.space()
    stored = {}
    for address in where:
        raw = 0x8000000000000025 | (0x123 + len(stored)) << 12
        space.set_entry(address, 0, raw)
        stored[address] = raw
        pmd = space.find_pmd(address)
        assert pmd == space.alloc_pmd(address)
    for address, raw in stored.items():
        walk = space.walk(address)
        assert [index for _, index, _ in walk] == [address >> shift & 511 for shift in (39, 30, 21, 12)]
        assert walk[-1][2] == raw
        table = space.pgd
        for at, index, value in walk:  # the words lie in the frames
            assert at == table
            assert int.from_bytes(rig.read(at + 8 * index, 8), "little") == value
            table = value & 0x000ffffffffff000
        space.set_entry(address, 0, 0)
    tables = 1 + sum(len({address >> shift for address in where}) for shift in (39, 30, 21))
    assert space.nr_ptes == tables
    space.free()
    assert rig.destroy() == NOTHING


def test_out_of_memory_leaves_nothing_behind() -> None:
    rig = make(frames=16)
    space = rig.space()
    frames = []
    while (pfn := rig.alloc()) is not None:
        frames.append(pfn)
    assert space.alloc_pmd(0) is None
    assert space.pte_alloc(0) == -12
    rig.put(frames.pop())
    rig.put(frames.pop())
    assert space.alloc_pmd(0) is not None  # two tables: enough for the upper levels
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
    threads = [threading.Thread(target=lambda cpu=cpu: bad.append(populate_race(space, cpu, 3000, 100 * PMD, gate)))
               for cpu in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bad == [0, 0]
    tables = 1 + sum(len({i * 100 * PMD >> shift for i in range(3000)}) for shift in (39, 30, 21))
    assert space.nr_ptes == tables
    assert rig.used() == tables
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING
