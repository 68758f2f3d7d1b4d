/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * engine/host.pyx, after the fork: the operations, the threads that run them, and the zygote that all processes
 * descend from.
 */
#ifndef KMM_HOST_RUN_H
#define KMM_HOST_RUN_H

#include "kmm/host_maps.h"

#if KMM_HOST_SUPPORTED

/* ---- operations ---- */

KMM_HOST_FN long kmm_host_mm_main(void *arg);

/* The thread that runs segment `self` waits until the other segments of its address space are done. */
KMM_HOST_FN void kmm_host_alone(struct kmm_host_mm *mm)
{
	u32 live;

	while ((live = __atomic_load_n(&mm->live, __ATOMIC_ACQUIRE)) > 1)
		kmm_host_futex_wait(&mm->live, live);
}

/* brk on a range that is mapped and unmapped at its tape address; the process's own heap is not involved. */
KMM_HOST_FN s64 kmm_host_brk(struct kmm_host_mm *mm, u64 want)
{
	u64 from, to;
	s64 ret;

	while (__atomic_exchange_n(&mm->brk_lock, 1, __ATOMIC_ACQUIRE))
		kmm_sys(SYS_sched_yield, 0, 0, 0, 0);
	if (want >= mm->start_brk && want < KMM_HOST_TASK_SIZE) {
		from = (mm->brk + 4095) & ~4095ul;
		to = (want + 4095) & ~4095ul;
		ret = 0;
		if (to < from)
			ret = kmm_sys(SYS_munmap, to, from - to, 0, 0);
		else if (to > from)
			ret = kmm_sys6(SYS_mmap, from, to - from, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (u64)-1, 0);
		if (ret >= 0 || ret < -4095)
			mm->brk = want;
	}
	ret = (s64)mm->brk;
	__atomic_store_n(&mm->brk_lock, 0, __ATOMIC_RELEASE);
	return ret;
}

KMM_HOST_INLINE int kmm_host_failed(s64 ret) { return ret < 0 && ret >= -4095; }

KMM_HOST_FN s64 kmm_host_mmap(struct kmm_host_op *op, struct kmm_host_result *r, u64 addr)
{
	u64 flags = (u64)(u32)op->flags, prot = (u64)(s64)op->prot, fd = (u64)(s64)op->fd;
	s64 ret;

	if (op->how & KMM_HOW_HINT) {
		ret = kmm_sys6(SYS_mmap, addr, op->len, prot, flags | MAP_FIXED_NOREPLACE, fd, op->offset);
		if (ret != -EEXIST)
			return ret;
		r->moved = 1;
	}
	if (op->how & (KMM_HOW_SLOT | KMM_HOW_HINT))
		return kmm_sys6(SYS_mmap, op->slot, op->len, prot, flags | MAP_FIXED_NOREPLACE, fd, op->offset);
	ret = kmm_sys6(SYS_mmap, addr, op->len, prot, flags, fd, op->offset);
	if (!kmm_host_failed(ret) && !(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))) {
		/* Expected to fail, so no place was kept for it: nothing of it may stay. */
		kmm_sys(SYS_munmap, ret, (op->len + 4095) & ~4095ul, 0, 0);
		return -ENOMEM;
	}
	return ret;
}

KMM_HOST_FN s64 kmm_host_mremap(struct kmm_host_op *op, struct kmm_host_result *r, u64 addr, u64 new_addr)
{
	u64 flags = (u64)(u32)op->flags;
	s64 ret;

	if (op->how & KMM_HOW_IN_PLACE)
		return kmm_sys6(SYS_mremap, addr, op->len, op->new_len, flags & ~(u64)MREMAP_MAYMOVE, 0, 0);
	if (op->how & KMM_HOW_TRY_MOVE) {
		ret = kmm_sys6(SYS_mremap, addr, op->len, op->new_len, flags & ~(u64)MREMAP_MAYMOVE, 0, 0);
		if (ret != -ENOMEM && !(ret == -EINVAL && !op->len))
			return ret;
		r->moved = 1;
	}
	if (op->how & (KMM_HOW_MOVE | KMM_HOW_TRY_MOVE))
		return kmm_sys6(SYS_mremap, addr, op->len, op->new_len, flags | MREMAP_FIXED, op->slot, 0);
	return kmm_sys6(SYS_mremap, addr, op->len, op->new_len, flags, new_addr, 0);
}

