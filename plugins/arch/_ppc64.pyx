# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on 64-bit words)
"""arch/powerpc/include/asm/book3s/64/radix.h, arch/powerpc/mm/tlb-radix.c: radix page tables of Power ISA 3.0, tlbie.

Entries are bit-exact and lie big-endian in memory (Power ISA 3.0 B, book III, "Radix Tree Translation": radix tree with
a 52-bit effective address; a directory entry says how large the table below is). So what the functions here take and
return is byte-swapped on a little-endian host: constants are swapped at compile time, frame numbers at run time.
Software bits are those of Linux 4.12: special (SW2), soft-dirty (SW3). PROT_NONE is a *valid* entry that only the
privileged may use, without any permission, so the hardware refuses it. The hardware walker sets R and C, of the leaf
only, as POWER9's does.

Two granules, one code: ppc64 has 64 KiB pages (32 entries in a PTE table, 2 MiB below a PMD entry, as with 4 KiB),
ppc64-4k has 4 KiB pages. The root has 2^13 entries, 64 KiB: 16 frames of 4 KiB.

The flush against a lockless reader, and against switch_mm():

=================================  ====================================================
this side (flush)                  the other side
=================================  ====================================================
change the entry                   ``switch_mm``: set the Cpu's bit in mm_cpumask
``ptesync`` (``smp_mb``)           fully ordered ``fetch_or``
read mm_cpumask                    walk the table, fill the TLB
``tlbie`` each: the TLB's lock     lookup or walk, and the access, under the TLB's lock
``tlbsync; ptesync`` (``smp_mb``)
=================================  ====================================================

No Cpu is interrupted: the Cpu that flushes removes the entries everywhere. So IRQs off hold no flush up, and page tables
are freed by RCU (MMU_GATHER_RCU_TABLE_FREE). serialize_against_pte_lookup() is the one that interrupts: where a PMD
entry becomes something else (a collapse, a huge page split) it waits for walkers with IRQs off.

simplified: only TLBs of Cpus in mm_cpumask are looked at, the hardware asks all; no process or partition table (the
walker takes root and size from the mm), no partition-scoped translation, no page-walk cache, Att (caching) is always 0; an
empty entry never holds a late R or C. ppc64-4k gets the 128 TiB window and 4 PiB of ppc64; Linux stops at 64 TiB with
4 KiB pages, for the sake of hash tables.
"""
from pykmm_ext.arch cimport Arch
from pykmm_ext.kernel.atomic cimport READ_ONCE_WALK, cmpxchg
from pykmm_ext.machine.cpu cimport Cpu, u8, u32, unlikely
from pykmm_ext.machine.tlb cimport tlb_broadcast_range, tlb_flush_window
from pykmm_ext.mm.mm_types cimport (
    KMM_ACCESS_EXEC, KMM_ACCESS_READ, KMM_ACCESS_WRITE, KMM_MODEL_WEAK, VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, arch_ops,
    mm_struct, pgprot_t, pmd_t, pte_t,
)
from pykmm_ext.mm.mmu_gather cimport tlb_remove_table_sync_one, tlb_remove_tables_rcu

