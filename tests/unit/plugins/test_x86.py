# SPDX-License-Identifier: GPL-2.0-only
"""Tests of the x86 backend: entries bit by bit, and the porting checklist of arch.pxd."""
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pykmm
from pykmm.plugin import PluginManager
from pykmm_ext.arch import Arch
from pykmm_ext.machine.machine_test import entry
from pykmm_plugins.arch import x86

X86 = x86.make_arch()
P, RW, US, A, D, PS, G, SPECIAL, SOFT = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 11
NX = 1 << 63
PFN = 0x000ffffffffff000
READ, WRITE, EXEC, SHARED = 1, 2, 4, 8

PROTECTION_MAP = {  # as "protection_map[]" of a kernel with NX: index = VM_READ | VM_WRITE | VM_EXEC | VM_SHARED
    0: A | G, READ: P | US | A | NX, WRITE: P | US | A | NX, READ | WRITE: P | US | A | NX,
    EXEC: P | US | A, EXEC | READ: P | US | A, EXEC | WRITE: P | US | A, EXEC | READ | WRITE: P | US | A,
    SHARED: A | G, SHARED | READ: P | US | A | NX, SHARED | WRITE: P | RW | US | A | NX,
    SHARED | READ | WRITE: P | RW | US | A | NX, SHARED | EXEC: P | US | A, SHARED | EXEC | READ: P | US | A,
    SHARED | EXEC | WRITE: P | RW | US | A, SHARED | EXEC | READ | WRITE: P | RW | US | A,
}

pfns = st.integers(0, (1 << 40) - 1)
vm_flags = st.sampled_from(sorted(PROTECTION_MAP))
changes = st.lists(st.sampled_from(["pte_mkwrite", "pte_wrprotect", "pte_mkdirty", "pte_mkclean", "pte_mkyoung",
                                    "pte_mkold", "pte_mkspecial"]), max_size=8)


def prot(flags: int) -> int:
    value = entry(X86, "vm_get_page_prot", flags)
    assert isinstance(value, int)
    return value


def test_registered_by_the_plugin_manager() -> None:
    manager = PluginManager()
    manager.add_plugin(x86, "arch.x86")
    arch = manager.arches.get("x86")()
    assert isinstance(arch, Arch)
    assert arch.name == "x86"
    assert arch.description


def test_geometry() -> None:
    assert X86.geometry() == {
        "page_shift": 12, "levels": 4, "level_shift": (12, 21, 30, 39), "level_bits": (9, 9, 9, 9),
        "task_size": 0x7ffffffff000, "mmap_base": 0x7ffff7fff000, "stack_top": 0x7ffffffff000,
        "mmap_min_addr": 0x10000, "big_endian": False, "rcu_table_free": False, "map_window": 0x7ffffffff000,
        "tlb_broadcast": False,
    }


def test_arch_without_a_table() -> None:
    with pytest.raises(RuntimeError, match="no arch_ops"):
        Arch().geometry()


@pytest.mark.parametrize("flags", PROTECTION_MAP)
def test_protection_map(flags: int) -> None:
    assert prot(flags) == PROTECTION_MAP[flags]
    assert prot(flags | 0x70) == PROTECTION_MAP[flags]  # VM_MAY*: no matter


@given(pfns, vm_flags)
@settings(deadline=None)
def test_pfn_round_trip(pfn: int, flags: int) -> None:
    pte = entry(X86, "pfn_pte", pfn, prot(flags))
    assert entry(X86, "pte_pfn", pte) == pfn
    assert entry(X86, "pte_present", pte)
    assert pte & ~PFN == prot(flags)
    if flags & (READ | WRITE | EXEC):
        assert pte & PFN == pfn << 12
    else:  # inverted against L1TF: the hardware sees an entry that is not present, of memory that does not exist
        assert pte & PFN == ~(pfn << 12) & PFN
        assert entry(X86, "pte_protnone", pte)


@given(pfns, vm_flags, vm_flags, changes)
@settings(deadline=None)
def test_pte_modify_changes_permissions_only(pfn: int, before: int, after: int, steps: list[str]) -> None:
    pte = entry(X86, "pfn_pte", pfn, prot(before))
    for step in steps:
        pte = entry(X86, step, pte)
    new = entry(X86, "pte_modify", pte, prot(after))
    assert entry(X86, "pte_pfn", new) == pfn
    for bit in ("pte_dirty", "pte_young", "pte_special", "pte_soft_dirty"):
        assert entry(X86, bit, new) == entry(X86, bit, pte)
    keep = A | D | SPECIAL | SOFT | PFN
    assert new & ~keep == prot(after) & ~keep
    back = entry(X86, "pte_modify", new, prot(before))
    assert back & PFN == pte & PFN


