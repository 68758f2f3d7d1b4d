# SPDX-License-Identifier: GPL-2.0-only
# mm/vma_exec.c: mappings that no system call of the program made.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport file, mm_struct

# Context: process, no locks, IRQs on, may sleep, GIL not held. A mapping that was there before the recording (start
# maps, execve): no merging with neighbours, no address choice; `name` like "[stack]" or NULL, copied. 0 or -errno.
cdef int install_mapping(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end, unsigned long vm_flags,
                         file *f, unsigned long offset, const char *name) noexcept nogil
