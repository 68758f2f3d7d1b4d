# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (raw pointers; every index comes from a program that was checked when it was built)
"""What a tape's accesses may see (no kernel file): two oracles that know nothing of page tables.

Translations
    A call that unmaps, moves, discards or write-protects pages has flushed what it took away when it returns. So an
    access through a TLB entry that was filled before such a call began, and is used after it has returned, is stale;
    while the call is under way old entries may be used. Known of: munmap, mprotect, mremap, MADV_DONTNEED, mmap over
    something else, and fork for the parent's anonymous pages. So is an entry whose frame was freed.

Values
    A load may return what a store wrote that began before the load ended, unless another store came wholly after that
    one and wholly before the load. munmap, mmap and MADV_DONTNEED store zeroes to private anonymous memory. A child
    begins with what its parent's memory could have held at some moment of the fork. What a device writes through a pin
    may be read there afterwards, or not, if the pinned page is not mapped any more: a tape's expectations say which.

Order is that of the execution's events, an operation's beginning and end; a store of another CPU counts as done when
that CPU's store buffer was seen empty. Where the explorer runs one of many equivalent executions (DPOR), what is looked
at is the equivalent one in which the access begins as late as it can. Where the memory model lets loads return older
values no store of another CPU is ever overwritten.

simplified: not told apart are values in memory that is shared or moved under another address (mremap, brk); the first contents of
files. What a call that failed half-way did counts as possible.
"""
from libc.errno cimport ENOMEM
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from pykmm_ext.engine.check cimport (
    KMM_QUERY_FLUSHED, KMM_QUERY_LAST, KMM_QUERY_PENDING, KMM_QUERY_SEQ, KMM_QUERY_STALE, KMM_TLB_FILLED, check_precedes,
    check_query,
)
from pykmm_ext.engine.tape_ops cimport (
    KMM_OP_BRK, KMM_OP_FORK, KMM_OP_LOAD, KMM_OP_MADVISE, KMM_OP_MAP, KMM_OP_MMAP, KMM_OP_MPROTECT, KMM_OP_MREMAP,
    KMM_OP_MUNMAP, KMM_OP_STORE, KMM_OP_UNPIN, kmm_tape_op,
)
from pykmm_ext.machine.cpu cimport s64
from pykmm_ext.machine.region cimport KMM_SHADOW_LIVE, KMM_SHADOW_STATE, region_of
from pykmm_ext.mm.mm_types cimport KMM_ACCESS_EXEC, KMM_ACCESS_WRITE, PG_anon, machine, pfn_to_page

cdef extern from "kmm/tlb.h" nogil:
    enum:
        KMM_TLB_WAYS
    cdef struct tlb_entry:
        u64 key
        u64 data
    ctypedef struct tlb_t "struct tlb":
        u32 page_shift
        u32 set_mask
    tlb_entry *tlb_set_of(tlb_t *t, u64 address)

cdef enum:
    MAP_SHARED = 1
    MAP_FIXED = 0x10
    MAP_ANONYMOUS = 0x20
    MADV_DONTNEED = 4
    MADV_FREE = 8
    MADV_REMOVE = 9
    MADV_DONTFORK = 10
    MADV_WIPEONFORK = 18
    ENTRIES_PER_OP = 3

cdef u64 NEVER = 0xffffffffffffffff
cdef u64 BRK_REACH = 64 << 20       # a heap is not larger than that


