# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python: pins without a lock, downgrades, type-stable VMAs, words."""
from __future__ import annotations

from typing import Any

import pytest
from made_strategies import PRIVATE_ANON, RW, in_a_fault, make, touched
from python_strategies import RIGHT, PythonGup, PythonRefcount

import pykmm
from pykmm import kernel


@pytest.mark.parametrize("strategy", RIGHT)
def test_they_run(strategy: type[pykmm.PythonStrategy]) -> None:
    with pykmm.Machine(strategy=strategy(), memory="16M") as machine:
        mm, a = touched(machine, 16)
        mm.touch(a, 0x10000, "w", cpu=1)
        mm.load(a, 1)
        with mm.pin(a, 0x4000, write=True) as pin:
            pin.write(b"device")
            child = mm.fork()
            child.store(a, b"child")
        assert mm.load(a, 6) == b"device"
        mm.munmap(a + 0x4000, 0x4000)
        child.exit()
        machine.validate()


# ---- gup_fast ----

def test_pins_without_a_lock() -> None:
    with pykmm.Machine(strategy=PythonGup(), memory="16M") as machine:
        mm, a = touched(machine, 8)
        mm.touch(a, 0x6000, "w")
        with mm.pin(a, 0x6000, write=True) as pin:
            assert machine.counters["gup_fast"] == 1
            pin.write(b"device")
        assert mm.load(a, 6) == b"device"
        mm.pin(a, 0x8000).unpin()       # two pages are not there: the slow path does them
        assert machine.counters["gup_slow"] == 1
        vmstat = machine.vmstat
        assert vmstat["nr_foll_pin_acquired"] == vmstat["nr_foll_pin_released"] > 0
        mm.exit()
        machine.validate()


def test_the_compiled_walk_in_place_of_a_method() -> None:
    def part(self: Any, cpu: Any, mm: Any, start: int, nr_pages: int, gup_flags: int, pages: Any) -> int:
        n = kernel.lockless_pages_from_mm(cpu, mm, start, 2, gup_flags, pages)
        assert n == 2
        n += kernel.lockless_pages_from_mm(cpu, mm, start + 0x2000, nr_pages - 2, gup_flags, pages)
        assert n == len(pages)
        return n

    for gup_fast in (kernel.lockless_pages_from_mm, part):
        with pykmm.Machine(strategy=make(PythonGup, gup_fast=gup_fast), memory="16M") as machine:
            mm, a = touched(machine, 8)
            mm.touch(a, 0x8000, "w")
            mm.pin(a, 0x4000, write=True).unpin()
            vmstat = machine.vmstat
            assert vmstat["nr_foll_pin_acquired"] == vmstat["nr_foll_pin_released"] == 4
            mm.exit()
            machine.validate()


def grabbed(cpu: Any, mm: Any, start: int, flags: int) -> tuple[Any, Any, int, Any]:
    kernel.begin_lockless_pgtbl_walk(cpu, mm)
    pmd = kernel.mm_find_pmd(cpu, mm, start)
    ptep = kernel.pte_offset(cpu, pmd, kernel.READ_ONCE(cpu, pmd))
    pte = kernel.READ_ONCE(cpu, ptep)
    page = kernel.try_grab_page(cpu, ptep, pte, flags)
    kernel.end_lockless_pgtbl_walk(cpu, mm)
    return pmd, ptep, pte, page


NOWHERE = 0x7fffffffff067       # an x86 entry that points beyond the machine's memory


def gup_leak(self: Any, cpu: Any, mm: Any, start: int, nr_pages: int, flags: int, pages: Any) -> int:
    grabbed(cpu, mm, start, flags)
    return 0


def gup_raises(self: Any, cpu: Any, mm: Any, start: int, nr_pages: int, flags: int, pages: Any) -> int:
    pages.append(grabbed(cpu, mm, start, flags)[3])
    grabbed(cpu, mm, start, flags)
    raise KeyError("gup")


def gup_too_many(self: Any, cpu: Any, mm: Any, start: int, nr_pages: int, flags: int, pages: Any) -> int:
    pages.append(grabbed(cpu, mm, start, flags)[3])
    pages.append(grabbed(cpu, mm, start, flags)[3])
    return 2


def gup_again(self: Any, cpu: Any, mm: Any, start: int, nr_pages: int, flags: int, pages: Any) -> int:
    page = grabbed(cpu, mm, start, flags)[3]
    kernel.put_page(cpu, page)
    kernel.put_page(cpu, page)
    return 0


def gup_handed_over(self: Any, cpu: Any, mm: Any, start: int, nr_pages: int, flags: int, pages: Any) -> int:
    page = grabbed(cpu, mm, start, flags)[3]
    pages.append(page)
    kernel.put_page(cpu, page)
    return 0


