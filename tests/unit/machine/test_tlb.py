# SPDX-License-Identifier: GPL-2.0-only
"""Tests of machine/tlb and the x86 flush: translations, the hardware walk, user accesses, shootdown.

An MMU written here from the manual, which reads the tables from physical memory, is the oracle.
"""
from __future__ import annotations

import errno
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykmm_ext.machine.machine_test import Rig, Space
from pykmm_ext.machine.machine_torture import Flag, fault_stress, shootdown_reader, shootdown_writer
from pykmm_plugins.arch._x86 import make_arch

PAGE = 4096
BASE = 0x10000000
READ, WRITE, EXEC = 0, 1, 2
P, RW, US, A, D, PS, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
PFN = 0x000ffffffffff000
MAPERR, ACCERR, ADRERR, OOM = 1, 2, 3, 4
VM_FAULT_OOM, VM_FAULT_SIGBUS, VM_FAULT_MAJOR, VM_FAULT_SIGSEGV = 1, 2, 4, 0x40
NOTHING = {"mms": 0, "vmas": 0, "anon_vmas": 0, "avcs": 0, "files": 0, "frames": 0}


def make(cpus: int = 1, pages: int = 64, vm_flags: int = 3, frames: int = 4096) -> tuple[Rig, Space]:
    rig = Rig(make_arch(), cpus, frames * PAGE)
    space = rig.space(BASE, BASE + pages * PAGE, vm_flags)
    for cpu in range(cpus):
        rig.switch(cpu, space)
    return rig, space


def finish(rig: Rig, space: Space) -> None:
    for cpu in space.cpumask:
        rig.validate_tlb(cpu)
        rig.switch(cpu, None)
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING


def sdm_translate(rig: Rig, root: int, address: int, access: int, levels: int = 4) -> int | None:
    """Intel SDM volume 3, "4-level paging": the physical address, or None for a page fault of a user access."""
    table, user, write, execute = root, True, True, True
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        word = int.from_bytes(rig.read(table + 8 * (address >> shift & 511), 8), "little")
        if not word & P:
            return None
        user = user and bool(word & US)
        write = write and bool(word & RW)
        execute = execute and not word & NX
        if level == 0 or (level < 3 and word & PS):
            if not user or (access == WRITE and not write) or (access == EXEC and not execute):
                return None
            return (word & PFN) >> shift << shift | address & ((1 << shift) - 1)
        table = word & PFN
    raise AssertionError


def test_first_access_faults_the_next_hits() -> None:
    rig, space = make()
    assert rig.touch(0, BASE + 5) == 0
    assert space.faults == 1
    assert rig.touch(0, BASE + 4095) == 0
    assert space.faults == 1
    events = rig.events()
    assert (events["PGFAULT"], events["TLB_MISS"], events["TLB_HIT"]) == (1, 2, 1)
    finish(rig, space)


def test_contents_go_through_to_the_frame() -> None:
    rig, space = make()
    data = bytes(i * 7 & 255 for i in range(3 * PAGE + 100))
    assert rig.store(0, BASE + 1003, data) == 0
    assert rig.load(0, BASE + 1003, len(data)) == data
    assert rig.load(0, BASE, 1003) == bytes(1003)
    for offset in (0, PAGE, 2 * PAGE, 3 * PAGE):
        paddr = sdm_translate(rig, space.pgd, BASE + offset, READ)
        assert paddr is not None
        assert rig.read(paddr, PAGE) == rig.load(0, BASE + offset, PAGE)
    finish(rig, space)


@given(st.integers(0, 4 * PAGE), st.binary(max_size=2 * PAGE))
@settings(max_examples=50, deadline=None)
def test_copies_of_any_alignment(offset: int, data: bytes) -> None:
    rig, space = make()
    around = b"\xa5" * (7 * PAGE)
    assert rig.store(0, BASE, around) == 0
    assert rig.store(0, BASE + offset, data) == 0
    expected = around[:offset] + data + around[offset + len(data):]
    assert rig.load(0, BASE, len(around)) == expected
    assert rig.load(0, BASE + offset, len(data)) == data
    finish(rig, space)


