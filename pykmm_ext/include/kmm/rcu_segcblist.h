/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kernel/rcu/rcu_segcblist.h: the callbacks of one RCU or SRCU domain, in the order in which they
 * were queued, cut into three stages:
 *
 *   next: no grace period has started for them;  wait: one has;  done: it is over.
 *
 * One caller at a time invokes (`invoking`), in order and with no lock held, so that nr_invoked >= n
 * means that the first n callbacks have returned. That is what the barriers wait for. A callback that
 * queues or frees finds `invoking` set and never recurses.
 */
#ifndef KMM_RCU_SEGCBLIST_H
#define KMM_RCU_SEGCBLIST_H

#include "kmm/spinlock.h"

struct rcu_cblist {
	struct rcu_head *head;
	struct rcu_head **tail;
};

struct rcu_segcblist {
	spinlock_t lock;             /* everything but nr_invoked */
	u32 invoking;                /* somebody runs callbacks and will look at `done` again */
	struct rcu_cblist next, wait, done;
	unsigned long nr_next;       /* in `next` */
	unsigned long nr_wait;       /* in `wait` */
	unsigned long nr_queued;     /* ever */
	unsigned long nr_invoked;    /* ever returned: written by the invoker, awaited by the barriers */
};

static inline void rcu_cblist_init(struct rcu_cblist *l) { l->head = NULL; l->tail = &l->head; }

/* Context: the domain's lock. Appends all of `from` to `to`. */
static inline void rcu_cblist_splice(struct rcu_cblist *to, struct rcu_cblist *from)
{
	if (!from->head)
		return;
	*to->tail = from->head;
	to->tail = from->tail;
	rcu_cblist_init(from);
}

static inline void rcu_segcblist_init(struct rcu_segcblist *l)
{
	spin_lock_init(&l->lock);
	l->invoking = 0;
	rcu_cblist_init(&l->next);
	rcu_cblist_init(&l->wait);
	rcu_cblist_init(&l->done);
	l->nr_next = l->nr_wait = l->nr_queued = l->nr_invoked = 0;
}

/* Context: any with IRQs on. Returns how many callbacks were ever queued, this one included. */
static inline unsigned long rcu_segcblist_enqueue(Cpu *cpu, struct rcu_segcblist *l, struct rcu_head *head,
						  void (*func)(Cpu *, struct rcu_head *))
{
	unsigned long n;

	head->next = NULL;
	head->func = func;
	spin_lock(cpu, &l->lock);
	*l->next.tail = head;
	l->next.tail = &head->next;
	l->nr_next++;
	n = ++l->nr_queued;
	spin_unlock(cpu, &l->lock);
	return n;
}

/* Context: the domain's grace-period lock. Whatever is queued now waits for the grace period that the
 * caller starts afterwards. True when there is something that waits. */
static inline bool rcu_segcblist_start(Cpu *cpu, struct rcu_segcblist *l)
{
	bool any;

	spin_lock(cpu, &l->lock);
	rcu_cblist_splice(&l->wait, &l->next);
	l->nr_wait += l->nr_next;
	l->nr_next = 0;
	any = l->wait.head != NULL;
	spin_unlock(cpu, &l->lock);
	return any;
}

/* Context: the domain's grace-period lock. The grace period is over. */
static inline void rcu_segcblist_finish(Cpu *cpu, struct rcu_segcblist *l)
{
	spin_lock(cpu, &l->lock);
	rcu_cblist_splice(&l->done, &l->wait);
	l->nr_wait = 0;
	spin_unlock(cpu, &l->lock);
}

/* Context: process, IRQs on, no lock of the domain. Runs what is ready, unless somebody is at it. */
static inline void rcu_segcblist_invoke(Cpu *cpu, struct rcu_segcblist *l)
{
	struct rcu_head *head, *next;
	unsigned long n;

	spin_lock(cpu, &l->lock);
	if (!l->invoking) {
		l->invoking = 1;
		while ((head = l->done.head)) {
			rcu_cblist_init(&l->done);
			spin_unlock(cpu, &l->lock);
			for (n = 0; head; head = next, n++) {
				next = head->next; /* the callback frees it */
				head->func(cpu, head);
			}
			/* pairs with the acquire of the barriers' await */
			kmm_store_release(cpu, &l->nr_invoked, l->nr_invoked + n);
			spin_lock(cpu, &l->lock);
		}
		l->invoking = 0;
	}
	spin_unlock(cpu, &l->lock);
}

#endif
