# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on 64-bit words)
"""arch/x86/include/asm/pgtable.h, arch/x86/mm/tlb.c: x86-64 page tables of 4 and 5 levels, TLB shootdown by IPI.

Entries are bit-exact: an MMU that is given the root and the memory image translates as this module does (Intel SDM,
volume 3, chapter "Paging", 4-level and 5-level). Software bits are those of Linux 4.12: special (9), soft-dirty (11),
PROT_NONE as bit 8 (global) in an entry that is not present. As Linux since 4.19, the frame number of a PROT_NONE entry is stored
inverted, so that a processor with L1TF cannot reach memory through it.

The flush against a lockless reader, and against switch_mm():

=================================  ====================================================
this side (flush)                  the other side
=================================  ====================================================
change the entry                   ``switch_mm``: set the Cpu's bit in mm_cpumask
``smp_mb``                         fully ordered ``fetch_or``
read mm_cpumask                    walk the table, fill the TLB
=================================  ====================================================

One of the two sees the other: either the flush finds the bit and interrupts the Cpu, or the Cpu reads the new entry.

x86-5level (CR4.LA57) has one table more above; everything else is the same. mmap() gives out addresses of more than 47
bits only to who asks for one (map_window).

x86-paravirt is the same processor as the guest of a hypervisor (arch/x86/kernel/kvm.c): a flush does not interrupt a
vCPU that the host has stopped, even where it stopped with IRQs off; the hypervisor flushes its TLB for it. So a walker
with IRQs off no longer holds a flush up, and page tables are freed by RCU (MMU_GATHER_RCU_TABLE_FREE). simplified:
the flush is done at once, not when the vCPU goes on.

simplified: no lazy TLB mode (switch_mm(NULL) flushes and clears the bit), no PCIDs, no global pages, a huge page
takes one TLB entry per 4 KiB used, reserved bits of entries are not checked.
"""
from pykmm_ext.arch cimport Arch
from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_WALK, cmpxchg, ipi_lockdep_wait, smp_mb
from pykmm_ext.machine.cpu cimport (
    TLB_FLUSH_LOCAL, TLB_FLUSH_RECEIVED, TLB_FLUSH_REMOTE, Cpu, count_vm_event, u8, u32, unlikely,
)
from pykmm_ext.machine.irq cimport (
    local_irq_disable, local_irq_enable, smp_call_function_many, vcpu_flush_begin, vcpu_flush_end,
)
from pykmm_ext.machine.tlb cimport local_flush_tlb_mm, local_flush_tlb_range, tlb_flush_window, tlb_mm_is_local
from pykmm_ext.mm.mm_types cimport (
    KMM_ACCESS_EXEC, KMM_ACCESS_READ, KMM_ACCESS_WRITE, KMM_MODEL_TSO, VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, arch_ops,
    mm_struct, pgprot_t, pmd_t, pte_t,
)
from pykmm_ext.mm.mmu_gather cimport tlb_remove_table_sync_one, tlb_remove_tables_now, tlb_remove_tables_rcu

cdef extern from *:
    """
    #define _PAGE_PRESENT    (1UL << 0)
    #define _PAGE_RW         (1UL << 1)
    #define _PAGE_USER       (1UL << 2)
    #define _PAGE_PWT        (1UL << 3)
    #define _PAGE_PCD        (1UL << 4)
    #define _PAGE_ACCESSED   (1UL << 5)
    #define _PAGE_DIRTY      (1UL << 6)
    #define _PAGE_PSE        (1UL << 7)
    #define _PAGE_PROTNONE   (1UL << 8)
    #define _PAGE_SPECIAL    (1UL << 9)
    #define _PAGE_SOFT_DIRTY (1UL << 11)
    #define _PAGE_NX         (1UL << 63)
    #define PTE_PFN_MASK     0x000ffffffffff000UL
    #define _PAGE_TABLE      (_PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY)
    #define _PAGE_CHG_MASK   (PTE_PFN_MASK | _PAGE_PCD | _PAGE_PWT | _PAGE_SPECIAL | _PAGE_ACCESSED | \\
                              _PAGE_DIRTY | _PAGE_SOFT_DIRTY)
    """
    const unsigned long _PAGE_PRESENT, _PAGE_RW, _PAGE_USER, _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PSE
    const unsigned long _PAGE_PROTNONE, _PAGE_SPECIAL, _PAGE_SOFT_DIRTY, _PAGE_NX
    const unsigned long PTE_PFN_MASK, _PAGE_TABLE, _PAGE_CHG_MASK

cdef enum:
    PAGE_SHIFT = 12
    PAGE_BITS_4K = 0xfff


