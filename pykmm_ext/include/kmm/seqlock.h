/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/seqlock.h: sequence counters. Odd = a writer is inside.
 *
 * Pairs: the wmb of write_seqcount_begin with the rmb of read_seqcount_retry; the wmb of
 * write_seqcount_end with the rmb of read_seqcount_begin.
 */
#ifndef KMM_SEQLOCK_H
#define KMM_SEQLOCK_H

#include "kmm/atomic.h"
#include "kmm/barrier.h"
#include "kmm/spinlock.h"

typedef struct { u32 sequence; } seqcount_t;
typedef struct { seqcount_t seqcount; spinlock_t lock; } seqlock_t;

static inline void seqcount_init(seqcount_t *s) { s->sequence = 0; }

/* The count as it is, odd included, then a read barrier (never waits). */
static inline u32 raw_read_seqcount(Cpu *cpu, const seqcount_t *s)
{
	u32 ret = kmm_read_once_32(cpu, &s->sequence);
	smp_rmb(cpu);
	return ret;
}

/* Waits while a writer is inside. */
kmm_body u32 __read_seqcount_begin(const struct engine_ops *engine, Cpu *cpu, const seqcount_t *s)
{
	u32 ret;

	if (engine)
		kmm_event(cpu, KMM_EV_SEQ_READ, s, 0);
	ret = engine_load_32(engine, cpu, &s->sequence);
	if (unlikely(ret & 1))
		ret = (u32)kmm_await_32(cpu, &s->sequence, kmm_is_even, 0);
	engine_rmb(engine, cpu);
	return ret;
}

static inline u32 read_seqcount_begin(Cpu *cpu, const seqcount_t *s)
{
	return KMM_ON_ENGINE(cpu, __read_seqcount_begin, s);
}

/* True = something changed since `start`. */
static inline bool read_seqcount_retry(Cpu *cpu, const seqcount_t *s, u32 start)
{
	smp_rmb(cpu);
	return unlikely(kmm_read_once_32(cpu, &s->sequence) != start);
}

kmm_body void __write_seqcount_begin(const struct engine_ops *engine, Cpu *cpu, seqcount_t *s, int subclass)
{
	if (engine)
		kmm_event(cpu, KMM_EV_SEQ_WRITE_BEGIN, s, (u64)subclass);
	engine_store_32(engine, cpu, &s->sequence, engine_load_32(engine, cpu, &s->sequence) + 1);
	engine_wmb(engine, cpu);
}

/* Context: writers are excluded against each other by a lock of the caller's. `subclass` tells lockdep that two
 * sections of one class nest on purpose. */
static inline void write_seqcount_begin_nested(Cpu *cpu, seqcount_t *s, int subclass)
{
	KMM_ON_ENGINE(cpu, __write_seqcount_begin, s, subclass);
}

static inline void write_seqcount_begin(Cpu *cpu, seqcount_t *s)
{
	write_seqcount_begin_nested(cpu, s, 0);
}

kmm_body void __write_seqcount_end(const struct engine_ops *engine, Cpu *cpu, seqcount_t *s)
{
	engine_wmb(engine, cpu);
	engine_store_32(engine, cpu, &s->sequence, engine_load_32(engine, cpu, &s->sequence) + 1);
	if (engine)
		kmm_event(cpu, KMM_EV_SEQ_WRITE_END, s, 0);
}

static inline void write_seqcount_end(Cpu *cpu, seqcount_t *s)
{
	KMM_ON_ENGINE(cpu, __write_seqcount_end, s);
}

static inline void seqlock_init(seqlock_t *sl) { seqcount_init(&sl->seqcount); spin_lock_init(&sl->lock); }
static inline u32 read_seqbegin(Cpu *cpu, const seqlock_t *sl) { return read_seqcount_begin(cpu, &sl->seqcount); }
static inline bool read_seqretry(Cpu *cpu, const seqlock_t *sl, u32 start)
{ return read_seqcount_retry(cpu, &sl->seqcount, start); }
static inline void write_seqlock(Cpu *cpu, seqlock_t *sl)
{ spin_lock(cpu, &sl->lock); write_seqcount_begin(cpu, &sl->seqcount); }
static inline void write_sequnlock(Cpu *cpu, seqlock_t *sl)
{ write_seqcount_end(cpu, &sl->seqcount); spin_unlock(cpu, &sl->lock); }

#endif
