/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The translation cache of one Cpu: set-associative, untagged by address space (switch_mm()
 * flushes), one line of memory per set.
 *
 * Context of everything here: IRQs off on the owning Cpu, or inside one of its IPI handlers.
 * Such sections exclude each other (irq.h), so all fields are plain.
 *
 * On an arch with tlb_broadcast also: `lock` held. There another Cpu invalidates entries of this TLB without asking its
 * owner; the lock stands in for the hardware's own order between an invalidation and an access: a user access holds it
 * from its lookup until it is performed, as tlbsync waits for accesses that use an entry which is going away.
 */
#ifndef KMM_TLB_H
#define KMM_TLB_H

#include "kmm/cpu.h"
#include "kmm/spinlock.h"

#define KMM_TLB_WAYS 4
#define KMM_TLB_SETS 256
#define KMM_TLB_REGION_SETS 16 /* of a machine that is copied back for every execution (region.h) */
#define KMM_TLB_GENERATIONS 4096 /* page_shift >= 12: the generation fits below the page address */

struct tlb_entry {
	u64 key;   /* page address | generation; another generation, and 0, never match */
	u64 data;  /* physical address of the page | 1 << KMM_ACCESS_* : as arch_ops.hw_walk returns it */
};

struct tlb {
	u8 *mem_base;      /* const: copy of machine->mem_base */
	u32 page_shift;    /* const: copy of arch->page_shift */
	u32 set_mask;      /* const: number of sets - 1; a power of two of them */
	u32 generation;    /* 1 .. KMM_TLB_GENERATIONS - 1 */
	u32 victim;        /* round-robin replacement */
	u32 broadcast;     /* const: copy of arch->tlb_broadcast */
	spinlock_t lock;   /* tlb_broadcast: everything above that is not const, the entries, and cpu->active_mm */
	struct tlb_entry set[][KMM_TLB_WAYS] ____cacheline_aligned;
};

/* Bytes of a TLB. */
static inline size_t tlb_size(u32 sets)
{
	return sizeof(struct tlb) + sets * sizeof(struct tlb_entry[KMM_TLB_WAYS]);
}

static inline struct tlb_entry *tlb_set_of(struct tlb *tlb, u64 address)
{
	return tlb->set[(address >> tlb->page_shift) & tlb->set_mask];
}

static inline u64 tlb_key(const struct tlb *tlb, u64 address)
{
	return (address >> tlb->page_shift << tlb->page_shift) | tlb->generation;
}

/* The entry that translates address for `access`, or NULL. */
static inline struct tlb_entry *tlb_lookup(struct tlb *tlb, u64 address, u32 access)
{
	struct tlb_entry *set = tlb_set_of(tlb, address);
	u64 key = tlb_key(tlb, address);

	for (unsigned way = 0; way < KMM_TLB_WAYS; way++)
		if (set[way].key == key)
			return likely(set[way].data >> access & 1) ? &set[way] : NULL;
	return NULL;
}

/* Where in the arena the byte at address lies. */
static inline void *tlb_host_pointer(const struct tlb *tlb, const struct tlb_entry *entry, u64 address)
{
	u64 mask = (1ULL << tlb->page_shift) - 1;

	return tlb->mem_base + ((entry->data & ~mask) | (address & mask));
}

#endif