KMM_HOST_FN s64 kmm_host_access(struct kmm_host_result *r, const struct kmm_host_fault *f, u64 n)
{
	if (!f->sig)
		return (s64)n;
	r->sig = (u8)f->sig;
	r->si_code = (u8)f->code;
	r->fault_addr = f->addr;
	return -EFAULT;
}

KMM_HOST_FN s64 kmm_host_touch(struct kmm_host_op *op, struct kmm_host_result *r, u64 addr, u64 len, int write)
{
	struct kmm_host_fault f = { 0 };
	u64 end = addr + (len ? len : 1);

	for (; addr < end && !f.sig; addr = (addr | 4095) + 1) {
		if (write)
			kmm_host_write_byte(addr, &f);
		else
			kmm_host_read_byte(addr, &f);
	}
	return kmm_host_access(r, &f, 0);
}

/*
 * A reference to every page of the range: vmsplice() calls get_user_pages_fast() and leaves the pages in a pipe. A pin for
 * writing makes them writable first. The pipe has room (kmm_host_op.cap bytes), so nothing blocks.
 */
KMM_HOST_FN s64 kmm_host_pin(struct kmm_host_op *op, struct kmm_host_result *r, u64 addr, u64 len)
{
	struct { u64 base, len; } iov = { addr, len };
	s32 fds[2];
	s64 ret;

	if (!len)
		return 0;
	if (op->access == 1) {
		ret = kmm_host_touch(op, r, addr, len, 1);
		if (ret < 0)
			return ret;
	}
	ret = kmm_sys(SYS_pipe2, fds, O_CLOEXEC, 0, 0);
	if (ret < 0)
		return ret;
	ret = kmm_sys(SYS_fcntl, (s64)fds[1], F_SETPIPE_SZ, op->cap, 0);
	if (ret >= 0)
		ret = kmm_sys(SYS_vmsplice, (s64)fds[1], &iov, 1, SPLICE_F_NONBLOCK);
	kmm_sys(SYS_close, (s64)fds[1], 0, 0, 0);
	if (ret == (s64)len) {
		r->pipe = 1 + (u32)fds[0];
		return 0;
	}
	kmm_sys(SYS_close, (s64)fds[0], 0, 0, 0);
	return ret < 0 ? ret : -EFAULT;
}

/* What the pages hold goes to the arena, then the pipe and its references go. */
KMM_HOST_FN s64 kmm_host_unpin(struct kmm_host_head *h, struct kmm_host_op *op, struct kmm_host_result *pin)
{
	u64 done = 0;
	s64 ret;

	if (kmm_host_failed(pin->value))
		return -EFAULT;
	if (!pin->pipe)
		return op->len ? -EINVAL : 0;
	while (done < op->cap) {
		ret = kmm_sys(SYS_read, (s64)pin->pipe - 1, h->base + op->data + done, op->cap - done, 0);
		if (ret <= 0)
			break;
		done += (u64)ret;
	}
	kmm_sys(SYS_close, (s64)pin->pipe - 1, 0, 0, 0);
	pin->pipe = 0;
	return done == op->cap ? 0 : -EIO;
}

KMM_HOST_INLINE u64 kmm_host_mm_stack(struct kmm_host_head *h, u64 n)
{
	return h->base + h->stacks + (n + 1) * KMM_HOST_STACK - 64;
}

KMM_HOST_FN s64 kmm_host_fork(struct kmm_host_head *h, struct kmm_host_mm *mm, s32 child)
{
	struct kmm_host_mm *mm2 = KMM_HOST_AT(h, mms, struct kmm_host_mm) + child;
	long pid;

	mm2->start_brk = mm->start_brk;
	mm2->brk = mm->brk;
	mm2->brk_set = mm->brk_set;
	pid = kmm_host_clone(0, (void *)kmm_host_mm_stack(h, h->nsegments + (u64)child), kmm_host_mm_main, mm2);
	if (pid < 0) {
		h->failed = 1 + (u32)child;
		h->fail_what = (s32)-pid;
		kmm_sys(SYS_exit_group, 3, 0, 0, 0);
	}
	mm2->pid = (s32)pid;
	return 0;
}

/* Accesses that a real thread of a real program makes: nothing outside the range is ever touched. */
KMM_HOST_FN s64 kmm_host_do(struct kmm_host_head *h, struct kmm_host_mm *mm, struct kmm_host_op *op,
			    struct kmm_host_result *r)
{
	struct kmm_host_result *results = KMM_HOST_AT(h, results, struct kmm_host_result);
	u64 addr = op->addr, new_addr = op->new_addr, len = op->len, n, t;
	struct kmm_host_fault f = { 0 };
	s64 ret;

