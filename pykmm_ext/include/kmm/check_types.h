/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The check engine's own structures. Private: included by engine/check.pyx only.
 *
 * Words used here
 *   agent      whoever takes steps: a vCPU, the store buffer of a vCPU (or one word of it), the interrupt
 *              handler of a vCPU, the barriers that smp_mb_heavy() of others makes a vCPU execute. At most 64, so that
 *              sets of agents are one u64.
 *   pending    what an agent does when it is scheduled next; always known, which is what partial-order
 *              reduction needs.
 *   event      a step that was taken; `clk[event]` is its vector clock over agents.
 *   node       the choice that led to the event of the same number: who could run, who was tried.
 *   access     what an event did to one word, in the list of that word, newest first.
 *
 * Context of everything: the engine's one running thread. Nothing here is shared.
 */
#ifndef KMM_CHECK_TYPES_H
#define KMM_CHECK_TYPES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kmm/check.h"
#include "kmm/fiber.h"

#define CHECK_MAX_AGENTS 64
#define CHECK_BUFFER 64          /* stores that wait in one vCPU's buffer */
#define CHECK_STORE_STEPS 1000   /* how long one waits at most */
#define CHECK_CALLS 32           /* IPIs under way to one vCPU */
#define CHECK_HELD 48            /* locks that one vCPU holds */
#define CHECK_VIEW 96            /* written words that may be read stale under `power`; further ones never are */
#define CHECK_LATE 16            /* how often a vCPU is given the same older version of a word */
#define CHECK_FRAMES 12          /* return addresses kept for a step of a traced execution */
#define CHECK_LOADS 64           /* newest loads of a vCPU that another may depend on */
#define CHECK_MESSAGE 1024

enum check_model { MODEL_SC, MODEL_TSO, MODEL_PSO, MODEL_POWER };
enum check_explorer { EXPLORER_DPOR, EXPLORER_DFS, EXPLORER_RANDOM, EXPLORER_PCT, EXPLORER_REPLAY };

/* Kinds of barriers beside enum kmm_fence. */
enum { WEAKEN_RELEASE = 6, WEAKEN_ACQUIRE = 7, WEAKEN_SPINLOCK = 8, WEAKEN_RWSEM = 9, WEAKEN_DEPENDENCY = 10 };

enum agent_kind { AGENT_VCPU, AGENT_FLUSH, AGENT_IRQ, AGENT_MB };

enum pend_op {
	P_NONE, P_LOAD, P_STORE, P_RMW, P_AWAIT, P_LOCK, P_IRQ_OFF, P_IRQ_ON, P_IPI_SEND, P_IPI_WAIT, P_CHOOSE, P_UNLOCK,
	P_FLUSH, P_HANDLER, P_DONE, P_FREE, P_MB_SEND, P_MB_WAIT, P_MB
};

/* How two accesses of one word stand to each other. RW = rwsem. */
enum access_kind {
	A_READ, A_WRITE,            /* memory; spinlocks: failed trylock, and the rest */
	A_RW_LOCKW, A_RW_LOCKR, A_RW_UNLOCKW, A_RW_UNLOCKR, A_RW_TRYR, A_RW_TRYW, /* the last two: failed */
	A_KINDS
};

/* conflicts[mine] bit theirs. Reads commute; so do readers of an rwsem, coming and going. */
static const u8 conflicts[A_KINDS] = {
	[A_READ] = 1 << A_WRITE,
	[A_WRITE] = 1 << A_WRITE | 1 << A_READ,
	[A_RW_LOCKW] = 0xfc,
	[A_RW_LOCKR] = 1 << A_RW_LOCKW | 1 << A_RW_UNLOCKW | 1 << A_RW_TRYW,
	[A_RW_UNLOCKW] = 0xfc,
	[A_RW_UNLOCKR] = 1 << A_RW_LOCKW | 1 << A_RW_UNLOCKW | 1 << A_RW_TRYW,
	[A_RW_TRYR] = 1 << A_RW_LOCKW | 1 << A_RW_UNLOCKW,
	[A_RW_TRYW] = 1 << A_RW_LOCKW | 1 << A_RW_UNLOCKW | 1 << A_RW_LOCKR | 1 << A_RW_UNLOCKR,
};

struct pend {
	u8 op;                      /* enum pend_op */
	u8 width;
	u8 order;                   /* enum kmm_order */
	u8 sub;                     /* enum kmm_rmw, enum kmm_lock_op */
	u32 dep;                    /* load_dep: number of the load that the address comes from, or 0 */
	const volatile void *addr;
	u64 a, b;
	kmm_pred pred;              /* P_AWAIT */
};

