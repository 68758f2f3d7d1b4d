# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/rcu/srcutree.c: sleepable RCU.

A grace period, by its one owner at a time (gp_mutex):

1. smp_mb_heavy();
2. wait until no Cpu is inside a section of the index that new readers do not use;
3. flip srcu_idx: from now on new readers use the index that was just seen empty;
4. wait until no Cpu is inside a section of the index they used before.

Why it is correct. Step 1 runs a full barrier on every CPU, at one point of its program. A section whose
lock count was stored before that point is visible in one of the two indices and is waited for, in step 2
or 4. A section whose count was stored later does its loads later still, after the barrier: it sees
whatever the caller unlinked, and need not be waited for. So the index a reader gets does not matter for
safety; nor does it matter that a reader may load srcu_idx, be descheduled for a whole grace period and then
count itself under an index that is no longer current.

Why the flip, and why both indices are drained. New readers on the index that is scanned could keep it
from ever being empty; after the flip they come in on the other one. And because late readers of the kind
above may sit in the other one, it is drained first. (Linux flips once per grace period and drains both;
flipping twice and draining after each flip, as it did at first, comes to the same.)

Why "empty" can be seen one Cpu at a time. Sections begin and end on one Cpu, so its own two counts are equal
at some moment after step 1 exactly when no section of before is left on it. The unlock count is read first,
with acquire: a section that is counted as left is then counted as entered too.

synchronize_srcu() and srcu_barrier() wait in steps 2 and 4. call_srcu() never does: every
CALLBACK_BATCH callbacks it starts a grace period, and later calls move it on as far as it goes without waiting.

