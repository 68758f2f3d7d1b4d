# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (raw kernel structures: every index is checked against nrpages_max by hand)
"""mm/filemap.c: files with simulated contents and their page cache.

A file's contents are `data`, then zeroes up to `i_size`. A page of the cache is built when it is first asked for
and stays until the file is truncated below it, or the last reference to the file goes.

simplified: the cache is an array of page pointers, not an xarray. Large files reserve the array without committing
host memory, so a sparse file of a tebibyte costs what its touched pages cost.
simplified: nothing is written back and nothing is reclaimed; a page leaves the cache in fput() and by truncation.
simplified: a file does not grow beyond the pages of the size that it was created with (-EFBIG), whatever the limits.

Who runs against whom
    find_get_page        lockless; loads a slot with acquire      pairs with the release in __filemap_add
    __filemap_add        i_pages_lock; publishes with release; asks i_size and data_len again under the lock
    do_truncate          i_rwsem; stores i_size, unmaps, empties the slots under i_pages_lock, unmaps again
    a fault with a page  PTL; page->mapping is NULL once truncation took it (page_is_truncated() of mm/memory)
    fput (last)          nobody: no reference is left
"""
from libc.errno cimport EFBIG, EINVAL
from libc.string cimport memcpy, memset, strlen

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_PTR, WRITE_ONCE, WRITE_ONCE_PTR, atomic_dec_and_test_32, atomic_inc_32, atomic_inc_not_zero_32,
    fetch_or, kmm_user_store, smp_load_acquire_ptr, smp_store_release_ptr,
)
from pykmm_ext.kernel.rwsem cimport down_write, init_rwsem, up_write
from pykmm_ext.kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock
from pykmm_ext.machine.cpu cimport likely, unlikely
from pykmm_ext.machine.region cimport machine_free, machine_malloc, machine_zalloc
from pykmm_ext.mm.memory_zap cimport unmap_mapping_pages
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_SPECULATIVE, KMEM_FILE, VM_FAULT_MAJOR, VM_FAULT_OOM, VM_FAULT_SIGBUS, PG_uptodate, machine_of, page_to_pfn,
    phys_to_virt,
)
from pykmm_ext.mm.page_alloc cimport __GFP_ZERO, alloc_page, put_page

