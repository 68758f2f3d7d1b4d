# SPDX-License-Identifier: GPL-2.0-only
# include/kmm/seqlock.h (include/linux/seqlock.h)
from pykmm_ext.kernel.spinlock cimport spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, u32

cdef extern from "kmm/seqlock.h" nogil:
    ctypedef struct seqcount_t:
        u32 sequence
    ctypedef struct seqlock_t:
        seqcount_t seqcount
        spinlock_t lock
    void seqcount_init(seqcount_t *s)
    u32 raw_read_seqcount(Cpu *cpu, const seqcount_t *s)
    u32 read_seqcount_begin(Cpu *cpu, const seqcount_t *s)
    bint read_seqcount_retry(Cpu *cpu, const seqcount_t *s, u32 start)
    void write_seqcount_begin(Cpu *cpu, seqcount_t *s)
    void write_seqcount_begin_nested(Cpu *cpu, seqcount_t *s, int subclass)
    void write_seqcount_end(Cpu *cpu, seqcount_t *s)
    void seqlock_init(seqlock_t *sl)
    u32 read_seqbegin(Cpu *cpu, const seqlock_t *sl)
    bint read_seqretry(Cpu *cpu, const seqlock_t *sl, u32 start)
    void write_seqlock(Cpu *cpu, seqlock_t *sl)
    void write_sequnlock(Cpu *cpu, seqlock_t *sl)
