# SPDX-License-Identifier: GPL-2.0-only
"""mm/memory.c: a VMA that changes between a speculative fault's last check and its end; a zap during a zap."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from arch_under_test import PAGE, TABLE, frames, is_, make_arch

from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.memory_race_test import Interposed, InterposedArch, fault_while, zap_while_zapping
from pykmm_ext.mm.memory_test import validate_contents
from pykmm_plugins.strategies._mmap_sem import MmapSem
from pykmm_plugins.strategies._spf import SPF
from pykmm_plugins.strategies._spf_2021 import SPF2021

R, W = 1, 2
PRIVATE, FIXED, ANON = 2, 0x10, 0x20
DONTNEED = 4
BASE = 0x7000_0000_0000
FIELDS = ["vm_flags", "vm_page_prot", "bounds", "vm_pgoff", "anon_vma"]


@pytest.fixture
def m() -> Iterator[Machine]:
    with Machine(make_arch(), Interposed(SPF()), cpus=2, memory=frames(64 << 20), fault_around=16 * PAGE) as machine:
        yield machine
        machine.validate()
        assert validate_contents(machine) is None


@pytest.fixture
def mm(m: Machine) -> MmStruct:
    return m.mm()


def anonymous(mm: MmStruct, size: int = 64 * PAGE, at: int = BASE, prot: int = R | W) -> int:
    return int(mm.mmap(at, size, prot, PRIVATE | ANON | FIXED))


def speculative(m: Machine, mm: MmStruct, address: int, write: bool, change: str, start: int = 0,
                size: int = 0) -> dict[str, int]:
    """fault_while(), which must have met the writer and still be resolved without mmap_sem."""
    before = m.counters["speculative"]
    done = fault_while(mm, address, write, change, start, size)
    assert done["fired"] == 1
    assert done["result"] == 0
    assert m.counters["speculative"] == before + 1
    return done


def writable(pte: int) -> bool:
    return is_("present", pte) and is_("write", pte) and is_("dirty", pte) and not is_("protnone", pte)


def readable(pte: int) -> bool:
    return is_("present", pte) and not is_("write", pte) and not is_("protnone", pte)


@pytest.mark.parametrize("change", FIELDS)
def test_anonymous_write_uses_what_it_captured(m: Machine, mm: MmStruct, change: str) -> None:
    a = anonymous(mm)
    mm.store(a, b"x")  # a page table and an anon_vma
    done = speculative(m, mm, a + 5 * PAGE, True, change)
    assert writable(done["pte"])
    assert done["index"] == a // PAGE + 5
    assert done["mapping_captured"] and done["mapping_of_vma"]


@pytest.mark.parametrize("change", FIELDS)
def test_zero_page_gets_the_captured_permissions(m: Machine, mm: MmStruct, change: str) -> None:
    a = anonymous(mm)
    mm.store(a, b"x")
    done = speculative(m, mm, a + 5 * PAGE, False, change)
    assert readable(done["pte"])


@pytest.mark.parametrize("change", FIELDS)
def test_write_to_the_zero_page(m: Machine, mm: MmStruct, change: str) -> None:
    a = anonymous(mm)
    mm.store(a, b"x")
    mm.load(a + 5 * PAGE, 1)
    done = speculative(m, mm, a + 5 * PAGE, True, change)  # do_wp_page(), the lock taken by pte_spinlock()
    assert writable(done["pte"])
    assert done["index"] == a // PAGE + 5
    assert done["mapping_captured"] and done["mapping_of_vma"]


@pytest.mark.parametrize("change", FIELDS)
def test_reuse_of_a_page(m: Machine, mm: MmStruct, change: str) -> None:
    a = anonymous(mm)
    mm.store(a + 5 * PAGE, b"x")
    mm.fork().exit()  # which leaves the entry read-only
    done = speculative(m, mm, a + 5 * PAGE, True, change)
    assert m.vmstat["fault_wp_reuse"] == 1
    assert writable(done["pte"])
    assert mm.load(a + 5 * PAGE, 1) == b"x"


@pytest.mark.parametrize("change", FIELDS)
def test_copy_after_fork(m: Machine, mm: MmStruct, change: str) -> None:
    a = anonymous(mm)
    mm.store(a + 5 * PAGE, b"x")
    child = mm.fork()
    done = speculative(m, mm, a + 5 * PAGE, True, change)
    assert m.vmstat["fault_wp_copy"] == 1
    assert writable(done["pte"])
    assert done["index"] == a // PAGE + 5
    assert done["mapping_captured"] and done["mapping_of_vma"]
    child.exit()


@pytest.mark.parametrize("change", FIELDS)
def test_private_copy_of_a_file_page(m: Machine, mm: MmStruct, change: str) -> None:
    a = mm.mmap(BASE, 64 * PAGE, R | W, PRIVATE | FIXED, file=m.file("f", size=64 * PAGE), offset=0)
    mm.store(a, b"x")
    mm.store(a + 5 * PAGE, b"x")  # into the page cache
    mm.madvise(a + 5 * PAGE, PAGE, DONTNEED)
    done = speculative(m, mm, a + 5 * PAGE, True, change)
    assert writable(done["pte"])
    assert done["index"] == 5
    assert done["mapping_captured"] and done["mapping_of_vma"]


@pytest.mark.parametrize("change", FIELDS)
def test_fault_around_covers_the_captured_range(m: Machine, mm: MmStruct, change: str) -> None:
    f = m.file("f", data=b"".join(bytes([i]) * PAGE for i in range(64)))
    other = mm.mmap(BASE + TABLE, 64 * PAGE, R, PRIVATE | FIXED, file=f, offset=0)
    for i in range(64):
        mm.load(other + i * PAGE, 1)  # into the page cache
    a = mm.mmap(BASE, 64 * PAGE, R, PRIVATE | FIXED, file=f, offset=0)
    mm.load(a + 20 * PAGE, 1)  # a page table
    done = speculative(m, mm, a + 5 * PAGE, False, change)
    assert readable(done["pte"])
    assert done["around"] == 16
    assert [mm.load(a + i * PAGE, 1)[0] for i in range(16)] == list(range(16))


def test_a_merge_takes_the_vma_but_not_its_anon_vma(m: Machine, mm: MmStruct) -> None:
    # Below `a`, a VMA and a hole that the writer fills: all three become one, which is the lower one.
    below = anonymous(mm, TABLE, BASE)
    a = anonymous(mm, 64 * PAGE, BASE + 2 * TABLE)
    mm.store(a, b"x")
    done = speculative(m, mm, a + 5 * PAGE, True, "mmap", BASE + TABLE, TABLE)
    assert [(v.start, v.end) for v in mm.vmas] == [(below, a + 64 * PAGE)]
    assert writable(done["pte"])
    assert done["index"] == a // PAGE + 5
    assert done["mapping_captured"] and done["mapping_of_vma"]
    mm.store(below, b"y")  # the merged VMA goes on with the same anon_vma
    assert mm.load(a + 5 * PAGE, 1) == b"\0"


@pytest.mark.parametrize("part", [0, 2], ids=["below", "above"])
def test_a_split_of_the_vma(m: Machine, mm: MmStruct, part: int) -> None:
    a = anonymous(mm, 3 * TABLE)
    mm.store(a + TABLE, b"x")
    done = speculative(m, mm, a + TABLE + 5 * PAGE, True, "mprotect", a + part * TABLE, TABLE)
    assert len(mm.vmas) == 2
    assert writable(done["pte"])
    assert done["index"] == (a + TABLE) // PAGE + 5
    assert done["mapping_captured"] and done["mapping_of_vma"]


@pytest.mark.parametrize("strategy", [MmapSem, SPF, SPF2021])
def test_a_zap_does_not_return_before_the_flush_that_another_one_owes(strategy: type[MmapSem | SPF | SPF2021]) -> None:
    with Machine(InterposedArch(make_arch()), strategy(), cpus=3, memory=frames(64 << 20)) as machine:
        mm = machine.mm()
        a = anonymous(mm)
        mm.store(a + PAGE, b"x")
        # The second zapper finds the entry empty, and the old page must be out of every TLB when it returns.
        assert zap_while_zapping(mm, a + PAGE, PAGE) == (True, False)
        assert mm.load(a + PAGE, 1) == b"\0"
        machine.validate()
        assert validate_contents(machine) is None
