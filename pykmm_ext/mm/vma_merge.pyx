# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/vma.c (4.12: mm/mmap.c), the part that changes the bounds of VMAs: merging, adjusting, splitting, copying.

As Linux 4.12 in structure (``__vma_adjust``), as Linux 6.18 in what may merge. The writer sections of the
speculative-page-fault series are where its patch 05 puts them.

Who may run against whom: everything here holds mmap_sem W.

==================== ========================= ==========================================================
reader               holds                     against __vma_adjust
==================== ========================= ==========================================================
find_vma             mmap_sem R                excluded
find_vma_srcu        vma_srcu read section     may see a bound old or new: vm_sequence tells
speculative fault    vma_srcu read section     vm_sequence of each VMA whose bounds change, or that goes
fault, VMA's lock    its vm_lock or vm_refcnt  excluded: each VMA that changes is write-locked first
reverse map          anon_vma root, i_mmap     excluded: both are taken for writing
==================== ========================= ==========================================================
"""
from libc.errno cimport ENOMEM
from libc.string cimport strcmp

from pykmm_ext.kernel.atomic cimport WRITE_ONCE, WRITE_ONCE_PTR
from pykmm_ext.kernel.rwsem cimport down_write, up_write
from pykmm_ext.machine.cpu cimport likely, u32, unlikely
from pykmm_ext.mm.mempolicy cimport mpol_equal
from pykmm_ext.mm.mm_types cimport (
    KMM_QUIRK_VMA_ADJUST_LATE_END, KMM_QUIRK_VMA_ADJUST_ORDER, VM_MAYSHARE, VM_SOFTDIRTY, VM_SPECIAL, address_space,
    anon_vma, vma_mark_detached, vma_pages, vma_start_write, vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.rmap cimport anon_vma_chain_is_singular, anon_vma_clone, anon_vma_merge, unlink_anon_vmas
from pykmm_ext.mm.vma cimport (
    __remove_shared_vm_struct, __vma_link, __vma_link_file, __vma_unlink, find_vma_prev, free_vma, vm_area_dup,
    vm_end_gap, vma_gap_update, vma_link, vma_set_range,
)


cdef inline bint vma_is_fork_child(vm_area_struct *vma) noexcept nogil:
    """mmap_sem W. Does it hang in an anon_vma of a parent process? Merging such would make its chains grow."""
    return vma != NULL and vma.anon_vma != NULL and not anon_vma_chain_is_singular(vma)


cdef inline bint same_anon_name(const char *a, const char *b) noexcept nogil:
    if a == b:
        return True
    return a != NULL and b != NULL and strcmp(a, b) == 0


cdef bint is_mergeable_vma(vm_area_struct *vma, file *f, unsigned long vm_flags, const char *anon_name,
                           mempolicy *policy) noexcept nogil:
    """mmap_sem W. Soft-dirty does not keep VMAs apart; special mappings and special files always do."""
    if not mpol_equal(policy, vma.vm_policy):
        return False
    if (vma.vm_flags ^ vm_flags) & ~VM_SOFTDIRTY:
        return False
    if vma.vm_file != f or (f != NULL and f.special):
        return False
    if vma.vm_ops != NULL and vma.vm_ops.may_not_merge:
        return False
    return same_anon_name(vma.anon_name, anon_name)


cdef bint is_mergeable_anon_vma(vm_area_struct *tgt, vm_area_struct *src) noexcept nogil:
    """mmap_sem W. As Linux 6.18: one side may still be without anon_vma, unless the one that hands its anon_vma over
    was forked. `src` is the VMA being changed or copied, NULL for a new mapping."""
    cdef anon_vma *src_anon = src.anon_vma if src != NULL else NULL
    if tgt.anon_vma == NULL and src_anon != NULL:
        return not vma_is_fork_child(src)
    if tgt.anon_vma != NULL and src_anon == NULL:
        return not vma_is_fork_child(tgt)
    return tgt.anon_vma == src_anon


cdef bint mergeable_before(vm_area_struct *vma, unsigned long vm_flags, vm_area_struct *src, file *f,
                           unsigned long pgoff, const char *anon_name, mempolicy *policy) noexcept nogil:
    """mmap_sem W. May a range whose *end* has page offset `pgoff` be joined to the front of `vma`?"""
    return (is_mergeable_vma(vma, f, vm_flags, anon_name, policy) and is_mergeable_anon_vma(vma, src)
            and vma.vm_pgoff == pgoff)


cdef bint mergeable_after(vm_area_struct *vma, unsigned long vm_flags, vm_area_struct *src, file *f,
                          unsigned long pgoff, const char *anon_name, mempolicy *policy) noexcept nogil:
    """mmap_sem W. May a range that starts at page offset `pgoff` be joined to the end of `vma`?"""
    return (is_mergeable_vma(vma, f, vm_flags, anon_name, policy) and is_mergeable_anon_vma(vma, src)
            and vma.vm_pgoff + vma_pages(vma, vma.vm_mm.arch.page_shift) == pgoff)


cdef bint can_vma_merge_after(vm_area_struct *vma, unsigned long vm_flags, vm_area_struct *src, file *f,
                              unsigned long pgoff, const char *anon_name) noexcept nogil:
    """mmap_sem W. mergeable_after() of a range that has the policy of `src`, or the default one."""
    return mergeable_after(vma, vm_flags, src, f, pgoff, anon_name, src.vm_policy if src != NULL else NULL)


cdef int dup_anon_vma(Cpu *cpu, vm_area_struct *dst, vm_area_struct *src) noexcept nogil:
    """mmap_sem W, may sleep. `dst` takes over pages of `src`: give it src's anon_vma where it has none. 0 or -ENOMEM."""
    if src == NULL or src.anon_vma == NULL or dst.anon_vma != NULL:
        return 0
    vma_start_write(cpu, dst)
    WRITE_ONCE_PTR(cpu, &dst.anon_vma, src.anon_vma)
    return anon_vma_clone(cpu, dst, src)


