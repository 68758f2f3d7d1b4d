/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Data races: plain accesses (check_plain()) that synchronisation does not order. Vector clocks over vCPUs, as
 * FastTrack; what synchronises is what Linux's memory model counts: release to acquire, an acquire or a read
 * barrier after a load to a store after a release or a write barrier, locks, full barriers likewise. That one access
 * happened to come first in this schedule orders nothing. On when the program says that it has plain accesses.
 * simplified: smp_wmb() also orders earlier loads; accesses of one object must have one size.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_RACE_H
#define KMM_CHECK_RACE_H

#include "kmm/check_sched.h"

#define RACE_CPUS CHECK_MAX_VCPUS

struct race_cell {
	u64 key;
	u32 epoch;
	u32 rel[RACE_CPUS];                             /* what the newest store released */
	u32 plain_write[RACE_CPUS], plain_read[RACE_CPUS]; /* when, on each CPU's own clock; 0 = never */
	u32 marked_write[RACE_CPUS], marked_read[RACE_CPUS];
};

static void cells_grow(struct check *c)
{
	u32 mask = c->cells ? 2 * (c->cells_mask + 1) - 1 : 255;
	struct race_cell *cells = calloc((size_t)mask + 1, sizeof(*cells));

	if (!cells) {
		c->err = -ENOMEM;
		return;
	}
	for (u32 i = 0; c->cells && i <= c->cells_mask; i++) {
		u32 at = (u32)check_mix(c->cells[i].key) & mask;
		if (!c->cells[i].key || c->cells[i].epoch != c->epoch)
			continue;
		while (cells[at].key)
			at = (at + 1) & mask;
		cells[at] = c->cells[i];
	}
	free(c->cells);
	c->cells = cells;
	c->cells_mask = mask;
}

static struct race_cell *cell_of(struct check *c, const volatile void *p)
{
	u64 key = (uintptr_t)p;
	u32 at, probes = 0;

	if (!c->cells)
		cells_grow(c);
	if (c->err)
		return NULL;
	for (at = (u32)check_mix(key) & c->cells_mask; c->cells[at].key && c->cells[at].key != key; at = (at + 1) & c->cells_mask)
		if (++probes > 16) {
			cells_grow(c);
			return cell_of(c, p);
		}
	if (c->cells[at].epoch != c->epoch || !c->cells[at].key) {
		memset(&c->cells[at], 0, sizeof(c->cells[at]));
		c->cells[at].key = key;
		c->cells[at].epoch = c->epoch;
	}
	return &c->cells[at];
}

static inline void race_join(u32 *to, const u32 *from)
{
	for (u32 i = 0; i < RACE_CPUS; i++)
		if (from[i] > to[i])
			to[i] = from[i];
}

/* Accesses of other CPUs, in `when`, that are not in v's past: 1 + the CPU, or 0. */
static u32 race_unordered(const struct vcpu *v, const u32 *when)
{
	for (u32 i = 0; i < RACE_CPUS; i++)
		if (i != v->id && when[i] > v->sync[i])
			return i + 1;
	return 0;
}

static void race_report(struct check *c, struct vcpu *v, const volatile void *p, const char *mine, u32 other, const char *theirs)
{
	char name[96];

	describe(c, p, name, sizeof(name));
	check_violation(c, CHECK_DATA_RACE, "%s of %s by Cpu %u and %s by Cpu %u are not ordered by any synchronisation",
			mine, name, v->id,
			theirs, other - 1);
}

/* A release: what was done so far is published with the store, and the CPU's clock goes on. */
static void race_publish(struct vcpu *v, u32 *rel, enum kmm_order order, bool keep)
{
	if (!keep)
		memset(rel, 0, RACE_CPUS * sizeof(u32));
	race_join(rel, order == KMM_RELAXED || order == KMM_ACQUIRE ? v->sync_rel : v->sync);
	v->sync[v->id]++;
}

/* After a marked access. `what`: 0 = load, 1 = store, 2 = read-modify-write.
 * simplified: a store that still waits in a buffer publishes at once. */
static void race_marked(struct check *c, struct vcpu *v, const volatile void *p, unsigned width, int what, enum kmm_order order)
{
	struct race_cell *cell;
	u32 other;

	if (likely(!c->races) || c->over || !(cell = cell_of(c, p)))
		return;
	if (what != 1)
		race_join(order == KMM_RELAXED || order == KMM_RELEASE ? v->sync_acq : v->sync, cell->rel);
	if ((other = race_unordered(v, cell->plain_write)))
		race_report(c, v, p, what ? "a marked store" : "a marked load", other, "a plain store");
	else if (what && (other = race_unordered(v, cell->plain_read)))
		race_report(c, v, p, "a marked store", other, "a plain load");
	(what ? cell->marked_write : cell->marked_read)[v->id] = v->sync[v->id];
	if (what)
		race_publish(v, cell->rel, order, what == 2);
	if (c->failed_run)
		leave(c, v);
}

static void race_plain(struct check *c, struct vcpu *v, const volatile void *p, unsigned width, int write)
{
	struct race_cell *cell;
	const char *mine = write ? "a plain store" : "a plain load";
	u32 other;

	if (!c->races || !(cell = cell_of(c, p)))
		return;
	if ((other = race_unordered(v, cell->plain_write)))
		race_report(c, v, p, mine, other, "a plain store");
	else if ((other = race_unordered(v, cell->marked_write)))
		race_report(c, v, p, mine, other, "a marked store");
	else if (write && (other = race_unordered(v, cell->plain_read)))
		race_report(c, v, p, mine, other, "a plain load");
	else if (write && (other = race_unordered(v, cell->marked_read)))
		race_report(c, v, p, mine, other, "a marked load");
	(write ? cell->plain_write : cell->plain_read)[v->id] = v->sync[v->id];
}

static void race_release(struct check *c, struct vcpu *v, const volatile void *lock)
{
	struct race_cell *cell;

	if (likely(!c->races) || c->over || !(cell = cell_of(c, lock)))
		return;
	race_publish(v, cell->rel, KMM_RELEASE, true);
}

static void race_acquire(struct check *c, struct vcpu *v, const volatile void *lock)
{
	struct race_cell *cell;

	if (likely(!c->races) || c->over || !(cell = cell_of(c, lock)))
		return;
	race_join(v->sync, cell->rel);
}

static void race_fence(struct check *c, struct vcpu *v, enum kmm_fence kind)
{
	if (likely(!c->races) || kind == KMM_MB_LIGHT)
		return;
	if (kind != KMM_WMB)
		race_join(v->sync, v->sync_acq);
	if (kind != KMM_RMB) {
		memcpy(v->sync_rel, v->sync, sizeof(v->sync));
		v->sync[v->id]++;
	}
}

/* b executes a full barrier for a, which waits for it: each has seen what the other did before. */
static void race_handshake(struct check *c, struct vcpu *a, struct vcpu *b)
{
	if (likely(!c->races))
		return;
	race_join(b->sync, b->sync_acq);
	race_join(b->sync, a->sync);
	race_join(a->sync, b->sync);
	memcpy(b->sync_rel, b->sync, sizeof(b->sync));
	a->sync[a->id]++;
	b->sync[b->id]++;
}

static void race_begin(struct vcpu *v)
{
	memset(v->sync, 0, sizeof(v->sync));
	memset(v->sync_rel, 0, sizeof(v->sync_rel));
	memset(v->sync_acq, 0, sizeof(v->sync_acq));
	v->sync[v->id] = 1;
}

#endif
