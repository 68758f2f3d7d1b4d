# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (loops that are run against each other, a thread each)
"""lib/test_*.c: stands in for such modules: stress loops over the parts of a machine, one call a thread, and what each of
them has seen that must not be. Not part of the API.
"""
from libc.stdlib cimport free, malloc

from pykmm_ext.kernel.atomic cimport READ_ONCE_32, WRITE_ONCE, WRITE_ONCE_32, atomic_inc_32, xchg
from pykmm_ext.kernel.random32 cimport xorshift
from pykmm_ext.kernel.spinlock cimport spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.machine.machine_test cimport Rig, Space, rig_cpu
from pykmm_ext.machine.tlb cimport copy_from_user, copy_to_user, switch_mm
from pykmm_ext.mm.mm_types cimport (
    VM_READ, arch_ops, machine, mm_struct, page, page_to_pfn, pfn_to_page, pmd_t, pte_t,
)
from pykmm_ext.mm.page_alloc cimport __GFP_ZERO, __free_pages, alloc_page, alloc_pages, get_page, put_page
from pykmm_ext.mm.pgtable cimport mm_alloc_pmd, pte_alloc, pte_offset_map_lock

cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef class Flag:
    """A word two stress threads share."""

    cdef u32 value
    cdef u32 progress

    def set(self):
        self.value = 1


def page_stress(Rig rig not None, int cpu, u64 seed, unsigned long rounds, u32 keep=300):
    """Random alloc/free of orders 0..3 with a stamp in every frame; returns how many stamps were damaged."""
    cdef Cpu *c = rig_cpu(rig, cpu)
    cdef machine *m = rig.m
    cdef page **held = <page **>malloc(keep * sizeof(page *))
    cdef u32 *orders = <u32 *>malloc(keep * sizeof(u32))
    cdef unsigned long bad = 0, i, at, j, last = (<unsigned long>1 << m.arch.page_shift) / sizeof(u64) - 1
    cdef u32 n = 0, order
    cdef u64 *words
    cdef page *p
    if held == NULL or orders == NULL:
        free(held)
        free(orders)
        raise MemoryError
    with nogil:
        for i in range(rounds):
            xorshift(&seed)
            if n < keep and (n == 0 or seed & 1):
                order = <u32>(seed >> 8) & 3 if (seed >> 16) & 7 == 0 else 0
                p = alloc_pages(c, __GFP_ZERO if seed & 2 else 0, order)
                if p == NULL:
                    continue
                for j in range(<unsigned long>1 << order):
                    words = <u64 *>(m.mem_base + ((page_to_pfn(m, p) + j) << m.arch.page_shift))
                    if seed & 2 and (words[0] or words[last]):
                        bad += 1
                    words[0] = <u64>(<unsigned long>p) ^ cpu
                    words[last] = i
                p.index = i
                held[n] = p
                orders[n] = order
                n += 1
            else:
                at = (seed >> 20) % n if n else 0
                if n == 0:
                    continue
                p = held[at]
                order = orders[at]
                for j in range(<unsigned long>1 << order):
                    words = <u64 *>(m.mem_base + ((page_to_pfn(m, p) + j) << m.arch.page_shift))
                    if words[0] != (<u64>(<unsigned long>p) ^ cpu) or words[last] != p.index:
                        bad += 1
                n -= 1
                held[at] = held[n]
                orders[at] = orders[n]
                __free_pages(c, p, order)
        while n:
            n -= 1
            __free_pages(c, held[n], orders[n])
    free(held)
    free(orders)
    return bad


def ref_stress(Rig rig not None, int cpu, unsigned long pfn, unsigned long rounds):
    """get_page/put_page pairs on a shared frame."""
    cdef Cpu *c = rig_cpu(rig, cpu)
    cdef page *p = pfn_to_page(rig.m, pfn)
    cdef unsigned long _i
    with nogil:
        for _i in range(rounds):
            get_page(c, p)
            put_page(c, p)