cdef vm_area_struct *vma_merge_policy(Cpu *cpu, mm_struct *mm, vm_area_struct *prev, unsigned long addr,
                                      unsigned long end, unsigned long vm_flags, vm_area_struct *self, file *f,
                                      unsigned long pgoff, mempolicy *policy) noexcept nogil:
    """Context: mmap_sem W, may sleep. [addr, end) is free, or lies in one VMA whose flags shall become vm_flags and whose
    policy shall become `policy`: the neighbour that now covers it, or NULL where nothing could be merged (or memory
    ran out: then nothing changed).

    Linux's eight cases, A = the range, P = prev, N = next, X = N changes::

        free range:      1 PPAANN -> PPPPPP    2 PPAAXX -> PPPPXX    3 XXAANN -> XXNNNN
        A = tail of P:   4 PPPANN -> PPPNNN
        A = head of N:   5 PPANNN -> PPPNNN
        A = a whole VMA: 6 PPAANN -> PPPPPP    7 PPAAXX -> PPPPXX    8 XXAANN -> XXNNNN

    `self` is the VMA that is changed, the one copied from (copy_vma, range free), or NULL for a new mapping.
    """
    cdef unsigned long pglen = (end - addr) >> mm.arch.page_shift
    cdef vm_area_struct *next = prev.vm_next if prev != NULL else mm.mmap
    cdef vm_area_struct *area = next
    cdef const char *name = self.anon_name if self != NULL else NULL
    cdef bint free_range
    if vm_flags & VM_SPECIAL:
        return NULL
    if self != NULL and self.vm_ops != NULL and self.vm_ops.may_not_merge:
        return NULL
    free_range = (prev == NULL or prev.vm_end <= addr) and (next == NULL or next.vm_start >= end)
    if area != NULL and area.vm_end == end:      # cases 6, 7, 8
        next = next.vm_next

    if (prev != NULL and prev.vm_end == addr
            and mergeable_after(prev, vm_flags, self, f, pgoff, name, policy)):
        if free_range and dup_anon_vma(cpu, prev, self):
            return NULL
        if (next != NULL and end == next.vm_start
                and mergeable_before(next, vm_flags, self, f, pgoff + pglen, name, policy)
                and (prev.anon_vma == NULL or next.anon_vma == NULL or prev.anon_vma == next.anon_vma)):
            # cases 1, 6
            if __vma_adjust(cpu, prev, prev.vm_start, next.vm_end, prev.vm_pgoff, NULL, prev):
                return NULL
        elif __vma_adjust(cpu, prev, prev.vm_start, end, prev.vm_pgoff, NULL, prev):     # cases 2, 5, 7
            return NULL
        return prev

    if (next != NULL and end == next.vm_start
            and mergeable_before(next, vm_flags, self, f, pgoff + pglen, name, policy)):
        if free_range and dup_anon_vma(cpu, next, self):
            return NULL
        if prev != NULL and addr < prev.vm_end:  # case 4
            if __vma_adjust(cpu, prev, prev.vm_start, addr, prev.vm_pgoff, NULL, next):
                return NULL
        elif __vma_adjust(cpu, area, addr, next.vm_end, next.vm_pgoff - pglen, NULL, next):  # cases 3, 8
            return NULL
        return next
    return NULL


