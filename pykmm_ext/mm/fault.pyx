# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""arch/x86/mm/fault.c: the fault entry under mmap_sem, which every strategy can fall back to.

stands in for do_user_addr_fault() from the point where the user's fault is known to be one.
"""
from pykmm_ext.machine.cpu cimport FAULT_MMAP_SEM, count_vm_event
from pykmm_ext.mm.brk cimport expand_stack
from pykmm_ext.mm.memory cimport access_error, handle_mm_fault
from pykmm_ext.mm.mm_types cimport (
    VM_FAULT_BADACCESS, VM_FAULT_BADMAP, VM_FAULT_SIGSEGV, VM_GROWSDOWN, vm_area_struct,
)
from pykmm_ext.mm.mmap cimport (
    find_vma, mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock,
)


# Context: process, IRQs on, no locks held; may sleep; takes and drops mmap_sem for writing. True = the VMA below
# which `address` lies has grown down to it (or did so meanwhile). As 6.x, growing needs the write lock.
cdef bint grow_stack(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    cdef vm_area_struct *vma
    cdef bint grown = False
    mmap_write_lock(cpu, mm, address, address + 1)
    vma = find_vma(cpu, mm, address)
    if vma != NULL:
        if vma.vm_start <= address:
            grown = True
        elif vma.vm_flags & VM_GROWSDOWN:
            grown = expand_stack(cpu, vma, address) == 0
    mmap_write_unlock(cpu, mm)
    return grown


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
            if vma.vm_flags & VM_GROWSDOWN:
                # Upgrading is dropping and taking: whatever was found is looked up again.
                mmap_read_unlock(cpu, mm)
                if grow_stack(cpu, mm, address):
                    continue
                return VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
            fault = VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
        elif access_error(vma.vm_flags, flags):
            fault = VM_FAULT_SIGSEGV | VM_FAULT_BADACCESS
        else:
            fault = handle_mm_fault(cpu, vma, address, flags)
        mmap_read_unlock(cpu, mm)
        return fault
