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

Two ways to hold a VMA for reading. A reader is counted, in vm_lock or vm_refcnt. Or it leaves the VMA's address in
Cpu.vma_read, which costs others nothing: CPUs that fault in one VMA at a time wait for the line of its count and for
nothing else. That way is open while vm_read_biased is set. A counted reader that finds another one there sets it; the
next writer, with nobody counted and nobody getting in, clears it and waits until no Cpu has the VMA in its vma_read. So a VMA
that one thread faults in is locked as Linux does it, and a writer looks at other Cpus only where readers have met. The
idea is that of BRAVO (Dice and Kogan, USENIX ATC 2019).

What a fault may do without mmap_sem: nothing below handle_mm_fault() looks at other VMAs but anon_vma_prepare(), which
retries (VM_FAULT_RETRY). Page tables of the VMA's range can be populated, since who frees them has write-locked every
VMA that they could serve: munmap frees tables between the neighbours of what it unmaps. File faults are served too: the VMA
keeps its file, and filemap_fault() never drops a lock to wait.

Barriers: the release in vma_end_write_all() pairs with the acquire in is_write_locked_for_reader(). Of a reader that
writes vma_read and then reads vm_read_biased, and a writer that writes vm_read_biased and then reads vma_read, one at least
sees the other: xchg() in vma_read_uncounted(), smp_mb() in vma_end_bias().

mm_lock_seq is 64 bits wide and does not wrap. (Linux's is an int: a VMA that nobody has locked for 2^31 writers may
look locked.)
"""
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE_32, WRITE_ONCE, WRITE_ONCE_32, kmm_await, kmm_is_not_equal, smp_mb, smp_store_release,
)
from pykmm_ext.kernel.rcu cimport call_rcu, rcu_barrier
from pykmm_ext.kernel.rwsem cimport down_write, downgrade_write, up_write
from pykmm_ext.machine.cpu cimport likely, rcu_head, u64
from pykmm_ext.mm.vma cimport __vm_area_free, vma_of_rcu

cdef const char *counter_names[8]
counter_names[:] = [
    "attempts", "vma_lock_success", "retried", "vma_lock_abort", "vma_lock_retry", "vma_lock_miss", "errors", NULL,
]


# Context: any.
cdef const char **vma_lock_counter_names() noexcept nogil:
    return counter_names


# Context: as in the .pxd. A Cpu that still reads vm_read_biased as 1 has the VMA in vma_read for who looks after this. What
# it did there comes before its release of vma_read, which the wait acquires.
cdef void vma_end_bias(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef u32 i
    if likely(not READ_ONCE_32(cpu, &vma.vm_read_biased)):
        return
    WRITE_ONCE_32(cpu, &vma.vm_read_biased, 0)
    smp_mb(cpu)  # pairs with xchg() in vma_read_uncounted()
    for i in range(m.nr_cpus):
        if m.cpus[i] != cpu:
            kmm_await(cpu, &m.cpus[i].vma_read, kmm_is_not_equal, <u64>vma)


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
