# SPDX-License-Identifier: GPL-2.0-only
"""pykmm_ext/pykernel/memory.pyx, gup.pyx and what pystrategy.pyx adds for them: PTL hooks, pins, files, downgrades."""
from __future__ import annotations

import mmap
from typing import Any

import pytest
from python_strategies import RIGHT, PythonGup, PythonRefcount, PythonSpf

import pykmm
from pykmm import kernel

RW = 3
PRIVATE_ANON = 0x22


def derived(base: type[pykmm.PythonStrategy], **members: Any) -> pykmm.PythonStrategy:
    return type("Made", (base,), {"name": "made", **members})()


def touched(machine: pykmm.Machine, pages: int = 4) -> tuple[pykmm.MmStruct, int]:
    """An address space with a page table and an anon_vma, of which the first page is there."""
    mm = machine.mm()
    a = mm.mmap(0, pages * 0x1000, RW, PRIVATE_ANON)
    mm.store(a, b"A")
    return mm, a


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


# ---- pte_map_lock, pte_spinlock, handle_pte_fault ----

def test_speculative_faults_succeed() -> None:
    with pykmm.Machine(strategy=PythonSpf(), memory="16M") as machine:
        mm, a = touched(machine, 64)
        before = machine.counters
        mm.touch(a, 64 * 0x1000, "w")
        after = machine.counters
    assert after["successes"] - before["successes"] == 63
    assert after["retried"] == before["retried"]


def test_a_vm_fault_shows_what_was_captured() -> None:
    seen: list[Any] = []

    def lock(self: Any, cpu: Any, vmf: Any) -> str:
        seen.append((vmf.address, vmf.vma_start, vmf.vma_end, vmf.vma_flags & 3, vmf.pgoff, vmf.mm.id, vmf.vma.vm_start,
                     bool(vmf.orig_pmd), vmf.orig_pte, vmf.private, vmf.flags & kernel.FAULT_FLAG_WRITE))
        return PythonSpf.lock(self, cpu, vmf)

    with pykmm.Machine(strategy=derived(PythonSpf, lock=lock), memory="16M") as machine:
        mm, a = touched(machine)
        mm.store(a + 0x1002, b"x")
    assert seen == [(a + 0x1000, a, a + 0x4000, 3, (a >> 12) + 1, 1, a, True, 0, "no_anon_vma",
                     kernel.FAULT_FLAG_WRITE)]


def test_a_refusal_is_a_retry() -> None:
    made = derived(PythonSpf, pte_map_lock=lambda self, cpu, vmf: False)
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm, a = touched(machine)
        mm.store(a + 0x1000, b"x")
        assert machine.counters["no_anon_vma"] == machine.counters["retried"] - 1 == 1
        machine.validate()


@pytest.mark.parametrize(("value", "message"), [
    (None, "returned None; it has to return True or False"),
    (1, "returned 1; it has to return True or False"),
    (True, "returned True on CPU 0 and does not hold the page-table lock"),
])
@pytest.mark.parametrize("member", ["pte_map_lock", "pte_spinlock"])
def test_nonsense_of_the_ptl_hooks(member: str, value: Any, message: str) -> None:
    made = derived(PythonSpf, **{member: lambda self, cpu, vmf: value})
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm, a = touched(machine)
        mm.fork()
        with pytest.raises(pykmm.PluginError, match=rf"{member}\(\) {message}") as caught:
            mm.store(a + 0x1000 if member == "pte_map_lock" else a, b"x")
        # It comes out of handle_pte_fault(), through handle_fault().
        assert [note.partition("(")[0] for note in caught.value.__notes__] == [f"in {member}", "in handle_fault"]
        machine.validate()
        assert mm.load(a, 1) == b"A"


def test_what_a_ptl_hook_leaks() -> None:
    def pte_map_lock(self: Any, cpu: Any, vmf: Any) -> bool:
        kernel.walk_begin(cpu, vmf.mm)
        return kernel.pte_trylock(cpu, vmf)     # and goes on with IRQs off

    with pykmm.Machine(strategy=derived(PythonSpf, pte_map_lock=pte_map_lock), memory="16M") as machine:
        mm, a = touched(machine)
        with pytest.raises(pykmm.PluginError, match="pte_map_lock.* still holds a page-table walk of address space 1"):
            mm.store(a + 0x1000, b"x")
        mm.munmap(a, 0x4000)        # takes the PTL, and flushes
        machine.validate()

    def refuses(self: Any, cpu: Any, vmf: Any) -> bool:
        kernel.walk_begin(cpu, vmf.mm)
        kernel.pte_trylock(cpu, vmf)
        kernel.walk_end(cpu, vmf.mm)
        return False

    with pykmm.Machine(strategy=derived(PythonSpf, pte_map_lock=refuses), memory="16M") as machine:
        mm, a = touched(machine)
        with pytest.raises(pykmm.PluginError, match="pte_map_lock.* still holds a page-table lock"):
            mm.store(a + 0x1000, b"x")
        mm.munmap(a, 0x4000)
        machine.validate()


