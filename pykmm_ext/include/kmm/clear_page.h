/* SPDX-License-Identifier: GPL-2.0-only */
/* arch/x86/include/asm/page_64.h: clear_page(). */
#ifndef KMM_CLEAR_PAGE_H
#define KMM_CLEAR_PAGE_H

#include <string.h>

#include "kmm/cpu.h"

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
 * Fetch a quarter of the frame at cpu->pcp.fetch, which will be cleared soon, while other work runs. rep stosb alone does
 * not reach memory's bandwidth: it waits for the first lines of every page, and the next locked instruction waits for it.
 * A processor keeps some 16 lines on their way at a time and then waits; so a frame is fetched in four parts of that size,
 * at four places of a fault: its begin, before and after the clearing, and its end. ns a fault, tapes of 1000 / 10000 /
 * 50000 pages: in two parts, around the clearing, 192 / 200 / 350; in four 157 / 161 / 345. prefetchw is faster for frames
 * in the outer cache and slower for those in memory; streaming stores are slower for both.
 * Context: any; the owner of the Cpu.
 */
static inline void kmm_prefetch_step(Cpu *cpu)
{
	const char *line = cpu->pcp.fetch, *end = line + 1024;

	if (!cpu->pcp.fetch_steps)
		return;
	cpu->pcp.fetch_steps--;
	cpu->pcp.fetch = end;
	for (; line < end; line += 64)
		__builtin_prefetch(line, 0, 3);
}

#endif
