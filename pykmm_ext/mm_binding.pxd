# SPDX-License-Identifier: GPL-2.0-only
# The Python face of an address space. Not part of the plugin C API.
from pykmm_ext.handle cimport MachineHandle
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport file as file_t
from pykmm_ext.mm.mm_types cimport mm_struct, vm_area_struct

cdef class MmStruct:
    cdef mm_struct *mm
    cdef readonly MachineHandle machine
    cdef bint exited
    cdef object __weakref__

cdef class Vma:
    cdef readonly unsigned long start, end, vm_flags, offset, ino
    cdef readonly int prot
    cdef readonly bint shared
    cdef readonly unsigned int dev_major, dev_minor
    cdef readonly str name

# What a VMA looked like.
cdef struct vma_copy:
    unsigned long start, end, flags, pgoff
    file_t *f           # with a reference, or NULL
    char name[64]       # of a mapping without a file

# Context: nobody else uses `mm` yet. An address space that no exec has laid out gets a place for its heap.
cdef inline void mm_default_brk(mm_struct *mm) noexcept nogil:
    if mm.brk == 0:
        mm.start_brk = mm.brk = 0x555555800000

# Context: mmap_sem held. Takes a reference to the file.
cdef void copy_vma_facts(Cpu *c, vm_area_struct *vma, vma_copy *to) noexcept nogil
# Context: GIL held. The Python object of a new address space, whose reference it takes.
cdef MmStruct wrap_mm(MachineHandle machine, mm_struct *mm)
