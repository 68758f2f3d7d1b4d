# SPDX-License-Identifier: GPL-2.0-only
# mm/filemap.c: files with simulated contents and their page cache.
from pykmm_ext.machine.cpu cimport Cpu, u8, u32, u64
from pykmm_ext.mm.mm_types cimport address_space, file, machine, page, vm_fault, vm_fault_t

# Copies name and data. data_len may be below size: zeroes follow. NULL = -ENOMEM. f_count = 1.
cdef file *file_create(Cpu *cpu, machine *m, const char *name, const u8 *data, u64 data_len, u64 size,
                       u32 dev_major, u32 dev_minor, u64 ino) noexcept nogil
cdef void get_file(Cpu *cpu, file *f) noexcept nogil
# The last reference frees the page cache and the file. Context: process, IRQs on.
cdef void fput(Cpu *cpu, file *f) noexcept nogil
# ftruncate(2): 0, -EINVAL (size above 2^63 - 1), -EFBIG (more pages than the file was created with). Mapped pages behind
# the new end go, private copies too; what is left of the last page is zero. Context: process, no locks, may sleep.
cdef long do_truncate(Cpu *cpu, file *f, unsigned long size) noexcept nogil
# Quiescent: slots, list, references and counts agree. NULL, or a static message with *index.
cdef const char *validate_mapping(Cpu *cpu, address_space *mapping, unsigned long *index) noexcept nogil
# The page at `index` with a reference taken, or NULL when not cached. Lockless.
cdef page *find_get_page(Cpu *cpu, address_space *mapping, unsigned long index) noexcept nogil
# The same, filled from the file's data where missing (VM_FAULT_MAJOR stands in: *major = 1).
# NULL with *err = VM_FAULT_SIGBUS beyond the end of the file, or VM_FAULT_OOM.
cdef page *filemap_get_page(Cpu *cpu, address_space *mapping, unsigned long index, int *major, u32 *err) noexcept nogil
# Context: mmap_sem held R, or speculative; no PTL; may sleep. The page of the fault with a reference, or NULL with *ret;
# VM_FAULT_MAJOR in *ret where the page had to be made.
cdef page *filemap_fault(Cpu *cpu, vm_fault *vmf, vm_fault_t *ret) noexcept nogil
