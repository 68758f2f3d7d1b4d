# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/mmap.c, the mappings that grow: brk() and stacks.

Who runs against whom: brk() takes mmap_sem W like mmap(), expand_stack() is called under it. Both change a VMA that
speculative faults may be using, inside its write section.

simplified: no RLIMIT_* but the stack's default.
"""
from libc.errno cimport EINVAL, ENOMEM, EPERM

from pykmm_ext.kernel.atomic cimport WRITE_ONCE
from pykmm_ext.kernel.rwsem cimport down_write, up_write
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock
from pykmm_ext.mm.mm_types cimport (
    VM_ACCESS_FLAGS, VM_ACCOUNT, VM_GROWSDOWN, VM_LOCKED, VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE, VM_READ, VM_SOFTDIRTY,
    VM_WRITE, vma_start_write, vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.mmap cimport do_munmap, mm_populate, mmap_unlock, mmap_write_lock, vm_stat_account
from pykmm_ext.mm.rmap cimport anon_vma_prepare
from pykmm_ext.mm.unmapped_area cimport page_align, page_size
from pykmm_ext.mm.vma cimport (
    find_vma, find_vma_prev, vm_area_alloc, vm_start_gap, vma_gap_update, vma_link, vma_set_page_prot, vma_set_range,
)
from pykmm_ext.mm.vma_merge cimport __vma_adjust, can_vma_merge_after

cdef enum:
    STK_LIM = 8 << 20

cdef unsigned long VM_DATA_DEFAULT_FLAGS = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC


# ---- brk ----

cdef int do_brk_flags(Cpu *cpu, mm_struct *mm, vm_area_struct *prev, unsigned long addr,
                      unsigned long len) noexcept nogil:
    """Context: mmap_sem W, [addr, addr + len) is free. Grows the heap VMA `prev`, never down into a successor; a new VMA
    where prev is something else. 0 or -ENOMEM."""
    cdef unsigned long vm_flags = VM_DATA_DEFAULT_FLAGS | VM_ACCOUNT | mm.def_flags
    cdef unsigned long pgoff = addr >> mm.arch.page_shift
    cdef vm_area_struct *vma = prev
    if mm.map_count > mm.machine.vm_max_map_count:
        return -ENOMEM
    if prev != NULL and prev.vm_end == addr and can_vma_merge_after(prev, vm_flags, NULL, NULL, pgoff, NULL):
        if __vma_adjust(cpu, prev, prev.vm_start, addr + len, prev.vm_pgoff, NULL, prev):
            return -ENOMEM
    else:
        vma = vm_area_alloc(cpu, mm)
        if vma == NULL:
            return -ENOMEM
        vma_set_range(cpu, vma, addr, addr + len, pgoff)
        vma.vm_flags = vm_flags
        vma_set_page_prot(cpu, vma)
        find_vma_prev(cpu, mm, addr, &prev)
        vma_link(cpu, mm, vma, prev)
    vm_stat_account(mm, vm_flags, <long>(len >> mm.arch.page_shift))
    if vm_flags & VM_LOCKED:
        mm.locked_vm += len >> mm.arch.page_shift
    vma_write_begin(cpu, vma, 0)
    WRITE_ONCE(cpu, &vma.vm_flags, vma.vm_flags | VM_SOFTDIRTY)
    vma_write_end(cpu, vma)
    return 0


cdef unsigned long ksys_brk(Cpu *cpu, mm_struct *mm, unsigned long brk) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. The new break, or the old one where the request cannot
    be met; brk(0) asks. An mm without a heap (start_brk 0) has none to grow."""
    cdef vm_area_struct *next
    cdef vm_area_struct *prev
    cdef unsigned long newbrk, oldbrk, ret, populate = 0
    cdef long err = 0
    mmap_write_lock(cpu, mm, mm.start_brk, mm.task_size)
    ret = mm.brk
    newbrk = page_align(mm, brk)
    oldbrk = page_align(mm, mm.brk)
    if mm.start_brk == 0 or brk < mm.start_brk or brk > mm.task_size:
        pass
    elif newbrk == oldbrk:
        mm.brk = brk
        ret = brk
    elif brk < mm.brk:
        next = find_vma(cpu, mm, newbrk)
        if next != NULL and next.vm_start < oldbrk:
            mm.brk = brk        # before, because do_munmap() may come back as a reader
            err = do_munmap(cpu, mm, newbrk, oldbrk - newbrk, True)
            if err < 0:
                mm.brk = ret
            else:
                ret = brk
    elif newbrk <= mm.task_size:
        next = find_vma_prev(cpu, mm, oldbrk, &prev)
        if next == NULL or newbrk + page_size(mm) <= vm_start_gap(next):
            if prev != NULL and prev.vm_end <= mm.start_brk:
                prev = NULL
            if do_brk_flags(cpu, mm, prev, oldbrk, newbrk - oldbrk) == 0:
                mm.brk = brk
                ret = brk
                if mm.def_flags & VM_LOCKED:
                    populate = newbrk - oldbrk
    mmap_unlock(cpu, mm, err > 0)
    if populate:
        mm_populate(cpu, mm, oldbrk, populate, True)
    return ret


# ---- stack growth ----

cdef int expand_stack(Cpu *cpu, vm_area_struct *vma, unsigned long address) noexcept nogil:
    """Context: mmap_sem W, may sleep. Grows a VM_GROWSDOWN mapping down to the page of `address`. 0, -EPERM (below
    mmap_min_addr), -ENOMEM (guard gap, stack limit, memory), -EINVAL (not a stack).

    The write section is not in the series, which leaves a reader the chance to see the new vm_start with the
    old vm_pgoff. As in 6.18, mmap_sem is held for writing (4.12: for reading)."""
    cdef mm_struct *mm = vma.vm_mm
    cdef vm_area_struct *prev = vma.vm_prev
    cdef unsigned long grow
    address &= ~(page_size(mm) - 1)
    if not vma.vm_flags & VM_GROWSDOWN:
        return -EINVAL
    if address < mm.arch.mmap_min_addr:
        return -EPERM
    if address >= vma.vm_start:
        return 0
    if prev != NULL:
        if prev.vm_end > address:
            return -ENOMEM
        if (not prev.vm_flags & VM_GROWSDOWN and prev.vm_flags & VM_ACCESS_FLAGS
                and address - prev.vm_end < <unsigned long>256 << mm.arch.page_shift):
            return -ENOMEM
    if anon_vma_prepare(cpu, vma):
        return -ENOMEM
    grow = (vma.vm_start - address) >> mm.arch.page_shift
    if grow > vma.vm_pgoff or vma.vm_end - address > STK_LIM:
        return -ENOMEM
    vma_start_write(cpu, vma)
    down_write(cpu, &vma.anon_vma.root.rwsem)
    vma_write_begin(cpu, vma, 0)
    spin_lock(cpu, &mm.page_table_lock)
    if vma.vm_flags & VM_LOCKED:
        mm.locked_vm += grow
    vm_stat_account(mm, vma.vm_flags, <long>grow)
    WRITE_ONCE(cpu, &vma.vm_start, address)
    WRITE_ONCE(cpu, &vma.vm_pgoff, vma.vm_pgoff - grow)
    vma_gap_update(vma)
    spin_unlock(cpu, &mm.page_table_lock)
    vma_write_end(cpu, vma)
    up_write(cpu, &vma.anon_vma.root.rwsem)
    return 0
