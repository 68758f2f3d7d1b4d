# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the hot path free of checks)
"""mm/memory.c with the speculative page fault series (RFC v5, June 2017): faults that take no mmap_sem.

A fault looks its VMA up under SRCU, checks it against its sequence count, walks the page tables with IRQs off, makes
the page ready, and takes the PTL by trylock; if the sequence moved meanwhile it gives up and is repeated under
mmap_sem.

Corrections of the posted series
    - No p4d or pud is allocated with IRQs off: the walk only looks up.
    - The PTE is read inside the IRQ-off walk, not after it: its table may be gone by then.
    - The pmd's value is captured by the walk and compared under the lock: a table that was exchanged is noticed.
    - vm_sequence counts writers. MADV_DONTNEED zaps under mmap_sem held for *reading*, so two zappers of one VMA can
      be inside their sections at once; with a plain seqcount the second begin makes the count even again, and a
      fault believes that nobody is there. Here the count is one of writers (mm/speculative).
    - Reader's barriers and re-checks only where something needs them (see below): the series has more.
    - Flags, permissions, bounds and anon_vma of the VMA are captured before its sequence is checked and used from the
      vm_fault: after the check under the PTL a writer may still split the VMA, change its permissions, or merge it away,
      which takes its anon_vma from it.
    - Fork holds the sections of the VMAs that it write-protects until the parent's TLB is flushed.

Who runs against whom
    speculative fault     SRCU read section; IRQs off for the walk and for taking the PTL
    vma_write_begin/end   mmap_sem W, or R for zapping: any number at once
    tree_write_begin/end  mmap_sem W, mm_seq's lock
    SRCU callback         nobody finds the VMA any more

Barriers
    Those of the sections stand in mm/speculative. A reader has two: behind the first look at vm_sequence, so that what it
    reads next is not older than the count; and in front of the second look, made inside the walk, so that what it read of
    the VMA belongs to that count. Nothing more is needed:

    - What a walk may touch depends on no order of loads. Page tables are freed after vm_sequence has moved and then an
      IPI to this Cpu, or a grace period, has gone by: a walk that begins later finds the count moved, one that began
      before keeps the tables.
    - The entries that it reads are compared under the PTL again.
    - The PTL's acquire orders the look at vm_sequence and pmd that is made under it behind what earlier holders did.

    RB_EMPTY_NODE is asked once, behind the first look: who takes a VMA out of the tree begins a section of it afterwards
    (munmap's zap) or is inside of one (__vma_adjust), so that a later death shows in vm_sequence.
"""
from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, READ_ONCE_DEP, READ_ONCE_PTR
from pykmm_ext.kernel.rbtree cimport RB_EMPTY_NODE
from pykmm_ext.kernel.seqlock cimport raw_read_seqcount, read_seqcount_retry
from pykmm_ext.kernel.spinlock cimport spin_trylock, spin_unlock, spinlock_t
from pykmm_ext.kernel.srcu cimport srcu_read_lock, srcu_read_unlock
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, likely, u32, unlikely
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.memory cimport access_error, handle_pte_fault
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_KILLABLE, FAULT_FLAG_SPECULATIVE, VM_FAULT_ERROR, VM_FAULT_RETRY, VM_GROWSDOWN,
    VM_HUGETLB, VM_PFNMAP, anon_vma, arch_ops, mm_struct, pmd_t, strategy_ops, vm_area_struct, vm_fault, vm_fault_t,
)
from pykmm_ext.mm.mmap cimport find_vma_srcu
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr, pte_offset, table_entry
from pykmm_ext.mm.speculative cimport (
    SPF_ACCESS, SPF_ATTEMPTS, SPF_BOUNDS, SPF_FAULT_FAILED, SPF_NO_ANON_VMA, SPF_NO_PAGE_TABLE, SPF_PTE_CHANGED_VMA,
    SPF_PTL_CONTENDED, SPF_RETRIED, SPF_SPECULATIVE, SPF_UNSUPPORTED, SPF_VMA_CHANGED, SPF_VMA_NOT_FOUND,
    SPF_VMA_SEQ_BUSY, SPF_WRITER_MASK, spf_counter_names, spf_free_vma, spf_quiesce, spf_tree_write_begin,
    spf_tree_write_end, spf_vma_init, spf_vma_write_begin, spf_vma_write_end, walk_begin, walk_end,
)
from pykmm_ext.strategy cimport Strategy, strategy_parse_options

cdef strategy_ops ops


