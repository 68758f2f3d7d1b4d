/* SPDX-License-Identifier: GPL-2.0-only */
/* include/linux/rwsem.h: the structure; see kernel/rwsem.pxd for the contract. */
#ifndef KMM_RWSEM_TYPES_H
#define KMM_RWSEM_TYPES_H

#include "kmm/spinlock.h"

struct rwsem_waiter;

typedef struct rw_semaphore {
	unsigned long count;          /* atomic; layout in kernel/rwsem.pxd */
	spinlock_t wait_lock;         /* protects the queue */
	struct rwsem_waiter *first;   /* wait_lock; FIFO */
	struct rwsem_waiter *last;
} rwlock_sem;

#endif
