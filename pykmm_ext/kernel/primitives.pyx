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
cimport cython
from cpython.ref cimport Py_CLEAR, Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset, strncpy

import sys
import traceback

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, WRITE_ONCE, atomic_add, atomic_add_return, cmpxchg, kmm_await, kmm_is_equal, kmm_membarrier_register,
    smp_load_acquire, smp_mb, smp_rmb, smp_store_release, smp_wmb, xchg,
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
    call_srcu, cleanup_srcu_struct, init_srcu_struct, init_srcu_struct_at, srcu_barrier, srcu_data, srcu_read_lock,
    srcu_read_unlock, srcu_struct, synchronize_srcu,
)
from pykmm_ext.machine.cpu cimport Cpu, rcu_head, u32, u64
from pykmm_ext.machine.irq cimport irq_init_cpu
from pykmm_ext.mm.mm_types cimport machine

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "kmm/arena.h" nogil:
    kmm_arena *arena_create()
    void arena_destroy(kmm_arena *a)
    void arena_reset(kmm_arena *a)
    void *arena_alloc(kmm_arena *a, u32 region, size_t size, size_t align, size_t skew)
    void arena_name(kmm_arena *a, u32 region, const void *p, size_t size, const char *kind, const char *name)

cdef extern from *:
    """
    #include "kmm/check.h"
    static __thread int kmm_this_vcpu = -1; /* the vCPU that this thread carries */
    static inline int kmm_enter(Cpu *cpu, void (*fn)(Cpu *, void *), void *arg, u64 where)
    { return cpu->engine->enter(cpu, fn, arg, where); }
    static inline void *kmm_unwind(Cpu *cpu, void *mark) { return cpu->engine->unwind(cpu, mark); }
    """
    int kmm_this_vcpu
    int kmm_enter(Cpu *cpu, void (*fn)(Cpu *, void *) noexcept nogil, void *arg, u64 where)
    void *kmm_unwind(Cpu *cpu, void *mark) nogil
    const char *CHECK_ASSERTION
    const char *CHECK_UAF
    void check_fail(Cpu *cpu, const char *kind, const char *message) nogil
    u32 check_choose(Cpu *cpu, u32 n) nogil
    void check_plain(Cpu *cpu, const void *p, unsigned width, int write) nogil

cdef extern from *:
    ctypedef u32 volatile_u32 "volatile u32"
    ctypedef unsigned long volatile_ulong "volatile unsigned long"

cdef enum:
    NO_CPU = 0x7fffffff     # an argument that was left out
    ERROR_TEXT = 1000

cdef enum:
    OP_READ_ONCE, OP_WRITE_ONCE, OP_LOAD_ACQUIRE, OP_STORE_RELEASE, OP_XCHG, OP_CMPXCHG, OP_ADD_RETURN, OP_AWAIT
    OP_PLAIN, OP_FAIL_UAF, OP_SPIN_LOCK, OP_SPIN_TRYLOCK, OP_SPIN_UNLOCK, OP_DOWN_READ, OP_DOWN_READ_TRYLOCK, OP_UP_READ
    OP_DOWN_WRITE, OP_DOWN_WRITE_TRYLOCK, OP_UP_WRITE, OP_DOWNGRADE_WRITE, OP_READ_SEQBEGIN, OP_READ_SEQRETRY
    OP_WRITE_SEQLOCK, OP_WRITE_SEQUNLOCK, OP_RCU_READ_LOCK, OP_RCU_READ_UNLOCK, OP_SYNCHRONIZE_RCU, OP_CALL_RCU
    OP_RCU_BARRIER, OP_SRCU_READ_LOCK, OP_SRCU_READ_UNLOCK, OP_SYNCHRONIZE_SRCU, OP_CALL_SRCU, OP_SRCU_BARRIER
    OP_SMP_MB, OP_SMP_RMB, OP_SMP_WMB, OP_CHOOSE, OP_ADD

# RwSem.count, as laid out in kernel/rwsem.pyx.
RWSEM_WRITER_LOCKED = 1
RWSEM_FLAG_WAITERS = 2
RWSEM_FLAG_HANDOFF = 4
RWSEM_READER_BIAS = 256


class Abandoned(BaseException):
    """Raised by a primitive on a vCPU whose execution is over, to end the vCPU's function. Not for catching."""