cdef int shadow_init(tape_shadow *sh, run_state *run, char **labels) noexcept nogil:
    cdef tlb_t *t = <tlb_t *>run.m.cpus[0].tlb
    cdef u32 i
    sh.run = run
    sh.labels = labels
    sh.capacity = ENTRIES_PER_OP * run.nops + 1
    sh.ncpus = run.m.nr_cpus
    sh.nentries = (t.set_mask + 1) * KMM_TLB_WAYS
    sh.writes = <shadow_write *>calloc(sh.capacity, sizeof(shadow_write))
    sh.writes0 = <shadow_write *>calloc(sh.capacity, sizeof(shadow_write))
    sh.revokes = <shadow_revoke *>calloc(sh.capacity, sizeof(shadow_revoke))
    sh.spaces = <shadow_space *>calloc(run.nmms + 1, sizeof(shadow_space))
    sh.spaces0 = <shadow_space *>calloc(run.nmms + 1, sizeof(shadow_space))
    sh.filled = <u64 *>calloc(sh.ncpus * sh.nentries, sizeof(u64))
    sh.begun = <u64 *>calloc(sh.ncpus, sizeof(u64))
    sh.first_write = <u32 *>calloc(sh.ncpus, sizeof(u32))
    sh.seq = <u32 *>calloc(sh.ncpus, sizeof(u32))
    sh.uses = <shadow_use *>calloc(SHADOW_USES, sizeof(shadow_use))
    if (sh.writes == NULL or sh.writes0 == NULL or sh.revokes == NULL or sh.spaces == NULL or sh.spaces0 == NULL
            or sh.filled == NULL or sh.begun == NULL or sh.first_write == NULL or sh.seq == NULL
            or sh.uses == NULL):
        return -ENOMEM
    for i in range(run.nmms):
        sh.spaces[i].parent = -1
    for i in range(run.nops):
        if run.ops[i].op == KMM_OP_MADVISE and (run.ops[i].flags == MADV_DONTFORK
                                                or run.ops[i].flags == MADV_WIPEONFORK):
            sh.no_fork_rule = 1
    return 0


cdef void shadow_free(tape_shadow *sh) noexcept nogil:
    free(sh.writes)
    free(sh.writes0)
    free(sh.revokes)
    free(sh.spaces)
    free(sh.spaces0)
    free(sh.filled)
    free(sh.begun)
    free(sh.first_write)
    free(sh.seq)
    free(sh.uses)


cdef int shadow_save(tape_shadow *sh) noexcept nogil:
    cdef u32 i
    for i in range(sh.nwrites):
        sh.writes[i].visible = sh.writes[i].returned
    sh.now0 = sh.now
    sh.nwrites0 = sh.nwrites
    sh.nrevokes0 = sh.nrevokes
    memcpy(sh.writes0, sh.writes, sh.nwrites * sizeof(shadow_write))
    memcpy(sh.spaces0, sh.spaces, sh.run.nmms * sizeof(shadow_space))
    # What was filled in setup was filled after every call of setup.
    for i in range(sh.ncpus * sh.nentries):
        sh.filled[i] = sh.now
    return 0


cdef void shadow_reset(tape_shadow *sh) noexcept nogil:
    cdef u32 i
    sh.now = sh.now0
    sh.nwrites = sh.nwrites0
    sh.nrevokes = sh.nrevokes0
    sh.nuses = 0
    sh.final_at = NEVER
    memcpy(sh.writes, sh.writes0, sh.nwrites * sizeof(shadow_write))
    memcpy(sh.spaces, sh.spaces0, sh.run.nmms * sizeof(shadow_space))
    for i in range(sh.ncpus * sh.nentries):
        sh.filled[i] = sh.now


cdef void shadow_final(tape_shadow *sh) noexcept nogil:
    tick(sh)
    sh.final_at = sh.now


# ---- what is known of an operation ----

# Context: any. 0 in setup.
cdef inline u32 step_of(Cpu *cpu, int what) noexcept nogil:
    return check_query(cpu, what) if cpu.engine != NULL else 0


# The next event. Stores whose CPU has an empty store buffer are visible from here on.
cdef void tick(tape_shadow *sh) noexcept nogil:
    cdef shadow_write *w
    cdef Cpu *cpu
    cdef u32 i
    sh.now += 1
    for i in range(sh.nwrites0, sh.nwrites):
        w = &sh.writes[i]
        if w.returned == NEVER or w.visible != NEVER:
            continue
        cpu = sh.run.m.cpus[w.cpu]
        if cpu.engine == NULL or not (check_query(cpu, KMM_QUERY_PENDING) or check_query(cpu, KMM_QUERY_STALE)):
            w.visible = sh.now
            w.flushed = step_of(cpu, KMM_QUERY_FLUSHED)