/* A stored value that is not visible yet. */
struct buffered {
	volatile void *addr;
	u64 value;
	u64 under;                  /* shown: what memory holds beneath it */
	u32 epoch;                  /* pso, power: stores before an smp_wmb() are of an older one */
	u8 width;
	u8 add;                     /* pso, power: atomic_add(): `value` is added when it becomes visible */
	u8 agent;                   /* whose step makes it visible; 0 = not known yet, see flush_of() */
	s64 after;                  /* the vCPU's last event when it was buffered, or -1 */
	u16 *rel;                   /* power: what its reader has to see as well; [CHECK_VIEW] */
	s32 answered;               /* loads that it answered: chain through check.answers */
	u32 origin;                 /* traced: 1 + its place in check.origins */
	u32 sync;                   /* data races: 1 + the place in check.race_rels of what it publishes; 0 = nothing */
};

/* Where a buffered store was made, for the row in which it becomes visible. */
struct origin { u32 nframes; void *frames[CHECK_FRAMES]; };

struct answer { u32 event; s32 next; u8 mask; };

struct call {
	struct vcpu *sender;
	kmm_ipi_func func;
	void *info;
	u32 event;                  /* the send */
	u32 sync[CHECK_MAX_VCPUS];  /* data races: what the sender published with it */
};

/* A full barrier that smp_mb_heavy() of another vCPU wants here. */
struct mb_call { struct vcpu *sender; u32 event; };

/* power: a full barrier: what its vCPU had to see without those of others. */
struct sync {
	u32 event;
	u8 vcpu;
	u16 *gave;
	/* P_MB: what the vCPU had to see, or handed on, before and after it; and how many steps it had taken */
	u16 *had, *got;
	u32 seq;
};

struct held { void *lock; u8 op; u32 event; };

struct vcpu {
	struct kmm_fiber fiber;
	struct check *c;
	Cpu *cpu;
	u32 id;
	struct pend pend;
	u64 result;
	u16 barriers[11];            /* how many of each kind it came to; check.weaken */
	u32 drain;                  /* the next step needs an empty store buffer (smp_mb) */
	u32 want_sync;              /* power: that step also joins the global view */
	u32 loads;                  /* loads so far: what last_load() returns */
	/* interrupts */
	u32 irq_off;                /* nesting; mirrors cpu->irq_disabled */
	u32 calls_pending;          /* of its own, not done */
	void *ipi_info;             /* P_IPI_SEND: the argument */
	struct call calls[CHECK_CALLS];
	u32 call_first, call_last;  /* FIFO to this vCPU */
	/* smp_mb_heavy(): FIFO of those that others want of this one; its own, not done, and the events that were done for it */
	struct mb_call mbs[CHECK_MAX_VCPUS];
	u32 mb_first, mb_last, mbs_pending;
	u32 mb_done[CHECK_MAX_VCPUS];
	/* the store buffer, oldest first */
	struct buffered buffer[CHECK_BUFFER];
	u32 nbuffered;
	s64 last_store;             /* the vCPU's event before the newest buffered store was made, or -1 */
	u32 firm;                   /* so many of them, the oldest, were followed by smp_mb_light() */
	u32 infirm;                 /* it has stored since smp_mb_light() */
	s64 last_light;             /* the vCPU's event before the newest smp_mb_light() that stores precede, or -1 */
	s64 last_stale;             /* power: its newest load that returned an older value, or -1 */
	u16 *know;                  /* power: as of its newest event: see struct event */
	u32 shown;                  /* they lie in memory: the vCPU's own code runs */
	u32 epoch, epoch_used;      /* pso, power; a store was made in it */
	u32 nwords;                 /* pso, power: so many of its flush agents have a word */
	/* power: versions that this CPU must see at least; those it has read; those it carries; its own */
	u16 *view, *seen, *rel, *flushed, *flushed_epoch;
	u16 *own;                   /* power: versions that it has itself read or made */
	u16 *late;                  /* power: how often the one it has read was an older one by then */
	u32 flush_epoch;
	u16 *load_view[CHECK_LOADS]; /* the view of the version that a load returned, or NULL; a ring */
	/* reports */
	struct held held[CHECK_HELD];
	u32 nheld;
	void *frames[CHECK_FRAMES];
	u32 nframes;
	u64 where;                  /* the line of Python that runs a primitive now (CHECK_PYTHON_INSIDE), 0 = none */
	/* thread carrier */
	u32 baton;                  /* futex: 1 = it may run */
	/* data races: clocks over vCPUs of what synchronisation orders before it */
	u32 sync[CHECK_MAX_VCPUS], sync_rel[CHECK_MAX_VCPUS], sync_acq[CHECK_MAX_VCPUS];
	u32 load_stale, load_sync;  /* power: the newest load was; what the version that it returned published */
	u32 sync_irq[CHECK_MAX_VCPUS]; /* what the handlers of its IPIs published: until it has waited for them */
};

