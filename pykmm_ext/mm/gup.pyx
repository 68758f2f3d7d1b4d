# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (page tables and kernel structures: every index comes out of an address)
"""mm/gup.c: pages on somebody's behalf: populate, get_user_pages(), and get_user_pages_fast() without a lock.

References
    FOLL_GET takes an ordinary reference. FOLL_PIN says that the contents will be read or written, by a device say, and
    counts GUP_PIN_COUNTING_BIAS, so that fork can tell: page_maybe_dma_pinned(). A page with a thousand mappings may be
    taken for a pinned one (as in Linux); then fork copies it for nothing.
    A pinned anonymous page is exclusive (PG_anon_exclusive) for as long as the pin lasts: a pin for reading of a page
    that is shared with another address space unshares it first (FAULT_FLAG_UNSHARE), fork copies it for the child,
    and a write fault uses it as it is. So whoever holds the pin and the process that asked for it see the same page until
    the process lets go of the mapping. Nothing of that holds for FOLL_GET.
    The write requirement is never dropped: the loop of the slow path asks for a writable entry each time it looks, so a
    copy that MADV_DONTNEED took away meanwhile is made anew (race R21).

The lockless walk against everybody (all of it between begin_ and end_lockless_pgtbl_walk(), see mm/lockless_walk)
    free_pgtables             waits for the walk before a table is freed
    collapse_huge_page        clears the pmd, waits, takes the PTL, looks at reference counts. A walk that has found
                              the table before is over by then; or it re-reads the pmd after it took its reference and
                              gives that back: one of the two is enough (races R18 and R20)
    zap, mprotect, mremap,    change the entry under the PTL. The walk takes its reference and reads the entry again:
    a COW fault               is it the same, then the reference came while the page was mapped. A page that is free
                              by then has no reference, and is not given one (page_ref_add_unless()); the last one of
                              the mapping goes after the entry
    fork                      write_protect_seq: odd while entries are write-protected and marks are taken away. It is
                              even before and the same after the walk, or the pins are taken back
    hardware walker           A or D that it sets meanwhile: the entry differs, the slow path does it

Barriers
    taking a reference is fully ordered: before the second look at pmd and entry (pairs with the xchg and cmpxchg that
    change them before the writer reads the count or drops its reference), and before the second look at
    write_protect_seq (pairs with smp_mb() in dup_pages()).
    Entry, then table: address dependencies. The mark is read after the second look at the entry: smp_rmb() pairs with
    the PTL section, or the flush, between the change of a mark and whatever follows from it.

populate_page() looks at entries without the PTL, under mmap_sem R, and believes them only as far as to leave out a fault;
a page that a zap takes away meanwhile is faulted in again by whoever touches it.

simplified: no FOLL_FORCE, FOLL_LONGTERM or FOLL_TOUCH, no huge pages, no secretmem; signals do not end the slow path.
"""
from libc.errno cimport EFAULT, EMLINK, ENOMEM

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32, READ_ONCE_DEP, WRITE_ONCE_32, fetch_or, kmm_emit, smp_rmb
from pykmm_ext.kernel.seqlock cimport raw_read_seqcount, read_seqcount_retry
from pykmm_ext.kernel.spinlock cimport spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport (
    KMM_EV_GUP, NR_FOLL_PIN_ACQUIRED, NR_FOLL_PIN_RELEASED, PGFAULT, PGMAJFAULT, count_vm_event, count_vm_events, likely,
    u32, unlikely,
)
from pykmm_ext.mm.lockless_walk cimport begin_lockless_pgtbl_walk, end_lockless_pgtbl_walk
from pykmm_ext.mm.memory cimport handle_mm_fault, page_anon_exclusive, page_is_anon, vm_normal_page
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_UNSHARE, FAULT_FLAG_USER, FAULT_FLAG_WRITE, FOLL_PIN, FOLL_WRITE, GUP_PIN_COUNTING_BIAS, KMM_ACCESS_READ,
    KMM_ACCESS_WRITE, VM_ACCESS_FLAGS, VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_OOM, VM_IO, VM_PFNMAP, VM_READ, VM_SHARED,
    VM_WRITE, PG_dirty, arch_ops, machine_of, pfn_to_page, pmd_t, pte_t, vm_fault_t,
)
from pykmm_ext.mm.mmap cimport find_vma, mmap_read_lock, mmap_read_unlock
from pykmm_ext.mm.page_alloc cimport put_page_refs, try_get_page_refs
from pykmm_ext.mm.pgtable cimport level_addr_end, mm_find_pmd, mm_read_pte, pte_offset_map_lock, table_entry


