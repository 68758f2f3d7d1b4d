# SPDX-License-Identifier: GPL-2.0-only
# include/kmm/atomic.h, barrier.h, wait.h: shared-memory accesses, barriers and waits.
# Suffixes: none = unsigned long, _32 = u32, _PTR = pointer (cast the address to void *).
# Context of everything here: any, unless the header says otherwise.
from pykmm_ext.machine.cpu cimport Cpu, kmm_event, kmm_pred, u32, u64

cdef extern from "kmm/atomic.h" nogil:
    unsigned long READ_ONCE "kmm_read_once"(Cpu *cpu, const unsigned long *p)
    u32 READ_ONCE_32 "kmm_read_once_32"(Cpu *cpu, const u32 *p)
    void *READ_ONCE_PTR "kmm_read_once_ptr"(Cpu *cpu, const void *p)
    unsigned long READ_ONCE_DEP "kmm_read_once_dep"(Cpu *cpu, const unsigned long *p, u32 back)
    u32 READ_ONCE_DEP_32 "kmm_read_once_dep_32"(Cpu *cpu, const u32 *p, u32 back)
    void *READ_ONCE_DEP_PTR "kmm_read_once_dep_ptr"(Cpu *cpu, const void *p, u32 back)
    void WRITE_ONCE "kmm_write_once"(Cpu *cpu, unsigned long *p, unsigned long v)
    void WRITE_ONCE_32 "kmm_write_once_32"(Cpu *cpu, u32 *p, u32 v)
    void WRITE_ONCE_PTR "kmm_write_once_ptr"(Cpu *cpu, void *p, const void *v)
    unsigned long smp_load_acquire "kmm_load_acquire"(Cpu *cpu, const unsigned long *p)
    u32 smp_load_acquire_32 "kmm_load_acquire_32"(Cpu *cpu, const u32 *p)
    void *smp_load_acquire_ptr "kmm_load_acquire_ptr"(Cpu *cpu, const void *p)
    void smp_store_release "kmm_store_release"(Cpu *cpu, unsigned long *p, unsigned long v)
    void smp_store_release_32 "kmm_store_release_32"(Cpu *cpu, u32 *p, u32 v)
    void smp_store_release_ptr "kmm_store_release_ptr"(Cpu *cpu, void *p, const void *v)
    unsigned long xchg "kmm_xchg"(Cpu *cpu, unsigned long *p, unsigned long v)
    u32 xchg_32 "kmm_xchg_32"(Cpu *cpu, u32 *p, u32 v)
    void *xchg_ptr "kmm_xchg_ptr"(Cpu *cpu, void *p, const void *v)
    unsigned long cmpxchg "kmm_cmpxchg"(Cpu *cpu, unsigned long *p, unsigned long old, unsigned long v)
    u32 cmpxchg_32 "kmm_cmpxchg_32"(Cpu *cpu, u32 *p, u32 old, u32 v)
    void *cmpxchg_ptr "kmm_cmpxchg_ptr"(Cpu *cpu, void *p, const void *old, const void *v)
    unsigned long atomic_add_return(Cpu *cpu, unsigned long *p, unsigned long n)
    u32 atomic_add_return_32(Cpu *cpu, u32 *p, u32 n)
    void atomic_add(Cpu *cpu, unsigned long *p, unsigned long n)
    void atomic_add_32(Cpu *cpu, u32 *p, u32 n)
    void atomic_inc(Cpu *cpu, unsigned long *p)
    void atomic_inc_32(Cpu *cpu, u32 *p)
    void atomic_dec(Cpu *cpu, unsigned long *p)
    void atomic_dec_32(Cpu *cpu, u32 *p)
    bint atomic_dec_and_test(Cpu *cpu, unsigned long *p)
    bint atomic_dec_and_test_32(Cpu *cpu, u32 *p)
    bint atomic_inc_not_zero(Cpu *cpu, unsigned long *p)
    bint atomic_inc_not_zero_32(Cpu *cpu, u32 *p)
    unsigned long fetch_or "kmm_fetch_or"(Cpu *cpu, unsigned long *p, unsigned long v)
    unsigned long fetch_and "kmm_fetch_and"(Cpu *cpu, unsigned long *p, unsigned long v)
    u32 fetch_or_32 "kmm_fetch_or_32"(Cpu *cpu, u32 *p, u32 v)
    u32 fetch_and_32 "kmm_fetch_and_32"(Cpu *cpu, u32 *p, u32 v)
    u64 kmm_user_load(Cpu *cpu, const void *p, unsigned width)
    void kmm_user_store(Cpu *cpu, void *p, unsigned width, u64 v)
    void kmm_emit "kmm_event"(Cpu *cpu, kmm_event ev, const void *obj, u64 size)

cdef extern from "kmm/barrier.h" nogil:
    void barrier()
    void smp_mb(Cpu *cpu)
    void smp_rmb(Cpu *cpu)
    void smp_wmb(Cpu *cpu)
    void smp_mb_light(Cpu *cpu)
    void smp_mb_heavy(Cpu *cpu)
    bint kmm_membarrier_register()

cdef extern from "kmm/plain.h" nogil:
    unsigned long data_race "kmm_data_race"(const unsigned long *p)
    u32 data_race_32 "kmm_data_race_32"(const u32 *p)

cdef extern from "kmm/wait.h" nogil:
    void kmm_cpu_relax()
    u64 kmm_await(Cpu *cpu, const unsigned long *p, kmm_pred pred, u64 arg)
    u64 kmm_await_32(Cpu *cpu, const u32 *p, kmm_pred pred, u64 arg)
    u64 kmm_await_futex(Cpu *cpu, const u32 *p, kmm_pred pred, u64 arg)
    void kmm_wake_32(Cpu *cpu, const u32 *p, int n)
    int kmm_is_zero(u64 v, u64 arg)
    int kmm_is_nonzero(u64 v, u64 arg)
    int kmm_is_equal(u64 v, u64 arg)
    int kmm_is_not_equal(u64 v, u64 arg)
    int kmm_is_even(u64 v, u64 arg)

cdef extern from "kmm/lockdep.h" nogil:
    void might_sleep(Cpu *cpu, const char *what)
    void rcu_lockdep_assert(Cpu *cpu, const char *what)
    void srcu_lockdep_assert(Cpu *cpu, const void *ssp)
    void ipi_lockdep_wait(Cpu *cpu, const char *what)
    void lock_set_subclass(Cpu *cpu, const void *lock, int subclass)
