/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The search: running executions one after the other, and which schedule comes next. An explorer is a case in
 * choose() (what a new node tries) and, where it is systematic, the walk in next_schedule().
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_SEARCH_H
#define KMM_CHECK_SEARCH_H

#include "kmm/check_crash.h"
#include "kmm/check_ops.h"

static const char *const pend_names[] = {
	"none", "load", "store", "rmw", "await", "lock", "irq-off", "irq-on", "ipi-send", "ipi-wait", "choose", "unlock",
	"flush", "handler", "done", "free", "membarrier-send", "membarrier-wait", "membarrier"
};

static void trace_step(struct check *c, u32 a, const struct footprint *f, u8 op, u64 old, u64 new, u32 stale)
{
	struct vcpu *v = &c->vcpus[c->agents[a].vcpu];
	struct word *w;
	struct step *s;
	s32 at;

	if (c->ntrace == c->trace_cap) {
		u32 cap = c->trace_cap ? 2 * c->trace_cap : 256;
		void *more = realloc(c->trace, cap * sizeof(*c->trace));
		if (!more) {
			c->err = -ENOMEM;
			return;
		}
		c->trace = more;
		c->trace_cap = cap;
	}
	s = &c->trace[c->ntrace++];
	memset(s, 0, sizeof(*s));
	s->agent = (u8)a;
	s->op = op;
	s->event = c->nevents - 1;
	s->choice = c->nodes[s->event].choice;
	s->reads_from = -1;
	/* A load that the own buffer answers touches nothing, but has an address. */
	s->addr = !f->none ? (uintptr_t)f->addr : op == P_LOAD || op == P_AWAIT ? (uintptr_t)v->pend.addr : 0;
	if (c->agents[a].kind == AGENT_VCPU) {
		s->sub = op == P_CHOOSE ? (u8)v->pend.a : v->pend.sub; /* a choice of 1 = only waits for the buffer */
		s->order = v->pend.order;
		s->width = v->pend.width;
		s->result = v->result;
		s->pending = (u8)v->nbuffered;
		s->nframes = v->nframes;
		memcpy(s->frames, v->frames, sizeof(s->frames));
	} else if (op == P_FLUSH && c->flushed_origin) {
		const struct origin *o = &c->origins[c->flushed_origin - 1];
		s->width = (u8)__builtin_popcount(f->mask);
		s->nframes = o->nframes;
		memcpy(s->frames, o->frames, sizeof(s->frames));
	} else if (!f->none)
		s->width = (u8)__builtin_popcount(f->mask);
	if (f->none || f->size)
		return;
	s->old = word_extract(old, f->addr, s->width);
	s->new = word_extract(new, f->addr, s->width);
	s->stale = (u8)stale;
	if (op == P_LOAD && stale)
		s->old = s->new = v->result;
	s->newest = word_extract(word_value(f->addr), f->addr, s->width);
	/* Which step stored what was found. */
	w = word_of(c, f->addr);
	for (at = w->head; at >= 0; at = c->accesses[at].prev) {
		struct access *x = &c->accesses[at];
		if (x->event == s->event || x->kind == A_READ || x->kind == A_RW_TRYR || x->kind == A_RW_TRYW || !(x->mask & f->mask))
			continue;
		if (stale && x->version > w->versions - stale)
			continue;
		s->reads_from = (s32)x->event;
		break;
	}
	for (u32 i = 0; i < v->nheld && s->nheld < 8; i++)
		s->held[s->nheld++] = (u64)(uintptr_t)v->held[i].lock;
}

/* ---- one execution ---- */

