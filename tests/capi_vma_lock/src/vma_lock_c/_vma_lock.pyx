# SPDX-License-Identifier: GPL-2.0-only
# cython: language_level=3
"""The strategy of the tutorial ("Your own strategy") as a C table, function by function."""
from pykmm_ext.kernel.atomic cimport READ_ONCE, atomic_add_return, kmm_await, smp_load_acquire, smp_store_release
from pykmm_ext.kernel.rbtree cimport RB_EMPTY_NODE
from pykmm_ext.kernel.rwsem cimport down_write, up_write
from pykmm_ext.kernel.srcu cimport srcu_read_lock, srcu_read_unlock
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, u64
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.memory cimport access_error, handle_mm_fault
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_VMA_LOCK, VM_FAULT_RETRY, mm_struct, strategy_ops, vm_area_struct, vm_fault_t,
)
from pykmm_ext.mm.speculative cimport spf_free_vma, spf_quiesce, spf_tree_write_begin, spf_tree_write_end
from pykmm_ext.mm.vma cimport find_vma_srcu
from pykmm_ext.strategy cimport Strategy

cdef enum:
    ATTEMPTS
    SUCCESSES
    RETRIED
    NOT_FOUND
    LOCKED
    CHANGED
    UNSUPPORTED
    FAULT = 1
    WRITER = 1 << 16

cdef const char *counter_names[8]
counter_names[:] = ["attempts", "successes", "retried", "not_found", "locked", "changed", "unsupported", NULL]


cdef inline unsigned long *word_of_vma(vm_area_struct *vma) noexcept nogil:
    return <unsigned long *>&vma.strategy_data


cdef inline unsigned long *word_of_mm(mm_struct *mm) noexcept nogil:
    return <unsigned long *>&mm.strategy_data


# Context: SRCU keeps the VMA, and its word counts this fault; may sleep.
cdef vm_fault_t locked_fault(Cpu *cpu, vm_area_struct *vma, unsigned long address, unsigned int flags,
                             int *reason) noexcept nogil:
    reason[0] = CHANGED
    if (RB_EMPTY_NODE(cpu, &vma.vm_rb) or not READ_ONCE(cpu, &vma.vm_start) <= address < READ_ONCE(cpu, &vma.vm_end)
            or access_error(READ_ONCE(cpu, &vma.vm_flags), flags)):
        return VM_FAULT_RETRY
    reason[0] = UNSUPPORTED
    return handle_mm_fault(cpu, vma, address, flags | FAULT_FLAG_VMA_LOCK)


# Context: process, IRQs on, no locks held; may sleep.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef int reason = NOT_FOUND
    cdef vm_fault_t result = VM_FAULT_RETRY
    cdef unsigned long word
    cdef vm_area_struct *vma
    cdef int index
    count_strategy(cpu, ATTEMPTS)
    index = srcu_read_lock(cpu, &mm.machine.vma_srcu)
    vma = find_vma_srcu(cpu, mm, address)
    if vma != NULL:
        reason = LOCKED
        word = atomic_add_return(cpu, word_of_vma(vma), FAULT)
        # The acquire pairs with the release in mmap_write_unlock().
        if word // WRITER != smp_load_acquire(cpu, word_of_mm(mm)):
            result = locked_fault(cpu, vma, address, flags, &reason)
        atomic_add_return(cpu, word_of_vma(vma), <unsigned long>-FAULT)
    srcu_read_unlock(cpu, &mm.machine.vma_srcu, index)
    if not result & VM_FAULT_RETRY:
        count_strategy(cpu, SUCCESSES)
        return result
    count_strategy(cpu, RETRIED)
    count_strategy(cpu, reason)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# Context: any. What vma_start_write() waits for: the faults that are inside have left.
cdef int no_faults(u64 word, u64 arg) noexcept nogil:
    return word % WRITER == 0


# Context: mmap_sem held for writing; may sleep.
cdef void vma_start_write(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef unsigned long now = READ_ONCE(cpu, word_of_mm(vma.vm_mm))
    cdef unsigned long word = READ_ONCE(cpu, word_of_vma(vma))
    if word // WRITER != now:
        atomic_add_return(cpu, word_of_vma(vma), (now - word // WRITER) * WRITER)
        kmm_await(cpu, word_of_vma(vma), no_faults, 0)


# Context: process; may sleep.
cdef void mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    down_write(cpu, &mm.mmap_sem)


# Context: mmap_sem held for writing. Unlocks every VMA; the release pairs with the acquire in handle_fault().
cdef void mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    smp_store_release(cpu, word_of_mm(mm), READ_ONCE(cpu, word_of_mm(mm)) + 1)
    up_write(cpu, &mm.mmap_sem)


cdef strategy_ops ops
ops.size = sizeof(strategy_ops)
ops.name = b"vma-lock-c"
ops.counter_names = counter_names
ops.handle_fault = handle_fault
ops.mmap_write_lock = mmap_write_lock
ops.mmap_write_unlock = mmap_write_unlock
ops.vma_start_write = vma_start_write
ops.tree_write_begin = spf_tree_write_begin
ops.tree_write_end = spf_tree_write_end
ops.free_vma = spf_free_vma
ops.quiesce = spf_quiesce


cdef class VmaLock(Strategy):
    """A reader-writer lock per VMA."""

    def __cinit__(self):
        self.ops = &ops
        self.name = "vma-lock-c"
        self.description = "a reader-writer lock per VMA"