def test_write_touch_keeps_contents_and_sets_dirty() -> None:
    rig, space = make()
    rig.store(0, BASE, b"\x5a" * PAGE)
    for offset in range(0, PAGE, 509):
        assert rig.touch(0, BASE + offset, WRITE) == 0
    assert rig.load(0, BASE, PAGE) == b"\x5a" * PAGE
    assert space.walk(BASE)[-1][2] & D
    finish(rig, space)


@pytest.mark.parametrize("address", [
    0x7ffffffff000, 0x800000000000, 0x7fffffffffff, 0xffff800000000000, 2**64 - 1, 2**64 - PAGE,
])
@pytest.mark.parametrize("access", [READ, WRITE, EXEC])
def test_addresses_beyond_user_space_never_reach_the_handler(address: int, access: int) -> None:
    rig, space = make()
    assert rig.touch(0, address, access) == (errno.EFAULT, MAPERR, address)
    assert space.faults == 0
    assert space.walk(address) == []
    finish(rig, space)


def test_copy_across_the_end_of_user_space() -> None:
    rig, space = make()
    end = 0x7ffffffff000
    last = rig.space(end - PAGE, end, 3)
    rig.switch(0, last)
    assert rig.store(0, end - 4, b"12345678") == (errno.EFAULT, MAPERR, end)
    assert rig.load(0, end - 4, 4) == b"1234"
    rig.switch(0, space)
    last.free()
    finish(rig, space)


@pytest.mark.parametrize(("vm_flags", "access", "code"), [
    (1, WRITE, ACCERR), (3, EXEC, ACCERR), (0, READ, ACCERR), (1, READ, 0), (3, WRITE, 0), (5, EXEC, 0),
])
def test_permissions(vm_flags: int, access: int, code: int) -> None:
    rig, space = make(vm_flags=vm_flags)
    expected = (errno.EFAULT, code, BASE) if code else 0
    assert rig.touch(0, BASE, access) == expected
    assert rig.touch(0, BASE, access) == expected
    assert rig.touch(0, BASE - PAGE, access) == (errno.EFAULT, MAPERR, BASE - PAGE)
    finish(rig, space)


@pytest.mark.parametrize(("answer", "result"), [
    (VM_FAULT_OOM, (errno.ENOMEM, OOM, BASE + 9)), (VM_FAULT_SIGBUS, (errno.EFAULT, ADRERR, BASE + 9)),
    (VM_FAULT_SIGSEGV | 0x10000, (errno.EFAULT, MAPERR, BASE + 9)),
    (VM_FAULT_SIGSEGV | 0x20000, (errno.EFAULT, ACCERR, BASE + 9)),
    (VM_FAULT_SIGSEGV, (errno.EFAULT, MAPERR, BASE + 9)),
])
def test_results_of_the_fault_handler(answer: int, result: tuple[int, int, int]) -> None:
    rig, space = make()
    space.answer(answer)
    assert rig.touch(0, BASE + 9, WRITE) == result
    assert rig.load(0, BASE + 9, 2) == result
    assert rig.store(0, BASE + 9, b"xx") == result
    space.answer(0)
    assert rig.touch(0, BASE + 9, WRITE) == 0
    finish(rig, space)


def test_access_without_an_address_space() -> None:
    rig, space = make()
    rig.switch(0, None)
    assert rig.touch(0, BASE) == (errno.EFAULT, MAPERR, BASE)
    rig.switch(0, space)
    finish(rig, space)


def test_read_then_write_sets_dirty_by_a_second_walk() -> None:
    rig, space = make()
    rig.touch(0, BASE, READ)
    assert not space.walk(BASE)[-1][2] & D
    misses = rig.events()["TLB_MISS"]
    rig.touch(0, BASE, WRITE)
    assert space.faults == 1
    assert space.walk(BASE)[-1][2] & D
    assert rig.events()["TLB_MISS"] == misses + 1
    rig.touch(0, BASE, WRITE)
    assert rig.events()["TLB_MISS"] == misses + 1
    finish(rig, space)


