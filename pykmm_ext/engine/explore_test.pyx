# SPDX-License-Identifier: GPL-2.0-only
"""Compiled code on the check engine that calls Python: what a machine with a strategy written in Python does.

The vCPU is C, holds no GIL, and takes spinlock A; then it calls Python as an adapter has to (engine_ops.unwind()
around it); the Python code enters primitives (engine_ops.enter()); then C goes on.
"""
from cpython.ref cimport PyObject
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from pykmm_ext.engine.check cimport Program, check_program
from pykmm_ext.kernel.atomic cimport READ_ONCE, WRITE_ONCE
from pykmm_ext.machine.cpu cimport Cpu, u32, u64

from pykmm_ext.kernel.cpuset import Abandoned

cdef extern from *:
    """
    #include "kmm/check.h"
    static void *test_unwind(Cpu *cpu, void *mark) { return cpu->engine->unwind(cpu, mark); }
    static int test_enter(Cpu *cpu, void (*fn)(Cpu *, void *), void *arg)
    { return cpu->engine->enter(cpu, fn, arg, 0); }
    """
    void *test_unwind(Cpu *cpu, void *mark) nogil
    int test_enter(Cpu *cpu, void (*fn)(Cpu *, void *) noexcept nogil, void *arg)

cdef extern from "kmm/spinlock.h" nogil:
    ctypedef struct spinlock_t:
        u32 slock
    void spin_lock(Cpu *cpu, spinlock_t *lock)
    void spin_unlock(Cpu *cpu, spinlock_t *lock)


cdef struct adapter_state:
    Cpu cpus[2]
    unsigned long word
    u32 pad
    spinlock_t locks[4]     # one a word: 0 and 2 are used


cdef class PythonInTheMiddle(Program):
    """Two vCPUs, each: lock its first, call function(self, id), unlock.

    :param function: may call inner().
    """
    cdef adapter_state *state
    cdef object function
    cdef readonly list log

    def __cinit__(self, function):
        self.state = <adapter_state *>calloc(1, sizeof(adapter_state))
        if self.state == NULL:
            raise MemoryError()
        self.function = function
        self.log = []
        self.prog.size = sizeof(check_program)
        self.prog.name = b"python in the middle"
        self.prog.priv = <PyObject *>self
        self.prog.nr_vcpus = 2
        self.prog.python = True
        self.prog.reset = test_reset
        self.prog.cpu = test_cpu
        self.prog.vcpu = test_vcpu
        self.prog.outcome = test_outcome

    def __dealloc__(self):
        free(self.state)

    def inner(self, u32 id, u32 lock):
        """From the Python code of vCPU `id`: take lock 0 or 2 and give it back."""
        if test_enter(&self.state.cpus[id], take, &self.state.locks[lock]) != 0:
            self.log.append("abandoned")
            raise Abandoned


# Context: vCPU, GIL held or not.
cdef void take(Cpu *cpu, void *arg) noexcept nogil:
    spin_lock(cpu, <spinlock_t *>arg)
    spin_unlock(cpu, <spinlock_t *>arg)


# Context: the main context.
cdef int test_reset(void *priv) noexcept nogil:
    cdef adapter_state *state = (<PythonInTheMiddle>priv).state
    memset(state, 0, sizeof(adapter_state))
    state.cpus[1].id = 1
    return 0


# Context: any.
cdef Cpu *test_cpu(void *priv, u32 id) noexcept nogil:
    return &(<PythonInTheMiddle>priv).state.cpus[id]


# Context: GIL held. Never raises: what the strategy raised stays with the adapter.
cdef void adapter(PythonInTheMiddle self, u32 id) noexcept:
    try:
        self.function(self, id)
    except Abandoned:
        self.log.append("unwound")


# Context: vCPU, GIL not held.
cdef void test_vcpu(void *priv, Cpu *cpu, u32 id) noexcept nogil:
    cdef adapter_state *state = (<PythonInTheMiddle>priv).state
    cdef void *mark
    spin_lock(cpu, &state.locks[2 * id])
    mark = test_unwind(cpu, NULL)
    with gil:
        adapter(<PythonInTheMiddle>priv, id)
    test_unwind(cpu, mark)
    WRITE_ONCE(cpu, &state.word, READ_ONCE(cpu, &state.word) + 1)
    spin_unlock(cpu, &state.locks[2 * id])


# Context: the main context, after the end.
cdef u64 test_outcome(void *priv) noexcept nogil:
    return (<PythonInTheMiddle>priv).state.word