cdef extern from *:
    """
    #include "kmm/arch.h"
    /* Power ISA, in its own order of bits. */
    #define BE_VALID        0x8000000000000000UL /* bit 0 */
    #define BE_LEAF         0x4000000000000000UL /* bit 1 */
    #define BE_RPN_HW       0x01fffffffffff000UL /* leaf, bits 7:51 */
    #define BE_NLB          0x0fffffffffffff00UL /* directory entry, bits 4:55: next level base */
    #define BE_NLS          0x000000000000001fUL /* bits 59:63: next level size, log2 of its entries */
    /* What Linux stores: 53 bits of physical address. */
    #define BE_RPN          0x001ffffffffff000UL
    #define BE_BAD_BITS     0x60000000000000e0UL /* RADIX_PMD_BAD_BITS: leaf and what is reserved */
    /* The same and the rest as they lie in memory. */
    #define _PAGE_PRESENT   cpu_to_be64(BE_VALID)
    #define _PAGE_PTE       cpu_to_be64(BE_LEAF)
    #define _PAGE_SPECIAL   cpu_to_be64(0x400UL) /* SW2 */
    #define _PAGE_SOFT_DIRTY cpu_to_be64(0x200UL) /* SW3 */
    #define _PAGE_ACCESSED  cpu_to_be64(0x100UL) /* bit 55: R */
    #define _PAGE_DIRTY     cpu_to_be64(0x080UL) /* bit 56: C */
    #define _PAGE_PRIVILEGED cpu_to_be64(0x008UL) /* bits 60:63: EAA */
    #define _PAGE_READ      cpu_to_be64(0x004UL)
    #define _PAGE_WRITE     cpu_to_be64(0x002UL)
    #define _PAGE_EXEC      cpu_to_be64(0x001UL)
    #define _PAGE_RW        (_PAGE_READ | _PAGE_WRITE)
    #define _PAGE_RWX       (_PAGE_RW | _PAGE_EXEC)
    #define _PAGE_CHG_MASK  (cpu_to_be64(BE_RPN) | _PAGE_DIRTY | _PAGE_ACCESSED | _PAGE_SPECIAL | _PAGE_PTE | \\
                             _PAGE_SOFT_DIRTY)
    #define TABLE_BAD_BITS  cpu_to_be64(BE_BAD_BITS)
    """
    const unsigned long BE_RPN, BE_RPN_HW, BE_NLB, BE_NLS, BE_VALID, BE_LEAF, TABLE_BAD_BITS
    const unsigned long _PAGE_PRESENT, _PAGE_PTE, _PAGE_SPECIAL, _PAGE_SOFT_DIRTY, _PAGE_ACCESSED, _PAGE_DIRTY
    const unsigned long _PAGE_PRIVILEGED, _PAGE_READ, _PAGE_WRITE, _PAGE_EXEC, _PAGE_RW, _PAGE_RWX, _PAGE_CHG_MASK
    unsigned long cpu_to_be64(unsigned long value) nogil
    unsigned long be64_to_cpu(unsigned long value) nogil

cdef enum:
    SHIFT_4K = 12
    SHIFT_64K = 16
    EA_BITS = 52            # RTS of the process table
    ROOT_BITS = 13          # RPDS


# ---- leaf entries; context of all: any ----

# protection_map[]: private writable mappings are read-only, so that the first write faults (COW). Write and exec imply
# read.
cdef pgprot_t radix_vm_get_page_prot(unsigned long vm_flags) noexcept nogil:
    cdef pgprot_t prot = _PAGE_PRESENT | _PAGE_ACCESSED
    if not vm_flags & (VM_READ | VM_WRITE | VM_EXEC):
        return prot | _PAGE_PRIVILEGED
    prot |= _PAGE_READ
    if vm_flags & VM_WRITE and vm_flags & VM_SHARED:
        prot |= _PAGE_WRITE
    if vm_flags & VM_EXEC:
        prot |= _PAGE_EXEC
    return prot


cdef pte_t pfn_pte_4k(unsigned long pfn, pgprot_t prot) noexcept nogil:
    return cpu_to_be64(pfn << SHIFT_4K & BE_RPN) | prot | _PAGE_PTE


cdef pte_t pfn_pte_64k(unsigned long pfn, pgprot_t prot) noexcept nogil:
    return cpu_to_be64(pfn << SHIFT_64K & BE_RPN) | prot | _PAGE_PTE


cdef unsigned long pte_pfn_4k(pte_t pte) noexcept nogil:
    return (be64_to_cpu(pte) & BE_RPN) >> SHIFT_4K


cdef unsigned long pte_pfn_64k(pte_t pte) noexcept nogil:
    return (be64_to_cpu(pte) & BE_RPN) >> SHIFT_64K


cdef int radix_pte_none(pte_t pte) noexcept nogil:
    return pte == 0


cdef int radix_pte_present(pte_t pte) noexcept nogil:
    return (pte & _PAGE_PRESENT) != 0


cdef int radix_pte_protnone(pte_t pte) noexcept nogil:
    return (pte & (_PAGE_PRESENT | _PAGE_PTE | _PAGE_RWX)) == (_PAGE_PRESENT | _PAGE_PTE)


