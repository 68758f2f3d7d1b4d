/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The check engine as its programs see it.
 *
 * A *program* is what is explored: an initial state, and one function per vCPU. The engine runs it again
 * and again (an *execution*): reset(), the vCPUs under one schedule, finish(). Programs talk to the
 * engine through the primitives of kmm/atomic.h and so on, whose Cpu has `engine` set, and through the
 * functions at the end of this file, which find the engine in the Cpu.
 *
 * Context: everything runs on one OS thread (fibers) or, where vCPUs carry Python code, on one OS thread at a
 * time (threads that pass a baton); the GIL is not held inside of reset, vcpu and finish.
 */
#ifndef KMM_CHECK_H
#define KMM_CHECK_H

#include "kmm/atomic.h"

#define CHECK_MAX_VCPUS 16

#define CHECK_PYTHON        1
#define CHECK_PYTHON_INSIDE 2
#define CHECK_PYTHON_LINE   (1UL << 63) /* of a step's frames: no address, but what engine_ops.enter() was told */

struct check;

struct check_program {
	size_t size;                /* sizeof(struct check_program) */
	const char *name;
	void *priv;                 /* first argument of everything below */
	u32 nr_vcpus;
	/* These are not treated as blocking primitives: their own algorithm is run (and checked). */
	u32 open_spinlocks;
	u32 open_rwsems;
	u32 plain;                  /* it makes plain accesses (check_plain()): look for data races */
	/* Initial state, the same every time; the addresses too. 0, or -errno: the search ends with OSError. */
	int (*reset)(void *priv);
	/* The Cpu that drives vCPU `id`; const after the first reset(). The engine sets its `engine` fields. */
	Cpu *(*cpu)(void *priv, u32 id);
	/* Context: on the vCPU's stack. May own nothing outside of what reset() takes back. */
	void (*vcpu)(void *priv, Cpu *cpu, u32 id);
	/* All vCPUs have returned and all stores are visible. Primitives act at once and do not schedule. Final checks;
	 * findings through check_fail(). NULL = none. */
	void (*finish)(void *priv);
	/* What this execution ended with, for the set of outcomes. NULL = not asked. Context: as finish. */
	u64 (*outcome)(void *priv);
	/* A visible access is about to happen: NULL, or a message (static) when the memory must not be touched.
	 * NULL = everything may be. */
	const char *(*access)(void *priv, Cpu *cpu, const void *p, unsigned width, int write);
	/* Events of kmm_event(). NULL = ignored. */
	void (*event)(void *priv, Cpu *cpu, enum kmm_event ev, const void *obj, u64 size);
	/* A lock was taken (1), could not be taken (0, trylocks) or was released (2), for lockdep. NULL = ignored. */
	void (*lock)(void *priv, Cpu *cpu, void *lock, enum kmm_lock_op op, int what);
	/* A name for an address, for reports: written to buf. NULL = none. */
	void (*describe)(void *priv, const void *p, char *buf, size_t n);
	/* vcpu() runs Python code: vCPUs are threads that pass a baton. It is called without the GIL; Python code enters
	 * primitives through engine_ops.enter(). Executions that do something else under the same schedule are noticed. */
	u32 python;                 /* CHECK_PYTHON: all of vcpu() is Python; CHECK_PYTHON_INSIDE: C that calls Python */
	/* plain: the memory that vCPUs share, and in it the frames of page tables. Plain accesses that instrumented code
	 * (plain.h) makes there are looked at; a load that returns an address of it orders what depends on that. 0 = none. */
	const void *shared, *frames;
	size_t shared_size, frames_size;
	u32 frame_shift;
};

/* Kinds of violations; the texts are part of the interface (reports, scenarios, JSON). */
#define CHECK_UAF            "use-after-free"
#define CHECK_STALE_TLB      "stale-tlb"
#define CHECK_WRONG_VALUE    "wrong-value"
#define CHECK_DEADLOCK       "deadlock"
#define CHECK_LIVELOCK       "livelock"
#define CHECK_LOCK_ORDER     "lock-order"
#define CHECK_SLEEP          "sleep-in-atomic"
#define CHECK_RCU            "rcu-not-held"
#define CHECK_DATA_RACE      "data-race"
#define CHECK_LEAK           "leak"
#define CHECK_BROKEN         "broken-structure"
#define CHECK_ASSERTION      "assertion"
#define CHECK_LOCK_HELD      "lock-held"
#define CHECK_CRASH          "crash"
#define CHECK_PIN            "pinned-page"
#define CHECK_EXCEPTION      "exception"

/* A finding. Ends the execution: does not return on a vCPU; in finish() it returns and the first one counts.
 * `message` is copied. Context: any vCPU, or finish/reset. */
static inline void check_fail(Cpu *cpu, const char *kind, const char *message)
{
	cpu->engine->fail(cpu, kind, message);
}

/* A value 0 .. n-1 chosen by the engine: every one is explored. n <= 64. On native always 0. */
static inline u32 check_choose(Cpu *cpu, u32 n)
{
	return cpu->engine ? cpu->engine->choose(cpu, n) : 0;
}

/*
 * A plain access, for the data-race detector: performed by the caller itself. Two of them that are not ordered by
 * synchronisation, at least one a write, are a data race; so is one against a marked access. `write` 2: the memory was
 * just allocated; as a store of all of it, or of the frame that p begins. 3: it is freed: a race is a use after free.
 */
static inline void check_plain(Cpu *cpu, const volatile void *p, unsigned width, int write)
{
	if (unlikely(cpu->engine))
		cpu->engine->plain(cpu, p, width, write);
}

/*
 * The memory at p is about to be freed by this Cpu: a step, which conflicts with every access to that memory, so that an
 * access that could come later is tried later. The Cpu's own stores to it that wait in the store buffer are dropped: in
 * life they become visible before whoever gets the memory next can know.
 */
static inline void check_forget(Cpu *cpu, const volatile void *p, size_t n)
{
	cpu->engine->forget(cpu, p, n);
}

/* About the memory model, now. */
static inline u32 check_query(Cpu *cpu, enum kmm_query what)
{
	return cpu->engine->query(cpu, what);
}

/*
 * Does this Cpu's step number `seq` + 1 come before step `last` - 1 of the execution (KMM_QUERY_LAST) in every execution
 * that is equivalent to this one? -1: not known here (the explorer runs all of them).
 */
static inline int check_precedes(Cpu *cpu, u32 seq, u32 last)
{
	return cpu->engine->precedes(cpu, seq, last);
}

#endif
