# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/rmap.c: anon_vmas, the chains that tie VMAs to them, and the mapcount of pages.

As Linux 4.12: an anon_vma per family of VMAs, a chain element per (VMA, anon_vma) pair, one lock per tree of
anon_vmas (the root's), `degree` deciding about reuse at fork. simplified: the chains of an anon_vma are a list, not
an interval tree; a walker looks at every VMA of the family.

Locks: a VMA's chain belongs to its mm's mmap_sem (W, or R with page_table_lock for the first element); the list of an
anon_vma to root->rwsem. Order: mmap_sem, i_mmap_rwsem, root->rwsem, page_table_lock.
"""
from libc.errno cimport ENOMEM

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE_PTR, WRITE_ONCE, WRITE_ONCE_32, WRITE_ONCE_PTR, atomic_dec_32, atomic_dec_and_test_32, atomic_inc_32,
    smp_store_release_ptr,
)
from pykmm_ext.kernel.rwsem cimport down_write, init_rwsem, up_write
from pykmm_ext.kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock
from pykmm_ext.machine.cpu cimport Cpu, likely
from pykmm_ext.mm.mempolicy cimport mpol_equal
from pykmm_ext.mm.mm_types cimport (
    KMEM_ANON_VMA, KMEM_AVC, PG_anon, PG_anon_exclusive, VM_ACCESS_FLAGS, VM_SOFTDIRTY, anon_vma, anon_vma_chain,
    machine_of, mm_struct, page, vm_area_struct, vma_pages,
)


# ---- anon_vma ----

cdef anon_vma *anon_vma_alloc(Cpu *cpu) noexcept nogil:
    """Context: process, IRQs on. Its own root and parent: that self-reference counts in `degree`. NULL = -ENOMEM."""
    cdef anon_vma *av = <anon_vma *>kmem_cache_alloc(cpu, &machine_of(cpu).caches[KMEM_ANON_VMA])
    if av == NULL:
        return NULL
    init_rwsem(&av.rwsem)
    av.refcount = 1
    av.degree = 1
    av.root = av
    av.parent = av
    av.head = NULL
    return av


cdef inline void get_anon_vma(Cpu *cpu, anon_vma *av) noexcept nogil:
    """Context: any; the caller has a reference or a VMA on it."""
    atomic_inc_32(cpu, &av.refcount)


cdef void put_anon_vma(Cpu *cpu, anon_vma *av) noexcept nogil:
    """Context: process, root->rwsem not held. The last reference of a child also drops its root's."""
    cdef anon_vma *root = av.root
    if not atomic_dec_and_test_32(cpu, &av.refcount):
        return
    kmem_cache_free(cpu, &machine_of(cpu).caches[KMEM_ANON_VMA], av)
    if root != av and atomic_dec_and_test_32(cpu, &root.refcount):
        kmem_cache_free(cpu, &machine_of(cpu).caches[KMEM_ANON_VMA], root)


# Context: process, IRQs on. NULL = out of memory.
cdef inline anon_vma_chain *anon_vma_chain_alloc(Cpu *cpu) noexcept nogil:
    return <anon_vma_chain *>kmem_cache_alloc(cpu, &machine_of(cpu).caches[KMEM_AVC])


# Context: process, IRQs on; unlinked from both lists.
cdef inline void anon_vma_chain_free(Cpu *cpu, anon_vma_chain *avc) noexcept nogil:
    kmem_cache_free(cpu, &machine_of(cpu).caches[KMEM_AVC], avc)


cdef void anon_vma_chain_link(vm_area_struct *vma, anon_vma_chain *avc, anon_vma *av) noexcept nogil:
    """Context: the VMA's chain is the caller's; root->rwsem W. First on both lists."""
    avc.vma = vma
    avc.anon_vma = av
    avc.same_vma_prev = NULL
    avc.same_vma_next = vma.anon_vma_chain
    if vma.anon_vma_chain != NULL:
        vma.anon_vma_chain.same_vma_prev = avc
    vma.anon_vma_chain = avc
    avc.same_anon_prev = NULL
    avc.same_anon_next = av.head
    if av.head != NULL:
        av.head.same_anon_prev = avc
    av.head = avc


cdef inline void anon_list_del(anon_vma_chain *avc) noexcept nogil:
    """Context: root->rwsem W."""
    if avc.same_anon_prev != NULL:
        avc.same_anon_prev.same_anon_next = avc.same_anon_next
    else:
        avc.anon_vma.head = avc.same_anon_next
    if avc.same_anon_next != NULL:
        avc.same_anon_next.same_anon_prev = avc.same_anon_prev


cdef bint anon_vma_chain_is_singular(vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem. Exactly one element: the VMA belongs to no anon_vma of a parent process."""
    return vma.anon_vma_chain != NULL and vma.anon_vma_chain.same_vma_next == NULL


cdef anon_vma *reusable_anon_vma(Cpu *cpu, vm_area_struct *old, vm_area_struct *a, vm_area_struct *b) noexcept nogil:
    """Context: mmap_sem R. `a` ends where `b` starts: could they be one VMA after an mprotect? Then old's anon_vma.

    Another fault may be giving `old` its first anon_vma right now, hence READ_ONCE (pairs with the store in
    anon_vma_prepare: a release, so that the chain behind it is complete)."""
    cdef anon_vma *av
    if (a.vm_end != b.vm_start or a.vm_file != b.vm_file or not mpol_equal(a.vm_policy, b.vm_policy)
            or (a.vm_flags ^ b.vm_flags) & ~(VM_ACCESS_FLAGS | VM_SOFTDIRTY)
            or b.vm_pgoff != a.vm_pgoff + vma_pages(a, a.vm_mm.arch.page_shift)):
        return NULL
    av = <anon_vma *>READ_ONCE_PTR(cpu, &old.anon_vma)
    if av != NULL and anon_vma_chain_is_singular(old):
        return av
    return NULL


cdef anon_vma *find_mergeable_anon_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem R. So that neighbours which differ only in permissions can merge later."""
    cdef anon_vma *av
    if vma.vm_next != NULL:
        av = reusable_anon_vma(cpu, vma.vm_next, vma, vma.vm_next)
        if av != NULL:
            return av
    if vma.vm_prev != NULL:
        return reusable_anon_vma(cpu, vma.vm_prev, vma.vm_prev, vma)
    return NULL


cdef int anon_vma_prepare(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem held (R is enough), may sleep. 0 or -ENOMEM.

    Two faults may race here: root->rwsem keeps the anon_vma's list, page_table_lock decides who sets
    vma->anon_vma. The store is a release: SPF and neighbours read it without either lock."""
    cdef mm_struct *mm = vma.vm_mm
    cdef anon_vma *av
    cdef anon_vma *allocated = NULL
    cdef anon_vma_chain *avc
    if likely(READ_ONCE_PTR(cpu, &vma.anon_vma) != NULL):
        return 0
    avc = anon_vma_chain_alloc(cpu)
    if avc == NULL:
        return -ENOMEM
    av = find_mergeable_anon_vma(cpu, vma)
    if av == NULL:
        av = anon_vma_alloc(cpu)
        if av == NULL:
            anon_vma_chain_free(cpu, avc)
            return -ENOMEM
        allocated = av
    down_write(cpu, &av.root.rwsem)
    spin_lock(cpu, &mm.page_table_lock)
    if likely(vma.anon_vma == NULL):
        anon_vma_chain_link(vma, avc, av)
        av.degree += 1
        # Pairs with the address dependency of who reads it without page_table_lock: speculative faults, neighbours.
        smp_store_release_ptr(cpu, &vma.anon_vma, av)
        allocated = NULL
        avc = NULL
    spin_unlock(cpu, &mm.page_table_lock)
    up_write(cpu, &av.root.rwsem)
    if allocated != NULL:
        put_anon_vma(cpu, allocated)
    if avc != NULL:
        anon_vma_chain_free(cpu, avc)
    return 0


cdef void unlink_anon_vmas(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    """Context: mmap_sem W (a detached VMA: R), or last user; takes root->rwsem, may sleep. No page is mapped through the
    VMA any more. Calling it twice does nothing the second time."""
    unlink_anon_vmas_from(cpu, vma, vma.anon_vma)


cdef void unlink_anon_vmas_from(Cpu *cpu, vm_area_struct *vma, anon_vma *own) noexcept nogil:
    """Context: as unlink_anon_vmas. `own` is what vma->anon_vma is, or was until the caller cleared it."""
    cdef anon_vma_chain *avc = vma.anon_vma_chain
    cdef anon_vma_chain *next
    cdef anon_vma *root
    if avc == NULL:
        return
    root = avc.anon_vma.root
    down_write(cpu, &root.rwsem)
    while avc != NULL:
        anon_list_del(avc)
        if avc.anon_vma.head == NULL:
            avc.anon_vma.parent.degree -= 1
        else:
            avc.anon_vma = NULL                  # others stay on it: not ours to put
        avc = avc.same_vma_next
    if own != NULL:
        own.degree -= 1
    up_write(cpu, &root.rwsem)
    # The empty ones go, outside of the lock that lies in one of them. Nobody else can reach them any more.
    avc = vma.anon_vma_chain
    vma.anon_vma_chain = NULL
    WRITE_ONCE_PTR(cpu, &vma.anon_vma, NULL)
    while avc != NULL:
        next = avc.same_vma_next
        if avc.anon_vma != NULL:
            put_anon_vma(cpu, avc.anon_vma)
        anon_vma_chain_free(cpu, avc)
        avc = next


cdef int anon_vma_clone(Cpu *cpu, vm_area_struct *dst, vm_area_struct *src) noexcept nogil:
    """Context: mmap_sem W of both, may sleep. Ties `dst` to every anon_vma of `src`. At fork (dst->anon_vma NULL) an
    anon_vma of an ancestor that has no VMA and at most one child left is taken over as dst's own. 0 or -ENOMEM:
    then dst is tied to nothing and has no anon_vma."""
    cdef anon_vma_chain *pavc = src.anon_vma_chain
    cdef anon_vma_chain *avc
    cdef anon_vma *av
    while pavc != NULL and pavc.same_vma_next != NULL:
        pavc = pavc.same_vma_next
    # From the tail: linking at the head then keeps the order.
    while pavc != NULL:
        av = pavc.anon_vma
        avc = anon_vma_chain_alloc(cpu)
        if avc == NULL:
            # degree of dst->anon_vma was not raised yet: forget it before unlinking lowers it.
            WRITE_ONCE_PTR(cpu, &dst.anon_vma, NULL)
            unlink_anon_vmas(cpu, dst)
            return -ENOMEM
        down_write(cpu, &av.root.rwsem)
        anon_vma_chain_link(dst, avc, av)
        if dst.anon_vma == NULL and av != src.anon_vma and av.degree < 2:
            WRITE_ONCE_PTR(cpu, &dst.anon_vma, av)
        up_write(cpu, &av.root.rwsem)
        pavc = pavc.same_vma_prev
    if dst.anon_vma != NULL:
        down_write(cpu, &dst.anon_vma.root.rwsem)
        dst.anon_vma.degree += 1
        up_write(cpu, &dst.anon_vma.root.rwsem)
    return 0


cdef int anon_vma_fork(Cpu *cpu, vm_area_struct *vma, vm_area_struct *pvma) noexcept nogil:
    """Context: mmap_sem W of both, may sleep. The child's VMA joins the parent's anon_vmas and gets one of its own for
    the pages it will make. 0 or -ENOMEM, nothing tied."""
    cdef anon_vma *av
    cdef anon_vma_chain *avc
    if pvma.anon_vma == NULL:
        return 0
    vma.anon_vma = NULL
    if anon_vma_clone(cpu, vma, pvma):
        return -ENOMEM
    if vma.anon_vma != NULL:
        return 0
    av = anon_vma_alloc(cpu)
    avc = anon_vma_chain_alloc(cpu) if av != NULL else NULL
    if avc == NULL:
        if av != NULL:
            put_anon_vma(cpu, av)
        unlink_anon_vmas(cpu, vma)
        return -ENOMEM
    av.root = pvma.anon_vma.root
    av.parent = pvma.anon_vma
    get_anon_vma(cpu, av.root)
    down_write(cpu, &av.root.rwsem)
    anon_vma_chain_link(vma, avc, av)
    av.parent.degree += 1
    up_write(cpu, &av.root.rwsem)
    WRITE_ONCE_PTR(cpu, &vma.anon_vma, av)
    return 0


cdef void anon_vma_merge(Cpu *cpu, vm_area_struct *vma, vm_area_struct *next) noexcept nogil:
    """Context: mmap_sem W, may sleep. `next` was swallowed by `vma`, which has its anon_vma."""
    unlink_anon_vmas(cpu, next)


# ---- pages ----

cdef void page_add_new_anon_rmap(Cpu *cpu, page *page, anon_vma *av, unsigned long index) noexcept nogil:  # no-cython-lint
    """Context: PTL held; the page is new, nobody else knows it. `av` and `index` as the fault captured them: of a VMA that
    is being merged away or moved they may not be read any more. It is exclusive to this mapping.
    simplified: flags are stored, not or-ed atomically."""
    WRITE_ONCE_32(cpu, &page._mapcount, 1)
    WRITE_ONCE_PTR(cpu, &page.mapping, av)
    WRITE_ONCE(cpu, &page.index, index)
    WRITE_ONCE(cpu, &page.flags, page.flags | PG_anon | PG_anon_exclusive)


cdef void page_add_file_rmap(Cpu *cpu, page *page) noexcept nogil:  # no-cython-lint
    """Context: PTL held."""
    atomic_inc_32(cpu, &page._mapcount)


cdef void page_dup_rmap(Cpu *cpu, page *page) noexcept nogil:  # no-cython-lint
    """Context: PTL of the page table copied from held (fork)."""
    atomic_inc_32(cpu, &page._mapcount)


cdef void page_remove_rmap(Cpu *cpu, page *page) noexcept nogil:  # no-cython-lint
    """Context: PTL held; the caller still has the reference of the mapping that goes. As Linux, page->mapping of an
    anonymous page stays until the page is freed."""
    atomic_dec_32(cpu, &page._mapcount)
