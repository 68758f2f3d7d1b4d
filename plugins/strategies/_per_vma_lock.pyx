# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""mm/memory.c and include/linux/mm.h of Linux 6.4: faults under a lock of their VMA, an rwsem in each.

The shared half, with who runs against whom, is mm/vma_lock. Here: vm_lock is taken for reading by a fault and for writing by
vma_start_write(), which only stores vm_lock_seq under it: it waits for the readers and turns later ones away.

The lookup is a plain descent of the rbtree under RCU (Linux walks its maple tree). A rotation may hide the VMA from it or
lead it to another one, and it does not ask mm_seq about that: what it finds is locked, and whether it is attached and
covers the address is decided under the lock. Nothing found, or the wrong VMA, is a fault under mmap_sem. So writers of the
tree owe nothing, and no fault waits for one; the price is a needless mmap_sem where a rotation was under way.

Differences from 6.4, all from later kernels
    - File faults are served (6.7), and so are VMAs without anon_vma, up to the point where one is needed (6.6).
    - anon_vma is looked at under the lock (6.5, R14); new VMAs are write-locked before they are linked (6.5, R13); fork
      write-locks the VMAs of the parent (6.5); so does growing a stack (6.5); mm_lock_seq has its release and acquire.
    - A forbidden access is a signal at once (6.8).

Who runs against whom, beyond mm/vma_lock
    vma_start_read        RCU read section; vm_lock by trylock, so a fault waits for nobody
    vma_end_read          if counted, the last access to the VMA: up_read() may look at its waiters after a writer has
                          got in, unmapped and freed the VMA. Hence inside an RCU read section
    free_vma              by RCU

