# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays here but tables of names)
"""Strategies and arches that are wrong on purpose, each in one way: what the conformance kit has to find. Not part of
the API.
"""
from libc.string cimport memcpy

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.kernel.rwsem cimport down_read_trylock
from pykmm_ext.machine.cpu cimport Cpu, count_strategy, u32
from pykmm_ext.mm.fault cimport handle_fault_mmap_sem
from pykmm_ext.mm.memory cimport access_error, handle_mm_fault
from pykmm_ext.mm.mm_types cimport (
    VM_FAULT_BADACCESS, VM_FAULT_BADMAP, VM_FAULT_ERROR, VM_FAULT_SIGSEGV, VM_SHARED, arch_ops, mm_struct, mmu_gather, pgprot_t,
    pmd_t, pte_t, strategy_ops, vm_area_struct, vm_fault_t,
)
from pykmm_ext.mm.mmap cimport find_vma, mmap_read_lock, mmap_read_unlock
from pykmm_ext.strategy cimport Strategy

cdef enum:
    ATTEMPTS
    SUCCESSES
    RETRIED
    CONTENDED

cdef const char *names[5]
names[:] = ["attempts", "successes", "retried", "contended", NULL]
cdef const char *twice[5]
twice[:] = ["attempts", "successes", "retried", "retried", NULL]
cdef const char *too_few[3]
too_few[:] = ["attempts", "successes", NULL]


