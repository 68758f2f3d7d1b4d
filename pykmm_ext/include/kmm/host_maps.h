/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * engine/host.pyx, after the fork: what an address space looks like at its end (/proc/self/maps and pagemap, read
 * without libc), and giving up what was inherited from the caller.
 */
#ifndef KMM_HOST_MAPS_H
#define KMM_HOST_MAPS_H

#include "kmm/host.h"

#if KMM_HOST_SUPPORTED

/* ---- the arena ---- */

#define KMM_HOST_AT(h, field, type) ((type *)((h)->base + (h)->field))

/* Faults the whole arena in, so that operations are not charged for it. */
KMM_HOST_FN void kmm_host_populate(struct kmm_host_head *h)
{
	u64 end = h->stacks, p;

	if (kmm_sys(SYS_madvise, h->base, end, MADV_POPULATE_WRITE, 0) < 0)
		for (p = h->base; p < h->base + end; p += 4096)
			(void)*(volatile u8 *)p;
}

KMM_HOST_INLINE int kmm_host_hex(const char **p, u64 *v)
{
	const char *s = *p;
	u64 x = 0;

	for (;; s++) {
		if (*s >= '0' && *s <= '9')
			x = x << 4 | (u64)(*s - '0');
		else if (*s >= 'a' && *s <= 'f')
			x = x << 4 | (u64)(*s - 'a' + 10);
		else
			break;
	}
	*v = x;
	*p = s;
	return *s;
}

/* One line of /proc/PID/maps; keeps those inside the range. */
KMM_HOST_FN void kmm_host_map_line(struct kmm_host_head *h, struct kmm_host_mm *mm, const char *s)
{
	static const char memfd[] = "/memfd:kmm-";
	struct kmm_host_map *m;
	u64 start, end, offset, at, x;
	char perms[4];
	unsigned i;

	if (kmm_host_hex(&s, &start) != '-')
		return;
	s++;
	kmm_host_hex(&s, &end);
	if (start < h->range_start || end > h->range_end || *s != ' ')
		return;
	s++;
	for (i = 0; i < 4; i++)
		perms[i] = *s++;
	s++;
	kmm_host_hex(&s, &offset);
	at = __atomic_fetch_add(&h->maps_next, sizeof(*m), __ATOMIC_RELAXED);
	if (at + sizeof(*m) > h->maps_end) {
		mm->map_errno = ENOBUFS;
		return;
	}
	m = (struct kmm_host_map *)(h->base + at);
	m->start = start, m->end = end, m->offset = offset, m->resident = -1;
	for (i = 0; i < 4; i++)
		m->perms[i] = perms[i];
	m->fd_index = -1;
	while (*s && *s != '/')
		s++;
	for (i = 0; memfd[i] && s[i] == memfd[i]; i++)
		;
	if (!memfd[i]) {
		s += i;
		kmm_host_hex(&s, &x);
		m->fd_index = (s32)x;
	}
	m->pad = (u32)(mm - KMM_HOST_AT(h, mms, struct kmm_host_mm));
	mm->nmaps++;
}

