# SPDX-License-Identifier: GPL-2.0-only
# mm/mmap.c, the choice of addresses, and the arithmetic on addresses that it shares with the other callers.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport file, mm_struct

# Context of these: any. PAGE_SIZE, PAGE_ALIGN(), offset_in_page() of include/linux/mm.h; IS_ERR_VALUE().
cdef inline unsigned long page_size(const mm_struct *mm) noexcept nogil:
    return <unsigned long>1 << mm.arch.page_shift

cdef inline unsigned long page_align(const mm_struct *mm, unsigned long n) noexcept nogil:
    return (n + page_size(mm) - 1) & ~(page_size(mm) - 1)

cdef inline unsigned long offset_in_page(const mm_struct *mm, unsigned long n) noexcept nogil:
    return n & (page_size(mm) - 1)

cdef inline bint is_err_value(unsigned long n) noexcept nogil:
    return n >= <unsigned long>-4095

# Context: mmap_sem held. Where mmap(addr=hint) would go, without mapping; -errno.
cdef long get_unmapped_area(Cpu *cpu, mm_struct *mm, file *f, unsigned long addr, unsigned long len,
                            unsigned long pgoff, unsigned long flags) noexcept nogil