simplified: counters of a Cpu are not summed over Cpus (Linux's readers may migrate), there is no combining
tree, no expediting, and callbacks run in whoever moves the grace period on.
"""
from libc.errno cimport ENOMEM
from libc.stdlib cimport free
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, WRITE_ONCE, kmm_await, kmm_emit, kmm_is_not_equal, might_sleep, smp_load_acquire, smp_mb, smp_mb_heavy,
)
from pykmm_ext.kernel.rwsem cimport down_write, down_write_trylock, init_rwsem, up_write
from pykmm_ext.machine.cpu cimport KMM_EV_SRCU_SYNC, Cpu, u32, u64, unlikely
from pykmm_ext.mm.mm_types cimport KMM_QUIRK_EAGER_CALLBACKS, machine_of

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "kmm/mutant.h" nogil:
    bint KMM_KEEP(int mutant, bint condition)

cdef extern from "kmm/rcu_segcblist.h" nogil:
    void rcu_segcblist_init(rcu_segcblist *l)
    unsigned long rcu_segcblist_enqueue(Cpu *cpu, rcu_segcblist *l, rcu_head *head,
                                        void (*func)(Cpu *, rcu_head *) noexcept nogil)
    bint rcu_segcblist_start(Cpu *cpu, rcu_segcblist *l)
    void rcu_segcblist_finish(Cpu *cpu, rcu_segcblist *l)
    void rcu_segcblist_invoke(Cpu *cpu, rcu_segcblist *l)

cdef enum:
    GP_IDLE, GP_DRAIN_OTHER, GP_DRAIN_OLD
    # A grace period costs a membarrier(2), up to 40 us beside CPUs that run: share it among this many callbacks. (Linux
    # lets them wait for milliseconds, and hurries beyond 10,000: qhimark.)
    CALLBACK_BATCH = 2048
    # How often, in callbacks, call_srcu() looks whether it can move on.
    CALLBACK_POLL = 16


cdef int is_reached(u64 v, u64 arg) noexcept nogil:
    return v >= arg


# Context: any. Is this Cpu seen outside of every section of `idx`? *unlocks: the count that was seen.
cdef inline bint cpu_is_drained(Cpu *cpu, srcu_data *sd, unsigned long idx, unsigned long *unlocks) noexcept nogil:
    # Acquire pairs with the release in srcu_read_unlock(), and orders the two loads.
    unlocks[0] = smp_load_acquire(cpu, &sd.srcu_unlock_count[idx])
    return READ_ONCE(cpu, &sd.srcu_lock_count[idx]) == unlocks[0]


# Context: gp_mutex held; does not wait. Goes on from gp_cpu; True when every Cpu was seen drained.
cdef bint poll_index(Cpu *cpu, srcu_struct *ssp, unsigned long idx) noexcept nogil:
    cdef unsigned long unlocks
    while ssp.gp_cpu < ssp.nr_cpus:
        if not cpu_is_drained(cpu, &ssp.sda[ssp.gp_cpu], idx, &unlocks):
            return False
        ssp.gp_cpu += 1
    return True


# Context: gp_mutex held, process, may sleep, no section of this domain.
cdef void wait_for_index(Cpu *cpu, srcu_struct *ssp, unsigned long idx) noexcept nogil:
    cdef unsigned long unlocks
    cdef u32 id
    for id in range(ssp.nr_cpus):
        while not cpu_is_drained(cpu, &ssp.sda[id], idx, &unlocks):
            # Every section that ends changes the word.
            kmm_await(cpu, &ssp.sda[id].srcu_unlock_count[idx], kmm_is_not_equal, unlocks)


# Context: gp_mutex held.
cdef inline void start_gp(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    # Pairs with smp_mb_light() in srcu_read_lock().
    smp_mb_heavy(cpu)
    ssp.gp_state = GP_DRAIN_OTHER
    ssp.gp_cpu = 0


# Context: gp_mutex held.
cdef inline void flip(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    if KMM_KEEP(1, True):
        WRITE_ONCE(cpu, &ssp.srcu_idx, ssp.srcu_idx + 1)
    ssp.gp_state = GP_DRAIN_OLD
    ssp.gp_cpu = 0


# Context: gp_mutex held.
cdef inline void end_gp(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    ssp.gp_state = GP_IDLE
    WRITE_ONCE(cpu, &ssp.gp_seq, ssp.gp_seq + 1)
    rcu_segcblist_finish(cpu, &ssp.cblist)


# Context: process, IRQs on, any locks but this domain's; never waits for readers.
cdef void advance_gp(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    if not down_write_trylock(cpu, &ssp.gp_mutex):
        return  # its owner is at it
    if ssp.gp_state == GP_IDLE and rcu_segcblist_start(cpu, &ssp.cblist):
        start_gp(cpu, ssp)
    if ssp.gp_state == GP_DRAIN_OTHER and poll_index(cpu, ssp, (ssp.srcu_idx & 1) ^ 1):
        flip(cpu, ssp)
    if ssp.gp_state == GP_DRAIN_OLD and poll_index(cpu, ssp, (ssp.srcu_idx & 1) ^ 1):
        end_gp(cpu, ssp)
    up_write(cpu, &ssp.gp_mutex)
    rcu_segcblist_invoke(cpu, &ssp.cblist)


cdef int init_srcu_struct(srcu_struct *ssp, u32 nr_cpus) noexcept nogil:
    return init_srcu_struct_at(ssp, nr_cpus, <srcu_data *>aligned_alloc(128, nr_cpus * sizeof(srcu_data)))


cdef int init_srcu_struct_at(srcu_struct *ssp, u32 nr_cpus, srcu_data *sda) noexcept nogil:
    memset(ssp, 0, sizeof(ssp[0]))
    ssp.sda = sda
    if ssp.sda == NULL:
        return -ENOMEM
    memset(ssp.sda, 0, nr_cpus * sizeof(srcu_data))
    ssp.nr_cpus = nr_cpus
    init_rwsem(&ssp.gp_mutex)
    rcu_segcblist_init(&ssp.cblist)
    return 0


cdef void cleanup_srcu_struct(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    if ssp.sda == NULL:
        return
    srcu_barrier(cpu, ssp)
    free(ssp.sda)
    ssp.sda = NULL


cdef void synchronize_srcu(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    cdef unsigned long seq
    if unlikely(cpu.engine != NULL):
        might_sleep(cpu, b"synchronize_srcu")
        kmm_emit(cpu, KMM_EV_SRCU_SYNC, ssp, 0)
    # Orders the caller's unlinking against the load: a grace period counted later than the next one
    # started after this point. (The next one may have started before.) Pairs with smp_mb_heavy() of that grace
    # period, which comes after the count of the one before it.
    smp_mb(cpu)
    seq = READ_ONCE(cpu, &ssp.gp_seq)
    down_write(cpu, &ssp.gp_mutex)
    if KMM_KEEP(2, ssp.gp_seq < seq + 2) or ssp.gp_seq < seq + 1:
        # One of call_srcu() under way starts anew: its callbacks wait for ours.
        rcu_segcblist_start(cpu, &ssp.cblist)
        start_gp(cpu, ssp)
        if KMM_KEEP(3, True):
            wait_for_index(cpu, ssp, (ssp.srcu_idx & 1) ^ 1)
        flip(cpu, ssp)
        if KMM_KEEP(4, True):
            wait_for_index(cpu, ssp, (ssp.srcu_idx & 1) ^ 1)
        end_gp(cpu, ssp)
    up_write(cpu, &ssp.gp_mutex)
    rcu_segcblist_invoke(cpu, &ssp.cblist)


cdef void call_srcu(Cpu *cpu, srcu_struct *ssp, rcu_head *head,
                    void (*func)(Cpu *, rcu_head *) noexcept nogil) noexcept nogil:
    cdef unsigned long n = rcu_segcblist_enqueue(cpu, &ssp.cblist, head, func)
    # Racy looks: a wrong guess costs one attempt, or delays one.
    if n % CALLBACK_POLL == 0 and (READ_ONCE(cpu, &ssp.cblist.nr_next) >= CALLBACK_BATCH
                                   or READ_ONCE(cpu, &ssp.cblist.nr_wait) != 0):
        advance_gp(cpu, ssp)
    elif unlikely(machine_of(cpu).quirks & KMM_QUIRK_EAGER_CALLBACKS):
        advance_gp(cpu, ssp)


cdef void srcu_barrier(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    cdef unsigned long queued = READ_ONCE(cpu, &ssp.cblist.nr_queued)
    might_sleep(cpu, b"srcu_barrier")
    # What the callbacks did is seen by the caller: pairs with the release in rcu_segcblist_invoke().
    if smp_load_acquire(cpu, &ssp.cblist.nr_invoked) >= queued:
        return
    synchronize_srcu(cpu, ssp)
    # All of them are past their grace period. If another CPU is invoking, it does ours too.
    kmm_await(cpu, &ssp.cblist.nr_invoked, is_reached, queued)


cdef bint srcu_readers_active(Cpu *cpu, srcu_struct *ssp) noexcept nogil:
    cdef unsigned long unlocks
    cdef unsigned long idx
    cdef u32 id
    for id in range(ssp.nr_cpus):
        for idx in range(2):
            if not cpu_is_drained(cpu, &ssp.sda[id], idx, &unlocks):
                return True
    return False
