# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (page tables and kernel structures: every index comes out of an address)
"""mm/memory.c: resolving faults. Zapping and freeing page tables is mm/memory_zap, copying them mm/memory_fork.

Page-table words
    Hardware walkers of other CPUs read entries at any time and set A and D with cmpxchg; speculative faults read
    them with IRQs off. So every store is a WRITE_ONCE where the old entry is not present (no walker changes it),
    and an xchg or a cmpxchg where it is (an A or D that a walker sets meanwhile must not be lost).
    All stores to PTEs are made under the split PTL; a table's own entry is written under page_table_lock.

Who runs against whom (one PTE)
    fault under mmap_sem R        mmap_sem R, PTL
    fault under the VMA's lock    no mmap_sem; PTL. Who takes page tables away has write-locked the VMA before
    speculative fault             no mmap_sem; PTL by trylock, then vm_sequence re-checked     strategy->pte_map_lock
    zap (MADV_DONTNEED)           mmap_sem R, vm_sequence section, PTL
    zap (munmap), mprotect, fork  mmap_sem W, vm_sequence section, PTL
    hardware walker               nothing; IRQs off

A new page's contents come before its PTE: smp_wmb() before set_pte(), which pairs with the address dependency of the
walker that reads the PTE and then the frame.

simplified: no swap, no huge pages, no NUMA hints, no device PFNs, no userfaultfd; page contents are copied in one
step. The zero page is the one page without a struct page of its own (pte_special).
"""
from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, READ_ONCE_DEP, READ_ONCE_PTR, atomic_add, cmpxchg, xchg
from pykmm_ext.kernel.seqlock cimport raw_read_seqcount
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock
from pykmm_ext.machine.cpu cimport (
    FAULT_ANON_WRITE, FAULT_ANON_ZERO, FAULT_AROUND_PAGES, FAULT_FILE_COW, FAULT_FILE_READ, FAULT_FILE_SHARED,
    FAULT_SPURIOUS, FAULT_WP_COPY, FAULT_WP_REUSE, KMM_NR_RSS, count_vm_event, count_vm_events, likely, unlikely,
)
from pykmm_ext.mm.filemap cimport filemap_fault, find_get_page
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_INSTRUCTION, FAULT_FLAG_SPECULATIVE, FAULT_FLAG_UNSHARE, FAULT_FLAG_VMA_LOCK, FAULT_FLAG_WRITE,
    MM_ANONPAGES, MM_FILEPAGES, VM_ACCESS_FLAGS, VM_EXEC, VM_FAULT_NOPAGE, VM_FAULT_OOM, VM_FAULT_RETRY,
    VM_FAULT_SIGBUS, VM_SHARED, VM_WRITE, address_space,
    anon_vma, arch_ops, machine, machine_of, page_to_pfn, pmd_t, pte_t,
)
from pykmm_ext.mm.page_alloc cimport __GFP_ZERO, alloc_page, get_page, put_page, put_zeroed_page
from pykmm_ext.mm.pgtable cimport mm_alloc_pmd, pte_alloc, pte_lockptr, pte_offset, pte_offset_map_lock
from pykmm_ext.mm.rmap cimport anon_vma_prepare, page_add_file_rmap, page_add_new_anon_rmap, page_remove_rmap


# ---- rss -----------------------------------------------------------------------------------------

# Context: any with IRQs on; the mm whose deltas these are is alive.
cdef void sync_mm_rss(Cpu *cpu) noexcept nogil:
    cdef mm_struct *mm = <mm_struct *>cpu.rss_mm
    cdef int i
    if mm == NULL:
        return
    for i in range(KMM_NR_RSS):
        if cpu.rss_stat[i]:
            atomic_add(cpu, <unsigned long *>&mm.rss_stat[i], <unsigned long>cpu.rss_stat[i])
            cpu.rss_stat[i] = 0
    cpu.rss_events = 0
    cpu.rss_mm = NULL


