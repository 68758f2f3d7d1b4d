/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Names of the members that a report of the check engine is likely to show, by structure and offset.
 */
#ifndef KMM_REGION_NAMES_H
#define KMM_REGION_NAMES_H

#include <string.h>

#include "kmm/mm_types.h"
#include "kmm/tlb.h"

struct region_member {
	const char *structure, *member;
	u32 offset, size;
};

#define KMM_MEMBER(s, m) { #s, #m, offsetof(struct s, m), sizeof(((struct s *)0)->m) }

/* What a lock or a sequence count consists of is not spelled out. */
static const struct region_member region_members[] = {
	KMM_MEMBER(vm_area_struct, vm_start), KMM_MEMBER(vm_area_struct, vm_end),
	KMM_MEMBER(vm_area_struct, vm_next), KMM_MEMBER(vm_area_struct, vm_prev),
	KMM_MEMBER(vm_area_struct, vm_rb), KMM_MEMBER(vm_area_struct, rb_subtree_gap),
	KMM_MEMBER(vm_area_struct, vm_mm), KMM_MEMBER(vm_area_struct, vm_flags),
	KMM_MEMBER(vm_area_struct, vm_page_prot), KMM_MEMBER(vm_area_struct, vm_sequence),
	KMM_MEMBER(vm_area_struct, vm_pgoff), KMM_MEMBER(vm_area_struct, vm_file),
	KMM_MEMBER(vm_area_struct, vm_ops), KMM_MEMBER(vm_area_struct, anon_vma),
	KMM_MEMBER(vm_area_struct, anon_vma_chain), KMM_MEMBER(vm_area_struct, shared_next),
	KMM_MEMBER(vm_area_struct, shared_prev), KMM_MEMBER(vm_area_struct, anon_name),
	KMM_MEMBER(vm_area_struct, strategy_data), KMM_MEMBER(vm_area_struct, vm_rcu_head),
	KMM_MEMBER(vm_area_struct, vm_policy), KMM_MEMBER(vm_area_struct, vm_lock),
	KMM_MEMBER(vm_area_struct, vm_lock_seq), KMM_MEMBER(vm_area_struct, vm_refcnt), KMM_MEMBER(vm_area_struct, vm_read_biased),
	KMM_MEMBER(vm_area_struct, detached),
	KMM_MEMBER(mm_struct, mmap), KMM_MEMBER(mm_struct, mm_rb), KMM_MEMBER(mm_struct, mm_seq),
	KMM_MEMBER(mm_struct, vmacache_seqnum), KMM_MEMBER(mm_struct, highest_vm_end),
	KMM_MEMBER(mm_struct, map_count), KMM_MEMBER(mm_struct, pgd), KMM_MEMBER(mm_struct, mmap_sem),
	KMM_MEMBER(mm_struct, page_table_lock), KMM_MEMBER(mm_struct, nr_ptes),
	KMM_MEMBER(mm_struct, rss_stat), KMM_MEMBER(mm_struct, mm_users), KMM_MEMBER(mm_struct, mm_count),
	KMM_MEMBER(mm_struct, total_vm), KMM_MEMBER(mm_struct, locked_vm), KMM_MEMBER(mm_struct, brk),
	KMM_MEMBER(mm_struct, mm_cpumask), KMM_MEMBER(mm_struct, strategy_data),
	KMM_MEMBER(mm_struct, tlb_flush_pending), KMM_MEMBER(mm_struct, mmap_seq),
	KMM_MEMBER(mm_struct, tlb_flush_pending), KMM_MEMBER(mm_struct, mm_lock_seq),
	KMM_MEMBER(mm_struct, vma_writer_wait),
	KMM_MEMBER(page, flags), KMM_MEMBER(page, _refcount), KMM_MEMBER(page, _mapcount),
	KMM_MEMBER(page, mapping), KMM_MEMBER(page, index), KMM_MEMBER(page, lru_next),
	KMM_MEMBER(page, lru_prev), KMM_MEMBER(page, order), KMM_MEMBER(page, ptl),
	KMM_MEMBER(anon_vma, root), KMM_MEMBER(anon_vma, parent), KMM_MEMBER(anon_vma, rwsem),
	KMM_MEMBER(anon_vma, refcount), KMM_MEMBER(anon_vma, degree), KMM_MEMBER(anon_vma, head),
	KMM_MEMBER(anon_vma_chain, vma), KMM_MEMBER(anon_vma_chain, anon_vma),
	KMM_MEMBER(anon_vma_chain, same_vma_next), KMM_MEMBER(anon_vma_chain, same_vma_prev),
	KMM_MEMBER(anon_vma_chain, same_anon_next), KMM_MEMBER(anon_vma_chain, same_anon_prev),
	KMM_MEMBER(file, f_count), KMM_MEMBER(file, f_mapping.i_mmap_rwsem), KMM_MEMBER(file, f_mapping.i_mmap),
	KMM_MEMBER(file, f_mapping.i_pages_lock), KMM_MEMBER(file, f_mapping.i_pages),
	KMM_MEMBER(file, f_mapping.nrpages),
	KMM_MEMBER(mempolicy, refcnt),
	KMM_MEMBER(Cpu, irq_disabled), KMM_MEMBER(Cpu, active_mm), KMM_MEMBER(Cpu, rcu_gp_ctr), KMM_MEMBER(Cpu, vma_read),
	KMM_MEMBER(Cpu, ipi_pending), KMM_MEMBER(Cpu, ipi_lock), KMM_MEMBER(Cpu, call_single_queue),
	{ "zone", "lock", offsetof(struct zone, lock), sizeof(spinlock_t) },
	{ "rcu_state", "gp_ctr", offsetof(struct rcu_state, gp_ctr), sizeof(long) },
	{ "rcu_state", "gp_lock", offsetof(struct rcu_state, gp_lock), sizeof(rwlock_sem) },
	{ "rcu_state", "gp_seq", offsetof(struct rcu_state, gp_seq), sizeof(long) },
	{ "rcu_state", "cblist", offsetof(struct rcu_state, cblist), sizeof(struct rcu_segcblist) },
	{ "vma_srcu", "srcu_idx", offsetof(struct srcu_struct, srcu_idx), sizeof(long) },
	{ "vma_srcu", "gp_mutex", offsetof(struct srcu_struct, gp_mutex), sizeof(rwlock_sem) },
	{ "vma_srcu", "gp_seq", offsetof(struct srcu_struct, gp_seq), sizeof(long) },
	{ "vma_srcu", "cblist", offsetof(struct srcu_struct, cblist), sizeof(struct rcu_segcblist) },
	{ "TLB", "lock", offsetof(struct tlb, lock), sizeof(spinlock_t) },
	{ "machine", "lock", offsetof(struct machine, lock), sizeof(spinlock_t) },
	{ "machine", "mmlist", offsetof(struct machine, mmlist), sizeof(void *) },
	{ "machine", "files", offsetof(struct machine, files), sizeof(void *) },
	{ "machine", "next_mm_id", offsetof(struct machine, next_mm_id), sizeof(u32) },
};

/* `structure` may go on after a blank ("vm_area_struct 0.3"). Context: any. */
static inline const char *region_member_name(const char *structure, u64 offset)
{
	size_t n = strcspn(structure, " ,");

	for (size_t i = 0; i < sizeof(region_members) / sizeof(region_members[0]); i++) {
		const struct region_member *m = &region_members[i];

		if (strlen(m->structure) == n && !memcmp(m->structure, structure, n) && offset - m->offset < m->size)
			return m->member;
	}
	return NULL;
}

#endif
