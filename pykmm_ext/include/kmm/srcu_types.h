/* SPDX-License-Identifier: GPL-2.0-only */
/* include/linux/srcutree.h: the structure; see kernel/srcu.pxd for the contract. */
#ifndef KMM_SRCU_TYPES_H
#define KMM_SRCU_TYPES_H

#include "kmm/rcu_segcblist.h"
#include "kmm/rwsem_types.h"
#include "kmm/spinlock.h"

/* One line per CPU: written by its owner only, summed by synchronize_srcu(). */
struct srcu_data {
	unsigned long srcu_lock_count[2];
	unsigned long srcu_unlock_count[2];
} ____cacheline_aligned;

struct srcu_struct {
	unsigned char __pad0[KMM_CACHELINE]; /* what readers load shares no line with what is written */
	unsigned long srcu_idx;          /* which pair readers use (& 1); written under gp_mutex */
	struct srcu_data *sda;           /* const: [nr_cpus] */
	u32 nr_cpus;                     /* const */
	unsigned char __pad1[KMM_CACHELINE];
	rwlock_sem gp_mutex;             /* one grace period at a time; the next three */
	u32 gp_state;                    /* how far the grace period of call_srcu() is */
	u32 gp_cpu;                      /* Cpus below were seen drained in this state */
	unsigned long gp_seq;            /* completed grace periods; read without the lock */
	struct rcu_segcblist cblist;     /* its own lock; callbacks of call_srcu() */
};

#endif
