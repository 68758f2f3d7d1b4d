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
# What arch_ops.tlb_remove_tables can be: the tables of `tlb` go now, where the flush has waited for every walker with IRQs
# off; or after a grace period (MMU_GATHER_RCU_TABLE_FREE), where it waits for none. Context: after the flush.
cdef void tlb_remove_tables_now(Cpu *cpu, mmu_gather *tlb) noexcept nogil
cdef void tlb_remove_tables_rcu(Cpu *cpu, mmu_gather *tlb) noexcept nogil
# What arch_ops.serialize_against_pte_lookup can be. Context: IRQs on. After it, every IRQ-off section that ran on a Cpu of
# the mm when it was called has ended.
cdef void tlb_remove_table_sync_one(Cpu *cpu, mm_struct *mm) noexcept nogil
