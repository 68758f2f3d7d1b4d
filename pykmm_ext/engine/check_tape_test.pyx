# SPDX-License-Identifier: GPL-2.0-only
"""Broken parts for the tests of engine/check_tape: an arch and a strategy with one mistake each."""
from libc.string cimport memcpy

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.kernel.spinlock cimport spin_lock
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.machine.irq cimport local_irq_disable
from pykmm_ext.mm.mm_types cimport arch_ops, mm_struct, strategy_ops, vm_area_struct, vm_fault_t
from pykmm_ext.mm.page_alloc cimport alloc_page
from pykmm_ext.strategy cimport Strategy, strategy_get_ops

cdef extern from *:
    """
    /* volatile: it must not be left out */
    static __attribute__((noinline)) unsigned read_byte(const void *p) { return *(const volatile unsigned char *)p; }
    """
    unsigned read_byte(const void *p) nogil

cdef const strategy_ops *base_strategy = NULL


cdef void flush_nothing(Cpu *cpu, mm_struct *mm) noexcept nogil:
    pass


cdef void flush_no_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                         int freed_tables) noexcept nogil:
    pass


cdef void flush_no_page(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    pass


cdef class BrokenArch(Arch):
    """Another arch that never flushes a TLB."""
    cdef Arch base
    cdef arch_ops copy

    def __cinit__(self, Arch base not None):
        self.base = base
        memcpy(&self.copy, arch_get_ops(base), sizeof(arch_ops))
        self.copy.flush_tlb_mm = flush_nothing
        self.copy.flush_tlb_range = flush_no_range
        self.copy.flush_tlb_page = flush_no_page
        self.ops = &self.copy
        self.name = "broken-" + base.name


# What an access through a pointer to nothing does.
cdef vm_fault_t fault_null(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    if cpu.engine == NULL:      # setup
        return base_strategy.handle_fault(cpu, mm, address, flags)
    return read_byte(<const void *><size_t>8)


cdef vm_fault_t fault_poison(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    if cpu.engine == NULL:      # setup
        return base_strategy.handle_fault(cpu, mm, address, flags)
    return read_byte(<const void *><size_t>0x6b6b6b6b6b6b6b6b)


cdef vm_fault_t fault_locks(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    if cpu.engine == NULL:      # setup
        return base_strategy.handle_fault(cpu, mm, address, flags)
    spin_lock(cpu, &mm.page_table_lock)
    return base_strategy.handle_fault(cpu, mm, address, flags)


cdef vm_fault_t fault_irqs(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t ret
    if cpu.engine == NULL:      # setup
        return base_strategy.handle_fault(cpu, mm, address, flags)
    ret = base_strategy.handle_fault(cpu, mm, address, flags)
    local_irq_disable(cpu)
    return ret


cdef vm_fault_t fault_leak(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    if cpu.engine == NULL:      # setup
        return base_strategy.handle_fault(cpu, mm, address, flags)
    alloc_page(cpu, 0)
    return base_strategy.handle_fault(cpu, mm, address, flags)


# The VMA is never freed.
cdef void free_never(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    pass


cdef class BrokenStrategy(Strategy):
    """Another strategy with a mistake: "null", "poison", "lock", "irq", "leak" in each fault, "lost" VMAs."""
    cdef Strategy base
    cdef strategy_ops copy

    def __cinit__(self, Strategy base not None, str mistake not None):
        global base_strategy
        self.base = base
        base_strategy = strategy_get_ops(base)
        memcpy(&self.copy, base_strategy, sizeof(strategy_ops))
        if mistake == "null":
            self.copy.handle_fault = fault_null
        elif mistake == "poison":
            self.copy.handle_fault = fault_poison
        elif mistake == "lock":
            self.copy.handle_fault = fault_locks
        elif mistake == "irq":
            self.copy.handle_fault = fault_irqs
        elif mistake == "leak":
            self.copy.handle_fault = fault_leak
        elif mistake == "lost":
            self.copy.free_vma = free_never
        else:
            raise ValueError(mistake)
        self.ops = &self.copy
        self.priv = base.priv
        self.name = "broken-" + base.name
