# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on C structures, and runs once per fault)
"""mm/page_alloc.c: buddy lists and per-CPU page lists over the arena.

Frames that were never handed out form the *pristine tail* of the zone. They are on no list and cost no host
memory; the buddy lists hold only what came back. A refill takes from the buddy lists first (cache heat), then from
the tail.

Who may run against whom:

====================  =======================================  ==========================================
data                  written                                  read
====================  =======================================  ==========================================
``zone.*``, PG_buddy  ``zone.lock``                            ``zone.lock``; ``validate_zone`` quiescent
``Cpu.pcp``           the owning Cpu (never in an IPI handler) the owning Cpu; ``nr_used_pages`` racily
``page._refcount``    atomically                               anybody, ``READ_ONCE``
====================  =======================================  ==========================================

simplified: one zone, no watermarks, no reclaim, no migrate types; a Cpu that runs out of memory does not drain the
lists of the others (these are the owner's alone), so their size shrinks with the machine.

Where the machine lies in a region, the per-CPU lists stay empty: an allocation takes the way of a refill, and `order`
says KMM_ORDER_REGION, for which put_page() looks anyway. Both go to the region, without a lock (include/kmm/region.h).
"""
from libc.errno cimport EINVAL
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_32, atomic_inc_32, cmpxchg_32, data_race, data_race_32, kmm_emit, might_sleep,
    smp_store_release_32,
)
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock
from pykmm_ext.machine.cpu cimport (
    KMM_EV_ALLOC, KMM_EV_FREE, KMM_PCP_BATCH, KMM_PCP_HIGH, PGALLOC, PGFREE, Cpu, count_vm_event, likely, u32,
    unlikely,
)
from pykmm_ext.machine.region cimport (
    KMM_ORDER_REGION, region_alloc_pages, region_free_pages, region_of,
)
from pykmm_ext.mm.mm_types cimport (
    MAX_ORDER, PG_buddy, PG_pristine, PG_reserved, free_area, machine, machine_of, page, page_to_pfn, pfn_to_page,
    zone,
)

cdef extern from "kmm/clear_page.h" nogil:
    void kmm_clear_page(void *p, size_t size)
    void kmm_prefetch_step(Cpu *cpu)

cdef extern from "kmm/atomic.h" nogil:
    u32 fetch_add_32 "kmm_fetch_add_32"(Cpu *cpu, u32 *p, u32 n, int order)
    const int ATOMIC_SEQ_CST "__ATOMIC_SEQ_CST"

cdef extern from *:
    """
    /* The region stands in for zone->lock too: no engine hook, as kmm_count_active(). */
    static inline void kmm_count_region_frames(struct zone *z, long n)
    { __atomic_fetch_add(&z->nr_free_pages, (unsigned long)n, __ATOMIC_RELAXED); }
    """
    void count_region_frames "kmm_count_region_frames"(zone *z, long n) nogil

cdef enum:
    MAX_REFS = 0x7fffffff # of a page; beyond, no more can be taken (the sign bit of Linux's counter)


# Context: any. Does not return: a frame that is freed twice or still mapped would corrupt another owner's memory. In a
# region it would not, and the engine is told: callers leave the frame alone.
cdef void bad_page(Cpu *cpu, page *p, const char *reason) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    if m.region != NULL and region_of(m).bug != NULL:
        region_of(m).bug(cpu, reason, p)
        return
    fprintf(stderr, "pykmm: BUG: bad page state, pfn %lx: %s (refcount %u, mapcount %u, flags %lx)\n",
            page_to_pfn(m, p), reason, p._refcount, p._mapcount, p.flags)
    abort()


