# SPDX-License-Identifier: GPL-2.0-only
"""Tests of the ppc64 backends: entries bit by bit as the Power ISA numbers them, and flushes without interrupts."""
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from radix_isa import FETCH, LOAD, STORE, Directory, Leaf, decode, leaves, translate

import pykmm
from pykmm_ext.arch import Arch
from pykmm_ext.machine.machine_test import entry
from pykmm_plugins.arch import ppc64

ARCHES = {"ppc64": ppc64.make_arch(), "ppc64-4k": ppc64.make_4k_arch()}
READ, WRITE, EXEC, SHARED = 1, 2, 4, 8
PRIVATE_ANON = 0x22

pfns = st.integers(0, (1 << 37) - 1)
#: What a change of an entry does to the fields that the ISA knows.
CHANGES: dict[str, dict[str, bool]] = {
    "pte_mkwrite": {"read": True, "write": True}, "pte_wrprotect": {"write": False}, "pte_mkdirty": {"change": True},
    "pte_mkclean": {"change": False}, "pte_mkyoung": {"reference": True}, "pte_mkold": {"reference": False},
    "pte_mkspecial": {},
}
flags = st.integers(0, 15)
both = pytest.mark.parametrize("arch", ARCHES.values(), ids=ARCHES.keys())


def big(raw: int) -> int:
    """A raw entry as the processor reads it."""
    return int.from_bytes(raw.to_bytes(8, "little"), "big")


def bit(number: int) -> int:
    """A bit as the ISA numbers it."""
    return 1 << (63 - number)


@pytest.mark.parametrize(("name", "shift", "index"), [("ppc64", 16, 5), ("ppc64-4k", 12, 9)])
def test_geometry(name: str, shift: int, index: int) -> None:
    geometry = ARCHES[name].geometry()
    assert geometry == {
        "page_shift": shift, "levels": 4, "level_shift": (shift, 21, 30, 39), "level_bits": (index, 9, 9, 13),
        "task_size": 1 << 52, "mmap_base": (1 << 47) - (128 << 20), "map_window": 1 << 47, "stack_top": 1 << 47,
        "mmap_min_addr": 0x10000, "big_endian": True, "rcu_table_free": True, "tlb_broadcast": True,
    }
    assert ARCHES[name].memory_model == "power"


@both
@given(pfns, flags)
@settings(deadline=None)
def test_leaf_is_what_the_isa_says(arch: Arch, pfn: int, vm_flags: int) -> None:
    shift = arch.geometry()["page_shift"]
    assert isinstance(shift, int)
    leaf = decode(big(entry(arch, "pfn_pte", pfn, entry(arch, "vm_get_page_prot", vm_flags))), 0, shift, shift)
    assert isinstance(leaf, Leaf)
    some = bool(vm_flags & (READ | WRITE | EXEC))
    assert leaf == Leaf(
        0, 1 << shift, (pfn << shift) & ((1 << 53) - 1), reference=True, change=False, att=0, privileged=not some,
        read=some, write=bool(vm_flags & WRITE and vm_flags & SHARED), execute=bool(vm_flags & EXEC))


@both
def test_bits(arch: Arch) -> None:
    pte = entry(arch, "pfn_pte", 5, entry(arch, "vm_get_page_prot", READ))
    for change, on, off in (("pte_mkwrite", bit(61) | bit(62), 0), ("pte_wrprotect", 0, bit(62)),
                            ("pte_mkdirty", bit(56) | 0x200, 0), ("pte_mkclean", 0, bit(56)),
                            ("pte_mkyoung", bit(55), 0), ("pte_mkold", 0, bit(55)), ("pte_mkspecial", 0x400, 0)):
        for before in (pte, pte ^ entry(arch, "pte_mkold", pte), entry(arch, "pte_mkdirty", pte), 0):
            assert big(entry(arch, change, before)) == (big(before) | on) & ~off


