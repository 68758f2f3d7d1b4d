# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no arrays of Python objects here)
"""mm/memory.c's self-test: a writer in the middle of a fault, a zapper in the middle of another one's zap.

One OS thread drives all Cpus. An `Interposed` strategy calls the writer from inside pte_map_lock() and pte_spinlock(),
when the last check of a speculative fault has passed and the PTL is held; an `InterposedArch` calls the second zapper
from inside the first one's flush. So every run takes the one interleaving that it is about.
"""
from libc.string cimport memcpy

from pykmm_ext.arch cimport Arch
from pykmm_ext.handle cimport cpu_disown, cpu_own, machine_get, machine_put
from pykmm_ext.kernel.atomic cimport READ_ONCE, WRITE_ONCE, WRITE_ONCE_PTR
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.machine.tlb cimport switch_mm, user_touch
from pykmm_ext.mm.madvise cimport do_madvise
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_USER, FAULT_FLAG_WRITE, KMM_ACCESS_READ, VM_WRITE, anon_vma, arch_ops, mm_struct, page, pfn_to_page,
    pgprot_t, pmd_t, pte_t, strategy_ops, vm_area_struct, vm_fault,
)
from pykmm_ext.mm.mmap cimport ksys_mmap, mmap_read_lock, mmap_read_unlock
from pykmm_ext.mm.mprotect cimport do_mprotect
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_offset
from pykmm_ext.mm.vma cimport __find_vma
from pykmm_ext.mm_binding cimport MmStruct
from pykmm_ext.strategy cimport Strategy

cdef extern from "kmm/tlb.h" nogil:
    ctypedef struct tlb_t "struct tlb":
        pass
    void *tlb_lookup(tlb_t *t, u64 address, u32 access)

cdef enum:
    PROT_R = 1
    PROT_RW = 3
    MAP_PRIVATE_ANON_FIXED = 0x32
    DONTNEED = 4

cdef enum change_kind:
    NOTHING, FLAGS, PAGE_PROT, BOUNDS, PGOFF, ANON_VMA, MMAP, MPROTECT

NAMES = {"nothing": NOTHING, "vm_flags": FLAGS, "vm_page_prot": PAGE_PROT, "bounds": BOUNDS, "vm_pgoff": PGOFF,
         "anon_vma": ANON_VMA, "mmap": MMAP, "mprotect": MPROTECT}

# What the writer does, once, and what it found. One thread: no locks.
cdef struct writer_plan:
    change_kind kind
    Cpu *cpu
    unsigned long start, size
    u32 fired
    long result
    vm_area_struct *vma             # FLAGS to ANON_VMA: whose fields are to be put back
    unsigned long vm_start, vm_end, vm_flags, vm_pgoff
    pgprot_t vm_page_prot
    anon_vma *av
    anon_vma *captured              # the fault's

cdef writer_plan plan
cdef strategy_ops interposed_ops
cdef const strategy_ops *real_strategy = NULL


# Context: PTL held by a fault on another Cpu, IRQs on. Calls only what does not need that PTL: a field of the VMA as a
# writer changes it before it comes to the page tables, or a whole system call whose range lies below other tables.
cdef void interfere(vm_fault *vmf) noexcept nogil:
    cdef vm_area_struct *vma = vmf.vma
    cdef mm_struct *mm = vma.vm_mm
    cdef Cpu *cpu = plan.cpu
    plan.fired += 1
    plan.captured = vmf.anon_vma
    if plan.kind == MMAP:
        plan.result = ksys_mmap(cpu, mm, plan.start, plan.size, PROT_RW, MAP_PRIVATE_ANON_FIXED, NULL, 0)
        return
    if plan.kind == MPROTECT:
        plan.result = do_mprotect(cpu, mm, plan.start, plan.size, PROT_R)
        return
    plan.vma = vma
    plan.vm_start = vma.vm_start
    plan.vm_end = vma.vm_end
    plan.vm_flags = vma.vm_flags
    plan.vm_pgoff = vma.vm_pgoff
    plan.vm_page_prot = vma.vm_page_prot
    plan.av = vma.anon_vma
    if plan.kind == FLAGS:
        WRITE_ONCE(cpu, &vma.vm_flags, vma.vm_flags & ~<unsigned long>VM_WRITE)
    elif plan.kind == PAGE_PROT:
        WRITE_ONCE(cpu, <unsigned long *>&vma.vm_page_prot, mm.arch.vm_get_page_prot(0))
    elif plan.kind == BOUNDS:
        WRITE_ONCE(cpu, &vma.vm_start, vmf.address)
        WRITE_ONCE(cpu, &vma.vm_end, vmf.address + (<unsigned long>1 << mm.arch.page_shift))
    elif plan.kind == PGOFF:
        WRITE_ONCE(cpu, &vma.vm_pgoff, vma.vm_pgoff + 7)
    elif plan.kind == ANON_VMA:
        WRITE_ONCE_PTR(cpu, &vma.anon_vma, NULL)


