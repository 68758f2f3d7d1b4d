# SPDX-License-Identifier: GPL-2.0-only
# mm/vma.c (4.12: the first half of mm/mmap.c): the life of a VMA, the tree and the list, lookups.
# Merging and splitting: mm/vma_merge. mm/mmap.pxd hands most of it on: other modules cimport from either.
from pykmm_ext.kernel.atomic cimport READ_ONCE_32, smp_rmb
from pykmm_ext.kernel.rbtree cimport RB_EMPTY_NODE, rb_node
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport address_space, mm_struct, vm_area_struct

cdef extern from *:
    """
    #ifndef KMM_VMA_OF
    #define KMM_VMA_OF(node) \\
        ((struct vm_area_struct *)((char *)(node) - offsetof(struct vm_area_struct, vm_rb)))
    #define KMM_VMA_OF_RCU(head) \\
        ((struct vm_area_struct *)((char *)(head) - offsetof(struct vm_area_struct, vm_rcu_head)))
    #endif
    """
    # container_of() of vm_rb and of vm_rcu_head
    vm_area_struct *vma_of "KMM_VMA_OF"(const rb_node *node) nogil
    vm_area_struct *vma_of_rcu "KMM_VMA_OF_RCU"(void *head) nogil

# Distance that a GROWSDOWN mapping keeps from what lies below it, in pages.
cdef enum:
    STACK_GUARD_GAP = 256

cdef inline unsigned long vm_start_gap(const vm_area_struct *vma) noexcept nogil:
    """Any lock that keeps the VMA: where the room that it claims begins."""
    cdef unsigned long gap
    if not vma.vm_flags & 0x100:                 # VM_GROWSDOWN
        return vma.vm_start
    gap = <unsigned long>STACK_GUARD_GAP << vma.vm_mm.arch.page_shift
    return vma.vm_start - gap if vma.vm_start > gap else 0

cdef inline unsigned long vm_end_gap(const vm_area_struct *vma) noexcept nogil:
    return vma.vm_end

cdef inline unsigned long vma_compute_gap(vm_area_struct *vma) noexcept nogil:
    """mmap_sem. The room below the VMA, its own guard gap taken off."""
    cdef unsigned long gap = vm_start_gap(vma)
    if vma.vm_prev != NULL:
        return gap - vma.vm_prev.vm_end if gap > vma.vm_prev.vm_end else 0
    return gap

cdef inline unsigned long vma_compute_subtree_gap(vm_area_struct *vma) noexcept nogil:
    """mmap_sem W. The largest gap below any VMA of the subtree."""
    cdef unsigned long most = vma_compute_gap(vma)
    if vma.vm_rb.rb_left != NULL and vma_of(vma.vm_rb.rb_left).rb_subtree_gap > most:
        most = vma_of(vma.vm_rb.rb_left).rb_subtree_gap
    if vma.vm_rb.rb_right != NULL and vma_of(vma.vm_rb.rb_right).rb_subtree_gap > most:
        most = vma_of(vma.vm_rb.rb_right).rb_subtree_gap
    return most

# First VMA with addr < vm_end, or NULL. mmap_sem held.
cdef vm_area_struct *find_vma(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil
# The same without the per-Cpu cache. mmap_sem held.
cdef vm_area_struct *__find_vma(mm_struct *mm, unsigned long addr) noexcept nogil
# The same without mmap_sem, under srcu_read_lock(vma_srcu): a stable answer of the tree as it was at one moment.
cdef vm_area_struct *find_vma_srcu(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil
# One descent of the above, without asking mm_seq whether its answer holds.
cdef vm_area_struct *__find_vma_srcu(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil
# One descent under rcu_read_lock() instead: any VMA, or NULL. The caller finds out whether it is the one: by the mm's
# mmap_seq, or by locking it and looking again.
cdef vm_area_struct *find_vma_rcu(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil
cdef vm_area_struct *find_vma_prev(Cpu *cpu, mm_struct *mm, unsigned long addr, vm_area_struct **pprev) noexcept nogil
# First VMA that intersects [start, end), or NULL. mmap_sem held.
cdef vm_area_struct *find_vma_intersection(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil

cdef inline bint vma_has_changed(Cpu *cpu, vm_area_struct *vma, u32 sequence) noexcept nogil:
    """mm/internal.h: is `vma` dead or changed since `sequence`?

    Context: vma_srcu read section. smp_rmb keeps what the caller read before in front of the check (the series has one
    behind it instead, where a lock or nothing follows that needs it); it pairs with the write barrier of
    vma_write_begin."""
    smp_rmb(cpu)
    return RB_EMPTY_NODE(cpu, &vma.vm_rb) or READ_ONCE_32(cpu, &vma.vm_sequence.sequence) != sequence

cdef vm_area_struct *vm_area_alloc(Cpu *cpu, mm_struct *mm) noexcept nogil
# A copy of `vma` that is in no tree, list, chain or mapping yet; takes its own file reference. NULL = -ENOMEM.
cdef vm_area_struct *vm_area_dup(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil
# Final: drops vm_file and gives the memory back. Called by the strategy's free_vma (or its callback).
cdef void __vm_area_free(Cpu *cpu, vm_area_struct *vma) noexcept nogil
# Hands an unlinked VMA to the strategy's free_vma.
cdef void free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil

# For the other mm files; mmap_sem W.
cdef void vmacache_invalidate(mm_struct *mm) noexcept nogil
cdef void vma_link(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, vm_area_struct *prev) noexcept nogil
# The rbtree part of unlinking one VMA of a run; the caller repairs the list, the gap behind the run and the cache.
cdef void vma_rb_erase(Cpu *cpu, vm_area_struct *vma, mm_struct *mm) noexcept nogil
cdef void vma_gap_update(vm_area_struct *vma) noexcept nogil
# Off the tree and the list (on them: vma_link without i_mmap and map_count); the successor's gap is the caller's.
cdef void __vma_link(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, vm_area_struct *prev) noexcept nogil
cdef void __vma_unlink(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil
# Idempotent: takes the VMA off its file's i_mmap. May sleep.
cdef void unlink_file_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil
cdef int insert_vm_struct(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil
# Gives a VMA that is not linked yet its place.
cdef void vma_set_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end,
                        unsigned long pgoff) noexcept nogil
cdef void vma_set_page_prot(Cpu *cpu, vm_area_struct *vma) noexcept nogil

cdef inline void __vma_link_file(vm_area_struct *vma) noexcept nogil:
    """Context: i_mmap_rwsem W."""
    cdef address_space *mapping = &vma.vm_file.f_mapping
    vma.shared_prev = NULL
    vma.shared_next = mapping.i_mmap
    if mapping.i_mmap != NULL:
        mapping.i_mmap.shared_prev = vma
    mapping.i_mmap = vma

cdef inline void __remove_shared_vm_struct(vm_area_struct *vma, address_space *mapping) noexcept nogil:
    """Context: i_mmap_rwsem W. Does nothing when the VMA is not on the list."""
    if mapping.i_mmap == vma:
        mapping.i_mmap = vma.shared_next
    elif vma.shared_prev != NULL:
        vma.shared_prev.shared_next = vma.shared_next
    else:
        return
    if vma.shared_next != NULL:
        vma.shared_next.shared_prev = vma.shared_prev
    vma.shared_next = NULL
    vma.shared_prev = NULL