# ---- leaf entries; context of all: any ----

# protection_map[]: private writable mappings are read-only, so that the first write faults (COW). Write implies read.
cdef pgprot_t x86_vm_get_page_prot(unsigned long vm_flags) noexcept nogil:
    cdef pgprot_t prot
    if not vm_flags & (VM_READ | VM_WRITE | VM_EXEC):
        return _PAGE_PROTNONE | _PAGE_ACCESSED
    prot = _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED
    if vm_flags & VM_WRITE and vm_flags & VM_SHARED:
        prot |= _PAGE_RW
    if not vm_flags & VM_EXEC:
        prot |= _PAGE_NX
    return prot


# What the frame number is XORed with: all ones in entries that hold one without being present.
cdef inline unsigned long protnone_mask(unsigned long value) noexcept nogil:
    return ~<unsigned long>0 if value and not value & _PAGE_PRESENT else 0


cdef pte_t x86_pfn_pte(unsigned long pfn, pgprot_t prot) noexcept nogil:
    return (((pfn << PAGE_SHIFT) ^ protnone_mask(prot)) & PTE_PFN_MASK) | prot


cdef unsigned long x86_pte_pfn(pte_t pte) noexcept nogil:
    return ((pte ^ protnone_mask(pte)) & PTE_PFN_MASK) >> PAGE_SHIFT


# Hardware that races with a clear may leave A or D behind in an empty entry (Knights Landing erratum): not modelled.
cdef int x86_pte_none(pte_t pte) noexcept nogil:
    return pte == 0


cdef int x86_pte_present(pte_t pte) noexcept nogil:
    return (pte & (_PAGE_PRESENT | _PAGE_PROTNONE)) != 0


cdef int x86_pte_protnone(pte_t pte) noexcept nogil:
    return (pte & (_PAGE_PRESENT | _PAGE_PROTNONE)) == _PAGE_PROTNONE


cdef int x86_pte_write(pte_t pte) noexcept nogil:
    return (pte & _PAGE_RW) != 0


cdef int x86_pte_dirty(pte_t pte) noexcept nogil:
    return (pte & _PAGE_DIRTY) != 0


cdef int x86_pte_young(pte_t pte) noexcept nogil:
    return (pte & _PAGE_ACCESSED) != 0


cdef int x86_pte_exec(pte_t pte) noexcept nogil:
    return not pte & _PAGE_NX


cdef int x86_pte_special(pte_t pte) noexcept nogil:
    return (pte & _PAGE_SPECIAL) != 0


cdef int x86_pte_soft_dirty(pte_t pte) noexcept nogil:
    return (pte & _PAGE_SOFT_DIRTY) != 0


cdef pte_t x86_pte_mkwrite(pte_t pte) noexcept nogil:
    return pte | _PAGE_RW


cdef pte_t x86_pte_wrprotect(pte_t pte) noexcept nogil:
    return pte & ~_PAGE_RW


cdef pte_t x86_pte_mkdirty(pte_t pte) noexcept nogil:
    return pte | _PAGE_DIRTY | _PAGE_SOFT_DIRTY


cdef pte_t x86_pte_mkclean(pte_t pte) noexcept nogil:
    return pte & ~_PAGE_DIRTY


cdef pte_t x86_pte_mkyoung(pte_t pte) noexcept nogil:
    return pte | _PAGE_ACCESSED


cdef pte_t x86_pte_mkold(pte_t pte) noexcept nogil:
    return pte & ~_PAGE_ACCESSED


cdef pte_t x86_pte_mkspecial(pte_t pte) noexcept nogil:
    return pte | _PAGE_SPECIAL


cdef pte_t x86_pte_modify(pte_t pte, pgprot_t newprot) noexcept nogil:
    cdef unsigned long value = (pte & _PAGE_CHG_MASK) | (newprot & ~_PAGE_CHG_MASK)
    # flip_protnone_guard(): the frame number changes its encoding with PROT_NONE.
    if protnone_mask(pte) != protnone_mask(value):
        value ^= PTE_PFN_MASK
    return value


# ---- table entries; context of all: any ----

cdef pmd_t x86_mk_table(unsigned long table_paddr, u32 level) noexcept nogil:
    return table_paddr | _PAGE_TABLE


cdef int x86_table_none(pmd_t entry) noexcept nogil:
    return entry == 0


# Anything but a table: what Linux's p?d_bad() says, user bit included.
cdef int x86_table_bad(pmd_t entry) noexcept nogil:
    return (entry & ~PTE_PFN_MASK & ~_PAGE_ACCESSED & ~_PAGE_USER) != (_PAGE_TABLE & ~_PAGE_ACCESSED & ~_PAGE_USER)


