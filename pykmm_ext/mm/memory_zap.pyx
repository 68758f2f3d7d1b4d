# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (page tables and kernel structures: every index comes out of an address)
"""mm/memory.c, the part that takes mappings away: zapping page-table entries and freeing page tables.

Present entries are cleared with an xchg, because a hardware walker may set A or D until then; in an mm that nobody
uses any more (tlb->fullmm) a plain store is enough. Pages and tables go to the mmu_gather, which frees them when no
CPU can reach them any more.

Who runs against whom (one PTE)
    zap (MADV_DONTNEED)           mmap_sem R, vm_sequence section, PTL; another zap may be at work on the same range
    zap (munmap)                  mmap_sem W, or R once the VMA is detached; vm_sequence section, PTL
    speculative fault             no mmap_sem; the PTL by trylock, then vm_sequence re-checked: it is stopped by either
    zap (truncation)              i_mmap_rwsem R, vm_sequence section, PTL; any of the others may be at work
    free_pgtables                 as zap (munmap), after the zap of everything below; tables are freed after an IPI
    hardware walker               nothing; IRQs off

simplified: no swap entries, no huge pages, no device PFNs.
"""
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, WRITE_ONCE, atomic_add_return_32, fetch_or, xchg
from pykmm_ext.kernel.rwsem cimport down_read, up_read
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock
from pykmm_ext.machine.cpu cimport KMM_NR_RSS, likely, unlikely
from pykmm_ext.mm.memory cimport add_mm_rss, page_is_anon, vm_normal_page
from pykmm_ext.mm.mm_types cimport (
    MM_ANONPAGES, MM_FILEPAGES, PG_dirty, arch_ops, machine, mm_struct, page, pfn_to_page, pmd_t, pte_t, spinlock_t,
    vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.mmu_gather cimport (
    tlb_finish_mmu, tlb_flush_mmu, tlb_flush_mmu_tlbonly, tlb_gather_mmu, tlb_remove_page, tlb_remove_table,
    tlb_track_range,
)
from pykmm_ext.mm.pgtable cimport level_addr_end, pte_lockptr, pte_offset, table_entry
from pykmm_ext.mm.rmap cimport page_remove_rmap
from pykmm_ext.mm.vma cimport unlink_file_vma


# ---- zapping -------------------------------------------------------------------------------------

# Context: inside the VMA's vma_write_begin section, mmap_sem held; takes the PTL; may flush (IRQs on).
# The PTL is taken even when every entry looks empty: a speculative fault that holds it has passed its check.
cdef void zap_pte_range(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, pmd_t pmdval, unsigned long addr,
                        unsigned long end) noexcept nogil:
    cdef mm_struct *mm = tlb.mm
    cdef machine *m = mm.machine
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long page_size = <unsigned long>1 << arch.page_shift
    cdef spinlock_t *ptl = pte_lockptr(cpu, mm, pmdval)
    cdef pte_t *ptep
    cdef pte_t pte
    cdef page *pg
    cdef bint force_flush, full
    cdef long rss[KMM_NR_RSS]
    cdef int i
    while addr != end:
        force_flush = False
        full = False
        memset(rss, 0, sizeof(rss))
        spin_lock(cpu, ptl)
        ptep = pte_offset(mm, pmdval, addr)
        while addr != end:
            pte = READ_ONCE(cpu, ptep)
            if pte == 0:
                ptep += 1
                addr += page_size
                continue
            if tlb.fullmm:
                WRITE_ONCE(cpu, ptep, 0)  # nobody uses the mm
            else:
                pte = xchg(cpu, ptep, 0)  # A and D as the walkers left them
            if likely(arch.pte_present(pte)):
                tlb_track_range(tlb, addr, page_size)
                pg = vm_normal_page(m, arch, pte)
                if pg != NULL:
                    if not page_is_anon(cpu, pg):
                        rss[<int>MM_FILEPAGES] -= 1
                        if arch.pte_dirty(pte):
                            if not READ_ONCE(cpu, &pg.flags) & PG_dirty:
                                fetch_or(cpu, &pg.flags, PG_dirty)
                            force_flush = not tlb.fullmm
                    else:
                        rss[<int>MM_ANONPAGES] -= 1
                    page_remove_rmap(cpu, pg)
                    full = tlb_remove_page(cpu, tlb, pg)
            ptep += 1
            addr += page_size
            if unlikely(full):
                break
        if force_flush:
            tlb_flush_mmu_tlbonly(cpu, tlb)  # a dirty page of a file: no store to it after the PTL is dropped
        spin_unlock(cpu, ptl)
        for i in range(KMM_NR_RSS):
            if rss[i]:
                add_mm_rss(cpu, mm, i, rss[i])
        if full:
            tlb_flush_mmu(cpu, tlb)


# Context: as zap_pte_range. `table` is the physical address of a table of `level`.
cdef void zap_table(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, unsigned long table, u32 level, unsigned long addr,
                    unsigned long end) noexcept nogil:
    cdef mm_struct *mm = tlb.mm
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long *entry = table_entry(mm, table, level, addr)
    cdef unsigned long next_addr
    cdef pmd_t val
    while addr != end:
        next_addr = level_addr_end(arch, level, addr, end)
        val = READ_ONCE(cpu, entry)
        if not arch.table_none(val) and not arch.table_bad(val):
            if level == 1:
                zap_pte_range(cpu, tlb, vma, val, addr, next_addr)
            else:
                zap_table(cpu, tlb, vma, arch.table_paddr(val), level - 1, addr, next_addr)
        entry += 1
        addr = next_addr


cdef void unmap_page_range(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, unsigned long start,
                           unsigned long end) noexcept nogil:
    if start >= end:
        return
    vma_write_begin(cpu, vma, 0)
    zap_table(cpu, tlb, vma, tlb.mm.pgd, tlb.mm.arch.levels - 1, start, end)
    vma_write_end(cpu, vma)


cdef void unmap_vmas(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, unsigned long start,
                     unsigned long end) noexcept nogil:
    while vma != NULL and vma.vm_start < end:
        unmap_page_range(cpu, tlb, vma, vma.vm_start if vma.vm_start > start else start,
                         vma.vm_end if vma.vm_end < end else end)
        vma = vma.vm_next


# Two zappers may be at work at once (mmap_sem R). The second finds entries that the first has cleared but not flushed
# yet, and owes nothing for them; yet when it returns, its caller must not see the old pages any more. So whoever is
# not alone flushes all of its range (as mm_tlb_flush_nested()). The increment is ordered before the first's PTL
# section, which the second's PTL orders before its read; the first takes it back after its flush.
cdef void zap_page_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long size) noexcept nogil:
    zap_range(cpu, vma, start, size, False)


