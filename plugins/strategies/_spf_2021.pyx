# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""mm/memory.c and include/linux/mmap_lock.h with the speculative page faults of 2021 (M. Lespinasse): one sequence count.

mm->mmap_seq is odd while mmap_sem is held for writing, and nobody else moves it. A fault reads it; odd: it takes
mmap_sem. It looks its VMA up under RCU and copies it; a count that has not moved since says that the copy is that of a
VMA which was there all the time. The rest of the fault uses the copy. It asks again wherever it is about to rely on what
a holder of mmap_sem might have taken away: page tables, the file, and finally the right to make an entry. It never waits
for a writer.

What a page table that was found is kept by: an RCU read section where tables are freed by RCU (x86-paravirt), IRQs off
where freeing them takes an IPI.

Every decision below is an option; the first value is what is shipped.

======== ======================== ===================================================================================
option   values                   what it decides
======== ======================== ===================================================================================
ptl      trylock, loop, spin      the PTL: try once; try again, outside of the walk where IRQs are off in it; spin inside
                                  of the walk (R1)
walk     rcu, irq                 the walk of page tables: as above; or IRQs off everywhere (R4)
copy     rcu, late                the VMA is copied inside the read section that found it; or looked at after it
recheck  on, before, under, off   mmap_seq before taking the PTL and under it; only one of the two; never (R3, R7)
odd      abort, ignore            a count that is odd at the start: take mmap_sem; or go on
free     rcu, now                 VMAs are freed after a grace period, or at once (R5)
file     rcu, now                 a VMA's reference to its file goes with it after the grace period, or at once
cache    rcu, bare                looking into the page cache: inside a read section that began with a check; or with no
                                  section of its own
munmap   downgrade, write         munmap() zaps and flushes as a reader, as in the kernels that the series was made for; or
                                  as a writer
======== ======================== ===================================================================================

Who runs against whom

========================== ============================ =============================================================
other side                 holds                        what stands between it and a speculative fault
========================== ============================ =============================================================
munmap, mprotect, mremap,  mmap_sem W                   mmap_seq: odd at the start, or moved at a later check. From
brk, fork, mlock, mbind,                                the check under the PTL on: the PTL, which whoever takes away
stack growth, MADV_*                                    or changes entries takes for every table of his range, empty
that changes VMAs or                                    or not. So neither table nor file of an entry that a fault is
collapses tables                                        making can go
munmap that has taken its  mmap_sem R: mmap_seq even    a fault that begins now does not find the VMAs; one that has
VMAs out of the tree                                    found them before sees mmap_seq moved, or is ahead of the zap
                                                        with its PTL
freeing of a VMA, of its   after a grace period         RCU: the lookup and the copy; the look into the page cache,
file                                                    whose section began before the writer did (checked inside)
freeing of page tables     after the writer's flush     the walk: RCU or IRQs off. It starts at the root, so every
                                                        table it comes to was linked after its section began
MADV_DONTNEED, MADV_FREE   mmap_sem R: mmap_seq even    the PTL, and the entry compared under it. No VMA that is in
                                                        the tree changes under R, and no table that it may need goes
classic fault              mmap_sem R                   the same. It populates tables under page_table_lock (a fault
                                                        sees none, or one that is complete) and gives a VMA its
                                                        anon_vma, once: the copy has it or has NULL, and then falls
                                                        back
truncation                 i_mmap_rwsem R, no mmap_sem  a reference to the page; page->mapping under the PTL, which is
                                                        NULL once the page has left its file. If it is not NULL yet,
                                                        the truncation's second round over the mappings comes later,
                                                        takes the PTL and finds the entry. (VMAs leave and enter
                                                        i_mmap, and change their bounds, inside mmap_sem W)
another speculative fault  nothing                      the PTL, and the entry compared under it
hardware walker            nothing                      atomic updates of entries (mm/memory)
========================== ============================ =============================================================

Barriers: smp_wmb() of mmap_seq_write_begin() pairs with smp_rmb() of mmap_seq_read_check(); that of
mmap_seq_write_end() with that of mmap_seq_read_start(). The PTL's acquire comes before the check under it: who changed
entries before this fault has made the count odd before.

mmap_seq does not wrap (64 bits).

