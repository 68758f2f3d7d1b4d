# SPDX-License-Identifier: GPL-2.0-only
# The kernel primitives as Python objects, on a small set of Cpus without memory or page tables.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport machine

cdef class CpuSet:
    cdef machine *machine
    cdef Cpu *memory
    cdef readonly u32 nr_cpus
    cdef readonly bint full_fences

# Context: GIL held. The Cpu with that number; raises IndexError.
cdef Cpu *cpuset_cpu(CpuSet cpus, u32 cpu) except NULL