	if (op->how & KMM_HOW_SKIP)
		return 0;
	if (op->addr_ref >= 0) {
		if (kmm_host_failed(results[op->addr_ref].value))
			return -EFAULT;
		addr += (u64)results[op->addr_ref].value;
	}
	if (op->new_ref >= 0 && op->op != KMM_OP_UNPIN) {
		if (kmm_host_failed(results[op->new_ref].value))
			return -EFAULT;
		new_addr += (u64)results[op->new_ref].value;
	}
	switch (op->op) {
	case KMM_OP_MUNMAP: case KMM_OP_MPROTECT: case KMM_OP_MADVISE: case KMM_OP_MLOCK: case KMM_OP_MUNLOCK:
	case KMM_OP_MSYNC: case KMM_OP_TOUCH: case KMM_OP_LOAD: case KMM_OP_STORE: case KMM_OP_PIN: case KMM_OP_MBIND:
		if (addr < KMM_HOST_TASK_SIZE && (addr < h->range_start || addr >= h->range_end))
			return -ECANCELED;
		if (addr >= h->range_start && addr < h->range_end && addr + len > h->range_end &&
		    (op->op != KMM_OP_MUNMAP || addr + len <= KMM_HOST_TASK_SIZE))
			len = ((h->range_end - addr) & ~4095ul) | (len & 4095);
	}
	switch (op->op) {
	case KMM_OP_MMAP:
	case KMM_OP_MAP:
		return kmm_host_mmap(op, r, addr);
	case KMM_OP_MUNMAP:
		return kmm_sys(SYS_munmap, addr, len, 0, 0);
	case KMM_OP_MPROTECT:
		return kmm_sys(SYS_mprotect, addr, len, (s64)op->prot, 0);
	case KMM_OP_MREMAP:
		return kmm_host_mremap(op, r, addr, new_addr);
	case KMM_OP_MADVISE:
		return kmm_sys(SYS_madvise, addr, len, (s64)op->flags, 0);
	case KMM_OP_BRK:
		return kmm_host_brk(mm, addr);
	case KMM_OP_SETBRK:
		mm->start_brk = addr;
		mm->brk = new_addr;
		mm->brk_set = 1;
		return 0;
	case KMM_OP_MLOCK:
		if (op->flags)
			return kmm_sys(SYS_mlock2, addr, len, (s64)op->flags, 0);
		return kmm_sys(SYS_mlock, addr, len, 0, 0);
	case KMM_OP_MUNLOCK:
		return kmm_sys(SYS_munlock, addr, len, 0, 0);
	case KMM_OP_MLOCKALL:
		return kmm_sys(SYS_mlockall, (s64)op->flags, 0, 0, 0);
	case KMM_OP_MUNLOCKALL:
		return kmm_sys(SYS_munlockall, 0, 0, 0, 0);
	case KMM_OP_MSYNC:
		return kmm_sys(SYS_msync, addr, len, (s64)op->flags, 0);
	case KMM_OP_MINCORE:
		if (addr < KMM_HOST_TASK_SIZE && len && (len + 4095) >> 12 > op->cap)
			return -ENOMEM;
		return kmm_sys(SYS_mincore, addr, len, h->base + op->data, 0);
	case KMM_OP_MBIND:
		t = 1; /* node 0: the mask is not part of a tape */
		n = (u64)kmm_tape_mbind_mask(op->flags);
		return kmm_sys6(SYS_mbind, addr, len, (u64)(u32)op->flags, n ? (u64)&t : 0, n ? 2 : 0, 0);
	case KMM_OP_TRUNCATE:
		return kmm_sys(SYS_ftruncate, (s64)op->fd, len, 0, 0);
	case KMM_OP_FORK:
		return kmm_host_fork(h, mm, op->mm2);
	case KMM_OP_EXIT:
		return kmm_sys(SYS_munmap, h->range_start, h->range_end - h->range_start, 0, 0);
	case KMM_OP_EXEC:
		if (op->how & KMM_HOW_CLOSES)
			kmm_sys(SYS_munmap, h->range_start, h->range_end - h->range_start, 0, 0);
		return 0;
	case KMM_OP_PIN:
		return kmm_host_pin(op, r, addr, len);
	case KMM_OP_UNPIN:
		return kmm_host_unpin(h, op, results + op->new_ref);
	case KMM_OP_TOUCH:
		return kmm_host_touch(op, r, addr, len, op->access == 1);
	case KMM_OP_LOAD:
		n = kmm_host_copy(h->base + op->data, addr, len < op->cap ? len : op->cap, &f);
		ret = kmm_host_access(r, &f, n);
		return ret;
	case KMM_OP_STORE:
		n = kmm_host_copy(addr, h->base + op->data, op->cap, &f);
		ret = kmm_host_access(r, &f, n);
		return ret;
	case KMM_OP_COMPUTE:
		if (h->compute)
			for (t = (u64)kmm_host_now(); (u64)kmm_host_now() - t < len;)
				__builtin_ia32_pause();
		return 0;
	default:
		return 0;
	}
}

