# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on C structures)
"""mm/memblock.c, init/main.c: stands in for both: physical memory, and building and tearing down a machine.

The arena and the array of ``struct page`` are reserved address space: nothing here is proportional to the size of
memory until frames are used, so a machine with terabytes can be built on a laptop.
"""
from libc.errno cimport EINVAL, ENOMEM, errno
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport fetch_or_32, kmm_membarrier_register
from pykmm_ext.kernel.rcu cimport rcu_barrier, rcu_init
from pykmm_ext.kernel.slab cimport kmem_cache_active, kmem_cache_destroy, kmem_cache_init
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock
from pykmm_ext.kernel.srcu cimport cleanup_srcu_struct, init_srcu_struct_at, srcu_barrier, srcu_data
from pykmm_ext.machine.cpu cimport Cpu, u8, u32, u64
from pykmm_ext.machine.irq cimport irq_init_cpu
from pykmm_ext.machine.region cimport (
    machine_free, machine_zalloc, region_alloc, region_create, region_destroy, region_of, region_t,
)
from pykmm_ext.machine.tlb cimport switch_mm, tlb_destroy_cpu, tlb_init_cpu
from pykmm_ext.mm.mm_types cimport (
    KMEM_ANON_VMA, KMEM_AVC, KMEM_FILE, KMEM_MM, KMEM_NR, KMEM_POLICY, KMEM_VMA, anon_vma, anon_vma_chain, arch_ops,
    file, machine, mempolicy, mm_struct, page, region, strategy_ops, vm_area_struct,
)
from pykmm_ext.mm.page_alloc cimport drain_local_pages, nr_used_pages, zone_init

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    const int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_HUGEPAGE
    void *MAP_FAILED