def test_an_exception_of_a_hook_can_be_caught_by_the_fault() -> None:
    def pte_map_lock(self: Any, cpu: Any, vmf: Any) -> bool:
        kernel.walk_begin(cpu, vmf.mm)
        kernel.pte_trylock(cpu, vmf)
        raise KeyError("hook")

    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        index = kernel.srcu_read_lock(cpu)
        try:
            return PythonSpf.speculative_fault(self, cpu, mm, address, flags)[0] & ~kernel.VM_FAULT_RETRY
        except KeyError:
            caught.append(cpu.id)
        finally:
            kernel.srcu_read_unlock(cpu, index)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)

    caught: list[int] = []
    with pykmm.Machine(strategy=derived(PythonSpf, pte_map_lock=pte_map_lock), memory="16M") as machine:
        mm, a = touched(machine)
        with pytest.raises(KeyError, match="hook"):
            mm.store(a + 0x1000, b"x")
        machine.validate()
    made = derived(PythonSpf, pte_map_lock=pte_map_lock, handle_fault=first_classic(handle_fault))
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm, a = touched(machine)
        mm.store(a + 0x1000, b"x")
        assert caught == [0]
        assert mm.load(a + 0x1000, 1) == b"x"
        machine.validate()


def first_classic(handle_fault: Any) -> Any:
    """A handle_fault() whose first call goes the classic way."""
    calls: list[int] = []

    def method(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        calls.append(address)
        if len(calls) == 1:
            return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)
        return handle_fault(self, cpu, mm, address, flags)
    return method


def in_a_fault(body: Any, base: type[pykmm.PythonStrategy] = PythonSpf) -> pykmm.PythonStrategy:
    """A strategy whose second fault runs body(cpu, mm, address, flags)."""
    return derived(base, handle_fault=first_classic(lambda self, *arguments: body(*arguments)))


def fault_of(cpu: Any, mm: Any, address: int, flags: int) -> Any:
    kernel.mmap_read_lock(cpu, mm)
    return kernel.VmFault(cpu, kernel.find_vma(cpu, mm, address), address, flags)


def twice_busy(cpu: Any, mm: Any, address: int, flags: int) -> int:
    vmf = fault_of(cpu, mm, address, flags)
    kernel.walk_begin(cpu, mm)
    kernel.walk_to_pte(cpu, vmf)
    return kernel.handle_pte_fault(cpu, vmf)


def nested(cpu: Any, mm: Any, address: int, flags: int) -> None:
    kernel.walk_begin(cpu, mm)
    kernel.begin_lockless_pgtbl_walk(cpu, mm)


def locked_twice(cpu: Any, mm: Any, address: int, flags: int) -> None:
    vmf = fault_of(cpu, mm, address, flags)
    kernel.walk_begin(cpu, mm)
    kernel.walk_to_pte(cpu, vmf)
    kernel.pte_lock(cpu, vmf)
    kernel.pte_lock(cpu, vmf)


@pytest.mark.parametrize(("body", "message"), [
    (lambda *a: kernel.handle_pte_fault(a[0], fault_of(*a)), "handle_pte_fault.*walk_to_pte.* has found no page table"),
    (lambda *a: kernel.pte_trylock(a[0], fault_of(*a)), "pte_trylock.*walk_to_pte.* has found no page table"),
    (lambda *a: kernel.pmd_same(a[0], fault_of(*a)), "pmd_same.*walk_to_pte.* has found no page table"),
    (twice_busy, "may sleep was called on CPU 0 with mmap_sem of address space 1 for reading, a page-table walk"),
    (lambda *a: kernel.filemap_fault(a[0], fault_of(*a)), "no file is mapped there"),
    (nested, "begin_lockless_pgtbl_walk.* inside of another page-table walk"),
    (locked_twice, "holds a page-table lock already"),
    (lambda cpu, mm, *_: (kernel.walk_begin(cpu, mm), kernel.mmap_read_lock(cpu, mm), kernel.down_write(cpu, mm)),
     "down_write.* holds mmap_sem for reading of address space 1 already: it would wait for itself"),
    (lambda cpu, mm, *_: (kernel.down_write(cpu, mm), kernel.mmap_read_lock(cpu, mm)), "it would wait for itself"),
    (lambda cpu, mm, a, f: (kernel.down_write(cpu, mm), kernel.handle_fault_mmap_sem(cpu, mm, a, f)),
     "handle_fault_mmap_sem.*it would wait for itself"),
    (lambda cpu, mm, *_: (kernel.write_seqlock(cpu, mm), kernel.read_seqbegin(cpu, mm)), "it would wait for itself"),
    (lambda cpu, mm, *_: (kernel.write_seqlock(cpu, mm), kernel.write_seqlock(cpu, mm)), "it would wait for itself"),
    (lambda cpu, mm, *_: (kernel.rcu_read_lock(cpu), kernel.synchronize_rcu(cpu)), "it would wait for itself"),
    (lambda cpu, mm, *_: (kernel.srcu_read_lock(cpu), kernel.synchronize_srcu(cpu)), "it would wait for itself"),
    (lambda cpu, mm, *_: [kernel.rcu_read_lock(cpu) for _ in range(40)], "holds more than 30 locks and references"),
    (lambda cpu, mm, *_: kernel.walk_end(cpu, mm), r"walk_end\(\) on CPU 0, which does not hold it"),
])
def test_mistakes_in_a_fault(body: Any, message: str) -> None:
    with pykmm.Machine(strategy=in_a_fault(body), memory="16M") as machine:
        mm, a = touched(machine)
        with pytest.raises(RuntimeError, match=message):
            mm.store(a + 0x1000, b"x")
        mm.munmap(a, 0x4000)
        machine.validate()


