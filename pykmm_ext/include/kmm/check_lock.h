/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Spinlocks and rwsems as one step each: what is done to the word, and who holds what.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_LOCK_H
#define KMM_CHECK_LOCK_H

#include "kmm/check_enabled.h"

static void check_violation(struct check *c, const char *kind, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static void held_push(struct check *c, struct vcpu *v, void *lock, u8 op)
{
	if (v->nheld < CHECK_HELD)
		v->held[v->nheld++] = (struct held){ lock, op, c->nevents };
}

/* 0 = the vCPU does not hold it. */
static int held_pop(struct vcpu *v, const volatile void *lock)
{
	for (u32 i = v->nheld; i--;)
		if (v->held[i].lock == lock) {
			memmove(&v->held[i], &v->held[i + 1], (v->nheld - i - 1) * sizeof(v->held[0]));
			v->nheld--;
			return 1;
		}
	return 0;
}

static void describe(struct check *c, const volatile void *p, char *buf, size_t n)
{
	buf[0] = 0;
	if (p == &c->mb_queue)
		snprintf(buf, n, "membarrier");
	else if (c->prog.describe)
		c->prog.describe(c->prog.priv, (const void *)(uintptr_t)p, buf, n);
	if (!buf[0])
		snprintf(buf, n, "%#lx", (unsigned long)(uintptr_t)p);
}

static void lock_event(struct check *c, struct vcpu *v, const volatile void *lock, u8 op, int what)
{
	c->stepping++;
	if (c->prog.lock)
		c->prog.lock(c->prog.priv, v->cpu, (void *)(uintptr_t)lock, (enum kmm_lock_op)op, what);
	c->stepping--;
}

/* Takes or gives back; returns what the primitive returns. The lock is free, or the operation does not block. */
static u64 lock_perform(struct check *c, struct vcpu *v, volatile void *lock, u8 op)
{
	volatile u64 *count = lock;
	char name[96];
	u64 got = 1;

	switch (op) {
	case KMM_SPIN_LOCK: case KMM_SPIN_TRYLOCK:
		got = *(volatile u32 *)lock == 0;
		if (got)
			*(volatile u32 *)lock = 1;
		break;
	case KMM_DOWN_READ: case KMM_DOWN_READ_TRYLOCK:
		got = !(*count & RWSEM_WRITER);
		if (got)
			*count += RWSEM_READER;
		break;
	case KMM_DOWN_WRITE: case KMM_DOWN_WRITE_TRYLOCK:
		got = *count == 0;
		if (got)
			*count = RWSEM_WRITER;
		break;
	default:
		if (!held_pop(v, lock)) {
			describe(c, lock, name, sizeof(name));
			check_violation(c, CHECK_LOCK_HELD, "Cpu %u releases %s, which it does not hold", v->id, name);
			return 0;
		}
		if (op == KMM_SPIN_UNLOCK)
			*(volatile u32 *)lock = 0;
		else if (op == KMM_UP_READ)
			*count -= RWSEM_READER;
		else if (op == KMM_UP_WRITE)
			*count = 0;
		else
			*count = RWSEM_READER;
		lock_event(c, v, lock, op, 2);
		if (op == KMM_DOWNGRADE_WRITE) {
			held_push(c, v, (void *)(uintptr_t)lock, KMM_DOWN_READ);
			lock_event(c, v, lock, KMM_DOWN_READ_TRYLOCK, 1);
		}
		return 1;
	}
	if (got)
		held_push(c, v, (void *)(uintptr_t)lock, op);
	lock_event(c, v, lock, op, (int)got);
	return got;
}

#endif
