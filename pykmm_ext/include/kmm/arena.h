/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the shared words of a Python program on the check engine live: at the same addresses in every execution.
 * Each vCPU allocates from a region of its own, the program's setup from another, so that the addresses do not depend
 * on the schedule.
 *
 * Context of everything here: the GIL is held, but for arena_describe(): the engine's one running thread.
 */
#ifndef KMM_ARENA_H
#define KMM_ARENA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kmm/types.h"

#define ARENA_REGIONS 17             /* vCPUs, then the setup */
#define ARENA_SETUP 16
#define ARENA_REGION (1UL << 20)
#define ARENA_NAMES 1024             /* objects beyond have no name in reports */

struct kmm_named {
	const u8 *p;
	u32 size;
	u32 region, number;          /* the number-th of this region */
	const char *kind;            /* static */
	const char *name;            /* the user's, kept alive by him; or NULL */
};

struct kmm_arena {
	u8 *base;
	size_t used[ARENA_REGIONS];
	u32 count[ARENA_REGIONS];
	u32 nr_named;
	struct kmm_named named[ARENA_NAMES];
};

static inline struct kmm_arena *arena_create(void)
{
	struct kmm_arena *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->base = mmap(NULL, ARENA_REGIONS * ARENA_REGION, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (a->base == MAP_FAILED) {
		free(a);
		return NULL;
	}
	return a;
}

static inline void arena_destroy(struct kmm_arena *a)
{
	if (a)
		munmap(a->base, ARENA_REGIONS * ARENA_REGION);
	free(a);
}

static inline void arena_reset(struct kmm_arena *a)
{
	for (u32 r = 0; r < ARENA_REGIONS; r++) {
		memset(a->base + r * ARENA_REGION, 0, a->used[r]);
		a->used[r] = 0;
		a->count[r] = 0;
	}
	a->nr_named = 0;
}

/* Zeroed memory at a multiple of `align`, `skew` bytes on; NULL when the region is full. */
static inline void *arena_alloc(struct kmm_arena *a, u32 region, size_t size, size_t align, size_t skew)
{
	size_t at = (a->used[region] + align - 1) / align * align + skew;

	if (size > ARENA_REGION || at > ARENA_REGION - size)
		return NULL;
	a->used[region] = at + size;
	return a->base + region * ARENA_REGION + at;
}

static inline void arena_name(struct kmm_arena *a, u32 region, const void *p, size_t size, const char *kind,
			      const char *name)
{
	u32 number = a->count[region]++;

	if (a->nr_named < ARENA_NAMES)
		a->named[a->nr_named++] = (struct kmm_named){ p, (u32)size, region, number, kind, name };
}

static inline void arena_describe(const struct kmm_arena *a, const void *p, char *buf, size_t n)
{
	for (u32 i = 0; i < a->nr_named; i++) {
		const struct kmm_named *o = &a->named[i];
		size_t at = (size_t)((const u8 *)p - o->p);
		char offset[24] = "";
		if ((const u8 *)p < o->p || at >= o->size)
			continue;
		if (at)
			snprintf(offset, sizeof(offset), "+%zu", at);
		if (o->name)
			snprintf(buf, n, "%s%s", o->name, offset);
		else if (o->region == ARENA_SETUP)
			snprintf(buf, n, "%s #%u%s", o->kind, o->number, offset);
		else
			snprintf(buf, n, "%s #%u of Cpu %u%s", o->kind, o->number, o->region, offset);
		return;
	}
}

#endif