def test_handle_pte_fault_needs_the_hooks() -> None:
    def body(cpu: Any, mm: Any, address: int, flags: int) -> Any:
        vmf = fault_of(cpu, mm, address, flags)
        kernel.walk_begin(cpu, mm)
        assert kernel.walk_to_pte(cpu, vmf)
        kernel.walk_end(cpu, mm)
        return kernel.handle_pte_fault(cpu, vmf)

    with pykmm.Machine(strategy=in_a_fault(body, PythonGup), memory="16M") as machine:
        mm, a = touched(machine)
        with pytest.raises(RuntimeError, match=r"needs a strategy with pte_map_lock\(\) and pte_spinlock\(\)"):
            mm.store(a + 0x1000, b"x")


# ---- filemap_fault ----

def file_reads(strategy: pykmm.PythonStrategy) -> tuple[bytes, dict[str, int]]:
    """The second page of a file is in the page cache and not mapped, the third is not in it."""
    with pykmm.Machine(strategy=strategy, memory="16M", fault_around="4K") as machine:
        file = machine.file("f", data=b"a" * 0x1000 + b"b" * 0x1000 + b"c" * 0x1000)
        other = machine.mm()
        other.load(other.mmap(0, 0x3000, 1, mmap.MAP_PRIVATE, file=file) + 0x1000, 1)
        mm = machine.mm()
        a = mm.mmap(0, 0x3000, 1, mmap.MAP_PRIVATE, file=file)
        got = mm.load(a, 1)
        before = machine.counters
        got += mm.load(a + 0x1000, 1) + mm.load(a + 0x2000, 1)
        after = machine.counters
        other.exit()
        mm.exit()
        file.close()
        machine.validate()
    return got, {name: after[name] - before[name] for name in after if after[name] != before[name]}


def test_filemap_fault() -> None:
    assert file_reads(PythonSpf()) == (b"abc", {"attempts": 2, "successes": 1, "retried": 1, "page_not_cached": 1})


def test_filemap_fault_may_fill_the_page_cache() -> None:
    made = derived(PythonSpf, filemap_fault=lambda self, cpu, vmf: kernel.filemap_fault(cpu, vmf))
    assert file_reads(made) == (b"abc", {"attempts": 2, "successes": 2})
    made = derived(PythonSpf, filemap_fault=None)   # as C does without one
    assert file_reads(made) == (b"abc", {"attempts": 2, "successes": 2})


def given_up(self: Any, cpu: Any, vmf: Any) -> Any:
    page = kernel.filemap_fault(cpu, vmf)
    kernel.put_page(cpu, page)
    return page


def leaked(self: Any, cpu: Any, vmf: Any) -> int:
    kernel.filemap_fault(cpu, vmf)
    return kernel.VM_FAULT_RETRY


@pytest.mark.parametrize(("filemap_fault", "message"), [
    (lambda self, cpu, vmf: None, "returned None; it has to return a PageHandle, or VM_FAULT_RETRY"),
    (lambda self, cpu, vmf: 0, "returned 0; it has to return a PageHandle"),
    (given_up, "returned a page without a reference"),
    (leaked, "still holds a reference to a page"),
])
def test_nonsense_of_filemap_fault(filemap_fault: Any, message: str) -> None:
    made = derived(PythonSpf, filemap_fault=filemap_fault)
    with pykmm.Machine(strategy=made, memory="16M", fault_around="4K") as machine:
        file = machine.file("f", data=b"x" * 0x2000)
        mm = machine.mm()
        a = mm.mmap(0, 0x2000, 1, mmap.MAP_PRIVATE, file=file)
        mm.load(a, 1)
        with pytest.raises(pykmm.PluginError, match=message):
            mm.load(a + 0x1000, 1)
        mm.exit()
        file.close()
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
        with pykmm.Machine(strategy=derived(PythonGup, gup_fast=gup_fast), memory="16M") as machine:
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
    with pykmm.Machine(strategy=derived(PythonGup, gup_fast=gup_fast), memory="16M") as machine:
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

    with pykmm.Machine(strategy=derived(PythonGup, gup_fast=gup_fast), memory="16M") as machine:
        mm, a = touched(machine)
        mm.pin(a, 0x1000).unpin()
    assert seen == [(1, 0, True, False, False, None, None, None)]


