# SPDX-License-Identifier: GPL-2.0-only
"""kernel/rcu/rcutorture.c: stress for RCU and SRCU.

Readers follow one shared pointer to an object; writers replace the object and mark the old one dead after a
grace period. A reader that ever sees a dead object has outlived its grace period. Dead objects stay allocated,
so that the mark can be read.
"""
from libc.stdlib cimport calloc, free

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, WRITE_ONCE, atomic_add_return, atomic_inc, kmm_cpu_relax,
    smp_load_acquire_ptr, xchg_ptr,
)
from pykmm_ext.kernel.cpuset cimport CpuSet, cpuset_cpu
from pykmm_ext.kernel.rcu cimport call_rcu, rcu_barrier, rcu_read_lock, rcu_read_unlock, synchronize_rcu
from pykmm_ext.kernel.srcu cimport (
    call_srcu, cleanup_srcu_struct, init_srcu_struct, srcu_barrier, srcu_read_lock, srcu_read_unlock,
    srcu_readers_active, srcu_struct, synchronize_srcu,
)
from pykmm_ext.machine.cpu cimport Cpu, rcu_head, u32

cdef enum:
    LIVE = 1
    DEAD = 2

cdef struct rcu_torture:
    rcu_head head
    # Plain: the reader's only protection is the grace period, and ThreadSanitizer shall see it.
    unsigned long payload
    u32 state
    u32 calls
    unsigned long *invoked


# Context: process; after a grace period.
cdef void rcu_torture_dead(rcu_torture *old) noexcept nogil:
    old.payload = 0
    old.state = DEAD


cdef void rcu_torture_cb(Cpu *cpu, rcu_head *head) noexcept nogil:
    cdef rcu_torture *old = <rcu_torture *>head
    old.calls += 1
    rcu_torture_dead(old)
    atomic_inc(cpu, old.invoked)


