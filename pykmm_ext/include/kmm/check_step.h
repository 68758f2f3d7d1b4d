/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One step of one agent: what it does.
 *
 * smp_mb_heavy() is membarrier(2): a full barrier, then one that every other vCPU executes between two of its
 * instructions (steps of agents of their own, P_MB), then the end of the wait for them. smp_mb_light() is a compiler's
 * barrier: a store that it follows is made before such a barrier that comes after it. One that it does not follow may
 * be moved behind the barrier by the compiler, so that P_MB does not wait for it.
 *
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_STEP_H
#define KMM_CHECK_STEP_H

#include "kmm/check_lock.h"
#include "kmm/check_order.h"

static void race_visible(struct check *c, struct vcpu *v, const struct buffered *b, struct access *x);
static void race_handshake(struct check *c, struct vcpu *a, struct vcpu *b);
static void trace_step(struct check *c, u32 a, const struct footprint *f, u8 op, u64 old, u64 new, u32 stale);

/* ---- loads, interrupts, barriers ---- */

static void access_check(struct check *c, struct vcpu *v, const volatile void *p, unsigned width, int write)
{
	const char *why;
	char name[96];

	if (!c->prog.access || !(why = c->prog.access(c->prog.priv, v->cpu, (const void *)(uintptr_t)p, width, write)))
		return;
	describe(c, p, name, sizeof(name));
	check_violation(c, CHECK_UAF, "Cpu %u %s %s: %s", v->id, write ? "writes" : "reads", name, why);
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

/* ---- a store leaves its buffer ---- */

/* power: a read-modify-write, x, hands on what it found released. */
static inline void hand_on(struct check *c, struct word *w, struct access *x)
{
	struct access *from = x->view && x->version > 1 ? power_version(c, w, x->version - 1u) : NULL;

	if (from)
		view_join(x->view, from->view);
}

/* Its word knows it now; and what a load took out of the buffer, it has read from this store. */
static void flush_enter(struct check *c, struct taken *s, const struct buffered *b, struct access *x)
{
	const struct footprint *f = &s->f;

	if (c->model == MODEL_POWER)
		power_store(c, s->v, s->w, x, b->rel, b->epoch);
	if (c->model == MODEL_POWER && b->add)
		hand_on(c, s->w, x);
	x->old = s->old;
	x->new = word_value(f->addr);
	s->ev->rfco = (u64)s->w->versions << 33 ^ (uintptr_t)f->addr;
	for (s32 at = b->answered; at >= 0; at = c->answers[at].next) {
		const struct answer *l = &c->answers[at];
		access_push(c, s->w, l->event, A_READ, l->mask)->answer = s->e + 1;
		if (c->model == MODEL_POWER)
			c->events[l->event].rfco = (u64)s->w->versions << 33 ^ (((uintptr_t)f->addr & ~7UL) + (u64)__builtin_ctz(l->mask));
	}
}

static void flush_perform(struct check *c, struct taken *s)
{
	struct vcpu *v = s->v;
	s32 at = buffer_head(c, s->a);
	struct buffered b = v->buffer[at];
	struct access *x = NULL;

	memmove(&v->buffer[at], &v->buffer[at + 1], (v->nbuffered - (u32)at - 1) * sizeof(b));
	v->nbuffered--;
	if ((u32)at < v->firm) {
		v->firm--;
		s->ag->last_firm = s->e;
	}
	s->ev->dup = c->model == MODEL_TSO ? 0 : b.epoch;
	c->flushed_origin = b.origin;
	access_check(c, v, b.addr, b.width, 1);
	if (c->over)
		return;
	raw_store(b.addr, b.width, b.add ? raw_load(b.addr, b.width) + b.value : b.value);
	if (s->w)
		x = access_push(c, s->w, s->e, A_WRITE, s->f.mask);
	race_visible(c, v, &b, x);
	if (s->w)
		flush_enter(c, s, &b, x);
}

/* ---- the step ---- */

static inline bool cmpxchg_fails(const struct pend *p)
{
	return p->sub == KMM_CMPXCHG && raw_load(p->addr, p->width) != (p->width >= 8 ? p->a : p->a & ((1ULL << 8 * p->width) - 1));
}

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

/* power: the barriers that are part of the step and come before what it does. */
static void power_before(struct check *c, struct taken *s)
{
	struct vcpu *v = s->v;

	if (s->ag->kind == AGENT_VCPU && v->want_sync) {
		power_sync(c, v); /* an smp_mb() before this step */
		v->want_sync = 0;
	}
	if (s->op == P_RMW && (s->p->order == KMM_RELEASE || s->p->order == KMM_SEQ_CST)) {
		new_epoch(v);
		if (s->failed)
			; /* has waited for the own stores, and orders nothing else */
		else if (s->p->order == KMM_SEQ_CST)
			power_sync(c, v); /* the barrier before it; the one after it is power_after()'s */
		else
			power_release(v);
	}
	/* simplified: an interrupt is a full barrier of both, when it is sent, handled, and waited for. */
	if (s->op == P_IPI_SEND || s->op == P_IPI_WAIT || s->op == P_HANDLER || s->op == P_MB_WAIT)
		power_sync(c, v);
}

/* Which of its choices the step takes: the schedule's, or what the dice say. */
static u32 choice_of(struct check *c, const struct taken *s, u32 choice)
{
	if ((c->explorer == EXPLORER_RANDOM || c->explorer == EXPLORER_PCT) && s->node->nchoices > 1) {
		c->rng_run ^= c->rng_run << 13; c->rng_run ^= c->rng_run >> 7; c->rng_run ^= c->rng_run << 17;
		choice = (u32)((c->rng_run >> 11) % s->node->nchoices);
	}
	return choice < s->node->nchoices ? choice : 0;
}

static void ipi_send(struct taken *s)
{
	struct vcpu *v = s->v, *target = (struct vcpu *)(uintptr_t)s->p->b;
	struct call *call = &target->calls[target->call_last++ % CHECK_CALLS];

	*call = (struct call){ v, (kmm_ipi_func)(uintptr_t)s->p->a, v->ipi_info, s->e, { 0 } };
	memcpy(call->sync, v->sync, sizeof(call->sync));
	v->sync[v->id]++;
	v->calls_pending++;
}

static void mb_send(struct check *c, struct taken *s)
{
	s->v->mbs_pending = c->nr_vcpus - 1;
	for (u32 i = 0; i < c->nr_vcpus; i++)
		if (i != s->v->id)
			c->vcpus[i].mbs[c->vcpus[i].mb_last++ % CHECK_MAX_VCPUS] = (struct mb_call){ s->v, s->e };
}

/* Does it. What it touches may be no memory (any more): then the execution is over. */
static void perform(struct check *c, struct taken *s)
{
	struct vcpu *v = s->v;
	struct pend *p = s->p;
	int answer;

	switch (s->op) {
	case P_LOAD: case P_AWAIT:
		access_check(c, v, p->addr, p->width, 0);
		if (c->over)
			break;
		if (v->nbuffered && (answer = buffer_forward(v, p->addr, p->width, &s->value)) > 0)
			answer_load(c, v, &v->buffer[answer - 1], p, s->e);
		else
			s->value = load_perform(c, v, s->w, p, s->stale);
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
		s->value = raw_load(p->addr, p->width);
		raw_store((volatile void *)p->addr, p->width, rmw_value(p->sub, s->value, p->a, p->b, p->width));
		break;
	case P_LOCK: case P_UNLOCK:
		access_check(c, v, p->addr, p->width, 1);
		if (!c->over)
			s->value = lock_perform(c, v, (volatile void *)p->addr, p->sub);
		break;
	case P_IRQ_OFF:
		v->irq_off = v->cpu->irq_disabled = 1;
		break;
	case P_IRQ_ON:
		v->irq_off = v->cpu->irq_disabled = 0;
		break;
	case P_IPI_SEND:
		ipi_send(s);
		break;
	case P_MB_SEND:
		mb_send(c, s);
		break;
	case P_MB:
		mb_perform(c, v, s->e);
		break;
	case P_CHOOSE:
		s->value = s->node->choice;
		s->ev->rfco = s->node->choice + 1u; /* graph_hash(): another choice is another graph */
		break;
	case P_HANDLER:
		handler_perform(c, v, s->e);
		break;
	case P_FLUSH:
		flush_perform(c, s);
		break;
	default:
		break;
	}
}

/* ---- what is kept of it ---- */

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

/* Enters the access among those of its word. (A flush has done that: flush_enter().) */
static void enter_access(struct check *c, struct taken *s)
{
	struct vcpu *v = s->v;
	bool write = s->f.kind == A_WRITE, power = c->model == MODEL_POWER;
	struct access *x;

	if (!s->w || s->op == P_FLUSH)
		return;
	s->x = x = access_push(c, s->w, s->e, s->f.kind, s->f.mask);
	if (power && write && (s->op == P_RMW || s->op == P_STORE || s->op == P_LOCK || s->op == P_UNLOCK))
		power_store(c, v, s->w, x, v->rel, v->epoch);
	if (s->op == P_RMW && write)
		v->epoch_used = 1; /* stores after an smp_wmb() come after it */
	if (power && s->op == P_RMW)
		hand_on(c, s->w, x);
	if (power && s->op == P_LOCK && s->f.kind > A_WRITE)
		power_rwsem(c, v, x);
	x->old = s->old;
	x->new = word_value(s->f.addr);
	if (power && s->op != P_LOAD && s->op != P_AWAIT && s->op != P_RMW)
		s->ev->rfco = accesses_before(c, x); /* a lock, an interrupt */
	else if (power) /* which version it read or made: the rest of what graph_hash() takes */
		s->ev->rfco = (u64)(s->w->versions - s->stale) << 33 ^ (u64)write << 32 ^ (uintptr_t)s->f.addr;
}

/* power: what the vCPU knows by a read-modify-write or a lock. */
static void power_after(struct check *c, struct taken *s)
{
	struct vcpu *v = s->v;
	struct pend *p = s->p;
	struct access *from = s->w ? power_version(c, s->w, s->w->versions - (s->f.kind == A_WRITE)) : NULL;

	if (from)
		view_join(v->seen, from->view);
	/* Coherence: one that stores nothing has read this version, and reads no older one later. */
	if (from && s->w->view >= 0 && from->version > v->view[s->w->view])
		v->view[s->w->view] = from->version;
	/* What the last holder did before it gave the lock back travels with what is stored under it. */
	if (s->op == P_LOCK && p->sub <= KMM_SPIN_TRYLOCK && s->value && from)
		view_join(v->rel, from->view);
	if (s->op == P_LOCK ? !s->value : s->failed)
		; /* orders nothing */
	else if (s->op == P_RMW && p->order == KMM_SEQ_CST)
		power_sync(c, v);
	else if (from && (s->op == P_LOCK || p->order == KMM_ACQUIRE))
		view_join(v->view, from->view);
}

static inline u8 op_of(const struct agent *ag, const struct pend *p)
{
	switch (ag->kind) {
	case AGENT_VCPU: return p->op;
	case AGENT_IRQ: return P_HANDLER;
	case AGENT_MB: return P_MB;
	default: return P_FLUSH;
	}
}

/* Lets agent `a` take event number c->nevents; `choice` is the node's data choice. */
static void step(struct check *c, u32 a, u32 choice)
{
	u32 e = c->nevents;
	struct agent *ag = &c->agents[a];
	struct vcpu *v = &c->vcpus[ag->vcpu];
	struct taken s = { .ag = ag, .v = v, .p = &v->pend, .ev = &c->events[e], .node = &c->nodes[e], .clk = clk_of(c, e), .a = a,
			  .e = e, .op = op_of(ag, &v->pend), .f = footprint_of(c, a) };
	bool dpor = c->explorer == EXPLORER_DPOR;
	bool words = dpor || c->model == MODEL_POWER || c->traced || c->want_graphs;

	s.failed = s.op == P_RMW && cmpxchg_fails(s.p);
	s.known = dpor && e + 1 < c->replay;
	if (c->model == MODEL_POWER)
		power_before(c, &s);
	if (unlikely(c->prog.python) && !same_as_before(c, ag, s.p, s.ev, e))
		return;
	s.ev->agent = (u8)a;
	s.ev->op = s.op;
	s.ev->dup = 0;
	s.ev->rfco = 0;
	s.ev->seq = ++ag->seq;
	s.ev->prev = ag->last;
	if (!s.known)
		s.node->nchoices = 1;
	if (words && !s.f.none && !s.f.size)
		s.w = word_of(c, s.f.addr);
	if (words && !s.known)
		order_step(c, &s, choice);
	if (dpor && !s.known)
		sleep_after(c, &s);
	if (s.op == P_CHOOSE)
		s.node->nchoices = (u8)s.p->a;
	s.node->choice = (u8)choice_of(c, &s, choice);
	if (s.op == P_LOAD)
		s.stale = s.node->choice;
	if (s.w || c->traced)
		s.old = s.f.none || s.f.size ? 0 : word_value(s.f.addr);

	perform(c, &s);

	if (words && s.f.size)
		push_free(c, e, s.f.addr, s.f.size);
	enter_access(c, &s);
	if (c->model == MODEL_POWER && (s.op == P_RMW || s.op == P_LOCK))
		power_after(c, &s);
	if (ag->kind == AGENT_VCPU) {
		v->drain = 0;
		v->result = s.value;
	}
	ag->last = e;
	if (s.op == P_LOAD && s.stale)
		v->last_stale = e;
	if (c->model == MODEL_POWER && ag->kind != AGENT_IRQ)
		s.ev->know = what_is_known(c, v);
	c->nevents = e + 1;
	c->steps++;
	if (unlikely(c->traced))
		trace_step(c, a, &s.f, s.op, s.old, s.x ? s.x->new : s.f.none || s.f.size ? 0 : word_value(s.f.addr), s.stale);
}

#endif
