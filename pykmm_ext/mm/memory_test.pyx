# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (measuring and stressing loops: they must cost as little as what they drive)
"""mm/memory.c's self-test: native stress of faults against everything that changes the address space, and the fault
benchmarks' loops. stands in for lib/test_*.c.

Every function drives one simulated Cpu from the calling OS thread, with the GIL released, and returns figures.
"""
from libc.errno cimport EFAULT
from libc.stdlib cimport calloc, free

from pykmm_ext.binding cimport Machine
from pykmm_ext.handle cimport File, cpu_disown, cpu_own, machine_get, machine_put
from pykmm_ext.kernel.atomic cimport READ_ONCE, smp_load_acquire, smp_store_release
from pykmm_ext.kernel.random32 cimport xorshift
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_unlock, spinlock_t
from pykmm_ext.kernel.timekeeping cimport now_ns
from pykmm_ext.machine.cpu cimport Cpu, u8, u32, u64
from pykmm_ext.machine.tlb cimport copy_from_user, copy_to_user, switch_mm, user_touch
from pykmm_ext.mm.filemap cimport validate_mapping
from pykmm_ext.mm.fork cimport dup_mm, mmput
from pykmm_ext.mm.madvise cimport do_madvise
from pykmm_ext.mm.mm_types cimport (
    KMEM_VMA, KMM_ACCESS_READ, KMM_ACCESS_WRITE, MM_ANONPAGES, arch_ops, file, mm_struct, page, pfn_to_page, pmd_t,
    pte_t, vm_area_struct, vma_write_begin, vma_write_end,
)
from pykmm_ext.mm.mmap cimport ksys_mmap, mmap_read_lock, mmap_read_unlock, vm_munmap
from pykmm_ext.mm.mprotect cimport do_mprotect
from pykmm_ext.mm.pgtable cimport mm_find_pmd, pte_lockptr, pte_offset
from pykmm_ext.mm.validate cimport validate_page_tables
from pykmm_ext.mm.vma cimport __find_vma
from pykmm_ext.mm_binding cimport MmStruct