struct agent {
	u8 kind;                    /* enum agent_kind */
	u8 vcpu;
	u16 slot;                   /* pso: which word of the vCPU */
	u32 seq;                    /* events of this execution */
	s64 last;                   /* its last event, or -1 */
	s64 last_firm;              /* of a buffer: that of the newest store which smp_mb_light() followed, or -1 */
	const volatile void *word;  /* pso flush agent */
};

struct access {
	u32 event;
	s32 prev;                   /* older access of this word, or -1 */
	s32 older_write;            /* the newest older one that is A_WRITE, or -1 */
	u8 kind, mask;
	u16 version;                /* power: A_WRITE: its number for the word */
	u32 answer;                 /* 1 + the flush of the store that answered this load from its buffer; 0 = none */
	u64 old, new;
	u16 *view;                  /* power: what a reader of this version has to see */
	u32 sync;                   /* power, data races: what it published, as of struct buffered */
};

struct word {
	u64 key;                    /* address / 8 */
	u32 epoch;                  /* execution in which it is valid */
	s32 head;                   /* newest access, or -1 */
	s32 writer;                 /* newest write, or -1 */
	u16 versions;               /* power */
	s16 view;                   /* power: index into views, or -1 */
	u64 initial;                /* power: value of version 0 */
};

/* The words of one page that were accessed in this execution, for objects that are freed. */
struct touched { u64 key; s32 next; };
struct touched_page {
	u64 page;                   /* address / 4096 */
	u32 epoch;
	s32 head;
};

struct event {
	u8 agent;
	u8 op;
	u8 forced;
	u32 seq;                    /* number within its agent, from 1 */
	s64 prev;                   /* its agent's event before this one, or -1 */
	u64 sign;                   /* python: what the vCPU was about to do */
	u32 dup;                    /* pso, power: epoch of a store that became visible */
	u64 rfco;                   /* power: the word and its version that was read or made */
	u16 *know;                  /* power, where smp_mb_heavy() is used: what a barrier of its vCPU would publish after it */
};

/* What was found out of the agents that are done at a node, or asleep there. */
struct marks {
	u64 storers;                /* their step was followed by a buffered store */
	u64 lights;                 /* by smp_mb_light() with such a store before it */
	u64 syncs;                  /* it is a full barrier, in an order with others that made a difference */
	u64 mbs;                    /* it is a P_MB, or one of its vCPU's, and their order made a difference */
};

struct node {
	u64 enabled, backtrack, done, sleep;
	struct marks marks;
	u8 chosen;
	u8 choice, nchoices;        /* data choices: versions of a load, check_choose() */
	u8 forced;
	u8 preemptions;             /* before this node */
	u8 before, current;         /* the vCPU that ran last, before and after; 0xff = none */
};

/* A step as reports show it. */
struct step {
	u8 agent, op, sub, order, width, stale, choice, pending;
	u32 event;
	s32 reads_from;             /* step, or -1 = initial value */
	u64 addr, old, new, result;
	u64 newest;
	u32 nframes, nheld;
	void *frames[CHECK_FRAMES];
	u64 held[8];
};

struct violation {
	char kind[32];
	char message[CHECK_MESSAGE];
	u32 execution;
	u64 count;                  /* executions that ended with it */
	u16 *schedule;              /* agent | choice << 8, as long as `length` */
	u32 length;
	u64 hash;
};

struct check_carrier;

struct check {
	struct check_program prog;
	enum check_model model;
	enum check_explorer explorer;
	u32 nr_vcpus, nr_agents;
	u32 first_flush, first_mb;  /* agents: vCPUs, interrupts, buffers, barriers of smp_mb_heavy() */
	u64 mb_queue;               /* the word that sends of smp_mb_heavy() are ordered by */
	struct vcpu vcpus[CHECK_MAX_VCPUS];
	struct agent agents[CHECK_MAX_AGENTS];
	jmp_buf main_ctx;
	jmp_buf crash_ctx;          /* the end of the execution, for the signal handler */
	u32 executing;              /* crash_ctx is valid */
	u32 stepping;               /* in the middle of a step: it is finished before the execution ends */
	u32 watchdog_ms;            /* compiled vCPUs: without a step for so long the search ends with -ETIME; 0 = never */
	u32 idle_ticks;             /* of the watchdog, since there was a step */
	u64 seen_steps;             /* at the last tick: steps, and executions */
	u32 stuck_id;               /* with -ETIME: the vCPU; nr_vcpus: the end of the execution */
	void *stuck_pc;
	struct vcpu *cur;           /* NULL = the main context */
	u32 starting;               /* vCPUs run to their first step */
	u32 direct;                 /* setup, handlers, finish: act at once */
	u32 over;                   /* the execution has ended */
	const struct check_carrier *carrier;
	void *carrier_priv;

