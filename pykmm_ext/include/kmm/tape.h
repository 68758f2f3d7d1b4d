/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tape as engines see it: one fixed-size record per operation, operations of one stream
 * (= one simulated CPU) contiguous and in order. pykmm/tape.py has the same layout as a numpy dtype
 * (OP_DTYPE); a test compares the two.
 */
#ifndef KMM_TAPE_H
#define KMM_TAPE_H

#include "kmm/types.h"

enum kmm_tape_opcode {
	KMM_OP_NOP,        /* kept for its place in the order (clone, exit of a thread) */
	KMM_OP_MMAP,       /* addr (0 or hint), len, prot, flags (MAP_*), file, offset */
	KMM_OP_MUNMAP,     /* addr, len */
	KMM_OP_MPROTECT,   /* addr, len, prot */
	KMM_OP_MREMAP,     /* addr, len = old length, new_len, flags (MREMAP_*), new_addr */
	KMM_OP_MADVISE,    /* addr, len, flags = MADV_* */
	KMM_OP_BRK,        /* addr = new break, 0 = query */
	KMM_OP_MLOCK,      /* addr, len, flags (mlock2) */
	KMM_OP_MUNLOCK,    /* addr, len */
	KMM_OP_MLOCKALL,   /* flags */
	KMM_OP_MUNLOCKALL,
	KMM_OP_MSYNC,      /* addr, len, flags */
	KMM_OP_MINCORE,    /* addr, len */
	KMM_OP_FORK,       /* mm2 = the child's address space, a copy of mm */
	KMM_OP_EXEC,       /* mm2 = a new, empty address space; the stream goes on in it */
	KMM_OP_EXIT,       /* the address space mm goes away */
	KMM_OP_MAP,        /* a mapping that was there (start maps, evidence): addr, len, prot, flags, file, offset, data = name blob */
	KMM_OP_TOUCH,      /* addr, len (every page of it; 0 = one byte), access */
	KMM_OP_LOAD,       /* addr, len; data = expected bytes or -1 */
	KMM_OP_STORE,      /* addr, data = bytes */
	KMM_OP_COMPUTE,    /* len = nanoseconds of user work */
	KMM_OP_PIN,        /* addr, len, access (READ or WRITE) */
	KMM_OP_UNPIN,      /* addr, len; new_addr_ref = the PIN; data: with access WRITE what the device writes before, else
			    * what it must read, or -1 */
	KMM_OP_SETBRK,     /* addr = start_brk, new_addr = current break of an imported process */
	KMM_OP_MBIND,      /* addr, len, flags = mode and MPOL_F_*; the mask is node 0 where the mode needs one */
	KMM_OP_TRUNCATE,   /* file, len = the new size */
};

#define KMM_NO_RESULT INT64_MIN

struct kmm_tape_op {
	double time;        /* seconds since the start as recorded, NaN = unknown */
	u64 addr;           /* absolute, or added to the result of operation addr_ref */
	u64 len;
	u64 new_addr;       /* as addr, with new_addr_ref */
	u64 new_len;
	u64 offset;         /* bytes */
	s64 result;         /* recorded result (address, 0, -errno), KMM_NO_RESULT = none */
	s32 addr_ref;       /* index of an operation in the program, or -1 */
	s32 new_addr_ref;
	s32 mm;             /* address space it runs in */
	s32 mm2;            /* FORK, EXEC: the new address space; else -1 */
	s32 file;           /* index of a file, or -1 */
	s32 data;           /* index of a blob, or -1 */
	s32 prot;
	s32 flags;
	s32 expect_errno;   /* -1 = nothing expected, 0 = success expected */
	s32 thread;         /* index into Tape.threads */
	s32 source;         /* line of the recording it came from, 0 = none */
	u16 op;             /* enum kmm_tape_opcode */
	u8 access;          /* KMM_ACCESS_* */
	u8 phase;           /* 0 = setup, 1 = threads, 2 = final */
};

/* MBIND: does the mode need a mask? (PREFERRED, BIND, INTERLEAVE, PREFERRED_MANY, WEIGHTED_INTERLEAVE) */
static inline int kmm_tape_mbind_mask(s32 flags)
{
	u32 mode = (u32)flags & ~0xe000u; /* MPOL_MODE_FLAGS */

	return mode < 7 && (1u << mode & 0x6e) != 0;
}

#endif