@pytest.mark.parametrize(("gup_fast", "error", "message"), [
    (lambda *_: None, pykmm.PluginError, "returned None; it has to return how many pages"),
    (lambda *_: -1, pykmm.PluginError, "returned -1; it has to return how many pages"),
    (lambda *_: 1, pykmm.PluginError, "returned 1, and there are 0 pages in the array"),
    (gup_leak, pykmm.PluginError, "still holds a reference to a page"),
    (gup_raises, KeyError, "gup"),
    (gup_too_many, RuntimeError, "was asked for 1 pages"),
    (gup_again, RuntimeError, "has been given up already"),
    (gup_handed_over, RuntimeError, "has been given up already"),
    (lambda s, cpu, mm, start, n, flags, pages: kernel.lockless_pages_from_mm(cpu, mm, start, 2, flags, pages),
     RuntimeError, "room for 1 pages, not 2"),
    (lambda s, cpu, mm, start, n, flags, pages: kernel.lockless_pages_from_mm(cpu, mm, start, 1, 4, pages),
     RuntimeError, "gup_flags are others"),
    (lambda s, cpu, mm, start, n, flags, pages: kernel.lockless_pages_from_mm(cpu, mm, 1 << 62, 1, flags, pages),
     RuntimeError, "not all of these pages are a program's"),
    (lambda s, cpu, mm, start, n, flags, pages: kernel.lockless_pages_from_mm(cpu, mm, start, 1, flags),
     TypeError, "takes a CpuHandle, an MmHandle, 3 numbers and a PageArray"),
    (lambda s, cpu, mm, start, n, flags, pages:
     kernel.pte_offset(cpu, kernel.mm_find_pmd(cpu, mm, start), NOWHERE), RuntimeError, "leads out of the machine"),
    (lambda s, cpu, mm, start, n, flags, pages:
     kernel.try_grab_page(cpu, grabbed(cpu, mm, start, flags)[1], NOWHERE, flags), RuntimeError, "maps no page"),
    (lambda s, cpu, mm, start, n, flags, pages:
     kernel.pte_offset(cpu, grabbed(cpu, mm, start, flags)[1], 0x1067), RuntimeError, "leads to no table"),
])
def test_mistakes_of_gup_fast(gup_fast: Any, error: type[Exception], message: str) -> None:
    with pykmm.Machine(strategy=make(PythonGup, gup_fast=gup_fast), memory="16M") as machine:
        mm, a = touched(machine)
        with pytest.raises(error, match=message):
            mm.pin(a, 0x1000, write=True)
        mm.store(a, b"B")
        mm.mmap(0, 0x1000, RW, PRIVATE_ANON)
        mm.exit()
        machine.validate()              # no reference is left


def test_entries() -> None:
    seen: list[Any] = []

    def gup_fast(self: Any, cpu: Any, mm: Any, start: int, nr_pages: int, flags: int, pages: Any) -> int:
        pmd, ptep, pte, page = grabbed(cpu, mm, start, flags)
        seen.append((pmd.level, ptep.level, kernel.pte_access_permitted(cpu, pte, True), kernel.pte_special(cpu, pte),
                     kernel.gup_must_unshare(cpu, page, pte, flags), kernel.pte_offset(cpu, pmd, 0),
                     kernel.mm_find_pmd(cpu, mm, 1 << 63), kernel.mm_find_pmd(cpu, mm, 0x10000)))
        kernel.put_page(cpu, page)
        return 0

    with pykmm.Machine(strategy=make(PythonGup, gup_fast=gup_fast), memory="16M") as machine:
        mm, a = touched(machine)
        mm.pin(a, 0x1000).unpin()
    assert seen == [(1, 0, True, False, False, None, None, None)]


# ---- mmap_write_downgrade, vma_typesafe, words ----

def grown(machine: pykmm.Machine) -> None:
    """A stack grows (MAP_FIXED, MAP_GROWSDOWN): a writer that always downgrades."""
    mm = machine.mm()
    a = mm.mmap(0x10000000, 0x2000, RW, PRIVATE_ANON | 0x110)
    mm.store(a, b"x")
    mm.store(a - 0x800, b"y")
    assert mm.find_vma(a - 0x800).start == a - 0x1000
    machine.validate()
    mm.munmap(a - 0x1000, 0x3000)
    mm.exit()


def test_mmap_write_downgrade() -> None:
    calls: list[int] = []

    def mmap_write_downgrade(self: Any, cpu: Any, mm: Any) -> None:
        calls.append(cpu.id)
        PythonRefcount.mmap_write_downgrade(self, cpu, mm)

    made = make(PythonRefcount, mmap_write_downgrade=mmap_write_downgrade, munmap_downgrade=False)
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        grown(machine)
        machine.validate()
    assert calls == [0]


