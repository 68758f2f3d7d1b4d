# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here; the directives keep the fault path free of checks)
"""mm/memory.c with the speculative page fault series exactly as posted (RFC v5, June 2017): kept for study.

Every decision of the series that was discussed, corrected later, or corrects an earlier version is an option, so that
one can go back before a fix or switch one on. The first value is what was posted; *corrected* is what ``fixes=all``
chooses for the options that are not given. Races are those of the scenarios.

======== ========================= ========== ======================================================================
option   values                    corrected  what it decides
======== ========================= ========== ======================================================================
ptl      trylock, spin             trylock    the PTL with IRQs off: try, or spin as before patch 09 (R1)
tables   posted, lookup, alloc     lookup     the walk: look at an entry and then call p4d_alloc/pud_alloc with IRQs
                                              off (patch 08, R9); only look; make missing tables (R3)
free     srcu, now                 srcu       VMAs are freed after an SRCU grace period, or at once (R5)
mm_seq   retry, once               retry      the tree lookup is repeated when the tree changed, or not (R6)
recheck  on, before, off           on         vm_sequence before taking the PTL and under it; only before; never (R7)
pmd      trust, recheck            recheck    the pmd is read anew whenever it is needed, and none means "not yet
                                              populated"; or its value is captured and compared under the PTL (R10)
walk     irq, rcu                  rcu        what protects the walk: IRQs off; also an RCU read section where tables
                                              are freed by RCU (R4)
seq      plain, writers            writers    vm_sequence as a seqcount, or as a count of writers (two zappers)
rmb      after, both               both       read barriers of vma_has_changed(): behind its loads, or on both sides
miss     fallback, sigsegv         fallback   an address that the lookup finds in no VMA: ask again under mmap_sem (as
                                              posted), or believe it. Makes a wrong lookup visible (R6)
======== ========================= ========== ======================================================================

Where the mm around the strategy was corrected, quirks of the machine take it back (include/kmm/quirks.h).

Not as posted: flags, permissions and bounds of the VMA are captured once where the series reads them from the VMA again;
the fault handler itself (mm/memory) is the corrected one.

Who runs against whom
    speculative fault     SRCU read section; IRQs off for the walk and for taking the PTL
    vma_write_begin/end   mmap_sem W; or R for zapping, which with seq=plain is a race between two zappers
    tree_write_begin/end  mmap_sem W, mm_seq's lock
    SRCU callback         nobody finds the VMA any more

Barriers: those that the corrected strategy has, and those of vma_has_changed(), which no fault needs (that is argued
there): rmb=after and rmb=both cannot be told apart.
"""
from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, READ_ONCE_DEP, READ_ONCE_PTR, smp_rmb
from pykmm_ext.kernel.rbtree cimport RB_EMPTY_NODE
from pykmm_ext.kernel.seqlock cimport (
    raw_read_seqcount, read_seqcount_retry, write_seqcount_begin_nested, write_seqcount_end,
)
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_trylock, spin_unlock, spinlock_t
from pykmm_ext.kernel.srcu cimport srcu_read_lock, srcu_read_unlock
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, likely, u32
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.memory cimport access_error, handle_pte_fault
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_KILLABLE, FAULT_FLAG_SPECULATIVE, VM_FAULT_BADMAP, VM_FAULT_ERROR,
    VM_FAULT_RETRY, VM_FAULT_SIGSEGV, VM_GROWSDOWN, VM_HUGETLB, VM_PFNMAP, anon_vma, arch_ops, machine_of, mm_struct,
    pmd_t, strategy_ops, vm_area_struct, vm_fault, vm_fault_t,
)
from pykmm_ext.mm.pgtable cimport mm_alloc_pmd, populate_entry, pte_alloc, pte_lockptr, pte_offset, table_entry
from pykmm_ext.mm.speculative cimport (
    SPF_ACCESS, SPF_ATTEMPTS, SPF_BOUNDS, SPF_FAULT_FAILED, SPF_NO_ANON_VMA, SPF_NO_PAGE_TABLE, SPF_PTE_CHANGED_VMA,
    SPF_PTL_CONTENDED, SPF_RETRIED, SPF_SPECULATIVE, SPF_UNSUPPORTED, SPF_VMA_CHANGED, SPF_VMA_NOT_FOUND,
    SPF_VMA_SEQ_BUSY, SPF_WRITER_MASK, spf_counter_names, spf_free_vma, spf_quiesce, spf_tree_write_begin,
    spf_tree_write_end, spf_vma_init, spf_vma_write_begin, spf_vma_write_end, walk_begin, walk_begin_irq, walk_end,
    walk_end_irq,
)
from pykmm_ext.mm.vma cimport __find_vma_srcu, __vm_area_free, find_vma_srcu
from pykmm_ext.strategy cimport Strategy, strategy_parse_options