def test_walk_sets_accessed_in_every_entry_and_nothing_else() -> None:
    rig, space = make()
    rig.touch(0, BASE, READ)
    before = [raw for _, _, raw in space.walk(BASE)]
    for level in range(4):
        space.set_entry(BASE, level, before[3 - level] & ~A)
    space.flush(0, "mm")
    assert rig.touch(0, BASE, READ) == 0
    assert [raw for _, _, raw in space.walk(BASE)] == before
    assert space.faults == 1
    finish(rig, space)


words = st.sampled_from([P | RW | US, P | US, P | RW, P | RW | US | A, P | RW | US | NX, P | US | A | NX, 0,
                         RW | US | A, P | RW | US | A | D])


@given(st.tuples(words, words, words, words), st.sampled_from([READ, WRITE, EXEC]),
       st.integers(0, 0x7ffffffff000 - 1))
@settings(max_examples=400, deadline=None)
def test_hardware_walk_agrees_with_the_manual(bits: tuple[int, int, int, int], access: int, address: int) -> None:
    """Every combination of permissions at every level."""
    rig, space = make()
    page = rig.alloc(zero=True)
    assert page is not None
    space.set_entry(address, 0, page << 12 | bits[0])
    tables = [table for table, _, _ in space.walk(address)]
    originals = [raw for _, _, raw in space.walk(address)]
    for level in (1, 2, 3):
        space.set_entry(address, level, tables[4 - level] | bits[level])
    expected = sdm_translate(rig, space.pgd, address, access)
    before = [rig.read(table, PAGE) for table in tables]
    data = rig.hw_walk(0, address, access)
    if expected is None:
        assert data == 0
    else:
        assert data & PFN == expected & PFN == page << 12
        for kind in (READ, WRITE, EXEC):
            allowed = sdm_translate(rig, space.pgd, address, kind) is not None
            dirty = access == WRITE or bits[0] & D
            assert bool(data >> kind & 1) == bool(allowed and (kind != WRITE or dirty))
    # What has changed in memory: A of the entries on the way, D of the leaf of a write.
    for level, table in zip((3, 2, 1, 0), tables, strict=True):
        index = address >> (12 + 9 * level) & 511
        old = int.from_bytes(before[3 - level][8 * index:8 * index + 8], "little")
        new = int.from_bytes(rig.read(table + 8 * index, 8), "little")
        assert new & ~(A | D) == old & ~(A | D)
        if expected is not None:
            assert new == old | A | (D if level == 0 and access == WRITE else 0)
    for level in (3, 2, 1):
        space.set_entry_at(tables[3 - level], address, level, originals[3 - level])
    space.set_entry(address, 0, 0)
    rig.put(page)
    space.flush(0, "mm")
    finish(rig, space)


@pytest.mark.parametrize(("level", "size"), [(1, 1 << 21), (2, 1 << 30)])
def test_huge_page_entry(level: int, size: int) -> None:
    rig, space = make()
    address = 5 * size + 0x5123
    space.pte_alloc(address)
    old = space.set_entry(address, level, P | RW | US | PS)  # physical address 0
    assert sdm_translate(rig, space.pgd, address, WRITE) == address & (size - 1)
    data = rig.hw_walk(0, address, WRITE)
    assert data == (address & (size - 1) & PFN) | 1 << READ | 1 << WRITE | 1 << EXEC
    assert [raw for _, _, raw in space.walk(address)][3 - level] == P | RW | US | PS | A | D
    space.set_entry(address, level, old)
    finish(rig, space)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1023), st.integers(0, 2)), max_size=120))
@settings(max_examples=60, deadline=None)
def test_translations_follow_the_page_table(steps: list[tuple[int, int, int]]) -> None:
    """Accesses, changes with their flush, switches: no translation ever allows more than the page table."""
    rig, space = make(pages=1024)
    other = rig.space(BASE, BASE + 1024 * PAGE, 1)
    current = space
    for what, page, access in steps:
        address = BASE + page * PAGE
        if what <= 2:
            result = rig.touch(0, address, access)
            paddr = sdm_translate(rig, current.pgd, address, access)
            assert (result == 0) == (paddr is not None)
            if access == READ:
                assert result == 0
        elif what == 3:
            space.unmap(0, address, address + (access + 1) * PAGE)
        elif what == 4:
            walk = space.walk(address)
            if len(walk) == 4 and walk[-1][2]:
                space.set_entry(address, 0, walk[-1][2] & ~RW & ~D)
                space.flush(0, "page", address)
        else:
            current = other if current is space else space
            rig.switch(0, current)
        rig.validate_tlb()
    rig.switch(0, None)
    other.free()
    rig.switch(0, space)
    finish(rig, space)


