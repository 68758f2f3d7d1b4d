# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for the call instruction of a compiled strategy: how Python code calls a kernel function.

The modules beside this one have the functions, under their kernel names, by kernel file: pykernel/locks (kernel/), mmap,
memory, gup (mm/). Each takes the CpuHandle of the callback first, as the C functions take their Cpu, and handles instead of
pointers. A handle belongs to the callback that got it and raises ReferenceError afterwards; it is no protection within the
callback: a VMA that was freed meanwhile is a use after free, as it is in a kernel.

Who runs against whom: a Cpu is driven by one thread, so its handles and its held_locks are; another thread that calls with
them gets a RuntimeError. The GIL is held here except while a function may wait. On the check engine every function runs
through engine_ops.enter(): each access to shared memory is a step there, and a function that waits blocks the vCPU.

A function that would wait for its own caller is refused, as a RuntimeError, where that is certain: on the native engine
nobody else would notice. (The check engine reports it as what it is.)
"""
cimport cython
from cpython.ref cimport Py_DECREF

import sys

from pykmm_ext.kernel cimport rcu, rwsem, seqlock, spinlock, srcu
from pykmm_ext.machine.cpu cimport count_strategy
from pykmm_ext.mm.lockless_walk cimport end_lockless_pgtbl_walk
from pykmm_ext.mm.mm_types cimport page
from pykmm_ext.mm.page_alloc cimport put_page_refs
from pykmm_ext.mm.speculative cimport walk_end

from pykmm_ext.kernel.primitives import Abandoned

cdef extern from *:
    """
    #include <pthread.h>
    #include "kmm/engine.h"
    static inline int kmm_python_enter(Cpu *cpu, void (*fn)(Cpu *, void *), void *arg, u64 where)
    { return cpu->engine->enter(cpu, fn, arg, where); }
    """
    int kmm_python_enter(Cpu *cpu, void (*fn)(Cpu *cpu, void *arg) noexcept nogil, void *arg, u64 where)
    size_t this_thread "(size_t)pthread_self"() nogil

# One call, for perform().
cdef struct kernel_call:
    kernel_function fn
    void *p
    unsigned long a, b
    u64 result


# Context: as the function's own; on the engine a vCPU, with the GIL, which a wait gives up.
cdef void perform(Cpu *cpu, void *arg) noexcept nogil:
    cdef kernel_call *o = <kernel_call *>arg
    o.result = o.fn(cpu, o.p, o.a, o.b)


# ---- lines of Python in traces ----

cdef list lines = None


def trace_lines(list to):
    """From now on every call on a vCPU of the check engine appends (file, line, function) to `to`; None = no more."""
    global lines
    lines = to


# Context: GIL held. The Python line that calls, as 1 + its number.
cdef u64 calling_line() except? 0:
    frame = sys._getframe(0)
    lines.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
    return <u64>len(lines)


# ---- calls ----

cdef int stale() except -1:
    raise ReferenceError("this handle belongs to a callback of the strategy that has returned")


# Context: GIL held; the Cpu's thread, native.
cdef int may_not_sleep(CpuHandle on) except -1:
    words = held_words(on.held, 0)
    raise RuntimeError(f"a function that may sleep was called on CPU {on.cpu.id} with "
                       + (words if words else "IRQs off or a spinlock held"))


# Context: GIL held. Another method of the strategy has raised inside of the call: so does the call.
cdef int raise_inner(Cpu *cpu) except -1:
    cdef object error = <object>cpu.py_exception
    cpu.py_exception = NULL
    Py_DECREF(error)
    raise error


cdef u64 call(CpuHandle on, kernel_function fn, void *p, unsigned long a=0, unsigned long b=0,
              u32 may=RUNS) except? 0xdead1:
    cdef Cpu *cpu = on.cpu
    cdef kernel_call o
    cdef void *had
    cdef int got
    if cpu == NULL:
        stale()
    o.fn = fn
    o.p = p
    o.a = a
    o.b = b
    o.result = 0
    if cpu.engine == NULL:
        if unlikely(on.thread != this_thread()):
            raise RuntimeError(f"a kernel function was called by a thread that does not drive CPU {cpu.id}")
        if may == RUNS:
            perform(cpu, &o)
            return o.result
        if may == SLEEPS and unlikely(cpu.irq_disabled != 0 or holds(on.held, HELD_PTL, NULL)):
            may_not_sleep(on)
        had = cpu.py_exception
        with nogil:
            perform(cpu, &o)
        if unlikely(cpu.py_exception != had) and had == NULL:
            raise_inner(cpu)
        return o.result
    got = kmm_python_enter(cpu, perform, &o, calling_line() if lines is not None else 0)
    if got == -1:
        raise Abandoned
    if got:
        raise RuntimeError(f"a kernel function was called by a thread that does not drive CPU {cpu.id}")
    return o.result


# ---- what is held ----

cdef int room(CpuHandle on) except -1:
    if on.cpu != NULL and on.held.n >= MAX_HELD - 1:    # one more is take_mmap_write()'s
        raise RuntimeError(f"CPU {on.cpu.id} holds more than {MAX_HELD - 2} locks and references")
    return 0


cdef void hold(CpuHandle on, u32 kind, void *lock, long index=0) noexcept:
    cdef held_locks *h = on.held
    h.locks[h.n].kind = kind
    h.locks[h.n].lock = lock
    h.locks[h.n].index = index
    h.n += 1


cdef bint unhold(held_locks *h, u32 kind, void *lock, long index) noexcept nogil:
    cdef u32 i = h.n
    while i:
        i -= 1
        if h.locks[i].kind == kind and h.locks[i].lock == lock and h.locks[i].index == index:
            h.n -= 1
            while i < h.n:
                h.locks[i] = h.locks[i + 1]
                i += 1
            return True
    return False


cdef int give_back(CpuHandle on, u32 kind, void *lock, str what, long index=0) except -1:
    if on.cpu == NULL:
        stale()
    if on.cpu.engine == NULL and on.thread != this_thread():
        raise RuntimeError(f"{what} was called by a thread that does not drive CPU {on.cpu.id}")
    if not unhold(on.held, kind, lock, index):
        raise RuntimeError(f"{what} on CPU {on.cpu.id}, which does not hold it")
    return 0


# `lock` NULL: any of that kind.
cdef bint holds(held_locks *h, u32 kind, void *lock) noexcept nogil:
    cdef u32 i
    for i in range(h.n):
        if h.locks[i].kind == kind and (lock == NULL or h.locks[i].lock == lock):
            return True
    return False


# What is held, in words, by its kind; of those with an mm: "of address space N" follows.
cdef dict WORDS = {
    HELD_MMAP_READ: "mmap_sem for reading", HELD_MMAP_WRITE: "mmap_sem for writing", HELD_RCU: "an RCU read section",
    HELD_SRCU: "an SRCU read section", HELD_MM_SEQ: "mm_seq", HELD_WALK: "a page-table walk",
    HELD_GUP_WALK: "a lockless page-table walk", HELD_PTL: "a page-table lock", HELD_PAGE: "a reference to a page"}


cdef str held_words(held_locks *h, u32 n):
    cdef list words = []
    cdef str word
    cdef u32 i, kind
    for i in range(n, h.n):
        kind = h.locks[i].kind
        word = WORDS[kind]
        if kind in (HELD_MMAP_READ, HELD_MMAP_WRITE, HELD_MM_SEQ, HELD_WALK, HELD_GUP_WALK):
            lock, _, how = word.partition(" for ")
            word = f"{lock} of address space {(<mm_struct *>h.locks[i].lock).id}" + (f" for {how}" if how else "")
        words.append(word)
    return ", ".join(words)


cdef void release_held(Cpu *cpu, held_locks *h, u32 n) noexcept nogil:
    cdef held_lock *x
    cdef mm_struct *mm
    while h.n > n:
        h.n -= 1
        x = &h.locks[h.n]
        mm = <mm_struct *>x.lock
        if x.kind == HELD_MMAP_READ:
            rwsem.up_read(cpu, &mm.mmap_sem)
        elif x.kind == HELD_MMAP_WRITE:
            rwsem.up_write(cpu, &mm.mmap_sem)
        elif x.kind == HELD_MM_SEQ:
            seqlock.write_sequnlock(cpu, &mm.mm_seq)
        elif x.kind == HELD_RCU:
            rcu.rcu_read_unlock(cpu)
        elif x.kind == HELD_WALK:
            walk_end(cpu, mm.arch)
        elif x.kind == HELD_GUP_WALK:
            end_lockless_pgtbl_walk(cpu, mm)
        elif x.kind == HELD_PTL:
            spinlock.spin_unlock(cpu, <spinlock.spinlock_t *>x.lock)
        elif x.kind == HELD_PAGE:
            put_page_refs(cpu, <page *>x.lock, <u32>x.index)
        else:
            srcu.srcu_read_unlock(cpu, <srcu.srcu_struct *>x.lock, <int>x.index)


cdef void take_mmap_write(Cpu *cpu, held_locks *h, mm_struct *mm) noexcept nogil:
    rwsem.down_write(cpu, &mm.mmap_sem)
    h.locks[h.n].kind = HELD_MMAP_WRITE
    h.locks[h.n].lock = mm
    h.locks[h.n].index = 0
    h.n += 1


# ---- handles ----

@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class CpuHandle:
    """The CPU that runs a callback; first argument of every function here. Ends with the callback."""

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def id(self):
        """Number of the CPU."""
        if self.cpu == NULL:
            stale()
        return self.cpu.id

    def __repr__(self):
        return "<CpuHandle, over>" if self.cpu == NULL else f"<CpuHandle {self.cpu.id}>"


# What a handle that Python made by itself belongs to.
cdef CpuHandle OVER = CpuHandle.__new__(CpuHandle)


cdef CpuHandle over_handle():
    return OVER


cdef CpuHandle cpu_handle(Cpu *cpu, held_locks *held, dict counters):
    cdef CpuHandle h = CpuHandle.__new__(CpuHandle)
    h.cpu = cpu
    h.held = held
    h.counters = counters
    h.fallbacks = 0
    h.thread = this_thread()
    return h


def count(CpuHandle cpu not None, str name not None):
    """Add one to a counter of the strategy. KeyError for a name that is not in its ``counters``."""
    if cpu.cpu == NULL:
        stale()
    index = cpu.counters.get(name)
    if index is None:
        raise KeyError(f"no counter {name!r}; the strategy has {', '.join(cpu.counters) or 'none of its own'}")
    count_strategy(cpu.cpu, <u32>index)


@cython.final
@cython.freelist(4)
@cython.no_gc
cdef class MachineRef:
    """The machine, for quiesce(). Ends with the callback."""

    def __cinit__(self):
        self.on = OVER

    def __init__(self):
        raise TypeError("handles are made by pykmm")

    @property
    def nr_cpus(self):
        """How many CPUs it has."""
        if self.on.cpu == NULL:
            stale()
        return self.m.nr_cpus


cdef MachineRef machine_ref(CpuHandle on, machine *m):
    cdef MachineRef h = MachineRef.__new__(MachineRef)
    h.on = on
    h.m = m
    return h
