# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the stress loops are timed against each other)
"""lib/test_*.c: stands in for such modules: a machine with a minimal fault handler, driven from Python tests.

Tests page_alloc, pgtable, mmu_gather, memory and tlb without the VMA layer: an address space here is one range with
one set of VM_ flags. Not part of the API.
"""
from libc.errno cimport ENOMEM
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import os

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.kernel.atomic cimport READ_ONCE, WRITE_ONCE, xchg
from pykmm_ext.kernel.rcu cimport rcu_barrier
from pykmm_ext.kernel.spinlock cimport spin_lock_init, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport (
    IPI_HANDLED, IPI_SENT, NR_PGTABLE_ALLOC, NR_PGTABLE_FREE, PGALLOC, PGFAULT, PGFREE, PGMAJFAULT, TLB_FLUSH_LOCAL,
    TLB_FLUSH_RECEIVED, TLB_FLUSH_REMOTE, TLB_HIT, TLB_MISS, Cpu, u32, u64,
)
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable
from pykmm_ext.machine.memory cimport machine_commit, machine_create, machine_destroy, machine_leaks
from pykmm_ext.machine.tlb cimport copy_from_user, copy_to_user, switch_mm, user_touch, validate_tlb, walk_page_table
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_INSTRUCTION, FAULT_FLAG_WRITE, KMM_MAX_LEVELS, VM_EXEC, VM_FAULT_BADACCESS,
    VM_FAULT_BADMAP, VM_FAULT_OOM, VM_FAULT_SIGSEGV, VM_READ, VM_SHARED, VM_WRITE, arch_ops, mm_struct,
    mmu_gather, page, page_to_pfn, pfn_to_page, pmd_t, pte_t, strategy_ops, vm_fault_t,
)
from pykmm_ext.mm.mmu_gather cimport (
    tlb_finish_mmu, tlb_flush_mmu, tlb_gather_mmu, tlb_remove_page, tlb_remove_table, tlb_track_range,
)
from pykmm_ext.mm.page_alloc cimport (
    __GFP_ZERO, __free_pages, alloc_page, alloc_pages, drain_local_pages, get_page, nr_used_pages, put_page,
    put_zeroed_page,
)
from pykmm_ext.mm.page_alloc_validate cimport validate_zone
from pykmm_ext.mm.pgtable cimport (
    mm_alloc_pmd, mm_find_pmd, pgd_alloc, pgd_free, pte_alloc, pte_lockptr, pte_offset, pte_offset_map_lock,
    table_page_free,
)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)


# Context: as strategy_ops.handle_fault.
cdef vm_fault_t rig_handle_fault(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil:
    cdef rig_mm *r = <rig_mm *>mm.strategy_data
    cdef const arch_ops *arch = mm.arch
    cdef spinlock_t *ptl = NULL
    cdef page *p
    cdef pmd_t *pmd
    cdef pte_t *pte
    cdef pte_t entry
    r.faults += 1
    if r.result:
        return r.result
    if address < r.start or address >= r.end:
        return VM_FAULT_SIGSEGV | VM_FAULT_BADMAP
    if flags & FAULT_FLAG_WRITE and not r.vm_flags & VM_WRITE:
        return VM_FAULT_SIGSEGV | VM_FAULT_BADACCESS
    if flags & FAULT_FLAG_INSTRUCTION and not r.vm_flags & VM_EXEC:
        return VM_FAULT_SIGSEGV | VM_FAULT_BADACCESS
    if not r.vm_flags & (VM_READ | VM_WRITE | VM_EXEC):
        return VM_FAULT_SIGSEGV | VM_FAULT_BADACCESS
    pmd = mm_alloc_pmd(cpu, mm, address)
    if pmd == NULL or pte_alloc(cpu, mm, pmd) != 0:
        return VM_FAULT_OOM
    p = alloc_page(cpu, __GFP_ZERO)
    if p == NULL:
        return VM_FAULT_OOM
    pte = pte_offset_map_lock(cpu, mm, pmd, address, &ptl)
    entry = READ_ONCE(cpu, pte)
    if arch.pte_none(entry):
        entry = arch.pfn_pte(page_to_pfn(mm.machine, p), arch.vm_get_page_prot(r.vm_flags | VM_SHARED))
        if flags & FAULT_FLAG_WRITE:
            entry = arch.pte_mkdirty(entry)
        WRITE_ONCE(cpu, pte, entry)
        p = NULL
    spin_unlock(cpu, ptl)
    if p != NULL:
        put_page(cpu, p)
    return 0


# What a gather called, in order: kind * 16 + references of the watched page at that moment.
cdef enum:
    FLUSH_RANGE = 1
    FLUSH_RANGE_FREED_TABLES
    FLUSH_MM
    REMOVE_TABLES


cdef void record(mm_struct *mm, u32 kind) noexcept nogil:
    cdef rig_mm *r = <rig_mm *>mm.strategy_data
    if r.nr_records < 64:
        r.records[r.nr_records] = kind * 16 + (r.watched._refcount if r.watched != NULL else 0)
        r.nr_records += 1


cdef void recording_flush_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end,
                                int freed_tables) noexcept nogil:
    record(mm, FLUSH_RANGE_FREED_TABLES if freed_tables else FLUSH_RANGE)
    (<rig_mm *>mm.strategy_data).real.flush_tlb_range(cpu, mm, start, end, freed_tables)


