# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""include/linux/mmap_lock.h and mm/mmap_lock.c of Linux 6.15: per-VMA locks by one reference count, on type-stable VMAs.

The shared half, with who runs against whom, is mm/vma_lock; what a lookup does and why it does not ask mm_seq stands in
plugins/strategies/_per_vma_lock. Here vm_refcnt is lock and life at once:

    VMA_ATTACHED         in the tree; without it nobody can take it
    + 1 per reader       a fault, or a lookup that will find that it came too late or has the wrong VMA
    + VMA_LOCK_OFFSET    a writer waits for the readers, or is about to store vm_lock_seq: nobody else gets in

Linux's count is 0 without and 1 with a tree, and is taken from 1 up, so by a load and a compare-and-exchange. With a bit
for the tree one addition takes it, and a lookup that came too late takes it back: what two CPUs on one VMA pay for is how
often they fetch its line (docs/explanation/per-vma-locks has the figures).

VMAs are type-stable (SLAB_TYPESAFE_BY_RCU): a VMA that was unmapped is freed and handed out again at once, while lookups
still look at it. So whatever was read before the reference was taken counts for nothing afterwards: the VMA may be
elsewhere, or belong to another mm. The tree of another mm may even lead a descent astray; it ends all the same.

Who runs against whom, beyond mm/vma_lock
    vma_start_read        RCU read section; never waits. A reference to a VMA that is in no tree is taken back as what it has
                          become by then: nothing, or one that the VMA's next life counts
    vma_refcount_put      may be the last thing that keeps the VMA from being freed and recycled. The writer that waits is
                          woken through a word of the mm, not of the VMA. The mm of a fault is alive; that of a VMA which
                          turned out to be another mm's is held by a reference of its own (mmgrab())
    vma_start_write       mmap_sem W: one writer per mm, so one waiter per vma_writer_wait
    vma_mark_detached     mmap_sem W, write-locked: readers are short-lived lookups
    exit_mmap             last user; detaches every VMA: lookups of other mms may have strayed here

Barriers: taking the reference is an acquire and dropping it a release, for the writer that waits; vma_mark_attached()'s
release pairs with that acquire: who gets the reference sees the whole new VMA. It pairs with vma_mark_detached() too: who
finds no VMA_ATTACHED does not find the VMA in the next descent.