# Context: any.
cdef bint access_error(unsigned long vm_flags, u32 flags) noexcept nogil:
    if flags & FAULT_FLAG_WRITE:
        return not (vm_flags & VM_WRITE)
    if flags & FAULT_FLAG_INSTRUCTION:
        return not (vm_flags & VM_EXEC)
    return not (vm_flags & VM_ACCESS_FLAGS)


# ---- taking the PTL ------------------------------------------------------------------------------

# Speculative: the VMA is not looked at, it may be gone; its strategy is the machine's.
cdef bint pte_map_lock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef mm_struct *mm
    if vmf.flags & FAULT_FLAG_SPECULATIVE:
        return machine_of(cpu).strategy.pte_map_lock(cpu, vmf)
    mm = vmf.vma.vm_mm
    vmf.pte = pte_offset_map_lock(cpu, mm, vmf.pmd, vmf.address, &vmf.ptl)
    return vmf.pte != NULL


cdef bint pte_spinlock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef mm_struct *mm
    if vmf.flags & FAULT_FLAG_SPECULATIVE:
        return machine_of(cpu).strategy.pte_spinlock(cpu, vmf)
    mm = vmf.vma.vm_mm
    vmf.ptl = pte_lockptr(cpu, mm, READ_ONCE(cpu, vmf.pmd))
    spin_lock(cpu, vmf.ptl)
    return True


# Context: mmap_sem held R and may sleep, or speculative, or under the VMA's lock. True = vmf->anon_vma is there. The
# latter two must not make one (anon_vma_prepare() looks at the neighbours and so needs mmap_sem): they retry.
cdef inline bint vmf_anon_prepare(Cpu *cpu, vm_fault *vmf, vm_fault_t *ret) noexcept nogil:
    if likely(vmf.anon_vma != NULL):
        return True
    if vmf.flags & (FAULT_FLAG_SPECULATIVE | FAULT_FLAG_VMA_LOCK):
        ret[0] = VM_FAULT_RETRY
        return False
    if anon_vma_prepare(cpu, vmf.vma):
        ret[0] = VM_FAULT_OOM
        return False
    vmf.anon_vma = <anon_vma *>READ_ONCE_PTR(cpu, &vmf.vma.anon_vma)
    return True


# ---- anonymous memory ----------------------------------------------------------------------------