	/* the execution */
	u32 epoch;                  /* number of executions begun; stamps words */
	u32 nevents, cap;
	struct event *events;
	struct node *nodes;
	u32 *clk;                   /* [cap][nr_agents] */
	struct access *accesses;
	u32 naccesses, access_cap;
	struct touched *touched;    /* one for each word, in the order in which they were met */
	u32 ntouched, touched_cap;
	struct touched_page *pages;
	u32 pages_mask, npages;
	u32 *conflicting;           /* events: scratch space of a P_FREE */
	u32 conflicting_cap;
	struct answer *answers;     /* [cap]: at most one a step */
	u32 nanswers;
	struct word *words;
	u32 words_mask, nwords;
	u32 replay;                 /* nodes[0 .. replay) are given */
	u16 *views;                 /* power: bump space */
	u32 views_used, views_cap;
	u16 global_view[CHECK_VIEW];
	u32 nviews;                 /* words with a view index */
	u16 **more_views;           /* power: of very long executions: blocks of views_cap */
	u32 nmore_views, views_block; /* how many; 1 + the one in use, 0 = views */
	struct sync *view_syncs;    /* power: full barriers, in their order */
	u32 nview_syncs, view_sync_cap;
	u32 heavy;                  /* the program uses smp_mb_heavy() */
	u64 outcome;

	/* the search */
	u32 nfixed;                 /* nodes of the given prefix */
	u32 expand;                 /* nodes below this depth try everybody (parallel splits) */
	u32 cut;                    /* stop executions at this depth, 0 = never */
	u64 rng, rng_run;
	s32 bound;                  /* preemptions, -1 = any */
	u32 max_steps;
	u32 pct_depth;
	u32 pct_len;                /* longest execution so far */
	u32 pct_prio[CHECK_MAX_AGENTS];
	u32 pct_points[16];
	u16 *given;                 /* EXPLORER_REPLAY */
	u32 ngiven;
	u32 given_at;
	u32 diverged;               /* the given schedule could not be followed */
	u32 finished;               /* nothing left to explore */
	u32 on_cut;                 /* check_run() returns 1 after each execution that was cut */
	u64 attempts;               /* random, pct */
	u32 bounded;                /* something was left out because of `bound` */
	u64 executions, blocked, redundant, failed, steps, fallbacks, cuts;
	u32 blocked_run, failed_run, cut_run;

	/* self-test: happens-before graphs */
	u32 want_graphs;
	u64 *graphs;
	u64 ngraphs, graph_cap;

	/* outcomes */
	u64 *outcomes;              /* pairs: value, count */
	u32 noutcomes, outcome_cap;
	u32 *outcome_slots;         /* [4 * outcome_cap]: 1 + place in outcomes, by hash of the value */

	struct violation *violations;
	u32 nviolations, violation_cap;
	char kind[32];
	char message[CHECK_MESSAGE];

	/* traced executions */
	u32 traced;
	struct step *trace;
	u32 ntrace, trace_cap;
	struct origin *origins;     /* of this execution's buffered stores */
	u32 norigins, origin_cap, flushed_origin;
	int err;                    /* -errno of the engine itself */
	u32 weaken;                 /* mutation tests: these barriers are not there; bit = enum kmm_fence, WEAKEN_* */
	u64 weaken_which;           /* of each vCPU's barriers of such a kind only these, counted from 0 */
	u32 races;                  /* plain accesses are looked at */
	struct vcpu *handling;      /* an interrupt handler runs: on this vCPU */
	struct race_sync *syncs;
	u32 syncs_mask, nsyncs;
	struct race_word *race_words;
	u32 race_words_mask, nrace_words;
	struct race_access *race_accesses;
	u32 nrace_accesses, race_access_cap;
	u32 (*race_rels)[CHECK_MAX_VCPUS]; /* clocks that stores publish when they become visible */
	u32 nrace_rels, race_rel_cap;
};

/* What carries vCPUs. */
struct check_carrier {
	/* Begin vCPU v anew and run it until it announces its first step (or returns). From the main context. */
	void (*start)(struct check *c, struct vcpu *v);
	/* From v, or the main context (NULL), to another vCPU, or the main context (NULL). Returns in `from` when somebody
	 * switches back; does not return when `from` is NULL's counterpart of an execution that is over (fibers). */
	void (*resume)(struct check *c, struct vcpu *from, struct vcpu *to);
	/* The execution is over: whoever has not come to its end is dropped. From the main context; NULL = nothing to do. */
	void (*abandon)(struct check *c);
};

#endif
