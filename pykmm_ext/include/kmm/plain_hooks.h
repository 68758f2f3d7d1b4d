/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kernel/kcsan/core.c: the functions that code compiled with -fsanitize=thread calls. The whole of a small library that
 * setup.py makes where PYKMM_PLAIN=1 is set; nothing else includes this file. See plain.h.
 *
 * A volatile access is taken for data_race(): nobody is told of it. An atomic one that does not go through kmm/atomic.h
 * (statistics of a Cpu) counts as marked, and is no step.
 * simplified: what memset() and memcpy() touch is not seen; GCC only.
 * Context of everything: any; the caller is instrumented, this file is not.
 */
#define KMM_PLAIN 1
#include "kmm/plain.h"

__thread struct kmm_plain kmm_plain;

static inline __attribute__((always_inline)) void plain(const volatile void *p, size_t n, int what)
{
	const struct kmm_plain *here = &kmm_plain;

	if (unlikely((size_t)((const u8 *)p - here->base) < here->size))
		here->access((const void *)(uintptr_t)p, n, what, __builtin_return_address(0));
}

#define PLAIN_HOOKS(N)                                                                             \
void __tsan_read##N(void *p) { plain(p, N, 0); }                                                   \
void __tsan_write##N(void *p) { plain(p, N, KMM_PLAIN_WRITE); }                                    \
void __tsan_unaligned_read##N(void *p) { plain(p, N, 0); }                                         \
void __tsan_unaligned_write##N(void *p) { plain(p, N, KMM_PLAIN_WRITE); }                          \
void __tsan_volatile_read##N(void *p) { (void)p; }                                                 \
void __tsan_volatile_write##N(void *p) { (void)p; }
PLAIN_HOOKS(1)
PLAIN_HOOKS(2)
PLAIN_HOOKS(4)
PLAIN_HOOKS(8)
PLAIN_HOOKS(16)

void __tsan_read_range(void *p, size_t n) { plain(p, n, 0); }
void __tsan_write_range(void *p, size_t n) { plain(p, n, KMM_PLAIN_WRITE); }
void __tsan_func_entry(void *pc) { (void)pc; }
void __tsan_func_exit(void) { }
void __tsan_init(void) { }

/* The strongest order does for all: the engine runs one vCPU at a time, and other threads lose nothing by it. */
#define RMW_HOOK(BITS, T, NAME, CALL)                                                              \
T __tsan_atomic##BITS##_##NAME(volatile T *p, T v, int order)                                      \
{                                                                                                  \
	plain(p, sizeof(T), KMM_PLAIN_WRITE | KMM_PLAIN_MARKED);                                   \
	(void)order;                                                                               \
	return CALL(p, v, __ATOMIC_SEQ_CST);                                                       \
}
#define CMPXCHG_HOOK(BITS, T, NAME)                                                                \
int __tsan_atomic##BITS##_compare_exchange_##NAME(volatile T *p, T *old, T v, int order, int fail) \
{                                                                                                  \
	plain(p, sizeof(T), KMM_PLAIN_WRITE | KMM_PLAIN_MARKED);                                   \
	(void)order;                                                                               \
	(void)fail;                                                                                \
	return __atomic_compare_exchange_n(p, old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
}
#define ATOMIC_HOOKS(BITS, T)                                                                      \
T __tsan_atomic##BITS##_load(const volatile T *p, int order)                                       \
{                                                                                                  \
	plain(p, sizeof(T), KMM_PLAIN_MARKED);                                                     \
	(void)order;                                                                               \
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                               \
}                                                                                                  \
void __tsan_atomic##BITS##_store(volatile T *p, T v, int order)                                    \
{                                                                                                  \
	plain(p, sizeof(T), KMM_PLAIN_WRITE | KMM_PLAIN_MARKED);                                   \
	(void)order;                                                                               \
	__atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                  \
}                                                                                                  \
RMW_HOOK(BITS, T, exchange, __atomic_exchange_n)                                                   \
RMW_HOOK(BITS, T, fetch_add, __atomic_fetch_add)                                                   \
RMW_HOOK(BITS, T, fetch_sub, __atomic_fetch_sub)                                                   \
RMW_HOOK(BITS, T, fetch_and, __atomic_fetch_and)                                                   \
RMW_HOOK(BITS, T, fetch_or, __atomic_fetch_or)                                                     \
RMW_HOOK(BITS, T, fetch_xor, __atomic_fetch_xor)                                                   \
RMW_HOOK(BITS, T, fetch_nand, __atomic_fetch_nand)                                                 \
CMPXCHG_HOOK(BITS, T, strong)                                                                      \
CMPXCHG_HOOK(BITS, T, weak)
ATOMIC_HOOKS(8, u8)
ATOMIC_HOOKS(16, u16)
ATOMIC_HOOKS(32, u32)
ATOMIC_HOOKS(64, u64)

void __tsan_atomic_thread_fence(int order)
{
	(void)order;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void __tsan_atomic_signal_fence(int order)
{
	(void)order;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}