# Context: mmap_sem held R. True when the page at `address` is mapped and, for `write`, writable: a racy look without
# the PTL.
cdef bint page_is_mapped(Cpu *cpu, mm_struct *mm, unsigned long address, bint write) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef pte_t pte = 0
    if not mm_read_pte(cpu, mm, address, &pte) or not arch.pte_present(pte) or arch.pte_protnone(pte):
        return False
    return not write or arch.pte_write(pte)


# Context: mmap_sem held R; may sleep. A fault on somebody's behalf: 0, -EFAULT, -ENOMEM. Those of user accesses are
# counted where they enter (machine/tlb).
cdef int faultin_page(Cpu *cpu, vm_area_struct *vma, unsigned long address, u32 flags) noexcept nogil:
    cdef vm_fault_t ret
    count_vm_event(cpu, PGFAULT)
    ret = handle_mm_fault(cpu, vma, address, flags)
    if ret & VM_FAULT_MAJOR:
        count_vm_event(cpu, PGMAJFAULT)
    if ret & VM_FAULT_ERROR:
        return -ENOMEM if ret & VM_FAULT_OOM else -EFAULT
    return 0


cdef int populate_page(Cpu *cpu, vm_area_struct *vma, unsigned long address, bint write) noexcept nogil:
    cdef int _tries, err
    for _tries in range(4):  # a fault may find its entry changed and ask for the access to be repeated
        if page_is_mapped(cpu, vma.vm_mm, address, write):
            break
        err = faultin_page(cpu, vma, address, FAULT_FLAG_USER | (FAULT_FLAG_WRITE if write else 0))
        if err:
            return err
    return 0


cdef long populate_vma_page_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil:
    cdef unsigned long page_size = <unsigned long>1 << vma.vm_mm.arch.page_shift
    cdef unsigned long address = start & ~(page_size - 1)
    # Break COW now, but do not dirty shared pages.
    cdef bint write = (vma.vm_flags & (VM_WRITE | VM_SHARED)) == VM_WRITE
    cdef long n = 0
    cdef int err
    if not vma.vm_flags & VM_ACCESS_FLAGS:
        return -EFAULT
    while address < end:
        err = populate_page(cpu, vma, address, write)
        if err:
            return n if n else err
        n += 1
        address += page_size
        if address == 0:
            break
    return n


# ---- references ----

# Context: any.
cdef inline u32 gup_refs(unsigned int gup_flags) noexcept nogil:
    return GUP_PIN_COUNTING_BIAS if gup_flags & FOLL_PIN else 1


cdef void unpin_user_pages(Cpu *cpu, page **pages, unsigned long nr_pages, unsigned int gup_flags,
                           bint dirty) noexcept nogil:
    cdef u32 refs = gup_refs(gup_flags)
    cdef unsigned long i, pinned = 0
    for i in range(nr_pages):
        if dirty and not page_is_anon(cpu, pages[i]) and not READ_ONCE(cpu, &pages[i].flags) & PG_dirty:
            fetch_or(cpu, &pages[i].flags, PG_dirty)
        if pages[i] != machine_of(cpu).zero_page:
            put_page_refs(cpu, pages[i], refs)
            pinned += 1
    if gup_flags & FOLL_PIN and pinned:
        count_vm_events(cpu, NR_FOLL_PIN_RELEASED, pinned)


cdef bint gup_must_unshare(Cpu *cpu, page *pg, unsigned int gup_flags) noexcept nogil:
    if (gup_flags & (FOLL_WRITE | FOLL_PIN)) != FOLL_PIN or not page_is_anon(cpu, pg):
        return False
    smp_rmb(cpu)  # pairs with what lies between taking the mark away and its consequences: see above
    return not page_anon_exclusive(cpu, pg)


# ---- the slow path ----