# ---- mmap_write_downgrade, vma_typesafe, words ----

def grown(machine: pykmm.Machine) -> None:
    """A stack grows (MAP_FIXED, MAP_GROWSDOWN): the only writer that downgrades."""
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

    with pykmm.Machine(strategy=derived(PythonRefcount, mmap_write_downgrade=mmap_write_downgrade),
                       memory="16M") as machine:
        grown(machine)
        machine.validate()
    assert calls == [0]


@pytest.mark.parametrize(("downgrade", "error", "message"), [
    (lambda self, cpu, mm: None, pykmm.PluginError, "does not hold mmap_sem for reading"),
    (lambda self, cpu, mm: kernel.up_write(cpu, mm), pykmm.PluginError, "does not hold mmap_sem for reading"),
    (lambda self, cpu, mm: 1 // 0, ZeroDivisionError, "by zero"),
    (lambda self, cpu, mm: (kernel.downgrade_write(cpu, mm), 1 // 0), ZeroDivisionError, "by zero"),
    (lambda self, cpu, mm: (kernel.downgrade_write(cpu, mm), kernel.rcu_read_lock(cpu), None)[2], pykmm.PluginError,
     "still holds an RCU read section"),
])
def test_mistakes_of_mmap_write_downgrade(downgrade: Any, error: type[Exception], message: str) -> None:
    made = derived(PythonRefcount, mmap_write_downgrade=downgrade)
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


# ---- the watchdog ----

@pytest.mark.parametrize(("base", "member"), [(PythonSpf, "pte_map_lock"), (PythonGup, "gup_fast")])
def test_the_watchdog_ends_a_loop_with_irqs_off(base: type[pykmm.PythonStrategy], member: str) -> None:
    def loops(self: Any, cpu: Any, x: Any, *_: Any) -> Any:
        if member == "pte_map_lock":
            kernel.walk_begin(cpu, x.mm)
        else:
            kernel.begin_lockless_pgtbl_walk(cpu, x)
        while True:
            kernel.smp_mb(cpu)

    tape = pykmm.Tape()
    a = tape.setup.mmap(0x4000, prot="rw")
    tape.setup.store(a, b"A")
    x = tape.thread()
    if member == "pte_map_lock":
        x.store(a + 0x1000, b"x")
    else:
        x.pin(a, 0x1000)
    tape.thread().munmap(a + 0x2000, 0x1000)
    with pykmm.Machine(strategy=derived(base, **{member: loops}), memory="16M") as machine:
        with pytest.raises(pykmm.PluginError, match=r"(?s)'made': nothing has happened for 0.3 s.*in loops"):
            machine.run(tape, watchdog=0.3)
        machine.validate()


# ---- the check engine ----

def race() -> pykmm.Tape:
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x3000, prot="rw")
    tape.setup.store(a, b"A")
    tape.thread().store(a + 0x1000, b"B")
    tape.thread().madvise(a, 0x3000, 4)
    return tape


def refuse_and_raise(self: Any, cpu: Any, vmf: Any) -> bool:
    kernel.walk_begin(cpu, vmf.mm)
    raise ValueError("hook")


@pytest.mark.parametrize(("pte_map_lock", "kind", "message"), [
    (refuse_and_raise, "exception", r"pte_map_lock\(\) of strategy 'made' on CPU 0: ValueError: hook"),
    (lambda self, cpu, vmf: None, "exception", "returned None"),
    (lambda self, cpu, vmf: True, "exception", "does not hold the page-table lock"),
    (lambda self, cpu, vmf: kernel.walk_begin(cpu, vmf.mm) or False, "lock-held", "still holds a page-table walk"),
])
def test_hooks_on_the_check_engine(pte_map_lock: Any, kind: str, message: str) -> None:
    from pykmm.plugin import get_plugin_manager

    registry = get_plugin_manager().strategies
    before = dict(registry._entries)
    registry.add("made", lambda: derived(PythonSpf, pte_map_lock=pte_map_lock))
    try:
        report = pykmm.check(race(), strategy="made", memory_model="sc", max_seconds=60)
    finally:
        registry._entries = before
    assert [violation.kind for violation in report.violations] == [kind]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(report.violations[0].message)
