# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of strategies in Python are made of: small strategies, and others that differ in some methods."""
from __future__ import annotations

from typing import Any

import pytest
from python_strategies import PythonRefcount, PythonSpf

import pykmm
from pykmm import kernel

RW = 3
PRIVATE_ANON = 0x22


class Plain(pykmm.PythonStrategy):
    """Every fault under mmap_sem, by hand."""

    name = "plain"
    counters = ("seen", "none")

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        kernel.count(cpu, "seen")
        kernel.mmap_read_lock(cpu, mm)
        vma = kernel.find_vma(cpu, mm, address)
        if vma is None or vma.vm_start > address:
            result = kernel.VM_FAULT_SIGSEGV | kernel.VM_FAULT_BADMAP
        elif kernel.access_error(vma.vm_flags, flags):
            result = kernel.VM_FAULT_SIGSEGV | kernel.VM_FAULT_BADACCESS
        else:
            result = kernel.handle_mm_fault(cpu, vma, address, flags)
        kernel.mmap_read_unlock(cpu, mm)
        return result


class Full(Plain):
    """Every member of the writers' side, with a log of the calls."""

    name = "full"

    def __init__(self) -> None:
        self.log: list[str] = []

    def mmap_write_lock(self, cpu: Any, mm: Any, start: int, end: int) -> None:
        assert start <= end
        self.log.append("mmap_write_lock")
        if not kernel.down_write_trylock(cpu, mm):
            kernel.down_write(cpu, mm)

    def mmap_write_unlock(self, cpu: Any, mm: Any) -> None:
        self.log.append("mmap_write_unlock")
        kernel.up_write(cpu, mm)

    def vma_write_begin(self, cpu: Any, vma: Any, subclass: int) -> None:
        self.log.append("vma_write_begin")
        kernel.spf_vma_write_begin(cpu, vma, subclass)
        assert vma.vm_sequence & kernel.SPF_WRITER_MASK

    def vma_write_end(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_write_end")
        kernel.spf_vma_write_end(cpu, vma)

    def tree_write_begin(self, cpu: Any, mm: Any) -> None:
        self.log.append("tree_write_begin")
        kernel.write_seqlock(cpu, mm)

    def tree_write_end(self, cpu: Any, mm: Any) -> None:
        self.log.append("tree_write_end")
        kernel.write_sequnlock(cpu, mm)

    def free_vma(self, cpu: Any, vma: Any) -> None:
        self.log.append("free_vma")
        kernel.vm_area_free_rcu(cpu, vma)

    def vma_init(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_init")
        assert vma.strategy_data == 0
        vma.strategy_data = 7

    def mm_init(self, cpu: Any, mm: Any) -> int:
        self.log.append("mm_init")
        return 0

    def mm_exit(self, cpu: Any, mm: Any) -> None:
        self.log.append("mm_exit")

    def vma_start_write(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_start_write")

    def vma_mark_attached(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_mark_attached")

    def vma_mark_detached(self, cpu: Any, vma: Any) -> None:
        self.log.append("vma_mark_detached")

    def quiesce(self, cpu: Any, machine: Any) -> None:
        assert machine.nr_cpus == 2
        kernel.rcu_barrier(cpu, machine)
        self.log.append("quiesce")


class Fallback(pykmm.PythonStrategy):
    """The least that a strategy does."""

    name = "fallback"

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)


def make(base: type[pykmm.PythonStrategy], **members: Any) -> Any:
    """An object of a class that is `base` but for `members`; its name is "made"."""
    return type("Made", (base,), {"name": "made", **members})()


def in_every_fault(body: Any) -> Any:
    def handle_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        body(cpu, mm)
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)
    return make(Fallback, handle_fault=handle_fault)


def used(machine: pykmm.Machine, cpu: int = 0) -> None:
    """A little of everything."""
    mm = machine.mm()
    a = mm.mmap(0, 0x8000, RW, PRIVATE_ANON)
    mm.store(a, b"hello", cpu=cpu)
    mm.touch(a, 0x8000, "w", cpu=cpu)
    mm.mprotect(a + 0x1000, 0x1000, 1)
    with pytest.raises(pykmm.SegmentationFault, match="ACCERR"):
        mm.store(a + 0x1000, b"x", cpu=cpu)
    mm.munmap(a + 0x3000, 0x1000)
    with pytest.raises(pykmm.SegmentationFault, match="MAPERR"):
        mm.load(a + 0x3000, 1, cpu=cpu)
    child = mm.fork()
    child.store(a, b"child")
    assert mm.load(a, 5, cpu=cpu) == b"hello"
    child.exit()
    machine.validate()
    mm.exit()


def bad_fault(self: Any, cpu: Any, mm: Any, address: int, flags: int) -> int:
    kernel.mmap_read_lock(cpu, mm)
    kernel.srcu_read_lock(cpu)
    kernel.rcu_read_lock(cpu)
    if flags & kernel.FAULT_FLAG_WRITE:
        raise ValueError("no writes today")
    kernel.rcu_read_unlock(cpu)
    kernel.srcu_read_unlock(cpu, 0)
    kernel.mmap_read_unlock(cpu, mm)
    return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)


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
    return make(base, handle_fault=first_classic(lambda self, *arguments: body(*arguments)))


def mapped(machine: pykmm.Machine) -> tuple[pykmm.MmStruct, int]:
    mm = machine.mm()
    return mm, mm.mmap(0, 0x4000, RW, PRIVATE_ANON)


def touched(machine: pykmm.Machine, pages: int = 4) -> tuple[pykmm.MmStruct, int]:
    """An address space with a page table and an anon_vma, of which the first page is there."""
    mm = machine.mm()
    a = mm.mmap(0, pages * 0x1000, RW, PRIVATE_ANON)
    mm.store(a, b"A")
    return mm, a


class Everything(PythonRefcount):
    """The rest of the writers' side."""

    name = "everything"

    def vma_write_begin(self, cpu: Any, vma: Any, subclass: int) -> None:
        kernel.spf_vma_write_begin(cpu, vma, subclass)

    def vma_write_end(self, cpu: Any, vma: Any) -> None:
        kernel.spf_vma_write_end(cpu, vma)

    def tree_write_begin(self, cpu: Any, mm: Any) -> None:
        kernel.write_seqlock(cpu, mm)

    def tree_write_end(self, cpu: Any, mm: Any) -> None:
        kernel.write_sequnlock(cpu, mm)

    def free_vma(self, cpu: Any, vma: Any) -> None:
        kernel.vm_area_free(cpu, vma)
