# SPDX-License-Identifier: GPL-2.0-only
# include/linux/mmap_lock.h: what the two forms of per-VMA locks share: numbers that mean "write-locked", unlocking all
# VMAs of an mm at once, and the fault under a VMA's lock. Any strategy may cimport it.
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_32, smp_load_acquire, smp_load_acquire_32, smp_store_release, smp_store_release_32, xchg,
)
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, likely, u32, unlikely
from pykmm_ext.mm.memory cimport access_error, handle_mm_fault
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_VMA_LOCK, VM_FAULT_BADACCESS, VM_FAULT_SIGSEGV, machine, machine_of, mm_struct, vm_area_struct,
    vm_fault_t,
)

# Cpu.strategy_count: attempts == vma_lock_success + retried + errors; retried == vma_lock_abort + retry + miss.
cdef enum:
    VMA_LOCK_ATTEMPTS
    VMA_LOCK_SUCCESS    # done under the VMA's lock
    VMA_LOCK_RETRIED
    VMA_LOCK_ABORT      # no VMA there, or it is write-locked
    VMA_LOCK_RETRY      # locked, but the fault needs mmap_sem (an anon_vma is to be made)
    VMA_LOCK_MISS       # as abort, after a VMA was found that had been unmapped meanwhile
    VMA_LOCK_ERRORS     # a signal or no memory, found out under the VMA's lock (Linux: a success)

# The words that strategy_priv points to: how readers hold a VMA, and the ways in which a form may be made wrong, 0 = none.
cdef enum:
    VMA_LOCK_NEW_UNLOCKED = 1       # R13: new VMAs are visible before they are write-locked
    VMA_LOCK_ANON_EARLY = 2         # R14: anon_vma is looked at before the lock is taken, and then relied on
    VMA_LOCK_DETACHED = 4           # R15: a detached VMA is not told from an attached one, or too late
    VMA_LOCK_UNLOCK_RELAXED = 8     # mm_lock_seq is advanced without release
    VMA_LOCK_MM_UNCHECKED = 16      # a VMA that was recycled into another mm is not noticed
    VMA_LOCK_WAKE_PLAIN = 32        # its mm is not kept alive until its writer has been woken
    VMA_LOCK_READERS_COUNT = 64     # every reader is counted, as in Linux
    VMA_LOCK_READERS_BIASED = 128   # no reader is, after the first
    VMA_LOCK_BIAS_UNCHECKED = 256   # vm_read_biased is not looked at again once Cpu.vma_read is written

# Context: any.
cdef inline u32 vma_lock_options(Cpu *cpu) noexcept nogil:
    return (<u32 *>machine_of(cpu).strategy_priv)[0]

# Context: mmap_sem W. Has this holder of mmap_sem write-locked the VMA already?
cdef inline bint is_vma_write_locked(const vm_area_struct *vma) noexcept nogil:
    return vma.vm_lock_seq == vma.vm_mm.mm_lock_seq

# Context: RCU read section, nothing held: a first guess, which may be wrong either way.
cdef inline bint may_be_write_locked(Cpu *cpu, mm_struct *mm, const vm_area_struct *vma) noexcept nogil:
    return READ_ONCE(cpu, &vma.vm_lock_seq) == READ_ONCE(cpu, &mm.mm_lock_seq)

# Context: the VMA is held for reading (vm_lock or a reference): its number stands still. Acquire: pairs with the release
# in vma_end_write_all(). Who sees the number that ended a write lock sees all that was done under it.
cdef inline bint is_write_locked_for_reader(Cpu *cpu, mm_struct *mm, const vm_area_struct *vma) noexcept nogil:
    return READ_ONCE(cpu, &vma.vm_lock_seq) == smp_load_acquire(cpu, &mm.mm_lock_seq)

# Context: RCU read section; the Cpu holds no VMA. True: it holds this one by Cpu.vma_read.
cdef inline bint vma_read_uncounted(Cpu *cpu, vm_area_struct *vma, u32 options) noexcept nogil:
    if likely(not READ_ONCE_32(cpu, &vma.vm_read_biased)):
        return False
    xchg(cpu, &cpu.vma_read, <unsigned long>vma)  # fully ordered: pairs with smp_mb() in vma_end_bias()
    # Acquire: pairs with the release in vma_begin_bias(). It is who set it that has seen the last write lock's end.
    if likely(smp_load_acquire_32(cpu, &vma.vm_read_biased)) or unlikely(options & VMA_LOCK_BIAS_UNCHECKED):
        return True
    smp_store_release(cpu, &cpu.vma_read, 0)
    return False

# Context: any. True: the Cpu held the VMA by Cpu.vma_read, and no longer does.
cdef inline bint vma_end_read_uncounted(Cpu *cpu, const vm_area_struct *vma) noexcept nogil:
    if likely(cpu.vma_read != <unsigned long>vma):
        return False
    smp_store_release(cpu, &cpu.vma_read, 0)  # pairs with the acquire of the wait in vma_end_bias()
    return True

# Context: the VMA is held for reading, counted, and is not write-locked. `others`: there is another such reader.
cdef inline void vma_begin_bias(Cpu *cpu, vm_area_struct *vma, bint others, u32 options) noexcept nogil:
    if unlikely(others or options & VMA_LOCK_READERS_BIASED) and not options & VMA_LOCK_READERS_COUNT:
        smp_store_release_32(cpu, &vma.vm_read_biased, 1)  # pairs with the acquire in vma_read_uncounted()

# Context: mmap_sem W or last user; process, may wait; the VMA is locked for writing: nobody is counted in it, nor will be.
cdef void vma_end_bias(Cpu *cpu, vm_area_struct *vma) noexcept nogil

# Context: the VMA is held for reading and covers `address`; no mmap_sem; may sleep. VM_FAULT_RETRY: it takes mmap_sem.
# As Linux 6.8, a forbidden access is told at once: the flags stand still.
cdef inline vm_fault_t handle_vma_fault(Cpu *cpu, vm_area_struct *vma, unsigned long address, u32 flags) noexcept nogil:
    if unlikely(access_error(vma.vm_flags, flags)):
        return VM_FAULT_SIGSEGV | VM_FAULT_BADACCESS
    if unlikely(vma_lock_options(cpu) & VMA_LOCK_ANON_EARLY):
        return handle_mm_fault(cpu, vma, address, flags)
    return handle_mm_fault(cpu, vma, address, flags | FAULT_FLAG_VMA_LOCK)

# The strategies' counter_names, in the order above; NULL-terminated.
cdef const char **vma_lock_counter_names() noexcept nogil

# Members of strategy_ops; contexts as there.
cdef void vma_lock_mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil
cdef void vma_lock_mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void vma_lock_mmap_write_downgrade(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void vma_lock_free_vma_rcu(Cpu *cpu, vm_area_struct *vma) noexcept nogil
cdef void vma_lock_quiesce(Cpu *cpu, machine *m) noexcept nogil
