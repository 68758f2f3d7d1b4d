/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The engine hook: what a virtual engine (check, sim) puts under every primitive.
 *
 * Every access to shared state in pykmm goes through a primitive that takes the
 * executing `Cpu *cpu` first. On the native engine `cpu->engine` is NULL and the
 * primitive is the bare C11 atomic behind one predicted branch. On a virtual
 * engine the primitive calls the member below, which *performs* the access (so that
 * it may delay a store, return an older value or switch to another vCPU).
 *
 * Members are only ever appended; `size` is sizeof() as the engine saw it.
 */
#ifndef KMM_ENGINE_H
#define KMM_ENGINE_H

#include "kmm/types.h"

struct Cpu;

enum kmm_order {
	KMM_RELAXED,
	KMM_ACQUIRE,
	KMM_RELEASE,
	KMM_SEQ_CST,
	KMM_POSTED, /* a read-modify-write: relaxed, and nobody looks at what it returns (Linux's atomic_add()) */
};

enum kmm_rmw { KMM_XCHG, KMM_CMPXCHG, KMM_ADD, KMM_AND, KMM_OR };

enum kmm_fence {
	KMM_MB,       /* smp_mb() */
	KMM_RMB,      /* smp_rmb() */
	KMM_WMB,      /* smp_wmb() */
	KMM_MB_LIGHT, /* reader's half of an asymmetric pair: a compiler barrier */
	KMM_MB_HEAVY, /* writer's half: a full barrier on every CPU */
	KMM_LWSYNC,   /* orders everything but a store against a later load (Power's lwsync) */
};

enum kmm_lock_op {
	KMM_SPIN_LOCK, KMM_SPIN_TRYLOCK, KMM_SPIN_UNLOCK,
	KMM_DOWN_READ, KMM_DOWN_READ_TRYLOCK, KMM_UP_READ,
	KMM_DOWN_WRITE, KMM_DOWN_WRITE_TRYLOCK, KMM_UP_WRITE, KMM_DOWNGRADE_WRITE,
};

enum kmm_query {
	KMM_QUERY_PENDING, /* stores of this Cpu's that others cannot see yet */
	KMM_QUERY_STALE,   /* loads may return older values than the newest */
	KMM_QUERY_SEQ,     /* steps that this Cpu has taken */
	KMM_QUERY_LAST,    /* 1 + the number of its newest step in the execution, 0 = none */
	KMM_QUERY_FLUSHED, /* tso: the same, of the newest store of its that became visible */
};

enum kmm_irq_op { KMM_IRQ_DISABLE, KMM_IRQ_ENABLE };

enum kmm_event {
	KMM_EV_ALLOC,     /* obj, size: the object came to life */
	KMM_EV_FREE,      /* obj, size: it must not be touched from now on */
	KMM_EV_TLB_USE,   /* obj = TLB entry: a user access goes through it; size = KMM_ACCESS_* | KMM_TLB_FILLED */
	KMM_EV_COMPUTE,   /* size = nanoseconds of user work */
	KMM_EV_SYSCALL,   /* size = KMM tape operation that starts */
	KMM_EV_SYSRET,    /* size = KMM tape operation that has returned */
	/* For lockdep (kernel/lockdep.pxd). A begin comes before the first access of the section, an end after its last. */
	KMM_EV_SEQ_WRITE_BEGIN, /* obj = seqcount_t, size = subclass | KMM_SEQ_COUNTED */
	KMM_EV_SEQ_WRITE_END,   /* obj = seqcount_t, size = KMM_SEQ_COUNTED or 0 */
	KMM_EV_SEQ_READ,        /* obj = seqcount_t: a reader that waits while a writer is inside */
	KMM_EV_RCU_LOCK,        /* obj = struct rcu_state: the outermost section of this CPU */
	KMM_EV_RCU_UNLOCK,
	KMM_EV_SRCU_LOCK,       /* obj = struct srcu_struct; each nested section on its own */
	KMM_EV_SRCU_UNLOCK,
	KMM_EV_MIGHT_SLEEP,     /* obj = const char *: what may sleep here */
	KMM_EV_RCU_ASSERT,      /* obj = const char *: what needs rcu_read_lock() */
	KMM_EV_SRCU_ASSERT,     /* obj = struct srcu_struct: a section of it must be held */
	KMM_EV_RCU_SYNC,        /* obj = struct rcu_state: waits for a grace period */
	KMM_EV_SRCU_SYNC,       /* obj = struct srcu_struct: the same */
	KMM_EV_IPI_WAIT,        /* obj = const char *: waits for other CPUs' interrupts; IRQs must be on */
	KMM_EV_LOCK_NESTED,     /* obj = lock, size = subclass of this CPU's next acquire of it */
	KMM_EV_IRQS_ON,         /* IRQs have been enabled */
	KMM_EV_IRQ_ENTER,       /* from the engine: an IPI handler begins on this CPU */
	KMM_EV_IRQ_EXIT,
	KMM_EV_COPY,            /* obj = a frame's contents, size = address of its copy, just made and nobody's yet */
	KMM_EV_GUP,             /* obj = struct page: a lockless walk keeps its reference; size = paddr of its page table */
	KMM_EV_ISOLATE,         /* size = paddr of a page table: from now on nobody may take references to its pages; 0 = over */
};

