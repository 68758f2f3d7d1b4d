# SPDX-License-Identifier: GPL-2.0-only
# The operations of a tape, as every engine of this package runs them; and the arrays of a program.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pykmm_ext.kernel.spinlock cimport spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, s32, s64, u8, u32, u64
from pykmm_ext.mm.mm_types cimport file, machine, mm_struct, page
from pykmm_ext.vma_binding cimport vma_copy

cdef extern from "kmm/tape.h" nogil:
    enum:
        KMM_OP_NOP, KMM_OP_MMAP, KMM_OP_MUNMAP, KMM_OP_MPROTECT, KMM_OP_MREMAP, KMM_OP_MADVISE, KMM_OP_BRK, KMM_OP_MLOCK
        KMM_OP_MUNLOCK, KMM_OP_MLOCKALL, KMM_OP_MUNLOCKALL, KMM_OP_MSYNC, KMM_OP_MINCORE, KMM_OP_FORK, KMM_OP_EXEC
        KMM_OP_EXIT, KMM_OP_MAP, KMM_OP_TOUCH, KMM_OP_LOAD, KMM_OP_STORE, KMM_OP_COMPUTE, KMM_OP_PIN, KMM_OP_UNPIN
        KMM_OP_SETBRK, KMM_OP_MBIND, KMM_OP_TRUNCATE
    const s64 KMM_NO_RESULT
    int kmm_tape_mbind_mask(s32 flags)
    cdef struct kmm_tape_op:
        double time
        u64 addr, len, new_addr, new_len, offset
        s64 result
        s32 addr_ref, new_addr_ref, mm, mm2, file, data, prot, flags, expect_errno, thread, source
        unsigned short op
        u8 access
        u8 phase

# One address space of the tape.
cdef struct mm_slot:
    mm_struct *mm           # lock; NULL = not there (yet, or any more)
    spinlock_t lock
    vma_copy *maps          # how it ended; written once by whoever ends it
    u32 nmaps
    u32 ended

cdef struct run_state

# One stream: what it writes for itself on lines of its own, and what others wait for on another.
cdef struct stream:
    u32 progress            # operations completed; written by the stream, read by the streams that wait for it
    u32 waiters             # streams that may sleep on `progress`
    char pad[120]
    run_state *run
    Cpu *cpu
    u32 first, last         # operations [first, last)
    s32 mm_index            # the address space that is active, -1 = none
    mm_struct *mm           # with a reference
    u64 start_ns, end_ns, aside_ns
    u8 *loaded              # where what a LOAD read goes as well, or NULL
    u32 work_first, work_last       # operations of the threads' phase, without the NOPs that it begins with
    u64 work_start_ns, work_end_ns  # the stream's own; 0 = it has none of them
    u32 at                  # native: the operation under way; read by the watchdog (atomic)
    u32 waiting             # native: it waits for another stream; the same
    char pad2[128]

# A program on its way. Everything but streams, mms, results, codes and durations is const while it runs.
cdef struct run_state:
    machine *m
    const kmm_tape_op *ops
    const u32 *dep_start
    const u32 *dep_stream
    const u32 *dep_pos
    const u8 *awaited       # somebody waits for this operation
    const u8 *closes        # EXEC: the address space that is left has no other user
    u32 nops
    u32 nstreams
    stream *streams
    u32 nmms
    mm_slot *mms
    u32 nfiles
    file **files
    const u8 **blobs
    u64 *blob_lens
    s64 *results            # by operation: an address, 0 or -errno
    u8 *codes               # by operation: why an access failed, or TAPE_DATA_DIFFERS
    u64 *durations          # or NULL
    bint recorded
    bint no_maps            # an address space that ends leaves no copy of its maps
    u64 page_size
    # Pins, by operation (a PIN): where its pages stand in `pinned`, and how many it holds now; written by who performs
    # PIN and, after it, UNPIN.
    u64 *pin_at
    u32 *npinned
    page **pinned

# What TapeArrays.state.codes holds besides the fault codes of include/kmm/mm_types.h.
cdef enum:
    TAPE_DATA_DIFFERS = 0x80

# The arrays of pykmm.tape_program.TapeProgram, kept alive, and a run_state that points to them.
cdef class TapeArrays:
    cdef run_state state
    cdef list keep
    cdef list file_specs
    cdef list roots

# Context: any. value >= arg: a kmm_pred.
cdef int at_least(u64 value, u64 arg) noexcept nogil
# Context: process, no locks, may sleep; whoever drives the stream's Cpu. Leave the active address space.
cdef void leave_mm(stream *s) noexcept nogil
# The same: make address space `index` active; False where it does not exist (any more).
cdef bint enter_mm(stream *s, s32 index) noexcept nogil
# Context: process, no locks, may sleep. Remember the maps (the time for that is added to *aside), then drop the tape's
# reference.
cdef void end_mm(run_state *run, Cpu *cpu, mm_slot *slot, u64 *aside) noexcept nogil
# Context: process, no locks, IRQs on, may sleep. One operation; the result is an address, 0 or -errno.
cdef s64 perform(stream *s, const kmm_tape_op *op, u32 index) noexcept nogil
# Gives up what PINs still hold. Context: process, no locks; nobody performs a PIN or UNPIN.
cdef void release_pins(run_state *run, Cpu *cpu) noexcept nogil
# perform() with its result, and its fault code, put where they belong. Context: the same.
cdef void run_op(stream *s, u32 index) noexcept nogil

# Context: GIL held, Cpu 0 owned; nobody runs. The machine, its files and the address spaces that are there from the
# beginning; MemoryError.
cdef int tape_start(TapeArrays arrays, machine *m) except -1
# Context: the same. Ends what is left of the address spaces, drops the files and the maps' references.
cdef int tape_end(TapeArrays arrays) except -1
