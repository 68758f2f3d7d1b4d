# SPDX-License-Identifier: GPL-2.0-only
"""Every arch backend: the porting checklist of arch.pxd, and the tests of the mm on it."""
from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest

import pykmm
from pykmm.checking.scenario import get
from pykmm.machine import memory_needed, page_size, table_span
from pykmm.plugin import get_plugin_manager
from pykmm.tape import OPCODES
from pykmm.testing import check_arch_conformance
from pykmm.workload import make as make_workload
from pykmm_ext.arch import Arch
from pykmm_ext.arch_test import OddArch
from pykmm_ext.machine.machine_test import entry

NAMES = get_plugin_manager().arches.names()
TESTS = pathlib.Path(__file__).parents[2]
#: Tests that take their numbers from arch_under_test. The rest names its arches itself (host/test_differential,
#: races/test_arches, plugins/test_conformance, test_tables), is about x86 alone (test_x86, test_x86_mmu) or ppc64
#: (test_ppc64), about recordings, whose pages have 4 KiB, or about something that knows no arch: locks, tapes as data,
#: the command line, strategies in Python. What a module leaves out on an arch it says itself.
MODULES = (*(f"unit/mm/{name}" for name in (
    "test_mmap", "test_mprotect", "test_mremap", "test_madvise", "test_mlock", "test_rmap", "test_filemap", "test_fork",
    "test_khugepaged", "test_memory", "test_memory_race", "test_pgtable", "test_mmu_gather", "test_page_alloc",
    "test_task_mmu")),
    *(f"unit/machine/{name}" for name in ("test_memory", "test_tlb")),
    *(f"unit/plugins/{name}" for name in ("test_mmap_sem", "test_spf", "test_spf_2021", "test_per_vma_lock")))
#: Those where pages of 64 KiB, a root of many frames, and flushes without interrupts make the difference.
POWER_MODULES = ("unit/mm/test_gup", "unit/plugins/test_spf_rfc5", "unit/machine/test_snapshot",
                 "unit/kernel/test_lockdep_events", "unit/engine/test_tape_pins", "unit/test_native",
                 "unit/test_machine")
#: Threads that run for seconds, and what is compared with the running kernel: on one arch of them.
LONG_MODULES = ("unit/mm/test_stress", "unit/mm/test_mempolicy")
#: Under weak memory the searches are long: on one arch.
WEAK_MODULES = ("races/test_tape_check",)
#: No manual has its entries.
WITHOUT_MANUAL = {"unit/machine/test_tlb"}
READ, WRITE, EXEC, SHARED = 1, 2, 4, 8
CHANGES = ("pte_mkwrite", "pte_wrprotect", "pte_mkdirty", "pte_mkclean", "pte_mkyoung", "pte_mkold", "pte_mkspecial")
KEPT = ("pte_dirty", "pte_young", "pte_special", "pte_soft_dirty")


def make(name: str) -> Arch:
    """A backend, or the one that is none of pykmm's."""
    made = get_plugin_manager().arches.make("x86" if name == "odd" else name)
    assert isinstance(made, Arch)
    return OddArch(made) if name == "odd" else made


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


# ---- sizes that the rest asks the arch for -------------------------------------------------------

@pytest.fixture(params=[*NAMES, "odd"])
def any_arch(request: pytest.FixtureRequest) -> Arch:
    return make(request.param)


def test_conformance_of_an_arch_unlike_the_others() -> None:
    report = check_arch_conformance(lambda: make("odd"), effort="quick")
    assert report.ok, str(report)
    assert {result.status for result in report.results} == {"pass"}


