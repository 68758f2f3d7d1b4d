/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kernel/kcsan/core.c stands behind the question, not behind the answer: data races, two accesses of different CPUs to
 * the same bytes, one of them a write, one of them plain, that synchronisation does not order. Vector clocks over vCPUs,
 * as FastTrack; what synchronises is what Linux's memory model counts:
 *
 *   release to acquire        smp_store_release(), full atomics, locks, full barriers; a store after smp_wmb() and a
 *                             load before smp_rmb() likewise; a later store of the same CPU to the same word too
 *   address dependency        a relaxed load that returns an address of the program's memory, or reads a page table
 *   rwsem                     a writer with everybody; readers not with each other
 *   interrupts                what came before the IPI with its handler, the handler's CPU with whoever waited for it
 *
 * That one access happened to come first in this schedule orders nothing. Plain accesses are no steps. They come from
 * check_plain(), or from modules that were built for it (kmm/plain.h). As KCSAN with KCSAN_ASSUME_PLAIN_WRITES_ATOMIC=n:
 * a plain write races with a marked read, a plain read with a marked write, and words are not taken to be written whole.
 *
 * simplified: smp_wmb() also orders earlier loads; everything after a load of an address counts as dependent on it; what
 * an interrupt handler reads and writes with marked accesses is not looked at.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_RACE_H
#define KMM_CHECK_RACE_H

#include "kmm/check_sched.h"

#define RACE_CPUS CHECK_MAX_VCPUS

/* What synchronisation through a word publishes: found by its address. */
struct race_sync {
	u64 key;
	u32 epoch;
	u32 owner;                      /* 1 + the CPU of the newest store */
	u32 rel[RACE_CPUS];             /* what that store, or the lock's last writer, released */
	u32 readers[RACE_CPUS];         /* rwsem: what its readers released */
};

/* The newest accesses of one kind by one CPU to some bytes of a word. */
enum { RACE_WRITE = 1, RACE_PLAIN = 2, RACE_ALLOC = 4, RACE_FREE = 8 };
struct race_access {
	u32 when;                       /* on the CPU's own clock */
	u8 cpu, what, mask;
	s32 next;                       /* of the same word, or -1 */
	const void *pc;                 /* return address, NULL = not known */
};

/* A word and its accesses: found by its address / 8. */
struct race_word {
	u64 key;
	u32 epoch;
	s32 first;
};

/* ---- tables: open addressing; entries of older executions are free to be begun anew, not to be removed ---- */

static bool race_syncs_grow(struct check *c)
{
	u32 mask = c->syncs ? 2 * (c->syncs_mask + 1) - 1 : 255;
	struct race_sync *more = calloc((size_t)mask + 1, sizeof(*more));

	if (!more) {
		c->err = -ENOMEM;
		return false;
	}
	c->nsyncs = 0;
	for (u32 i = 0; c->syncs && i <= c->syncs_mask; i++) {
		u32 at = (u32)check_mix(c->syncs[i].key) & mask;
		if (!c->syncs[i].key || c->syncs[i].epoch != c->epoch)
			continue;
		while (more[at].key)
			at = (at + 1) & mask;
		more[at] = c->syncs[i];
		c->nsyncs++;
	}
	free(c->syncs);
	c->syncs = more;
	c->syncs_mask = mask;
	return true;
}

static struct race_sync *sync_of(struct check *c, const volatile void *p)
{
	u64 key = (uintptr_t)p;
	struct race_sync *s;
	u32 at;

	if (unlikely(!c->syncs || 2 * c->nsyncs > c->syncs_mask) && !race_syncs_grow(c))
		return NULL;
	for (at = (u32)check_mix(key) & c->syncs_mask; c->syncs[at].key != key; at = (at + 1) & c->syncs_mask)
		if (!c->syncs[at].key) {
			c->syncs[at].key = key;
			c->nsyncs++;
			break;
		}
	s = &c->syncs[at];
	if (s->epoch != c->epoch) {
		memset(s, 0, sizeof(*s));
		s->key = key;
		s->epoch = c->epoch;
	}
	return s;
}

