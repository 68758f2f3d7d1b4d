/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/spinlock.h: a test-and-set lock. Native: spins, then yields the processor (the
 * holder may be descheduled: there is no preempt_disable() for an OS thread).
 *
 * Context: spin_lock may be called with IRQs off only where no holder ever waits for an IPI.
 * simplified: not queued, so not fair; Linux uses qspinlock.
 */
#ifndef KMM_SPINLOCK_H
#define KMM_SPINLOCK_H

#include "kmm/atomic.h"
#include "kmm/wait.h"

typedef struct { u32 slock; } spinlock_t; /* 0 = free, 1 = held */

static inline void spin_lock_init(spinlock_t *lock) { lock->slock = 0; }

static inline bool spin_trylock(Cpu *cpu, spinlock_t *lock)
{
	u32 free = 0;

	if (unlikely(cpu->engine)) {
		int got = cpu->engine->lock(cpu, lock, KMM_SPIN_TRYLOCK);
		return got >= 0 ? got : kmm_cmpxchg_32(cpu, &lock->slock, 0, 1) == 0;
	}
	return __atomic_compare_exchange_n(&lock->slock, &free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static inline void spin_lock(Cpu *cpu, spinlock_t *lock)
{
	if (unlikely(cpu->engine) && cpu->engine->lock(cpu, lock, KMM_SPIN_LOCK) >= 0)
		return;
	while (unlikely(!spin_trylock(cpu, lock)))
		kmm_await_32(cpu, &lock->slock, kmm_is_zero, 0);
}

/* As spin_lock(); `subclass` tells lockdep that the caller holds another lock of the class, on purpose. */
static inline void spin_lock_nested(Cpu *cpu, spinlock_t *lock, int subclass)
{
	if (unlikely(cpu->engine))
		kmm_event(cpu, KMM_EV_LOCK_NESTED, lock, (u64)subclass);
	spin_lock(cpu, lock);
}

static inline void spin_unlock(Cpu *cpu, spinlock_t *lock)
{
	if (unlikely(cpu->engine)) {
		if (cpu->engine->lock(cpu, lock, KMM_SPIN_UNLOCK) < 0)
			kmm_store_release_32(cpu, &lock->slock, 0);
		return;
	}
	__atomic_store_n(&lock->slock, 0, __ATOMIC_RELEASE); /* pairs with spin_trylock */
}

static inline bool spin_is_locked(Cpu *cpu, spinlock_t *lock)
{
	return kmm_read_once_32(cpu, &lock->slock) != 0;
}

#endif
