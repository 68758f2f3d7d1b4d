# SPDX-License-Identifier: GPL-2.0-only
# One mapping as Python sees it. Not part of the plugin C API.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport file as file_t
from pykmm_ext.mm.mm_types cimport vm_area_struct

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

# Context: mmap_sem held. Takes a reference to the file.
cdef void copy_vma_facts(Cpu *c, vm_area_struct *vma, vma_copy *to) noexcept nogil
# Context: GIL held. What was copied, as an object; the reference to the file stays the caller's.
cdef Vma make_vma(vma_copy *v, u32 page_shift)