# Context: any. Something that gives bytes new values has begun, or has returned.
cdef void add_write(tape_shadow *sh, Cpu *cpu, u32 index, u64 start, u64 length, const u8 *data, u32 flags) noexcept nogil:
    cdef shadow_write *w
    if length == 0 or sh.nwrites == sh.capacity:
        return
    w = &sh.writes[sh.nwrites]
    sh.nwrites += 1
    w.mm = sh.run.ops[index].mm
    w.flags = flags
    w.start = start
    w.end = start + length
    w.data = data
    w.op = index
    w.cpu = cpu.id
    w.begun = sh.begun[cpu.id]
    w.returned = w.visible = NEVER
    w.last = w.flushed = 0


# Context: any. A call that took something away has returned.
cdef void add_revoke(tape_shadow *sh, Cpu *cpu, u32 index, u64 start, u64 length, u32 access, bint anon) noexcept nogil:
    cdef shadow_revoke *r
    cdef mm_struct *mm = sh.run.mms[sh.run.ops[index].mm].mm
    if length == 0 or sh.nrevokes == sh.capacity or mm == NULL:
        return
    r = &sh.revokes[sh.nrevokes]
    sh.nrevokes += 1
    r.mm = mm
    r.start = start
    r.end = start + length
    r.access = access
    r.anon = anon
    r.begun = sh.begun[cpu.id]
    r.returned = sh.now
    r.op = index
    r.last = step_of(cpu, KMM_QUERY_LAST)


# Is one of these flags set for some byte of the range?
cdef bint range_has(tape_shadow *sh, s32 mm, u64 start, u64 length, u32 flags) noexcept nogil:
    cdef u32 i
    for i in range(sh.nwrites):
        if (sh.writes[i].flags & flags and sh.writes[i].mm == mm and sh.writes[i].start < start + length
                and start < sh.writes[i].end):
            return True
    return False


# An operation's address; False where it is made of a failure.
cdef bint resolve(tape_shadow *sh, u64 addr, s32 ref, u64 *to) noexcept nogil:
    cdef s64 base = 0
    if ref >= 0:
        base = sh.run.results[ref]
        if -4096 < base < 0:
            return False
    to[0] = addr + <u64>base
    return True


# Bytes in whole pages.
cdef inline u64 whole(tape_shadow *sh, u64 length) noexcept nogil:
    return (length + sh.run.page_size - 1) & ~(sh.run.page_size - 1)


cdef void shadow_begin(tape_shadow *sh, Cpu *cpu, u32 index) noexcept nogil:
    cdef const kmm_tape_op *op = &sh.run.ops[index]
    cdef u64 addr = 0, new_addr = 0
    cdef u32 flags = 0
    tick(sh)
    sh.begun[cpu.id] = sh.now
    sh.first_write[cpu.id] = sh.nwrites
    sh.seq[cpu.id] = step_of(cpu, KMM_QUERY_SEQ)
    if not resolve(sh, op.addr, op.addr_ref, &addr) or not resolve(sh, op.new_addr, op.new_addr_ref, &new_addr):
        return
    if op.op == KMM_OP_STORE:
        add_write(sh, cpu, index, addr, sh.run.blob_lens[op.data], sh.run.blobs[op.data], 0)
    elif op.op == KMM_OP_UNPIN and op.data >= 0 and op.access == KMM_ACCESS_WRITE:
        # A device writes frames: whether they are still what is mapped there is another matter.
        add_write(sh, cpu, index, addr, min(sh.run.blob_lens[op.data], op.len), sh.run.blobs[op.data], SHADOW_MAYBE)
    elif op.op == KMM_OP_MUNMAP:
        add_write(sh, cpu, index, addr, whole(sh, op.len), NULL, 0)
    elif op.op == KMM_OP_MADVISE:
        if op.flags == MADV_DONTNEED or op.flags == MADV_FREE or op.flags == MADV_REMOVE:
            if op.flags == MADV_REMOVE or range_has(sh, op.mm, addr, whole(sh, op.len), SHADOW_FILE):
                flags = SHADOW_ANY
            if op.flags == MADV_FREE:
                flags |= SHADOW_MAYBE
            add_write(sh, cpu, index, addr, whole(sh, op.len), NULL, flags)
    elif op.op == KMM_OP_MMAP and op.flags & MAP_FIXED:
        add_write(sh, cpu, index, addr, whole(sh, op.len), NULL, map_flags(op))
    elif op.op == KMM_OP_MREMAP:
        if range_has(sh, op.mm, addr, whole(sh, op.len), SHADOW_STICKY):
            flags = SHADOW_STICKY
        add_write(sh, cpu, index, addr, whole(sh, op.len if op.len > op.new_len else op.new_len), NULL, SHADOW_ANY | flags)
        if new_addr:
            add_write(sh, cpu, index, new_addr, whole(sh, op.new_len), NULL, SHADOW_ANY | flags)
    elif op.op == KMM_OP_FORK and op.mm2 >= 0:
        sh.spaces[op.mm2].parent = op.mm
        sh.spaces[op.mm2].cpu = cpu.id
        sh.spaces[op.mm2].begun = sh.now
        sh.spaces[op.mm2].seq = sh.seq[cpu.id]
        sh.spaces[op.mm2].returned = NEVER