cdef int x86_table_leaf(pmd_t entry, u32 level) noexcept nogil:
    return (level == 1 or level == 2) and (entry & (_PAGE_PRESENT | _PAGE_PSE)) == (_PAGE_PRESENT | _PAGE_PSE)


cdef unsigned long x86_table_paddr(pmd_t entry) noexcept nogil:
    return entry & PTE_PFN_MASK


# Neither none nor a leaf has the flags of a table: table_bad says it all.
cdef unsigned long x86_table_descend(pmd_t entry, u32 level) noexcept nogil:
    return 0 if unlikely(x86_table_bad(entry)) else entry & PTE_PFN_MASK


cdef int x86_access_permitted(pte_t pte, u32 access) noexcept nogil:
    if (pte & (_PAGE_PRESENT | _PAGE_USER)) != (_PAGE_PRESENT | _PAGE_USER):
        return 0
    if access == KMM_ACCESS_WRITE:
        return (pte & _PAGE_RW) != 0
    if access == KMM_ACCESS_EXEC:
        return not pte & _PAGE_NX
    return 1


# ---- the MMU ----

cdef extern from *:
    """
    /* A copy for each caller, with its constant. */
    static inline unsigned long kmm_x86_walk(Cpu *cpu, struct mm_struct *mm, unsigned long address, u32 access, u32 top)
        __attribute__((always_inline));
    """


# The walk of the SDM from a root whose entries map 1 << top bytes: permissions are the AND of all levels, A is set in
# every entry used, D in the leaf of a write, each with a locked update that fails when the entry has changed (then the
# walk starts again). See arch.h for context and result. `top` is a constant of each caller.
cdef inline unsigned long hw_walk "kmm_x86_walk"(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access,
                                                 u32 top) noexcept nogil:
    cdef u8 *base = mm.machine.mem_base
    cdef unsigned long *slot = NULL
    cdef unsigned long entry, allow, deny, table, wanted
    cdef u32 shift, dep
    cdef bint leaf
    while True:
        table = mm.pgd
        allow = _PAGE_RW | _PAGE_USER
        deny = 0
        dep = 0
        shift = top
        leaf = False
        while True:
            slot = <unsigned long *>(base + table) + ((address >> shift) & 511)
            entry = READ_ONCE_WALK(cpu, slot, dep)
            if not entry & _PAGE_PRESENT:
                return 0
            allow &= entry
            deny |= entry
            if shift == PAGE_SHIFT or (entry & _PAGE_PSE and shift < 39):
                leaf = True
                break
            if unlikely(not entry & _PAGE_ACCESSED):
                if cmpxchg(cpu, slot, entry, entry | _PAGE_ACCESSED) != entry:
                    break # a table entry changed under the walk
            table = entry & PTE_PFN_MASK
            dep = 1
            shift -= 9
        if unlikely(not leaf):
            continue
        if not allow & _PAGE_USER:
            return 0
        wanted = entry | _PAGE_ACCESSED
        if access == KMM_ACCESS_WRITE:
            if not allow & _PAGE_RW:
                return 0
            wanted |= _PAGE_DIRTY
        elif access == KMM_ACCESS_EXEC and deny & _PAGE_NX:
            return 0
        if wanted != entry and cmpxchg(cpu, slot, entry, wanted) != entry:
            continue
        # The TLB entry: the 4 KiB page, and what needs no further walk (a write needs D set).
        table = wanted & PTE_PFN_MASK & ~((<unsigned long>1 << shift) - 1)
        table |= address & ((<unsigned long>1 << shift) - 1) & ~<unsigned long>PAGE_BITS_4K
        table |= <unsigned long>1 << KMM_ACCESS_READ
        if allow & _PAGE_RW and wanted & _PAGE_DIRTY:
            table |= <unsigned long>1 << KMM_ACCESS_WRITE
        if not deny & _PAGE_NX:
            table |= <unsigned long>1 << KMM_ACCESS_EXEC
        return table


cdef unsigned long x86_hw_walk(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access) noexcept nogil:
    return hw_walk(cpu, mm, address, access, 39)


cdef unsigned long la57_hw_walk(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access) noexcept nogil:
    return hw_walk(cpu, mm, address, access, 48)


# ---- TLB flush; context of all: IRQs on, no lock that an IRQ-off section spins on ----

cdef struct flush_tlb_info:
    mm_struct *mm
    unsigned long start, end


cdef inline void flush_here(Cpu *cpu, flush_tlb_info *info) noexcept nogil:
    if info.end == ~<unsigned long>0:
        local_flush_tlb_mm(cpu, info.mm)
    else:
        local_flush_tlb_range(cpu, info.mm, info.start, info.end)


