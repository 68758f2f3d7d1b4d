/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/compiler.h, atomic.h: accesses to shared memory, with the executing Cpu first.
 *
 * On native (cpu->engine == NULL) each is the bare C11 atomic behind one predicted branch;
 * on a virtual engine it is the engine's load / store / rmw. Suffixes: none = unsigned long
 * (64 bits), _32 = u32, _ptr = pointer. Context of every function here: any.
 *
 * Orders, as Linux: READ_ONCE/WRITE_ONCE relaxed; smp_load_acquire, smp_store_release;
 * xchg, cmpxchg and value-returning atomics fully ordered; atomic_inc/dec/or/and relaxed.
 */
#ifndef KMM_ATOMIC_H
#define KMM_ATOMIC_H

#include "kmm/cpu.h"

#define KMM_DEFINE_ATOMICS(T, S)                                                                   \
/* Of the next three, `engine` is what the caller found in cpu->engine: KMM_ON_ENGINE(). */        \
kmm_body T engine_load##S(const struct engine_ops *engine, Cpu *cpu, const T *p)                   \
{                                                                                                  \
	if (unlikely(engine))                                                                      \
		return (T)engine->load(cpu, p, sizeof(T), KMM_RELAXED);                            \
	return __atomic_load_n(p, __ATOMIC_RELAXED);                                               \
}                                                                                                  \
kmm_body void engine_store##S(const struct engine_ops *engine, Cpu *cpu, T *p, T v)                \
{                                                                                                  \
	if (unlikely(engine))                                                                      \
		engine->store(cpu, p, sizeof(T), (u64)v, KMM_RELAXED);                             \
	else                                                                                       \
		__atomic_store_n(p, v, __ATOMIC_RELAXED);                                          \
}                                                                                                  \
kmm_body void engine_store_release##S(const struct engine_ops *engine, Cpu *cpu, T *p, T v)        \
{                                                                                                  \
	if (unlikely(engine))                                                                      \
		engine->store(cpu, p, sizeof(T), (u64)v, KMM_RELEASE);                             \
	else                                                                                       \
		__atomic_store_n(p, v, __ATOMIC_RELEASE);                                          \
}                                                                                                  \
static inline T kmm_read_once##S(Cpu *cpu, const T *p) { return engine_load##S(cpu->engine, cpu, p); } \
static inline void kmm_write_once##S(Cpu *cpu, T *p, T v) { engine_store##S(cpu->engine, cpu, p, v); } \
static inline void kmm_store_release##S(Cpu *cpu, T *p, T v) { engine_store_release##S(cpu->engine, cpu, p, v); } \
static inline T kmm_load_acquire##S(Cpu *cpu, const T *p)                                          \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		return (T)cpu->engine->load(cpu, p, sizeof(T), KMM_ACQUIRE);                       \
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);                                               \
}                                                                                                  \
static inline T kmm_xchg##S(Cpu *cpu, T *p, T v)                                                   \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		return (T)cpu->engine->rmw(cpu, p, sizeof(T), KMM_XCHG, (u64)v, 0, KMM_SEQ_CST);   \
	return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                        \
}                                                                                                  \
/* Returns the value found: equal to `old` means that `v` was stored. */                           \
static inline T kmm_cmpxchg##S(Cpu *cpu, T *p, T old, T v)                                         \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		return (T)cpu->engine->rmw(cpu, p, sizeof(T), KMM_CMPXCHG, (u64)old, (u64)v,       \
					   KMM_SEQ_CST);                                           \
	__atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
	return old;                                                                                \
}

KMM_DEFINE_ATOMICS(unsigned long, )
KMM_DEFINE_ATOMICS(u32, _32)

/*
 * READ_ONCE() of an address that was computed from what the `back`-th last load of this Cpu returned (1 = the last one;
 * 0 = it was not). Address dependencies order loads on every CPU that Linux runs on; this says so to the memory models
 * of the check engine, and costs nothing elsewhere.
 */
#define KMM_DEFINE_DEP(T, S)                                                                       \
static inline T kmm_read_once_dep##S(Cpu *cpu, const T *p, u32 back)                               \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		return (T)cpu->engine->load_dep(cpu, p, sizeof(T), KMM_RELAXED,                    \
						back ? cpu->engine->last_load(cpu) + 1 - back : 0); \
	return __atomic_load_n(p, __ATOMIC_RELAXED);                                               \
}
KMM_DEFINE_DEP(unsigned long, )
KMM_DEFINE_DEP(u32, _32)
static inline void *kmm_read_once_dep_ptr(Cpu *cpu, const void *p, u32 back)
{ return (void *)kmm_read_once_dep(cpu, (const unsigned long *)p, back); }

