# SPDX-License-Identifier: GPL-2.0-only
"""Strategies in Python: speculative faults and faults of files."""
from __future__ import annotations

import mmap
from typing import Any

import pytest
from made_strategies import first_classic, in_a_fault, make, touched
from python_strategies import PythonGup, PythonSpf

import pykmm
from pykmm import kernel

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

    with pykmm.Machine(strategy=make(PythonSpf, lock=lock), memory="16M") as machine:
        mm, a = touched(machine)
        mm.store(a + 0x1002, b"x")
    assert seen == [(a + 0x1000, a, a + 0x4000, 3, (a >> 12) + 1, 1, a, True, 0, "no_anon_vma",
                     kernel.FAULT_FLAG_WRITE)]


def test_a_refusal_is_a_retry() -> None:
    made = make(PythonSpf, pte_map_lock=lambda self, cpu, vmf: False)
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
    made = make(PythonSpf, **{member: lambda self, cpu, vmf: value})
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

    with pykmm.Machine(strategy=make(PythonSpf, pte_map_lock=pte_map_lock), memory="16M") as machine:
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

    with pykmm.Machine(strategy=make(PythonSpf, pte_map_lock=refuses), memory="16M") as machine:
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
    with pykmm.Machine(strategy=make(PythonSpf, pte_map_lock=pte_map_lock), memory="16M") as machine:
        mm, a = touched(machine)
        with pytest.raises(KeyError, match="hook"):
            mm.store(a + 0x1000, b"x")
        machine.validate()
    made = make(PythonSpf, pte_map_lock=pte_map_lock, handle_fault=first_classic(handle_fault))
    with pykmm.Machine(strategy=made, memory="16M") as machine:
        mm, a = touched(machine)
        mm.store(a + 0x1000, b"x")
        assert caught == [0]
        assert mm.load(a + 0x1000, 1) == b"x"
        machine.validate()


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
    made = make(PythonSpf, filemap_fault=lambda self, cpu, vmf: kernel.filemap_fault(cpu, vmf))
    assert file_reads(made) == (b"abc", {"attempts": 2, "successes": 2})
    made = make(PythonSpf, filemap_fault=None)   # as C does without one
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
    made = make(PythonSpf, filemap_fault=filemap_fault)
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
