# SPDX-License-Identifier: GPL-2.0-only
# cython: language_level=3
"""arch/x86/mm/fault.c, reduced: a third party's strategy that takes every fault under mmap_sem for reading."""
from pykmm_ext.kernel.rwsem cimport down_read, up_read
from pykmm_ext.machine.cpu cimport Cpu, count_strategy
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.memory cimport access_error, handle_mm_fault
from pykmm_ext.mm.mm_types cimport VM_FAULT_ERROR, mm_struct, strategy_ops, vm_area_struct, vm_fault_t
from pykmm_ext.mm.mmap cimport find_vma
from pykmm_ext.strategy cimport Strategy

cdef enum:
    ATTEMPTS
    SUCCESSES
    RETRIED
    ERRORS
    OTHER                   # why it was retried: no VMA, one that does not allow the access, a stack that has to grow

cdef const char *counter_names[6]
counter_names[:] = ["attempts", "successes", "retried", "errors", "other", NULL]


# Context: process, IRQs on, no locks held; sleeps on mmap_sem.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_area_struct *vma
    cdef vm_fault_t fault
    count_strategy(cpu, ATTEMPTS)
    down_read(cpu, &mm.mmap_sem)
    vma = find_vma(cpu, mm, address)
    if vma == NULL or vma.vm_start > address or access_error(vma.vm_flags, flags):
        up_read(cpu, &mm.mmap_sem)
        count_strategy(cpu, RETRIED)
        count_strategy(cpu, OTHER)
        return handle_fault_mmap_sem(cpu, mm, address, flags)
    fault = handle_mm_fault(cpu, vma, address, flags)
    up_read(cpu, &mm.mmap_sem)
    count_strategy(cpu, ERRORS if fault & VM_FAULT_ERROR else SUCCESSES)
    return fault


cdef strategy_ops ops
ops.size = sizeof(strategy_ops)
ops.name = b"reader_only"
ops.counter_names = counter_names
ops.handle_fault = handle_fault


cdef class ReaderOnly(Strategy):
    """Every other member is NULL: this strategy needs nothing there."""

    def __cinit__(self):
        self.ops = &ops
        self.name = "reader_only"
        self.description = "a third party's strategy: every fault under mmap_sem"
