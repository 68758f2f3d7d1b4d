/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * struct Cpu: one simulated processor and everything that Linux keeps per CPU.
 *
 * Ownership: a Cpu is driven by one OS thread (native) or one fiber (check, sim) at a
 * time. A field without a note is touched by that owner only. Fields that others touch
 * say so.
 */
#ifndef KMM_CPU_H
#define KMM_CPU_H

#include "kmm/engine.h"
#include "kmm/types.h"

struct mm_struct;
struct vm_area_struct;
struct page;
struct machine;
struct tlb;

/* mm/vmstat.h: what is counted per CPU and summed by Machine.vmstat. */
enum vm_event_item {
	PGFAULT, PGMAJFAULT, PGALLOC, PGFREE, NR_PGTABLE_ALLOC, NR_PGTABLE_FREE,
	TLB_FLUSH_LOCAL, TLB_FLUSH_REMOTE, TLB_FLUSH_RECEIVED, TLB_HIT, TLB_MISS,
	FAULT_ANON_ZERO, FAULT_ANON_WRITE, FAULT_FILE_READ, FAULT_FILE_COW, FAULT_FILE_SHARED,
	FAULT_WP_REUSE, FAULT_WP_COPY, FAULT_SPURIOUS, FAULT_AROUND_PAGES,
	FAULT_SIGSEGV, FAULT_SIGBUS, FAULT_OOM, FAULT_MMAP_SEM,
	VMACACHE_FIND_HITS, VMACACHE_FIND_CALLS,
	IPI_SENT, IPI_HANDLED, NR_FOLL_PIN_ACQUIRED, NR_FOLL_PIN_RELEASED, NR_VM_EVENT_ITEMS
};

#define KMM_NR_RSS 4           /* MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES */
#define KMM_VMACACHE_SIZE 4
#define KMM_PCP_HIGH 1024      /* per-CPU page list: give back above this */
#define KMM_PCP_BATCH 64       /* pages moved to or from the buddy lists at a time */
#define KMM_STRATEGY_COUNTERS 32
#define KMM_SLAB_CACHES 8
#define KMM_SLAB_MAGAZINE 61  /* 512 bytes a magazine */

struct per_cpu_pages {
	u32 count;
	struct page *list;     /* hottest first, doubly linked through page->lru_next and lru_prev */
	struct page *tail;
	const char *fetch;     /* kmm_prefetch_step(): where it goes on, in the frame that is cleared after the next */
	u32 fetch_steps;       /* how many are left */
};

struct slab_magazine {
	u32 count;
	u32 registered;               /* linked into kmem_cache.magazines: 1, or KMM_MAG_REGION */
	long nr_active;               /* allocated minus freed here; written by owner, summed by kmem_cache_active() */
	struct slab_magazine *next;   /* kmem_cache.lock */
	void *objects[KMM_SLAB_MAGAZINE];
};

struct vmacache {
	u64 seqnum;
	struct mm_struct *mm;
	struct vm_area_struct *vmas[KMM_VMACACHE_SIZE];
};

/* One cross-CPU function call. Lives on the sender's stack; `done` is its completion. */
typedef void (*smp_call_func_t)(struct Cpu *target, void *info);
struct call_single_data {
	struct call_single_data *next; /* written by sender before llist_add, read by the handler */
	smp_call_func_t func;
	void *info;
	struct Cpu *target;            /* for the sender */
	u32 done;                      /* written by the handler (release), awaited by the sender */
};

struct rcu_head {
	struct rcu_head *next;
	void (*func)(struct Cpu *cpu, struct rcu_head *head);
};

typedef struct Cpu {
	const struct engine_ops *engine; /* NULL on native: the primitives' one branch */
	void *engine_priv;
	struct machine *machine;
	u32 id;
	u32 light_is_mb;         /* membarrier(2) refused: smp_mb_light() is a full fence */

	/* Interrupts. irq_disabled is written by the owner and read by IPI senders, ipi_pending
	 * the other way round (Dekker pair: irq.h). irq_disabled is a nesting count. */
	u32 irq_disabled ____cacheline_aligned;
	struct tlb *tlb;                 /* entries: owner with IRQs off, or an IPI sender that holds ipi_lock */
	struct mm_struct *active_mm;
	u32 rcu_nesting;
	unsigned long rcu_gp_ctr;        /* written by owner, read by synchronize_rcu: 0 = quiescent */
	unsigned long vma_read;          /* written by owner, read by writers: the VMA that a fault holds without being
					  * counted in it (mm/vma_lock), or 0 */

	struct per_cpu_pages pcp;
	struct vmacache vmacache;
	struct mm_struct *rss_mm;        /* whose rss_stat deltas these are (SPLIT_RSS_COUNTING) */
	long rss_stat[KMM_NR_RSS];
	u32 rss_events;

	/* The fault being handled: what the Python boundary raises. */
	u64 fault_address;
	u32 fault_code;                  /* SEGV_MAPERR / SEGV_ACCERR / BUS_ADRERR, 0 = none */
	void *py_exception;              /* stashed by a Python strategy's adapter; owned reference */
	void *py_state;                  /* what that adapter knows of this Cpu, of the host's heap: freed with the Cpu. Const; its
					  * contents are the owner's */

	struct slab_magazine slab[KMM_SLAB_CACHES];
	u64 vm_event[NR_VM_EVENT_ITEMS];         /* written by owner, summed racily by readers */
	u64 strategy_count[KMM_STRATEGY_COUNTERS];

	u32 ipi_pending ____cacheline_aligned;   /* atomic: calls announced by senders whose handler has not returned */
	u32 ipi_lock;                            /* who runs the handlers: the owner or one sender */
	struct call_single_data *call_single_queue; /* lock-free LIFO: llist_add by senders, xchg by the drainer */
	void (*ipi_slow)(struct Cpu *cpu);       /* drains the queue; set by machine/irq */

	u32 vcpu_preempted;                      /* arch->vcpu_preemption only; atomic: enum kmm_vcpu (irq.h) */

	u32 owner ____cacheline_aligned;         /* Python API: 0 = free, 1 = driven; futex */
	u32 killed;                              /* a watchdog wants what this Cpu does to fail; atomic, read by the owner
						  * between two tries of a fault */
	u64 fault_detail;                        /* KMM_FAULT_RETURN: what was returned */
} Cpu;

static inline void count_vm_event(Cpu *cpu, enum vm_event_item item)
{
	__atomic_store_n(&cpu->vm_event[item], cpu->vm_event[item] + 1, __ATOMIC_RELAXED);
}

static inline void count_vm_events(Cpu *cpu, enum vm_event_item item, u64 n)
{
	__atomic_store_n(&cpu->vm_event[item], cpu->vm_event[item] + n, __ATOMIC_RELAXED);
}

static inline void count_strategy(Cpu *cpu, u32 item)
{
	__atomic_store_n(&cpu->strategy_count[item], cpu->strategy_count[item] + 1, __ATOMIC_RELAXED);
}

/*
 * Primitives that are made of several others (atomic.h, barrier.h) look at cpu->engine once: their body is a function of
 * the engine, which KMM_ON_ENGINE() calls with a constant NULL on native. So each barrier stands in the source once, for
 * every engine.
 */
#define kmm_body static inline __attribute__((always_inline))
#define KMM_ON_ENGINE(cpu, body, ...)                                                                \
	(likely(!(cpu)->engine) ? body(NULL, cpu, __VA_ARGS__) : body((cpu)->engine, cpu, __VA_ARGS__))

#endif
