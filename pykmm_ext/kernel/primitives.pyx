# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking and kernel/rcu as Python objects: Atomic, SpinLock, RwSem, SeqLock, Rcu, Srcu.

Each lives on a CpuSet: a few simulated CPUs with interrupt state and RCU state, but no memory. Every
method takes the number of the CPU that executes it. A CPU is driven by one thread at a time; that is the
caller's to keep, as everything is that a lock's user owes in the kernel. Releasing what is not held is
noticed and raises RuntimeError; taking a lock twice hangs, as it does there. The GIL is released wherever
a method may wait.
"""
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, WRITE_ONCE, atomic_add_return, cmpxchg, kmm_membarrier_register, smp_load_acquire, smp_store_release,
    xchg,
)
from pykmm_ext.kernel.rcu cimport (
    call_rcu, rcu_barrier, rcu_init, rcu_read_lock, rcu_read_lock_held, rcu_read_unlock, synchronize_rcu,
)
from pykmm_ext.kernel.rwsem cimport (
    down_read, down_read_trylock, down_write, down_write_trylock, downgrade_write, init_rwsem, rw_semaphore, up_read,
    up_write,
)
from pykmm_ext.kernel.seqlock cimport (
    read_seqbegin, read_seqretry, seqlock_init, seqlock_t, write_seqlock, write_sequnlock,
)
from pykmm_ext.kernel.spinlock cimport spin_is_locked, spin_lock, spin_lock_init, spin_trylock, spin_unlock, spinlock_t
from pykmm_ext.kernel.srcu cimport (
    call_srcu, cleanup_srcu_struct, init_srcu_struct, srcu_barrier, srcu_read_lock, srcu_read_unlock, srcu_struct,
    synchronize_srcu,
)
from pykmm_ext.machine.cpu cimport Cpu, rcu_head, u32
from pykmm_ext.machine.irq cimport irq_init_cpu
from pykmm_ext.mm.mm_types cimport machine

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

# RwSem.count, as laid out in kernel/rwsem.pyx.
RWSEM_WRITER_LOCKED = 1
RWSEM_FLAG_WAITERS = 2
RWSEM_FLAG_HANDOFF = 4
RWSEM_READER_BIAS = 256


cdef struct python_callback:
    rcu_head head
    PyObject *function


# noexcept: what the function raises is reported as unraisable, with this name.
cdef void run_callback(object function) noexcept:
    function()


# Context: process, GIL not held. An exception of the function goes to sys.unraisablehook.
cdef void run_python_callback(Cpu *cpu, rcu_head *head) noexcept nogil:
    cdef python_callback *cb = <python_callback *>head
    with gil:
        function = <object>cb.function
        Py_DECREF(function)
        run_callback(function)
    free(cb)


cdef python_callback *new_callback(function) except NULL:
    if not callable(function):
        raise TypeError(f"{function!r} is not callable")
    cdef python_callback *cb = <python_callback *>malloc(sizeof(python_callback))
    if cb == NULL:
        raise MemoryError()
    Py_INCREF(function)
    cb.function = <PyObject *>function
    return cb


cdef class CpuSet:
    """A few CPUs to run primitives on.

    :param nr_cpus: how many, 1 to 1024.
    :param full_fences: both halves of every asymmetric barrier pair are full fences, as on a host without
        membarrier(2).
    """
    def __cinit__(self, nr_cpus, full_fences=False):
        cdef u32 i
        if not 1 <= nr_cpus <= 1024:
            raise ValueError(f"nr_cpus must be 1 to 1024, not {nr_cpus}")
        self.machine = <machine *>calloc(1, sizeof(machine))
        self.memory = <Cpu *>aligned_alloc(128, nr_cpus * sizeof(Cpu))
        if self.machine == NULL or self.memory == NULL:
            raise MemoryError()
        memset(self.memory, 0, nr_cpus * sizeof(Cpu))
        self.machine.cpus = <Cpu **>calloc(nr_cpus, sizeof(Cpu *))
        if self.machine.cpus == NULL:
            raise MemoryError()
        self.nr_cpus = self.machine.nr_cpus = nr_cpus
        self.machine.cpumask_words = (nr_cpus + 63) // 64
        self.full_fences = full_fences or not kmm_membarrier_register()
        for i in range(self.nr_cpus):
            self.machine.cpus[i] = &self.memory[i]
            self.memory[i].id = i
            self.memory[i].machine = self.machine
            self.memory[i].light_is_mb = self.full_fences
            irq_init_cpu(&self.memory[i])
        rcu_init(self.machine)

    def __dealloc__(self):
        cdef Cpu *cpu = self.memory
        if self.machine != NULL and self.machine.cpus != NULL and self.nr_cpus:
            # Nobody else has a reference: no readers are left.
            with nogil:
                rcu_barrier(cpu)
        if self.machine != NULL:
            free(self.machine.cpus)
        free(self.machine)
        free(self.memory)

    def __len__(self):
        return self.nr_cpus


cdef Cpu *cpuset_cpu(CpuSet cpus, u32 cpu) except NULL:
    if cpu >= cpus.nr_cpus:
        raise IndexError(f"no CPU {cpu}: there are {cpus.nr_cpus}")
    return cpus.machine.cpus[cpu]


cdef class Atomic:
    """An unsigned 64-bit word that CPUs share (include/linux/atomic.h). Arithmetic wraps.

    :param cpus: the CpuSet.
    :param value: initial value.
    """
    cdef CpuSet cpus
    cdef unsigned long word

    def __cinit__(self, CpuSet cpus not None, unsigned long value=0):
        self.cpus = cpus
        self.word = value

    def load(self, u32 cpu=0):
        """READ_ONCE(): no order."""
        return READ_ONCE(cpuset_cpu(self.cpus, cpu), &self.word)

    def store(self, unsigned long value, u32 cpu=0):
        """WRITE_ONCE(): no order."""
        WRITE_ONCE(cpuset_cpu(self.cpus, cpu), &self.word, value)

    def load_acquire(self, u32 cpu=0):
        """smp_load_acquire()."""
        return smp_load_acquire(cpuset_cpu(self.cpus, cpu), &self.word)

    def store_release(self, unsigned long value, u32 cpu=0):
        """smp_store_release()."""
        smp_store_release(cpuset_cpu(self.cpus, cpu), &self.word, value)

    def xchg(self, unsigned long value, u32 cpu=0):
        """Store, return the old value; fully ordered."""
        return xchg(cpuset_cpu(self.cpus, cpu), &self.word, value)

    def cmpxchg(self, unsigned long old, unsigned long new, u32 cpu=0):
        """Store `new` if the value is `old`; return the value found; fully ordered."""
        return cmpxchg(cpuset_cpu(self.cpus, cpu), &self.word, old, new)

    def add_return(self, long n, u32 cpu=0):
        """Add (n may be negative), return the new value; fully ordered."""
        return atomic_add_return(cpuset_cpu(self.cpus, cpu), &self.word, <unsigned long>n)


cdef class SpinLock:
    """include/linux/spinlock.h.

    :param cpus: the CpuSet.
    """
    cdef CpuSet cpus
    cdef spinlock_t slock

    def __cinit__(self, CpuSet cpus not None):
        self.cpus = cpus
        spin_lock_init(&self.slock)

    def lock(self, u32 cpu=0):
        """spin_lock(): waits."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        with nogil:
            spin_lock(c, &self.slock)

    def trylock(self, u32 cpu=0):
        """spin_trylock(): True when taken."""
        return bool(spin_trylock(cpuset_cpu(self.cpus, cpu), &self.slock))

    def unlock(self, u32 cpu=0):
        """spin_unlock(). RuntimeError when nobody holds it."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if not spin_is_locked(c, &self.slock):
            raise RuntimeError("unlock of a SpinLock that is not locked")
        spin_unlock(c, &self.slock)

    @property
    def locked(self):
        """Whether somebody holds it now."""
        return bool(spin_is_locked(cpuset_cpu(self.cpus, 0), &self.slock))


cdef class RwSem:
    """include/linux/rwsem.h: many readers or one writer, first come first served.

    :param cpus: the CpuSet.
    """
    cdef CpuSet cpus
    cdef rw_semaphore sem

    def __cinit__(self, CpuSet cpus not None):
        self.cpus = cpus
        init_rwsem(&self.sem)

    def down_read(self, u32 cpu=0):
        """Take it as a reader; waits for writers that hold it or came before."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        with nogil:
            down_read(c, &self.sem)

    def down_read_trylock(self, u32 cpu=0):
        """True when taken as a reader without waiting."""
        return bool(down_read_trylock(cpuset_cpu(self.cpus, cpu), &self.sem))

    def up_read(self, u32 cpu=0):
        """RuntimeError when no reader holds it."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if self.count < RWSEM_READER_BIAS:
            raise RuntimeError("up_read of a RwSem that no reader holds")
        with nogil:
            up_read(c, &self.sem)

    def down_write(self, u32 cpu=0):
        """Take it as the writer; waits."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        with nogil:
            down_write(c, &self.sem)

    def down_write_trylock(self, u32 cpu=0):
        """True when taken as the writer without waiting."""
        return bool(down_write_trylock(cpuset_cpu(self.cpus, cpu), &self.sem))

    def up_write(self, u32 cpu=0):
        """RuntimeError when no writer holds it."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        self._check_writer("up_write")
        with nogil:
            up_write(c, &self.sem)

    def downgrade_write(self, u32 cpu=0):
        """Go on as a reader, no writer in between. RuntimeError when no writer holds it."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        self._check_writer("downgrade_write")
        with nogil:
            downgrade_write(c, &self.sem)

    def _check_writer(self, what):
        if not self.count & RWSEM_WRITER_LOCKED:
            raise RuntimeError(f"{what} of a RwSem that no writer holds")

    @property
    def count(self):
        """The raw word: RWSEM_WRITER_LOCKED, RWSEM_FLAG_*, and RWSEM_READER_BIAS per reader."""
        return READ_ONCE(cpuset_cpu(self.cpus, 0), &self.sem.count)