#define KMM_DEFINE_ARITH(T, S)                                                                     \
static inline T kmm_fetch_add##S(Cpu *cpu, T *p, T n, int order)                                   \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		return (T)cpu->engine->rmw(cpu, p, sizeof(T), KMM_ADD, (u64)n, 0,                  \
					   order == __ATOMIC_RELAXED ? KMM_RELAXED                 \
					   : order == __ATOMIC_ACQUIRE ? KMM_ACQUIRE               \
					   : order == __ATOMIC_RELEASE ? KMM_RELEASE               \
					   : KMM_SEQ_CST);                                         \
	return __atomic_fetch_add(p, n, order);                                                    \
}                                                                                                  \
/* Fully ordered, returns the new value (atomic_add_return). */                                    \
static inline T atomic_add_return##S(Cpu *cpu, T *p, T n)                                          \
{ return (T)(kmm_fetch_add##S(cpu, p, n, __ATOMIC_SEQ_CST) + n); }                                 \
/* The next three return nothing and order nothing. */                                             \
static inline void atomic_add##S(Cpu *cpu, T *p, T n)                                              \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		cpu->engine->rmw(cpu, p, sizeof(T), KMM_ADD, (u64)n, 0, KMM_POSTED);               \
	else                                                                                       \
		__atomic_fetch_add(p, n, __ATOMIC_RELAXED);                                        \
}                                                                                                  \
static inline void atomic_inc##S(Cpu *cpu, T *p) { atomic_add##S(cpu, p, 1); }                     \
static inline void atomic_dec##S(Cpu *cpu, T *p) { atomic_add##S(cpu, p, (T)-1); }                 \
/* Fully ordered; true when the result is zero. */                                                 \
static inline bool atomic_dec_and_test##S(Cpu *cpu, T *p)                                          \
{ return kmm_fetch_add##S(cpu, p, (T)-1, __ATOMIC_SEQ_CST) == 1; }                                 \
/* Return the value found; order what comes after (acquire) or before (release) alone. */            \
static inline T atomic_fetch_add_acquire##S(Cpu *cpu, T *p, T n)                                   \
{ return kmm_fetch_add##S(cpu, p, n, __ATOMIC_ACQUIRE); }                                          \
static inline T atomic_fetch_add_release##S(Cpu *cpu, T *p, T n)                                   \
{ return kmm_fetch_add##S(cpu, p, n, __ATOMIC_RELEASE); }                                          \
/* Increment unless zero; true when incremented. */                                                \
static inline bool atomic_inc_not_zero##S(Cpu *cpu, T *p)                                          \
{                                                                                                  \
	T old = kmm_read_once##S(cpu, p), seen;                                                    \
	while (old) {                                                                              \
		seen = kmm_cmpxchg##S(cpu, p, old, old + 1);                                       \
		if (seen == old)                                                                   \
			return true;                                                               \
		old = seen;                                                                        \
	}                                                                                          \
	return false;                                                                              \
}                                                                                                  \
static inline T kmm_fetch_or##S(Cpu *cpu, T *p, T v)                                               \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		return (T)cpu->engine->rmw(cpu, p, sizeof(T), KMM_OR, (u64)v, 0, KMM_SEQ_CST);     \
	return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST);                                          \
}                                                                                                  \
static inline T kmm_fetch_and##S(Cpu *cpu, T *p, T v)                                              \
{                                                                                                  \
	if (unlikely(cpu->engine))                                                                 \
		return (T)cpu->engine->rmw(cpu, p, sizeof(T), KMM_AND, (u64)v, 0, KMM_SEQ_CST);    \
	return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST);                                         \
}

KMM_DEFINE_ARITH(unsigned long, )
KMM_DEFINE_ARITH(u32, _32)

/* Pointers: the callers cast (the build uses -fno-strict-aliasing, as the kernel does). */
static inline void *kmm_read_once_ptr(Cpu *cpu, const void *p)
{ return (void *)kmm_read_once(cpu, (const unsigned long *)p); }
static inline void kmm_write_once_ptr(Cpu *cpu, void *p, const void *v)
{ kmm_write_once(cpu, (unsigned long *)p, (unsigned long)v); }
static inline void *kmm_load_acquire_ptr(Cpu *cpu, const void *p)
{ return (void *)kmm_load_acquire(cpu, (const unsigned long *)p); }
static inline void kmm_store_release_ptr(Cpu *cpu, void *p, const void *v)
{ kmm_store_release(cpu, (unsigned long *)p, (unsigned long)v); }
static inline void *kmm_xchg_ptr(Cpu *cpu, void *p, const void *v)
{ return (void *)kmm_xchg(cpu, (unsigned long *)p, (unsigned long)v); }
static inline void *kmm_cmpxchg_ptr(Cpu *cpu, void *p, const void *old, const void *v)
{ return (void *)kmm_cmpxchg(cpu, (unsigned long *)p, (unsigned long)old, (unsigned long)v); }

/*
 * A word of user memory: what the simulated program itself loads and stores. One of 1, 2, 4
 * or 8 naturally aligned bytes.
 */
static inline u64 kmm_user_load(Cpu *cpu, const void *p, unsigned width)
{
	if (unlikely(cpu->engine))
		return cpu->engine->load(cpu, p, width, KMM_RELAXED);
	switch (width) {
	case 1: return __atomic_load_n((const u8 *)p, __ATOMIC_RELAXED);
	case 2: return __atomic_load_n((const u16 *)p, __ATOMIC_RELAXED);
	case 4: return __atomic_load_n((const u32 *)p, __ATOMIC_RELAXED);
	default: return __atomic_load_n((const u64 *)p, __ATOMIC_RELAXED);
	}
}

static inline void kmm_user_store(Cpu *cpu, void *p, unsigned width, u64 v)
{
	if (unlikely(cpu->engine)) {
		cpu->engine->store(cpu, p, width, v, KMM_RELAXED);
		return;
	}
	switch (width) {
	case 1: __atomic_store_n((u8 *)p, (u8)v, __ATOMIC_RELAXED); break;
	case 2: __atomic_store_n((u16 *)p, (u16)v, __ATOMIC_RELAXED); break;
	case 4: __atomic_store_n((u32 *)p, (u32)v, __ATOMIC_RELAXED); break;
	default: __atomic_store_n((u64 *)p, v, __ATOMIC_RELAXED); break;
	}
}

static inline void kmm_event(Cpu *cpu, enum kmm_event ev, const void *obj, u64 size)
{
	if (unlikely(cpu->engine) && cpu->engine->event)
		cpu->engine->event(cpu, ev, obj, size);
}

#endif
