/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The thread carrier: vCPUs that run Python code, which a fiber cannot carry. Each is an OS thread; they and the
 * main context (the thread that is inside check_run()) hand one baton around, so that one of them runs at a time.
 * Whoever waits for the baton waits without the GIL; whoever has it may take the GIL.
 *
 * An execution that is over leaves vCPUs inside of primitives. A fiber is simply begun anew; a thread has to come
 * back through its Python frames. Every call from Python into a primitive goes through op_enter(), which marks a place
 * to return to. thread_abandon() wakes the waiting thread, which longjmps there over C frames only, and op_enter()
 * tells its caller to raise an exception that unwinds the Python code. C code that calls Python back (an RCU
 * callback; a strategy written in Python) takes the mark away meanwhile (op_unwind()) and puts it back afterwards.
 *
 * Context of everything here: the holder of the baton, unless said otherwise.
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_THREAD_H
#define KMM_CHECK_THREAD_H

#include <Python.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kmm/check_sched.h"

#define THREAD_IDLE_NS 100000000L   /* how long the main context waits before it looks around */
#define THREAD_RAISED 10000         /* a function that goes on that often after it was told to end is given up */

struct unwind { jmp_buf ctx; int gil; };

struct thread_pool;

struct carried {
	u32 baton;                  /* futex: 1 = its thread may run */
	u32 id;
	u32 busy;                   /* inside of the program's function */
	u32 abandoned;              /* the execution is over: end the function */
	u32 lost;                   /* did not end: nobody waits for it any more. Written and read with the GIL */
	u32 raised;                 /* how often it was told to end */
	struct unwind *unwind;      /* where the innermost call from Python returns to, or NULL: Python code runs */
	struct thread_pool *pool;
	pthread_t self;
	unsigned long ident;        /* Python's number of the thread */
};

struct thread_pool {
	struct check *c;
	u32 main_baton;             /* futex: 1 = the main context may run */
	u32 running;                /* vCPU that has the baton */
	u32 quit;                   /* threads end when they get the baton */
	u32 stop;                   /* interrupted: vCPUs end at their next primitive */
	u32 nlost;
	/* The main context has waited for THREAD_IDLE_NS. Takes the GIL. 0 = go on; 1 = the running thread is lost. */
	int (*idle)(struct thread_pool *pool);
	void *owner;
	u64 idle_steps;             /* idle()'s own: c->steps at its last call, and calls since they changed */
	u32 idle_calls, stop_calls;
	struct carried t[CHECK_MAX_VCPUS];
};

static __thread struct carried *thread_carried; /* what this thread is, or NULL */

