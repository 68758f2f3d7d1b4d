# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on C structures)
"""mm/mmu_gather.c: collect what an unmap frees, flush once, then free.

A page may be given back only after no TLB translates to it: entries are cleared first, the pages gathered, the TLBs
flushed, and only then the references dropped. Unlinked page tables follow the same rule, and go last.

A *dirty shared* page has one rule more: its dirty bit moves from the PTE to the page when the PTE is cleared, and
write-back may clean the page as soon as the PTL is dropped. A Cpu that still has a writable translation could then
change the page unseen. So a zap that clears a dirty PTE of a shared file mapping calls tlb_flush_mmu_tlbonly() before
it drops the PTL's protection of the range (Linux: ``force_flush`` in zap_pte_range). Private pages have no
write-back and need no such flush.

Context of the structure: it lives on the caller's stack and belongs to one Cpu.
"""
from pykmm_ext.kernel.atomic cimport atomic_add, ipi_lockdep_wait, smp_mb
from pykmm_ext.kernel.rcu cimport call_rcu
from pykmm_ext.machine.cpu cimport NR_PGTABLE_FREE, Cpu, count_vm_event, rcu_head, u8, u32, unlikely
from pykmm_ext.machine.irq cimport smp_call_function_many
from pykmm_ext.machine.tlb cimport tlb_mm_is_local
from pykmm_ext.mm.lockless_walk cimport REMOVE_ARCH, REMOVE_NOW, REMOVE_RCU, lockless_table_removal
from pykmm_ext.mm.mm_types cimport (
    MMU_GATHER_BUNDLE, mm_struct, mmu_gather, mmu_gather_batch, page, page_to_pfn, pfn_to_page,
)
from pykmm_ext.mm.page_alloc cimport __GFP_NOWAIT, __free_pages, alloc_page, put_page
from pykmm_ext.mm.pgtable cimport table_order, table_page_free

cdef enum:
    MAX_GATHER_PAGES = 10000 # as MAX_GATHER_BATCH_COUNT: bounds how much waits for one flush


cdef inline void reset_range(mmu_gather *tlb) noexcept nogil:
    tlb.start = ~<unsigned long>0
    tlb.end = 0
    tlb.freed_tables = 0


# Context: process. `fullmm`: exit_mmap, nobody uses the mm any more.
cdef void tlb_gather_mmu(Cpu *cpu, mmu_gather *tlb, mm_struct *mm, bint fullmm) noexcept nogil:
    tlb.mm = mm
    tlb.fullmm = fullmm
    tlb.tables = NULL
    tlb.active = NULL
    tlb.batches = NULL
    tlb.nr = 0
    reset_range(tlb)


# Context: any.
cdef void tlb_track_range(mmu_gather *tlb, unsigned long address, unsigned long size) noexcept nogil:
    if address < tlb.start:
        tlb.start = address
    if address + size > tlb.end:
        tlb.end = address + size