# Context: as the primitive's own; on the engine, any vCPU, with or without the GIL.
cdef void perform(Cpu *cpu, void *arg) noexcept nogil:
    cdef primitive_op *o = <primitive_op *>arg
    cdef unsigned long *word = <unsigned long *>o.p
    cdef u32 code = o.code
    if code == OP_READ_ONCE:
        o.result = READ_ONCE(cpu, word)
    elif code == OP_WRITE_ONCE:
        WRITE_ONCE(cpu, word, o.a)
    elif code == OP_LOAD_ACQUIRE:
        o.result = smp_load_acquire(cpu, word)
    elif code == OP_STORE_RELEASE:
        smp_store_release(cpu, word, o.a)
    elif code == OP_XCHG:
        o.result = xchg(cpu, word, o.a)
    elif code == OP_CMPXCHG:
        o.result = cmpxchg(cpu, word, o.a, o.b)
    elif code == OP_ADD_RETURN:
        o.result = atomic_add_return(cpu, word, o.a)
    elif code == OP_ADD:
        atomic_add(cpu, word, o.a)
    elif code == OP_AWAIT:
        o.result = kmm_await(cpu, word, o.pred, o.a)
    elif code == OP_PLAIN:
        check_plain(cpu, o.p, 8, <int>o.a)
    elif code == OP_FAIL_UAF:
        check_fail(cpu, CHECK_UAF, <const char *>o.p)
    elif code == OP_SPIN_LOCK:
        spin_lock(cpu, <spinlock_t *>o.p)
    elif code == OP_SPIN_TRYLOCK:
        o.result = spin_trylock(cpu, <spinlock_t *>o.p)
    elif code == OP_SPIN_UNLOCK:
        spin_unlock(cpu, <spinlock_t *>o.p)
    elif code == OP_DOWN_READ:
        down_read(cpu, <rw_semaphore *>o.p)
    elif code == OP_DOWN_READ_TRYLOCK:
        o.result = down_read_trylock(cpu, <rw_semaphore *>o.p)
    elif code == OP_UP_READ:
        up_read(cpu, <rw_semaphore *>o.p)
    elif code == OP_DOWN_WRITE:
        down_write(cpu, <rw_semaphore *>o.p)
    elif code == OP_DOWN_WRITE_TRYLOCK:
        o.result = down_write_trylock(cpu, <rw_semaphore *>o.p)
    elif code == OP_UP_WRITE:
        up_write(cpu, <rw_semaphore *>o.p)
    elif code == OP_DOWNGRADE_WRITE:
        downgrade_write(cpu, <rw_semaphore *>o.p)
    elif code == OP_READ_SEQBEGIN:
        o.result = read_seqbegin(cpu, <seqlock_t *>o.p)
    elif code == OP_READ_SEQRETRY:
        o.result = read_seqretry(cpu, <seqlock_t *>o.p, <u32>o.a)
    elif code == OP_WRITE_SEQLOCK:
        write_seqlock(cpu, <seqlock_t *>o.p)
    elif code == OP_WRITE_SEQUNLOCK:
        write_sequnlock(cpu, <seqlock_t *>o.p)
    elif code == OP_RCU_READ_LOCK:
        rcu_read_lock(cpu)
    elif code == OP_RCU_READ_UNLOCK:
        rcu_read_unlock(cpu)
    elif code == OP_SYNCHRONIZE_RCU:
        synchronize_rcu(cpu)
    elif code == OP_CALL_RCU:
        call_rcu(cpu, <rcu_head *>o.a, run_python_callback)
    elif code == OP_RCU_BARRIER:
        rcu_barrier(cpu)
    elif code == OP_SRCU_READ_LOCK:
        o.result = <u64>srcu_read_lock(cpu, <srcu_struct *>o.p)
    elif code == OP_SRCU_READ_UNLOCK:
        srcu_read_unlock(cpu, <srcu_struct *>o.p, <int>o.a)
    elif code == OP_SYNCHRONIZE_SRCU:
        synchronize_srcu(cpu, <srcu_struct *>o.p)
    elif code == OP_CALL_SRCU:
        call_srcu(cpu, <srcu_struct *>o.p, <rcu_head *>o.a, run_python_callback)
    elif code == OP_SRCU_BARRIER:
        srcu_barrier(cpu, <srcu_struct *>o.p)
    elif code == OP_SMP_MB:
        smp_mb(cpu)
    elif code == OP_SMP_RMB:
        smp_rmb(cpu)
    elif code == OP_SMP_WMB:
        smp_wmb(cpu)
    elif code == OP_CHOOSE:
        o.result = check_choose(cpu, <u32>o.a)


# Context: GIL held. The Python line that calls, as 1 + its number in cpus.lines.
cdef u64 calling_line(CpuSet cpus) except? 0:
    frame = sys._getframe(0)
    cpus.lines.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
    return <u64>len(cpus.lines)


# Context: GIL held; given up while it waits.
cdef int cpuset_run(CpuSet cpus, u32 cpu, primitive_op *o, bint waits) except -1:
    cdef Cpu *c = cpuset_cpu(cpus, cpu)
    cdef int got
    if c.engine == NULL:
        if waits:
            with nogil:
                perform(c, o)
        else:
            perform(c, o)
        return 0
    got = kmm_enter(c, perform, o, calling_line(cpus) if cpus.lines is not None else 0)
    if got == -1:
        raise Abandoned
    if got:
        raise RuntimeError("a primitive of an exploration was used by a thread that is none of its vCPUs")
    return 0