static bool race_words_grow(struct check *c)
{
	u32 mask = c->race_words ? 2 * (c->race_words_mask + 1) - 1 : 1023;
	struct race_word *more = calloc((size_t)mask + 1, sizeof(*more));

	if (!more) {
		c->err = -ENOMEM;
		return false;
	}
	c->nrace_words = 0;
	for (u32 i = 0; c->race_words && i <= c->race_words_mask; i++) {
		u32 at = (u32)(c->race_words[i].key * 0x9E3779B97F4A7C15ULL >> 32) & mask;
		if (!c->race_words[i].key || c->race_words[i].epoch != c->epoch)
			continue;
		while (more[at].key)
			at = (at + 1) & mask;
		more[at] = c->race_words[i];
		c->nrace_words++;
	}
	free(c->race_words);
	c->race_words = more;
	c->race_words_mask = mask;
	return true;
}

/* `make` false: NULL when nothing is known of it. */
static struct race_word *race_word_of(struct check *c, u64 key, bool make)
{
	struct race_word *w;
	u32 at;

	if (unlikely(!c->race_words || 2 * c->nrace_words > c->race_words_mask) && !race_words_grow(c))
		return NULL;
	at = (u32)(key * 0x9E3779B97F4A7C15ULL >> 32) & c->race_words_mask;
	for (; c->race_words[at].key != key; at = (at + 1) & c->race_words_mask)
		if (!c->race_words[at].key) {
			if (!make)
				return NULL;
			c->race_words[at].key = key;
			c->nrace_words++;
			break;
		}
	w = &c->race_words[at];
	if (w->epoch != c->epoch) {
		w->epoch = c->epoch;
		w->first = -1;
	}
	return w;
}

static bool race_push(struct check *c, struct race_word *w, const struct race_access *x)
{
	if (unlikely(c->nrace_accesses == c->race_access_cap)) {
		u32 cap = c->race_access_cap ? 2 * c->race_access_cap : 1024;
		void *more = realloc(c->race_accesses, cap * sizeof(*c->race_accesses));
		if (!more) {
			c->err = -ENOMEM;
			return false;
		}
		c->race_accesses = more;
		c->race_access_cap = cap;
	}
	c->race_accesses[c->nrace_accesses] = *x;
	c->race_accesses[c->nrace_accesses].next = w->first;
	w->first = (s32)c->nrace_accesses++;
	return true;
}

/* ---- accesses ---- */

/* "a plain store at 0x7f..., by Cpu 1"; the front end turns the place into the function's name (symbols.with_names()). */
static void race_side(const struct check *c, const struct race_access *x, char *buf, size_t n)
{
	static const char *const names[] = {
		[0] = "a marked load", [RACE_WRITE] = "a marked store", [RACE_PLAIN] = "a plain load",
		[RACE_PLAIN | RACE_WRITE] = "a plain store",
	};
	const char *what = x->what & RACE_ALLOC ? "the allocation" : x->what & RACE_FREE ? "the free"
			   : names[x->what & (RACE_PLAIN | RACE_WRITE)];

	if (x->pc && c->prog.shared_size)
		snprintf(buf, n, "%s at pc %#lx", what, (unsigned long)(uintptr_t)x->pc);
	else
		snprintf(buf, n, "%s", what);
}

static void race_report(struct check *c, u64 key, u8 mask, const struct race_access *mine, const struct race_access *other)
{
	char name[96], one[64], two[64];

	describe(c, (const void *)(uintptr_t)((key << 3) + (u64)__builtin_ctz(mask)), name, sizeof(name));
	race_side(c, mine, one, sizeof(one));
	race_side(c, other, two, sizeof(two));
	/* An access that nothing keeps before the free is one after it, in some other execution. */
	check_violation(c, (mine->what | other->what) & RACE_FREE ? CHECK_UAF : CHECK_DATA_RACE,
			"%s of %s by Cpu %u and %s by Cpu %u are not ordered by any synchronisation", one, name, mine->cpu, two,
			other->cpu);
}

