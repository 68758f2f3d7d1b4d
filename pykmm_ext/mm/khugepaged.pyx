# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/khugepaged.c: MADV_COLLAPSE, up to the point where there is no huge page.

simplified: this machine has no huge pages, so a collapse always fails for want of one (-ENOMEM). It fails late, where
Linux's may still fail: after the pmd was emptied and everybody was kept away from the table. The same table is then put
back. simplified: mmap_sem is held for writing from the beginning; only private anonymous mappings are tried.

Who runs against whom (the pmd)
    collapse_huge_page    mmap_sem W, anon_vma root W, page_table_lock for each store to the pmd
    classic fault         mmap_sem R: excluded, as is one under the lock of the VMA, which is write-locked
    speculative fault     IRQs off for the walk and for taking the PTL; serialize_against_pte_lookup() waits for it.
                          Afterwards it must not believe a pmd that it has read before (R10)
    hardware walker       IRQs off: as before; it finds the pmd empty and faults
    lockless GUP          IRQs off, or RCU: serialize_against_walkers() waits for it, unless nobody is counted. A pin that
                          it took before is seen by the look at the reference counts
"""
from libc.errno cimport EAGAIN, EINVAL, ENOMEM

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, kmm_emit, smp_store_release, xchg
from pykmm_ext.kernel.rwsem cimport down_write, rw_semaphore, up_write
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport KMM_EV_ISOLATE, unlikely
from pykmm_ext.mm.lockless_walk cimport serialize_against_walkers
from pykmm_ext.mm.memory cimport vm_normal_page
from pykmm_ext.mm.mm_types cimport (
    VM_HUGETLB, VM_NOHUGEPAGE, VM_SHARED, VM_SPECIAL, arch_ops, mm_struct, page, pmd_t, pte_t, vma_start_write,
)
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr, pte_offset

cdef extern from "kmm/check.h" nogil:
    const char *CHECK_BROKEN
    void check_fail(Cpu *cpu, const char *kind, const char *message)

cdef enum:
    # enum scan_result, as far as it can happen here
    SCAN_PMD_NULL
    SCAN_PAGE_COUNT
    SCAN_ALLOC_HUGE_PAGE_FAIL


cdef int __collapse_huge_page_isolate(Cpu *cpu, mm_struct *mm, pmd_t pmdval) noexcept nogil:
    """Context: mmap_sem W, PTL, the table is nowhere linked and no translation through it is left: nobody else writes its
    entries, so they are read as they are. A page with references besides those of its mappings is in use by somebody who
    would not learn that it was copied (a pin)."""
    cdef const arch_ops *arch = mm.arch
    cdef pte_t *pte = pte_offset(mm, pmdval, 0)
    cdef unsigned long i
    cdef page *pg
    for i in range(<unsigned long>1 << arch.level_bits[0]):
        if pte[i] == 0 or not arch.pte_present(pte[i]):
            continue
        pg = vm_normal_page(mm.machine, arch, pte[i])
        if pg != NULL and READ_ONCE_32(cpu, &pg._refcount) != READ_ONCE_32(cpu, &pg._mapcount):
            return SCAN_PAGE_COUNT
    return SCAN_ALLOC_HUGE_PAGE_FAIL


cdef unsigned long entries_of(mm_struct *mm, pmd_t pmdval) noexcept nogil:
    """Context: PTL. How many entries of the table are in use."""
    cdef pte_t *pte = pte_offset(mm, pmdval, 0)
    cdef unsigned long i, n = 0
    for i in range(<unsigned long>1 << mm.arch.level_bits[0]):
        n += pte[i] != 0
    return n


cdef int collapse_huge_page(Cpu *cpu, vm_area_struct *vma, unsigned long address) noexcept nogil:
    """Context: mmap_sem W, may sleep, waits for other Cpus. `address` is the first of what one PTE table maps."""
    cdef mm_struct *mm = vma.vm_mm
    cdef pmd_t *pmd = mm_find_pmd(cpu, mm, address)
    cdef rw_semaphore *anon = &vma.anon_vma.root.rwsem if vma.anon_vma != NULL else NULL
    cdef spinlock_t *ptl
    cdef pmd_t old
    cdef unsigned long entries = 0
    cdef int result
    if pmd == NULL or mm.arch.table_none(READ_ONCE(cpu, pmd)) or mm.arch.table_bad(READ_ONCE(cpu, pmd)):
        return SCAN_PMD_NULL
    vma_start_write(cpu, vma)
    if anon != NULL:
        down_write(cpu, anon)
    spin_lock(cpu, &mm.page_table_lock)
    old = xchg(cpu, pmd, 0)
    spin_unlock(cpu, &mm.page_table_lock)
    # pmdp_collapse_flush(): no translation through the table is left, and no walker that has found it.
    mm.arch.flush_tlb_range(cpu, mm, address, address + (<unsigned long>1 << mm.arch.level_shift[1]), True)
    serialize_against_walkers(cpu, mm)
    # A speculative fault that took the PTL in time is done after this.
    ptl = pte_lockptr(cpu, mm, old)
    spin_lock(cpu, ptl)
    result = __collapse_huge_page_isolate(cpu, mm, old)
    if unlikely(cpu.engine != NULL):
        entries = entries_of(mm, old)
    spin_unlock(cpu, ptl)
    if result == SCAN_ALLOC_HUGE_PAGE_FAIL:
        # Here the pages would be copied. A reference that is taken from now on is to a page that is about to go.
        kmm_emit(cpu, KMM_EV_ISOLATE, NULL, mm.arch.table_paddr(old))
        kmm_emit(cpu, KMM_EV_ISOLATE, NULL, 0)
        if unlikely(cpu.engine != NULL):
            # And a page that is mapped from now on would be lost, for the table would not come back.
            spin_lock(cpu, ptl)
            if entries_of(mm, old) != entries:
                check_fail(cpu, CHECK_BROKEN, b"a page was mapped in a page table that a collapse has taken away")
            spin_unlock(cpu, ptl)
    # There is no huge page. Nobody may have populated the pmd meanwhile (a BUG_ON() in Linux).
    spin_lock(cpu, &mm.page_table_lock)
    smp_store_release(cpu, pmd, old)  # pairs with the address dependency of lockless walkers
    spin_unlock(cpu, &mm.page_table_lock)
    if anon != NULL:
        up_write(cpu, anon)
    return result


cdef int madvise_collapse(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil:
    """Context: mmap_sem W, may sleep. The arithmetic of an empty range wraps as Linux's does."""
    cdef unsigned long shift = vma.vm_mm.arch.level_shift[1]
    cdef unsigned long size = <unsigned long>1 << shift
    cdef unsigned long hstart = (start + size - 1) & ~(size - 1)
    cdef unsigned long hend = end & ~(size - 1)
    cdef unsigned long address = hstart
    cdef int result
    if (vma.vm_file != NULL or vma.vm_flags & (VM_SHARED | VM_NOHUGEPAGE | VM_HUGETLB | VM_SPECIAL)
            or ((vma.vm_start + size - 1) & ~(size - 1)) + size > vma.vm_end):
        return -EINVAL
    while address < hend:
        result = collapse_huge_page(cpu, vma, address)
        if result == SCAN_ALLOC_HUGE_PAGE_FAIL:
            return -ENOMEM
        if result == SCAN_PAGE_COUNT:
            return -EAGAIN
        address += size
    return 0 if hend == hstart else -EINVAL
