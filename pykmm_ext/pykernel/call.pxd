# SPDX-License-Identifier: GPL-2.0-only
# How Python code of a strategy calls the kernel, and what its CPUs hold meanwhile. Not part of the plugin C API.
from pykmm_ext.machine.cpu cimport Cpu, u32, u64, unlikely
from pykmm_ext.mm.mm_types cimport machine, mm_struct

# What one simulated CPU has taken through these functions and not given back. Context of everything: GIL.
cdef struct held_lock:
    u32 kind
    void *lock
    long index              # of an SRCU section; the references of a page
cdef enum:
    MAX_HELD = 32
cdef struct held_locks:
    u32 n
    held_lock locks[MAX_HELD]

cdef enum:
    HELD_MMAP_READ          # lock: the mm_struct, as of HELD_MMAP_WRITE, HELD_MM_SEQ and HELD_GUP_WALK
    HELD_MMAP_WRITE
    HELD_RCU
    HELD_SRCU               # the srcu_struct
    HELD_MM_SEQ
    HELD_WALK               # the mm_struct: walk_begin()
    HELD_GUP_WALK           # begin_lockless_pgtbl_walk()
    HELD_PTL                # the spinlock
    HELD_PAGE               # the page

cdef class CpuHandle:
    cdef Cpu *cpu           # NULL = the callback that it was made for has returned
    cdef held_locks *held   # of the Cpu: outlives the handle
    cdef dict counters      # name: index into Cpu.strategy_count
    cdef u32 fallbacks      # calls of handle_fault_mmap_sem()
    cdef size_t thread      # pthread_self() of who drives the Cpu

# What a handle that Python made by itself belongs to.
cdef CpuHandle over_handle()

cdef class MachineRef:
    cdef CpuHandle on
    cdef machine *m

# A kernel function: what it is about, two numbers; what it returns.
ctypedef u64 (*kernel_function)(Cpu *cpu, void *p, unsigned long a, unsigned long b) noexcept nogil

# What a function may do, for call().
cdef enum:
    RUNS                    # it never waits
    SPINS                   # it may wait for another CPU
    SLEEPS                  # the same, and not with IRQs off or under a spinlock

# Context: GIL held, given up while the function may wait. What fn(cpu, p, a, b) returns. ReferenceError, RuntimeError;
# what another method of the strategy raises that it calls; Abandoned.
cdef u64 call(CpuHandle on, kernel_function fn, void *p, unsigned long a=*, unsigned long b=*, u32 may=*) except? 0xdead1
cdef int stale() except -1

# Context: GIL held. An argument's handle is of this callback, and of this CPU.
cdef inline int same(CpuHandle cpu, CpuHandle on) except -1:
    if cpu.cpu == NULL or on is not cpu:
        if cpu.cpu == NULL or on.cpu == NULL:
            stale()
        raise RuntimeError("the handles belong to different callbacks")
    return 0

# Context: GIL held. The handle of a callback on `cpu`; ends with handle.cpu = NULL.
cdef CpuHandle cpu_handle(Cpu *cpu, held_locks *held, dict counters)
cdef MachineRef machine_ref(CpuHandle on, machine *m)

# ---- what is held ----
# Context of all: GIL held; `held` is of a Cpu that is driven by the caller; noexcept ones: the GIL is not needed.

# Before something is taken: RuntimeError when there is no room to remember it.
cdef int room(CpuHandle on) except -1
# It was taken; there was room.
cdef void hold(CpuHandle on, u32 kind, void *lock, long index=*) noexcept
# False: the Cpu does not hold that.
cdef bint unhold(held_locks *h, u32 kind, void *lock, long index) noexcept nogil
# The same, with RuntimeError instead; `what` names the function that gives it back.
cdef int give_back(CpuHandle on, u32 kind, void *lock, str what, long index=*) except -1
cdef bint holds(held_locks *h, u32 kind, void *lock) noexcept nogil
# What was taken beyond the first `n`, in words; NULL objects are never among them.
cdef str held_words(held_locks *held, u32 n)
# Gives it back, newest first. Context: native.
cdef void release_held(Cpu *cpu, held_locks *held, u32 n) noexcept nogil
# As strategy_ops.mmap_write_lock; the lock is booked in `held`.
cdef void take_mmap_write(Cpu *cpu, held_locks *held, mm_struct *mm) noexcept nogil
