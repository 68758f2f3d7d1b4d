/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a step comes after: its clock, its races with earlier steps, and who need not be tried behind it.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_ORDER_H
#define KMM_CHECK_ORDER_H

#include "kmm/check_enabled.h"

/* A step while it is taken. (struct step is one of a trace.) */
struct taken {
	struct agent *ag;
	struct vcpu *v;
	struct pend *p;
	struct event *ev;
	struct node *node;
	struct word *w;             /* that it touches; NULL: none, or nobody asks */
	struct access *x;           /* to that word, once it is entered there */
	u32 *clk;                   /* of the event */
	u64 old;                    /* what the word was */
	u64 value;                  /* what the primitive returns */
	u32 a, e;                   /* the agent, and the number of the event */
	u32 stale;                  /* a load: so many versions behind the newest */
	u8 op;
	bool failed;                /* a cmpxchg that stores nothing */
	bool known;                 /* in a replayed prefix: clock and number of choices are there, and races were counted */
	struct footprint f;
};

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

/* power: the barrier that another vCPU's smp_mb_heavy() made this one execute comes before its later steps. */
static void order_after_mb(struct check *c, const struct taken *s)
{
	s64 mb;

	if (c->model != MODEL_POWER || !c->races || s->ag->kind != AGENT_VCPU)
		return;
	mb = c->agents[c->first_mb + s->v->id].last;
	if (mb < 0)
		return;
	if (!clk_has(c, s->clk, (u32)mb))
		race(c, (u32)mb, s->e, s->a, s->clk);
	clk_join(s->clk, clk_of(c, (u64)mb), c->nr_agents);
}

/* What it stands in order with of the accesses to what it touches. `choice`: of a load that may be stale. */
static void order_touched(struct check *c, const struct taken *s, u32 choice)
{
	const struct footprint *f = &s->f;
	const struct pend handler = { .op = P_HANDLER, .width = 4, .addr = f->addr };
	struct vcpu *v = s->v;

	if (s->op == P_LOAD && s->w && c->model == MODEL_POWER && choice) {
		/* Ordered after the version it returns, and not after the newer ones. */
		struct access *from = power_version(c, s->w, s->w->versions - choice);
		if (from && !clk_has(c, s->clk, from->event))
			clk_join(s->clk, clk_of(c, from->event), c->nr_agents);
	} else if ((s->op == P_LOAD || s->op == P_AWAIT) && s->w && reads_own_store(c, s->a, s->w, f->mask)) {
		;
	} else if (s->w && f->blocking) {
		/* An interrupt waits for the target's buffer: it could have come before the newest store was made. */
		if (s->op == P_HANDLER && v->last_store >= 0 && !clk_has(c, s->clk, (u32)v->last_store))
			race(c, (u32)v->last_store, s->e, s->a, s->clk);
		order_blocking(c, s->e, s->a, s->w, s->op == P_HANDLER ? &handler : s->p, f->kind, f->mask, s->clk);
	} else if (s->w) {
		order_access(c, s->e, s->a, s->w, f->kind, f->mask, s->clk);
	} else if (f->size) {
		order_free(c, s->e, s->a, f->addr, f->size, s->clk);
	}
}

/* The clock of the step, and its races. Counts the versions that a load may return. */
static void order_step(struct check *c, struct taken *s, u32 choice)
{
	if (s->ag->last >= 0)
		memcpy(s->clk, clk_of(c, (u64)s->ag->last), c->nr_agents * sizeof(u32));
	else
		memset(s->clk, 0, c->nr_agents * sizeof(u32));
	order_implied(c, s->a, s->clk);
	if (s->op == P_MB)
		order_mb(c, s->v, s->e, s->a, s->clk);
	else
		order_after_mb(c, s);
	if (s->op == P_LOAD && s->w && c->model == MODEL_POWER)
		s->node->nchoices = (u8)(1 + power_stale(c, s->v, s->w, s->p, s->clk));
	order_touched(c, s, choice);
	if (s->op == P_HANDLER && c->model != MODEL_SC)
		/* The stores that it waited for are in its past; they were not when its races were looked for. */
		join_flushes(c, s->ag->vcpu, s->clk);
	s->clk[s->a] = s->ev->seq;
}

/* Who was tried here, or before, and does not depend on this step, need not be tried after it. */
static void sleep_after(struct check *c, const struct taken *s)
{
	struct node *next = &c->nodes[s->e + 1];
	u64 rest = c->bound < 0 ? (s->node->sleep | s->node->done) & ~bit(s->a) : 0; /* a bound and sleep sets do not mix */
	u64 asleep = 0;
	/* What other parts of the search will find out of these steps is not known here. */
	struct marks marks = c->cut || s->e < c->nfixed ? (struct marks){ ~0ULL, ~0ULL, ~0ULL, ~0ULL } : s->node->marks;
	bool full = s->op == P_MB || (c->nview_syncs && c->view_syncs[c->nview_syncs - 1].event == s->e);

	for (; rest; rest &= rest - 1) {
		u32 q = (u32)__builtin_ctzll(rest);
		struct footprint g = footprint_of(c, q);
		/* A store that its step is followed by would have kept this interrupt, or barrier, waiting. */
		if (s->op == P_HANDLER && q == s->ag->vcpu && marks.storers & bit(q))
			continue;
		if (s->op == P_MB && q == s->ag->vcpu && marks.lights & bit(q))
			continue;
		if (c->model == MODEL_POWER && (s->op == P_MB || q >= c->first_mb) && c->agents[q].vcpu == s->ag->vcpu
		    && (c->races || marks.mbs & bit(q)))
			continue; /* order_mb(), mb_races() */
		if (full && marks.syncs & bit(q))
			continue; /* sync_races() */
		if (!footprints_conflict(&s->f, &g))
			asleep |= bit(q);
	}
	next->sleep = asleep;
	next->marks = (struct marks){ marks.storers & asleep, marks.lights & asleep, marks.syncs & asleep, marks.mbs & asleep };
}

#endif
