# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking and kernel/rcu called from Python: a few Cpus without memory, and how objects on them call a primitive.

A CpuSet has Cpus with interrupt state and RCU state. On real threads a call goes straight to the primitive, without
the GIL where it may wait. On the check engine the thread that carries a vCPU enters the engine, which runs the
primitive as a step; the objects' words then lie in an arena that looks the same at the beginning of every execution.
"""
cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset, strncpy

import sys
import traceback

from pykmm_ext.kernel.atomic cimport (
    READ_ONCE, WRITE_ONCE, atomic_add, atomic_add_return, cmpxchg, kmm_await, kmm_membarrier_register, smp_load_acquire, smp_mb,
    smp_rmb, smp_store_release, smp_wmb, xchg,
)
from pykmm_ext.kernel.rcu cimport call_rcu, rcu_barrier, rcu_init, rcu_read_lock, rcu_read_unlock, synchronize_rcu
from pykmm_ext.kernel.rwsem cimport (
    down_read, down_read_trylock, down_write, down_write_trylock, downgrade_write, rw_semaphore, up_read, up_write,
)
from pykmm_ext.kernel.seqlock cimport read_seqbegin, read_seqretry, seqlock_t, write_seqlock, write_sequnlock
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_trylock, spin_unlock, spinlock_t
from pykmm_ext.kernel.srcu cimport (
    call_srcu, srcu_barrier, srcu_read_lock, srcu_read_unlock, srcu_struct, synchronize_srcu,
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

cdef enum:
    ERROR_TEXT = 1000


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
    elif code == OP_ADD:
        atomic_add(cpu, word, o.a)
    elif code == OP_ADD_RETURN:
        o.result = atomic_add_return(cpu, word, o.a)
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


cdef int primitive_run(Primitive x, u32 cpu, primitive_op *o, bint waits) except -1:
    if x.generation != x.cpus.generation:
        raise RuntimeError(f"this {type(x).__name__} belongs to an execution that is over: make it in the program")
    return cpuset_run(x.cpus, cpu, o, waits)


cdef u32 cpuset_region() noexcept:
    return ARENA_SETUP if kmm_this_vcpu < 0 else <u32>kmm_this_vcpu


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
    region = cpuset_region()
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
        cb = <python_callback *>arena_alloc(cpus.arena, cpuset_region(), sizeof(python_callback), 8, 0)
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
