/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * struct engine_ops of the check engine: what the primitives call on a vCPU.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_OPS_H
#define KMM_CHECK_OPS_H

#include <execinfo.h>

#include "kmm/check_race.h"
#include "kmm/check_sched.h"
#include "kmm/check_thread.h"
#include "kmm/plain.h"

static inline struct vcpu *vcpu_of(Cpu *cpu) { return cpu->engine_priv; }

/* Is this barrier one that a mutation test takes away? */
static inline bool weakened(struct check *c, struct vcpu *v, u32 kind)
{
	u32 n;

	if (likely(!(c->weaken >> kind & 1)))
		return false;
	n = v->barriers[kind]++;
	return n < 64 && c->weaken_which >> n & 1;
}

/* Where the vCPU is, for traces. Python code said so in op_enter(). */
static inline void keep_frames(struct check *c, struct vcpu *v)
{
	if (likely(!c->traced) || c->prog.python == CHECK_PYTHON)
		return;
	v->nframes = (u32)backtrace(v->frames, v->where ? CHECK_FRAMES - 1 : CHECK_FRAMES);
	if (v->where)
		v->frames[v->nframes++] = (void *)(uintptr_t)(v->where | CHECK_PYTHON_LINE);
}

static inline u64 announce(struct check *c, struct vcpu *v, const struct pend *p)
{
	v->pend = *p;
	keep_frames(c, v);
	return visible(c, v);
}

/* Waits until the own buffer has drained: with its next step, which may be nothing else. */
static void drain_now(struct check *c, struct vcpu *v)
{
	v->drain = 1;
	announce(c, v, &(struct pend){ .op = P_CHOOSE, .a = 1 });
}

static inline u64 load_from(Cpu *cpu, const volatile void *p, unsigned width, enum kmm_order order, u32 dep, const void *pc)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;
	u64 value;

	if (c->direct || c->over)
		return raw_load(p, width);
	if (order == KMM_ACQUIRE && weakened(c, v, WEAKEN_ACQUIRE))
		order = KMM_RELAXED;
	if (dep && weakened(c, v, WEAKEN_DEPENDENCY))
		dep = 0;
	if (v->nbuffered && buffer_forward(v, p, width, &value) < 0)
		v->drain = 1; /* answered in part: in life that waits for the buffer as well */
	value = announce(c, v, &(struct pend){ .op = P_LOAD, .width = (u8)width, .order = (u8)order, .addr = p, .dep = dep });
	race_marked(c, v, p, width, 0, order, value, pc);
	return value;
}

static u64 op_load_dep(Cpu *cpu, const volatile void *p, unsigned width, enum kmm_order order, u32 dep)
{
	return load_from(cpu, p, width, order, dep, __builtin_return_address(0));
}

static u64 op_load(Cpu *cpu, const volatile void *p, unsigned width, enum kmm_order order)
{
	return load_from(cpu, p, width, order, 0, __builtin_return_address(0));
}

static u32 op_last_load(Cpu *cpu) { return vcpu_of(cpu)->loads; }

/* The number of the store that is buffered now, its place kept; 0 = not traced, or no memory for it. */
static u32 keep_origin(struct check *c)
{
	struct origin *more;

	if (likely(!c->traced) || c->prog.python)
		return 0;
	if (c->norigins == c->origin_cap) {
		more = realloc(c->origins, (2 * c->origin_cap + 64) * sizeof(*more));
		if (!more)
			return 0;
		c->origins = more;
		c->origin_cap = 2 * c->origin_cap + 64;
	}
	c->origins[c->norigins].nframes = (u32)backtrace(c->origins[c->norigins].frames, CHECK_FRAMES);
	return ++c->norigins;
}

/*
 * v buffers a store, with which its newest event goes: they do not commute with the interrupt that was handled before.
 * After them it would have had to wait for the buffer. The other order is for step() to see.
 */
static void order_store(struct check *c, struct vcpu *v)
{
	s64 last = c->agents[v->id].last, irq = c->agents[c->nr_vcpus + v->id].last;

	if (last < 0 || irq < 0 || irq > last || (c->explorer != EXPLORER_DPOR && !c->want_graphs)
	    || clk_has(c, clk_of(c, (u64)last), (u32)irq))
		return;
	race(c, (u32)irq, (u32)last, v->id, clk_of(c, (u64)last));
	clk_join(clk_of(c, (u64)last), clk_of(c, (u64)irq), c->nr_agents);
}