/* A whole frame is one entry beside its words: who allocated it. */
#define RACE_FRAME (1ULL << 63)

/* One access of v to bytes of one word; looks, then enters it. `enter` false: looks only. */
static void race_access_word(struct check *c, struct vcpu *v, u64 key, u64 entry, u8 mask, u8 what, const void *pc, bool enter)
{
	struct race_word *w = race_word_of(c, entry, enter);
	struct race_access x = { .when = v->sync[v->id], .cpu = (u8)v->id, .what = what, .mask = mask, .pc = pc };
	struct race_access *same = NULL;

	if (unlikely(!w))
		return;
	for (s32 at = w->first; at >= 0; at = c->race_accesses[at].next) {
		struct race_access *o = &c->race_accesses[at];
		u8 both = o->what | what;
		if (o->cpu == v->id) {
			if (o->what == what && o->mask == mask)
				same = o;
		} else if (o->mask & mask && both & RACE_WRITE && both & RACE_PLAIN && o->when > v->sync[o->cpu]) {
			race_report(c, key, o->mask & mask, &x, o);
			return;
		}
	}
	if (same) {
		same->when = x.when;
		same->pc = pc;
	} else if (enter)
		race_push(c, w, &x);
}

static void race_access(struct check *c, struct vcpu *v, const volatile void *p, size_t n, u8 what, const void *pc)
{
	u64 at = (uintptr_t)p, end = at + n;

	if (at - (uintptr_t)c->prog.frames < c->prog.frames_size) {
		bool whole = what & RACE_ALLOC;
		race_access_word(c, v, at >> 3, RACE_FRAME | at >> c->prog.frame_shift, 0xff, what, pc, whole);
		if (whole)
			return; /* its words were nobody's before */
	}
	while (at < end && !c->over && !c->err) {
		u64 word = at >> 3, stop = (word + 1) << 3 < end ? (word + 1) << 3 : end;
		race_access_word(c, v, word, word, (u8)(((1u << (stop - at)) - 1) << (at & 7)), what, pc, !(what & RACE_FREE));
		at = stop;
	}
}

/* A store, or an unlock: what was done so far is published with it, and the CPU's clock goes on. */
static void race_publish(struct vcpu *v, struct race_sync *s, enum kmm_order order, bool keep)
{
	if (!keep && s->owner != v->id + 1)
		memset(s->rel, 0, sizeof(s->rel));
	if (!keep)
		s->owner = v->id + 1;
	race_join(s->rel, order == KMM_RELAXED || order == KMM_ACQUIRE ? v->sync_rel : v->sync);
	v->sync[v->id]++;
}

/* What follows a relaxed load depends on it: it returned an address of the program's memory, or an entry of a page table. */
static inline bool race_depends(const struct check *c, const volatile void *p, u64 value)
{
	return value - (uintptr_t)c->prog.shared < c->prog.shared_size
	       || (uintptr_t)p - (uintptr_t)c->prog.frames < c->prog.frames_size;
}

/* A place for a clock; 0 = no memory, else 1 + its place. */
static u32 race_rel_alloc(struct check *c)
{
	void *more;

	if (c->nrace_rels == c->race_rel_cap) {
		if (!(more = realloc(c->race_rels, (2 * (size_t)c->race_rel_cap + 64) * sizeof(*c->race_rels)))) {
			c->err = -ENOMEM;
			return 0;
		}
		c->race_rels = more;
		c->race_rel_cap = 2 * c->race_rel_cap + 64;
	}
	return ++c->nrace_rels;
}

/* power: older versions can be read as well: what the newest one of p published is kept with it. */
static void race_keep(struct check *c, const struct race_sync *s, struct access *x)
{
	if (c->model == MODEL_POWER && x && (x->sync = race_rel_alloc(c)))
		memcpy(c->race_rels[x->sync - 1], s->rel, sizeof(s->rel));
}

