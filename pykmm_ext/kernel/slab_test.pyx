# SPDX-License-Identifier: GPL-2.0-only
"""mm/slab.c's test: a cache whose objects are allocated on one CPU and freed on another."""
from libc.stdlib cimport calloc, free

from pykmm_ext.kernel.atomic cimport xchg_ptr
from pykmm_ext.kernel.cpuset cimport CpuSet, cpuset_cpu
from pykmm_ext.kernel.slab cimport (
    kmem_cache_active, kmem_cache_alloc, kmem_cache_destroy, kmem_cache_free, kmem_cache_init, validate_kmem_cache,
)
from pykmm_ext.machine.cpu cimport Cpu, u32, u64
from pykmm_ext.mm.mm_types cimport kmem_cache

cdef enum:
    SLOTS = 4096


cdef class SlabCache:
    """A kmem_cache and 4096 slots for its objects.

    :param cpus: the CpuSet.
    :param object_size: bytes, at least 16.
    :param id: index of the cache among a Cpu's magazines.
    :param typesafe: SLAB_TYPESAFE_BY_RCU: objects come as they were left.
    """
    cdef CpuSet cpus
    cdef kmem_cache cache
    cdef void **slots
    cdef size_t size
    cdef bint typesafe
    cdef unsigned long nr_kept      # racy where several threads allocate

    def __cinit__(self, CpuSet cpus not None, size_t object_size, u32 id=0, bint typesafe=False):
        self.cpus = cpus
        self.size = object_size
        self.typesafe = typesafe
        if object_size < 16 or kmem_cache_init(&self.cache, id, b"test", object_size) != 0:
            raise ValueError("object_size must be 16 or more, id below KMM_SLAB_CACHES")
        self.cache.typesafe = typesafe
        self.slots = <void **>calloc(SLOTS, sizeof(void *))
        if self.slots == NULL:
            raise MemoryError()

    def __dealloc__(self):
        kmem_cache_destroy(&self.cache)
        free(self.slots)

    cdef int put(self, Cpu *c, unsigned long slot, u64 mark) noexcept nogil:
        cdef unsigned char *obj = <unsigned char *>kmem_cache_alloc(c, &self.cache)
        cdef u64 *words = <u64 *>obj
        cdef size_t i
        cdef int errors = 0
        if obj == NULL:
            return 1
        if self.typesafe:   # zero when it is new, or as put() left it
            errors = words[1] != (~words[0] if words[0] else 0)
            self.nr_kept += words[0] != 0
        else:
            for i in range(self.size):
                if obj[i] != 0:
                    errors += 1
                    break
        words[0] = mark
        words[1] = ~mark
        obj[self.size - 1] |= 1
        obj = <unsigned char *>xchg_ptr(c, &self.slots[slot], obj)
        if obj != NULL:
            errors += self.take_back(c, obj)
        return errors

    cdef int take_back(self, Cpu *c, void *obj) noexcept nogil:
        cdef u64 *words = <u64 *>obj
        cdef int errors = 0
        # With the last byte in the second word (size 16) the mark is disturbed on purpose.
        if self.size > 16 and words[1] != ~words[0]:
            errors = 1
        kmem_cache_free(c, &self.cache, obj)
        return errors

    def exchange(self, u32 cpu, unsigned long n, u64 seed):
        """n times: allocate into a random slot and free what lay there. Returns the violations seen (object
        not zeroed, changed by somebody else, or no memory)."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef u64 state = seed | 1
        cdef unsigned long errors = 0
        with nogil:
            for _i in range(n):
                state ^= state << 13
                state ^= state >> 7
                state ^= state << 17
                errors += self.put(c, state % SLOTS, state)
        return errors

    def alloc(self, unsigned long slot, u32 cpu=0):
        """Allocate into a slot (freeing what lay there); returns the address."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if slot >= SLOTS:
            raise IndexError(slot)
        if self.put(c, slot, slot + 1):
            raise AssertionError("object not zeroed, changed, or no memory")
        return <size_t>self.slots[slot]

    def free(self, unsigned long slot, u32 cpu=0):
        """Free what lies in a slot."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef void *obj
        if slot >= SLOTS:
            raise IndexError(slot)
        obj = xchg_ptr(c, &self.slots[slot], NULL)
        if obj != NULL and self.take_back(c, obj):
            raise AssertionError("object changed")

    @property
    def active(self):
        """kmem_cache_active()."""
        return kmem_cache_active(self.cpus.machine, &self.cache)

    @property
    def kept(self):
        """Of a typesafe cache: how many objects came with what somebody had left in them."""
        return self.nr_kept

    @property
    def total(self):
        """Objects carved so far."""
        return self.cache.nr_total

    @property
    def object_size(self):
        """Bytes, as rounded up."""
        return self.cache.object_size

    def valid(self):
        """validate_kmem_cache() is content."""
        return validate_kmem_cache(&self.cache) == 0

    def destroy(self):
        """kmem_cache_destroy(): objects that were live."""
        cdef unsigned long i
        for i in range(SLOTS):
            self.slots[i] = NULL
        live = kmem_cache_destroy(&self.cache)
        kmem_cache_init(&self.cache, self.cache.id, b"test", self.size)
        self.cache.typesafe = self.typesafe
        return live