cdef class SeqLock:
    """include/linux/seqlock.h: readers repeat what a writer disturbed.

    :param cpus: the CpuSet.
    """
    cdef CpuSet cpus
    cdef seqlock_t sl

    def __cinit__(self, CpuSet cpus not None):
        self.cpus = cpus
        seqlock_init(&self.sl)

    def read_begin(self, u32 cpu=0):
        """The sequence to hand to read_retry(); waits while a writer is inside."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef u32 seq
        with nogil:
            seq = read_seqbegin(c, &self.sl)
        return seq

    def read_retry(self, u32 sequence, u32 cpu=0):
        """True when a writer was inside since read_begin()."""
        return bool(read_seqretry(cpuset_cpu(self.cpus, cpu), &self.sl, sequence))

    def write_lock(self, u32 cpu=0):
        """Waits for other writers."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        with nogil:
            write_seqlock(c, &self.sl)

    def write_unlock(self, u32 cpu=0):
        """RuntimeError when no writer is inside."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if not spin_is_locked(c, &self.sl.lock):
            raise RuntimeError("write_unlock of a SeqLock that no writer holds")
        write_sequnlock(c, &self.sl)

    @property
    def sequence(self):
        """The raw count; odd = a writer is inside."""
        return self.sl.seqcount.sequence


cdef class Rcu:
    """include/linux/rcupdate.h: the RCU domain of a CpuSet.

    :param cpus: the CpuSet.
    """
    cdef CpuSet cpus

    def __cinit__(self, CpuSet cpus not None):
        self.cpus = cpus

    def read_lock(self, u32 cpu=0):
        """rcu_read_lock(); nests."""
        rcu_read_lock(cpuset_cpu(self.cpus, cpu))

    def read_unlock(self, u32 cpu=0):
        """rcu_read_unlock(). RuntimeError outside of a section."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if not rcu_read_lock_held(c):
            raise RuntimeError("read_unlock outside of an RCU section")
        rcu_read_unlock(c)

    def synchronize(self, u32 cpu=0):
        """Wait until every section that is open now has ended. RuntimeError inside one of this CPU."""
        cdef Cpu *c = self._outside(cpu)
        with nogil:
            synchronize_rcu(c)

    def call(self, function, u32 cpu=0):
        """Run function() after a grace period: in a later call(), synchronize() or barrier() of some thread.

        An exception of the function goes to sys.unraisablehook.
        """
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef python_callback *cb = new_callback(function)
        with nogil:
            call_rcu(c, &cb.head, run_python_callback)

    def barrier(self, u32 cpu=0):
        """Wait until every function given to call() before has returned. RuntimeError inside a section."""
        cdef Cpu *c = self._outside(cpu)
        with nogil:
            rcu_barrier(c)

    cdef Cpu *_outside(self, u32 cpu) except NULL:
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if rcu_read_lock_held(c):
            raise RuntimeError("waiting for a grace period inside an RCU section")
        return c