cdef int radix_pte_write(pte_t pte) noexcept nogil:
    return (pte & _PAGE_WRITE) != 0


cdef int radix_pte_dirty(pte_t pte) noexcept nogil:
    return (pte & _PAGE_DIRTY) != 0


cdef int radix_pte_young(pte_t pte) noexcept nogil:
    return (pte & _PAGE_ACCESSED) != 0


cdef int radix_pte_exec(pte_t pte) noexcept nogil:
    return (pte & _PAGE_EXEC) != 0


cdef int radix_pte_special(pte_t pte) noexcept nogil:
    return (pte & _PAGE_SPECIAL) != 0


cdef int radix_pte_soft_dirty(pte_t pte) noexcept nogil:
    return (pte & _PAGE_SOFT_DIRTY) != 0


cdef pte_t radix_pte_mkwrite(pte_t pte) noexcept nogil:
    return pte | _PAGE_RW


cdef pte_t radix_pte_wrprotect(pte_t pte) noexcept nogil:
    return pte & ~_PAGE_WRITE


cdef pte_t radix_pte_mkdirty(pte_t pte) noexcept nogil:
    return pte | _PAGE_DIRTY | _PAGE_SOFT_DIRTY


cdef pte_t radix_pte_mkclean(pte_t pte) noexcept nogil:
    return pte & ~_PAGE_DIRTY


cdef pte_t radix_pte_mkyoung(pte_t pte) noexcept nogil:
    return pte | _PAGE_ACCESSED


cdef pte_t radix_pte_mkold(pte_t pte) noexcept nogil:
    return pte & ~_PAGE_ACCESSED


cdef pte_t radix_pte_mkspecial(pte_t pte) noexcept nogil:
    return pte | _PAGE_SPECIAL


cdef pte_t radix_pte_modify(pte_t pte, pgprot_t newprot) noexcept nogil:
    return (pte & _PAGE_CHG_MASK) | (newprot & ~_PAGE_CHG_MASK)


# EAA: R/W lets loads through as well as stores.
cdef int radix_access_permitted(pte_t pte, u32 access) noexcept nogil:
    if (pte & (_PAGE_PRESENT | _PAGE_PTE | _PAGE_PRIVILEGED)) != (_PAGE_PRESENT | _PAGE_PTE):
        return 0
    if access == KMM_ACCESS_WRITE:
        return (pte & _PAGE_WRITE) != 0
    if access == KMM_ACCESS_EXEC:
        return (pte & _PAGE_EXEC) != 0
    return (pte & _PAGE_RW) != 0


# ---- table entries; context of all: any ----

# RADIX_{PMD,PUD,PGD}_VAL_BITS
cdef pmd_t mk_table_4k(unsigned long table_paddr, u32 level) noexcept nogil:
    return cpu_to_be64(BE_VALID | table_paddr | 9)


cdef pmd_t mk_table_64k(unsigned long table_paddr, u32 level) noexcept nogil:
    return cpu_to_be64(BE_VALID | table_paddr | (5 if level == 1 else 9))


cdef int radix_table_none(pmd_t entry) noexcept nogil:
    return entry == 0


cdef int radix_table_bad(pmd_t entry) noexcept nogil:
    return (entry & (_PAGE_PRESENT | TABLE_BAD_BITS)) != _PAGE_PRESENT


cdef int radix_table_leaf(pmd_t entry, u32 level) noexcept nogil:
    return (entry & (_PAGE_PRESENT | _PAGE_PTE)) == (_PAGE_PRESENT | _PAGE_PTE)


cdef unsigned long radix_table_paddr(pmd_t entry) noexcept nogil:
    return be64_to_cpu(entry) & BE_NLB


# Neither none nor a leaf has the bits of a table: table_bad says it all.
cdef unsigned long radix_table_descend(pmd_t entry, u32 level) noexcept nogil:
    return 0 if unlikely(radix_table_bad(entry)) else be64_to_cpu(entry) & BE_NLB


# ---- the MMU ----