cdef extern from "<sys/mman.h>" nogil:
    void *host_mmap "mmap"(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int host_munmap "munmap"(void *addr, size_t length)

cdef enum:
    PROT_R = 1
    PROT_RW = 3
    MAP_PRIVATE = 0x02
    MAP_PRIVATE_ANON = 0x22
    MAP_FIXED = 0x10
    DONTNEED = 4
    HOST_PAGE = 4096


cdef inline unsigned long page_bytes(mm_struct *mm) noexcept nogil:
    return <unsigned long>1 << mm.arch.page_shift


def page_info(MmStruct mm not None, unsigned long address):
    """(pfn, refcount, mapcount, flags, pte) of the page mapped at `address`, or None. Nobody else uses the mm."""
    cdef Cpu *c
    cdef pmd_t *pmd
    cdef pte_t pte = 0
    cdef page *pg
    cdef const arch_ops *arch
    machine_get(mm.machine)
    try:
        c = mm.machine.m.cpus[0]
        arch = mm.mm.arch
        with nogil:
            cpu_own(c)
            mmap_read_lock(c, mm.mm)
            pmd = mm_find_pmd(c, mm.mm, address)
            if pmd != NULL and not arch.table_none(READ_ONCE(c, pmd)):
                pte = READ_ONCE(c, pte_offset(mm.mm, READ_ONCE(c, pmd), address))
            mmap_read_unlock(c, mm.mm)
            cpu_disown(c)
        if not arch.pte_present(pte):
            return None
        pg = pfn_to_page(mm.machine.m, arch.pte_pfn(pte))
        return arch.pte_pfn(pte), pg._refcount, pg._mapcount, pg.flags, pte
    finally:
        machine_put(mm.machine)


def validate_contents(Machine m not None):
    """What validate_page_tables() and validate_mapping() say about every address space and file; None when all is well.
    Nobody else uses the machine."""
    cdef const char *message = NULL
    cdef unsigned long where = 0
    cdef mm_struct *mm
    cdef file *f
    machine_get(m)
    try:
        with nogil:
            mm = m.m.mmlist
            while mm != NULL and message == NULL:
                message = validate_page_tables(m.m.cpus[0], mm, &where)
                mm = mm.mmlist_next
            f = m.m.files
            while f != NULL and message == NULL:
                message = validate_mapping(m.m.cpus[0], &f.f_mapping, &where)
                f = f.next
        return None if message == NULL else f"{message.decode()} at {where:#x}"
    finally:
        machine_put(m)


def damage(MmStruct mm not None, str what, unsigned long address=0, int by=1):
    """Add `by` to a count that Machine.validate() checks, or ("tlb") take the write permission of the page at `address`
    from the page table alone. Nobody else uses the machine."""
    cdef Cpu *c = mm.machine.m.cpus[0]
    cdef pte_t *ptep
    if what == "mm":
        mm.mm.map_count += by
    elif what == "page tables":
        mm.mm.rss_stat[MM_ANONPAGES] += by
    elif what == "file":
        mm.machine.m.files.f_mapping.nrpages += by
    elif what == "cache":
        mm.machine.m.caches[KMEM_VMA].nr_total += by
    elif what == "zone":
        mm.machine.m.zone.nr_free_pages += by
    elif what == "tlb":
        ptep = pte_offset(mm.mm, READ_ONCE(c, mm_find_pmd(c, mm.mm, address)), address)
        ptep[0] = mm.mm.arch.pte_wrprotect(ptep[0]) if by > 0 else mm.mm.arch.pte_mkwrite(ptep[0])
    else:
        raise ValueError(what)


# What a writer on another CPU does for a moment; the caller is that writer, and undoes it. Nobody holds the VMA's
# mmap_sem here: a fault that gives up its speculation goes on under it.

def section(MmStruct mm not None, unsigned long address, int begins=0, int ends=0):
    """Begin and end that many write sections of the VMA at `address`; its vm_sequence afterwards."""
    cdef Cpu *c = mm.machine.m.cpus[0]
    cdef vm_area_struct *vma
    cdef int _i
    with nogil:
        mmap_read_lock(c, mm.mm)
        vma = __find_vma(mm.mm, address)
        for _i in range(begins):
            vma_write_begin(c, vma, 0)
        for _i in range(ends):
            vma_write_end(c, vma)
        mmap_read_unlock(c, mm.mm)
    return vma.vm_sequence.sequence


def lock_ptl(MmStruct mm not None, unsigned long address, bint lock):
    """Take or give back the lock of the page table that maps `address`."""
    cdef Cpu *c = mm.machine.m.cpus[0]
    cdef spinlock_t *ptl = pte_lockptr(c, mm.mm, READ_ONCE(c, mm_find_pmd(c, mm.mm, address)))
    if lock:
        with nogil:
            spin_lock(c, ptl)
    else:
        spin_unlock(c, ptl)


# ---- stress --------------------------------------------------------------------------------------
#
# The address space of the test: "stable" pages are never dropped (only forked and write-protected for a while), so
# every word reads as last written. "volatile" pages are dropped, unmapped and mapped at any time: a word is the last
# one written, or 0, or the access faults. Every Cpu has its own word in every page.

cdef inline u64 tag(u64 page_nr, u64 turn, u32 cpu) noexcept nogil:
    return page_nr << 40 | <u64><u32>turn << 8 | (cpu + 1)


cdef class Board:
    """What each Cpu says, outside of the simulated memory, that it has written last to each stable page: whoever reads
    it here must find it there (or something newer), on any Cpu."""
    cdef u64 *turns
    cdef readonly u32 cpus
    cdef readonly unsigned long pages

    def __cinit__(self, u32 cpus, unsigned long pages):
        self.cpus = cpus
        self.pages = pages
        self.turns = <u64 *>calloc(cpus * pages, sizeof(u64))
        if self.turns == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.turns)