cdef void recording_flush_mm(Cpu *cpu, mm_struct *mm) noexcept nogil:
    record(mm, FLUSH_MM)
    (<rig_mm *>mm.strategy_data).real.flush_tlb_mm(cpu, mm)


cdef void recording_remove_tables(Cpu *cpu, mmu_gather *tlb) noexcept nogil:
    record(tlb.mm, REMOVE_TABLES)
    (<rig_mm *>tlb.mm.strategy_data).real.tlb_remove_tables(cpu, tlb)


cdef strategy_ops rig_strategy
memset(&rig_strategy, 0, sizeof(rig_strategy))
rig_strategy.size = sizeof(strategy_ops)
rig_strategy.name = b"rig"
rig_strategy.handle_fault = rig_handle_fault


cdef void free_tables(Cpu *cpu, mm_struct *mm, unsigned long table, u32 level) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long *entries = <unsigned long *>(mm.machine.mem_base + table)
    cdef unsigned long i
    for i in range(<unsigned long>1 << arch.level_bits[level]):
        if arch.table_none(entries[i]):
            continue
        if level:
            if not arch.table_leaf(entries[i], level):
                free_tables(cpu, mm, arch.table_paddr(entries[i]), level - 1)
        elif arch.pte_present(entries[i]) and not arch.pte_special(entries[i]):
            put_page(cpu, pfn_to_page(mm.machine, arch.pte_pfn(entries[i])))
    if level < arch.levels - 1:
        table_page_free(cpu, mm, pfn_to_page(mm.machine, table >> arch.page_shift))


EVENTS = {
    "PGFAULT": PGFAULT, "PGMAJFAULT": PGMAJFAULT, "PGALLOC": PGALLOC, "PGFREE": PGFREE,
    "NR_PGTABLE_ALLOC": NR_PGTABLE_ALLOC, "NR_PGTABLE_FREE": NR_PGTABLE_FREE, "TLB_HIT": TLB_HIT, "TLB_MISS": TLB_MISS,
    "TLB_FLUSH_LOCAL": TLB_FLUSH_LOCAL, "TLB_FLUSH_REMOTE": TLB_FLUSH_REMOTE,
    "TLB_FLUSH_RECEIVED": TLB_FLUSH_RECEIVED, "IPI_SENT": IPI_SENT, "IPI_HANDLED": IPI_HANDLED,
}


cdef Cpu *rig_cpu(Rig rig, int n) except NULL:
    if rig.m == NULL or n < 0 or n >= <int>rig.m.nr_cpus:
        raise ValueError("no such Cpu")
    return rig.m.cpus[n]