# ---- the reader's side -----------------------------------------------------------------------------------------------

# Context: SRCU read section. No barrier: see the head of the file.
cdef inline bint sequence_moved(Cpu *cpu, const vm_area_struct *vma, u32 seq) noexcept nogil:
    return READ_ONCE_32(cpu, &vma.vm_sequence.sequence) != seq


# Context: IRQs on, SRCU read section, no PTL. True = vmf->ptl held, IRQs on, the VMA and the table as they were when
# the fault looked at them, and vmf->pte valid. The reason of a refusal goes to *vmf->strategy_data.
#
# The first check says that the table has not been freed, and IRQs off keep it so until the second check, made under the
# PTL: from then on zap_pte_range() blocks on the PTL. That the table is still the one of the pmd is looked at under the PTL
# only: a collapse, which takes it away without a section, takes the PTL afterwards. trylock, because a holder of the PTL
# may wait for this CPU to take a flush IPI.
cdef int speculative_lock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef mm_struct *mm = vma.vm_mm
    cdef u32 *reason = <u32 *>vmf.strategy_data
    cdef spinlock_t *ptl
    cdef int ret = 0
    walk_begin(cpu, mm.arch)
    if unlikely(sequence_moved(cpu, vma, vmf.sequence)):
        reason[0] = SPF_PTE_CHANGED_VMA
    else:
        ptl = pte_lockptr(cpu, mm, vmf.orig_pmd)
        if unlikely(not spin_trylock(cpu, ptl)):
            reason[0] = SPF_PTL_CONTENDED
        elif unlikely(sequence_moved(cpu, vma, vmf.sequence)):
            spin_unlock(cpu, ptl)
            reason[0] = SPF_PTE_CHANGED_VMA
        elif unlikely(READ_ONCE(cpu, vmf.pmd) != vmf.orig_pmd):
            spin_unlock(cpu, ptl)
            reason[0] = SPF_NO_PAGE_TABLE
        else:
            vmf.ptl = ptl
            vmf.pte = pte_offset(mm, vmf.orig_pmd, vmf.address)
            ret = 1
    walk_end(cpu, mm.arch)
    return ret


# Context: SRCU read section of the whole attempt; IRQs on. 0 and VM_FAULT_MAJOR: done. Else *reason says why not.
cdef vm_fault_t __handle_speculative_fault(Cpu *cpu, mm_struct *mm, unsigned long address, u32 flags,
                                           u32 *reason) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef vm_fault vmf
    cdef vm_area_struct *vma = find_vma_srcu(cpu, mm, address)
    cdef unsigned long vm_start, vm_end, vm_flags
    cdef unsigned long table = 0
    cdef pmd_t *pmd
    cdef u32 seq
    cdef bint dead
    cdef vm_fault_t ret
    if unlikely(vma == NULL):
        reason[0] = SPF_VMA_NOT_FOUND
        return VM_FAULT_RETRY

    seq = raw_read_seqcount(cpu, &vma.vm_sequence)  # rmb: pairs with smp_wmb() in vma_write_end()
    dead = RB_EMPTY_NODE(cpu, &vma.vm_rb)
    if unlikely(dead):
        reason[0] = SPF_VMA_CHANGED
        return VM_FAULT_RETRY
    if unlikely(seq & SPF_WRITER_MASK):
        reason[0] = SPF_VMA_SEQ_BUSY
        return VM_FAULT_RETRY

    vm_flags = READ_ONCE(cpu, &vma.vm_flags)
    vm_start = READ_ONCE(cpu, &vma.vm_start)
    vm_end = READ_ONCE(cpu, &vma.vm_end)
    if unlikely(address < vm_start or vm_end <= address):
        # Below a stack is not out of bounds yet, but growing it takes mmap_sem.
        reason[0] = SPF_UNSUPPORTED if vm_flags & VM_GROWSDOWN and address < vm_start else SPF_BOUNDS
        return VM_FAULT_RETRY
    if unlikely(vm_flags & (VM_HUGETLB | VM_PFNMAP)):
        reason[0] = SPF_UNSUPPORTED
        return VM_FAULT_RETRY
    if unlikely(access_error(vm_flags, flags)):
        reason[0] = SPF_ACCESS
        return VM_FAULT_RETRY

    vmf.vma = vma
    vmf.vma_flags = vm_flags
    vmf.vma_page_prot = READ_ONCE(cpu, <unsigned long *>&vma.vm_page_prot)
    vmf.vma_start = vm_start
    vmf.vma_end = vm_end
    vmf.anon_vma = <anon_vma *>READ_ONCE_PTR(cpu, &vma.anon_vma)
    vmf.flags = flags
    vmf.sequence = seq
    vmf.address = address & ~((<unsigned long>1 << arch.page_shift) - 1)
    vmf.pgoff = ((vmf.address - vm_start) >> arch.page_shift) + READ_ONCE(cpu, &vma.vm_pgoff)

    # Look up, never allocate: a table instantiated after free_pgtables() would leak. So the first fault below an empty
    # pmd is always a classic one.
    walk_begin(cpu, arch)
    # Only now is it known that what was read belongs together, and that the tables are there.
    if unlikely(read_seqcount_retry(cpu, &vma.vm_sequence, seq)):
        walk_end(cpu, arch)
        reason[0] = SPF_VMA_CHANGED
        return VM_FAULT_RETRY
    pmd = mm_find_pmd(cpu, mm, address)
    if pmd != NULL:
        vmf.orig_pmd = READ_ONCE_DEP(cpu, pmd, 1)
        table = arch.table_descend(vmf.orig_pmd, 1)
    if unlikely(table == 0):
        walk_end(cpu, arch)
        reason[0] = SPF_NO_PAGE_TABLE
        return VM_FAULT_RETRY
    vmf.orig_pte = READ_ONCE_DEP(cpu, table_entry(mm, table, 0, vmf.address), 1)
    walk_end(cpu, arch)

    vmf.pmd = pmd
    vmf.pte = NULL
    vmf.ptl = NULL
    vmf.page = NULL
    vmf.cow_page = NULL
    vmf.strategy_data = reason
    reason[0] = SPF_NO_ANON_VMA  # what a refusal means that does not come from speculative_lock()
    ret = handle_pte_fault(cpu, &vmf)
    if unlikely(ret & VM_FAULT_ERROR):
        reason[0] = SPF_FAULT_FAILED  # mmap_sem finds out whether it is one
    return ret


