# SPDX-License-Identifier: GPL-2.0-only
# mm/vma.c's validate_mm() and mm/debug_vm_pgtable.c: the walkers that compare an address space with itself.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport machine, mm_struct

# Quiescent: every entry's page has its references, and rss and nr_ptes are what the tables hold. NULL, or a static
# message with *addr. (That the tables lie within VMAs is validate_mm()'s.)
cdef const char *validate_page_tables(Cpu *cpu, mm_struct *mm, unsigned long *addr) noexcept nogil
# mmap_sem held, no fault in progress: rbtree, list, gaps, map_count, total_vm, page tables against VMAs; NULL or a
# static message, *addr = where.
cdef const char *validate_mm(Cpu *cpu, mm_struct *mm, unsigned long *addr) noexcept nogil
# What a walker found: `message` is static, NULL = all is well.
cdef struct violation:
    const char *message
    char place[160]
# Every walker over everything that the machine has, up to the first that complains. Context: every Cpu owned, no
# deferred work left to do.
cdef void validate_machine(machine *m, violation *found) noexcept nogil
# What somebody left behind whom the next one would wait for: a lock, a read section, IRQs off. Context: every Cpu owned, or
# nobody uses the machine: so nobody may hold anything.
cdef void validate_held(machine *m, violation *found) noexcept nogil
# The same of a call that has ended, as far as it costs nothing to know: of its Cpu, and of mmap_sem of the address space that
# it ran in. NULL, or a static message. Context: `cpu` owned, and no other call is in progress.
cdef const char *validate_call(Cpu *cpu) noexcept nogil
