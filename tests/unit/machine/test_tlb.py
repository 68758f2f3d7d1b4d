# SPDX-License-Identifier: GPL-2.0-only
"""Tests of machine/tlb and the arch's walker and flushes: translations, the hardware walk, user accesses, shootdown.

A decoder written from the manual of the arch, which reads the tables from physical memory, is the oracle.
"""
from __future__ import annotations

import errno
import threading

import pytest
from arch_under_test import ARCH, INTERRUPTS, LEVELS, PAGE, SHIFTS, TASK_SIZE, is_, make_arch
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_entries import mmu

from pykmm_ext.machine.machine_test import Rig, Space, entry
from pykmm_ext.machine.machine_torture import Flag, fault_stress, shootdown_reader, shootdown_writer

BASE = 0x10000000
READ, WRITE, EXEC = 0, 1, 2
VM_READ, VM_EXEC = 1, 4
ROUNDS = 20_000 if ARCH == "x86" else 4_000
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


def translate(rig: Rig, root: int, address: int, access: int) -> int | None:
    """What the manual says: the physical address, or None for a fault of a user access, or a tree that is none."""
    manual = mmu.manual
    try:
        found = manual.translate(rig.read, root, address, (manual.LOAD, manual.STORE, manual.FETCH)[access], mmu.key)
    except AssertionError:
        return None
    assert found is None or isinstance(found, int)
    return found


def leaf(pfn: int, vm_flags: int = VM_READ) -> int:
    """The entry of a page as the kernel makes it."""
    arch = make_arch()
    return int(entry(arch, "pfn_pte", pfn, entry(arch, "vm_get_page_prot", vm_flags)))


def test_first_access_faults_the_next_hits() -> None:
    rig, space = make()
    assert rig.touch(0, BASE + 5) == 0
    assert space.faults == 1
    assert rig.touch(0, BASE + PAGE - 1) == 0
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
        paddr = translate(rig, space.pgd, BASE + offset, READ)
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
    assert is_("dirty", space.walk(BASE)[-1][2])
    finish(rig, space)