# Context: mmap_sem, or i_mmap_rwsem of the VMA's file; may sleep.
cdef void zap_page_range_single(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long size) noexcept nogil:
    zap_range(cpu, vma, start, size, True)


# Context: as its two callers.
cdef inline void zap_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long size,
                           bint single) noexcept nogil:
    cdef mm_struct *mm = vma.vm_mm
    cdef mmu_gather tlb
    if size == 0:
        return
    atomic_add_return_32(cpu, &mm.tlb_flush_pending, 1)
    tlb_gather_mmu(cpu, &tlb, mm, False)
    if single:
        unmap_page_range(cpu, &tlb, vma, start, start + size)
    else:
        unmap_vmas(cpu, &tlb, vma, start, start + size)
    tlb_finish_mmu(cpu, &tlb)
    if unlikely(READ_ONCE_32(cpu, &mm.tlb_flush_pending) > 1):
        mm.arch.flush_tlb_range(cpu, mm, start, start + size, False)
    atomic_add_return_32(cpu, &mm.tlb_flush_pending, <u32>-1)


# ---- truncation ----------------------------------------------------------------------------------

# Context: the file's i_rwsem W, so one truncation at a time; takes i_mmap_rwsem; may sleep, no mmap_sem. Takes the pages
# from `first` on out of every mapping of the file, private copies too (even_cows). A VMA that is on i_mmap has its page
# tables and its mm: who unmaps it takes it off before the tables are freed. Nobody's lock keeps others from zapping or
# changing the VMA meanwhile: sections of two Cpus may overlap.
cdef void unmap_mapping_pages(Cpu *cpu, address_space *mapping, unsigned long first) noexcept nogil:
    cdef vm_area_struct *vma
    cdef unsigned long start
    cdef u32 shift = mapping.host.machine.arch.page_shift
    down_read(cpu, &mapping.i_mmap_rwsem)
    vma = mapping.i_mmap
    while vma != NULL:
        start = vma.vm_start
        if first > vma.vm_pgoff:
            start += (first - vma.vm_pgoff) << shift
        if vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> shift) > first:
            zap_page_range_single(cpu, vma, start, vma.vm_end - start)
        vma = vma.shared_next
    up_read(cpu, &mapping.i_mmap_rwsem)