/* v's store b becomes visible, as access x: now others can read what it publishes. */
static void race_visible(struct check *c, struct vcpu *v, const struct buffered *b, struct access *x)
{
	struct race_sync *s;

	if (likely(!c->races) || !b->sync || !(s = sync_of(c, b->addr)))
		return;
	if (!b->add) {
		if (s->owner != v->id + 1)
			memset(s->rel, 0, sizeof(s->rel));
		s->owner = v->id + 1;
	}
	race_join(s->rel, c->race_rels[b->sync - 1]);
	race_keep(c, s, x);
}

/* A store that waits in v's buffer. */
static void race_buffered(struct check *c, struct vcpu *v, enum kmm_order order)
{
	struct buffered *b = v->nbuffered ? &v->buffer[v->nbuffered - 1] : NULL;

	if (b && (b->sync = race_rel_alloc(c)))
		memcpy(c->race_rels[b->sync - 1], order == KMM_RELAXED || order == KMM_ACQUIRE ? v->sync_rel : v->sync, sizeof(v->sync));
	v->sync[v->id]++;
}

/* After a marked access. `what`: 0 = load, 1 = store, 2 = read-modify-write; `value`: what it returned. */
static void race_marked(struct check *c, struct vcpu *v, const volatile void *p, unsigned width, int what, enum kmm_order order,
			u64 value, const void *pc)
{
	struct race_sync *s;
	const u32 *rel;
	u64 own;

	if (likely(!c->races) || c->over || !(s = sync_of(c, p)))
		return;
	/* What the load's store published; nothing new when it is the CPU's own, in its buffer. */
	rel = what == 1 || (v->nbuffered && buffer_forward(v, p, width, &own) > 0) ? NULL
	      : what == 0 && v->load_stale ? v->load_sync ? c->race_rels[v->load_sync - 1] : NULL : s->rel;
	if (rel) {
		bool acquire = order == KMM_ACQUIRE || order == KMM_SEQ_CST || race_depends(c, p, value);
		race_join(v->sync_acq, rel);
		if (acquire)
			race_join(v->sync, rel);
	}
	v->load_stale = 0;
	race_access(c, v, p, width, what ? RACE_WRITE : 0, pc);
	if (what == 1 && c->model != MODEL_SC)
		race_buffered(c, v, order);
	else if (what)
		race_publish(v, s, order, what == 2);
	if (what == 2 && c->model == MODEL_POWER && c->agents[v->id].last >= 0) {
		struct word *w = word_of(c, p);
		if (w->writer >= 0 && (s64)c->accesses[w->writer].event == c->agents[v->id].last)
			race_keep(c, s, &c->accesses[w->writer]);
	}
	if (c->failed_run)
		leave(c, v);
}

/* `write`: 1 = a store, 2 = the memory was allocated, 3 = it is freed. */
static void race_plain(struct check *c, struct vcpu *v, const volatile void *p, size_t n, int write, const void *pc)
{
	if (c->races)
		race_access(c, v, p, n, RACE_PLAIN | (write ? RACE_WRITE : 0) | (write == 2 ? RACE_ALLOC : write == 3 ? RACE_FREE : 0), pc);
}

/* ---- synchronisation ---- */

static void race_release(struct check *c, struct vcpu *v, const volatile void *lock, enum kmm_lock_op op)
{
	struct race_sync *s;

	if (likely(!c->races) || c->over || !(s = sync_of(c, lock)))
		return;
	race_join(op == KMM_UP_READ ? s->readers : s->rel, v->sync);
	v->sync[v->id]++;
}

static void race_acquire(struct check *c, struct vcpu *v, const volatile void *lock, enum kmm_lock_op op)
{
	struct race_sync *s;

	if (likely(!c->races) || c->over || !(s = sync_of(c, lock)))
		return;
	race_join(v->sync, s->rel);
	if (op == KMM_DOWN_WRITE || op == KMM_DOWN_WRITE_TRYLOCK)
		race_join(v->sync, s->readers);
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
	memset(v->sync_irq, 0, sizeof(v->sync_irq));
	v->sync[v->id] = 1;
}

#endif
