# SPDX-License-Identifier: GPL-2.0-only
# The arch C API: what a compiled arch backend cimports. The table itself, with the context of each
# member, is struct arch_ops in include/kmm/arch.h.
#
# Porting checklist
#   1. Geometry: page_shift, levels, level_shift[], level_bits[]; level_shift[0] == page_shift.
#   2. Address limits: task_size, mmap_base, stack_top, mmap_min_addr; all page-aligned.
#   3. Leaf entries: pte_none(0) is true; pte_pfn(pfn_pte(n, p)) == n for every frame; pte_modify
#      keeps pfn, A, D, special and soft-dirty and changes permissions only.
#   4. PROT_NONE: pte_present and pte_protnone, and access_permitted is false for every access.
#   5. vm_get_page_prot: private writable mappings are read-only (COW), shared ones are writable.
#   6. Table entries: table_paddr(mk_table(pa, level)) == pa; table_none(0) is true;
#      table_descend says in one step what table_none, table_bad, table_leaf and table_paddr say.
#   7. Flush: after return no Cpu of mm_cpumask translates through an entry that was there before, and no access
#      that does is under way. By IPI, or with tlb_broadcast by tlb_broadcast_range() (machine/tlb).
#   8. tlb_remove_tables: no lockless walker (IRQs off, or RCU with rcu_table_free) still reads a table
#      when its frame is freed.
#   9. hw_walk: the MMU. Agrees with access_permitted on the leaf, ANDs the levels above, and changes
#      nothing in an entry but the bits that hardware sets.
#  10. Byte order: entries are stored in memory order; big_endian says which. cpu_to_be64() swaps constants.
#  11. rcu_table_free wherever a flush does not wait for walkers with IRQs off: tlb_remove_tables is then
#      tlb_remove_tables_rcu() (mm/mmu_gather), else tlb_remove_tables_now().
#  12. memory_model: KMM_MODEL_WEAK makes the check engine use its model `power`. hw_walk() reads with
#      READ_ONCE_WALK().
#  13. map_window: where user space is larger than what mmap() gives out unasked.
#  14. pykmm.testing's conformance kit, and tests/unit/plugins/test_arches.py, run on the new arch.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport arch_ops, mm_struct, mmu_gather, pgprot_t, pmd_t, pte_t

cdef class Arch:
    cdef const arch_ops *ops
    cdef readonly str name
    cdef readonly str description

cdef const arch_ops *arch_get_ops(Arch a) noexcept