# Context: mmap_sem held R; takes the PTL. The page with its reference; NULL with *err = 0 (a fault is needed), -EMLINK (it
# must be unshared) or -ENOMEM (more references than it can have).
cdef page *follow_page_pte(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int gup_flags, int *err) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef pmd_t *pmd = mm_find_pmd(cpu, mm, address)
    cdef page *pg = NULL
    cdef spinlock_t *ptl
    cdef pte_t *ptep
    cdef pte_t pte
    err[0] = 0
    if pmd == NULL or arch.table_descend(READ_ONCE_DEP(cpu, pmd, 1), 1) == 0:
        return NULL
    ptep = pte_offset_map_lock(cpu, mm, pmd, address, &ptl)
    pte = READ_ONCE(cpu, ptep)
    if arch.pte_present(pte) and not arch.pte_protnone(pte) and (arch.pte_write(pte) or not gup_flags & FOLL_WRITE):
        pg = vm_normal_page(mm.machine, arch, pte)
        if pg == NULL:
            pg = mm.machine.zero_page  # is_zero_page(): neither counted nor pinned
        elif not arch.pte_write(pte) and gup_must_unshare(cpu, pg, gup_flags):
            err[0] = -EMLINK
            pg = NULL
        elif not try_get_page_refs(cpu, pg, gup_refs(gup_flags)):
            err[0] = -ENOMEM
            pg = NULL
        elif gup_flags & FOLL_PIN:
            count_vm_event(cpu, NR_FOLL_PIN_ACQUIRED)
    spin_unlock(cpu, ptl)
    return pg


# check_vma_flags(). Context: mmap_sem held.
cdef inline bint vma_allows_gup(vm_area_struct *vma, unsigned int gup_flags) noexcept nogil:
    if vma.vm_flags & (VM_IO | VM_PFNMAP):
        return False
    return vma.vm_flags & (VM_WRITE if gup_flags & FOLL_WRITE else VM_READ) != 0


# Context: mmap_sem held R, may sleep. As get_user_pages().
cdef long __get_user_pages(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                           page **pages) noexcept nogil:
    cdef unsigned long page_size = <unsigned long>1 << mm.arch.page_shift
    cdef vm_area_struct *vma = NULL
    cdef unsigned long n = 0
    cdef page *pg
    cdef int err = 0
    cdef u32 flags
    while n < nr_pages:
        if vma == NULL or start >= vma.vm_end:
            # A stack does not grow for it (as since 6.5).
            vma = find_vma(cpu, mm, start)
            if vma == NULL or vma.vm_start > start or not vma_allows_gup(vma, gup_flags):
                err = -EFAULT
                break
        pg = follow_page_pte(cpu, mm, start, gup_flags, &err)
        if pg != NULL:
            pages[n] = pg
            n += 1
            start += page_size
            continue
        if err == -ENOMEM:
            break
        flags = FAULT_FLAG_UNSHARE if err == -EMLINK else FAULT_FLAG_WRITE if gup_flags & FOLL_WRITE else 0
        err = faultin_page(cpu, vma, start, flags)
        if err:
            break
    return <long>n if n or err == 0 else err


# Context: any. Rounds *start down; False: the range is not all below the end of user space.
cdef inline bint gup_range(mm_struct *mm, unsigned long *start, unsigned long nr_pages) noexcept nogil:
    start[0] &= ~((<unsigned long>1 << mm.arch.page_shift) - 1)
    return (start[0] <= mm.task_size
            and nr_pages <= (mm.task_size - start[0]) >> mm.arch.page_shift)


# Context: process; before the first pin of the call.
cdef inline void mm_set_has_pinned(Cpu *cpu, mm_struct *mm) noexcept nogil:
    if unlikely(READ_ONCE_32(cpu, &mm.has_pinned) == 0):
        WRITE_ONCE_32(cpu, &mm.has_pinned, 1)  # seen by who sees the pin: taking it is fully ordered


cdef long get_user_pages(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                         page **pages) noexcept nogil:
    cdef long n
    if not gup_range(mm, &start, nr_pages):
        return -EFAULT
    if gup_flags & FOLL_PIN:
        mm_set_has_pinned(cpu, mm)
    mmap_read_lock(cpu, mm)
    n = __get_user_pages(cpu, mm, start, nr_pages, gup_flags, pages)
    mmap_read_unlock(cpu, mm)
    return n


# ---- without a lock ----

