# SPDX-License-Identifier: GPL-2.0-only
# mm/mmap.c: mapping and unmapping. brk and stack growth: mm/brk; what execve maps: mm/vma_exec.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport VM_NORESERVE, VM_SHARED, VM_WRITE, file, mm_struct, vm_area_struct
# The tree lives in mm/vma; the contracts stand in vma.pxd.
from pykmm_ext.mm.vma cimport (
    __vm_area_free, find_vma, find_vma_intersection, find_vma_prev, find_vma_srcu, free_vma, insert_vm_struct,
    unlink_file_vma, vm_area_alloc, vm_area_dup, vma_has_changed, vma_set_page_prot,
)

# Locking the address space for a change: the strategy's mmap_write_lock, or down_write(mmap_sem).
cdef void mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil
cdef void mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil
# The end of it as a reader: True, or, where the strategy cannot do that, False and nothing is held.
cdef bint mmap_write_downgrade(Cpu *cpu, mm_struct *mm) noexcept nogil
# Whichever of the two it is by now.
cdef void mmap_unlock(Cpu *cpu, mm_struct *mm, bint downgraded) noexcept nogil
cdef void mmap_read_lock(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void mmap_read_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil

# System calls. Context: process, no locks, IRQs on, may sleep, GIL not held. Errors are -errno in the result.
cdef long ksys_mmap(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long len, unsigned long prot,
                    unsigned long flags, file *f, unsigned long offset) noexcept nogil
cdef long vm_munmap(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long len) noexcept nogil

# For the other mm files; mmap_sem W.
cdef long do_munmap(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, bint downgrade) noexcept nogil
cdef void vm_stat_account(mm_struct *mm, unsigned long vm_flags, long npages) noexcept nogil
# Context: any.
cdef inline bint accountable_mapping(unsigned long vm_flags) noexcept nogil:
    return vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE
# Everything goes: unmap, free tables, free VMAs. Last user gone.
cdef void exit_mmap(Cpu *cpu, mm_struct *mm) noexcept nogil
# Fault in what is mapped of [start, start + len) after MAP_POPULATE, MAP_LOCKED, mlock. No locks held. 0, or the first
# VMA's -errno (-EFAULT, -ENOMEM) unless errors are ignored.
cdef long mm_populate(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, bint ignore_errors) noexcept nogil
# Pages [start, end) of `vma` leave VM_LOCKED: its flag goes, inside a write section (patch 06). mmap_sem W.
cdef void munlock_vma_pages_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil
