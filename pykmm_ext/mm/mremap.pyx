# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/mremap.c: resizing and moving mappings.

As Linux 6.18 in what succeeds, fails and merges, the move of several mappings at once (6.17) included. The page tables are
moved inside the write sections of both VMAs (patch 06), which begin after the locks of the reverse map (R2); where
source and destination turn out to be one VMA there is only one section, since two would cancel each other out.
"""
from libc.errno cimport EFAULT, EINVAL, ENOMEM

from pykmm_ext.kernel.atomic cimport READ_ONCE, WRITE_ONCE, WRITE_ONCE_PTR, xchg
from pykmm_ext.kernel.rwsem cimport down_write, rw_semaphore, up_write
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_nested, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, unlikely
from pykmm_ext.mm.mm_types cimport (
    KMM_QUIRK_MREMAP_EARLY_COUNT, VM_DONTEXPAND, VM_LOCKED, VM_LOCKONFAULT, VM_MAYSHARE, VM_PFNMAP, VM_SHARED, anon_vma,
    arch_ops, mm_struct, pmd_t, pte_t, vm_area_struct, vma_pages, vma_start_write, vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.mmap cimport (
    do_munmap, mm_populate, mmap_unlock, mmap_write_lock, vm_stat_account,
)
from pykmm_ext.mm.pgtable cimport mm_alloc_pmd, mm_find_pmd, pte_alloc, pte_lockptr, pte_offset
from pykmm_ext.mm.rmap cimport unlink_anon_vmas_from
from pykmm_ext.mm.unmapped_area cimport get_unmapped_area
from pykmm_ext.mm.vma cimport find_vma, find_vma_intersection
from pykmm_ext.mm.vma_merge cimport copy_vma, vma_merge

cdef enum:
    MREMAP_MAYMOVE = 1
    MREMAP_FIXED = 2
    MREMAP_DONTUNMAP = 4
    MAP_SHARED = 1
    MAP_FIXED = 0x10


cdef struct vma_remap_struct:
    # One call's arguments, lengths already rounded to pages.
    mm_struct *mm
    unsigned long addr
    unsigned long old_len
    unsigned long new_len
    unsigned long flags
    unsigned long new_addr
    bint mlocked
    bint downgraded     # mmap_sem is held for reading by now


cdef void move_ptes(Cpu *cpu, mm_struct *mm, pmd_t old_pmd, unsigned long old_addr, unsigned long old_end,
                    pmd_t new_pmd, unsigned long new_addr) noexcept nogil:
    """Context: mmap_sem W, write sections of both VMAs, locks of the reverse map; takes both PTLs, flushes under them.

    Only a holder of mmap_sem W (this function; fork, with a child that nobody knows) takes two PTLs, so old before
    new cannot deadlock; speculative faults only try. The flush comes before the PTLs are dropped: afterwards the
    page can be unmapped through its new address and be freed, while a stale entry for the old one would still lead to it.
    The entry is taken out by xchg, so that A and D which a walker set until then move along."""
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long page_size = <unsigned long>1 << arch.page_shift, addr = old_addr
    cdef spinlock_t *old_ptl = pte_lockptr(cpu, mm, old_pmd)
    cdef spinlock_t *new_ptl = pte_lockptr(cpu, mm, new_pmd)
    cdef pte_t *old_pte
    cdef pte_t *new_pte
    cdef pte_t pte
    cdef bint force_flush = False
    spin_lock(cpu, old_ptl)
    if new_ptl != old_ptl:
        spin_lock_nested(cpu, new_ptl, 1)
    old_pte = pte_offset(mm, old_pmd, old_addr)
    new_pte = pte_offset(mm, new_pmd, new_addr)
    while addr < old_end:
        if not arch.pte_none(READ_ONCE(cpu, old_pte)):
            pte = xchg(cpu, old_pte, 0)
            if arch.pte_present(pte):
                force_flush = True
            WRITE_ONCE(cpu, new_pte, pte)
        old_pte += 1
        new_pte += 1
        addr += page_size
    if force_flush:
        arch.flush_tlb_range(cpu, mm, old_addr, old_end, False)
    if new_ptl != old_ptl:
        spin_unlock(cpu, new_ptl)
    spin_unlock(cpu, old_ptl)


cdef unsigned long move_page_tables(Cpu *cpu, mm_struct *mm, unsigned long old_addr, unsigned long new_addr,
                                    unsigned long len) noexcept nogil:
    """Context: as move_ptes, no PTL; may sleep (allocates tables). How many bytes were moved: less than len = no memory."""
    cdef unsigned long size = <unsigned long>1 << mm.arch.level_shift[1]
    cdef unsigned long done = 0, extent, room
    cdef pmd_t *old_pmd
    cdef pmd_t *new_pmd
    cdef pmd_t val
    while done < len:
        extent = size - ((old_addr + done) & (size - 1))
        if extent > len - done:
            extent = len - done
        old_pmd = mm_find_pmd(cpu, mm, old_addr + done)
        if old_pmd == NULL or mm.arch.table_none(READ_ONCE(cpu, old_pmd)):
            done += extent
            continue
        room = size - ((new_addr + done) & (size - 1))
        if extent > room:
            extent = room
        new_pmd = mm_alloc_pmd(cpu, mm, new_addr + done)
        if new_pmd == NULL:
            break
        val = READ_ONCE(cpu, new_pmd)
        if mm.arch.table_none(val):
            if pte_alloc(cpu, mm, new_pmd):
                break
            val = READ_ONCE(cpu, new_pmd)
        move_ptes(cpu, mm, READ_ONCE(cpu, old_pmd), old_addr + done, old_addr + done + extent, val, new_addr + done)
        done += extent
    return done


cdef long move_vma(Cpu *cpu, vma_remap_struct *vrm, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W, may sleep; the new range is free, the old one lies in `vma`. The new address or -ENOMEM.

    The locks of the reverse map are held from before the sections to after them; simplified: always, where Linux takes
    them only when the new VMA would come first on a reverse-map walk."""
    cdef mm_struct *mm = vrm.mm
    cdef unsigned long shift = mm.arch.page_shift
    cdef unsigned long old_addr = vrm.addr, old_len = vrm.old_len
    cdef unsigned long vm_flags = vma.vm_flags
    cdef unsigned long pgoff = vma.vm_pgoff + ((old_addr - vma.vm_start) >> shift)
    cdef vm_area_struct *new_vma
    cdef rw_semaphore *i_mmap = NULL
    cdef rw_semaphore *anon = NULL
    cdef anon_vma *own = NULL
    cdef unsigned long moved
    if mm.map_count >= mm.machine.vm_max_map_count - 3:
        return -ENOMEM                           # do_munmap below may split one VMA into three
    vma_start_write(cpu, vma)
    new_vma = copy_vma(cpu, &vma, vrm.new_addr, vrm.new_len, pgoff)  # write-locked: linked or merged
    if new_vma == NULL:
        return -ENOMEM
    if vma.vm_file != NULL:
        i_mmap = &vma.vm_file.f_mapping.i_mmap_rwsem
        down_write(cpu, i_mmap)
    if vma.anon_vma != NULL:
        anon = &vma.anon_vma.root.rwsem
        down_write(cpu, anon)
    vma_write_begin(cpu, vma, 0)
    if new_vma != vma:
        vma_write_begin(cpu, new_vma, 1)
    moved = move_page_tables(cpu, mm, old_addr, vrm.new_addr, old_len)
    if moved < old_len:
        move_page_tables(cpu, mm, vrm.new_addr, old_addr, moved)  # its tables are still there: cannot fail
    elif vrm.flags & MREMAP_DONTUNMAP and new_vma != vma:
        WRITE_ONCE(cpu, &vma.vm_flags, vm_flags & ~(VM_LOCKED | VM_LOCKONFAULT))
        if vma.vm_start == old_addr and vma.vm_end == old_addr + old_len:
            # None of its pages is left, and no speculative fault may add one to an anon_vma that goes below.
            own = vma.anon_vma
            WRITE_ONCE_PTR(cpu, &vma.anon_vma, NULL)
    if new_vma != vma:
        vma_write_end(cpu, new_vma)
    vma_write_end(cpu, vma)
    if anon != NULL:
        up_write(cpu, anon)
    if i_mmap != NULL:
        up_write(cpu, i_mmap)
    vm_stat_account(mm, vm_flags, <long>(vrm.new_len >> shift))
    if vm_flags & VM_LOCKED:
        mm.locked_vm += vrm.new_len >> shift
        vrm.mlocked = True
    if moved < old_len:
        do_munmap(cpu, mm, vrm.new_addr, vrm.new_len, False)
        return -ENOMEM
    if not vrm.flags & MREMAP_DONTUNMAP:
        # Out of memory for a split: the old range stays, empty. Nothing to be done about it.
        do_munmap(cpu, mm, old_addr, old_len, False)
        return <long>vrm.new_addr
    if vma == new_vma:
        return <long>vrm.new_addr
    if vm_flags & VM_LOCKED:
        mm.locked_vm -= vma_pages(vma, shift)
    if own != NULL:
        unlink_anon_vmas_from(cpu, vma, own)     # takes a lock in which sections nest: after the section
    return <long>vrm.new_addr


