# SPDX-License-Identifier: GPL-2.0-only
# What a tape's accesses may see: revoked translations and possible values. For the check engine.
#
# Context of everything here: the engine's thread, no GIL; nothing is a scheduling point.
from pykmm_ext.engine.tape_ops cimport run_state, stream
from pykmm_ext.machine.cpu cimport Cpu, s32, u8, u32, u64
from pykmm_ext.mm.mm_types cimport mm_struct

cdef enum:
    SHADOW_ANY = 1          # nothing is known of the value
    SHADOW_STICKY = 2       # and nothing will be: memory that has other names
    SHADOW_MAYBE = 4        # it may not have happened
    SHADOW_USES = 256       # a power of two
    SHADOW_FILE = 8         # what the range holds at first comes from a file

# Something that gives bytes of an address space new values. Times are numbers of events in an execution.
cdef struct shadow_write:
    s32 mm                  # address space of the tape
    u32 flags
    u64 start, end
    const u8 *data          # NULL = zeroes
    u32 op, cpu
    u64 begun
    u64 returned            # SHADOW_NEVER: under way
    u64 visible             # since when every CPU sees it
    u32 last, flushed       # steps by which it had returned, and was visible: as check_query() numbers them

# A call that took translations, or a permission, away.
cdef struct shadow_revoke:
    mm_struct *mm
    u64 start, end
    u32 access              # 1 << KMM_ACCESS_*
    u32 anon                # of anonymous pages only
    u64 begun, returned
    u32 op
    u32 last                # step by which it had returned

# An access through a TLB entry.
cdef struct shadow_use:
    mm_struct *mm
    u64 address
    u64 filled, used
    u32 access, cpu
    u32 anon
    u32 seq                 # steps of the Cpu before its section with IRQs off

# Where an address space came from.
cdef struct shadow_space:
    s32 parent              # -1: from nowhere
    u32 cpu
    u32 seq                 # steps of the Cpu before
    u64 begun, returned     # the fork

cdef struct tape_shadow:
    run_state *run
    char **labels
    u64 now
    u64 final_at            # since when final runs, which comes after every thread; 2**64-1: it does not yet
    u32 nwrites, nrevokes, capacity
    shadow_write *writes
    shadow_revoke *revokes
    shadow_space *spaces
    u32 ncpus, nentries
    u64 *filled             # [ncpus][nentries]: when the TLB entry was filled
    u64 *begun              # [ncpus]: the operation under way
    u32 *seq                # [ncpus]: steps of the Cpu before it
    u32 nuses
    shadow_use *uses        # the newest, in a ring
    u32 *first_write        # [ncpus]: its first entry in `writes`
    u32 no_fork_rule        # parts of address spaces are kept from children: what fork revokes is not known
    # As setup left it.
    u64 now0
    u32 nwrites0, nrevokes0
    shadow_write *writes0
    shadow_space *spaces0

# 0 or -ENOMEM. The program has its machine.
cdef int shadow_init(tape_shadow *sh, run_state *run, char **labels) noexcept nogil
cdef void shadow_free(tape_shadow *sh) noexcept nogil
# Setup is done / a new execution begins.
cdef int shadow_save(tape_shadow *sh) noexcept nogil
cdef void shadow_reset(tape_shadow *sh) noexcept nogil
# The threads have ended; what comes now comes after them in every equivalent execution.
cdef void shadow_final(tape_shadow *sh) noexcept nogil
# Operation `index` begins.
cdef void shadow_begin(tape_shadow *sh, Cpu *cpu, u32 index) noexcept nogil
# It has returned, with run.results[index]; `loaded` = what a LOAD read. False: it cannot have read that; `text` says so.
cdef bint shadow_end(tape_shadow *sh, Cpu *cpu, u32 index, const u8 *loaded, char *text, size_t n) noexcept nogil
# A user access goes through a TLB entry. False: it must not be there any more.
cdef bint shadow_tlb_use(tape_shadow *sh, Cpu *cpu, const void *entry, u64 use, char *text, size_t n) noexcept nogil
