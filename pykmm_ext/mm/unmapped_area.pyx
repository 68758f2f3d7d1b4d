# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/mmap.c, the choice of addresses: unmapped_area(), get_unmapped_area() and arch/x86's and THP's versions of it.

Addresses as Linux 6.18 on x86-64 chooses them. The search for a gap is that of 4.12: it descends the VMA tree by
``rb_subtree_gap``.

Who runs against whom: everything here reads the tree, the list and the bounds of VMAs plainly, under mmap_sem; an answer
is worth something as long as the caller holds it.

simplified: bottom-up searches walk the list; hugepage alignment of anonymous and file mappings is as on a kernel with THP
compiled in and shmem's off; mmap_base and MAP_32BIT are not randomised.
"""
from libc.errno cimport EINVAL, ENOMEM

from pykmm_ext.kernel.rbtree cimport rb_node, rb_parent
from pykmm_ext.mm.mm_types cimport vm_area_struct
from pykmm_ext.mm.vma cimport find_vma, vm_start_gap, vma_of

# Context: any. DEFAULT_MAP_WINDOW.
cdef inline unsigned long map_window(const mm_struct *mm) noexcept nogil:
    return mm.arch.map_window if mm.arch.map_window else mm.task_size


# include/uapi/asm-generic/mman*.h
cdef enum:
    MAP_SHARED = 1
    MAP_FIXED = 0x10
    MAP_32BIT = 0x40
    MAP_ABOVE4G = 0x80


cdef inline unsigned long gap_below(const vm_area_struct *vma, unsigned long *gap_end) noexcept nogil:
    """mmap_sem. The room below `vma`: [result, *gap_end), empty when *gap_end <= result."""
    gap_end[0] = vm_start_gap(vma)
    return vma.vm_prev.vm_end if vma.vm_prev != NULL else 0


cdef unsigned long unmapped_area_topdown(mm_struct *mm, unsigned long length, unsigned long low_limit,
                                         unsigned long high_limit) noexcept nogil:
    """mmap_sem. The highest free [a, a + length) within [low_limit, high_limit), or -ENOMEM.

    In-order walk from the right that leaves out every subtree whose rb_subtree_gap is too small and everything that
    lies above high_limit: O(log n)."""
    cdef vm_area_struct *vma
    cdef rb_node *node
    cdef rb_node *child
    cdef unsigned long gap_start, gap_end, last_start
    cdef bint from_right = False
    if high_limit < length or high_limit - length < low_limit:
        return <unsigned long>-ENOMEM
    last_start = high_limit - length             # nothing may begin above
    if mm.highest_vm_end <= last_start:
        return last_start
    node = mm.mm_rb.rb_node
    if node == NULL or vma_of(node).rb_subtree_gap < length:
        return <unsigned long>-ENOMEM
    while True:
        vma = vma_of(node)
        gap_start = gap_below(vma, &gap_end)
        if not from_right:
            child = node.rb_right
            if gap_start <= last_start and child != NULL and vma_of(child).rb_subtree_gap >= length:
                node = child
                continue
        if gap_end < low_limit + length:
            return <unsigned long>-ENOMEM        # everything that is left lies lower still
        if gap_start <= last_start and gap_end > gap_start and gap_end - gap_start >= length:
            return (gap_end if gap_end < high_limit else high_limit) - length
        child = node.rb_left
        if child != NULL and vma_of(child).rb_subtree_gap >= length:
            node = child
            from_right = False
            continue
        while True:                              # up to the first ancestor that we are right of
            child = node
            node = rb_parent(node)
            if node == NULL:
                return <unsigned long>-ENOMEM
            if node.rb_right == child:
                from_right = True
                break


cdef unsigned long unmapped_area(Cpu *cpu, mm_struct *mm, unsigned long length, unsigned long low_limit,
                                 unsigned long high_limit) noexcept nogil:
    """mmap_sem. The lowest free [a, a + length) within [low_limit, high_limit), or -ENOMEM. simplified: walks the list;
    only MAP_32BIT and an address space that is full below mmap_base come here."""
    cdef vm_area_struct *vma = find_vma(cpu, mm, low_limit)
    cdef unsigned long at = low_limit
    if high_limit < length:
        return <unsigned long>-ENOMEM
    while at <= high_limit - length:
        if vma == NULL or at + length <= vm_start_gap(vma):
            return at
        at = vma.vm_end
        vma = vma.vm_next
    return <unsigned long>-ENOMEM


cdef unsigned long arch_get_unmapped_area(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long len,
                                          unsigned long flags) noexcept nogil:
    """mmap_sem. Bottom-up. Context and answer as mm_get_unmapped_area(). simplified: MAP_32BIT starts at 1 GiB exactly
    (Linux: up to 32 MiB above, at random)."""
    cdef vm_area_struct *vma
    cdef unsigned long window = map_window(mm)
    cdef unsigned long begin = page_align(mm, window // 3), end = mm.task_size if addr > window else window
    if flags & MAP_32BIT:
        begin = 0x40000000
        end = 0x80000000
    if len > end:
        return <unsigned long>-ENOMEM
    if addr:
        addr = page_align(mm, addr)
        vma = find_vma(cpu, mm, addr)
        if end - len >= addr and (vma == NULL or addr + len <= vm_start_gap(vma)):
            return addr
    return unmapped_area(cpu, mm, len, begin, end)


cdef unsigned long mm_get_unmapped_area(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long len,
                                        unsigned long flags) noexcept nogil:
    """mmap_sem. arch_get_unmapped_area_topdown() of x86: the hint where it is free, else top-down below mmap_base, else
    bottom-up. Only a hint above map_window leads above it, and none across it. The address or -errno."""
    cdef vm_area_struct *vma
    cdef unsigned long hint = addr, low = page_size(mm), high = mm.mmap_base, window = map_window(mm), at
    if len > mm.task_size:
        return <unsigned long>-ENOMEM
    if flags & MAP_FIXED:
        return addr
    if not flags & MAP_32BIT:
        if addr:
            addr &= ~(page_size(mm) - 1)
            if mm.task_size - len >= addr and (addr > window) == (addr + len > window):
                vma = find_vma(cpu, mm, addr)
                if vma == NULL or addr + len <= vm_start_gap(vma):
                    return addr
        if flags & MAP_ABOVE4G:
            low = <unsigned long>1 << 32
        if low < mm.arch.mmap_min_addr:
            low = mm.arch.mmap_min_addr
        if addr > window:
            high += mm.task_size - window
        at = unmapped_area_topdown(mm, len, low, high)
        if not is_err_value(at):
            return at
    return arch_get_unmapped_area(cpu, mm, hint, len, flags)


cdef unsigned long thp_get_unmapped_area(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long len,
                                         unsigned long pgoff, unsigned long flags) noexcept nogil:
    """mmap_sem. A place where address and file offset agree modulo a huge page, if the mapping has room for one:
    search for a huge page more than needed, then move up inside it."""
    cdef unsigned long size = <unsigned long>1 << mm.arch.level_shift[1]
    cdef unsigned long off = pgoff << mm.arch.page_shift
    cdef unsigned long off_end = off + len
    cdef unsigned long off_align = (off + size - 1) & ~(size - 1)
    cdef unsigned long at, off_sub
    if off_end > off_align and off_end - off_align >= size and len + size > len and off + len + size >= off:
        at = mm_get_unmapped_area(cpu, mm, addr, len + size, flags)
        if not is_err_value(at):
            if at == addr:
                if addr:
                    return addr
            else:
                off_sub = (off - at) & (size - 1)
                return at + off_sub if off_sub else at + size
    return mm_get_unmapped_area(cpu, mm, addr, len, flags)


cdef long get_unmapped_area(Cpu *cpu, mm_struct *mm, file *f, unsigned long addr, unsigned long len,
                            unsigned long pgoff, unsigned long flags) noexcept nogil:
    """Context: mmap_sem held. Where [addr, addr + len) with these MAP_* flags would go; -ENOMEM, -EINVAL (misaligned
    MAP_FIXED). `f` NULL = anonymous; shared anonymous mappings are not aligned to huge pages (shmem's are off)."""
    cdef unsigned long at
    if len > mm.task_size:
        return -ENOMEM
    if f != NULL:
        at = thp_get_unmapped_area(cpu, mm, addr, len, pgoff, flags)
    elif (not flags & MAP_SHARED and addr == 0
            and len & ((<unsigned long>1 << mm.arch.level_shift[1]) - 1) == 0):
        at = thp_get_unmapped_area(cpu, mm, addr, len, 0, flags)
    else:
        at = mm_get_unmapped_area(cpu, mm, addr, len, flags)
    if is_err_value(at):
        return <long>at
    if at > mm.task_size - len:
        return -ENOMEM
    if offset_in_page(mm, at):
        return -EINVAL
    return <long>at
