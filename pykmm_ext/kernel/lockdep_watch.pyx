# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/locking/lockdep.c's hooks in lock operations, for a machine: who calls, in what state, about a lock of which class.

The class of an address is that of the object it lies in and of its offset there: in the machine itself, in mem_map, or
in an object of the machine's region (machine/region) or, without one, of its slab caches.
"""
from libc.string cimport memset

from pykmm_ext.kernel.lockdep cimport lockdep_context, lockdep_exit_check, lockdep_release, lockdep_reset_held
from pykmm_ext.kernel.lockdep_events cimport (
    KMM_DOWNGRADE_WRITE, LOCKDEP_UNKNOWN, lockdep_event_has_class, lockdep_known_class, lockdep_on_event, lockdep_on_lock,
    tlb_t,
)
from pykmm_ext.machine.cpu cimport KMM_EV_IRQ_ENTER, KMM_EV_IRQ_EXIT, likely, u8
from pykmm_ext.machine.region cimport region_header_of, region_object, region_of, region_t
from pykmm_ext.mm.mm_types cimport KMEM_NR, page

cdef enum:
    CACHELINE = 128              # where a slab chunk's first object lies, as in kernel/slab.pyx

cdef struct chunk:               # as in kernel/slab.pyx
    chunk *next
    size_t size


cdef void lockdep_watch_init(lockdep_watch *w, lockdep *ld, machine *m) noexcept nogil:
    memset(w, 0, sizeof(w[0]))
    w.ld = ld
    w.m = m


cdef void lockdep_watch_reset(lockdep_watch *w) noexcept nogil:
    lockdep_reset_held(w.ld)
    memset(w.in_irq, 0, sizeof(w.in_irq))


# Context: any. The class of (type, offset): the table is searched once for each.
cdef int class_at(lockdep_watch *w, const char *type, size_t offset) noexcept nogil:
    cdef lockdep_watch_class *c = &w.cache[((<size_t>type >> 3) ^ offset >> 2) & (LOCKDEP_WATCH_CACHE - 1)]
    if likely(c.type == type and c.offset == offset):
        return c.cls
    c.cls = lockdep_known_class(w.ld, type, offset)
    c.type = type
    c.offset = offset
    return c.cls


cdef int lockdep_watch_class_of(lockdep_watch *w, const void *p) noexcept nogil:
    cdef machine *m = w.m
    cdef region_t *r = region_of(m)
    cdef const u8 *at = <const u8 *>p
    cdef const u8 *obj
    cdef chunk *c
    cdef u32 i
    if at >= <u8 *>m and at < <u8 *>m + sizeof(machine):
        return class_at(w, b"machine", <size_t>(at - <u8 *>m))
    if at >= <u8 *>m.mem_map and at < <u8 *>(m.mem_map + m.nr_frames):
        return class_at(w, b"page", <size_t>(at - <u8 *>m.mem_map) % sizeof(page))
    if r != NULL:
        if at >= r.heap and at < r.heap + r.heap_bytes:
            obj = region_object(r, p)
            if obj != NULL:
                return class_at(w, region_header_of(<void *>obj).name, <size_t>(at - obj))
        return LOCKDEP_UNKNOWN
    for i in range(KMEM_NR):
        c = <chunk *>m.caches[i].slabs
        while c != NULL:
            if at >= <u8 *>c + CACHELINE and at < <u8 *>c + c.size:
                return class_at(w, m.caches[i].name, <size_t>(at - <u8 *>c - CACHELINE) % m.caches[i].object_size)
            c = c.next
    for i in range(m.nr_cpus):
        if p == <const void *>&(<tlb_t *>m.cpus[i].tlb).lock:
            return class_at(w, b"TLB", <size_t>&(<tlb_t *>NULL).lock)
    return LOCKDEP_UNKNOWN


# Context: any; the Cpu is one of the machine's.
cdef inline lockdep_context context_of(lockdep_watch *w, Cpu *cpu, const char *where) noexcept nogil:
    cdef lockdep_context ctx
    ctx.cpu = cpu.id
    ctx.irqs_off = cpu.irq_disabled != 0
    ctx.in_irq = w.in_irq[cpu.id] != 0
    ctx.where = where
    return ctx


cdef const lockdep_report *lockdep_watch_lock(lockdep_watch *w, Cpu *cpu, const void *lock, kmm_lock_op op, int what,
                                              const char *where) noexcept nogil:
    cdef lockdep_context ctx
    cdef int cls
    if what == 0:
        return NULL
    cls = lockdep_watch_class_of(w, lock)
    if cls == LOCKDEP_UNKNOWN:
        w.unknown += 1
        return NULL
    ctx = context_of(w, cpu, where)
    if op == KMM_DOWNGRADE_WRITE and what == 2:
        return lockdep_release(w.ld, &ctx, lock)  # the engine says next that it is held for reading
    return lockdep_on_lock(w.ld, &ctx, lock, op, cls)


cdef const lockdep_report *lockdep_watch_event(lockdep_watch *w, Cpu *cpu, kmm_event ev, const void *obj, u64 size,
                                               const char *where) noexcept nogil:
    cdef lockdep_context ctx
    cdef int cls = LOCKDEP_UNKNOWN
    if ev == KMM_EV_IRQ_ENTER:
        w.in_irq[cpu.id] += 1
        return NULL
    if ev == KMM_EV_IRQ_EXIT:
        w.in_irq[cpu.id] -= 1
        return NULL
    if lockdep_event_has_class(ev):
        cls = lockdep_watch_class_of(w, obj)
        if cls == LOCKDEP_UNKNOWN:
            w.unknown += 1
            return NULL
    ctx = context_of(w, cpu, where)
    return lockdep_on_event(w.ld, &ctx, ev, obj, size, cls)


cdef const lockdep_report *lockdep_watch_exit(lockdep_watch *w, Cpu *cpu, const char *where) noexcept nogil:
    cdef lockdep_context ctx = context_of(w, cpu, where)
    return lockdep_exit_check(w.ld, &ctx)