cdef vm_area_struct *vma_merge(Cpu *cpu, mm_struct *mm, vm_area_struct *prev, unsigned long addr, unsigned long end,
                               unsigned long vm_flags, vm_area_struct *self, file *f, unsigned long pgoff) noexcept nogil:
    """Context: as vma_merge_policy(). The range keeps the policy of `self`; a new mapping has the default one."""
    return vma_merge_policy(cpu, mm, prev, addr, end, vm_flags, self, f, pgoff,
                            self.vm_policy if self != NULL else NULL)


cdef int __vma_adjust(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end, unsigned long pgoff,
                      vm_area_struct *insert, vm_area_struct *expand) noexcept nogil:
    """Context: mmap_sem W, may sleep. Moves the bounds of `vma`, and what of its successors that takes with it: `insert`
    (split_vma) fills what vma gives up, otherwise the successor is shifted or swallowed. 0 or -ENOMEM, nothing changed.

    Lock order: write-locking the VMAs, i_mmap_rwsem, anon_vma root, then the two write sections (patch 05, R2). Both
    sections end before the anon_vma of a swallowed VMA is given up, which takes the root's lock again (RFC v5 does that
    inside), and so before the VMA is handed to free_vma (R8). By then the tree and the bounds are what they will be."""
    cdef mm_struct *mm = vma.vm_mm
    cdef unsigned long quirks = mm.machine.quirks
    cdef u32 shift = mm.arch.page_shift
    cdef vm_area_struct *next = vma.vm_next
    cdef vm_area_struct *exporter = NULL
    cdef vm_area_struct *importer = NULL
    cdef vm_area_struct *tmp
    cdef file *f = vma.vm_file
    cdef address_space *mapping = &f.f_mapping if f != NULL else NULL
    cdef anon_vma *av
    cdef bint start_changed = False, end_changed = False
    cdef long adjust_next = 0
    cdef int remove_next = 0

    if next != NULL and insert == NULL:
        if end >= next.vm_end:
            if next == expand:                   # case 8: next grows down over vma, and vma goes
                remove_next = 3
                tmp = vma
                vma = next
                next = tmp
            else:                                # cases 1, 7, and 6, which takes two rounds
                remove_next = 2 if end > next.vm_end else 1
                end = next.vm_end
            exporter = next
            importer = vma
            if remove_next == 2 and next.anon_vma == NULL:
                exporter = next.vm_next
        elif end > next.vm_start:                # case 5: the boundary moves up
            adjust_next = <long>((end - next.vm_start) >> shift)
            exporter = next
            importer = vma
        elif end < vma.vm_end:                   # case 4: the boundary moves down
            adjust_next = -<long>((vma.vm_end - end) >> shift)
            exporter = vma
            importer = next
        if importer != NULL and dup_anon_vma(cpu, importer, exporter):
            return -ENOMEM

    while True:
        vma_start_write(cpu, vma)
        if adjust_next or remove_next:
            vma_start_write(cpu, next)
        if unlikely(quirks & KMM_QUIRK_VMA_ADJUST_ORDER):
            vma_write_begin(cpu, vma, 0)
            if next != NULL:
                vma_write_begin(cpu, next, 1)
        if mapping != NULL:
            down_write(cpu, &mapping.i_mmap_rwsem)
            if insert != NULL:
                __vma_link_file(insert)
        av = vma.anon_vma
        if av == NULL and adjust_next:
            av = next.anon_vma
        if av != NULL:
            down_write(cpu, &av.root.rwsem)
        if likely(not quirks & KMM_QUIRK_VMA_ADJUST_ORDER):
            vma_write_begin(cpu, vma, 0)
            if next != NULL:
                vma_write_begin(cpu, next, 1)

        if start != vma.vm_start:
            WRITE_ONCE(cpu, &vma.vm_start, start)
            start_changed = True
        if end != vma.vm_end:
            WRITE_ONCE(cpu, &vma.vm_end, end)
            end_changed = True
        WRITE_ONCE(cpu, &vma.vm_pgoff, pgoff)
        if adjust_next:
            WRITE_ONCE(cpu, &next.vm_start, next.vm_start + (<unsigned long>adjust_next << shift))
            WRITE_ONCE(cpu, &next.vm_pgoff, next.vm_pgoff + <unsigned long>adjust_next)

        if remove_next:
            __vma_unlink(cpu, mm, next)
            vma_mark_detached(cpu, next)
            if mapping != NULL:
                __remove_shared_vm_struct(next, mapping)
        elif insert != NULL:
            # The caller's split: before vma when vma now starts where insert ends, else behind it.
            __vma_link(cpu, mm, insert, vma.vm_prev if insert.vm_end <= vma.vm_start else vma)
            if start_changed:
                vma_gap_update(vma)
            mm.map_count += 1
        else:
            if start_changed:
                vma_gap_update(vma)
            if adjust_next:
                vma_gap_update(next)
            elif end_changed:
                if next == NULL:
                    mm.highest_vm_end = vm_end_gap(vma)
                else:
                    vma_gap_update(next)
        if av != NULL:
            up_write(cpu, &av.root.rwsem)
        if mapping != NULL:
            up_write(cpu, &mapping.i_mmap_rwsem)

        if not remove_next:
            if next != NULL:
                vma_write_end(cpu, next)
            vma_write_end(cpu, vma)
            return 0
        if likely(not quirks & KMM_QUIRK_VMA_ADJUST_LATE_END):
            vma_write_end(cpu, next)
        vma_write_end(cpu, vma)
        if next.anon_vma != NULL:
            anon_vma_merge(cpu, vma, next)
        mm.map_count -= 1
        free_vma(cpu, next)
        if unlikely(quirks & KMM_QUIRK_VMA_ADJUST_LATE_END) and mm.strategy.vma_write_end != NULL:
            mm.strategy.vma_write_end(cpu, next)  # of what may be somebody else's memory by now
        if remove_next == 3:                     # vma grew down: the gap below it changed
            vma_gap_update(vma)
            return 0
        next = vma.vm_next
        if remove_next == 2:
            remove_next = 1
            end = next.vm_end
            continue
        if next != NULL:
            vma_gap_update(next)
        else:
            mm.highest_vm_end = vm_end_gap(vma)
        return 0


