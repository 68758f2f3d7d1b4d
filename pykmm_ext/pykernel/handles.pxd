# SPDX-License-Identifier: GPL-2.0-only
# Handles of address spaces, VMAs and words in them. Not part of the plugin C API.
from pykmm_ext.machine.cpu cimport u32
from pykmm_ext.mm.mm_types cimport mm_struct, vm_area_struct
from pykmm_ext.pykernel.call cimport CpuHandle

cdef class MmHandle:
    cdef CpuHandle on
    cdef mm_struct *mm

cdef class VmaHandle:
    cdef CpuHandle on
    cdef vm_area_struct *vma
    cdef u32 freed          # it was handed to a function that frees it

cdef struct field_word:
    void *p
    u32 width               # bytes: 4 or 8

cdef class FieldHandle:
    cdef CpuHandle on
    cdef field_word word
    cdef str name

# Context: GIL held.
cdef MmHandle mm_handle(CpuHandle on, mm_struct *mm)
cdef VmaHandle vma_handle(CpuHandle on, vm_area_struct *vma)
# Context: GIL held. As the conversion of a number that is too large for its C type.
cdef int fits(field_word word, unsigned long value) except -1