@given(pfns, vm_flags, changes)
@settings(deadline=None)
def test_single_bits(pfn: int, flags: int, steps: list[str]) -> None:
    pte = entry(X86, "pfn_pte", pfn, prot(flags))
    bits = {"pte_mkwrite": (RW, 0), "pte_wrprotect": (0, RW), "pte_mkdirty": (D | SOFT, 0), "pte_mkclean": (0, D),
            "pte_mkyoung": (A, 0), "pte_mkold": (0, A), "pte_mkspecial": (SPECIAL, 0)}
    for step in steps:
        on, off = bits[step]
        expected = (pte | on) & ~off
        pte = entry(X86, step, pte)
        assert pte == expected
    assert entry(X86, "pte_write", pte) == bool(pte & RW)
    assert entry(X86, "pte_dirty", pte) == bool(pte & D)
    assert entry(X86, "pte_young", pte) == bool(pte & A)
    assert entry(X86, "pte_special", pte) == bool(pte & SPECIAL)
    assert entry(X86, "pte_soft_dirty", pte) == bool(pte & SOFT)
    assert entry(X86, "pte_exec", pte) == (not pte & NX)
    assert entry(X86, "pte_none", pte) == (pte == 0)


@given(pfns, vm_flags, changes)
@settings(deadline=None)
def test_access_permitted_is_the_hardware_rule(pfn: int, flags: int, steps: list[str]) -> None:
    pte = entry(X86, "pfn_pte", pfn, prot(flags))
    for step in steps:
        pte = entry(X86, step, pte)
    user = pte & P and pte & US
    assert entry(X86, "access_permitted", pte, 0) == bool(user)
    assert entry(X86, "access_permitted", pte, 1) == bool(user and pte & RW)
    assert entry(X86, "access_permitted", pte, 2) == bool(user and not pte & NX)


def test_supervisor_page_is_not_the_users() -> None:
    assert not any(entry(X86, "access_permitted", P | RW | A, access) for access in range(3))


def test_empty_entries() -> None:
    assert entry(X86, "pte_none", 0) and entry(X86, "table_none", 0)
    assert not entry(X86, "pte_present", 0)
    assert not entry(X86, "pte_protnone", 0)
    assert not entry(X86, "pte_protnone", P | G)  # a global page, not PROT_NONE


@given(pfns, st.integers(1, 3))
@settings(deadline=None)
def test_table_entries(pfn: int, level: int) -> None:
    value = entry(X86, "mk_table", pfn << 12, level)
    assert value == pfn << 12 | P | RW | US | A | D  # _PAGE_TABLE
    assert entry(X86, "table_paddr", value) == pfn << 12
    assert not entry(X86, "table_none", value)
    assert not entry(X86, "table_bad", value)
    assert not entry(X86, "table_bad", value & ~A)
    assert not entry(X86, "table_leaf", value, level)
    assert entry(X86, "table_bad", value | PS)
    assert entry(X86, "table_leaf", value | PS, level) == (level < 3)
    assert entry(X86, "table_bad", value & ~P)


@given(pfns, st.integers(1, 3), st.integers(0, (1 << 12) - 1))
@settings(deadline=None)
def test_table_descend_is_the_four_others_in_one(pfn: int, level: int, change: int) -> None:
    value = entry(X86, "mk_table", pfn << 12, level) ^ change
    none = any(entry(X86, what, value, level) for what in ("table_none", "table_bad", "table_leaf"))
    assert entry(X86, "table_descend", value, level) == (0 if none else entry(X86, "table_paddr", value))
    assert entry(X86, "table_descend", 0, level) == 0


# ---- x86-paravirt --------------------------------------------------------------------------------

def test_paravirt_is_x86_with_another_flush() -> None:
    manager = PluginManager()
    manager.add_plugin(x86, "arch.x86")
    arch = manager.arches.make("x86-paravirt")
    assert arch.name == "x86-paravirt"
    assert arch.geometry() == {**X86.geometry(), "rcu_table_free": True}


@pytest.mark.parametrize("quirks", [(), ("eager-callbacks",)])
def test_paravirt_frees_page_tables_after_a_grace_period(quirks: tuple[str, ...]) -> None:
    with pykmm.Machine(arch="x86-paravirt", cpus=2, memory="16M", quirks=quirks) as machine:
        mm = machine.mm()
        machine.validate()
        before = machine.vmstat["nr_used_frames"]
        a = mm.mmap(0, 0x400000, 3, 2 | 0x20)
        mm.touch(a, 0x400000)
        mm.munmap(a, 0x400000)
        now = machine.vmstat["nr_used_frames"]
        assert now == before if quirks else now > before
        machine.validate()      # waits for the grace period
        assert machine.vmstat["nr_used_frames"] == before
        assert machine.vmstat["nr_pgtable_free"]


def test_paravirt_flushes_other_cpus() -> None:
    with pykmm.Machine(arch="x86-paravirt", cpus=3, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x1000, 3, 2 | 0x20)
        for cpu in range(3):
            mm.store(a, b"x", cpu=cpu)
        mm.mprotect(a, 0x1000, 1, cpu=1)
        for cpu in range(3):
            with pytest.raises(pykmm.SegmentationFault):
                mm.store(a, b"y", cpu=cpu)
        assert machine.vmstat["tlb_flush_received"] == 2
        machine.validate()
