# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on C structures, and runs once per fault)
"""include/linux/pgtable.h, asm-generic/pgalloc.h: descending and populating page tables, split PTLs.

Who may run against whom:

========================  ======================================  =============================================
data                      written                                 read
========================  ======================================  =============================================
entry above level 0       page_table_lock (populate); mmap_sem W  READ_ONCE, under mmap_sem, or with IRQs off
                          of unlinked VMAs (free_pgtables)        (hardware walker, lockless GUP, SPF)
PTE                       the table's ptl; A/D by the hardware    ptl, or as above and validated afterwards
                          walker with cmpxchg
========================  ======================================  =============================================

Publication: a table's zeroes are stored before the entry that points to it (``smp_store_release``). The pair is the
address dependency of every lockless descent: READ_ONCE of the entry, then a load *through* it.

simplified: one lock for all levels above the PTEs (no split PMD locks); a table that is smaller than a frame takes a
whole one (ppc64: Linux packs such tables into fragments of a page), of which only its own part is cleared.
"""
from libc.errno cimport ENOMEM
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_DEP, WRITE_ONCE_32, atomic_add, smp_store_release
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport NR_PGTABLE_ALLOC, NR_PGTABLE_FREE, Cpu, count_vm_event, u32, unlikely
from pykmm_ext.mm.mm_types cimport PG_table, arch_ops, mm_struct, page, page_to_pfn, pfn_to_page, pmd_t, pte_t
from pykmm_ext.mm.page_alloc cimport __GFP_ZERO, __free_pages, alloc_pages


# Context: any.
cdef unsigned long *table_entry(mm_struct *mm, unsigned long table, u32 level, unsigned long address) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long index = (address >> arch.level_shift[level]) & ((<unsigned long>1 << arch.level_bits[level]) - 1)
    return <unsigned long *>(mm.machine.mem_base + table) + index


