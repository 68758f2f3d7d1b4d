# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects on the way: raw pointers only)
"""kernel/locking/rwsem.c's self-test: the hand-off, step by step, in one OS thread.

The Cpu under test runs the slow path on an engine of this module, which performs every access at once and calls the
scenario where the path would wait, before it takes wait_lock, and before it sets FLAG_HANDOFF. What other Cpus do at
that moment is done there, by the same thread. A path that would wait for ever is reported as stuck.
"""
from pykmm_ext.kernel.atomic cimport atomic_add_return
from pykmm_ext.kernel.cpuset cimport CpuSet, cpuset_cpu
from pykmm_ext.kernel.rwsem cimport (
    down_read_slowpath, down_read_trylock, down_write, down_write_slowpath, down_write_trylock, init_rwsem,
    rw_semaphore, rwsem_wake, up_read, up_write,
)
from pykmm_ext.machine.cpu cimport Cpu, engine_ops, u32

cdef extern from *:
    """
    #include "kmm/rwsem_types.h"
    enum script_event { BEFORE_LOCK, BEFORE_HANDOFF, WOULD_WAIT };
    #define SCRIPT_HANDOFF 4 /* FLAG_HANDOFF */
    struct script;
    struct script_head {
        void (*at)(struct script *s, Cpu *cpu, enum script_event event);
        u32 stuck;
    };
    static inline void script_at(Cpu *cpu, enum script_event event)
    {
        struct script_head *head = (struct script_head *)cpu->engine_priv;
        head->at((struct script *)head, cpu, event);
    }
    static u64 script_load(Cpu *cpu, const volatile void *p, unsigned width, enum kmm_order order)
    {
        (void)cpu, (void)order;
        return width == 4 ? *(const volatile u32 *)p : *(const volatile u64 *)p;
    }
    static void script_store(Cpu *cpu, volatile void *p, unsigned width, u64 v, enum kmm_order order)
    {
        (void)cpu, (void)order;
        if (width == 4)
            *(volatile u32 *)p = (u32)v;
        else
            *(volatile u64 *)p = v;
    }
    static u64 script_rmw(Cpu *cpu, volatile void *p, unsigned width, enum kmm_rmw op, u64 a, u64 b,
                          enum kmm_order order)
    {
        u64 old;

        if (op == KMM_OR && width == 8 && a == SCRIPT_HANDOFF)
            script_at(cpu, BEFORE_HANDOFF);
        old = script_load(cpu, p, width, order);
        switch (op) {
        case KMM_XCHG: b = a; break;
        case KMM_CMPXCHG: if (old != a) return old; break;
        case KMM_ADD: b = old + a; break;
        case KMM_AND: b = old & a; break;
        default: b = old | a;
        }
        script_store(cpu, p, width, b, order);
        return old;
    }
    static void script_fence(Cpu *cpu, enum kmm_fence kind) { (void)cpu, (void)kind; }
    static u64 script_await(Cpu *cpu, const volatile void *p, unsigned width, kmm_pred pred, u64 arg)
    {
        u64 v;

        script_at(cpu, WOULD_WAIT);
        v = script_load(cpu, p, width, KMM_ACQUIRE);
        if (pred(v, arg))
            return v;
        ((struct script_head *)cpu->engine_priv)->stuck = 1;
        return 3; /* WAITER_GRANTED: ends the path */
    }
    static int script_lock(Cpu *cpu, void *lock, enum kmm_lock_op op)
    {
        spinlock_t *l = (spinlock_t *)lock;

        if (op == KMM_SPIN_UNLOCK) {
            l->slock = 0;
            return 1;
        }
        script_at(cpu, BEFORE_LOCK);
        if (l->slock)
            ((struct script_head *)cpu->engine_priv)->stuck = 1;
        l->slock = 1;
        return 1;
    }
    static const struct engine_ops script_engine = {
        .size = sizeof(struct engine_ops), .load = script_load, .store = script_store, .rmw = script_rmw,
        .fence = script_fence, .await = script_await, .lock = script_lock,
    };
    """
    cdef enum script_event:
        BEFORE_LOCK, BEFORE_HANDOFF, WOULD_WAIT
    const engine_ops script_engine

cdef enum:
    WRITER_LOCKED = 1
    READER_BIAS = 256
    MAX_NOTES = 16

cdef enum scenario_kind:
    OVERTAKEN, TOLD_THEN_OVERTAKEN, GRANTED_ON_THE_WAY, RELEASED_BEFORE_THE_FLAG, READER_OVERTAKEN, NOBODY_OVERTAKES

SCENARIOS = {
    "overtaken": OVERTAKEN, "told_then_overtaken": TOLD_THEN_OVERTAKEN, "granted_on_the_way": GRANTED_ON_THE_WAY,
    "released_before_the_flag": RELEASED_BEFORE_THE_FLAG, "reader_overtaken": READER_OVERTAKEN,
    "nobody_overtakes": NOBODY_OVERTAKES,
}

