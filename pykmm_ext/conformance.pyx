# SPDX-License-Identifier: GPL-2.0-only
"""What a plugin's C tables hold (no kernel file): the compiled half of the conformance kit, pykmm.conformance."""
from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.mm.mm_types cimport arch_ops, strategy_ops
from pykmm_ext.strategy cimport Strategy, strategy_get_ops

# Every function of the tables, in their order.
cdef extern from *:
    """
    #include <stddef.h>
    #include "kmm/strategy.h"
    #include "kmm/arch.h"
    struct kmm_table_member { const char *name; size_t offset; };
    #define KMM_S(member) {#member, offsetof(struct strategy_ops, member)}
    static const struct kmm_table_member kmm_strategy_members[] = {
        KMM_S(handle_fault), KMM_S(pte_map_lock), KMM_S(pte_spinlock), KMM_S(gup_fast), KMM_S(mmap_write_lock),
        KMM_S(mmap_write_unlock), KMM_S(vma_write_begin), KMM_S(vma_write_end), KMM_S(tree_write_begin),
        KMM_S(tree_write_end), KMM_S(free_vma), KMM_S(vma_init), KMM_S(mm_init), KMM_S(mm_exit), KMM_S(quiesce),
        KMM_S(filemap_fault), KMM_S(vma_start_write), KMM_S(vma_mark_attached), KMM_S(vma_mark_detached),
        KMM_S(mmap_write_downgrade), {0, 0}};
    /* Whoever appends a member appends it here: size, name and counter_names come first; the two flags at the end are no
     * functions. */
    _Static_assert(sizeof(struct strategy_ops) == (3 + sizeof(kmm_strategy_members) / sizeof(kmm_strategy_members[0]) - 1
                   + 1) * sizeof(void *), "kmm_strategy_members");
    #define KMM_A(member) {#member, offsetof(struct arch_ops, member)}
    static const struct kmm_table_member kmm_arch_members[] = {
        KMM_A(vm_get_page_prot), KMM_A(pfn_pte), KMM_A(pte_pfn), KMM_A(pte_none), KMM_A(pte_present),
        KMM_A(pte_protnone), KMM_A(pte_write), KMM_A(pte_dirty), KMM_A(pte_young), KMM_A(pte_exec), KMM_A(pte_special),
        KMM_A(pte_soft_dirty), KMM_A(pte_mkwrite), KMM_A(pte_wrprotect), KMM_A(pte_mkdirty), KMM_A(pte_mkclean),
        KMM_A(pte_mkyoung), KMM_A(pte_mkold), KMM_A(pte_mkspecial), KMM_A(pte_modify), KMM_A(mk_table),
        KMM_A(table_none), KMM_A(table_bad), KMM_A(table_leaf), KMM_A(table_paddr), KMM_A(access_permitted),
        KMM_A(flush_tlb_mm), KMM_A(flush_tlb_range), KMM_A(flush_tlb_page), KMM_A(tlb_remove_tables),
        KMM_A(serialize_against_pte_lookup), KMM_A(hw_walk), KMM_A(table_descend), {0, 0}};
    """
    struct kmm_table_member:
        const char *name
        size_t offset
    const kmm_table_member *kmm_strategy_members
    const kmm_table_member *kmm_arch_members


cdef dict table_facts(const void *table, size_t size, size_t known, const char *name, const kmm_table_member *member):
    """Context: GIL held. A member that begins behind the table's own size is not looked at: it is not there."""
    cdef dict members = {}
    while member.name != NULL:
        inside = member.offset + sizeof(void *) <= size
        members[member.name.decode()] = bool(inside and (<void **>(<char *>table + member.offset))[0] != NULL)
        member += 1
    return {"size": size, "known_size": known, "name": None if name == NULL else name.decode("utf-8", "replace"),
            "members": members}


def strategy_table(Strategy strategy not None):
    """A strategy's table: its "size" and pykmm's ("known_size"), its "name", and "members": which are there.

    None for a strategy that has set no table.
    """
    cdef const strategy_ops *ops = strategy_get_ops(strategy)
    if ops == NULL:
        return None
    return table_facts(ops, ops.size, sizeof(strategy_ops), ops.name if ops.size >= 2 * sizeof(void *) else NULL,
                       kmm_strategy_members)


def arch_table(Arch arch not None):
    """The same of an arch's table."""
    cdef const arch_ops *ops = arch_get_ops(arch)
    if ops == NULL:
        return None
    return table_facts(ops, ops.size, sizeof(arch_ops), ops.name if ops.size >= 2 * sizeof(void *) else NULL,
                       kmm_arch_members)