/* `add`: not stored but added, atomically, when it becomes visible. */
static void buffer_store(struct check *c, struct vcpu *v, volatile void *p, unsigned width, u64 value,
			 enum kmm_order order, u8 add)
{
	struct buffered *b;

	/* The first thing that a vCPU does: an interrupt may come before it. */
	if (v->drain || v->nbuffered == CHECK_BUFFER || c->starting)
		drain_now(c, v);
	if (c->over)
		return;
	access_check(c, v, p, width, 1);
	if (c->failed_run) {
		leave(c, v);
		return;
	}
	if (c->model != MODEL_TSO && order != KMM_RELAXED) {
		new_epoch(v);
		if (c->model == MODEL_POWER)
			power_release(v);
	}
	b = &v->buffer[v->nbuffered++];
	b->addr = p;
	b->width = (u8)width;
	b->value = value;
	b->add = add;
	b->agent = 0;
	b->epoch = v->epoch;
	b->answered = -1;
	b->origin = keep_origin(c);
	b->sync = 0;
	v->epoch_used = v->infirm = 1;
	v->last_store = c->agents[v->id].last;
	/* Its interrupts wait for the buffer from now on: to have tried one before is not to have tried it after this. */
	c->nodes[c->nevents].sleep &= ~bit(c->nr_vcpus + v->id);
	if (v->last_store >= 0)
		c->nodes[v->last_store].marks.storers |= bit(v->id);
	order_store(c, v);
	b->after = c->agents[v->id].last;
	b->rel = NULL;
	if (c->model == MODEL_POWER) {
		b->rel = view_alloc(c);
		view_join(b->rel, v->rel);
	}
	b->under = raw_load(p, width);
	raw_store(p, width, add ? b->under + value : value);
	v->shown = 1;
}

static void op_store(Cpu *cpu, volatile void *p, unsigned width, u64 value, enum kmm_order order)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	if (c->direct || c->over) {
		if (c->direct)
			raw_store(p, width, value);
		return;
	}
	if (order == KMM_RELEASE && weakened(c, v, WEAKEN_RELEASE))
		order = KMM_RELAXED;
	if (c->model == MODEL_SC)
		announce(c, v, &(struct pend){ .op = P_STORE, .width = (u8)width, .order = (u8)order, .addr = p, .a = value });
	else
		buffer_store(c, v, p, width, value, order, 0);
	race_marked(c, v, p, width, 1, order, 0, __builtin_return_address(0));
}

static u64 op_rmw(Cpu *cpu, volatile void *p, unsigned width, enum kmm_rmw sub, u64 a, u64 b, enum kmm_order order)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;
	u64 old;

	if (c->direct || c->over) {
		old = raw_load(p, width);
		if (c->direct)
			raw_store(p, width, rmw_value((u8)sub, old, a, b, width));
		return old;
	}
	if (order == KMM_POSTED) {
		order = KMM_RELAXED;
		if (c->model > MODEL_TSO && sub == KMM_ADD) {
			buffer_store(c, v, p, width, a, KMM_RELAXED, 1);
			race_marked(c, v, p, width, 1, KMM_RELAXED, 0, __builtin_return_address(0));
			return 0;
		}
	}
	old = announce(c, v, &(struct pend){ .op = P_RMW, .width = (u8)width, .order = (u8)order, .sub = (u8)sub, .addr = p,
						.a = a, .b = b });
	race_marked(c, v, p, width, 2, order, old, __builtin_return_address(0));
	return old;
}

/*
 * smp_mb_light(): what waits in the buffer is stored before a barrier that comes from now on. So the step before this,
 * which is the newest one of all, does not commute with the barriers that others want of this vCPU. Nor if nothing waits
 * any more: stores that were visible before could have been visible later, and would then have kept such a barrier waiting.
 */
