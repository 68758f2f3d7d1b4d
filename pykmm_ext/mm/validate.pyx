# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (page tables and kernel structures: every index comes out of an address)
"""mm/vma.c's validate_mm() and mm/debug_vm_pgtable.c: the walkers that compare an address space with itself.

Who runs against whom: validate_mm() holds mmap_sem, so no writer runs, and wants no fault in progress;
validate_page_tables() wants nobody in the mm at all.
"""
from libc.stdio cimport snprintf
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_32
from pykmm_ext.kernel.rbtree cimport rb_next, rb_node, validate_rb_tree
from pykmm_ext.kernel.rcu cimport rcu_read_lock_held
from pykmm_ext.kernel.slab cimport validate_kmem_cache, validate_region_cache
from pykmm_ext.kernel.spinlock cimport spin_is_locked
from pykmm_ext.kernel.srcu cimport srcu_readers_active
from pykmm_ext.machine.cpu cimport KMM_NR_RSS, NR_FOLL_PIN_ACQUIRED, NR_FOLL_PIN_RELEASED, u32
from pykmm_ext.machine.tlb cimport validate_tlb
from pykmm_ext.mm.filemap cimport validate_mapping
from pykmm_ext.mm.memory cimport linear_page_index, mm_counter, vm_normal_page
from pykmm_ext.mm.mempolicy cimport validate_mempolicy
from pykmm_ext.mm.mm_types cimport (
    GUP_PIN_COUNTING_BIAS, KMEM_NR, VM_WRITE, VMA_ATTACHED, PG_anon, PG_anon_exclusive, PG_buddy, PG_table,
    anon_vma_chain, arch_ops, file, kmem_cache, machine, page, pfn_to_page, vm_area_struct, vma_pages,
)
from pykmm_ext.mm.page_alloc_validate cimport validate_zone
from pykmm_ext.mm.pgtable cimport table_entry, table_order
from pykmm_ext.mm.vma cimport __find_vma, vma_compute_subtree_gap, vma_of


# ---- VMAs ----

cdef bint anon_vma_is_of(const vm_area_struct *vma, const void *mapping) noexcept nogil:
    """Context: mmap_sem held. Would a reverse-map walk from that anon_vma come to `vma`?"""
    cdef anon_vma_chain *avc = vma.anon_vma_chain
    while avc != NULL:
        if <const void *>avc.anon_vma == mapping:
            return True
        avc = avc.same_vma_next
    return False


cdef const char *validate_table_vmas(Cpu *cpu, mm_struct *mm, unsigned long table, u32 level, unsigned long base,
                                     unsigned long *addr) noexcept nogil:
    """Context: mmap_sem held, no fault in progress. Every present entry belongs to a mapping, and is not writable where
    the mapping is not; an anonymous page is found by the reverse map. `base` = the first address that `table` (physical,
    of `level`) maps."""
    cdef unsigned long i
    cdef unsigned long *entries = table_entry(mm, table, level, base)
    cdef unsigned long val
    cdef vm_area_struct *vma
    cdef const char *message
    cdef page *pg
    for i in range(<unsigned long>1 << mm.arch.level_bits[level]):
        addr[0] = base + (i << mm.arch.level_shift[level])
        if addr[0] >= mm.task_size:
            break
        val = READ_ONCE(cpu, entries + i)
        if val == 0: # nothing on any arch: most entries, after each execution of a search
            continue
        if level:
            if mm.arch.table_none(val):
                continue
            if mm.arch.table_bad(val):
                return b"page table: a bad table entry"
            message = validate_table_vmas(cpu, mm, mm.arch.table_paddr(val), level - 1, addr[0], addr)
            if message != NULL:
                return message
        elif not mm.arch.pte_none(val) and mm.arch.pte_present(val):
            vma = __find_vma(mm, addr[0])
            if vma == NULL or vma.vm_start > addr[0]:
                return b"page table: a page is mapped outside of every VMA"
            if mm.arch.pte_write(val) and not vma.vm_flags & VM_WRITE:
                return b"page table: a page is writable and its VMA is not"
            pg = vm_normal_page(mm.machine, mm.arch, val)
            if pg != NULL and pg.flags & PG_anon and not anon_vma_is_of(vma, pg.mapping):
                return b"page table: an anonymous page whose anon_vma is none of its VMA's"
            if pg != NULL and pg.flags & PG_anon and pg.index != linear_page_index(cpu, vma, addr[0]):
                return b"page table: an anonymous page whose index is not that of its place in the VMA"
    return NULL


