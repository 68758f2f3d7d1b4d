/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One step of one agent: who may take it, which word it touches, what it does.
 *
 * Ordered read-modify-writes, IPIs and giving rwsems back wait for the own buffer to drain. So does taking a lock under
 * tso, where that is a locked instruction; elsewhere it is an acquire, which leaves earlier stores where they are, unless a
 * barrier stands between them and it.
 *
 * smp_mb_heavy() is membarrier(2): a full barrier, then one that every other vCPU executes between two of its
 * instructions (steps of agents of their own, P_MB), then the end of the wait for them. smp_mb_light() is a compiler's
 * barrier: a store that it follows is made before such a barrier that comes after it. One that it does not follow may
 * be moved behind the barrier by the compiler, so that P_MB does not wait for it.
 *
 * simplified: a read-modify-write whose result is used takes effect before what comes later in its program; under pso and
 * power those that are relaxed or acquire wait only for older stores to their word, or of before a barrier.
 *
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_STEP_H
#define KMM_CHECK_STEP_H

#include "kmm/check_memory.h"

#define RWSEM_WRITER 1UL
#define RWSEM_READER 256UL

static void check_violation(struct check *c, const char *kind, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void race_visible(struct check *c, struct vcpu *v, const struct buffered *b, struct access *x);
static void race_handshake(struct check *c, struct vcpu *a, struct vcpu *b);

/* ---- who may go on ---- */

/* pso, power: a read-modify-write that stores before it in the program may pass. */
static inline bool is_weak_rmw(const struct vcpu *v)
{
	return v->pend.op == P_RMW && v->c->model >= MODEL_PSO
	       && (v->pend.order == KMM_RELAXED || v->pend.order == KMM_ACQUIRE);
}

/* May the lock be taken while stores of before wait in the buffer? */
static bool lock_overtakes(const struct vcpu *v)
{
	u64 value;

	if (v->c->model <= MODEL_TSO || v->pend.sub == KMM_UP_READ || v->pend.sub == KMM_UP_WRITE
	    || v->pend.sub == KMM_DOWNGRADE_WRITE)
		return false;
	return !v->nbuffered || (v->buffer[0].epoch == v->epoch
				 && !buffer_forward(v, v->pend.addr, v->pend.width, &value)); /* the own unlock */
}

static inline bool needs_drained_buffer(const struct vcpu *v)
{
	if (v->drain)
		return true;
	switch (v->pend.op) {
	case P_RMW:
		return !is_weak_rmw(v);
	case P_IPI_SEND: case P_MB_SEND:
		return true;
	case P_LOCK:
		return !lock_overtakes(v);
	default:
		return false;
	}
}

/* But not those to the same word, nor those before a barrier. */
static inline bool weak_rmw_waits(const struct vcpu *v)
{
	for (u32 i = 0; i < v->nbuffered; i++)
		if (v->buffer[i].epoch != v->epoch || (uintptr_t)v->buffer[i].addr >> 3 == (uintptr_t)v->pend.addr >> 3)
			return true;
	return false;
}

static bool lock_free(const struct pend *p)
{
	switch (p->sub) {
	case KMM_SPIN_LOCK: return raw_load(p->addr, 4) == 0;
	case KMM_DOWN_READ: return !(raw_load(p->addr, 8) & RWSEM_WRITER);
	case KMM_DOWN_WRITE: return raw_load(p->addr, 8) == 0;
	default: return true;
	}
}

static bool vcpu_enabled(struct check *c, struct vcpu *v)
{
	u64 value;

	if (v->nbuffered && needs_drained_buffer(v))
		return false;
	switch (v->pend.op) {
	case P_NONE: case P_DONE:
		return false;
	case P_RMW:
		return !v->nbuffered || !weak_rmw_waits(v);
	case P_AWAIT:
		if (v->nbuffered) {
			int own = buffer_forward(v, v->pend.addr, v->pend.width, &value);
			if (own < 0)
				return false;
			if (own)
				return v->pend.pred(value, v->pend.a);
		}
		return v->pend.pred(raw_load(v->pend.addr, v->pend.width), v->pend.a);
	case P_LOCK:
		return lock_free(&v->pend);
	case P_IPI_WAIT:
		return v->calls_pending == 0;
	case P_MB_WAIT:
		return v->mbs_pending == 0;
	default:
		return true;
	}
}

static bool agent_enabled(struct check *c, u32 a)
{
	struct vcpu *v = &c->vcpus[c->agents[a].vcpu];

	switch (c->agents[a].kind) {
	case AGENT_VCPU: return vcpu_enabled(c, v);
	/* The acknowledgement is a store of the target's, behind those that it made before. */
	case AGENT_IRQ: return v->call_first != v->call_last && !v->irq_off && !v->nbuffered;
	case AGENT_MB: return v->mb_first != v->mb_last && !v->firm;
	default: return buffer_head(c, a) >= 0;
	}
}

/* ---- what a step touches ---- */

struct footprint {
	const volatile void *addr;
	u8 kind, mask;
	u8 blocking;
	u8 none;
	size_t size;                /* P_FREE: so many bytes from addr */
};

static struct footprint footprint_of(struct check *c, u32 a)
{
	struct vcpu *v = &c->vcpus[c->agents[a].vcpu];
	const struct pend *p = &v->pend;
	struct footprint f = { .none = 1 };
	u64 old;

	if (c->agents[a].kind == AGENT_IRQ) {
		f = (struct footprint){ &v->cpu->irq_disabled, A_WRITE, byte_mask(&v->cpu->irq_disabled, 4), 1, 0, 0 };
		return f;
	}
	if (c->agents[a].kind == AGENT_FLUSH) {
		s32 at = buffer_head(c, a);
		if (at >= 0)
			f = (struct footprint){ v->buffer[at].addr, A_WRITE, byte_mask(v->buffer[at].addr, v->buffer[at].width), 0, 0, 0 };
		return f;
	}
	if (c->agents[a].kind == AGENT_MB)
		return f; /* see order_mb() */
	f.addr = p->addr;
	f.none = 0;
	if (p->op == P_FREE) {
		f.kind = A_WRITE;
		f.size = p->a;
		return f;
	}
	f.mask = byte_mask(p->addr, p->width);
	switch (p->op) {
	case P_LOAD: case P_AWAIT:
		f.kind = A_READ;
		f.blocking = p->op == P_AWAIT;
		/* Answered by the own buffer: nobody else matters, now. See answer_load(). */
		f.none = v->nbuffered && !v->drain && buffer_forward(v, p->addr, p->width, &old) > 0;
		break;
	case P_STORE: case P_UNLOCK: case P_IRQ_OFF: case P_IRQ_ON: case P_IPI_SEND: case P_MB_SEND:
		f.kind = A_WRITE;
		break;
	case P_RMW:
		old = raw_load(p->addr, p->width);
		f.kind = rmw_value(p->sub, old, p->a, p->b, p->width) == old ? A_READ : A_WRITE;
		break;
	case P_LOCK:
		switch (p->sub) {
		case KMM_SPIN_LOCK: f.kind = A_WRITE; f.blocking = 1; break;
		case KMM_SPIN_TRYLOCK: f.kind = raw_load(p->addr, 4) ? A_READ : A_WRITE; break;
		case KMM_DOWN_READ: f.kind = A_RW_LOCKR; f.blocking = 1; break;
		case KMM_DOWN_READ_TRYLOCK: f.kind = raw_load(p->addr, 8) & RWSEM_WRITER ? A_RW_TRYR : A_RW_LOCKR; break;
		case KMM_DOWN_WRITE: f.kind = A_RW_LOCKW; f.blocking = 1; break;
		case KMM_DOWN_WRITE_TRYLOCK: f.kind = raw_load(p->addr, 8) ? A_RW_TRYW : A_RW_LOCKW; break;
		case KMM_UP_READ: f.kind = A_RW_UNLOCKR; break;
		default: f.kind = A_RW_UNLOCKW; break;
		}
		break;
	default:
		f.none = 1;
	}
	return f;
}

static inline bool footprints_conflict(const struct footprint *f, const struct footprint *g)
{
	if (f->none || g->none)
		return false;
	if (f->size || g->size)
		return (uintptr_t)f->addr < (uintptr_t)g->addr + (g->size ? g->size : 8)
		       && (uintptr_t)g->addr < (uintptr_t)f->addr + (f->size ? f->size : 8);
	return (uintptr_t)f->addr >> 3 == (uintptr_t)g->addr >> 3 && f->mask & g->mask
	       && conflicts[f->kind] >> g->kind & 1;
}

/* ---- locks ---- */

static void held_push(struct check *c, struct vcpu *v, void *lock, u8 op)
{
	if (v->nheld < CHECK_HELD)
		v->held[v->nheld++] = (struct held){ lock, op, c->nevents };
}

/* 0 = the vCPU does not hold it. */
static int held_pop(struct vcpu *v, const volatile void *lock)
{
	for (u32 i = v->nheld; i--;)
		if (v->held[i].lock == lock) {
			memmove(&v->held[i], &v->held[i + 1], (v->nheld - i - 1) * sizeof(v->held[0]));
			v->nheld--;
			return 1;
		}
	return 0;
}

static void describe(struct check *c, const volatile void *p, char *buf, size_t n)
{
	buf[0] = 0;
	if (p == &c->mb_queue)
		snprintf(buf, n, "membarrier");
	else if (c->prog.describe)
		c->prog.describe(c->prog.priv, (const void *)(uintptr_t)p, buf, n);
	if (!buf[0])
		snprintf(buf, n, "%#lx", (unsigned long)(uintptr_t)p);
}

static void lock_event(struct check *c, struct vcpu *v, const volatile void *lock, u8 op, int what)
{
	c->stepping++;
	if (c->prog.lock)
		c->prog.lock(c->prog.priv, v->cpu, (void *)(uintptr_t)lock, (enum kmm_lock_op)op, what);
	c->stepping--;
}

/* Takes or gives back; returns what the primitive returns. The lock is free, or the operation does not block. */
static u64 lock_perform(struct check *c, struct vcpu *v, volatile void *lock, u8 op)
{
	volatile u64 *count = lock;
	char name[96];
	u64 got = 1;

	switch (op) {
	case KMM_SPIN_LOCK: case KMM_SPIN_TRYLOCK:
		got = *(volatile u32 *)lock == 0;
		if (got)
			*(volatile u32 *)lock = 1;
		break;
	case KMM_DOWN_READ: case KMM_DOWN_READ_TRYLOCK:
		got = !(*count & RWSEM_WRITER);
		if (got)
			*count += RWSEM_READER;
		break;
	case KMM_DOWN_WRITE: case KMM_DOWN_WRITE_TRYLOCK:
		got = *count == 0;
		if (got)
			*count = RWSEM_WRITER;
		break;
	default:
		if (!held_pop(v, lock)) {
			describe(c, lock, name, sizeof(name));
			check_violation(c, CHECK_LOCK_HELD, "Cpu %u releases %s, which it does not hold", v->id, name);
			return 0;
		}
		if (op == KMM_SPIN_UNLOCK)
			*(volatile u32 *)lock = 0;
		else if (op == KMM_UP_READ)
			*count -= RWSEM_READER;
		else if (op == KMM_UP_WRITE)
			*count = 0;
		else
			*count = RWSEM_READER;
		lock_event(c, v, lock, op, 2);
		if (op == KMM_DOWNGRADE_WRITE) {
			held_push(c, v, (void *)(uintptr_t)lock, KMM_DOWN_READ);
			lock_event(c, v, lock, KMM_DOWN_READ_TRYLOCK, 1);
		}
		return 1;
	}
	if (got)
		held_push(c, v, (void *)(uintptr_t)lock, op);
	lock_event(c, v, lock, op, (int)got);
	return got;
}

static inline bool cmpxchg_fails(const struct pend *p)
{
	return p->sub == KMM_CMPXCHG && raw_load(p->addr, p->width) != (p->width >= 8 ? p->a : p->a & ((1ULL << 8 * p->width) - 1));
}

/* ---- the step ---- */

static void access_check(struct check *c, struct vcpu *v, const volatile void *p, unsigned width, int write)
{
	const char *why;
	char name[96];

	if (!c->prog.access || !(why = c->prog.access(c->prog.priv, v->cpu, (const void *)(uintptr_t)p, width, write)))
		return;
	describe(c, p, name, sizeof(name));
	check_violation(c, CHECK_UAF, "Cpu %u %s %s: %s", v->id, write ? "writes" : "reads", name, why);
}

/* Everything of the vCPU's that has become visible so far. */
static void join_flushes(struct check *c, u32 vcpu, u32 *clk)
{
	u32 f, end = flush_agents(c, vcpu, &f);

	for (; f < end; f++)
		if (c->agents[f].last >= 0)
			clk_join(clk, clk_of(c, (u64)c->agents[f].last), c->nr_agents);
}

/* Stores of v's of older epochs than this are visible already: in the past of the event that needs them to be. */
static void join_older_epochs(struct check *c, u32 vcpu, u32 epoch, u32 but, u32 *clk)
{
	u32 f, end = flush_agents(c, vcpu, &f);

	for (; f < end; f++) {
		s64 last = f != but ? c->agents[f].last : -1;
		while (last >= 0 && c->events[last].dup == epoch && c->events[last].op == P_FLUSH)
			last = c->events[last].prev;
		if (last >= 0)
			clk_join(clk, clk_of(c, (u64)last), c->nr_agents);
	}
}

/* Joins what is ordered before this event beside its own agent's last event and the conflicts of its word. */
static void order_implied(struct check *c, u32 a, u32 *clk)
{
	struct agent *ag = &c->agents[a];
	struct vcpu *v = &c->vcpus[ag->vcpu];

	switch (ag->kind) {
	case AGENT_VCPU:
		if (c->model != MODEL_SC && needs_drained_buffer(v))
			join_flushes(c, ag->vcpu, clk);
		else if (is_weak_rmw(v) || (v->pend.op == P_LOCK && c->model >= MODEL_PSO))
			join_older_epochs(c, ag->vcpu, v->epoch, CHECK_MAX_AGENTS, clk);
		if (v->pend.op == P_MB_WAIT) /* the barriers that others executed for it */
			for (u32 i = 0; i < c->nr_vcpus; i++)
				if (i != v->id)
					clk_join(clk, clk_of(c, v->mb_done[i]), c->nr_agents);
		if (v->pend.op == P_IPI_WAIT) /* the handlers that ran for it */
			for (u32 i = 0; i < c->nr_vcpus; i++)
				for (u32 k = c->vcpus[i].call_first; k-- > 0 && k + CHECK_CALLS > c->vcpus[i].call_first;)
					if (c->vcpus[i].calls[k % CHECK_CALLS].sender == v && c->vcpus[i].calls[k % CHECK_CALLS].event < c->nevents)
						clk_join(clk, clk_of(c, c->vcpus[i].calls[k % CHECK_CALLS].event), c->nr_agents);
		break;
	case AGENT_IRQ:
		clk_join(clk, clk_of(c, v->calls[v->call_first % CHECK_CALLS].event), c->nr_agents);
		break;
	case AGENT_MB:
		clk_join(clk, clk_of(c, v->mbs[v->mb_first % CHECK_MAX_VCPUS].event), c->nr_agents);
		break;
	default: {
		struct buffered *b = &v->buffer[buffer_head(c, a)];
		if (b->after >= 0)
			clk_join(clk, clk_of(c, (u64)b->after), c->nr_agents);
		if (c->model != MODEL_TSO)
			join_older_epochs(c, ag->vcpu, b->epoch, a, clk);
	}
	}
}

/*
 * The own buffer answers a load. That is as if it read the store right after it became visible: so the load is
 * entered among the accesses of its word then, and whoever overwrites the value later finds a race with it: in the
 * reverse order the store is visible, then overwritten, then loaded.
 */
static void answer_load(struct check *c, struct vcpu *v, struct buffered *b, const struct pend *p, u32 e)
{
	v->load_view[v->loads++ % CHECK_LOADS] = NULL;
	c->answers[c->nanswers] = (struct answer){ e, b->answered, byte_mask(p->addr, p->width) };
	b->answered = (s32)c->nanswers++;
}

static u64 load_perform(struct check *c, struct vcpu *v, struct word *w, const struct pend *p, u32 stale)
{
	struct access *x;
	u64 value;
	u32 version;
	s32 i;

	if (c->model != MODEL_POWER)
		return raw_load(p->addr, p->width);
	version = w->versions - stale;
	x = power_version(c, w, version);
	if (!stale)
		value = raw_load(p->addr, p->width);
	else
		value = word_extract(x ? x->new : w->initial, p->addr, p->width);
	i = w->versions ? view_index(c, w) : -1; /* what nobody has written has one value */
	v->load_view[v->loads++ % CHECK_LOADS] = x ? x->view : NULL;
	v->load_stale = stale;
	v->load_sync = x ? x->sync : 0;
	if (i >= 0) {
		if (version > v->view[i])
			v->view[i] = (u16)version;
		if (version > v->own[i]) {
			v->own[i] = (u16)version;
			v->late[i] = 0;
		}
		v->late[i] += stale != 0;
		if (x)
			view_join(v->seen, x->view);
	}
	if (p->order == KMM_ACQUIRE)
		view_join(v->view, x ? x->view : NULL);
	else if (p->order == KMM_SEQ_CST)
		power_acquire(v);
	return value;
}

static inline void race_join(u32 *to, const u32 *from)
{
	for (u32 i = 0; i < CHECK_MAX_VCPUS; i++)
		if (from[i] > to[i])
			to[i] = from[i];
}

/* Runs the oldest call to v, as its interrupt handler. */
static void handler_perform(struct check *c, struct vcpu *v, u32 e)
{
	struct call *call = &v->calls[v->call_first % CHECK_CALLS];
	u32 direct = c->direct;

	c->direct = 1;
	c->handling = v;
	race_join(v->sync, call->sync);
	kmm_event(v->cpu, KMM_EV_IRQ_ENTER, NULL, 0);
	call->func(v->cpu, call->info);
	kmm_event(v->cpu, KMM_EV_IRQ_EXIT, NULL, 0);
	race_join(call->sender->sync_irq, v->sync);
	v->sync[v->id]++;
	c->handling = NULL;
	c->direct = direct;
	call->event = e;
	call->sender->calls_pending--;
	v->call_first++;
}

/*
 * The barrier that smp_mb_heavy() makes v execute, event e of agent a, could have come earlier: before the light barrier
 * whose stores it waited for; that it could have come later is for stores_firm() to say. Under power it also binds what
 * v's later loads return, and publishes what v has seen: where that matters, mb_races() reverses it with v's other steps.
 * A load that took an older value comes before a barrier that may forbid that. Data races: it orders plain accesses too,
 * so that it stands in order with every step of v's.
 */
static void order_mb(struct check *c, struct vcpu *v, u32 e, u32 a, u32 *clk)
{
	s64 last = c->agents[v->id].last;

	if (v->last_light >= 0 && !clk_has(c, clk, (u32)v->last_light))
		race(c, (u32)v->last_light, e, a, clk);
	if (c->model == MODEL_POWER && c->races && last >= 0 && last != v->last_light && !clk_has(c, clk, (u32)last))
		race(c, (u32)last, e, a, clk);
	/* Not before the races: what it waited for is not in the past of one that comes earlier. */
	for (u32 f = c->first_flush; f < c->first_mb; f++)
		if (c->agents[f].vcpu == v->id && c->agents[f].last_firm >= 0)
			clk_join(clk, clk_of(c, (u64)c->agents[f].last_firm), c->nr_agents);
	last = c->races ? last : v->last_stale;
	if (c->model == MODEL_POWER && last >= 0)
		clk_join(clk, clk_of(c, (u64)last), c->nr_agents);
}

/* Executes the oldest of those barriers. */
static void mb_perform(struct check *c, struct vcpu *v, u32 e)
{
	struct mb_call *call = &v->mbs[v->mb_first++ % CHECK_MAX_VCPUS];

	if (c->model == MODEL_POWER)
		power_sync_mb(c, v);
	race_handshake(c, call->sender, v);
	call->sender->mb_done[v->id] = e;
	call->sender->mbs_pending--;
}

/* power: a read-modify-write, x, hands on what it found released. */
static inline void hand_on(struct check *c, struct word *w, struct access *x)
{
	struct access *from = x->view && x->version > 1 ? power_version(c, w, x->version - 1u) : NULL;

	if (from)
		view_join(x->view, from->view);
}

/* power: the accesses of its word that x stands in order with and comes after, as one number. */
static u64 accesses_before(struct check *c, const struct access *x)
{
	u64 sum = 1;

	for (s32 at = c->want_graphs ? x->prev : -1; at >= 0; at = c->accesses[at].prev) {
		const struct event *e = &c->events[c->accesses[at].event];
		if (conflicts[x->kind] >> c->accesses[at].kind & 1)
			sum += check_mix(e->agent * 0x10001ULL + e->seq);
	}
	return sum;
}

static void trace_step(struct check *c, u32 a, const struct footprint *f, u8 op, u64 old, u64 new, u32 stale);

/* Python programs: does the step of a replayed prefix do what it did before? */
static bool same_as_before(struct check *c, const struct agent *ag, const struct pend *p, struct event *ev, u32 e)
{
	u64 sign = 0;

	if (ag->kind == AGENT_VCPU) {
		sign = check_mix(p->op | (u64)p->sub << 8 | (u64)p->width << 16 | (u64)p->order << 24) + (uintptr_t)p->addr;
		if (p->op != P_AWAIT) /* its argument may be an object */
			sign = check_mix(sign ^ p->a) + check_mix(p->b + 1);
	}
	if (e + 1 < c->replay && e >= c->nfixed && ev->sign != sign) {
		c->err = -EILSEQ;
		c->over = 1;
		return false;
	}
	ev->sign = sign;
	return true;
}

/* Lets agent `a` take event number c->nevents; `choice` is the node's data choice. */
static void step(struct check *c, u32 a, u32 choice)
{
	struct agent *ag = &c->agents[a];
	struct vcpu *v = &c->vcpus[ag->vcpu];
	struct pend *p = &v->pend;
	struct event *ev;
	struct node *node;
	struct footprint f = footprint_of(c, a);
	struct word *w = NULL;
	struct access *x = NULL;
	u32 e = c->nevents, stale = 0;
	u64 old = 0, value = 0, next_sleep = 0;
	int answer;
	u8 op = ag->kind == AGENT_VCPU ? p->op : ag->kind == AGENT_IRQ ? P_HANDLER : ag->kind == AGENT_MB ? P_MB : P_FLUSH;
	bool failed = op == P_RMW && cmpxchg_fails(p);
	const struct pend handler = { .op = P_HANDLER, .width = 4, .addr = f.addr };
	bool dpor = c->explorer == EXPLORER_DPOR;
	bool words = dpor || c->model == MODEL_POWER || c->traced || c->want_graphs;
	u32 *clk = clk_of(c, e);

	if (c->model == MODEL_POWER) {
		if (ag->kind == AGENT_VCPU && v->want_sync) {
			power_sync(c, v); /* an smp_mb() before this step */
			v->want_sync = 0;
		}
		if (op == P_RMW && (p->order == KMM_RELEASE || p->order == KMM_SEQ_CST)) {
			new_epoch(v);
			if (failed)
				; /* has waited for the own stores, and orders nothing else */
			else if (p->order == KMM_SEQ_CST)
				power_sync(c, v); /* the barrier before it; the one after it comes below */
			else
				power_release(v);
		}
		/* simplified: an interrupt is a full barrier of both, when it is sent, handled, and waited for. */
		if (op == P_IPI_SEND || op == P_IPI_WAIT || op == P_HANDLER || op == P_MB_WAIT)
			power_sync(c, v);
	}
	ev = &c->events[e];
	node = &c->nodes[e];
	if (unlikely(c->prog.python) && !same_as_before(c, ag, p, ev, e))
		return;
	ev->agent = (u8)a;
	ev->op = op;
	ev->dup = 0;
	ev->rfco = 0;
	ev->seq = ++ag->seq;
	ev->prev = ag->last;
	if (e + 1 >= c->replay || !dpor) /* in a replayed prefix it is known, and not counted again */
		node->nchoices = 1;
	if (words) {
		if (!f.none && !f.size)
			w = word_of(c, f.addr);
		if (e + 1 >= c->replay || !dpor) { /* the clocks of a replayed prefix are still there */
			if (ag->last >= 0)
				memcpy(clk, clk_of(c, (u64)ag->last), c->nr_agents * sizeof(u32));
			else
				memset(clk, 0, c->nr_agents * sizeof(u32));
			order_implied(c, a, clk);
			if (op == P_MB)
				order_mb(c, v, e, a, clk);
			else if (c->model == MODEL_POWER && c->races && ag->kind == AGENT_VCPU
				 && c->agents[c->first_mb + v->id].last >= 0) {
				u32 mb = (u32)c->agents[c->first_mb + v->id].last;
				if (!clk_has(c, clk, mb))
					race(c, mb, e, a, clk);
				clk_join(clk, clk_of(c, mb), c->nr_agents);
			}
			if (op == P_LOAD && w && c->model == MODEL_POWER)
				node->nchoices = (u8)(1 + power_stale(c, v, w, p, clk));
			if (op == P_LOAD && w && c->model == MODEL_POWER && choice) {
				/* Ordered after the version it returns, and not after the newer ones. */
				struct access *from = power_version(c, w, w->versions - choice);
				if (from && !clk_has(c, clk, from->event))
					clk_join(clk, clk_of(c, from->event), c->nr_agents);
			} else if ((op == P_LOAD || op == P_AWAIT) && w && reads_own_store(c, a, w, f.mask)) {
				;
			} else if (w && f.blocking) {
				/* An interrupt waits for the target's buffer: it could have come before the newest store was made. */
				if (op == P_HANDLER && v->last_store >= 0 && !clk_has(c, clk, (u32)v->last_store))
					race(c, (u32)v->last_store, e, a, clk);
				order_blocking(c, e, a, w, op == P_HANDLER ? &handler : p, f.kind, f.mask, clk);
			} else if (w)
				order_access(c, e, a, w, f.kind, f.mask, clk);
			else if (f.size)
				order_free(c, e, a, f.addr, f.size, clk);
			if (op == P_HANDLER && c->model != MODEL_SC)
				/* The stores that it waited for are in its past; they were not when its races were looked for. */
				join_flushes(c, ag->vcpu, clk);
			clk[a] = ev->seq;
		}
		if (dpor && e + 1 >= c->replay) {
			/* Who was tried here, or before, and does not depend on this step, need not be tried after it. */
			u64 rest = c->bound < 0 ? (node->sleep | node->done) & ~bit(a) : 0; /* a bound and sleep sets do not mix */
			/* What other parts of the search will find out of these steps is not known here. */
			struct marks marks = c->cut || e < c->nfixed ? (struct marks){ ~0ULL, ~0ULL, ~0ULL, ~0ULL } : node->marks;
			bool full = op == P_MB || (c->nview_syncs && c->view_syncs[c->nview_syncs - 1].event == e);
			for (; rest; rest &= rest - 1) {
				u32 q = (u32)__builtin_ctzll(rest);
				struct footprint g = footprint_of(c, q);
				/* A store that its step is followed by would have kept this interrupt, or barrier, waiting. */
				if (op == P_HANDLER && q == ag->vcpu && marks.storers & bit(q))
					continue;
				if (op == P_MB && q == ag->vcpu && marks.lights & bit(q))
					continue;
				if (c->model == MODEL_POWER && (op == P_MB || q >= c->first_mb) && c->agents[q].vcpu == ag->vcpu
				    && (c->races || marks.mbs & bit(q)))
					continue; /* order_mb(), mb_races() */
				if (full && marks.syncs & bit(q))
					continue; /* sync_races() */
				if (!footprints_conflict(&f, &g))
					next_sleep |= bit(q);
			}
			c->nodes[e + 1].sleep = next_sleep;
			c->nodes[e + 1].marks = (struct marks){ marks.storers & next_sleep, marks.lights & next_sleep,
								marks.syncs & next_sleep, marks.mbs & next_sleep };
		}
	}
	if (op == P_CHOOSE)
		node->nchoices = (u8)p->a;
	if (c->explorer == EXPLORER_RANDOM || c->explorer == EXPLORER_PCT) {
		if (node->nchoices > 1) {
			c->rng_run ^= c->rng_run << 13; c->rng_run ^= c->rng_run >> 7; c->rng_run ^= c->rng_run << 17;
			choice = (u32)((c->rng_run >> 11) % node->nchoices);
		}
	}
	if (choice >= node->nchoices)
		choice = 0;
	node->choice = (u8)choice;
	if (op == P_LOAD)
		stale = choice;
	if (w || c->traced)
		old = f.none || f.size ? 0 : word_value(f.addr);

	switch (op) {
	case P_LOAD: case P_AWAIT:
		access_check(c, v, p->addr, p->width, 0);
		if (c->over)
			break;
		if (v->nbuffered && (answer = buffer_forward(v, p->addr, p->width, &value)) > 0) {
			answer_load(c, v, &v->buffer[answer - 1], p, e);
			break;
		}
		value = load_perform(c, v, w, p, stale);
		break;
	case P_STORE:
		access_check(c, v, p->addr, p->width, 1);
		if (!c->over)
			raw_store((volatile void *)p->addr, p->width, p->a);
		break;
	case P_RMW:
		access_check(c, v, p->addr, p->width, 1);
		if (c->over)
			break;
		value = raw_load(p->addr, p->width);
		raw_store((volatile void *)p->addr, p->width, rmw_value(p->sub, value, p->a, p->b, p->width));
		break;
	case P_LOCK: case P_UNLOCK:
		access_check(c, v, p->addr, p->width, 1);
		if (!c->over)
			value = lock_perform(c, v, (volatile void *)p->addr, p->sub);
		break;
	case P_IRQ_OFF:
		v->irq_off = v->cpu->irq_disabled = 1;
		break;
	case P_IRQ_ON:
		v->irq_off = v->cpu->irq_disabled = 0;
		break;
	case P_IPI_SEND: {
		struct vcpu *t = (struct vcpu *)(uintptr_t)p->b;
		struct call *call = &t->calls[t->call_last++ % CHECK_CALLS];
		*call = (struct call){ v, (kmm_ipi_func)(uintptr_t)p->a, v->ipi_info, e, { 0 } };
		memcpy(call->sync, v->sync, sizeof(call->sync));
		v->sync[v->id]++;
		v->calls_pending++;
		break;
	}
	case P_MB_SEND:
		v->mbs_pending = c->nr_vcpus - 1;
		for (u32 i = 0; i < c->nr_vcpus; i++)
			if (i != v->id)
				c->vcpus[i].mbs[c->vcpus[i].mb_last++ % CHECK_MAX_VCPUS] = (struct mb_call){ v, e };
		break;
	case P_MB:
		mb_perform(c, v, e);
		break;
	case P_CHOOSE:
		value = choice;
		ev->rfco = choice + 1; /* graph_hash(): another choice is another graph */
		break;
	case P_HANDLER:
		handler_perform(c, v, e);
		break;
	case P_FLUSH: {
		s32 at = buffer_head(c, a);
		struct buffered b = v->buffer[at];
		memmove(&v->buffer[at], &v->buffer[at + 1], (v->nbuffered - (u32)at - 1) * sizeof(b));
		v->nbuffered--;
		if ((u32)at < v->firm) {
			v->firm--;
			ag->last_firm = e;
		}
		ev->dup = c->model == MODEL_TSO ? 0 : b.epoch;
		c->flushed_origin = b.origin;
		access_check(c, v, b.addr, b.width, 1);
		if (c->over)
			break;
		raw_store(b.addr, b.width, b.add ? raw_load(b.addr, b.width) + b.value : b.value);
		if (w)
			x = access_push(c, w, e, A_WRITE, f.mask);
		race_visible(c, v, &b, x);
		if (w) {
			if (c->model == MODEL_POWER)
				power_store(c, v, w, x, b.rel, b.epoch);
			if (c->model == MODEL_POWER && b.add)
				hand_on(c, w, x);
			x->old = old;
			x->new = word_value(f.addr);
			ev->rfco = (u64)w->versions << 33 ^ (uintptr_t)f.addr;
			/* What a load took out of the buffer, it has read from this store. */
			for (s32 at = b.answered; at >= 0; at = c->answers[at].next) {
				const struct answer *l = &c->answers[at];
				access_push(c, w, l->event, A_READ, l->mask)->answer = e + 1;
				if (c->model == MODEL_POWER)
					c->events[l->event].rfco = (u64)w->versions << 33 ^ (((uintptr_t)f.addr & ~7UL) + (u64)__builtin_ctz(l->mask));
			}
			x = NULL;
		}
		break;
	}
	default:
		break;
	}
	if (words && f.size)
		push_free(c, e, f.addr, f.size);
	if (op != P_FLUSH && w) {
		x = access_push(c, w, e, f.kind, f.mask);
		if (c->model == MODEL_POWER && f.kind == A_WRITE && (op == P_RMW || op == P_STORE || op == P_LOCK || op == P_UNLOCK))
			power_store(c, v, w, x, v->rel, v->epoch);
		if (op == P_RMW && f.kind == A_WRITE)
			v->epoch_used = 1; /* stores after an smp_wmb() come after it */
		if (c->model == MODEL_POWER && op == P_RMW)
			hand_on(c, w, x);
		if (c->model == MODEL_POWER && op == P_LOCK && f.kind > A_WRITE)
			power_rwsem(c, v, x);
	}
	if (x) {
		x->old = old;
		x->new = word_value(f.addr);
		if (c->model == MODEL_POWER && op != P_LOAD && op != P_AWAIT && op != P_RMW && op != P_FLUSH)
			ev->rfco = accesses_before(c, x); /* a lock, an interrupt */
		else if (c->model == MODEL_POWER) /* which version it read or made: the rest of what graph_hash() takes */
			ev->rfco = (u64)(w->versions - stale) << 33 ^ (u64)(f.kind == A_WRITE) << 32 ^ (uintptr_t)f.addr;
	}
	if (c->model == MODEL_POWER && ag->kind == AGENT_VCPU && (op == P_RMW || op == P_LOCK)) {
		struct access *from = w ? power_version(c, w, w->versions - (f.kind == A_WRITE)) : NULL;
		if (from)
			view_join(v->seen, from->view);
		/* Coherence: one that stores nothing has read this version, and reads no older one later. */
		if (from && w->view >= 0 && from->version > v->view[w->view])
			v->view[w->view] = from->version;
		/* What the last holder did before it gave the lock back travels with what is stored under it. */
		if (op == P_LOCK && p->sub <= KMM_SPIN_TRYLOCK && value && from)
			view_join(v->rel, from->view);
		if (op == P_LOCK ? !value : failed)
			; /* orders nothing */
		else if (op == P_RMW && p->order == KMM_SEQ_CST)
			power_sync(c, v);
		else if (from && (op == P_LOCK || p->order == KMM_ACQUIRE))
			view_join(v->view, from->view);
	}
	if (ag->kind == AGENT_VCPU)
		v->drain = 0;
	ag->last = e;
	if (op == P_LOAD && stale)
		v->last_stale = e;
	if (c->model == MODEL_POWER && ag->kind != AGENT_IRQ)
		ev->know = what_is_known(c, v);
	c->nevents = e + 1;
	c->steps++;
	v->result = ag->kind == AGENT_VCPU ? value : v->result;
	if (unlikely(c->traced))
		trace_step(c, a, &f, op, old, x ? x->new : f.none || f.size ? 0 : word_value(f.addr), stale);
}

#endif