# One worker's turn. 0, or the number of the check that failed.
cdef int worker_turn(Cpu *c, unsigned long stable, u64 nr_stable, u64 *last, u64 *turns, u32 nr_cpus,
                     unsigned long loose, u64 nr_loose, u64 turn, u64 *seed, u64 *faulted) noexcept nogil:
    cdef unsigned long page_size = page_bytes(<mm_struct *>c.active_mm)
    cdef u64 published
    cdef u32 other
    cdef u64 r = xorshift(seed)
    cdef u64 nr, word, value
    cdef unsigned long address
    cdef int err
    # a word of a stable page
    nr = (r >> 8) % nr_stable
    address = stable + nr * page_size + c.id * 8
    if r & 1:
        word = tag(nr, turn, c.id)
        err = copy_to_user(c, address, &word, 8)
        if err == 0:
            last[nr] = word
            smp_store_release(c, <unsigned long *>&turns[c.id * nr_stable + nr], turn)
        elif err == -EFAULT:
            faulted[0] += 1  # write-protected at the moment
        else:
            return 1
    err = copy_from_user(c, &value, address, 8)
    if err:
        return 2
    if value != last[nr]:
        return 3
    # a word of another Cpu: no older than it says
    other = (r >> 48) % nr_cpus
    published = smp_load_acquire(c, <unsigned long *>&turns[other * nr_stable + nr])
    err = copy_from_user(c, &value, stable + nr * page_size + other * 8, 8)
    if err:
        return 8
    if published and (<u32>(value >> 8) < <u32>published or (value & 0xff) != other + 1 or value >> 40 != nr):
        return 9
    # a word of a volatile page
    nr = (r >> 24) % nr_loose
    address = loose + nr * page_size + c.id * 8
    word = tag(nr, turn, c.id)
    if r & 2:
        err = copy_to_user(c, address, &word, 8)
        if err == -EFAULT:
            faulted[0] += 1
        elif err:
            return 4
    err = copy_from_user(c, &value, address, 8)
    if err == -EFAULT:
        faulted[0] += 1
    elif err:
        return 5
    elif value and ((value & 0xff) != c.id + 1 or value >> 40 != nr):
        return 6
    return 0


def stress_worker(MmStruct mm not None, u32 cpu, Board board not None, unsigned long stable, unsigned long loose,
                  u64 nr_loose, u64 turns, u64 seed, bint dontneed=False):
    """`turns` random reads and writes with their checks; (failed check or 0, accesses that faulted for good).

    With `dontneed`, the worker also drops parts of the volatile pages itself: two zappers in one VMA.
    """
    cdef unsigned long page_size = page_bytes(mm.mm)
    cdef Cpu *c
    cdef u64 nr_stable = board.pages
    cdef u64 turn, faulted = 0, nr
    cdef int failed = 0
    cdef u64 *last = <u64 *>calloc(nr_stable, sizeof(u64))
    if last == NULL:
        raise MemoryError
    machine_get(mm.machine)
    try:
        c = mm.machine.m.cpus[cpu]
        with nogil:
            cpu_own(c)
            switch_mm(c, mm.mm)
            for turn in range(1, turns + 1):
                failed = worker_turn(c, stable, nr_stable, last, board.turns, board.cpus, loose, nr_loose, turn, &seed,
                                     &faulted)
                if failed:
                    break
                if dontneed and turn % 64 == 0:
                    nr = xorshift(&seed) % nr_loose
                    do_madvise(c, mm.mm, loose + nr * page_size, (1 + xorshift(&seed) % (nr_loose - nr)) * page_size, DONTNEED)
            if failed == 0:
                for nr in range(nr_stable):
                    if copy_from_user(c, &turn, stable + nr * page_size + c.id * 8, 8) or turn != last[nr]:
                        failed = 7
                        break
            switch_mm(c, NULL)
            cpu_disown(c)
    finally:
        machine_put(mm.machine)
        free(last)
    return failed, faulted


# fork, look at the child's pages, write to some, drop it. The Cpu comes back to `mm`.
cdef int fork_and_check(Cpu *c, mm_struct *mm, unsigned long stable, u64 nr_stable, u32 nr_cpus,
                        u64 *seed) noexcept nogil:
    cdef unsigned long page_size = page_bytes(mm)
    cdef int err = 0, failed = 0
    cdef mm_struct *child = dup_mm(c, mm, &err)
    cdef u64 nr, value, before, word
    cdef u32 i
    if child == NULL:
        return 0 if err < 0 else 20
    switch_mm(c, child)
    for nr in range(nr_stable):
        for i in range(nr_cpus):
            if copy_from_user(c, &value, stable + nr * page_size + i * 8, 8):
                failed = 21
            elif value and ((value & 0xff) != i + 1 or value >> 40 != nr):
                failed = 22
        # what a child writes stays in the child
        before = xorshift(seed)
        if before & 3 == 0:
            word = ~<u64>0
            err = copy_to_user(c, stable + nr * page_size + 8 * nr_cpus, &word, 8)
            if err != 0 and err != -EFAULT:
                failed = 23
    switch_mm(c, mm)
    mmput(c, child)
    for nr in range(nr_stable):
        if copy_from_user(c, &value, stable + nr * page_size + 8 * nr_cpus, 8) or value:
            failed = 24
    return failed


