# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""mm/slab.c: typed object caches with per-CPU magazines.

A Cpu allocates from and frees to its own magazine without any atomic operation; half a magazine at a
time moves to or from the depot under the cache's lock. Memory comes in 64 KiB chunks that are carved
into objects and kept until the cache is destroyed: a stale pointer to an object always points to an
object of the same type.

simplified: no shrinking, no colouring, no NUMA; the depot holds objects, not full magazines; every
object is handed out zeroed (__GFP_ZERO).

A cache that is `typesafe` (SLAB_TYPESAFE_BY_RCU) is for objects that lockless readers may still look at after they were
freed: an object is handed out as it was left, and whoever allocates it writes what readers look at by WRITE_ONCE.
Chunks outlive every reader anyway.

Where the machine lies in a region, the magazines stay empty: every allocation takes the way of a refill and every
free that of a drain, and both go to the region, without a lock (include/kmm/region.h). Objects of a typesafe cache go
to the magazine there too and are reused at once; what a full one cannot take stays where it is, unused: the region
would poison it. They never count as freed: touching one that is free is no bug by itself.
"""
from libc.errno cimport ENOMEM, EINVAL
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from pykmm_ext.kernel.atomic cimport kmm_emit, might_sleep
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock
from pykmm_ext.machine.cpu cimport (
    KMM_EV_ALLOC, KMM_EV_FREE, KMM_SLAB_CACHES, KMM_SLAB_MAGAZINE, Cpu, likely, slab_magazine, u8, u32, unlikely,
)
from pykmm_ext.machine.region cimport KMM_MAG_REGION, machine_free, region_alloc, region_count, region_of
from pykmm_ext.mm.mm_types cimport machine_of

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from *:
    """
    /* Owner writes, others sum: no engine hook, it is a statistic (as count_vm_event). */
    static inline void kmm_count_active(struct slab_magazine *mag, long n)
    { __atomic_store_n(&mag->nr_active, mag->nr_active + n, __ATOMIC_RELAXED); }
    static inline long kmm_read_active(const struct slab_magazine *mag)
    { return __atomic_load_n(&mag->nr_active, __ATOMIC_RELAXED); }
    """
    void kmm_count_active(slab_magazine *mag, long n) nogil
    long kmm_read_active(const slab_magazine *mag) nogil

cdef enum:
    CHUNK = 65536
    CACHELINE = 128  # KMM_CACHELINE
    # Objects moved at a time.
    BATCH = 30

# The chunk's first line links it; the objects follow.
cdef struct chunk:
    chunk *next
    size_t size


# Context: s->lock held. A fresh chunk to carve from, and room in the depot for every object it will
# ever give back, so that freeing cannot fail. 0 or -ENOMEM.
cdef int add_chunk(kmem_cache *s) noexcept nogil:
    cdef size_t size = CHUNK
    cdef unsigned long objects, room
    cdef void **depot
    cdef chunk *c
    if s.object_size + CACHELINE > size:
        size = (s.object_size + CACHELINE + CHUNK - 1) // CHUNK * CHUNK
    objects = (size - CACHELINE) // s.object_size
    if s.nr_total + objects > s.depot_max:
        room = 2 * s.depot_max
        if room < s.nr_total + objects:
            room = s.nr_total + objects
        depot = <void **>realloc(s.depot, room * sizeof(void *))
        if depot == NULL:
            return -ENOMEM
        s.depot = depot
        s.depot_max = room
    c = <chunk *>aligned_alloc(CACHELINE, size)
    if c == NULL:
        return -ENOMEM
    c.next = <chunk *>s.slabs
    c.size = size
    s.slabs = c
    s.carve = <u8 *>c + CACHELINE
    s.carve_end = s.carve + objects * s.object_size
    return 0


# Context: s->lock held, or a machine in a region. The Cpu's first use of the cache: from now on its count is part of
# the sum.
cdef void register_magazine(kmem_cache *s, slab_magazine *mag, u32 how) noexcept nogil:
    mag.registered = how
    mag.next = s.magazines
    s.magazines = mag


# Context: as refill(), the machine lies in a region. One object, straight from it; no scheduling point.
cdef bint refill_region(Cpu *cpu, kmem_cache *s, slab_magazine *mag) noexcept nogil:
    cdef size_t align = CACHELINE if s.object_size >= CACHELINE else 16
    cdef void *obj = region_alloc(region_of(machine_of(cpu)), cpu.id + 1, s.object_size, align, s.name)
    if obj == NULL:
        return False
    if not mag.registered:
        register_magazine(s, mag, KMM_MAG_REGION)
    s.nr_total += 1
    if s.typesafe:
        memset(obj, 0, s.object_size)
    mag.objects[0] = obj
    mag.count = 1
    return True


# Context: IRQs on. True when the magazine has an object now.
cdef bint refill(Cpu *cpu, kmem_cache *s, slab_magazine *mag) noexcept nogil:
    cdef u32 n
    if machine_of(cpu).region != NULL:
        return refill_region(cpu, s, mag)
    spin_lock(cpu, &s.lock)
    if not mag.registered:
        register_magazine(s, mag, 1)
    n = <u32>s.depot_count if s.depot_count < BATCH else BATCH
    s.depot_count -= n
    if n:
        memcpy(&mag.objects[0], s.depot + s.depot_count, n * sizeof(void *))
    # Carve few at a time while the cache is young: fresh memory is the host's page faults.
    while n < BATCH:
        if s.carve == s.carve_end and add_chunk(s) != 0:
            break
        if s.typesafe:
            memset(s.carve, 0, s.object_size)
        mag.objects[n] = s.carve
        s.carve += s.object_size
        s.nr_total += 1
        n += 1
    mag.count = n
    spin_unlock(cpu, &s.lock)
    return n != 0


# Context: IRQs on. Makes room in a full magazine; the objects freed longest ago go. True when `obj` is free already.
# In a region depot_count counts objects of a typesafe cache that nobody gets any more; no scheduling point.
cdef bint drain(Cpu *cpu, kmem_cache *s, slab_magazine *mag, void *obj) noexcept nogil:
    cdef u32 i
    if machine_of(cpu).region != NULL:
        if not mag.registered:
            register_magazine(s, mag, KMM_MAG_REGION)
        if s.typesafe:
            s.depot_count += mag.count == KMM_SLAB_MAGAZINE
            return mag.count == KMM_SLAB_MAGAZINE
        machine_free(cpu, machine_of(cpu), obj)
        return True
    spin_lock(cpu, &s.lock)
    if not mag.registered:
        register_magazine(s, mag, 1)
    if mag.count:
        memcpy(s.depot + s.depot_count, &mag.objects[0], BATCH * sizeof(void *))
        s.depot_count += BATCH
        mag.count -= BATCH
        for i in range(mag.count):
            mag.objects[i] = mag.objects[i + BATCH]
    spin_unlock(cpu, &s.lock)
    return False


# Context: any with IRQs on. Zeroed object, or NULL; of a typesafe cache: one that was zeroed when it was new.
cdef void *kmem_cache_alloc(Cpu *cpu, kmem_cache *s) noexcept nogil:
    cdef slab_magazine *mag = &cpu.slab[s.id]
    cdef void *obj
    if unlikely(mag.count == 0) and not refill(cpu, s, mag):
        return NULL
    mag.count -= 1
    obj = mag.objects[mag.count]
    kmm_count_active(mag, 1)
    if likely(not s.typesafe):
        memset(obj, 0, s.object_size)
    if unlikely(cpu.engine != NULL):
        might_sleep(cpu, b"kmem_cache_alloc")
        if not s.typesafe:  # nor was it freed: its contents are what they were
            kmm_emit(cpu, KMM_EV_ALLOC, obj, s.object_size)
    return obj


# Context: any with IRQs on. Never fails.
cdef void kmem_cache_free(Cpu *cpu, kmem_cache *s, void *obj) noexcept nogil:
    cdef slab_magazine *mag = &cpu.slab[s.id]
    if likely(not s.typesafe):
        kmm_emit(cpu, KMM_EV_FREE, obj, s.object_size)
    if unlikely(mag.count == KMM_SLAB_MAGAZINE or mag.registered != 1) and drain(cpu, s, mag, obj):
        kmm_count_active(mag, -1)
        return
    mag.objects[mag.count] = obj
    mag.count += 1
    kmm_count_active(mag, -1)


# Context: any. 0 or -EINVAL. Objects of a line or more are aligned to one.
cdef int kmem_cache_init(kmem_cache *s, u32 id, const char *name, size_t object_size) noexcept nogil:
    cdef size_t align = CACHELINE if object_size >= CACHELINE else 64 if object_size >= 64 else 16
    if id >= KMM_SLAB_CACHES or object_size == 0:
        return -EINVAL
    memset(s, 0, sizeof(s[0]))
    s.name = name
    s.id = id
    s.object_size = (object_size + align - 1) // align * align
    spin_lock_init(&s.lock)
    return 0


cdef unsigned long kmem_cache_active(machine *m, kmem_cache *s) noexcept nogil:
    cdef long n = 0
    cdef slab_magazine *mag
    mag = s.magazines
    while mag != NULL:
        n += kmm_read_active(mag)
        mag = mag.next
    return <unsigned long>n


# Context: no other user. Counts: carved = live + in magazines + in the depot; every spare lies in a chunk.
cdef int validate_kmem_cache(kmem_cache *s) noexcept nogil:
    cdef unsigned long spare = s.depot_count, carved = 0, n
    cdef slab_magazine *mag
    cdef chunk *c
    cdef u8 *start
    cdef u8 *end
    mag = s.magazines
    while mag != NULL:
        if mag.count > KMM_SLAB_MAGAZINE:
            return -1
        spare += mag.count
        mag = mag.next
    if spare + kmem_cache_active(NULL, s) != s.nr_total or s.depot_count > s.depot_max:
        return -1
    c = <chunk *>s.slabs
    while c != NULL:
        start = <u8 *>c + CACHELINE
        n = (c.size - CACHELINE) // s.object_size
        end = start + n * s.object_size
        if c == s.slabs:
            if s.carve_end != end or s.carve < start or s.carve > end:
                return -1
            n -= (end - s.carve) // s.object_size
        carved += n
        c = c.next
    return 0 if carved == s.nr_total else -1


# Context: as validate_kmem_cache, which it is where the machine lies in a region. That it freed nothing twice is the
# region's to say; that nothing was written after it was freed, poison's.
cdef int validate_region_cache(machine *m, kmem_cache *s) noexcept nogil:
    cdef unsigned long live = 0
    cdef slab_magazine *mag = s.magazines
    if not region_count(region_of(m), s.name, &live) or s.slabs != NULL or (s.depot_count and not s.typesafe):
        return -1
    live -= s.depot_count
    while mag != NULL:  # of a typesafe cache; others are empty
        live -= mag.count
        mag = mag.next
    return 0 if live == kmem_cache_active(m, s) and live <= s.nr_total else -1


cdef unsigned long kmem_cache_destroy(kmem_cache *s) noexcept nogil:
    cdef unsigned long live = kmem_cache_active(NULL, s)
    cdef slab_magazine *mag
    cdef chunk *c
    while s.magazines != NULL:
        mag = s.magazines
        s.magazines = mag.next
        mag.count = 0
        mag.registered = 0
        mag.nr_active = 0
        mag.next = NULL
    while s.slabs != NULL:
        c = <chunk *>s.slabs
        s.slabs = c.next
        free(c)
    free(s.depot)
    memset(s, 0, sizeof(s[0]))
    return live