# Context: mmap_sem held R, or speculative; no PTL; may sleep. The entry was none.
cdef vm_fault_t do_anonymous_page(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef mm_struct *mm = vma.vm_mm
    cdef machine *m = mm.machine
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long vm_flags = vmf.vma_flags
    cdef vm_fault_t ret = 0
    cdef page *pg
    cdef pte_t entry
    if unlikely(vm_flags & VM_SHARED):
        return VM_FAULT_SIGBUS  # a shared mapping without a file has nothing to share
    if unlikely(vmf.orig_pmd == 0) and pte_alloc(cpu, mm, vmf.pmd):
        return VM_FAULT_OOM

    if not vmf.flags & FAULT_FLAG_WRITE:
        entry = arch.pte_mkspecial(arch.pfn_pte(page_to_pfn(m, m.zero_page), vmf.vma_page_prot))
        if unlikely(not pte_map_lock(cpu, vmf)):
            return VM_FAULT_RETRY
        if likely(arch.pte_none(READ_ONCE(cpu, vmf.pte))):
            set_pte(cpu, vmf.pte, entry)
            count_vm_event(cpu, FAULT_ANON_ZERO)
        spin_unlock(cpu, vmf.ptl)
        return 0

    if unlikely(not vmf_anon_prepare(cpu, vmf, &ret)):
        return ret
    pg = alloc_page(cpu, __GFP_ZERO)
    if unlikely(pg == NULL):
        return VM_FAULT_OOM
    entry = arch.pfn_pte(page_to_pfn(m, pg), vmf.vma_page_prot)
    if vm_flags & VM_WRITE:
        entry = arch.pte_mkwrite(arch.pte_mkdirty(entry))
    if unlikely(not pte_map_lock(cpu, vmf)):
        put_zeroed_page(cpu, pg)  # the fault comes back under mmap_sem, and should not clear another one there
        return VM_FAULT_RETRY
    if unlikely(not arch.pte_none(READ_ONCE(cpu, vmf.pte))):
        spin_unlock(cpu, vmf.ptl)
        put_zeroed_page(cpu, pg)
        return 0
    page_add_new_anon_rmap(cpu, pg, vmf.anon_vma, vmf.pgoff)
    set_pte(cpu, vmf.pte, entry)
    spin_unlock(cpu, vmf.ptl)
    add_mm_rss(cpu, mm, MM_ANONPAGES, 1)
    count_vm_event(cpu, FAULT_ANON_WRITE)
    return 0


# ---- files ---------------------------------------------------------------------------------------

# Context: PTL held, a reference to the page. Has truncation taken the page off its file? If not yet, the truncation's
# second unmap_mapping_range() is still to come, takes this PTL and finds the entry that the caller makes: its store to
# page->mapping precedes its PTL sections. stands in for the page lock, under which Linux's faults ask the same.
cdef inline bint page_is_truncated(Cpu *cpu, page *pg) noexcept nogil:
    return READ_ONCE_PTR(cpu, &pg.mapping) == NULL


# Context: PTL held, entry none. Maps a page of the cache and takes over the caller's reference.
cdef inline void set_file_pte(Cpu *cpu, vm_fault *vmf, page *pg, pte_t *ptep, bint write) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef const arch_ops *arch = vma.vm_mm.arch
    cdef pte_t entry = arch.pfn_pte(page_to_pfn(vma.vm_mm.machine, pg), vmf.vma_page_prot)
    if write:
        entry = maybe_mkwrite(arch, arch.pte_mkdirty(entry), vmf.vma_flags)
    page_add_file_rmap(cpu, pg)
    set_pte(cpu, ptep, entry)


# Context: as do_read_fault. Maps what the page cache has in the aligned window of fault_around_pages around the fault,
# clipped to the VMA and to the PTE table, under one PTL section. VM_FAULT_NOPAGE = the fault's own page is mapped,
# VM_FAULT_RETRY = the strategy refused, 0 = the page is not in the cache.
cdef vm_fault_t do_fault_around(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef mm_struct *mm = vma.vm_mm
    cdef machine *m = mm.machine
    cdef const arch_ops *arch = mm.arch
    cdef address_space *mapping = &vma.vm_file.f_mapping
    cdef u32 shift = arch.page_shift
    cdef unsigned long window = <unsigned long>m.fault_around_pages << shift
    cdef unsigned long table_size = <unsigned long>1 << arch.level_shift[1]
    cdef unsigned long start, end, address, limit
    cdef pte_t *ptep
    cdef page *pg
    cdef vm_fault_t ret = 0
    cdef long mapped = 0
    if unlikely(vmf.orig_pmd == 0) and pte_alloc(cpu, mm, vmf.pmd):
        return VM_FAULT_OOM
    if unlikely(not pte_map_lock(cpu, vmf)):
        return VM_FAULT_RETRY
    # The bounds that the fault saw: those of the VMA itself may move even now, if this is a speculative fault.
    start = vmf.address - vmf.address % window
    limit = vmf.address & ~(table_size - 1)
    if start < limit:
        start = limit
    if start < vmf.vma_start:
        start = vmf.vma_start
    end = vmf.address - vmf.address % window + window
    if end > limit + table_size:
        end = limit + table_size
    if end > vmf.vma_end:
        end = vmf.vma_end
    address = start
    ptep = vmf.pte - ((vmf.address - start) >> shift)
    while address < end:
        if READ_ONCE(cpu, ptep) == 0:
            pg = find_get_page(cpu, mapping, vmf.pgoff + ((address - vmf.address) >> shift)
                               if address >= vmf.address
                               else vmf.pgoff - ((vmf.address - address) >> shift))
            if pg != NULL and unlikely(page_is_truncated(cpu, pg)):
                put_page(cpu, pg)
            elif pg != NULL:
                set_file_pte(cpu, vmf, pg, ptep, False)
                mapped += 1
                if address == vmf.address:
                    ret = VM_FAULT_NOPAGE
        elif address == vmf.address:
            ret = VM_FAULT_NOPAGE  # somebody was faster
        address += <unsigned long>1 << shift
        ptep += 1
    spin_unlock(cpu, vmf.ptl)
    if mapped:
        add_mm_rss(cpu, mm, MM_FILEPAGES, mapped)
        if ret and mapped > 1:
            count_vm_events(cpu, FAULT_AROUND_PAGES, mapped - 1)
        elif not ret:
            count_vm_events(cpu, FAULT_AROUND_PAGES, mapped)
    return ret


# Context: mmap_sem held R, or speculative; no PTL; may sleep. Takes over the reference of vmf->page, which becomes
# the PTE's, unless the entry was filled meanwhile.
cdef vm_fault_t finish_fault(Cpu *cpu, vm_fault *vmf, bint write) noexcept nogil:
    cdef mm_struct *mm = vmf.vma.vm_mm
    cdef const arch_ops *arch = mm.arch
    cdef bint mine
    if unlikely(vmf.orig_pmd == 0) and pte_alloc(cpu, mm, vmf.pmd):
        put_page(cpu, vmf.page)
        return VM_FAULT_OOM
    if unlikely(not pte_map_lock(cpu, vmf)):
        put_page(cpu, vmf.page)
        return VM_FAULT_RETRY
    mine = arch.pte_none(READ_ONCE(cpu, vmf.pte)) and not page_is_truncated(cpu, vmf.page)
    if likely(mine):
        set_file_pte(cpu, vmf, vmf.page, vmf.pte, write)
    spin_unlock(cpu, vmf.ptl)
    if likely(mine):
        add_mm_rss(cpu, mm, MM_FILEPAGES, 1)
    else:
        put_page(cpu, vmf.page)
    return 0


# Context: mmap_sem held R, or speculative; no PTL; may sleep.
cdef vm_fault_t do_read_fault(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_fault_t ret = 0, tmp
    if vmf.vma.vm_mm.machine.fault_around_pages > 1:
        ret = do_fault_around(cpu, vmf)
        if ret == VM_FAULT_NOPAGE:
            count_vm_event(cpu, FAULT_FILE_READ)
            return 0
        if unlikely(ret):
            return ret
    vmf.page = filemap_fault(cpu, vmf, &ret)
    if vmf.page == NULL:
        return ret
    tmp = finish_fault(cpu, vmf, False)
    if likely(tmp == 0):
        count_vm_event(cpu, FAULT_FILE_READ)
    return ret | tmp


# Context: mmap_sem held R, or speculative; no PTL; may sleep. A private mapping is written before it was read: the
# copy is made at once.
cdef vm_fault_t do_cow_fault(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef mm_struct *mm = vma.vm_mm
    cdef machine *m = mm.machine
    cdef const arch_ops *arch = mm.arch
    cdef vm_fault_t ret = 0
    cdef pte_t entry
    if unlikely(not vmf_anon_prepare(cpu, vmf, &ret)):
        return ret
    if unlikely(vmf.orig_pmd == 0) and pte_alloc(cpu, mm, vmf.pmd):
        return VM_FAULT_OOM
    vmf.cow_page = alloc_page(cpu, 0)
    if unlikely(vmf.cow_page == NULL):
        return VM_FAULT_OOM
    vmf.page = filemap_fault(cpu, vmf, &ret)
    if vmf.page == NULL:
        put_page(cpu, vmf.cow_page)
        return ret
    copy_user_page(cpu, page_address(m, arch, vmf.cow_page), page_address(m, arch, vmf.page), <size_t>1 << arch.page_shift)
    entry = arch.pfn_pte(page_to_pfn(m, vmf.cow_page), vmf.vma_page_prot)
    entry = maybe_mkwrite(arch, arch.pte_mkdirty(entry), vmf.vma_flags)
    if unlikely(not pte_map_lock(cpu, vmf)):
        put_page(cpu, vmf.page)
        put_page(cpu, vmf.cow_page)
        return VM_FAULT_RETRY
    if unlikely(not arch.pte_none(READ_ONCE(cpu, vmf.pte)) or page_is_truncated(cpu, vmf.page)):
        spin_unlock(cpu, vmf.ptl)
        put_page(cpu, vmf.page)
        put_page(cpu, vmf.cow_page)
        return ret
    page_add_new_anon_rmap(cpu, vmf.cow_page, vmf.anon_vma, vmf.pgoff)
    set_pte(cpu, vmf.pte, entry)
    spin_unlock(cpu, vmf.ptl)
    put_page(cpu, vmf.page)
    add_mm_rss(cpu, mm, MM_ANONPAGES, 1)
    count_vm_event(cpu, FAULT_FILE_COW)
    return ret


# Context: mmap_sem held R, or speculative; no PTL; may sleep.
cdef vm_fault_t do_shared_fault(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_fault_t ret = 0, tmp
    vmf.page = filemap_fault(cpu, vmf, &ret)
    if vmf.page == NULL:
        return ret
    tmp = finish_fault(cpu, vmf, True)
    if likely(tmp == 0):
        count_vm_event(cpu, FAULT_FILE_SHARED)
    return ret | tmp


# Context: mmap_sem held R, or speculative; no PTL; may sleep. The entry was none and the VMA is not anonymous.
cdef vm_fault_t do_fault(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    if vma.vm_file == NULL or (vma.vm_ops != NULL and vma.vm_ops.no_fault):
        return VM_FAULT_SIGBUS
    if not vmf.flags & FAULT_FLAG_WRITE:
        return do_read_fault(cpu, vmf)
    if not vmf.vma_flags & VM_SHARED:
        return do_cow_fault(cpu, vmf)
    return do_shared_fault(cpu, vmf)


# ---- writes to read-only entries -----------------------------------------------------------------

# Context: PTL held; drops it. The page stays; the entry becomes writable, young and dirty. A walker that sets A
# between the check and here only makes the cmpxchg fail, and the access is repeated.
cdef vm_fault_t wp_page_reuse(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef const arch_ops *arch = vmf.vma.vm_mm.arch
    cdef pte_t entry = arch.pte_mkyoung(vmf.orig_pte)
    entry = maybe_mkwrite(arch, arch.pte_mkdirty(entry), vmf.vma_flags)
    cmpxchg(cpu, vmf.pte, vmf.orig_pte, entry)
    spin_unlock(cpu, vmf.ptl)
    count_vm_event(cpu, FAULT_WP_REUSE)
    return 0


# Context: mmap_sem held R, or speculative; no PTL; may sleep. `old` carries a reference of the caller's (dropped
# here); NULL = the zero page.
#
# Order of the exchange, under the PTL: (1) the old entry is cleared and its translation flushed everywhere, (2) the
# new entry is set. With the two swapped, a CPU that still translates to the old page could read old data after another
# CPU has read or written new data through the new entry. That no *writable* stale translation of the old page exists
# while it is copied is the duty of whoever write-protects: fork, mprotect and mremap flush before their vm_sequence
# section (or mmap_sem W) ends. The flush waits for other CPUs while the PTL is held: speculative faults only try that
# lock while their IRQs are off.
cdef vm_fault_t wp_page_copy(Cpu *cpu, vm_fault *vmf, page *old) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef mm_struct *mm = vma.vm_mm
    cdef machine *m = mm.machine
    cdef const arch_ops *arch = mm.arch
    cdef vm_fault_t ret = 0
    cdef pte_t entry
    cdef page *new
    cdef bint done = False
    if unlikely(not vmf_anon_prepare(cpu, vmf, &ret)):
        if old != NULL:
            put_page(cpu, old)
        return ret
    new = alloc_page(cpu, __GFP_ZERO if old == NULL else 0)
    if unlikely(new == NULL):
        if old != NULL:
            put_page(cpu, old)
        return VM_FAULT_OOM
    if old != NULL:
        copy_user_page(cpu, page_address(m, arch, new), page_address(m, arch, old), <size_t>1 << arch.page_shift)
    if unlikely(not pte_map_lock(cpu, vmf)):
        put_page(cpu, new)
        if old != NULL:
            put_page(cpu, old)
        return VM_FAULT_RETRY
    if likely(READ_ONCE(cpu, vmf.pte) == vmf.orig_pte):
        entry = arch.pfn_pte(page_to_pfn(m, new), vmf.vma_page_prot)
        if not vmf.flags & FAULT_FLAG_UNSHARE:
            entry = maybe_mkwrite(arch, arch.pte_mkdirty(entry), vmf.vma_flags)
        xchg(cpu, vmf.pte, 0)
        arch.flush_tlb_page(cpu, mm, vmf.address)
        page_add_new_anon_rmap(cpu, new, vmf.anon_vma, vmf.pgoff)
        set_pte(cpu, vmf.pte, entry)
        if old != NULL:
            page_remove_rmap(cpu, old)
        done = True
    spin_unlock(cpu, vmf.ptl)
    if not done:
        put_page(cpu, new)
        if old != NULL:
            put_page(cpu, old)
        return 0
    if old == NULL:
        add_mm_rss(cpu, mm, MM_ANONPAGES, 1)
    else:
        if not page_is_anon(cpu, old):
            add_mm_rss(cpu, mm, MM_FILEPAGES, -1)
            add_mm_rss(cpu, mm, MM_ANONPAGES, 1)
        put_page(cpu, old)  # the entry's
        put_page(cpu, old)  # ours
    count_vm_event(cpu, FAULT_WP_COPY)
    return 0


# Context: PTL held (drops it), mmap_sem held R or speculative; may sleep after the drop. A write to a present,
# read-only entry of a VMA that allows writing; or with FAULT_FLAG_UNSHARE a page that is to become exclusive and stays
# read-only, for a pin that must see what is written there later.
#
# PG_anon_exclusive says that no other mapping of the page may exist; references do not matter then, pins above all: the
# page stays where the pin is. Fork takes the mark away, unless the page may be pinned: then it copies. Without the mark
# the page is ours if nobody else has as much as a reference: a reference that somebody took while the page was shared
# (a child's, or one of a read in progress) must not see what we write from now on (race R22).
cdef vm_fault_t do_wp_page(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef machine *m = vma.vm_mm.machine
    cdef page *old = vm_normal_page(m, vma.vm_mm.arch, vmf.orig_pte)
    cdef bint mine
    if vmf.vma_flags & VM_SHARED:
        return wp_page_reuse(cpu, vmf)  # as page_mkwrite() of a file system that tracks nothing
    if old != NULL and page_is_anon(cpu, old):
        mine = page_anon_exclusive(cpu, old)
        # Ours alone: one mapping, and no reference but the mapping's. Nobody can add one that lasts: that takes another
        # mapping of the page, or this PTL. (A gather that has not flushed yet still counts.)
        if not mine and READ_ONCE_32(cpu, &old._mapcount) == 1 and READ_ONCE_32(cpu, &old._refcount) == 1:
            set_page_anon_exclusive(cpu, old, True)
            mine = True
        if mine and vmf.flags & FAULT_FLAG_UNSHARE:
            spin_unlock(cpu, vmf.ptl)
            return 0
        if mine:
            return wp_page_reuse(cpu, vmf)
    if old != NULL:
        get_page(cpu, old)
    spin_unlock(cpu, vmf.ptl)
    return wp_page_copy(cpu, vmf, old)


# ---- the fault -----------------------------------------------------------------------------------

cdef vm_fault_t handle_pte_fault(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef mm_struct *mm = vma.vm_mm
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long vm_flags
    cdef pmd_t pmdval
    cdef pte_t entry
    if vmf.flags & FAULT_FLAG_SPECULATIVE:
        # orig_pmd and orig_pte were read by the strategy while the tables could not go away.
        pmdval = vmf.orig_pmd
    else:
        pmdval = READ_ONCE_DEP(cpu, vmf.pmd, 1)  # mm_alloc_pmd() has read the entry above it
        vmf.orig_pmd = pmdval
        if arch.table_none(pmdval):
            # The caller that allocates asks for 0: a table that is there stays while mmap_sem is held.
            vmf.orig_pmd = 0
            vmf.orig_pte = 0
        else:
            vmf.orig_pte = READ_ONCE_DEP(cpu, pte_offset(mm, pmdval, vmf.address), 1)
    if arch.pte_none(vmf.orig_pte):
        vmf.pte = NULL
        if vma.vm_file == NULL and (vma.vm_ops == NULL or not vma.vm_ops.no_fault):
            return do_anonymous_page(cpu, vmf)
        return do_fault(cpu, vmf)
    if unlikely(not arch.pte_present(vmf.orig_pte)):
        return VM_FAULT_SIGBUS  # swap entries and migration do not exist yet

    vmf.pte = pte_offset(mm, pmdval, vmf.address)
    if unlikely(not pte_spinlock(cpu, vmf)):
        return VM_FAULT_RETRY
    if unlikely(READ_ONCE(cpu, vmf.pte) != vmf.orig_pte):
        spin_unlock(cpu, vmf.ptl)
        return 0
    entry = vmf.orig_pte
    vm_flags = vmf.vma_flags
    if unlikely(arch.pte_protnone(entry)) and vm_flags & VM_ACCESS_FLAGS:
        # A hinting entry, or one that mprotect has not come to: it gets the VMA's rights (do_numa_page()).
        entry = arch.pte_mkyoung(arch.pte_modify(entry, vmf.vma_page_prot))
        cmpxchg(cpu, vmf.pte, vmf.orig_pte, entry)
        spin_unlock(cpu, vmf.ptl)
        return 0
    if vmf.flags & (FAULT_FLAG_WRITE | FAULT_FLAG_UNSHARE):
        if not arch.pte_write(entry):
            return do_wp_page(cpu, vmf)
        if vmf.flags & FAULT_FLAG_WRITE:
            entry = arch.pte_mkdirty(entry)
    entry = arch.pte_mkyoung(entry)
    if entry != vmf.orig_pte:
        # A walker may set D on a writable entry right now: then this fails, and the access is repeated.
        cmpxchg(cpu, vmf.pte, vmf.orig_pte, entry)
    else:
        count_vm_event(cpu, FAULT_SPURIOUS)  # a stale translation; the hardware has dropped it by faulting
    spin_unlock(cpu, vmf.ptl)
    return 0


cdef vm_fault_t handle_mm_fault(Cpu *cpu, vm_area_struct *vma, unsigned long address, u32 flags) noexcept nogil:
    cdef vm_fault vmf
    cdef mm_struct *mm = vma.vm_mm
    vmf.vma = vma
    vmf.vma_flags = vma.vm_flags
    vmf.vma_page_prot = vma.vm_page_prot
    vmf.vma_start = vma.vm_start
    vmf.vma_end = vma.vm_end
    vmf.anon_vma = <anon_vma *>READ_ONCE_PTR(cpu, &vma.anon_vma)
    vmf.flags = flags & ~FAULT_FLAG_SPECULATIVE
    vmf.address = address & ~((<unsigned long>1 << mm.arch.page_shift) - 1)
    vmf.pgoff = linear_page_index(cpu, vma, vmf.address)
    vmf.sequence = raw_read_seqcount(cpu, &vma.vm_sequence)
    vmf.pte = NULL
    vmf.ptl = NULL
    vmf.page = NULL
    vmf.cow_page = NULL
    vmf.strategy_data = NULL
    vmf.pmd = mm_alloc_pmd(cpu, mm, vmf.address)
    if unlikely(vmf.pmd == NULL):
        return VM_FAULT_OOM
    return handle_pte_fault(cpu, &vmf)