static void begin_execution(struct check *c)
{
	c->epoch++;
	c->nevents = c->naccesses = c->nanswers = c->ntouched = c->nrace_accesses = c->nrace_rels = 0;
	c->handling = NULL;
	c->over = c->failed_run = c->blocked_run = c->cut_run = 0;
	c->views_used = c->views_block = c->nviews = c->nview_syncs = 0;
	c->given_at = c->diverged = 0;
	c->ntrace = c->norigins = 0;
	c->rng_run = check_mix(c->rng + c->attempts * 0x9E3779B97F4A7C15ULL) | 1;
	memset(c->global_view, 0, sizeof(c->global_view));
	for (u32 a = 0; a < c->nr_agents; a++) {
		c->agents[a].seq = 0;
		c->agents[a].last = c->agents[a].last_firm = -1;
		c->agents[a].word = NULL; /* given out anew, so that a schedule means the same on its own */
	}
	for (u32 i = 0; i < c->nr_vcpus; i++) {
		struct vcpu *v = &c->vcpus[i];
		v->pend.op = P_NONE;
		v->last_store = v->last_light = v->last_stale = -1;
		v->know = NULL;
		v->mb_first = v->mb_last = v->mbs_pending = v->firm = v->infirm = 0;
		memset(v->barriers, 0, sizeof(v->barriers));
		v->drain = v->want_sync = v->loads = v->irq_off = v->calls_pending = 0;
		v->call_first = v->call_last = v->nbuffered = v->epoch = v->epoch_used = v->nheld = v->flush_epoch = v->shown = v->nwords = 0;
		if (c->races)
			race_begin(v);
		if (c->model == MODEL_POWER) {
			v->view = view_alloc(c);
			v->seen = view_alloc(c);
			v->rel = view_alloc(c);
			v->flushed = view_alloc(c);
			v->flushed_epoch = view_alloc(c);
			v->own = view_alloc(c);
			v->late = view_alloc(c);
		}
	}
	if (c->explorer == EXPLORER_PCT) {
		for (u32 a = 0; a < c->nr_agents; a++)
			c->pct_prio[a] = 1000;
		for (u32 a = 0; a < c->nr_agents; a++)
			c->pct_prio[a] = 1000 + (u32)(rng_next(&c->rng_run) >> 40);
		for (u32 i = 0; i + 1 < c->pct_depth; i++)
			c->pct_points[i] = (u32)((rng_next(&c->rng_run) >> 32) * (c->pct_len ? c->pct_len : 64) >> 32);
	}
}

static void run_vcpus(struct check *c)
{
	struct check_program *prog = &c->prog;

	if (_setjmp(c->crash_ctx)) {
		fiber_arrive();
		c->cur = NULL;
		c->starting = c->direct = c->stepping = 0;
		return;
	}
	c->executing = 1;
	c->starting = 1;
	for (u32 i = 0; i < c->nr_vcpus && !c->over; i++) {
		c->cur = &c->vcpus[i];
		c->carrier->start(c, c->cur);
	}
	c->starting = 0;
	c->cur = NULL;
	if (!c->over)
		schedule(c, NULL);
	c->cur = NULL;
	if (c->carrier->abandon)
		c->carrier->abandon(c);
	if (!c->err && !c->failed_run && !c->blocked_run && !c->cut_run) {
		c->direct = 1;
		if (prog->finish)
			prog->finish(prog->priv);
		c->outcome = !c->failed_run && prog->outcome ? prog->outcome(prog->priv) : 0;
		c->direct = 0;
	}
}

/* 0, or -errno of the program or the engine. */
static int run_execution(struct check *c)
{
	struct check_program *prog = &c->prog;
	int err;

	begin_execution(c);
	if ((err = prog->reset(prog->priv)))
		return err;
	for (u32 i = 0; i < c->nr_vcpus; i++) {
		struct vcpu *v = &c->vcpus[i];
		v->cpu = prog->cpu(prog->priv, i);
		v->cpu->engine = &check_engine_ops;
		v->cpu->engine_priv = v;
		v->irq_off = v->cpu->irq_disabled;
	}
	plain_begin(c);
	run_vcpus(c);
	plain_end();
	c->executing = 0;
	for (u32 i = 0; i < c->nr_vcpus; i++) {
		c->vcpus[i].cpu->engine = NULL;
		c->vcpus[i].cpu->engine_priv = NULL;
	}
	return c->err;
}

static void record_outcome(struct check *c, u64 value)
{
	u32 at, slot;

	if (c->noutcomes == c->outcome_cap) {
		u32 cap = c->outcome_cap ? 2 * c->outcome_cap : 64;
		u64 *more = realloc(c->outcomes, 2 * cap * sizeof(u64));
		u32 *slots = calloc(4 * (size_t)cap, sizeof(u32));
		if (more)
			c->outcomes = more;
		if (!more || !slots) {
			free(slots);
			c->err = -ENOMEM;
			return;
		}
		for (u32 i = 0; i < c->noutcomes; i++) {
			for (at = (u32)check_mix(more[2 * i]) & (4 * cap - 1); slots[at]; at = (at + 1) & (4 * cap - 1))
				;
			slots[at] = i + 1;
		}
		free(c->outcome_slots);
		c->outcome_slots = slots;
		c->outcome_cap = cap;
	}
	for (slot = (u32)check_mix(value) & (4 * c->outcome_cap - 1); c->outcome_slots[slot];
	     slot = (slot + 1) & (4 * c->outcome_cap - 1)) {
		at = c->outcome_slots[slot] - 1;
		if (c->outcomes[2 * at] == value) {
			c->outcomes[2 * at + 1]++;
			return;
		}
	}
	at = c->noutcomes;
	c->outcome_slots[slot] = at + 1;
	c->outcomes[2 * at] = value;
	c->outcomes[2 * at + 1] = 1;
	c->noutcomes++;
}

