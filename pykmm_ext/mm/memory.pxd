# SPDX-License-Identifier: GPL-2.0-only
# mm/memory.c: faults; what include/linux/mm.h has inline of it. Its other parts: mm/memory_zap, mm/memory_fork.
from libc.string cimport memcpy

from pykmm_ext.kernel.atomic cimport READ_ONCE, WRITE_ONCE, atomic_add, kmm_emit, smp_wmb
from pykmm_ext.machine.cpu cimport KMM_EV_COPY, Cpu, u32, unlikely
from pykmm_ext.mm.mm_types cimport (
    MM_ANONPAGES, MM_FILEPAGES, VM_WRITE, PG_anon, PG_anon_exclusive, arch_ops, machine, mm_struct, page, page_to_pfn,
    pfn_to_page, phys_to_virt, pte_t, vm_area_struct, vm_fault, vm_fault_t,
)

# Events after which a Cpu folds its rss deltas into the mm.
cdef enum:
    TASK_RSS_EVENTS_THRESH = 64

# Context: mmap_sem held for reading (or the strategy's equivalent for this VMA), IRQs on, may sleep.
# `address` inside the VMA, access already checked. 0/VM_FAULT_*.
cdef vm_fault_t handle_mm_fault(Cpu *cpu, vm_area_struct *vma, unsigned long address, u32 flags) noexcept nogil
# From the PTE level on; vmf->pmd points to a present table. Used by speculative strategies with
# FAULT_FLAG_SPECULATIVE: then nothing is allocated below a missing PMD and locks are taken through
# the strategy's pte_map_lock/pte_spinlock, VM_FAULT_RETRY when they refuse.
cdef vm_fault_t handle_pte_fault(Cpu *cpu, vm_fault *vmf) noexcept nogil
# pte_map_lock()/pte_spinlock() of the SPF series: classic or the strategy's, by vmf->flags.
cdef bint pte_map_lock(Cpu *cpu, vm_fault *vmf) noexcept nogil
cdef bint pte_spinlock(Cpu *cpu, vm_fault *vmf) noexcept nogil
# Stands in for do_user_addr_fault's checks: may `flags` (WRITE, INSTRUCTION) go to a VMA with vm_flags?
cdef bint access_error(unsigned long vm_flags, u32 flags) noexcept nogil

# SPLIT_RSS_COUNTING: deltas per Cpu, folded every 64 events and at switch_mm.
# Context: any with IRQs on; the mm whose deltas these are is alive.
cdef void sync_mm_rss(Cpu *cpu) noexcept nogil

# Context: any with IRQs on; the Cpu drives `mm`, or holds mmap_sem of it.
# Deltas are kept per Cpu for the mm that is active on it (so switch_mm() folds them before the mm can die), and
# added to the mm directly for any other.
cdef inline void add_mm_rss(Cpu *cpu, mm_struct *mm, int member, long value) noexcept nogil:
    if unlikely(cpu.rss_mm != mm):
        if cpu.active_mm != mm:
            atomic_add(cpu, <unsigned long *>&mm.rss_stat[member], <unsigned long>value)
            return
        sync_mm_rss(cpu)
        cpu.rss_mm = mm
    cpu.rss_stat[member] += value
    cpu.rss_events += 1
    if unlikely(cpu.rss_events >= <u32>TASK_RSS_EVENTS_THRESH):
        sync_mm_rss(cpu)

# Context: PTL held, or the entry is known not to change kind. The struct page behind a present entry, NULL for the
# zero page.
cdef inline page *vm_normal_page(machine *m, const arch_ops *arch, pte_t pte) noexcept nogil:
    if unlikely(arch.pte_special(pte)):
        return NULL
    return pfn_to_page(m, arch.pte_pfn(pte))

# Context: any. The contents of a frame.
cdef inline void *page_address(machine *m, const arch_ops *arch, page *pg) noexcept nogil:
    return phys_to_virt(m, page_to_pfn(m, pg) << arch.page_shift)

# Context: a reference to the page.
cdef inline bint page_is_anon(Cpu *cpu, page *pg) noexcept nogil:
    return (READ_ONCE(cpu, &pg.flags) & PG_anon) != 0

# Context: an anonymous page; the PTL of a mapping of it, or a reference and a re-check of the entry (lockless GUP).
cdef inline bint page_anon_exclusive(Cpu *cpu, page *pg) noexcept nogil:
    return (READ_ONCE(cpu, &pg.flags) & PG_anon_exclusive) != 0

# Context: the PTL of the only mapping of an anonymous page: nobody else changes its flags.
cdef inline void set_page_anon_exclusive(Cpu *cpu, page *pg, bint exclusive) noexcept nogil:
    cdef unsigned long flags = READ_ONCE(cpu, &pg.flags) & ~PG_anon_exclusive
    WRITE_ONCE(cpu, &pg.flags, flags | PG_anon_exclusive if exclusive else flags)

# Context: as the fault's copy; `to` is a new page that nobody else knows.
cdef inline void copy_user_page(Cpu *cpu, void *to, const void *src, size_t size) noexcept nogil:
    memcpy(to, src, size)
    if unlikely(cpu.engine != NULL):
        kmm_emit(cpu, KMM_EV_COPY, src, <size_t>to)

# Context: a reference to the page.
cdef inline int mm_counter(Cpu *cpu, page *pg) noexcept nogil:
    return <int>MM_ANONPAGES if page_is_anon(cpu, pg) else <int>MM_FILEPAGES

# Context: PTL held; the entry is none, so no hardware walker writes it.
cdef inline void set_pte(Cpu *cpu, pte_t *ptep, pte_t pte) noexcept nogil:
    smp_wmb(cpu)  # the page's contents first: pairs with the address dependency of the hardware walker
    WRITE_ONCE(cpu, ptep, pte)

# Context: any.
cdef inline pte_t maybe_mkwrite(const arch_ops *arch, pte_t pte, unsigned long vm_flags) noexcept nogil:
    return arch.pte_mkwrite(pte) if vm_flags & VM_WRITE else pte

# Context: mmap_sem held, or SPF (then vm_start and vm_pgoff may not belong together: the result is only used after
# the sequence was found unchanged).
cdef inline unsigned long linear_page_index(Cpu *cpu, vm_area_struct *vma, unsigned long address) noexcept nogil:
    return ((address - READ_ONCE(cpu, &vma.vm_start)) >> vma.vm_mm.arch.page_shift) + READ_ONCE(cpu, &vma.vm_pgoff)
