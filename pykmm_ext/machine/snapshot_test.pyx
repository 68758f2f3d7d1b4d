# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (measuring loops: they must cost as little as what they drive)
"""machine/snapshot's self-test: a machine in a region, random work on it, and copying it back.

One OS thread drives all of its Cpus in turn, as the check engine does.
"""
from libc.errno cimport ENOMEM
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import os

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.kernel.random32 cimport xorshift
from pykmm_ext.kernel.rwsem cimport down_read, down_write
from pykmm_ext.kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from pykmm_ext.kernel.spinlock cimport spin_lock
from pykmm_ext.kernel.timekeeping cimport now_ns
from pykmm_ext.machine.cpu cimport Cpu, u8, u32, u64
from pykmm_ext.machine.irq cimport local_irq_disable
from pykmm_ext.machine.memory cimport (
    machine_count, machine_create_checked, machine_destroy, machine_leaks, machine_quiesce,
)
from pykmm_ext.machine.region cimport KMM_SHADOW_NEVER, KMM_SHADOW_STATE, region_of, region_t
from pykmm_ext.machine.snapshot cimport (
    machine_is_restored, machine_member_name, machine_object_name, machine_restore, machine_shadow_state,
    machine_snapshot, machine_snapshot_size,
)
from pykmm_ext.machine.tlb cimport copy_from_user, copy_to_user, switch_mm
from pykmm_ext.mm.filemap cimport file_create, fput
from pykmm_ext.mm.fork cimport dup_mm, mm_alloc, mmput
from pykmm_ext.mm.madvise cimport do_madvise
from pykmm_ext.mm.mm_types cimport (
    KMEM_VMA, arch_ops, file, machine, mm_struct, page, page_to_pfn, pfn_to_page, pmd_t, strategy_ops, vma_write_begin,
)
from pykmm_ext.mm.mmap cimport find_vma, ksys_mmap, vm_munmap
from pykmm_ext.mm.mprotect cimport do_mprotect
from pykmm_ext.mm.mremap cimport sys_mremap
from pykmm_ext.mm.page_alloc cimport __GFP_ZERO, alloc_page, put_page
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr
from pykmm_ext.mm.validate cimport validate_machine, violation
from pykmm_ext.strategy cimport Strategy, strategy_get_ops

cdef enum:
    PAGES = 32              # the window in which everything happens
    MAX_MMS = 4
    PROT_R = 1
    PROT_RW = 3
    SHARED_FIXED = 0x11
    PRIVATE_FIXED = 0x12
    ANON_FIXED = 0x32
    DONTNEED = 4
    MAYMOVE = 1

cdef unsigned long BASE = 0x10000000


cdef inline u64 draw(u64 *state) noexcept nogil:
    return xorshift(state) >> 8


