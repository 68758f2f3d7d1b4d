# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/mprotect.c: changing the permissions of mappings.

As Linux 6.18 in what succeeds, merges and fails. The write section of the speculative-page-fault series (patch 06) ends
before a locked mapping is populated (R11).
"""
from libc.errno cimport EACCES, EINVAL, ENOMEM

from pykmm_ext.kernel.atomic cimport READ_ONCE, WRITE_ONCE, cmpxchg
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, u32, unlikely
from pykmm_ext.mm.gup cimport populate_vma_page_range
from pykmm_ext.mm.mm_types cimport (
    KMM_QUIRK_MPROTECT_PLAIN, KMM_QUIRK_MPROTECT_POPULATE, PG_anon, PG_anon_exclusive, VM_ACCESS_FLAGS, VM_ACCOUNT,
    VM_GROWSDOWN, VM_HUGETLB, VM_LOCKED, VM_NORESERVE, VM_SHARED, VM_WRITE,
    arch_ops, mm_struct, page, pfn_to_page, pmd_t, pte_t, vm_area_struct, vma_start_write, vma_write_begin,
    vma_write_end,
)
from pykmm_ext.mm.mmap cimport mmap_write_lock, mmap_write_unlock, vm_stat_account
from pykmm_ext.mm.pgtable cimport pte_lockptr, pte_offset, table_entry
from pykmm_ext.mm.vma cimport find_vma_prev, vma_set_page_prot
from pykmm_ext.mm.vma_merge cimport vma_modify_flags

cdef enum:
    PROT_MASK = 0xf              # PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM
    PROT_GROWSDOWN = 0x01000000
    PROT_GROWSUP = 0x02000000


cdef bint can_change_pte_writable(Cpu *cpu, vm_area_struct *vma, pte_t pte) noexcept nogil:
    """Context: PTL held. May a private mapping that allows writing have this entry writable at once? Only an anonymous
    page that is exclusive to this mapping, pinned or not; everything else still goes through the COW fault."""
    cdef const arch_ops *arch = vma.vm_mm.arch
    cdef page *pg
    if vma.vm_flags & (VM_WRITE | VM_SHARED) != VM_WRITE or arch.pte_special(pte):
        return False
    pg = pfn_to_page(vma.vm_mm.machine, arch.pte_pfn(pte))
    return (READ_ONCE(cpu, &pg.flags) & (PG_anon | PG_anon_exclusive)) == (PG_anon | PG_anon_exclusive)


cdef unsigned long change_pte_range(Cpu *cpu, vm_area_struct *vma, pmd_t pmdval, unsigned long addr,
                                    unsigned long end) noexcept nogil:
    """Context: mmap_sem W, inside the VMA's write section; takes the PTL. How many entries changed.

    stands in for ptep_modify_prot_start/commit: a compare-and-swap per entry, so that A and D which a walker sets at the
    same moment are kept, and the entry is never seen empty."""
    cdef mm_struct *mm = vma.vm_mm
    cdef const arch_ops *arch = mm.arch
    cdef spinlock_t *ptl = pte_lockptr(cpu, mm, pmdval)
    cdef unsigned long page_size = <unsigned long>1 << arch.page_shift
    cdef unsigned long pages = 0
    cdef pte_t *ptep
    cdef pte_t old, new, seen
    spin_lock(cpu, ptl)
    ptep = pte_offset(mm, pmdval, addr)
    while addr != end:
        old = READ_ONCE(cpu, ptep)
        while not arch.pte_none(old) and arch.pte_present(old):
            new = arch.pte_modify(old, vma.vm_page_prot)
            if not arch.pte_write(new) and can_change_pte_writable(cpu, vma, new):
                new = arch.pte_mkwrite(new)
            if new == old:
                break
            seen = cmpxchg(cpu, ptep, old, new)
            if seen == old:
                pages += 1
                break
            old = seen
        ptep += 1
        addr += page_size
    spin_unlock(cpu, ptl)
    return pages


cdef unsigned long change_table(Cpu *cpu, vm_area_struct *vma, unsigned long table, u32 level, unsigned long addr,
                                unsigned long end) noexcept nogil:
    """Context: as change_pte_range. `table` is the physical address of a table of `level` (above 0); `end` is exclusive."""
    cdef mm_struct *mm = vma.vm_mm
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long size = <unsigned long>1 << arch.level_shift[level]
    cdef unsigned long *entry = table_entry(mm, table, level, addr)
    cdef unsigned long next_addr, pages = 0
    cdef pmd_t val
    while addr != end:
        next_addr = (addr + size) & ~(size - 1)
        if next_addr - 1 > end - 1:
            next_addr = end
        val = READ_ONCE(cpu, entry)
        if not arch.table_none(val) and not arch.table_bad(val):
            if level == 1:
                pages += change_pte_range(cpu, vma, val, addr, next_addr)
            else:
                pages += change_table(cpu, vma, arch.table_paddr(val), level - 1, addr, next_addr)
        entry += 1
        addr = next_addr
    return pages


cdef unsigned long change_protection(Cpu *cpu, vm_area_struct *vma, unsigned long start,
                                     unsigned long end) noexcept nogil:
    """Context: mmap_sem W, inside the VMA's write section, IRQs on, may wait for other Cpus. Gives every present page of
    the range vma->vm_page_prot and flushes; how many changed. The flush comes after the PTLs: until it is done a
    writer may still use a stale entry, and the system call has not returned yet."""
    cdef mm_struct *mm = vma.vm_mm
    cdef unsigned long pages = change_table(cpu, vma, mm.pgd, mm.arch.levels - 1, start, end)
    if pages:
        mm.arch.flush_tlb_range(cpu, mm, start, end, False)
    return pages


cdef int mprotect_fixup(Cpu *cpu, vm_area_struct *vma, vm_area_struct **pprev, unsigned long start, unsigned long end,
                        unsigned long newflags) noexcept nogil:
    """Context: mmap_sem W, may sleep. [start, end) lies in `vma`; *pprev = the VMA that covers it afterwards. 0, -ENOMEM."""
    cdef mm_struct *mm = vma.vm_mm
    cdef unsigned long oldflags = vma.vm_flags
    cdef long nrpages = <long>((end - start) >> mm.arch.page_shift)
    cdef bint inside = mm.machine.quirks & KMM_QUIRK_MPROTECT_POPULATE != 0
    cdef int err = 0
    if newflags == oldflags:
        pprev[0] = vma
        return 0
    if newflags & VM_WRITE:
        if not oldflags & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            newflags |= VM_ACCOUNT
    elif oldflags & VM_ACCOUNT and vma.vm_file == NULL and vma.anon_vma == NULL:
        newflags &= ~VM_ACCOUNT                  # nothing was written yet, so nothing needs to be reserved
    vma = vma_modify_flags(cpu, pprev[0], vma, start, end, newflags, &err)
    if vma == NULL:
        return err
    pprev[0] = vma
    vma_start_write(cpu, vma)
    vma_write_begin(cpu, vma, 0)
    if unlikely(mm.machine.quirks & KMM_QUIRK_MPROTECT_PLAIN):
        vma.vm_flags = newflags
    else:
        WRITE_ONCE(cpu, &vma.vm_flags, newflags)
    vma_set_page_prot(cpu, vma)
    change_protection(cpu, vma, start, end)
    if not inside:
        vma_write_end(cpu, vma)
    if oldflags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and newflags & VM_WRITE:
        populate_vma_page_range(cpu, vma, start, end)
    if inside:
        vma_write_end(cpu, vma)
    vm_stat_account(mm, oldflags, -nrpages)
    vm_stat_account(mm, newflags, nrpages)
    return 0


cdef long mprotect_locked(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end, unsigned long prot,
                          unsigned long grows) noexcept nogil:
    """Context: mmap_sem W, may sleep. What lies before the first hole or refusal is changed all the same."""
    cdef vm_area_struct *prev
    cdef vm_area_struct *vma = find_vma_prev(cpu, mm, start, &prev)
    cdef unsigned long newflags, tmp
    cdef int err
    if vma == NULL:
        return -ENOMEM
    if grows & PROT_GROWSDOWN:
        if vma.vm_start >= end:
            return -ENOMEM
        start = vma.vm_start
        if not vma.vm_flags & VM_GROWSDOWN:
            return -EINVAL
    else:
        if vma.vm_start > start:
            return -ENOMEM
        if grows & PROT_GROWSUP:
            return -EINVAL                       # no stack grows up here
    if start > vma.vm_start:
        prev = vma
    while True:
        newflags = (prot & VM_ACCESS_FLAGS) | (vma.vm_flags & ~VM_ACCESS_FLAGS)
        if newflags & ~(newflags >> 4) & VM_ACCESS_FLAGS:
            return -EACCES
        tmp = vma.vm_end if vma.vm_end < end else end
        err = mprotect_fixup(cpu, vma, &prev, start, tmp, newflags)
        if err:
            return err
        start = tmp if tmp > prev.vm_end else prev.vm_end
        if start >= end:
            return 0
        vma = prev.vm_next
        if vma == NULL or vma.vm_start != start:
            return -ENOMEM


cdef long do_mprotect(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, unsigned long prot) noexcept nogil:
    """Context: process, no locks, IRQs on, may sleep, GIL not held. 0, -EINVAL, -ENOMEM (hole, memory, too many mappings),
    -EACCES (a VM_MAY* bit is missing)."""
    cdef unsigned long mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef unsigned long grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    cdef unsigned long end
    cdef long ret
    prot &= ~<unsigned long>(PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == (PROT_GROWSDOWN | PROT_GROWSUP) or start & mask:
        return -EINVAL
    if len == 0:
        return 0
    end = start + ((len + mask) & ~mask)
    if end <= start:
        return -ENOMEM
    if prot & ~<unsigned long>PROT_MASK:
        return -EINVAL
    mmap_write_lock(cpu, mm, start, end)
    ret = mprotect_locked(cpu, mm, start, end, prot, grows)
    mmap_write_unlock(cpu, mm)
    return ret
