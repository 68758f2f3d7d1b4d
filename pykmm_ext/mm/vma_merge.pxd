# SPDX-License-Identifier: GPL-2.0-only
# mm/vma.c, the part that changes the bounds of VMAs: merging, adjusting, splitting, copying.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport file, mempolicy, mm_struct, vm_area_struct

# All: mmap_sem W, may sleep; what the result means stands with the bodies.
cdef bint can_vma_merge_after(vm_area_struct *vma, unsigned long vm_flags, vm_area_struct *src, file *f,
                              unsigned long pgoff, const char *anon_name) noexcept nogil
cdef int __split_vma(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, unsigned long addr, bint new_below) noexcept nogil
cdef int split_vma(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, unsigned long addr, bint new_below) noexcept nogil
cdef vm_area_struct *vma_merge(Cpu *cpu, mm_struct *mm, vm_area_struct *prev, unsigned long addr, unsigned long end,
                               unsigned long vm_flags, vm_area_struct *self, file *f, unsigned long pgoff) noexcept nogil
cdef int __vma_adjust(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end, unsigned long pgoff,
                      vm_area_struct *insert, vm_area_struct *expand) noexcept nogil
cdef vm_area_struct *copy_vma(Cpu *cpu, vm_area_struct **vmap, unsigned long addr, unsigned long len,
                              unsigned long pgoff) noexcept nogil
# vma_modify(): [start, end) inside `vma` gets `newflags`: merged into a neighbour or split off. The VMA
# that covers exactly it (or the merged one), its flags not yet changed; NULL with *err.
cdef vm_area_struct *vma_modify_flags(Cpu *cpu, vm_area_struct *prev, vm_area_struct *vma, unsigned long start,
                                      unsigned long end, unsigned long newflags, int *err) noexcept nogil
# The same for a new policy, which the VMA has not got yet either.
cdef vm_area_struct *vma_modify_policy(Cpu *cpu, vm_area_struct *prev, vm_area_struct *vma, unsigned long start,
                                       unsigned long end, mempolicy *policy, int *err) noexcept nogil
