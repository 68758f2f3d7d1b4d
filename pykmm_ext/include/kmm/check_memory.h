/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The memory models:
 *
 *   sc     every store is visible at once;
 *   tso    a vCPU's stores wait in a FIFO and become visible one by one, by steps of their own;
 *   pso    one FIFO per word; smp_wmb() and a release store separate epochs, which become visible in order. atomic_add()
 *          waits among the stores: what it adds to is read when it becomes visible;
 *   power  pso, and a load may return an older value: each CPU has, per word, a lower bound to the version that it
 *          may still see, raised by what it has read itself, by acquire, smp_rmb(), lwsync and address dependencies
 *          (with what the writer had seen before a release or lwsync), and by sync through a global view.
 *
 * A stale load is offered where the newest store is ordered before the load anyway (else the schedule in which the
 * load comes first gives the same).
 *
 * simplified: no load buffering (a store is not visible before the loads that come earlier in its program).
 *
 * simplified: under power at most CHECK_VIEW words that an execution writes are read stale, by at most seven versions, and
 * the same version by the same CPU at most CHECK_LATE times after it was overwritten.
 *
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_MEMORY_H
#define KMM_CHECK_MEMORY_H

#include "kmm/check_trace.h"

static inline u64 raw_load(const volatile void *p, unsigned width)
{
	switch (width) {
	case 1: return *(const volatile u8 *)p;
	case 2: return *(const volatile u16 *)p;
	case 4: return *(const volatile u32 *)p;
	default: return *(const volatile u64 *)p;
	}
}

static inline void raw_store(volatile void *p, unsigned width, u64 v)
{
	switch (width) {
	case 1: *(volatile u8 *)p = (u8)v; break;
	case 2: *(volatile u16 *)p = (u16)v; break;
	case 4: *(volatile u32 *)p = (u32)v; break;
	default: *(volatile u64 *)p = v; break;
	}
}

static inline u64 rmw_value(u8 sub, u64 old, u64 a, u64 b, unsigned width)
{
	u64 mask = width >= 8 ? ~0ULL : (1ULL << 8 * width) - 1;

	switch (sub) {
	case KMM_XCHG: return a & mask;
	case KMM_CMPXCHG: return old == (a & mask) ? b & mask : old;
	case KMM_ADD: return (old + a) & mask;
	case KMM_AND: return old & a & mask;
	default: return (old | a) & mask;
	}
}

/* ---- store buffers ---- */

/* The youngest own store to these bytes: 1 + its place, and *value; 0 = none; -1 = some of the bytes only, or what it will
 * be is not known yet (an atomic_add()). */
static int buffer_forward(const struct vcpu *v, const volatile void *p, unsigned width, u64 *value)
{
	for (u32 i = v->nbuffered; i--;) {
		const struct buffered *b = &v->buffer[i];
		uintptr_t s = (uintptr_t)p, t = (uintptr_t)b->addr;
		if (s + width <= t || t + b->width <= s)
			continue;
		if (b->add || s < t || s + width > t + b->width)
			return -1;
		*value = b->value >> 8 * (s - t);
		if (width < 8)
			*value &= (1ULL << 8 * width) - 1;
		return 1 + (int)i;
	}
	return 0;
}

/*
 * Plain accesses see the own stores, as on a real CPU: while a vCPU's own code runs, what waits in its buffer lies in
 * memory, oldest first. Steps, and so everybody else, find memory without it. What plain code wrote over a buffered
 * value has become that value.
 */
static inline void own_stores_show(struct vcpu *v)
{
	for (u32 i = 0; i < v->nbuffered; i++) {
		struct buffered *b = &v->buffer[i];
		b->under = raw_load(b->addr, b->width);
		raw_store(b->addr, b->width, b->add ? b->under + b->value : b->value);
	}
	v->shown = 1;
}

static inline void own_stores_hide(struct vcpu *v)
{
	for (u32 i = v->shown ? v->nbuffered : 0; i--;) {
		struct buffered *b = &v->buffer[i];
		b->value = raw_load(b->addr, b->width) - (b->add ? b->under : 0);
		raw_store(b->addr, b->width, b->under);
	}
	v->shown = 0;
}

static u32 flush_agent(struct check *c, u32 vcpu, const volatile void *p)
{
	u32 first = c->first_flush, per, i, spare;

	if (c->model == MODEL_TSO)
		return first + vcpu;
	per = (c->first_mb - first) / c->nr_vcpus;
	first += vcpu * per;
	spare = first + per - 1; /* words beyond the last share it: they stay in order */
	for (i = first; i < spare; i++) {
		const volatile void *word = (const volatile void *)((uintptr_t)p & ~7UL);
		if (!c->agents[i].word) {
			c->agents[i].word = word;
			c->vcpus[vcpu].nwords++;
		}
		if (c->agents[i].word == word)
			return i;
	}
	c->vcpus[vcpu].nwords = per;
	return spare;
}