# Context: as the engine's thread; no Cpu runs. Takes it off every Cpu.
cdef void end_mm(machine *m, Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef u32 i
    for i in range(m.nr_cpus):
        if m.cpus[i].active_mm == <void *>mm:
            switch_mm(m.cpus[i], NULL)
    mmput(cpu, mm)


# One random operation of a random address space on a random Cpu.
cdef void step(machine *m, file *f, u64 *seed) noexcept nogil:
    cdef Cpu *cpu = m.cpus[draw(seed) % m.nr_cpus]
    cdef mm_struct *mm = m.mmlist
    cdef u32 shift = m.arch.page_shift
    cdef u64 word = draw(seed)
    cdef unsigned long first = draw(seed) % PAGES
    cdef unsigned long count = 1 + draw(seed) % (PAGES - first)
    cdef unsigned long address = BASE + (first << shift)
    cdef unsigned long length = count << shift
    cdef u64 what = draw(seed) % 16
    cdef u32 mms = 0, skip
    cdef int err = 0
    while mm != NULL:
        mms += 1
        mm = mm.mmlist_next
    mm = m.mmlist
    skip = draw(seed) % mms
    while skip:
        mm = mm.mmlist_next
        skip -= 1
    if what < 3:
        if what == 0:
            ksys_mmap(cpu, mm, address, length, PROT_RW, ANON_FIXED, NULL, 0)
        elif what == 1:
            ksys_mmap(cpu, mm, address, length, PROT_RW, PRIVATE_FIXED, f, first << shift)
        else:
            ksys_mmap(cpu, mm, address, length, PROT_RW, SHARED_FIXED, f, 0)
    elif what == 3:
        vm_munmap(cpu, mm, address, length)
    elif what == 4:
        do_mprotect(cpu, mm, address, length, PROT_R if word & 1 else PROT_RW)
    elif what == 5:
        do_madvise(cpu, mm, address, length, DONTNEED)
    elif what == 6:
        sys_mremap(cpu, mm, address, 1 << shift, 2 << shift, MAYMOVE, 0)
    elif what == 7:
        if mms < MAX_MMS:
            dup_mm(cpu, mm, &err)
    elif what == 8:
        if mms > 1:
            end_mm(m, cpu, mm)
    else:
        switch_mm(cpu, mm)
        address += word & 0xff8
        if what < 13:
            copy_to_user(cpu, address, &word, 8)
        else:
            copy_from_user(cpu, &word, address, 8)


# 64-bit hash of n bytes; n is a multiple of 8 but for the frame states.
cdef u64 hash_bytes(u64 h, const u8 *p, size_t n) noexcept nogil:
    cdef u64 word = 0
    while n >= 8:
        memcpy(&word, p, 8)
        h = (h ^ word) * <u64>0x9e3779b97f4a7c15
        h ^= h >> 29
        p += 8
        n -= 8
    while n:
        h = (h ^ p[0]) * <u64>0x9e3779b97f4a7c15
        p += 1
        n -= 1
    return h


cdef const char *found_bug = NULL


cdef void note_bug(Cpu *cpu, const char *message, const void *obj) noexcept nogil:
    global found_bug
    found_bug = message


cdef class CheckedMachine:
    """A machine in one region with one address space and one file of 16 pages.

    :param arch: an :class:`pykmm_ext.arch.Arch`
    :param strategy: a :class:`pykmm_ext.strategy.Strategy`
    :param cpus: 1 to 64
    :param memory: bytes of physical memory; each Cpu has its share of the frames
    """
    cdef machine *m
    cdef file *f
    cdef Arch arch
    cdef Strategy strategy

    def __init__(self, Arch arch not None, Strategy strategy not None, unsigned cpus=2, u64 memory=64 << 20):
        cdef const arch_ops *ops = arch_get_ops(arch)
        cdef const strategy_ops *sops = strategy_get_ops(strategy)
        cdef void *priv = strategy.priv
        cdef int err = 0
        cdef machine *m
        if self.m != NULL:
            raise ValueError("this machine is already built")
        self.arch = arch
        self.strategy = strategy
        with nogil:
            m = machine_create_checked(cpus, memory, ops, sops, priv, &err)
            if m != NULL:
                self.m = m
                self.f = file_create(m.cpus[0], m, b"file", b"contents", 8, 16 << ops.page_shift, 0, 0, 1)
                if self.f == NULL or mm_alloc(m.cpus[0], m, &err) == NULL:
                    err = -ENOMEM
        if err:
            raise OSError(-err, os.strerror(-err))

    def __dealloc__(self):
        if self.m != NULL:
            machine_destroy(self.m, NULL)

    def run(self, u64 seed, unsigned long steps):
        """That many random operations."""
        cdef unsigned long _i
        cdef u64 state = seed * 2 + 1
        with nogil:
            for _i in range(steps):
                step(self.m, self.f, &state)

    def snapshot(self):
        """Remember everything; how many bytes that is."""
        cdef int err
        with nogil:
            err = machine_snapshot(self.m)
        if err:
            raise MemoryError
        return machine_snapshot_size(self.m)

    def restore(self):
        """Everything as it was at snapshot()."""
        with nogil:
            machine_restore(self.m)

    @property
    def restored(self):
        """Is every byte as it was at snapshot()?"""
        return machine_is_restored(self.m)

    @property
    def exhausted(self):
        """Allocations that failed for want of room since the last restore()."""
        return region_of(self.m).exhausted

    def digest(self):
        """A hash of every byte in use. Frames that a block of several has skipped, to be aligned, are not."""
        cdef region_t *r = region_of(self.m)
        cdef u64 h = 1
        cdef u32 i
        cdef unsigned long pfn
        for i in range(r.nr_slices):
            h = hash_bytes(h, r.slices[i].base, r.slices[i].next - r.slices[i].base)
            h = hash_bytes(h, r.shadow + (r.slices[i].base - r.heap) // 16,
                           (r.slices[i].next - r.slices[i].base) // 16)
            for pfn in range(r.slices[i].pfn, r.slices[i].pfn_next):
                if r.frame_state[pfn] & KMM_SHADOW_STATE != KMM_SHADOW_NEVER:
                    h = hash_bytes(h, r.mem_base + (pfn << r.page_shift), <size_t>1 << r.page_shift)
            h = hash_bytes(h, <u8 *>(r.mem_map + r.slices[i].pfn),
                           (r.slices[i].pfn_next - r.slices[i].pfn) * sizeof(page))
            h = hash_bytes(h, r.frame_state + r.slices[i].pfn, r.slices[i].pfn_next - r.slices[i].pfn)
        return h

    def validate(self):
        """What a walker finds wrong, or None."""
        cdef violation found
        with nogil:
            validate_machine(self.m, &found)
        return None if found.message == NULL else f"{found.message.decode()}: {bytes(found.place).decode()}"

    def close_all(self):
        """End every address space and the file, wait for deferred work; what is alive then, by kind."""
        cdef machine_leaks left
        with nogil:
            while self.m.mmlist != NULL:
                end_mm(self.m, self.m.cpus[0], self.m.mmlist)
            fput(self.m.cpus[0], self.f)
            machine_quiesce(self.m)
            machine_count(self.m, &left)
        return dict(left)

    def abandon(self):
        """Leave off in the middle: locks held, IRQs off, a write section open, objects and frames in nobody's hands."""
        cdef Cpu *cpu = self.m.cpus[0]
        cdef mm_struct *mm = self.m.mmlist
        cdef u32 _i
        with nogil:
            ksys_mmap(cpu, mm, BASE, 4 << mm.arch.page_shift, PROT_RW, ANON_FIXED, NULL, 0)
            down_write(cpu, &mm.mmap_sem)
            vma_write_begin(cpu, find_vma(cpu, mm, BASE), 0)
            down_read(cpu, &self.f.f_mapping.i_mmap_rwsem)
            spin_lock(cpu, &self.m.lock)
            spin_lock(cpu, &mm.page_table_lock)
            local_irq_disable(cpu)
            for _i in range(100):
                kmem_cache_alloc(cpu, &self.m.caches[KMEM_VMA])
                alloc_page(cpu, 0)

    def damage(self, str what):
        """Break something that validate() must see."""
        cdef Cpu *cpu = self.m.cpus[0]
        cdef page *p
        cdef void *obj
        if what == "frame":
            p = alloc_page(cpu, 0)
            put_page(cpu, p)
            (self.m.mem_base + (page_to_pfn(self.m, p) << self.m.arch.page_shift))[100] = 0
        elif what == "object":
            obj = kmem_cache_alloc(cpu, &self.m.caches[KMEM_VMA])
            kmem_cache_free(cpu, &self.m.caches[KMEM_VMA], obj)
            (<u8 *>obj)[100] = 0
        elif what == "lost frame":
            p = alloc_page(cpu, 0)
            p._refcount = 0
        else:
            raise ValueError(what)

    def provoke(self, str what):
        """Make the allocator find a broken object; what it says."""
        global found_bug
        cdef Cpu *cpu = self.m.cpus[0]
        cdef page *p = alloc_page(cpu, 0)
        cdef void *obj = kmem_cache_alloc(cpu, &self.m.caches[KMEM_VMA])
        found_bug = NULL
        region_of(self.m).bug = note_bug
        if what == "object twice":
            kmem_cache_free(cpu, &self.m.caches[KMEM_VMA], obj)
            kmem_cache_free(cpu, &self.m.caches[KMEM_VMA], obj)
        elif what == "inside an object":
            kmem_cache_free(cpu, &self.m.caches[KMEM_VMA], <u8 *>obj + 16)
        elif what == "frame twice":
            put_page(cpu, p)
            put_page(cpu, p)
        elif what == "mapped frame":
            p._mapcount = 1
            put_page(cpu, p)
        region_of(self.m).bug = NULL
        return None if found_bug == NULL else found_bug.decode()

    # ---- addresses ----

    def mmap(self, unsigned long address, unsigned long length):
        """Anonymous private memory at a fixed address of the newest address space, each page written."""
        cdef Cpu *cpu = self.m.cpus[0]
        cdef mm_struct *mm = self.m.mmlist
        cdef long result
        cdef unsigned long at = address
        cdef u8 byte = 1
        with nogil:
            result = ksys_mmap(cpu, mm, address, length, PROT_RW, ANON_FIXED, NULL, 0)
            switch_mm(cpu, mm)
            while at < address + length:
                copy_to_user(cpu, at, &byte, 1)
                at += <unsigned long>1 << mm.arch.page_shift
        return result

    def munmap(self, unsigned long address, unsigned long length):
        cdef long result
        with nogil:
            result = vm_munmap(self.m.cpus[0], self.m.mmlist, address, length)
            machine_quiesce(self.m)
        return result

    def place(self, str what, unsigned long address=0):
        """The host address of something that belongs to `address` of the newest address space."""
        cdef Cpu *cpu = self.m.cpus[0]
        cdef mm_struct *mm = self.m.mmlist
        cdef pmd_t *pmd
        cdef unsigned long pte
        if what == "vma":
            return <size_t>find_vma(cpu, mm, address)
        if what == "mm":
            return <size_t>mm
        if what == "cpu":
            return <size_t>self.m.cpus[address]
        if what == "tlb":
            return <size_t>self.m.cpus[address].tlb
        if what == "machine":
            return <size_t>self.m
        if what == "zone":
            return <size_t>&self.m.zone
        if what == "srcu":
            return <size_t>&self.m.vma_srcu
        if what == "page":
            return <size_t>pfn_to_page(self.m, address)
        if what == "frame":
            return <size_t>self.m.mem_base + (address << self.m.arch.page_shift)
        if what == "pgd":
            return <size_t>self.m.mem_base + mm.pgd
        if what == "file name":
            return <size_t>self.f.name
        pmd = mm_find_pmd(cpu, mm, address)
        if pmd == NULL:
            raise LookupError(address)
        if what == "table":
            return <size_t>self.m.mem_base + mm.arch.table_paddr(pmd[0])
        if what == "ptl":
            return <size_t>pte_lockptr(cpu, mm, pmd[0])
        if what == "data":
            pte = (<unsigned long *>(self.m.mem_base + mm.arch.table_paddr(pmd[0])))[
                (address >> mm.arch.page_shift) & ((<unsigned long>1 << mm.arch.level_bits[0]) - 1)]
            return <size_t>self.m.mem_base + (mm.arch.pte_pfn(pte) << mm.arch.page_shift)
        raise ValueError(what)

    def state(self, size_t address):
        """machine_shadow_state(): "never", "live", "freed" or "foreign"."""
        return ("never", "live", "freed", "foreign")[machine_shadow_state(self.m, <void *>address)]

    def name(self, size_t address):
        """machine_object_name(), the offset, machine_member_name()."""
        cdef u64 offset = 0
        cdef const char *name = machine_object_name(self.m, <void *>address, &offset)
        cdef const char *member = machine_member_name(name, offset)
        return name.decode(), offset, None if member == NULL else member.decode()

    def allocate(self, unsigned cpu=0, bint zero=True):
        """Hand out a VMA and a frame, `zero` or not: (the VMA's address, the frame's number); 0 = no room."""
        cdef Cpu *c = self.m.cpus[cpu]
        cdef void *obj = kmem_cache_alloc(c, &self.m.caches[KMEM_VMA])
        cdef page *p = alloc_page(c, __GFP_ZERO if zero else 0)
        return <size_t>obj, 0 if p == NULL else page_to_pfn(self.m, p)

    def release(self, size_t obj, unsigned long pfn, unsigned cpu=0):
        """Give both back."""
        cdef Cpu *c = self.m.cpus[cpu]
        kmem_cache_free(c, &self.m.caches[KMEM_VMA], <void *>obj)
        put_page(c, pfn_to_page(self.m, pfn))

    def read(self, size_t address, size_t n):
        """Bytes of the host."""
        return (<const char *>address)[:n]

    # ---- rounds ----

    def rounds(self, unsigned long n, unsigned long steps, u64 seed=1):
        """n times: `steps` random operations, then restore(). The nanoseconds of the restores together."""
        cdef u64 state = seed * 2 + 1
        cdef u64 total = 0, start
        cdef unsigned long _i, _k
        with nogil:
            for _i in range(n):
                for _k in range(steps):
                    step(self.m, self.f, &state)
                start = now_ns()
                machine_restore(self.m)
                total += now_ns() - start
        return total

    def time_restore(self, unsigned long n):
        """(nanoseconds per restore() after a few operations, nanoseconds per memcpy() of as many bytes)."""
        cdef size_t size = machine_snapshot_size(self.m)
        cdef u8 *a = <u8 *>malloc(2 * size)
        cdef u64 copying = 0, start
        cdef unsigned long _i
        if a == NULL:
            raise MemoryError
        memset(a, 1, 2 * size)
        restoring = self.rounds(n, 20)
        with nogil:
            for _i in range(n):
                start = now_ns()
                memcpy(a, a + size, size)
                copying += now_ns() - start
        free(a)
        return restoring / n, <double>copying / n
