# SPDX-License-Identifier: GPL-2.0-only
# fs/proc/task_mmu.c: what /proc/PID/maps, smaps and pagemap say about an address space.
from pykmm_ext.machine.cpu cimport Cpu, u64
from pykmm_ext.mm.mm_types cimport mm_struct, vm_area_struct

# What smaps counts, in bytes; pss in bytes shifted left by PSS_SHIFT.
cdef enum:
    PSS_SHIFT = 12
cdef struct mem_size_stats:
    unsigned long resident
    unsigned long shared_clean
    unsigned long shared_dirty
    unsigned long private_clean
    unsigned long private_dirty
    unsigned long referenced
    unsigned long anonymous
    u64 pss
    u64 pss_locked

# Context of all but vma_label and smap_gather_stats: process, no locks, IRQs on, may sleep, GIL not held; mmap_sem is
# taken for reading. Texts are malloc()ed and NUL-terminated, NULL = no memory; *size = length without the NUL.
cdef char *show_maps(Cpu *cpu, mm_struct *mm, size_t *size) noexcept nogil
cdef char *show_smaps(Cpu *cpu, mm_struct *mm, size_t *size) noexcept nogil
# One word per page from `start` on; start is page-aligned.
cdef void pagemap_read(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long npages, u64 *out) noexcept nogil
# mmap_sem held.
cdef void smap_gather_stats(Cpu *cpu, vm_area_struct *vma, mem_size_stats *mss) noexcept nogil
cdef inline const char *vma_label(const vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem held. What stands where a file's name would: a special mapping's label, or by position."""
    cdef inline const char *name = NULL
    cdef const mm_struct *mm = vma.vm_mm
    if vma.vm_ops != NULL and vma.vm_ops.name != NULL:
        name = vma.vm_ops.name(<vm_area_struct *>vma)
    if name == NULL:
        name = vma.anon_name
    if name == NULL and vma.vm_start < mm.brk and vma.vm_end > mm.start_brk:
        name = b"[heap]"
    if name == NULL and mm.start_stack and vma.vm_start <= mm.start_stack and vma.vm_end >= mm.start_stack:
        name = b"[stack]"
    return name
