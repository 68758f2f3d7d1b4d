# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/locking/lockdep.c: lock classes, the graph of their order, and what may be done while one is held.

A class stands for all locks of one kind: every mm's mmap_sem is one. A CPU that asks for B while it holds A draws the
edge A -> B, and a cycle of edges is a possible deadlock, though no execution has run into it: the edges of the cycle may
come from different CPUs, different objects and different executions.

Edges carry two bits, as Linux's do since 5.10: is the first lock held by a writer or by a reader, and does the second
request wait for everybody or, being a recursive reader's, for writers only. A cycle in which a recursive reader's
request meets a reader who holds is none, because those two never wait for each other.

========================================  ============================================================
event                                     in the graph
========================================  ============================================================
spin_lock, down_write                     exclusive
trylock                                   held like any other, but no edge leads to it: it does not wait
down_read                                 shared: waits behind a waiting writer
seqcount write section                    exclusive; one that counts its writers is held by a recursive reader
read_seqcount_begin                       a recursive reader's request that is dropped at once
rcu_read_lock, srcu_read_lock             recursive reader
synchronize_rcu, synchronize_srcu         exclusive request that is dropped at once
IRQs off, an IPI handler                  hold "irqs-off" as a reader
smp_call_function_many                    exclusive request for "irqs-off" that is dropped at once
========================================  ============================================================

The last two lines find what no order of locks says: a CPU that spins with IRQs off on a lock whose holder waits for an
IPI to that CPU.

IRQ inversions are cycles too. A class that is held with IRQs on somewhere (U) may be interrupted there by a handler that
asks for a class (S): an edge U -> S that is drawn for every such pair, and only while one searches.

Each CPU's held locks, with what else matters, give a key; a sequence that was found good once is not looked at again.
That is where an exploration's time would go. A violation of order is reported when its last edge is drawn, and whenever
that edge is met again; the others whenever they happen.

