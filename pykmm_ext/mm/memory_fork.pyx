# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (page tables and kernel structures: every index comes out of an address)
"""mm/memory.c, the part that fork needs: copying one VMA's page tables.

Private pages become read-only on both sides and are shared until either writes; the reverse map and the references
count the second mapping before the child can run.

Who runs against whom (one PTE of the parent)
    copy_pte_range                both mmap_sems W, vm_sequence section of the source, both PTLs
    fault under mmap_sem R        excluded
    speculative fault             no mmap_sem; the PTL by trylock, then vm_sequence re-checked: it is stopped by either
    hardware walker               nothing; IRQs off. It may set A or D until the write permission is gone: cmpxchg

The child's tables are not visible to anybody yet.

A page that is pinned (FOLL_PIN) stays the parent's: whoever holds the pin reads and writes it there, and so it must
neither be write-protected for good nor become the child's. The child gets a copy at once (copy_present_page()). It is
told by PG_anon_exclusive, has_pinned and the reference count; a lockless pin that could come between the look at the
count and the write protection sees write_protect_seq, which dup_pages() holds odd meanwhile, and takes its pin back.
As Linux, the copy of a page that the parent's other threads are writing may be torn.

simplified: no swap entries, no huge pages.
"""
from libc.errno cimport ENOMEM
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, cmpxchg
from pykmm_ext.kernel.spinlock cimport spin_lock_nested, spin_unlock
from pykmm_ext.machine.cpu cimport KMM_NR_RSS, u32
from pykmm_ext.mm.memory cimport (
    add_mm_rss, copy_user_page, maybe_mkwrite, mm_counter, page_address, page_anon_exclusive, page_is_anon,
    set_page_anon_exclusive, set_pte, vm_normal_page,
)
from pykmm_ext.mm.mm_types cimport (
    GUP_PIN_COUNTING_BIAS, MM_ANONPAGES, VM_MAYWRITE, VM_SHARED, arch_ops, machine, page, page_to_pfn, pmd_t, pte_t,
    spinlock_t,
)
from pykmm_ext.mm.page_alloc cimport __GFP_NOWAIT, alloc_page, get_page
from pykmm_ext.mm.pgtable cimport (
    level_addr_end, mm_alloc_pmd, pte_alloc, pte_lockptr, pte_offset, pte_offset_map_lock, table_entry,
)
from pykmm_ext.mm.rmap cimport page_add_new_anon_rmap, page_dup_rmap


# Context: mmap_sem W inside write_protect_seq, PTL; an exclusive anonymous page.
cdef inline bint page_needs_cow_for_dma(Cpu *cpu, mm_struct *mm, page *pg) noexcept nogil:
    return (READ_ONCE_32(cpu, &mm.has_pinned) != 0
            and READ_ONCE_32(cpu, &pg._refcount) >= GUP_PIN_COUNTING_BIAS)  # page_maybe_dma_pinned()


# Context: both PTLs held. The child's own copy of a pinned page; `pte` is the parent's entry. 0 or -ENOMEM.
# simplified: allocated with the PTLs held, since nothing here sleeps for memory.
cdef int copy_present_page(Cpu *cpu, vm_area_struct *dst_vma, page *pg, pte_t pte, pte_t *dst) noexcept nogil:
    cdef machine *m = dst_vma.vm_mm.machine
    cdef const arch_ops *arch = dst_vma.vm_mm.arch
    cdef page *new = alloc_page(cpu, __GFP_NOWAIT)
    cdef pte_t entry
    if new == NULL:
        return -ENOMEM
    copy_user_page(cpu, page_address(m, arch, new), page_address(m, arch, pg), <size_t>1 << arch.page_shift)
    page_add_new_anon_rmap(cpu, new, dst_vma.anon_vma, pg.index)
    entry = arch.pfn_pte(page_to_pfn(m, new), dst_vma.vm_page_prot)
    set_pte(cpu, dst, maybe_mkwrite(arch, arch.pte_mkdirty(entry), dst_vma.vm_flags))
    return 0