/* The one of a waiting store. Words get theirs in the order in which stores to them come up for becoming visible. */
static inline u32 flush_of(struct check *c, struct vcpu *v, struct buffered *b)
{
	if (!b->agent)
		b->agent = (u8)flush_agent(c, v->id, b->addr);
	return b->agent;
}

/* The flush agents of a vCPU that have taken steps are among [*first, the result). */
static inline u32 flush_agents(const struct check *c, u32 vcpu, u32 *first)
{
	u32 per = (c->first_mb - c->first_flush) / c->nr_vcpus;

	*first = c->first_flush + vcpu * per;
	return *first + (c->model == MODEL_TSO ? per : c->vcpus[vcpu].nwords);
}

/* The store that flush agent `a` makes visible next, or -1. */
static s32 buffer_head(struct check *c, u32 a)
{
	struct vcpu *v = &c->vcpus[c->agents[a].vcpu];

	if (!v->nbuffered)
		return -1;
	if (c->model == MODEL_TSO)
		return 0;
	for (u32 i = 0; i < v->nbuffered && v->buffer[i].epoch == v->buffer[0].epoch; i++)
		if (flush_of(c, v, &v->buffer[i]) == a)
			return (s32)i;
	return -1;
}

/* All agents that can make a store of v's visible. */
static u64 buffer_heads(struct check *c, struct vcpu *v)
{
	u64 set = 0;

	if (!v->nbuffered)
		return 0;
	if (c->model == MODEL_TSO)
		return bit(c->first_flush + v->id);
	for (u32 i = 0; i < v->nbuffered && v->buffer[i].epoch == v->buffer[0].epoch; i++)
		set |= bit(flush_of(c, v, &v->buffer[i]));
	return set;
}

/* pso, power: later stores may not pass earlier ones. */
static inline void new_epoch(struct vcpu *v)
{
	v->epoch += v->epoch_used;
	v->epoch_used = 0;
}

/* ---- power: views ---- */

static u16 *view_alloc(struct check *c)
{
	u16 *view, **more;

	if (unlikely(c->views_used + CHECK_VIEW > c->views_cap)) {
		c->views_used = 0;
		if (c->views_block == c->nmore_views) {
			if ((more = realloc(c->more_views, (c->nmore_views + 1) * sizeof(*more))))
				c->more_views = more;
			if (!more || !(more[c->nmore_views] = malloc(c->views_cap * sizeof(u16)))) {
				c->err = -ENOMEM; /* the execution ends here; what it overwrites does not matter */
				return c->views;
			}
			c->nmore_views++;
		}
		c->views_block++;
	}
	view = (c->views_block ? c->more_views[c->views_block - 1] : c->views) + c->views_used;
	c->views_used += CHECK_VIEW;
	memset(view, 0, CHECK_VIEW * sizeof(u16));
	return view;
}

static inline void view_join(u16 *to, const u16 *from)
{
	if (from && from != to)
		for (u32 i = 0; i < CHECK_VIEW; i++) /* always stored: so that compilers make vectors of it */
			to[i] = from[i] > to[i] ? from[i] : to[i];
}

static s32 view_index(struct check *c, struct word *w)
{
	if (w->view < 0 && c->nviews < CHECK_VIEW)
		w->view = (s16)c->nviews++;
	return w->view;
}

/* smp_rmb(): what was read so far binds what is read from now on. (An acquire binds by what it has read itself only.) */
static inline void power_acquire(struct vcpu *v) { view_join(v->view, v->seen); }

/* lwsync, release: what this CPU saw travels with its later stores. */
static inline void power_release(struct vcpu *v)
{
	view_join(v->rel, v->view);
	view_join(v->rel, v->seen);
}

static struct sync *sync_alloc(struct check *c)
{
	struct sync *more;

	if (c->nview_syncs == c->view_sync_cap) {
		if (!(more = realloc(c->view_syncs, (2 * c->view_sync_cap + 64) * sizeof(*more)))) {
			c->err = -ENOMEM;
			return NULL;
		}
		c->view_syncs = more;
		c->view_sync_cap = 2 * c->view_sync_cap + 64;
	}
	return &c->view_syncs[c->nview_syncs++];
}

