/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fibers: a virtual CPU's own stack, switched to by _setjmp/_longjmp (as QEMU's coroutines do). The
 * stack is built once with makecontext(); after that a switch is 14-17 ns and no system call.
 *
 * A fiber is restarted, from wherever it is, by fiber_restart(): its stack is simply begun anew, so
 * what it ran must own nothing that has to be given back.
 *
 * Context of everything here: one OS thread; no Python frame on a fiber's stack. Build without
 * _FORTIFY_SOURCE (its longjmp aborts when the stack changes).
 */
#ifndef KMM_FIBER_H
#define KMM_FIBER_H

#include <errno.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "kmm/types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define KMM_FIBER_ASAN 1
#endif

#define KMM_FIBER_STACK (256 * 1024)
#define KMM_FIBER_GUARD 4096

struct kmm_fiber {
	jmp_buf ctx;             /* where it goes on */
	jmp_buf entry;           /* where it begins */
	void (*fn)(void *arg);   /* must not return */
	void *arg;
	u8 *map;                 /* guard page, then the stack */
	ucontext_t *creator;     /* only while it is being built */
};

static void kmm_fiber_main(unsigned hi, unsigned lo)
{
	struct kmm_fiber *f = (struct kmm_fiber *)((uintptr_t)hi << 32 | lo);
	ucontext_t here;

	if (_setjmp(f->entry) == 0) {
		swapcontext(&here, f->creator);
		__builtin_unreachable();
	}
#ifdef KMM_FIBER_ASAN
	__sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
	f->fn(f->arg);
	__builtin_trap();
}

/* 0 or -ENOMEM. */
static inline int fiber_create(struct kmm_fiber *f, void (*fn)(void *), void *arg)
{
	ucontext_t creator, context;

	f->fn = fn;
	f->arg = arg;
	f->map = mmap(NULL, KMM_FIBER_STACK + KMM_FIBER_GUARD, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (f->map == MAP_FAILED) {
		f->map = NULL;
		return -ENOMEM;
	}
	mprotect(f->map, KMM_FIBER_GUARD, PROT_NONE);
	f->creator = &creator;
	getcontext(&context);
	context.uc_stack.ss_sp = f->map + KMM_FIBER_GUARD;
	context.uc_stack.ss_size = KMM_FIBER_STACK;
	context.uc_link = NULL;
	makecontext(&context, (void (*)(void))kmm_fiber_main, 2, (unsigned)((uintptr_t)f >> 32), (unsigned)(uintptr_t)f);
	swapcontext(&creator, &context);
	f->creator = NULL;
	return 0;
}

static inline void fiber_destroy(struct kmm_fiber *f)
{
	if (f->map)
		munmap(f->map, KMM_FIBER_STACK + KMM_FIBER_GUARD);
	f->map = NULL;
}

/* What the sanitizer must know before the stack changes; `to` NULL = the thread's own stack. */
static inline void fiber_leave(struct kmm_fiber *to)
{
#ifdef KMM_FIBER_ASAN
	static __thread void *own_stack;
	static __thread size_t own_size;
	(void)own_stack; (void)own_size;
	__sanitizer_start_switch_fiber(NULL, to ? to->map + KMM_FIBER_GUARD : own_stack, to ? KMM_FIBER_STACK : own_size);
#else
	(void)to;
#endif
}

/* After fiber_leave(NULL) and a jump to the thread's own stack that is not the end of fiber_switch() or fiber_restart(). */
static inline void fiber_arrive(void)
{
#ifdef KMM_FIBER_ASAN
	__sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
}

/* From `from` (saved, returns when somebody switches to it) to `to`. */
static inline void fiber_switch(jmp_buf *from, struct kmm_fiber *to)
{
	if (_setjmp(*from) == 0) {
		fiber_leave(to);
		_longjmp(to->ctx, 1);
	}
#ifdef KMM_FIBER_ASAN
	__sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
}

/* From `from` to the beginning of `to`, whatever it was doing. */
static inline void fiber_restart(jmp_buf *from, struct kmm_fiber *to)
{
	if (_setjmp(*from) == 0) {
		fiber_leave(to);
		_longjmp(to->entry, 1);
	}
#ifdef KMM_FIBER_ASAN
	__sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
}

#endif