cdef const char *validate_mm(Cpu *cpu, mm_struct *mm, unsigned long *addr) noexcept nogil:
    """Context: mmap_sem held. Tree, list, gaps, sequence counts, counters, i_mmap and anon_vma links."""
    cdef rb_node *where = NULL
    cdef rb_node *node
    cdef vm_area_struct *vma = mm.mmap
    cdef vm_area_struct *prev = NULL
    cdef unsigned long total = 0, mask = (<unsigned long>1 << mm.arch.page_shift) - 1
    cdef u32 count = 0
    addr[0] = 0
    if validate_rb_tree(&mm.mm_rb, &where) < 0:
        addr[0] = vma_of(where).vm_start if where != NULL else 0
        return b"mm_rb: not a red-black tree"
    node = mm.mm_rb.rb_node
    while node != NULL and node.rb_left != NULL:
        node = node.rb_left
    while vma != NULL:
        addr[0] = vma.vm_start
        if vma.vm_mm != mm:
            return b"vma->vm_mm is another mm"
        if vma.vm_start >= vma.vm_end or (vma.vm_start | vma.vm_end) & mask or vma.vm_end > mm.task_size:
            return b"vma: impossible range"
        if prev != NULL and prev.vm_end > vma.vm_start:
            return b"mmap list: VMAs overlap or are out of order"
        if vma.vm_prev != prev:
            return b"mmap list: vm_prev does not point back"
        if node == NULL or vma_of(node) != vma:
            return b"mm_rb and the mmap list differ"
        if vma.rb_subtree_gap != vma_compute_subtree_gap(vma):
            return b"rb_subtree_gap is wrong"
        if READ_ONCE_32(cpu, &vma.vm_sequence.sequence) & 1:
            return b"vm_sequence is odd: a write section was left open"
        if vma.detached:
            return b"a detached vma is in the tree"
        if mm.strategy.vma_typesafe and READ_ONCE_32(cpu, &vma.vm_refcnt) != VMA_ATTACHED:
            return b"vm_refcnt: somebody was left inside the vma, or it is not attached"
        if vma.vm_file != NULL and vma.shared_prev == NULL and vma.vm_file.f_mapping.i_mmap != vma:
            return b"vma is not on its file's i_mmap"
        if vma.anon_vma != NULL and vma.anon_vma_chain == NULL:
            return b"vma has an anon_vma and no anon_vma_chain"
        if vma.vm_page_prot != mm.arch.vm_get_page_prot(vma.vm_flags):
            return b"vm_page_prot does not match vm_flags"
        if not validate_mempolicy(cpu, vma.vm_policy):
            return b"vma->vm_policy is no policy"
        total += vma_pages(vma, mm.arch.page_shift)
        count += 1
        prev = vma
        vma = vma.vm_next
        node = rb_next(node)
    addr[0] = 0
    if node != NULL:
        addr[0] = vma_of(node).vm_start
        return b"mm_rb has more VMAs than the mmap list"
    if count != mm.map_count:
        return b"map_count is wrong"
    if mm.highest_vm_end != (prev.vm_end if prev != NULL else 0):
        return b"highest_vm_end is wrong"
    if total != mm.total_vm:
        return b"total_vm is wrong"
    if READ_ONCE_32(cpu, &mm.mm_seq.seqcount.sequence) & 1:
        return b"mm_seq is odd: a write section was left open"
    if READ_ONCE(cpu, &mm.mmap_seq) & 1:
        return b"mmap_seq is odd: mmap_sem was left held for writing"
    if mm.pgd:
        message = validate_table_vmas(cpu, mm, mm.pgd, mm.arch.levels - 1, 0, addr)
        if message != NULL:
            return message
    addr[0] = 0
    return NULL


# ---- page tables ----

# What validate_table() counts.
cdef struct table_counts:
    unsigned long tables
    long rss[KMM_NR_RSS]