@pytest.mark.parametrize("downgrade", [False, True])
def test_munmap_downgrade(downgrade: bool) -> None:
    """munmap, brk and mremap that shrink end as readers; whatever else unmaps ends as a writer."""
    calls: list[str] = []

    def mmap_write_unlock(self: Any, cpu: Any, mm: Any) -> None:
        calls.append("unlock")
        PythonRefcount.mmap_write_unlock(self, cpu, mm)

    def mmap_write_downgrade(self: Any, cpu: Any, mm: Any) -> None:
        calls.append("downgrade")
        PythonRefcount.mmap_write_downgrade(self, cpu, mm)

    made = make(PythonRefcount, mmap_write_unlock=mmap_write_unlock, mmap_write_downgrade=mmap_write_downgrade,
                munmap_downgrade=downgrade)
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm = machine.mm()
        a = mm.mmap(0, 0x9000, RW, PRIVATE_ANON)
        mm.store(a + 0x6000, b"x")
        brk = mm.brk()
        mm.brk(brk + 0x3000)
        mm.store(brk + 0x2000, b"x")
        end = "downgrade" if downgrade else "unlock"
        for call, expected in (
                (lambda: mm.munmap(a, 0x1000), end), (lambda: mm.munmap(a + 0x4000, 0x1000), end),
                (lambda: mm.munmap(a, 0x1000), "unlock"),           # nothing there
                (lambda: mm.mremap(a + 0x5000, 0x4000, 0x1000), end),
                (lambda: mm.mremap(a + 0x5000, 0x1000, 0x1000), "unlock"),
                (lambda: mm.brk(brk + 0x1000), end), (lambda: mm.brk(brk + 0x1000), "unlock"),
                (lambda: mm.mmap(a, 0x2000, RW, PRIVATE_ANON | 0x10), "unlock")):
            calls.clear()
            call()
            assert calls == [expected]
            machine.validate()
        assert mm.brk() == brk + 0x1000
        mm.exit()


@pytest.mark.parametrize(("downgrade", "error", "message"), [
    (lambda self, cpu, mm: None, pykmm.PluginError, "does not hold mmap_sem for reading"),
    (lambda self, cpu, mm: kernel.up_write(cpu, mm), pykmm.PluginError, "does not hold mmap_sem for reading"),
    (lambda self, cpu, mm: 1 // 0, ZeroDivisionError, "by zero"),
    (lambda self, cpu, mm: (kernel.downgrade_write(cpu, mm), 1 // 0), ZeroDivisionError, "by zero"),
    (lambda self, cpu, mm: (kernel.downgrade_write(cpu, mm), kernel.rcu_read_lock(cpu), None)[2], pykmm.PluginError,
     "still holds an RCU read section"),
])
def test_mistakes_of_mmap_write_downgrade(downgrade: Any, error: type[Exception], message: str) -> None:
    made = make(PythonRefcount, mmap_write_downgrade=downgrade)
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        with pytest.raises(error, match=message):
            grown(machine)
        with pytest.raises(pykmm.PluginError, match="can only be closed"):
            machine.mm()


def test_type_stable_vmas_are_recycled() -> None:
    seen: list[int] = []

    class Recycled(PythonRefcount):
        name = "recycled"

        def vma_init(self, cpu: Any, vma: Any) -> None:
            seen.append(hash(vma))
            assert vma.vm_refcnt == 0
            super().vma_init(cpu, vma)

    with pykmm.Machine(strategy=Recycled(), memory="16M") as machine:
        mm = machine.mm()
        for _ in range(4):
            mm.munmap(mm.mmap(0, 0x1000, RW, PRIVATE_ANON), 0x1000)
    assert len(seen) == 4
    assert len(set(seen)) == 1


def test_words() -> None:
    def body(cpu: Any, mm: Any, address: int, flags: int) -> int:
        kernel.mmap_read_lock(cpu, mm)
        vma = kernel.find_vma(cpu, mm, address)
        count, wide = vma.at("vm_refcnt"), vma.at("vm_lock_seq")
        count.value = 5
        assert kernel.atomic_add_return(cpu, count, -6) == vma.vm_refcnt == 0xffffffff
        assert kernel.xchg(cpu, count, 2) == 0xffffffff
        assert kernel.cmpxchg(cpu, count, 2, 3) == 2
        assert kernel.smp_load_acquire(cpu, count) == kernel.await_equal(cpu, count, 7, 3) == 3
        vma.vm_lock_seq = 1 << 40
        assert kernel.xchg(cpu, wide, 7) == 1 << 40
        kernel.smp_store_release(cpu, count, 0)
        for name in ("mmap_seq", "mm_lock_seq", "vma_writer_wait", "strategy_data"):
            word = mm.at(name)
            before = word.value
            assert kernel.atomic_add_return(cpu, word, 1) == before + 1
            word.value = before
        with pytest.raises(OverflowError, match="too large for a word of 32 bits"):
            kernel.xchg(cpu, count, 1 << 32)
        with pytest.raises(ValueError, match="no word 'vm_flags' in a VMA that a strategy may change; there are"):
            vma.at("vm_flags")
        with pytest.raises(ValueError, match="no word 'pgd' in an address space"):
            mm.at("pgd")
        with pytest.raises(TypeError, match="expected an MmHandle, a VmaHandle or a FieldHandle, not int"):
            kernel.xchg(cpu, 3, 1)  # type: ignore[arg-type]
        kernel.mmap_read_unlock(cpu, mm)
        seen.append(True)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    seen: list[bool] = []
    with pykmm.Machine(strategy=in_a_fault(body), memory="16M") as machine:
        mm, a = touched(machine)
        mm.store(a + 0x1000, b"x")
    assert seen