/* sync, as part of the event that is being taken. */
static void power_sync(struct check *c, struct vcpu *v)
{
	struct sync *sync;

	power_acquire(v);
	view_join(v->view, v->flushed);
	if (c->explorer == EXPLORER_DPOR && (sync = sync_alloc(c))) {
		*sync = (struct sync){ .event = c->nevents, .vcpu = (u8)v->id, .gave = view_alloc(c) };
		view_join(sync->gave, v->view);
	}
	view_join(c->global_view, v->view);
	view_join(v->view, c->global_view);
	power_release(v);
}

/* The one that smp_mb_heavy() of another vCPU wants. */
static void power_sync_mb(struct check *c, struct vcpu *v)
{
	u32 n = c->nview_syncs;
	u16 *had = c->explorer == EXPLORER_DPOR ? view_alloc(c) : NULL;

	for (u32 i = 0; had && i < CHECK_VIEW; i++)
		had[i] = v->view[i] < v->rel[i] ? v->view[i] : v->rel[i];
	power_sync(c, v);
	if (c->nview_syncs > n) {
		struct sync *m = &c->view_syncs[n];
		m->had = had;
		m->got = view_alloc(c);
		view_join(m->got, v->view);
		m->seq = c->agents[v->id].seq;
	}
}

/* What a full barrier of v's would publish now. NULL: nobody will ask. */
static u16 *what_is_known(struct check *c, struct vcpu *v)
{
	u16 now[CHECK_VIEW];

	if (c->explorer != EXPLORER_DPOR || !(c->heavy || !(c->executions + c->blocked + c->failed)))
		return NULL;
	memcpy(now, v->view, sizeof(now));
	view_join(now, v->seen);
	view_join(now, v->flushed);
	if (!v->know || memcmp(v->know, now, sizeof(now))) {
		v->know = view_alloc(c);
		memcpy(v->know, now, sizeof(now));
	}
	return v->know;
}

/*
 * v took the rwsem of x, or gave it back. Writers see what everybody did under it before, readers what writers did:
 * that two readers came one after the other orders nothing, as partial-order reduction takes them to commute.
 */
static void power_rwsem(struct check *c, struct vcpu *v, struct access *x)
{
	s32 at;

	if (x->kind == A_RW_UNLOCKW || x->kind == A_RW_UNLOCKR) {
		new_epoch(v);
		power_release(v);
		x->view = view_alloc(c);
		view_join(x->view, v->rel);
		view_join(x->view, v->flushed);
		return;
	}
	if (x->kind != A_RW_LOCKW && x->kind != A_RW_LOCKR)
		return;
	for (at = x->prev; at >= 0; at = c->accesses[at].prev) {
		const struct access *from = &c->accesses[at];
		if (from->kind == A_RW_UNLOCKW || (from->kind == A_RW_UNLOCKR && x->kind == A_RW_LOCKW)) {
			view_join(v->seen, from->view);
			view_join(v->view, from->view);
			view_join(v->rel, from->view);
		}
		if (from->kind == A_RW_UNLOCKW)
			break;
	}
}

/* A store of v's becomes version n of w: what has to be seen with it. */
static void power_store(struct check *c, struct vcpu *v, struct word *w, struct access *x, const u16 *rel, u32 epoch)
{
	s32 i = view_index(c, w);

	x->version = ++w->versions;
	if (i < 0)
		return;
	if (epoch != v->flush_epoch) {
		view_join(v->flushed_epoch, v->flushed); /* stores of older epochs come before this one */
		v->flush_epoch = epoch;
	}
	x->view = view_alloc(c);
	view_join(x->view, rel);
	view_join(x->view, v->flushed_epoch);
	x->view[i] = x->version;
	v->flushed[i] = v->view[i] = v->own[i] = x->version;
}

/* The access that wrote version n of w, or NULL for the initial value. */
static struct access *power_version(struct check *c, struct word *w, u32 version)
{
	for (s32 at = w->writer; at >= 0; at = c->accesses[at].older_write)
		if (c->accesses[at].version == version)
			return &c->accesses[at];
	return NULL;
}

/* Does a load of v's, of clock `clk`, know of s? Of a P_MB also by whatever its vCPU did after it, see mb_races(). */
static bool sync_in_past(struct check *c, const struct vcpu *v, const struct sync *s, const u32 *clk)
{
	return s->event == c->nevents || clk_has(c, clk, s->event) || (s->had && (s->vcpu == v->id || clk[s->vcpu] > s->seq));
}

/*
 * The same load, and the barriers that smp_mb_heavy() made vCPUs execute (P_MB). Where these stand among the steps of
 * their vCPU is nobody's conflict either. If one made its vCPU see version `bound`, or hand it on, the next step of the
 * vCPU could have come before it. If one published it, it could have come before the step that let its vCPU know of it.
 */
