/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * engine/host.pyx, the half that runs after the fork: real system calls and real touches.
 *
 * The caller prepares one MAP_SHARED arena (records, counters, results, stacks) and calls
 * kmm_host_start(). Everything from there on runs in processes that share the arena and
 * nothing else with the caller:
 *
 *   caller ── zygote ─┬─ address space 0: leader, one thread per stream segment
 *                     ├─ address space 2 (made by EXEC): empty range, waits for its operations
 *                     └─ ...        a FORK operation clones its own process: address space 1
 *
 * The code below calls no libc function but clock_gettime() (vDSO): system calls are raw, so
 * that errno, malloc arenas, atfork handlers and thread descriptors of the caller do not matter,
 * and no allocation can ever land in the range that the tape is replayed in. Threads are raw
 * clone() threads on stacks inside the arena. A touch that faults is not fatal: the access
 * instructions are listed in a table of (instruction, fix-up) pairs, as the kernel does for
 * its own user accesses, and the SIGSEGV/SIGBUS handler moves on to the fix-up.
 *
 * Shared words: `progress` of a stream is written by the thread that runs the stream (release) and
 * read by everyone (acquire); `live` of an address space is decremented by its segments (acq_rel)
 * and awaited by its leader; brk state is under brk_lock. All waits are futexes on the arena.
 */
#ifndef KMM_HOST_H
#define KMM_HOST_H

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "kmm/tape.h"

#if defined(__linux__) && defined(__x86_64__)
#define KMM_HOST_SUPPORTED 1
#else
#define KMM_HOST_SUPPORTED 0
#endif

/* kmm_host_op.how: where the result goes, decided before the run. */
#define KMM_HOW_SLOT       1u  /* MMAP: at `slot`, MAP_FIXED_NOREPLACE */
#define KMM_HOW_HINT       2u  /* MMAP: at `addr` if it is free, else at `slot` */
#define KMM_HOW_IN_PLACE   4u  /* MREMAP: the recording shows that it did not move */
#define KMM_HOW_MOVE       8u  /* MREMAP: to `slot` */
#define KMM_HOW_TRY_MOVE  16u  /* MREMAP: in place if possible, else to `slot` */
#define KMM_HOW_SKIP      32u  /* nothing to do on a real machine */
#define KMM_HOW_CLOSES    64u  /* EXEC: nobody uses the address space that it leaves any more */

#define KMM_HOST_TASK_SIZE 0x7ffffffff000ul
#define KMM_HOST_STACK     (64ul << 10)
#define KMM_HOST_SCRATCH   (64ul << 10)

/* kmm_host_op.pad: one of setup; its start and its end are recorded, whether the others' are or not */
#define KMM_HOST_SETUP 1u
#define KMM_HOST_STAMP 2u

struct kmm_host_op {
	u64 addr;        /* host address, or added to the result of addr_ref */
	u64 len;
	u64 new_addr;
	u64 new_len;
	u64 offset;
	u64 slot;        /* host address of what the kernel would place */
	u64 data;        /* arena offset: bytes to store, or where loaded bytes go */
	u64 cap;         /* room at data */
	u32 dep;         /* first of ndeps entries in the dependency array */
	u32 ndeps;
	s32 addr_ref;
	s32 new_ref;
	s32 mm2;
	s32 fd;
	s32 prot;
	s32 flags;
	u8 op;
	u8 access;
	u8 notify;       /* somebody may wait for this operation */
	u8 how;
	u32 pad;         /* KMM_HOST_SETUP, KMM_HOST_STAMP */
};

struct kmm_host_dep {
	u32 stream;
	u32 count;       /* operations of that stream that must be done */
};

struct kmm_host_result {
	s64 value;       /* what the call returned: host address, 0, count or -errno */
	s64 start;       /* ns since the barrier */
	s64 duration;    /* ns */
	u64 fault_addr;
	u8 sig;
	u8 si_code;
	u8 done;
	u8 moved;        /* the first choice of address was taken */
	u32 pipe;        /* PIN: 1 + the pipe's end for reading, until UNPIN */
};

struct kmm_host_segment {
	u32 stream, mm;
	u32 first, last; /* operations [first, last) of the program */
	s64 minflt, majflt;
	u32 state;       /* 0 = not started, 1 = running, 2 = done */
	u32 at;          /* operation it stands at */
};

