/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an agent's next step waits for, and which word it touches.
 *
 * Ordered read-modify-writes, IPIs and giving rwsems back wait for the own buffer to drain. So does taking a lock under
 * tso, where that is a locked instruction; elsewhere it is an acquire, which leaves earlier stores where they are, unless a
 * barrier stands between them and it.
 *
 * simplified: a read-modify-write whose result is used takes effect before what comes later in its program; under pso and
 * power those that are relaxed or acquire wait only for older stores to their word, or of before a barrier.
 *
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_ENABLED_H
#define KMM_CHECK_ENABLED_H

#include "kmm/check_memory.h"

#define RWSEM_WRITER 1UL
#define RWSEM_READER 256UL

/* ---- who may go on ---- */

/* pso, power: a read-modify-write that stores before it in the program may pass. */
static inline bool is_weak_rmw(const struct vcpu *v)
{
	return v->pend.op == P_RMW && v->c->model >= MODEL_PSO
	       && (v->pend.order == KMM_RELAXED || v->pend.order == KMM_ACQUIRE);
}

/* May the lock be taken while stores of before wait in the buffer? */
static bool lock_overtakes(const struct vcpu *v)
{
	u64 value;

	if (v->c->model <= MODEL_TSO || v->pend.sub == KMM_UP_READ || v->pend.sub == KMM_UP_WRITE
	    || v->pend.sub == KMM_DOWNGRADE_WRITE)
		return false;
	return !v->nbuffered || (v->buffer[0].epoch == v->epoch
				 && !buffer_forward(v, v->pend.addr, v->pend.width, &value)); /* the own unlock */
}

static inline bool needs_drained_buffer(const struct vcpu *v)
{
	if (v->drain)
		return true;
	switch (v->pend.op) {
	case P_RMW:
		return !is_weak_rmw(v);
	case P_IPI_SEND: case P_MB_SEND:
		return true;
	case P_LOCK:
		return !lock_overtakes(v);
	default:
		return false;
	}
}

/* But not those to the same word, nor those before a barrier. */
static inline bool weak_rmw_waits(const struct vcpu *v)
{
	for (u32 i = 0; i < v->nbuffered; i++)
		if (v->buffer[i].epoch != v->epoch || (uintptr_t)v->buffer[i].addr >> 3 == (uintptr_t)v->pend.addr >> 3)
			return true;
	return false;
}

static bool lock_free(const struct pend *p)
{
	switch (p->sub) {
	case KMM_SPIN_LOCK: return raw_load(p->addr, 4) == 0;
	case KMM_DOWN_READ: return !(raw_load(p->addr, 8) & RWSEM_WRITER);
	case KMM_DOWN_WRITE: return raw_load(p->addr, 8) == 0;
	default: return true;
	}
}

static bool vcpu_enabled(struct check *c, struct vcpu *v)
{
	u64 value;

	if (v->nbuffered && needs_drained_buffer(v))
		return false;
	switch (v->pend.op) {
	case P_NONE: case P_DONE:
		return false;
	case P_RMW:
		return !v->nbuffered || !weak_rmw_waits(v);
	case P_AWAIT:
		if (v->nbuffered) {
			int own = buffer_forward(v, v->pend.addr, v->pend.width, &value);
			if (own < 0)
				return false;
			if (own)
				return v->pend.pred(value, v->pend.a);
		}
		return v->pend.pred(raw_load(v->pend.addr, v->pend.width), v->pend.a);
	case P_LOCK:
		return lock_free(&v->pend);
	case P_IPI_WAIT:
		return v->calls_pending == 0;
	case P_MB_WAIT:
		return v->mbs_pending == 0;
	default:
		return true;
	}
}

static bool agent_enabled(struct check *c, u32 a)
{
	struct vcpu *v = &c->vcpus[c->agents[a].vcpu];

	switch (c->agents[a].kind) {
	case AGENT_VCPU: return vcpu_enabled(c, v);
	/* The acknowledgement is a store of the target's, behind those that it made before. */
	case AGENT_IRQ: return v->call_first != v->call_last && !v->irq_off && !v->nbuffered;
	case AGENT_MB: return v->mb_first != v->mb_last && !v->firm;
	default: return buffer_head(c, a) >= 0;
	}
}