cdef class Srcu:
    """include/linux/srcu.h: an SRCU domain of its own on a CpuSet.

    :param cpus: the CpuSet.
    """
    cdef CpuSet cpus
    cdef srcu_struct ssp

    def __cinit__(self, CpuSet cpus not None):
        self.cpus = cpus
        if init_srcu_struct(&self.ssp, cpus.nr_cpus) != 0:
            raise MemoryError()

    def __dealloc__(self):
        cdef Cpu *c
        if self.ssp.sda != NULL:
            c = self.cpus.machine.cpus[0]
            with nogil:
                cleanup_srcu_struct(c, &self.ssp)

    cdef bint _inside(self, u32 cpu, int idx) except -1:
        return self.ssp.sda[cpu].srcu_lock_count[idx] != self.ssp.sda[cpu].srcu_unlock_count[idx]

    def read_lock(self, u32 cpu=0):
        """srcu_read_lock(): the index to hand to read_unlock(); nests."""
        return srcu_read_lock(cpuset_cpu(self.cpus, cpu), &self.ssp)

    def read_unlock(self, int idx, u32 cpu=0):
        """srcu_read_unlock(). RuntimeError when this CPU is in no section of that index."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if idx not in (0, 1) or not self._inside(cpu, idx):
            raise RuntimeError(f"read_unlock({idx}) outside of an SRCU section of CPU {cpu}")
        srcu_read_unlock(c, &self.ssp, idx)

    def synchronize(self, u32 cpu=0):
        """Wait until every section that is open now has ended. RuntimeError inside one of this CPU."""
        cdef Cpu *c = self._outside(cpu)
        with nogil:
            synchronize_srcu(c, &self.ssp)

    def call(self, function, u32 cpu=0):
        """Run function() after a grace period, as Rcu.call()."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef python_callback *cb = new_callback(function)
        with nogil:
            call_srcu(c, &self.ssp, &cb.head, run_python_callback)

    def barrier(self, u32 cpu=0):
        """Wait until every function given to call() before has returned. RuntimeError inside a section."""
        cdef Cpu *c = self._outside(cpu)
        with nogil:
            srcu_barrier(c, &self.ssp)

    cdef Cpu *_outside(self, u32 cpu) except NULL:
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if self._inside(cpu, 0) or self._inside(cpu, 1):
            raise RuntimeError("waiting for a grace period inside an SRCU section")
        return c