#define KMM_TLB_FILLED 0x100 /* the translation was not in the TLB before */
#define KMM_SEQ_COUNTED 0x100 /* the sequence counts its writers: sections may overlap and nest */

/* True when the awaited condition holds for the loaded value. */
typedef int (*kmm_pred)(u64 value, u64 arg);

/* A cross-CPU call, as smp_call_function_many(): runs on the target in place of an interrupt handler. */
typedef void (*kmm_ipi_func)(struct Cpu *target, void *info);

struct engine_ops {
	size_t size;
	u64 (*load)(struct Cpu *cpu, const volatile void *p, unsigned width, enum kmm_order order);
	void (*store)(struct Cpu *cpu, volatile void *p, unsigned width, u64 v, enum kmm_order order);
	/* Returns the old value. For KMM_CMPXCHG: a = expected, b = new. */
	u64 (*rmw)(struct Cpu *cpu, volatile void *p, unsigned width, enum kmm_rmw op, u64 a, u64 b,
		   enum kmm_order order);
	void (*fence)(struct Cpu *cpu, enum kmm_fence kind);
	/* Block the vCPU until pred(load(p), arg); returns the value that satisfied it. */
	u64 (*await)(struct Cpu *cpu, const volatile void *p, unsigned width, kmm_pred pred, u64 arg);
	/* Whole locks: a virtual engine may treat them as blocking primitives. 1 = done or got it, 0 = a trylock
	 * that failed, -1 = not treated so: the caller runs the lock's own algorithm. */
	int (*lock)(struct Cpu *cpu, void *lock, enum kmm_lock_op op);
	void (*irq)(struct Cpu *cpu, enum kmm_irq_op op);
	void (*event)(struct Cpu *cpu, enum kmm_event ev, const void *obj, u64 size);
	/* Send an IPI; IRQs are on. ipi_wait() returns when every call of this Cpu's is done. */
	void (*ipi_send)(struct Cpu *cpu, struct Cpu *target, kmm_ipi_func func, void *info);
	void (*ipi_wait)(struct Cpu *cpu);
	/* See kmm/check.h: check_fail(), check_choose(), check_plain(). */
	void (*fail)(struct Cpu *cpu, const char *kind, const char *message);
	u32 (*choose)(struct Cpu *cpu, u32 n);
	void (*plain)(struct Cpu *cpu, const volatile void *p, unsigned width, int write);
	/* A load whose address depends on the value that the load `dep` of this Cpu returned (its number from
	 * `last_load`), for memory models in which that orders them. */
	u64 (*load_dep)(struct Cpu *cpu, const volatile void *p, unsigned width, enum kmm_order order, u32 dep);
	u32 (*last_load)(struct Cpu *cpu);
	/* See check_forget(). */
	void (*forget)(struct Cpu *cpu, const volatile void *p, size_t n);
	/* See check_query(). */
	u32 (*query)(struct Cpu *cpu, int what);
	int (*precedes)(struct Cpu *cpu, u32 seq, u32 last);
	/* Python code on this vCPU enters C: run fn(cpu, arg), so that the engine can end it half-way. `where` names the
	 * Python line in traces. 0 = done; -1 = the execution is over: unwind; -2 = not on the thread of this vCPU. Does
	 * not return to a function that was told to unwind again and again. Context: GIL held. */
	int (*enter)(struct Cpu *cpu, void (*fn)(struct Cpu *cpu, void *arg), void *arg, u64 where);
	/* C code on this vCPU calls Python: old = unwind(cpu, NULL) before, unwind(cpu, old) after it. The latter does
	 * not return when the execution has ended meanwhile. Context: GIL not held. */
	void *(*unwind)(struct Cpu *cpu, void *mark);
};

#endif
