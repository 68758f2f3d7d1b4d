/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/types.h, compiler.h: the fixed-size integers and the compiler
 * hints that every other header of pykmm uses.
 */
#ifndef KMM_TYPES_H
#define KMM_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Two lines: the adjacent-line prefetcher pairs them on x86. */
#define KMM_CACHELINE 128
#define ____cacheline_aligned __attribute__((aligned(KMM_CACHELINE)))

#endif