def stress_mutator(MmStruct mm not None, u32 cpu, Board board not None, unsigned long stable, unsigned long loose,
                   u64 nr_loose, u64 turns, u64 seed, bint forks=True, File backing=None):
    """`turns` random changes of the address space; (failed check or 0, forks made). Everything is mapped at the end.

    New volatile pages are anonymous, or a private mapping of `backing`, which holds zeroes."""
    cdef unsigned long page_size = page_bytes(mm.mm)
    cdef Cpu *c
    cdef u32 nr_cpus = board.cpus
    cdef u64 nr_stable = board.pages
    cdef file *f = NULL if backing is None else backing.f
    cdef unsigned long flags = MAP_FIXED | (MAP_PRIVATE_ANON if backing is None else MAP_PRIVATE)
    cdef u64 _turn, r, first, count, forked = 0
    cdef int failed = 0
    cdef long ret
    machine_get(mm.machine)
    try:
        c = mm.machine.m.cpus[cpu]
        with nogil:
            cpu_own(c)
            switch_mm(c, mm.mm)
            for _turn in range(turns):
                r = xorshift(&seed)
                first = (r >> 8) % nr_loose
                count = 1 + (r >> 24) % (nr_loose - first)
                if r & 7 == 0:
                    ret = vm_munmap(c, mm.mm, loose + first * page_size, count * page_size)
                elif r & 7 <= 2:
                    ret = ksys_mmap(c, mm.mm, loose + first * page_size, count * page_size, PROT_RW, flags, f, first * page_size)
                    ret = 0 if ret > 0 else ret
                elif r & 7 <= 4:
                    do_madvise(c, mm.mm, loose + first * page_size, count * page_size, DONTNEED)
                    ret = 0
                elif r & 7 == 5:
                    do_mprotect(c, mm.mm, loose + first * page_size, count * page_size, PROT_R if r & 8 else PROT_RW)
                    ret = 0
                elif r & 7 == 6:
                    first = (r >> 8) % nr_stable
                    count = 1 + (r >> 24) % (nr_stable - first)
                    ret = do_mprotect(c, mm.mm, stable + first * page_size, count * page_size, PROT_R)
                    if ret == 0:
                        ret = do_mprotect(c, mm.mm, stable, nr_stable * page_size, PROT_RW)
                else:
                    ret = 0
                    if forks and (r >> 40) % 4 == 0:
                        failed = fork_and_check(c, mm.mm, stable, nr_stable, nr_cpus, &seed)
                        forked += 1
                if ret:
                    failed = <int>ret
                if failed:
                    break
            if failed == 0:
                ksys_mmap(c, mm.mm, loose, nr_loose * page_size, PROT_RW, flags, f, 0)
            switch_mm(c, NULL)
            cpu_disown(c)
    finally:
        machine_put(mm.machine)
    return failed, forked


# ---- benchmarks ----------------------------------------------------------------------------------

def bench_faults(MmStruct mm not None, u32 cpu, u64 pages, u64 rounds, bint write=True):
    """`rounds` times mmap, touch `pages` pages, munmap; (ns of touching, ns of everything), for all faults together."""
    cdef unsigned long page_size = page_bytes(mm.mm)
    cdef Cpu *c
    cdef u64 i, _r, t0, t1, t2, touched = 0, total = 0
    cdef long a = 0
    cdef int err = 0
    cdef u32 access = KMM_ACCESS_WRITE if write else KMM_ACCESS_READ
    machine_get(mm.machine)
    try:
        c = mm.machine.m.cpus[cpu]
        with nogil:
            cpu_own(c)
            switch_mm(c, mm.mm)
            for _r in range(rounds):
                t0 = now_ns()
                a = ksys_mmap(c, mm.mm, 0, pages * page_size, PROT_RW, MAP_PRIVATE_ANON, NULL, 0)
                if a < 0:
                    break
                t1 = now_ns()
                for i in range(pages):
                    err |= user_touch(c, a + i * page_size, access)
                t2 = now_ns()
                vm_munmap(c, mm.mm, a, pages * page_size)
                touched += t2 - t1
                total += now_ns() - t0
            switch_mm(c, NULL)
            cpu_disown(c)
    finally:
        machine_put(mm.machine)
    if a < 0 or err:
        raise OSError(-a if a < 0 else -err, "the loop failed")
    return touched, total