# Another batch, in a frame of the machine. False: gather no more.
cdef bint tlb_next_batch(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    cdef mmu_gather_batch *batch = tlb.active
    cdef unsigned long nr = 0
    cdef page *frame
    if batch != NULL and batch.next != NULL:
        tlb.active = batch.next
        return True
    batch = tlb.batches
    while batch != NULL:
        nr += batch.max
        batch = batch.next
    if nr >= MAX_GATHER_PAGES:
        return False
    frame = alloc_page(cpu, __GFP_NOWAIT)
    if frame == NULL:
        return False
    batch = <mmu_gather_batch *>(tlb.mm.machine.mem_base
                                 + (page_to_pfn(tlb.mm.machine, frame) << tlb.mm.arch.page_shift))
    batch.next = NULL
    batch.nr = 0
    batch.max = <u32>(((<size_t>1 << tlb.mm.arch.page_shift) - sizeof(mmu_gather_batch)) // sizeof(page *))
    if tlb.active != NULL:
        tlb.active.next = batch
    else:
        tlb.batches = batch
    tlb.active = batch
    return True


# Context: PTL may be held. Takes over the caller's reference. True: full, drop the PTL and call tlb_flush_mmu().
# One slot is always left when this returns False, so a page is never refused.
cdef bint tlb_remove_page(Cpu *cpu, mmu_gather *tlb, page *p) noexcept nogil:
    cdef mmu_gather_batch *batch = tlb.active
    if batch == NULL:
        tlb.pages[tlb.nr] = p
        tlb.nr += 1
        return tlb.nr == MMU_GATHER_BUNDLE and not tlb_next_batch(cpu, tlb)
    (<page **>batch.pages)[batch.nr] = p
    batch.nr += 1
    return batch.nr == batch.max and not tlb_next_batch(cpu, tlb)


# Context: the entry that pointed to the table is cleared. [address, address + size) is what the table covered.
cdef void tlb_remove_table(mmu_gather *tlb, page *p, unsigned long address, unsigned long size) noexcept nogil:
    tlb_track_range(tlb, address, size)
    tlb.freed_tables = 1
    p.lru_next = tlb.tables
    tlb.tables = p


# Every walk that began before the flush, with IRQs off, has ended: the flush interrupted its Cpu and waited.
cdef void tlb_remove_tables_now(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    cdef page *table = tlb.tables
    cdef page *next
    while table != NULL:
        next = table.lru_next
        table_page_free(cpu, tlb.mm, table)
        table = next
    tlb.tables = NULL


# Context: RCU callback; the mm may be gone.
cdef void tlb_remove_table_rcu(Cpu *cpu, rcu_head *head) noexcept nogil:
    cdef page *table = <page *>(<char *>head - <size_t>&(<page *>NULL).lru_next)
    count_vm_event(cpu, NR_PGTABLE_FREE)
    __free_pages(cpu, table, table_order(table))


# The flush waited for nobody: lockless walkers are in an RCU read section. The table's list pointers become its rcu_head
# (a union in Linux). simplified: a callback a table, no batches.
cdef void tlb_remove_tables_rcu(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    cdef page *table = tlb.tables
    cdef page *next
    while table != NULL:
        next = table.lru_next
        atomic_add(cpu, &tlb.mm.nr_ptes, -(<unsigned long>1 << table_order(table)))
        call_rcu(cpu, <rcu_head *>&table.lru_next, tlb_remove_table_rcu)
        table = next
    tlb.tables = NULL


# Context: IPI handler.
cdef void tlb_remove_table_smp_sync(Cpu *target, void *info) noexcept nogil:
    pass


cdef void tlb_remove_table_sync_one(Cpu *cpu, mm_struct *mm) noexcept nogil:
    ipi_lockdep_wait(cpu, b"serialize_against_pte_lookup")
    smp_mb(cpu)  # the caller's change before the read of mm_cpumask; pairs with the fetch_or in switch_mm()
    if not tlb_mm_is_local(cpu, mm):
        smp_call_function_many(cpu, mm.mm_cpumask, tlb_remove_table_smp_sync, NULL)


# Context: IRQs on, no lock that an IRQ-off section spins on (it waits for other Cpus).
cdef void tlb_flush_mmu_tlbonly(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    cdef mm_struct *mm = tlb.mm
    if tlb.start >= tlb.end and not tlb.freed_tables:
        return
    if tlb.fullmm:
        mm.arch.flush_tlb_mm(cpu, mm)
    else:
        mm.arch.flush_tlb_range(cpu, mm, tlb.start, tlb.end, tlb.freed_tables)
    reset_range(tlb)


# Context: as tlb_flush_mmu_tlbonly; no spinlocks. The gather can be used on.
cdef void tlb_flush_mmu(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    cdef mm_struct *mm = tlb.mm
    cdef mmu_gather_batch *batch
    cdef u32 i
    cdef int how
    # Flush, then free: the flush is complete on every Cpu when it returns.
    tlb_flush_mmu_tlbonly(cpu, tlb)
    for i in range(tlb.nr):
        put_page(cpu, tlb.pages[i])
    tlb.nr = 0
    batch = tlb.batches
    while batch != NULL:
        for i in range(batch.nr):
            put_page(cpu, (<page **>batch.pages)[i])
        batch.nr = 0
        batch = batch.next
    tlb.active = tlb.batches
    if tlb.tables != NULL:
        how = lockless_table_removal(cpu, mm) if unlikely(mm.lockless_walk != NULL) else <int>REMOVE_ARCH
        if how == REMOVE_NOW:
            tlb_remove_tables_now(cpu, tlb)
        elif how == REMOVE_RCU:
            tlb_remove_tables_rcu(cpu, tlb)
        else:
            mm.arch.tlb_remove_tables(cpu, tlb)
        tlb.tables = NULL


# Context: as tlb_flush_mmu.
cdef void tlb_finish_mmu(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    cdef mmu_gather_batch *batch
    cdef mmu_gather_batch *next
    tlb_flush_mmu(cpu, tlb)
    batch = tlb.batches
    while batch != NULL:
        next = batch.next
        put_page(cpu, pfn_to_page(tlb.mm.machine,
                                  <unsigned long>(<u8 *>batch - tlb.mm.machine.mem_base) >> tlb.mm.arch.page_shift))
        batch = next
    tlb.batches = NULL
    tlb.active = NULL
