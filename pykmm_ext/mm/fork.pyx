# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep kernel structures free of Python checks)
"""kernel/fork.c: the life of an mm_struct.

Fork against speculative faults of the parent
    dup_mm() write-protects the parent's private pages and flushes its TLBs once, at the end. Between the two, a thread
    of the parent may still write a page through a stale translation. A copy of that page, made by another thread's
    write fault in that window, would lose the write: it lands in the old page after it was copied. Classic faults are
    kept out by mmap_sem; speculative ones by the VMA's write section, which therefore lasts from before the first
    entry is write-protected until the flush is done, for every VMA that is copied. (RFC v5 has no such section.)
    Sections nest inside i_mmap_rwsem and the anon_vma locks (R2), so all VMAs are copied and linked before the first
    section begins; Linux copies the pages of each VMA with the VMA.
    New pages that a speculative fault puts into empty entries before the section starts are copied like any other;
    none can appear during it.

    Faults under the lock of a VMA are kept out in the same way: every VMA of the parent is write-locked until the parent's
    mmap_sem is dropped (Linux 6.5).
"""
from libc.errno cimport ENOMEM

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE_32, WRITE_ONCE_32, atomic_dec_and_test_32, atomic_inc_32, lock_set_subclass, smp_mb, smp_store_release_32,
)
from pykmm_ext.kernel.rwsem cimport init_rwsem
from pykmm_ext.kernel.seqlock cimport seqlock_init
from pykmm_ext.kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock
from pykmm_ext.machine.cpu cimport likely, u64
from pykmm_ext.machine.region cimport machine_free, machine_zalloc
from pykmm_ext.mm.memory cimport sync_mm_rss
from pykmm_ext.mm.memory_fork cimport copy_page_range
from pykmm_ext.mm.mm_types cimport (
    KMEM_MM, KMM_QUIRK_FORK_NO_SECTION, VM_DONTCOPY, VM_LOCKED, VM_LOCKONFAULT, VM_WIPEONFORK, pfn_to_page,
    vm_area_struct, vma_start_write, vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.mmap cimport exit_mmap, mmap_write_lock, mmap_write_unlock, vm_stat_account
from pykmm_ext.mm.pgtable cimport pgd_alloc, pgd_free
from pykmm_ext.mm.rmap cimport anon_vma_fork
from pykmm_ext.mm.vma cimport __vm_area_free, vm_area_dup, vma_link


# Context: process, IRQs on; nobody uses the mm and it maps nothing. Takes machine->lock.
cdef void __mmdrop(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef machine *m = mm.machine
    if mm.strategy.mm_exit != NULL:
        mm.strategy.mm_exit(cpu, mm)
    pgd_free(cpu, mm)
    spin_lock(cpu, &m.lock)
    if mm.mmlist_prev != NULL:
        mm.mmlist_prev.mmlist_next = mm.mmlist_next
    else:
        m.mmlist = mm.mmlist_next
    if mm.mmlist_next != NULL:
        mm.mmlist_next.mmlist_prev = mm.mmlist_prev
    spin_unlock(cpu, &m.lock)
    machine_free(cpu, m, mm.mm_cpumask)
    kmem_cache_free(cpu, &m.caches[<int>KMEM_MM], mm)


# Context: process, IRQs on; may sleep; takes machine->lock.
cdef mm_struct *mm_alloc(Cpu *cpu, machine *m, int *err) noexcept nogil:
    cdef mm_struct *mm = <mm_struct *>kmem_cache_alloc(cpu, &m.caches[<int>KMEM_MM])
    cdef int ret = -ENOMEM
    if mm == NULL:
        err[0] = -ENOMEM
        return NULL
    mm.machine = m
    mm.arch = m.arch
    mm.strategy = m.strategy
    seqlock_init(&mm.mm_seq)
    init_rwsem(&mm.mmap_sem)
    spin_lock_init(&mm.page_table_lock)
    mm.mm_users = 1
    mm.mm_count = 1
    mm.mmap_base = m.arch.mmap_base
    mm.task_size = m.arch.task_size
    mm.mm_cpumask = <unsigned long *>machine_zalloc(cpu, m, m.cpumask_words * sizeof(unsigned long), 8, b"mm_cpumask")
    if mm.mm_cpumask != NULL:
        ret = pgd_alloc(cpu, mm)
        if ret == 0 and mm.strategy.mm_init != NULL:
            ret = mm.strategy.mm_init(cpu, mm)
            if ret:
                pgd_free(cpu, mm)
    if ret:
        machine_free(cpu, m, mm.mm_cpumask)
        kmem_cache_free(cpu, &m.caches[<int>KMEM_MM], mm)
        err[0] = ret
        return NULL
    spin_lock(cpu, &m.lock)
    mm.id = m.next_mm_id
    m.next_mm_id += 1
    mm.mmlist_prev = NULL
    mm.mmlist_next = m.mmlist
    if m.mmlist != NULL:
        m.mmlist.mmlist_prev = mm
    m.mmlist = mm
    spin_unlock(cpu, &m.lock)
    pfn_to_page(m, mm.pgd >> mm.arch.page_shift).private_ = <unsigned long>mm.id << 8 | (mm.arch.levels - 1)
    # A Cpu's vmacache may remember an mm that lived at this address: no two mms share a sequence number.
    mm.vmacache_seqnum = (<u64>mm.id + 1) << 40
    err[0] = 0
    return mm


cdef void mmget(Cpu *cpu, mm_struct *mm) noexcept nogil:
    atomic_inc_32(cpu, &mm.mm_users)


cdef void mmgrab(Cpu *cpu, mm_struct *mm) noexcept nogil:
    atomic_inc_32(cpu, &mm.mm_count)


cdef void mmdrop(Cpu *cpu, mm_struct *mm) noexcept nogil:
    if atomic_dec_and_test_32(cpu, &mm.mm_count):
        __mmdrop(cpu, mm)


cdef void mmput(Cpu *cpu, mm_struct *mm) noexcept nogil:
    if not atomic_dec_and_test_32(cpu, &mm.mm_users):
        return
    exit_mmap(cpu, mm)
    if cpu.rss_mm == mm:
        sync_mm_rss(cpu)
    mmdrop(cpu, mm)


# Context: both mmap_sems W, no write section. Copies one VMA, without its pages.
# The copy goes behind *prev, which it becomes. 0 or -ENOMEM.
cdef int dup_vma(Cpu *cpu, mm_struct *mm, vm_area_struct *mpnt, vm_area_struct **prev) noexcept nogil:
    cdef vm_area_struct *tmp = vm_area_dup(cpu, mm, mpnt)
    cdef int ret
    if tmp == NULL:
        return -ENOMEM
    tmp.vm_flags &= ~(VM_LOCKED | VM_LOCKONFAULT)
    if not mpnt.vm_flags & VM_WIPEONFORK:
        ret = anon_vma_fork(cpu, tmp, mpnt)
        if ret:
            __vm_area_free(cpu, tmp)
            return ret
    vma_link(cpu, mm, tmp, prev[0])
    prev[0] = tmp
    return 0


# Context: both mmap_sems W; takes no lock that a write section nests in. Copies the pages that must be copied and
# returns with the parent's translations flushed and its sections ended. 0 or -ENOMEM.
cdef int dup_pages(Cpu *cpu, mm_struct *mm, mm_struct *oldmm) noexcept nogil:
    cdef bint sections = not oldmm.machine.quirks & KMM_QUIRK_FORK_NO_SECTION
    cdef vm_area_struct *mpnt = oldmm.mmap
    cdef vm_area_struct *tmp = mm.mmap
    cdef vm_area_struct *begun   # first VMA whose write section has not begun
    cdef bint pins = oldmm.strategy.gup_fast != NULL  # else who pins waits for mmap_sem
    cdef int ret = 0
    if pins:
        # As raw_write_seqcount_begin(): readers never wait, so what is inside may sleep. A full barrier: the count before
        # the looks at reference counts; pairs with the atomic that takes a pin, before read_seqcount_retry() in mm/gup.
        WRITE_ONCE_32(cpu, &oldmm.write_protect_seq.sequence, READ_ONCE_32(cpu, &oldmm.write_protect_seq.sequence) + 1)
        smp_mb(cpu)
    while mpnt != NULL and ret == 0:
        if not mpnt.vm_flags & VM_DONTCOPY:
            # anon_vma is set under mmap_sem only: this holds still until the sections are ended below.
            if mpnt.anon_vma != NULL:
                if sections:
                    vma_write_begin(cpu, mpnt, 0)
                if not mpnt.vm_flags & VM_WIPEONFORK:
                    ret = copy_page_range(cpu, mm, tmp, mpnt)
            tmp = tmp.vm_next
        mpnt = mpnt.vm_next
    begun = mpnt
    # Nobody writes a parent's page that is shared now once this returns; only then may faults copy such pages.
    oldmm.arch.flush_tlb_mm(cpu, oldmm)
    mpnt = oldmm.mmap
    while sections and mpnt != begun:
        if mpnt.anon_vma != NULL and not mpnt.vm_flags & VM_DONTCOPY:
            vma_write_end(cpu, mpnt)
        mpnt = mpnt.vm_next
    if pins:
        # Entries and marks first: pairs with smp_rmb() in raw_read_seqcount() of mm/gup.
        smp_store_release_32(cpu, &oldmm.write_protect_seq.sequence, READ_ONCE_32(cpu, &oldmm.write_protect_seq.sequence) + 1)
    return ret


# Context: process, no locks, may sleep; takes both mmap_sems W (the child's nests: nobody else knows it).
cdef int dup_mmap(Cpu *cpu, mm_struct *mm, mm_struct *oldmm) noexcept nogil:
    cdef unsigned long page_shift = oldmm.arch.page_shift
    cdef vm_area_struct *mpnt
    cdef vm_area_struct *prev = NULL
    cdef int ret = 0
    mmap_write_lock(cpu, oldmm, 0, oldmm.task_size)
    lock_set_subclass(cpu, &mm.mmap_sem, 1)
    mmap_write_lock(cpu, mm, 0, mm.task_size)
    mm.mmap_base = oldmm.mmap_base
    mm.start_brk = oldmm.start_brk
    mm.brk = oldmm.brk
    mm.start_stack = oldmm.start_stack
    mm.total_vm = oldmm.total_vm
    mm.data_vm = oldmm.data_vm
    mm.exec_vm = oldmm.exec_vm
    mm.stack_vm = oldmm.stack_vm
    mpnt = oldmm.mmap
    while mpnt != NULL and ret == 0:
        if likely(not oldmm.machine.quirks & KMM_QUIRK_FORK_NO_SECTION):
            vma_start_write(cpu, mpnt)
        if mpnt.vm_flags & VM_DONTCOPY:
            vm_stat_account(mm, mpnt.vm_flags, -<long>((mpnt.vm_end - mpnt.vm_start) >> page_shift))
        else:
            ret = dup_vma(cpu, mm, mpnt, &prev)
        mpnt = mpnt.vm_next
    if ret == 0:
        ret = dup_pages(cpu, mm, oldmm)
    mmap_write_unlock(cpu, mm)
    mmap_write_unlock(cpu, oldmm)
    return ret


cdef mm_struct *dup_mm(Cpu *cpu, mm_struct *oldmm, int *err) noexcept nogil:
    cdef mm_struct *mm = mm_alloc(cpu, oldmm.machine, err)
    if mm == NULL:
        return NULL
    err[0] = dup_mmap(cpu, mm, oldmm)
    if err[0]:
        mmput(cpu, mm)
        return NULL
    return mm