Options make it wrong in one point each (see the scenarios): those of per_vma_lock, and ``detached=late`` (bounds are read
before the reference is taken), ``vm_mm=ignored``, ``wake=plain``.
"""
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_32, READ_ONCE_PTR, WRITE_ONCE, atomic_add_return_32, atomic_fetch_add_acquire_32,
    atomic_fetch_add_release_32, cmpxchg_32, kmm_await_futex, kmm_is_not_equal, kmm_wake_32, smp_load_acquire_32,
)
from pykmm_ext.kernel.rcu cimport rcu_read_lock, rcu_read_unlock
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, likely, u32, unlikely
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.fork cimport mmdrop, mmgrab
from pykmm_ext.mm.mm_types cimport (
    VM_FAULT_ERROR, VM_FAULT_RETRY, VMA_ATTACHED, VMA_LOCK_OFFSET, mm_struct, strategy_ops, vm_area_struct, vm_fault_t,
)
from pykmm_ext.mm.vma cimport find_vma_rcu
from pykmm_ext.mm.vma_lock cimport (
    VMA_LOCK_ABORT, VMA_LOCK_ANON_EARLY, VMA_LOCK_ATTEMPTS, VMA_LOCK_DETACHED, VMA_LOCK_ERRORS, VMA_LOCK_MISS,
    VMA_LOCK_MM_UNCHECKED, VMA_LOCK_NEW_UNLOCKED, VMA_LOCK_RETRIED, VMA_LOCK_RETRY, VMA_LOCK_SUCCESS,
    VMA_LOCK_UNLOCK_RELAXED, VMA_LOCK_WAKE_PLAIN, VMA_LOCK_BIAS_UNCHECKED, VMA_LOCK_READERS_BIASED,
    VMA_LOCK_READERS_COUNT, handle_vma_fault, is_vma_write_locked, is_write_locked_for_reader,
    may_be_write_locked, vma_begin_bias, vma_end_bias, vma_end_read_uncounted, vma_read_uncounted,
    vma_lock_counter_names, vma_lock_mmap_write_downgrade, vma_lock_mmap_write_lock,
    vma_lock_mmap_write_unlock, vma_lock_options,
)
from pykmm_ext.strategy cimport Strategy, strategy_parse_options

# What came of vma_start_read().
cdef enum:
    READ_LOCKED
    READ_REFUSED        # write-locked, or another mm's
    READ_DETACHED

cdef strategy_ops ops


# ---- the reader's side -----------------------------------------------------------------------------------------------

# Context: a reference held, any; `mm` is the VMA's and stays alive. The VMA may be anything afterwards.
cdef inline void vma_refcount_put(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil:
    cdef u32 left = atomic_add_return_32(cpu, &vma.vm_refcnt, <u32>-1)
    if unlikely(left & ~VMA_ATTACHED == VMA_LOCK_OFFSET):  # its writer alone
        atomic_add_return_32(cpu, &mm.vma_writer_wait, 1)  # after the count: pairs with wait_for_readers()
        kmm_wake_32(cpu, &mm.vma_writer_wait, 1)


# Context: RCU read section, which it leaves and enters again; a reference to a VMA that is not of the mm it was looked up
# for. The reference has kept its mm from ending so far.
cdef void put_strayed(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef mm_struct *other = <mm_struct *>READ_ONCE_PTR(cpu, &vma.vm_mm)
    rcu_read_unlock(cpu)
    if unlikely(vma_lock_options(cpu) & VMA_LOCK_WAKE_PLAIN):
        vma_refcount_put(cpu, other, vma)
    else:
        mmgrab(cpu, other)
        vma_refcount_put(cpu, other, vma)
        mmdrop(cpu, other)
    rcu_read_lock(cpu)


# Context: as put_strayed(); a reference that was taken while a writer was in or the VMA in no tree.
cdef void put_refused(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef u32 count = smp_load_acquire_32(cpu, &vma.vm_refcnt), seen
    # In no tree, and nobody waits: vm_mm may be anything. The count is no different from what it was without us.
    while not count & (VMA_ATTACHED | VMA_LOCK_OFFSET):
        seen = cmpxchg_32(cpu, &vma.vm_refcnt, count, count - 1)
        if seen == count:
            return
        count = seen
    put_strayed(cpu, vma)  # whoever attached it, or waits, waits for us


# Context: RCU read section, which it may leave for a moment. READ_LOCKED: a reference is held, the VMA is attached, of
# `mm`, and not write-locked.
cdef inline int vma_start_read(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, u32 wrong) noexcept nogil:
    cdef u32 old
    if unlikely(may_be_write_locked(cpu, mm, vma)):
        return READ_REFUSED
    if vma_read_uncounted(cpu, vma, wrong):
        # Whoever takes the VMA off its tree waits for this Cpu first, so it is in one; which one?
        if likely(READ_ONCE_PTR(cpu, &vma.vm_mm) == mm or wrong & VMA_LOCK_MM_UNCHECKED) \
                and likely(not is_write_locked_for_reader(cpu, mm, vma)):
            return READ_LOCKED
        vma_end_read_uncounted(cpu, vma)
        return READ_REFUSED
    old = atomic_fetch_add_acquire_32(cpu, &vma.vm_refcnt, 1)
    if unlikely(old & (VMA_ATTACHED | VMA_LOCK_OFFSET) != VMA_ATTACHED):
        put_refused(cpu, vma)
        return READ_REFUSED if old & VMA_LOCK_OFFSET else READ_DETACHED
    if unlikely(READ_ONCE_PTR(cpu, &vma.vm_mm) != mm) and not wrong & VMA_LOCK_MM_UNCHECKED:
        put_strayed(cpu, vma)
        return READ_REFUSED
    if unlikely(is_write_locked_for_reader(cpu, mm, vma)):
        vma_refcount_put(cpu, mm, vma)
        return READ_REFUSED
    vma_begin_bias(cpu, vma, old != VMA_ATTACHED, wrong)
    return READ_LOCKED


# Context: the VMA is held for reading. It may be anything afterwards.
cdef inline void vma_end_read(Cpu *cpu, mm_struct *mm, vm_area_struct *vma) noexcept nogil:
    if not vma_end_read_uncounted(cpu, vma):
        vma_refcount_put(cpu, mm, vma)


# Context: any lock or reference, or none: then the answer is a guess.
cdef inline bint covers(Cpu *cpu, vm_area_struct *vma, unsigned long address) noexcept nogil:
    return READ_ONCE(cpu, &vma.vm_start) <= address and address < READ_ONCE(cpu, &vma.vm_end)


# Context: process, nothing held. The VMA that covers `address`, with a reference, or NULL: *reason says why.
cdef inline vm_area_struct *lock_vma_under_rcu(Cpu *cpu, mm_struct *mm, unsigned long address,
                                               u32 *reason) noexcept nogil:
    cdef u32 wrong = vma_lock_options(cpu)
    cdef vm_area_struct *vma
    cdef int got
    reason[0] = VMA_LOCK_ABORT
    rcu_read_lock(cpu)
    while True:
        vma = find_vma_rcu(cpu, mm, address)
        if unlikely(vma == NULL):
            break
        if unlikely(wrong):
            if wrong & VMA_LOCK_ANON_EARLY and READ_ONCE_PTR(cpu, &vma.anon_vma) == NULL:
                break
            if wrong & VMA_LOCK_DETACHED and not covers(cpu, vma, address):
                break
        got = vma_start_read(cpu, mm, vma, wrong)
        if unlikely(got == READ_DETACHED):
            reason[0] = VMA_LOCK_MISS  # unmapped since it was found: the next descent does not lead here
            continue
        if unlikely(got == READ_REFUSED):
            break
        if unlikely(wrong & VMA_LOCK_DETACHED) or likely(covers(cpu, vma, address)):
            rcu_read_unlock(cpu)
            return vma
        vma_end_read(cpu, mm, vma)
        break
    rcu_read_unlock(cpu)
    return NULL


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef u32 reason
    cdef vm_fault_t fault
    cdef vm_area_struct *vma
    count_strategy(cpu, VMA_LOCK_ATTEMPTS)
    vma = lock_vma_under_rcu(cpu, mm, address, &reason)
    if likely(vma != NULL):
        fault = handle_vma_fault(cpu, vma, address, flags)
        vma_end_read(cpu, mm, vma)
        if likely(not fault & VM_FAULT_RETRY):
            count_strategy(cpu, VMA_LOCK_SUCCESS if likely(not fault & VM_FAULT_ERROR) else VMA_LOCK_ERRORS)
            return fault
        reason = VMA_LOCK_RETRY
    count_strategy(cpu, reason)
    count_strategy(cpu, VMA_LOCK_RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# ---- the writers' side -----------------------------------------------------------------------------------------------

# Context: mmap_sem W or last user, may sleep; VMA_LOCK_OFFSET is in vm_refcnt. Returns when no reader is.
cdef void wait_for_readers(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef mm_struct *mm = vma.vm_mm
    cdef u32 seen
    while True:
        seen = smp_load_acquire_32(cpu, &mm.vma_writer_wait)  # before the count: readers, the other way round
        if smp_load_acquire_32(cpu, &vma.vm_refcnt) & ~VMA_ATTACHED == VMA_LOCK_OFFSET:
            return
        kmm_await_futex(cpu, &mm.vma_writer_wait, kmm_is_not_equal, seen)


# Context: mmap_sem W or last user, may sleep; a VMA that is not attached yet: does not.
cdef void vma_start_write(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    if is_vma_write_locked(vma):
        return
    if not READ_ONCE_32(cpu, &vma.vm_refcnt) & VMA_ATTACHED:
        # Nobody can get at it.
        if not vma_lock_options(cpu) & VMA_LOCK_NEW_UNLOCKED:
            WRITE_ONCE(cpu, &vma.vm_lock_seq, vma.vm_mm.mm_lock_seq)
        return
    if unlikely(atomic_add_return_32(cpu, &vma.vm_refcnt, VMA_LOCK_OFFSET) != VMA_LOCK_OFFSET | VMA_ATTACHED):
        wait_for_readers(cpu, vma)
    vma_end_bias(cpu, vma)
    WRITE_ONCE(cpu, &vma.vm_lock_seq, vma.vm_mm.mm_lock_seq)
    atomic_add_return_32(cpu, &vma.vm_refcnt, -VMA_LOCK_OFFSET)


# Context: mmap_sem W; write-locked, complete, not linked yet.
cdef void vma_mark_attached(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    atomic_fetch_add_release_32(cpu, &vma.vm_refcnt, VMA_ATTACHED)  # pairs with the acquire in vma_start_read()


# Context: mmap_sem W or last user, may sleep; write-locked, just unlinked. Nobody has a reference afterwards.
cdef void vma_mark_detached(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef u32 old = atomic_add_return_32(cpu, &vma.vm_refcnt, -VMA_ATTACHED)
    cdef u32 seen
    # Left are lookups that have not seen yet that the VMA is write-locked, not theirs, or in no tree.
    while unlikely(old != 0):
        seen = cmpxchg_32(cpu, &vma.vm_refcnt, old, old + VMA_LOCK_OFFSET)
        if seen == old:
            wait_for_readers(cpu, vma)
            atomic_add_return_32(cpu, &vma.vm_refcnt, -VMA_LOCK_OFFSET)
            return
        old = seen


# Context: nobody else knows the VMA by right. Lookups of its former life may look at it and be about to take a reference
# back: vm_refcnt stays.
cdef void vma_init(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    WRITE_ONCE(cpu, &vma.vm_lock_seq, <unsigned long>-1)


ops.size = sizeof(strategy_ops)
ops.name = "per_vma_lock-refcount"
ops.counter_names = vma_lock_counter_names()
ops.handle_fault = handle_fault
ops.mmap_write_lock = vma_lock_mmap_write_lock
ops.mmap_write_unlock = vma_lock_mmap_write_unlock
ops.mmap_write_downgrade = vma_lock_mmap_write_downgrade
ops.vma_start_write = vma_start_write
ops.vma_mark_attached = vma_mark_attached
ops.vma_mark_detached = vma_mark_detached
ops.vma_init = vma_init
ops.vma_typesafe = 1
ops.munmap_downgrade = 1

cdef strategy_ops write_ops = ops
write_ops.munmap_downgrade = 0

#: option -> its values; the first is the default, and right (of munmap both are)
OPTIONS = {
    "munmap": ("downgrade", "write"),
    "new_vma": ("locked", "unlocked"),
    "anon_vma": ("locked", "early"),
    "detached": ("first", "late"),
    "bulk_unlock": ("release", "relaxed"),
    "readers": ("adaptive", "count", "biased", "unchecked"),
    "vm_mm": ("checked", "ignored"),
    "wake": ("grabbed", "plain"),
}
_WRONG = {
    "new_vma": VMA_LOCK_NEW_UNLOCKED, "anon_vma": VMA_LOCK_ANON_EARLY, "detached": VMA_LOCK_DETACHED,
    "bulk_unlock": VMA_LOCK_UNLOCK_RELAXED, "vm_mm": VMA_LOCK_MM_UNCHECKED, "wake": VMA_LOCK_WAKE_PLAIN,
}
#: by the index of the value of ``readers``
_READERS = (
    0, VMA_LOCK_READERS_COUNT, VMA_LOCK_READERS_BIASED, VMA_LOCK_READERS_BIASED | VMA_LOCK_BIAS_UNCHECKED,
)


cdef class PerVMALockRefcount(Strategy):
    """Faults under a lock of their VMA (Linux 6.15): one reference count each, on VMAs that are recycled at once.

    :param options: names and values of :data:`OPTIONS`. ValueError for others, with the known ones.
    """

    cdef u32 wrong

    def __cinit__(self, **options: str) -> None:
        self.ops = &ops
        for option, chosen in strategy_parse_options(self, "per_vma_lock-refcount", OPTIONS, options).items():
            if option == "readers":
                self.wrong |= <u32>_READERS[chosen]
            elif chosen and option == "munmap":
                self.ops = &write_ops
            elif chosen:
                self.wrong |= <u32>_WRONG[option]
        self.priv = &self.wrong
        self.description = "faults under a lock of their VMA, a reference count in each (Linux 6.15)"
