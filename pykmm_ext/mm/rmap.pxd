# SPDX-License-Identifier: GPL-2.0-only
# mm/rmap.c: anon_vma trees and the mapcount of pages.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport anon_vma, page, vm_area_struct

# Context: mmap_sem held (R is enough), may sleep. 0 or -ENOMEM. Reuses a mergeable neighbour's.
cdef int anon_vma_prepare(Cpu *cpu, vm_area_struct *vma) noexcept nogil
cdef int anon_vma_clone(Cpu *cpu, vm_area_struct *dst, vm_area_struct *src) noexcept nogil
cdef int anon_vma_fork(Cpu *cpu, vm_area_struct *vma, vm_area_struct *pvma) noexcept nogil
cdef void unlink_anon_vmas(Cpu *cpu, vm_area_struct *vma) noexcept nogil
# The same where vma->anon_vma was `own` and is NULL already.
cdef void unlink_anon_vmas_from(Cpu *cpu, vm_area_struct *vma, anon_vma *own) noexcept nogil
cdef void anon_vma_merge(Cpu *cpu, vm_area_struct *vma, vm_area_struct *next) noexcept nogil
# list_is_singular(&vma->anon_vma_chain)
cdef bint anon_vma_chain_is_singular(vm_area_struct *vma) noexcept nogil
# Context of all: PTL held.
cdef void page_add_new_anon_rmap(Cpu *cpu, page *page, anon_vma *av, unsigned long index) noexcept nogil
cdef void page_add_file_rmap(Cpu *cpu, page *page) noexcept nogil
cdef void page_dup_rmap(Cpu *cpu, page *page) noexcept nogil
cdef void page_remove_rmap(Cpu *cpu, page *page) noexcept nogil
