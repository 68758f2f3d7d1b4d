# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/vma.c (4.12: the first half of mm/mmap.c): VMAs, their tree and list, the VMA cache. Merging and splitting is
mm/vma_merge.

As Linux 4.12 in structure (rbtree with ``rb_subtree_gap``, sorted list, ``vmacache``). The writer sections of the
speculative-page-fault series are where its patches 04 to 07 put them, through the strategy's ``vma_write_begin/end`` and
``tree_write_begin/end``.

Who may run against whom:

==================== ========================= ==========================================================
reader               holds                     against a writer (mmap_sem W)
==================== ========================= ==========================================================
find_vma             mmap_sem R                excluded
find_vma_srcu        vma_srcu read section     retried while mm_seq changes; VMAs are freed after the section
find_vma_rcu         RCU read section          not noticed: any VMA, or none; the caller checks mmap_seq, or locks what it gets
                                               and looks again
speculative fault    vma_srcu read section     RB_EMPTY_NODE tells what is not in the tree any more, vm_sequence the rest
==================== ========================= ==========================================================
"""
from libc.errno cimport ENOMEM
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_DEP, READ_ONCE_DEP_PTR, READ_ONCE_PTR, WRITE_ONCE, rcu_lockdep_assert, srcu_lockdep_assert,
)
from pykmm_ext.kernel.rbtree cimport (
    RB_CLEAR_NODE, rb_augment_callbacks, rb_erase_augmented, rb_insert_augmented, rb_link_node, rb_node, rb_parent,
)
from pykmm_ext.kernel.rwsem cimport down_write, rw_semaphore, up_write
from pykmm_ext.kernel.seqlock cimport read_seqbegin, read_seqretry, seqcount_init
from pykmm_ext.kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from pykmm_ext.machine.cpu cimport (
    VMACACHE_FIND_CALLS, VMACACHE_FIND_HITS, Cpu, count_vm_event, likely, u8, u32, u64, unlikely,
)
from pykmm_ext.mm.filemap cimport fput, get_file
from pykmm_ext.mm.mempolicy cimport mpol_get, mpol_put
from pykmm_ext.mm.mm_types cimport (
    KMEM_VMA, KMM_QUIRK_VMACACHE_NARROW, VM_SHARED, kmem_cache, machine_of, mm_struct, pgprot_t, tree_write_begin,
    tree_write_end, vm_area_struct, vma_mark_attached, vma_start_write,
)


# ---- the life of a VMA ----

cdef void clear_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: as vm_area_alloc(). Zeroes a type-stable VMA around what lookups of its former life may still read or
    count: vm_end, the node (which linking writes), vm_lock_seq (vma_init does), vm_read_biased (which is 0) and vm_refcnt."""
    vma.vm_start = 0
    WRITE_ONCE(cpu, &vma.vm_end, 0)
    memset(&vma.vm_next, 0, <u8 *>&vma.vm_rb - <u8 *>&vma.vm_next)
    memset(&vma.rb_subtree_gap, 0, <u8 *>&vma.vm_lock_seq - <u8 *>&vma.rb_subtree_gap)
    memset(&vma.anon_vma_chain, 0, <u8 *>&vma.vm_refcnt - <u8 *>&vma.anon_vma_chain)
    memset(&vma.vm_rcu_head, 0, <u8 *>(vma + 1) - <u8 *>&vma.vm_rcu_head)


cdef vm_area_struct *vm_area_alloc(Cpu *cpu, mm_struct *mm) noexcept nogil:
    """Context: process, IRQs on. A zeroed VMA of `mm`, in no tree; NULL = -ENOMEM."""
    cdef kmem_cache *cache = &machine_of(cpu).caches[KMEM_VMA]
    cdef vm_area_struct *vma = <vm_area_struct *>kmem_cache_alloc(cpu, cache)
    if vma == NULL:
        return NULL
    if unlikely(cache.typesafe):
        clear_vma(cpu, vma)
    vma.vm_mm = mm
    seqcount_init(&vma.vm_sequence)
    RB_CLEAR_NODE(&vma.vm_rb)
    if mm.strategy.vma_init != NULL:
        mm.strategy.vma_init(cpu, vma)
    return vma


