# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the engine is C; here are its beginning, its end and what Python sees of it)
"""The check engine (no kernel file): virtual CPUs under a controlled scheduler, and the search for schedules.

The engine's parts are headers of their own, in the order in which they build on each other:

==========================  ==========================================================================================
kmm/fiber.h                 stacks that can be switched and begun anew
kmm/check.h                 what a program of the engine provides, and may call
kmm/check_types.h           vCPUs, agents, events, nodes
kmm/check_trace.h           vector clocks, races, source sets
kmm/check_memory.h          store buffers and stale loads: the memory models
kmm/check_enabled.h         who may take a step, and what it touches
kmm/check_lock.h            locks, as one step each
kmm/check_order.h           what a step comes after
kmm/check_step.h            one step
kmm/check_sched.h           who is next; deadlock, livelock
kmm/check_race.h            data races of plain accesses
kmm/check_thread.h          threads that pass a baton, for vCPUs that run Python code
kmm/check_ops.h             the primitives' side (struct engine_ops)
kmm/check_search.h          executions, explorers
==========================  ==========================================================================================

simplified: at most 16 vCPUs; an IPI handler is one step; a reader of an rwsem does not queue behind a waiting writer.
"""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_INCREF, PyObject
from libc.errno cimport EILSEQ, ENOMEM, ENOSPC
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

import os
import sys
import threading
import traceback
from time import monotonic

from pykmm_ext.kernel.cpuset import Abandoned

from pykmm_ext.machine.cpu cimport u16, u8

cdef extern from "kmm/check_search.h" nogil:
    enum:
        MODEL_SC, MODEL_TSO, MODEL_PSO, MODEL_POWER
        EXPLORER_DPOR, EXPLORER_DFS, EXPLORER_RANDOM, EXPLORER_PCT, EXPLORER_REPLAY
        AGENT_VCPU, AGENT_FLUSH, AGENT_IRQ, AGENT_MB
        CHECK_MAX_AGENTS, CHECK_VIEW, CHECK_FRAMES
    const char **pend_names
    ctypedef struct kmm_fiber:
        pass
    int fiber_create(kmm_fiber *f, void (*fn)(void *) noexcept, void *arg)
    void fiber_destroy(kmm_fiber *f)
    void vcpu_main(void *arg)
    ctypedef struct check_carrier "struct check_carrier":
        pass
    const check_carrier fiber_carrier
    const check_carrier thread_carrier
    ctypedef struct carried_t "struct carried":
        u32 baton, id, busy, lost
        unsigned long ident
        thread_pool_t *pool
    ctypedef struct thread_pool_t "struct thread_pool":
        check_t *c
        u32 running, quit, stop, nlost, idle_calls, stop_calls
        u64 idle_steps
        int (*idle)(thread_pool_t *pool) noexcept nogil
        void *owner
        carried_t *t
    void thread_main(carried_t *t)
    void baton_give(u32 *word)
    ctypedef struct vcpu_t "struct vcpu":
        kmm_fiber fiber "fiber"
        check_t *c
        u32 id
    ctypedef struct agent_t "struct agent":
        u8 kind
        u8 vcpu
        u16 slot
        const void *word
    ctypedef struct node_t "struct node":
        u64 enabled, backtrack, done, sleep
        u8 chosen, choice, nchoices, forced, preemptions, before, current
    ctypedef struct step_t "struct step":
        u8 agent, op, sub, order, width, stale, choice, pending
        u32 event
        int reads_from
        u64 addr, old, new, result, newest
        u32 nframes, nheld
        void **frames
        u64 *held
    ctypedef struct violation_t "struct violation":
        char *kind
        char *message
        u32 execution
        u64 count
        u16 *schedule
        u32 length
    ctypedef struct check_t "struct check":
        check_program prog
        int model
        int explorer
        u32 nr_vcpus, nr_agents, first_flush, first_mb
        u32 watchdog_ms, stuck_id
        void *stuck_pc
        vcpu_t *vcpus
        agent_t *agents
        const check_carrier *carrier
        void *carrier_priv
        u32 cap
        void *events
        node_t *nodes
        u32 *clk
        void *accesses
        void *answers
        void *touched
        void *pages
        void *conflicting
        void *origins
        u32 access_cap
        void *words
        u32 words_mask
        u16 *views
        u16 **more_views
        u32 nmore_views
        void *view_syncs
        void *race_rels
        u32 views_cap
        u32 nevents
        u32 nfixed, expand, cut, on_cut
        u64 rng
        int bound
        u32 max_steps, pct_depth, replay
        u16 *given
        u32 ngiven, diverged
        u32 finished, bounded
        u64 executions, blocked, redundant, failed, steps, fallbacks, cuts, attempts
        u32 want_graphs
        u64 *graphs
        u64 ngraphs
        u64 *outcomes
        u32 *outcome_slots
        u32 weaken
        u64 weaken_which
        u32 noutcomes
        violation_t *violations
        u32 nviolations
        u32 traced
        step_t *trace
        u32 ntrace
        int err
        u32 races
        u32 failed_run, blocked_run
        char *kind
        char *message
        void *syncs
        void *race_words
        void *race_accesses
    int check_run(check_t *c, u64 max, bint stop)
    int next_part(check_t *c)
    u64 graph_hash(check_t *c)
    void describe(check_t *c, const void *p, char *buf, size_t n)