static void stores_firm(struct check *c, struct vcpu *v)
{
	s64 last = c->agents[v->id].last, mb = c->agents[c->first_mb + v->id].last;
	u32 f, end = flush_agents(c, v->id, &f);

	if (!v->infirm)
		return;
	v->infirm = 0;
	v->firm = v->nbuffered;
	v->last_light = last;
	for (; f < end; f++)
		c->agents[f].last_firm = c->agents[f].last;
	c->nodes[c->nevents].sleep &= ~bit(c->first_mb + v->id);
	if (last < 0)
		return;
	c->nodes[last].marks.lights |= bit(v->id);
	if (mb >= 0 && (c->explorer == EXPLORER_DPOR || c->want_graphs) && !clk_has(c, clk_of(c, (u64)last), (u32)mb)) {
		race(c, (u32)mb, (u32)last, v->id, clk_of(c, (u64)last));
		clk_join(clk_of(c, (u64)last), clk_of(c, (u64)mb), c->nr_agents);
	}
}

static void op_fence(Cpu *cpu, enum kmm_fence kind)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	if (c->direct || c->over || weakened(c, v, kind))
		return;
	race_fence(c, v, kind);
	if (c->model == MODEL_SC)
		return;
	switch (kind) {
	case KMM_MB:
		v->drain = 1;
		v->want_sync = 1;
		/* Under power a step of its own: what it sees is neither what the step before it saw, nor the one after it. */
		if (c->model == MODEL_POWER)
			drain_now(c, v);
		break;
	case KMM_MB_LIGHT:
		stores_firm(c, v);
		break;
	case KMM_MB_HEAVY:
		c->heavy = 1;
		v->want_sync = 1;
		announce(c, v, &(struct pend){ .op = P_MB_SEND, .width = 8, .addr = &c->mb_queue });
		announce(c, v, &(struct pend){ .op = P_MB_WAIT });
		break;
	case KMM_WMB:
		if (c->model != MODEL_TSO)
			new_epoch(v);
		break;
	case KMM_RMB:
		if (c->model == MODEL_POWER)
			power_acquire(v);
		break;
	case KMM_LWSYNC:
		if (c->model != MODEL_TSO)
			new_epoch(v);
		if (c->model == MODEL_POWER) {
			power_acquire(v);
			power_release(v);
		}
		break;
	}
}

static u64 op_await(Cpu *cpu, const volatile void *p, unsigned width, kmm_pred pred, u64 arg)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;
	enum kmm_order order;
	u64 value;
	char name[96];

	if (c->direct || c->over) {
		value = raw_load(p, width);
		if (c->direct && !pred(value, arg)) {
			describe(c, p, name, sizeof(name));
			check_violation(c, CHECK_DEADLOCK, "Cpu %u waits for %s (now %#llx) where nobody else runs", v->id, name,
					(unsigned long long)value);
		}
		return value;
	}
	order = weakened(c, v, WEAKEN_ACQUIRE) ? KMM_RELAXED : KMM_ACQUIRE;
	value = announce(c, v, &(struct pend){ .op = P_AWAIT, .width = (u8)width, .order = (u8)order, .addr = p, .a = arg,
						 .pred = pred });
	race_marked(c, v, p, width, 0, order, value, __builtin_return_address(0));
	return value;
}

static int op_lock(Cpu *cpu, void *lock, enum kmm_lock_op op)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;
	bool spin = op <= KMM_SPIN_UNLOCK;
	struct pend p = { .op = P_LOCK, .width = spin ? 4 : 8, .order = KMM_ACQUIRE, .sub = (u8)op, .addr = lock };
	char name[96];
	u64 got;

	if (!c->direct && !c->over && weakened(c, v, spin ? WEAKEN_SPINLOCK : WEAKEN_RWSEM))
		return 1; /* anybody gets it */
	if (spin ? c->prog.open_spinlocks : c->prog.open_rwsems)
		return -1;
	if (c->over && !c->direct)
		return 1;
	if (c->direct) {
		if (!lock_free(&p)) {
			describe(c, lock, name, sizeof(name));
			check_violation(c, CHECK_LOCK_HELD, "%s %s is still held at the end", lock_word((u8)op), name);
			return 0;
		}
		return (int)lock_perform(c, v, lock, (u8)op);
	}
	if (op == KMM_SPIN_UNLOCK) {
		race_release(c, v, lock, op);
		if (c->model == MODEL_SC) {
			p.op = P_UNLOCK;
			announce(c, v, &p);
			return 1;
		}
		if (!held_pop(v, lock)) {
			describe(c, lock, name, sizeof(name));
			check_violation(c, CHECK_LOCK_HELD, "Cpu %u releases %s, which it does not hold", v->id, name);
			leave(c, v);
			return 1;
		}
		lock_event(c, v, lock, (u8)op, 2);
		buffer_store(c, v, lock, 4, 0, KMM_RELEASE, 0);
		if (c->failed_run)
			leave(c, v);
		return 1;
	}
	if (op == KMM_UP_READ || op == KMM_UP_WRITE || op == KMM_DOWNGRADE_WRITE)
		race_release(c, v, lock, op);
	got = announce(c, v, &p);
	if (got && op != KMM_UP_READ && op != KMM_UP_WRITE)
		race_acquire(c, v, lock, op);
	return (int)got;
}

