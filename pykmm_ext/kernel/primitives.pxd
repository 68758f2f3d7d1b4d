# SPDX-License-Identifier: GPL-2.0-only
# The kernel primitives as Python objects, on a small set of Cpus without memory or page tables.
from pykmm_ext.machine.cpu cimport Cpu, kmm_pred, u32, u64
from pykmm_ext.mm.mm_types cimport machine

cdef extern from "kmm/arena.h" nogil:
    enum:
        ARENA_SETUP
    cdef struct kmm_arena:
        pass
    void arena_describe(const kmm_arena *a, const void *p, char *buf, size_t n)

cdef class CpuSet:
    cdef machine *machine
    cdef Cpu *memory
    cdef readonly u32 nr_cpus
    cdef readonly bint full_fences
    # On the check engine only. Everything here: GIL.
    cdef kmm_arena *arena       # where objects keep their words; NULL = in memory of their own
    cdef u32 generation         # of executions; objects of older ones must not be used
    cdef list keep              # Python objects that C memory of this execution refers to
    cdef list lines             # replays: the Python lines of steps, or None

# What all objects on a CpuSet have in common.
cdef class Primitive:
    cdef readonly CpuSet cpus
    cdef void *p                # the words
    cdef u32 generation
    cdef bint owned             # p is to be freed

# One call of a primitive, for primitive_run().
cdef struct primitive_op:
    u32 code
    void *p
    u64 a, b
    u64 result
    kmm_pred pred

# Context: GIL held. The Cpu with that number; raises IndexError, and RuntimeError for the Cpu of somebody else.
cdef Cpu *cpuset_cpu(CpuSet cpus, u32 cpu) except NULL
# Context: GIL held. The calling thread carries vCPU `id` of an exploration from now on; -1 = none.
cdef void cpuset_this_vcpu(int id) noexcept
# Context: GIL held. A set whose words stand still: for the check engine.
cdef CpuSet cpuset_for_engine(u32 nr_cpus)
# Context: GIL held, no vCPU runs. Everything as new; objects made before must not be used any more.
cdef void cpuset_reset(CpuSet cpus)
# Context: GIL held. Text of an exception for a report, cut to n bytes.
cdef void copy_error(char *buf, size_t n, str where, error)
