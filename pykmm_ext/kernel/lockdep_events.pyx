# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""include/linux/lockdep.h: which class a lock of the mm has, and what each lock operation and event means to it.

A class is found by the structure that the lock lies in and its offset there, which is what an engine knows of an address.
stands in for the static lock_class_key of each spin_lock_init() and init_rwsem().
"""
from libc.string cimport strcmp

from pykmm_ext.kernel.lockdep cimport (
    LOCKDEP_COUNTED, LOCKDEP_EXCLUSIVE, LOCKDEP_RCU, LOCKDEP_RECURSIVE, LOCKDEP_RWSEM, LOCKDEP_SEQCOUNT, LOCKDEP_SHARED,
    LOCKDEP_SLEEPABLE, LOCKDEP_SPIN, LOCKDEP_SRCU, lockdep_acquire, lockdep_class, lockdep_downgrade, lockdep_ipi_wait,
    lockdep_irqs_on, lockdep_kind, lockdep_might_sleep, lockdep_nested, lockdep_rcu_held, lockdep_release,
    lockdep_release_counted,
    lockdep_srcu_held, lockdep_sync,
)
from pykmm_ext.kernel.rwsem cimport rw_semaphore
from pykmm_ext.kernel.srcu cimport rcu_segcblist, srcu_struct
from pykmm_ext.machine.cpu cimport (
    KMM_EV_IPI_WAIT, KMM_EV_IRQS_ON, KMM_EV_LOCK_NESTED, KMM_EV_MIGHT_SLEEP, KMM_EV_RCU_ASSERT, KMM_EV_RCU_LOCK,
    KMM_EV_RCU_SYNC,
    KMM_EV_RCU_UNLOCK, KMM_EV_SEQ_READ, KMM_EV_SEQ_WRITE_BEGIN, KMM_EV_SEQ_WRITE_END, KMM_EV_SRCU_ASSERT,
    KMM_EV_SRCU_LOCK, KMM_EV_SRCU_SYNC, KMM_EV_SRCU_UNLOCK, KMM_SEQ_COUNTED, u32, u64,
)
from pykmm_ext.mm.mm_types cimport (
    KMEM_NR, address_space, anon_vma, file, kmem_cache, machine, mm_struct, page, rcu_state, vm_area_struct, zone,
)

cdef enum:
    KNOWN_MAX = 96

cdef lockdep_known_lock table[KNOWN_MAX]
cdef u32 nr_known = 0


# ---- the table: written while the module is imported, read only afterwards -------------------------------------------------

# Context: module import, as for all that fill the table.
cdef void know(const char *type, size_t offset, const char *name, u32 kind, u32 flags=0) noexcept nogil:
    global nr_known
    if nr_known == KNOWN_MAX:
        return                   # the tests see that nothing is missing
    table[nr_known].type = type
    table[nr_known].offset = offset
    table[nr_known].name = name
    table[nr_known].kind = kind
    table[nr_known].flags = flags
    nr_known += 1


# A semaphore's own wait_lock is a lock only where the semaphore's code itself runs on the engine.
cdef void know_rwsem(const char *type, size_t offset, const char *name) noexcept nogil:
    know(type, offset, name, LOCKDEP_RWSEM)
    know(type, offset + <size_t>&(<rw_semaphore *>NULL).wait_lock, b"rw_semaphore.wait_lock", LOCKDEP_SPIN)


cdef void know_address_space(const char *type, size_t offset) noexcept nogil:
    know_rwsem(type, offset + <size_t>&(<address_space *>NULL).i_mmap_rwsem, b"address_space.i_mmap_rwsem")
    know(type, offset + <size_t>&(<address_space *>NULL).i_pages_lock, b"address_space.i_pages_lock", LOCKDEP_SPIN)


cdef void know_rcu(const char *type, size_t offset) noexcept nogil:
    know(type, offset, b"rcu_read_lock", LOCKDEP_RCU)
    know_rwsem(type, offset + <size_t>&(<rcu_state *>NULL).gp_lock, b"rcu_state.gp_lock")
    know(type, offset + <size_t>&(<rcu_state *>NULL).cblist + <size_t>&(<rcu_segcblist *>NULL).lock,
         b"rcu_state.cblist.lock", LOCKDEP_SPIN)


cdef void know_srcu(const char *type, size_t offset, const char *domain) noexcept nogil:
    know(type, offset, domain, LOCKDEP_SRCU)
    know_rwsem(type, offset + <size_t>&(<srcu_struct *>NULL).gp_mutex, b"srcu_struct.gp_mutex")
    know(type, offset + <size_t>&(<srcu_struct *>NULL).cblist + <size_t>&(<rcu_segcblist *>NULL).lock,
         b"srcu_struct.cblist.lock", LOCKDEP_SPIN)


# Context: module import. Every lock of pykmm's structures.
cdef void know_all() noexcept nogil:
    cdef u32 i
    know_rwsem(b"mm_struct", <size_t>&(<mm_struct *>NULL).mmap_sem, b"mm_struct.mmap_sem")
    know(b"mm_struct", <size_t>&(<mm_struct *>NULL).page_table_lock, b"mm_struct.page_table_lock", LOCKDEP_SPIN)
    know(b"mm_struct", <size_t>&(<mm_struct *>NULL).mm_seq.lock, b"mm_struct.mm_seq.lock", LOCKDEP_SPIN)
    know(b"mm_struct", <size_t>&(<mm_struct *>NULL).mm_seq.seqcount, b"mm_struct.mm_seq.seqcount", LOCKDEP_SEQCOUNT)
    # A strategy's write sections hold allocations and rwsems; its readers do not spin.
    know(b"vm_area_struct", <size_t>&(<vm_area_struct *>NULL).vm_sequence, b"vm_area_struct.vm_sequence",
         LOCKDEP_SEQCOUNT, LOCKDEP_SLEEPABLE)
    know(b"page", <size_t>&(<page *>NULL).ptl, b"page.ptl", LOCKDEP_SPIN)
    know_address_space(b"address_space", 0)
    know_address_space(b"file", <size_t>&(<file *>NULL).f_mapping)
    know_rwsem(b"anon_vma", <size_t>&(<anon_vma *>NULL).rwsem, b"anon_vma.rwsem")
    know(b"zone", <size_t>&(<zone *>NULL).lock, b"zone.lock", LOCKDEP_SPIN)
    know(b"TLB", <size_t>&(<tlb_t *>NULL).lock, b"tlb.lock", LOCKDEP_SPIN)
    know(b"kmem_cache", <size_t>&(<kmem_cache *>NULL).lock, b"kmem_cache.lock", LOCKDEP_SPIN)
    know_rcu(b"rcu_state", 0)
    know_srcu(b"srcu_struct", 0, b"srcu")
    know(b"machine", <size_t>&(<machine *>NULL).lock, b"machine.lock", LOCKDEP_SPIN)
    know(b"machine", <size_t>&(<machine *>NULL).zone + <size_t>&(<zone *>NULL).lock, b"zone.lock", LOCKDEP_SPIN)
    for i in range(KMEM_NR):
        know(b"machine", <size_t>&(<machine *>NULL).caches[i].lock, b"kmem_cache.lock", LOCKDEP_SPIN)
    know_rcu(b"machine", <size_t>&(<machine *>NULL).rcu)
    know_srcu(b"machine", <size_t>&(<machine *>NULL).vma_srcu, b"vma_srcu")


know_all()


cdef const lockdep_known_lock *lockdep_known(const char *type, size_t offset) noexcept nogil:
    cdef u32 i
    for i in range(nr_known):
        if table[i].offset == offset and strcmp(table[i].type, type) == 0:
            return &table[i]
    return NULL


cdef int lockdep_known_class(lockdep *ld, const char *type, size_t offset) noexcept nogil:
    cdef const lockdep_known_lock *known = lockdep_known(type, offset)
    if known == NULL:
        return LOCKDEP_UNKNOWN
    return lockdep_class(ld, known.name, <lockdep_kind>known.kind, known.flags)


def known_locks() -> list:
    """The table: (structure, offset in bytes, class, kind) of each known lock.

    kind is one of "spinlock", "rwsem", "seqcount", "irq", "rcu" and "srcu".
    """
    kinds = ("spinlock", "rwsem", "seqcount", "irq", "rcu", "srcu")
    return [((<bytes>table[i].type).decode(), table[i].offset, (<bytes>table[i].name).decode(), kinds[table[i].kind])
            for i in range(nr_known)]


# ---- operations and events --------------------------------------------------------------------------------------------------

cdef const lockdep_report *lockdep_on_lock(lockdep *ld, const lockdep_context *ctx, const void *lock, kmm_lock_op op,
                                           int cls) noexcept nogil:
    if op == KMM_SPIN_LOCK or op == KMM_DOWN_WRITE:
        return lockdep_acquire(ld, ctx, lock, cls, 0, LOCKDEP_EXCLUSIVE, False)
    if op == KMM_SPIN_UNLOCK or op == KMM_UP_READ or op == KMM_UP_WRITE:
        return lockdep_release(ld, ctx, lock)
    if op == KMM_SPIN_TRYLOCK or op == KMM_DOWN_WRITE_TRYLOCK:
        return lockdep_acquire(ld, ctx, lock, cls, 0, LOCKDEP_EXCLUSIVE, True)
    if op == KMM_DOWNGRADE_WRITE:
        return lockdep_downgrade(ld, ctx, lock)
    return lockdep_acquire(ld, ctx, lock, cls, 0, LOCKDEP_SHARED, op == KMM_DOWN_READ_TRYLOCK)


cdef bint lockdep_event_has_class(kmm_event ev) noexcept nogil:
    return (ev == KMM_EV_SEQ_WRITE_BEGIN or ev == KMM_EV_SEQ_WRITE_END or ev == KMM_EV_SEQ_READ or ev == KMM_EV_RCU_LOCK
            or ev == KMM_EV_SRCU_LOCK or ev == KMM_EV_RCU_SYNC or ev == KMM_EV_SRCU_SYNC)


cdef const lockdep_report *lockdep_on_event(lockdep *ld, const lockdep_context *ctx, kmm_event ev, const void *obj, u64 size,
                                            int cls) noexcept nogil:
    if ev == KMM_EV_SEQ_WRITE_BEGIN:
        if size & KMM_SEQ_COUNTED:
            if cls >= 0:
                ld.classes[cls].flags |= LOCKDEP_COUNTED
            return lockdep_acquire(ld, ctx, obj, cls, <u32>size & ~<u32>KMM_SEQ_COUNTED, LOCKDEP_RECURSIVE, False)
        return lockdep_acquire(ld, ctx, obj, cls, <u32>size, LOCKDEP_EXCLUSIVE, False)
    if ev == KMM_EV_SEQ_WRITE_END:
        if size & KMM_SEQ_COUNTED:
            return lockdep_release_counted(ld, ctx, obj, cls)
        return lockdep_release(ld, ctx, obj)
    if ev == KMM_EV_SEQ_READ:
        return lockdep_sync(ld, ctx, obj, cls, LOCKDEP_RECURSIVE)
    if ev == KMM_EV_RCU_LOCK or ev == KMM_EV_SRCU_LOCK:
        return lockdep_acquire(ld, ctx, obj, cls, 0, LOCKDEP_RECURSIVE, False)
    if ev == KMM_EV_RCU_UNLOCK or ev == KMM_EV_SRCU_UNLOCK:
        return lockdep_release(ld, ctx, obj)
    if ev == KMM_EV_RCU_SYNC or ev == KMM_EV_SRCU_SYNC:
        return lockdep_sync(ld, ctx, obj, cls, LOCKDEP_EXCLUSIVE)
    if ev == KMM_EV_MIGHT_SLEEP:
        return lockdep_might_sleep(ld, ctx, <const char *>obj)
    if ev == KMM_EV_IPI_WAIT:
        return lockdep_ipi_wait(ld, ctx, <const char *>obj)
    if ev == KMM_EV_RCU_ASSERT:
        return lockdep_rcu_held(ld, ctx, <const char *>obj)
    if ev == KMM_EV_SRCU_ASSERT:
        return lockdep_srcu_held(ld, ctx, obj)
    if ev == KMM_EV_IRQS_ON:
        return lockdep_irqs_on(ld, ctx)
    if ev == KMM_EV_LOCK_NESTED:
        lockdep_nested(ld, ctx.cpu, obj, <u32>size)
    return NULL