cdef extern from *:
    """
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    const int MADV_POPULATE_WRITE

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)
    void free(void *p)

cdef enum:
    HUGE = 1 << 21          # what the host backs memory with; alignment of the reservations
    HOST_PAGE = 4096
    MAX_CPUS = 4096
    CHECKED_MAX_CPUS = 64   # a slice of address space each
    MIN_FRAMES = 16
    VM_MAX_MAP_COUNT = 65530
    FAULT_AROUND_BYTES = 65536


# Reserved, zero, HUGE-aligned address space of `bytes`, or NULL. Context: any; the host may refuse.
cdef void *reserve(size_t bytes) noexcept nogil:
    cdef size_t want = (bytes + HUGE - 1) & ~<size_t>(HUGE - 1)
    cdef size_t head
    cdef u8 *p
    if want < bytes or want + HUGE < want:
        return NULL
    p = <u8 *>mmap(NULL, want + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if <void *>p == MAP_FAILED:
        return NULL
    head = -<size_t>p & (HUGE - 1)
    if head:
        munmap(p, head)
        p += head
    munmap(p + want, HUGE - head)
    madvise(p, want, MADV_HUGEPAGE) # advice: a host without huge pages works as well
    return p


cdef void unreserve(void *p, size_t bytes) noexcept nogil:
    if p != NULL:
        munmap(p, (bytes + HUGE - 1) & ~<size_t>(HUGE - 1))


# Cache-line-aligned zeroed memory, or NULL.
cdef void *zalloc_aligned(size_t size) noexcept nogil:
    cdef void *p = NULL
    if posix_memalign(&p, 128, size) != 0:
        return NULL
    memset(p, 0, size)
    return p


# Context: nobody uses the machine. Whatever of it was built so far.
cdef void free_machine(machine *m) noexcept nogil:
    cdef u32 i
    if m.region != NULL:
        region_destroy(region_of(m))
        return
    if m.cpus != NULL:
        for i in range(m.nr_cpus):
            if m.cpus[i] != NULL:
                tlb_destroy_cpu(m.cpus[i])
                free(m.cpus[i].py_state)
                machine_free(NULL, m, m.cpus[i])
        machine_free(NULL, m, m.cpus)
    unreserve(m.mem_base, m.nr_frames << m.arch.page_shift)
    unreserve(m.mem_map, m.nr_frames * sizeof(page))
    free(m)


# Context: machine creation. 0 or -ENOMEM; free_machine() takes back what is there.
cdef int init_cpus(machine *m) noexcept nogil:
    cdef bint membarrier = kmm_membarrier_register()
    cdef Cpu *cpu
    cdef u32 i
    for i in range(m.nr_cpus):
        cpu = <Cpu *>machine_zalloc(NULL, m, sizeof(Cpu), 128, b"Cpu")
        if cpu == NULL:
            return -ENOMEM
        m.cpus[i] = cpu
        cpu.machine = m
        cpu.id = i
        cpu.light_is_mb = not membarrier
        irq_init_cpu(cpu)
        if tlb_init_cpu(cpu) != 0:
            return -ENOMEM
    return 0


# Context: machine creation. 0 or -ENOMEM; on failure no cache is left behind.
cdef int init_caches(machine *m) noexcept nogil:
    cdef const char *names[KMEM_NR]
    cdef size_t sizes[KMEM_NR]
    cdef u32 i, j
    names[KMEM_VMA] = b"vm_area_struct"
    sizes[KMEM_VMA] = sizeof(vm_area_struct)
    names[KMEM_ANON_VMA] = b"anon_vma"
    sizes[KMEM_ANON_VMA] = sizeof(anon_vma)
    names[KMEM_AVC] = b"anon_vma_chain"
    sizes[KMEM_AVC] = sizeof(anon_vma_chain)
    names[KMEM_MM] = b"mm_struct"
    sizes[KMEM_MM] = sizeof(mm_struct)
    names[KMEM_FILE] = b"file"
    sizes[KMEM_FILE] = sizeof(file)
    names[KMEM_POLICY] = b"numa_policy"
    sizes[KMEM_POLICY] = sizeof(mempolicy)
    for i in range(KMEM_NR):
        if kmem_cache_init(&m.caches[i], i, names[i], sizes[i]) != 0:
            for j in range(i):
                kmem_cache_destroy(&m.caches[j])
            return -ENOMEM
    m.caches[KMEM_VMA].typesafe = m.strategy.vma_typesafe
    return 0


# Context: machine creation. A zeroed machine with its memory, on the host's heap or in a region, or NULL.
cdef machine *alloc_machine(u32 nr_cpus, u64 frames, u32 page_shift, bint checked) noexcept nogil:
    cdef machine *m
    cdef region_t *r
    if not checked:
        m = <machine *>zalloc_aligned(sizeof(machine))
        if m != NULL:
            m.mem_base = <u8 *>reserve(frames << page_shift)
            m.mem_map = <page *>reserve(frames * sizeof(page))
        return m
    r = region_create(nr_cpus, frames, page_shift)
    if r == NULL:
        return NULL
    m = <machine *>region_alloc(r, 0, sizeof(machine), 128, b"machine") # fits: the first of its slice
    m.region = <region *>r
    m.mem_base = r.mem_base
    m.mem_map = r.mem_map
    return m


# Context: process, may sleep. NULL with *err = -EINVAL (no or more than 4096 CPUs, less than 16 frames, more memory
# than physical addresses or the host's have room for) or -ENOMEM.
cdef machine *machine_create(u32 nr_cpus, u64 bytes, const arch_ops *arch, const strategy_ops *strategy,
                             void *strategy_priv, int *err) noexcept nogil:
    return create(nr_cpus, bytes, arch, strategy, strategy_priv, False, err)


cdef machine *machine_create_checked(u32 nr_cpus, u64 bytes, const arch_ops *arch, const strategy_ops *strategy,
                                     void *strategy_priv, int *err) noexcept nogil:
    return create(nr_cpus, bytes, arch, strategy, strategy_priv, True, err)


# Context: as machine_create.
cdef machine *create(u32 nr_cpus, u64 bytes, const arch_ops *arch, const strategy_ops *strategy, void *strategy_priv,
                     bint checked, int *err) noexcept nogil:
    cdef machine *m
    cdef u64 frames
    err[0] = -EINVAL
    if arch == NULL or strategy == NULL or nr_cpus == 0 or nr_cpus > (CHECKED_MAX_CPUS if checked else MAX_CPUS):
        return NULL
    frames = bytes >> arch.page_shift
    if frames < MIN_FRAMES or bytes >> 46:
        return NULL
    err[0] = -ENOMEM
    m = alloc_machine(nr_cpus, frames, arch.page_shift, checked)
    if m == NULL:
        return NULL
    m.nr_cpus = nr_cpus
    m.cpumask_words = (nr_cpus + 63) // 64
    m.arch = arch
    m.strategy = strategy
    m.strategy_priv = strategy_priv
    m.nr_frames = frames
    m.fault_around_pages = max(<u32>1, <u32>(FAULT_AROUND_BYTES >> arch.page_shift))
    m.vm_max_map_count = VM_MAX_MAP_COUNT
    m.next_mm_id = 1
    spin_lock_init(&m.lock)
    m.cpus = <Cpu **>machine_zalloc(NULL, m, nr_cpus * sizeof(Cpu *), 16, b"Cpus")
    if m.cpus == NULL or m.mem_base == NULL or m.mem_map == NULL or init_cpus(m) != 0:
        free_machine(m)
        return NULL
    err[0] = zone_init(m)
    if err[0] == 0:
        err[0] = init_srcu_struct_at(&m.vma_srcu, nr_cpus, <srcu_data *>machine_zalloc(
            NULL, m, nr_cpus * sizeof(srcu_data), 128, b"srcu_data"))
    if err[0] != 0:
        free_machine(m)
        return NULL
    rcu_init(m)
    err[0] = init_caches(m)
    if err[0] != 0:
        if not checked:
            cleanup_srcu_struct(m.cpus[0], &m.vma_srcu)
        free_machine(m)
        return NULL
    return m


cdef void machine_quiesce(machine *m) noexcept nogil:
    cdef Cpu *cpu = m.cpus[0]
    cdef u32 i
    for i in range(m.nr_cpus):
        switch_mm(m.cpus[i], NULL)
    if m.strategy.quiesce != NULL:
        m.strategy.quiesce(cpu, m)
    srcu_barrier(cpu, &m.vma_srcu)
    rcu_barrier(cpu)


cdef void machine_count(machine *m, machine_leaks *found) noexcept nogil:
    found.frames = nr_used_pages(m)
    found.mms = kmem_cache_active(m, &m.caches[KMEM_MM])
    found.vmas = kmem_cache_active(m, &m.caches[KMEM_VMA])
    found.anon_vmas = kmem_cache_active(m, &m.caches[KMEM_ANON_VMA])
    found.avcs = kmem_cache_active(m, &m.caches[KMEM_AVC])
    found.files = kmem_cache_active(m, &m.caches[KMEM_FILE])
    found.policies = kmem_cache_active(m, &m.caches[KMEM_POLICY])


# Context: process, may sleep, GIL not held. No thread uses the machine any more. One in a region may be in the middle
# of anything: it is counted as it is, nothing is waited for.
cdef void machine_destroy(machine *m, machine_leaks *leaks) noexcept nogil:
    cdef machine_leaks found
    cdef Cpu *cpu
    cdef u32 i
    if m == NULL:
        return
    if m.region != NULL:
        if leaks != NULL:
            machine_count(m, leaks)
        free_machine(m)
        return
    cpu = m.cpus[0]
    machine_quiesce(m)
    cleanup_srcu_struct(cpu, &m.vma_srcu)
    for i in range(m.nr_cpus):
        drain_local_pages(m.cpus[i])
    machine_count(m, &found)
    for i in range(KMEM_NR):
        kmem_cache_destroy(&m.caches[i])
    if leaks != NULL:
        leaks[0] = found
    free_machine(m)


# Backs [start, end) of the host's memory now. Errors are ignored: what is not backed is backed when touched.
cdef void populate(Cpu *cpu, u8 *start, u8 *end) noexcept nogil:
    cdef u8 *p
    if madvise(start, end - start, MADV_POPULATE_WRITE) == 0 or errno != EINVAL:
        return
    p = start # a host before Linux 5.14
    while p < end:
        fetch_or_32(cpu, <u32 *>p, 0) # the frame may be in use by now
        p += HOST_PAGE


# Context: process, may sleep, on behalf of Cpu 0, which nobody drives meanwhile. Allocates no frame. Frames that were
# used before are backed already, so this counts from the pristine tail; their struct pages are backed too.
cdef void machine_commit(machine *m, unsigned long frames) noexcept nogil:
    cdef unsigned long start, end
    cdef Cpu *cpu = m.cpus[0]
    if m.region != NULL:
        return
    spin_lock(cpu, &m.zone.lock)
    start = max(m.zone.pristine_pfn, m.zone.committed_pfn)
    end = m.zone.pristine_pfn
    end = m.zone.end_pfn if frames > m.zone.end_pfn - end else end + frames
    spin_unlock(cpu, &m.zone.lock)
    if end <= start:
        return
    populate_range(m, start, end)
    spin_lock(cpu, &m.zone.lock)
    m.zone.committed_pfn = max(m.zone.committed_pfn, end)
    spin_unlock(cpu, &m.zone.lock)


# [start, end) of the arena and of mem_map.
cdef void populate_range(machine *m, unsigned long start, unsigned long end) noexcept nogil:
    cdef unsigned long first = (start * sizeof(page)) & ~<unsigned long>(HOST_PAGE - 1)
    cdef unsigned long last = (end * sizeof(page) + HOST_PAGE - 1) & ~<unsigned long>(HOST_PAGE - 1)
    populate(m.cpus[0], m.mem_base + (start << m.arch.page_shift), m.mem_base + (end << m.arch.page_shift))
    populate(m.cpus[0], <u8 *>m.mem_map + first, <u8 *>m.mem_map + last)
