# SPDX-License-Identifier: GPL-2.0-only
"""Python functions on the vCPUs of the check engine (no kernel file): what pykmm.explore runs.

Every execution begins with a call of the user's program, which makes its objects anew, and ends with its final
checks. In between each vCPU is a thread (kmm/check_thread.h) that calls one Python function. Its primitives are those
of pykmm_ext.kernel.primitives; their words lie in an arena that looks the same at the beginning of every execution.
"""
from cpython.ref cimport PyObject

from pykmm_ext.engine.check cimport (
    CHECK_ASSERTION, CHECK_MAX_VCPUS, CHECK_PYTHON, CHECK_RCU, Program, check_fail, check_program,
)
from pykmm_ext.kernel.cpuset cimport (
    arena_describe, copy_error, cpuset_for_engine, cpuset_reset, cpuset_this_vcpu,
)
from pykmm_ext.machine.cpu cimport Cpu, u32, u64

from pykmm_ext.kernel.cpuset import Abandoned, CpuRef

cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED

cdef enum:
    ERROR_TEXT = 1000

MAX_VCPUS = CHECK_MAX_VCPUS


cdef class PythonProgram(Program):
    """What runs Python functions.

    :param build: called with this object at the beginning of every execution. Sets `functions` and `final`.
    :param nr_vcpus: how many functions it sets, the same every time.
    """
    def __cinit__(self, build, u32 nr_vcpus):
        if not 1 <= nr_vcpus <= CHECK_MAX_VCPUS:
            raise ValueError(f"a program has 1 to {CHECK_MAX_VCPUS} vCPUs, not {nr_vcpus}")
        self.build = build
        self.cpus = cpuset_for_engine(nr_vcpus)
        self.refs = [CpuRef(self.cpus, i) for i in range(nr_vcpus)]
        self.functions = []
        self.final = None
        self.numbers = {}
        self.outcomes = []
        self.lines = []
        self.prog.size = sizeof(check_program)
        self.prog.name = b"explore"
        self.prog.priv = <PyObject *>self
        self.prog.nr_vcpus = nr_vcpus
        self.prog.plain = True
        self.prog.python = CHECK_PYTHON
        self.prog.reset = explore_reset
        self.prog.cpu = explore_cpu
        self.prog.vcpu = explore_vcpu
        self.prog.finish = explore_finish
        self.prog.outcome = explore_outcome
        self.prog.describe = explore_describe

    def dry_run(self):
        """Call the program once without running its functions; return how many it set."""
        start(self)
        return len(self.functions)

    def close(self):
        """Give the objects of the last execution back."""
        self.functions = []
        self.final = None
        cpuset_reset(self.cpus)

    def outcome(self, u32 number):
        """The outcome behind a number of Exploration.outcomes."""
        return self.outcomes[number]

    @property
    def tracing(self):
        """Keep the Python line of every step."""
        return self.cpus.lines is not None

    @tracing.setter
    def tracing(self, bint on):
        self.cpus.lines = self.lines if on else None
        if on:
            self.lines.clear()

    def line(self, u32 number):
        """(file, line, function) behind the only entry of a step's "frames", or None."""
        return self.lines[number - 1] if 0 < number <= <u32>len(self.lines) else None


cdef int start(PythonProgram self) except -1:
    self.functions = []
    self.final = None
    cpuset_reset(self.cpus)
    if self.cpus.lines is not None:
        self.lines.clear()
    self.build(self)
    return 0


# Context: the main context, GIL not held.
cdef int explore_reset(void *priv) noexcept nogil:
    with gil:
        return reset(<PythonProgram>priv)


cdef int reset(PythonProgram self) noexcept:
    try:
        start(self)
        if <u32>len(self.functions) != self.prog.nr_vcpus:
            raise RuntimeError(f"the program started {len(self.functions)} vCPUs, and {self.prog.nr_vcpus} before: it "
                               "has to do the same every time")
    except BaseException as error:
        self.error = error
        return -ECANCELED
    return 0


# Context: any; no GIL needed.
cdef Cpu *explore_cpu(void *priv, u32 id) noexcept nogil:
    return (<PythonProgram>priv).cpus.machine.cpus[id]


# False: buf says what was raised.
cdef bint call(PythonProgram self, u32 id, char *buf) noexcept:
    cpuset_this_vcpu(<int>id)
    try:
        self.functions[id](self.refs[id])
    except Abandoned:
        return True
    except BaseException as error:
        copy_error(buf, ERROR_TEXT, f"Cpu {id}", error)
        return False
    return True


# Context: the vCPU's thread, GIL not held.
cdef void explore_vcpu(void *priv, Cpu *cpu, u32 id) noexcept nogil:
    cdef char text[ERROR_TEXT]
    cdef bint good
    with gil:
        good = call(<PythonProgram>priv, id, text)
    if not good:
        check_fail(cpu, CHECK_ASSERTION, text)


cdef bint finish(PythonProgram self, char *buf) noexcept:
    value = None
    try:
        if self.final is not None:
            value = self.final()
        if value not in self.numbers:
            self.numbers[value] = len(self.outcomes)
            self.outcomes.append(value)
        self.last = self.numbers[value]
    except BaseException as error:
        copy_error(buf, ERROR_TEXT, "at the end", error)
        return False
    return True


# Context: the main context, GIL not held; primitives act at once.
cdef void explore_finish(void *priv) noexcept nogil:
    cdef char text[ERROR_TEXT]
    cdef u32 id
    cdef Cpu *cpu
    cdef bint good
    for id in range((<PythonProgram>priv).prog.nr_vcpus):
        cpu = explore_cpu(priv, id)
        if cpu.rcu_nesting != 0:
            check_fail(cpu, CHECK_RCU, b"a vCPU ended inside of an RCU section")
            return
    cpu = explore_cpu(priv, 0)
    with gil:
        good = finish(<PythonProgram>priv, text)
    if not good:
        check_fail(cpu, CHECK_ASSERTION, text)


# Context: the main context, after explore_finish().
cdef u64 explore_outcome(void *priv) noexcept nogil:
    return (<PythonProgram>priv).last


# Context: any vCPU or the main context.
cdef void explore_describe(void *priv, const void *p, char *buf, size_t n) noexcept nogil:
    arena_describe((<PythonProgram>priv).cpus.arena, p, buf, n)