A stack that has grown is faulted in under mmap_sem R, to which grow_stack() downgrades: mmap_seq is even by then.
"""
from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_DEP, READ_ONCE_PTR, WRITE_ONCE, kmm_cpu_relax, smp_rmb, smp_wmb
from pykmm_ext.kernel.rcu cimport call_rcu, rcu_barrier, rcu_read_lock, rcu_read_unlock
from pykmm_ext.kernel.rwsem cimport down_write, downgrade_write, up_write
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_trylock, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, likely, rcu_head, u32, unlikely
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.filemap cimport find_get_page, fput
from pykmm_ext.mm.memory cimport access_error, handle_pte_fault
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_KILLABLE, FAULT_FLAG_SPECULATIVE, FAULT_FLAG_WRITE, VM_FAULT_ERROR,
    VM_FAULT_RETRY, VM_HUGETLB, VM_PFNMAP, VM_SHARED, PG_uptodate, anon_vma, arch_ops, machine, machine_of, mm_struct,
    page, strategy_ops, vm_area_struct, vm_fault, vm_fault_t,
)
from pykmm_ext.mm.page_alloc cimport put_page
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr, pte_offset, table_entry
from pykmm_ext.mm.speculative cimport walk_begin_irq, walk_end_irq
from pykmm_ext.mm.vma cimport __vm_area_free, find_vma_rcu, vma_of_rcu
from pykmm_ext.strategy cimport Strategy, strategy_parse_options

# attempts == speculative + the sum of the reasons; retried == the sum of the reasons. Their order is the fault's.
cdef enum:
    SPF_ATTEMPT, SPF_SPECULATIVE, SPF_RETRIED
    SPF_ABORT_ODD                # a writer was there
    SPF_ABORT_UNMAPPED           # no VMA; a stack that has to grow
    SPF_ABORT_VMA_COPY           # a writer came while the VMA was copied
    SPF_ABORT_NO_SPECULATE       # this kind of mapping, or a write to a shared one
    SPF_ABORT_ACCESS_ERROR
    SPF_ABORT_PUD                # no page table above the pmd
    SPF_ABORT_PMD                # none below it
    SPF_ABORT_ANON_VMA           # the first write of a VMA
    SPF_ABORT_FILE_SEQ           # a writer came before the page cache was asked
    SPF_ABORT_PAGE_CACHE         # the page is not in it
    SPF_ABORT_PTE_MAP_LOCK_SEQ1  # a writer came before the PTL was tried
    SPF_ABORT_PTE_MAP_LOCK_PMD   # the page table is another one
    SPF_ABORT_PTE_MAP_LOCK_PTL   # somebody has the PTL
    SPF_ABORT_PTE_MAP_LOCK_SEQ2  # a writer came before the PTL was taken
    SPF_ABORT_FAULT              # SIGBUS or no memory: mmap_sem finds out whether it is so

cdef const char *counter_names[20]
counter_names[:] = [
    "attempts", "speculative", "retried", "odd", "unmapped", "vma_copy", "no_speculate", "access_error", "pud", "pmd",
    "anon_vma", "file_seq", "page_cache", "pte_map_lock_seq1", "pte_map_lock_pmd", "pte_map_lock_ptl",
    "pte_map_lock_seq2", "fault", NULL, NULL,
]

cdef enum:
    PTL_TRYLOCK, PTL_LOOP, PTL_SPIN

# ptl=loop: how often the PTL is tried where spinning on it could deadlock.
cdef enum:
    PTL_TRIES = 8

# Const after the strategy was made; the index of each value in OPTIONS.
cdef struct spf_2021_options:
    u32 ptl
    u32 walk_irq
    u32 copy_late
    u32 recheck_before
    u32 recheck_under
    u32 odd_ignore
    u32 free_now
    u32 file_now
    u32 cache_bare

# One speculative fault; lies on its stack, vmf->strategy_data points to it.
cdef struct attempt:
    u32 reason
    bint walk_rcu            # walks are RCU read sections, IRQs on
    unsigned long seq
    mm_struct *mm
    const spf_2021_options *o

cdef strategy_ops ops


# Context: any; const while the machine lives.
cdef inline const spf_2021_options *options_of(Cpu *cpu) noexcept nogil:
    return <const spf_2021_options *>machine_of(cpu).strategy_priv


# ---- mmap_seq --------------------------------------------------------------------------------------------------------

# Context: any. Odd: a writer is there.
cdef inline unsigned long mmap_seq_read_start(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef unsigned long seq = READ_ONCE(cpu, &mm.mmap_seq)
    smp_rmb(cpu)  # pairs with smp_wmb() in mmap_seq_write_end()
    return seq


# Context: any. False, and the reason noted: a writer came since mmap_seq_read_start().
cdef inline bint mmap_seq_read_check(Cpu *cpu, attempt *a, u32 reason) noexcept nogil:
    smp_rmb(cpu)  # pairs with smp_wmb() in mmap_seq_write_begin()
    if likely(READ_ONCE(cpu, &a.mm.mmap_seq) == a.seq):
        return True
    a.reason = reason
    return False


# Context: mmap_sem W, just taken.
cdef inline void mmap_seq_write_begin(Cpu *cpu, mm_struct *mm) noexcept nogil:
    WRITE_ONCE(cpu, &mm.mmap_seq, mm.mmap_seq + 1)
    smp_wmb(cpu)  # pairs with smp_rmb() in mmap_seq_read_check()


# Context: mmap_sem W, about to be dropped or downgraded.
cdef inline void mmap_seq_write_end(Cpu *cpu, mm_struct *mm) noexcept nogil:
    smp_wmb(cpu)  # pairs with smp_rmb() in mmap_seq_read_start()
    WRITE_ONCE(cpu, &mm.mmap_seq, mm.mmap_seq + 1)


# ---- the reader's side -----------------------------------------------------------------------------------------------

# Context: IRQs on. Page tables that are found from here on stay until the end. With RCU IRQs are left on.
cdef inline void speculative_page_walk_begin(Cpu *cpu, const attempt *a) noexcept nogil:
    if a.walk_rcu:
        rcu_read_lock(cpu)
    elif unlikely(a.o.walk_irq):
        walk_begin_irq(cpu, a.mm.arch)
    else:
        local_irq_disable(cpu)


# Context: as above.
cdef inline void speculative_page_walk_end(Cpu *cpu, const attempt *a) noexcept nogil:
    if a.walk_rcu:
        rcu_read_unlock(cpu)
    elif unlikely(a.o.walk_irq):
        walk_end_irq(cpu, a.mm.arch)
    else:
        local_irq_enable(cpu)


# Context: inside a walk. True = vmf->ptl held, and mmap_seq, looked at under it, has not moved. A trylock, because a
# holder of the PTL may wait for this CPU to take a flush IPI, while its IRQs are off.
cdef inline bint try_map_lock(Cpu *cpu, vm_fault *vmf, attempt *a) noexcept nogil:
    cdef const spf_2021_options *o = a.o
    cdef spinlock_t *ptl
    # The count says that the table is still linked, and the walk keeps it from now on. (That makes the comparison of the
    # pmd, which is the series', redundant in this mm: nobody exchanges a table without mmap_sem W.)
    if likely(o.recheck_before) and unlikely(not mmap_seq_read_check(cpu, a, SPF_ABORT_PTE_MAP_LOCK_SEQ1)):
        return False
    if unlikely(READ_ONCE(cpu, vmf.pmd) != vmf.orig_pmd):
        a.reason = SPF_ABORT_PTE_MAP_LOCK_PMD
        return False
    ptl = pte_lockptr(cpu, a.mm, vmf.orig_pmd)
    if unlikely(o.ptl == <u32>PTL_SPIN or (o.ptl == <u32>PTL_LOOP and a.walk_rcu)):
        spin_lock(cpu, ptl)
    elif unlikely(not spin_trylock(cpu, ptl)):
        a.reason = SPF_ABORT_PTE_MAP_LOCK_PTL
        return False
    # From here on whoever takes entries away waits for the PTL. Who was there before this fault has moved the count.
    if likely(o.recheck_under) and unlikely(not mmap_seq_read_check(cpu, a, SPF_ABORT_PTE_MAP_LOCK_SEQ2)):
        spin_unlock(cpu, ptl)
        return False
    vmf.ptl = ptl
    vmf.pte = pte_offset(a.mm, vmf.orig_pmd, vmf.address)
    return True


# Context: as strategy_ops.pte_map_lock: IRQs on, no section, no PTL.
cdef int pte_map_lock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef attempt *a = <attempt *>vmf.strategy_data
    cdef int tries = PTL_TRIES if unlikely(a.o.ptl == <u32>PTL_LOOP) else 1
    cdef bint locked
    while True:
        speculative_page_walk_begin(cpu, a)
        locked = try_map_lock(cpu, vmf, a)
        speculative_page_walk_end(cpu, a)
        tries -= 1
        if likely(locked) or tries == 0 or a.reason != <u32>SPF_ABORT_PTE_MAP_LOCK_PTL:
            return locked
        kmm_cpu_relax()  # between two walks IPIs come in, so the holder goes on


# Context: as strategy_ops.filemap_fault. The copy of the VMA holds no reference to its file. But if mmap_seq has not
# moved once the section has begun, the VMA itself is there, and gives its reference up after the section at the earliest.
# No page is made here: that may sleep.
cdef page *speculative_filemap_fault(Cpu *cpu, vm_fault *vmf, vm_fault_t *ret) noexcept nogil:
    cdef attempt *a = <attempt *>vmf.strategy_data
    cdef bint bare = a.o.cache_bare
    cdef page *pg = NULL
    if likely(not bare):
        rcu_read_lock(cpu)
    if likely(bare or mmap_seq_read_check(cpu, a, SPF_ABORT_FILE_SEQ)):
        pg = find_get_page(cpu, &vmf.vma.vm_file.f_mapping, vmf.pgoff)
        if pg == NULL:
            a.reason = SPF_ABORT_PAGE_CACHE
    if likely(not bare):
        rcu_read_unlock(cpu)
    if pg != NULL and unlikely(not READ_ONCE(cpu, &pg.flags) & PG_uptodate):
        put_page(cpu, pg)
        pg = NULL
        a.reason = SPF_ABORT_PAGE_CACHE
    if pg == NULL:
        ret[0] = VM_FAULT_RETRY
    return pg


# Context: any; `vma` is a copy that was checked. Read faults, anonymous memory, and COW; writing to a shared mapping
# would call the file system (page_mkwrite).
cdef inline bint vma_can_speculate(const vm_area_struct *vma, u32 flags) noexcept nogil:
    if vma.vm_flags & (VM_HUGETLB | VM_PFNMAP):
        return False
    if vma.vm_ops != NULL and vma.vm_ops.no_fault:
        return False
    return not (flags & FAULT_FLAG_WRITE and vma.vm_flags & VM_SHARED)


# Context: no locks, IRQs on. The VMA of the address, copied: what a fault reads of it. (The first three are const; the
# pointers to what the copy has no right to are NULL.) False: a->reason says why.
# simplified: the series copies the whole structure, which would be a good part of a small fault here.
cdef inline bint copy_vma_rcu(Cpu *cpu, attempt *a, unsigned long address, vm_area_struct *pvma) noexcept nogil:
    cdef bint late = a.o.copy_late
    cdef vm_area_struct *vma
    rcu_read_lock(cpu)
    vma = find_vma_rcu(cpu, a.mm, address)
    if unlikely(vma == NULL or READ_ONCE(cpu, &vma.vm_start) > address):
        rcu_read_unlock(cpu)
        a.reason = SPF_ABORT_UNMAPPED
        return False
    if unlikely(late):
        rcu_read_unlock(cpu)
    pvma.vm_mm = a.mm
    pvma.vm_file = vma.vm_file
    pvma.vm_ops = vma.vm_ops
    pvma.vm_next = NULL
    pvma.vm_prev = NULL
    pvma.anon_vma_chain = NULL
    pvma.vm_policy = NULL
    pvma.strategy_data = NULL
    pvma.vm_start = READ_ONCE(cpu, &vma.vm_start)
    pvma.vm_end = READ_ONCE(cpu, &vma.vm_end)
    pvma.vm_flags = READ_ONCE(cpu, &vma.vm_flags)
    pvma.vm_page_prot = READ_ONCE(cpu, <unsigned long *>&vma.vm_page_prot)
    pvma.vm_pgoff = READ_ONCE(cpu, &vma.vm_pgoff)
    pvma.anon_vma = <anon_vma *>READ_ONCE_PTR(cpu, &vma.anon_vma)
    if likely(not late):
        rcu_read_unlock(cpu)
    # Only now is it known that the parts of the copy belong together, and to a VMA that is mapped.
    return mmap_seq_read_check(cpu, a, SPF_ABORT_VMA_COPY)


# Context: no locks, IRQs on. Fills in pmd, orig_pmd and orig_pte. Looks up, never allocates: a table that is made after
# free_pgtables() would leak. So the first fault below an empty pmd is always a classic one.
cdef inline bint lookup_pte(Cpu *cpu, attempt *a, vm_fault *vmf) noexcept nogil:
    cdef mm_struct *mm = a.mm
    cdef unsigned long table = 0
    speculative_page_walk_begin(cpu, a)
    vmf.pmd = mm_find_pmd(cpu, mm, vmf.address)
    if likely(vmf.pmd != NULL):
        vmf.orig_pmd = READ_ONCE_DEP(cpu, vmf.pmd, 1)
        table = mm.arch.table_descend(vmf.orig_pmd, 1)
    if likely(table != 0):
        vmf.orig_pte = READ_ONCE_DEP(cpu, table_entry(mm, table, 0, vmf.address), 1)
    speculative_page_walk_end(cpu, a)
    if likely(table != 0):
        return True
    a.reason = SPF_ABORT_PUD if vmf.pmd == NULL else SPF_ABORT_PMD
    return False


# Context: as strategy_ops.handle_fault; mmap_seq was even. 0: done. Else a->reason says why not.
cdef vm_fault_t do_handle_mm_fault(Cpu *cpu, unsigned long address, u32 flags, attempt *a) noexcept nogil:
    cdef const arch_ops *arch = a.mm.arch
    cdef vm_area_struct pvma
    cdef vm_fault vmf
    cdef vm_fault_t ret
    if unlikely(not copy_vma_rcu(cpu, a, address, &pvma)):
        return VM_FAULT_RETRY
    if unlikely(not vma_can_speculate(&pvma, flags)):
        a.reason = SPF_ABORT_NO_SPECULATE
        return VM_FAULT_RETRY
    if unlikely(access_error(pvma.vm_flags, flags)):
        a.reason = SPF_ABORT_ACCESS_ERROR
        return VM_FAULT_RETRY
    vmf.vma = &pvma
    vmf.vma_flags = pvma.vm_flags
    vmf.vma_page_prot = pvma.vm_page_prot
    vmf.vma_start = pvma.vm_start
    vmf.vma_end = pvma.vm_end
    vmf.anon_vma = pvma.anon_vma
    vmf.flags = (flags & ~(FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE)) | FAULT_FLAG_SPECULATIVE
    vmf.sequence = <u32>a.seq
    vmf.address = address & ~((<unsigned long>1 << arch.page_shift) - 1)
    vmf.pgoff = ((vmf.address - pvma.vm_start) >> arch.page_shift) + pvma.vm_pgoff
    vmf.pte = NULL
    vmf.ptl = NULL
    vmf.page = NULL
    vmf.cow_page = NULL
    vmf.strategy_data = a
    if unlikely(not lookup_pte(cpu, a, &vmf)):
        return VM_FAULT_RETRY
    a.reason = SPF_ABORT_ANON_VMA  # what a refusal means that comes from none of the two functions above
    ret = handle_pte_fault(cpu, &vmf)
    if unlikely(ret & VM_FAULT_ERROR):
        a.reason = SPF_ABORT_FAULT
    return ret


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef attempt a
    cdef vm_fault_t fault
    count_strategy(cpu, SPF_ATTEMPT)
    a.mm = mm
    a.o = options_of(cpu)
    a.walk_rcu = mm.arch.rcu_table_free and not a.o.walk_irq
    a.reason = SPF_ABORT_ODD
    a.seq = mmap_seq_read_start(cpu, mm)
    if likely(not a.seq & 1 or a.o.odd_ignore):
        fault = do_handle_mm_fault(cpu, address, flags, &a)
        if likely(not fault & (VM_FAULT_RETRY | VM_FAULT_ERROR)):
            count_strategy(cpu, SPF_SPECULATIVE)
            return fault
    count_strategy(cpu, a.reason)
    count_strategy(cpu, SPF_RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# ---- the writers' side -----------------------------------------------------------------------------------------------

# Context: as strategy_ops.mmap_write_lock. The range does not matter: there is one count.
cdef void mmap_write_lock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    down_write(cpu, &mm.mmap_sem)
    mmap_seq_write_begin(cpu, mm)


# Context: as strategy_ops.mmap_write_unlock.
cdef void mmap_write_unlock(Cpu *cpu, mm_struct *mm) noexcept nogil:
    mmap_seq_write_end(cpu, mm)
    up_write(cpu, &mm.mmap_sem)


# Context: as strategy_ops.mmap_write_downgrade.
cdef void mmap_write_downgrade(Cpu *cpu, mm_struct *mm) noexcept nogil:
    mmap_seq_write_end(cpu, mm)
    downgrade_write(cpu, &mm.mmap_sem)


# Context: RCU callback: process, IRQs on.
cdef void free_vma_callback(Cpu *cpu, rcu_head *head) noexcept nogil:
    __vm_area_free(cpu, vma_of_rcu(head))


# Context: as above; file=now: the reference to the file is gone already.
cdef void free_vma_without_file(Cpu *cpu, rcu_head *head) noexcept nogil:
    vma_of_rcu(head).vm_file = NULL
    __vm_area_free(cpu, vma_of_rcu(head))


# Context: mmap_sem W or the mm is dead; the VMA is unlinked. Speculative faults may still be copying it, and look into the
# page cache of its file.
cdef void free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    cdef const spf_2021_options *o = options_of(cpu)
    if unlikely(o.free_now):
        __vm_area_free(cpu, vma)
    elif unlikely(o.file_now and vma.vm_file != NULL):
        fput(cpu, vma.vm_file)
        call_rcu(cpu, &vma.vm_rcu_head, free_vma_without_file)
    else:
        call_rcu(cpu, &vma.vm_rcu_head, free_vma_callback)


# Context: process, IRQs on, may sleep, no read section.
cdef void quiesce(Cpu *cpu, machine *m) noexcept nogil:
    rcu_barrier(cpu)


ops.size = sizeof(strategy_ops)
ops.name = "spf-2021"
ops.counter_names = counter_names
ops.handle_fault = handle_fault
ops.pte_map_lock = pte_map_lock
ops.pte_spinlock = pte_map_lock
ops.filemap_fault = speculative_filemap_fault
ops.mmap_write_lock = mmap_write_lock
ops.mmap_write_unlock = mmap_write_unlock
ops.mmap_write_downgrade = mmap_write_downgrade
ops.free_vma = free_vma
ops.quiesce = quiesce
ops.munmap_downgrade = 1

cdef strategy_ops write_ops = ops
write_ops.munmap_downgrade = 0

OPTIONS = {
    "munmap": ("downgrade", "write"),
    "ptl": ("trylock", "loop", "spin"),
    "walk": ("rcu", "irq"),
    "copy": ("rcu", "late"),
    "recheck": ("on", "before", "under", "off"),
    "odd": ("abort", "ignore"),
    "free": ("rcu", "now"),
    "file": ("rcu", "now"),
    "cache": ("rcu", "bare"),
}


cdef class SPF2021(Strategy):
    """Speculative page faults of 2021: one sequence count per mm, the VMA copied, RCU (see the module).

    :param options: names and values of :data:`OPTIONS`, the first value of each is the default. ValueError for others,
        with the known ones.
    """

    cdef spf_2021_options o

    def __cinit__(self, **options: str) -> None:
        cdef dict index = strategy_parse_options(self, "spf-2021", OPTIONS, options)
        self.o.ptl = index["ptl"]
        self.o.walk_irq = index["walk"]
        self.o.copy_late = index["copy"]
        self.o.recheck_before = index["recheck"] in (0, 1)
        self.o.recheck_under = index["recheck"] in (0, 2)
        self.o.odd_ignore = index["odd"]
        self.o.free_now = index["free"]
        self.o.file_now = index["file"]
        self.o.cache_bare = index["cache"]
        self.ops = &write_ops if index["munmap"] else &ops
        self.priv = &self.o
        self.description = "speculative faults of 2021: one sequence count per mm, a copy of the VMA, RCU"
