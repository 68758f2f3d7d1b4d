# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/mlock.c: locking mappings in memory.

simplified: nothing is ever reclaimed, so a locked mapping differs by its flags, by locked_vm and by having been faulted
in; limits are those of a privileged user (none).
"""
from libc.errno cimport EAGAIN, EFAULT, EINVAL, ENOMEM

from pykmm_ext.kernel.atomic cimport WRITE_ONCE
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport (
    VM_HUGETLB, VM_LOCKED, VM_LOCKONFAULT, VM_SPECIAL, mm_struct, vm_area_struct, vma_start_write, vma_write_begin,
    vma_write_end,
)
from pykmm_ext.mm.mmap cimport mm_populate, mmap_write_lock, mmap_write_unlock, munlock_vma_pages_range
from pykmm_ext.mm.vma cimport find_vma_prev
from pykmm_ext.mm.vma_merge cimport vma_modify_flags

cdef enum:
    MLOCK_ONFAULT = 1
    MCL_CURRENT = 1
    MCL_FUTURE = 2
    MCL_ONFAULT = 4

cdef unsigned long VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT


cdef int mlock_fixup(Cpu *cpu, vm_area_struct *vma, vm_area_struct **pprev, unsigned long start, unsigned long end,
                     unsigned long newflags) noexcept nogil:
    """Context: mmap_sem W, may sleep. [start, end) lies in `vma`; *pprev = the VMA that covers it afterwards. 0, -ENOMEM."""
    cdef mm_struct *mm = vma.vm_mm
    cdef unsigned long oldflags = vma.vm_flags
    cdef long nr_pages = <long>((end - start) >> mm.arch.page_shift)
    cdef int err = 0
    if newflags == oldflags or oldflags & (VM_SPECIAL | VM_HUGETLB):
        pprev[0] = vma
        return 0
    vma = vma_modify_flags(cpu, pprev[0], vma, start, end, newflags, &err)
    if vma == NULL:
        return err
    pprev[0] = vma
    if not newflags & VM_LOCKED:
        nr_pages = -nr_pages if oldflags & VM_LOCKED else 0
    elif oldflags & VM_LOCKED:
        nr_pages = 0
    mm.locked_vm += nr_pages
    if newflags & VM_LOCKED:
        vma_start_write(cpu, vma)
        vma_write_begin(cpu, vma, 0)
        WRITE_ONCE(cpu, &vma.vm_flags, newflags)
        vma_write_end(cpu, vma)
    else:
        munlock_vma_pages_range(cpu, vma, start, end)
    return 0


cdef long apply_vma_lock_flags(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                               unsigned long flags) noexcept nogil:
    """Context: mmap_sem W, may sleep. 0, -ENOMEM at the first hole, with everything before it done."""
    cdef vm_area_struct *prev
    cdef vm_area_struct *vma = find_vma_prev(cpu, mm, start, &prev)
    cdef unsigned long tmp
    cdef int err
    if vma == NULL or vma.vm_start > start:
        return -ENOMEM
    if start > vma.vm_start:
        prev = vma
    while True:
        tmp = vma.vm_end if vma.vm_end < end else end
        err = mlock_fixup(cpu, vma, &prev, start, tmp, (vma.vm_flags & ~VM_LOCKED_MASK) | flags)
        if err:
            return err
        start = tmp if tmp > prev.vm_end else prev.vm_end
        if start >= end:
            return 0
        vma = prev.vm_next
        if vma == NULL or vma.vm_start != start:
            return -ENOMEM


cdef void apply_mlockall_flags(Cpu *cpu, mm_struct *mm, unsigned long flags) noexcept nogil:
    """Context: mmap_sem W, may sleep. Every mapping; errors are passed over, as in Linux."""
    cdef vm_area_struct *vma = mm.mmap
    cdef vm_area_struct *prev = NULL
    while vma != NULL:
        if mlock_fixup(cpu, vma, &prev, vma.vm_start, vma.vm_end, (vma.vm_flags & ~VM_LOCKED_MASK) | flags):
            prev = vma
        vma = prev.vm_next


cdef long change_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, unsigned long vm_flags) noexcept nogil:
    """Context: process, no locks, may sleep. The common half of mlock and munlock: rounds to pages, applies vm_flags, and
    faults the pages in where they are to be locked."""
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef long ret = 0
    len = (len + (start & mask) + mask) & ~mask
    start &= ~mask
    if start + len < start:
        return -EINVAL
    mmap_write_lock(cpu, mm, start, start + len)
    if len:
        ret = apply_vma_lock_flags(cpu, mm, start, start + len, vm_flags)
    mmap_write_unlock(cpu, mm)
    if ret or not vm_flags & VM_LOCKED:
        return ret
    ret = mm_populate(cpu, mm, start, len, False)
    if ret == -EFAULT:
        return -ENOMEM
    return -EAGAIN if ret == -ENOMEM else ret


cdef long do_mlock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int flags) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. mlock2(). 0, -EINVAL, -ENOMEM (a hole, or a page that
    cannot be faulted in), -EAGAIN (no memory for one)."""
    if flags & ~<int>MLOCK_ONFAULT:
        return -EINVAL
    return change_lock(cpu, mm, start, len, VM_LOCKED | (VM_LOCKONFAULT if flags & MLOCK_ONFAULT else 0))


cdef long do_munlock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0, -EINVAL, -ENOMEM (a hole)."""
    return change_lock(cpu, mm, start, len, 0)


cdef long do_mlockall(Cpu *cpu, mm_struct *mm, int flags) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0 or -EINVAL. MCL_FUTURE works through def_flags."""
    cdef unsigned long vm_flags = VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
    if flags == 0 or flags & ~<int>(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -EINVAL
    mmap_write_lock(cpu, mm, 0, mm.task_size)
    mm.def_flags &= ~VM_LOCKED_MASK
    if flags & MCL_FUTURE:
        mm.def_flags |= vm_flags
    if flags & MCL_CURRENT:
        apply_mlockall_flags(cpu, mm, vm_flags)
    mmap_write_unlock(cpu, mm)
    if flags & MCL_CURRENT:
        mm_populate(cpu, mm, 0, mm.task_size, True)
    return 0


cdef long do_munlockall(Cpu *cpu, mm_struct *mm) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0."""
    mmap_write_lock(cpu, mm, 0, mm.task_size)
    mm.def_flags &= ~VM_LOCKED_MASK
    apply_mlockall_flags(cpu, mm, 0)
    mmap_write_unlock(cpu, mm)
    return 0