def bench_touch(MmStruct mm not None, u32 cpu, unsigned long start, u64 pages, bint write=True):
    """Touch every page from `start` on, once; (first ns, last ns) of the monotonic clock, comparable among threads."""
    cdef unsigned long page_size = page_bytes(mm.mm)
    cdef Cpu *c
    cdef u64 i, t0, t1
    cdef int err = 0
    cdef u32 access = KMM_ACCESS_WRITE if write else KMM_ACCESS_READ
    machine_get(mm.machine)
    try:
        c = mm.machine.m.cpus[cpu]
        with nogil:
            cpu_own(c)
            switch_mm(c, mm.mm)
            t0 = now_ns()
            for i in range(pages):
                err |= user_touch(c, start + i * page_size, access)
            t1 = now_ns()
            switch_mm(c, NULL)
            cpu_disown(c)
    finally:
        machine_put(mm.machine)
    if err:
        raise OSError(-err, "the loop failed")
    return t0, t1


def bench_cow(MmStruct mm not None, u32 cpu, u64 pages, u64 rounds):
    """`rounds` times fork, then write `pages` shared pages in the parent; (ns of writing, ns of everything)."""
    cdef unsigned long page_size = page_bytes(mm.mm)
    cdef Cpu *c
    cdef u64 i, _r, t0, t1, t2, touched = 0, total = 0
    cdef long a = 0
    cdef int err = 0
    cdef mm_struct *child
    machine_get(mm.machine)
    try:
        c = mm.machine.m.cpus[cpu]
        with nogil:
            cpu_own(c)
            switch_mm(c, mm.mm)
            a = ksys_mmap(c, mm.mm, 0, pages * page_size, PROT_RW, MAP_PRIVATE_ANON, NULL, 0)
            if a > 0:
                for i in range(pages):
                    err |= user_touch(c, a + i * page_size, KMM_ACCESS_WRITE)
                for _r in range(rounds):
                    t0 = now_ns()
                    child = dup_mm(c, mm.mm, &err)
                    if child == NULL:
                        break
                    t1 = now_ns()
                    for i in range(pages):
                        err |= user_touch(c, a + i * page_size, KMM_ACCESS_WRITE)
                    t2 = now_ns()
                    mmput(c, child)
                    touched += t2 - t1
                    total += now_ns() - t0
                vm_munmap(c, mm.mm, a, pages * page_size)
            switch_mm(c, NULL)
            cpu_disown(c)
    finally:
        machine_put(mm.machine)
    if a < 0 or err:
        raise OSError(-a if a < 0 else -err, "the loop failed")
    return touched, total


def bench_host_faults(u64 pages, u64 rounds, bint write=True):
    """The pattern of bench_faults with the system calls and memory of the kernel that this process runs on."""
    cdef u64 i, _r, t0, t1, t2, touched = 0, total = 0
    cdef volatile u8 *p = NULL
    cdef u8 x = 0
    with nogil:
        for _r in range(rounds):
            t0 = now_ns()
            p = <volatile u8 *>host_mmap(NULL, pages * HOST_PAGE, PROT_RW, MAP_PRIVATE_ANON, -1, 0)
            if <long>p == -1:
                break
            t1 = now_ns()
            if write:
                for i in range(pages):
                    p[i * HOST_PAGE] = 0
            else:
                for i in range(pages):
                    x |= p[i * HOST_PAGE]
            t2 = now_ns()
            host_munmap(<void *>p, pages * HOST_PAGE)
            touched += t2 - t1
            total += now_ns() - t0
    if <long>p == -1:
        raise MemoryError
    return touched, total