def test_fault_around_up_to_a_page_table(any_arch: Arch) -> None:
    page, span = page_size(any_arch), table_span(any_arch)
    for size in (page, span):
        with pykmm.Machine(any_arch, cpus=1, memory=4 * span, fault_around=size) as machine:
            assert machine.fault_around == size
            mm, file = machine.mm(), machine.file("f", size=2 * span)
            a = mm.mmap(span, 2 * span, 1, 0x11, file=file)
            for at in range(a, a + span, page):     # into the page cache, one by one where nothing is mapped around
                mm.load(at, 1)
            other = machine.mm()
            b = other.mmap(span, 2 * span, 1, 0x11, file=file)
            other.load(b + 5 * page, 1)
            assert other.stats["file_rss"] == size // page
            mm.exit()
            other.exit()
    for size in (page // 2, 2 * span):
        with pytest.raises(ValueError, match=f"fault_around must be a power of two from {page} to {span} bytes"):
            pykmm.Machine(any_arch, cpus=1, memory=4 * span, fault_around=size)


def test_memory_for_the_page_tables_of_a_run(any_arch: Arch) -> None:
    """Reads of memory that nobody has written take no pages, but page tables: on ppc64 a frame for each 2 MiB."""
    page, span = page_size(any_arch), table_span(any_arch)
    length = 1 << 38
    tape = make_workload(f"faults[access=read,size={length}]", 2, page)
    assert memory_needed(tape, any_arch) >= 2 * length // span * page
    by_hand = pykmm.Tape()
    by_hand.thread().touch(by_hand.setup.mmap(length), length, "write")
    assert memory_needed(by_hand, any_arch) >= length + length // span * page
    scattered = pykmm.Tape()
    thread = scattered.thread()
    for at in range(0x1000_0000, 0x1000_0000 + 9000 * span, span):
        thread.touch(at, 1)
    assert memory_needed(scattered, any_arch) >= 2 * 9000 * page


def test_read_faults_in_more_page_tables_than_the_least_memory_holds() -> None:
    tape = make_workload("faults[access=read,size=9G]", 1, 65536)
    with pykmm.Machine("ppc64", cpus=1, memory=memory_needed(tape, "ppc64")) as machine:
        result = machine.run(tape)
    assert not result.errnos.any()
    assert result.faults == 9 << 14


@pytest.mark.parametrize("name", ["faults[size={}]", "faults[size={},vma=separate]", "cortenmm-PF[requests=8]",
                                  "cortenmm-mmap[requests=8]"])
def test_threads_that_share_no_page_table(any_arch: Arch, name: str) -> None:
    page, span = page_size(any_arch), table_span(any_arch)
    tape = make_workload(name.format(8 * page), 3, page)
    with pykmm.Machine(any_arch, cpus=3, memory=memory_needed(tape, any_arch)) as machine:
        results = machine.run(tape).results
    tables: list[set[int]] = [set(), set(), set()]
    threads = [i for i, thread in enumerate(tape.threads) if thread.kind == "thread"]
    for op in tape.ops[np.isin(tape.ops["op"], [OPCODES["TOUCH"], OPCODES["MMAP"]]) & (tape.ops["phase"] == 1)]:
        at = int(op["addr"]) + (int(results[op["addr_ref"]]) if op["addr_ref"] >= 0 else 0)
        tables[threads.index(op["thread"])] |= {at // span, (at + int(op["len"]) - 1) // span}
    assert all(tables)
    if name.startswith("cortenmm-PF"):      # of one mapping, which begins anywhere
        assert len(set.intersection(*tables)) == 0
    else:
        assert not tables[0] & tables[1] and not tables[0] & tables[2] and not tables[1] & tables[2]


@pytest.mark.parametrize("scenario", ["R10-collapse", "R18-collapse"])
def test_a_collapse_is_of_a_whole_page_table(any_arch: Arch, scenario: str) -> None:
    tape = get(scenario).tape(page_size(any_arch), table_span(any_arch))
    with pykmm.Machine(any_arch, cpus=2, memory=4096 * page_size(any_arch)) as machine:
        result = machine.run(tape)
        machine.validate()
    assert not result.mismatches
    collapses = tape.ops["op"] == OPCODES["MADVISE"]
    assert set(result.errnos[collapses].tolist()) <= {errno.ENOMEM, errno.EAGAIN}


# ---- the tests of everything else ----------------------------------------------------------------

def modules(name: str) -> tuple[str, ...]:
    if name == "odd":
        return tuple(module for module in (*MODULES, *POWER_MODULES) if module not in WITHOUT_MANUAL)
    if name == "ppc64":
        return (*MODULES, *POWER_MODULES, *LONG_MODULES, *WEAK_MODULES)
    return (*MODULES, *POWER_MODULES) if name == "ppc64-4k" else MODULES


@pytest.mark.parametrize("name", [*(name for name in NAMES if name not in {"x86", "x86-paravirt"}), "odd"])
def test_the_tests_on_it(name: str) -> None:
    """x86 is what they run on by themselves, and x86-paravirt is among their machines there. "odd" is no arch of
    pykmm's: nothing that all of those have in common may be taken for granted outside of a backend."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--no-header", "--tb=short",
         *[str(TESTS / f"{module}.py") for module in modules(name)]],
        env={**os.environ, "PYKMM_TEST_ARCH": name}, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
