# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/locking/rwsem.c: the fair reader/writer semaphore.

The word `count`:

=======  ==============  =============================================================================
bits     name            meaning
=======  ==============  =============================================================================
0        WRITER_LOCKED   a writer holds it
1        FLAG_WAITERS    the queue is not empty; changed under wait_lock
2        FLAG_HANDOFF    the first waiter was overtaken once: only a release may give the lock away,
                         and it gives it to that waiter; changed under wait_lock
8 to 63  READER_BIAS     readers that hold it, plus readers on their way into the slow path or out of a trylock
=======  ==============  =============================================================================

Who may take it:

===================  ==================================================================================
who                  when
===================  ==================================================================================
reader, fast path    no writer and no waiter; so a stream of readers cannot hold off a queued writer
writer, fast path    count is 0
writer, spinning     free and no FLAG_HANDOFF, waiters or not (it overtakes the queue for lack of a
                     sleeper that would have to be woken first)
first waiter         writer: woken to try again, and after it was overtaken once handed the lock;
                     reader: handed the lock together with every other reader of the queue, so a writer
                     between them waits for one batch and is then first
===================  ==================================================================================

Starvation is bounded: an overtaken first waiter sets FLAG_HANDOFF, after which nobody overtakes.

A waiter lives on its owner's stack. The waker's last access to it is the xchg of waiter->state; from
then on the owner may return and the memory be anything. The futex wake that follows uses the address
alone: should the word be reused, it wakes at most a sleeper there for no reason, and every futex sleeper
of pykmm re-checks its predicate (kmm_await_futex), as FUTEX_WAIT requires anyway.

