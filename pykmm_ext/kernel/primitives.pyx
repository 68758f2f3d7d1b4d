# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking and kernel/rcu as Python objects: Atomic, Plain, SpinLock, RwSem, SeqLock, Rcu, Srcu.

Each lives on a CpuSet: a few simulated CPUs with interrupt state and RCU state, but no memory. Every
method takes the CPU that executes it, by number or as a CpuRef. A CPU is driven by one thread at a time; that is the
caller's to keep, as everything is that a lock's user owes in the kernel. Releasing what is not held is
noticed and raises RuntimeError; taking a lock twice hangs, as it does there. The GIL is released wherever
a method may wait.

The same objects work on the check engine (pykmm.explore). There the CPU may be left out: it is the one whose function
runs. Every method is a step of the engine; what would hang or misuse a lock is a violation of the execution.
"""
from cpython.ref cimport Py_CLEAR, Py_INCREF, PyObject
from libc.stdlib cimport calloc, free

from pykmm_ext.kernel.atomic cimport kmm_is_equal
from pykmm_ext.kernel.cpuset cimport (
    ARENA_SETUP, CpuSet, NO_CPU, OP_ADD, OP_ADD_RETURN, OP_AWAIT, OP_CALL_RCU, OP_CALL_SRCU, OP_CMPXCHG, OP_DOWNGRADE_WRITE,
    OP_DOWN_READ, OP_DOWN_READ_TRYLOCK, OP_DOWN_WRITE, OP_DOWN_WRITE_TRYLOCK, OP_FAIL_UAF, OP_LOAD_ACQUIRE, OP_PLAIN,
    OP_RCU_BARRIER, OP_RCU_READ_LOCK, OP_RCU_READ_UNLOCK, OP_READ_ONCE, OP_READ_SEQBEGIN, OP_READ_SEQRETRY, OP_SPIN_LOCK,
    OP_SPIN_TRYLOCK, OP_SPIN_UNLOCK, OP_SRCU_BARRIER, OP_SRCU_READ_LOCK, OP_SRCU_READ_UNLOCK, OP_STORE_RELEASE,
    OP_SYNCHRONIZE_RCU, OP_SYNCHRONIZE_SRCU, OP_UP_READ, OP_UP_WRITE, OP_WRITE_ONCE, OP_WRITE_SEQLOCK,
    OP_WRITE_SEQUNLOCK, OP_XCHG, Primitive, arena_alloc, arena_describe, arena_name, cpuset_cpu, cpuset_region,
    new_callback, primitive_init, primitive_op, primitive_run,
)
from pykmm_ext.kernel.rcu cimport rcu_read_lock_held
from pykmm_ext.kernel.rwsem cimport init_rwsem, rw_semaphore
from pykmm_ext.kernel.seqlock cimport seqlock_init, seqlock_t
from pykmm_ext.kernel.spinlock cimport spin_is_locked, spin_lock_init, spinlock_t
from pykmm_ext.kernel.srcu cimport cleanup_srcu_struct, init_srcu_struct, init_srcu_struct_at, srcu_data, srcu_struct
from pykmm_ext.machine.cpu cimport Cpu, u32, u64

from pykmm_ext.kernel.cpuset import Abandoned, CpuRef  # no-cython-lint: offered here too

cdef extern from *:
    ctypedef u32 volatile_u32 "volatile u32"
    ctypedef unsigned long volatile_ulong "volatile unsigned long"

# RwSem.count, as laid out in kernel/rwsem.pyx.
RWSEM_WRITER_LOCKED = 1
RWSEM_FLAG_WAITERS = 2
RWSEM_FLAG_HANDOFF = 4
RWSEM_READER_BIAS = 256

globals()["CpuSet"] = CpuSet    # as Abandoned and CpuRef; an import does not bind the name of a type that is cimported


# What cond_load_acquire() waits for. On the stack of the caller, which waits.
cdef struct wait_condition:
    PyObject *function
    PyObject *error         # owned


# Context: any; takes the GIL. The engine asks about old values too: the function must be pure.
cdef int python_condition(u64 value, u64 arg) noexcept nogil:
    with gil:
        return ask(<wait_condition *>arg, value)


cdef bint ask(wait_condition *cond, u64 value) noexcept:
    try:
        return bool((<object>cond.function)(value))
    except BaseException as error:
        if cond.error == NULL:
            Py_INCREF(error)
            cond.error = <PyObject *>error
        return True  # wakes the caller, which raises it


cdef class Atomic(Primitive):
    """An unsigned 64-bit word that CPUs share (include/linux/atomic.h). Arithmetic wraps.

    :param cpus: the CpuSet.
    :param value: initial value.
    :param name: in reports of the check engine.
    """
    def __cinit__(self, CpuSet cpus not None, unsigned long value=0, name=None):
        primitive_init(self, cpus, 8, name)
        (<unsigned long *>self.p)[0] = value

    def load(self, u32 cpu=NO_CPU):
        """READ_ONCE(): no order."""
        cdef primitive_op o = [OP_READ_ONCE, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result

    def store(self, unsigned long value, u32 cpu=NO_CPU):
        """WRITE_ONCE(): no order."""
        cdef primitive_op o = [OP_WRITE_ONCE, self.p, value, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)

    def load_acquire(self, u32 cpu=NO_CPU):
        """smp_load_acquire()."""
        cdef primitive_op o = [OP_LOAD_ACQUIRE, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result

    def store_release(self, unsigned long value, u32 cpu=NO_CPU):
        """smp_store_release()."""
        cdef primitive_op o = [OP_STORE_RELEASE, self.p, value, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)

    def xchg(self, unsigned long value, u32 cpu=NO_CPU):
        """Store, return the old value; fully ordered."""
        cdef primitive_op o = [OP_XCHG, self.p, value, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result

    def cmpxchg(self, unsigned long old, unsigned long new, u32 cpu=NO_CPU):
        """Store `new` if the value is `old`; return the value found; fully ordered."""
        cdef primitive_op o = [OP_CMPXCHG, self.p, old, new, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result

    def add_return(self, long n, u32 cpu=NO_CPU):
        """Add (n may be negative), return the new value; fully ordered."""
        cdef primitive_op o = [OP_ADD_RETURN, self.p, <u64>n, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result

    def fetch_add(self, long n, u32 cpu=NO_CPU):
        """Add (n may be negative), return the old value; fully ordered."""
        cdef primitive_op o = [OP_ADD_RETURN, self.p, <u64>n, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return <unsigned long>(o.result - <u64>n)

    def add(self, long n, u32 cpu=NO_CPU):
        """atomic_add() (n may be negative): no order, no result. cpu.smp_mb() before or after it is what Linux calls
        smp_mb__before_atomic() and smp_mb__after_atomic()."""
        cdef primitive_op o = [OP_ADD, self.p, <u64>n, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)

    def rcu_dereference(self, u32 cpu=NO_CPU):
        """READ_ONCE() of what says where later loads look. In Linux the loads that depend on it come after it; here
        (simplified) it is smp_load_acquire(): everything does."""
        cdef primitive_op o = [OP_LOAD_ACQUIRE, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result

    def cond_load_acquire(self, condition, u32 cpu=NO_CPU):
        """smp_cond_load_acquire(): wait until condition(value) is true, or the value is `condition`; return the value.

        The function is asked at any time, on any thread, also about values of the past: it may depend on its argument
        alone. What it raises is raised here.
        """
        cdef wait_condition cond = [NULL, NULL]
        cdef primitive_op o = [OP_AWAIT, self.p, 0, 0, 0, kmm_is_equal]
        if callable(condition):
            cond.function = <PyObject *>condition
            o.pred = python_condition
            o.a = <u64><size_t>&cond
        else:
            o.a = <unsigned long>condition
        try:
            primitive_run(self, cpu, &o, True)
            if cond.error != NULL:
                raise <object>cond.error
        finally:
            Py_CLEAR(cond.error)
        return o.result


cdef class Plain(Primitive):
    """A plain variable, for any Python object: it needs protection.

    On the check engine two accesses of different CPUs, at least one of them a store, that no synchronisation orders are
    a data race; an access after kfree() is a use after free. Else a variable like any other.

    :param cpus: the CpuSet.
    :param value: initial value.
    :param name: in reports of the check engine.
    """
    cdef object value
    cdef bint freed

    def __cinit__(self, CpuSet cpus not None, value=None, name=None):
        primitive_init(self, cpus, 8, name)
        self.value = value

    def load(self, u32 cpu=NO_CPU):
        """The value."""
        plain_access(self, cpu, False)
        return self.value

    def store(self, value, u32 cpu=NO_CPU):
        """Set the value."""
        plain_access(self, cpu, True)
        self.value = value

    def kfree(self, u32 cpu=NO_CPU):
        """The variable must not be used from now on."""
        plain_access(self, cpu, 3)
        self.freed = True
        self.value = None


# `write`: as of check_plain(): 0 = a load, 1 = a store, 3 = it is freed.
cdef int plain_access(Plain x, u32 cpu, int write) except -1:
    cdef primitive_op o = [OP_PLAIN, x.p, write, 0, 0, NULL]
    cdef char name[96]
    if x.freed:
        name[0] = 0
        if x.cpus.arena == NULL:
            raise RuntimeError("use of a Plain after its kfree()")
        arena_describe(x.cpus.arena, x.p, name, sizeof(name))
        text = (f"{['load of', 'store to', '', 'kfree() of'][write]} {(<bytes>name).decode('utf-8', 'replace')} "
                "after its kfree()").encode()
        o.code = OP_FAIL_UAF
        o.p = <char *><bytes>text
    return primitive_run(x, cpu, &o, False)


cdef class SpinLock(Primitive):
    """include/linux/spinlock.h.

    :param cpus: the CpuSet.
    :param name: in reports of the check engine.
    """
    def __cinit__(self, CpuSet cpus not None, name=None):
        primitive_init(self, cpus, sizeof(spinlock_t), name)
        spin_lock_init(<spinlock_t *>self.p)

    def lock(self, u32 cpu=NO_CPU):
        """spin_lock(): waits."""
        cdef primitive_op o = [OP_SPIN_LOCK, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, True)

    def trylock(self, u32 cpu=NO_CPU):
        """spin_trylock(): True when taken."""
        cdef primitive_op o = [OP_SPIN_TRYLOCK, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result != 0

    def unlock(self, u32 cpu=NO_CPU):
        """spin_unlock(). RuntimeError when nobody holds it."""
        cdef primitive_op o = [OP_SPIN_UNLOCK, self.p, 0, 0, 0, NULL]
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if c.engine == NULL and not spin_is_locked(c, <spinlock_t *>self.p):
            raise RuntimeError("unlock of a SpinLock that is not locked")
        primitive_run(self, cpu, &o, False)

    @property
    def locked(self):
        """Whether somebody holds it now. On the check engine no step: for assertions."""
        return (<volatile_u32 *>self.p)[0] != 0


cdef class RwSem(Primitive):
    """include/linux/rwsem.h: many readers or one writer, first come first served.

    :param cpus: the CpuSet.
    :param name: in reports of the check engine.
    """
    def __cinit__(self, CpuSet cpus not None, name=None):
        primitive_init(self, cpus, sizeof(rw_semaphore), name)
        init_rwsem(<rw_semaphore *>self.p)

    def down_read(self, u32 cpu=NO_CPU):
        """Take it as a reader; waits for writers that hold it or came before."""
        cdef primitive_op o = [OP_DOWN_READ, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, True)

    def down_read_trylock(self, u32 cpu=NO_CPU):
        """True when taken as a reader without waiting."""
        cdef primitive_op o = [OP_DOWN_READ_TRYLOCK, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result != 0

    def up_read(self, u32 cpu=NO_CPU):
        """RuntimeError when no reader holds it."""
        cdef primitive_op o = [OP_UP_READ, self.p, 0, 0, 0, NULL]
        if cpuset_cpu(self.cpus, cpu).engine == NULL and self.count < RWSEM_READER_BIAS:
            raise RuntimeError("up_read of a RwSem that no reader holds")
        primitive_run(self, cpu, &o, True)

    def down_write(self, u32 cpu=NO_CPU):
        """Take it as the writer; waits."""
        cdef primitive_op o = [OP_DOWN_WRITE, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, True)

    def down_write_trylock(self, u32 cpu=NO_CPU):
        """True when taken as the writer without waiting."""
        cdef primitive_op o = [OP_DOWN_WRITE_TRYLOCK, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result != 0

    def up_write(self, u32 cpu=NO_CPU):
        """RuntimeError when no writer holds it."""
        cdef primitive_op o = [OP_UP_WRITE, self.p, 0, 0, 0, NULL]
        self._check_writer("up_write", cpu)
        primitive_run(self, cpu, &o, True)

    def downgrade_write(self, u32 cpu=NO_CPU):
        """Go on as a reader, no writer in between. RuntimeError when no writer holds it."""
        cdef primitive_op o = [OP_DOWNGRADE_WRITE, self.p, 0, 0, 0, NULL]
        self._check_writer("downgrade_write", cpu)
        primitive_run(self, cpu, &o, True)

    def _check_writer(self, what, u32 cpu=NO_CPU):
        if cpuset_cpu(self.cpus, cpu).engine == NULL and not self.count & RWSEM_WRITER_LOCKED:
            raise RuntimeError(f"{what} of a RwSem that no writer holds")

    @property
    def count(self):
        """The raw word: RWSEM_WRITER_LOCKED, RWSEM_FLAG_*, and RWSEM_READER_BIAS per reader.

        On the check engine no step.
        """
        return (<volatile_ulong *>&(<rw_semaphore *>self.p).count)[0]


cdef class SeqLock(Primitive):
    """include/linux/seqlock.h: readers repeat what a writer disturbed.

    :param cpus: the CpuSet.
    :param name: in reports of the check engine.
    """
    def __cinit__(self, CpuSet cpus not None, name=None):
        # On the engine the count and the lock lie in words of their own, so that either may be read stale.
        primitive_init(self, cpus, sizeof(seqlock_t), name, 4)
        seqlock_init(<seqlock_t *>self.p)

    def read_begin(self, u32 cpu=NO_CPU):
        """The sequence to hand to read_retry(); waits while a writer is inside."""
        cdef primitive_op o = [OP_READ_SEQBEGIN, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, True)
        return o.result

    def read_retry(self, u32 sequence, u32 cpu=NO_CPU):
        """True when a writer was inside since read_begin()."""
        cdef primitive_op o = [OP_READ_SEQRETRY, self.p, sequence, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        return o.result != 0

    def write_lock(self, u32 cpu=NO_CPU):
        """Waits for other writers."""
        cdef primitive_op o = [OP_WRITE_SEQLOCK, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, True)

    def write_unlock(self, u32 cpu=NO_CPU):
        """RuntimeError when no writer is inside."""
        cdef primitive_op o = [OP_WRITE_SEQUNLOCK, self.p, 0, 0, 0, NULL]
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        if c.engine == NULL and not spin_is_locked(c, &(<seqlock_t *>self.p).lock):
            raise RuntimeError("write_unlock of a SeqLock that no writer holds")
        primitive_run(self, cpu, &o, False)

    @property
    def sequence(self):
        """The raw count; odd = a writer is inside. On the check engine no step."""
        return (<volatile_u32 *>&(<seqlock_t *>self.p).seqcount.sequence)[0]


cdef class Rcu(Primitive):
    """include/linux/rcupdate.h: the RCU domain of a CpuSet.

    :param cpus: the CpuSet.
    """
    def __cinit__(self, CpuSet cpus not None):
        self.cpus = cpus
        self.generation = cpus.generation

    def read_lock(self, u32 cpu=NO_CPU):
        """rcu_read_lock(); nests."""
        cdef primitive_op o = [OP_RCU_READ_LOCK, NULL, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)

    def read_unlock(self, u32 cpu=NO_CPU):
        """rcu_read_unlock(). RuntimeError outside of a section."""
        cdef primitive_op o = [OP_RCU_READ_UNLOCK, NULL, 0, 0, 0, NULL]
        if not rcu_read_lock_held(cpuset_cpu(self.cpus, cpu)):
            raise RuntimeError("read_unlock outside of an RCU section")
        primitive_run(self, cpu, &o, False)

    def synchronize(self, u32 cpu=NO_CPU):
        """Wait until every section that is open now has ended. RuntimeError inside one of this CPU."""
        cdef primitive_op o = [OP_SYNCHRONIZE_RCU, NULL, 0, 0, 0, NULL]
        rcu_outside(self, cpu)
        primitive_run(self, cpu, &o, True)

    def call(self, function, u32 cpu=NO_CPU):
        """Run function() after a grace period: in a later call(), synchronize() or barrier() of some thread.

        An exception of the function goes to sys.unraisablehook; on the check engine it is a violation.
        """
        cdef primitive_op o = [OP_CALL_RCU, NULL, 0, 0, 0, NULL]
        cpuset_cpu(self.cpus, cpu)
        o.a = <u64><size_t>new_callback(self.cpus, function)
        primitive_run(self, cpu, &o, True)

    def barrier(self, u32 cpu=NO_CPU):
        """Wait until every function given to call() before has returned. RuntimeError inside a section."""
        cdef primitive_op o = [OP_RCU_BARRIER, NULL, 0, 0, 0, NULL]
        rcu_outside(self, cpu)
        primitive_run(self, cpu, &o, True)


cdef int rcu_outside(Rcu rcu, u32 cpu) except -1:
    if rcu_read_lock_held(cpuset_cpu(rcu.cpus, cpu)):
        raise RuntimeError("waiting for a grace period inside an RCU section")
    return 0


cdef class Srcu(Primitive):
    """include/linux/srcu.h: an SRCU domain of its own on a CpuSet.

    :param cpus: the CpuSet.
    :param name: in reports of the check engine.
    """
    cdef u32 *inside        # per CPU and index: sections that are open; touched by that CPU

    def __cinit__(self, CpuSet cpus not None, name=None):
        cdef void *sda
        cdef size_t size = cpus.nr_cpus * sizeof(srcu_data)
        primitive_init(self, cpus, sizeof(srcu_struct), name)
        self.inside = <u32 *>calloc(2 * cpus.nr_cpus, sizeof(u32))
        if self.inside == NULL:
            raise MemoryError()
        if cpus.arena != NULL:
            sda = arena_alloc(cpus.arena, cpuset_region(), size, 128, 0)
            if init_srcu_struct_at(<srcu_struct *>self.p, cpus.nr_cpus, <srcu_data *>sda) != 0:
                raise MemoryError("too many objects in one execution")
            arena_name(cpus.arena, ARENA_SETUP, sda, size, b"Srcu counts", NULL)
        elif init_srcu_struct(<srcu_struct *>self.p, cpus.nr_cpus) != 0:
            raise MemoryError()

    def __dealloc__(self):
        cdef srcu_struct *ssp = <srcu_struct *>self.p
        cdef Cpu *c
        free(self.inside)
        if self.owned and ssp.sda != NULL:
            c = self.cpus.machine.cpus[0]
            with nogil:
                cleanup_srcu_struct(c, ssp)

    def read_lock(self, u32 cpu=NO_CPU):
        """srcu_read_lock(): the index to hand to read_unlock(); nests."""
        cdef primitive_op o = [OP_SRCU_READ_LOCK, self.p, 0, 0, 0, NULL]
        primitive_run(self, cpu, &o, False)
        self.inside[2 * cpuset_cpu(self.cpus, cpu).id + o.result] += 1
        return o.result

    def read_unlock(self, int idx, u32 cpu=NO_CPU):
        """srcu_read_unlock(). RuntimeError when this CPU is in no section of that index."""
        cdef primitive_op o = [OP_SRCU_READ_UNLOCK, self.p, <u64>idx, 0, 0, NULL]
        cdef u32 id = cpuset_cpu(self.cpus, cpu).id
        if idx not in (0, 1) or not self.inside[2 * id + <u32>idx]:
            raise RuntimeError(f"read_unlock({idx}) outside of an SRCU section of CPU {id}")
        primitive_run(self, cpu, &o, False)
        self.inside[2 * id + <u32>idx] -= 1

    def synchronize(self, u32 cpu=NO_CPU):
        """Wait until every section that is open now has ended. RuntimeError inside one of this CPU."""
        cdef primitive_op o = [OP_SYNCHRONIZE_SRCU, self.p, 0, 0, 0, NULL]
        srcu_outside(self, cpu)
        primitive_run(self, cpu, &o, True)

    def call(self, function, u32 cpu=NO_CPU):
        """Run function() after a grace period, as Rcu.call()."""
        cdef primitive_op o = [OP_CALL_SRCU, self.p, 0, 0, 0, NULL]
        cpuset_cpu(self.cpus, cpu)
        o.a = <u64><size_t>new_callback(self.cpus, function)
        primitive_run(self, cpu, &o, True)

    def barrier(self, u32 cpu=NO_CPU):
        """Wait until every function given to call() before has returned. RuntimeError inside a section."""
        cdef primitive_op o = [OP_SRCU_BARRIER, self.p, 0, 0, 0, NULL]
        srcu_outside(self, cpu)
        primitive_run(self, cpu, &o, True)


cdef int srcu_outside(Srcu x, u32 cpu) except -1:
    cdef u32 id = cpuset_cpu(x.cpus, cpu).id
    if x.inside[2 * id] or x.inside[2 * id + 1]:
        raise RuntimeError("waiting for a grace period inside an SRCU section")
    return 0