@both
@given(pfns, flags, st.lists(st.sampled_from(sorted(CHANGES)), max_size=6), flags)
@settings(deadline=None)
def test_changes_change_their_field_alone(arch: Arch, pfn: int, before: int, steps: list[str], after: int) -> None:
    """Whatever the order: what the ISA finds is the old leaf with that field changed, what pykmm finds is the same."""
    shift = arch.geometry()["page_shift"]
    assert isinstance(shift, int)
    pte = entry(arch, "pfn_pte", pfn, entry(arch, "vm_get_page_prot", before))
    leaf = decode(big(pte), 0, shift, shift)
    special = soft_dirty = False
    for step in steps:
        if step == "pte_mkwrite" and not before & (READ | WRITE | EXEC):
            continue
        assert isinstance(leaf, Leaf)
        pte = entry(arch, step, pte)
        leaf = replace(leaf, **CHANGES[step])
        special, soft_dirty = special or step == "pte_mkspecial", soft_dirty or step == "pte_mkdirty"
        assert decode(big(pte), 0, shift, shift) == leaf
        assert seen_by_pykmm(arch, pte) == (leaf.write, leaf.change, leaf.reference, leaf.execute, special, soft_dirty)
        assert [bool(entry(arch, "access_permitted", pte, access)) for access in range(3)] == [
            leaf.permits(how) for how in (LOAD, STORE, FETCH)]
    new = entry(arch, "pte_modify", pte, entry(arch, "vm_get_page_prot", after))
    fresh = decode(big(entry(arch, "pfn_pte", pfn, entry(arch, "vm_get_page_prot", after))), 0, shift, shift)
    assert isinstance(leaf, Leaf) and isinstance(fresh, Leaf)
    assert decode(big(new), 0, shift, shift) == replace(fresh, reference=leaf.reference, change=leaf.change)
    assert seen_by_pykmm(arch, new)[4:] == (special, soft_dirty)


def seen_by_pykmm(arch: Arch, pte: int) -> tuple[bool, ...]:
    return tuple(bool(entry(arch, f"pte_{what}", pte))
                 for what in ("write", "dirty", "young", "exec", "special", "soft_dirty"))


@both
@given(st.integers(0, 255))
def test_an_access_needs_a_leaf_of_the_user(arch: Arch, low: int) -> None:
    """V, L and the four bits of EAA, in all combinations: pykmm's check of an entry is the ISA's."""
    shift = arch.geometry()["page_shift"]
    assert isinstance(shift, int)
    word = (bit(0) if low & 0x80 else 0) | (bit(1) if low & 0x40 else 0) | low & 0xf
    leaf = decode(word, 0, shift, shift) if low & 0xc0 == 0xc0 else None
    for access, how in enumerate((LOAD, STORE, FETCH)):
        permitted = isinstance(leaf, Leaf) and leaf.permits(how)
        assert bool(entry(arch, "access_permitted", big(word), access)) == permitted


@both
@given(st.integers(0, (1 << 52) - 1), st.integers(1, 3))
@settings(deadline=None)
def test_a_table_lies_anywhere(arch: Arch, base: int, level: int) -> None:
    """The next level base has 60 bits, of which the size of the table leaves those above its own."""
    geometry = arch.geometry()
    below, shifts, shift = geometry["level_bits"], geometry["level_shift"], geometry["page_shift"]
    assert isinstance(below, tuple) and isinstance(shifts, tuple) and isinstance(shift, int)
    at = base << 8 & -(8 << below[level - 1])
    raw = entry(arch, "mk_table", at, level)
    assert decode(big(raw), 0, shifts[level], shift) == Directory(at, below[level - 1])
    assert entry(arch, "table_paddr", raw) == entry(arch, "table_descend", raw, level) == at


