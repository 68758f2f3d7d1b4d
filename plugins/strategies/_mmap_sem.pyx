# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""arch/x86/mm/fault.c before speculation: every fault under mmap_sem, held for reading.

As Linux 4.12 (the baseline of the speculative series). Writers owe nothing beyond the lock. With munmap=downgrade munmap()
zaps and flushes as a reader, as since 4.20.
"""
from pykmm_ext.machine.cpu cimport Cpu, count_strategy
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.mm_types cimport VM_FAULT_ERROR, mm_struct, strategy_ops, vm_fault_t
from pykmm_ext.strategy cimport Strategy, strategy_parse_options

cdef enum:
    ATTEMPTS
    SUCCESSES
    RETRIED
    ERRORS

cdef const char *counter_names[5]
counter_names[:] = ["attempts", "successes", "retried", "errors", NULL]

cdef strategy_ops ops


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t fault
    count_strategy(cpu, ATTEMPTS)
    fault = handle_fault_mmap_sem(cpu, mm, address, flags)
    count_strategy(cpu, ERRORS if fault & VM_FAULT_ERROR else SUCCESSES)
    return fault


ops.size = sizeof(strategy_ops)
ops.name = "mmap_sem"
ops.counter_names = counter_names
ops.handle_fault = handle_fault

cdef strategy_ops downgrade_ops = ops
downgrade_ops.munmap_downgrade = 1

#: option -> its values, the default first
OPTIONS = {
    "munmap": ("write", "downgrade"),
}


cdef class MmapSem(Strategy):
    """Every fault takes ``mmap_sem`` for reading: the classic design, and the baseline.

    :param options: names and values of :data:`OPTIONS`. ValueError for others, with the known ones.
    """

    def __cinit__(self, **options: str) -> None:
        self.ops = &downgrade_ops if strategy_parse_options(self, "mmap_sem", OPTIONS, options)["munmap"] else &ops
        self.description = "every fault under mmap_sem held for reading (Linux 4.12)"