cdef inline u32 map_flags(const kmm_tape_op *op) noexcept nogil:
    if op.flags & MAP_SHARED:
        return SHADOW_ANY | SHADOW_STICKY
    return 0 if op.flags & MAP_ANONYMOUS else SHADOW_ANY | SHADOW_FILE


# What a call that was successful has made known.
cdef void note_result(tape_shadow *sh, Cpu *cpu, u32 index) noexcept nogil:
    cdef const kmm_tape_op *op = &sh.run.ops[index]
    cdef u64 result = <u64>sh.run.results[index]
    cdef u64 addr = 0, length
    cdef u32 revoked = 0
    cdef u32 all_access = 7
    cdef u32 flags = 0
    if not resolve(sh, op.addr, op.addr_ref, &addr):
        return
    length = whole(sh, op.len)
    if op.op == KMM_OP_MMAP:
        if op.flags & MAP_FIXED:
            add_revoke(sh, cpu, index, result, length, all_access, False)
        else:
            add_write(sh, cpu, index, result, length, NULL, map_flags(op))
    elif op.op == KMM_OP_MAP:
        add_write(sh, cpu, index, addr, length, NULL, SHADOW_ANY | SHADOW_STICKY)
    elif op.op == KMM_OP_MUNMAP or op.op == KMM_OP_MADVISE and op.flags == MADV_DONTNEED:
        add_revoke(sh, cpu, index, addr, length, all_access, False)
    elif op.op == KMM_OP_MPROTECT:
        if not op.prot & 7:
            revoked = all_access
        else:
            if not op.prot & 2:
                revoked |= 1 << KMM_ACCESS_WRITE
            if not op.prot & 4:
                revoked |= 1 << KMM_ACCESS_EXEC
        add_revoke(sh, cpu, index, addr, length, revoked, False)
    elif op.op == KMM_OP_MREMAP:
        if range_has(sh, op.mm, addr, length, SHADOW_STICKY):
            flags = SHADOW_STICKY
        if result != addr:
            add_write(sh, cpu, index, result, whole(sh, op.new_len), NULL, SHADOW_ANY | flags)
            add_revoke(sh, cpu, index, addr, length, all_access, False)
        elif op.new_len < op.len:
            add_revoke(sh, cpu, index, addr + whole(sh, op.new_len), length - whole(sh, op.new_len), all_access, False)
    elif op.op == KMM_OP_BRK:
        add_write(sh, cpu, index, result - min(result, BRK_REACH), 2 * BRK_REACH, NULL, SHADOW_ANY)
    elif op.op == KMM_OP_FORK and op.mm2 >= 0:
        sh.spaces[op.mm2].returned = sh.now
        if not sh.no_fork_rule:
            add_revoke(sh, cpu, index, 0, sh.run.m.arch.task_size, 1 << KMM_ACCESS_WRITE, True)