Options make it wrong in one point each (see the scenarios): ``new_vma=unlocked``, ``anon_vma=early``,
``detached=ignored``, ``bulk_unlock=relaxed``.
"""
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_32, READ_ONCE_PTR, WRITE_ONCE, WRITE_ONCE_32, smp_read_barrier_depends,
)
from pykmm_ext.kernel.rcu cimport rcu_read_lock, rcu_read_unlock
from pykmm_ext.kernel.rwsem cimport down_read_trylock_inline, down_write, init_rwsem, up_read_inline, up_write
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, likely, u32, unlikely
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.mm_types cimport VM_FAULT_ERROR, VM_FAULT_RETRY, mm_struct, strategy_ops, vm_area_struct, vm_fault_t
from pykmm_ext.mm.vma cimport find_vma_rcu
from pykmm_ext.mm.vma_lock cimport (
    VMA_LOCK_ABORT, VMA_LOCK_ANON_EARLY, VMA_LOCK_ATTEMPTS, VMA_LOCK_DETACHED, VMA_LOCK_ERRORS, VMA_LOCK_MISS,
    VMA_LOCK_BIAS_UNCHECKED, VMA_LOCK_NEW_UNLOCKED, VMA_LOCK_READERS_BIASED, VMA_LOCK_READERS_COUNT, VMA_LOCK_RETRIED,
    VMA_LOCK_RETRY, VMA_LOCK_SUCCESS, VMA_LOCK_UNLOCK_RELAXED,
    handle_vma_fault, is_vma_write_locked, is_write_locked_for_reader, may_be_write_locked, vma_lock_counter_names,
    vma_lock_free_vma_rcu, vma_lock_mmap_write_downgrade, vma_lock_mmap_write_lock, vma_lock_mmap_write_unlock,
    vma_lock_options, vma_lock_quiesce, vma_begin_bias, vma_end_bias, vma_end_read_uncounted, vma_read_uncounted,
)
from pykmm_ext.strategy cimport Strategy, strategy_parse_options

cdef strategy_ops ops


# ---- the reader's side -----------------------------------------------------------------------------------------------

# Context: RCU read section. True: the VMA is held for reading, by vm_lock or uncounted, and is not write-locked.
cdef inline bint vma_start_read(Cpu *cpu, mm_struct *mm, vm_area_struct *vma, u32 options) noexcept nogil:
    cdef bint others = False
    if unlikely(may_be_write_locked(cpu, mm, vma)):
        return False
    if vma_read_uncounted(cpu, vma, options):
        if likely(not is_write_locked_for_reader(cpu, mm, vma)):
            return True
        vma_end_read_uncounted(cpu, vma)
        return False
    if unlikely(not down_read_trylock_inline(cpu, &vma.vm_lock, &others)):
        return False
    if unlikely(is_write_locked_for_reader(cpu, mm, vma)):
        up_read_inline(cpu, &vma.vm_lock)
        return False
    vma_begin_bias(cpu, vma, others, options)
    return True


# Context: the VMA is held for reading.
cdef inline void vma_end_read(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    if vma_end_read_uncounted(cpu, vma):
        return
    rcu_read_lock(cpu)
    up_read_inline(cpu, &vma.vm_lock)
    rcu_read_unlock(cpu)


# Context: process, nothing held. The VMA that covers `address`, held for reading, or NULL: *reason says why.
cdef inline vm_area_struct *lock_vma_under_rcu(Cpu *cpu, mm_struct *mm, unsigned long address,
                                               u32 *reason) noexcept nogil:
    cdef u32 wrong = vma_lock_options(cpu)
    cdef vm_area_struct *vma
    reason[0] = VMA_LOCK_ABORT
    rcu_read_lock(cpu)
    while True:
        vma = find_vma_rcu(cpu, mm, address)
        if unlikely(vma == NULL):
            break
        smp_read_barrier_depends(cpu)  # what was stored before the VMA was linked is there
        if unlikely(wrong & VMA_LOCK_ANON_EARLY) and READ_ONCE_PTR(cpu, &vma.anon_vma) == NULL:
            break
        if unlikely(not vma_start_read(cpu, mm, vma, wrong)):
            break
        if unlikely(READ_ONCE_32(cpu, &vma.detached)) and not wrong & VMA_LOCK_DETACHED:
            # Unmapped since it was found. Its writer has left, so the next descent does not lead here.
            vma_end_read(cpu, vma)
            reason[0] = VMA_LOCK_MISS
            continue
        if likely(READ_ONCE(cpu, &vma.vm_start) <= address and address < READ_ONCE(cpu, &vma.vm_end)):
            rcu_read_unlock(cpu)
            return vma
        vma_end_read(cpu, vma)
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
        vma_end_read(cpu, vma)
        if likely(not fault & VM_FAULT_RETRY):
            count_strategy(cpu, VMA_LOCK_SUCCESS if likely(not fault & VM_FAULT_ERROR) else VMA_LOCK_ERRORS)
            return fault
        reason = VMA_LOCK_RETRY
    count_strategy(cpu, reason)
    count_strategy(cpu, VMA_LOCK_RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# ---- the writers' side -----------------------------------------------------------------------------------------------

# Context: mmap_sem W, may sleep; no i_mmap_rwsem or anon_vma lock, unless the VMA is a new one: nobody can hold that.
cdef void vma_start_write(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    if is_vma_write_locked(vma):
        return
    if vma.detached:
        if not vma_lock_options(cpu) & VMA_LOCK_NEW_UNLOCKED:
            WRITE_ONCE(cpu, &vma.vm_lock_seq, vma.vm_mm.mm_lock_seq)
        return
    down_write(cpu, &vma.vm_lock)
    vma_end_bias(cpu, vma)
    WRITE_ONCE(cpu, &vma.vm_lock_seq, vma.vm_mm.mm_lock_seq)
    up_write(cpu, &vma.vm_lock)


# Context: mmap_sem W; write-locked, not linked yet.
cdef void vma_mark_attached(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    WRITE_ONCE_32(cpu, &vma.detached, 0)


# Context: mmap_sem W; write-locked, just unlinked. Read under vm_lock by who gets it after the write lock's end.
cdef void vma_mark_detached(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    WRITE_ONCE_32(cpu, &vma.detached, 1)


# Context: nobody else knows the VMA.
cdef void vma_init(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    init_rwsem(&vma.vm_lock)
    vma.vm_lock_seq = <unsigned long>-1
    vma.detached = 1


ops.size = sizeof(strategy_ops)
ops.name = "per_vma_lock"
ops.counter_names = vma_lock_counter_names()
ops.handle_fault = handle_fault
ops.mmap_write_lock = vma_lock_mmap_write_lock
ops.mmap_write_unlock = vma_lock_mmap_write_unlock
ops.mmap_write_downgrade = vma_lock_mmap_write_downgrade
ops.vma_start_write = vma_start_write
ops.vma_mark_attached = vma_mark_attached
ops.vma_mark_detached = vma_mark_detached
ops.free_vma = vma_lock_free_vma_rcu
ops.vma_init = vma_init
ops.quiesce = vma_lock_quiesce
ops.munmap_downgrade = 1

cdef strategy_ops write_ops = ops
write_ops.munmap_downgrade = 0

#: option -> its values; the first is the default, and right (of munmap both are)
OPTIONS = {
    "munmap": ("downgrade", "write"),
    "new_vma": ("locked", "unlocked"),
    "anon_vma": ("locked", "early"),
    "detached": ("checked", "ignored"),
    "bulk_unlock": ("release", "relaxed"),
    "readers": ("adaptive", "count", "biased", "unchecked"),
}
_WRONG = {
    "new_vma": VMA_LOCK_NEW_UNLOCKED, "anon_vma": VMA_LOCK_ANON_EARLY, "detached": VMA_LOCK_DETACHED,
    "bulk_unlock": VMA_LOCK_UNLOCK_RELAXED,
}
#: by the index of the value of ``readers``
_READERS = (
    0, VMA_LOCK_READERS_COUNT, VMA_LOCK_READERS_BIASED, VMA_LOCK_READERS_BIASED | VMA_LOCK_BIAS_UNCHECKED,
)


cdef class PerVMALock(Strategy):
    """Faults under a lock of their VMA (Linux 6.4, corrected): an rwsem in each, all write locks ended by one number.

    :param options: names and values of :data:`OPTIONS`. ValueError for others, with the known ones.
    """

    cdef u32 wrong

    def __cinit__(self, **options: str) -> None:
        self.ops = &ops
        for option, chosen in strategy_parse_options(self, "per_vma_lock", OPTIONS, options).items():
            if option == "readers":
                self.wrong |= <u32>_READERS[chosen]
            elif chosen and option == "munmap":
                self.ops = &write_ops
            elif chosen:
                self.wrong |= <u32>_WRONG[option]
        self.priv = &self.wrong
        self.description = "faults under a lock of their VMA, an rwsem in each (Linux 6.4)"
