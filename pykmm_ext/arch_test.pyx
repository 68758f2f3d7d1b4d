# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on 64-bit words)
"""An arch that no processor has: pages of 16 KiB, three levels of 2048 entries, a PTE table that maps 32 MiB, entries
with bits of their own. What the tests run on to find out where something is taken for granted that all built-in
arches have in common. Not part of the API.

Flushes, table freeing and memory model are those of the arch that it is made from.
"""
from libc.string cimport memcpy

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.kernel.atomic cimport READ_ONCE_WALK, cmpxchg
from pykmm_ext.machine.cpu cimport Cpu, u8, u32
from pykmm_ext.mm.mm_types cimport (
    KMM_ACCESS_EXEC, KMM_ACCESS_READ, KMM_ACCESS_WRITE, VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, arch_ops, mm_struct,
    pgprot_t, pmd_t, pte_t,
)

cdef enum:
    SHIFT = 14
    BITS = 11
    LEVELS = 3

# An entry: the number of the frame from bit 14 on, below it
cdef enum:
    VALID = 1 << 12
    TABLE = 1 << 11
    READ = 1 << 10
    WRITE = 1 << 9
    EXEC = 1 << 8
    NOBODY = 1 << 7         # PROT_NONE
    YOUNG = 1 << 6
    DIRTY = 1 << 5
    SPECIAL = 1 << 4
    SOFT_DIRTY = 1 << 3
    FLAGS = (1 << 14) - 1
    KEPT = YOUNG | DIRTY | SPECIAL | SOFT_DIRTY


# ---- entries; context of all: any ----

cdef pgprot_t odd_vm_get_page_prot(unsigned long vm_flags) noexcept nogil:
    cdef pgprot_t prot = VALID | YOUNG
    if not vm_flags & (VM_READ | VM_WRITE | VM_EXEC):
        return prot | NOBODY
    prot |= READ
    if vm_flags & VM_WRITE and vm_flags & VM_SHARED:
        prot |= WRITE
    if vm_flags & VM_EXEC:
        prot |= EXEC
    return prot


cdef pte_t odd_pfn_pte(unsigned long pfn, pgprot_t prot) noexcept nogil:
    return pfn << SHIFT | prot


cdef unsigned long odd_pte_pfn(pte_t pte) noexcept nogil:
    return pte >> SHIFT


cdef int odd_none(pte_t pte) noexcept nogil:
    return pte == 0


cdef int odd_present(pte_t pte) noexcept nogil:
    return (pte & VALID) != 0


cdef int odd_protnone(pte_t pte) noexcept nogil:
    return (pte & (VALID | NOBODY)) == (VALID | NOBODY)


cdef int odd_write(pte_t pte) noexcept nogil:
    return (pte & WRITE) != 0


cdef int odd_dirty(pte_t pte) noexcept nogil:
    return (pte & DIRTY) != 0


cdef int odd_young(pte_t pte) noexcept nogil:
    return (pte & YOUNG) != 0


cdef int odd_exec(pte_t pte) noexcept nogil:
    return (pte & EXEC) != 0


cdef int odd_special(pte_t pte) noexcept nogil:
    return (pte & SPECIAL) != 0


cdef int odd_soft_dirty(pte_t pte) noexcept nogil:
    return (pte & SOFT_DIRTY) != 0


cdef pte_t odd_mkwrite(pte_t pte) noexcept nogil:
    return pte | WRITE | READ


cdef pte_t odd_wrprotect(pte_t pte) noexcept nogil:
    return pte & ~<pte_t>WRITE


cdef pte_t odd_mkdirty(pte_t pte) noexcept nogil:
    return pte | DIRTY | SOFT_DIRTY


cdef pte_t odd_mkclean(pte_t pte) noexcept nogil:
    return pte & ~<pte_t>DIRTY


cdef pte_t odd_mkyoung(pte_t pte) noexcept nogil:
    return pte | YOUNG


cdef pte_t odd_mkold(pte_t pte) noexcept nogil:
    return pte & ~<pte_t>YOUNG


cdef pte_t odd_mkspecial(pte_t pte) noexcept nogil:
    return pte | SPECIAL


cdef pte_t odd_modify(pte_t pte, pgprot_t newprot) noexcept nogil:
    return (pte & ~<pte_t>(FLAGS & ~KEPT)) | (newprot & (FLAGS & ~KEPT))


cdef pmd_t odd_mk_table(unsigned long table_paddr, u32 level) noexcept nogil:
    return table_paddr | VALID | TABLE


cdef int odd_table_bad(pmd_t entry) noexcept nogil:
    return (entry & FLAGS) != (VALID | TABLE)


cdef int odd_table_leaf(pmd_t entry, u32 level) noexcept nogil:
    return 0