cdef extern from *:
    """
    static size_t event_size(void) { return sizeof(struct event); }
    static size_t node_size(void) { return sizeof(struct node); }
    static size_t access_size(void) { return sizeof(struct access); }
    static size_t answer_size(void) { return sizeof(struct answer); }
    static size_t word_size(void) { return sizeof(struct word); }
    static int all_returned(const struct check *c)
    {
        for (u32 i = 0; i < c->nr_vcpus; i++)
            if (c->vcpus[i].pend.op != P_DONE)
                return 0;
        return 1;
    }
    static u32 last_preemptions(const struct check *c)
    {
        const struct node *last = c->nevents ? &c->nodes[c->nevents - 1] : NULL;
        return last ? last->preemptions + is_preemption((struct check *)(uintptr_t)c, last) : 0;
    }
    """
    u32 last_preemptions(const check_t *c) nogil
    int all_returned(const check_t *c) nogil
    size_t event_size() nogil
    size_t node_size() nogil
    size_t access_size() nogil
    size_t answer_size() nogil
    size_t word_size() nogil

#: Memory models by name.
MODELS = {"sc": MODEL_SC, "tso": MODEL_TSO, "pso": MODEL_PSO, "power": MODEL_POWER}
#: Explorers by name.
EXPLORERS = {
    "dpor": EXPLORER_DPOR, "dfs": EXPLORER_DFS, "random": EXPLORER_RANDOM, "pct": EXPLORER_PCT,
    "replay": EXPLORER_REPLAY,
}

#: This build sees the plain accesses of the mm, of kernel/ and of strategies (PYKMM_PLAIN=1): their data races are found.
PLAIN_ACCESSES = bool(KMM_PLAIN_BUILD)

#: Kinds of barriers by name, for mutation tests.
BARRIERS = {"mb": 0, "rmb": 1, "wmb": 2, "mb_light": 3, "mb_heavy": 4, "lwsync": 5, "release": 6, "acquire": 7,
            "spinlock": 8, "rwsem": 9, "dependency": 10}

cdef enum:
    FIRST_EVENTS = 1024
    FIRST_WORDS = 1024
    BATCH = 4096    # executions between two looks at signals and the clock
    IDLE_MS = 100   # THREAD_IDLE_NS
    GIVE_UP = 20    # idle periods after which a thread that was told to end is left alone


cdef class Program:
    """What the engine explores; made by the modules that bring programs (pykmm_ext.engine.litmus and others)."""

    @property
    def nr_vcpus(self):
        """Virtual CPUs."""
        return self.prog.nr_vcpus


cdef extern from "<errno.h>":
    enum:
        ECANCELED, ENOTRECOVERABLE, ETIME

cdef extern from "Python.h":
    int set_async_exc "PyThreadState_SetAsyncExc"(unsigned long ident, PyObject *exc)


