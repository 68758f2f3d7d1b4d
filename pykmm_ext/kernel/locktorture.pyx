# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/locktorture.c: stress for spinlock, rwsem, seqlock and cross-CPU calls.

A LockTorture holds one of each and the data that they protect. Its methods are run by several threads, one
per CPU, and return how many violations they saw. The protected data is plain memory on purpose: a lock that
does not exclude loses increments, and ThreadSanitizer sees the race.
"""
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, WRITE_ONCE, atomic_add_return, atomic_dec, atomic_inc, barrier, kmm_cpu_relax,
)
from pykmm_ext.kernel.cpuset cimport CpuSet, cpuset_cpu
from pykmm_ext.kernel.rwsem cimport (
    down_read, down_read_trylock, down_write, down_write_trylock, downgrade_write, init_rwsem, rw_semaphore, up_read,
    up_write,
)
from pykmm_ext.kernel.seqlock cimport (
    read_seqbegin, read_seqretry, seqlock_init, seqlock_t, write_seqlock, write_sequnlock,
)
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_trylock, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport IPI_HANDLED, IPI_SENT, Cpu, u32
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable, smp_call_function_many

cdef enum:
    MAX_CPUS = 64

# What one CPU's IRQ-off sections and the handlers that run for it share.
cdef struct irq_pair:
    unsigned long a
    unsigned long b
    unsigned long errors
    unsigned long padding[5]


# Context: IPI handler of `target`.
cdef void irq_handler(Cpu *target, void *info) noexcept nogil:
    cdef irq_pair *pair = <irq_pair *>info + target.id
    if pair.a != pair.b:
        pair.errors += 1
    pair.a += 1
    barrier()
    pair.b = pair.a


cdef class LockTorture:
    """One spinlock, rwsem and seqlock, and what they protect, on a CpuSet of up to 64 CPUs.

    :param cpus: the CpuSet.
    """
    cdef CpuSet cpus
    cdef spinlock_t lock
    cdef rw_semaphore sem
    cdef seqlock_t seq
    cdef unsigned long a, b
    cdef unsigned long readers, writers
    cdef unsigned long stop, writers_done
    cdef unsigned long shared[3]
    cdef irq_pair pairs[MAX_CPUS]

    def __cinit__(self, CpuSet cpus not None):
        if len(cpus) > MAX_CPUS:
            raise ValueError(f"at most {MAX_CPUS} CPUs")
        self.cpus = cpus
        spin_lock_init(&self.lock)
        init_rwsem(&self.sem)
        seqlock_init(&self.seq)
        # What seq_writer() keeps: x, ~x, 3x.
        self.shared[1] = ~<unsigned long>0

    @property
    def counted(self):
        """Increments that the protected data received."""
        return self.a

    @property
    def sem_count(self):
        """The rwsem's raw word."""
        return self.sem.count

    @property
    def ipis(self):
        """(sent, handled) over all CPUs."""
        cdef u32 i
        sent = handled = 0
        for i in range(self.cpus.nr_cpus):
            sent += self.cpus.machine.cpus[i].vm_event[<int>IPI_SENT]
            handled += self.cpus.machine.cpus[i].vm_event[<int>IPI_HANDLED]
        return sent, handled

    @property
    def irq_pairs(self):
        """Per CPU: (sections and handlers counted by a, by b, violations)."""
        return [(self.pairs[i].a, self.pairs[i].b, self.pairs[i].errors) for i in range(len(self.cpus))]

    def spin(self, u32 cpu, unsigned long n):
        """n times: lock (every other time by trylock), count, unlock."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long i, errors = 0
        with nogil:
            for i in range(n):
                if i & 1:
                    spin_lock(c, &self.lock)
                else:
                    while not spin_trylock(c, &self.lock):
                        kmm_cpu_relax()
                if self.a != self.b:
                    errors += 1
                self.a += 1
                barrier()
                self.b += 1
                spin_unlock(c, &self.lock)
        return errors

    cdef unsigned long check_writer(self, Cpu *c) noexcept nogil:
        cdef unsigned long errors = 0
        if atomic_add_return(c, &self.writers, 1) != 1 or READ_ONCE(c, &self.readers) != 0:
            errors += 1
        if self.a != self.b:
            errors += 1
        self.a += 1
        barrier()
        self.b += 1
        atomic_dec(c, &self.writers)
        return errors

    cdef unsigned long check_reader(self, Cpu *c) noexcept nogil:
        cdef unsigned long errors = 0, before
        atomic_inc(c, &self.readers)
        before = self.a
        if READ_ONCE(c, &self.writers) != 0 or self.a != self.b:
            errors += 1
        barrier()
        if self.a != before:
            errors += 1
        atomic_dec(c, &self.readers)
        return errors

    def rwsem(self, u32 cpu, unsigned long n, unsigned write_every):
        """n acquisitions; each write_every-th as a writer, by down, trylock and with a downgrade in turn.

        Returns (violations, acquisitions as a writer).
        """
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long i, errors = 0, writes = 0
        cdef unsigned kind
        with nogil:
            for i in range(n):
                kind = (i // write_every) % 3
                if i % write_every == 0:
                    if kind == 2:
                        if not down_write_trylock(c, &self.sem):
                            continue
                    else:
                        down_write(c, &self.sem)
                    writes += 1
                    errors += self.check_writer(c)
                    if kind == 1:
                        downgrade_write(c, &self.sem)
                        errors += self.check_reader(c)
                        up_read(c, &self.sem)
                    else:
                        up_write(c, &self.sem)
                else:
                    if kind == 2:
                        if not down_read_trylock(c, &self.sem):
                            continue
                    else:
                        down_read(c, &self.sem)
                    errors += self.check_reader(c)
                    up_read(c, &self.sem)
        return errors, writes

    def reader_storm(self, u32 cpu, unsigned long limit, unsigned hold):
        """Read sections of `hold` pauses without a break until told to stop; True when told before `limit`."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i
        cdef unsigned _j
        cdef bint stopped = False
        with nogil:
            for _i in range(limit):
                if READ_ONCE(c, &self.stop):
                    stopped = True
                    break
                down_read(c, &self.sem)
                for _j in range(hold):
                    kmm_cpu_relax()
                up_read(c, &self.sem)
        return stopped

    def writer_in_storm(self, u32 cpu, unsigned long n, unsigned stops):
        """n write sections against reader storms; the last of `stops` writers stops them. Violations."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i, errors = 0
        with nogil:
            for _i in range(n):
                down_write(c, &self.sem)
                errors += self.check_writer(c)
                up_write(c, &self.sem)
            if atomic_add_return(c, &self.writers_done, 1) == stops:
                WRITE_ONCE(c, &self.stop, 1)
        return errors

    def seq_writer(self, u32 cpu, unsigned long n):
        """n write sections that change three words; between the stores readers see a torn state."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i, v
        with nogil:
            for _i in range(n):
                write_seqlock(c, &self.seq)
                v = READ_ONCE(c, &self.shared[0]) + 1
                WRITE_ONCE(c, &self.shared[0], v)
                kmm_cpu_relax()
                WRITE_ONCE(c, &self.shared[1], ~v)
                kmm_cpu_relax()
                WRITE_ONCE(c, &self.shared[2], 3 * v)
                write_sequnlock(c, &self.seq)

    def seq_reader(self, u32 cpu, unsigned long n):
        """n accepted reads. Returns (torn reads that were accepted, reads that went backwards, retries)."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i, x, y, z, last = 0, torn = 0, back = 0, retries = 0
        cdef u32 start
        with nogil:
            for _i in range(n):
                while True:
                    start = read_seqbegin(c, &self.seq)
                    x = READ_ONCE(c, &self.shared[0])
                    y = READ_ONCE(c, &self.shared[1])
                    z = READ_ONCE(c, &self.shared[2])
                    if not read_seqretry(c, &self.seq, start):
                        break
                    retries += 1
                if y != ~x or z != 3 * x:
                    torn += 1
                if x < last:
                    back += 1
                last = x
        return torn, back, retries

    def irq(self, u32 cpu, unsigned long n, unsigned send_every, unsigned burst):
        """n IRQ-off sections of `burst` steps (every other one nested); each send_every-th is followed by a call
        on all other CPUs, with interrupts on. Returns how many calls it made."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef irq_pair *pair = &self.pairs[cpu]
        cdef unsigned long mask = ~<unsigned long>0
        cdef unsigned long i, calls = 0
        cdef unsigned _j
        with nogil:
            for i in range(n):
                local_irq_disable(c)
                if i & 1:
                    local_irq_disable(c)
                for _j in range(burst):
                    if pair.a != pair.b:
                        pair.errors += 1
                    pair.a += 1
                    barrier()
                    pair.b += 1
                if i & 1:
                    local_irq_enable(c)
                local_irq_enable(c)
                if send_every and i % send_every == 0:
                    smp_call_function_many(c, &mask, irq_handler, &self.pairs[0])
                    calls += 1
        return calls

    def call(self, u32 cpu, unsigned long mask):
        """One call on the CPUs of `mask` (bit n = CPU n) but `cpu`."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        with nogil:
            smp_call_function_many(c, &mask, irq_handler, &self.pairs[0])

    def irq_disable(self, u32 cpu):
        """local_irq_disable()."""
        local_irq_disable(cpuset_cpu(self.cpus, cpu))

    def irq_enable(self, u32 cpu):
        """local_irq_enable()."""
        local_irq_enable(cpuset_cpu(self.cpus, cpu))

    def ipi_pending(self, u32 cpu):
        """Calls announced to the CPU whose handler has not returned."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        return c.ipi_pending