# Context: the fault is over. The fields of the VMA as they were.
cdef void put_back() noexcept nogil:
    cdef vm_area_struct *vma = plan.vma
    if vma == NULL:
        return
    vma.vm_start = plan.vm_start
    vma.vm_end = plan.vm_end
    vma.vm_flags = plan.vm_flags
    vma.vm_pgoff = plan.vm_pgoff
    vma.vm_page_prot = plan.vm_page_prot
    vma.anon_vma = plan.av


# Context: as strategy_ops.pte_map_lock.
cdef int interposed_map_lock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef int ret = real_strategy.pte_map_lock(cpu, vmf)
    if ret and plan.kind != NOTHING and not plan.fired:
        interfere(vmf)
    return ret


# Context: as strategy_ops.pte_spinlock.
cdef int interposed_spinlock(Cpu *cpu, vm_fault *vmf) noexcept nogil:
    cdef int ret = real_strategy.pte_spinlock(cpu, vmf)
    if ret and plan.kind != NOTHING and not plan.fired:
        interfere(vmf)
    return ret


cdef class Interposed(Strategy):
    """The strategy `real`, with a writer that fault_while() arms. One kind at a time in a process."""

    def __cinit__(self, Strategy real not None) -> None:
        global real_strategy
        real_strategy = real.ops
        memcpy(&interposed_ops, real.ops, sizeof(strategy_ops))
        interposed_ops.pte_map_lock = interposed_map_lock
        interposed_ops.pte_spinlock = interposed_spinlock
        self.ops = &interposed_ops
        self.name = f"interposed {real.name}"
        self.description = real.description