simplified: no owner field, so spinning writers spin a fixed number of times and not while the owner runs;
readers do not spin before they queue (they do on their own word); no timeouts for the hand-off.
"""
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, READ_ONCE_32, WRITE_ONCE_32, atomic_add_return, cmpxchg, cmpxchg_32, fetch_or, kmm_await_futex,
    kmm_cpu_relax, kmm_wake_32, might_sleep, smp_load_acquire_32, xchg_32,
)
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock
from pykmm_ext.machine.cpu cimport Cpu, likely, u32, u64, unlikely

cdef extern from *:
    """
    #include "kmm/mutant.h"
    #include "kmm/rwsem_types.h"
    struct rwsem_waiter {
        struct rwsem_waiter *next;   /* sem->wait_lock */
        u32 state;                   /* atomic: WAITER_*; owner and wakers */
        u32 is_writer;               /* const */
        u32 overtaken;               /* owner */
    };
    static inline int kmm_rwsem_lock(Cpu *cpu, rwlock_sem *sem, enum kmm_lock_op op)
    { return cpu->engine->lock(cpu, sem, op); }
    """
    bint KMM_KEEP(int mutant, bint condition) nogil
    cdef enum kmm_lock_op:
        KMM_DOWN_READ, KMM_DOWN_READ_TRYLOCK, KMM_UP_READ, KMM_DOWN_WRITE, KMM_DOWN_WRITE_TRYLOCK, KMM_UP_WRITE
        KMM_DOWNGRADE_WRITE
    int kmm_rwsem_lock(Cpu *cpu, rw_semaphore *sem, kmm_lock_op op) nogil
    ctypedef struct waiter "struct rwsem_waiter":
        waiter *next
        u32 state
        u32 is_writer
        u32 overtaken

cdef enum:
    WRITER_LOCKED = 1
    FLAG_WAITERS = 2
    FLAG_HANDOFF = 4
    # Nobody holds it when these bits are clear.
    FLAGS_MASK = 254
    WAITER_SPINS = 0
    WAITER_SLEEPS = 1
    WAITER_TRY = 2
    WAITER_GRANTED = 3
    # Polls before a writer queues, and before a queued waiter sleeps: some microseconds each.
    SPINS = 150


cdef inline bint is_free(unsigned long count) noexcept nogil:
    return (count & ~<unsigned long>FLAGS_MASK) == 0


cdef int waiter_is_woken(u64 state, u64 arg) noexcept nogil:
    return state >= WAITER_TRY


# Context: wait_lock held. The bits to drop when the first waiter leaves and `rest` stays.
cdef inline unsigned long flags_without(const waiter *rest) noexcept nogil:
    return <unsigned long>FLAG_HANDOFF if rest != NULL else <unsigned long>(FLAG_HANDOFF | FLAG_WAITERS)


# Context: wait_lock held, or `w` is off the queue. Last access to `w` (see the head of the file). Returns its
# word when a futex wake is owed, or NULL.
cdef inline const u32 *set_waiter(Cpu *cpu, waiter *w, u32 state) noexcept nogil:
    cdef const u32 *word = &w.state
    return word if xchg_32(cpu, <u32 *>word, state) == WAITER_SLEEPS else NULL


# Context: wait_lock held, process or any. Takes a free lock for the writer `w` that is first in the queue.
cdef inline bint grant_writer(Cpu *cpu, rw_semaphore *sem, waiter *w) noexcept nogil:
    cdef unsigned long c = READ_ONCE(cpu, &sem.count), seen
    while is_free(c):
        seen = cmpxchg(cpu, &sem.count, c, (c & ~flags_without(w.next)) | WRITER_LOCKED)
        if not KMM_KEEP(16, seen != c):
            sem.first = <rwsem_waiter *>w.next
            if w.next == NULL:
                sem.last = NULL
            return True
        c = seen
    return False


# Context: wait_lock held; drops it. The lock may have become free (or, `readers_only`, was downgraded):
# let in who is first. Does not sleep.
cdef void wake_and_unlock(Cpu *cpu, rw_semaphore *sem, bint readers_only) noexcept nogil:
    cdef waiter *first = <waiter *>sem.first
    cdef waiter *w
    cdef waiter *next
    cdef waiter *granted = NULL
    cdef waiter **granted_tail = &granted
    cdef waiter *kept = NULL
    cdef waiter *kept_last = NULL
    cdef unsigned long c, seen, n = 0
    cdef const u32 *word
    if first == NULL or (first.is_writer and readers_only):
        spin_unlock(cpu, &sem.wait_lock)
        return
    if first.is_writer:
        word = NULL
        c = READ_ONCE(cpu, &sem.count)
        if not (c & FLAG_HANDOFF):
            # It tries itself; until it runs, a spinning writer may use the lock.
            if KMM_KEEP(1, is_free(c)):
                word = set_waiter(cpu, first, WAITER_TRY)
            else:
                # A spinning writer was faster: it must be the last one. Its up_write() comes back here.
                fetch_or(cpu, &sem.count, FLAG_HANDOFF)
        elif grant_writer(cpu, sem, first):
            word = set_waiter(cpu, first, WAITER_GRANTED)
        spin_unlock(cpu, &sem.wait_lock)
        if word != NULL:
            kmm_wake_32(cpu, word, 1)
        return
    # Split the queue: every reader, and the writers that stay in their order.
    w = first
    while w != NULL:
        if not w.is_writer:
            n += 1
        elif kept == NULL:
            kept = w
        w = w.next
    c = READ_ONCE(cpu, &sem.count)
    while True:
        if KMM_KEEP(2, (c & WRITER_LOCKED) != 0):
            fetch_or(cpu, &sem.count, FLAG_HANDOFF)  # overtaken, as above
            spin_unlock(cpu, &sem.wait_lock)
            return
        seen = cmpxchg(cpu, &sem.count, c, (c & ~flags_without(kept)) + n * READER_BIAS)
        if not KMM_KEEP(11, seen != c):
            break
        c = seen
    kept = NULL
    w = first
    while w != NULL:
        next = w.next
        w.next = NULL
        if w.is_writer:
            if kept == NULL:
                kept = w
            else:
                kept_last.next = w
            kept_last = w
        else:
            granted_tail[0] = w
            granted_tail = &w.next
        w = next
    sem.first = <rwsem_waiter *>kept
    sem.last = <rwsem_waiter *>kept_last
    spin_unlock(cpu, &sem.wait_lock)
    # The readers are off the queue and hold the lock: they go on as soon as they see it.
    while granted != NULL:
        w = granted
        granted = w.next
        word = set_waiter(cpu, w, WAITER_GRANTED)
        if word != NULL:
            kmm_wake_32(cpu, word, 1)


# Context: any. The caller released the lock and saw FLAG_WAITERS.
cdef void rwsem_wake(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    spin_lock(cpu, &sem.wait_lock)
    wake_and_unlock(cpu, sem, False)


# Context: wait_lock held.
cdef inline void enqueue(rw_semaphore *sem, waiter *w) noexcept nogil:
    w.next = NULL
    if sem.last != NULL:
        (<waiter *>sem.last).next = w
    else:
        sem.first = <rwsem_waiter *>w
    sem.last = <rwsem_waiter *>w


# On a virtual engine time is not a reason to stop waiting: one poll shows what many do.
cdef inline int polls(Cpu *cpu) noexcept nogil:
    return SPINS if cpu.engine == NULL else 1


# Context: process, may sleep, no locks of this module. Returns the state that a waker set.
cdef u32 wait_for_waker(Cpu *cpu, waiter *w) noexcept nogil:
    cdef u32 state
    cdef int _spins
    for _spins in range(polls(cpu)):
        state = smp_load_acquire_32(cpu, &w.state)  # pairs with the exchange in set_waiter()
        if state >= WAITER_TRY:
            return state
        kmm_cpu_relax()
    # From here on a waker owes a futex wake; before, its store alone was enough.
    state = cmpxchg_32(cpu, &w.state, WAITER_SPINS, WAITER_SLEEPS)
    if state == WAITER_SPINS:
        return <u32>kmm_await_futex(cpu, &w.state, waiter_is_woken, 0)
    # A compare-and-exchange that fails orders nothing, and what the last holder did is to be seen.
    return smp_load_acquire_32(cpu, &w.state)  # pairs with the exchange in set_waiter()


# Context: process, may sleep. The fast path has added READER_BIAS and found somebody in the way.
cdef void down_read_slowpath(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    cdef waiter w
    cdef unsigned long c
    spin_lock(cpu, &sem.wait_lock)
    w.state = WAITER_SPINS
    w.is_writer = 0
    w.overtaken = 0
    if KMM_KEEP(5, sem.first == NULL):
        c = atomic_add_return(cpu, &sem.count, <unsigned long>FLAG_WAITERS - READER_BIAS)
    else:
        c = atomic_add_return(cpu, &sem.count, -<unsigned long>READER_BIAS)
    enqueue(sem, &w)
    # A release may have taken our passing bias for a holder and woken nobody.
    if KMM_KEEP(6, is_free(c)):
        wake_and_unlock(cpu, sem, False)
    elif KMM_KEEP(10, sem.first == <rwsem_waiter *>&w and not (c & WRITER_LOCKED)):
        # Downgraded since the look at the count, before our flag was in it: nobody will wake us.
        wake_and_unlock(cpu, sem, False)
    else:
        spin_unlock(cpu, &sem.wait_lock)
    wait_for_waker(cpu, &w)


# Context: process, may sleep.
cdef void down_write_slowpath(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    cdef waiter w
    cdef unsigned long c
    cdef int _spins
    for _spins in range(polls(cpu)):
        c = READ_ONCE(cpu, &sem.count)
        if KMM_KEEP(7, (c & FLAG_HANDOFF) != 0):
            break
        if is_free(c) and not KMM_KEEP(12, cmpxchg(cpu, &sem.count, c, c | WRITER_LOCKED) != c):
            return
        kmm_cpu_relax()
    w.is_writer = 1
    w.overtaken = 0
    w.state = WAITER_SPINS
    spin_lock(cpu, &sem.wait_lock)
    enqueue(sem, &w)
    # Before the look at the count: a release after it sees the flag, one before it is seen.
    if KMM_KEEP(8, True):
        fetch_or(cpu, &sem.count, FLAG_WAITERS)
    while True:
        if sem.first == <rwsem_waiter *>&w:
            if KMM_KEEP(9, grant_writer(cpu, sem, &w)):
                spin_unlock(cpu, &sem.wait_lock)
                return
            # Whoever holds it now will look at the flag in its release, which needs wait_lock.
            if KMM_KEEP(3, w.overtaken != 0):
                fetch_or(cpu, &sem.count, FLAG_HANDOFF)
        # Wakers write the state under wait_lock: nothing is lost here.
        WRITE_ONCE_32(cpu, &w.state, WAITER_SPINS)
        spin_unlock(cpu, &sem.wait_lock)
        if wait_for_waker(cpu, &w) == WAITER_GRANTED:
            return
        w.overtaken = 1
        spin_lock(cpu, &sem.wait_lock)
        # Told to try, and handed the lock on the way here.
        if KMM_KEEP(4, READ_ONCE_32(cpu, &w.state) == WAITER_GRANTED):
            spin_unlock(cpu, &sem.wait_lock)
            return


# Context: any, before others see it.
cdef void init_rwsem(rw_semaphore *sem) noexcept nogil:
    sem.count = 0
    spin_lock_init(&sem.wait_lock)
    sem.first = NULL
    sem.last = NULL


# Context: any. A reader has left, and `count` is what it left behind.
cdef void up_read_waiters(Cpu *cpu, rw_semaphore *sem, unsigned long count) noexcept nogil:
    if KMM_KEEP(13, count & FLAG_WAITERS and is_free(count)):
        rwsem_wake(cpu, sem)


# Context: process, IRQs on, may sleep, GIL not held.
cdef void down_read(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    if unlikely(cpu.engine != NULL):
        might_sleep(cpu, b"down_read")
        if kmm_rwsem_lock(cpu, sem, KMM_DOWN_READ) >= 0:
            return
    if unlikely(atomic_add_return(cpu, &sem.count, READER_BIAS) & READ_FAILED_MASK):
        down_read_slowpath(cpu, sem)


# Context: any. True when taken. One addition, as down_read(): a look and a compare-and-exchange would fetch the line of
# the count twice, which is what readers of one lock on many CPUs wait for.
cdef bint down_read_trylock(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    cdef unsigned long c
    cdef int got
    if unlikely(cpu.engine != NULL):
        got = kmm_rwsem_lock(cpu, sem, KMM_DOWN_READ_TRYLOCK)
        if got >= 0:
            return got
    if likely(not atomic_add_return(cpu, &sem.count, READER_BIAS) & READ_FAILED_MASK):
        return True
    c = atomic_add_return(cpu, &sem.count, -<unsigned long>READER_BIAS)
    # A release may have taken the passing bias for a holder and woken nobody.
    if KMM_KEEP(17, True):
        up_read_waiters(cpu, sem, c)
    return False


# Context: any.
cdef void up_read(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    cdef unsigned long c
    if unlikely(cpu.engine != NULL) and kmm_rwsem_lock(cpu, sem, KMM_UP_READ) >= 0:
        return
    c = atomic_add_return(cpu, &sem.count, -<unsigned long>READER_BIAS)
    if unlikely(c & READ_FAILED_MASK):
        up_read_waiters(cpu, sem, c)


# Context: process, IRQs on, may sleep, GIL not held.
cdef void down_write(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    if unlikely(cpu.engine != NULL):
        might_sleep(cpu, b"down_write")
        if kmm_rwsem_lock(cpu, sem, KMM_DOWN_WRITE) >= 0:
            return
    if unlikely(cmpxchg(cpu, &sem.count, 0, WRITER_LOCKED) != 0):
        down_write_slowpath(cpu, sem)


# Context: any. True when taken.
cdef bint down_write_trylock(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    cdef int got
    if unlikely(cpu.engine != NULL):
        got = kmm_rwsem_lock(cpu, sem, KMM_DOWN_WRITE_TRYLOCK)
        if got >= 0:
            return got
    return cmpxchg(cpu, &sem.count, 0, WRITER_LOCKED) == 0


# Context: any.
cdef void up_write(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    if unlikely(cpu.engine != NULL) and kmm_rwsem_lock(cpu, sem, KMM_UP_WRITE) >= 0:
        return
    if unlikely(atomic_add_return(cpu, &sem.count, -<unsigned long>WRITER_LOCKED) & FLAG_WAITERS) and KMM_KEEP(14, True):
        rwsem_wake(cpu, sem)


# Context: any; the caller holds it for writing and goes on as a reader, nobody in between.
cdef void downgrade_write(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    if unlikely(cpu.engine != NULL) and kmm_rwsem_lock(cpu, sem, KMM_DOWNGRADE_WRITE) >= 0:
        return
    if unlikely(atomic_add_return(cpu, &sem.count, <unsigned long>READER_BIAS - WRITER_LOCKED) & FLAG_WAITERS) \
            and KMM_KEEP(15, True):
        spin_lock(cpu, &sem.wait_lock)
        wake_and_unlock(cpu, sem, True)