cdef bint vma_expandable(Cpu *cpu, vm_area_struct *vma, unsigned long delta) noexcept nogil:
    """Context: mmap_sem. Is the room behind the VMA free and inside the address space?"""
    cdef unsigned long end = vma.vm_end + delta
    return (end >= vma.vm_end and find_vma_intersection(cpu, vma.vm_mm, vma.vm_end, end) == NULL
            and get_unmapped_area(cpu, vma.vm_mm, NULL, vma.vm_start, end - vma.vm_start, 0, MAP_FIXED) >= 0)


cdef long vrm_set_new_addr(Cpu *cpu, vma_remap_struct *vrm, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W. Chooses (or checks) where to move. 0 or -errno."""
    cdef unsigned long map_flags = MAP_FIXED if vrm.flags & MREMAP_FIXED else 0
    cdef unsigned long hint = vrm.new_addr if vrm.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) else 0
    cdef long res
    if vma.vm_flags & VM_MAYSHARE:
        map_flags |= MAP_SHARED
    res = get_unmapped_area(cpu, vrm.mm, vma.vm_file, hint, vrm.new_len,
                            vma.vm_pgoff + ((vrm.addr - vma.vm_start) >> vrm.mm.arch.page_shift), map_flags)
    if res < 0:
        return res
    vrm.new_addr = <unsigned long>res
    return 0


cdef long check_prep_vma(vma_remap_struct *vrm, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W. What Linux asks of the VMA at vrm->addr (NULL = none). 0 or -errno."""
    cdef unsigned long pgoff
    if vma == NULL or vma.vm_start > vrm.addr:
        return -EFAULT
    if vrm.new_len <= vrm.old_len and not vrm.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return 0
    if vrm.old_len == 0 and not vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        return -EINVAL                           # there is nothing to duplicate
    if vrm.flags & MREMAP_DONTUNMAP and vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EINVAL
    # What a shrinking move cuts off may lie in other mappings; what it moves may not.
    if (vrm.old_len if vrm.old_len < vrm.new_len else vrm.new_len) > vma.vm_end - vrm.addr:
        return -EFAULT
    if vrm.new_len <= vrm.old_len:
        return 0
    pgoff = vma.vm_pgoff + ((vrm.addr - vma.vm_start) >> vrm.mm.arch.page_shift)
    if pgoff + (vrm.new_len >> vrm.mm.arch.page_shift) < pgoff:
        return -EINVAL
    return -EFAULT if vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP) else 0


