/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a compiled plugin believes about the structures that it shares with the core. Every extension module that
 * includes kmm/strategy.h or kmm/arch.h exports kmm_abi_stamp; the core looks for it in the module that a plugin's functions
 * come from (strategy.pyx), and refuses a plugin that sees other structures. struct strategy_ops and arch_ops are not
 * among them: their `size` member says what the plugin knows.
 *
 * Sizes tell what differs. That anything does, members of one size that have changed places too, is what the digest is for:
 * of the text, without comments, of every header that strategy.h and arch.h include. tests/test_abi.py says what it has
 * to be.
 */
#ifndef KMM_ABI_H
#define KMM_ABI_H

#include <stddef.h>

#include "kmm/mm_types.h"

#define KMM_ABI_DIGEST 0x8018ff6eu
#define KMM_ABI_ENTRIES 12
#define KMM_ABI_MAGIC 0x6b6d6d31 /* "kmm1": the layout of this structure */

struct kmm_abi {
	u32 magic, count;
	struct { const char *name; u32 bytes; } entry[KMM_ABI_ENTRIES];
};

#define KMM_ABI_INIT { KMM_ABI_MAGIC, KMM_ABI_ENTRIES, { \
	{ "struct Cpu", sizeof(Cpu) }, \
	{ "the head of struct Cpu", offsetof(Cpu, strategy_count) }, \
	{ "struct engine_ops", sizeof(struct engine_ops) }, \
	{ "struct vm_area_struct", sizeof(struct vm_area_struct) }, \
	{ "the head of struct vm_area_struct", offsetof(struct vm_area_struct, strategy_data) }, \
	{ "struct mm_struct", sizeof(struct mm_struct) }, \
	{ "the head of struct mm_struct", offsetof(struct mm_struct, mmap_sem) }, \
	{ "the middle of struct mm_struct", offsetof(struct mm_struct, strategy_data) }, \
	{ "struct vm_fault", sizeof(struct vm_fault) }, \
	{ "struct page", sizeof(struct page) }, \
	{ "struct machine", sizeof(struct machine) }, \
	{ "headers", KMM_ABI_DIGEST }, \
} }

/* One per extension module; weak, so that a module of several C files may include this in each. */
__attribute__((weak, used, visibility("default"))) const struct kmm_abi kmm_abi_stamp = KMM_ABI_INIT;

#endif
