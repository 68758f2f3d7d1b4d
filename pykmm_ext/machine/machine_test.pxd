# SPDX-License-Identifier: GPL-2.0-only
# A machine with a minimal fault handler, for the tests and their stress loops. Not part of the plugin C API.
from pykmm_ext.arch cimport Arch
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport arch_ops, machine, mm_struct, page

# What an address space allows, and what its fault handler answers.
cdef struct rig_mm:
    mm_struct mm
    unsigned long start, end, vm_flags
    u32 result
    u32 faults
    const arch_ops *real        # of a recording Rig: the arch under the recorder
    page *watched
    u32 nr_records
    u32 records[64]

cdef class Space:
    cdef rig_mm *r
    cdef Rig rig

cdef class Rig:
    cdef machine *m
    cdef Arch arch
    cdef arch_ops recorder

# Context: GIL held. ValueError.
cdef Cpu *rig_cpu(Rig rig, int n) except NULL
