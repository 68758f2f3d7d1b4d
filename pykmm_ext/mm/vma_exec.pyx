# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/vma_exec.c: mappings that no system call of the program made: its image, stack, heap and special mappings.

stands in for what execve() maps (setup_arg_pages(), elf_load(), _install_special_mapping()), and for the mappings that
a recording finds when it starts.

Who runs against whom: install_mapping() takes mmap_sem W like mmap(). Names of special mappings are shared by all
Machines of the process: a push onto a list with cmpxchg, and nothing ever leaves it.

simplified: names live as long as the process.
"""
from libc.errno cimport EEXIST, EINVAL, ENOMEM
from libc.stdlib cimport calloc
from libc.string cimport memcpy, strcmp, strlen

from pykmm_ext.kernel.atomic cimport READ_ONCE_PTR, cmpxchg_ptr
from pykmm_ext.mm.filemap cimport get_file
from pykmm_ext.mm.mm_types cimport (
    VM_ACCOUNT, VM_GROWSDOWN, VM_MAYEXEC, VM_MAYREAD, VM_MAYSHARE, VM_MAYWRITE, VM_SHARED, VM_SOFTDIRTY,
    vm_area_struct, vm_operations_struct,
)
from pykmm_ext.mm.mmap cimport accountable_mapping, mmap_write_lock, mmap_write_unlock, vm_stat_account
from pykmm_ext.mm.unmapped_area cimport offset_in_page
from pykmm_ext.mm.vma cimport (
    find_vma_intersection, free_vma, insert_vm_struct, vm_area_alloc, vma_set_page_prot, vma_set_range,
)

cdef vm_operations_struct special_mapping_vmops
special_mapping_vmops.may_not_merge = 1

cdef struct interned_name:
    interned_name *next
    char name[1]
cdef interned_name *interned = NULL              # lock-free push only; lives as long as the process


cdef const char *intern_name(Cpu *cpu, const char *name) noexcept nogil:
    """Context: any. One copy per distinct label for the life of the process, so that VMAs can share the pointer."""
    cdef interned_name *head = <interned_name *>READ_ONCE_PTR(cpu, &interned)
    cdef interned_name *it = head
    cdef interned_name *new
    while it != NULL:
        if strcmp(it.name, name) == 0:
            return it.name
        it = it.next
    new = <interned_name *>calloc(1, sizeof(interned_name) + strlen(name))
    if new == NULL:
        return NULL
    memcpy(new.name, name, strlen(name) + 1)
    while True:
        new.next = head
        it = <interned_name *>cmpxchg_ptr(cpu, &interned, head, new)
        if it == head:
            return new.name
        head = it


cdef int install_mapping(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end, unsigned long vm_flags,
                         file *f, unsigned long offset, const char *name) noexcept nogil:
    """Context: process, no locks, may sleep. 0, -EINVAL (range), -EEXIST (something is there), -ENOMEM.

    `vm_flags` needs the permissions and VM_SHARED; VM_MAY* and VM_ACCOUNT are added as the kernel's own exec code would.
    "[stack]" and "[heap]" are names by position: they set start_stack, and start_brk and brk where none are set yet, and
    the mapping stays an ordinary one. Any other name makes a special mapping, which never merges."""
    cdef vm_area_struct *vma
    cdef const char *label = NULL
    cdef bint stack, heap
    cdef int err
    if start >= end or end > mm.task_size or offset_in_page(mm, start | end | offset):
        return -EINVAL
    stack = name != NULL and strcmp(name, b"[stack]") == 0
    heap = name != NULL and strcmp(name, b"[heap]") == 0
    if name != NULL and not stack and not heap:
        label = intern_name(cpu, name)
        if label == NULL:
            return -ENOMEM
    if not vm_flags & (VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC):
        vm_flags |= VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    if vm_flags & VM_SHARED:
        vm_flags |= VM_MAYSHARE
    if stack:
        vm_flags |= VM_GROWSDOWN
    if label == NULL and accountable_mapping(vm_flags):
        vm_flags |= VM_ACCOUNT
    mmap_write_lock(cpu, mm, start, end)
    err = -EEXIST
    if find_vma_intersection(cpu, mm, start, end) == NULL:
        err = -ENOMEM
        vma = vm_area_alloc(cpu, mm)
        if vma != NULL:
            vma_set_range(cpu, vma, start, end, (offset if f != NULL else start) >> mm.arch.page_shift)
            vma.vm_flags = vm_flags | VM_SOFTDIRTY
            vma.anon_name = label
            if label != NULL:
                vma.vm_ops = &special_mapping_vmops
            if f != NULL:
                get_file(cpu, f)
                vma.vm_file = f
            vma_set_page_prot(cpu, vma)
            err = insert_vm_struct(cpu, mm, vma)
            if err:
                free_vma(cpu, vma)
            else:
                vm_stat_account(mm, vm_flags, <long>((end - start) >> mm.arch.page_shift))
                if stack:
                    mm.start_stack = end - 8
                elif heap and mm.start_brk == 0:
                    mm.start_brk = start
                    mm.brk = end
    mmap_write_unlock(cpu, mm)
    return err