# Context: as strategy_ops.handle_fault, of all of these. Right, but for the counters of errors: none.
cdef vm_fault_t trying(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_area_struct *vma
    cdef vm_fault_t fault
    count_strategy(cpu, ATTEMPTS)
    if down_read_trylock(cpu, &mm.mmap_sem):
        vma = find_vma(cpu, mm, address)
        if vma != NULL and vma.vm_start <= address and not access_error(vma.vm_flags, flags):
            fault = handle_mm_fault(cpu, vma, address, flags)
            mmap_read_unlock(cpu, mm)
            if not fault & VM_FAULT_ERROR:
                count_strategy(cpu, SUCCESSES)
                return fault
        else:
            mmap_read_unlock(cpu, mm)
    count_strategy(cpu, CONTENDED)
    count_strategy(cpu, RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# The VMA was found under mmap_sem, and is used without it.
cdef vm_fault_t no_recheck(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_area_struct *vma
    cdef vm_fault_t fault
    count_strategy(cpu, ATTEMPTS)
    mmap_read_lock(cpu, mm)
    vma = find_vma(cpu, mm, address)
    mmap_read_unlock(cpu, mm)
    if vma != NULL and vma.vm_start <= address and not access_error(vma.vm_flags, flags):
        fault = handle_mm_fault(cpu, vma, address, flags)
        if not fault & VM_FAULT_ERROR:
            count_strategy(cpu, SUCCESSES)
            return fault
    count_strategy(cpu, CONTENDED)
    count_strategy(cpu, RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# Counts faults that fell back as successes, too.
cdef vm_fault_t lying(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_area_struct *vma
    cdef vm_fault_t fault
    count_strategy(cpu, ATTEMPTS)
    count_strategy(cpu, SUCCESSES)
    if down_read_trylock(cpu, &mm.mmap_sem):
        vma = find_vma(cpu, mm, address)
        if vma != NULL and vma.vm_start <= address and not access_error(vma.vm_flags, flags):
            fault = handle_mm_fault(cpu, vma, address, flags)
            mmap_read_unlock(cpu, mm)
            if not fault & VM_FAULT_ERROR:
                return fault
        else:
            mmap_read_unlock(cpu, mm)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# Counts some attempts only.
cdef vm_fault_t forgetful(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    if address >> mm.arch.page_shift & 1:
        count_strategy(cpu, ATTEMPTS)
        count_strategy(cpu, SUCCESSES)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# A write to what may only be read is let through: the page is faulted in, and the CPU faults again, for ever.
cdef vm_fault_t any_access(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_area_struct *vma
    cdef vm_fault_t fault = VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
    count_strategy(cpu, ATTEMPTS)
    mmap_read_lock(cpu, mm)
    vma = find_vma(cpu, mm, address)
    if vma != NULL and vma.vm_start <= address:
        fault = handle_mm_fault(cpu, vma, address, flags)
    mmap_read_unlock(cpu, mm)
    if not fault & VM_FAULT_ERROR:
        count_strategy(cpu, SUCCESSES)
        return fault
    count_strategy(cpu, CONTENDED)
    count_strategy(cpu, RETRIED)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# Says that nothing is mapped where something is that may not be accessed so.
cdef vm_fault_t wrong_code(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t fault = trying(cpu, mm, address, flags)
    if fault & VM_FAULT_BADACCESS:
        return VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
    return fault


# Where mmap_sem is taken, it does not wait: the access fails.
cdef vm_fault_t no_retry(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    if not down_read_trylock(cpu, &mm.mmap_sem):
        return VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
    count_strategy(cpu, ATTEMPTS)
    mmap_read_unlock(cpu, mm)
    count_strategy(cpu, SUCCESSES)
    return handle_fault_mmap_sem(cpu, mm, address, flags)


# Every fault is "done" and nothing happens.
cdef vm_fault_t nothing(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    count_strategy(cpu, ATTEMPTS)
    count_strategy(cpu, SUCCESSES)
    return 0


# mmap_sem stays held after an access that fails.
cdef vm_fault_t keeps_lock(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef vm_fault_t fault = trying(cpu, mm, address, flags)
    if fault & VM_FAULT_ERROR:
        mmap_read_lock(cpu, mm)
    return fault


# Context: as strategy_ops.free_vma, of all of these. Never freed.
cdef void keep_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    pass


# Context: as strategy_ops.vma_write_begin.
cdef void begin_nothing(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil:
    pass


FAULTS = {
    "none": "nothing: it tries mmap_sem, and waits for it where that fails",
    "no-recheck": "uses the VMA without the lock under which it was found",
    "lying-counters": "counts faults that fell back to mmap_sem as successes",
    "forgets-attempts": "counts some faults only",
    "any-access": "does not look at permissions",
    "wrong-code": "reports MAPERR for what is ACCERR",
    "never-retries": "fails where the lock is not free",
    "does-nothing": "reports success without resolving the fault",
    "keeps-lock": "returns with mmap_sem held where the access fails",
    "leaks-vma": "never frees a VMA",
    "no-table": "has no strategy_ops",
    "short-table": "has a strategy_ops that ends before handle_fault",
    "no-handler": "has no handle_fault",
    "half-a-pair": "begins write sections that it cannot end",
    "same-name-twice": "has two counters of one name",
    "two-counters": "has fewer counters than every strategy has",
    "other-name": "carries another name in its table",
}


cdef class BrokenStrategy(Strategy):
    """A strategy with one fault of :data:`FAULTS`."""

    cdef strategy_ops own
    cdef bytes label

    def __cinit__(self, str fault="none") -> None:
        if fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}; known: {', '.join(FAULTS)}")
        self.name = f"broken-{fault}"
        self.description = f"broken on purpose: {FAULTS[fault]}"
        self.label = self.name.encode()
        self.own.size = sizeof(strategy_ops)
        self.own.name = self.label
        self.own.counter_names = names
        self.own.handle_fault = trying
        self.ops = &self.own
        if fault == "no-recheck":
            self.own.handle_fault = no_recheck
        elif fault == "lying-counters":
            self.own.handle_fault = lying
        elif fault == "forgets-attempts":
            self.own.handle_fault = forgetful
        elif fault == "any-access":
            self.own.handle_fault = any_access
        elif fault == "wrong-code":
            self.own.handle_fault = wrong_code
        elif fault == "never-retries":
            self.own.handle_fault = no_retry
        elif fault == "does-nothing":
            self.own.handle_fault = nothing
        elif fault == "keeps-lock":
            self.own.handle_fault = keeps_lock
        elif fault == "leaks-vma":
            self.own.free_vma = keep_vma
        elif fault == "no-table":
            self.ops = NULL
        elif fault == "short-table":
            self.own.size = sizeof(void *) * 3
        elif fault == "no-handler":
            self.own.handle_fault = NULL
        elif fault == "half-a-pair":
            self.own.vma_write_begin = begin_nothing
        elif fault == "same-name-twice":
            self.own.counter_names = twice
        elif fault == "two-counters":
            self.own.counter_names = too_few
        elif fault == "other-name":
            self.own.name = "somebody else"


# ---- arches ----

cdef const arch_ops *base = NULL    # the table of the right arch; written when a BrokenArch is made


# Context: as arch_ops, of all of these.
cdef pte_t short_pfn_pte(unsigned long pfn, pgprot_t prot) noexcept nogil:
    return base.pfn_pte(pfn & 0xffff, prot)


cdef pte_t forgetful_modify(pte_t pte, pgprot_t newprot) noexcept nogil:
    return base.pfn_pte(base.pte_pfn(pte), newprot)


cdef pgprot_t never_cow(unsigned long vm_flags) noexcept nogil:
    return base.vm_get_page_prot(vm_flags | VM_SHARED)


cdef void flush_nothing(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    pass


cdef void flush_no_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                         int freed_tables) noexcept nogil:
    pass


cdef void remove_nothing(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    pass


cdef unsigned long any_walk(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access) noexcept nogil:
    return base.hw_walk(cpu, mm, address, 0)


cdef unsigned long descend_always(pmd_t entry, u32 level) noexcept nogil:
    return base.table_paddr(entry)


ARCH_FAULTS = {
    "none": "nothing: a copy",
    "loses-frame": "stores 16 bits of a frame number",
    "modify-forgets": "changes permissions and loses accessed and dirty",
    "never-cow": "maps private pages writable",
    "no-page-flush": "flushes no pages",
    "no-range-flush": "flushes no ranges",
    "keeps-tables": "never frees a page table",
    "any-walk": "has an MMU that does not look at the kind of access",
    "descends": "takes every entry for one that points to a table",
    "no-mkold": "has no pte_mkold",
    "wrong-shift": "has levels that do not fit together",
    "wrong-order": "says that its entries are stored in the other byte order",
}


cdef class BrokenArch(Arch):
    """A copy of an arch with one fault of :data:`ARCH_FAULTS`. One at a time."""

    cdef arch_ops own
    cdef bytes label
    cdef Arch right

    def __cinit__(self, Arch right not None, str fault="none") -> None:
        global base
        if fault not in ARCH_FAULTS:
            raise ValueError(f"unknown fault {fault!r}; known: {', '.join(ARCH_FAULTS)}")
        base = arch_get_ops(right)
        self.right = right
        self.name = f"broken-{fault}"
        self.description = f"broken on purpose: {ARCH_FAULTS[fault]}"
        self.label = self.name.encode()
        memcpy(&self.own, base, sizeof(arch_ops))
        self.own.name = self.label
        self.ops = &self.own
        if fault == "loses-frame":
            self.own.pfn_pte = short_pfn_pte
        elif fault == "modify-forgets":
            self.own.pte_modify = forgetful_modify
        elif fault == "never-cow":
            self.own.vm_get_page_prot = never_cow
        elif fault == "no-page-flush":
            self.own.flush_tlb_page = flush_nothing
        elif fault == "no-range-flush":
            self.own.flush_tlb_range = flush_no_range
        elif fault == "keeps-tables":
            self.own.tlb_remove_tables = remove_nothing
        elif fault == "any-walk":
            self.own.hw_walk = any_walk
        elif fault == "descends":
            self.own.table_descend = descend_always
        elif fault == "no-mkold":
            self.own.pte_mkold = NULL
        elif fault == "wrong-shift":
            self.own.level_shift[1] += 1
        elif fault == "wrong-order":
            self.own.big_endian = not base.big_endian
