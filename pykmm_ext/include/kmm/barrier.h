/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/asm-generic/barrier.h: memory barriers, with the executing Cpu first.
 * On native they are C11 fences; smp_rmb/smp_wmb are acquire/release fences, which on x86
 * compile to nothing and on weaker machines to the light barrier.
 */
#ifndef KMM_BARRIER_H
#define KMM_BARRIER_H

#include <linux/membarrier.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kmm/cpu.h"

#define barrier() __asm__ __volatile__("" ::: "memory")

kmm_body void engine_rmb(const struct engine_ops *engine, Cpu *cpu)
{
	if (unlikely(engine))
		engine->fence(cpu, KMM_RMB);
	else
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
}

kmm_body void engine_wmb(const struct engine_ops *engine, Cpu *cpu)
{
	if (unlikely(engine))
		engine->fence(cpu, KMM_WMB);
	else
		__atomic_thread_fence(__ATOMIC_RELEASE);
}

kmm_body void engine_mb_light(const struct engine_ops *engine, Cpu *cpu)
{
	if (unlikely(engine))
		engine->fence(cpu, KMM_MB_LIGHT);
	else if (unlikely(cpu->light_is_mb))
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
	else
		barrier();
}

static inline void smp_mb(Cpu *cpu)
{
	if (unlikely(cpu->engine))
		cpu->engine->fence(cpu, KMM_MB);
	else
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void smp_rmb(Cpu *cpu) { engine_rmb(cpu->engine, cpu); }

/*
 * Loads through a pointer that was just read come after that read on every CPU that Linux runs on. This says so to the
 * memory models, where no single load can (READ_ONCE_DEP()); nothing on native. simplified: there it is an smp_rmb(), and
 * orders other loads too.
 */
static inline void smp_read_barrier_depends(Cpu *cpu)
{
	if (unlikely(cpu->engine))
		cpu->engine->fence(cpu, KMM_RMB);
}

static inline void smp_wmb(Cpu *cpu) { engine_wmb(cpu->engine, cpu); }

/*
 * An asymmetric pair: smp_mb_light() costs its frequent side nothing but a compiler barrier;
 * smp_mb_heavy() on the rare side makes every thread of the process execute a full barrier
 * (membarrier(2), private expedited). Where the kernel refuses membarrier, cpu->light_is_mb is
 * set when the Machine is built and both halves are full fences.
 */
static inline void smp_mb_light(Cpu *cpu) { engine_mb_light(cpu->engine, cpu); }

/* Registers the process; true where smp_mb_heavy() can be a membarrier(2). */
static inline bool kmm_membarrier_register(void)
{
	return syscall(__NR_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

static inline void smp_mb_heavy(Cpu *cpu)
{
	if (unlikely(cpu->engine)) {
		cpu->engine->fence(cpu, KMM_MB_HEAVY);
		return;
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (unlikely(cpu->light_is_mb))
		return;
	/* A forked child is not registered any more: EPERM, register and try again. */
	while (unlikely(syscall(__NR_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0))
		if (!kmm_membarrier_register())
			abort();
}

#endif