# ---- values ----

# Who looks, and when.
cdef struct look:
    u64 begun, ended
    u32 seq                 # steps of its Cpu before it
    bint final              # after every thread
    Cpu *cpu


# Is w over, for everybody (for its own CPU: has it returned), before the look begins? If not in this execution then in
# the equivalent one in which the look begins as late as it can.
cdef inline bint over_before_look(const shadow_write *w, const look *l) noexcept nogil:
    if w.cpu == l.cpu.id:
        return w.returned < l.begun
    if w.visible == NEVER:
        return False
    if l.final or l.cpu.engine == NULL or check_precedes(l.cpu, l.seq, 0) < 0:
        return w.visible < l.begun
    return not check_precedes(l.cpu, l.seq, w.last) and not check_precedes(l.cpu, l.seq, w.flushed)


# Is w over before x begins, in that execution?
cdef inline bint over_before(const shadow_write *w, const shadow_write *x, const look *l) noexcept nogil:
    if w.cpu == x.cpu:
        return w.returned < x.begun
    if w.visible >= x.begun:
        return False
    return w.cpu == l.cpu.id or over_before_look(w, l)


cdef inline bint covers(const shadow_write *w, s32 mm, u64 address) noexcept nogil:
    return w.mm == mm and w.start <= address < w.end


# May the byte have held `value` while somebody looked?
cdef bint possible(tape_shadow *sh, s32 mm, u64 address, const look *l, u8 value) noexcept nogil:
    cdef const shadow_write *w
    cdef const shadow_write *x
    cdef look parents
    cdef bint over, first = True
    cdef u32 i, k
    for i in range(sh.nwrites):
        w = &sh.writes[i]
        if not covers(w, mm, address) or w.begun >= l.ended:
            continue
        if w.flags & SHADOW_STICKY:
            return True
        if not w.flags & SHADOW_MAYBE and over_before_look(w, l):
            first = False
        if not w.flags & SHADOW_ANY and (w.data[address - w.start] if w.data != NULL else 0) != value:
            continue
        over = False
        for k in range(sh.nwrites):
            x = &sh.writes[k]
            if (covers(x, mm, address) and not x.flags & SHADOW_MAYBE and over_before(w, x, l)
                    and over_before_look(x, l)):
                over = True
                break
        if not over:
            return True
    if sh.spaces[mm].parent < 0:
        return first            # nobody knows what was there before
    if not first:
        return shared_in_parents(sh, mm, address)
    parents.begun = sh.spaces[mm].begun
    parents.ended = sh.spaces[mm].returned
    parents.seq = sh.spaces[mm].seq
    parents.final = parents.begun >= sh.final_at
    parents.cpu = sh.run.m.cpus[sh.spaces[mm].cpu]
    return possible(sh, sh.spaces[mm].parent, address, &parents, value)


# Context: any. Did an ancestor share the byte with others?
cdef bint shared_in_parents(tape_shadow *sh, s32 mm, u64 address) noexcept nogil:
    cdef u32 i
    while sh.spaces[mm].parent >= 0:
        mm = sh.spaces[mm].parent
        for i in range(sh.nwrites):
            if covers(&sh.writes[i], mm, address) and sh.writes[i].flags & SHADOW_STICKY:
                return True
    return False


# Did the call take away what u used, before u in this execution or in an equivalent one?
cdef inline bint is_stale(tape_shadow *sh, const shadow_revoke *r, const shadow_use *u) noexcept nogil:
    cdef Cpu *cpu = sh.run.m.cpus[u.cpu]
    cdef int before
    if (r.mm != u.mm or u.address < r.start or u.address >= r.end or not r.access >> u.access & 1 or u.filled >= r.begun
            or r.anon and not u.anon):
        return False
    if cpu.engine == NULL or r.begun >= sh.final_at or u.used >= sh.final_at:
        return r.returned < u.used
    before = check_precedes(cpu, u.seq, r.last)
    return r.returned < u.used if before < 0 else not before


