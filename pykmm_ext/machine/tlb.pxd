# SPDX-License-Identifier: GPL-2.0-only
# The MMU of one Cpu: translation cache, hardware walker, user accesses.
#
# The TLB of a Cpu is touched with that Cpu's IRQs off, or by an IPI handler.
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport machine, mm_struct, vm_fault_t

cdef int tlb_init_cpu(Cpu *cpu) noexcept nogil          # 0 or -ENOMEM
cdef void tlb_destroy_cpu(Cpu *cpu) noexcept nogil
# Context: IRQs off on `cpu`, or its IPI handler.
cdef void local_flush_tlb_mm(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void local_flush_tlb_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil

# Is no Cpu but this one in the mm's cpumask? Context: any, after a full barrier that follows what was changed.
cdef bint tlb_mm_is_local(Cpu *cpu, mm_struct *mm) noexcept nogil
# For an arch with tlb_broadcast: [start, end) of the mm is gone from the TLB of every Cpu, without an interrupt; end = ~0:
# all of it. Context: as arch_ops.flush_tlb_range; spinlocks may be held, IRQs on or off elsewhere.
cdef void tlb_broadcast_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil

# arch_ops.flush_tlb_range of more pages than this flushes the whole mm (tlb_single_page_flush_ceiling).
cdef enum:
    TLB_SINGLE_PAGE_FLUSH_CEILING = 33

# What a flush of [*start, *end) flushes: that, or 0 and ~0 for everything. Context: any.
cdef inline void tlb_flush_window(const mm_struct *mm, unsigned long *start, unsigned long *end) noexcept nogil:
    if (end[0] - start[0]) >> mm.arch.page_shift > TLB_SINGLE_PAGE_FLUSH_CEILING:
        start[0] = 0
        end[0] = ~<unsigned long>0

# Make `mm` the address space of `cpu` (NULL = none): mm_cpumask, TLB, per-CPU rss. IRQs on.
cdef void switch_mm(Cpu *cpu, mm_struct *mm) noexcept nogil

# User accesses of cpu->active_mm; through TLB, walk (which sets A/D), fault (strategy->handle_fault).
# Context: process, IRQs on, no locks; may sleep. 0, or -EFAULT with cpu->fault_address/fault_code set
# (KMM_SEGV_MAPERR, KMM_SEGV_ACCERR, KMM_BUS_ADRERR; the strategy's mistakes: KMM_FAULT_RETURN, _ENDLESS, _KILLED), or
# -ENOMEM (KMM_FAULT_OOM).
cdef int user_touch(Cpu *cpu, unsigned long address, u32 access) noexcept nogil   # access: KMM_ACCESS_*
cdef int copy_from_user(Cpu *cpu, void *to, unsigned long address, unsigned long n) noexcept nogil
cdef int copy_to_user(Cpu *cpu, unsigned long address, const void *src, unsigned long n) noexcept nogil
# What the hardware walker sees: fills entries[] from the root down, returns how many levels
# were read (no A/D side effects). paddrs[i] = table, index[i] = slot, raw[i] = word as in memory.
cdef int walk_page_table(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned long *paddrs,
                         u32 *index, unsigned long *raw) noexcept nogil
# Every translation of the Cpu is what its page table allows; NULL or a static message with *addr. Quiescent only.
cdef const char *validate_tlb(Cpu *cpu, unsigned long *addr) noexcept nogil