/* Context: any thread. Waits until `count` operations of the stream are done. Pairs with kmm_host_publish(). */
KMM_HOST_INLINE void kmm_host_await(struct kmm_host_stream *s, u32 count)
{
	unsigned spins = 0;
	u32 seen;

	while ((seen = __atomic_load_n(&s->progress, __ATOMIC_ACQUIRE)) < count) {
		if (++spins < 200) {
			__builtin_ia32_pause();
			continue;
		}
		__atomic_fetch_add(&s->waiters, 1, __ATOMIC_SEQ_CST);
		seen = __atomic_load_n(&s->progress, __ATOMIC_SEQ_CST);
		if (seen < count)
			kmm_host_futex_wait(&s->progress, seen);
		__atomic_fetch_sub(&s->waiters, 1, __ATOMIC_SEQ_CST);
	}
}

KMM_HOST_INLINE void kmm_host_publish(struct kmm_host_stream *s, u32 count, int notify)
{
	if (!notify) {
		__atomic_store_n(&s->progress, count, __ATOMIC_RELEASE);
		return;
	}
	__atomic_store_n(&s->progress, count, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&s->waiters, __ATOMIC_SEQ_CST))
		kmm_host_futex_wake(&s->progress);
}

KMM_HOST_INLINE void kmm_host_max(s64 *p, s64 v)
{
	s64 old = __atomic_load_n(p, __ATOMIC_RELAXED);

	while (old < v && !__atomic_compare_exchange_n(p, &old, v, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

/* One thread: the operations of one segment, in order. */
KMM_HOST_FN long kmm_host_segment_main(void *arg)
{
	struct kmm_host_segment *g = arg;
	struct kmm_host_head *h = kmm_host_head;
	struct kmm_host_mm *mm = KMM_HOST_AT(h, mms, struct kmm_host_mm) + g->mm;
	struct kmm_host_op *ops = KMM_HOST_AT(h, ops, struct kmm_host_op);
	struct kmm_host_dep *deps = KMM_HOST_AT(h, deps, struct kmm_host_dep);
	struct kmm_host_result *results = KMM_HOST_AT(h, results, struct kmm_host_result);
	struct kmm_host_stream *streams = KMM_HOST_AT(h, streams, struct kmm_host_stream), *s = streams + g->stream;
	struct rusage before, after;
	u32 i, k, timed, timing = h->timing;
	s64 t0 = 0, t1, aside = 0;

	if (mm->eager) {
		__atomic_fetch_add(&h->ready, 1, __ATOMIC_ACQ_REL);
		kmm_host_futex_wake(&h->ready);
		while (!__atomic_load_n(&h->go, __ATOMIC_ACQUIRE))
			kmm_host_futex_wait(&h->go, 0);
	}
	g->at = g->first;
	__atomic_store_n(&g->state, 1, __ATOMIC_RELAXED);
	kmm_host_await(s, g->first - s->first);
	kmm_sys(SYS_getrusage, 1 /* RUSAGE_THREAD */, &before, 0, 0);
	for (i = g->first; i < g->last; i++) {
		struct kmm_host_op *op = ops + i;
		struct kmm_host_result *r = results + i;

		g->at = i;
		for (k = 0; k < op->ndeps; k++)
			kmm_host_await(streams + deps[op->dep + k].stream, deps[op->dep + k].count);
		if (op->op == KMM_OP_EXIT) {
			kmm_host_alone(mm);
			aside += kmm_host_record(h, mm);
		} else if (op->op == KMM_OP_EXEC && op->how & KMM_HOW_CLOSES) {
			aside += kmm_host_record(h, mm);
		}
		timed = timing || op->pad & KMM_HOST_STAMP;
		if (timed)
			t0 = kmm_host_now();
		r->value = kmm_host_do(h, mm, op, r);
		if (timed) {
			t1 = kmm_host_now();
			r->start = t0 - h->t_go;
			r->duration = t1 - t0;
		}
		r->done = 1;
		if (op->pad & KMM_HOST_SETUP) {
			if (__atomic_sub_fetch(&h->phase0_left, 1, __ATOMIC_ACQ_REL) == 0)
				h->t_setup = kmm_host_now() - h->t_go;
		}
		kmm_host_publish(s, i + 1 - s->first, op->notify);
	}
	kmm_host_max(&h->t_end, kmm_host_now() - h->t_go - aside);
	kmm_sys(SYS_getrusage, 1, &after, 0, 0);
	g->minflt = after.ru_minflt - before.ru_minflt;
	g->majflt = after.ru_majflt - before.ru_majflt;
	__atomic_store_n(&g->state, 2, __ATOMIC_RELEASE);
	__atomic_sub_fetch(&mm->live, 1, __ATOMIC_ACQ_REL);
	kmm_host_futex_wake(&mm->live);
	return 0;
}

/* First function of the process of an address space. */
KMM_HOST_FN long kmm_host_mm_main(void *arg)
{
	struct kmm_host_mm *mm = arg;
	struct kmm_host_head *h = kmm_host_head;
	struct kmm_host_segment *segments = KMM_HOST_AT(h, segments, struct kmm_host_segment);
	u32 *list = KMM_HOST_AT(h, seglist, u32) + mm->segment, i, live;
	long pid;

	kmm_host_populate(h);
	mm->pid = (s32)kmm_sys(SYS_getpid, 0, 0, 0, 0);
	for (i = 0; i < mm->nsegments; i++) {
		volatile u8 *stack = (volatile u8 *)kmm_host_mm_stack(h, list[i]);

		stack[-4096] = 0;
		stack[-8192] = 0;
		stack[-1] = 0;
		pid = kmm_host_clone(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
				     (void *)stack, kmm_host_segment_main, segments + list[i]);
		if (pid < 0) {
			h->failed = 1 + (u32)(mm - KMM_HOST_AT(h, mms, struct kmm_host_mm));
			h->fail_what = (s32)-pid;
			kmm_sys(SYS_exit_group, 3, 0, 0, 0);
		}
	}
	while ((live = __atomic_load_n(&mm->live, __ATOMIC_ACQUIRE)) != 0)
		kmm_host_futex_wait(&mm->live, live);
	kmm_host_record(h, mm);
	kmm_sys(SYS_exit_group, 0, 0, 0, 0);
	return 0;
}

/* Only the tape's files and the standard streams stay open. */
KMM_HOST_FN void kmm_host_close_files(struct kmm_host_head *h)
{
	s32 *fds = KMM_HOST_AT(h, fds, s32); /* ascending */
	u32 i, from = 3;

	for (i = 0; i < h->nfds; i++) {
		if ((u32)fds[i] > from)
			kmm_sys(436 /* close_range */, from, (u32)fds[i] - 1, 0, 0);
		from = (u32)fds[i] + 1;
	}
	kmm_sys(436, from, ~0u, 0, 0);
}

/*
 * The process that all others descend from. It empties the range, starts the address spaces that no FORK
 * operation makes, and reaps every process of the run.
 */
KMM_HOST_FN long kmm_host_zygote(void *arg)
{
	struct kmm_host_head *h = arg;
	struct kmm_host_mm *mms = KMM_HOST_AT(h, mms, struct kmm_host_mm);
	struct { u64 cur, max; } zero = { 0, 0 };
	u64 none = 0;
	u32 i, ready;
	long pid;
	int status, sig;

	kmm_host_head = h;
	for (sig = 1; sig <= 64; sig++)
		kmm_host_signal(sig, NULL);
	kmm_host_signal(SIGSEGV, kmm_host_on_fault);
	kmm_host_signal(SIGBUS, kmm_host_on_fault);
	kmm_host_signal(SIGTERM, kmm_host_on_orphan);
	kmm_sys(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
	kmm_sys(SYS_setpgid, 0, 0, 0, 0);
	kmm_sys(SYS_prctl, PR_SET_PDEATHSIG, SIGTERM, 0, 0);
	if (kmm_sys(SYS_getppid, 0, 0, 0, 0) != h->parent_pid)
		return 4;
	kmm_sys(SYS_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0);
	kmm_sys(SYS_prctl, PR_SET_NAME, "pykmm-host", 0, 0);
	kmm_sys(SYS_setrlimit, RLIMIT_CORE, &zero, 0, 0);
	kmm_host_close_files(h);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	kmm_host_trim(h, KMM_HOST_AT(h, tls, u64));
#endif
	if (kmm_sys(SYS_munmap, h->range_start, h->range_end - h->range_start, 0, 0) < 0)
		return 5;
	for (i = 0; i < h->nmms; i++) {
		if (!mms[i].eager)
			continue;
		pid = kmm_host_clone(0, (void *)kmm_host_mm_stack(h, h->nsegments + i), kmm_host_mm_main, mms + i);
		if (pid < 0) {
			h->failed = 1 + i;
			h->fail_what = (s32)-pid;
			return 3;
		}
		mms[i].pid = (s32)pid;
	}
	while ((ready = __atomic_load_n(&h->ready, __ATOMIC_ACQUIRE)) < h->neager) {
		kmm_sys6(SYS_futex, (u64)&h->ready, FUTEX_WAIT, ready, (u64)&(struct timespec){ 0, 50000000 }, 0, 0);
		pid = kmm_sys(SYS_wait4, -1, &status, WNOHANG | __WALL, 0);
		if (pid > 0)
			goto reaped;
	}
	h->t_go = kmm_host_now();
	__atomic_store_n(&h->go, 1, __ATOMIC_RELEASE);
	kmm_host_futex_wake(&h->go);
	while ((pid = kmm_sys(SYS_wait4, -1, &status, __WALL, 0)) > 0) {
reaped:
		if (status == 0)
			continue;
		if (!h->failed) {
			h->failed = ~0u;
			for (i = 0; i < h->nmms; i++)
				if (mms[i].pid == pid)
					h->failed = 1 + i;
		}
		h->fail_sig = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
		h->fail_code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
		return 2;
	}
	return 0;
}

/*
 * Context: caller's process, any thread, the GIL may be held. Returns the zygote's pid or -errno. The zygote sends no
 * SIGCHLD: only wait4(pid, __WALL) sees it.
 */
static inline long kmm_host_start(void *arena)
{
	struct kmm_host_head *h = arena;

	(void)kmm_host_now(); /* the one libc call of the children is bound here */
	h->parent_pid = (s32)kmm_sys(SYS_getpid, 0, 0, 0, 0);
	return kmm_host_clone(0, (void *)kmm_host_mm_stack(h, (u64)h->nsegments + h->nmms), kmm_host_zygote, h);
}

/* Context: any, may sleep, never with the GIL held. 1 = the zygote is gone (status set), 0 = not after timeout_ms. */
static inline int kmm_host_wait(long pid, int timeout_ms, int *status)
{
	struct timespec nap = { 0, 500000 };
	s64 end = kmm_host_now() + (s64)timeout_ms * 1000000;
	struct { int fd; short events, revents; } p;
	long fd = kmm_sys(434 /* pidfd_open */, pid, 0, 0, 0);

	if (fd >= 0) {
		p.fd = (int)fd;
		p.events = 1;
		p.revents = 0;
		kmm_sys(SYS_poll, &p, 1, timeout_ms, 0);
		kmm_sys(SYS_close, fd, 0, 0, 0);
	}
	for (;;) {
		siginfo_t info;
		long n;

		info.si_pid = 0;
		n = kmm_sys6(SYS_waitid, P_PID, (u64)pid, (u64)&info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0, 0);
		if (n < 0) {
			*status = -1;
			return 1;
		}
		if (info.si_pid == pid) {
			/* Not reaped yet, so the number still is the run's group: what is left of it goes first. */
			if (info.si_code != CLD_EXITED || info.si_status)
				kmm_sys(SYS_kill, -pid, SIGKILL, 0, 0);
			kmm_sys(SYS_wait4, pid, status, __WALL, 0);
			return 1;
		}
		if (fd >= 0 || kmm_host_now() >= end)
			return 0;
		kmm_sys(SYS_nanosleep, &nap, NULL, 0, 0);
	}
}

/* Kills every process of the run and reaps the zygote. The zygote was not reaped yet, so its pid is its group still. */
static inline void kmm_host_kill(long pid)
{
	int status;

	kmm_sys(SYS_kill, -pid, SIGKILL, 0, 0);
	kmm_sys(SYS_kill, pid, SIGKILL, 0, 0);
	kmm_sys(SYS_wait4, pid, &status, __WALL, 0);
}

#else

static inline long kmm_host_start(void *arena) { return -ENOSYS; }
static inline int kmm_host_wait(long pid, int timeout_ms, int *status) { *status = -1; return 1; }
static inline void kmm_host_kill(long pid) { }

#endif
#endif
