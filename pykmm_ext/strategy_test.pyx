# SPDX-License-Identifier: GPL-2.0-only
"""Compiled strategies that do what a strategy must not (no kernel file): for tests of what notices them.

All of them are mmap_sem with one mistake.
"""
from libc.stddef cimport size_t

from pykmm_ext.kernel.atomic cimport kmm_await, kmm_is_equal
from pykmm_ext.kernel.rcu cimport rcu_read_lock
from pykmm_ext.kernel.rwsem cimport down_read, down_write, up_write
from pykmm_ext.kernel.spinlock cimport spin_lock
from pykmm_ext.kernel.srcu cimport srcu_read_lock
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.machine.irq cimport local_irq_disable
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.mm_types cimport VM_FAULT_RETRY, machine_of, mm_struct, strategy_ops, vm_area_struct, vm_fault_t
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr
from pykmm_ext.strategy cimport Strategy


# Contexts: as strategy_ops.handle_fault, or what they break of it.
cdef vm_fault_t good(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    return handle_fault_mmap_sem(cpu, mm, address, flags)


cdef vm_fault_t retry(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    return VM_FAULT_RETRY


cdef vm_fault_t bits(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    return 0x80000000


cdef vm_fault_t resolved(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    return 0


cdef vm_fault_t sleeps(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    kmm_await(cpu, <unsigned long *>&mm.strategy_data, kmm_is_equal, 1)
    return 0


cdef vm_fault_t loops(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef volatile int wait = 1
    while wait:
        pass
    return 0


cdef vm_fault_t leaks_sem(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t ret = handle_fault_mmap_sem(cpu, mm, address, flags)
    down_read(cpu, &mm.mmap_sem)
    return ret


cdef vm_fault_t leaks_sem_w(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t ret = handle_fault_mmap_sem(cpu, mm, address, flags)
    down_write(cpu, &mm.mmap_sem)
    return ret


cdef vm_fault_t leaks_ptl(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t ret = handle_fault_mmap_sem(cpu, mm, address, flags)
    spin_lock(cpu, pte_lockptr(cpu, mm, mm_find_pmd(cpu, mm, address)[0]))
    return ret


cdef vm_fault_t leaks_rcu(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t ret = handle_fault_mmap_sem(cpu, mm, address, flags)
    rcu_read_lock(cpu)
    return ret


cdef vm_fault_t leaks_srcu(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t ret = handle_fault_mmap_sem(cpu, mm, address, flags)
    srcu_read_lock(cpu, &machine_of(cpu).vma_srcu)
    return ret


cdef vm_fault_t leaks_irq(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t ret = handle_fault_mmap_sem(cpu, mm, address, flags)
    local_irq_disable(cpu)
    return ret


cdef void section(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil:
    pass


cdef void lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    down_write(cpu, &mm.mmap_sem)


cdef void unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    up_write(cpu, &mm.mmap_sem)


cdef class Mistake(Strategy):
    """:param what: one of :data:`MISTAKES`."""
    cdef strategy_ops table

    def __cinit__(self, str what):
        self.name = what
        self.description = f"a mistake: {what}"
        self.table.size = sizeof(strategy_ops)
        self.table.name = b"mistake"
        self.table.handle_fault = good
        self.ops = &self.table
        if what == "retry":
            self.table.handle_fault = retry
        elif what == "bits":
            self.table.handle_fault = bits
        elif what == "resolved":
            self.table.handle_fault = resolved
        elif what == "sleeps":
            self.table.handle_fault = sleeps
        elif what == "loops":
            self.table.handle_fault = loops
        elif what == "leaks_sem":
            self.table.handle_fault = leaks_sem
        elif what == "leaks_sem_w":
            self.table.handle_fault = leaks_sem_w
        elif what == "leaks_ptl":
            self.table.handle_fault = leaks_ptl
        elif what == "leaks_rcu":
            self.table.handle_fault = leaks_rcu
        elif what == "leaks_srcu":
            self.table.handle_fault = leaks_srcu
        elif what == "leaks_irq":
            self.table.handle_fault = leaks_irq
        elif what == "no_table":
            self.ops = NULL
        elif what == "no_handle_fault":
            self.table.handle_fault = NULL
        elif what == "no_name":
            self.table.name = NULL
        elif what == "no_size":
            self.table.size = 0
        elif what == "newer":
            self.table.size = sizeof(strategy_ops) + sizeof(void *)
        elif what == "half":
            self.table.vma_write_begin = section
        elif what == "downgrade":
            self.table.mmap_write_lock = lock
            self.table.mmap_write_unlock = unlock
            self.table.munmap_downgrade = 1
        elif what == "older":
            # It ends before quiesce(): what lies there is none of the plugin's members.
            self.table.size = <size_t>&(<strategy_ops *>NULL).quiesce
            (<void **>&self.table.quiesce)[0] = <void *>8
        elif what != "none":
            raise ValueError(f"unknown mistake {what!r}; known: {', '.join(MISTAKES)}")


MISTAKES = ("none", "retry", "bits", "resolved", "sleeps", "loops", "leaks_sem", "leaks_sem_w", "leaks_ptl", "leaks_rcu",
            "leaks_srcu", "leaks_irq", "no_table", "no_handle_fault", "no_name", "no_size", "newer", "half", "downgrade", "older")
