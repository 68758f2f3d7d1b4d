# SPDX-License-Identifier: GPL-2.0-only
# mm/memory.c, the part that takes mappings away: zapping, page-table teardown.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport address_space, mmu_gather, vm_area_struct

# Context: mmap_sem held (W for unmap_vmas/free_pgtables of unlinked VMAs, R for zap_page_range), may sleep.
cdef void unmap_page_range(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil
cdef void unmap_vmas(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil
cdef void zap_page_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long size) noexcept nogil
cdef void zap_page_range_single(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long size) noexcept nogil
# As unmap_mapping_range() with even_cows: the file's pages from `first` on. Context: i_rwsem W of the file, may sleep.
cdef void unmap_mapping_pages(Cpu *cpu, address_space *mapping, unsigned long first) noexcept nogil
# Free the page tables of the (unlinked) VMAs from `vma` on that no neighbour within [floor, ceiling) needs; ceiling 0 = none.
cdef void free_pgtables(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, unsigned long floor, unsigned long ceiling) noexcept nogil