/* Context: GIL not held by the caller. */
static void baton_give(u32 *word)
{
	__atomic_store_n(word, 1, __ATOMIC_RELEASE); /* pairs with the exchange in baton_wait() */
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void baton_wait(u32 *word)
{
	while (!__atomic_exchange_n(word, 0, __ATOMIC_ACQUIRE))
		syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

/* Context: main, GIL not held. Returns with the baton, or when the running thread is given up. */
static void main_wait(struct thread_pool *pool)
{
	const struct timespec idle = { 0, THREAD_IDLE_NS };
	struct check *c = pool->c;

	while (!__atomic_exchange_n(&pool->main_baton, 0, __ATOMIC_ACQUIRE))
		if (syscall(SYS_futex, &pool->main_baton, FUTEX_WAIT_PRIVATE, 0, &idle, NULL, 0) != 0 && errno == ETIMEDOUT
		    && pool->idle(pool))
			break;
	if (pool->stop) {
		c->over = 1;
		if (!c->err)
			c->err = -ECANCELED;
	}
}

/* Ends the call from Python that `t` is inside of. Returns when there is none. */
static void thread_unwind(struct carried *t)
{
	struct unwind *u = t->unwind;

	/* With the GIL, but marked without: Python frames in between, which may not be jumped over. */
	if (!u || PyGILState_Check() != u->gil)
		return;
	_longjmp(u->ctx, 1);
}

static void thread_resume(struct check *c, struct vcpu *from, struct vcpu *to)
{
	struct thread_pool *pool = c->carrier_priv;
	struct carried *me = from ? &pool->t[from->id] : NULL;
	bool done = from && from->pend.op == P_DONE;
	PyThreadState *gil = NULL;
	u32 *next;

	if (!to && from && c->starting && !c->over && !pool->stop && from->id + 1 < c->nr_vcpus)
		to = c->cur = &c->vcpus[from->id + 1]; /* the first steps of all vCPUs, without the main context */
	if (to) {
		pool->running = to->id;
		next = &pool->t[to->id].baton;
	} else
		next = &pool->main_baton;
	if (!from) {
		baton_give(next);
		main_wait(pool);
		return;
	}
	if (!done && PyGILState_Check())
		gil = PyEval_SaveThread();
	baton_give(next);
	if (done)
		return;
	baton_wait(&me->baton);
	if (gil)
		PyEval_RestoreThread(gil);
	if (me->abandoned)
		thread_unwind(me);
}

static void thread_start(struct check *c, struct vcpu *v)
{
	if (v->id == 0) /* it starts the next one */
		thread_resume(c, NULL, v);
}

/* Context: main, GIL not held. */
static void thread_abandon(struct check *c)
{
	struct thread_pool *pool = c->carrier_priv;

	for (u32 i = 0; i < c->nr_vcpus; i++) {
		struct carried *t = &pool->t[i];
		if (!t->busy || t->lost)
			continue;
		c->over = 1;
		t->abandoned = 1;
		pool->running = i;
		baton_give(&t->baton);
		main_wait(pool);
	}
}

/* Body of a vCPU's thread. Context: its own thread, GIL not held. */
static void thread_main(struct carried *t)
{
	struct thread_pool *pool = t->pool;
	struct unwind top = { .gil = 0 };
	struct check *c;
	struct vcpu *v;

	t->self = pthread_self();
	thread_carried = t;
	for (;;) {
		baton_wait(&t->baton);
		if (pool->quit)
			return;
		t->abandoned = t->raised = 0;
		t->busy = 1;
		pool->c->vcpus[t->id].where = 0;
		if (_setjmp(top.ctx) == 0) {
			t->unwind = &top;
			pool->c->prog.vcpu(pool->c->prog.priv, pool->c->vcpus[t->id].cpu, t->id);
		}
		if (t->lost)
			return; /* c and v are of the past */
		c = pool->c;
		v = &c->vcpus[t->id];
		t->unwind = NULL;
		t->busy = 0;
		if (t->abandoned || pool->stop) {
			baton_give(&pool->main_baton);
			continue;
		}
		own_stores_hide(v);
		v->pend.op = P_DONE;
		if (c->starting)
			thread_resume(c, v, NULL);
		else
			schedule(c, v);
	}
}

static const struct check_carrier thread_carrier = { thread_start, thread_resume, thread_abandon };

/* ---- the two engine operations for Python code on a vCPU ---- */

/* Context: vCPU whose function goes on and on after its execution has ended; GIL held. Stays here for good. */
static void thread_give_up(struct carried *t)
{
	struct thread_pool *pool = t->pool;

	t->lost = 1;
	pool->nlost++;
	pool->c->err = -ENOTRECOVERABLE;
	PyEval_SaveThread();
	baton_give(&pool->main_baton);
	for (;;)
		pause();
}

/* Context: vCPU. See engine.h. `where`: names the Python line in traces. */
static int op_enter(Cpu *cpu, void (*fn)(Cpu *cpu, void *arg), void *arg, u64 where)
{
	struct vcpu *v = cpu->engine_priv;
	struct check *c = v->c;
	struct thread_pool *pool = c->carrier_priv;
	struct carried *t;
	struct unwind here, *volatile outer;
	volatile u64 line = v->where;

	if (c->carrier != &thread_carrier || c->direct) {
		fn(cpu, arg);
		return 0;
	}
	t = &pool->t[v->id];
	if (!t->busy || !pthread_equal(t->self, pthread_self()))
		return -2;
	if (t->abandoned || t->lost) {
		if (++t->raised >= THREAD_RAISED)
			thread_give_up(t);
		return -1;
	}
	outer = t->unwind;
	here.gil = PyGILState_Check();
	if (_setjmp(here.ctx) == 0) {
		t->unwind = &here;
		if (c->prog.python == CHECK_PYTHON) {
			v->frames[0] = (void *)(uintptr_t)where;
			v->nframes = 1;
		} else
			v->where = where;
		if (pool->stop) {
			c->over = 1;
			thread_resume(c, v, NULL);
		} else
			fn(cpu, arg);
	}
	t->unwind = outer;
	v->where = line;
	return t->abandoned ? -1 : 0;
}

/* Context: vCPU, GIL not held. See engine.h. */
static void *op_unwind(Cpu *cpu, void *mark)
{
	struct vcpu *v = cpu->engine_priv;
	struct check *c = v->c;
	struct thread_pool *pool = c->carrier_priv;
	struct unwind *old;

	if (c->carrier != &thread_carrier || c->direct)
		return NULL;
	old = pool->t[v->id].unwind;
	pool->t[v->id].unwind = mark;
	if (mark && pool->t[v->id].abandoned)
		thread_unwind(&pool->t[v->id]);
	return old;
}

#endif
