/* SPDX-License-Identifier: GPL-2.0-only */
/* include/linux/srcutree.h: the structure; see kernel/srcu.pxd for the contract. */
#ifndef KMM_SRCU_TYPES_H
#define KMM_SRCU_TYPES_H

#include "kmm/rwsem_types.h"
#include "kmm/spinlock.h"

/* One line per CPU: written by its owner only, summed by synchronize_srcu(). */
struct srcu_data {
	unsigned long srcu_lock_count[2];
	unsigned long srcu_unlock_count[2];
} ____cacheline_aligned;

struct srcu_struct {
	unsigned long srcu_idx;          /* which pair readers use (& 1); written under gp_mutex */
	struct srcu_data *sda;           /* const: [nr_cpus] */
	u32 nr_cpus;                     /* const */
	rwlock_sem gp_mutex;             /* one grace period at a time */
	spinlock_t cb_lock;
	struct rcu_head *cb_head;        /* cb_lock: callbacks that wait for a grace period */
	struct rcu_head **cb_tail;
	unsigned long nr_callbacks;      /* cb_lock */
	unsigned long gp_seq;            /* completed grace periods */
};

#endif
