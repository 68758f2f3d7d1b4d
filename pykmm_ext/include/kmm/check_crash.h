/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An invalid access of an execution (SIGSEGV, SIGBUS, SIGFPE) is a violation, not the end of the process: plain code
 * that follows a pointer out of freed memory finds poison there. The handler, on a stack of its own, leaves whatever ran
 * and goes on at the end of run_execution(), on the main stack.
 *
 * Context: the thread that runs check_run(), between crash_begin() and crash_end(). A signal of another thread, or
 * outside of an execution, goes to whoever had the signal before.
 * On a thread that carries a vCPU (check_thread.h) the handler waits for the end of the execution as any primitive does,
 * and is left with the thread's innermost mark. simplified: not where Python code itself crashes, nor in the final checks
 * where Python code is in between.
 *
 * And code that never comes to a step: a timer's signal interrupts the same thread, and when there was no step for several
 * ticks the execution is left in the same way, and the search ends with -ETIME. Code that holds a lock of the C library
 * then (malloc) keeps it. simplified: not for vCPUs on threads of their own, whose Python code check.pyx watches over.
 *
 * Private: included by engine/check.pyx only.
 */
#ifndef KMM_CHECK_CRASH_H
#define KMM_CHECK_CRASH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "kmm/check_thread.h"

#define CRASH_STACK (64 * 1024)
#define WATCHDOG_TICKS 8        /* a process that was stopped sees one tick when it goes on */
#define WATCHDOG_SIGNAL (SIGRTMAX - 2)
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static const int crash_signals[] = { SIGSEGV, SIGBUS, SIGFPE };
static struct sigaction crash_old[3];
static bool watchdog_signal; /* crash_mutex; the signal is the watchdog's */
static pthread_mutex_t crash_mutex = PTHREAD_MUTEX_INITIALIZER;
static u32 crash_users; /* crash_mutex */
static __thread struct check *crash_check;
static __thread stack_t crash_old_stack;

/* Did a register hold what freed memory is filled with? */
static bool crash_poisoned(const ucontext_t *uc)
{
#if defined(__x86_64__)
	for (int i = 0; i < NGREG; i++)
		if ((u64)uc->uc_mcontext.gregs[i] >> 16 == 0x6b6b6b6b6b6bULL)
			return true;
#else
	(void)uc;
#endif
	return false;
}

static void *crash_pc(const ucontext_t *uc)
{
#if defined(__x86_64__)
	return (void *)uc->uc_mcontext.gregs[REG_RIP];
#else
	(void)uc;
	return NULL;
#endif
}

static void crash_handler(int sig, siginfo_t *si, void *context)
{
	struct carried *t = thread_carried;
	struct check *c = t ? t->pool->c : crash_check;
	const char *what = sig == SIGFPE ? "divides by zero" : "accesses an impossible address";
	const char *file = "?";
	char who[32];
	Dl_info info;
	size_t at = 0;
	bool poisoned;

	if (!c || !c->executing || (t && (!t->busy || !t->unwind || PyGILState_Check() != t->unwind->gil))) {
		/* Not ours: as it was, and the same instruction again. */
		for (int i = 0; i < 3; i++)
			sigaction(crash_signals[i], &crash_old[i], NULL);
		return;
	}
	poisoned = crash_poisoned(context);
	if (dladdr(crash_pc(context), &info) && info.dli_fname) {
		file = strrchr(info.dli_fname, '/');
		file = file ? file + 1 : info.dli_fname;
		at = (size_t)((char *)crash_pc(context) - (char *)info.dli_fbase);
	}
	if (c->cur)
		snprintf(who, sizeof(who), "Cpu %u", c->cur->id);
	else
		snprintf(who, sizeof(who), "the end of the execution");
	if (poisoned)
		check_violation(c, CHECK_UAF, "%s follows a pointer out of freed memory, at %.*s+%#zx", who, (int)strcspn(file, "."), file, at);
	else
		check_violation(c, CHECK_CRASH, "%s %s (%p), at %.*s+%#zx", who, what, si->si_addr, (int)strcspn(file, "."), file, at);
	c->over = 1;
	if (t) {
		thread_resume(c, &c->vcpus[t->id], NULL); /* does not return: the execution is over */
		abort();
	}
	fiber_leave(NULL);
	_longjmp(c->crash_ctx, 1);
}

static void watchdog_handler(int sig, siginfo_t *si, void *context)
{
	struct check *c = crash_check;
	u64 steps;

	if (!c || !c->executing || c->stepping || thread_carried)
		return;
	steps = c->steps + c->epoch;
	if (c->seen_steps != steps) {
		c->seen_steps = steps;
		c->idle_ticks = 0;
		return;
	}
	if (++c->idle_ticks < WATCHDOG_TICKS)
		return;
	c->stuck_pc = crash_pc(context);
	c->stuck_id = c->cur ? c->cur->id : c->nr_vcpus;
	c->err = -ETIME;
	c->over = 1;
	fiber_leave(NULL);
	_longjmp(c->crash_ctx, 1);
}

/* Ticks for the calling thread; false: there are none. System calls: older C libraries have these in a library apart. */
static bool watchdog_begin(struct check *c, int *timer)
{
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = WATCHDOG_SIGNAL };
	struct itimerspec every;
	u64 ns = c->watchdog_ms * 1000000ULL / WATCHDOG_TICKS;

	c->idle_ticks = 0;
	if (!ns || !watchdog_signal)
		return false;
	ev.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
	every.it_value = every.it_interval = (struct timespec){ (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, timer))
		return false;
	return !syscall(SYS_timer_settime, *timer, 0, &every, NULL);
}

/* Context: crash_mutex. Unless somebody else has it. It is kept: a tick that comes late must find a handler. */
static bool take_signal(const struct sigaction *tick)
{
	struct sigaction old;

	if (sigaction(WATCHDOG_SIGNAL, NULL, &old))
		return false;
	if (old.sa_flags & SA_SIGINFO ? old.sa_sigaction == watchdog_handler : old.sa_handler == SIG_DFL)
		return !sigaction(WATCHDOG_SIGNAL, tick, NULL);
	return false;
}

static void crash_begin(struct check *c, stack_t *stack)
{
	struct sigaction tick = { .sa_sigaction = watchdog_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER };
	struct sigaction sa = { .sa_sigaction = crash_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

	crash_check = c;
	stack->ss_size = CRASH_STACK;
	stack->ss_flags = 0;
	stack->ss_sp = malloc(CRASH_STACK);
	if (!stack->ss_sp || sigaltstack(stack, &crash_old_stack)) {
		free(stack->ss_sp);
		stack->ss_sp = NULL;
		crash_check = NULL;
		return;
	}
	pthread_mutex_lock(&crash_mutex);
	if (!crash_users++) {
		for (int i = 0; i < 3; i++)
			sigaction(crash_signals[i], &sa, &crash_old[i]);
		watchdog_signal = take_signal(&tick);
	}
	pthread_mutex_unlock(&crash_mutex);
}

static void crash_end(stack_t *stack)
{
	if (!stack->ss_sp)
		return;
	pthread_mutex_lock(&crash_mutex);
	if (!--crash_users)
		for (int i = 0; i < 3; i++)
			sigaction(crash_signals[i], &crash_old[i], NULL);
	pthread_mutex_unlock(&crash_mutex);
	sigaltstack(&crash_old_stack, NULL);
	free(stack->ss_sp);
	crash_check = NULL;
}

#endif