# Context: IPI handler on `target` (run by it, or by the sender while the target's IRQs are on).
cdef void flush_tlb_func(Cpu *target, void *info) noexcept nogil:
    count_vm_event(target, TLB_FLUSH_RECEIVED)
    if target.active_mm == <void *>(<flush_tlb_info *>info).mm:
        flush_here(target, <flush_tlb_info *>info)


cdef void flush_tlb_others(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    cdef flush_tlb_info info
    info.mm = mm
    info.start = start
    info.end = end
    ipi_lockdep_wait(cpu, b"flush_tlb_others")  # whether or not another CPU is concerned this time
    # The change of the entries before the read of mm_cpumask; pairs with the fetch_or in switch_mm().
    smp_mb(cpu)
    if cpu.active_mm == <void *>mm:
        local_irq_disable(cpu)
        flush_here(cpu, &info)
        local_irq_enable(cpu)
        count_vm_event(cpu, TLB_FLUSH_LOCAL)
    if unlikely(not tlb_mm_is_local(cpu, mm)):
        count_vm_event(cpu, TLB_FLUSH_REMOTE)
        smp_call_function_many(cpu, mm.mm_cpumask, flush_tlb_func, &info)


cdef void x86_flush_tlb_mm(Cpu *cpu, mm_struct *mm) noexcept nogil:
    flush_tlb_others(cpu, mm, 0, ~<unsigned long>0)


# freed_tables: here every Cpu of mm_cpumask is interrupted anyway, so that also its paging-structure walks are over.
cdef void x86_flush_tlb_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                              int freed_tables) noexcept nogil:
    tlb_flush_window(mm, &start, &end)
    flush_tlb_others(cpu, mm, start, end)


