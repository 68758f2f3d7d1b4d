/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Choosing who takes the next step, and running one execution. A vCPU that reaches a primitive announces it
 * (v->pend) and calls the scheduler on its own stack; the scheduler takes the steps of pseudo-CPUs itself and
 * switches only when another vCPU is chosen.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_SCHED_H
#define KMM_CHECK_SCHED_H

#include <stdarg.h>

#include "kmm/check_step.h"

static void check_violation(struct check *c, const char *kind, const char *fmt, ...)
{
	va_list ap;

	if (c->failed_run)
		return; /* the first one counts */
	snprintf(c->kind, sizeof(c->kind), "%s", kind);
	va_start(ap, fmt);
	vsnprintf(c->message, sizeof(c->message), fmt, ap);
	va_end(ap);
	c->failed_run = 1;
	c->over = 1;
}

static inline u64 rng_next(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static u64 enabled_agents(struct check *c)
{
	u64 set = 0;

	for (u32 a = 0; a < c->first_flush; a++)
		if (agent_enabled(c, a))
			set |= bit(a);
	for (u32 i = 0; i < c->nr_vcpus; i++)
		set |= buffer_heads(c, &c->vcpus[i]);
	for (u32 a = c->first_mb; a < c->nr_agents; a++)
		if (agent_enabled(c, a))
			set |= bit(a);
	return set;
}

/* Room for one more event, and the node after it. */
static bool reserve(struct check *c)
{
	u32 cap = c->cap;
	void *p;

	if (likely(c->nevents + 2 < cap))
		return true;
	cap *= 2;
	if ((p = realloc(c->events, cap * sizeof(*c->events))))
		c->events = p;
	if (p && (p = realloc(c->nodes, cap * sizeof(*c->nodes))))
		c->nodes = p;
	if (p && (p = realloc(c->answers, cap * sizeof(*c->answers))))
		c->answers = p;
	if (p && (p = realloc(c->clk, (size_t)cap * c->nr_agents * sizeof(u32))))
		c->clk = p;
	if (!p) {
		c->err = -ENOMEM;
		c->over = 1;
		return false;
	}
	c->cap = cap;
	return true;
}

/* ---- the end of an execution ---- */

static const char *lock_word(u8 op)
{
	switch (op) {
	case KMM_SPIN_LOCK: case KMM_SPIN_TRYLOCK: return "spinlock";
	case KMM_DOWN_READ: case KMM_DOWN_READ_TRYLOCK: return "read side of rwsem";
	default: return "write side of rwsem";
	}
}

/* "Cpu 1 with IRQs off", or who holds the lock. */
static void lock_holders(struct check *c, const volatile void *lock, char *buf, size_t n)
{
	size_t at = 0;

	buf[0] = 0;
	for (u32 i = 0; i < c->nr_vcpus; i++)
		for (u32 k = 0; k < c->vcpus[i].nheld; k++)
			if (c->vcpus[i].held[k].lock == lock && at < n)
				at += (size_t)snprintf(buf + at, n - at, "%sCpu %u", at ? ", " : "", i);
	if (!at)
		snprintf(buf, n, "nobody");
}

static void deadlock(struct check *c)
{
	char text[CHECK_MESSAGE - 64], name[96], who[96];
	size_t at = 0;

	text[0] = 0;
	for (u32 i = 0; i < c->nr_vcpus && at < sizeof(text); i++) {
		struct vcpu *v = &c->vcpus[i];
		if (v->pend.op == P_DONE)
			continue;
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%sCpu %u%s ", at ? "; " : "", i, v->irq_off ? " (IRQs off)" : "");
		if (at >= sizeof(text))
			break;
		describe(c, v->pend.addr, name, sizeof(name));
		if (v->pend.op == P_LOCK) {
			lock_holders(c, v->pend.addr, who, sizeof(who));
			at += (size_t)snprintf(text + at, sizeof(text) - at, "waits for the %s %s, held by %s", lock_word(v->pend.sub), name, who);
		} else if (v->pend.op == P_AWAIT) {
			at += (size_t)snprintf(text + at, sizeof(text) - at, "waits for a change of %s (now %#llx)", name,
					       (unsigned long long)raw_load(v->pend.addr, v->pend.width));
		} else if (v->pend.op == P_IPI_WAIT) {
			at += (size_t)snprintf(text + at, sizeof(text) - at, "waits for an IPI to be handled by");
			for (u32 t = 0; t < c->nr_vcpus && at < sizeof(text); t++)
				for (u32 k = c->vcpus[t].call_first; k < c->vcpus[t].call_last && at < sizeof(text); k++)
					if (c->vcpus[t].calls[k % CHECK_CALLS].sender == v)
						at += (size_t)snprintf(text + at, sizeof(text) - at, " Cpu %u%s", t, c->vcpus[t].irq_off ? " (IRQs off)" : "");
		}
	}
	check_violation(c, CHECK_DEADLOCK, "%s", text);
}

/* What the next step of `a` comes after, whatever it does: its own last step, and what order_implied() adds. */
static void base_clock(struct check *c, u32 a, u32 *base)
{
	if (c->agents[a].last >= 0)
		memcpy(base, clk_of(c, (u64)c->agents[a].last), c->nr_agents * sizeof(u32));
	else
		memset(base, 0, c->nr_agents * sizeof(u32));
	order_implied(c, a, base);
}

/*
 * Nobody can go on, or nobody need go on (sleep sets). The blocked ones still tell which other schedules to try: those in
 * which they got in first. Where the rest of the execution was explored elsewhere, they did get in there, and that
 * schedule was asked for there: but with a step before it that sleeps here.
 */
static void blocked_races(struct check *c)
{
	u32 base[CHECK_MAX_AGENTS];

	if (c->explorer != EXPLORER_DPOR)
		return;
	for (u32 a = 0; a < c->first_flush; a++) {
		struct vcpu *v = &c->vcpus[c->agents[a].vcpu];
		struct pend handler = { .op = P_HANDLER, .width = 4, .addr = &v->cpu->irq_disabled };
		struct footprint f;
		if (c->agents[a].kind == AGENT_VCPU ? v->pend.op != P_LOCK && v->pend.op != P_AWAIT : v->call_first == v->call_last)
			continue;
		f = footprint_of(c, a);
		if (!f.blocking || f.none)
			continue;
		base_clock(c, a, base);
		race_blocking(c, c->nevents, a, word_of(c, f.addr), c->agents[a].kind == AGENT_IRQ ? &handler : &v->pend, f.kind, f.mask, base);
	}
	/* A barrier that waits for the stores before smp_mb_light() could have come before that. */
	for (u32 a = c->first_mb; a < c->nr_agents; a++) {
		struct vcpu *v = &c->vcpus[c->agents[a].vcpu];
		if (v->mb_first == v->mb_last || !v->firm || v->last_light < 0)
			continue;
		base_clock(c, a, base);
		if (!clk_has(c, base, (u32)v->last_light))
			race(c, (u32)v->last_light, c->nevents, a, base);
	}
}

/* ---- the choice ---- */

static u32 pct_pick(struct check *c, u64 set)
{
	u32 best = 0, prio = 0;
	u64 rest;

	for (u32 i = 0; i + 1 < c->pct_depth; i++)
		if (c->pct_points[i] == c->nevents) {
			/* A change point: whoever would go on falls behind everybody. */
			u32 top = 0, top_prio = 0;
			for (rest = set; rest; rest &= rest - 1) {
				u32 a = (u32)__builtin_ctzll(rest);
				if (c->pct_prio[a] >= top_prio) {
					top = a;
					top_prio = c->pct_prio[a];
				}
			}
			c->pct_prio[top] = c->pct_depth - i;
		}
	for (rest = set; rest; rest &= rest - 1) {
		u32 a = (u32)__builtin_ctzll(rest);
		if (c->pct_prio[a] >= prio) {
			best = a;
			prio = c->pct_prio[a];
		}
	}
	return best;
}

static u32 random_pick(struct check *c, u64 set)
{
	u32 n = (u32)__builtin_popcountll(set), k;

	if (n == 1)
		return (u32)__builtin_ctzll(set);
	k = (u32)((rng_next(&c->rng_run) >> 32) * n >> 32);
	while (k--)
		set &= set - 1;
	return (u32)__builtin_ctzll(set);
}

/* Who runs when nobody says otherwise: whoever ran, else the first. */
static u32 default_pick(u64 set, u32 current)
{
	return current < CHECK_MAX_AGENTS && set & bit(current) ? current : (u32)__builtin_ctzll(set);
}

static inline void node_choose(struct check *c, struct node *node, u32 a)
{
	node->chosen = (u8)a;
	node->current = a < c->nr_vcpus ? (u8)a : node->before;
}

/* A vCPU gave way to another, or to an interrupt, while it could have gone on. Buffers come for free. */
static inline bool is_preemption(struct check *c, const struct node *node)
{
	return node->chosen < c->first_flush && node->before != 0xff && node->chosen != node->before
	       && node->enabled & bit(node->before);
}

/* Those of `set` that the bound of preemptions leaves at this node. */
static u64 within_bound(struct check *c, const struct node *node, u64 set)
{
	u64 counted = bit(c->first_flush) - 1; /* vCPUs and interrupts */

	if (c->bound < 0 || node->before == 0xff || !(node->enabled & bit(node->before)) || node->preemptions < (u32)c->bound)
		return set;
	if (set & counted & ~bit(node->before))
		c->bounded = 1;
	return set & (bit(node->before) | ~counted);
}

/*
 * Stores become visible some time: the flushes of vCPUs whose oldest store has waited for longer than an execution of
 * interest takes, or 0. Without this, a loop that waits for such a store by looking again (a fault that is repeated, a
 * lookup) would never end in the schedule in which nobody makes it visible.
 */
static u64 overdue(struct check *c, u64 set, u32 d)
{
	u64 found = 0;

	for (u32 i = 0; i < c->nr_vcpus; i++) {
		struct vcpu *v = &c->vcpus[i];
		if (!v->nbuffered || (s64)d - v->buffer[0].after <= CHECK_STORE_STEPS)
			continue;
		for (u32 f = c->first_flush; f < c->first_mb; f++)
			if (c->agents[f].vcpu == i)
				found |= set & bit(f);
	}
	return found;
}

/* Nobody can go on. */
static void end_of_execution(struct check *c)
{
	bool all = true;

	for (u32 i = 0; i < c->nr_vcpus; i++)
		all &= c->vcpus[i].pend.op == P_DONE;
	if (!all) {
		blocked_races(c);
		deadlock(c);
	}
	c->over = 1;
}

/* Beyond the given schedule, or where it cannot be followed: as it comes. */
static u32 given_pick(struct check *c, u64 set, u32 current, u32 *choice)
{
	while (c->given_at < c->ngiven) {
		u32 a = c->given[c->given_at] & 0xff;
		*choice = c->given[c->given_at++] >> 8;
		if (a < c->nr_agents && set & bit(a))
			return a;
		c->diverged = 1;
		*choice = 0;
	}
	return default_pick(set, current);
}

/* A node of its own for the step, out of `set`; false: all of them sleep. */
static bool node_begin(struct check *c, u32 d, u64 set, u32 *choice)
{
	struct node *node = &c->nodes[d];
	u32 current = d ? c->nodes[d - 1].current : 0xff;
	u64 avail;

	node->enabled = set;
	node->done = 0;
	node->forced = 0;
	node->nchoices = 1;
	node->before = (u8)current;
	node->preemptions = d ? (u8)(c->nodes[d - 1].preemptions + is_preemption(c, &c->nodes[d - 1])) : 0;
	switch (c->explorer) {
	case EXPLORER_DPOR:
		if (d == 0) {
			node->sleep = 0;
			node->marks = (struct marks){ 0, 0, 0, 0 };
		}
		avail = set & ~node->sleep;
		if (!avail)
			return false;
		node->chosen = (u8)default_pick(avail, current);
		node->backtrack = d < c->expand ? within_bound(c, node, avail) : bit(node->chosen);
		break;
	case EXPLORER_DFS:
		node->sleep = 0;
		avail = within_bound(c, node, set);
		node->chosen = (u8)default_pick(avail, current);
		node->backtrack = avail;
		break;
	case EXPLORER_RANDOM:
		node->chosen = (u8)random_pick(c, set);
		break;
	case EXPLORER_PCT:
		node->chosen = (u8)pct_pick(c, set);
		break;
	default:
		node->chosen = (u8)given_pick(c, set, current, choice);
		break;
	}
	node_choose(c, node, node->chosen);
	return true;
}

/* The agent of the next step, with *choice; the execution may be over instead. */
static u32 choose(struct check *c, u32 *choice)
{
	u32 d = c->nevents;
	struct node *node;
	u64 set;

	*choice = 0;
	if (unlikely(c->over || !reserve(c)))
		return 0;
	if (unlikely(d >= c->max_steps)) {
		check_violation(c, CHECK_LIVELOCK, "no end after %u steps", d);
		return 0;
	}
	set = enabled_agents(c);
	if (unlikely(d > CHECK_STORE_STEPS)) {
		u64 first = overdue(c, set, d);
		set = first ? first : set;
	}
	node = &c->nodes[d];
	if (d < c->replay) {
		if (unlikely(!(set & bit(node->chosen)))) {
			c->err = -EILSEQ; /* the program did something else than before */
			c->over = 1;
			return 0;
		}
		*choice = node->choice;
		return node->chosen;
	}
	if (unlikely(!set)) {
		end_of_execution(c);
		return 0;
	}
	if (unlikely(c->cut && d >= c->cut)) {
		c->cut_run = 1;
		c->over = 1;
		return 0;
	}
	if (!node_begin(c, d, set, choice)) {
		blocked_races(c);
		c->blocked_run = 1;
		c->over = 1;
		return 0;
	}
	return node->chosen;
}

/* v NULL = the main context. Returns when v is to go on with its step done, or (main; threads) the execution is over. */
static void schedule(struct check *c, struct vcpu *v)
{
	u32 a, choice;

	for (;;) {
		a = choose(c, &choice);
		if (likely(!c->over))
			step(c, a, choice);
		if (unlikely(c->over || c->err)) {
			c->over = 1;
			if (v)
				c->carrier->resume(c, v, NULL);
			return;
		}
		if (c->agents[a].kind != AGENT_VCPU)
			continue;
		if (&c->vcpus[a] == v)
			return;
		c->cur = &c->vcpus[a];
		c->carrier->resume(c, v, c->cur);
		return;
	}
}

static inline u64 visible(struct check *c, struct vcpu *v)
{
	own_stores_hide(v);
	if (unlikely(c->starting))
		c->carrier->resume(c, v, NULL);
	else
		schedule(c, v);
	v->pend.op = P_NONE;
	own_stores_show(v);
	return v->result;
}

/* A step with no choice before it: giving something back that others can only wait for. */
static void forced(struct check *c, struct vcpu *v)
{
	u32 d = c->nevents;
	struct node *node;

	if (c->starting) { /* nothing was taken yet: cannot happen but by a program's mistake */
		visible(c, v);
		return;
	}
	if (!reserve(c)) {
		c->carrier->resume(c, v, NULL);
		return;
	}
	own_stores_hide(v);
	node = &c->nodes[d];
	if (d >= c->replay) {
		u64 sleep = d ? node->sleep : 0;
		struct marks marks = d ? node->marks : (struct marks){ 0, 0, 0, 0 };
		*node = (struct node){ .enabled = bit(v->id), .backtrack = bit(v->id), .sleep = sleep, .marks = marks,
				       .chosen = (u8)v->id, .nchoices = 1, .forced = 1, .current = (u8)v->id, .before = (u8)v->id,
				       .preemptions = d ? (u8)(c->nodes[d - 1].preemptions + is_preemption(c, &c->nodes[d - 1])) : 0 };
		if (c->explorer == EXPLORER_REPLAY && c->given_at < c->ngiven && (c->given[c->given_at] & 0xff) == v->id)
			c->given_at++;
	} else if (node->chosen != v->id) {
		c->err = -EILSEQ;
		c->over = 1;
		c->carrier->resume(c, v, NULL);
		return;
	}
	step(c, v->id, 0);
	v->pend.op = P_NONE;
	own_stores_show(v);
	if (c->over)
		c->carrier->resume(c, v, NULL);
}

/* Ends the execution from a vCPU; does not return on fibers. */
static void leave(struct check *c, struct vcpu *v)
{
	c->over = 1;
	if (c->cur == v && v)
		c->carrier->resume(c, v, NULL);
}

/* ---- the fiber carrier ---- */

static void fiber_resume(struct check *c, struct vcpu *from, struct vcpu *to)
{
	if (!to) {
		if (_setjmp(from->fiber.ctx) == 0) {
			fiber_leave(NULL);
			_longjmp(c->main_ctx, 1);
		}
		fiber_arrive();
	} else
		fiber_switch(from ? &from->fiber.ctx : &c->main_ctx, &to->fiber);
}

static void fiber_start(struct check *c, struct vcpu *v)
{
	fiber_restart(&c->main_ctx, &v->fiber);
}

static void vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	struct check *c = v->c;

	c->prog.vcpu(c->prog.priv, v->cpu, v->id);
	own_stores_hide(v);
	v->pend.op = P_DONE;
	if (c->starting)
		c->carrier->resume(c, v, NULL);
	else
		schedule(c, v);
	__builtin_trap(); /* nobody switches back to a vCPU that is done */
}

static const struct check_carrier fiber_carrier = { fiber_start, fiber_resume };

#endif