static void mb_races(struct check *c, struct vcpu *v, u32 i, u16 bound, const u32 *clk)
{
	for (u32 k = 0; k < c->nview_syncs; k++) {
		const struct sync *m = &c->view_syncs[k];
		s64 e, found = -1;

		if (!m->had || !sync_in_past(c, v, m, clk))
			continue;
		if (m->had[i] < bound && m->got[i] >= bound && (m->vcpu == v->id || clk[m->vcpu] > m->seq)) {
			const u32 *then = clk;
			for (e = m->event + 1; e < c->nevents && c->events[e].agent != m->vcpu; e++)
				;
			if (e < c->nevents)
				then = clk_of(c, (u64)e);
			if (!clk_has(c, then, m->event)) {
				c->nodes[m->event].marks.mbs |= bit(c->first_mb + m->vcpu);
				race(c, m->event, (u32)e, m->vcpu, then);
			}
		}
		if (m->gave[i] < bound)
			continue;
		for (e = (s64)m->event - 1; e >= 0; e--) {
			const struct event *r = &c->events[e];
			const struct agent *ag = &c->agents[r->agent];
			if (ag->vcpu != m->vcpu || ag->kind == AGENT_IRQ)
				continue;
			if (!r->know || r->know[i] < bound)
				break;
			found = e;
		}
		if (found >= 0 && !clk_has(c, clk_of(c, m->event), (u32)found)) {
			c->nodes[found].marks.mbs |= bit(c->events[found].agent);
			race(c, (u32)found, m->event, c->first_mb + m->vcpu, clk_of(c, m->event));
		}
	}
}

/*
 * A load of word i by v returns version `bound` at least, because of what full barriers of others made visible, among
 * other reasons perhaps. The order of two full barriers is nobody's conflict, as long as it makes no difference; here it
 * does. So barriers t, before s, which comes before the load, could have come after it, and then the load may return less.
 */
static void sync_races(struct check *c, struct vcpu *v, u32 i, u16 bound, const u32 *clk)
{
	for (u32 k = c->nview_syncs; k--;) {
		const struct sync *s = &c->view_syncs[k];
		if (s->gave[i] >= bound || !sync_in_past(c, v, s, clk))
			continue;
		for (u32 n = k; n--;) {
			const struct sync *t = &c->view_syncs[n];
			u32 a = c->events[t->event].agent;
			if (t->vcpu == s->vcpu || t->gave[i] < bound || t->event == s->event
			    || clk_has(c, s->event == c->nevents ? clk : clk_of(c, s->event), t->event))
				continue;
			c->nodes[t->event].marks.syncs |= bit(a);
			race(c, t->event, s->event, s->event == c->nevents ? v->id : c->events[s->event].agent,
			     s->event == c->nevents ? clk : clk_of(c, s->event));
		}
	}
}

/* How many older versions than the newest this load may return. `clk`: the vCPU's clock before the load. */
static u32 power_stale(struct check *c, struct vcpu *v, struct word *w, const struct pend *p, const u32 *clk)
{
	s32 i = w->versions ? view_index(c, w) : -1;
	u32 floor, n = 0;
	u16 bound;

	if (i < 0)
		return 0;
	bound = v->view[i];
	if (p->dep && v->loads - p->dep < CHECK_LOADS && v->load_view[(p->dep - 1) % CHECK_LOADS]
	    && v->load_view[(p->dep - 1) % CHECK_LOADS][i] > bound)
		bound = v->load_view[(p->dep - 1) % CHECK_LOADS][i];
	for (floor = w->versions; floor > bound; floor--) {
		struct access *x = power_version(c, w, floor);
		if (!x || (x->mask & byte_mask(p->addr, p->width)) != byte_mask(p->addr, p->width))
			break; /* of mixed sizes: the newest only */
		if (c->explorer == EXPLORER_DPOR && !clk_has(c, clk, x->event))
			break; /* the schedule with the load first shows the older value */
		if (floor - 1 == v->own[i] && v->late[i] >= CHECK_LATE)
			break; /* a loop that looks again until it sees the newer one comes to its end */
		n++;
	}
	if (floor == bound && bound && v->own[i] < bound && c->explorer == EXPLORER_DPOR && n < 7) {
		struct access *x = power_version(c, w, bound);
		if (x && (x->mask & byte_mask(p->addr, p->width)) == byte_mask(p->addr, p->width) && clk_has(c, clk, x->event))
		{
			sync_races(c, v, (u32)i, bound, clk);
			mb_races(c, v, (u32)i, bound, clk);
		}
	}
	return n > 7 ? 7 : n;
}

#endif