cdef stack_of(unsigned long ident):
    frame = sys._current_frames().get(ident)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


@cython.final
@cython.internal
cdef class _Carried:
    # Body of a vCPU's thread.
    cdef carried_t *t

    def __call__(self):
        self.t.ident = threading.get_ident()
        while not self.t.lost and not self.t.pool.quit:
            try:
                with nogil:
                    thread_main(self.t)
            except Abandoned:
                pass # meant for a function that had just ended


# Context: the main context, GIL not held. See struct thread_pool.
cdef int pool_idle(thread_pool_t *pool) noexcept with gil:
    return (<Exploration>pool.owner).look_around()


cdef void vcpu_entry(void *arg) noexcept nogil:
    vcpu_main(arg)


cdef class Exploration:
    """A search over the schedules of one program.

    :param program: what is run
    :param memory_model: "sc", "tso", "pso" or "power"
    :param explorer: "dpor" (source-DPOR with sleep sets), "dfs" (every schedule), "random", "pct", or "replay"
    :param seed: of random and pct
    :param preemptions: explorers "dpor" and "dfs": schedules with at most that many preemptions of a vCPU; -1 = any
        number. To give way to an interrupt counts as well; store buffers come for free
    :param max_steps: an execution of more steps is a livelock
    :param depth: explorer "pct": bug depth d
    :param schedule: explorer "replay": steps as in RawViolation; beyond it, as it comes
    :param prefix: first choices of a part of the search that split() cut off
    :param graphs: remember the happens-before graph of every execution; equal ones count as `redundant`
    :param expand: try every agent at the first `expand` steps (what split() does)
    :param weaken: mutation tests: kinds of barriers, locks and address dependencies (keys of BARRIERS) that do
        nothing
    :param weaken_which: of each vCPU's barriers of such a kind only those whose number, from 0, is a bit of this
    :param watchdog: seconds after which a vCPU that has not come to a primitive ends the search with RuntimeError (or what
        the program's ``stuck(message)`` makes); 0 = never

    ValueError: unknown names, or an impossible value. Not for use by two threads at once.
    """
    cdef check_t *c
    cdef readonly Program program
    cdef readonly str memory_model
    cdef readonly str explorer
    cdef u32 nfibers
    cdef bint running
    cdef thread_pool_t *pool
    cdef list threads
    cdef double watchdog

    def __cinit__(self, Program program not None, *, str memory_model="sc", str explorer="dpor", seed=0,
                  int preemptions=-1, u32 max_steps=100000, u32 depth=3, schedule=(), prefix=(), bint graphs=False,
                  u32 expand=0, weaken=(), u64 weaken_which=0xffffffffffffffff, double watchdog=10.0):
        cdef check_t *c
        cdef u32 n = program.prog.nr_vcpus, a, i, per
        if memory_model not in MODELS:
            raise ValueError(f"unknown memory model {memory_model!r}; known: {', '.join(MODELS)}")
        if explorer not in EXPLORERS:
            raise ValueError(f"unknown explorer {explorer!r}; known: {', '.join(EXPLORERS)}")
        if not 1 <= n <= CHECK_MAX_VCPUS:
            raise ValueError(f"a program has 1 to {CHECK_MAX_VCPUS} vCPUs, not {n}")
        if preemptions >= 0 and explorer not in ("dpor", "dfs"):
            raise ValueError("a bound of preemptions takes explorer='dpor' or 'dfs'")
        if not 2 <= depth <= 16 or max_steps < 1 or max_steps > 50_000_000:
            raise ValueError("depth is 2 to 16, max_steps 1 to 50000000")
        self.c = c = <check_t *>calloc(1, sizeof(check_t))
        if c == NULL:
            raise MemoryError()
        self.program = program
        self.memory_model = memory_model
        self.explorer = explorer
        c.prog = program.prog
        c.model = MODELS[memory_model]
        c.explorer = EXPLORERS[explorer]
        c.nr_vcpus = n
        c.carrier = &fiber_carrier
        c.bound = preemptions
        c.max_steps = max_steps
        c.pct_depth = depth
        c.rng = (<object>seed) & 0xffffffffffffffff
        c.want_graphs = graphs
        c.expand = expand
        for name in weaken:
            if name not in BARRIERS:
                raise ValueError(f"unknown barrier {name!r}; known: {', '.join(BARRIERS)}")
            c.weaken |= <u32>1 << <u32>BARRIERS[name]
        c.weaken_which = weaken_which
        c.races = program.prog.plain
        # vCPUs, their interrupt handlers, their store buffers, the barriers that smp_mb_heavy() of others wants of them.
        c.first_flush = 2 * n
        per = 0
        if memory_model == "tso":
            per = 1
        elif memory_model != "sc":
            per = (CHECK_MAX_AGENTS - 3 * n) // n
        c.first_mb = c.first_flush + n * per
        c.nr_agents = c.first_mb + (n if per else 0)
        for a in range(c.nr_agents):
            if a < n:
                c.agents[a].kind = AGENT_VCPU
                c.agents[a].vcpu = <u8>a
            elif a < 2 * n:
                c.agents[a].kind = AGENT_IRQ
                c.agents[a].vcpu = <u8>(a - n)
            elif a >= c.first_mb:
                c.agents[a].kind = AGENT_MB
                c.agents[a].vcpu = <u8>(a - c.first_mb)
            else:
                c.agents[a].kind = AGENT_FLUSH
                c.agents[a].vcpu = <u8>((a - 2 * n) // per)
                c.agents[a].slot = <u16>((a - 2 * n) % per)
        c.cap = FIRST_EVENTS
        c.events = calloc(c.cap, event_size())
        c.nodes = <node_t *>calloc(c.cap, node_size())
        c.clk = <u32 *>calloc(<size_t>c.cap * c.nr_agents, sizeof(u32))
        c.answers = calloc(c.cap, answer_size())
        c.access_cap = FIRST_EVENTS
        c.accesses = calloc(c.access_cap, access_size())
        c.words_mask = FIRST_WORDS - 1
        c.words = calloc(FIRST_WORDS, word_size())
        if memory_model == "power":
            c.views_cap = CHECK_VIEW * 65536
            c.views = <u16 *>malloc(c.views_cap * sizeof(u16))
            if c.views == NULL:
                raise MemoryError()
        if c.events == NULL or c.nodes == NULL or c.clk == NULL or c.accesses == NULL or c.words == NULL or c.answers == NULL:
            raise MemoryError()
        self.watchdog = watchdog
        c.watchdog_ms = 0 if program.prog.python else <u32>(watchdog * 1000)
        self.threads = []
        for i in range(n):
            c.vcpus[i].c = c
            c.vcpus[i].id = i
        if program.prog.python:
            c.carrier = &thread_carrier
            self.give(schedule)
            self.fix(prefix)
            return
        for i in range(n):
            if fiber_create(&c.vcpus[i].fiber, vcpu_entry, &c.vcpus[i]) != 0:
                raise MemoryError("no stack for a virtual CPU")
            self.nfibers = i + 1
        self.give(schedule)
        self.fix(prefix)

    cdef give(self, schedule):
        cdef u32 i
        free(self.c.given)
        self.c.ngiven = 0
        self.c.given = <u16 *>malloc((len(schedule) + 1) * sizeof(u16))
        if self.c.given == NULL:
            raise MemoryError()
        for i in range(<u32>len(schedule)):
            self.c.given[i] = schedule[i]
        self.c.ngiven = <u32>len(schedule)

    cdef fix(self, prefix):
        cdef u32 i
        if len(prefix) + 2 > self.c.cap:
            raise ValueError("the prefix is too long")
        for i in range(<u32>len(prefix)):
            agent, choice, enabled, done, sleep, before, preemptions, forced = prefix[i]
            memset(&self.c.nodes[i], 0, node_size())
            self.c.nodes[i].chosen = agent
            self.c.nodes[i].choice = choice
            self.c.nodes[i].enabled = enabled
            self.c.nodes[i].backtrack = enabled
            self.c.nodes[i].done = done
            self.c.nodes[i].sleep = sleep
            self.c.nodes[i].before = before
            self.c.nodes[i].current = agent if agent < self.c.nr_vcpus else before
            self.c.nodes[i].preemptions = preemptions
            self.c.nodes[i].forced = forced
        self.c.nfixed = self.c.replay = <u32>len(prefix)

    def __dealloc__(self):
        cdef u32 i
        cdef check_t *c = self.c
        if c == NULL:
            return
        for i in range(self.nfibers):
            fiber_destroy(&c.vcpus[i].fiber)
        for i in range(c.nviolations):
            free(c.violations[i].schedule)
        free(c.violations)
        free(c.events)
        free(c.nodes)
        free(c.clk)
        free(c.accesses)
        free(c.answers)
        free(c.touched)
        free(c.pages)
        free(c.conflicting)
        free(c.origins)
        free(c.words)
        free(c.views)
        for i in range(c.nmore_views):
            free(c.more_views[i])
        free(c.more_views)
        free(c.view_syncs)
        free(c.race_rels)
        free(c.given)
        free(c.graphs)
        free(c.outcomes)
        free(c.outcome_slots)
        free(c.trace)
        free(c.syncs)
        free(c.race_words)
        free(c.race_accesses)
        free(c)

    # vCPUs that run Python code: their threads live as long as one call of run(), replay() or split().
    cdef start_threads(self):
        cdef u32 i
        cdef _Carried body
        if not self.program.prog.python:
            return
        self.program.error = None
        self.pool = <thread_pool_t *>calloc(1, sizeof(thread_pool_t))
        if self.pool == NULL:
            raise MemoryError()
        self.pool.c = self.c
        self.pool.idle = pool_idle
        self.pool.owner = <PyObject *>self
        self.c.carrier_priv = self.pool
        for i in range(self.c.nr_vcpus):
            self.pool.t[i].id = i
            self.pool.t[i].pool = self.pool
            body = _Carried.__new__(_Carried)
            body.t = &self.pool.t[i]
            thread = threading.Thread(target=body, name=f"pykmm Cpu {i}", daemon=True)
            thread.start()
            self.threads.append(thread)

    cdef stop_threads(self):
        cdef u32 i
        if self.pool == NULL:
            return
        self.pool.quit = 1
        for i in range(<u32>len(self.threads)):
            if not self.pool.t[i].lost:
                with nogil:
                    baton_give(&self.pool.t[i].baton)
                self.threads[i].join()
        self.threads.clear()
        if self.pool.nlost:
            Py_INCREF(self) # a thread that never ended may still look at it: both stay for good
        else:
            free(self.pool)
            self.c.carrier_priv = NULL
        self.pool = NULL

    # Context: the main context, which has waited for a while. True = nobody waits for the running thread any more.
    cdef bint look_around(self) except -1:
        cdef thread_pool_t *pool = self.pool
        cdef carried_t *t = &pool.t[pool.running]
        if not pool.stop:
            pool.idle_calls += 1
            if pool.idle_steps != self.c.steps:
                pool.idle_steps = self.c.steps
                pool.idle_calls = 0
            try:
                PyErr_CheckSignals()
                if self.watchdog > 0 and pool.idle_calls * IDLE_MS >= self.watchdog * 1000:
                    raise getattr(self.program, "stuck", RuntimeError)(
                        f"{getattr(self.program, 'what_runs', 'the function')} of Cpu {t.id} has not come to a "
                        f"primitive for {self.watchdog:g} s: it loops, "
                        f"sleeps or waits for something that the engine does not know of\n{stack_of(t.ident)}")
            except BaseException as error:
                self.program.error = error
                pool.stop = 1
        if pool.stop:
            # A function that is in pure Python code ends by this; one that waits elsewhere does not.
            set_async_exc(t.ident, <PyObject *>Abandoned)
            pool.stop_calls += 1
            if pool.stop_calls > GIVE_UP:
                t.lost = 1
                pool.nlost += 1
                return True
        return False

    cdef raise_error(self, int err):
        if err == -ECANCELED and self.program.error is not None:
            error, self.program.error = self.program.error, None
            raise error
        if err == -ENOMEM:
            raise MemoryError()
        if err == -EILSEQ:
            raise RuntimeError("the program did not do the same again under the same schedule: it depends on something "
                               "that is not reset (time, addresses, random numbers, state of an earlier execution)")
        if err == -ENOTRECOVERABLE:
            raise RuntimeError("the function of a vCPU goes on for ever after its execution has ended: it catches "
                               "BaseException in a loop")
        if err == -ETIME:
            who = f"Cpu {self.c.stuck_id}" if self.c.stuck_id < self.c.nr_vcpus else "the end of the execution"
            if hasattr(self.program, "running"):
                who = self.program.running(self.c.stuck_id)
            raise getattr(self.program, "stuck", RuntimeError)(
                f"{who} has not come to a step of the engine for {self.watchdog:g} s: compiled code loops or sleeps, "
                f"at pc {<size_t>self.c.stuck_pc:#x}")
        if err == -ENOSPC:
            raise RuntimeError("an execution is too long for this memory model")
        raise OSError(-err, os.strerror(-err))

    def run(self, u64 max_executions=0, double max_seconds=0.0, bint stop_at_violation=True):
        """Run executions until the search is complete, a limit is reached, or (stop_at_violation) a violation is found.

        Limits count from this call; 0 = none. Runs without the GIL; KeyboardInterrupt comes through between batches.
        """
        cdef u64 left = max_executions, batch
        cdef u32 before = self.c.nviolations
        cdef int err
        if self.running:
            raise RuntimeError("this exploration is running already")
        self.running = True
        try:
            self.start_threads()
            started = monotonic()
            batch = 8 if self.program.prog.python else 64
            while not self.c.finished:
                if max_executions:
                    if left == 0:
                        break
                    batch = min(batch, left)
                with nogil:
                    err = check_run(self.c, batch, stop_at_violation)
                if err < 0:
                    self.raise_error(err)
                if err == 1:
                    break
                left -= min(left, batch)
                if stop_at_violation and self.c.nviolations > before:
                    break
                PyErr_CheckSignals()
                if max_seconds > 0 and monotonic() - started >= max_seconds:
                    break
                if batch < BATCH and not self.program.prog.python:
                    batch *= 2
        finally:
            self.stop_threads()
            self.running = False

    @property
    def executions(self):
        """Complete executions: all vCPUs returned and nothing was found."""
        return self.c.executions

    @property
    def blocked(self):
        """Executions that sleep sets cut off: the rest was seen already."""
        return self.c.blocked

    @property
    def redundant(self):
        """Executions whose happens-before graph was seen before (graphs=True)."""
        return self.c.redundant

    @property
    def failed(self):
        """Executions that ended with a violation."""
        return self.c.failed

    @property
    def steps(self):
        """Steps of all executions."""
        return self.c.steps

    @property
    def fallbacks(self):
        """Races whose reversal could not begin with an enabled agent (0 unless a blocking rule is wrong)."""
        return self.c.fallbacks

    @property
    def finished(self):
        """Nothing is left to explore."""
        return bool(self.c.finished)

    @property
    def complete(self):
        """Every schedule was covered: the search is finished, systematic, and no bound left anything out."""
        return bool(self.c.finished and self.explorer in ("dpor", "dfs") and not self.c.bounded)

    @property
    def bounded(self):
        """The bound of preemptions left something out."""
        return bool(self.c.bounded)

    @property
    def diverged(self):
        """The given schedule could not be followed to its end."""
        return bool(self.c.diverged)

    @property
    def outcomes(self):
        """How often each outcome of the program was seen, as {value: count}."""
        cdef u32 i
        return {self.c.outcomes[2 * i]: self.c.outcomes[2 * i + 1] for i in range(self.c.noutcomes)}

    @property
    def violations(self):
        """What was found, as (kind, message, schedule, execution, count); equal findings once."""
        cdef u32 i, k
        found = []
        for i in range(self.c.nviolations):
            schedule = tuple([self.c.violations[i].schedule[k] for k in range(self.c.violations[i].length)])
            found.append(((<bytes>self.c.violations[i].kind).decode(),
                          (<bytes>self.c.violations[i].message).decode("utf-8", "replace"), schedule,
                          self.c.violations[i].execution, self.c.violations[i].count))
        return found

    def replay(self, schedule):
        """Run one schedule with every step recorded; what it ended with is in `last`. Returns the steps as dicts."""
        cdef u32 i, k
        cdef char name[128]
        cdef step_t *s
        cdef int err
        if self.explorer != "replay":
            raise ValueError("replay() takes explorer='replay'")
        if self.running:
            raise RuntimeError("this exploration is running already")
        self.give(schedule)
        self.c.finished = 0
        self.running = True
        try:
            self.start_threads()
            self.c.traced = 1
            with nogil:
                err = check_run(self.c, 1, False)
        finally:
            self.c.traced = 0
            self.stop_threads()
            self.running = False
        if err < 0:
            self.raise_error(err)
        steps = []
        for i in range(self.c.ntrace):
            s = &self.c.trace[i]
            name[0] = 0
            if s.addr:
                describe(self.c, <const void *>s.addr, name, sizeof(name))
            held = []
            for k in range(s.nheld):
                held.append(<object>s.held[k])
            steps.append({
                "step": i, "agent": s.agent, "cpu": self.c.agents[s.agent].vcpu, "op": pend_names[s.op].decode(),
                "sub": s.sub, "order": s.order, "width": s.width, "address": s.addr,
                "object": (<bytes>name).decode("utf-8", "replace"), "old": s.old, "new": s.new, "result": s.result,
                "newest": s.newest, "reads_from": s.reads_from, "stale": s.stale, "choice": s.choice,
                "pending": s.pending, "frames": [<size_t>s.frames[k] for k in range(s.nframes)], "held": held,
            })
        return steps

    @property
    def last(self):
        """What the last execution ended with, as (kind, message), or None."""
        if not self.c.failed_run:
            return None
        return (<bytes>self.c.kind).decode(), (<bytes>self.c.message).decode("utf-8", "replace")

    @property
    def at_end(self):
        """Every vCPU had returned when the last execution ended: what it ended with, the final checks found."""
        return bool(all_returned(self.c))

    @property
    def preemptions(self):
        """How often a vCPU of the last execution had to give way although it could have gone on; at most 255."""
        return last_preemptions(self.c)

    @property
    def graph(self):
        """The happens-before graph of the last execution as one number (graphs=True, or explorer="dpor")."""
        return graph_hash(self.c)

    @property
    def schedule(self):
        """The schedule of the last execution."""
        cdef u32 i
        return tuple([self.c.nodes[i].chosen | self.c.nodes[i].choice << 8 for i in range(self.c.nevents)])

    def split(self, u32 depth):
        """Cut the search into independent parts: prefixes for `prefix=`, in the order of a search with expand=depth.

        Executions that end before `depth` steps are counted here. explorer="dpor" or "dfs" only; a fresh exploration.
        """
        cdef u32 i
        cdef int err
        if self.c.explorer not in (EXPLORER_DPOR, EXPLORER_DFS):
            raise ValueError("only a systematic search can be split")
        if depth == 0:
            return [()]
        self.c.expand = depth
        self.c.cut = depth
        self.c.on_cut = 1
        parts = []
        self.running = True
        try:
            self.start_threads()
            while not self.c.finished:
                with nogil:
                    err = check_run(self.c, 0, False)
                if err < 0:
                    self.raise_error(err)
                if err == 1:
                    parts.append(tuple([
                        (self.c.nodes[i].chosen, self.c.nodes[i].choice, self.c.nodes[i].enabled,
                         self.c.nodes[i].done, self.c.nodes[i].sleep, self.c.nodes[i].before,
                         self.c.nodes[i].preemptions, self.c.nodes[i].forced) for i in range(self.c.nevents)]))
                    with nogil:
                        err = next_part(self.c)
        finally:
            self.stop_threads()
            self.running = False
        return parts
