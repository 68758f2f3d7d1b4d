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
 * simplified: no load buffering (a load never returns a later store).
 *
 * simplified: under power at most CHECK_VIEW words that an execution writes are read stale, by at most seven versions.
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
		if (!c->agents[i].word)
			c->agents[i].word = word;
		if (c->agents[i].word == word)
			return i;
	}
	return spare;
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
		if (flush_agent(c, v->id, v->buffer[i].addr) == a)
			return (s32)i;
	return -1;
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
	u16 *view;

	if (c->views_used + CHECK_VIEW > c->views_cap) {
		c->err = -ENOSPC;
		c->views_used = 0;
	}
	view = c->views + c->views_used;
	c->views_used += CHECK_VIEW;
	memset(view, 0, CHECK_VIEW * sizeof(u16));
	return view;
}

static inline void view_join(u16 *to, const u16 *from)
{
	if (from)
		for (u32 i = 0; i < CHECK_VIEW; i++)
			if (from[i] > to[i])
				to[i] = from[i];
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

static void power_sync(struct check *c, struct vcpu *v)
{
	power_acquire(v);
	view_join(v->view, v->flushed);
	view_join(c->global_view, v->view);
	view_join(v->view, c->global_view);
	power_release(v);
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
	v->flushed[i] = v->view[i] = x->version;
}

/* The access that wrote version n of w, or NULL for the initial value. */
static struct access *power_version(struct check *c, struct word *w, u32 version)
{
	for (s32 at = w->head; at >= 0; at = c->accesses[at].prev)
		if (c->accesses[at].kind == A_WRITE && c->accesses[at].version == version)
			return &c->accesses[at];
	return NULL;
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
		n++;
	}
	return n > 7 ? 7 : n;
}

#endif
