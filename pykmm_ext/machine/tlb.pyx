# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: a user access is one look-up in a C structure)
"""arch/x86/mm/tlb.c (switch_mm), arch/x86/mm/fault.c: stands in for the MMU of one Cpu as well: translation cache,
hardware walker, user accesses.

Everything that touches a TLB runs with the IRQs of its Cpu off, or in an IPI handler of that Cpu: translating and
accessing is one section, so once a flush has returned, no access through an older translation is still under way.
Where flushes are broadcast (arch->tlb_broadcast), the section also holds the TLB's lock (see tlb.h), which is what a
flush waits for: not for IRQs, so a lockless walker with IRQs off does not hold it up.

A stale translation may exist between the change of an entry and its flush, as in life.

simplified: translations carry no address-space tag, switch_mm() flushes; no paging-structure caches.
"""
from libc.errno cimport EFAULT, ENOMEM
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_DEP, fetch_and, fetch_or, kmm_emit, kmm_user_load, kmm_user_store, smp_mb,
)
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport (
    FAULT_OOM, FAULT_SIGBUS, FAULT_SIGSEGV, KMM_EV_TLB_USE, PGFAULT, PGMAJFAULT, TLB_FLUSH_LOCAL, TLB_FLUSH_REMOTE, TLB_HIT,
    TLB_MISS, Cpu, count_vm_event, likely, tlb, u8, u32, u64, unlikely,
)
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable
from pykmm_ext.machine.region cimport machine_free, machine_zalloc
from pykmm_ext.mm.memory cimport sync_mm_rss
from pykmm_ext.mm.mm_types cimport (
    FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_INSTRUCTION, FAULT_FLAG_KILLABLE, FAULT_FLAG_USER, FAULT_FLAG_WRITE,
    KMM_ACCESS_EXEC, KMM_ACCESS_READ, KMM_ACCESS_WRITE, KMM_BUS_ADRERR, KMM_FAULT_ENDLESS, KMM_FAULT_KILLED,
    KMM_FAULT_OOM, KMM_FAULT_RETURN, KMM_FAULT_TRIES, KMM_FAULT_TRIES_CHECKED, KMM_MAX_LEVELS, KMM_SEGV_ACCERR, KMM_SEGV_MAPERR,
    VM_FAULT_BADACCESS, VM_FAULT_BADMAP, VM_FAULT_ERROR, VM_FAULT_MAJOR, VM_FAULT_NOPAGE, VM_FAULT_OOM,
    VM_FAULT_SIGSEGV, arch_ops, machine_of, mm_struct, vm_fault_t,
)
from pykmm_ext.mm.pgtable cimport table_entry

cdef extern from "kmm/tlb.h" nogil:
    enum:
        KMM_TLB_FILLED
        KMM_TLB_WAYS, KMM_TLB_SETS, KMM_TLB_GENERATIONS, KMM_TLB_REGION_SETS
    cdef struct tlb_entry:
        u64 key
        u64 data
    ctypedef struct tlb_t "struct tlb":
        u8 *mem_base
        u32 page_shift
        u32 set_mask
        u32 generation
        u32 victim
        u32 broadcast
        spinlock_t lock
    size_t tlb_size(u32 sets)
    tlb_entry *tlb_set_of(tlb_t *t, u64 address)
    u64 tlb_key(tlb_t *t, u64 address)
    tlb_entry *tlb_lookup(tlb_t *t, u64 address, u32 access)
    void *tlb_host_pointer(tlb_t *t, tlb_entry *entry, u64 address)

cdef extern from *:
    u32 ctz "__builtin_ctzl"(unsigned long bits) nogil

cdef extern from "kmm/check.h" nogil:
    const char *CHECK_ASSERTION
    const char *CHECK_LIVELOCK
    void check_fail(Cpu *cpu, const char *kind, const char *message)

cdef extern from "kmm/clear_page.h" nogil:
    void kmm_prefetch_step(Cpu *cpu)


