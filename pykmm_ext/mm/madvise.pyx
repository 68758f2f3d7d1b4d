# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/madvise.c, with mm/mincore.c and mm/msync.c: advice about mappings, residency, write-back.

As Linux 6.18 in what is accepted, refused, split and merged. simplified:

- MADV_FREE marks private anonymous pages old and clean (so a reclaimer could take them); nothing reclaims yet, so
  their contents stay, as on a Linux without memory pressure.
- MADV_COLD and MADV_PAGEOUT have no effect: there is no LRU and no swap. MADV_REMOVE on a shared file mapping
  is -EOPNOTSUPP: files have no holes. Guard regions and memory poisoning are -EINVAL.
- MADV_COLLAPSE never succeeds (mm/khugepaged): there are no huge pages.
- msync writes nothing back: a file's page cache is all there is of it.
"""
from libc.errno cimport EACCES, EAGAIN, EBUSY, EINVAL, ENOMEM, EOPNOTSUPP

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, READ_ONCE_DEP, WRITE_ONCE, cmpxchg
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, u8, u32
from pykmm_ext.mm.filemap cimport filemap_get_page, find_get_page
from pykmm_ext.mm.gup cimport populate_page
from pykmm_ext.mm.khugepaged cimport madvise_collapse
from pykmm_ext.mm.memory_zap cimport zap_page_range
from pykmm_ext.mm.mm_types cimport (
    PG_anon, VM_ACCESS_FLAGS, VM_DONTCOPY, VM_DONTDUMP, VM_HUGEPAGE, VM_HUGETLB, VM_IO, VM_LOCKED, VM_MAYSHARE,
    VM_MERGEABLE, VM_NOHUGEPAGE, VM_PFNMAP, VM_RAND_READ, VM_SEQ_READ, VM_SHARED, VM_SPECIAL, VM_WIPEONFORK, VM_WRITE,
    arch_ops, mm_struct, page, pfn_to_page, pmd_t, pte_t, vm_area_struct, vma_start_write, vma_write_begin,
    vma_write_end,
)
from pykmm_ext.mm.mmap cimport mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock
from pykmm_ext.mm.page_alloc cimport put_page
from pykmm_ext.mm.pgtable cimport mm_find_pmd, mm_read_pte, pte_lockptr, pte_offset
from pykmm_ext.mm.vma cimport find_vma, find_vma_prev
from pykmm_ext.mm.vma_merge cimport vma_modify_flags

cdef enum:
    MADV_NORMAL = 0
    MADV_RANDOM = 1
    MADV_SEQUENTIAL = 2
    MADV_WILLNEED = 3
    MADV_DONTNEED = 4
    MADV_FREE = 8
    MADV_REMOVE = 9
    MADV_DONTFORK = 10
    MADV_DOFORK = 11
    MADV_MERGEABLE = 12
    MADV_UNMERGEABLE = 13
    MADV_HUGEPAGE = 14
    MADV_NOHUGEPAGE = 15
    MADV_DONTDUMP = 16
    MADV_DODUMP = 17
    MADV_WIPEONFORK = 18
    MADV_KEEPONFORK = 19
    MADV_COLD = 20
    MADV_PAGEOUT = 21
    MADV_POPULATE_READ = 22
    MADV_POPULATE_WRITE = 23
    MADV_DONTNEED_LOCKED = 24
    MADV_COLLAPSE = 25
    MS_ASYNC = 1
    MS_INVALIDATE = 2
    MS_SYNC = 4


cdef bint madvise_needs_write(int behavior) noexcept nogil:
    """Does the advice change VMAs (mmap_sem W) or only pages (R)?"""
    return not (behavior == MADV_WILLNEED or behavior == MADV_DONTNEED or behavior == MADV_DONTNEED_LOCKED
                or behavior == MADV_FREE or behavior == MADV_REMOVE or behavior == MADV_COLD
                or behavior == MADV_PAGEOUT)


cdef int madvise_update_vma(Cpu *cpu, vm_area_struct *vma, vm_area_struct **prev, unsigned long start,
                            unsigned long end, unsigned long new_flags) noexcept nogil:
    """Context: mmap_sem W, may sleep. 0, or -EAGAIN where Linux runs out of memory or mappings."""
    cdef int err = 0
    prev[0] = prev[0] if start == vma.vm_start else vma
    if new_flags == vma.vm_flags:
        prev[0] = vma
        return 0
    vma = vma_modify_flags(cpu, prev[0], vma, start, end, new_flags, &err)
    if vma == NULL:
        return -EAGAIN if err == -ENOMEM else err
    prev[0] = vma
    vma_start_write(cpu, vma)
    vma_write_begin(cpu, vma, 0)
    WRITE_ONCE(cpu, &vma.vm_flags, new_flags)
    vma_write_end(cpu, vma)
    return 0


cdef int madvise_behavior(Cpu *cpu, vm_area_struct *vma, vm_area_struct **prev, unsigned long start,
                          unsigned long end, int behavior) noexcept nogil:
    """Context: mmap_sem W, may sleep. Advice that is a flag of the VMA."""
    cdef unsigned long flags = vma.vm_flags
    if behavior == MADV_NORMAL:
        flags &= ~(VM_RAND_READ | VM_SEQ_READ)
    elif behavior == MADV_SEQUENTIAL:
        flags = (flags & ~VM_RAND_READ) | VM_SEQ_READ
    elif behavior == MADV_RANDOM:
        flags = (flags & ~VM_SEQ_READ) | VM_RAND_READ
    elif behavior == MADV_DONTFORK:
        flags |= VM_DONTCOPY
    elif behavior == MADV_DOFORK:
        if flags & VM_IO:
            return -EINVAL
        flags &= ~VM_DONTCOPY
    elif behavior == MADV_WIPEONFORK:
        if vma.vm_file != NULL or flags & VM_SHARED:
            return -EINVAL
        flags |= VM_WIPEONFORK
    elif behavior == MADV_KEEPONFORK:
        flags &= ~VM_WIPEONFORK
    elif behavior == MADV_DONTDUMP:
        flags |= VM_DONTDUMP
    elif behavior == MADV_DODUMP:
        if flags & VM_SPECIAL:
            return -EINVAL
        flags &= ~VM_DONTDUMP
    elif behavior == MADV_MERGEABLE:
        if not flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_HUGETLB):
            flags |= VM_MERGEABLE
    elif behavior == MADV_UNMERGEABLE:
        flags &= ~VM_MERGEABLE
    elif behavior == MADV_HUGEPAGE:
        flags = (flags & ~VM_NOHUGEPAGE) | VM_HUGEPAGE
    else:
        flags = (flags & ~VM_HUGEPAGE) | VM_NOHUGEPAGE
    return madvise_update_vma(cpu, vma, prev, start, end, flags)


cdef void madvise_free_pte_range(Cpu *cpu, vm_area_struct *vma, pmd_t pmdval, unsigned long addr,
                                 unsigned long end) noexcept nogil:
    """Context: mmap_sem R, inside the VMA's write section; takes the PTL. The compare-and-swap keeps an A or D that a walker
    sets at the same moment: then the page is in use again and stays as it is."""
    cdef mm_struct *mm = vma.vm_mm
    cdef const arch_ops *arch = mm.arch
    cdef spinlock_t *ptl = pte_lockptr(cpu, mm, pmdval)
    cdef pte_t *ptep
    cdef pte_t pte
    cdef page *pg
    spin_lock(cpu, ptl)
    ptep = pte_offset(mm, pmdval, addr)
    while addr != end:
        pte = READ_ONCE(cpu, ptep)
        if not arch.pte_none(pte) and arch.pte_present(pte) and not arch.pte_special(pte):
            pg = pfn_to_page(mm.machine, arch.pte_pfn(pte))
            if READ_ONCE(cpu, &pg.flags) & PG_anon and READ_ONCE_32(cpu, &pg._mapcount) == 1:
                cmpxchg(cpu, ptep, pte, arch.pte_mkold(arch.pte_mkclean(pte)))
        ptep += 1
        addr += <unsigned long>1 << arch.page_shift
    spin_unlock(cpu, ptl)


cdef void madvise_free_page_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil:
    """Context: mmap_sem R, IRQs on, may wait for other Cpus. Patch 06's write section around it."""
    cdef mm_struct *mm = vma.vm_mm
    cdef unsigned long size = <unsigned long>1 << mm.arch.level_shift[1]
    cdef unsigned long addr = start, next_addr
    cdef pmd_t *pmd
    cdef pmd_t pmdval
    vma_write_begin(cpu, vma, 0)
    while addr < end:
        next_addr = (addr + size) & ~(size - 1)
        if next_addr > end:
            next_addr = end
        pmd = mm_find_pmd(cpu, mm, addr)
        if pmd != NULL:
            pmdval = READ_ONCE_DEP(cpu, pmd, 1)
            if not mm.arch.table_none(pmdval) and not mm.arch.table_bad(pmdval):
                madvise_free_pte_range(cpu, vma, pmdval, addr, next_addr)
        addr = next_addr
    mm.arch.flush_tlb_range(cpu, mm, start, end, False)
    vma_write_end(cpu, vma)