cdef class RcuTorture:
    """One shared pointer under RCU, or under an SRCU domain.

    :param cpus: the CpuSet.
    :param sleepable: SRCU instead of RCU.
    :param updates: replacements that all writers together may make.
    """
    cdef CpuSet cpus
    cdef bint sleepable
    cdef srcu_struct ssp
    cdef rcu_torture *pool
    cdef unsigned long nr_pool
    cdef unsigned long next_free
    cdef rcu_torture *current
    cdef unsigned long stop, writers_done
    cdef unsigned long invoked
    cdef unsigned long queued

    def __cinit__(self, CpuSet cpus not None, bint sleepable, unsigned long updates):
        self.cpus = cpus
        self.sleepable = sleepable
        if init_srcu_struct(&self.ssp, cpus.nr_cpus) != 0:
            raise MemoryError()
        self.nr_pool = updates + 1
        self.pool = <rcu_torture *>calloc(self.nr_pool, sizeof(rcu_torture))
        if self.pool == NULL:
            raise MemoryError()
        self.current = self.new_object(cpus.machine.cpus[0])

    def __dealloc__(self):
        cdef Cpu *c
        if self.pool != NULL:
            c = self.cpus.machine.cpus[0]
            with nogil:
                rcu_barrier(c)
        if self.ssp.sda != NULL:
            c = self.cpus.machine.cpus[0]
            with nogil:
                cleanup_srcu_struct(c, &self.ssp)
        free(self.pool)

    cdef rcu_torture *new_object(self, Cpu *c) noexcept nogil:
        cdef unsigned long n = atomic_add_return(c, &self.next_free, 1) - 1
        cdef rcu_torture *p
        if n >= self.nr_pool:
            return NULL
        p = &self.pool[n]
        p.payload = ~n
        p.state = LIVE
        p.invoked = &self.invoked
        return p

    def reader(self, u32 cpu, unsigned long limit, unsigned hold, unsigned nest):
        """Sections until told to stop, or `limit`; every nest-th (0 = none) has another one inside.

        Returns (sections, dead objects seen).
        """
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long i = 0, dead = 0
        cdef unsigned _j
        cdef rcu_torture *p
        cdef rcu_torture *q
        cdef int idx = 0, inner = 0
        cdef bint srcu = self.sleepable
        with nogil:
            while i < limit and not READ_ONCE(c, &self.stop):
                if srcu:
                    idx = srcu_read_lock(c, &self.ssp)
                else:
                    rcu_read_lock(c)
                p = <rcu_torture *>smp_load_acquire_ptr(c, &self.current)
                if nest and i % nest == 0:
                    if srcu:
                        inner = srcu_read_lock(c, &self.ssp)
                    else:
                        rcu_read_lock(c)
                    q = <rcu_torture *>smp_load_acquire_ptr(c, &self.current)
                    if q.state != LIVE:
                        dead += 1
                    if srcu:
                        srcu_read_unlock(c, &self.ssp, inner)
                    else:
                        rcu_read_unlock(c)
                for _j in range(hold):
                    kmm_cpu_relax()
                if p.state != LIVE or p.payload == 0:
                    dead += 1
                if srcu:
                    srcu_read_unlock(c, &self.ssp, idx)
                else:
                    rcu_read_unlock(c)
                i += 1
        return i, dead

    def writer(self, u32 cpu, unsigned long n, unsigned call_every, unsigned stops):
        """n replacements: each call_every-th (0 = none) waits for its grace period itself, the others are queued.

        The last of `stops` writers stops the readers. Returns how many replacements it made.
        """
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long i, made = 0
        cdef rcu_torture *p
        cdef bint srcu = self.sleepable
        with nogil:
            for i in range(n):
                p = self.new_object(c)
                if p == NULL:
                    break
                p = <rcu_torture *>xchg_ptr(c, &self.current, p)
                made += 1
                if call_every and i % call_every == 0:
                    if srcu:
                        synchronize_srcu(c, &self.ssp)
                    else:
                        synchronize_rcu(c)
                    rcu_torture_dead(p)
                else:
                    if srcu:
                        call_srcu(c, &self.ssp, &p.head, rcu_torture_cb)
                    else:
                        call_rcu(c, &p.head, rcu_torture_cb)
                    # After it: a barrier owes nothing to a callback that is not queued yet.
                    atomic_inc(c, &self.queued)
            if atomic_add_return(c, &self.writers_done, 1) == stops:
                WRITE_ONCE(c, &self.stop, 1)
        return made

    def barrier(self, u32 cpu):
        """rcu_barrier() or srcu_barrier(). Returns (queued before it, run after it)."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long queued = READ_ONCE(c, &self.queued)
        with nogil:
            if self.sleepable:
                srcu_barrier(c, &self.ssp)
            else:
                rcu_barrier(c)
        return queued, READ_ONCE(c, &self.invoked)

    def read_lock(self, u32 cpu):
        """Enter a section; returns the SRCU index (0 for RCU)."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if self.sleepable:
            return srcu_read_lock(c, &self.ssp)
        rcu_read_lock(c)
        return 0

    def read_unlock(self, u32 cpu, int idx):
        """Leave it."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if self.sleepable:
            srcu_read_unlock(c, &self.ssp, idx)
        else:
            rcu_read_unlock(c)

    @property
    def invoked_twice(self):
        """Callbacks that ran more than once."""
        return sum(self.pool[i].calls > 1 for i in range(self.nr_pool))

    @property
    def callbacks(self):
        """(queued, run)."""
        return self.queued, self.invoked

    @property
    def readers_active(self):
        """srcu_readers_active()."""
        return bool(srcu_readers_active(cpuset_cpu(self.cpus, 0), &self.ssp))

    @property
    def grace_periods(self):
        """Completed ones of the domain."""
        if self.sleepable:
            return self.ssp.gp_seq
        return self.cpus.machine.rcu.gp_seq
