# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/mmap.c: mapping and unmapping, the end of an address space. Addresses are chosen in mm/unmapped_area, brk() and
stacks are in mm/brk, what execve() maps in mm/vma_exec.

Observable semantics (addresses, merging, errno) as Linux 6.18 on x86-64 for a privileged user without resource limits;
the writer sections of the speculative-page-fault series through the strategy's hooks.

simplified: no RLIMIT_*, no security modules (mmap_min_addr moves hints and bounds the search, and
MAP_FIXED below it is allowed, as for root), MAP_HUGETLB and MAP_DROPPABLE are -EINVAL, every file may be read and
written.

How long munmap() keeps writers and faults out is the strategy's (``munmap_downgrade``): until pages and tables are gone, as
in 4.12; or until the VMAs are out of the tree, from where on Linux since 4.20 is a reader, with whom no other writer works.
Faults in neighbours then run beside zapping and the flush. What they share with it are page tables: those that a neighbour
may need stay (free_pgtables), and neighbours cannot grow or come while a reader holds mmap_sem: stacks grow under W.
"""
from libc.errno cimport EBADF, EEXIST, EINVAL, ENOMEM, EOPNOTSUPP, EOVERFLOW

from pykmm_ext.kernel.atomic cimport WRITE_ONCE, atomic_add_return
from pykmm_ext.kernel.rwsem cimport down_read, down_write, downgrade_write, up_read, up_write
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.filemap cimport file_create, get_file
from pykmm_ext.mm.gup cimport populate_vma_page_range
from pykmm_ext.mm.memory_zap cimport free_pgtables, unmap_vmas
from pykmm_ext.mm.mm_types cimport (
    VM_ACCOUNT, VM_EXEC, VM_GROWSDOWN, VM_IO, VM_LOCKED, VM_LOCKONFAULT, VM_MAYEXEC, VM_MAYREAD, VM_MAYSHARE,
    VM_MAYWRITE, VM_NOHUGEPAGE, VM_NORESERVE, VM_PFNMAP, VM_SHARED, VM_SOFTDIRTY, VM_SPECIAL, VM_WRITE, file, mm_struct,
    mmu_gather, vm_area_struct, vma_mark_detached, vma_pages, vma_start_write, vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.mmu_gather cimport tlb_finish_mmu, tlb_gather_mmu
from pykmm_ext.mm.pgtable cimport pgd_free
from pykmm_ext.mm.rmap cimport unlink_anon_vmas
from pykmm_ext.mm.unmapped_area cimport get_unmapped_area, is_err_value, offset_in_page, page_align, page_size
from pykmm_ext.mm.vma cimport (
    find_vma, find_vma_intersection, find_vma_prev, free_vma, vm_area_alloc, vma_gap_update, vma_link,
    vma_rb_erase, vma_set_page_prot, vma_set_range, vmacache_invalidate,
)
from pykmm_ext.mm.vma_merge cimport __split_vma, vma_merge

# include/uapi/asm-generic/mman*.h
cdef enum:
    PROT_READ = 1
    PROT_WRITE = 2
    PROT_EXEC = 4
    MAP_SHARED = 1
    MAP_PRIVATE = 2
    MAP_SHARED_VALIDATE = 3
    MAP_TYPE = 0x0f
    MAP_FIXED = 0x10
    MAP_ANONYMOUS = 0x20
    MAP_GROWSDOWN = 0x100
    MAP_LOCKED = 0x2000
    MAP_NORESERVE = 0x4000
    MAP_POPULATE = 0x8000
    MAP_NONBLOCK = 0x10000
    MAP_STACK = 0x20000
    MAP_HUGETLB = 0x40000
    MAP_FIXED_NOREPLACE = 0x100000
    # What MAP_SHARED_VALIDATE accepts beside its type: flags older than itself.
    LEGACY_MAP_MASK = 0x407ffff & ~0x80000

cdef unsigned long MAX_LFS_FILESIZE = 0x7fffffffffffffff
cdef unsigned long next_shmem_ino = 1024         # atomic


# ---- mmap_sem ----

cdef void mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    """Context: process, no spinlocks, IRQs on, GIL not held; sleeps."""
    if mm.strategy.mmap_write_lock != NULL:
        mm.strategy.mmap_write_lock(cpu, mm, start, end)
    else:
        down_write(cpu, &mm.mmap_sem)


cdef void mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    """Context: by whoever called mmap_write_lock()."""
    if mm.strategy.mmap_write_unlock != NULL:
        mm.strategy.mmap_write_unlock(cpu, mm)
    else:
        up_write(cpu, &mm.mmap_sem)


cdef bint mmap_write_downgrade(Cpu *cpu, mm_struct *mm) noexcept nogil:
    """Context: by whoever called mmap_write_lock(). True: mmap_sem is held for reading now, and nobody came in between;
    False: it is not held at all, because the strategy knows no such thing."""
    if mm.strategy.mmap_write_downgrade != NULL:
        mm.strategy.mmap_write_downgrade(cpu, mm)
    elif mm.strategy.mmap_write_unlock == NULL:
        downgrade_write(cpu, &mm.mmap_sem)
    else:
        mm.strategy.mmap_write_unlock(cpu, mm)
        return False
    return True


cdef void mmap_unlock(Cpu *cpu, mm_struct *mm, bint downgraded) noexcept nogil:
    """Context: by whoever called mmap_write_lock(), and since then mmap_write_downgrade() if `downgraded`."""
    if downgraded:
        mmap_read_unlock(cpu, mm)
    else:
        mmap_write_unlock(cpu, mm)


cdef void mmap_read_lock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    """Context: process, no spinlocks, IRQs on, GIL not held; sleeps."""
    down_read(cpu, &mm.mmap_sem)


cdef void mmap_read_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    """Context: by whoever called mmap_read_lock()."""
    up_read(cpu, &mm.mmap_sem)


# ---- accounting ----

cdef void vm_stat_account(mm_struct *mm, unsigned long vm_flags, long npages) noexcept nogil:
    """Context: mmap_sem W (stack growth under mmap_sem R: page_table_lock)."""
    mm.total_vm += npages
    if vm_flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC:
        mm.exec_vm += npages
    elif vm_flags & VM_GROWSDOWN:
        mm.stack_vm += npages
    elif vm_flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE:
        mm.data_vm += npages


# ---- mapping ----

cdef long mmap_region(Cpu *cpu, mm_struct *mm, file *f, unsigned long addr, unsigned long len, unsigned long vm_flags,
                      unsigned long pgoff) noexcept nogil:
    """Context: mmap_sem W, may sleep. What is mapped there goes. The address or -errno; on error nothing changed (the new
    VMA and the hidden file of a shared anonymous mapping are allocated before anything is unmapped)."""
    cdef vm_area_struct *prev
    cdef vm_area_struct *vma
    cdef vm_area_struct *merged
    cdef long err
    if accountable_mapping(vm_flags):
        vm_flags |= VM_ACCOUNT
    vma = vm_area_alloc(cpu, mm)
    if vma == NULL:
        return -ENOMEM
    if f != NULL:
        get_file(cpu, f)
        vma.vm_file = f
    elif vm_flags & VM_SHARED:
        vma.vm_file = file_create(cpu, mm.machine, b"/dev/zero (deleted)", NULL, 0, len, 0, 1,
                                  atomic_add_return(cpu, &next_shmem_ino, 1))
        if vma.vm_file == NULL:
            free_vma(cpu, vma)
            return -ENOMEM
    if find_vma_intersection(cpu, mm, addr, addr + len) != NULL:
        err = do_munmap(cpu, mm, addr, len, False)
        if err:
            free_vma(cpu, vma)
            return err
    find_vma_prev(cpu, mm, addr, &prev)
    merged = NULL
    if f != NULL or not vm_flags & VM_SHARED:
        merged = vma_merge(cpu, mm, prev, addr, addr + len, vm_flags, NULL, f, pgoff)
    if merged != NULL:
        free_vma(cpu, vma)
        vma = merged
    else:
        vma_set_range(cpu, vma, addr, addr + len, pgoff)
        vma.vm_flags = vm_flags
        vma_set_page_prot(cpu, vma)
        vma_link(cpu, mm, vma, prev)
    # Write-locked already, whether it was merged or linked (R13): it is visible, and its flags still change.
    vma_write_begin(cpu, vma, 0)
    vm_stat_account(mm, vm_flags, <long>(len >> mm.arch.page_shift))
    if vm_flags & VM_LOCKED:
        if vm_flags & VM_SPECIAL:
            WRITE_ONCE(cpu, &vma.vm_flags, vma.vm_flags & ~(VM_LOCKED | VM_LOCKONFAULT))
        else:
            mm.locked_vm += len >> mm.arch.page_shift
    WRITE_ONCE(cpu, &vma.vm_flags, vma.vm_flags | VM_SOFTDIRTY)
    vma_set_page_prot(cpu, vma)
    vma_write_end(cpu, vma)
    return <long>addr


cdef long do_mmap(Cpu *cpu, mm_struct *mm, file *f, unsigned long addr, unsigned long len, unsigned long prot,
                  unsigned long flags, unsigned long pgoff, unsigned long *populate) noexcept nogil:
    """Context: mmap_sem W, may sleep. The address or -errno; *populate = how many bytes to fault in afterwards. The checks
    stand in the order in which Linux makes them: it decides which errno a doubly wrong call gets."""
    cdef unsigned long vm_flags
    cdef unsigned long kind = flags & MAP_TYPE
    cdef long at
    populate[0] = 0
    if len == 0:
        return -EINVAL
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    if not flags & MAP_FIXED:
        addr &= ~(page_size(mm) - 1)
        if addr and addr < mm.arch.mmap_min_addr:
            addr = page_align(mm, mm.arch.mmap_min_addr)
    len = page_align(mm, len)
    if len == 0:
        return -ENOMEM
    if pgoff + (len >> mm.arch.page_shift) < pgoff:
        return -EOVERFLOW
    if mm.map_count > mm.machine.vm_max_map_count:
        return -ENOMEM
    vm_flags = (prot & (PROT_READ | PROT_WRITE | PROT_EXEC)) | mm.def_flags | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    if flags & MAP_GROWSDOWN:
        vm_flags |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        vm_flags |= VM_LOCKED
    if flags & MAP_STACK:
        vm_flags |= VM_NOHUGEPAGE
    at = get_unmapped_area(cpu, mm, f, addr, len, pgoff, flags)
    if is_err_value(<unsigned long>at):
        return at
    addr = <unsigned long>at
    if flags & MAP_FIXED_NOREPLACE and find_vma_intersection(cpu, mm, addr, addr + len) != NULL:
        return -EEXIST
    if f != NULL:
        if len > MAX_LFS_FILESIZE or pgoff > (MAX_LFS_FILESIZE - len) >> mm.arch.page_shift:
            return -EOVERFLOW
        if kind == MAP_SHARED:
            flags &= LEGACY_MAP_MASK
        if kind == MAP_SHARED or kind == MAP_SHARED_VALIDATE:
            if flags & ~<unsigned long>LEGACY_MAP_MASK:
                return -EOPNOTSUPP
            vm_flags |= VM_SHARED | VM_MAYSHARE
        elif kind != MAP_PRIVATE:
            return -EINVAL
        if vm_flags & VM_GROWSDOWN:
            return -EINVAL
    elif kind == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            return -EINVAL
        pgoff = 0
        vm_flags |= VM_SHARED | VM_MAYSHARE
    elif kind == MAP_PRIVATE:
        pgoff = addr >> mm.arch.page_shift
    else:
        return -EINVAL
    if flags & MAP_NORESERVE:
        vm_flags |= VM_NORESERVE
    at = mmap_region(cpu, mm, f, addr, len, vm_flags, pgoff)
    if not is_err_value(<unsigned long>at) and (vm_flags & VM_LOCKED
                                                or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE):
        populate[0] = len
    return at


cdef long ksys_mmap(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long len, unsigned long prot,
                    unsigned long flags, file *f, unsigned long offset) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. The address or -errno. Takes its own reference of `f`,
    which MAP_ANONYMOUS ignores. -EBADF: neither a file nor MAP_ANONYMOUS."""
    cdef unsigned long populate = 0
    cdef long ret
    if offset_in_page(mm, offset):
        return -EINVAL
    if flags & MAP_ANONYMOUS:
        f = NULL
    elif f == NULL:
        return -EBADF
    if flags & MAP_HUGETLB:
        return -EINVAL
    mmap_write_lock(cpu, mm, 0, mm.task_size)
    ret = do_mmap(cpu, mm, f, addr, len, prot, flags, offset >> mm.arch.page_shift, &populate)
    mmap_write_unlock(cpu, mm)
    if populate:
        mm_populate(cpu, mm, <unsigned long>ret, populate, True)
    return ret