static void record_violation(struct check *c)
{
	struct violation *v;
	u64 hash = 14695981039346656037ULL;

	for (const char *s = c->kind; *s; s++)
		hash = (hash ^ (u8)*s) * 1099511628211ULL;
	for (const char *s = c->message; *s; s++)
		hash = (hash ^ (u8)*s) * 1099511628211ULL;
	for (u32 i = 0; i < c->nviolations; i++)
		if (c->violations[i].hash == hash) {
			c->violations[i].count++;
			return;
		}
	if (c->nviolations == c->violation_cap) {
		u32 cap = c->violation_cap ? 2 * c->violation_cap : 8;
		void *more = realloc(c->violations, cap * sizeof(*v));
		if (!more) {
			c->err = -ENOMEM;
			return;
		}
		c->violations = more;
		c->violation_cap = cap;
	}
	v = &c->violations[c->nviolations];
	memset(v, 0, sizeof(*v));
	memcpy(v->kind, c->kind, sizeof(v->kind));
	memcpy(v->message, c->message, sizeof(v->message));
	v->execution = (u32)c->executions;
	v->length = c->nevents;
	v->hash = hash;
	v->count = 1;
	v->schedule = malloc((c->nevents + 1) * sizeof(u16));
	if (!v->schedule) {
		c->err = -ENOMEM;
		return;
	}
	for (u32 i = 0; i < c->nevents; i++)
		v->schedule[i] = (u16)(c->nodes[i].chosen | c->nodes[i].choice << 8);
	c->nviolations++;
}

/* ---- the next schedule ---- */

/* Depth first: the deepest node that still has something to try. 0 = nothing is left. */
static bool next_schedule(struct check *c)
{
	for (u32 d = c->nevents; d-- > c->nfixed;) {
		struct node *node = &c->nodes[d];
		u64 left;
		if (node->choice + 1 < node->nchoices) {
			node->choice++;
			c->replay = d + 1;
			return true;
		}
		if (node->forced)
			continue;
		node->done |= bit(node->chosen);
		left = within_bound(c, node, node->backtrack & ~node->done & ~node->sleep);
		if (left) {
			node_choose(c, node, (u32)__builtin_ctzll(left));
			node->choice = 0;
			c->replay = d + 1;
			return true;
		}
	}
	return false;
}

/*
 * Runs executions until `max` are done (0 = no limit), the search is finished, or (stop) a violation was found.
 * 0 or -errno. May be called again to go on.
 */
static int check_run_some(struct check *c, u64 max, bool stop)
{
	u64 n = 0;
	int err;

	while (!c->finished && (!max || n < max)) {
		u32 before = c->nviolations;
		err = run_execution(c);
		if (err)
			return err;
		n++;
		if (c->nevents > c->pct_len)
			c->pct_len = c->nevents;
		if (c->blocked_run)
			c->blocked++;
		else if (c->cut_run)
			c->cuts++;
		else if (c->failed_run) {
			c->failed++;
			record_violation(c);
		} else {
			if (c->want_graphs && graph_insert(c, graph_hash(c)))
				c->redundant++;
			else {
				c->executions++;
				if (c->prog.outcome)
					record_outcome(c, c->outcome);
			}
		}
		if (c->err)
			return c->err;
		if (c->explorer == EXPLORER_DPOR || c->explorer == EXPLORER_DFS) {
			if (c->cut_run && c->on_cut)
				return 1; /* the caller looks at the nodes, then calls again */
			if (!next_schedule(c))
				c->finished = 1;
		} else if (c->explorer == EXPLORER_REPLAY)
			c->finished = 1;
		else
			c->attempts++;
		if (stop && c->nviolations > before)
			break;
	}
	return 0;
}

static int check_run(struct check *c, u64 max, bool stop)
{
	stack_t stack;
	int timer = 0;
	bool ticks;
	int err;

	crash_begin(c, &stack);
	ticks = stack.ss_sp && watchdog_begin(c, &timer);
	err = check_run_some(c, max, stop);
	if (ticks)
		syscall(SYS_timer_delete, timer); /* a tick that is still on its way finds no execution */
	crash_end(&stack);
	return err;
}

/* After an execution that was cut and looked at: on to the next. */
static int next_part(struct check *c)
{
	if (!next_schedule(c))
		c->finished = 1;
	return 0;
}

#endif
