# SPDX-License-Identifier: GPL-2.0-only
# include/linux/pgtable.h, asm-generic/pgalloc.h: descending and populating page tables, split PTLs.
# A "level" counts from the leaves: 0 = PTE table, arch.levels-1 = root.
from pykmm_ext.kernel.spinlock cimport spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.machine.region cimport KMM_ORDER_REGION
from pykmm_ext.mm.mm_types cimport arch_ops, mm_struct, page, pmd_t, pte_t

# Kernel pointer to the entry for `address` in the table at physical address `table`.
cdef unsigned long *table_entry(mm_struct *mm, unsigned long table, u32 level, unsigned long address) noexcept nogil
# The level-1 entry for address, or NULL where an upper level is missing. Lockless (READ_ONCE).
cdef pmd_t *mm_find_pmd(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil
# The value of the entry of the page at `address`, by the same way; False: there is no table. The tables cannot be freed
# meanwhile.
cdef bint mm_read_pte(Cpu *cpu, mm_struct *mm, unsigned long address, pte_t *pte) noexcept nogil
# mm_find_pmd(), populating upper levels under page_table_lock. mmap_sem held. NULL = out of memory.
cdef pmd_t *mm_alloc_pmd(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil
# Make *slot at `level` point to a new table unless it does to one. mmap_sem held. 0 or -ENOMEM.
cdef int populate_entry(Cpu *cpu, mm_struct *mm, unsigned long *slot, u32 level) noexcept nogil
# Make *pmd point to a PTE table. mmap_sem held. 0 or -ENOMEM. Never on the speculative path.
cdef int pte_alloc(Cpu *cpu, mm_struct *mm, pmd_t *pmd) noexcept nogil
cdef spinlock_t *pte_lockptr(Cpu *cpu, mm_struct *mm, pmd_t pmdval) noexcept nogil
cdef pte_t *pte_offset(mm_struct *mm, pmd_t pmdval, unsigned long address) noexcept nogil
cdef pte_t *pte_offset_map_lock(Cpu *cpu, mm_struct *mm, pmd_t *pmd, unsigned long address,
                                spinlock_t **ptlp) noexcept nogil
cdef int pgd_alloc(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void pgd_free(Cpu *cpu, mm_struct *mm) noexcept nogil
# `level`: of the table (0 = it holds PTEs). A table that does not fit into a frame takes a block of them.
cdef page *table_page_alloc(Cpu *cpu, mm_struct *mm, u32 level) noexcept nogil
# For mmu_gather's users only: the frame goes back now. Accounting included.
cdef void table_page_free(Cpu *cpu, mm_struct *mm, page *page) noexcept nogil

# log2 of the frames of a table, from its first one. Context: any.
cdef inline u32 table_order(const page *table) noexcept nogil:
    return table.order & ~<u32>KMM_ORDER_REGION

# pgd_addr_end() and its like, for any level. Context: any. The first address after `addr` at which an entry of `level`
# ends, or `end`. Both limits are exclusive; an `end` of 0 or a boundary of 0 stands for 2^64.
cdef inline unsigned long level_addr_end(const arch_ops *arch, u32 level, unsigned long addr,
                                         unsigned long end) noexcept nogil:
    cdef unsigned long size = <unsigned long>1 << arch.level_shift[level]
    cdef unsigned long boundary = (addr + size) & ~(size - 1)
    return boundary if boundary - 1 < end - 1 else end