static void op_irq(Cpu *cpu, enum kmm_irq_op op)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;
	u32 n = v->irq_off;

	if (c->over && !c->direct)
		return;
	if (op == KMM_IRQ_DISABLE) {
		if (n || c->direct)
			v->irq_off = cpu->irq_disabled = n + 1;
		else
			announce(c, v, &(struct pend){ .op = P_IRQ_OFF, .width = 4, .addr = &cpu->irq_disabled });
	} else if (n > 1 || c->direct)
		v->irq_off = cpu->irq_disabled = n - (n != 0);
	else if (n == 1) {
		if (v->drain)
			drain_now(c, v); /* a barrier before: the step below does not wait */
		v->pend = (struct pend){ .op = P_IRQ_ON, .width = 4, .addr = &cpu->irq_disabled };
		keep_frames(c, v);
		forced(c, v);
	} else {
		check_violation(c, CHECK_ASSERTION, "Cpu %u enables IRQs, which were on", v->id);
		leave(c, v);
	}
}

static void op_ipi_send(Cpu *cpu, Cpu *target, kmm_ipi_func func, void *info)
{
	struct vcpu *v = vcpu_of(cpu), *t;
	struct check *c = v->c;

	if (c->over && !c->direct)
		return;
	t = target->engine == cpu->engine ? vcpu_of(target) : NULL;
	if (c->direct || !t) {
		func(target, info); /* nobody runs there */
		return;
	}
	if (v->irq_off) {
		check_violation(c, CHECK_DEADLOCK, "Cpu %u sends an IPI and waits for it with its own IRQs off", v->id);
		leave(c, v);
		return;
	}
	if (t->call_last - t->call_first == CHECK_CALLS - CHECK_MAX_VCPUS) {
		check_violation(c, CHECK_ASSERTION, "more IPIs under way to Cpu %u than the engine has room for", t->id);
		leave(c, v);
		return;
	}
	/* The slot is filled when the step is taken: sends to one target are ordered by their steps. */
	v->pend = (struct pend){ .op = P_IPI_SEND, .width = 8, .addr = &target->call_single_queue,
				.a = (u64)(uintptr_t)func, .b = (u64)(uintptr_t)t };
	v->ipi_info = info;
	keep_frames(c, v);
	visible(c, v);
}

static void op_ipi_wait(Cpu *cpu)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	if (c->direct || c->over)
		return;
	announce(c, v, &(struct pend){ .op = P_IPI_WAIT });
	race_join(v->sync, v->sync_irq);
}

static void op_event(Cpu *cpu, enum kmm_event ev, const void *obj, u64 size)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	if (c->over && !c->direct)
		return;
	if (c->prog.event) {
		c->prog.event(c->prog.priv, cpu, ev, obj, size);
		if (c->failed_run && !c->direct)
			leave(c, v);
	}
}

static void op_fail(Cpu *cpu, const char *kind, const char *message)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	check_violation(c, kind, "%s", message);
	if (!c->direct && c->cur == v && !c->stepping)
		leave(c, v);
}

static u32 op_choose(Cpu *cpu, u32 n)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	if (c->direct || c->over || n <= 1)
		return 0;
	return (u32)announce(c, v, &(struct pend){ .op = P_CHOOSE, .a = n > 64 ? 64 : n });
}

