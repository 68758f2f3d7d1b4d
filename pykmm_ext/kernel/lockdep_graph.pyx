# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/locking/lockdep.c, the graph: nodes, edges, the search for cycles, and IRQ usage.

What the graph means stands at the head of kernel/lockdep.pyx. Everything here is the slow path: it runs when a CPU asks
for a sequence of locks that was not seen before.
"""
from libc.string cimport memset

from pykmm_ext.kernel.lockdep cimport (
    LOCKDEP_CAPACITY, LOCKDEP_CYCLE, LOCKDEP_EXCLUSIVE, LOCKDEP_IRQ_INVERSION, LOCKDEP_MAX_STEPS, LOCKDEP_RECURSIVE,
    LOCKDEP_SUBCLASSES, lockdep, lockdep_context, lockdep_cpu, lockdep_edge, lockdep_held, lockdep_node, lockdep_place,
    lockdep_report, lockdep_step, lockdep_violation,
)
from pykmm_ext.machine.cpu cimport likely, u16, u32, u64


# The node of (class, subclass), made at the first call; -1 when the table is full.
cdef int node_number(lockdep *ld, int cls, u32 subclass) noexcept nogil:
    cdef u32 at = <u32>cls * LOCKDEP_SUBCLASSES + subclass
    cdef u32 n
    if likely(ld.node_of[at] != 0):
        return <int>ld.node_of[at] - 1
    if ld.nr_nodes >= ld.max_nodes:
        return -1
    n = ld.nr_nodes
    ld.nr_nodes += 1
    memset(&ld.nodes[n], 0, sizeof(lockdep_node))
    ld.nodes[n].cls = <u16>cls
    ld.nodes[n].subclass = <u16>subclass
    ld.node_of[at] = <u16>(n + 1)
    return <int>n


# ---- reports ----------------------------------------------------------------------------------------------------------

cdef const char *node_name(const lockdep *ld, u32 node) noexcept nogil:
    return ld.classes[ld.nodes[node].cls].name


# Begins a report: everything but the lock that it is about and the steps.
cdef lockdep_report *new_report(lockdep *ld, const lockdep_context *ctx, lockdep_violation violation,
                                const char *message) noexcept nogil:
    cdef lockdep_report *r = &ld.report
    cdef lockdep_cpu *c = &ld.cpus[ctx.cpu]
    cdef u32 i
    r.violation = violation
    r.message = message
    r.where = ctx.where
    r.name = NULL
    r.addr = NULL
    r.subclass = 0
    r.mode = LOCKDEP_EXCLUSIVE
    r.cpu = ctx.cpu
    r.execution = ld.execution
    r.irqs_off = ctx.irqs_off
    r.in_irq = ctx.in_irq
    r.nr_steps = 0
    r.truncated = 0
    r.nr_held = c.depth
    for i in range(c.depth):
        r.held[i].name = node_name(ld, c.held[i].node)
        r.held[i].where = c.held[i].where
        r.held[i].addr = c.held[i].addr
        r.held[i].subclass = ld.nodes[c.held[i].node].subclass
        r.held[i].mode = c.held[i].mode
        r.held[i].trylock = c.held[i].flags & TRYLOCK
        r.held[i].in_irq = (c.held[i].flags & IN_IRQ) != 0
    return r


cdef const lockdep_report *full(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil:
    ld.enabled = 0
    return new_report(ld, ctx, LOCKDEP_CAPACITY, what)


# What the report is about: the lock that h stands for. It is the youngest of the held ones, and not held yet.
cdef void about(lockdep *ld, lockdep_report *r, const lockdep_held *h) noexcept nogil:
    r.name = node_name(ld, h.node)
    r.subclass = ld.nodes[h.node].subclass
    r.addr = h.addr
    r.mode = h.mode


# One edge more of the cycle, its places still open; NULL: no room. Context: any.
cdef lockdep_step *new_step(lockdep *ld, lockdep_report *r, u32 held, u32 taken) noexcept nogil:
    cdef lockdep_step *s
    if r.nr_steps == LOCKDEP_MAX_STEPS:
        r.truncated = 1
        return NULL
    s = &r.steps[r.nr_steps]
    r.nr_steps += 1
    s.held = node_name(ld, held)
    s.held_subclass = ld.nodes[held].subclass
    s.taken = node_name(ld, taken)
    s.taken_subclass = ld.nodes[taken].subclass
    s.irq = 0
    return s


# The same for an edge of the graph. Context: any.
cdef void add_step(lockdep *ld, lockdep_report *r, const lockdep_edge *e) noexcept nogil:
    cdef lockdep_step *s = new_step(ld, r, e.held, e.taken)
    if s == NULL:
        return
    s.held_where = e.held_where
    s.taken_where = e.place.where
    s.cpu = e.place.cpu
    s.execution = e.place.execution
    s.held_shared = e.shared
    s.taken_recursive = e.recursive


# The edges of the path that the last search found, from its start to `state`.
cdef void add_path(lockdep *ld, lockdep_report *r, u32 state) noexcept nogil:
    cdef u32 n = 0, at = state, _i
    while ld.from_edge[at] != 0:
        n += 1
        at = ld.from_state[at]
    while n:
        n -= 1
        at = state
        for _i in range(n):
            at = ld.from_state[at]
        add_step(ld, r, &ld.edges[ld.from_edge[at]])


# ---- the graph ----------------------------------------------------------------------------------------------------------

# Breadth first from `start`, which was asked for by a recursive reader (`recursive`) or not. Ends at `target`, held by a
# reader (`shared`) or not; or, target < 0, at a class that is held with IRQs on. Returns its state, or -1.
#
# A state is 2 * node + (the request was a recursive reader's). Out of such a state leads no edge of a reader who holds.
cdef int search(lockdep *ld, u32 start, bint recursive, int target, bint shared) noexcept nogil:
    cdef u32 head = 0, tail = 1, state = 2 * start + recursive, node, next, edge
    cdef lockdep_edge *e
    memset(ld.seen, 0, 2 * ld.nr_nodes)
    ld.queue[0] = <u16>state
    ld.seen[state] = 1
    ld.from_edge[state] = 0
    while head < tail:
        state = ld.queue[head]
        head += 1
        node = state >> 1
        recursive = state & 1
        if target < 0:
            if not ld.nodes[node].usage & INVERSION_REPORTED and (
                    ld.nodes[node].usage & HELD_IRQS_ON or ld.nodes[node].usage & HELD_IRQS_ON_READ and not recursive):
                return <int>state
        elif node == <u32>target and not (recursive and shared):
            return <int>state
        edge = ld.nodes[node].edges
        while edge:
            e = &ld.edges[edge]
            if not (recursive and e.shared):
                next = 2 * e.taken + e.recursive
                if not ld.seen[next]:
                    ld.seen[next] = 1
                    ld.from_edge[next] = edge
                    ld.from_state[next] = <u16>state
                    ld.queue[tail] = <u16>next
                    tail += 1
            edge = e.next
    return -1


# The report of a cycle: edge e, and the path that the search found from its end back to its beginning.
cdef const lockdep_report *cycle(lockdep *ld, const lockdep_context *ctx, const lockdep_held *h, const lockdep_edge *e,
                                 u32 state) noexcept nogil:
    cdef lockdep_report *r = new_report(ld, ctx, LOCKDEP_CYCLE, b"the order of these locks is a cycle: possible deadlock")
    about(ld, r, h)
    add_step(ld, r, e)
    add_path(ld, r, state)
    return r


# Draws held -> taken unless it is there. *drawn says so. Reports the cycle that it closes.
cdef const lockdep_report *add_edge(lockdep *ld, const lockdep_context *ctx, u32 held, const char *held_where, bint shared,
                                    const lockdep_held *h, bint *drawn) noexcept nogil:
    cdef u32 edge = ld.nodes[held].edges
    cdef bint recursive = h.mode == LOCKDEP_RECURSIVE
    cdef lockdep_edge *e
    cdef int state
    while edge:
        e = &ld.edges[edge]
        if e.taken == h.node and e.shared == shared and e.recursive == recursive:
            # The edge that closed a cycle says so every time, so that the execution can be run again and shortened.
            state = search(ld, h.node, recursive, <int>held, shared) if e.reported else -1
            return cycle(ld, ctx, h, e, <u32>state) if state >= 0 else NULL
        edge = e.next
    if ld.nr_edges >= ld.max_edges:
        return full(ld, ctx, b"too many edges between lock classes")
    edge = ld.nr_edges
    ld.nr_edges += 1
    drawn[0] = True
    e = &ld.edges[edge]
    e.held = <u16>held
    e.taken = h.node
    e.shared = shared
    e.recursive = recursive
    e.reported = 0
    e.held_where = held_where
    e.place.where = h.where
    e.place.cpu = ctx.cpu
    e.place.execution = ld.execution
    state = search(ld, h.node, recursive, <int>held, shared)
    # Only now a part of the graph: the path must lead back without it.
    e.next = ld.nodes[held].edges
    ld.nodes[held].edges = edge
    if likely(state < 0):
        return NULL
    e.reported = 1
    return cycle(ld, ctx, h, e, <u32>state)


# The edge of another struct lockdep, with its place there.
cdef const lockdep_report *lockdep_merge_edge(lockdep *ld, const lockdep_edge *other, int held_cls, u32 held_subclass,
                                              int taken_cls, u32 taken_subclass) noexcept nogil:
    cdef lockdep_context ctx
    cdef lockdep_held h
    cdef bint drawn = False
    cdef const lockdep_report *r
    cdef u64 execution = ld.execution
    cdef int held = -1 if held_cls < 0 else node_number(ld, held_cls, held_subclass)
    cdef int taken = -1 if taken_cls < 0 else node_number(ld, taken_cls, taken_subclass)
    memset(&ctx, 0, sizeof(ctx))
    ctx.where = other.place.where
    if other.place.cpu < ld.nr_cpus:
        ctx.cpu = other.place.cpu
    if not ld.enabled:
        return NULL
    if held < 0 or taken < 0:
        return full(ld, &ctx, b"too many lock classes")
    memset(&h, 0, sizeof(h))
    h.node = <u16>taken
    h.where = other.place.where
    h.mode = LOCKDEP_RECURSIVE if other.recursive else LOCKDEP_EXCLUSIVE
    ld.execution = other.place.execution
    r = add_edge(ld, &ctx, <u32>held, other.held_where, other.shared, &h, &drawn)
    if not drawn:
        r = NULL        # known here already
    elif r == NULL and ld.nr_irq_nodes:
        r = check_inversions(ld, &ctx)
    ld.execution = execution
    return r


cdef const lockdep_report *lockdep_merge_usage(lockdep *ld, int cls, u32 subclass, u32 bit,
                                               const lockdep_place *place) noexcept nogil:
    cdef lockdep_context ctx
    cdef const lockdep_report *r = NULL
    cdef u64 execution = ld.execution
    cdef int node = -1 if cls < 0 else node_number(ld, cls, subclass)
    memset(&ctx, 0, sizeof(ctx))
    ctx.where = place.where
    if place.cpu < ld.nr_cpus:
        ctx.cpu = place.cpu
    if not ld.enabled:
        return NULL
    if node < 0:
        return full(ld, &ctx, b"too many lock classes")
    ld.execution = place.execution
    if mark_usage(ld, &ctx, <u32>node, bit, place.where) and ld.nr_irq_nodes:
        r = check_inversions(ld, &ctx)
    ld.execution = execution
    return r


# ---- IRQs ---------------------------------------------------------------------------------------------------------------

cdef inline u32 usage_place(u32 bit) noexcept nogil:
    return 0 if bit == USED_IN_IRQ else 1 if bit == USED_IN_IRQ_READ else 2 if bit == HELD_IRQS_ON else 3


# The graph or a usage has changed. For every class that a handler asks for: does a path lead from it to one that may be
# interrupted?
cdef const lockdep_report *check_inversions(lockdep *ld, const lockdep_context *ctx) noexcept nogil:
    cdef u32 s, u, used, held
    cdef int state
    cdef lockdep_report *r
    cdef lockdep_step *step
    for s in range(ld.nr_nodes):
        if not ld.nodes[s].usage & (USED_IN_IRQ | USED_IN_IRQ_READ):
            continue
        used = USED_IN_IRQ if ld.nodes[s].usage & USED_IN_IRQ else USED_IN_IRQ_READ
        state = search(ld, s, used == USED_IN_IRQ_READ, -1, False)
        if state < 0:
            continue
        u = <u32>state >> 1
        ld.nodes[u].usage |= INVERSION_REPORTED
        held = HELD_IRQS_ON if ld.nodes[u].usage & HELD_IRQS_ON else HELD_IRQS_ON_READ
        r = new_report(ld, ctx, LOCKDEP_IRQ_INVERSION, b"an IPI handler may wait for what it interrupts")
        r.name = node_name(ld, s)
        r.subclass = ld.nodes[s].subclass
        step = new_step(ld, r, u, s)
        step.irq = 1
        step.held_shared = held == HELD_IRQS_ON_READ
        step.taken_recursive = used == USED_IN_IRQ_READ
        step.held_where = ld.nodes[u].place[usage_place(held)].where
        step.taken_where = ld.nodes[s].place[usage_place(used)].where
        step.cpu = ld.nodes[s].place[usage_place(used)].cpu
        step.execution = ld.nodes[s].place[usage_place(used)].execution
        add_path(ld, r, <u32>state)
        return r
    return NULL


# True when the bit is new.
cdef bint mark_usage(lockdep *ld, const lockdep_context *ctx, u32 node, u32 bit, const char *where) noexcept nogil:
    cdef lockdep_node *n = &ld.nodes[node]
    cdef lockdep_place *place = &n.place[usage_place(bit)]
    if n.usage & bit:
        return False
    if bit & (USED_IN_IRQ | USED_IN_IRQ_READ) and not n.usage & (USED_IN_IRQ | USED_IN_IRQ_READ):
        ld.nr_irq_nodes += 1
    n.usage |= bit
    place.where = where
    place.cpu = ctx.cpu
    place.execution = ld.execution
    return True
