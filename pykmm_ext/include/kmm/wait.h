/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Waiting. Every wait in pykmm goes through kmm_await(): "block until the word at p satisfies
 * pred". A virtual engine blocks the vCPU; native spins a little, then yields the processor
 * or sleeps on a futex.
 *
 * Context: may be called with IRQs on only, unless the caller knows that whoever satisfies the
 * predicate never waits for an IPI to this CPU. Never with the GIL held.
 */
#ifndef KMM_WAIT_H
#define KMM_WAIT_H

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kmm/atomic.h"

#define KMM_SPINS 200

static inline void kmm_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#else
	__asm__ __volatile__("" ::: "memory");
#endif
}

static inline void kmm_spin(unsigned *spins)
{
	if (++*spins < KMM_SPINS)
		kmm_cpu_relax();
	else
		sched_yield();
}

/* For words whose writer does not wake: spin, then sched_yield(). Acquire order. */
static inline u64 kmm_await(Cpu *cpu, const unsigned long *p, kmm_pred pred, u64 arg)
{
	unsigned long v;
	unsigned spins = 0;

	if (unlikely(cpu->engine))
		return cpu->engine->await(cpu, p, sizeof(*p), pred, arg);
	while (v = __atomic_load_n(p, __ATOMIC_ACQUIRE), !pred(v, arg))
		kmm_spin(&spins);
	return v;
}

static inline u64 kmm_await_32(Cpu *cpu, const u32 *p, kmm_pred pred, u64 arg)
{
	u32 v;
	unsigned spins = 0;

	if (unlikely(cpu->engine))
		return cpu->engine->await(cpu, p, sizeof(*p), pred, arg);
	while (v = __atomic_load_n(p, __ATOMIC_ACQUIRE), !pred(v, arg))
		kmm_spin(&spins);
	return v;
}

/* For words whose writer calls kmm_wake_32() afterwards: spin, then sleep on the futex. */
static inline u64 kmm_await_futex(Cpu *cpu, const u32 *p, kmm_pred pred, u64 arg)
{
	u32 v;
	unsigned spins = 0;

	if (unlikely(cpu->engine))
		return cpu->engine->await(cpu, p, sizeof(*p), pred, arg);
	while (v = __atomic_load_n(p, __ATOMIC_ACQUIRE), !pred(v, arg)) {
		if (++spins < KMM_SPINS)
			kmm_cpu_relax();
		else
			syscall(SYS_futex, p, FUTEX_WAIT_PRIVATE, v, NULL, NULL, 0);
	}
	return v;
}

static inline void kmm_wake_32(Cpu *cpu, const u32 *p, int n)
{
	if (unlikely(cpu->engine))
		return; /* the store itself is what a virtual engine's await reacts to */
	syscall(SYS_futex, p, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static inline int kmm_is_zero(u64 v, u64 arg) { (void)arg; return v == 0; }
static inline int kmm_is_nonzero(u64 v, u64 arg) { (void)arg; return v != 0; }
static inline int kmm_is_equal(u64 v, u64 arg) { return v == arg; }
static inline int kmm_is_not_equal(u64 v, u64 arg) { return v != arg; }
static inline int kmm_is_even(u64 v, u64 arg) { (void)arg; return !(v & 1); }

#endif
