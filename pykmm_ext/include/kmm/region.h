/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * mm/kasan/kasan.h: a machine in one region, for the check engine. Everything the machine allocates lies in one
 * reservation that can be copied back in microseconds, and every byte of it has a shadow that says whether it may be
 * touched. Nothing that was freed is handed out again, so a stale pointer never points to a live object.
 *
 * The region, in this order: this header; the heap, one slice for the machine itself and one per Cpu; the heap's
 * shadow, a byte per KMM_SHADOW_GRAIN bytes; a byte per frame; mem_map; the arena. A Cpu takes objects and frames from
 * its own slice alone: where its n-th object lies does not depend on what other Cpus did before.
 *
 * Context of everything here: one OS thread drives all Cpus, and nothing in here is a scheduling point. So all fields
 * are plain.
 */
#ifndef KMM_REGION_H
#define KMM_REGION_H

#include "kmm/mm_types.h"

#define KMM_SHADOW_GRAIN 16

/* What machine_shadow_state() says about an address; the low bits of a shadow byte. */
enum kmm_shadow_state {
	KMM_SHADOW_NEVER,   /* of the region, and in no object: between two, or not handed out in this execution */
	KMM_SHADOW_LIVE,
	KMM_SHADOW_FREED,
	KMM_SHADOW_FOREIGN, /* not of the region: a stack, a static object */
};
#define KMM_SHADOW_STATE 3
#define KMM_SHADOW_FIRST 4  /* heap: the object's first grain */
#define KMM_SHADOW_TABLE 8  /* frame: how it was used when it was freed */
#define KMM_SHADOW_ANON 16
#define KMM_SHADOW_FILE 32

#define KMM_POISON_FREE 0x6b    /* POISON_FREE: fills what was freed */
#define KMM_POISON_INUSE 0x5a   /* POISON_INUSE: fills what was handed out and not written yet */
#define KMM_ORDER_REGION 0x80u  /* in page->order of an allocated block: put_page() takes the slow path */
#define KMM_MAG_REGION 2u       /* slab_magazine.registered: every free takes the slow path */

/* In front of every object of the heap. */
struct region_header {
	const char *name;       /* of the cache or of what it is; lives as long as the machine */
	u32 size;               /* bytes asked for */
	u32 prev;               /* bytes back to the slice's object before this one, 0 = none */
};

struct region_slice {
	u8 *base, *end;         /* const: its part of the heap */
	u8 *next;               /* everything from here on was never handed out */
	u8 *last;               /* the newest object, or NULL */
	unsigned long pfn, pfn_end, pfn_next; /* the same for frames; pfn and pfn_end are const */
	/* At the snapshot. */
	u8 *snap_next, *snap_last;
	unsigned long snap_pfn_next;
};

struct region {
	size_t bytes;           /* const, like all up to frame_bytes: of the whole reservation */
	u8 *heap;
	size_t heap_bytes;
	u8 *shadow;             /* of the heap */
	u8 *frame_state;        /* [nr_frames] */
	struct page *mem_map;
	size_t map_bytes;
	u8 *mem_base;
	size_t frame_bytes;     /* of all frames */
	u32 page_shift;
	u32 nr_slices;          /* nr_cpus + 1: slices[0] is the machine's, slices[id + 1] that of Cpu `id` */
	u8 *copy;               /* the snapshot, or NULL; host memory */
	size_t copy_bytes;
	u32 exhausted;          /* allocations that failed for want of room since the last restore */
	/* Called instead of abort() where the allocator finds a broken object: freed twice, freed while mapped. May not
	 * return. NULL: abort(). */
	void (*bug)(Cpu *cpu, const char *message, const void *obj);
	char names[4][160];     /* machine_object_name()'s answers, in turn */
	u32 name;
	struct region_slice slices[];
};

/* The state of the byte at addr. O(1). A struct page is always LIVE, as mem_map never goes away, except for the lock of
 * the page table in its frame. */
static inline int region_state(const struct region *r, const void *addr)
{
	size_t at = (size_t)((const u8 *)addr - r->heap);

	if (at < r->heap_bytes)
		return r->shadow[at / KMM_SHADOW_GRAIN] & KMM_SHADOW_STATE;
	at = (size_t)((const u8 *)addr - r->mem_base);
	if (at < r->frame_bytes)
		return r->frame_state[at >> r->page_shift] & KMM_SHADOW_STATE;
	at = (size_t)((const u8 *)addr - (const u8 *)r->mem_map);
	if (at < r->map_bytes) {
		size_t in = at % sizeof(struct page);

		if (in < offsetof(struct page, ptl) || in >= offsetof(struct page, ptl) + sizeof(spinlock_t))
			return KMM_SHADOW_LIVE;
		return r->frame_state[at / sizeof(struct page)] & KMM_SHADOW_STATE;
	}
	return KMM_SHADOW_FOREIGN;
}

#endif