cdef unsigned long odd_table_paddr(pmd_t entry) noexcept nogil:
    return entry & ~<unsigned long>FLAGS


cdef unsigned long odd_table_descend(pmd_t entry, u32 level) noexcept nogil:
    return 0 if odd_table_bad(entry) else entry & ~<unsigned long>FLAGS


cdef int odd_access_permitted(pte_t pte, u32 access) noexcept nogil:
    if (pte & (VALID | TABLE | NOBODY)) != VALID:
        return 0
    if access == KMM_ACCESS_WRITE:
        return (pte & WRITE) != 0
    if access == KMM_ACCESS_EXEC:
        return (pte & EXEC) != 0
    return (pte & READ) != 0


# See arch.h for context and result. Tables have no permissions.
cdef unsigned long odd_hw_walk(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access) noexcept nogil:
    cdef u8 *base = mm.machine.mem_base
    cdef unsigned long *slot
    cdef unsigned long entry, wanted, table
    cdef u32 shift
    while True:
        table = mm.pgd
        shift = SHIFT + BITS * (LEVELS - 1)
        while True:
            slot = <unsigned long *>(base + table) + ((address >> shift) & ((1 << BITS) - 1))
            entry = READ_ONCE_WALK(cpu, slot, table != mm.pgd)
            if shift == SHIFT:
                break
            table = odd_table_descend(entry, 0)
            if table == 0:
                return 0
            shift -= BITS
        if not odd_access_permitted(entry, access):
            return 0
        wanted = entry | YOUNG
        if access == KMM_ACCESS_WRITE:
            wanted |= DIRTY
        if wanted != entry and cmpxchg(cpu, slot, entry, wanted) != entry:
            continue
        table = wanted & ~<unsigned long>FLAGS | <unsigned long>1 << KMM_ACCESS_READ
        if wanted & WRITE and wanted & DIRTY:
            table |= <unsigned long>1 << KMM_ACCESS_WRITE
        if wanted & EXEC:
            table |= <unsigned long>1 << KMM_ACCESS_EXEC
        return table


# Context: as arch_ops.flush_tlb_page. A page of this size is a range to the flush below.
cdef void odd_flush_tlb_page(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil:
    address &= ~<unsigned long>FLAGS
    mm.arch.flush_tlb_range(cpu, mm, address, address + (1 << SHIFT), 0)


cdef class OddArch(Arch):
    """Flushes and memory model of `of`, everything else as above."""

    cdef arch_ops own
    cdef Arch of

    def __cinit__(self, Arch of not None) -> None:
        cdef arch_ops *ops = &self.own
        self.of = of
        memcpy(ops, arch_get_ops(of), sizeof(arch_ops))
        self.ops = ops
        self.name = "odd"
        self.description = f"pages of 16K, PTE tables of 32M, flushes of {of.name}"
        ops.size = sizeof(arch_ops)
        ops.name = b"odd"
        ops.page_shift = SHIFT
        ops.levels = LEVELS
        ops.level_shift[:] = [14, 25, 36, 0, 0]
        ops.level_bits[:] = [11, 11, 11, 0, 0]
        ops.task_size = (<unsigned long>1 << 47) - (1 << SHIFT)
        ops.map_window = ops.task_size
        ops.stack_top = ops.task_size
        ops.mmap_base = ops.task_size - (<unsigned long>1 << 30)
        ops.mmap_min_addr = 0x10000
        ops.big_endian = 0
        ops.vm_get_page_prot = odd_vm_get_page_prot
        ops.pfn_pte = odd_pfn_pte
        ops.pte_pfn = odd_pte_pfn
        ops.pte_none = ops.table_none = odd_none
        ops.pte_present = odd_present
        ops.pte_protnone = odd_protnone
        ops.pte_write = odd_write
        ops.pte_dirty = odd_dirty
        ops.pte_young = odd_young
        ops.pte_exec = odd_exec
        ops.pte_special = odd_special
        ops.pte_soft_dirty = odd_soft_dirty
        ops.pte_mkwrite = odd_mkwrite
        ops.pte_wrprotect = odd_wrprotect
        ops.pte_mkdirty = odd_mkdirty
        ops.pte_mkclean = odd_mkclean
        ops.pte_mkyoung = odd_mkyoung
        ops.pte_mkold = odd_mkold
        ops.pte_mkspecial = odd_mkspecial
        ops.pte_modify = odd_modify
        ops.mk_table = odd_mk_table
        ops.table_bad = odd_table_bad
        ops.table_leaf = odd_table_leaf
        ops.table_paddr = odd_table_paddr
        ops.table_descend = odd_table_descend
        ops.access_permitted = odd_access_permitted
        ops.hw_walk = odd_hw_walk
        ops.flush_tlb_page = odd_flush_tlb_page