# Context: process, IRQs on, no locks; may sleep.
cdef vm_fault_t handle_speculative_fault(Cpu *cpu, mm_struct *mm, unsigned long address, u32 flags,
                                         u32 *reason) noexcept nogil:
    cdef vm_fault_t ret
    cdef int idx = srcu_read_lock(cpu, &mm.machine.vma_srcu)
    ret = __handle_speculative_fault(cpu, mm, address,
                                     (flags & ~(FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE)) | FAULT_FLAG_SPECULATIVE,
                                     reason)
    srcu_read_unlock(cpu, &mm.machine.vma_srcu, idx)
    return ret


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef u32 reason = SPF_FAULT_FAILED
    cdef vm_fault_t fault
    count_strategy(cpu, SPF_ATTEMPTS)
    fault = handle_speculative_fault(cpu, mm, address, flags, &reason)
    if likely(not fault & (VM_FAULT_RETRY | VM_FAULT_ERROR)):
        count_strategy(cpu, SPF_SPECULATIVE)
        return fault
    count_strategy(cpu, reason)
    count_strategy(cpu, SPF_RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


ops.size = sizeof(strategy_ops)
ops.name = "spf"
ops.counter_names = spf_counter_names()
ops.handle_fault = handle_fault
ops.pte_map_lock = speculative_lock
ops.pte_spinlock = speculative_lock
ops.vma_write_begin = spf_vma_write_begin
ops.vma_write_end = spf_vma_write_end
ops.tree_write_begin = spf_tree_write_begin
ops.tree_write_end = spf_tree_write_end
ops.free_vma = spf_free_vma
ops.vma_init = spf_vma_init
ops.quiesce = spf_quiesce

cdef strategy_ops downgrade_ops = ops
downgrade_ops.munmap_downgrade = 1

#: option -> its values, the default first
OPTIONS = {
    "munmap": ("write", "downgrade"),
}


cdef class SPF(Strategy):
    """Speculative page faults: SRCU, ``mm_seq`` and ``vm_sequence``; RFC v5 of 2017, corrected.

    :param options: names and values of :data:`OPTIONS`. ValueError for others, with the known ones.
    """

    def __cinit__(self, **options: str) -> None:
        self.ops = &downgrade_ops if strategy_parse_options(self, "spf", OPTIONS, options)["munmap"] else &ops
        self.description = "speculative faults without mmap_sem: SRCU + mm_seq + vm_sequence (RFC v5, corrected)"
