# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""arch/x86/mm/fault.c: the fault entry under mmap_sem, which every strategy can fall back to.

stands in for do_user_addr_fault() from the point where the user's fault is known to be one.
"""
from pykmm_ext.machine.cpu cimport FAULT_MMAP_SEM, count_vm_event, unlikely
from pykmm_ext.mm.brk cimport expand_stack
from pykmm_ext.mm.memory cimport access_error, handle_mm_fault
from pykmm_ext.mm.mm_types cimport (
    KMM_QUIRK_STACK_GROW_READ, VM_FAULT_BADACCESS, VM_FAULT_BADMAP, VM_FAULT_SIGSEGV, VM_GROWSDOWN, vm_area_struct,
)
from pykmm_ext.mm.mmap cimport (
    find_vma, mmap_read_lock, mmap_read_unlock, mmap_write_downgrade, mmap_write_lock, mmap_write_unlock,
)


# Context: process, IRQs on, no locks held; may sleep; takes mmap_sem for writing. True = the VMA below which `address`
# lies has grown down to it (or did so meanwhile). *vma is that VMA, and mmap_sem is held for reading; or NULL, and it
# is not held. As 6.5 (lock_mm_and_find_vma()): growing needs the write lock.
cdef bint grow_stack(Cpu *cpu, mm_struct *mm, unsigned long address, vm_area_struct **vma) noexcept nogil:
    cdef vm_area_struct *found
    vma[0] = NULL
    mmap_write_lock(cpu, mm, address, address + 1)
    found = find_vma(cpu, mm, address)
    if found != NULL and (found.vm_start <= address
                          or (found.vm_flags & VM_GROWSDOWN and expand_stack(cpu, found, address) == 0)):
        if mmap_write_downgrade(cpu, mm):
            vma[0] = found
        return True
    mmap_write_unlock(cpu, mm)
    return False


# Context: mmap_sem held R, `address` lies in the VMA; may sleep.
cdef inline vm_fault_t fault_in_vma(Cpu *cpu, vm_area_struct *vma, unsigned long address,
                                    unsigned int flags) noexcept nogil:
    if access_error(vma.vm_flags, flags):
        return VM_FAULT_SIGSEGV | VM_FAULT_BADACCESS
    return handle_mm_fault(cpu, vma, address, flags)


cdef vm_fault_t handle_fault_mmap_sem(Cpu *cpu, mm_struct *mm, unsigned long address,
                                      unsigned int flags) noexcept nogil:
    cdef vm_area_struct *vma
    cdef vm_fault_t fault
    count_vm_event(cpu, FAULT_MMAP_SEM)
    while True:
        mmap_read_lock(cpu, mm)
        vma = find_vma(cpu, mm, address)
        if vma == NULL:
            fault = VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
        elif vma.vm_start > address:
            if vma.vm_flags & VM_GROWSDOWN and unlikely(mm.machine.quirks & KMM_QUIRK_STACK_GROW_READ):
                fault = VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
                if expand_stack(cpu, vma, address) == 0:
                    fault = fault_in_vma(cpu, vma, address, flags)
            elif vma.vm_flags & VM_GROWSDOWN:
                # Upgrading is dropping and taking: whatever was found is looked up again.
                mmap_read_unlock(cpu, mm)
                if not grow_stack(cpu, mm, address, &vma):
                    return VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
                if vma == NULL:
                    continue
                fault = fault_in_vma(cpu, vma, address, flags)
            else:
                fault = VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
        else:
            fault = fault_in_vma(cpu, vma, address, flags)
        mmap_read_unlock(cpu, mm)
        return fault