cdef long mremap_to(Cpu *cpu, vma_remap_struct *vrm) noexcept nogil:
    """Context: mmap_sem W, may sleep. MREMAP_FIXED and MREMAP_DONTUNMAP: the caller names (or hints at) the place."""
    cdef mm_struct *mm = vrm.mm
    cdef vm_area_struct *vma
    cdef long err
    if vrm.flags & MREMAP_FIXED:
        err = do_munmap(cpu, mm, vrm.new_addr, vrm.new_len, False)
        if err:
            return err
    if vrm.old_len > vrm.new_len:
        err = do_munmap(cpu, mm, vrm.addr + vrm.new_len, vrm.old_len - vrm.new_len, False)
        if err:
            return err
        vrm.old_len = vrm.new_len
    vma = find_vma(cpu, mm, vrm.addr)
    if vma == NULL or vma.vm_start > vrm.addr:
        return -EFAULT
    err = vrm_set_new_addr(cpu, vrm, vma)
    return err if err else move_vma(cpu, vrm, vma)


cdef long mremap_at(Cpu *cpu, vma_remap_struct *vrm, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W, may sleep. Shrinks or grows where it is, moves if that is allowed and needed."""
    cdef mm_struct *mm = vrm.mm
    cdef unsigned long delta
    cdef long err
    if vrm.new_len <= vrm.old_len:
        if vrm.new_len < vrm.old_len:
            err = do_munmap(cpu, mm, vrm.addr + vrm.new_len, vrm.old_len - vrm.new_len, True)
            if err < 0:
                return err
            vrm.downgraded = err > 0
        return <long>vrm.addr
    delta = vrm.new_len - vrm.old_len
    if vrm.old_len and vrm.old_len == vma.vm_end - vrm.addr and vma_expandable(cpu, vma, delta):
        vrm.mlocked = vma.vm_flags & VM_LOCKED != 0
        vma = vma_merge(cpu, mm, vma, vma.vm_end, vma.vm_end + delta, vma.vm_flags, vma, vma.vm_file,
                        vma.vm_pgoff + vma_pages(vma, mm.arch.page_shift))
        if vma == NULL:
            return -ENOMEM
        vm_stat_account(mm, vma.vm_flags, <long>(delta >> mm.arch.page_shift))
        if vrm.mlocked:
            mm.locked_vm += delta >> mm.arch.page_shift
        vrm.new_addr = vrm.addr
        return <long>vrm.addr
    if not vrm.flags & MREMAP_MAYMOVE:
        return -ENOMEM
    err = vrm_set_new_addr(cpu, vrm, vma)
    return err if err else move_vma(cpu, vrm, vma)


cdef long remap_move(Cpu *cpu, vma_remap_struct *vrm) noexcept nogil:
    """Context: mmap_sem W, may sleep. A move of unchanged size to a fixed place: every mapping in the old range moves, and
    the holes between them keep their width. The new address, or the first error (what moved stays moved)."""
    cdef mm_struct *mm = vrm.mm
    cdef unsigned long start = vrm.addr, end = vrm.addr + vrm.old_len, new_start = vrm.new_addr, at = start
    cdef vm_area_struct *vma = find_vma(cpu, mm, start)
    cdef long res
    if vma == NULL or vma.vm_start > start:
        return -EFAULT                           # the range must begin in a mapping
    while vma != NULL and vma.vm_start < end:
        if vma.vm_start > at:
            at = vma.vm_start
        vrm.addr = at
        vrm.old_len = (vma.vm_end if vma.vm_end < end else end) - at
        vrm.new_len = vrm.old_len
        vrm.new_addr = new_start + (at - start)
        at += vrm.old_len
        res = check_prep_vma(vrm, vma)
        if res == 0:
            res = mremap_to(cpu, vrm)
        if res < 0:
            return res
        if at >= end:                            # (what was moved may have merged with what it was moved from)
            break
        vma = find_vma(cpu, mm, at)
    return <long>new_start


cdef long check_mremap_params(vma_remap_struct *vrm) noexcept nogil:
    """Context: any. The checks that need no VMA, in Linux's order. 0 or -errno."""
    cdef mm_struct *mm = vrm.mm
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    if vrm.flags & ~<unsigned long>(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP) or vrm.addr & mask:
        return -EINVAL
    if vrm.new_len == 0 or vrm.new_len > mm.task_size:
        return -EINVAL
    if not vrm.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return 0
    if vrm.new_addr > mm.task_size - vrm.new_len or vrm.new_addr & mask or not vrm.flags & MREMAP_MAYMOVE:
        return -EINVAL
    if vrm.flags & MREMAP_DONTUNMAP and vrm.old_len != vrm.new_len:
        return -EINVAL
    if vrm.addr < vrm.new_addr + vrm.new_len and vrm.new_addr < vrm.addr + vrm.old_len:
        return -EINVAL
    if unlikely(mm.machine.quirks & KMM_QUIRK_MREMAP_EARLY_COUNT):
        return check_map_count(vrm)
    return 0


cdef long check_map_count(vma_remap_struct *vrm) noexcept nogil:
    """Context: mmap_sem W (not so in Linux 6.17). Room for the VMAs that unmapping the new range and splitting the old
    one make. 0 or -ENOMEM."""
    if vrm.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and vrm.mm.map_count + 2 >= vrm.mm.machine.vm_max_map_count - 3:
        return -ENOMEM
    return 0


cdef long sys_mremap(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long old_len, unsigned long new_len,
                     unsigned long flags, unsigned long new_addr) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. The address of the mapping, or -errno: -EINVAL
    (arguments), -EFAULT (no mapping, or more than one where only one may be), -ENOMEM (no room, no memory)."""
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef vma_remap_struct vrm
    cdef vm_area_struct *vma
    cdef unsigned long grown_from
    cdef long ret
    vrm.mm = mm
    vrm.addr = addr
    vrm.old_len = (old_len + mask) & ~mask
    vrm.new_len = (new_len + mask) & ~mask
    vrm.flags = flags
    vrm.new_addr = new_addr
    vrm.mlocked = False
    vrm.downgraded = False
    ret = check_mremap_params(&vrm)
    if ret:
        return ret
    grown_from = vrm.old_len if vrm.new_len > vrm.old_len else 0
    mmap_write_lock(cpu, mm, 0, mm.task_size)
    ret = check_map_count(&vrm)
    if ret:
        pass
    elif vrm.flags & MREMAP_FIXED and vrm.old_len == vrm.new_len and vrm.old_len:
        ret = remap_move(cpu, &vrm)
    else:
        vma = find_vma(cpu, mm, addr)
        ret = check_prep_vma(&vrm, vma)
        if ret == 0:
            if vrm.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
                ret = mremap_to(cpu, &vrm)
            else:
                ret = mremap_at(cpu, &vrm, vma)
    mmap_unlock(cpu, mm, vrm.downgraded)
    if ret >= 0 and vrm.mlocked and vrm.new_len > grown_from and (grown_from or vrm.old_len == 0):
        mm_populate(cpu, mm, <unsigned long>ret + grown_from, vrm.new_len - grown_from, True)
    return ret