# Context: nobody uses the mm. The entry of `address`, 0 where there is no table.
cdef pte_t entry_of(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    cdef pmd_t *pmd = mm_find_pmd(cpu, mm, address)
    if pmd == NULL or mm.arch.table_none(READ_ONCE(cpu, pmd)):
        return 0
    return READ_ONCE(cpu, pte_offset(mm, READ_ONCE(cpu, pmd), address))


def fault_while(MmStruct mm not None, unsigned long address, bint write, str change, unsigned long start=0,
                unsigned long size=0) -> dict[str, int]:
    """One fault of Cpu 0 at `address`, while Cpu 1 makes `change` (a key of NAMES) under its PTL, once.

    What it left behind: result, fired, pte, and of an anonymous page index, whether page->mapping is the anon_vma that
    the fault captured (mapping_captured) and that of the VMA which now lies there (mapping_of_vma); around = entries
    of the aligned 16 pages that are not empty. Changed fields are put back. Nobody else uses the machine.
    """
    cdef Cpu *c = mm.machine.m.cpus[0]
    cdef mm_struct *s = mm.mm
    cdef vm_area_struct *vma
    cdef page *pg = NULL
    cdef pte_t pte = 0
    cdef u32 around = 0
    cdef unsigned long i, index = 0, page_size = <unsigned long>1 << s.arch.page_shift
    cdef unsigned int flags = FAULT_FLAG_USER | (FAULT_FLAG_WRITE if write else 0)
    cdef unsigned int ret = 0
    cdef bint captured = False, of_vma = False
    cdef change_kind kind = NAMES[change]
    machine_get(mm.machine)
    plan.cpu = mm.machine.m.cpus[1]
    plan.start = start
    plan.size = size
    plan.fired = 0
    plan.result = 0
    plan.vma = NULL
    plan.captured = NULL
    plan.kind = kind
    with nogil:
        cpu_own(c)
        cpu_own(plan.cpu)
        ret = s.strategy.handle_fault(c, s, address, flags)
        plan.kind = NOTHING
        put_back()
        mmap_read_lock(c, s)
        vma = __find_vma(s, address)
        pte = entry_of(c, s, address)
        if s.arch.pte_present(pte) and not s.arch.pte_special(pte):
            pg = pfn_to_page(s.machine, s.arch.pte_pfn(pte))
            index = pg.index
            captured = pg.mapping != NULL and pg.mapping == plan.captured
            of_vma = vma != NULL and pg.mapping != NULL and pg.mapping == vma.anon_vma
        for i in range(16):
            around += entry_of(c, s, (address & ~(16 * page_size - 1)) + i * page_size) != 0
        mmap_read_unlock(c, s)
        cpu_disown(plan.cpu)
        cpu_disown(c)
    machine_put(mm.machine)
    if plan.result < 0 and plan.result > -4096:
        raise OSError(-plan.result, "the writer failed")
    return {"result": ret, "fired": plan.fired, "pte": pte, "index": index, "mapping_captured": captured,
            "mapping_of_vma": of_vma, "around": around}


# ---- two zappers ----------------------------------------------------------------------------------

# The second zapper, run once from the first one's flush; and what the victim's TLB held then.
cdef struct zapper_plan:
    u32 armed
    Cpu *cpu
    Cpu *victim
    unsigned long start, size
    long result
    u32 before, after

cdef zapper_plan second
cdef arch_ops interposed_arch_ops
cdef const arch_ops *real_arch = NULL


# Context: nobody drives the victim.
cdef bint translates(Cpu *victim, unsigned long address) noexcept nogil:
    return tlb_lookup(<tlb_t *>victim.tlb, address, KMM_ACCESS_READ) != NULL


# Context: as arch_ops.flush_tlb_range.
cdef void interposed_flush_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                                 int freed_tables) noexcept nogil:
    if second.armed:
        second.armed = 0
        second.before = translates(second.victim, second.start)
        second.result = do_madvise(second.cpu, mm, second.start, second.size, DONTNEED)
        second.after = translates(second.victim, second.start)
    real_arch.flush_tlb_range(cpu, mm, start, end, freed_tables)


cdef class InterposedArch(Arch):
    """The arch `real`, with a second zapper that zap_while_zapping() arms. One kind at a time in a process."""

    def __cinit__(self, Arch real not None) -> None:
        global real_arch
        real_arch = real.ops
        memcpy(&interposed_arch_ops, real.ops, sizeof(arch_ops))
        interposed_arch_ops.flush_tlb_range = interposed_flush_range
        self.ops = &interposed_arch_ops
        self.name = f"interposed {real.name}"
        self.description = real.description


def zap_while_zapping(MmStruct mm not None, unsigned long address, unsigned long size) -> tuple[bool, bool]:
    """Cpu 1 has read `address`. Cpu 0 drops the range by MADV_DONTNEED; between its PTL section and its flush, Cpu 2
    drops the same range. Whether Cpu 1 could still translate `address` before and after Cpu 2's call."""
    cdef Cpu *c = mm.machine.m.cpus[0]
    cdef int err = 0
    cdef long ret = 0
    machine_get(mm.machine)
    second.victim = mm.machine.m.cpus[1]
    second.cpu = mm.machine.m.cpus[2]
    second.start = address
    second.size = size
    second.before = second.after = 0
    second.result = 0
    with nogil:
        cpu_own(c)
        cpu_own(second.victim)
        cpu_own(second.cpu)
        switch_mm(second.victim, mm.mm)
        err = user_touch(second.victim, address, KMM_ACCESS_READ)
        second.armed = 1
        ret = do_madvise(c, mm.mm, address, size, DONTNEED)
        second.armed = 0
        switch_mm(second.victim, NULL)
        cpu_disown(second.cpu)
        cpu_disown(second.victim)
        cpu_disown(c)
    machine_put(mm.machine)
    if err or ret or second.result:
        raise OSError(-(err or ret or second.result), "a zapper or the reader failed")
    return bool(second.before), bool(second.after)
