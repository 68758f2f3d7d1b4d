# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/rcu: grace periods over the per-CPU reader words of rcu.h.

machine->rcu.gp_ctr is odd and only grows. The outermost rcu_read_lock() copies it to cpu->rcu_gp_ctr, the
outermost rcu_read_unlock() stores 0 there. A grace period, by its one owner at a time (gp_lock):

1. smp_mb_heavy();
2. gp_ctr += 2;
3. wait, for each Cpu, until its word is 0 or the new gp_ctr.

Why one phase is enough. Step 1 runs a full barrier on every CPU, at one point of its program.

- A reader that stored its word before that point is visible to step 3, with a number older than the new
  gp_ctr: it is waited for.
- A reader that stores its word after that point does its loads after it too, and so sees what the caller
  unlinked. It need not be waited for. It may still be, if it copied the old number: that costs time only.
- A reader that copied the new number did so after step 2, hence after its own barrier of step 1: same.

Copying an old number, being descheduled and storing it much later is harmless, because numbers never come
back (64 bits): a later grace period waits for it. (Domains with a one-bit phase need two flips for this.)

rcu_read_unlock()'s release pairs with the acquire of step 3: what the reader did is over when the
grace period is.

simplified: no tree of CPUs, no expediting, no stall warning; preempted readers are waited for like sleeping
ones in SRCU; callbacks run in whoever moves the grace period on.
"""
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, WRITE_ONCE, kmm_await, kmm_emit, might_sleep, smp_load_acquire, smp_mb, smp_mb_heavy,
)
from pykmm_ext.kernel.rwsem cimport down_write, down_write_trylock, init_rwsem, up_write
from pykmm_ext.kernel.srcu cimport rcu_segcblist
from pykmm_ext.machine.cpu cimport KMM_EV_RCU_SYNC, Cpu, u32, u64, unlikely
from pykmm_ext.mm.mm_types cimport KMM_QUIRK_EAGER_CALLBACKS, machine, machine_of, rcu_state

cdef extern from "kmm/rcu_segcblist.h" nogil:
    void rcu_segcblist_init(rcu_segcblist *l)
    unsigned long rcu_segcblist_enqueue(Cpu *cpu, rcu_segcblist *l, rcu_head *head,
                                        void (*func)(Cpu *, rcu_head *) noexcept nogil)
    bint rcu_segcblist_start(Cpu *cpu, rcu_segcblist *l)
    void rcu_segcblist_finish(Cpu *cpu, rcu_segcblist *l)
    void rcu_segcblist_invoke(Cpu *cpu, rcu_segcblist *l)

cdef enum:
    GP_IDLE, GP_SCAN
    # A grace period costs a membarrier(2), up to 40 us beside CPUs that run: share it among this many callbacks. (Linux
    # lets them wait for milliseconds, and hurries beyond 10,000: qhimark.)
    CALLBACK_BATCH = 2048
    # How often, in callbacks, call_rcu() looks whether it can move on.
    CALLBACK_POLL = 16


cdef int is_quiescent(u64 word, u64 gp_ctr) noexcept nogil:
    return word == 0 or word >= gp_ctr


cdef int is_reached(u64 v, u64 arg) noexcept nogil:
    return v >= arg


# Context: gp_lock held.
cdef inline void start_gp(Cpu *cpu, rcu_state *rcu) noexcept nogil:
    # Pairs with smp_mb_light() in rcu_read_lock().
    smp_mb_heavy(cpu)
    WRITE_ONCE(cpu, &rcu.gp_ctr, rcu.gp_ctr + 2)
    rcu.gp_state = GP_SCAN
    rcu.gp_cpu = 0


# Context: gp_lock held.
cdef inline void end_gp(Cpu *cpu, rcu_state *rcu) noexcept nogil:
    rcu.gp_state = GP_IDLE
    WRITE_ONCE(cpu, &rcu.gp_seq, rcu.gp_seq + 1)
    rcu_segcblist_finish(cpu, &rcu.cblist)


# Context: gp_lock held; does not wait. Goes on from gp_cpu; True when every Cpu was seen quiescent.
cdef bint poll_cpus(Cpu *cpu, machine *m) noexcept nogil:
    while m.rcu.gp_cpu < m.nr_cpus:
        # Acquire: pairs with the release in rcu_read_unlock().
        if not is_quiescent(smp_load_acquire(cpu, &m.cpus[m.rcu.gp_cpu].rcu_gp_ctr), m.rcu.gp_ctr):
            return False
        m.rcu.gp_cpu += 1
    return True


# Context: process, IRQs on; never waits for readers.
cdef void advance_gp(Cpu *cpu, machine *m) noexcept nogil:
    cdef rcu_state *rcu = &m.rcu
    if not down_write_trylock(cpu, &rcu.gp_lock):
        return  # its owner is at it
    if rcu.gp_state == GP_IDLE and rcu_segcblist_start(cpu, &rcu.cblist):
        start_gp(cpu, rcu)
    if rcu.gp_state == GP_SCAN and poll_cpus(cpu, m):
        end_gp(cpu, rcu)
    up_write(cpu, &rcu.gp_lock)
    # A callback must not run inside a section of its own caller; the next call outside of one runs it.
    if cpu.rcu_nesting == 0:
        rcu_segcblist_invoke(cpu, &rcu.cblist)


cdef void rcu_init(machine *m) noexcept nogil:
    m.rcu.gp_ctr = 1
    m.rcu.gp_state = GP_IDLE
    m.rcu.gp_cpu = 0
    m.rcu.gp_seq = 0
    init_rwsem(&m.rcu.gp_lock)
    rcu_segcblist_init(&m.rcu.cblist)


cdef void synchronize_rcu(Cpu *cpu) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef rcu_state *rcu = &m.rcu
    cdef unsigned long seq
    cdef u32 id
    if unlikely(cpu.engine != NULL):
        might_sleep(cpu, b"synchronize_rcu")
        kmm_emit(cpu, KMM_EV_RCU_SYNC, rcu, 0)
    # Orders the caller's unlinking against the load: a grace period counted later than the next one
    # started after this point. (The next one may have started before.) Pairs with smp_mb_heavy() of that grace
    # period, which comes after the count of the one before it.
    smp_mb(cpu)
    seq = READ_ONCE(cpu, &rcu.gp_seq)
    down_write(cpu, &rcu.gp_lock)
    if rcu.gp_seq < seq + 2:
        # One of call_rcu() under way starts anew: its callbacks wait for ours.
        rcu_segcblist_start(cpu, &rcu.cblist)
        start_gp(cpu, rcu)
        for id in range(m.nr_cpus):
            kmm_await(cpu, &m.cpus[id].rcu_gp_ctr, is_quiescent, rcu.gp_ctr)
        end_gp(cpu, rcu)
    up_write(cpu, &rcu.gp_lock)
    rcu_segcblist_invoke(cpu, &rcu.cblist)


cdef void call_rcu(Cpu *cpu, rcu_head *head, void (*func)(Cpu *, rcu_head *) noexcept nogil) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef rcu_segcblist *l = &m.rcu.cblist
    cdef unsigned long n = rcu_segcblist_enqueue(cpu, l, head, func)
    # Racy looks: a wrong guess costs one attempt, or delays one.
    if n % CALLBACK_POLL == 0 and (READ_ONCE(cpu, &l.nr_next) >= CALLBACK_BATCH
                                   or READ_ONCE(cpu, &l.nr_wait) != 0):
        advance_gp(cpu, m)
    elif unlikely(m.quirks & KMM_QUIRK_EAGER_CALLBACKS):
        advance_gp(cpu, m)


cdef void rcu_barrier(Cpu *cpu) noexcept nogil:
    cdef machine *m = machine_of(cpu)
    cdef unsigned long queued = READ_ONCE(cpu, &m.rcu.cblist.nr_queued)
    might_sleep(cpu, b"rcu_barrier")
    # What the callbacks did is seen by the caller: pairs with the release in rcu_segcblist_invoke().
    if smp_load_acquire(cpu, &m.rcu.cblist.nr_invoked) >= queued:
        return
    synchronize_rcu(cpu)
    # All of them are past their grace period. If another CPU is invoking, it does ours too.
    kmm_await(cpu, &m.rcu.cblist.nr_invoked, is_reached, queued)
