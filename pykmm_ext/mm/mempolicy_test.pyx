# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False
# (arrays are indexed by what was counted under the lock)
"""Looks at the policies that mm/mempolicy.c leaves behind."""
from libc.stdlib cimport free, malloc

from pykmm_ext.binding cimport Machine
from pykmm_ext.handle cimport cpu_disown, cpu_own, machine_get, machine_put
from pykmm_ext.kernel.slab cimport kmem_cache_active
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mempolicy cimport mpol_to_str
from pykmm_ext.mm.mm_types cimport KMEM_POLICY, vm_area_struct
from pykmm_ext.mm.mmap cimport mmap_read_lock, mmap_read_unlock
from pykmm_ext.mm_binding cimport MmStruct


cdef struct line:
    unsigned long start
    unsigned long end
    u32 sequence
    char policy[60]


def numa_maps(MmStruct mm not None) -> list:
    """(start, end, policy as /proc/PID/numa_maps has it, vm_sequence) of every VMA. Nobody else uses Cpu 0."""
    cdef line *lines = NULL
    cdef size_t i, n = 0
    cdef vm_area_struct *vma
    cdef Cpu *cpu
    machine_get(mm.machine)
    try:
        cpu = mm.machine.m.cpus[0]
        with nogil:
            cpu_own(cpu)
            mmap_read_lock(cpu, mm.mm)
            lines = <line *>malloc((mm.mm.map_count + 1) * sizeof(line))
            vma = mm.mm.mmap if lines != NULL else NULL
            while vma != NULL:
                lines[n].start = vma.vm_start
                lines[n].end = vma.vm_end
                lines[n].sequence = vma.vm_sequence.sequence
                mpol_to_str(lines[n].policy, sizeof(lines[n].policy), vma.vm_policy)
                n += 1
                vma = vma.vm_next
            mmap_read_unlock(cpu, mm.mm)
            cpu_disown(cpu)
        if lines == NULL:
            raise MemoryError()
        return [(lines[i].start, lines[i].end, lines[i].policy.decode(), lines[i].sequence) for i in range(n)]
    finally:
        free(lines)
        machine_put(mm.machine)


def policies(Machine machine not None) -> int:
    """How many struct mempolicy are allocated."""
    machine_get(machine)
    try:
        return kmem_cache_active(machine.m, &machine.m.caches[KMEM_POLICY])
    finally:
        machine_put(machine)