def test_more_pages_than_the_tlb_holds() -> None:
    rig, space = make(pages=3000)
    for _ in range(2):
        for i in range(3000):
            assert rig.touch(0, BASE + i * PAGE, WRITE) == 0
    assert space.faults == 3000
    rig.validate_tlb()
    finish(rig, space)


def test_many_flushes_wrap_the_generation() -> None:
    rig, space = make()
    pages = [rig.alloc(zero=True), rig.alloc(zero=True)]
    for k, pfn in enumerate(pages):
        rig.write(pfn * PAGE, bytes([k + 1]))
    for i in range(5000):
        space.set_entry(BASE, 0, pages[i & 1] << 12 | P | US | A | NX)
        space.flush(0, "mm")
        assert rig.load(0, BASE, 1) == bytes([(i & 1) + 1])
    space.set_entry(BASE, 0, 0)
    space.flush(0, "mm")
    for pfn in pages:
        rig.put(pfn)
    finish(rig, space)


@pytest.mark.parametrize("flushes", range(4093, 4098))
def test_no_translation_survives_a_whole_round_of_generations(flushes: int) -> None:
    rig, space = make()
    pages = [rig.alloc(zero=True), rig.alloc(zero=True)]
    rig.write(pages[1] * PAGE, b"new")
    space.set_entry(BASE, 0, pages[0] << 12 | P | US | A | NX)
    assert rig.load(0, BASE, 3) == bytes(3)
    space.set_entry(BASE, 0, pages[1] << 12 | P | US | A | NX)
    for _ in range(flushes):
        space.flush(0, "mm")
    assert rig.load(0, BASE, 3) == b"new"
    space.set_entry(BASE, 0, 0)
    space.flush(0, "mm")
    for pfn in pages:
        rig.put(pfn)
    finish(rig, space)


def test_cpu_beyond_the_first_word_of_the_mask() -> None:
    rig, space = make(cpus=66)
    for cpu in range(66):
        if cpu != 64:
            rig.switch(cpu, None)
    assert space.cpumask == [64]
    space.flush(64, "mm")
    assert rig.events(64)["TLB_FLUSH_REMOTE"] == 0
    rig.switch(65, space)
    rig.switch(0, space)
    space.flush(64, "mm")
    assert rig.events(64)["TLB_FLUSH_REMOTE"] == 1
    assert rig.events(64)["IPI_SENT"] == 2
    finish(rig, space)


@pytest.mark.parametrize("what", ["mm", "range", "page"])
@pytest.mark.parametrize("flusher", [0, 1])
def test_flush_reaches_every_cpu(what: str, flusher: int) -> None:
    rig, space = make(cpus=3)
    pages = [rig.alloc(zero=True), rig.alloc(zero=True)]
    rig.write(pages[1] * PAGE, b"new")
    space.set_entry(BASE + PAGE, 0, pages[0] << 12 | P | US | A)
    for cpu in range(3):
        assert rig.load(cpu, BASE + PAGE, 3) == bytes(3)
    space.set_entry(BASE + PAGE, 0, pages[1] << 12 | P | US | A)
    for cpu in range(3):
        assert rig.load(cpu, BASE + PAGE, 3) == bytes(3)  # stale, as in life
    space.flush(flusher, what, BASE + PAGE, BASE + 2 * PAGE)
    for cpu in range(3):
        assert rig.load(cpu, BASE + PAGE, 3) == b"new"
    space.set_entry(BASE + PAGE, 0, 0)
    space.flush(0, "mm")
    for pfn in pages:
        rig.put(pfn)
    finish(rig, space)