cdef long mm_populate(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len,
                      bint ignore_errors) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep. Holes are passed over. simplified: mmap_sem is held for the whole
    range; Linux may drop it while it reads a page."""
    cdef unsigned long end = start + len, nstart, nend
    cdef vm_area_struct *vma
    cdef long ret = 0
    mmap_read_lock(cpu, mm)
    vma = find_vma(cpu, mm, start)
    while vma != NULL and vma.vm_start < end:
        if not vma.vm_flags & (VM_IO | VM_PFNMAP | VM_LOCKONFAULT):
            nstart = start if start > vma.vm_start else vma.vm_start
            nend = end if end < vma.vm_end else vma.vm_end
            while nstart < nend:
                ret = populate_vma_page_range(cpu, vma, nstart, nend)
                if ret <= 0:
                    break
                nstart += <unsigned long>ret << mm.arch.page_shift
            if ret < 0 and not ignore_errors:
                break
        ret = 0
        vma = vma.vm_next
    mmap_read_unlock(cpu, mm)
    return ret


# ---- unmapping ----

cdef void munlock_vma_pages_range(Cpu *cpu, vm_area_struct *vma, unsigned long start,
                                  unsigned long end) noexcept nogil:
    """Context: mmap_sem W. simplified: pages carry no mlock state, so only the VMA's flags change."""
    vma_start_write(cpu, vma)
    vma_write_begin(cpu, vma, 0)
    WRITE_ONCE(cpu, &vma.vm_flags, vma.vm_flags & ~(VM_LOCKED | VM_LOCKONFAULT))
    vma_write_end(cpu, vma)