# Context: process or IRQs off; tables cannot be freed meanwhile (mmap_sem, IRQs off, or a strategy's own reason).
cdef pmd_t *mm_find_pmd(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long table = mm.pgd
    cdef u32 level = arch.levels - 1
    cdef u32 dep = 0  # the root's address is nobody's news
    while level > 1:
        table = arch.table_descend(READ_ONCE_DEP(cpu, table_entry(mm, table, level, address), dep), level)
        if unlikely(table == 0):
            return NULL
        dep = 1
        level -= 1
    return table_entry(mm, table, 1, address)


# Make *slot at `level` point to a new table, unless another thread was faster. Takes page_table_lock.
# Context: mmap_sem held, IRQs on or off. 0 or -ENOMEM.
cdef int populate_entry(Cpu *cpu, mm_struct *mm, unsigned long *slot, u32 level) noexcept nogil:
    cdef page *table = table_page_alloc(cpu, mm, level - 1)
    if unlikely(table == NULL):
        return -ENOMEM
    spin_lock(cpu, &mm.page_table_lock)
    if mm.arch.table_none(READ_ONCE(cpu, slot)):
        # The zeroes and the initialised ptl before the entry; pairs with the address dependency described above.
        smp_store_release(cpu, slot,
                          mm.arch.mk_table(page_to_pfn(mm.machine, table) << mm.arch.page_shift, level))
        table = NULL
    spin_unlock(cpu, &mm.page_table_lock)
    if table != NULL:
        table_page_free(cpu, mm, table)
    return 0


# Context: mmap_sem held (R is enough), IRQs on, no PTL. NULL = out of memory.
cdef pmd_t *mm_alloc_pmd(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long table = mm.pgd
    cdef unsigned long *slot
    cdef u32 level = arch.levels - 1
    cdef u32 dep = 0
    cdef pmd_t entry
    while level > 1:
        slot = table_entry(mm, table, level, address)
        entry = READ_ONCE_DEP(cpu, slot, dep)
        if unlikely(arch.table_none(entry)):
            if populate_entry(cpu, mm, slot, level) != 0:
                return NULL
            entry = READ_ONCE(cpu, slot)
        table = arch.table_paddr(entry)
        dep = 1
        level -= 1
    return table_entry(mm, table, 1, address)


# Context: as mm_alloc_pmd. Never on the speculative path: nothing there keeps a new table from being freed.
cdef int pte_alloc(Cpu *cpu, mm_struct *mm, pmd_t *pmd) noexcept nogil:
    if not mm.arch.table_none(READ_ONCE(cpu, pmd)):
        return 0
    return populate_entry(cpu, mm, pmd, 1)


# Context: any; pmdval points to a table.
cdef spinlock_t *pte_lockptr(Cpu *cpu, mm_struct *mm, pmd_t pmdval) noexcept nogil:
    return &pfn_to_page(mm.machine, mm.arch.table_paddr(pmdval) >> mm.arch.page_shift).ptl


# Context: any; pmdval points to a table.
cdef pte_t *pte_offset(mm_struct *mm, pmd_t pmdval, unsigned long address) noexcept nogil:
    return table_entry(mm, mm.arch.table_paddr(pmdval), 0, address)


# Context: mmap_sem held, or a walk that tables wait for. Racy: the entry may change at any time.
cdef bint mm_read_pte(Cpu *cpu, mm_struct *mm, unsigned long address, pte_t *pte) noexcept nogil:
    cdef pmd_t *pmd = mm_find_pmd(cpu, mm, address)
    cdef pmd_t pmdval
    if pmd == NULL:
        return False
    pmdval = READ_ONCE_DEP(cpu, pmd, 1)
    if mm.arch.table_none(pmdval) or mm.arch.table_bad(pmdval):
        return False
    pte[0] = READ_ONCE_DEP(cpu, pte_offset(mm, pmdval, address), 1)
    return True


# Takes the PTL. Context: mmap_sem held; *pmd points to a table.
cdef pte_t *pte_offset_map_lock(Cpu *cpu, mm_struct *mm, pmd_t *pmd, unsigned long address,
                                spinlock_t **ptlp) noexcept nogil:
    cdef pmd_t pmdval = READ_ONCE(cpu, pmd)
    cdef unsigned long table = mm.arch.table_paddr(pmdval)
    cdef spinlock_t *ptl = &pfn_to_page(mm.machine, table >> mm.arch.page_shift).ptl
    spin_lock(cpu, ptl)
    ptlp[0] = ptl
    return table_entry(mm, table, 0, address)


# Context: mm not visible to others yet. 0 or -ENOMEM.
cdef int pgd_alloc(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef page *table = table_page_alloc(cpu, mm, mm.arch.levels - 1)
    if table == NULL:
        return -ENOMEM
    mm.pgd = page_to_pfn(mm.machine, table) << mm.arch.page_shift
    return 0


# Context: exit_mmap: nobody uses the mm, no Cpu has it active. A second call does nothing.
cdef void pgd_free(Cpu *cpu, mm_struct *mm) noexcept nogil:
    if mm.pgd:
        table_page_free(cpu, mm, pfn_to_page(mm.machine, mm.pgd >> mm.arch.page_shift))
        mm.pgd = 0


# Zeroed, with an initialised ptl, or NULL. Context: any.
cdef page *table_page_alloc(Cpu *cpu, mm_struct *mm, u32 level) noexcept nogil:
    cdef u32 shift = mm.arch.level_bits[level] + 3
    cdef u32 order = shift - mm.arch.page_shift if shift > mm.arch.page_shift else 0
    cdef bint part = shift < mm.arch.page_shift and mm.machine.region == NULL  # (a region knows what was cleared)
    cdef page *table = alloc_pages(cpu, 0 if part else __GFP_ZERO, order)
    if unlikely(table == NULL):
        return NULL
    if unlikely(part):
        memset(mm.machine.mem_base + (page_to_pfn(mm.machine, table) << mm.arch.page_shift), 0, <size_t>1 << shift)
    table.flags = PG_table # not visible to others yet
    table.private_ = <unsigned long>mm.id << 8 | level
    spin_lock_init(&table.ptl)
    if unlikely(cpu.engine != NULL):
        # Who takes it first, through a pmd, acquires what was stored before: nobody has released it yet.
        WRITE_ONCE_32(cpu, &table.ptl.slock, 0)
    atomic_add(cpu, &mm.nr_ptes, <unsigned long>1 << order)
    count_vm_event(cpu, NR_PGTABLE_ALLOC)
    return table


# Context: any; no entry points to the table and no walker reads it any more.
cdef void table_page_free(Cpu *cpu, mm_struct *mm, page *table) noexcept nogil:
    atomic_add(cpu, &mm.nr_ptes, -(<unsigned long>1 << table_order(table)))
    count_vm_event(cpu, NR_PGTABLE_FREE)
    __free_pages(cpu, table, table_order(table))