def test_flush_of_a_range_leaves_the_rest() -> None:
    rig, space = make()
    for i in range(64):
        rig.touch(0, BASE + i * PAGE)
    for pages, left in ((3, 61), (33, 28), (34, 0)):  # above tlb_single_page_flush_ceiling everything goes
        space.flush(0, "mm")
        for i in range(64):
            rig.touch(0, BASE + i * PAGE)
        space.flush(0, "range", BASE + 2 * PAGE, BASE + (2 + pages) * PAGE)
        hits = rig.events()["TLB_HIT"]
        misses = rig.events()["TLB_MISS"]
        for i in range(64):
            rig.touch(0, BASE + i * PAGE)
        if left:
            assert rig.events()["TLB_MISS"] - misses == pages
            assert 64 - pages <= rig.events()["TLB_HIT"] - hits
        else:
            assert rig.events()["TLB_MISS"] - misses == 64
    finish(rig, space)


def test_only_the_cpus_of_the_mm_are_interrupted() -> None:
    rig, space = make(cpus=3)
    rig.switch(2, None)
    assert space.cpumask == [0, 1]
    sent = rig.events(0)["IPI_SENT"]
    space.flush(0, "mm")
    assert rig.events(0)["IPI_SENT"] == sent + 1
    assert rig.events(2)["IPI_HANDLED"] == 0
    rig.switch(1, None)
    space.flush(0, "mm")
    assert rig.events(0)["IPI_SENT"] == sent + 1
    rig.switch(1, space)
    space.flush(0, "serialize")
    assert rig.events(0)["IPI_SENT"] == sent + 2
    finish(rig, space)


def test_flush_by_a_cpu_that_does_not_run_the_mm() -> None:
    rig, space = make(cpus=2)
    rig.touch(1, BASE)
    rig.switch(0, None)
    misses = rig.events(1)["TLB_MISS"]
    space.flush(0, "mm")
    rig.touch(1, BASE)
    assert rig.events(1)["TLB_MISS"] == misses + 1
    finish(rig, space)


def test_switch_forgets_the_old_address_space() -> None:
    rig, space = make()
    other = rig.space(BASE, BASE + 64 * PAGE, 3)
    rig.store(0, BASE, b"one")
    rig.switch(0, other)
    assert space.cpumask == [] and other.cpumask == [0]
    assert rig.load(0, BASE, 3) == bytes(3)
    rig.store(0, BASE, b"two")
    rig.switch(0, space)
    assert rig.load(0, BASE, 3) == b"one"
    other.free()
    finish(rig, space)


def shootdown(flush: bool, rounds: int) -> tuple[int, int]:
    rig = Rig(make_arch(), 2, 1024 * PAGE)
    space = rig.space(BASE, BASE + PAGE, 1)
    page = rig.alloc(zero=True)
    assert page is not None
    rig.write(page * PAGE, (1).to_bytes(8, "little"))
    space.set_entry(BASE, 0, page << 12 | P | US | A | NX)
    stop, result = Flag(), []
    reader = threading.Thread(target=lambda: result.append(shootdown_reader(space, 1, BASE, stop)))
    reader.start()
    shootdown_writer(space, 0, BASE, rounds, flush, stop)
    reader.join()
    rig.put(page)
    space.free()
    rig.validate()
    assert rig.destroy() == NOTHING
    reads, bad = result[0]
    assert reads > 0
    return reads, bad


def test_no_access_through_an_old_translation_after_a_flush() -> None:
    _, bad = shootdown(flush=True, rounds=20_000)
    assert bad == 0


def test_the_shootdown_test_sees_a_missing_flush() -> None:
    _, bad = shootdown(flush=False, rounds=20_000)
    assert bad > 0


def test_two_threads_fault_and_unmap_in_one_address_space() -> None:
    rig = Rig(make_arch(), 2, 4096 * PAGE)
    space = rig.space(BASE, BASE + 1024 * PAGE, 3)
    for cpu in range(2):
        rig.switch(cpu, space)
    bad: list[int] = []
    threads = [threading.Thread(target=lambda cpu=cpu: bad.append(
        fault_stress(space, cpu, BASE + cpu * 256 * PAGE, 100, 300))) for cpu in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bad == [0, 0]
    finish(rig, space)