cdef int __split_vma(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, unsigned long addr, bint new_below) noexcept nogil:
    """Context: mmap_sem W, may sleep. Cuts `vma` in two at addr; the new half lies below it or above it. 0 or -ENOMEM.
    Does not ask for max_map_count: munmap may exceed it for a moment."""
    cdef vm_area_struct *new
    cdef int err
    new = vm_area_dup(cpu, mm, vma)
    if new == NULL:
        return -ENOMEM
    if new_below:
        vma_set_range(cpu, new, vma.vm_start, addr, vma.vm_pgoff)
    else:
        vma_set_range(cpu, new, addr, vma.vm_end, vma.vm_pgoff + ((addr - vma.vm_start) >> mm.arch.page_shift))
    new.anon_vma = vma.anon_vma
    if vma.anon_vma != NULL and anon_vma_clone(cpu, new, vma):
        free_vma(cpu, new)
        return -ENOMEM
    if new_below:
        err = __vma_adjust(cpu, vma, addr, vma.vm_end, vma.vm_pgoff + ((addr - new.vm_start) >> mm.arch.page_shift),
                           new, NULL)
    else:
        err = __vma_adjust(cpu, vma, vma.vm_start, addr, vma.vm_pgoff, new, NULL)
    if err:
        unlink_anon_vmas(cpu, new)
        free_vma(cpu, new)
    return err