# The first two fields are struct script_head.
cdef struct script:
    void (*at)(script *s, Cpu *cpu, script_event event) noexcept nogil
    u32 stuck
    scenario_kind kind
    rw_semaphore sem
    Cpu *holder             # has the lock for writing at first
    Cpu *waiter             # under test
    Cpu *thief              # takes the lock while it is free
    Cpu *other
    u32 locks, waits        # of the waiter
    u32 nr_notes
    const char *labels[MAX_NOTES]
    unsigned long counts[MAX_NOTES]


cdef void note(script *s, const char *label) noexcept nogil:
    if s.nr_notes < MAX_NOTES:
        s.labels[s.nr_notes] = label
        s.counts[s.nr_notes] = s.sem.count
        s.nr_notes += 1


# The first half of up_write(): what comes between it and rwsem_wake() is the race.
cdef void release(script *s, Cpu *cpu) noexcept nogil:
    atomic_add_return(cpu, &s.sem.count, -<unsigned long>WRITER_LOCKED)


cdef void overtake_and_flag(script *s) noexcept nogil:
    release(s, s.holder)
    down_write(s.thief, &s.sem)
    note(s, b"overtaken")
    rwsem_wake(s.holder, &s.sem)
    note(s, b"flagged")


cdef void waits(script *s) noexcept nogil:
    s.waits += 1
    if s.waits > 1:
        if s.kind == TOLD_THEN_OVERTAKEN:
            note(s, b"waits again")
            up_write(s.thief, &s.sem)
            note(s, b"handed over")
        elif s.kind == RELEASED_BEFORE_THE_FLAG:
            rwsem_wake(s.thief, &s.sem)  # the second half of its up_write(), which waited for wait_lock
            note(s, b"handed over")
        return
    if s.kind == OVERTAKEN or s.kind == READER_OVERTAKEN:
        overtake_and_flag(s)
        if down_write_trylock(s.other, &s.sem) or down_read_trylock(s.other, &s.sem):
            note(s, b"a trylock got in")
        up_write(s.thief, &s.sem)
        note(s, b"handed over")
    elif s.kind == NOBODY_OVERTAKES:
        overtake_and_flag(s)
        release(s, s.thief)
        note(s, b"free")
        s.other.engine = &script_engine
        down_write_slowpath(s.other, &s.sem)  # must queue: other_waits()
        s.other.engine = NULL
        note(s, b"other has it")
        up_write(s.other, &s.sem)
    else:
        up_write(s.holder, &s.sem)
        note(s, b"told to try")


# The second writer waits: the lock goes to the first, which is done with it at once (so far it has not run).
cdef void other_waits(script *s) noexcept nogil:
    rwsem_wake(s.thief, &s.sem)
    note(s, b"handed over")
    up_write(s.holder, &s.sem)
    note(s, b"waiter is done")


cdef void before_lock(script *s) noexcept nogil:
    s.locks += 1
    if s.locks != 2 or s.kind == OVERTAKEN or s.kind == READER_OVERTAKEN or s.kind == NOBODY_OVERTAKES:
        return
    down_write(s.thief, &s.sem)
    note(s, b"overtaken")
    if s.kind == GRANTED_ON_THE_WAY:
        rwsem_wake(s.other, &s.sem)
        note(s, b"flagged")
        up_write(s.thief, &s.sem)
        note(s, b"handed over")


cdef void scenario(script *s, Cpu *cpu, script_event event) noexcept nogil:
    if cpu == s.other:
        if event == WOULD_WAIT:
            other_waits(s)
    elif event == WOULD_WAIT:
        waits(s)
    elif event == BEFORE_LOCK:
        before_lock(s)
    elif s.kind == RELEASED_BEFORE_THE_FLAG:
        release(s, s.thief)
        note(s, b"released")


def hand_off(CpuSet cpus not None, str name) -> tuple[list[tuple[str, int]], bool]:
    """One scenario of SCENARIOS on four Cpus: what happened, each with the rwsem's word afterwards; and whether the Cpu
    under test would have waited for ever."""
    cdef script s
    s.kind = SCENARIOS[name]
    s.at = scenario
    s.stuck = 0
    s.locks = s.waits = s.nr_notes = 0
    s.holder = cpuset_cpu(cpus, 0)
    s.waiter = cpuset_cpu(cpus, 1)
    s.thief = cpuset_cpu(cpus, 2)
    s.other = cpuset_cpu(cpus, 3)
    s.other.engine_priv = &s
    s.waiter.engine_priv = &s
    with nogil:
        init_rwsem(&s.sem)
        down_write(s.holder, &s.sem)
        if s.kind == READER_OVERTAKEN:
            atomic_add_return(s.waiter, &s.sem.count, READER_BIAS)
        s.waiter.engine = &script_engine
        if s.kind == READER_OVERTAKEN:
            down_read_slowpath(s.waiter, &s.sem)
        else:
            down_write_slowpath(s.waiter, &s.sem)
        s.waiter.engine = NULL
        s.waiter.engine_priv = s.other.engine_priv = NULL
        note(&s, b"has it")
        if not s.stuck and s.kind != NOBODY_OVERTAKES:
            if s.kind == READER_OVERTAKEN:
                up_read(s.waiter, &s.sem)
            else:
                up_write(s.waiter, &s.sem)
            note(&s, b"released by it")
    return [((<bytes>s.labels[i]).decode(), s.counts[i]) for i in range(s.nr_notes)], bool(s.stuck)