# Context: quiescent. `table` is the physical address of a table of `level` that maps from `addr` on.
cdef const char *validate_table(Cpu *cpu, mm_struct *mm, unsigned long table, u32 level, unsigned long addr,
                                table_counts *counts, unsigned long *where) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef machine *m = mm.machine
    cdef unsigned long *entries = table_entry(mm, table, level, addr)
    cdef unsigned long i, val
    cdef page *pg
    cdef const char *message
    counts.tables += <unsigned long>1 << table_order(pfn_to_page(m, table >> arch.page_shift))
    where[0] = addr
    if not pfn_to_page(m, table >> arch.page_shift).flags & PG_table:
        return b"page table in a frame that is none"
    for i in range(<unsigned long>1 << arch.level_bits[level]):
        val = entries[i]
        if val == 0:
            continue
        where[0] = addr + (i << arch.level_shift[level])
        if level == 0:
            if not arch.pte_present(val):
                return b"entry of an unknown kind"
            pg = vm_normal_page(m, arch, val)
            if pg == NULL:
                if pfn_to_page(m, arch.pte_pfn(val)) != m.zero_page or arch.pte_write(val):
                    return b"special entry that is no read-only zero page"
                continue
            if pg._mapcount == 0 or pg._refcount < pg._mapcount:
                return b"mapped page without its references"
            counts.rss[mm_counter(cpu, pg)] += 1
            if arch.pte_write(val) and pg.flags & PG_anon and (pg._mapcount != 1 or not pg.flags & PG_anon_exclusive):
                return b"writable entry of an anonymous page that others map"
        elif not arch.table_none(val):
            if arch.table_bad(val):
                return b"bad table entry"
            message = validate_table(cpu, mm, arch.table_paddr(val), level - 1, where[0], counts, where)
            if message != NULL:
                return message
    return NULL


# Context: no Cpu runs in the mm meanwhile, and every Cpu's deltas may be read.
cdef const char *validate_page_tables(Cpu *cpu, mm_struct *mm, unsigned long *addr) noexcept nogil:
    cdef machine *m = mm.machine
    cdef table_counts counts
    cdef const char *message
    cdef long rss
    cdef u32 i, item
    memset(&counts, 0, sizeof(counts))
    message = validate_table(cpu, mm, mm.pgd, mm.arch.levels - 1, 0, &counts, addr)
    if message != NULL:
        return message
    addr[0] = 0
    if counts.tables != mm.nr_ptes:
        return b"nr_ptes is wrong"
    for item in range(KMM_NR_RSS):
        rss = mm.rss_stat[item]
        for i in range(m.nr_cpus):
            if m.cpus[i].rss_mm == mm:
                rss += m.cpus[i].rss_stat[item]
        if rss != counts.rss[item]:
            return b"rss is wrong"
    return NULL


# ---- pins ----

# Context: quiescent. What pins count and what was taken and given up agree: a reference of a pin is neither lost nor
# left behind.
cdef const char *validate_pins(machine *m, unsigned long *pfn) noexcept nogil:
    cdef unsigned long taken = 0, held = 0, i
    cdef page *pg
    pfn[0] = 0
    for i in range(m.nr_cpus):
        taken += m.cpus[i].vm_event[<int>NR_FOLL_PIN_ACQUIRED] - m.cpus[i].vm_event[<int>NR_FOLL_PIN_RELEASED]
    for i in range(m.nr_frames if m.region != NULL else m.zone.pristine_pfn):
        pg = pfn_to_page(m, i)
        if pg._refcount > pg._mapcount and not pg.flags & PG_buddy:
            held += (pg._refcount - pg._mapcount) // GUP_PIN_COUNTING_BIAS
            pfn[0] = i
    if taken == held:
        return NULL
    return b"pins that were taken and not given up differ from the references of pages"


# ---- what nobody holds any more ----

# Context: quiescent. `table` is the physical address of a table of `level` that maps from `addr` on.
cdef const char *held_in_table(Cpu *cpu, mm_struct *mm, unsigned long table, u32 level, unsigned long addr,
                               unsigned long *where) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long *entries = table_entry(mm, table, level, addr)
    cdef unsigned long i
    cdef const char *message
    where[0] = addr
    if spin_is_locked(cpu, &pfn_to_page(mm.machine, table >> arch.page_shift).ptl):
        return b"the lock of a page table held"
    if level == 0:
        return NULL
    for i in range(<unsigned long>1 << arch.level_bits[level]):
        if entries[i] and not arch.table_none(entries[i]) and not arch.table_bad(entries[i]):
            message = held_in_table(cpu, mm, arch.table_paddr(entries[i]), level - 1,
                                    addr + (i << arch.level_shift[level]), where)
            if message != NULL:
                return message
    return NULL


# Context: quiescent.
cdef const char *held_in_mm(Cpu *cpu, mm_struct *mm, unsigned long *where) noexcept nogil:
    cdef vm_area_struct *vma = mm.mmap
    where[0] = 0
    if READ_ONCE(cpu, &mm.mmap_sem.count):
        return b"mmap_sem held"
    if spin_is_locked(cpu, &mm.page_table_lock):
        return b"page_table_lock held"
    while vma != NULL:
        where[0] = vma.vm_start
        if READ_ONCE(cpu, &vma.vm_lock.count) or (mm.strategy.vma_typesafe
                                                  and READ_ONCE_32(cpu, &vma.vm_refcnt) != VMA_ATTACHED):
            return b"a VMA held"
        if vma.anon_vma != NULL and READ_ONCE(cpu, &vma.anon_vma.root.rwsem.count):
            return b"the rwsem of an anon_vma held"
        vma = vma.vm_next
    return held_in_table(cpu, mm, mm.pgd, mm.arch.levels - 1, 0, where) if mm.pgd else NULL