cdef enum:
    TABLES_POSTED, TABLES_LOOKUP, TABLES_ALLOC

cdef enum:
    RECHECK_ON, RECHECK_BEFORE, RECHECK_OFF

# Const after the strategy was made; the index of each value in OPTIONS.
cdef struct rfc5_options:
    u32 ptl_spin
    u32 tables
    u32 free_now
    u32 once
    u32 recheck
    u32 pmd_recheck
    u32 walk_rcu
    u32 seq_writers
    u32 rmb_both
    u32 miss_sigsegv

# One speculative fault; lies on its stack, vmf->strategy_data points to it. The VMA itself may be gone.
cdef struct attempt:
    u32 reason
    mm_struct *mm
    const rfc5_options *o

cdef strategy_ops ops


# Context: any; const while the machine lives.
cdef inline const rfc5_options *options_of(Cpu *cpu) noexcept nogil:
    return <const rfc5_options *>machine_of(cpu).strategy_priv


# ---- the reader's side -----------------------------------------------------------------------------------------------

# Context: SRCU read section, IRQs on. A page walk begins; walk=irq: with IRQs off alone, where tables may be RCU-freed.
cdef inline void begin(Cpu *cpu, const rfc5_options *o, const arch_ops *arch) noexcept nogil:
    if o.walk_rcu:
        walk_begin(cpu, arch)
    else:
        walk_begin_irq(cpu, arch)


# Context: as begin() has left it.
cdef inline void end(Cpu *cpu, const rfc5_options *o, const arch_ops *arch) noexcept nogil:
    if o.walk_rcu:
        walk_end(cpu, arch)
    else:
        walk_end_irq(cpu, arch)


# Context: SRCU read section. vma_has_changed() of patch 07.
cdef bint has_changed(Cpu *cpu, vm_area_struct *vma, u32 sequence, const rfc5_options *o) noexcept nogil:
    cdef bint dead
    cdef u32 seq
    if o.rmb_both:
        smp_rmb(cpu)  # pairs with the write barriers of the sections, like the next
    dead = RB_EMPTY_NODE(cpu, &vma.vm_rb)
    seq = READ_ONCE_32(cpu, &vma.vm_sequence.sequence)
    smp_rmb(cpu)
    return dead or seq != sequence


