# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (raw pointers only inside the loops)
"""Timing loops over the primitives; no kernel file. benchmarks/bench_primitives.py runs them.

Each method does `n` operations in compiled code without the GIL and returns nanoseconds per operation.
"""
from pykmm_ext.kernel.atomic cimport READ_ONCE, WRITE_ONCE, atomic_add_return, barrier, smp_mb, smp_mb_heavy
from pykmm_ext.kernel.cpuset cimport CpuSet, cpuset_cpu
from pykmm_ext.kernel.rcu cimport rcu_read_lock, rcu_read_unlock, synchronize_rcu
from pykmm_ext.kernel.rwsem cimport down_read, down_write, init_rwsem, rw_semaphore, up_read, up_write
from pykmm_ext.kernel.seqlock cimport read_seqbegin, read_seqretry, seqlock_init, seqlock_t
from pykmm_ext.kernel.slab cimport kmem_cache_alloc, kmem_cache_destroy, kmem_cache_free, kmem_cache_init
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock, spinlock_t
from pykmm_ext.kernel.srcu cimport (
    cleanup_srcu_struct, init_srcu_struct, srcu_read_lock, srcu_read_unlock, srcu_struct, synchronize_srcu,
)
from pykmm_ext.kernel.timekeeping cimport now_ns
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable, smp_call_function_many
from pykmm_ext.mm.mm_types cimport kmem_cache

cdef inline double now() noexcept nogil:
    return <double>now_ns()


cdef void ipi_nothing(Cpu *target, void *info) noexcept nogil:
    pass


cdef class PrimitivesBench:
    """One of each primitive, uncontended unless two threads call.

    :param cpus: the CpuSet.
    """
    cdef CpuSet cpus
    cdef spinlock_t lock
    cdef rw_semaphore sem
    cdef seqlock_t seq
    cdef srcu_struct ssp
    cdef kmem_cache cache
    cdef unsigned long word, stop

    def __cinit__(self, CpuSet cpus not None):
        self.cpus = cpus
        spin_lock_init(&self.lock)
        init_rwsem(&self.sem)
        seqlock_init(&self.seq)
        if init_srcu_struct(&self.ssp, cpus.nr_cpus) != 0 or kmem_cache_init(&self.cache, 0, b"bench", 192) != 0:
            raise MemoryError()

    def __dealloc__(self):
        cdef Cpu *c
        if self.ssp.sda != NULL:
            c = self.cpus.machine.cpus[0]
            with nogil:
                cleanup_srcu_struct(c, &self.ssp)
        kmem_cache_destroy(&self.cache)

    def atomic(self, unsigned long n, u32 cpu=0):
        """Two fully ordered atomic additions: the cheapest a lock made of one word could be."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                atomic_add_return(c, &self.word, 1)
                atomic_add_return(c, &self.word, <unsigned long>-1)
            t = now() - t
        return t / n

    def fence_pair(self, unsigned long n, u32 cpu=0):
        """A store and a full fence, twice: a read side without asymmetric barriers."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long i
        cdef double t
        with nogil:
            t = now()
            for i in range(n):
                WRITE_ONCE(c, &self.word, i)
                smp_mb(c)
                WRITE_ONCE(c, &self.word, 0)
                smp_mb(c)
            t = now() - t
        return t / n

    def spinlock(self, unsigned long n, u32 cpu=0):
        """spin_lock(), spin_unlock()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                spin_lock(c, &self.lock)
                spin_unlock(c, &self.lock)
            t = now() - t
        return t / n

    def rwsem_read(self, unsigned long n, u32 cpu=0):
        """down_read(), up_read()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                down_read(c, &self.sem)
                up_read(c, &self.sem)
            t = now() - t
        return t / n

    def rwsem_write(self, unsigned long n, u32 cpu=0):
        """down_write(), up_write()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                down_write(c, &self.sem)
                up_write(c, &self.sem)
            t = now() - t
        return t / n

    def seqlock_read(self, unsigned long n, u32 cpu=0):
        """read_seqbegin(), a load, read_seqretry()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i, retries = 0
        cdef u32 s
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                s = read_seqbegin(c, &self.seq)
                READ_ONCE(c, &self.word)
                retries += read_seqretry(c, &self.seq, s)
            t = now() - t
        return t / n

    def rcu(self, unsigned long n, u32 cpu=0):
        """rcu_read_lock(), rcu_read_unlock()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                rcu_read_lock(c)
                rcu_read_unlock(c)
            t = now() - t
        return t / n

    def srcu(self, unsigned long n, u32 cpu=0):
        """srcu_read_lock(), srcu_read_unlock()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                srcu_read_unlock(c, &self.ssp, srcu_read_lock(c, &self.ssp))
            t = now() - t
        return t / n

    def irq(self, unsigned long n, u32 cpu=0):
        """local_irq_disable(), local_irq_enable()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                local_irq_disable(c)
                local_irq_enable(c)
            t = now() - t
        return t / n

    def slab(self, unsigned long n, u32 cpu=0):
        """kmem_cache_alloc(), kmem_cache_free() of 192 bytes."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                kmem_cache_free(c, &self.cache, kmem_cache_alloc(c, &self.cache))
            t = now() - t
        return t / n

    def mb_heavy(self, unsigned long n, u32 cpu=0):
        """smp_mb_heavy()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                smp_mb_heavy(c)
            t = now() - t
        return t / n

    def synchronize_rcu(self, unsigned long n, u32 cpu=0):
        """synchronize_rcu()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                synchronize_rcu(c)
            t = now() - t
        return t / n

    def synchronize_srcu(self, unsigned long n, u32 cpu=0):
        """synchronize_srcu()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef double t
        with nogil:
            t = now()
            for _i in range(n):
                synchronize_srcu(c, &self.ssp)
            t = now() - t
        return t / n

    def ipi(self, unsigned long n, u32 cpu=0):
        """A call on all other CPUs, awaited."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long i, _j
        cdef unsigned long mask[16]
        cdef double t
        for i in range(16):
            mask[i] = ~<unsigned long>0
        with nogil:
            t = now()
            for _j in range(n):
                smp_call_function_many(c, mask, ipi_nothing, NULL)
            t = now() - t
        return t / n

    def irq_bursts(self, u32 cpu, unsigned off, unsigned on):
        """Be a busy target until finish(): IRQs off for `off` steps, on for `on` steps, and so on.

        Returns the number of rounds.
        """
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long rounds = 0
        cdef unsigned _i
        with nogil:
            while not READ_ONCE(c, &self.stop):
                if off:
                    local_irq_disable(c)
                    for _i in range(off):
                        barrier()
                    local_irq_enable(c)
                for _i in range(on):
                    barrier()
                rounds += 1
        return rounds

    def finish(self):
        """End irq_bursts()."""
        WRITE_ONCE(cpuset_cpu(self.cpus, 0), &self.stop, 1)