/* Context: the address space is quiet; once per address space. Opens nothing but files of /proc/self. */
KMM_HOST_FN void kmm_host_record_now(struct kmm_host_head *h, struct kmm_host_mm *mm)
{
	u64 index = (u64)(mm - KMM_HOST_AT(h, mms, struct kmm_host_mm)), first = h->maps_next, i, at, k, total;
	char *buf = (char *)(h->base + h->scratch + index * KMM_HOST_SCRATCH), *nl;
	struct kmm_host_query *q = (struct kmm_host_query *)(h->base + mm->query);
	u64 have = 0;
	long n, fd;

	fd = kmm_sys(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0) {
		mm->map_errno = (s32)-fd;
		return;
	}
	while ((n = kmm_sys(SYS_read, fd, buf + have, KMM_HOST_SCRATCH - 1 - have, 0)) > 0) {
		have += (u64)n;
		buf[have] = 0;
		for (i = 0, nl = buf; i < have; i++) {
			if (buf[i] != '\n')
				continue;
			buf[i] = 0;
			kmm_host_map_line(h, mm, nl);
			nl = buf + i + 1;
		}
		have -= (u64)(nl - buf);
		for (i = 0; i < have; i++)
			buf[i] = nl[i];
	}
	kmm_sys(SYS_close, fd, 0, 0, 0);
	fd = kmm_sys(SYS_openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0) {
		mm->map_errno = (s32)-fd;
		return;
	}
	for (at = first; at < h->maps_next && at < h->maps_end; at += sizeof(struct kmm_host_map)) {
		struct kmm_host_map *m = (struct kmm_host_map *)(h->base + at);

		if (m->pad != index || m->end - m->start > (4ul << 30))
			continue;
		m->resident = 0;
		total = (m->end - m->start) >> 12;
		for (k = 0; k < total; k += (u64)n >> 3) {
			u64 want = total - k < KMM_HOST_SCRATCH / 8 ? total - k : KMM_HOST_SCRATCH / 8;

			n = kmm_sys6(SYS_pread64, (u64)fd, (u64)buf, want * 8, ((m->start >> 12) + k) * 8, 0, 0);
			if (n < 8)
				break;
			for (i = 0; i < (u64)n >> 3; i++)
				m->resident += (s64)(((u64 *)buf)[i] >> 63);
		}
	}
	for (i = 0; i < mm->nquery; i++) {
		n = kmm_sys6(SYS_pread64, (u64)fd, h->base + q[i].out, q[i].npages * 8, (q[i].addr >> 12) * 8, 0, 0);
		if (n < 0)
			mm->map_errno = (s32)-n;
	}
	kmm_sys(SYS_close, fd, 0, 0, 0);
}

/* Records maps and residency once; returns the nanoseconds that took. */
KMM_HOST_FN s64 kmm_host_record(struct kmm_host_head *h, struct kmm_host_mm *mm)
{
	s64 before = kmm_host_now();

	if (!__atomic_exchange_n(&mm->recorded, 1, __ATOMIC_ACQ_REL))
		kmm_host_record_now(h, mm);
	return kmm_host_now() - before;
}

/* glibc 2.35 and later registers its restartable-sequence area, which lies where it says here. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

/*
 * Gives up the private anonymous memory inherited from the caller (heaps, thread stacks), so that forks copy the tape's
 * page tables and little else. Libraries with their data stay. What the processor and the kernel know of the thread
 * descriptor in that memory goes first: the restartable-sequence area and the thread pointer, which moves to `tls`.
 * Context: the zygote, on its stack in the arena.
 */
KMM_HOST_FN void kmm_host_trim(struct kmm_host_head *h, u64 *tls)
{
	char *buf = (char *)(h->base + h->scratch), *nl;
	u64 have = 0, i, start, end, x, fs, kept = 0;
	const char *s;
	long n, fd;

	__asm__ volatile("movq %%fs:0, %0" : "=r"(fs));
	if (&__rseq_offset && &__rseq_size && __rseq_size &&
	    kmm_sys(334 /* rseq */, fs + (u64)__rseq_offset, 32, 1 /* RSEQ_FLAG_UNREGISTER */, 0x53053053) < 0)
		return;
	for (i = 0; i < 16; i++)
		tls[i] = ((volatile u64 *)fs)[i];
	tls[0] = (u64)tls;
	if (kmm_sys(SYS_arch_prctl, 0x1002 /* ARCH_SET_FS */, tls, 0, 0) < 0)
		return;
	fd = kmm_sys(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return;
	while ((n = kmm_sys(SYS_read, fd, buf + have, KMM_HOST_SCRATCH - 1 - have, 0)) > 0) {
		have += (u64)n;
		for (i = 0, nl = buf; i < have; i++) {
			if (buf[i] != '\n')
				continue;
			buf[i] = 0;
			s = nl;
			nl = buf + i + 1;
			if (kmm_host_hex(&s, &start) != '-')
				continue;
			s++;
			kmm_host_hex(&s, &end);
			x = s[4] == 'p'; /* " rwxp" */
			while (*s && *s != '/' && *s != '[')
				s++;
			if (*s == '/' || (*s == '[' && !(s[1] == 'h' || s[1] == 'a')) || start == kept || !x)
				kept = end; /* a file, [vdso] and the like, the bss of a library; not [heap], [anon:...] */
			else
				kmm_sys(SYS_munmap, start, end - start, 0, 0);
		}
		have -= (u64)(nl - buf);
		for (i = 0; i < have; i++)
			buf[i] = nl[i];
	}
	kmm_sys(SYS_close, fd, 0, 0, 0);
}

#endif
#endif