cdef vm_area_struct *vm_area_dup(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil:
    """Context: process, mmap_sem of vma's mm held. What describes the mapping is copied, what links it is not."""
    cdef vm_area_struct *new = vm_area_alloc(cpu, mm)
    if new == NULL:
        return NULL
    vma_set_range(cpu, new, vma.vm_start, vma.vm_end, vma.vm_pgoff)
    new.vm_flags = vma.vm_flags
    new.vm_page_prot = vma.vm_page_prot
    new.vm_ops = vma.vm_ops
    new.anon_name = vma.anon_name
    new.vm_file = vma.vm_file
    if new.vm_file != NULL:
        get_file(cpu, new.vm_file)
    new.vm_policy = mpol_get(cpu, vma.vm_policy)
    return new


cdef void vma_set_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end,
                        unsigned long pgoff) noexcept nogil:
    """Context: process; the VMA is in no tree. A lookup that found it in its former life may still compare its vm_end."""
    vma.vm_start = start
    if unlikely(machine_of(cpu).caches[KMEM_VMA].typesafe):
        WRITE_ONCE(cpu, &vma.vm_end, end)
    else:
        vma.vm_end = end
    vma.vm_pgoff = pgoff


cdef void __vm_area_free(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: process, IRQs on, may sleep (the last fput frees a page cache). Nobody can find the VMA any more."""
    if vma.vm_file != NULL:
        fput(cpu, vma.vm_file)
        vma.vm_file = NULL
    mpol_put(cpu, vma.vm_policy)
    vma.vm_policy = NULL
    kmem_cache_free(cpu, &machine_of(cpu).caches[KMEM_VMA], vma)


cdef void free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: process, mmap_sem or last user, `vma` unlinked and outside of any write section of its own."""
    if vma.vm_mm.strategy.free_vma != NULL:
        vma.vm_mm.strategy.free_vma(cpu, vma)
    else:
        __vm_area_free(cpu, vma)


# ---- i_mmap ----

cdef void unlink_file_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W (a detached VMA: R), or last user; takes i_mmap_rwsem, may sleep."""
    if vma.vm_file == NULL:
        return
    down_write(cpu, &vma.vm_file.f_mapping.i_mmap_rwsem)
    __remove_shared_vm_struct(vma, &vma.vm_file.f_mapping)
    up_write(cpu, &vma.vm_file.f_mapping.i_mmap_rwsem)


# ---- the augmented tree ----

cdef void vma_gap_callbacks_propagate(rb_node *node, rb_node *stop) noexcept nogil:
    """mmap_sem W."""
    cdef unsigned long gap
    while node != stop:
        gap = vma_compute_subtree_gap(vma_of(node))
        if vma_of(node).rb_subtree_gap == gap:
            return
        vma_of(node).rb_subtree_gap = gap
        node = rb_parent(node)


cdef void vma_gap_callbacks_copy(rb_node *old, rb_node *new) noexcept nogil:
    """mmap_sem W."""
    vma_of(new).rb_subtree_gap = vma_of(old).rb_subtree_gap


cdef void vma_gap_callbacks_rotate(rb_node *old, rb_node *new) noexcept nogil:
    """mmap_sem W."""
    vma_of(new).rb_subtree_gap = vma_of(old).rb_subtree_gap
    vma_of(old).rb_subtree_gap = vma_compute_subtree_gap(vma_of(old))


cdef rb_augment_callbacks vma_gap_callbacks
vma_gap_callbacks.propagate = vma_gap_callbacks_propagate
vma_gap_callbacks.copy = vma_gap_callbacks_copy
vma_gap_callbacks.rotate = vma_gap_callbacks_rotate


cdef void vma_gap_update(vm_area_struct *vma) noexcept nogil:
    """mmap_sem W. The gap below `vma` changed, because it or its predecessor moved a boundary."""
    vma_gap_callbacks_propagate(&vma.vm_rb, NULL)


cdef inline void vmacache_update_seqnum(mm_struct *mm) noexcept nogil:
    mm.vmacache_seqnum += 1
    if unlikely(mm.machine.quirks & KMM_QUIRK_VMACACHE_NARROW):
        mm.vmacache_seqnum &= ~<u64>2  # one bit: it comes back after two changes


cdef void vmacache_invalidate(mm_struct *mm) noexcept nogil:
    """mmap_sem W. No Cpu's cached VMA of this mm counts any more. The id in the high bits keeps an mm that is built
    where another one was from taking that one's entries for its own; 64 bits, so that it never wraps (R16)."""
    if mm.vmacache_seqnum == 0:
        mm.vmacache_seqnum = (<u64>mm.id + 1) << 40
    vmacache_update_seqnum(mm)


cdef inline void vma_rb_insert(Cpu *cpu, vm_area_struct *vma, mm_struct *mm) noexcept nogil:
    """mmap_sem W, inside tree_write_begin/end; the node is linked."""
    rb_insert_augmented(cpu, &vma.vm_rb, &mm.mm_rb, &vma_gap_callbacks)


cdef void vma_rb_erase(Cpu *cpu, vm_area_struct *vma, mm_struct *mm) noexcept nogil:
    """mmap_sem W. The node is cleared only after the section ended: whoever then sees RB_EMPTY_NODE also sees the tree
    without the VMA, because tree_write_end orders the two."""
    tree_write_begin(cpu, mm)
    rb_erase_augmented(cpu, &vma.vm_rb, &mm.mm_rb, &vma_gap_callbacks)
    tree_write_end(cpu, mm)
    WRITE_ONCE(cpu, &vma.vm_rb.__rb_parent_color, <unsigned long>&vma.vm_rb)


cdef void __vma_link(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, vm_area_struct *prev) noexcept nogil:
    """mmap_sem W. Puts the VMA behind `prev` (NULL = first) on the list, then, write-locked (R13), into the tree.

    The place in the tree follows from prev and its successor: of two neighbours in the order, exactly one has the free
    child pointer between them."""
    cdef vm_area_struct *next
    cdef rb_node *parent
    cdef rb_node **link
    if prev != NULL:
        next = prev.vm_next
        prev.vm_next = vma
    else:
        next = mm.mmap
        mm.mmap = vma
    vma.vm_prev = prev
    vma.vm_next = next
    if next != NULL:
        next.vm_prev = vma
    if prev != NULL and prev.vm_rb.rb_right == NULL:
        parent = &prev.vm_rb
        link = &prev.vm_rb.rb_right
    elif next != NULL:
        parent = &next.vm_rb
        link = &next.vm_rb.rb_left
    else:
        parent = NULL
        link = &mm.mm_rb.rb_node
    if next != NULL:
        vma_gap_update(next)
    else:
        mm.highest_vm_end = vm_end_gap(vma)
    vma_start_write(cpu, vma)
    vma_mark_attached(cpu, vma)
    tree_write_begin(cpu, mm)
    rb_link_node(cpu, &vma.vm_rb, parent, link)
    # As Linux: the new node starts with no gap of its own and is brought up to date before rebalancing.
    vma.rb_subtree_gap = 0
    vma_gap_update(vma)
    vma_rb_insert(cpu, vma, mm)
    tree_write_end(cpu, mm)
    if mm.vmacache_seqnum == 0:
        vmacache_invalidate(mm)


cdef void vma_link(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, vm_area_struct *prev) noexcept nogil:
    """mmap_sem W, may sleep (i_mmap_rwsem). Tree, list, i_mmap and map_count."""
    cdef rw_semaphore *sem = NULL
    if vma.vm_file != NULL:
        sem = &vma.vm_file.f_mapping.i_mmap_rwsem
        down_write(cpu, sem)
    __vma_link(cpu, mm, vma, prev)
    if sem != NULL:
        __vma_link_file(vma)
        up_write(cpu, sem)
    mm.map_count += 1


cdef void __vma_unlink(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil:
    """mmap_sem W. Off the tree and the list; the gap of the successor is the caller's."""
    vma_rb_erase(cpu, vma, mm)
    if vma.vm_prev != NULL:
        vma.vm_prev.vm_next = vma.vm_next
    else:
        mm.mmap = vma.vm_next
    if vma.vm_next != NULL:
        vma.vm_next.vm_prev = vma.vm_prev
    vmacache_invalidate(mm)


# ---- lookup ----

cdef inline vm_area_struct *descend(mm_struct *mm, unsigned long addr) noexcept nogil:
    """mmap_sem held: plain loads, the tree stands still.

    The child is picked by index, not by a branch: with keys in no order every second branch would be mispredicted.
    (rb_left follows rb_right in the node.)"""
    cdef rb_node *node = mm.mm_rb.rb_node
    cdef vm_area_struct *vma = NULL
    cdef vm_area_struct *tmp
    cdef unsigned long above
    while node != NULL:
        tmp = vma_of(node)
        above = tmp.vm_end > addr
        vma = <vm_area_struct *>(<unsigned long>vma ^ ((<unsigned long>vma ^ <unsigned long>tmp) & -above))
        node = (&node.rb_right)[above]
    return vma


cdef vm_area_struct *__find_vma(mm_struct *mm, unsigned long addr) noexcept nogil:
    """Context: mmap_sem held."""
    return descend(mm, addr)


cdef inline u32 vmacache_hash(mm_struct *mm, unsigned long addr) noexcept nogil:
    return (addr >> mm.arch.page_shift) & 3


cdef vm_area_struct *find_vma(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil:
    """Context: mmap_sem held. Four cached VMAs per Cpu, by page number; stale when mm or vmacache_seqnum differ.
    Only the page's own slot is looked at (Linux tries all four: that costs more than it saves on random addresses)."""
    cdef vm_area_struct *vma
    cdef u32 i
    count_vm_event(cpu, VMACACHE_FIND_CALLS)
    if likely(cpu.vmacache.mm == <void *>mm and cpu.vmacache.seqnum == mm.vmacache_seqnum):
        vma = <vm_area_struct *>cpu.vmacache.vmas[vmacache_hash(mm, addr)]
        # READ_ONCE: that the VMA still lives follows from the number, not from the lock.
        if vma != NULL and READ_ONCE(cpu, &vma.vm_start) <= addr and vma.vm_end > addr:
            count_vm_event(cpu, VMACACHE_FIND_HITS)
            return vma
    else:
        cpu.vmacache.mm = <void *>mm
        cpu.vmacache.seqnum = mm.vmacache_seqnum
        for i in range(4):
            cpu.vmacache.vmas[i] = NULL
    vma = descend(mm, addr)
    if vma != NULL:
        cpu.vmacache.vmas[vmacache_hash(mm, addr)] = vma
    return vma


cdef inline vm_area_struct *descend_lockless(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil:
    """Context: a read section after which VMAs are freed (vma_srcu, RCU). Terminates whatever a writer does; its answer is
    one of the tree's only if nobody changed the tree meanwhile: mm_seq, mmap_seq."""
    cdef rb_node *node = <rb_node *>READ_ONCE_PTR(cpu, &mm.mm_rb.rb_node)
    cdef vm_area_struct *vma = NULL
    cdef vm_area_struct *tmp
    cdef unsigned long above
    while node != NULL:
        tmp = vma_of(node)
        above = READ_ONCE_DEP(cpu, &tmp.vm_end, 1) > addr
        vma = <vm_area_struct *>(<unsigned long>vma ^ ((<unsigned long>vma ^ <unsigned long>tmp) & -above))
        node = <rb_node *>READ_ONCE_DEP_PTR(cpu, &(&node.rb_right)[above], 2)  # `node` was read before vm_end
    return vma


cdef vm_area_struct *__find_vma_srcu(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil:
    """Context: as descend_lockless."""
    return descend_lockless(cpu, mm, addr)


cdef vm_area_struct *find_vma_srcu(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil:
    """Context: srcu_read_lock(vma_srcu) held, mmap_sem not needed; may wait for a writer inside mm_seq.

    read_seqbegin/read_seqretry pair with tree_write_begin/end. The VMA may be dead by the time it is returned: the
    caller asks RB_EMPTY_NODE and vm_sequence. Its bounds are not part of mm_seq, so it re-checks them too."""
    cdef vm_area_struct *vma
    cdef u32 seq
    if unlikely(cpu.engine != NULL):
        srcu_lockdep_assert(cpu, &mm.machine.vma_srcu)
    while True:
        seq = read_seqbegin(cpu, &mm.mm_seq)
        vma = descend_lockless(cpu, mm, addr)
        if not read_seqretry(cpu, &mm.mm_seq, seq):
            return vma


cdef vm_area_struct *find_vma_rcu(Cpu *cpu, mm_struct *mm, unsigned long addr) noexcept nogil:
    """Context: rcu_read_lock() held, mmap_sem not needed; does not wait.

    One descent, and nobody asks whether a rotation hid something from it: the VMA may be another one than the first with
    addr < vm_end, may be dead or, where VMAs are type-stable, of another mm; NULL may be wrong. (Descents end: see
    kernel/rbtree; a dead VMA's children are those that it had.)"""
    if unlikely(cpu.engine != NULL):
        rcu_lockdep_assert(cpu, b"find_vma_rcu")
    return descend_lockless(cpu, mm, addr)


cdef vm_area_struct *find_vma_prev(Cpu *cpu, mm_struct *mm, unsigned long addr, vm_area_struct **pprev) noexcept nogil:
    """Context: mmap_sem held. find_vma() and the VMA before it; without a VMA above addr, *pprev is the last one."""
    cdef vm_area_struct *vma = find_vma(cpu, mm, addr)
    cdef rb_node *node
    if vma != NULL:
        pprev[0] = vma.vm_prev
        return vma
    pprev[0] = NULL
    node = mm.mm_rb.rb_node
    while node != NULL:
        pprev[0] = vma_of(node)
        node = node.rb_right
    return NULL


cdef vm_area_struct *find_vma_intersection(Cpu *cpu, mm_struct *mm, unsigned long start,
                                           unsigned long end) noexcept nogil:
    """Context: mmap_sem held."""
    cdef vm_area_struct *vma = find_vma(cpu, mm, start)
    return vma if vma != NULL and vma.vm_start < end else NULL


# ---- page protection ----

cdef void vma_set_page_prot(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W, inside vma_write_begin/end unless the VMA is not linked yet.

    simplified: no vma_wants_writenotify(); no file system tracks dirtying, shared file mappings are writable at once.
    """
    cdef pgprot_t prot = vma.vm_mm.arch.vm_get_page_prot(vma.vm_flags)
    WRITE_ONCE(cpu, <unsigned long *>&vma.vm_page_prot, prot)


# ---- inserting ----

cdef int insert_vm_struct(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W (or the mm is not visible yet), may sleep. -ENOMEM when something is there already."""
    cdef vm_area_struct *prev
    cdef vm_area_struct *next = find_vma_prev(cpu, mm, vma.vm_start, &prev)
    if next != NULL and next.vm_start < vma.vm_end:
        return -ENOMEM
    if vma.vm_file == NULL and not vma.vm_flags & VM_SHARED and vma.anon_vma == NULL and vma.vm_pgoff == 0:
        vma.vm_pgoff = vma.vm_start >> mm.arch.page_shift
    vma_link(cpu, mm, vma, prev)
    return 0
