# SPDX-License-Identifier: GPL-2.0-only
"""kernel/lockdep_events.pyx: the mm's own locks and events, under lockdep."""
import mmap

import pytest
from arch_under_test import ARCH, GEOMETRY, PAGE, frames

import pykmm
from pykmm_ext.kernel.lockdep_events import known_locks
from pykmm_ext.kernel.lockdep_test import Traced, find_vma_srcu_unlocked, lock_ptl_irqs_off
from pykmm_ext.mm.memory_test import lock_ptl

RW = mmap.PROT_READ | mmap.PROT_WRITE
ANON = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
BROADCAST = GEOMETRY["tlb_broadcast"]
MADV_DONTNEED = 4
MREMAP_MAYMOVE = 1


def everything(machine):
    """Every operation, on private, shared and file mappings, by two CPUs and across a fork."""
    mm = machine.mm()
    a = mm.mmap(0, 16 * PAGE, RW, ANON)
    for cpu in (0, 1):
        mm.store(a + cpu * PAGE, b"A", cpu=cpu)
    mm.mprotect(a + 4 * PAGE, PAGE, mmap.PROT_READ)
    mm.mprotect(a + 4 * PAGE, PAGE, RW)
    mm.load(a + 5 * PAGE, 1)
    child = mm.fork()
    mm.store(a, b"parent", cpu=0)
    mm.store(a + PAGE, b"parent", cpu=1)
    child.store(a, b"child", cpu=1)
    file = machine.file("f", data=b"contents" * 2000)
    private = mm.mmap(0, 3 * PAGE, RW, mmap.MAP_PRIVATE, file=file)
    shared = mm.mmap(0, 3 * PAGE, RW, mmap.MAP_SHARED, file=file)
    mm.load(private, 8)
    mm.store(private, b"mine")
    mm.store(shared, b"all", cpu=1)
    second = mm.fork()
    moved = mm.mremap(a, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE)
    mm.store(moved + 20 * PAGE, b"x", cpu=1)
    mm.madvise(moved, 4 * PAGE, MADV_DONTNEED)
    mm.mlock(moved, 2 * PAGE)
    mm.munlock(moved, 2 * PAGE)
    top = mm.brk(0)
    mm.brk(top + 4 * PAGE)
    mm.brk(top)
    mm.munmap(private + PAGE, PAGE)
    mm.munmap(shared, 3 * PAGE)
    mm.msync(private, PAGE, 4)
    mm.smaps()
    child.exit()
    second.exit()
    mm.exit()


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "spf-2021"])
def test_the_mm_keeps_the_order(strategy):
    with pykmm.Machine(arch=ARCH, strategy=strategy, cpus=2, memory=frames("64M")) as machine:
        with Traced(machine) as traced:
            for _ in range(2):
                everything(machine)
        assert traced.reports == []
        assert traced.unknown == 0
        assert traced.held == 0
        edges = traced.edges()
    # It has seen what docs/reference/locking says.
    expected = {("mm_struct.mmap_sem", "address_space.i_mmap_rwsem"), ("address_space.i_mmap_rwsem", "anon_vma.rwsem"),
                ("anon_vma.rwsem", "mm_struct.page_table_lock"), ("mm_struct.mmap_sem", "mm_struct.mmap_sem/1"),
                ("page.ptl", "page.ptl/1")}
    if BROADCAST:
        expected |= {("mm_struct.mmap_sem", "tlb.lock"), ("page.ptl", "tlb.lock"), ("irqs-off", "tlb.lock")}
        assert not [edge for edge in edges if edge[0] == "tlb.lock"]        # a leaf
    else:
        expected |= {("mm_struct.mmap_sem", "irqs-off"), ("page.ptl", "irqs-off")}
    if strategy == "spf":
        expected |= {("anon_vma.rwsem", "vm_area_struct.vm_sequence"), ("vma_srcu", "mm_struct.mm_seq.seqcount"),
                     ("vm_area_struct.vm_sequence", "vm_area_struct.vm_sequence/1"),
                     ("vm_area_struct.vm_sequence", "mm_struct.mm_seq.lock")}
    assert expected <= edges
    # A fault that has IRQs off waits for no lock: it tries.
    assert not [edge for edge in edges if edge[0] == "irqs-off" and edge[1] not in ("tlb.lock", "rcu_read_lock")]