# Context: GIL held; given up while it waits.
cdef int primitive_run(Primitive x, u32 cpu, primitive_op *o, bint waits) except -1:
    if x.generation != x.cpus.generation:
        raise RuntimeError(f"this {type(x).__name__} belongs to an execution that is over: make it in the program")
    return cpuset_run(x.cpus, cpu, o, waits)


# Context: GIL held, in __cinit__. Zeroed memory for the object's words.
cdef int primitive_init(Primitive x, CpuSet cpus, size_t size, name, size_t skew=0) except -1:
    cdef u32 region
    cdef const char *text = NULL
    cdef bytes encoded
    x.cpus = cpus
    x.generation = cpus.generation
    if cpus.arena == NULL:
        x.p = aligned_alloc(64, (size + 63) // 64 * 64)
        if x.p == NULL:
            raise MemoryError()
        x.owned = True
        memset(x.p, 0, size)
        return 0
    region = ARENA_SETUP if kmm_this_vcpu < 0 else <u32>kmm_this_vcpu
    x.p = arena_alloc(cpus.arena, region, size, 8, skew)
    if x.p == NULL:
        raise MemoryError("too many objects in one execution")
    if name is not None:
        encoded = str(name).encode()
        cpus.keep.append(encoded)
        text = encoded
    arena_name(cpus.arena, region, x.p, size, kind_of(type(x)), text)
    return 0


cdef const char *kind_of(cls) except NULL:
    # tp_name of a class lives as long as the class.
    name = KINDS.get(cls)
    if name is None:
        name = KINDS[cls] = cls.__name__.encode()
    return <const char *><bytes>name

cdef dict KINDS = {}


cdef void copy_error(char *buf, size_t n, str where, error):
    """where: ExceptionType: text, then the lines that led to it, without those of pykmm."""
    lines = []
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.endswith((".pyx", "pykmm/checking/explore.py")):
            lines.append(f"  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}")
    what = "".join(traceback.format_exception_only(type(error), error)).strip()
    text = "\n".join([f"{where}: {what}", *lines]).encode("utf-8", "replace")
    strncpy(buf, text, n - 1)
    buf[n - 1] = 0


cdef struct python_callback:
    rcu_head head
    PyObject *function      # owned, but on the check engine, where CpuSet.keep has it


# noexcept: what the function raises is reported as unraisable, with this name.
cdef void run_callback(object function) noexcept:
    function()


# On the check engine. False: buf says what was raised.
cdef bint run_checked(object function, char *buf) noexcept:
    try:
        function()
    except Abandoned:
        return True
    except BaseException as error:
        copy_error(buf, ERROR_TEXT, f"callback {getattr(function, '__qualname__', function)!s}", error)
        return False
    return True


# Context: process, GIL not needed. An exception of the function goes to sys.unraisablehook, or is a violation.
cdef void run_python_callback(Cpu *cpu, rcu_head *head) noexcept nogil:
    cdef python_callback *cb = <python_callback *>head
    cdef char text[ERROR_TEXT]
    cdef void *mark
    cdef bint good
    if cpu.engine != NULL:
        mark = kmm_unwind(cpu, NULL)
        with gil:
            good = run_checked(<object>cb.function, text)
        if not good:
            check_fail(cpu, CHECK_ASSERTION, text)
        kmm_unwind(cpu, mark)
        return
    with gil:
        function = <object>cb.function
        Py_DECREF(function)
        run_callback(function)
    free(cb)


cdef python_callback *new_callback(CpuSet cpus, function) except NULL:
    cdef python_callback *cb
    if not callable(function):
        raise TypeError(f"{function!r} is not callable")
    if cpus.arena != NULL:
        cb = <python_callback *>arena_alloc(cpus.arena, ARENA_SETUP if kmm_this_vcpu < 0 else <u32>kmm_this_vcpu,
                                            sizeof(python_callback), 8, 0)
        if cb == NULL:
            raise MemoryError("too many callbacks in one execution")
        cpus.keep.append(function)
        cb.function = <PyObject *>function
        return cb
    cb = <python_callback *>malloc(sizeof(python_callback))
    if cb == NULL:
        raise MemoryError()
    Py_INCREF(function)
    cb.function = <PyObject *>function
    return cb


cdef class CpuSet:
    """A few CPUs to run primitives on. ``cpus[i]`` is CPU i as a CpuRef.

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
        self.machine.cpus = <Cpu **>calloc(nr_cpus, sizeof(Cpu *))
        if self.machine.cpus == NULL:
            raise MemoryError()
        self.nr_cpus = self.machine.nr_cpus = nr_cpus
        self.machine.cpumask_words = (nr_cpus + 63) // 64
        self.full_fences = full_fences or not kmm_membarrier_register()
        for i in range(self.nr_cpus):
            self.machine.cpus[i] = &self.memory[i]
        init_cpus(self)

    def __dealloc__(self):
        cdef Cpu *cpu = self.memory
        if self.machine != NULL and self.machine.cpus != NULL and self.nr_cpus and self.arena == NULL:
            # Nobody else has a reference: no readers are left.
            with nogil:
                rcu_barrier(cpu)
        if self.machine != NULL:
            free(self.machine.cpus)
        free(self.machine)
        free(self.memory)
        arena_destroy(self.arena)

    def __len__(self):
        return self.nr_cpus

    def __getitem__(self, u32 cpu):
        return CpuRef(self, cpu)


# Context: GIL held; nobody uses the CPUs.
cdef void init_cpus(CpuSet cpus) noexcept:
    cdef u32 i
    memset(cpus.memory, 0, cpus.nr_cpus * sizeof(Cpu))
    for i in range(cpus.nr_cpus):
        cpus.memory[i].id = i
        cpus.memory[i].machine = cpus.machine
        cpus.memory[i].light_is_mb = cpus.full_fences
        irq_init_cpu(&cpus.memory[i])
    rcu_init(cpus.machine)


cdef CpuSet cpuset_for_engine(u32 nr_cpus):
    cdef CpuSet cpus = CpuSet(nr_cpus)
    cpus.arena = arena_create()
    if cpus.arena == NULL:
        raise MemoryError()
    cpus.keep = []
    return cpus


cdef void cpuset_reset(CpuSet cpus):
    cpus.generation += 1
    init_cpus(cpus)
    arena_reset(cpus.arena)
    cpus.keep.clear()


cdef void cpuset_this_vcpu(int id) noexcept:
    global kmm_this_vcpu
    kmm_this_vcpu = id


cdef Cpu *cpuset_cpu(CpuSet cpus, u32 cpu) except NULL:
    if cpu == NO_CPU:
        cpu = 0 if cpus.arena == NULL or kmm_this_vcpu < 0 else <u32>kmm_this_vcpu
    if cpu >= cpus.nr_cpus:
        raise IndexError(f"no CPU {cpu}: there are {cpus.nr_cpus}")
    if cpus.arena != NULL and kmm_this_vcpu >= 0 and cpu != <u32>kmm_this_vcpu:
        raise RuntimeError(f"this is the function of CPU {kmm_this_vcpu}, not of CPU {cpu}")
    return cpus.machine.cpus[cpu]


@cython.final
cdef class CpuRef:
    """One CPU of a CpuSet: a number (it may stand wherever a CPU's number may), and what a CPU does by itself.

    :param cpus: the CpuSet.
    :param cpu: its number; IndexError where there is none.
    """
    cdef readonly CpuSet cpus
    cdef readonly u32 id

    def __cinit__(self, CpuSet cpus not None, u32 cpu):
        if cpu >= cpus.nr_cpus:
            raise IndexError(f"no CPU {cpu}: there are {cpus.nr_cpus}")
        self.cpus = cpus
        self.id = cpu

    def __int__(self):
        return self.id

    def __index__(self):
        return self.id

    def __repr__(self):
        return f"<Cpu {self.id}>"

    def smp_mb(self):
        """Full barrier."""
        cdef primitive_op o = [OP_SMP_MB, NULL, 0, 0, 0, NULL]
        cpuset_run(self.cpus, self.id, &o, False)

    def smp_rmb(self):
        """Loads before it come before loads after it."""
        cdef primitive_op o = [OP_SMP_RMB, NULL, 0, 0, 0, NULL]
        cpuset_run(self.cpus, self.id, &o, False)

    def smp_wmb(self):
        """Stores before it come before stores after it."""
        cdef primitive_op o = [OP_SMP_WMB, NULL, 0, 0, 0, NULL]
        cpuset_run(self.cpus, self.id, &o, False)

    def choose(self, u32 n):
        """A number from 0 to n - 1, n at most 64: on the check engine each of them is tried; else 0."""
        cdef primitive_op o = [OP_CHOOSE, NULL, n, 0, 0, NULL]
        if not 1 <= n <= 64:
            raise ValueError(f"a choice has 1 to 64 outcomes, not {n}")
        cpuset_run(self.cpus, self.id, &o, False)
        return o.result


cdef class Primitive:
    """What lives on a CpuSet. Not for making."""
    def __dealloc__(self):
        if self.owned:
            free(self.p)


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
            sda = arena_alloc(cpus.arena, ARENA_SETUP if kmm_this_vcpu < 0 else <u32>kmm_this_vcpu, size, 128, 0)
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