# Context: IRQs on, SRCU read section, no PTL. pte_map_lock() and pte_spinlock() of patches 08 and 09: True = vmf->ptl
# held, IRQs on, vmf->pte valid.
cdef int rfc5_lock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef attempt *a = <attempt *>vmf.strategy_data
    cdef const rfc5_options *o = a.o
    cdef mm_struct *mm = a.mm
    cdef spinlock_t *ptl = NULL
    cdef pmd_t pmdval
    cdef u32 reason = 0
    begin(cpu, o, mm.arch)
    if o.recheck != <u32>RECHECK_OFF and has_changed(cpu, vmf.vma, vmf.sequence, o):
        reason = SPF_PTE_CHANGED_VMA
    else:
        pmdval = READ_ONCE(cpu, vmf.pmd)
        if o.pmd_recheck and pmdval != vmf.orig_pmd:
            reason = SPF_NO_PAGE_TABLE
        else:
            # Of whatever the pmd holds now. pmd=trust: nothing has asked whether that is a table.
            ptl = pte_lockptr(cpu, mm, pmdval)
            if o.ptl_spin:
                spin_lock(cpu, ptl)
            elif not spin_trylock(cpu, ptl):
                reason = SPF_PTL_CONTENDED
                ptl = NULL
    if ptl != NULL:
        if o.recheck == <u32>RECHECK_ON and has_changed(cpu, vmf.vma, vmf.sequence, o):
            reason = SPF_PTE_CHANGED_VMA
        elif o.pmd_recheck and READ_ONCE(cpu, vmf.pmd) != vmf.orig_pmd:
            reason = SPF_NO_PAGE_TABLE
        if reason:
            spin_unlock(cpu, ptl)
    if reason == 0:
        vmf.ptl = ptl
        vmf.pte = pte_offset(mm, pmdval, vmf.address)
    else:
        a.reason = reason
    end(cpu, o, mm.arch)
    return reason == 0


# Context: inside begin() and end(). The level-1 entry for the address, or NULL. With tables=posted each level is looked
# at and then handed to the allocating function of the next, which looks again: it allocates, with IRQs off, only where
# the entry went between the two looks. (The last, pmd_offset(), does not allocate.)
cdef pmd_t *walk(Cpu *cpu, mm_struct *mm, unsigned long address, const rfc5_options *o) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long table = mm.pgd
    cdef unsigned long *slot
    cdef unsigned long entry
    cdef u32 level = arch.levels - 1
    cdef u32 dep = 0
    while level > 1:
        slot = table_entry(mm, table, level, address)
        entry = READ_ONCE_DEP(cpu, slot, dep)
        if arch.table_none(entry) or arch.table_bad(entry):
            return NULL
        if o.tables == <u32>TABLES_POSTED and level > 2:
            entry = READ_ONCE(cpu, slot)
            if arch.table_none(entry):
                if populate_entry(cpu, mm, slot, level):
                    return NULL
                entry = READ_ONCE(cpu, slot)
                if arch.table_none(entry):
                    return NULL
        table = arch.table_paddr(entry)
        dep = 1
        level -= 1
    return table_entry(mm, table, 1, address)


# Context: SRCU read section, IRQs on, the VMA checked. Fills in pmd, orig_pmd and orig_pte. False: no page table.
cdef bint lookup_pte(Cpu *cpu, mm_struct *mm, vm_fault *vmf, const rfc5_options *o) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef pmd_t *pmd
    cdef pmd_t pmdval = 0
    cdef bint found
    if o.tables == <u32>TABLES_ALLOC:
        # Nothing keeps free_pgtables() from having been here already: then the tables are nobody's.
        pmd = mm_alloc_pmd(cpu, mm, vmf.address)
        if pmd == NULL or pte_alloc(cpu, mm, pmd):
            return False
    begin(cpu, o, arch)
    pmd = walk(cpu, mm, vmf.address, o)
    if pmd != NULL:
        pmdval = READ_ONCE_DEP(cpu, pmd, 1)
    found = (pmd != NULL and not arch.table_none(pmdval) and not arch.table_bad(pmdval)
             and not arch.table_leaf(pmdval, 1))
    vmf.pmd = pmd
    vmf.orig_pmd = pmdval
    if found and o.pmd_recheck:
        vmf.orig_pte = READ_ONCE_DEP(cpu, pte_offset(mm, pmdval, vmf.address), 1)
    end(cpu, o, arch)
    if not found or o.pmd_recheck:
        return found
    # handle_pte_fault() of 4.12 looks again, with IRQs on: a pmd that is none by now is one that nobody has populated
    # yet, so the table is made; anything else points to a table that is still there.
    pmdval = READ_ONCE(cpu, pmd)
    if arch.table_none(pmdval):
        if pte_alloc(cpu, mm, pmd):
            return False
        vmf.orig_pmd = READ_ONCE(cpu, pmd)
        vmf.orig_pte = 0
        return not arch.table_none(vmf.orig_pmd)
    vmf.orig_pmd = pmdval
    vmf.orig_pte = READ_ONCE_DEP(cpu, pte_offset(mm, pmdval, vmf.address), 1)
    return True