# Context: both mmap_sems W, inside the source VMA's vma_write_begin section; takes both PTLs (the child is not visible,
# so theirs nest without an order). 0 or -ENOMEM. The source's entries lose write permission: the caller flushes.
cdef int copy_pte_range(Cpu *cpu, mm_struct *dst_mm, pmd_t *dst_pmd, mm_struct *src_mm, pmd_t src_val,
                        vm_area_struct *dst_vma, vm_area_struct *vma, unsigned long addr,
                        unsigned long end) noexcept nogil:
    cdef machine *m = src_mm.machine
    cdef const arch_ops *arch = src_mm.arch
    cdef unsigned long page_size = <unsigned long>1 << arch.page_shift
    cdef bint is_cow = (vma.vm_flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE
    cdef spinlock_t *src_ptl
    cdef spinlock_t *dst_ptl
    cdef pte_t *src
    cdef pte_t *dst
    cdef pte_t pte, seen
    cdef page *pg
    cdef long rss[KMM_NR_RSS]
    cdef int i, ret = 0
    if pte_alloc(cpu, dst_mm, dst_pmd):
        return -ENOMEM
    memset(rss, 0, sizeof(rss))
    dst = pte_offset_map_lock(cpu, dst_mm, dst_pmd, addr, &dst_ptl)
    src_ptl = pte_lockptr(cpu, src_mm, src_val)
    spin_lock_nested(cpu, src_ptl, 1)
    src = pte_offset(src_mm, src_val, addr)
    while addr != end:
        pte = READ_ONCE(cpu, src)
        if pte != 0 and arch.pte_present(pte):
            pg = vm_normal_page(m, arch, pte)
            if is_cow and pg != NULL and page_is_anon(cpu, pg) and page_anon_exclusive(cpu, pg):
                if page_needs_cow_for_dma(cpu, src_mm, pg):
                    ret = copy_present_page(cpu, dst_vma, pg, pte, dst)
                    if ret:
                        break
                    rss[<int>MM_ANONPAGES] += 1
                    src += 1
                    dst += 1
                    addr += page_size
                    continue
                set_page_anon_exclusive(cpu, pg, False)
            while is_cow and arch.pte_write(pte):
                # Walkers of the parent's other CPUs may set A or D until the write permission is gone.
                seen = cmpxchg(cpu, src, pte, arch.pte_wrprotect(pte))
                if seen == pte:
                    pte = arch.pte_wrprotect(pte)
                    break
                pte = seen
            if vma.vm_flags & VM_SHARED:
                pte = arch.pte_mkclean(pte)
            pte = arch.pte_mkold(pte)
            if pg != NULL:
                get_page(cpu, pg)
                page_dup_rmap(cpu, pg)
                rss[mm_counter(cpu, pg)] += 1
            set_pte(cpu, dst, pte)
        src += 1
        dst += 1
        addr += page_size
    spin_unlock(cpu, src_ptl)
    spin_unlock(cpu, dst_ptl)
    for i in range(KMM_NR_RSS):
        if rss[i]:
            add_mm_rss(cpu, dst_mm, i, rss[i])
    return ret


# Context: both mmap_sems W. `table` is the source's table of `level`.
cdef int copy_table_range(Cpu *cpu, mm_struct *dst_mm, mm_struct *src_mm, unsigned long table, u32 level,
                          vm_area_struct *dst_vma, vm_area_struct *vma, unsigned long addr,
                          unsigned long end) noexcept nogil:
    cdef const arch_ops *arch = src_mm.arch
    cdef unsigned long *entry = table_entry(src_mm, table, level, addr)
    cdef unsigned long next_addr
    cdef pmd_t val
    cdef pmd_t *dst_pmd
    while addr != end:
        next_addr = level_addr_end(arch, level, addr, end)
        val = READ_ONCE(cpu, entry)
        if not arch.table_none(val) and not arch.table_bad(val):
            if level == 1:
                dst_pmd = mm_alloc_pmd(cpu, dst_mm, addr)
                if dst_pmd == NULL or copy_pte_range(cpu, dst_mm, dst_pmd, src_mm, val, dst_vma, vma, addr, next_addr):
                    return -ENOMEM
            elif copy_table_range(cpu, dst_mm, src_mm, arch.table_paddr(val), level - 1, dst_vma, vma, addr,
                                  next_addr):
                return -ENOMEM
        entry += 1
        addr = next_addr
    return 0


# The caller holds the source VMA's write section from before this call until the parent's TLB is flushed: see
# kernel/fork.c's stand-in. Mappings that hold no private page (no anon_vma) are skipped: the child faults them in
# from the file, or from nothing.
cdef int copy_page_range(Cpu *cpu, mm_struct *dst_mm, vm_area_struct *dst_vma,
                         vm_area_struct *src_vma) noexcept nogil:
    if src_vma.anon_vma == NULL:
        return 0
    return copy_table_range(cpu, dst_mm, src_vma.vm_mm, src_vma.vm_mm.pgd, src_vma.vm_mm.arch.levels - 1, dst_vma,
                            src_vma, src_vma.vm_start, src_vma.vm_end)