def populate_race(Space space not None, int cpu, unsigned long n, unsigned long stride, Flag gate not None):
    """Two threads: make the same `n` PTE tables, each at the same moment. Returns failures."""
    cdef Cpu *c = rig_cpu(space.rig, cpu)
    cdef mm_struct *mm = &space.r.mm
    cdef unsigned long i, bad = 0
    cdef pmd_t *pmd
    with nogil:
        for i in range(n):
            atomic_inc_32(c, &gate.progress)
            while READ_ONCE_32(c, &gate.progress) < 2 * (i + 1):
                sched_yield()
            pmd = mm_alloc_pmd(c, mm, i * stride)
            if pmd == NULL or pte_alloc(c, mm, pmd) != 0:
                bad += 1
    return bad


def shootdown_reader(Space space not None, int cpu, unsigned long address, Flag stop not None):
    """Read 8 bytes until told to stop; returns (reads, reads of a poisoned frame)."""
    cdef Cpu *c = rig_cpu(space.rig, cpu)
    cdef u64 word = 0
    cdef unsigned long reads = 0, bad = 0
    with nogil:
        switch_mm(c, &space.r.mm)
        while not READ_ONCE_32(c, &stop.value):
            if copy_from_user(c, &word, address, 8) != 0:
                bad += 1
                break
            reads += 1
            if word != 1:
                bad += 1
            WRITE_ONCE_32(c, &stop.progress, <u32>reads)
        switch_mm(c, NULL)
    return reads, bad


def shootdown_writer(Space space not None, int cpu, unsigned long address, unsigned long rounds, bint flush,
                     Flag stop not None):
    """Move the page between two frames; after each flush poison the old one, then make it good again."""
    cdef Cpu *c = rig_cpu(space.rig, cpu)
    cdef machine *m = space.rig.m
    cdef mm_struct *mm = &space.r.mm
    cdef const arch_ops *arch = m.arch
    cdef page *frames[2]
    cdef u64 *words[2]
    cdef pmd_t *pmd = mm_alloc_pmd(c, mm, address)
    cdef spinlock_t *ptl = NULL
    cdef pte_t *pte
    cdef unsigned long prot = arch.vm_get_page_prot(VM_READ)
    cdef unsigned long i
    cdef u32 before
    cdef int k
    for k in range(2):
        frames[k] = alloc_page(c, __GFP_ZERO)
        if frames[k] == NULL:
            raise MemoryError
        words[k] = <u64 *>(m.mem_base + (page_to_pfn(m, frames[k]) << arch.page_shift))
        words[k][0] = 1
    if pmd == NULL or pte_alloc(c, mm, pmd) != 0:
        raise MemoryError
    with nogil:
        for i in range(rounds):
            k = i & 1
            pte = pte_offset_map_lock(c, mm, pmd, address, &ptl)
            xchg(c, pte, arch.pfn_pte(page_to_pfn(m, frames[k]), prot))
            spin_unlock(c, ptl)
            if flush or i == 0: # without: the reader stays on the first frame
                arch.flush_tlb_page(c, mm, address)
            WRITE_ONCE(c, <unsigned long *>words[1 - k], 0xdead)
            # Let the reader read at least once meanwhile, now and then.
            if i % 63 == 0: # odd: both frames get their turn
                before = READ_ONCE_32(c, &stop.progress)
                while READ_ONCE_32(c, &stop.progress) - before < 2 and not READ_ONCE_32(c, &stop.value):
                    sched_yield()
            WRITE_ONCE(c, <unsigned long *>words[1 - k], 1)
        WRITE_ONCE_32(c, &stop.value, 1)
    # The frame that is not mapped any more; the mapped one goes with the address space.
    put_page(c, frames[rounds & 1])


def fault_stress(Space space not None, int cpu, unsigned long start, unsigned long pages, unsigned long rounds):
    """Fault a range in, check and stamp it, unmap it (with a flush) again and again. Returns wrong contents."""
    cdef Cpu *c = rig_cpu(space.rig, cpu)
    cdef u64 word
    cdef unsigned long i, _r, bad = 0
    cdef unsigned long size = <unsigned long>1 << space.rig.m.arch.page_shift
    for _r in range(rounds):
        with nogil:
            for i in range(pages):
                word = 1
                if copy_from_user(c, &word, start + i * size, 8) != 0 or word != 0:
                    bad += 1
                word = start + i
                if copy_to_user(c, start + i * size, &word, 8) != 0:
                    bad += 1
            for i in range(pages):
                word = 0
                if copy_from_user(c, &word, start + i * size, 8) != 0 or word != start + i:
                    bad += 1
        space.unmap(cpu, start, start + pages * size)
    return bad