# Context: machine creation, nobody else knows the machine. mem_base, mem_map, nr_frames, nr_cpus and arch are set.
cdef int zone_init(machine *m) noexcept nogil:
    cdef zone *z = &m.zone
    cdef unsigned long share
    cdef u32 order
    cdef page *p
    if m.nr_frames < NR_RESERVED + 2:
        return -EINVAL
    spin_lock_init(&z.lock)
    for order in range(MAX_ORDER):
        z.free_area[order].free_list = NULL
        z.free_area[order].nr_free = 0
    z.pristine_pfn = NR_RESERVED
    z.end_pfn = m.nr_frames
    z.committed_pfn = 0
    z.nr_free_pages = z.end_pfn - NR_RESERVED
    # As zone_batchsize(): all lists together never hold more than a quarter of memory.
    share = m.nr_frames // (<unsigned long>4 * m.nr_cpus)
    z.pcp_high = <u32>min(<unsigned long>KMM_PCP_HIGH, max(share, <unsigned long>1))
    z.pcp_batch = <u32>min(<unsigned long>KMM_PCP_BATCH, max(share // 3, <unsigned long>1))
    for order in range(NR_RESERVED):
        p = pfn_to_page(m, order)
        p.flags = PG_reserved
        p._refcount = 1
    m.zero_page = pfn_to_page(m, 1)
    return 0


# ---- buddy lists ----

# Context: zone->lock held.
cdef inline void list_add_block(zone *z, page *p, u32 order) noexcept nogil:
    cdef free_area *area = &z.free_area[order]
    p.order = order
    p.flags = PG_buddy
    p.lru_prev = NULL
    p.lru_next = area.free_list
    if p.lru_next != NULL:
        p.lru_next.lru_prev = p
    area.free_list = p
    area.nr_free += 1


# Context: zone->lock held.
cdef inline void list_del_block(zone *z, page *p, u32 order) noexcept nogil:
    cdef free_area *area = &z.free_area[order]
    if p.lru_prev != NULL:
        p.lru_prev.lru_next = p.lru_next
    else:
        area.free_list = p.lru_next
    if p.lru_next != NULL:
        p.lru_next.lru_prev = p.lru_prev
    p.lru_next = NULL
    p.lru_prev = NULL
    p.flags = 0
    area.nr_free -= 1


# Context: zone->lock held. Merges with its buddy as long as that is free as a whole.
cdef void __free_one_page(machine *m, page *p, u32 order) noexcept nogil:
    cdef zone *z = &m.zone
    cdef unsigned long pfn = page_to_pfn(m, p)
    cdef unsigned long buddy_pfn
    cdef page *buddy
    if unlikely(p.flags & PG_buddy):
        bad_page(m.cpus[0], p, "freed twice")
    z.nr_free_pages += <unsigned long>1 << order
    while order < MAX_ORDER - 1:
        buddy_pfn = pfn ^ (<unsigned long>1 << order)
        if buddy_pfn >= z.pristine_pfn:
            break
        buddy = pfn_to_page(m, buddy_pfn)
        # Who owns the buddy may be changing its flags, but PG_buddy changes under zone->lock only.
        if not (READ_ONCE(m.cpus[0], &buddy.flags) & PG_buddy) or buddy.order != order:
            break
        list_del_block(z, buddy, order)
        pfn &= buddy_pfn
        order += 1
    list_add_block(z, pfn_to_page(m, pfn), order)


# Context: zone->lock held. A free range as the blocks that alignment allows.
cdef void free_range(machine *m, unsigned long pfn, unsigned long end) noexcept nogil:
    cdef u32 order
    while pfn < end:
        order = 0
        while (order < MAX_ORDER - 1 and not pfn & (<unsigned long>1 << order)
               and pfn + (<unsigned long>2 << order) <= end):
            order += 1
        __free_one_page(m, pfn_to_page(m, pfn), order)
        pfn += <unsigned long>1 << order


# Context: zone->lock held. A block of at least `order` taken off its list, or NULL; *got is its order.
cdef inline page *take_block(zone *z, u32 order, u32 *got) noexcept nogil:
    cdef page *p
    while order < MAX_ORDER:
        p = z.free_area[order].free_list
        if p != NULL:
            list_del_block(z, p, order)
            got[0] = order
            return p
        order += 1
    return NULL


# Context: zone->lock held. A block of exactly 1 << order frames, or NULL: splits larger ones, then carves the tail.
cdef page *rmqueue(machine *m, u32 order) noexcept nogil:
    cdef zone *z = &m.zone
    cdef u32 got = 0
    cdef unsigned long size = <unsigned long>1 << order
    cdef unsigned long pfn, old
    cdef page *p = take_block(z, order, &got)
    if p != NULL:
        while got > order:
            got -= 1
            list_add_block(z, p + (<unsigned long>1 << got), got)
        z.nr_free_pages -= size
        return p
    pfn = (z.pristine_pfn + size - 1) & ~(size - 1)
    if pfn + size > z.end_pfn:
        return NULL
    old = z.pristine_pfn
    z.pristine_pfn = pfn + size
    z.nr_free_pages -= pfn + size - old
    free_range(m, old, pfn) # what alignment skipped
    return pfn_to_page(m, pfn)


# Fills the Cpu's list with up to pcp_batch frames, lowest address on top. Takes and drops zone->lock; the list is
# empty. Context: as alloc_page.
cdef void rmqueue_bulk(Cpu *cpu) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef zone *z = &m.zone
    cdef u32 batch = z.pcp_batch
    cdef u32 count = 0
    cdef u32 got = 0
    cdef unsigned long n, i, _i
    cdef unsigned long pristine
    cdef page *p
    cdef page *last = NULL
    cdef page **link = <page **>&cpu.pcp.list
    spin_lock(cpu, &z.lock)
    while count < batch:
        p = take_block(z, 0, &got)
        if p == NULL:
            break
        n = <unsigned long>1 << got
        while n > batch - count: # more than is wanted: the upper halves go back
            got -= 1
            n >>= 1
            list_add_block(z, p + n, got)
        for _i in range(n):
            p.flags = 0
            p.lru_prev = last
            link[0] = p
            link = &p.lru_next
            last = p
            p += 1
        count += <u32>n
    n = min(<unsigned long>(batch - count), z.end_pfn - z.pristine_pfn)
    pristine = z.committed_pfn
    for i in range(n):
        p = pfn_to_page(m, z.pristine_pfn + i)
        p.flags = PG_pristine if z.pristine_pfn + i >= pristine else 0
        p.lru_prev = last
        link[0] = p
        link = &p.lru_next
        last = p
    z.pristine_pfn += n
    count += <u32>n
    z.nr_free_pages -= count
    link[0] = NULL
    cpu.pcp.tail = last
    cpu.pcp.count = count
    spin_unlock(cpu, &z.lock)


# Gives all but `keep` frames of the Cpu's list back, the coldest (its tail) first. Context: as put_page.
cdef void free_pcppages_bulk(Cpu *cpu, u32 keep) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef page *p
    if cpu.pcp.count <= keep:
        return
    spin_lock(cpu, &m.zone.lock)
    while cpu.pcp.count > keep:
        p = <page *>cpu.pcp.tail
        cpu.pcp.tail = p.lru_prev
        cpu.pcp.count -= 1
        p.flags = 0
        __free_one_page(m, p, 0)
    spin_unlock(cpu, &m.zone.lock)
    if cpu.pcp.tail != NULL:
        (<page *>cpu.pcp.tail).lru_next = NULL
    else:
        cpu.pcp.list = NULL


# Context: as alloc_page. Nothing sleeps here, as there is no reclaim; in the kernel it would, unless __GFP_NOWAIT.
cdef void emit_alloc(Cpu *cpu, page *p, u32 gfp) noexcept nogil:
    if not gfp & __GFP_NOWAIT:
        might_sleep(cpu, b"alloc_pages")
    kmm_emit(cpu, KMM_EV_ALLOC, p, sizeof(page))


# Context: as alloc_page; the frames have their contents. The block is in use from now on.
cdef inline page *prep_new_page(Cpu *cpu, page *p, u32 order, u32 gfp) noexcept nogil:
    p.flags = 0
    p.order = order
    p.mapping = NULL
    p.private_ = 0
    # The frame's contents before its refcount: pairs with the fully ordered atomic_inc_not_zero() of lockless GUP.
    smp_store_release_32(cpu, &p._refcount, 1)
    count_vm_event(cpu, PGALLOC)
    if unlikely(cpu.engine != NULL):
        emit_alloc(cpu, p, gfp)
    return p


# Context: as alloc_page, the machine lies in a region.
cdef page *alloc_region_pages(Cpu *cpu, u32 gfp, u32 order) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef page *p = region_alloc_pages(region_of(m), cpu.id, order, gfp & __GFP_ZERO)
    if p == NULL:
        return NULL
    count_region_frames(&m.zone, -(<long>1 << order))
    return prep_new_page(cpu, p, order | KMM_ORDER_REGION, gfp)


# Context: as put_page, the machine lies in a region; _refcount has just dropped to 0.
cdef void free_region_pages(Cpu *cpu, page *p) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef u32 order = p.order & ~KMM_ORDER_REGION
    if p._mapcount != 0:
        bad_page(cpu, p, "freed while mapped")
        return
    kmm_emit(cpu, KMM_EV_FREE, p, sizeof(page))
    count_vm_event(cpu, PGFREE)
    if not region_free_pages(region_of(m), p, order):
        bad_page(cpu, p, "freed twice")
        return
    p.flags = 0
    count_region_frames(&m.zone, <long>1 << order)


# Context: any, IRQs on or off (never an IPI handler: the list is the owner's), no zone->lock. _refcount = 1,
# _mapcount = 0. NULL: out of memory.
# A __GFP_ZERO frame is cleared here, unless it came back unwritten, or host memory has never backed it: then the host
# clears it when it is first touched, which costs more, not less. Frames backed by machine_commit() are always cleared
# here, so that a timed fault pays for its zeroing.
cdef page *alloc_page(Cpu *cpu, u32 gfp) noexcept nogil:
    cdef machine *m
    cdef unsigned long flags
    cdef page *next
    cdef page *p = <page *>cpu.pcp.list
    if unlikely(p == NULL):
        if machine_of(cpu).region != NULL:
            return alloc_region_pages(cpu, gfp, 0)
        rmqueue_bulk(cpu)
        p = <page *>cpu.pcp.list
        if p == NULL:
            return NULL
    next = p.lru_next
    cpu.pcp.list = next
    if likely(next != NULL):
        next.lru_prev = NULL
    else:
        cpu.pcp.tail = NULL
    cpu.pcp.count -= 1
    flags = p.flags
    p.lru_next = NULL
    p.lru_prev = NULL
    if gfp & __GFP_ZERO and likely(not flags & PG_pristine):
        m = machine_of(cpu)
        if likely(next != NULL):
            next = next.lru_next  # two ahead: its struct page comes into the cache on the way, for the call after next
        if likely(next != NULL):
            cpu.pcp.fetch = <const char *>m.mem_base + (page_to_pfn(m, next) << m.arch.page_shift)
            cpu.pcp.fetch_steps = 4  # two here, two in user_fault()
        kmm_prefetch_step(cpu)
        kmm_clear_page(m.mem_base + (page_to_pfn(m, p) << m.arch.page_shift), <size_t>1 << m.arch.page_shift)
        kmm_prefetch_step(cpu)
    return prep_new_page(cpu, p, 0, gfp)


# Context: as alloc_page. Only the first page of the block is counted (not compound).
cdef page *alloc_pages(Cpu *cpu, u32 gfp, u32 order) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef page *p
    if order == 0:
        return alloc_page(cpu, gfp)
    if order >= MAX_ORDER:
        return NULL
    if m.region != NULL:
        return alloc_region_pages(cpu, gfp, order)
    spin_lock(cpu, &m.zone.lock)
    p = rmqueue(m, order)
    spin_unlock(cpu, &m.zone.lock)
    if p == NULL:
        return NULL
    if gfp & __GFP_ZERO:
        kmm_clear_page(m.mem_base + (page_to_pfn(m, p) << m.arch.page_shift),
                       <size_t>1 << (m.arch.page_shift + order))
    return prep_new_page(cpu, p, order, gfp)


# Context: any; the caller holds a reference, or the PTL of an entry that does.
cdef void get_page(Cpu *cpu, page *p) noexcept nogil:
    atomic_inc_32(cpu, &p._refcount)


# Back onto the Cpu's list. Context: as put_page; _refcount has just dropped to 0.
cdef inline void free_unref_page(Cpu *cpu, page *p) noexcept nogil:
    cdef u32 keep
    cdef page *head = <page *>cpu.pcp.list
    if unlikely(p._mapcount != 0):
        bad_page(cpu, p, "freed while mapped")
    if unlikely(p.flags & PG_buddy):
        bad_page(cpu, p, "freed twice")
    kmm_emit(cpu, KMM_EV_FREE, p, sizeof(page))
    count_vm_event(cpu, PGFREE)
    p.flags = 0
    p.lru_next = head
    p.lru_prev = NULL
    if likely(head != NULL):
        head.lru_prev = p
    else:
        cpu.pcp.tail = p
    cpu.pcp.list = p
    cpu.pcp.count += 1
    if unlikely(cpu.pcp.count > machine_of(cpu).zone.pcp_high):
        keep = cpu.pcp.count - min(cpu.pcp.count, machine_of(cpu).zone.pcp_batch)
        free_pcppages_bulk(cpu, keep)


# Context: as put_page. `old` references were there, no more than `refs`.
cdef inline void put_last(Cpu *cpu, page *p, u32 old, u32 refs) noexcept nogil:
    if unlikely(old < refs):
        bad_page(cpu, p, "reference dropped on a free page")
        return
    if unlikely(p.order != 0):
        if p.order == KMM_ORDER_REGION:
            free_region_pages(cpu, p)
        else:
            bad_page(cpu, p, "block of more than one page freed by put_page()")
        return
    free_unref_page(cpu, p)


# Context: any, IRQs on or off (never an IPI handler), no zone->lock. Reserved frames are left alone.
cdef void put_page(Cpu *cpu, page *p) noexcept nogil:
    cdef u32 old
    if unlikely(READ_ONCE(cpu, &p.flags) & PG_reserved):
        return
    old = fetch_add_32(cpu, &p._refcount, <u32>-1, ATOMIC_SEQ_CST)
    if likely(old > 1):
        return
    put_last(cpu, p, old, 1)


# Context: as put_page; the caller's is the only reference but those of lockless lookups that came too late. Linux has no
# such thing, and clears another frame when the fault comes back.
cdef void put_zeroed_page(Cpu *cpu, page *p) noexcept nogil:
    put_page(cpu, p)
    if likely(<page *>cpu.pcp.list == p):
        p.flags = PG_pristine


# Context: as put_page.
cdef void put_page_refs(Cpu *cpu, page *p, u32 refs) noexcept nogil:
    cdef u32 old
    if unlikely(READ_ONCE(cpu, &p.flags) & PG_reserved):
        return
    old = fetch_add_32(cpu, &p._refcount, <u32>0 - refs, ATOMIC_SEQ_CST)
    if old <= refs:
        put_last(cpu, p, old, refs)


# Context: any.
cdef bint try_get_page_refs(Cpu *cpu, page *p, u32 refs) noexcept nogil:
    cdef u32 old = READ_ONCE_32(cpu, &p._refcount)
    cdef u32 seen
    while old != 0 and old <= <u32>MAX_REFS:
        seen = cmpxchg_32(cpu, &p._refcount, old, old + refs)
        if seen == old:
            return True
        old = seen
    return False


# Context: as put_page. `order` as it was allocated.
cdef void __free_pages(Cpu *cpu, page *p, u32 order) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef u32 old
    if order == 0:
        put_page(cpu, p)
        return
    if p.order & ~KMM_ORDER_REGION != order:
        bad_page(cpu, p, "freed with another order than allocated")
        return
    old = fetch_add_32(cpu, &p._refcount, <u32>-1, ATOMIC_SEQ_CST)
    if old > 1:
        return
    if unlikely(old == 0):
        bad_page(cpu, p, "reference dropped on a free page")
        return
    if m.region != NULL:
        free_region_pages(cpu, p)
        return
    if unlikely(p._mapcount != 0):
        bad_page(cpu, p, "freed while mapped")
    kmm_emit(cpu, KMM_EV_FREE, p, sizeof(page))
    count_vm_event(cpu, PGFREE)
    spin_lock(cpu, &m.zone.lock)
    p.flags = 0
    __free_one_page(m, p, order)
    spin_unlock(cpu, &m.zone.lock)


# Context: as put_page.
cdef void drain_local_pages(Cpu *cpu) noexcept nogil:
    free_pcppages_bulk(cpu, 0)


# Context: any; exact when no Cpu runs.
cdef unsigned long nr_used_pages(machine *m) noexcept nogil:
    cdef unsigned long idle = data_race(&m.zone.nr_free_pages)
    cdef u32 i
    for i in range(m.nr_cpus):
        if m.cpus[i] != NULL:
            # Not READ_ONCE(): no Cpu executes this.
            idle += data_race_32(&m.cpus[i].pcp.count)
    return m.zone.end_pfn - NR_RESERVED - idle