cdef int split_vma(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, unsigned long addr, bint new_below) noexcept nogil:
    """Context: as __split_vma(); -ENOMEM also where the mm has max_map_count mappings already."""
    if mm.map_count >= mm.machine.vm_max_map_count:
        return -ENOMEM
    return __split_vma(cpu, mm, vma, addr, new_below)


cdef vm_area_struct *vma_modify(Cpu *cpu, vm_area_struct *prev, vm_area_struct *vma, unsigned long start,
                                unsigned long end, unsigned long newflags, mempolicy *policy,
                                int *err) noexcept nogil:
    """Context: mmap_sem W, may sleep. `prev` is the VMA below `start`: vma itself when start lies inside it."""
    cdef mm_struct *mm = vma.vm_mm
    cdef unsigned long pgoff = vma.vm_pgoff + ((start - vma.vm_start) >> mm.arch.page_shift)
    cdef vm_area_struct *merged = vma_merge_policy(cpu, mm, prev, start, end, newflags, vma, vma.vm_file, pgoff, policy)
    err[0] = 0
    if merged != NULL:
        return merged
    if vma.vm_start < start:
        err[0] = split_vma(cpu, mm, vma, start, True)
        if err[0]:
            return NULL
    if vma.vm_end > end:
        err[0] = split_vma(cpu, mm, vma, end, False)
        if err[0]:
            return NULL
    return vma


cdef vm_area_struct *vma_modify_flags(Cpu *cpu, vm_area_struct *prev, vm_area_struct *vma, unsigned long start,
                                      unsigned long end, unsigned long newflags, int *err) noexcept nogil:
    """Context: as vma_modify()."""
    return vma_modify(cpu, prev, vma, start, end, newflags, vma.vm_policy, err)


cdef vm_area_struct *vma_modify_policy(Cpu *cpu, vm_area_struct *prev, vm_area_struct *vma, unsigned long start,
                                       unsigned long end, mempolicy *policy, int *err) noexcept nogil:
    """Context: as vma_modify()."""
    return vma_modify(cpu, prev, vma, start, end, vma.vm_flags, policy, err)


cdef vm_area_struct *copy_vma(Cpu *cpu, vm_area_struct **vmap, unsigned long addr, unsigned long len,
                              unsigned long pgoff) noexcept nogil:
    """Context: mmap_sem W, may sleep. mremap's new home for *vmap at [addr, addr + len): merged into what lies there or
    a new VMA. *vmap follows the old mapping where the merge swallowed it. NULL = -ENOMEM.

    A private mapping that holds no page yet takes the offset of its new place, so that it can merge there."""
    cdef vm_area_struct *vma = vmap[0]
    cdef mm_struct *mm = vma.vm_mm
    cdef vm_area_struct *prev
    cdef vm_area_struct *new
    cdef unsigned long vma_start = vma.vm_start
    if vma.vm_file == NULL and not vma.vm_flags & VM_MAYSHARE and vma.anon_vma == NULL:
        pgoff = addr >> mm.arch.page_shift
    new = find_vma_prev(cpu, mm, addr, &prev)
    if new != NULL and new.vm_start < addr + len:
        return NULL
    new = vma_merge(cpu, mm, prev, addr, addr + len, vma.vm_flags, vma, vma.vm_file, pgoff)
    if new != NULL:
        # Source and destination became one VMA: only possible while no page ties it to its place.
        if vma_start >= new.vm_start and vma_start < new.vm_end:
            vmap[0] = new
        return new
    new = vm_area_dup(cpu, mm, vma)
    if new == NULL:
        return NULL
    vma_set_range(cpu, new, addr, addr + len, pgoff)
    new.anon_vma = vma.anon_vma
    if vma.anon_vma != NULL and anon_vma_clone(cpu, new, vma):
        free_vma(cpu, new)
        return NULL
    find_vma_prev(cpu, mm, addr, &prev)
    vma_link(cpu, mm, new, prev)
    return new
