# SPDX-License-Identifier: GPL-2.0-only
# mm/slab.c: typed object caches with per-CPU magazines. Memory is type-stable until the cache dies.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport kmem_cache, machine

# Context: any with IRQs on. Zeroed object, or NULL.
cdef void *kmem_cache_alloc(Cpu *cpu, kmem_cache *s) noexcept nogil
cdef void kmem_cache_free(Cpu *cpu, kmem_cache *s, void *obj) noexcept nogil
cdef int kmem_cache_init(kmem_cache *s, u32 id, const char *name, size_t object_size) noexcept nogil
# Live objects, summed over the Cpus (racy while they run). `m` may be NULL: the cache knows its Cpus.
# Context: any with IRQs on.
cdef unsigned long kmem_cache_active(machine *m, kmem_cache *s) noexcept nogil
# The cache's chunks, magazines and counts agree: 0, or -1.  Context: no other user of the cache.
cdef int validate_kmem_cache(kmem_cache *s) noexcept nogil
# The same for a machine that lies in a region; also that nobody wrote to what was freed.
cdef int validate_region_cache(machine *m, kmem_cache *s) noexcept nogil
# Context: no other user; before the Cpus that used it are freed. Frees the backing memory; returns how many
# objects were still live (a leak), or 0.
cdef unsigned long kmem_cache_destroy(kmem_cache *s) noexcept nogil
