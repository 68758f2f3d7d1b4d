# SPDX-License-Identifier: GPL-2.0-only
"""Every arch backend: the porting checklist of arch.pxd, and the tests of the mm on it."""
from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from itertools import product
from typing import Any

import pytest

import pykmm
from pykmm.plugin import get_plugin_manager
from pykmm_ext.arch import Arch
from pykmm_ext.machine.machine_test import entry

NAMES = get_plugin_manager().arches.names()
TESTS = pathlib.Path(__file__).parents[2]
#: Tests that take their numbers from arch_under_test; the rest is about something else than the arch, or about x86 (or
#: ppc64) alone, or names its arches itself.
MODULES = (*(f"unit/mm/{name}" for name in (
    "test_mmap", "test_mprotect", "test_mremap", "test_madvise", "test_mlock", "test_rmap", "test_filemap", "test_fork",
    "test_khugepaged", "test_memory")),
    *(f"unit/plugins/{name}" for name in ("test_mmap_sem", "test_spf", "test_spf_2021", "test_per_vma_lock")))
#: Those where pages of 64 KiB, a root of many frames, and flushes without interrupts make the difference.
POWER_MODULES = ("unit/mm/test_gup", "unit/plugins/test_spf_rfc5", "unit/machine/test_snapshot",
                 "unit/kernel/test_lockdep_events", "unit/engine/test_tape_pins", "unit/test_native",
                 "unit/test_machine")
#: Under weak memory the searches are long: on one arch.
WEAK_MODULES = ("races/test_tape_check",)
READ, WRITE, EXEC, SHARED = 1, 2, 4, 8
CHANGES = ("pte_mkwrite", "pte_wrprotect", "pte_mkdirty", "pte_mkclean", "pte_mkyoung", "pte_mkold", "pte_mkspecial")
KEPT = ("pte_dirty", "pte_young", "pte_special", "pte_soft_dirty")


@pytest.fixture(params=NAMES)
def arch(request: pytest.FixtureRequest) -> Arch:
    made = get_plugin_manager().arches.make(request.param)
    assert isinstance(made, Arch)
    return made


def test_all_are_there() -> None:
    assert {"x86", "x86-5level", "x86-paravirt", "ppc64", "ppc64-4k"} <= set(NAMES)


def test_geometry(arch: Arch) -> None:
    g: dict[str, Any] = dict(arch.geometry())
    shift, bits = g["level_shift"], g["level_bits"]
    assert shift[0] == g["page_shift"]
    assert all(shift[i + 1] == shift[i] + bits[i] for i in range(g["levels"] - 1))
    for limit in ("task_size", "mmap_base", "stack_top", "mmap_min_addr", "map_window"):
        assert g[limit] % (1 << shift[0]) == 0
    assert g["mmap_min_addr"] < g["mmap_base"] < g["map_window"] <= g["task_size"] <= 1 << (shift[-1] + bits[-1])
    assert g["stack_top"] <= g["map_window"]
    assert g["rcu_table_free"] or not g["tlb_broadcast"]


def test_leaf_entries(arch: Arch) -> None:
    assert entry(arch, "pte_none", 0)
    assert not entry(arch, "pte_present", 0)
    for vm_flags, pfn in product(range(16), (1, 0x123456, (1 << 36) - 1)):
        prot = entry(arch, "vm_get_page_prot", vm_flags)
        pte = entry(arch, "pfn_pte", pfn, prot)
        assert entry(arch, "pte_pfn", pte) == pfn
        assert entry(arch, "pte_present", pte)
        some = bool(vm_flags & (READ | WRITE | EXEC))
        assert bool(entry(arch, "pte_protnone", pte)) == (not some)
        assert bool(entry(arch, "access_permitted", pte, 0)) == some
        assert bool(entry(arch, "access_permitted", pte, 1)) == bool(vm_flags & WRITE and vm_flags & SHARED)
        assert bool(entry(arch, "access_permitted", pte, 2)) == bool(vm_flags & EXEC)
        assert bool(entry(arch, "pte_exec", pte)) == bool(vm_flags & EXEC) or not some
        for change, after in product(CHANGES, range(16)):
            if not some and change == "pte_mkwrite":
                continue        # nobody makes what may not be read writable
            changed = entry(arch, change, pte)
            assert entry(arch, "pte_pfn", changed) == pfn
            new = entry(arch, "pte_modify", changed, entry(arch, "vm_get_page_prot", after))
            assert entry(arch, "pte_pfn", new) == pfn
            assert [bool(entry(arch, bit, new)) for bit in KEPT] == [bool(entry(arch, bit, changed)) for bit in KEPT]
            assert bool(entry(arch, "access_permitted", new, 2)) == bool(after & EXEC)
            assert bool(entry(arch, "pte_protnone", new)) == (not after & (READ | WRITE | EXEC))


def test_table_entries(arch: Arch) -> None:
    g: dict[str, Any] = dict(arch.geometry())
    assert entry(arch, "table_none", 0)
    for level, table in product(range(1, g["levels"]), (1 << 16, 0x123450000)):
        value = entry(arch, "mk_table", table, level)
        assert entry(arch, "table_paddr", value) == entry(arch, "table_descend", value, level) == table
        assert not any(entry(arch, what, value, level) for what in ("table_none", "table_bad", "table_leaf"))
    assert entry(arch, "table_descend", 0, 1) == 0


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf"])
def test_every_cpu_sees_a_change(arch: Arch, strategy: str) -> None:
    with pykmm.Machine(arch=arch, strategy=strategy, cpus=4, memory="32M") as machine:
        mm, page = machine.mm(), machine.page_size
        a = mm.mmap(0, 4 * page, 3, 0x22)
        for cpu in range(4):
            mm.store(a, bytes([cpu]), cpu=cpu)
        mm.mprotect(a, page, 1, cpu=2)
        for cpu in range(4):
            assert mm.load(a, 1, cpu=cpu) == b"\3"
            with pytest.raises(pykmm.SegmentationFault):
                mm.store(a, b"x", cpu=cpu)
        mm.munmap(a, 4 * page, cpu=1)
        for cpu in range(4):
            with pytest.raises(pykmm.SegmentationFault):
                mm.load(a, 1, cpu=cpu)
        machine.validate()
        assert mm.stats["nr_ptes"] * page == max(page, 8 << dict(arch.geometry())["level_bits"][-1])  # type: ignore[index]


def modules(name: str) -> tuple[str, ...]:
    if name == "ppc64":
        return (*MODULES, *POWER_MODULES, *WEAK_MODULES)
    return (*MODULES, *POWER_MODULES) if name == "ppc64-4k" else MODULES


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"x86", "x86-paravirt"}])
def test_the_tests_on_it(name: str) -> None:
    """x86 is what they run on by themselves, and x86-paravirt is among their machines there."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--no-header", "--tb=short",
         *[str(TESTS / f"{module}.py") for module in modules(name)]],
        env={**os.environ, "PYKMM_TEST_ARCH": name}, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