static u32 op_query(Cpu *cpu, int what)
{
	struct vcpu *v = vcpu_of(cpu);

	struct check *c = v->c;
	s64 last;

	switch (what) {
	case KMM_QUERY_PENDING: return v->nbuffered;
	case KMM_QUERY_STALE: return c->model == MODEL_POWER;
	case KMM_QUERY_SEQ: return c->agents[v->id].seq;
	case KMM_QUERY_LAST: return (u32)(c->agents[v->id].last + 1);
	case KMM_QUERY_FLUSHED:
		last = c->model == MODEL_TSO ? c->agents[c->first_flush + v->id].last : -1;
		return (u32)(last + 1);
	default: return 0;
	}
}

static int op_precedes(Cpu *cpu, u32 seq, u32 last)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	/* Clocks order steps under every model. Which store a load may see is more than that under pso and power. */
	if (c->explorer != EXPLORER_DPOR || (!last && c->model > MODEL_TSO))
		return -1;
	return last && clk_of(c, last - 1)[v->id] > seq;
}

/* A step, which conflicts with every access to that memory. What still waits in the own buffer for it then will never be
 * seen. */
static void op_forget(Cpu *cpu, const volatile void *p, size_t n)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;
	u32 kept = 0, firm = 0;

	if (c->direct || c->over)
		return;
	announce(c, v, &(struct pend){ .op = P_FREE, .addr = p, .a = n });
	for (u32 i = 0; i < v->nbuffered; i++)
		if ((uintptr_t)v->buffer[i].addr - (uintptr_t)p >= n) {
			firm += i < v->firm;
			v->buffer[kept++] = v->buffer[i];
		}
	v->nbuffered = kept;
	v->firm = firm;
	if (c->races && c->prog.shared_size && !c->over) {
		/* Whoever has accessed it must have done so before: the free is a plain store of all of it. */
		race_access(c, v, p, n, RACE_PLAIN | RACE_WRITE | RACE_FREE, NULL);
		if (c->failed_run)
			leave(c, v);
	}
}

static void op_plain(Cpu *cpu, const volatile void *p, unsigned width, int write)
{
	struct vcpu *v = vcpu_of(cpu);
	struct check *c = v->c;

	if (c->direct || c->over)
		return;
	access_check(c, v, p, width, write);
	if (!c->over)
		race_plain(c, v, p, width, write, NULL);
	if (c->failed_run)
		leave(c, v);
}

#ifdef KMM_PLAIN
static __thread struct check *plain_check;

/* Instrumented code is about to access n bytes at p. Context: whatever the code has; on a vCPU, or in an interrupt
 * handler, which may run on anybody's stack. No step. */
static void plain_access(const void *p, size_t n, int what, const void *pc)
{
	struct check *c = plain_check;
	struct vcpu *v = c->handling ? c->handling : c->direct ? NULL : c->cur;
	u8 kind = (what & KMM_PLAIN_WRITE ? RACE_WRITE : 0) | (what & KMM_PLAIN_MARKED ? 0 : RACE_PLAIN);

	if (!v || c->over || c->stepping)
		return;
	access_check(c, v, p, (unsigned)n, kind & RACE_WRITE);
	if (!c->over)
		race_access(c, v, p, n, kind, pc);
	if (c->failed_run && !c->handling)
		leave(c, v);
}

static void plain_begin(struct check *c)
{
	if (!c->prog.shared_size)
		return;
	plain_check = c;
	kmm_plain = (struct kmm_plain){ c->prog.shared, c->prog.shared_size, plain_access };
}

static void plain_end(void)
{
	kmm_plain.size = 0;
}
#else
static inline void plain_begin(struct check *c) { (void)c; }
static inline void plain_end(void) { }
#endif

static const struct engine_ops check_engine_ops = {
	.size = sizeof(struct engine_ops), .load = op_load, .store = op_store, .rmw = op_rmw, .fence = op_fence, .await = op_await,
	.lock = op_lock, .irq = op_irq, .event = op_event, .ipi_send = op_ipi_send, .ipi_wait = op_ipi_wait, .fail = op_fail,
	.choose = op_choose, .plain = op_plain, .load_dep = op_load_dep, .last_load = op_last_load,
	.forget = op_forget, .query = op_query, .precedes = op_precedes,
	.enter = op_enter, .unwind = op_unwind,
};

#endif