cdef void madvise_willneed(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil:
    """Context: mmap_sem R, may sleep. Reads the file's pages into the page cache; nothing for anonymous memory."""
    cdef unsigned long index, last
    cdef int major = 0
    cdef u32 err = 0
    cdef page *pg
    if vma.vm_file == NULL:
        return
    index = vma.vm_pgoff + ((start - vma.vm_start) >> vma.vm_mm.arch.page_shift)
    last = index + ((end - start) >> vma.vm_mm.arch.page_shift)
    if last > vma.vm_file.f_mapping.nrpages_max:
        last = vma.vm_file.f_mapping.nrpages_max
    while index < last:
        pg = filemap_get_page(cpu, &vma.vm_file.f_mapping, index, &major, &err)
        if pg == NULL:
            return
        put_page(cpu, pg)
        index += 1


cdef int madvise_vma(Cpu *cpu, vm_area_struct *vma, vm_area_struct **prev, unsigned long start, unsigned long end,
                     int behavior) noexcept nogil:
    """Context: mmap_sem as madvise_needs_write() says, may sleep. 0 or -errno; *prev = the VMA that covers the range."""
    cdef unsigned long flags = vma.vm_flags
    if behavior == MADV_COLLAPSE:
        prev[0] = vma
        return madvise_collapse(cpu, vma, start, end)
    if madvise_needs_write(behavior):
        return madvise_behavior(cpu, vma, prev, start, end, behavior)
    prev[0] = vma
    if behavior == MADV_DONTNEED or behavior == MADV_FREE or behavior == MADV_DONTNEED_LOCKED:
        if flags & (VM_PFNMAP | VM_HUGETLB) or (flags & VM_LOCKED and behavior != MADV_DONTNEED_LOCKED):
            return -EINVAL
        if behavior != MADV_FREE:
            zap_page_range(cpu, vma, start, end - start)
        elif vma.vm_file != NULL:
            return -EINVAL
        else:
            madvise_free_page_range(cpu, vma, start, end)
    elif behavior == MADV_WILLNEED:
        madvise_willneed(cpu, vma, start, end)
    elif behavior == MADV_REMOVE:
        if flags & VM_LOCKED or vma.vm_file == NULL:
            return -EINVAL
        return -EACCES if flags & (VM_SHARED | VM_WRITE) != VM_SHARED | VM_WRITE else -EOPNOTSUPP
    elif flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB):   # MADV_COLD, MADV_PAGEOUT
        return -EINVAL
    return 0