struct kmm_host_stream {
	u32 progress;    /* operations done: futex word */
	u32 waiters;
	u32 first;       /* first operation of the program */
	u32 pad[13];
};

struct kmm_host_mm {
	u32 live;        /* segments not yet finished: futex word */
	u32 nsegments;
	u32 segment;     /* index of the first entry in the segment list of this mm */
	u32 eager;       /* started by the zygote */
	u64 start_brk, brk;
	u64 brk_set;     /* a SETBRK or FORK gave it a break */
	u32 brk_lock;
	u32 recorded;    /* maps are in the arena */
	u32 nmaps;
	s32 map_errno;
	u64 maps;        /* arena offset of struct kmm_host_map[] */
	u64 query, nquery; /* arena offset of struct kmm_host_query[] */
	s32 pid;
	u32 pad;
};

struct kmm_host_map {
	u64 start, end, offset;
	s64 resident;    /* pages, -1 = not counted */
	char perms[8];
	s32 fd_index;    /* file, -1 = anonymous */
	u32 pad;
};

struct kmm_host_query {
	u64 addr, npages;
	u64 out;         /* arena offset of u64[npages], /proc/PID/pagemap entries */
};

struct kmm_host_head {
	u64 base;        /* address of the arena, the same in every process */
	u64 size;
	u64 range_start, range_end;
	u64 ops, deps, results, segments, streams, mms, seglist, stacks, scratch, fds, tls;
	u32 nops, nsegments, nstreams, nmms, nfds, neager;
	u32 ready;       /* threads at the barrier: futex word */
	u32 go;          /* futex word */
	u32 timing;
	u32 compute;
	u32 phase0_left; /* setup operations not yet done */
	u32 failed;      /* 1 + address space, or ~0u: the zygote */
	s32 fail_sig, fail_code, fail_what;
	s32 parent_pid;
	u64 fail_ip, fail_addr;
	s64 t_go, t_setup, t_end, t_threads;
	u64 maps_next, maps_end; /* bump allocator for struct kmm_host_map */
};

#if KMM_HOST_SUPPORTED

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define KMM_HOST_FN static __attribute__((noinline, no_sanitize("address", "undefined", "thread")))
#define KMM_HOST_INLINE static inline __attribute__((no_sanitize("address", "undefined", "thread")))

/* Only one run is set up at a time in a process image: written in the zygote, read by its tree. */
static struct kmm_host_head *kmm_host_head;

