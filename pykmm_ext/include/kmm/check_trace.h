/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The trace of an execution: words and who accessed them, vector clocks, and races, from which source-DPOR
 * (Abdulla, Aronis, Jonsson, Sagonas: POPL'14, JACM'17) learns which other schedules are worth running.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_TRACE_H
#define KMM_CHECK_TRACE_H

#include "kmm/check_types.h"

static inline u64 bit(u32 n) { return 1ULL << n; }

static inline u64 check_mix(u64 x)
{
	x ^= x >> 30; x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27; x *= 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static inline u32 *clk_of(struct check *c, u64 event) { return c->clk + event * c->nr_agents; }

static inline void clk_join(u32 *to, const u32 *from, u32 n)
{
	for (u32 i = 0; i < n; i++)
		if (from[i] > to[i])
			to[i] = from[i];
}

/* Is event `e` in the past that `clk` describes? */
static inline bool clk_has(struct check *c, const u32 *clk, u32 e)
{
	return clk[c->events[e].agent] >= c->events[e].seq;
}

/* A vCPU and its store buffer order their own accesses among themselves. */
static inline bool same_family(struct check *c, u32 a, u32 b)
{
	return c->agents[a].vcpu == c->agents[b].vcpu && c->agents[a].kind != AGENT_IRQ && c->agents[b].kind != AGENT_IRQ;
}

/* Which bytes of its word an access covers; an access never crosses a word. */
static inline u8 byte_mask(const volatile void *p, unsigned width)
{
	return (u8)((width >= 8 ? 0xff : (1u << width) - 1) << ((uintptr_t)p & 7));
}

static inline u64 word_value(const volatile void *p)
{
	return *(const volatile u64 *)((uintptr_t)p & ~7UL);
}

/* The value of `width` bytes at p, out of the word's value. */
static inline u64 word_extract(u64 word, const volatile void *p, unsigned width)
{
	word >>= 8 * ((uintptr_t)p & 7);
	return width >= 8 ? word : word & ((1ULL << 8 * width) - 1);
}

static void words_grow(struct check *c)
{
	u32 old_mask = c->words_mask, mask = 2 * (old_mask + 1) - 1;
	struct word *words = calloc((size_t)mask + 1, sizeof(*words)), *old = c->words;

	if (!words) {
		c->err = -ENOMEM;
		return;
	}
	for (u32 i = 0; i <= old_mask; i++) {
		u32 at;
		if (!old[i].key || old[i].epoch != c->epoch)
			continue; /* of earlier executions: made again when it is met again */
		at = (u32)(old[i].key * 0x9E3779B97F4A7C15ULL >> 40) & mask;
		while (words[at].key)
			at = (at + 1) & mask;
		words[at] = old[i];
	}
	c->nwords = 0;
	for (u32 i = 0; i <= mask; i++)
		c->nwords += words[i].key != 0;
	free(old);
	c->words = words;
	c->words_mask = mask;
}

/* The page of address p in the table of pages; NULL: no memory. */
static struct touched_page *touched_page_of(struct check *c, u64 page, bool make)
{
	u32 at;

	if (make && (!c->pages || c->npages > c->pages_mask / 2)) {
		u32 mask = c->pages ? 2 * c->pages_mask + 1 : 255, old = c->pages ? c->pages_mask + 1 : 0;
		struct touched_page *more = calloc((size_t)mask + 1, sizeof(*more));
		if (!more) {
			c->err = -ENOMEM;
			return NULL;
		}
		c->npages = 0;
		for (u32 i = 0; i < old; i++) {
			if (!c->pages[i].page || c->pages[i].epoch != c->epoch)
				continue;
			for (at = (u32)check_mix(c->pages[i].page) & mask; more[at].page; at = (at + 1) & mask)
				;
			more[at] = c->pages[i];
			c->npages++;
		}
		free(c->pages);
		c->pages = more;
		c->pages_mask = mask;
	}
	if (!c->pages)
		return NULL;
	for (at = (u32)check_mix(page) & c->pages_mask; c->pages[at].page != page; at = (at + 1) & c->pages_mask)
		if (!c->pages[at].page) {
			if (!make)
				return NULL;
			c->pages[at].page = page;
			c->npages++;
			break;
		}
	if (c->pages[at].epoch != c->epoch) {
		c->pages[at].epoch = c->epoch;
		c->pages[at].head = -1;
	}
	return &c->pages[at];
}

/* A word was met: into the list of its page. */
static void touch(struct check *c, u64 key)
{
	struct touched_page *page;

	if (c->ntouched == c->touched_cap) {
		u32 cap = c->touched_cap ? 2 * c->touched_cap : 1024;
		void *more = realloc(c->touched, cap * sizeof(*c->touched));
		if (!more) {
			c->err = -ENOMEM;
			return;
		}
		c->touched = more;
		c->touched_cap = cap;
	}
	page = touched_page_of(c, key >> 9, true);
	if (!page)
		return;
	c->touched[c->ntouched] = (struct touched){ key, page->head };
	page->head = (s32)c->ntouched++;
}

/* The word around p, made when it is met for the first time in this execution. */
static struct word *word_of(struct check *c, const volatile void *p)
{
	u64 key = (uintptr_t)p >> 3;
	u32 at = (u32)(key * 0x9E3779B97F4A7C15ULL >> 40) & c->words_mask;
	struct word *w;

	while (c->words[at].key != key) {
		if (!c->words[at].key) {
			if (unlikely(c->nwords > c->words_mask / 2)) {
				words_grow(c);
				if (c->err)
					return &c->words[at];
				return word_of(c, p);
			}
			c->words[at].key = key;
			c->nwords++;
			break;
		}
		at = (at + 1) & c->words_mask;
	}
	w = &c->words[at];
	if (w->epoch != c->epoch) {
		w->epoch = c->epoch;
		w->head = w->writer = -1;
		w->versions = 0;
		w->view = -1;
		if (c->prog.event)
			touch(c, key);
		if (c->model == MODEL_POWER)
			w->initial = word_value(p);
	}
	return w;
}

static struct access *access_push(struct check *c, struct word *w, u32 event, u8 kind, u8 mask)
{
	struct access *x;

	if (unlikely(c->naccesses == c->access_cap)) {
		u32 cap = 2 * c->access_cap;
		struct access *more = realloc(c->accesses, cap * sizeof(*more));
		if (!more) {
			c->err = -ENOMEM;
			c->naccesses--;
		} else {
			c->accesses = more;
			c->access_cap = cap;
		}
	}
	x = &c->accesses[c->naccesses];
	x->event = event;
	x->prev = w->head;
	x->older_write = w->writer;
	x->kind = kind;
	x->mask = mask;
	x->view = NULL;
	x->version = 0;
	x->answer = x->sync = 0;
	w->head = (s32)c->naccesses++;
	if (kind == A_WRITE)
		w->writer = w->head;
	return x;
}

/*
 * Events i (past) and e (agent a, being taken, its clock so far is `clk`) race: e could have come first. See that
 * a schedule in which it does is explored, unless one already is: with v = what comes after i without depending
 * on it (nor on the events `gone`, which are newer than i and would keep e from going on), then e, some agent that
 * can begin v must be tried in place of i.
 */
static void race_without(struct check *c, u32 i, const u32 *gone, u32 ngone, u32 e, u32 a, const u32 *clk)
{
	struct node *node = &c->nodes[i];
	u32 start = i;
	u64 seen = 0, init = 0;
	u32 first[CHECK_MAX_AGENTS];
	u32 ai = c->events[i].agent, si = c->events[i].seq, k;

	if (c->explorer != EXPLORER_DPOR || i < c->nfixed || node->forced)
		return;
	if (c->bound >= 0) {
		/* A bounded search must also try at the beginning of the block that i is in, where the switch may cost no
		 * preemption (Coons, Musuvathi, McKinley: OOPSLA'13), and wherever the block's vCPU could not go on. */
		while (start > c->nfixed && c->nodes[start].current == c->nodes[start - 1].current) {
			struct node *at = &c->nodes[start--];
			if (at->before != 0xff && !(at->enabled & bit(at->before)))
				at->backtrack |= at->enabled & bit(a) ? bit(a) : at->enabled;
		}
		/* Nor may anybody else take the agent's place: that could cost more preemptions. */
		node->backtrack |= node->enabled & bit(a) ? bit(a) : node->enabled;
		node = &c->nodes[start];
		node->backtrack |= node->enabled & bit(a) ? bit(a) : node->enabled;
		return;
	}
	if (node->backtrack == node->enabled)
		return;
	for (k = i + 1; k < e; k++) {
		const u32 *ck = clk_of(c, k);
		u32 b = c->events[k].agent;
		u64 rest;
		if (ck[ai] >= si || seen & bit(b))
			continue;
		if (unlikely(ngone)) {
			u32 g = 0;
			while (g < ngone && !clk_has(c, ck, gone[g]))
				g++;
			if (g < ngone)
				continue;
		}
		first[b] = c->events[k].seq;
		for (rest = seen; rest; rest &= rest - 1) {
			u32 o = (u32)__builtin_ctzll(rest);
			if (ck[o] >= first[o])
				break;
		}
		if (!rest)
			init |= bit(b);
		seen |= bit(b);
	}
	if (!(seen & bit(a))) {
		u64 rest;
		for (rest = seen; rest; rest &= rest - 1) {
			u32 o = (u32)__builtin_ctzll(rest);
			if (clk[o] >= first[o])
				break;
		}
		if (!rest)
			init |= bit(a);
	}
	if (init & (node->backtrack | node->sleep))
		return;
	if (unlikely(!(init & node->enabled))) {
		/* Blocking rules say that this does not happen; should they be wrong, lose time and no schedule. */
		c->fallbacks++;
		node->backtrack = node->enabled & ~node->sleep;
		node->backtrack |= bit(node->chosen);
		return;
	}
	init &= node->enabled;
	node->backtrack |= init & bit(a) ? bit(a) : init & -init;
}

static void race(struct check *c, u32 i, u32 e, u32 a, const u32 *clk)
{
	race_without(c, i, NULL, 0, e, a, clk);
}

/* Was the newest store to these bytes the vCPU's own? Then a load of it is ordered like one that its buffer answered:
 * whether the store was visible by then makes no difference. */
static bool reads_own_store(struct check *c, u32 a, const struct word *w, u8 mask)
{
	const struct access *x;

	if (c->model == MODEL_SC || w->writer < 0)
		return false;
	x = &c->accesses[w->writer];
	return c->agents[c->events[x->event].agent].kind == AGENT_FLUSH && same_family(c, a, c->events[x->event].agent)
	       && (x->mask & mask) == mask;
}

/*
 * The conflicts of event e, an access of `kind` to `mask` of w: races where the order could be reversed, and their
 * clocks joined into clk.
 */
static void order_access(struct check *c, u32 e, u32 a, struct word *w, u8 kind, u8 mask, u32 *clk)
{
	for (s32 at = w->head; at >= 0; at = c->accesses[at].prev) {
		const struct access *x = &c->accesses[at];
		if (!(conflicts[kind] >> x->kind & 1) || !(x->mask & mask))
			continue;
		if (!clk_has(c, clk, x->event)) {
			if (!same_family(c, a, c->events[x->event].agent)) {
				if (unlikely(x->answer)) {
					/* The load came out of the buffer of the store below it, which is newer as an event. */
					u32 with[CHECK_MAX_AGENTS];
					memcpy(with, clk, c->nr_agents * sizeof(u32));
					clk_join(with, clk_of(c, x->answer - 1), c->nr_agents);
					race(c, x->event, e, a, with);
				} else
					race(c, x->event, e, a, clk);
			}
			clk_join(clk, clk_of(c, x->event), c->nr_agents);
		}
		/* What is older conflicts with this one too, and so comes before it. */
		if ((x->kind == A_WRITE || x->kind == A_RW_LOCKW || x->kind == A_RW_UNLOCKW) && (x->mask & mask) == mask)
			break;
	}
}

static int later_event(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;

	return x < y ? 1 : x > y ? -1 : 0;
}

/*
 * Memory is freed: that conflicts with every access to it. (An access that comes later is a use after free, an
 * earlier one could have come later.) The access is pushed for every word of it that was met.
 */
static void order_free(struct check *c, u32 e, u32 a, const volatile void *p, size_t size, u32 *clk)
{
	u64 first = (uintptr_t)p >> 3, last = ((uintptr_t)p + size - 1) >> 3;
	u32 n = 0;

	for (u64 page = first >> 9; page <= last >> 9; page++) {
		struct touched_page *t = touched_page_of(c, page, false);
		for (s32 at = t ? t->head : -1; at >= 0; at = c->touched[at].next) {
			struct word *w;
			if (c->touched[at].key < first || c->touched[at].key > last)
				continue;
			w = word_of(c, (const volatile void *)(uintptr_t)(c->touched[at].key << 3));
			for (s32 k = w->head; k >= 0; k = c->accesses[k].prev) {
				if (n == c->conflicting_cap) {
					u32 cap = n ? 2 * n : 256;
					void *more = realloc(c->conflicting, cap * sizeof(u32));
					if (!more) {
						c->err = -ENOMEM;
						return;
					}
					c->conflicting = more;
					c->conflicting_cap = cap;
				}
				c->conflicting[n++] = c->accesses[k].event;
			}
		}
	}
	qsort(c->conflicting, n, sizeof(u32), later_event);
	for (u32 i = 0; i < n; i++) {
		u32 x = c->conflicting[i];
		if (clk_has(c, clk, x))
			continue;
		if (!same_family(c, a, c->events[x].agent))
			race(c, x, e, a, clk);
		clk_join(clk, clk_of(c, x), c->nr_agents);
	}
}

/* After that: who accesses it later conflicts with the free. */
static void push_free(struct check *c, u32 e, const volatile void *p, size_t size)
{
	u64 first = (uintptr_t)p >> 3, last = ((uintptr_t)p + size - 1) >> 3;

	for (u64 page = first >> 9; page <= last >> 9; page++) {
		struct touched_page *t = touched_page_of(c, page, false);
		for (s32 at = t ? t->head : -1; at >= 0; at = c->touched[at].next)
			if (c->touched[at].key >= first && c->touched[at].key <= last) {
				const volatile void *word = (const volatile void *)(uintptr_t)(c->touched[at].key << 3);
				struct access *x = access_push(c, word_of(c, word), e, A_WRITE, 0xff);
				x->old = x->new = word_value(word);
			}
	}
}

/* Could this pending operation have gone on with the word as it was then? */
static bool pend_satisfied(const struct pend *p, u64 word)
{
	word = word_extract(word, p->addr, p->width);
	return p->op == P_AWAIT ? p->pred(word, p->a) : word == 0; /* a spinlock, the interrupt flag */
}

#define RW_READER 256           /* check_enabled.h: one reader in the count of an rwsem; bit 0 = a writer */

/*
 * Operation e, down_read() or down_write() of w, against access number `at`, which came before it though it need not
 * have. In the schedule wanted e comes before that access, but behind those of w that remain before it; and nobody may
 * hold the lock against it there, so readers who took it in between and stay go as well. False: somebody held it
 * already.
 */
static bool race_rwsem(struct check *c, u32 e, u32 a, struct word *w, u8 kind, s32 at, const u32 *base)
{
	const struct access *from = &c->accesses[at];
	u32 gone[CHECK_MAX_VCPUS], ngone = 0, with[CHECK_MAX_AGENTS];

	if (from->old & 1)
		return false;
	for (;;) {
		s64 readers = (s64)(from->old / RW_READER);
		u64 left = 0;
		s32 stays = -1, k;
		memcpy(with, base, c->nr_agents * sizeof(u32));
		for (k = w->head; k > at; k = c->accesses[k].prev) {
			const struct access *x = &c->accesses[k];
			const u32 *ck = clk_of(c, x->event);
			u64 who = bit(c->events[x->event].agent);
			u32 g = 0;
			if (clk_has(c, ck, from->event))
				continue;
			while (g < ngone && !clk_has(c, ck, gone[g]))
				g++;
			if (g < ngone)
				continue;
			if (conflicts[kind] >> x->kind & 1)
				clk_join(with, ck, c->nr_agents);
			readers += x->kind == A_RW_LOCKR;
			readers -= x->kind == A_RW_UNLOCKR;
			if (x->kind == A_RW_UNLOCKR)
				left |= who;
			else if (x->kind == A_RW_LOCKR && !(left & who) && stays < 0)
				stays = k;
			else if (x->kind == A_RW_LOCKR)
				left &= ~who;
		}
		if (kind == A_RW_LOCKR || !readers)
			break;
		if (stays < 0 || ngone == CHECK_MAX_VCPUS || clk_has(c, base, c->accesses[stays].event))
			return false;
		gone[ngone++] = c->accesses[stays].event;
	}
	race_without(c, from->event, gone, ngone, e, a, with);
	return true;
}

/*
 * The races of a blocking operation (a lock, an await, an interrupt): it cannot come before what let it go on, but
 * before whoever made it wait. Compared with the clock as it is before those who let it go on are joined.
 */
static void race_blocking(struct check *c, u32 e, u32 a, struct word *w, const struct pend *p, u8 kind, u8 mask, const u32 *base)
{
	bool raced = false;

	for (s32 at = w->head; at >= 0; at = c->accesses[at].prev) {
		const struct access *x = &c->accesses[at];
		if (!(conflicts[kind] >> x->kind & 1) || !(x->mask & mask))
			continue;
		if (kind == A_RW_LOCKW) {
			if (x->kind == A_RW_LOCKR) {
				if (!clk_has(c, base, x->event))
					raced |= race_rwsem(c, e, a, w, kind, at, base);
			} else if (x->kind == A_RW_LOCKW) {
				if (!raced && !clk_has(c, base, x->event))
					race(c, x->event, e, a, base);
				return;
			}
		} else if (kind == A_RW_LOCKR) {
			if (x->kind == A_RW_LOCKW || x->kind == A_RW_TRYW) {
				if (!clk_has(c, base, x->event))
					race_rwsem(c, e, a, w, kind, at, base);
				if (x->kind == A_RW_LOCKW)
					return;
			}
		} else {
			if (clk_has(c, base, x->event))
				return;
			if (same_family(c, a, c->events[x->event].agent)) {
				if ((x->mask & mask) == mask)
					return; /* the own store comes before it in the program */
			} else if (pend_satisfied(p, x->old)) {
				race(c, x->event, e, a, base);
				return;
			}
		}
	}
}

/* The same for a blocking operation that went on: joins as well. */
static void order_blocking(struct check *c, u32 e, u32 a, struct word *w, const struct pend *p, u8 kind, u8 mask, u32 *clk)
{
	race_blocking(c, e, a, w, p, kind, mask, clk);
	for (s32 at = w->head; at >= 0; at = c->accesses[at].prev) {
		const struct access *x = &c->accesses[at];
		if (!(conflicts[kind] >> x->kind & 1) || !(x->mask & mask))
			continue;
		if (!clk_has(c, clk, x->event))
			clk_join(clk, clk_of(c, x->event), c->nr_agents);
		if ((x->kind == A_WRITE || x->kind == A_RW_LOCKW || x->kind == A_RW_UNLOCKW) && (x->mask & mask) == mask)
			break;
	}
}

/*
 * The happens-before graph of the execution as one number: equal for equal graphs, whatever the schedule. Where loads
 * may be stale the order of steps says little: there it is what each load read, and the order of stores.
 */
static u64 graph_hash(struct check *c)
{
	u64 sum = c->nevents;

	for (u32 e = 0; e < c->nevents; e++) {
		const u32 *clk = clk_of(c, e);
		u64 h = c->events[e].agent * 0x10001ULL + c->events[e].seq + (u64)c->events[e].dup * 0x100000007ULL;
		h = check_mix(check_mix(h + 1) ^ c->events[e].rfco);
		for (u32 i = 0; c->model != MODEL_POWER && i < c->nr_agents; i++)
			h = check_mix(h ^ clk[i]) + i;
		sum += check_mix(h);
	}
	return sum ? sum : 1;
}

/* 1 = was there already. */
static int graph_insert(struct check *c, u64 hash)
{
	u64 at;

	if (2 * c->ngraphs >= c->graph_cap) {
		u64 cap = c->graph_cap ? 4 * c->graph_cap : 4096, *more = calloc(cap, sizeof(u64));
		if (!more) {
			c->err = -ENOMEM;
			return 0;
		}
		for (u64 i = 0; i < c->graph_cap; i++) {
			if (!c->graphs[i])
				continue;
			for (at = check_mix(c->graphs[i]) & (cap - 1); more[at]; at = (at + 1) & (cap - 1))
				;
			more[at] = c->graphs[i];
		}
		free(c->graphs);
		c->graphs = more;
		c->graph_cap = cap;
	}
	for (at = check_mix(hash) & (c->graph_cap - 1); c->graphs[at]; at = (at + 1) & (c->graph_cap - 1))
		if (c->graphs[at] == hash)
			return 1;
	c->graphs[at] = hash;
	c->ngraphs++;
	return 0;
}

#endif
