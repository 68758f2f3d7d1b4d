# SPDX-License-Identifier: GPL-2.0-only
# mm/mmu_gather.c: collect what an unmap frees, flush once, then free.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport mm_struct, mmu_gather, page

# `tlb` lives on the caller's stack until tlb_finish_mmu().
cdef void tlb_gather_mmu(Cpu *cpu, mmu_gather *tlb, mm_struct *mm, bint fullmm) noexcept nogil
cdef void tlb_finish_mmu(Cpu *cpu, mmu_gather *tlb) noexcept nogil
# An entry for [address, address + size) was cleared or lost a permission.
cdef void tlb_track_range(mmu_gather *tlb, unsigned long address, unsigned long size) noexcept nogil
# Takes over the caller's reference. True = the gather is full: drop the PTL and tlb_flush_mmu().
cdef bint tlb_remove_page(Cpu *cpu, mmu_gather *tlb, page *page) noexcept nogil
# An unlinked page-table page.
cdef void tlb_remove_table(mmu_gather *tlb, page *page, unsigned long address, unsigned long size) noexcept nogil
# Flush, then free. IRQs on, no spinlocks.
cdef void tlb_flush_mmu(Cpu *cpu, mmu_gather *tlb) noexcept nogil
cdef void tlb_flush_mmu_tlbonly(Cpu *cpu, mmu_gather *tlb) noexcept nogil
