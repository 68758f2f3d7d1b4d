/* SPDX-License-Identifier: GPL-2.0-only */
/* arch/x86/include/asm/page_64.h: clear_page(). */
#ifndef KMM_CLEAR_PAGE_H
#define KMM_CLEAR_PAGE_H

#include <string.h>

#include "kmm/types.h"

/* Zero a frame. Context: any; the frame belongs to the caller. */
static inline void kmm_clear_page(void *p, size_t size)
{
#if defined(__x86_64__)
	__asm__ __volatile__("rep stosb" : "+D"(p), "+c"(size) : "a"(0) : "memory");
#else
	memset(p, 0, size);
#endif
}

/*
 * Fetch a frame that will be cleared soon, while other faults still run. rep stosb alone does not reach memory's
 * bandwidth: it waits for the first lines of every page, and the next locked instruction waits for it. Clearing and six
 * locked instructions a page, 8 MiB / 200 MiB of frames: 228 / 468 ns without, 137 / 370 with prefetchw of the next
 * frame, 147 / 280 with prefetcht0 of it, 158 / 215 with prefetcht0 of the one after it; streaming stores 408 / 390.
 */
static inline void kmm_prefetch_page(const void *p, size_t size)
{
	const char *line = p, *end = line + (size < 4096 ? size : 4096);

	for (; line < end; line += 64) {
		__builtin_prefetch(line, 0, 3);
	}
}

#endif