/* ---- what a step touches ---- */

struct footprint {
	const volatile void *addr;
	u8 kind, mask;
	u8 blocking;
	u8 none;
	size_t size;                /* P_FREE: so many bytes from addr */
};

static struct footprint footprint_of(struct check *c, u32 a)
{
	struct vcpu *v = &c->vcpus[c->agents[a].vcpu];
	const struct pend *p = &v->pend;
	struct footprint f = { .none = 1 };
	u64 old;

	if (c->agents[a].kind == AGENT_IRQ) {
		f = (struct footprint){ &v->cpu->irq_disabled, A_WRITE, byte_mask(&v->cpu->irq_disabled, 4), 1, 0, 0 };
		return f;
	}
	if (c->agents[a].kind == AGENT_FLUSH) {
		s32 at = buffer_head(c, a);
		if (at >= 0)
			f = (struct footprint){ v->buffer[at].addr, A_WRITE, byte_mask(v->buffer[at].addr, v->buffer[at].width), 0, 0, 0 };
		return f;
	}
	if (c->agents[a].kind == AGENT_MB)
		return f; /* see order_mb() */
	f.addr = p->addr;
	f.none = 0;
	if (p->op == P_FREE) {
		f.kind = A_WRITE;
		f.size = p->a;
		return f;
	}
	f.mask = byte_mask(p->addr, p->width);
	switch (p->op) {
	case P_LOAD: case P_AWAIT:
		f.kind = A_READ;
		f.blocking = p->op == P_AWAIT;
		/* Answered by the own buffer: nobody else matters, now. See answer_load(). */
		f.none = v->nbuffered && !v->drain && buffer_forward(v, p->addr, p->width, &old) > 0;
		break;
	case P_STORE: case P_UNLOCK: case P_IRQ_OFF: case P_IRQ_ON: case P_IPI_SEND: case P_MB_SEND:
		f.kind = A_WRITE;
		break;
	case P_RMW:
		old = raw_load(p->addr, p->width);
		f.kind = rmw_value(p->sub, old, p->a, p->b, p->width) == old ? A_READ : A_WRITE;
		break;
	case P_LOCK:
		switch (p->sub) {
		case KMM_SPIN_LOCK: f.kind = A_WRITE; f.blocking = 1; break;
		case KMM_SPIN_TRYLOCK: f.kind = raw_load(p->addr, 4) ? A_READ : A_WRITE; break;
		case KMM_DOWN_READ: f.kind = A_RW_LOCKR; f.blocking = 1; break;
		case KMM_DOWN_READ_TRYLOCK: f.kind = raw_load(p->addr, 8) & RWSEM_WRITER ? A_RW_TRYR : A_RW_LOCKR; break;
		case KMM_DOWN_WRITE: f.kind = A_RW_LOCKW; f.blocking = 1; break;
		case KMM_DOWN_WRITE_TRYLOCK: f.kind = raw_load(p->addr, 8) ? A_RW_TRYW : A_RW_LOCKW; break;
		case KMM_UP_READ: f.kind = A_RW_UNLOCKR; break;
		default: f.kind = A_RW_UNLOCKW; break;
		}
		break;
	default:
		f.none = 1;
	}
	return f;
}

static inline bool footprints_conflict(const struct footprint *f, const struct footprint *g)
{
	if (f->none || g->none)
		return false;
	if (f->size || g->size)
		return (uintptr_t)f->addr < (uintptr_t)g->addr + (g->size ? g->size : 8)
		       && (uintptr_t)g->addr < (uintptr_t)f->addr + (f->size ? f->size : 8);
	return (uintptr_t)f->addr >> 3 == (uintptr_t)g->addr >> 3 && f->mask & g->mask
	       && conflicts[f->kind] >> g->kind & 1;
}

#endif