def test_sleeping_under_a_spinlock_is_seen():
    with pykmm.Machine(arch=ARCH, strategy="mmap_sem", cpus=1, memory=frames("16M")) as machine:
        mm = machine.mm()
        a = mm.mmap(0, PAGE, RW, ANON)
        mm.store(a, b"x")
        with Traced(machine) as traced:
            lock_ptl(mm, a, True)
            mm.mmap(0, PAGE, RW, ANON)
            lock_ptl(mm, a, False)
        text = "\n".join(traced.reports)
    assert "sleep-in-atomic" in text
    assert "page.ptl (write) since" in text
    assert "down_write" in text
    assert "kmem_cache_alloc" in text


def test_a_wrong_order_is_seen():
    """mmap_sem inside the PTL, against every fault."""
    with pykmm.Machine(arch=ARCH, strategy="mmap_sem", cpus=1, memory=frames("16M")) as machine:
        mm = machine.mm()
        a = mm.mmap(0, PAGE, RW, ANON)
        with Traced(machine) as traced:
            mm.store(a, b"x")
            assert traced.reports == []
            lock_ptl(mm, a, True)
            mm.mlock(a, PAGE)
            lock_ptl(mm, a, False)
        assert any(report.startswith("lock-order:") and "page.ptl" in report and "mm_struct.mmap_sem" in report
                   for report in traced.reports)


@pytest.mark.skipif(BROADCAST, reason="flushes wait for nobody's IRQs")
def test_spinning_for_the_ptl_with_irqs_off_is_seen():
    """The deadlock of a fault that does not try, with one CPU and nobody in its way."""
    with pykmm.Machine(arch=ARCH, strategy="spf", cpus=1, memory=frames("16M")) as machine:
        mm = machine.mm()
        a = mm.mmap(0, PAGE, RW, ANON)
        with Traced(machine) as traced:
            mm.store(a, b"x")
            child = mm.fork()
            mm.store(a, b"y")                      # do_wp_page: flushes under the PTL
            child.exit()
            assert traced.reports == []
            lock_ptl_irqs_off(mm, a)
            (report,) = traced.reports
    assert report.startswith("lock-order:")
    assert "irqs-off -> page.ptl" in report
    assert "page.ptl -> irqs-off" in report


def test_lookup_without_srcu_is_seen():
    with pykmm.Machine(arch=ARCH, strategy="spf", cpus=1, memory=frames("16M")) as machine:
        mm = machine.mm()
        a = mm.mmap(0, PAGE, RW, ANON)
        with Traced(machine) as traced:
            assert find_vma_srcu_unlocked(mm, a)
            (report,) = traced.reports
    assert report.startswith("rcu-not-held:")


def test_the_table_knows_every_lock_once():
    table = known_locks()
    assert len({(type_, offset) for type_, offset, _, _ in table}) == len(table)
    names = {name for _, _, name, _ in table}
    assert {"mm_struct.mmap_sem", "mm_struct.page_table_lock", "mm_struct.mm_seq.lock", "mm_struct.mm_seq.seqcount",
            "page.ptl", "tlb.lock", "address_space.i_mmap_rwsem", "address_space.i_pages_lock", "anon_vma.rwsem",
            "machine.lock",
            "vm_area_struct.vm_sequence", "zone.lock", "kmem_cache.lock", "rcu_state.gp_lock", "srcu_struct.gp_mutex",
            "rcu_state.cblist.lock", "srcu_struct.cblist.lock", "rw_semaphore.wait_lock", "vma_srcu",
            "rcu_read_lock"} <= names
    assert {kind for _, _, _, kind in table} == {"spinlock", "rwsem", "seqcount", "rcu", "srcu"}
    assert max(offset for type_, offset, _, _ in table if type_ == "page") < 80