# Context: SRCU read section of the whole attempt; IRQs on. 0 and VM_FAULT_MAJOR: done. Else a->reason says why not.
cdef vm_fault_t __handle_speculative_fault(Cpu *cpu, unsigned long address, u32 flags, attempt *a) noexcept nogil:
    cdef mm_struct *mm = a.mm
    cdef const rfc5_options *o = a.o
    cdef const arch_ops *arch = mm.arch
    cdef vm_fault vmf
    cdef vm_area_struct *vma
    cdef bint dead
    cdef vm_fault_t ret
    if o.once:
        vma = __find_vma_srcu(cpu, mm, address)
    else:
        vma = find_vma_srcu(cpu, mm, address)
    a.reason = SPF_VMA_NOT_FOUND
    if vma == NULL:
        return VM_FAULT_SIGSEGV | VM_FAULT_BADMAP if o.miss_sigsegv else VM_FAULT_RETRY

    dead = RB_EMPTY_NODE(cpu, &vma.vm_rb)
    vmf.sequence = raw_read_seqcount(cpu, &vma.vm_sequence)  # rmb: pairs with the wmb that ends a section
    if dead:
        a.reason = SPF_VMA_CHANGED
        return VM_FAULT_RETRY
    if vmf.sequence & (SPF_WRITER_MASK if o.seq_writers else 1):
        a.reason = SPF_VMA_SEQ_BUSY
        return VM_FAULT_RETRY

    vmf.vma_flags = READ_ONCE(cpu, &vma.vm_flags)
    vmf.vma_start = READ_ONCE(cpu, &vma.vm_start)
    vmf.vma_end = READ_ONCE(cpu, &vma.vm_end)
    if address < vmf.vma_start or vmf.vma_end <= address:
        a.reason = SPF_UNSUPPORTED if vmf.vma_flags & VM_GROWSDOWN and address < vmf.vma_start else SPF_BOUNDS
        if o.miss_sigsegv and a.reason == <u32>SPF_BOUNDS:
            return VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
        return VM_FAULT_RETRY
    if vmf.vma_flags & (VM_HUGETLB | VM_PFNMAP):
        a.reason = SPF_UNSUPPORTED
        return VM_FAULT_RETRY
    if access_error(vmf.vma_flags, flags):
        a.reason = SPF_ACCESS
        return VM_FAULT_RETRY
    if read_seqcount_retry(cpu, &vma.vm_sequence, vmf.sequence):
        a.reason = SPF_VMA_CHANGED
        return VM_FAULT_RETRY

    vmf.vma = vma
    vmf.flags = flags
    vmf.address = address & ~((<unsigned long>1 << arch.page_shift) - 1)
    if not lookup_pte(cpu, mm, &vmf, o):
        a.reason = SPF_NO_PAGE_TABLE
        return VM_FAULT_RETRY
    vmf.anon_vma = <anon_vma *>READ_ONCE_PTR(cpu, &vma.anon_vma)
    vmf.vma_page_prot = READ_ONCE(cpu, <unsigned long *>&vma.vm_page_prot)
    vmf.pgoff = ((vmf.address - vmf.vma_start) >> arch.page_shift) + READ_ONCE(cpu, &vma.vm_pgoff)
    vmf.pte = NULL
    vmf.ptl = NULL
    vmf.page = NULL
    vmf.cow_page = NULL
    vmf.strategy_data = a
    a.reason = SPF_NO_ANON_VMA  # what a refusal means that does not come from rfc5_lock()
    ret = handle_pte_fault(cpu, &vmf)
    if ret & VM_FAULT_ERROR:
        a.reason = SPF_FAULT_FAILED  # mmap_sem finds out whether it is one
        ret = VM_FAULT_RETRY
    return ret


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef attempt a
    cdef vm_fault_t fault
    cdef int idx
    count_strategy(cpu, SPF_ATTEMPTS)
    a.reason = SPF_FAULT_FAILED
    a.mm = mm
    a.o = options_of(cpu)
    idx = srcu_read_lock(cpu, &mm.machine.vma_srcu)
    fault = __handle_speculative_fault(
        cpu, address, (flags & ~(FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE)) | FAULT_FLAG_SPECULATIVE, &a)
    srcu_read_unlock(cpu, &mm.machine.vma_srcu, idx)
    if likely(not fault & VM_FAULT_RETRY):
        count_strategy(cpu, SPF_SPECULATIVE)    # an answer, also where it is an error (miss=sigsegv)
        return fault
    count_strategy(cpu, a.reason)
    count_strategy(cpu, SPF_RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# ---- the writers' side -----------------------------------------------------------------------------------------------

# Context: mmap_sem W; or R for zapping: with seq=plain nothing then excludes another writer, as posted.
cdef void vma_write_begin(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil:
    if options_of(cpu).seq_writers:
        spf_vma_write_begin(cpu, vma, subclass)
    else:
        write_seqcount_begin_nested(cpu, &vma.vm_sequence, subclass)


# Context: as vma_write_begin().
cdef void vma_write_end(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    if options_of(cpu).seq_writers:
        spf_vma_write_end(cpu, vma)
    else:
        write_seqcount_end(cpu, &vma.vm_sequence)


# Context: mmap_sem W or the mm is dead; the VMA is unlinked. free=now: speculative faults may still hold it.
cdef void free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    if options_of(cpu).free_now:
        __vm_area_free(cpu, vma)
    else:
        spf_free_vma(cpu, vma)


ops.size = sizeof(strategy_ops)
ops.name = "spf-rfc5"
ops.counter_names = spf_counter_names()
ops.handle_fault = handle_fault
ops.pte_map_lock = rfc5_lock
ops.pte_spinlock = rfc5_lock
ops.vma_write_begin = vma_write_begin
ops.vma_write_end = vma_write_end
ops.tree_write_begin = spf_tree_write_begin
ops.tree_write_end = spf_tree_write_end
ops.free_vma = free_vma
ops.vma_init = spf_vma_init
ops.quiesce = spf_quiesce

OPTIONS = {
    "fixes": ("posted", "all"),
    "ptl": ("trylock", "spin"),
    "tables": ("posted", "lookup", "alloc"),
    "free": ("srcu", "now"),
    "mm_seq": ("retry", "once"),
    "recheck": ("on", "before", "off"),
    "pmd": ("trust", "recheck"),
    "walk": ("irq", "rcu"),
    "seq": ("plain", "writers"),
    "rmb": ("after", "both"),
    "miss": ("fallback", "sigsegv"),
}
_CORRECTED = {"tables": "lookup", "pmd": "recheck", "walk": "rcu", "seq": "writers", "rmb": "both"}


cdef class SPFRFC5(Strategy):
    """Speculative page faults as posted in June 2017, with an option for every decision (see the module).

    :param options: names and values of :data:`OPTIONS`; ``fixes="all"`` corrects whatever is not given.
        ValueError for others, with the known ones.
    """

    cdef rfc5_options o

    def __cinit__(self, **options: str) -> None:
        cdef dict index = strategy_parse_options(self, "spf-rfc5", OPTIONS, options)
        if index["fixes"]:
            for option, value in _CORRECTED.items():
                if option not in options:
                    index[option] = OPTIONS[option].index(value)
        self.o.ptl_spin = index["ptl"]
        self.o.tables = index["tables"]
        self.o.free_now = index["free"]
        self.o.once = index["mm_seq"]
        self.o.recheck = index["recheck"]
        self.o.pmd_recheck = index["pmd"]
        self.o.walk_rcu = index["walk"]
        self.o.seq_writers = index["seq"]
        self.o.rmb_both = index["rmb"]
        self.o.miss_sigsegv = index["miss"]
        self.ops = &ops
        self.priv = &self.o
        self.description = "speculative faults exactly as posted in RFC v5, with options; for study"