# Context: quiescent.
cdef const char *held_of_file(Cpu *cpu, file *f) noexcept nogil:
    if READ_ONCE(cpu, &f.i_rwsem.count):
        return b"i_rwsem held"
    if READ_ONCE(cpu, &f.f_mapping.i_mmap_rwsem.count):
        return b"i_mmap_rwsem held"
    if spin_is_locked(cpu, &f.f_mapping.i_pages_lock):
        return b"i_pages_lock held"
    return NULL


# Context: quiescent.
cdef const char *held_by_cpu(Cpu *cpu) noexcept nogil:
    if cpu.irq_disabled:
        return b"IRQs off"
    if rcu_read_lock_held(cpu):
        return b"an RCU read section open"
    if cpu.vma_read:
        return b"a VMA held"
    return NULL


cdef const char *validate_call(Cpu *cpu) noexcept nogil:
    cdef const char *message = held_by_cpu(cpu)
    cdef mm_struct *mm = <mm_struct *>cpu.active_mm
    if message == NULL and mm != NULL and READ_ONCE(cpu, &mm.mmap_sem.count):
        return b"mmap_sem held"
    return message


cdef void validate_held(machine *m, violation *found) noexcept nogil:
    """Context: quiescent. What the next one would wait for."""
    cdef Cpu *cpu = m.cpus[0]
    cdef mm_struct *mm = m.mmlist
    cdef file *f = m.files
    cdef unsigned long where = 0
    cdef u32 i
    for i in range(m.nr_cpus):
        found.message = held_by_cpu(m.cpus[i])
        if found.message != NULL:
            snprintf(found.place, sizeof(found.place), b"cpu %u", i)
            return
    if srcu_readers_active(cpu, &m.vma_srcu):
        found.message = b"a read section of vma_srcu open"
        found.place[0] = 0
        return
    while mm != NULL:
        found.message = held_in_mm(cpu, mm, &where)
        if found.message != NULL:
            if where:
                snprintf(found.place, sizeof(found.place), b"address space %u, %#lx", mm.id, where)
            else:
                snprintf(found.place, sizeof(found.place), b"address space %u", mm.id)
            return
        mm = mm.mmlist_next
    while f != NULL:
        found.message = held_of_file(cpu, f)
        if found.message != NULL:
            snprintf(found.place, sizeof(found.place), b"file %.100s", f.name)
            return
        f = f.next


# ---- everything ----

cdef void validate_machine(machine *m, violation *found) noexcept nogil:
    """Context: quiescent. Every walker, up to the first that complains."""
    cdef mm_struct *mm = m.mmlist
    cdef file *f = m.files
    cdef kmem_cache *cache
    cdef unsigned long where = 0
    cdef u32 i
    found.message = NULL
    while mm != NULL:
        where = 0
        found.message = validate_mm(m.cpus[0], mm, &where)
        if found.message == NULL:
            found.message = validate_page_tables(m.cpus[0], mm, &where)
        if found.message != NULL:
            snprintf(found.place, sizeof(found.place), b"address space %u, %#lx", mm.id, where)
            return
        mm = mm.mmlist_next
    while f != NULL:
        where = 0
        found.message = validate_mapping(m.cpus[0], &f.f_mapping, &where)
        if found.message != NULL:
            snprintf(found.place, sizeof(found.place), b"page %lu of file %.100s", where, f.name)
            return
        f = f.next
    for i in range(m.nr_cpus):
        found.message = validate_tlb(m.cpus[i], &where)
        if found.message != NULL:
            snprintf(found.place, sizeof(found.place), b"TLB of cpu %u, %#lx", i, where)
            return
    for i in range(KMEM_NR):
        cache = &m.caches[i]
        if (validate_kmem_cache(cache) if m.region == NULL else validate_region_cache(m, cache)) != 0:
            found.message = b"the cache's objects do not add up"
            snprintf(found.place, sizeof(found.place), b"cache %s", cache.name)
            return
    found.message = validate_pins(m, &where)
    if found.message == NULL:
        found.message = validate_zone(m, &where)
    if found.message != NULL:
        snprintf(found.place, sizeof(found.place), b"frame %#lx", where)
