# SPDX-License-Identifier: GPL-2.0-only
"""engine/host: a tape as real system calls and real touches on the running Linux (include/kmm/host*.h).

Nothing here is for cimport by others: the engine's interface is host.run(), host.place() and HostResult.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "kmm/host_run.h" nogil:
    enum:
        KMM_HOST_SUPPORTED
        KMM_HOW_SLOT
        KMM_HOW_HINT
        KMM_HOW_IN_PLACE
        KMM_HOW_MOVE
        KMM_HOW_TRY_MOVE
        KMM_HOW_SKIP
        KMM_HOW_CLOSES
        KMM_HOST_STACK
        KMM_HOST_SCRATCH

    struct kmm_host_op:
        uint64_t addr
    struct kmm_host_dep:
        uint32_t stream
    struct kmm_host_result:
        int64_t value
    struct kmm_host_segment:
        uint32_t stream
    struct kmm_host_stream:
        uint32_t progress
    struct kmm_host_mm:
        uint32_t live
    struct kmm_host_map:
        uint64_t start
    struct kmm_host_query:
        uint64_t addr
    struct kmm_host_head:
        uint64_t base, size, range_start, range_end
        uint64_t ops, deps, results, segments, streams, mms, seglist, stacks, scratch, fds, tls
        uint32_t nops, nsegments, nstreams, nmms, nfds, neager
        uint32_t ready, go, timing, compute, phase0_left, failed
        int32_t fail_sig, fail_code, fail_what, parent_pid
        uint64_t fail_ip, fail_addr
        int64_t t_go, t_setup, t_end
        uint64_t maps_next, maps_end

    # Context: the calling thread forks; the GIL may be held. pid of the zygote, or -errno.
    long kmm_host_start(void *arena)
    # Context: may sleep timeout_ms, never with the GIL held. 1 = the zygote is gone and reaped, 0 = it still runs.
    int kmm_host_wait(long pid, int timeout_ms, int *status)
    # Context: the zygote was not reaped. Kills its process group and reaps it; short sleep.
    void kmm_host_kill(long pid)