cdef extern from *:
    """
    /* A copy for each caller, with its constant. */
    static inline unsigned long kmm_radix_walk(Cpu *cpu, struct mm_struct *mm, unsigned long address, u32 access,
                                               u32 page_shift) __attribute__((always_inline));
    """


# The radix walk of the ISA: what an entry does not resolve of the address is left to the table that it names, of
# 1 << NLS entries. Directory entries have no permissions. R, and C for a store, are set in the leaf with one update
# that fails when the entry has changed. See arch.h for context and result. `page_shift` is a constant of each caller.
cdef inline unsigned long radix_walk "kmm_radix_walk"(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access,
                                                      u32 page_shift) noexcept nogil:
    cdef u8 *base = mm.machine.mem_base
    cdef unsigned long *slot
    cdef unsigned long raw, entry, wanted, table, mask
    cdef u32 shift, bits, dep
    while True:
        table = mm.pgd
        bits = ROOT_BITS
        shift = EA_BITS
        dep = 0
        while True:
            shift -= bits
            slot = <unsigned long *>(base + table) + ((address >> shift) & ((<unsigned long>1 << bits) - 1))
            raw = READ_ONCE_WALK(cpu, slot, dep)
            entry = be64_to_cpu(raw)
            if not entry & BE_VALID:
                return 0
            if entry & BE_LEAF:
                break
            bits = entry & BE_NLS
            if unlikely(bits < 5 or bits + page_shift > shift):
                return 0 # unsupported radix tree configuration
            table = entry & BE_NLB
            dep = 1
        if unlikely(shift != page_shift and shift != 21 and shift != 30):
            return 0 # no page has this size
        if not radix_access_permitted(raw, access):
            return 0
        wanted = raw | _PAGE_ACCESSED
        if access == KMM_ACCESS_WRITE:
            wanted |= _PAGE_DIRTY
        if wanted != raw and cmpxchg(cpu, slot, raw, wanted) != raw:
            continue
        # The TLB entry: a page of the granule, and what needs no further walk (a store needs C set).
        mask = (<unsigned long>1 << shift) - 1
        table = entry & BE_RPN_HW & ~mask
        table |= address & mask & ~((<unsigned long>1 << page_shift) - 1)
        if wanted & _PAGE_RW:
            table |= <unsigned long>1 << KMM_ACCESS_READ
        if wanted & _PAGE_WRITE and wanted & _PAGE_DIRTY:
            table |= <unsigned long>1 << KMM_ACCESS_WRITE
        if wanted & _PAGE_EXEC:
            table |= <unsigned long>1 << KMM_ACCESS_EXEC
        return table


cdef unsigned long hw_walk_4k(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access) noexcept nogil:
    return radix_walk(cpu, mm, address, access, SHIFT_4K)


cdef unsigned long hw_walk_64k(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access) noexcept nogil:
    return radix_walk(cpu, mm, address, access, SHIFT_64K)


# ---- TLB flush; context of all: see tlb_broadcast_range() ----

cdef void radix_flush_tlb_mm(Cpu *cpu, mm_struct *mm) noexcept nogil:
    tlb_broadcast_range(cpu, mm, 0, ~<unsigned long>0)


# freed_tables: RIC=2 of tlbie drops the page-walk cache too; there is none here.
cdef void radix_flush_tlb_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                                int freed_tables) noexcept nogil:
    tlb_flush_window(mm, &start, &end)
    tlb_broadcast_range(cpu, mm, start, end)