cdef long madvise_populate(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end, bint write) noexcept nogil:
    """Context: mmap_sem R, may sleep. 0, -ENOMEM (hole, no memory), -EINVAL (permissions), -EFAULT (beyond the file)."""
    cdef vm_area_struct *vma = NULL
    cdef int err
    while start < end:
        if vma == NULL or start >= vma.vm_end:
            vma = find_vma(cpu, mm, start)
            if vma == NULL or vma.vm_start > start:
                return -ENOMEM
            if vma.vm_flags & (VM_IO | VM_PFNMAP) or not vma.vm_flags & (VM_WRITE if write else VM_ACCESS_FLAGS):
                return -EINVAL
        err = populate_page(cpu, vma, start, write)
        if err:
            return err
        start += <unsigned long>1 << mm.arch.page_shift
    return 0


cdef long madvise_walk_vmas(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                            int behavior) noexcept nogil:
    """Context: mmap_sem, may sleep. Holes make the answer -ENOMEM, but the rest is done."""
    cdef vm_area_struct *prev
    cdef vm_area_struct *vma = find_vma_prev(cpu, mm, start, &prev)
    cdef long unmapped_error = 0
    cdef unsigned long tmp
    cdef int err
    while True:
        if vma == NULL:
            return -ENOMEM
        if start < vma.vm_start:
            unmapped_error = -ENOMEM
            start = vma.vm_start
            if start >= end:
                return unmapped_error
        tmp = vma.vm_end if vma.vm_end < end else end
        err = madvise_vma(cpu, vma, &prev, start, tmp, behavior)
        if err:
            return err
        start = tmp if tmp > prev.vm_end else prev.vm_end
        if start >= end:
            return unmapped_error
        vma = prev.vm_next