cdef void x86_flush_tlb_page(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    address &= ~<unsigned long>PAGE_BITS_4K
    flush_tlb_others(cpu, mm, address, address + (1 << PAGE_SHIFT))


# ---- x86-paravirt ----

cdef enum:
    MASK_WORDS = 4096 // 64 # of the largest machine


# kvm_flush_tlb_multi(). Context: as flush_tlb_others(). The hypercall for each vCPU that is stopped now, an IPI for the
# rest: those are waited for, as everywhere.
cdef void pv_flush_tlb_others(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    cdef flush_tlb_info info
    cdef unsigned long running[MASK_WORDS]
    cdef unsigned long any_running = 0, bits
    cdef u32 word, bit
    cdef Cpu *target
    info.mm = mm
    info.start = start
    info.end = end
    smp_mb(cpu) # as in flush_tlb_others()
    if cpu.active_mm == <void *>mm:
        local_irq_disable(cpu)
        flush_here(cpu, &info)
        local_irq_enable(cpu)
        count_vm_event(cpu, TLB_FLUSH_LOCAL)
    if tlb_mm_is_local(cpu, mm):
        return
    count_vm_event(cpu, TLB_FLUSH_REMOTE)
    for word in range(mm.machine.cpumask_words):
        running[word] = bits = READ_ONCE(cpu, &mm.mm_cpumask[word])
        for bit in range(64):
            if not bits >> bit:
                break
            if not bits >> bit & 1 or word * 64 + bit == cpu.id:
                continue
            target = mm.machine.cpus[word * 64 + bit]
            if vcpu_flush_begin(cpu, target):
                flush_tlb_func(target, &info)
                vcpu_flush_end(cpu, target)
                running[word] &= ~(<unsigned long>1 << bit)
        any_running |= running[word]
    if any_running:
        smp_call_function_many(cpu, running, flush_tlb_func, &info)


cdef void pv_flush_tlb_mm(Cpu *cpu, mm_struct *mm) noexcept nogil:
    pv_flush_tlb_others(cpu, mm, 0, ~<unsigned long>0)


cdef void pv_flush_tlb_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                             int freed_tables) noexcept nogil:
    tlb_flush_window(mm, &start, &end)
    pv_flush_tlb_others(cpu, mm, start, end)


cdef void pv_flush_tlb_page(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    address &= ~<unsigned long>PAGE_BITS_4K
    pv_flush_tlb_others(cpu, mm, address, address + (1 << PAGE_SHIFT))


cdef arch_ops x86_ops

x86_ops.size = sizeof(arch_ops)
x86_ops.name = b"x86"
x86_ops.page_shift = PAGE_SHIFT
x86_ops.levels = 4
x86_ops.level_shift[:] = [12, 21, 30, 39, 0]
x86_ops.level_bits[:] = [9, 9, 9, 9, 0]
x86_ops.task_size = 0x7ffffffff000
x86_ops.mmap_base = 0x7ffff7fff000
x86_ops.stack_top = 0x7ffffffff000
x86_ops.mmap_min_addr = 0x10000
x86_ops.big_endian = 0
x86_ops.vm_get_page_prot = x86_vm_get_page_prot
x86_ops.pfn_pte = x86_pfn_pte
x86_ops.pte_pfn = x86_pte_pfn
x86_ops.pte_none = x86_pte_none
x86_ops.pte_present = x86_pte_present
x86_ops.pte_protnone = x86_pte_protnone
x86_ops.pte_write = x86_pte_write
x86_ops.pte_dirty = x86_pte_dirty
x86_ops.pte_young = x86_pte_young
x86_ops.pte_exec = x86_pte_exec
x86_ops.pte_special = x86_pte_special
x86_ops.pte_soft_dirty = x86_pte_soft_dirty
x86_ops.pte_mkwrite = x86_pte_mkwrite
x86_ops.pte_wrprotect = x86_pte_wrprotect
x86_ops.pte_mkdirty = x86_pte_mkdirty
x86_ops.pte_mkclean = x86_pte_mkclean
x86_ops.pte_mkyoung = x86_pte_mkyoung
x86_ops.pte_mkold = x86_pte_mkold
x86_ops.pte_mkspecial = x86_pte_mkspecial
x86_ops.pte_modify = x86_pte_modify
x86_ops.mk_table = x86_mk_table
x86_ops.table_none = x86_table_none
x86_ops.table_bad = x86_table_bad
x86_ops.table_leaf = x86_table_leaf
x86_ops.table_paddr = x86_table_paddr
x86_ops.access_permitted = x86_access_permitted
x86_ops.flush_tlb_mm = x86_flush_tlb_mm
x86_ops.flush_tlb_range = x86_flush_tlb_range
x86_ops.flush_tlb_page = x86_flush_tlb_page
x86_ops.tlb_remove_tables = tlb_remove_tables_now
x86_ops.serialize_against_pte_lookup = tlb_remove_table_sync_one
x86_ops.memory_model = KMM_MODEL_TSO
x86_ops.rcu_table_free = 0
x86_ops.hw_walk = x86_hw_walk
x86_ops.table_descend = x86_table_descend
x86_ops.vcpu_preemption = 0
x86_ops.map_window = 0x7ffffffff000
x86_ops.tlb_broadcast = 0

cdef arch_ops la57_ops

la57_ops = x86_ops
la57_ops.name = b"x86-5level"
la57_ops.levels = 5
la57_ops.level_shift[:] = [12, 21, 30, 39, 48]
la57_ops.level_bits[:] = [9, 9, 9, 9, 9]
la57_ops.task_size = 0x00fffffffffff000
la57_ops.hw_walk = la57_hw_walk

cdef arch_ops pv_ops

pv_ops = x86_ops
pv_ops.name = b"x86-paravirt"
pv_ops.flush_tlb_mm = pv_flush_tlb_mm
pv_ops.flush_tlb_range = pv_flush_tlb_range
pv_ops.flush_tlb_page = pv_flush_tlb_page
pv_ops.tlb_remove_tables = tlb_remove_tables_rcu
pv_ops.rcu_table_free = 1
pv_ops.vcpu_preemption = 1


cdef class X86(Arch):
    """x86-64 with 4-level page tables of 4 KiB pages, shootdown by IPI, total store order."""

    def __cinit__(self) -> None:
        self.ops = &x86_ops
        self.name = "x86"
        self.description = "x86-64, 4-level page tables, IPI shootdown, TSO"


cdef class X865Level(Arch):
    """x86-64 with 5-level page tables (LA57): 56 bits of user addresses."""

    def __cinit__(self) -> None:
        self.ops = &la57_ops
        self.name = "x86-5level"
        self.description = "x86-64, 5-level page tables (LA57), IPI shootdown, TSO"


cdef class X86Paravirt(Arch):
    """x86-64 as a guest: flushes do not interrupt stopped vCPUs, page tables are freed by RCU."""

    def __cinit__(self) -> None:
        self.ops = &pv_ops
        self.name = "x86-paravirt"
        self.description = "x86-64 as a guest: flush by hypercall, page tables freed by RCU, TSO"


def make_5level_arch() -> Arch:
    """A new x86-5level backend."""
    return X865Level()


def make_paravirt_arch() -> Arch:
    """A new x86-paravirt backend."""
    return X86Paravirt()


def make_arch() -> Arch:
    """A new x86 backend."""
    return X86()