# ---- freeing page tables -------------------------------------------------------------------------

# Context: mmap_sem, only munmap() frees. Unlinks the table behind `entry` (of `level`, for `addr`) and leaves it to the gather.
cdef void free_table(Cpu *cpu, mmu_gather *tlb, unsigned long *entry, u32 level, unsigned long addr) noexcept nogil:
    cdef mm_struct *mm = tlb.mm
    cdef machine *m = mm.machine
    cdef unsigned long size = <unsigned long>1 << mm.arch.level_shift[level]
    cdef unsigned long val
    spin_lock(cpu, &mm.page_table_lock)
    val = xchg(cpu, entry, 0)
    spin_unlock(cpu, &mm.page_table_lock)
    tlb_remove_table(tlb, pfn_to_page(m, mm.arch.table_paddr(val) >> mm.arch.page_shift), addr & ~(size - 1), size)


# Context: mmap_sem; nothing is mapped in [addr, end), and nobody can map there. Frees the tables below the entries of
# `table` that [addr, end) covers; those above level 1 only where no neighbour within [floor, ceiling) can need them
# (ceiling 0 = none).
# The arithmetic is modulo 2^64, so "ceiling - 1" of 0 is the top.
cdef void free_table_range(Cpu *cpu, mmu_gather *tlb, unsigned long table, u32 level, unsigned long addr,
                           unsigned long end, unsigned long floor, unsigned long ceiling) noexcept nogil:
    cdef mm_struct *mm = tlb.mm
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long size = <unsigned long>1 << arch.level_shift[level]
    cdef unsigned long *entry = table_entry(mm, table, level, addr)
    cdef unsigned long next_addr, val, top
    while addr != end:
        next_addr = level_addr_end(arch, level, addr, end)
        val = READ_ONCE(cpu, entry)
        if not arch.table_none(val) and not arch.table_bad(val):
            if level == 1:
                free_table(cpu, tlb, entry, level, addr)
            else:
                free_table_range(cpu, tlb, arch.table_paddr(val), level - 1, addr, next_addr, floor, ceiling)
                if (addr & ~(size - 1)) >= floor:
                    if ceiling == 0:
                        free_table(cpu, tlb, entry, level, addr)
                    else:
                        top = ceiling & ~(size - 1)
                        if top != 0 and next_addr - 1 <= top - 1:
                            free_table(cpu, tlb, entry, level, addr)
        entry += 1
        addr = next_addr


# Context: mmap_sem. As free_pgd_range(): [addr, end) is first rounded to what one PTE table maps, outwards where
# floor and ceiling leave room and inwards where they do not.
cdef void free_pgd_range(Cpu *cpu, mmu_gather *tlb, unsigned long addr, unsigned long end, unsigned long floor,
                         unsigned long ceiling) noexcept nogil:
    cdef const arch_ops *arch = tlb.mm.arch
    cdef unsigned long size = <unsigned long>1 << arch.level_shift[1]
    cdef unsigned long pmd_ceiling = ceiling
    addr &= ~(size - 1)
    if addr < floor:
        addr += size
        if addr == 0:
            return
    if pmd_ceiling != 0:
        pmd_ceiling &= ~(size - 1)
        if pmd_ceiling == 0:
            return
    if end - 1 > pmd_ceiling - 1:
        end -= size
    if addr > end - 1:
        return
    end = ((end - 1) | (size - 1)) + 1
    free_table_range(cpu, tlb, tlb.mm.pgd, arch.levels - 1, addr, end, floor, pmd_ceiling)


cdef void free_pgtables(Cpu *cpu, mmu_gather *tlb, vm_area_struct *vma, unsigned long floor,
                        unsigned long ceiling) noexcept nogil:
    cdef unsigned long size = <unsigned long>1 << tlb.mm.arch.level_shift[1]
    cdef vm_area_struct *next_vma
    cdef unsigned long addr
    while vma != NULL:
        next_vma = vma.vm_next
        addr = vma.vm_start
        unlink_file_vma(cpu, vma)  # truncation must not look for its page tables any more
        # VMAs less than a PTE table apart go in one descent.
        while next_vma != NULL and next_vma.vm_start <= vma.vm_end + size:
            vma = next_vma
            next_vma = vma.vm_next
            unlink_file_vma(cpu, vma)
        free_pgd_range(cpu, tlb, addr, vma.vm_end, floor, ceiling if next_vma == NULL else next_vma.vm_start)
        vma = next_vma