# Context: machine creation; cpu->machine is set. 0 or -ENOMEM.
cdef int tlb_init_cpu(Cpu *cpu) noexcept nogil:
    cdef u32 sets = KMM_TLB_REGION_SETS if machine_of(cpu).region != NULL else KMM_TLB_SETS
    cdef void *memory = machine_zalloc(NULL, machine_of(cpu), tlb_size(sets), 128, b"TLB")
    cdef tlb_t *t = <tlb_t *>memory
    if memory == NULL:
        return -ENOMEM
    t.set_mask = sets - 1
    t.mem_base = machine_of(cpu).mem_base
    t.page_shift = machine_of(cpu).arch.page_shift
    t.broadcast = machine_of(cpu).arch.tlb_broadcast
    spin_lock_init(&t.lock)
    t.generation = 1
    cpu.tlb = <tlb *>memory
    return 0


# Context: machine teardown.
cdef void tlb_destroy_cpu(Cpu *cpu) noexcept nogil:
    machine_free(cpu, machine_of(cpu), <void *>cpu.tlb)
    cpu.tlb = NULL


# Forgets every translation by changing the generation. Context: IRQs off, or IPI handler.
cdef inline void flush_all(Cpu *cpu) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    t.generation += 1
    if unlikely(t.generation == KMM_TLB_GENERATIONS):
        memset(<void *>tlb_set_of(t, 0), 0, sizeof(tlb_entry) * (t.set_mask + 1) * KMM_TLB_WAYS)
        t.generation = 1


# Context: IRQs off on `cpu`, or its IPI handler.
cdef void local_flush_tlb_mm(Cpu *cpu, mm_struct *mm) noexcept nogil:
    if cpu.active_mm == <void *>mm:
        flush_all(cpu)


# Context: as local_flush_tlb_mm. [start, end) in whole pages.
cdef void local_flush_tlb_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    cdef tlb_entry *entry
    cdef u64 key
    cdef u32 way
    if cpu.active_mm != <void *>mm:
        return
    if end - start > <unsigned long>KMM_TLB_SETS << t.page_shift:
        flush_all(cpu)
        return
    while start < end:
        entry = tlb_set_of(t, start)
        key = tlb_key(t, start)
        for way in range(KMM_TLB_WAYS):
            if entry[way].key == key:
                entry[way].key = 0
        start += <unsigned long>1 << t.page_shift


# IRQs off, and with tlb_broadcast the lock: the TLB is the caller's. Context: the owner, IRQs on; no lock is taken inside
# and nothing waits there.
cdef inline void tlb_access_begin(Cpu *cpu) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    local_irq_disable(cpu)
    if unlikely(t.broadcast):
        spin_lock(cpu, &t.lock)


# Context: as tlb_access_begin, which it ends.
cdef inline void tlb_access_end(Cpu *cpu) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    if unlikely(t.broadcast):
        spin_unlock(cpu, &t.lock)
    local_irq_enable(cpu)