@both
@given(pfns, st.integers(1, 3))
@settings(deadline=None)
def test_directory_entry_is_what_the_isa_says(arch: Arch, pfn: int, level: int) -> None:
    shift, below = arch.geometry()["page_shift"], arch.geometry()["level_bits"]
    assert isinstance(shift, int) and isinstance(below, tuple)
    at = pfn << shift & ((1 << 53) - 1)
    remaining = arch.geometry()["level_shift"]
    assert isinstance(remaining, tuple)
    raw = entry(arch, "mk_table", at, level)
    assert decode(big(raw), 0, remaining[level], shift) == Directory(at, below[level - 1])
    for wrong in (bit(0), bit(1), bit(2), bit(56), bit(57), bit(58)):
        assert entry(arch, "table_bad", big(big(raw) ^ wrong))
        assert entry(arch, "table_descend", big(big(raw) ^ wrong), level) == 0
    assert entry(arch, "table_leaf", big(big(raw) | bit(1)), level)


@both
def test_flush_reaches_a_cpu_with_irqs_on_or_off_without_an_ipi(arch: Arch) -> None:
    with pykmm.Machine(arch=arch, cpus=3, memory="16M") as machine:
        mm = machine.mm()
        page = machine.page_size
        a = mm.mmap(0, page, 3, PRIVATE_ANON)
        for cpu in range(3):
            mm.store(a, b"x", cpu=cpu)
        mm.mprotect(a, page, 1, cpu=1)
        for cpu in range(3):
            with pytest.raises(pykmm.SegmentationFault):
                mm.store(a, b"y", cpu=cpu)
        vmstat = machine.vmstat
        assert vmstat["tlb_flush_remote"] == 1
        assert vmstat["ipi_sent"] == vmstat["tlb_flush_received"] == 0
        machine.validate()


@both
def test_page_tables_are_freed_after_a_grace_period(arch: Arch) -> None:
    with pykmm.Machine(arch=arch, cpus=2, memory="16M") as machine:
        mm = machine.mm()
        machine.validate()
        before = machine.vmstat["nr_used_frames"]
        assert before * machine.page_size == mm.stats["nr_ptes"] * machine.page_size == 64 << 10   # the root
        a = mm.mmap(0, 4 << 20, 3, PRIVATE_ANON)
        mm.touch(a, 4 << 20)
        mm.munmap(a, 4 << 20)
        assert machine.vmstat["nr_used_frames"] > before
        machine.validate()      # waits for the grace period
        assert machine.vmstat["nr_used_frames"] == before
        assert mm.stats["nr_ptes"] == before


@both
def test_only_a_collapse_interrupts(arch: Arch) -> None:
    with pykmm.Machine(arch=arch, cpus=2, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0x40000000, 2 << 20, 3, PRIVATE_ANON | 0x10)
        mm.store(a, b"x", cpu=0)
        mm.store(a, b"x", cpu=1)
        with pytest.raises(OSError, match="annot allocate"):
            mm.madvise(a, 2 << 20, 25)          # MADV_COLLAPSE
        assert machine.vmstat["ipi_sent"] == 1
        assert mm.load(a, 1) == b"x"


steps = st.lists(st.tuples(
    st.sampled_from(["mmap", "munmap", "mprotect", "load", "store", "fork", "dontneed"]), st.integers(0, 63),
    st.integers(1, 16), st.sampled_from([0, 1, 3, 5, 7])), max_size=25)