cdef void detach_vmas_to_be_unmapped(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, vm_area_struct *prev,
                                     unsigned long end) noexcept nogil:
    """Context: mmap_sem W; may sleep. Takes `vma` and its successors below `end` off the tree and the list; they stay a
    list of their own. From here on no lookup finds them, and who has found one already learns that it is detached."""
    cdef vm_area_struct *tail = NULL
    vma.vm_prev = NULL
    cdef vm_area_struct *it = vma
    while it != NULL and it.vm_start < end:
        vma_start_write(cpu, it)
        vma_rb_erase(cpu, it, mm)
        vma_mark_detached(cpu, it)
        mm.map_count -= 1
        vm_stat_account(mm, it.vm_flags, -<long>vma_pages(it, mm.arch.page_shift))
        tail = it
        it = it.vm_next
    if prev != NULL:
        prev.vm_next = it
    else:
        mm.mmap = it
    if it != NULL:
        it.vm_prev = prev
        vma_gap_update(it)
    else:
        mm.highest_vm_end = prev.vm_end if prev != NULL else 0
    tail.vm_next = NULL
    vmacache_invalidate(mm)


cdef void remove_vma_list(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem, the VMAs are detached, or last user; may sleep. Gives up VMAs that nothing maps through any more;
    free_pgtables() has taken them off i_mmap."""
    cdef vm_area_struct *next
    while vma != NULL:
        next = vma.vm_next
        unlink_anon_vmas(cpu, vma)
        free_vma(cpu, vma)
        vma = next


cdef void unmap_region(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, vm_area_struct *prev, unsigned long start,
                       unsigned long end) noexcept nogil:
    """Context: mmap_sem, the VMAs are detached, may sleep. Page tables go as far as no neighbour needs them."""
    cdef mmu_gather tlb
    cdef vm_area_struct *next = prev.vm_next if prev != NULL else mm.mmap
    tlb_gather_mmu(cpu, &tlb, mm, False)
    unmap_vmas(cpu, &tlb, vma, start, end)
    free_pgtables(cpu, &tlb, vma, prev.vm_end if prev != NULL else 0, next.vm_start if next != NULL else 0)
    tlb_finish_mmu(cpu, &tlb)


cdef long do_munmap(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, bint downgrade) noexcept nogil:
    """Context: mmap_sem W, may sleep. 0, -EINVAL, or -ENOMEM (then at most a VMA was split). Nothing mapped there is 0.
    1, for a caller with `downgrade` whose strategy wants it: done, and mmap_sem is held for reading now."""
    cdef vm_area_struct *vma
    cdef vm_area_struct *prev
    cdef vm_area_struct *last
    cdef unsigned long end
    cdef int err
    if offset_in_page(mm, start) or start > mm.task_size or len > mm.task_size - start:
        return -EINVAL
    len = page_align(mm, len)
    if len == 0:
        return -EINVAL
    end = start + len
    vma = find_vma_prev(cpu, mm, start, &prev)
    if vma == NULL or vma.vm_start >= end:
        return 0
    if start > vma.vm_start:
        if end < vma.vm_end and mm.map_count >= mm.machine.vm_max_map_count:
            return -ENOMEM
        err = __split_vma(cpu, mm, vma, start, False)
        if err:
            return err
        prev = vma
    last = find_vma(cpu, mm, end)
    if last != NULL and end > last.vm_start:
        err = __split_vma(cpu, mm, last, end, True)
        if err:
            return err
    vma = prev.vm_next if prev != NULL else mm.mmap
    if mm.locked_vm:
        last = vma
        while last != NULL and last.vm_start < end:
            if last.vm_flags & VM_LOCKED:
                mm.locked_vm -= vma_pages(last, mm.arch.page_shift)
                munlock_vma_pages_range(cpu, last, last.vm_start, last.vm_end)
            last = last.vm_next
    detach_vmas_to_be_unmapped(cpu, mm, vma, prev, end)
    if downgrade:
        downgrade = mm.strategy.munmap_downgrade and mmap_write_downgrade(cpu, mm)
    unmap_region(cpu, mm, vma, prev, start, end)
    remove_vma_list(cpu, mm, vma)
    return downgrade


cdef long vm_munmap(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long len) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0 or -errno."""
    cdef long ret
    mmap_write_lock(cpu, mm, addr, addr + len)
    ret = do_munmap(cpu, mm, addr, len, True)
    mmap_unlock(cpu, mm, ret > 0)
    return ret if ret < 0 else 0


cdef void exit_mmap(Cpu *cpu, mm_struct *mm) noexcept nogil:
    """Context: process, may sleep, mm_users is 0 and no Cpu runs in the mm: no locks. The root table goes last."""
    cdef mmu_gather tlb
    cdef vm_area_struct *vma = mm.mmap
    cdef vm_area_struct *it = vma
    if vma != NULL:
        # Where VMAs are type-stable, faults of other address spaces may have strayed to these.
        while it != NULL:
            vma_start_write(cpu, it)
            vma_mark_detached(cpu, it)
            it = it.vm_next
        tlb_gather_mmu(cpu, &tlb, mm, True)
        unmap_vmas(cpu, &tlb, vma, 0, <unsigned long>-1)
        free_pgtables(cpu, &tlb, vma, 0, 0)
        tlb_finish_mmu(cpu, &tlb)
        mm.mmap = NULL
        mm.mm_rb.rb_node = NULL
        mm.map_count = 0
        mm.highest_vm_end = 0
        mm.locked_vm = 0
        vmacache_invalidate(mm)
        remove_vma_list(cpu, mm, vma)
    if mm.pgd:
        pgd_free(cpu, mm)