cdef bint tlb_mm_is_local(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef u32 word
    cdef unsigned long bits
    for word in range(mm.machine.cpumask_words):
        bits = READ_ONCE(cpu, &mm.mm_cpumask[word])
        if word == cpu.id >> 6:
            bits &= ~(<unsigned long>1 << (cpu.id & 63))
        if bits:
            return False
    return True


cdef void tlb_broadcast_range(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil:
    cdef bint all = end == ~<unsigned long>0
    cdef unsigned long bits
    cdef Cpu *target
    cdef tlb_t *t
    cdef u32 word
    cdef bint remote = False
    # ptesync: the change of the entries before the invalidation, and before the read of mm_cpumask; pairs with the
    # fetch_or in switch_mm().
    smp_mb(cpu)
    for word in range(mm.machine.cpumask_words):
        bits = READ_ONCE(cpu, &mm.mm_cpumask[word])
        while bits:
            target = mm.machine.cpus[word * 64 + ctz(bits)]
            bits &= bits - 1
            t = <tlb_t *>target.tlb
            if target == cpu:
                local_irq_disable(cpu)
            else:
                remote = True
            # tlbie: this Cpu does it, whatever the target is doing. Its accesses through the old entries are over when
            # it lets go of the lock, and what they stored is visible (tlbsync).
            spin_lock(cpu, &t.lock)
            if all:
                local_flush_tlb_mm(target, mm)
            else:
                local_flush_tlb_range(target, mm, start, end)
            spin_unlock(cpu, &t.lock)
            if target == cpu:
                local_irq_enable(cpu)
                count_vm_event(cpu, TLB_FLUSH_LOCAL)
    if remote:
        count_vm_event(cpu, TLB_FLUSH_REMOTE)
    # eieio; tlbsync; ptesync: nobody uses the old entries any more when what follows is done.
    smp_mb(cpu)


# Context: process, IRQs on. The old mm stays referenced by the caller until this returns, the new one until the next.
cdef void switch_mm(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef mm_struct *old = <mm_struct *>cpu.active_mm
    cdef unsigned long bit = <unsigned long>1 << (cpu.id & 63)
    cdef u32 word = cpu.id >> 6
    if old == mm:
        return
    if old != NULL:
        sync_mm_rss(cpu)
    cpu.vmacache.mm = NULL # another mm_struct may come to lie at the same address
    tlb_access_begin(cpu)
    flush_all(cpu)
    if old != NULL:
        # After the flush: who finds the bit clear need not interrupt this Cpu.
        fetch_and(cpu, &old.mm_cpumask[word], ~bit)
    cpu.active_mm = mm
    if mm != NULL:
        # Before any walk, fully ordered; pairs with the smp_mb() between a change of an entry and the flush's read
        # of mm_cpumask.
        fetch_or(cpu, &mm.mm_cpumask[word], bit)
    tlb_access_end(cpu)


# Ask the hardware walker and keep its answer. NULL: page fault. Context: IRQs off.
cdef tlb_entry *tlb_miss(Cpu *cpu, unsigned long address, u32 access) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    cdef mm_struct *mm = <mm_struct *>cpu.active_mm
    cdef tlb_entry *entry
    cdef u64 key
    cdef unsigned long data
    cdef u32 way
    count_vm_event(cpu, TLB_MISS)
    if unlikely(mm == NULL or address >= mm.arch.task_size):
        return NULL
    data = mm.arch.hw_walk(cpu, mm, address, access)
    if data == 0:
        return NULL
    entry = tlb_set_of(t, address)
    key = tlb_key(t, address)
    for way in range(KMM_TLB_WAYS): # a permission that was missing: the same entry again
        if entry[way].key == key:
            entry[way].data = data
            return &entry[way]
    way = t.victim
    t.victim = (way + 1) % KMM_TLB_WAYS
    entry[way].key = key
    entry[way].data = data
    return &entry[way]


# do_user_addr_fault(): let the strategy resolve it. 0 = access again; else as user_touch.
# Context: process, IRQs on, may sleep.
cdef int user_fault(Cpu *cpu, unsigned long address, u32 access) noexcept nogil:
    cdef mm_struct *mm = <mm_struct *>cpu.active_mm
    cdef unsigned int flags = FAULT_FLAG_USER | FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE
    cdef vm_fault_t ret
    if unlikely(mm == NULL or address >= mm.arch.task_size): # not canonical, or not the user's
        count_vm_event(cpu, FAULT_SIGSEGV)
        cpu.fault_address = address
        cpu.fault_code = KMM_SEGV_MAPERR
        return -EFAULT
    if access == KMM_ACCESS_WRITE:
        flags |= FAULT_FLAG_WRITE
    elif access == KMM_ACCESS_EXEC:
        flags |= FAULT_FLAG_INSTRUCTION
    count_vm_event(cpu, PGFAULT)
    kmm_prefetch_step(cpu)
    ret = mm.strategy.handle_fault(cpu, mm, address, flags)
    kmm_prefetch_step(cpu)
    if likely(ret == 0):
        return 0
    return fault_result(cpu, address, ret)


# Context: as user_fault. The result is not plain success: the same.
cdef int fault_result(Cpu *cpu, unsigned long address, vm_fault_t ret) noexcept nogil:
    cdef char text[200]
    cpu.fault_address = address
    if unlikely(ret & ~(VM_FAULT_ERROR | VM_FAULT_MAJOR | VM_FAULT_NOPAGE | VM_FAULT_BADMAP | VM_FAULT_BADACCESS)):
        if cpu.engine != NULL:
            snprintf(text, sizeof(text), b"strategy '%s': handle_fault returned %#x, which is no result of a fault",
                     machine_of(cpu).strategy.name, ret)
            check_fail(cpu, CHECK_ASSERTION, text)
        cpu.fault_code = KMM_FAULT_RETURN
        cpu.fault_detail = ret
        return -EFAULT
    if not ret & VM_FAULT_ERROR:
        if ret & VM_FAULT_MAJOR:
            count_vm_event(cpu, PGMAJFAULT)
        return 0
    if ret & VM_FAULT_OOM:
        count_vm_event(cpu, FAULT_OOM)
        cpu.fault_code = KMM_FAULT_OOM
        return -ENOMEM
    if ret & VM_FAULT_SIGSEGV:
        count_vm_event(cpu, FAULT_SIGSEGV)
        cpu.fault_code = KMM_SEGV_ACCERR if ret & VM_FAULT_BADACCESS else KMM_SEGV_MAPERR
        return -EFAULT
    count_vm_event(cpu, FAULT_SIGBUS)
    cpu.fault_code = KMM_BUS_ADRERR
    return -EFAULT


# Where the byte at `address` lies, inside tlb_access_begin(): the caller accesses it and ends that. NULL: *err is
# set and it has ended.
cdef inline void *user_access_begin(Cpu *cpu, unsigned long address, u32 access, int *err) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    cdef tlb_entry *entry
    cdef u64 use
    cdef u32 tries = 0
    while True:
        tlb_access_begin(cpu)
        use = access
        entry = tlb_lookup(t, address, access)
        if likely(entry != NULL):
            count_vm_event(cpu, TLB_HIT)
        else:
            use |= KMM_TLB_FILLED
            entry = tlb_miss(cpu, address, access)
        if likely(entry != NULL):
            kmm_emit(cpu, KMM_EV_TLB_USE, entry, use)
            return tlb_host_pointer(t, entry, address)
        tlb_access_end(cpu)
        err[0] = user_fault(cpu, address, access)
        tries += 1
        if unlikely(err[0] != 0 or tries >= <u32>KMM_FAULT_TRIES_CHECKED or cpu.killed):
            if err[0] == 0 and (cpu.engine != NULL or cpu.killed or tries >= <u32>KMM_FAULT_TRIES):
                err[0] = give_up(cpu, address)
            if err[0] != 0:
                return NULL


# Context: as user_fault. It says that the fault is resolved, and it is not.
cdef int give_up(Cpu *cpu, unsigned long address) noexcept nogil:
    cdef char text[200]
    if cpu.engine != NULL:
        snprintf(text, sizeof(text), b"strategy '%s': handle_fault said %d times in a row that the fault is resolved, and "
                 b"the access still faults", machine_of(cpu).strategy.name, <int>KMM_FAULT_TRIES_CHECKED)
        check_fail(cpu, CHECK_LIVELOCK, text)
    cpu.fault_address = address
    cpu.fault_code = KMM_FAULT_KILLED if cpu.killed else KMM_FAULT_ENDLESS
    return -EFAULT


# Context: process, IRQs on, no locks; may sleep. A write is an atomic OR of zero to the word around `address`: it
# really takes the line for writing, and never destroys what another thread stores there.
cdef int user_touch(Cpu *cpu, unsigned long address, u32 access) noexcept nogil:
    cdef int err = 0
    cdef void *p = user_access_begin(cpu, address, access, &err)
    if unlikely(p == NULL):
        return err
    if access == KMM_ACCESS_WRITE:
        fetch_or(cpu, <unsigned long *>(<unsigned long>p & ~<unsigned long>7), 0)
    else:
        kmm_user_load(cpu, p, 1)
    tlb_access_end(cpu)
    return 0


# Context: as user_touch. Up to the first page that faults for good; what was copied before it stays.
cdef int copy_from_user(Cpu *cpu, void *to, unsigned long address, unsigned long n) noexcept nogil:
    cdef unsigned long size = <unsigned long>1 << machine_of(cpu).arch.page_shift
    cdef unsigned long chunk
    cdef u8 *dst = <u8 *>to
    cdef u8 *src
    cdef u64 word
    cdef int err = 0
    while n:
        chunk = min(n, size - (address & (size - 1)))
        src = <u8 *>user_access_begin(cpu, address, KMM_ACCESS_READ, &err)
        if src == NULL:
            return err
        address += chunk
        n -= chunk
        while chunk:
            if chunk >= 8 and not <unsigned long>src & 7:
                word = kmm_user_load(cpu, src, 8)
                memcpy(dst, &word, 8)
                src += 8
                dst += 8
                chunk -= 8
            else:
                dst[0] = <u8>kmm_user_load(cpu, src, 1)
                src += 1
                dst += 1
                chunk -= 1
        tlb_access_end(cpu)
    return 0


# Context: as user_touch.
cdef int copy_to_user(Cpu *cpu, unsigned long address, const void *src, unsigned long n) noexcept nogil:
    cdef unsigned long size = <unsigned long>1 << machine_of(cpu).arch.page_shift
    cdef unsigned long chunk
    cdef const u8 *from_ = <const u8 *>src
    cdef u8 *dst
    cdef u64 word = 0
    cdef int err = 0
    while n:
        chunk = min(n, size - (address & (size - 1)))
        dst = <u8 *>user_access_begin(cpu, address, KMM_ACCESS_WRITE, &err)
        if dst == NULL:
            return err
        address += chunk
        n -= chunk
        while chunk:
            if chunk >= 8 and not <unsigned long>dst & 7:
                memcpy(&word, from_, 8)
                kmm_user_store(cpu, dst, 8, word)
                dst += 8
                from_ += 8
                chunk -= 8
            else:
                kmm_user_store(cpu, dst, 1, from_[0])
                dst += 1
                from_ += 1
                chunk -= 1
        tlb_access_end(cpu)
    return 0


# Context: mmap_sem held, or quiescent: tables are not freed meanwhile.
cdef int walk_page_table(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned long *paddrs, u32 *index,
                         unsigned long *raw) noexcept nogil:
    cdef const arch_ops *arch = mm.arch
    cdef unsigned long table = mm.pgd
    cdef unsigned long *slot
    cdef u32 level = arch.levels
    cdef int n = 0
    if address >= arch.task_size:
        return 0
    while level:
        level -= 1
        slot = table_entry(mm, table, level, address)
        paddrs[n] = table
        index[n] = <u32>((<unsigned long>slot - <unsigned long>mm.machine.mem_base - table) // sizeof(unsigned long))
        raw[n] = READ_ONCE_DEP(cpu, slot, 1 if n else 0)
        n += 1
        if level == 0 or arch.table_none(raw[n - 1]) or arch.table_bad(raw[n - 1]):
            break
        table = arch.table_paddr(raw[n - 1])
    return n


# Every translation of the Cpu is what its page table allows. NULL, or a static message with *addr.
# Context: quiescent: nobody changes the page tables, the Cpu does not run.
cdef const char *validate_tlb(Cpu *cpu, unsigned long *addr) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    cdef mm_struct *mm = <mm_struct *>cpu.active_mm
    cdef unsigned long paddrs[KMM_MAX_LEVELS]
    cdef unsigned long raw[KMM_MAX_LEVELS]
    cdef u32 index[KMM_MAX_LEVELS]
    cdef tlb_entry *entry = tlb_set_of(t, 0)
    cdef unsigned long pte
    cdef u32 i, access
    cdef int n
    for i in range((t.set_mask + 1) * KMM_TLB_WAYS):
        if (entry[i].key & (KMM_TLB_GENERATIONS - 1)) != t.generation:
            continue
        addr[0] = entry[i].key & ~<u64>(KMM_TLB_GENERATIONS - 1)
        if mm == NULL:
            return b"translation without an address space"
        n = walk_page_table(cpu, mm, addr[0], paddrs, index, raw)
        if n != <int>mm.arch.levels:
            return b"translation without a page table"
        pte = raw[n - 1]
        if mm.arch.pte_none(pte) or not mm.arch.pte_present(pte):
            return b"translation of a page that is not present"
        if mm.arch.pte_pfn(pte) != entry[i].data >> t.page_shift:
            return b"translation to another frame"
        for access in range(3):
            if entry[i].data >> access & 1 and not mm.arch.access_permitted(pte, access):
                return b"translation allows more than the page table"
        if entry[i].data >> KMM_ACCESS_WRITE & 1 and not mm.arch.pte_dirty(pte):
            return b"writable translation of a clean page"
    return NULL