@both
@given(steps)
@settings(max_examples=40, deadline=None)
def test_the_isa_finds_what_is_mapped_and_nothing_else(arch: Arch, todo: list[tuple[str, int, int, int]]) -> None:
    """Any layout: every leaf is a page of a mapping, with its permissions, R and C; and every byte is where it says."""
    base = 0x10000000
    with pykmm.Machine(arch=arch, cpus=1, memory="64M") as machine:
        shift = machine.page_size.bit_length() - 1
        spaces = [machine.mm()]
        stored: list[set[int]] = [set()]
        for what, first, count, prot in todo:
            mm, a, n = spaces[-1], base + (first << shift), count << shift
            try:
                if what == "mmap":
                    mm.mmap(a, n, prot, PRIVATE_ANON | 0x10)
                    stored[-1] -= set(range(first, first + count))
                elif what == "munmap":
                    mm.munmap(a, n)
                    stored[-1] -= set(range(first, first + count))
                elif what == "mprotect":
                    mm.mprotect(a, n, prot)
                elif what == "dontneed":
                    mm.madvise(a, n, 4)
                    stored[-1] -= set(range(first, first + count))
                elif what == "fork" and len(spaces) < 4:
                    spaces.append(mm.fork())
                    stored.append(set(stored[-1]))
                elif what == "load":
                    mm.load(a, 8)
                elif what == "store":
                    mm.store(a, first.to_bytes(8, "little"))
                    stored[-1].add(first)
            except (OSError, pykmm.SegmentationFault):
                if what == "dontneed":          # a hole: what is mapped beside it has gone
                    stored[-1] -= set(range(first, first + count))
        for mm, written in zip(spaces, stored):
            prots = {}
            for vma in mm.vmas:
                prots.update(dict.fromkeys(range(vma.start, vma.end, 1 << shift), vma.prot))
            for leaf in leaves(machine.read_physical, mm.pgd, shift):
                assert leaf.ea in prots
                prot = prots[leaf.ea]
                assert leaf.privileged == (prot == 0)
                assert leaf.read == bool(prot)
                assert not leaf.write or prot & 2
                assert leaf.execute == bool(prot & 4)
                assert not leaf.write or leaf.change        # Linux makes writable what it makes dirty
                assert leaf.att == 0
            for page in range(80):
                ea = base + (page << shift)
                real = translate(machine.read_physical, mm.pgd, ea, LOAD, shift)
                if page in written and prots.get(ea, 0):
                    assert real is not None
                    assert machine.read_physical(real, 8) == page.to_bytes(8, "little")
                if ea not in prots:
                    assert real is None
        for mm in spaces:
            mm.exit()


@both
def test_a_table_in_a_frame_that_was_written(arch: Arch) -> None:
    """Tables smaller than a frame are cleared as far as they go: nothing of what the frame held is an entry."""
    with pykmm.Machine(arch=arch, cpus=1, memory="16M") as machine:
        mm, size = machine.mm(), machine.page_size
        frames = int(machine.memory * 3 / 4) // size
        a = mm.mmap(0, frames * size, 3, PRIVATE_ANON)
        for page in range(frames):
            mm.store(a + page * size, b"\xff" * size)
        mm.munmap(a, frames * size)
        a = mm.mmap(0x40000000, 1 << 30, 3, PRIVATE_ANON | 0x10)
        touched = list(range(a, a + (1 << 30), 32 << 20))
        for ea in touched:
            mm.load(ea, 1)
        machine.validate()
        assert [leaf.ea for leaf in leaves(machine.read_physical, mm.pgd, size.bit_length() - 1)] == touched
        mm.exit()


@both
def test_hardware_sets_reference_and_change(arch: Arch) -> None:
    with pykmm.Machine(arch=arch, cpus=1, memory="16M") as machine:
        mm = machine.mm()
        shift = machine.page_size.bit_length() - 1
        f = machine.file("f", size=machine.page_size)
        a = mm.mmap(0, machine.page_size, 3, 1, file=f)
        mm.load(a, 1)
        leaf, = leaves(machine.read_physical, mm.pgd, shift)
        assert leaf.reference and not leaf.change and leaf.write
        mm.store(a, b"x")                       # no fault: the processor sets C
        faults = machine.vmstat["pgfault"]
        leaf, = leaves(machine.read_physical, mm.pgd, shift)
        assert leaf.change and faults == 1
        assert translate(machine.read_physical, mm.pgd, a + 5, STORE, shift) == leaf.ra + 5


@both
def test_walk_shows_entries_as_the_processor_reads_them(arch: Arch) -> None:
    with pykmm.Machine(arch=arch, cpus=1, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, machine.page_size, 3, PRIVATE_ANON)
        mm.store(a, b"x")
        for level, table, index, raw in mm.walk(a):
            assert raw == int.from_bytes(machine.read_physical(table + 8 * index, 8), "big")
            assert raw & bit(0)
            assert bool(raw & bit(1)) == (level == 0)