simplified: no wait contexts, no softirqs, no lock statistics, no lock pinning; a class is named by the caller instead of
by a static key.
"""
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strcmp

from pykmm_ext.kernel.lockdep_graph cimport (
    HELD_IRQS_ON, HELD_IRQS_ON_READ, IN_IRQ, IRQS_OFF, SYNC, TRYLOCK, USED_IN_IRQ, USED_IN_IRQ_READ, about, add_edge,
    check_inversions, full, mark_usage, new_report, node_number,
)
from pykmm_ext.machine.cpu cimport likely, u16, u32, u64, unlikely

cdef enum:
    IRQ_CLASS = 0                # registered first, as are its node and subclass


# ---- life -------------------------------------------------------------------------------------------------------------

cdef lockdep *lockdep_create(u32 nr_cpus) noexcept nogil:
    cdef lockdep *ld = <lockdep *>calloc(1, sizeof(lockdep))
    if ld == NULL:
        return NULL
    ld.cpus = <lockdep_cpu *>calloc(nr_cpus, sizeof(lockdep_cpu))
    if ld.cpus == NULL:
        free(ld)
        return NULL
    ld.nr_cpus = nr_cpus
    ld.max_nodes = LOCKDEP_MAX_NODES
    ld.max_edges = LOCKDEP_MAX_EDGES
    ld.max_held = LOCKDEP_MAX_HELD
    lockdep_reset(ld)
    return ld


cdef void lockdep_destroy(lockdep *ld) noexcept nogil:
    if ld != NULL:
        free(ld.cpus)
        free(ld)


cdef void lockdep_reset(lockdep *ld) noexcept nogil:
    cdef int cls
    ld.enabled = 1
    ld.nr_classes = ld.nr_nodes = ld.nr_irq_nodes = ld.nr_chains = 0
    ld.nr_edges = 1
    ld.execution = 0
    memset(ld.node_of, 0, sizeof(ld.node_of))
    memset(ld.chains, 0, sizeof(ld.chains))
    forget_held(ld)
    cls = lockdep_class(ld, b"irqs-off", LOCKDEP_IRQ, 0)
    node_number(ld, cls, 0)


cdef void forget_held(lockdep *ld) noexcept nogil:
    cdef u32 i
    for i in range(ld.nr_cpus):
        ld.cpus[i].depth = 0
        ld.cpus[i].atomic = 0
        ld.cpus[i].nr_rcu = 0
        ld.cpus[i].nested_addr = NULL


cdef void lockdep_reset_held(lockdep *ld) noexcept nogil:
    forget_held(ld)
    ld.execution += 1


cdef int lockdep_class(lockdep *ld, const char *name, lockdep_kind kind, u32 flags) noexcept nogil:
    cdef u32 i
    for i in range(ld.nr_classes):
        if ld.classes[i].name == name or strcmp(ld.classes[i].name, name) == 0:
            ld.classes[i].flags |= flags
            return <int>i
    if ld.nr_classes == LOCKDEP_MAX_CLASSES:
        return -1
    i = ld.nr_classes
    ld.classes[i].name = name
    ld.classes[i].kind = kind
    ld.classes[i].flags = flags
    ld.nr_classes += 1
    return <int>i


cdef const lockdep_report *lockdep_irqs_on(lockdep *ld, const lockdep_context *ctx) noexcept nogil:
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef lockdep_held *h
    cdef bint changed = False
    cdef u32 i
    if likely(c.depth == 0) or unlikely(not ld.enabled):
        return NULL
    for i in range(c.depth):
        h = &c.held[i]
        if h.flags & IN_IRQ:
            continue
        changed |= mark_usage(ld, ctx, h.node, HELD_IRQS_ON if h.mode == LOCKDEP_EXCLUSIVE else HELD_IRQS_ON_READ, h.where)
    return check_inversions(ld, ctx) if changed and ld.nr_irq_nodes else NULL


# ---- acquire and release --------------------------------------------------------------------------------------------------

cdef inline u64 chain_key(u64 before, u32 node, u32 mode, u32 flags) noexcept nogil:
    cdef u64 key = (before ^ (node + 1 | <u64>mode << 16 | <u64>flags << 24)) * 0x9E3779B97F4A7C15ULL
    return key ^ key >> 29


cdef bint chain_is_known(const lockdep *ld, u64 key) noexcept nogil:
    cdef u32 at = <u32>(key >> 32) & (LOCKDEP_CHAINS - 1)
    while ld.chains[at] != 0:
        if ld.chains[at] == key:
            return True
        at = (at + 1) & (LOCKDEP_CHAINS - 1)
    return False


# Context: not known yet. Forgets all rather than fill up: a chain is then looked at again.
cdef void chain_remember(lockdep *ld, u64 key) noexcept nogil:
    cdef u32 at = <u32>(key >> 32) & (LOCKDEP_CHAINS - 1)
    if ld.nr_chains >= LOCKDEP_CHAINS // 2:
        memset(ld.chains, 0, sizeof(ld.chains))
        ld.nr_chains = 0
    while ld.chains[at] != 0:
        at = (at + 1) & (LOCKDEP_CHAINS - 1)
    ld.chains[at] = key
    ld.nr_chains += 1


cdef inline bint is_atomic(const lockdep *ld, u32 node) noexcept nogil:
    cdef const lockdep_class_t *cls = &ld.classes[ld.nodes[node].cls]
    return (cls.kind == LOCKDEP_SPIN or cls.kind == LOCKDEP_RCU
            or cls.kind == LOCKDEP_SEQCOUNT and not cls.flags & LOCKDEP_SLEEPABLE)


# What is wrong with asking for h while `before`, of the same node, is held. Context: any.
cdef const char *self_message(lockdep *ld, const lockdep_held *before, const lockdep_held *h, bint sync) noexcept nogil:
    cdef u32 kind = ld.classes[ld.nodes[h.node].cls].kind
    if kind == LOCKDEP_RCU or kind == LOCKDEP_SRCU:
        return b"waits for a grace period inside a read section of the same domain: deadlock"
    if sync:
        return (b"reads a sequence inside its own write section: deadlock" if before.addr == h.addr else
                b"reads a sequence inside a write section of the same class: possible deadlock")
    if before.addr == h.addr:
        return b"takes a lock that it holds already: deadlock"
    return b"takes two locks of one class without a nesting subclass: possible deadlock"


# h is not in c.held[0 .. depth - 1], which are held before it.
cdef const lockdep_report *check_request(lockdep *ld, const lockdep_context *ctx, const lockdep_cpu *c, u32 depth,
                                         const lockdep_held *h, bint sync) noexcept nogil:
    cdef const lockdep_held *before
    cdef const lockdep_report *found
    cdef lockdep_report *r
    cdef bint changed = False
    cdef u32 i
    if not h.flags & TRYLOCK:
        for i in range(depth):
            before = &c.held[i]
            if before.node != h.node or h.mode == LOCKDEP_RECURSIVE and before.mode != LOCKDEP_EXCLUSIVE:
                continue
            r = new_report(ld, ctx, LOCKDEP_SELF, self_message(ld, before, h, sync))
            about(ld, r, h)
            return r
        for i in range(depth):
            before = &c.held[i]
            # What a handler interrupts is no order of locks: see check_inversions().
            if before.node == h.node or (before.flags ^ h.flags) & IN_IRQ:
                continue
            found = add_edge(ld, ctx, before.node, before.where, before.mode != LOCKDEP_EXCLUSIVE, h, &changed)
            if unlikely(found != NULL):
                return found
        if h.flags & (IRQS_OFF | IN_IRQ) and h.node != 0:
            found = add_edge(ld, ctx, 0, b"in a handler" if h.flags & IN_IRQ else b"IRQs off", True, h, &changed)
            if unlikely(found != NULL):
                return found
    if not sync:
        if h.flags & IN_IRQ:
            if not h.flags & TRYLOCK:
                changed |= mark_usage(ld, ctx, h.node,
                                      USED_IN_IRQ_READ if h.mode == LOCKDEP_RECURSIVE else USED_IN_IRQ, h.where)
        elif not h.flags & IRQS_OFF:
            changed |= mark_usage(ld, ctx, h.node,
                                  HELD_IRQS_ON if h.mode == LOCKDEP_EXCLUSIVE else HELD_IRQS_ON_READ, h.where)
    return check_inversions(ld, ctx) if changed and ld.nr_irq_nodes else NULL


# What is asked for, with its key. False: a table is full.
cdef bint fill_request(lockdep *ld, const lockdep_context *ctx, lockdep_cpu *c, lockdep_held *h, const void *addr, int cls,
                       u32 subclass, lockdep_mode mode, u32 flags) noexcept nogil:
    cdef int node = -1 if cls < 0 else node_number(ld, cls, subclass if subclass < LOCKDEP_SUBCLASSES else 0)
    if unlikely(node < 0):
        return False
    if ctx.irqs_off:
        flags |= IRQS_OFF
    if ctx.in_irq:
        flags |= IN_IRQ
    h.addr = addr
    h.where = ctx.where
    h.node = <u16>node
    h.mode = <unsigned char>mode
    h.flags = <unsigned char>flags
    h.refs = 1
    h.key = chain_key(c.held[c.depth - 1].key if c.depth else 0, h.node, mode, flags)
    return True


cdef const lockdep_report *lockdep_acquire(lockdep *ld, const lockdep_context *ctx, const void *addr, int cls, u32 subclass,
                                           lockdep_mode mode, bint trylock) noexcept nogil:
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef lockdep_held *h
    cdef const lockdep_report *r = NULL
    cdef u32 i
    if unlikely(not ld.enabled):
        return NULL
    if unlikely(c.nested_addr != NULL) and c.nested_addr == addr:
        subclass = c.nested_subclass
        c.nested_addr = NULL
    if unlikely(c.depth >= ld.max_held):
        return full(ld, ctx, b"a CPU holds too many locks")
    h = &c.held[c.depth]
    if unlikely(not fill_request(ld, ctx, c, h, addr, cls, subclass, mode, TRYLOCK if trylock else 0)):
        return full(ld, ctx, b"too many lock classes")
    if ld.classes[cls].flags & LOCKDEP_COUNTED and mode == LOCKDEP_RECURSIVE:
        for i in range(c.depth):
            if c.held[i].node == h.node:
                c.held[i].refs += 1
                return NULL
    if unlikely(not chain_is_known(ld, h.key)):
        r = check_request(ld, ctx, c, c.depth, h, False)
        if r == NULL:
            chain_remember(ld, h.key)
    c.depth += 1
    c.atomic += is_atomic(ld, h.node)
    c.nr_rcu += ld.classes[cls].kind == LOCKDEP_RCU
    return r


# Context: `at` < c.depth. Takes the lock out; the keys of those above it change.
cdef void drop_held(lockdep *ld, lockdep_cpu *c, u32 at) noexcept nogil:
    cdef u32 node = c.held[at].node
    c.atomic -= is_atomic(ld, node)
    c.nr_rcu -= ld.classes[ld.nodes[node].cls].kind == LOCKDEP_RCU
    c.depth -= 1
    while at < c.depth:
        c.held[at] = c.held[at + 1]
        at += 1
    rekey(c)


cdef void rekey(lockdep_cpu *c) noexcept nogil:
    cdef u64 key = 0
    cdef u32 i
    for i in range(c.depth):
        c.held[i].key = key = chain_key(key, c.held[i].node, c.held[i].mode, c.held[i].flags)


# Its place among the held locks, the youngest first; -1: not held.
cdef int find_held(const lockdep_cpu *c, const void *addr) noexcept nogil:
    cdef int i = <int>c.depth - 1
    while i >= 0 and c.held[i].addr != addr:
        i -= 1
    return i


cdef const lockdep_report *not_held(lockdep *ld, const lockdep_context *ctx, const void *addr, lockdep_violation violation,
                                    const char *message) noexcept nogil:
    cdef lockdep_report *r = new_report(ld, ctx, violation, message)
    r.addr = addr
    return r


cdef const lockdep_report *lockdep_release(lockdep *ld, const lockdep_context *ctx, const void *addr) noexcept nogil:
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef int at
    if unlikely(not ld.enabled):
        return NULL
    at = find_held(c, addr)
    if unlikely(at < 0):
        return not_held(ld, ctx, addr, LOCKDEP_UNLOCK, b"releases a lock that it does not hold" if c.depth else
                        b"releases a lock and holds none")
    drop_held(ld, c, <u32>at)
    return NULL


cdef const lockdep_report *lockdep_release_counted(lockdep *ld, const lockdep_context *ctx, const void *addr,
                                                   int cls) noexcept nogil:
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef int at
    if unlikely(not ld.enabled):
        return NULL
    at = find_held(c, addr)
    if at < 0:
        at = <int>c.depth - 1
        while at >= 0 and ld.nodes[c.held[at].node].cls != cls:
            at -= 1
    if unlikely(at < 0):
        return not_held(ld, ctx, addr, LOCKDEP_UNLOCK, b"ends a section that it has not begun")
    c.held[at].refs -= 1
    if c.held[at].refs == 0:
        drop_held(ld, c, <u32>at)
    return NULL


cdef const lockdep_report *lockdep_downgrade(lockdep *ld, const lockdep_context *ctx, const void *addr) noexcept nogil:
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef int at
    if unlikely(not ld.enabled):
        return NULL
    at = find_held(c, addr)
    if unlikely(at < 0 or c.held[at].mode != LOCKDEP_EXCLUSIVE):
        return not_held(ld, ctx, addr, LOCKDEP_UNLOCK, b"downgrades a lock that it does not hold for writing")
    c.held[at].mode = LOCKDEP_SHARED
    rekey(c)
    return NULL


cdef void lockdep_nested(lockdep *ld, u32 cpu, const void *addr, u32 subclass) noexcept nogil:
    ld.cpus[cpu].nested_addr = addr
    ld.cpus[cpu].nested_subclass = subclass


cdef const lockdep_report *lockdep_sync(lockdep *ld, const lockdep_context *ctx, const void *addr, int cls,
                                        lockdep_mode mode) noexcept nogil:
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef lockdep_held h
    cdef const lockdep_report *r
    if unlikely(not ld.enabled):
        return NULL
    if cls >= 0 and ld.classes[cls].flags & LOCKDEP_COUNTED:
        mode = LOCKDEP_EXCLUSIVE  # its writers hold like readers: who waits for them waits for readers
    if unlikely(not fill_request(ld, ctx, c, &h, addr, cls, 0, mode, SYNC)):
        return full(ld, ctx, b"too many lock classes")
    if likely(chain_is_known(ld, h.key)):
        return NULL
    r = check_request(ld, ctx, c, c.depth, &h, True)
    if r == NULL:
        chain_remember(ld, h.key)
    return r


# ---- what the context forbids or asks for -----------------------------------------------------------------------------------

cdef const lockdep_report *lockdep_ipi_wait(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil:
    cdef lockdep_report *r
    if unlikely(not ld.enabled):
        return NULL
    if unlikely(ctx.irqs_off or ctx.in_irq):
        r = new_report(ld, ctx, LOCKDEP_IPI_WAIT, b"waits for other CPUs' interrupts in an IPI handler" if ctx.in_irq else
                       b"waits for other CPUs' interrupts with its own off")
        r.name = what
        return r
    return lockdep_sync(ld, ctx, NULL, IRQ_CLASS, LOCKDEP_EXCLUSIVE)


cdef const lockdep_report *lockdep_might_sleep(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil:
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef lockdep_report *r
    cdef const char *message
    if likely(not (c.atomic or ctx.irqs_off or ctx.in_irq)) or unlikely(not ld.enabled):
        return NULL
    if ctx.in_irq:
        message = b"may sleep in an IPI handler"
    elif ctx.irqs_off:
        message = b"may sleep with IRQs off"
    elif c.nr_rcu and c.atomic == c.nr_rcu:
        message = b"may sleep in an RCU read section"
    else:
        message = b"may sleep while it holds a lock that is spun for"
    r = new_report(ld, ctx, LOCKDEP_SLEEP, message)
    r.name = what
    return r


cdef const lockdep_report *lockdep_assert_held(lockdep *ld, const lockdep_context *ctx, const void *addr,
                                               lockdep_mode mode) noexcept nogil:
    cdef int at = find_held(&ld.cpus[ctx.cpu], addr)
    if likely(at >= 0 and (mode != LOCKDEP_EXCLUSIVE or ld.cpus[ctx.cpu].held[at].mode == LOCKDEP_EXCLUSIVE)):
        return NULL
    if unlikely(not ld.enabled):
        return NULL
    return not_held(ld, ctx, addr, LOCKDEP_NOT_HELD, b"needs a lock that it does not hold" if at < 0 else
                    b"needs a lock for writing and holds it for reading")


cdef const lockdep_report *lockdep_rcu_held(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil:
    cdef lockdep_report *r
    if likely(ld.cpus[ctx.cpu].nr_rcu != 0) or unlikely(not ld.enabled):
        return NULL
    r = new_report(ld, ctx, LOCKDEP_RCU_NOT_HELD, b"needs rcu_read_lock()")
    r.name = what
    return r


cdef const lockdep_report *lockdep_srcu_held(lockdep *ld, const lockdep_context *ctx, const void *ssp) noexcept nogil:
    if likely(find_held(&ld.cpus[ctx.cpu], ssp) >= 0) or unlikely(not ld.enabled):
        return NULL
    return not_held(ld, ctx, ssp, LOCKDEP_SRCU_NOT_HELD, b"needs srcu_read_lock() of this domain")


cdef const lockdep_report *lockdep_exit_check(lockdep *ld, const lockdep_context *ctx) noexcept nogil:
    if likely(ld.cpus[ctx.cpu].depth == 0) or unlikely(not ld.enabled):
        return NULL
    return new_report(ld, ctx, LOCKDEP_EXIT, b"locks are still held at the end of the operation")
