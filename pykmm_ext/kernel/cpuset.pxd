# SPDX-License-Identifier: GPL-2.0-only
# A few Cpus without memory or page tables, and how the Python objects of kernel/primitives call a primitive on them.
from cpython.ref cimport PyObject

from pykmm_ext.machine.cpu cimport Cpu, kmm_pred, rcu_head, u32, u64
from pykmm_ext.mm.mm_types cimport machine

cdef extern from "kmm/arena.h" nogil:
    enum:
        ARENA_SETUP
    cdef struct kmm_arena:
        pass
    void *arena_alloc(kmm_arena *a, u32 region, size_t size, size_t align, size_t skew)
    void arena_name(kmm_arena *a, u32 region, const void *p, size_t size, const char *kind, const char *name)
    void arena_describe(const kmm_arena *a, const void *p, char *buf, size_t n)

cdef enum:
    NO_CPU = 0x7fffffff     # an argument that was left out

# primitive_op.code: the functions of kernel/atomic, spinlock, rwsem, seqlock, rcu and srcu.
cdef enum:
    OP_READ_ONCE, OP_WRITE_ONCE, OP_LOAD_ACQUIRE, OP_STORE_RELEASE, OP_XCHG, OP_CMPXCHG, OP_ADD_RETURN, OP_AWAIT
    OP_PLAIN, OP_FAIL_UAF, OP_SPIN_LOCK, OP_SPIN_TRYLOCK, OP_SPIN_UNLOCK, OP_DOWN_READ, OP_DOWN_READ_TRYLOCK, OP_UP_READ
    OP_DOWN_WRITE, OP_DOWN_WRITE_TRYLOCK, OP_UP_WRITE, OP_DOWNGRADE_WRITE, OP_READ_SEQBEGIN, OP_READ_SEQRETRY
    OP_WRITE_SEQLOCK, OP_WRITE_SEQUNLOCK, OP_RCU_READ_LOCK, OP_RCU_READ_UNLOCK, OP_SYNCHRONIZE_RCU, OP_CALL_RCU
    OP_RCU_BARRIER, OP_SRCU_READ_LOCK, OP_SRCU_READ_UNLOCK, OP_SYNCHRONIZE_SRCU, OP_CALL_SRCU, OP_SRCU_BARRIER
    OP_SMP_MB, OP_SMP_RMB, OP_SMP_WMB, OP_CHOOSE, OP_ADD

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

# A Python function that waits for a grace period.
cdef struct python_callback:
    rcu_head head
    PyObject *function      # owned, but on the check engine, where CpuSet.keep has it

# Context: GIL held, in __cinit__. Zeroed memory for the object's words.
cdef int primitive_init(Primitive x, CpuSet cpus, size_t size, name, size_t skew=*) except -1
# Context: GIL held; given up while it waits. RuntimeError for an object of an older execution.
cdef int primitive_run(Primitive x, u32 cpu, primitive_op *o, bint waits) except -1
# Context: GIL held. For OP_CALL_RCU and OP_CALL_SRCU, which own it from then on.
cdef python_callback *new_callback(CpuSet cpus, function) except NULL
# Context: GIL held. The Cpu with that number; raises IndexError, and RuntimeError for the Cpu of somebody else.
cdef Cpu *cpuset_cpu(CpuSet cpus, u32 cpu) except NULL
# Context: GIL held. Where the calling thread allocates in the arena.
cdef u32 cpuset_region() noexcept
# Context: GIL held. The calling thread carries vCPU `id` of an exploration from now on; -1 = none.
cdef void cpuset_this_vcpu(int id) noexcept
# Context: GIL held. A set whose words stand still: for the check engine.
cdef CpuSet cpuset_for_engine(u32 nr_cpus)
# Context: GIL held, no vCPU runs. Everything as new; objects made before must not be used any more.
cdef void cpuset_reset(CpuSet cpus)
# Context: GIL held. Text of an exception for a report, cut to n bytes.
cdef void copy_error(char *buf, size_t n, str where, error)