@pytest.mark.parametrize("address", [
    TASK_SIZE, TASK_SIZE + PAGE - 1, 2 * TASK_SIZE, 0xffff800000000000, 2**64 - 1, 2**64 - PAGE,
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
    end = TASK_SIZE
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
    assert not is_("dirty", space.walk(BASE)[-1][2])
    misses = rig.events()["TLB_MISS"]
    rig.touch(0, BASE, WRITE)
    assert space.faults == 1
    assert is_("dirty", space.walk(BASE)[-1][2])
    assert rig.events()["TLB_MISS"] == misses + 1
    rig.touch(0, BASE, WRITE)
    assert rig.events()["TLB_MISS"] == misses + 1
    finish(rig, space)


def test_walk_sets_accessed_in_every_entry_and_nothing_else() -> None:
    rig, space = make()
    rig.touch(0, BASE, READ)
    before = [raw for _, _, raw in space.walk(BASE)]
    for level in range(LEVELS):
        space.set_entry(BASE, level, mmu.old(before[LEVELS - 1 - level], level))
    assert (space.walk(BASE)[0][2] == before[0]) == (not mmu.tables_have_a)
    space.flush(0, "mm")
    assert rig.touch(0, BASE, READ) == 0
    assert [raw for _, _, raw in space.walk(BASE)] == before
    assert space.faults == 1
    finish(rig, space)


@given(st.tuples(mmu.leaves, *[mmu.tables] * (LEVELS - 1)), st.sampled_from([READ, WRITE, EXEC]),
       st.integers(0, TASK_SIZE - 1) | st.tuples(st.sampled_from(SHIFTS), st.integers(0, TASK_SIZE - 1)).map(
           lambda drawn: drawn[1] >> drawn[0] << drawn[0]))
@settings(max_examples=400, deadline=None)
def test_hardware_walk_agrees_with_the_manual(bits: tuple[int, ...], access: int, address: int) -> None:
    """Every combination of permissions at every level, and what is no entry."""
    rig, space = make()
    page = rig.alloc(zero=True)
    assert page is not None
    space.set_entry(address, 0, mmu.leaf(page, bits[0]))
    walk = space.walk(address)
    tables = [table for table, _, _ in walk]
    originals = [raw for _, _, raw in walk]
    for level in range(1, LEVELS):
        below = tables[LEVELS - level]
        space.set_entry_at(tables[LEVELS - 1 - level], address, level, mmu.table(below, level, bits[level]))
    expected = translate(rig, space.pgd, address, access)
    slots = [table + 8 * index for table, index, _ in walk]
    before = [int.from_bytes(rig.read(slot, 8), "little") for slot in slots]
    rest = [rig.read(table, PAGE) for table in tables]
    data = rig.hw_walk(0, address, access)
    if expected is None:
        assert data == 0
    else:
        assert data & -PAGE == expected & -PAGE == page * PAGE
        for kind in (READ, WRITE, EXEC):
            allowed = translate(rig, space.pgd, address, kind) is not None
            dirty = access == WRITE or is_("dirty", before[-1])
            assert bool(data >> kind & 1) == bool(allowed and (kind != WRITE or dirty))
    # What has changed in memory: A of the entries on the way, D of the leaf of a write.
    for level, slot, old in zip(range(LEVELS)[::-1], slots, before, strict=True):
        new = int.from_bytes(rig.read(slot, 8), "little")
        if expected is None:
            assert mmu.old(new, level) == mmu.old(old, level)
            assert level > 0 or new == old
        else:
            assert new == mmu.used(old, level, access == WRITE)
    for table, slot, old in zip(tables, slots, rest, strict=True):
        new_words, at = bytearray(rig.read(table, PAGE)), slot - table
        if at < PAGE:
            new_words[at:at + 8] = old[at:at + 8]
        assert new_words == old
    for level in range(1, LEVELS):
        space.set_entry_at(tables[LEVELS - 1 - level], address, level, originals[LEVELS - 1 - level])
    space.set_entry(address, 0, 0)
    rig.put(page)
    space.flush(0, "mm")
    finish(rig, space)


@given(st.sampled_from(mmu.huge_levels), mmu.leaves, st.sampled_from([READ, WRITE, EXEC]), st.integers(0, 1 << 30))
@settings(max_examples=100, deadline=None)
def test_huge_page_entry(level: int, bits: int, access: int, offset: int) -> None:
    """A leaf above the last level maps what an entry of its level maps, with its own permissions, where it may be."""
    rig, space = make()
    size = 1 << SHIFTS[level]
    address = 5 * size + offset % size
    space.pte_alloc(address)
    raw = mmu.huge(3 * size, level, bits)
    old = space.set_entry(address, level, raw)
    expected = translate(rig, space.pgd, address, access)
    data = rig.hw_walk(0, address, access)
    assert expected is None or expected == 3 * size + offset % size
    assert (data & -PAGE) == (0 if expected is None else expected & -PAGE)
    new = space.walk(address)[LEVELS - 1 - level][2]
    assert new == (raw if expected is None else mmu.used(raw, 0, access == WRITE))
    space.set_entry(address, level, old)
    finish(rig, space)


@pytest.mark.parametrize("level", [level for level in range(1, LEVELS) if level not in mmu.huge_levels])
def test_no_page_is_that_large(level: int) -> None:
    """What looks like a leaf where no page has the size of what the entry maps, translates nothing of that size."""
    rig, space = make()
    space.pte_alloc(BASE)
    old = space.set_entry(BASE, level, mmu.huge(0, level, mmu.everything))
    assert rig.hw_walk(0, BASE, READ) == 0
    space.set_entry(BASE, level, old)
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
            paddr = translate(rig, current.pgd, address, access)
            assert (result == 0) == (paddr is not None)
            if access == READ:
                assert result == 0
        elif what == 3:
            space.unmap(0, address, address + (access + 1) * PAGE)
        elif what == 4:
            walk = space.walk(address)
            if len(walk) == LEVELS and walk[-1][2]:
                clean = entry(make_arch(), "pte_mkclean", walk[-1][2])
                space.set_entry(address, 0, entry(make_arch(), "pte_wrprotect", clean))
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
        space.set_entry(BASE, 0, leaf(pages[i & 1]))
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
    space.set_entry(BASE, 0, leaf(pages[0]))
    assert rig.load(0, BASE, 3) == bytes(3)
    space.set_entry(BASE, 0, leaf(pages[1]))
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
    assert rig.events(64)["IPI_SENT"] == 2 * INTERRUPTS
    finish(rig, space)


@pytest.mark.parametrize("what", ["mm", "range", "page"])
@pytest.mark.parametrize("flusher", [0, 1])
def test_flush_reaches_every_cpu(what: str, flusher: int) -> None:
    rig, space = make(cpus=3)
    pages = [rig.alloc(zero=True), rig.alloc(zero=True)]
    rig.write(pages[1] * PAGE, b"new")
    space.set_entry(BASE + PAGE, 0, leaf(pages[0], VM_READ | VM_EXEC))
    for cpu in range(3):
        assert rig.load(cpu, BASE + PAGE, 3) == bytes(3)
    space.set_entry(BASE + PAGE, 0, leaf(pages[1], VM_READ | VM_EXEC))
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
    rig.touch(1, BASE)
    space.flush(0, "mm")
    assert rig.events(0)["IPI_SENT"] == sent + INTERRUPTS
    misses = rig.events(1)["TLB_MISS"]
    rig.touch(1, BASE)                  # interrupted or not, it has forgotten
    assert rig.events(1)["TLB_MISS"] == misses + 1
    assert rig.events(2)["IPI_HANDLED"] == 0
    rig.switch(1, None)
    space.flush(0, "mm")
    assert rig.events(0)["IPI_SENT"] == sent + INTERRUPTS
    rig.switch(1, space)
    space.flush(0, "serialize")         # which interrupts everywhere
    assert rig.events(0)["IPI_SENT"] == sent + INTERRUPTS + 1
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
    space.set_entry(BASE, 0, leaf(page))
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
    _, bad = shootdown(flush=True, rounds=ROUNDS)
    assert bad == 0


def test_the_shootdown_test_sees_a_missing_flush() -> None:
    _, bad = shootdown(flush=False, rounds=ROUNDS)
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