cdef class Space:
    """An address space of a Rig: one range, one set of VM_ flags."""

    @property
    def pgd(self):
        return self.r.mm.pgd

    @property
    def nr_ptes(self):
        return self.r.mm.nr_ptes

    @property
    def faults(self):
        return self.r.faults

    @property
    def cpumask(self):
        return [i for i in range(self.rig.m.nr_cpus) if self.r.mm.mm_cpumask[i // 64] >> (i % 64) & 1]

    def answer(self, u32 result):
        """Every fault from now on is answered with these VM_FAULT_ bits; 0 = resolve it."""
        self.r.result = result

    def walk(self, unsigned long address):
        """[(table, index, raw), ...] from the root."""
        cdef unsigned long paddrs[KMM_MAX_LEVELS]
        cdef unsigned long raw[KMM_MAX_LEVELS]
        cdef u32 index[KMM_MAX_LEVELS]
        cdef int n = walk_page_table(self.rig.m.cpus[0], &self.r.mm, address, paddrs, index, raw)
        return [(paddrs[i], index[i], raw[i]) for i in range(n)]

    def set_entry(self, unsigned long address, u32 level, unsigned long raw, int cpu=0):
        """Store a raw entry, making the tables above it; no flush. Returns the old one. MemoryError."""
        cdef mm_struct *mm = &self.r.mm
        cdef Cpu *c = rig_cpu(self.rig, cpu)
        cdef pmd_t *pmd
        cdef unsigned long *slot = NULL
        cdef u32 at
        if level == 0:
            pmd = mm_alloc_pmd(c, mm, address)
            if pmd == NULL or pte_alloc(c, mm, pmd) != 0:
                raise MemoryError
            slot = pte_offset(mm, READ_ONCE(c, pmd), address)
        else:
            walk = self.walk(address)
            at = mm.arch.levels - 1 - level
            if at >= len(walk):
                raise ValueError("no such table")
            slot = <unsigned long *>(mm.machine.mem_base + <unsigned long>walk[at][0]) + <unsigned long>walk[at][1]
        return xchg(c, slot, raw)

    def set_entry_at(self, unsigned long table, unsigned long address, u32 level, unsigned long raw):
        """The same in the table at a physical address, whatever the levels above say."""
        cdef mm_struct *mm = &self.r.mm
        cdef unsigned long mask = (<unsigned long>1 << mm.arch.level_bits[level]) - 1
        cdef unsigned long index = (address >> mm.arch.level_shift[level]) & mask
        return xchg(rig_cpu(self.rig, 0), <unsigned long *>(mm.machine.mem_base + table) + index, raw)

    def find_pmd(self, unsigned long address):
        """Physical address of the level-1 slot, or None."""
        cdef pmd_t *pmd = mm_find_pmd(self.rig.m.cpus[0], &self.r.mm, address)
        return None if pmd == NULL else <unsigned long>pmd - <unsigned long>self.rig.m.mem_base

    def alloc_pmd(self, unsigned long address, int cpu=0):
        cdef pmd_t *pmd = mm_alloc_pmd(rig_cpu(self.rig, cpu), &self.r.mm, address)
        return None if pmd == NULL else <unsigned long>pmd - <unsigned long>self.rig.m.mem_base

    def pte_alloc(self, unsigned long address, int cpu=0):
        cdef Cpu *c = rig_cpu(self.rig, cpu)
        cdef pmd_t *pmd = mm_alloc_pmd(c, &self.r.mm, address)
        return -ENOMEM if pmd == NULL else pte_alloc(c, &self.r.mm, pmd)

    def ptl_is_split(self, unsigned long a, unsigned long b):
        """Do the PTLs of two populated addresses differ?"""
        cdef Cpu *c = rig_cpu(self.rig, 0)
        cdef pmd_t pa = READ_ONCE(c, mm_find_pmd(c, &self.r.mm, a))
        cdef pmd_t pb = READ_ONCE(c, mm_find_pmd(c, &self.r.mm, b))
        return pte_lockptr(c, &self.r.mm, pa) != pte_lockptr(c, &self.r.mm, pb)

    def flush(self, int cpu, str what, unsigned long start=0, unsigned long end=0):
        cdef mm_struct *mm = &self.r.mm
        cdef Cpu *c = rig_cpu(self.rig, cpu)
        cdef int kind = ("mm", "range", "page", "serialize").index(what)
        with nogil:
            if kind == 0:
                mm.arch.flush_tlb_mm(c, mm)
            elif kind == 1:
                mm.arch.flush_tlb_range(c, mm, start, end, 0)
            elif kind == 2:
                mm.arch.flush_tlb_page(c, mm, start)
            else:
                mm.arch.serialize_against_pte_lookup(c, mm)

    def watch(self, unsigned long pfn):
        """Note the references of this frame with everything that is recorded from now on."""
        self.r.watched = pfn_to_page(self.rig.m, pfn)

    @property
    def records(self):
        """[(what, references of the watched frame), ...] of a recording Rig."""
        names = {<int>FLUSH_RANGE: "range", <int>FLUSH_RANGE_FREED_TABLES: "range+tables", <int>FLUSH_MM: "mm",
                 <int>REMOVE_TABLES: "remove_tables"}
        return [(names[self.r.records[i] // 16], self.r.records[i] % 16) for i in range(self.r.nr_records)]

    def unmap(self, int cpu, unsigned long start, unsigned long end, bint flush=True, bint tables=False,
              bint fullmm=False):
        """As zap_pte_range and free_pgtables do: clear, gather, flush, free. Returns (pages, times it was full)."""
        cdef mm_struct *mm = &self.r.mm
        cdef Cpu *c = rig_cpu(self.rig, cpu)
        cdef unsigned long size = <unsigned long>1 << mm.arch.page_shift
        cdef unsigned long covers = <unsigned long>1 << mm.arch.level_shift[1]
        cdef unsigned long address = start
        cdef unsigned long pages = 0, full = 0
        cdef spinlock_t *ptl = NULL
        cdef mmu_gather tlb
        cdef bint stop
        cdef pmd_t *pmd
        cdef pte_t *pte
        cdef pte_t old
        with nogil:
            tlb_gather_mmu(c, &tlb, mm, fullmm)
            while address < end:
                pmd = mm_find_pmd(c, mm, address)
                if pmd != NULL and not mm.arch.table_none(READ_ONCE(c, pmd)):
                    pte = pte_offset_map_lock(c, mm, pmd, address, &ptl)
                    old = xchg(c, pte, 0)
                    stop = False
                    if not mm.arch.pte_none(old):
                        tlb_track_range(&tlb, address, size)
                        stop = tlb_remove_page(c, &tlb, pfn_to_page(mm.machine, mm.arch.pte_pfn(old)))
                        pages += 1
                    spin_unlock(c, ptl)
                    if stop:
                        full += 1
                        tlb_flush_mmu(c, &tlb)
                address += size
            address = start
            while tables and address < end:
                pmd = mm_find_pmd(c, mm, address)
                if pmd != NULL and not mm.arch.table_none(READ_ONCE(c, pmd)):
                    old = xchg(c, pmd, 0)
                    tlb_remove_table(&tlb, pfn_to_page(mm.machine, mm.arch.table_paddr(old) >> mm.arch.page_shift),
                                     address & ~(covers - 1), covers)
                address += covers
            if not flush: # what a forgotten flush would look like
                tlb.start = ~<unsigned long>0
                tlb.end = 0
                tlb.freed_tables = 0
            tlb_finish_mmu(c, &tlb)
        return pages, full

    def free(self, int cpu=0):
        """Gives every table and every mapped frame back. No Cpu has it active."""
        cdef Cpu *c = rig_cpu(self.rig, cpu)
        if self.r == NULL:
            return
        assert not self.cpumask, "still active"
        free_tables(c, &self.r.mm, self.r.mm.pgd, self.r.mm.arch.levels - 1)
        pgd_free(c, &self.r.mm)
        left = self.r.mm.nr_ptes
        free(self.r.mm.mm_cpumask)
        free(self.r)
        self.r = NULL
        assert left == 0, f"{left} page tables left"


cdef class Rig:
    """A machine whose parts can be called one by one."""

    def __init__(self, Arch arch, u32 cpus=1, u64 memory=16 << 20, bint record=False):
        cdef int err = 0
        cdef const arch_ops *ops = arch_get_ops(arch)
        if self.m != NULL:
            raise ValueError("already made")
        self.arch = arch
        if record:
            memcpy(&self.recorder, ops, sizeof(arch_ops))
            self.recorder.flush_tlb_range = recording_flush_range
            self.recorder.flush_tlb_mm = recording_flush_mm
            self.recorder.tlb_remove_tables = recording_remove_tables
            ops = &self.recorder
        with nogil:
            self.m = machine_create(cpus, memory, ops, &rig_strategy, NULL, &err)
        if self.m == NULL:
            raise OSError(-err, os.strerror(-err))

    def __dealloc__(self):
        if self.m != NULL:
            machine_destroy(self.m, NULL)

    def destroy(self):
        """Ends the machine; returns what had leaked."""
        cdef machine_leaks leaks
        if self.m == NULL:
            raise ValueError("destroyed")
        with nogil:
            machine_destroy(self.m, &leaks)
        self.m = NULL
        return {"mms": leaks.mms, "vmas": leaks.vmas, "anon_vmas": leaks.anon_vmas, "avcs": leaks.avcs,
                "files": leaks.files, "frames": leaks.frames}

    # ---- physical memory ----

    def alloc(self, int cpu=0, u32 order=0, bint zero=False):
        """pfn, or None when memory is out."""
        cdef page *p = alloc_pages(rig_cpu(self, cpu), __GFP_ZERO if zero else 0, order)
        return None if p == NULL else page_to_pfn(self.m, p)

    def get(self, unsigned long pfn, int cpu=0):
        get_page(rig_cpu(self, cpu), pfn_to_page(self.m, pfn))

    def put(self, unsigned long pfn, int cpu=0):
        put_page(rig_cpu(self, cpu), pfn_to_page(self.m, pfn))

    def put_zeroed(self, unsigned long pfn, int cpu=0):
        put_zeroed_page(rig_cpu(self, cpu), pfn_to_page(self.m, pfn))

    def free_pages(self, unsigned long pfn, u32 order, int cpu=0):
        __free_pages(rig_cpu(self, cpu), pfn_to_page(self.m, pfn), order)

    def refcount(self, unsigned long pfn):
        return pfn_to_page(self.m, pfn)._refcount

    def set_mapcount(self, unsigned long pfn, u32 n):
        pfn_to_page(self.m, pfn)._mapcount = n

    def flags(self, unsigned long pfn):
        return pfn_to_page(self.m, pfn).flags

    def set_flags(self, unsigned long pfn, unsigned long flags):
        pfn_to_page(self.m, pfn).flags = flags

    def drain(self, int cpu=0):
        drain_local_pages(rig_cpu(self, cpu))

    def pcp_count(self, int cpu=0):
        return rig_cpu(self, cpu).pcp.count

    def commit(self, unsigned long frames):
        with nogil:
            machine_commit(self.m, frames)

    @property
    def zone(self):
        return {"nr_free_pages": self.m.zone.nr_free_pages, "pristine_pfn": self.m.zone.pristine_pfn,
                "committed_pfn": self.m.zone.committed_pfn, "end_pfn": self.m.zone.end_pfn,
                "pcp_high": self.m.zone.pcp_high, "pcp_batch": self.m.zone.pcp_batch,
                "nr_free": [self.m.zone.free_area[i].nr_free for i in range(11)],
                "zero_page": page_to_pfn(self.m, self.m.zero_page), "nr_frames": self.m.nr_frames}

    def used(self):
        return nr_used_pages(self.m)

    def wait(self, int cpu=0):
        """Until every callback that is queued now has run: page tables freed by RCU are free."""
        cdef Cpu *c = rig_cpu(self, cpu)
        with nogil:
            rcu_barrier(c)

    def validate(self):
        """AssertionError with what and where."""
        cdef unsigned long pfn = 0
        cdef const char *message
        with nogil:
            message = validate_zone(self.m, &pfn)
        if message != NULL:
            raise AssertionError(f"{message.decode()} (pfn {pfn})")

    def read(self, unsigned long paddr, unsigned long n):
        if paddr + n > self.m.nr_frames << self.m.arch.page_shift:
            raise ValueError("beyond memory")
        return self.m.mem_base[paddr:paddr + n]

    def write(self, unsigned long paddr, bytes data):
        if paddr + len(data) > self.m.nr_frames << self.m.arch.page_shift:
            raise ValueError("beyond memory")
        memcpy(self.m.mem_base + paddr, <const char *>data, len(data))

    # ---- address spaces ----

    def space(self, unsigned long start=0, unsigned long end=0, unsigned long vm_flags=0, int cpu=0):
        cdef Space s = Space.__new__(Space)
        cdef Cpu *c = rig_cpu(self, cpu)
        cdef void *memory = NULL
        cdef mm_struct *mm
        if posix_memalign(&memory, 128, sizeof(rig_mm)) != 0:
            raise MemoryError
        memset(memory, 0, sizeof(rig_mm))
        s.r = <rig_mm *>memory
        s.rig = self
        s.r.start = start
        s.r.end = end
        s.r.vm_flags = vm_flags
        s.r.real = arch_get_ops(self.arch)
        mm = &s.r.mm
        mm.machine = self.m
        mm.arch = self.m.arch
        mm.strategy = self.m.strategy
        mm.strategy_data = s.r
        mm.task_size = self.m.arch.task_size
        spin_lock_init(&mm.page_table_lock)
        mm.mm_cpumask = <unsigned long *>malloc(self.m.cpumask_words * sizeof(long))
        if mm.mm_cpumask == NULL or pgd_alloc(c, mm) != 0:
            free(mm.mm_cpumask)
            free(memory)
            s.r = NULL
            raise MemoryError
        memset(mm.mm_cpumask, 0, self.m.cpumask_words * sizeof(long))
        return s

    def switch(self, int cpu, Space space):
        cdef Cpu *c = rig_cpu(self, cpu)
        cdef mm_struct *mm = NULL if space is None else &space.r.mm
        with nogil:
            switch_mm(c, mm)

    def touch(self, int cpu, unsigned long address, u32 access=0):
        """0, or (errno, fault_code, fault_address)."""
        cdef Cpu *c = rig_cpu(self, cpu)
        cdef int err
        with nogil:
            err = user_touch(c, address, access)
        return fault_of(c, err)

    def load(self, int cpu, unsigned long address, unsigned long n):
        cdef Cpu *c = rig_cpu(self, cpu)
        cdef bytearray data = bytearray(n)
        cdef char *p = data
        cdef int err
        with nogil:
            err = copy_from_user(c, p, address, n)
        return bytes(data) if err == 0 else fault_of(c, err)

    def store(self, int cpu, unsigned long address, bytes data):
        cdef Cpu *c = rig_cpu(self, cpu)
        cdef const char *p = data
        cdef unsigned long n = len(data)
        cdef int err
        with nogil:
            err = copy_to_user(c, address, p, n)
        return fault_of(c, err)

    def hw_walk(self, int cpu, unsigned long address, u32 access):
        """The TLB word, 0 = fault."""
        cdef Cpu *c = rig_cpu(self, cpu)
        cdef unsigned long data
        local_irq_disable(c)
        data = self.m.arch.hw_walk(c, <mm_struct *>c.active_mm, address, access)
        local_irq_enable(c)
        return data

    def validate_tlb(self, int cpu=0):
        """AssertionError with what and where."""
        cdef unsigned long address = 0
        cdef const char *message = validate_tlb(rig_cpu(self, cpu), &address)
        if message != NULL:
            raise AssertionError(f"{message.decode()} ({address:#x})")

    def events(self, int cpu=0):
        cdef Cpu *c = rig_cpu(self, cpu)
        return {name: c.vm_event[<int>number] for name, number in EVENTS.items()}

cdef object fault_of(Cpu *cpu, int err):
    if err == 0:
        return 0
    return -err, cpu.fault_code, cpu.fault_address


def entry(Arch arch, str what, unsigned long a=0, unsigned long b=0):
    """Call one entry function of an arch's table by its name."""
    cdef const arch_ops *ops = arch_get_ops(arch)
    if what == "pte_none":
        return bool(ops.pte_none(a))
    if what == "pte_present":
        return bool(ops.pte_present(a))
    if what == "pte_protnone":
        return bool(ops.pte_protnone(a))
    if what == "pte_write":
        return bool(ops.pte_write(a))
    if what == "pte_dirty":
        return bool(ops.pte_dirty(a))
    if what == "pte_young":
        return bool(ops.pte_young(a))
    if what == "pte_exec":
        return bool(ops.pte_exec(a))
    if what == "pte_special":
        return bool(ops.pte_special(a))
    if what == "pte_soft_dirty":
        return bool(ops.pte_soft_dirty(a))
    if what == "pte_mkwrite":
        return ops.pte_mkwrite(a)
    if what == "pte_wrprotect":
        return ops.pte_wrprotect(a)
    if what == "pte_mkdirty":
        return ops.pte_mkdirty(a)
    if what == "pte_mkclean":
        return ops.pte_mkclean(a)
    if what == "pte_mkyoung":
        return ops.pte_mkyoung(a)
    if what == "pte_mkold":
        return ops.pte_mkold(a)
    if what == "pte_mkspecial":
        return ops.pte_mkspecial(a)
    if what == "vm_get_page_prot":
        return ops.vm_get_page_prot(a)
    if what == "pfn_pte":
        return ops.pfn_pte(a, b)
    if what == "pte_pfn":
        return ops.pte_pfn(a)
    if what == "pte_modify":
        return ops.pte_modify(a, b)
    if what == "mk_table":
        return ops.mk_table(a, <u32>b)
    if what == "table_none":
        return bool(ops.table_none(a))
    if what == "table_bad":
        return bool(ops.table_bad(a))
    if what == "table_leaf":
        return bool(ops.table_leaf(a, <u32>b))
    if what == "table_paddr":
        return ops.table_paddr(a)
    if what == "table_descend":
        return ops.table_descend(a, <u32>b)
    if what == "access_permitted":
        return bool(ops.access_permitted(a, <u32>b))
    raise ValueError(what)