KMM_HOST_INLINE long kmm_sys6(long nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 r10 __asm__("r10") = d;
	register u64 r8 __asm__("r8") = e;
	register u64 r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

#define kmm_sys(nr, a, b, c, d) kmm_sys6(nr, (u64)(a), (u64)(b), (u64)(c), (u64)(d), 0, 0)

/* A clone() whose child runs fn(arg) on `stack` and exits with its result. Returns the pid or -errno. */
KMM_HOST_FN long kmm_host_clone(unsigned long flags, void *stack, long (*fn)(void *), void *arg)
{
	long ret;
	register u64 r10 __asm__("r10") = 0;
	register u64 r8 __asm__("r8") = 0;
	register u64 r12 __asm__("r12") = (u64)fn;
	register u64 r13 __asm__("r13") = (u64)arg;

	__asm__ volatile("syscall\n\t"
			 "testq %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xorl %%ebp, %%ebp\n\t"
			 "movq %%r13, %%rdi\n\t"
			 "callq *%%r12\n\t"
			 "movl %%eax, %%edi\n\t"
			 "movl $60, %%eax\n\t"
			 "syscall\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(ret)
			 : "0"((long)SYS_clone), "D"(flags), "S"(stack), "d"(0ul), "r"(r10), "r"(r8), "r"(r12), "r"(r13)
			 : "rcx", "r11", "memory", "cc");
	return ret;
}

KMM_HOST_INLINE s64 kmm_host_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (s64)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Blocks while *word == seen. Spurious returns are allowed. */
KMM_HOST_INLINE void kmm_host_futex_wait(u32 *word, u32 seen)
{
	kmm_sys6(SYS_futex, (u64)word, FUTEX_WAIT, seen, 0, 0, 0);
}

KMM_HOST_INLINE void kmm_host_futex_wake(u32 *word)
{
	kmm_sys6(SYS_futex, (u64)word, FUTEX_WAKE, INT32_MAX, 0, 0, 0);
}

/* ---- accesses that may fault ---- */

struct kmm_host_fixup { s32 insn, fixup; };

extern const struct kmm_host_fixup __start_kmm_host_ex[] __attribute__((visibility("hidden"), weak));
extern const struct kmm_host_fixup __stop_kmm_host_ex[] __attribute__((visibility("hidden"), weak));

#define KMM_HOST_EX(from, to)                                                \
	".pushsection kmm_host_ex, \"a\"\n\t"                                \
	".balign 4\n\t"                                                      \
	".long (" from ") - .\n\t"                                           \
	".long (" to ") - .\n\t"                                             \
	".popsection\n\t"

struct kmm_host_fault { u64 sig, code, addr; };

KMM_HOST_FN void kmm_host_read_byte(u64 addr, struct kmm_host_fault *f)
{
	u64 sig = 0, code = 0, value;
	register u64 where __asm__("r8") = 0;

	__asm__ volatile("1: movzbl (%[p]), %k[v]\n"
			 "2:\n\t" KMM_HOST_EX("1b", "2b")
			 : "+a"(sig), "+d"(code), "+r"(where), [v] "=&r"(value) : [p] "r"(addr) : "memory");
	f->sig = sig, f->code = code, f->addr = where;
}

/* A write access that keeps the contents. */
KMM_HOST_FN void kmm_host_write_byte(u64 addr, struct kmm_host_fault *f)
{
	u64 sig = 0, code = 0;
	register u64 where __asm__("r8") = 0;

	__asm__ volatile("1: lock; orb $0, (%[p])\n"
			 "2:\n\t" KMM_HOST_EX("1b", "2b")
			 : "+a"(sig), "+d"(code), "+r"(where) : [p] "r"(addr) : "memory", "cc");
	f->sig = sig, f->code = code, f->addr = where;
}

/* Returns the number of bytes copied before the fault. */
KMM_HOST_FN u64 kmm_host_copy(u64 to, u64 from, u64 n, struct kmm_host_fault *f)
{
	u64 sig = 0, code = 0, left = n;
	register u64 where __asm__("r8") = 0;

	__asm__ volatile("1: rep movsb\n"
			 "2:\n\t" KMM_HOST_EX("1b", "2b")
			 : "+a"(sig), "+d"(code), "+r"(where), "+c"(left), "+D"(to), "+S"(from) : : "memory");
	f->sig = sig, f->code = code, f->addr = where;
	return n - left;
}

/* Context: signal handler of every process below the zygote. */
KMM_HOST_FN void kmm_host_on_fault(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	greg_t *regs = uc->uc_mcontext.gregs;
	const struct kmm_host_fixup *e;
	u64 ip = (u64)regs[REG_RIP];
	struct kmm_host_head *h = kmm_host_head;

	for (e = __start_kmm_host_ex; e < __stop_kmm_host_ex; e++) {
		if ((u64)&e->insn + (s64)e->insn != ip)
			continue;
		regs[REG_RAX] = sig;
		regs[REG_RDX] = info->si_code;
		regs[REG_R8] = (greg_t)info->si_addr;
		regs[REG_RIP] = (greg_t)((u64)&e->fixup + (s64)e->fixup);
		return;
	}
	h->fail_ip = ip;
	h->fail_addr = (u64)info->si_addr;
	kmm_sys(SYS_exit_group, 128 + sig, 0, 0, 0);
}

/* Context: zygote's handler when its parent died: the whole tree goes. */
KMM_HOST_FN void kmm_host_on_orphan(int sig, siginfo_t *info, void *context)
{
	kmm_sys(SYS_kill, 0, SIGKILL, 0, 0);
}

KMM_HOST_FN __attribute__((naked)) void kmm_host_restorer(void)
{
	__asm__ volatile("movl $15, %eax\n\tsyscall");
}

KMM_HOST_FN void kmm_host_signal(int sig, void (*handler)(int, siginfo_t *, void *))
{
	struct { void *handler; u64 flags; void *restorer; u64 mask; } act;

	act.handler = (void *)handler;
	act.flags = handler ? SA_SIGINFO | 0x04000000u /* SA_RESTORER */ : 0;
	act.restorer = handler ? (void *)kmm_host_restorer : NULL;
	act.mask = 0;
	kmm_sys(SYS_rt_sigaction, sig, &act, NULL, 8);
}

#endif
#endif