cdef void stale_text(tape_shadow *sh, const shadow_revoke *r, const shadow_use *u, char *text, size_t n) noexcept nogil:
    snprintf(text, n, b"Cpu %u accesses %#lx through a translation from before %s, which has returned", u.cpu,
             <unsigned long>u.address, sh.labels[r.op])


# Context: shadow_end() of the call. Accesses that came before its return here may as well have come after it.
cdef bint late_uses(tape_shadow *sh, const shadow_revoke *r, char *text, size_t n) noexcept nogil:
    cdef u32 i
    for i in range(min(sh.nuses, <u32>SHADOW_USES)):
        if is_stale(sh, r, &sh.uses[i]):
            stale_text(sh, r, &sh.uses[i], text, n)
            return False
    return True


cdef bint shadow_end(tape_shadow *sh, Cpu *cpu, u32 index, const u8 *loaded, char *text, size_t n) noexcept nogil:
    cdef const kmm_tape_op *op = &sh.run.ops[index]
    cdef s64 result = sh.run.results[index]
    cdef bint failed = -4096 < result < 0
    cdef u64 addr = 0, i
    cdef look l
    cdef u32 k
    tick(sh)
    k = sh.nrevokes
    if not failed:
        note_result(sh, cpu, index)
    if k < sh.nrevokes and not late_uses(sh, &sh.revokes[k], text, n):
        return False
    for k in range(sh.first_write[cpu.id], sh.nwrites):
        if sh.writes[k].op == index:
            sh.writes[k].returned = sh.now
            sh.writes[k].last = step_of(cpu, KMM_QUERY_LAST)
            if failed:
                sh.writes[k].flags |= SHADOW_MAYBE
    if failed or op.op != KMM_OP_LOAD or loaded == NULL or not resolve(sh, op.addr, op.addr_ref, &addr):
        return True
    l.begun = sh.begun[cpu.id]
    l.ended = sh.now
    l.seq = sh.seq[cpu.id]
    l.final = l.begun >= sh.final_at
    l.cpu = cpu
    for i in range(op.len):
        if not possible(sh, op.mm, addr + i, &l, loaded[i]):
            snprintf(text, n, b"%s read %#x at %#lx, which no store in question has put there", sh.labels[index],
                     <unsigned>loaded[i], <unsigned long>(addr + i))
            return False
    return True


# ---- translations ----

cdef bint shadow_tlb_use(tape_shadow *sh, Cpu *cpu, const void *entry, u64 use, char *text, size_t n) noexcept nogil:
    cdef machine *m = sh.run.m
    cdef tlb_t *t = <tlb_t *>cpu.tlb
    cdef const tlb_entry *e = <const tlb_entry *>entry
    cdef u64 *filled = &sh.filled[cpu.id * sh.nentries + (e - tlb_set_of(t, 0))]
    cdef u64 address = e.key >> t.page_shift << t.page_shift
    cdef unsigned long pfn = e.data >> t.page_shift
    cdef shadow_use *u = &sh.uses[sh.nuses & (SHADOW_USES - 1)]
    cdef u32 i
    tick(sh)
    if use & KMM_TLB_FILLED:
        filled[0] = sh.now
    if pfn >= m.nr_frames or region_of(m).frame_state[pfn] & KMM_SHADOW_STATE != KMM_SHADOW_LIVE:
        snprintf(text, n, b"Cpu %u accesses %#lx through a translation to frame %lu, which was freed", cpu.id,
                 <unsigned long>address, pfn)
        return False
    u.mm = <mm_struct *>cpu.active_mm
    u.address = address
    u.filled = filled[0]
    u.used = sh.now
    u.access = use & 3
    u.cpu = cpu.id
    u.anon = pfn_to_page(m, pfn).flags & PG_anon != 0
    u.seq = step_of(cpu, KMM_QUERY_SEQ)
    u.seq -= u.seq != 0     # local_irq_disable() is part of the access
    sh.nuses += 1
    for i in range(sh.nrevokes):
        if is_stale(sh, &sh.revokes[i], u):
            stale_text(sh, &sh.revokes[i], u, text, n)
            return False
    return True
