# SPDX-License-Identifier: GPL-2.0-only
# include/kmm/check.h: what a program of the check engine looks like. A module that brings one subclasses Program
# and fills `prog`; the functions it points to follow the contexts given in the header.
from pykmm_ext.machine.cpu cimport Cpu, kmm_event, u32, u64

cdef extern from "kmm/plain.h" nogil:
    const int KMM_PLAIN_BUILD

cdef extern from "kmm/check.h" nogil:
    enum:
        CHECK_MAX_VCPUS
        CHECK_PYTHON, CHECK_PYTHON_INSIDE
        KMM_QUERY_PENDING, KMM_QUERY_STALE, KMM_QUERY_SEQ, KMM_QUERY_LAST, KMM_QUERY_FLUSHED
        KMM_TLB_FILLED
    cdef enum kmm_lock_op:
        KMM_SPIN_LOCK, KMM_SPIN_TRYLOCK, KMM_SPIN_UNLOCK
        KMM_DOWN_READ, KMM_DOWN_READ_TRYLOCK, KMM_UP_READ
        KMM_DOWN_WRITE, KMM_DOWN_WRITE_TRYLOCK, KMM_UP_WRITE, KMM_DOWNGRADE_WRITE
    const char *CHECK_UAF
    const char *CHECK_STALE_TLB
    const char *CHECK_WRONG_VALUE
    const char *CHECK_DEADLOCK
    const char *CHECK_LIVELOCK
    const char *CHECK_LOCK_ORDER
    const char *CHECK_SLEEP
    const char *CHECK_RCU
    const char *CHECK_DATA_RACE
    const char *CHECK_LEAK
    const char *CHECK_BROKEN
    const char *CHECK_ASSERTION
    const char *CHECK_LOCK_HELD
    const char *CHECK_PIN
    const char *CHECK_CRASH
    const char *CHECK_EXCEPTION
    cdef struct check_program:
        size_t size
        const char *name
        void *priv
        u32 nr_vcpus
        u32 open_spinlocks
        u32 open_rwsems
        u32 plain
        int (*reset)(void *priv) noexcept nogil
        Cpu *(*cpu)(void *priv, u32 id) noexcept nogil
        void (*vcpu)(void *priv, Cpu *cpu, u32 id) noexcept nogil
        void (*finish)(void *priv) noexcept nogil
        u64 (*outcome)(void *priv) noexcept nogil
        const char *(*access)(void *priv, Cpu *cpu, const void *p, unsigned width, int write) noexcept nogil
        void (*event)(void *priv, Cpu *cpu, kmm_event ev, const void *obj, u64 size) noexcept nogil
        void (*lock)(void *priv, Cpu *cpu, void *lock, kmm_lock_op op, int what) noexcept nogil
        void (*describe)(void *priv, const void *p, char *buf, size_t n) noexcept nogil
        u32 python
        const void *shared
        const void *frames
        size_t shared_size, frames_size
        u32 frame_shift
    void check_fail(Cpu *cpu, const char *kind, const char *message)
    u32 check_choose(Cpu *cpu, u32 n)
    void check_forget(Cpu *cpu, const void *p, size_t n)
    u32 check_query(Cpu *cpu, int what)
    int check_precedes(Cpu *cpu, u32 seq, u32 last)
    void check_plain(Cpu *cpu, const void *p, unsigned width, int write)


cdef class Program:
    cdef check_program prog
    # What reset() failed with when it returned -ECANCELED, or an interrupt; raised by the Exploration.
    cdef object error