# Context: a lockless walk. The page that the entry maps, with a reference; NULL: not without a fault, a lock or a copy.
cdef page *gup_fast_pte(Cpu *cpu, mm_struct *mm, pmd_t *pmdp, pmd_t pmdval, pte_t *ptep, unsigned int gup_flags,
                        unsigned int study) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef pte_t pte = READ_ONCE_DEP(cpu, ptep, 1)  # through the pmd, or after the last page's atomic
    cdef page *pg
    if (not arch.access_permitted(pte, KMM_ACCESS_WRITE if gup_flags & FOLL_WRITE else KMM_ACCESS_READ)
            or arch.pte_special(pte)):
        return NULL
    pg = pfn_to_page(mm.machine, arch.pte_pfn(pte))
    if not try_get_page_refs(cpu, pg, gup_refs(gup_flags)):
        return NULL
    if ((not study & GUP_NO_PMD_RECHECK and unlikely(READ_ONCE(cpu, pmdp) != pmdval))
            or unlikely(READ_ONCE(cpu, ptep) != pte)
            or (not arch.pte_write(pte) and gup_must_unshare(cpu, pg, gup_flags))):
        put_page_refs(cpu, pg, gup_refs(gup_flags))
        return NULL
    if unlikely(cpu.engine != NULL):
        kmm_emit(cpu, KMM_EV_GUP, pg, arch.table_paddr(pmdval))
    return pg


cdef long lockless_pages_from_mm(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages,
                                 unsigned int gup_flags, page **pages, unsigned int study) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long page_size = <unsigned long>1 << arch.page_shift
    cdef unsigned long end = start + (nr_pages << arch.page_shift)
    cdef unsigned long stop, table, n = 0
    cdef bint check_seq = gup_flags & FOLL_PIN and not study & GUP_NO_FORK_SEQ
    cdef u32 seq = 0
    cdef pmd_t *pmdp
    cdef pmd_t pmdval
    cdef pte_t *ptep
    cdef page *pg = NULL
    if check_seq:
        seq = raw_read_seqcount(cpu, &mm.write_protect_seq)  # smp_rmb(): pairs with the release in dup_pages()
        if unlikely(seq & 1):
            return 0
    if not study & GUP_IRQS_ON:
        begin_lockless_pgtbl_walk(cpu, mm)
    while start != end:
        pmdp = mm_find_pmd(cpu, mm, start)
        if pmdp == NULL:
            break
        pmdval = READ_ONCE_DEP(cpu, pmdp, 1)
        table = arch.table_descend(pmdval, 1)
        if table == 0:
            break
        stop = level_addr_end(arch, 1, start, end)
        ptep = table_entry(mm, table, 0, start)
        while start != stop:
            pg = gup_fast_pte(cpu, mm, pmdp, pmdval, ptep, gup_flags, study)
            if unlikely(pg == NULL):
                break
            pages[n] = pg
            n += 1
            ptep += 1
            start += page_size
        if unlikely(pg == NULL):
            break
    if not study & GUP_IRQS_ON:
        end_lockless_pgtbl_walk(cpu, mm)
    if gup_flags & FOLL_PIN and n:
        count_vm_events(cpu, NR_FOLL_PIN_ACQUIRED, n)
    if check_seq and n and unlikely(read_seqcount_retry(cpu, &mm.write_protect_seq, seq)):
        # A fork may have missed the pins. They go back before anybody uses them; the slow path waits for mmap_sem.
        unpin_user_pages(cpu, pages, n, gup_flags, False)
        return 0
    return <long>n


cdef long get_user_pages_fast(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages,
                              unsigned int gup_flags, page **pages) noexcept nogil:
    cdef long n = 0, rest
    if not gup_range(mm, &start, nr_pages):
        return -EFAULT
    if gup_flags & FOLL_PIN:
        mm_set_has_pinned(cpu, mm)
    if mm.strategy.gup_fast != NULL and cpu.active_mm == mm:
        n = mm.strategy.gup_fast(cpu, mm, start, nr_pages, gup_flags, pages)
        if likely(n == <long>nr_pages):
            return n
        if n < 0:
            n = 0
    rest = get_user_pages(cpu, mm, start + (<unsigned long>n << mm.arch.page_shift), nr_pages - n, gup_flags, pages + n)
    if rest < 0:
        return n if n else rest
    return n + rest