cdef long do_madvise(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int behavior) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0 or -errno."""
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef unsigned long end
    cdef long ret
    if behavior < 0 or behavior > MADV_COLLAPSE or (behavior > MADV_DONTNEED and behavior < MADV_FREE):
        return -EINVAL
    if start & mask or (len and (len + mask) & ~mask == 0):
        return -EINVAL
    end = start + ((len + mask) & ~mask)
    if end < start:
        return -EINVAL
    if end == start:
        return 0
    if behavior == MADV_POPULATE_READ or behavior == MADV_POPULATE_WRITE:
        mmap_read_lock(cpu, mm)
        ret = madvise_populate(cpu, mm, start, end, behavior == MADV_POPULATE_WRITE)
        mmap_read_unlock(cpu, mm)
    elif madvise_needs_write(behavior):
        mmap_write_lock(cpu, mm, start, end)
        ret = madvise_walk_vmas(cpu, mm, start, end, behavior)
        mmap_write_unlock(cpu, mm)
    else:
        mmap_read_lock(cpu, mm)
        ret = madvise_walk_vmas(cpu, mm, start, end, behavior)
        mmap_read_unlock(cpu, mm)
    return ret


# ---- mincore ----

cdef u8 mincore_page(Cpu *cpu, vm_area_struct *vma, unsigned long address) noexcept nogil:
    """Context: mmap_sem R. 1 when touching the page would need no reading: mapped, or in the file's page cache."""
    cdef page *pg
    cdef mm_struct *mm = vma.vm_mm
    cdef pte_t pte = 0
    cdef unsigned long index
    if mm_read_pte(cpu, mm, address, &pte) and not mm.arch.pte_none(pte):
        return 1 if mm.arch.pte_present(pte) else 0
    if vma.vm_file == NULL:
        return 0
    index = vma.vm_pgoff + ((address - vma.vm_start) >> mm.arch.page_shift)
    if index >= vma.vm_file.f_mapping.nrpages_max:
        return 0
    pg = find_get_page(cpu, &vma.vm_file.f_mapping, index)
    if pg == NULL:
        return 0
    put_page(cpu, pg)
    return 1


cdef long do_mincore(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, u8 *vec) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0, -EINVAL (misaligned), -ENOMEM (a hole, or beyond the
    address space); vec has a byte for every page up to where it ended."""
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef unsigned long addr = start, end
    cdef vm_area_struct *vma = NULL
    cdef long ret = 0
    if start & mask:
        return -EINVAL
    if start > mm.task_size or len > mm.task_size - start:
        return -ENOMEM
    end = start + ((len + mask) & ~mask)
    mmap_read_lock(cpu, mm)
    while addr < end:
        if vma == NULL or addr >= vma.vm_end:
            vma = find_vma(cpu, mm, addr)
            if vma == NULL or vma.vm_start > addr:
                ret = -ENOMEM
                break
        vec[(addr - start) >> mm.arch.page_shift] = mincore_page(cpu, vma, addr)
        addr += mask + 1
    mmap_read_unlock(cpu, mm)
    return ret


# ---- msync ----

cdef long do_msync(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int flags) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0, -EINVAL, -ENOMEM (a hole), -EBUSY (MS_INVALIDATE of
    a locked mapping)."""
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef unsigned long end
    cdef vm_area_struct *vma
    cdef long ret = 0
    if flags & ~<int>(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or start & mask:
        return -EINVAL
    if flags & MS_ASYNC and flags & MS_SYNC:
        return -EINVAL
    end = start + ((len + mask) & ~mask)
    if end < start:
        return -ENOMEM
    if end == start:
        return 0
    mmap_read_lock(cpu, mm)
    vma = find_vma(cpu, mm, start)
    while True:
        if vma == NULL:
            ret = -ENOMEM
            break
        if start < vma.vm_start:
            ret = -ENOMEM
            if vma.vm_start >= end:
                break
        if flags & MS_INVALIDATE and vma.vm_flags & VM_LOCKED:
            ret = -EBUSY
            break
        start = vma.vm_end
        if start >= end:
            break
        vma = vma.vm_next
    mmap_read_unlock(cpu, mm)
    return ret