cdef void radix_flush_tlb_page(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    cdef unsigned long size = <unsigned long>1 << mm.arch.page_shift
    address &= ~(size - 1)
    tlb_broadcast_range(cpu, mm, address, address + size)


cdef arch_ops ppc64_ops

ppc64_ops.size = sizeof(arch_ops)
ppc64_ops.name = b"ppc64"
ppc64_ops.page_shift = SHIFT_64K
ppc64_ops.levels = 4
ppc64_ops.level_shift[:] = [16, 21, 30, 39, 0]
ppc64_ops.level_bits[:] = [5, 9, 9, 13, 0]
ppc64_ops.task_size = 0x0010000000000000
ppc64_ops.map_window = 0x0000800000000000
ppc64_ops.mmap_base = 0x00007ffff8000000
ppc64_ops.stack_top = 0x0000800000000000
ppc64_ops.mmap_min_addr = 0x10000
ppc64_ops.big_endian = 1
ppc64_ops.vm_get_page_prot = radix_vm_get_page_prot
ppc64_ops.pfn_pte = pfn_pte_64k
ppc64_ops.pte_pfn = pte_pfn_64k
ppc64_ops.pte_none = radix_pte_none
ppc64_ops.pte_present = radix_pte_present
ppc64_ops.pte_protnone = radix_pte_protnone
ppc64_ops.pte_write = radix_pte_write
ppc64_ops.pte_dirty = radix_pte_dirty
ppc64_ops.pte_young = radix_pte_young
ppc64_ops.pte_exec = radix_pte_exec
ppc64_ops.pte_special = radix_pte_special
ppc64_ops.pte_soft_dirty = radix_pte_soft_dirty
ppc64_ops.pte_mkwrite = radix_pte_mkwrite
ppc64_ops.pte_wrprotect = radix_pte_wrprotect
ppc64_ops.pte_mkdirty = radix_pte_mkdirty
ppc64_ops.pte_mkclean = radix_pte_mkclean
ppc64_ops.pte_mkyoung = radix_pte_mkyoung
ppc64_ops.pte_mkold = radix_pte_mkold
ppc64_ops.pte_mkspecial = radix_pte_mkspecial
ppc64_ops.pte_modify = radix_pte_modify
ppc64_ops.mk_table = mk_table_64k
ppc64_ops.table_none = radix_table_none
ppc64_ops.table_bad = radix_table_bad
ppc64_ops.table_leaf = radix_table_leaf
ppc64_ops.table_paddr = radix_table_paddr
ppc64_ops.table_descend = radix_table_descend
ppc64_ops.access_permitted = radix_access_permitted
ppc64_ops.flush_tlb_mm = radix_flush_tlb_mm
ppc64_ops.flush_tlb_range = radix_flush_tlb_range
ppc64_ops.flush_tlb_page = radix_flush_tlb_page
ppc64_ops.tlb_remove_tables = tlb_remove_tables_rcu
ppc64_ops.serialize_against_pte_lookup = tlb_remove_table_sync_one
ppc64_ops.memory_model = KMM_MODEL_WEAK
ppc64_ops.rcu_table_free = 1
ppc64_ops.vcpu_preemption = 0
ppc64_ops.tlb_broadcast = 1
ppc64_ops.hw_walk = hw_walk_64k

cdef arch_ops ppc64_4k_ops

ppc64_4k_ops = ppc64_ops
ppc64_4k_ops.name = b"ppc64-4k"
ppc64_4k_ops.page_shift = SHIFT_4K
ppc64_4k_ops.level_shift[:] = [12, 21, 30, 39, 0]
ppc64_4k_ops.level_bits[:] = [9, 9, 9, 13, 0]
ppc64_4k_ops.pfn_pte = pfn_pte_4k
ppc64_4k_ops.pte_pfn = pte_pfn_4k
ppc64_4k_ops.mk_table = mk_table_4k
ppc64_4k_ops.hw_walk = hw_walk_4k


cdef class Ppc64(Arch):
    """Power ISA 3.0 radix page tables of 64 KiB pages, tlbie broadcast, tables freed by RCU, weak memory order."""

    def __cinit__(self) -> None:
        self.ops = &ppc64_ops
        self.name = "ppc64"
        self.description = "Power ISA 3.0 radix, 64K pages, tlbie broadcast, page tables freed by RCU, weak memory"


cdef class Ppc64With4K(Arch):
    """The same with pages of 4 KiB."""

    def __cinit__(self) -> None:
        self.ops = &ppc64_4k_ops
        self.name = "ppc64-4k"
        self.description = "Power ISA 3.0 radix, 4K pages, tlbie broadcast, page tables freed by RCU, weak memory"


def make_arch() -> Arch:
    """A new ppc64 backend."""
    return Ppc64()


def make_4k_arch() -> Arch:
    """A new ppc64-4k backend."""
    return Ppc64With4K()
