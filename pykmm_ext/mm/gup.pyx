# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (page tables and kernel structures: every index comes out of an address)
"""mm/gup.c, only populate_vma_page_range(): faulting pages in before anybody touches them.

Who runs against whom: it looks at entries without the PTL, under mmap_sem R, and believes them only as far as to leave
out a fault; a page that a zap takes away meanwhile (MADV_DONTNEED) is faulted in again by whoever touches it.
"""
from libc.errno cimport EFAULT, ENOMEM

from pykmm_ext.kernel.atomic cimport READ_ONCE
from pykmm_ext.machine.cpu cimport PGFAULT, PGMAJFAULT, count_vm_event, u32
from pykmm_ext.mm.memory cimport handle_mm_fault
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_USER, FAULT_FLAG_WRITE, VM_ACCESS_FLAGS, VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_OOM, VM_SHARED,
    VM_WRITE, arch_ops, mm_struct, pmd_t, pte_t, vm_fault_t,
)
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_offset


# Context: mmap_sem held R; may sleep. True when the page at `address` is mapped and, for `write`, writable.
cdef bint page_is_mapped(Cpu *cpu, mm_struct *mm, unsigned long address, bint write) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef pmd_t *pmd = mm_find_pmd(cpu, mm, address)
    cdef pmd_t pmdval
    cdef pte_t pte
    if pmd == NULL:
        return False
    pmdval = READ_ONCE(cpu, pmd)
    if arch.table_none(pmdval) or arch.table_bad(pmdval):
        return False
    pte = READ_ONCE(cpu, pte_offset(mm, pmdval, address))
    if not arch.pte_present(pte) or arch.pte_protnone(pte):
        return False
    return not write or arch.pte_write(pte)


cdef long populate_vma_page_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil:
    cdef unsigned long page_size = <unsigned long>1 << vma.vm_mm.arch.page_shift
    cdef unsigned long address = start & ~(page_size - 1)
    # Break COW now, but do not dirty shared pages.
    cdef bint write = (vma.vm_flags & (VM_WRITE | VM_SHARED)) == VM_WRITE
    cdef u32 flags = FAULT_FLAG_USER | (FAULT_FLAG_WRITE if write else 0)
    cdef vm_fault_t ret
    cdef long n = 0
    cdef int _tries
    if not vma.vm_flags & VM_ACCESS_FLAGS:
        return -EFAULT
    while address < end:
        for _tries in range(4):  # a fault may find its entry changed and ask for the access to be repeated
            if page_is_mapped(cpu, vma.vm_mm, address, write):
                break
            count_vm_event(cpu, PGFAULT)  # those of user accesses are counted where they enter (machine/tlb)
            ret = handle_mm_fault(cpu, vma, address, flags)
            if ret & VM_FAULT_MAJOR:
                count_vm_event(cpu, PGMAJFAULT)
            if ret & VM_FAULT_ERROR:
                if n:
                    return n
                return -ENOMEM if ret & VM_FAULT_OOM else -EFAULT
        n += 1
        address += page_size
        if address == 0:
            break
    return n
