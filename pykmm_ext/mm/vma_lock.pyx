# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""include/linux/mmap_lock.h, mm/mmap_lock.c of Linux 6.4 and later: per-VMA locks, the part that both forms share.

A VMA is write-locked while its vm_lock_seq equals its mm's mm_lock_seq. A writer, who holds mmap_sem W, makes them equal
one VMA at a time (vma_start_write(), the strategy's); all of them are unlocked at once when mmap_sem is dropped or
downgraded, by a new mm_lock_seq. So there is no list of what was locked, and locking a VMA twice costs a comparison.

Who runs against whom
    fault, VMA held for reading   no mmap_sem. Range, flags, protection, policy, anon_vma and page tables of the VMA stand
                                  still but for what holders of mmap_sem R may do as well: fill, change and zap entries
                                  under the PTL, set the first anon_vma
    vma_start_write               mmap_sem W; waits for the VMA's readers
    vma_end_write_all             mmap_sem W
    classic fault, MADV_DONTNEED  mmap_sem R: as beside each other
    truncation                    i_mmap_rwsem: as beside classic faults
    lookup (find_vma_rcu)         RCU read section: may find anything that is or was a VMA

What a fault may do without mmap_sem: nothing below handle_mm_fault() looks at other VMAs but anon_vma_prepare(), which
retries (VM_FAULT_RETRY). Page tables of the VMA's range can be populated, since who frees them has write-locked every
VMA that they could serve: munmap frees tables between the neighbours of what it unmaps. File faults are served too: the VMA
keeps its file, and filemap_fault() never drops a lock to wait.

Barrier: the release in vma_end_write_all() pairs with the acquire in is_write_locked_for_reader().

mm_lock_seq is 64 bits wide and does not wrap. (Linux's is an int: a VMA that nobody has locked for 2^31 writers may
look locked.)
"""
from pykmm_ext.kernel.atomic cimport WRITE_ONCE, smp_store_release
from pykmm_ext.kernel.rcu cimport call_rcu, rcu_barrier
from pykmm_ext.kernel.rwsem cimport down_write, downgrade_write, up_write
from pykmm_ext.machine.cpu cimport rcu_head
from pykmm_ext.mm.vma cimport __vm_area_free, vma_of_rcu

cdef const char *counter_names[8]
counter_names[:] = [
    "attempts", "vma_lock_success", "retried", "vma_lock_abort", "vma_lock_retry", "vma_lock_miss", "errors", NULL,
]


# Context: any.
cdef const char **vma_lock_counter_names() noexcept nogil:
    return counter_names


# Context: mmap_sem W. Unlocks every VMA that this holder has locked.
cdef inline void vma_end_write_all(Cpu *cpu, mm_struct *mm) noexcept nogil:
    if unlikely(vma_lock_options(cpu) & VMA_LOCK_UNLOCK_RELAXED):
        WRITE_ONCE(cpu, &mm.mm_lock_seq, mm.mm_lock_seq + 1)
    else:
        smp_store_release(cpu, &mm.mm_lock_seq, mm.mm_lock_seq + 1)  # pairs with is_write_locked_for_reader()


# Context: process, IRQs on, no locks; sleeps. The lock alone: VMAs are write-locked as they are needed.
cdef void vma_lock_mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    down_write(cpu, &mm.mmap_sem)


# Context: mmap_sem W, which it drops.
cdef void vma_lock_mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    vma_end_write_all(cpu, mm)
    up_write(cpu, &mm.mmap_sem)


# Context: mmap_sem W; R afterwards.
cdef void vma_lock_mmap_write_downgrade(Cpu *cpu, mm_struct *mm) noexcept nogil:
    vma_end_write_all(cpu, mm)
    downgrade_write(cpu, &mm.mmap_sem)


# Context: RCU callback: process, IRQs on.
cdef void __free_vma(Cpu *cpu, rcu_head *head) noexcept nogil:
    __vm_area_free(cpu, vma_of_rcu(head))


# Context: mmap_sem W or the mm is dead; the VMA is detached. Lookups may still hold it, and readers that find out.
cdef void vma_lock_free_vma_rcu(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    call_rcu(cpu, &vma.vm_rcu_head, __free_vma)


# Context: process, IRQs on, may sleep, no RCU read section.
cdef void vma_lock_quiesce(Cpu *cpu, machine *m) noexcept nogil:
    rcu_barrier(cpu)