cdef extern from "<sys/mman.h>" nogil:
    void *host_mmap "mmap"(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int host_munmap "munmap"(void *addr, size_t length)
    const int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE

cdef extern from *:
    """
    #define KMM_MAP_FAILED ((void *)-1)
    """
    void *KMM_MAP_FAILED

# Bytes of i_pages from which the array is reserved with the host's mmap instead of calloc.
cdef unsigned long I_PAGES_MMAP = 1 << 16
# No host has room for a larger array: 2^43 slots are files of 2^55 bytes.
cdef unsigned long I_PAGES_MAX = <unsigned long>1 << 46


# Context: any. How many pages hold `size` bytes.
cdef inline unsigned long size_pages(const machine *m, unsigned long size) noexcept nogil:
    return (size >> m.arch.page_shift) + (1 if size & ((<unsigned long>1 << m.arch.page_shift) - 1) else 0)


# Bytes of the slot array: one slot a page, and one more that heads the list of cached pages (through lru_next),
# so that fput() visits cached pages and not slots. Context: any.
cdef inline unsigned long i_pages_bytes(const address_space *mapping) noexcept nogil:
    return (mapping.nrpages_max + 1) * sizeof(page *)


# Context: process. NULL when the host has no room.
cdef page **i_pages_alloc(Cpu *cpu, const address_space *mapping) noexcept nogil:
    cdef machine *m = mapping.host.machine
    cdef unsigned long size = i_pages_bytes(mapping)
    cdef void *p
    if mapping.nrpages_max >= I_PAGES_MAX // sizeof(page *):
        return NULL
    if size < I_PAGES_MMAP or m.region != NULL:
        return <page **>machine_zalloc(cpu, m, size, 8, b"i_pages")
    p = host_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if p == KMM_MAP_FAILED else <page **>p


# Context: process; the file is dead.
cdef void i_pages_free(Cpu *cpu, address_space *mapping) noexcept nogil:
    cdef machine *m = mapping.host.machine
    cdef unsigned long size = i_pages_bytes(mapping)
    if mapping.i_pages == NULL:
        return
    if size < I_PAGES_MMAP or m.region != NULL:
        machine_free(cpu, m, mapping.i_pages)
    else:
        host_munmap(mapping.i_pages, size)
    mapping.i_pages = NULL


# Context: process, IRQs on; takes machine->lock. Sizes above 2^63 - 1 are refused like any that do not fit.
cdef file *file_create(Cpu *cpu, machine *m, const char *name, const u8 *data, u64 data_len, u64 size,
                       u32 dev_major, u32 dev_minor, u64 ino) noexcept nogil:
    cdef size_t name_len = strlen(name) if name != NULL else 0
    cdef file *f
    cdef u8 *copy
    if size >> 63:
        return NULL
    if data_len > size:
        data_len = size
    f = <file *>kmem_cache_alloc(cpu, &m.caches[<int>KMEM_FILE])
    if f == NULL:
        return NULL
    f.f_count = 1
    f.i_size = size
    f.dev_major = dev_major
    f.dev_minor = dev_minor
    f.ino = ino
    f.special = 0
    f.machine = m
    f.data = NULL
    f.data_len = 0
    f.f_mapping.host = f
    init_rwsem(&f.f_mapping.i_mmap_rwsem)
    init_rwsem(&f.i_rwsem)
    f.f_mapping.i_mmap = NULL
    spin_lock_init(&f.f_mapping.i_pages_lock)
    f.f_mapping.nrpages_max = size_pages(m, size)
    f.f_mapping.nrpages = 0
    f.f_mapping.i_pages = i_pages_alloc(cpu, &f.f_mapping)
    f.name = <char *>machine_malloc(cpu, m, name_len + 1, 1, b"file_name")
    if data_len and data != NULL:
        copy = <u8 *>machine_malloc(cpu, m, data_len, 1, b"file_data")
        if copy != NULL:
            memcpy(copy, data, data_len)
            f.data_len = data_len
        f.data = copy
    if f.f_mapping.i_pages == NULL or f.name == NULL or (data_len and data != NULL and f.data == NULL):
        file_free(cpu, f)
        return NULL
    if name_len:
        memcpy(f.name, name, name_len)
    f.name[name_len] = 0
    spin_lock(cpu, &m.lock)
    f.next = m.files
    m.files = f
    spin_unlock(cpu, &m.lock)
    return f


# Context: any. The memory of a file that is on no list and has no cached pages.
cdef void file_free(Cpu *cpu, file *f) noexcept nogil:
    i_pages_free(cpu, &f.f_mapping)
    machine_free(cpu, f.machine, f.name)
    machine_free(cpu, f.machine, <void *>f.data)
    f.name = NULL
    f.data = NULL
    kmem_cache_free(cpu, &f.machine.caches[<int>KMEM_FILE], f)


# Context: any; the caller holds a reference already.
cdef void get_file(Cpu *cpu, file *f) noexcept nogil:
    atomic_inc_32(cpu, &f.f_count)


cdef void fput(Cpu *cpu, file *f) noexcept nogil:
    cdef machine *m = f.machine
    cdef page *pg
    cdef page *next_page
    cdef file **link
    if not atomic_dec_and_test_32(cpu, &f.f_count):
        return
    spin_lock(cpu, &m.lock)
    link = &m.files
    while link[0] != NULL and link[0] != f:
        link = &link[0].next
    if link[0] == f:
        link[0] = f.next
    spin_unlock(cpu, &m.lock)
    pg = f.f_mapping.i_pages[f.f_mapping.nrpages_max]
    while pg != NULL:
        next_page = pg.lru_next
        pg.lru_next = NULL
        pg.mapping = NULL
        put_page(cpu, pg)
        pg = next_page
    f.f_mapping.nrpages = 0
    file_free(cpu, f)


# Context: any; the caller keeps the file alive.
cdef page *find_get_page(Cpu *cpu, address_space *mapping, unsigned long index) noexcept nogil:
    cdef page **slot
    cdef page *pg
    if index >= mapping.nrpages_max:
        return NULL
    slot = &mapping.i_pages[index]
    while True:
        pg = <page *>smp_load_acquire_ptr(cpu, slot)  # pairs with the release in __filemap_add
        if pg == NULL:
            return NULL
        if not atomic_inc_not_zero_32(cpu, &pg._refcount):
            continue
        # Still in the cache, now that it cannot go away? (fully ordered after the increment)
        if READ_ONCE_PTR(cpu, slot) == pg:
            return pg
        put_page(cpu, pg)


# Context: any; takes i_pages_lock. Publishes `pg` (filled) at `index`, or finds that somebody was faster. Returns the
# page of the slot with a reference for the caller; that of a loser stays with the caller. NULL: the file was truncated
# since its `data_len` was read, so `pg` may hold what is no longer in it. (Truncation stores i_size before it takes the
# lock: either it finds the page in its slot, or the size is seen here.)
cdef page *__filemap_add(Cpu *cpu, address_space *mapping, page *pg, unsigned long index,
                         unsigned long data_len) noexcept nogil:
    cdef page **slot = &mapping.i_pages[index]
    cdef page **head = &mapping.i_pages[mapping.nrpages_max]
    cdef page *there
    spin_lock(cpu, &mapping.i_pages_lock)
    if unlikely(READ_ONCE(cpu, &mapping.host.data_len) != data_len
                or index >= size_pages(mapping.host.machine, READ_ONCE(cpu, &mapping.host.i_size))):
        spin_unlock(cpu, &mapping.i_pages_lock)
        return NULL
    there = <page *>READ_ONCE_PTR(cpu, slot)
    if there == NULL:
        pg.mapping = mapping
        pg.index = index
        fetch_or(cpu, &pg.flags, PG_uptodate)
        pg.lru_next = head[0]
        head[0] = pg
        mapping.nrpages += 1
        atomic_inc_32(cpu, &pg._refcount)      # the cache's own reference is the allocation's
        smp_store_release_ptr(cpu, slot, pg)   # pairs with the acquire in find_get_page
        there = pg
    else:
        atomic_inc_32(cpu, &there._refcount)
    spin_unlock(cpu, &mapping.i_pages_lock)
    return there


# Context: process, IRQs on; may sleep.
cdef page *filemap_get_page(Cpu *cpu, address_space *mapping, unsigned long index, int *major, u32 *err) noexcept nogil:
    cdef file *f = mapping.host
    cdef machine *m = f.machine
    cdef unsigned long page_size = <unsigned long>1 << m.arch.page_shift
    cdef unsigned long offset, n, data_len
    cdef page *pg
    cdef page *there
    cdef u8 *to
    while True:
        if index >= size_pages(m, READ_ONCE(cpu, &f.i_size)):
            err[0] = VM_FAULT_SIGBUS
            return NULL
        pg = find_get_page(cpu, mapping, index)
        if pg != NULL:
            return pg
        offset = index << m.arch.page_shift
        data_len = READ_ONCE(cpu, &f.data_len)
        if offset >= data_len:
            pg = alloc_page(cpu, __GFP_ZERO)
        else:
            pg = alloc_page(cpu, 0)
        if pg == NULL:
            err[0] = VM_FAULT_OOM
            return NULL
        if offset < data_len:
            to = <u8 *>phys_to_virt(m, page_to_pfn(m, pg) << m.arch.page_shift)
            n = data_len - offset
            if n > page_size:
                n = page_size
            memcpy(to, f.data + offset, n)
            memset(to + n, 0, page_size - n)
        there = __filemap_add(cpu, mapping, pg, index, data_len)
        if likely(there == pg):
            if major != NULL:
                major[0] = 1
            return there
        put_page(cpu, pg)
        if there != NULL:
            return there


# Context: mmap_sem held R, or speculative; no PTL; may sleep. A strategy whose speculative faults do not pin the VMA, and
# with it the file, has a filemap_fault of its own.
cdef page *filemap_fault(Cpu *cpu, vm_fault *vmf, vm_fault_t *ret) noexcept nogil:
    cdef u32 err = 0
    cdef int major = 0
    cdef page *pg
    if unlikely(vmf.flags & FAULT_FLAG_SPECULATIVE) and machine_of(cpu).strategy.filemap_fault != NULL:
        return machine_of(cpu).strategy.filemap_fault(cpu, vmf, ret)
    pg = filemap_get_page(cpu, &vmf.vma.vm_file.f_mapping, vmf.pgoff, &major, &err)
    if pg == NULL:
        ret[0] = err
    elif major:
        ret[0] |= VM_FAULT_MAJOR
    return pg


# ---- truncation ----------------------------------------------------------------------------------

# Context: i_rwsem W; takes i_pages_lock. Takes the pages from `first` on out of the cache. Mappings may still hold them.
cdef void truncate_inode_pages(Cpu *cpu, address_space *mapping, unsigned long first) noexcept nogil:
    cdef page **link = &mapping.i_pages[mapping.nrpages_max]
    cdef page *gone = NULL
    cdef page *pg
    spin_lock(cpu, &mapping.i_pages_lock)
    while link[0] != NULL:
        pg = link[0]
        if pg.index < first:
            link = &pg.lru_next
            continue
        link[0] = pg.lru_next
        WRITE_ONCE_PTR(cpu, &mapping.i_pages[pg.index], NULL)
        WRITE_ONCE_PTR(cpu, &pg.mapping, NULL)
        mapping.nrpages -= 1
        pg.lru_next = gone
        gone = pg
    spin_unlock(cpu, &mapping.i_pages_lock)
    while gone != NULL:
        pg = gone
        gone = pg.lru_next
        pg.lru_next = NULL
        put_page(cpu, pg)


# Context: i_rwsem W. Zeroes what lies behind the end of the file in its last page. Programs may store there meanwhile.
cdef void truncate_partial_page(Cpu *cpu, address_space *mapping, unsigned long size) noexcept nogil:
    cdef machine *m = mapping.host.machine
    cdef unsigned long page_size = <unsigned long>1 << m.arch.page_shift
    cdef unsigned long at = size & (page_size - 1)
    cdef page *pg
    cdef u8 *to
    if at == 0:
        return
    pg = find_get_page(cpu, mapping, size >> m.arch.page_shift)
    if pg == NULL:
        return
    to = <u8 *>phys_to_virt(m, page_to_pfn(m, pg) << m.arch.page_shift)
    while at & 7:
        kmm_user_store(cpu, to + at, 1, 0)
        at += 1
    while at < page_size:
        kmm_user_store(cpu, to + at, 8, 0)
        at += 8
    put_page(cpu, pg)


# As truncate_setsize() and truncate_pagecache(): the size first, so that no fault brings a page back; then every
# mapping, the cache, and the mappings again, for faults that held a page meanwhile (Linux needs the second round for
# private copies only: its faults hold the page's lock).
cdef long do_truncate(Cpu *cpu, file *f, unsigned long size) noexcept nogil:
    cdef address_space *mapping = &f.f_mapping
    cdef unsigned long first = size_pages(f.machine, size)
    if size >> 63:
        return -EINVAL
    if first > mapping.nrpages_max:
        return -EFBIG
    down_write(cpu, &f.i_rwsem)
    if size >= f.i_size:
        WRITE_ONCE(cpu, &f.i_size, size)
        up_write(cpu, &f.i_rwsem)
        return 0
    WRITE_ONCE(cpu, &f.i_size, size)
    unmap_mapping_pages(cpu, mapping, first)
    spin_lock(cpu, &mapping.i_pages_lock)
    if f.data_len > size:
        WRITE_ONCE(cpu, &f.data_len, size)
    spin_unlock(cpu, &mapping.i_pages_lock)
    truncate_inode_pages(cpu, mapping, first)
    truncate_partial_page(cpu, mapping, size)
    unmap_mapping_pages(cpu, mapping, first)
    up_write(cpu, &f.i_rwsem)
    return 0


# Context: nobody faults in or frees pages of the file meanwhile.
cdef const char *validate_mapping(Cpu *cpu, address_space *mapping, unsigned long *index) noexcept nogil:
    cdef unsigned long n = 0
    cdef page *pg
    if mapping.i_pages == NULL:
        return b"file without a page array"
    pg = mapping.i_pages[mapping.nrpages_max]
    while pg != NULL:
        index[0] = pg.index
        n += 1
        if n > mapping.nrpages:
            return b"more pages on the list than nrpages"
        if pg.mapping != mapping:
            return b"cached page of another file"
        if pg.index >= size_pages(mapping.host.machine, mapping.host.i_size):
            return b"cached page behind the end of the file"
        if pg.index >= mapping.nrpages_max or mapping.i_pages[pg.index] != pg:
            return b"cached page in no slot of its index"
        if not pg.flags & PG_uptodate:
            return b"cached page that was never filled"
        if pg._refcount < pg._mapcount + 1:
            return b"fewer references to a cached page than mappings and the cache have"
        pg = pg.lru_next
    if n != mapping.nrpages:
        return b"fewer pages on the list than nrpages"
    return NULL
