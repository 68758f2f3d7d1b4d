/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/kcsan-checks.h: plain accesses under the eyes of the check engine.
 *
 * A build with PYKMM_PLAIN=1 compiles what runs on vCPUs with the compiler's thread sanitizer instrumentation, but links
 * hooks of our own (plain_hooks.h) instead of its run-time library: every plain load and store calls one. The check engine
 * says through `kmm_plain` which memory is shared and what is to be told of it; elsewhere and at all other times a hook
 * returns at once. In a normal build nothing of this exists.
 */
#ifndef KMM_PLAIN_H
#define KMM_PLAIN_H

#include <string.h>

#include "kmm/types.h"

enum { KMM_PLAIN_WRITE = 1, KMM_PLAIN_MARKED = 2 };

/* Written and read by the OS thread that runs the engine. size = 0: nobody looks. */
struct kmm_plain {
	const u8 *base;
	size_t size;
	/* n bytes at p are about to be accessed by the code at pc. May not return. */
	void (*access)(const void *p, size_t n, int what, const void *pc);
};

#ifdef KMM_PLAIN
#define KMM_PLAIN_BUILD 1
extern __thread struct kmm_plain kmm_plain;
#else
#define KMM_PLAIN_BUILD 0
#endif

/*
 * include/linux/compiler.h: data_race(). A load that is meant to race, of a value that nothing depends on: a hint, a
 * statistic. No step of the check engine and no order. Everything else that races is READ_ONCE() or WRITE_ONCE().
 * Context: any.
 */
static inline unsigned long kmm_data_race(const unsigned long *p) { return *(const volatile unsigned long *)p; }
static inline u32 kmm_data_race_32(const u32 *p) { return *(const volatile u32 *)p; }

#endif
