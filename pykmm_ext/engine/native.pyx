# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (hot: the loop between two faults of a replay; every index comes from a program that was checked when it was built)
"""The native engine (no kernel file): a tape on real threads, one per simulated CPU, in wall-clock time.

Nothing of Python runs between the start and the end: no GIL, no allocation but the mm's own.

Where there is a processor for every stream, each keeps to one (as will-it-scale's tasks do) and polls rather than sleeps
while it waits for another.

Clock: from the moment the first stream leaves the start barrier to the moment the last one has done its last operation.
Before it starts, host memory is put behind as many frames as the tape needs, so that no fault of the
host is timed. The copies of the final maps that an EXIT takes are timed separately and left out.

Addresses of a recorded tape: a mapping that was recorded at an address is asked for at that address (as a hint, or
MREMAP_FIXED for one that moved), since where mmap(NULL) goes depends on what other threads did just before.
"""
from libc.errno cimport EAGAIN, EFAULT, ENOMEM, ENOSYS, ESRCH
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import os

from pykmm_ext.binding cimport Machine
from pykmm_ext.handle cimport cpu_disown, cpu_own, machine_get, machine_put
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE_32, atomic_dec_32, atomic_inc_32, kmm_await_futex, kmm_cpu_relax, kmm_is_nonzero, kmm_wake_32,
    smp_load_acquire_32, smp_mb, smp_store_release_32,
)
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock, spinlock_t
from pykmm_ext.machine.cpu cimport Cpu, s32, s64, u8, u32, u64
from pykmm_ext.machine.memory cimport machine_commit
from pykmm_ext.machine.tlb cimport copy_from_user, copy_to_user, switch_mm, user_touch
from pykmm_ext.mm.brk cimport ksys_brk
from pykmm_ext.mm.filemap cimport do_truncate, file_create, fput
from pykmm_ext.mm.fork cimport dup_mm, mm_alloc, mmget, mmput
from pykmm_ext.mm.madvise cimport do_madvise, do_mincore, do_msync
from pykmm_ext.mm.mempolicy cimport do_mbind
from pykmm_ext.mm.mlock cimport do_mlock, do_mlockall, do_munlock, do_munlockall
from pykmm_ext.mm.mm_types cimport machine as machine_t
from pykmm_ext.mm.mm_types cimport (
    VM_ACCOUNT, VM_DONTEXPAND, VM_EXEC, VM_GROWSDOWN, VM_IO, VM_LOCKED, VM_MAYEXEC, VM_MAYREAD, VM_MAYSHARE,
    VM_MAYWRITE, VM_NORESERVE, VM_READ, VM_SHARED, VM_WRITE, file, mm_struct, vm_area_struct,
)
from pykmm_ext.mm.mmap cimport (
    ksys_mmap, mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock, vm_munmap,
)
from pykmm_ext.mm.mprotect cimport do_mprotect
from pykmm_ext.mm.mremap cimport sys_mremap
from pykmm_ext.mm.vma_exec cimport install_mapping
from pykmm_ext.mm_binding cimport copy_vma_facts, mm_default_brk, vma_copy

cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, void *attr, void *(*start)(void *) noexcept nogil, void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "sched.h" nogil:
    ctypedef struct cpu_set_t:
        pass
    void CPU_ZERO(cpu_set_t *cpus)
    void CPU_SET(int cpu, cpu_set_t *cpus)
    int sched_getcpu()
    int sched_setaffinity(int pid, size_t size, const cpu_set_t *cpus)

cdef extern from "kmm/tape.h" nogil:
    enum:
        KMM_OP_NOP, KMM_OP_MMAP, KMM_OP_MUNMAP, KMM_OP_MPROTECT, KMM_OP_MREMAP, KMM_OP_MADVISE, KMM_OP_BRK, KMM_OP_MLOCK
        KMM_OP_MUNLOCK, KMM_OP_MLOCKALL, KMM_OP_MUNLOCKALL, KMM_OP_MSYNC, KMM_OP_MINCORE, KMM_OP_FORK, KMM_OP_EXEC
        KMM_OP_EXIT, KMM_OP_MAP, KMM_OP_TOUCH, KMM_OP_LOAD, KMM_OP_STORE, KMM_OP_COMPUTE, KMM_OP_SETBRK, KMM_OP_MBIND
        KMM_OP_TRUNCATE
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

cdef enum:
    MAP_SHARED = 1
    MAP_FIXED = 0x10
    MAP_ANONYMOUS = 0x20
    MAP_GROWSDOWN = 0x100
    MAP_LOCKED = 0x2000
    MAP_NORESERVE = 0x4000
    MREMAP_MAYMOVE = 1
    MREMAP_FIXED = 2

#: What run() puts into its codes: the fault codes of include/kmm/mm_types.h, and this one.
DATA_DIFFERS = 0x80

# One address space of the tape.
cdef struct mm_slot:
    mm_struct *mm           # lock; NULL = not there (yet, or any more)
    spinlock_t lock
    vma_copy *maps          # how it ended; written once by whoever ends it
    u32 nmaps
    u32 ended

cdef struct run_state

# One stream: its thread's own line, and what others wait for on another.
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
    pthread_t thread
    u32 started
    int host_cpu            # the processor it keeps to, -1 = where the host puts it
    char pad2[128]

cdef struct run_state:
    u32 go                  # 0 = wait, 1 = run, 2 = give up; futex
    u32 ready               # atomic: streams that poll `go`; futex of whoever starts the run
    u32 polls               # how often a stream looks at `go`, or at another's progress, before it sleeps
    machine_t *m
    const kmm_tape_op *ops
    const u32 *dep_start
    const u32 *dep_stream
    const u32 *dep_pos
    const u8 *awaited       # somebody waits for this operation
    const u8 *closes        # EXEC: the address space that is left has no other user
    u32 nstreams
    stream *streams
    u32 nmms
    mm_slot *mms
    file **files
    const u8 **blobs
    u64 *blob_lens
    s64 *results
    u8 *codes
    u64 *durations          # or NULL
    bint recorded
    u64 page_size


cdef inline u64 now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <u64>t.tv_sec * 1000000000 + <u64>t.tv_nsec


# Context: any; a kmm_pred.
cdef int at_least(u64 value, u64 arg) noexcept nogil:
    return value >= arg


# Context: process, may sleep. Wait until stream `other` has completed at least `count` operations.
cdef inline void await_progress(Cpu *cpu, stream *other, u32 count) noexcept nogil:
    cdef u32 polls = other.run.polls
    # Where every stream has a processor of its own, polling costs nobody anything, and a sleeper's wake-up takes longer
    # than most operations.
    while smp_load_acquire_32(cpu, &other.progress) < count:
        if polls == 0:
            break
        kmm_cpu_relax()
        polls -= 1
    else:
        return
    atomic_inc_32(cpu, &other.waiters)
    smp_mb(cpu)     # pairs with the one in publish(): it sees the waiter, or we see its progress
    kmm_await_futex(cpu, &other.progress, at_least, count)
    atomic_dec_32(cpu, &other.waiters)


# Context: process. The stream has completed `count` operations.
cdef inline void publish(Cpu *cpu, stream *s, u32 count) noexcept nogil:
    smp_store_release_32(cpu, &s.progress, count)   # pairs with the acquire in await_progress()
    smp_mb(cpu)     # pairs with the one in await_progress()
    if READ_ONCE_32(cpu, &s.waiters):
        kmm_wake_32(cpu, &s.progress, 0x7fffffff)


# Context: process, no locks, may sleep. Leave the active address space.
cdef void leave_mm(stream *s) noexcept nogil:
    if s.mm != NULL:
        switch_mm(s.cpu, NULL)
        mmput(s.cpu, s.mm)
    s.mm = NULL
    s.mm_index = -1


# Context: process, no locks, may sleep. Make address space `index` active; False where it does not exist (any more).
cdef bint enter_mm(stream *s, s32 index) noexcept nogil:
    cdef mm_slot *slot = &s.run.mms[index]
    cdef mm_struct *mm
    spin_lock(s.cpu, &slot.lock)
    mm = slot.mm
    if mm != NULL:
        mmget(s.cpu, mm)
    spin_unlock(s.cpu, &slot.lock)
    if mm == NULL:
        leave_mm(s)
        return False
    leave_mm(s)
    switch_mm(s.cpu, mm)
    s.mm = mm
    s.mm_index = index
    return True


# Context: process, no locks, may sleep. Remember the maps (the time for that is added to *aside), then drop the tape's
# reference.
cdef void end_mm(Cpu *cpu, mm_slot *slot, u64 *aside) noexcept nogil:
    cdef mm_struct *mm
    cdef vm_area_struct *vma
    cdef u32 n = 0, room
    cdef u64 before = now_ns()
    spin_lock(cpu, &slot.lock)
    mm = slot.mm
    slot.mm = NULL
    spin_unlock(cpu, &slot.lock)
    if mm == NULL:
        return
    mmap_read_lock(cpu, mm)
    room = mm.map_count
    slot.maps = <vma_copy *>calloc(room + 1, sizeof(vma_copy))
    vma = mm.mmap
    while slot.maps != NULL and vma != NULL and n < room:
        copy_vma_facts(cpu, vma, &slot.maps[n])
        n += 1
        vma = vma.vm_next
    slot.nmaps = n
    slot.ended = slot.maps != NULL
    mmap_read_unlock(cpu, mm)
    aside[0] += now_ns() - before
    mmput(cpu, mm)


# Context: the stream's thread, no locks.
cdef s64 set_mm(stream *s, s32 index, mm_struct *mm, int err) noexcept nogil:
    cdef mm_slot *slot = &s.run.mms[index]
    if mm == NULL:
        return err if err < 0 else -ENOMEM
    mm_default_brk(mm)
    spin_lock(s.cpu, &slot.lock)
    slot.mm = mm
    spin_unlock(s.cpu, &slot.lock)
    return 0


# vm_flags of a mapping that was there: calc_vm_prot_bits(), calc_vm_flag_bits() and what mmap_region() adds.
cdef unsigned long map_vm_flags(const kmm_tape_op *op, const char *name) noexcept nogil:
    cdef unsigned long f = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    if op.prot & 1:
        f |= VM_READ
    if op.prot & 2:
        f |= VM_WRITE
    if op.prot & 4:
        f |= VM_EXEC
    if op.flags & MAP_SHARED:
        f |= VM_SHARED | VM_MAYSHARE
    elif op.prot & 2:
        f |= VM_ACCOUNT
    if op.flags & MAP_GROWSDOWN:
        f |= VM_GROWSDOWN
    if op.flags & MAP_LOCKED:
        f |= VM_LOCKED
    if op.flags & MAP_NORESERVE:
        f = (f | VM_NORESERVE) & ~VM_ACCOUNT
    if name != NULL and name[0] == 91 and name[1] == 118:       # [vvar], [vvar_vclock], [vdso], [vsyscall]
        f |= VM_DONTEXPAND
        if name[2] == 118:
            f = (f | VM_IO) & ~(VM_MAYWRITE | VM_MAYEXEC)
    return f


# Context: the stream's thread, IRQs on, no locks; faults.
cdef s64 do_load(stream *s, u64 addr, u64 n, const u8 *want, u64 want_len, u8 *code) noexcept nogil:
    cdef u8 buffer[4096]
    cdef u64 at = 0, part, shown
    cdef int r
    cdef bint same = True
    while at < n:
        part = min(n - at, <u64>4096 - ((addr + at) & 4095))
        r = copy_from_user(s.cpu, buffer, addr + at, part)
        if r < 0:
            return r
        if want != NULL and at < want_len:
            shown = min(part, want_len - at)
            if memcmp(buffer, want + at, shown) != 0:
                same = False
        at += part
    if not same:
        code[0] = 0x80
    return 0


# Context: the stream's thread, IRQs on, no locks; faults.
cdef s64 do_touch(stream *s, u64 addr, u64 n, u32 access) noexcept nogil:
    cdef u64 size = s.run.page_size
    cdef u64 end = addr + n if n else addr + 1
    cdef int r
    if end < addr:
        end = 0xffffffffffffffff
    while addr < end:
        r = user_touch(s.cpu, addr, access)
        if r < 0:
            return r
        addr = (addr | (size - 1)) + 1
        if addr == 0:
            break
    return 0


# Context: the stream's thread, IRQs on, no locks; sleeps.
cdef s64 do_mincore_op(stream *s, mm_struct *mm, u64 addr, u64 n) noexcept nogil:
    cdef u8 vec[512]
    cdef u64 step
    cdef long r
    if n > mm.task_size:
        return -ENOMEM
    while True:
        step = min(n, 512 * s.run.page_size)
        r = do_mincore(s.cpu, mm, addr, step, vec)
        if r < 0:
            return r
        addr += step
        n -= step
        if n == 0:
            return 0


# Context: process, no locks, IRQs on, may sleep. One operation; the result is an address, 0 or -errno.
cdef s64 perform(stream *s, const kmm_tape_op *op, u32 index) noexcept nogil:
    cdef run_state *run = s.run
    cdef Cpu *cpu = s.cpu
    cdef mm_struct *mm
    cdef mm_struct *new
    cdef u64 addr = op.addr, new_addr = op.new_addr, t
    cdef s64 base
    cdef int err = 0
    cdef unsigned long flags
    cdef file *f = NULL
    cdef const char *name = NULL
    cdef s64 r
    if op.op == KMM_OP_NOP:
        return 0
    if op.op == KMM_OP_COMPUTE:
        t = now_ns() + op.len
        while now_ns() < t:
            kmm_cpu_relax()
        return 0
    if op.mm != s.mm_index and not enter_mm(s, op.mm):
        return -ESRCH
    mm = s.mm
    if op.addr_ref >= 0:
        base = run.results[op.addr_ref]
        if -4096 < base < 0:
            return -EFAULT
        addr += <u64>base
    if op.new_addr_ref >= 0:
        base = run.results[op.new_addr_ref]
        if -4096 < base < 0:
            return -EFAULT
        new_addr += <u64>base
    if op.op == KMM_OP_TOUCH:
        return do_touch(s, addr, op.len, op.access)
    if op.op == KMM_OP_MMAP:
        if op.file >= 0 and not op.flags & MAP_ANONYMOUS:
            f = run.files[op.file]
        if run.recorded and op.result != KMM_NO_RESULT and op.result > 0 and not op.flags & MAP_FIXED:
            addr = <u64>op.result
        return ksys_mmap(cpu, mm, addr, op.len, op.prot, <u32>op.flags, f, op.offset)
    if op.op == KMM_OP_MUNMAP:
        return vm_munmap(cpu, mm, addr, op.len)
    if op.op == KMM_OP_MPROTECT:
        return do_mprotect(cpu, mm, addr, op.len, op.prot)
    if op.op == KMM_OP_MADVISE:
        return do_madvise(cpu, mm, addr, op.len, op.flags)
    if op.op == KMM_OP_BRK:
        return <s64>ksys_brk(cpu, mm, addr)
    if op.op == KMM_OP_MREMAP:
        flags = <u32>op.flags
        if (run.recorded and op.result != KMM_NO_RESULT and op.result > 0 and <u64>op.result != addr
                and flags & MREMAP_MAYMOVE and not flags & MREMAP_FIXED):
            flags |= MREMAP_FIXED
            new_addr = <u64>op.result
        return sys_mremap(cpu, mm, addr, op.len, op.new_len, flags, new_addr)
    if op.op == KMM_OP_LOAD:
        if op.data >= 0:
            return do_load(s, addr, op.len, run.blobs[op.data], run.blob_lens[op.data], &run.codes[index])
        return do_load(s, addr, op.len, NULL, 0, &run.codes[index])
    if op.op == KMM_OP_STORE:
        return copy_to_user(cpu, addr, run.blobs[op.data], run.blob_lens[op.data])
    if op.op == KMM_OP_MLOCK:
        return do_mlock(cpu, mm, addr, op.len, op.flags)
    if op.op == KMM_OP_MUNLOCK:
        return do_munlock(cpu, mm, addr, op.len)
    if op.op == KMM_OP_MLOCKALL:
        return do_mlockall(cpu, mm, op.flags)
    if op.op == KMM_OP_MUNLOCKALL:
        return do_munlockall(cpu, mm)
    if op.op == KMM_OP_MSYNC:
        return do_msync(cpu, mm, addr, op.len, op.flags)
    if op.op == KMM_OP_MINCORE:
        return do_mincore_op(s, mm, addr, op.len)
    if op.op == KMM_OP_FORK:
        new = dup_mm(cpu, mm, &err)
        return set_mm(s, op.mm2, new, err)
    if op.op == KMM_OP_EXEC:
        new = mm_alloc(cpu, run.m, &err)
        r = set_mm(s, op.mm2, new, err)
        if r == 0:
            leave_mm(s)
            if run.closes[index]:
                end_mm(cpu, &run.mms[op.mm], &s.aside_ns)
            enter_mm(s, op.mm2)
        return r
    if op.op == KMM_OP_EXIT:
        leave_mm(s)
        end_mm(cpu, &run.mms[op.mm], &s.aside_ns)
        return 0
    if op.op == KMM_OP_MAP:
        if addr >= mm.task_size:        # [vsyscall]: the kernel's own gate page, no VMA
            return 0
        if op.data >= 0:
            name = <const char *>run.blobs[op.data]
        if op.file >= 0:
            f = run.files[op.file]
        return install_mapping(cpu, mm, addr, addr + op.len, map_vm_flags(op, name), f, op.offset, name)
    if op.op == KMM_OP_SETBRK:
        mmap_write_lock(cpu, mm, 0, mm.task_size)
        mm.start_brk = addr
        mm.brk = new_addr
        mmap_write_unlock(cpu, mm)
        return 0
    if op.op == KMM_OP_TRUNCATE:
        return do_truncate(cpu, run.files[op.file], op.len)
    if op.op == KMM_OP_MBIND:
        t = 1                           # node 0: the mask is not part of a tape
        if kmm_tape_mbind_mask(op.flags):
            return do_mbind(cpu, mm, addr, op.len, op.flags, <unsigned long *>&t, 2, 0)
        return do_mbind(cpu, mm, addr, op.len, op.flags, NULL, 0, 0)
    return -ENOSYS


# Context: a new OS thread without a Python thread state; drives one Cpu.
cdef void *stream_main(void *arg) noexcept nogil:
    cdef stream *s = <stream *>arg
    cdef run_state *run = s.run
    cdef Cpu *cpu = s.cpu
    cdef u32 i, k
    cdef u64 before = 0
    cdef u32 polls = run.polls
    cdef cpu_set_t host_cpus
    if s.host_cpu >= 0:
        # Two streams that start on one processor would share it until the host's scheduler moves one.
        CPU_ZERO(&host_cpus)
        CPU_SET(s.host_cpu, &host_cpus)
        sched_setaffinity(0, sizeof(host_cpus), &host_cpus)
    # Awake when the run begins, where there is a processor for every stream: a wake-up from the futex takes tens of
    # microseconds, and would count as time of the tape.
    atomic_inc_32(cpu, &run.ready)
    kmm_wake_32(cpu, &run.ready, 1)
    while polls and smp_load_acquire_32(cpu, &run.go) == 0:
        kmm_cpu_relax()
        polls -= 1
    if kmm_await_futex(cpu, &run.go, kmm_is_nonzero, 0) == 2:
        return NULL
    s.start_ns = now_ns()
    for i in range(s.first, s.last):
        for k in range(run.dep_start[i], run.dep_start[i + 1]):
            await_progress(cpu, &run.streams[run.dep_stream[k]], run.dep_pos[k] + 1)
        if run.durations != NULL:
            before = now_ns()
        cpu.fault_code = 0
        run.results[i] = perform(s, &run.ops[i], i)
        if run.results[i] == -EFAULT:
            run.codes[i] = cpu.fault_code
        if run.durations != NULL:
            run.durations[i] = now_ns() - before
        if run.awaited[i]:
            publish(cpu, s, i + 1 - s.first)
    s.end_ns = now_ns()
    leave_mm(s)
    return NULL


# Context: GIL not held; the Cpus of all streams are owned. 0, or -EAGAIN when the host refuses threads.
cdef int run_threads(run_state *run) noexcept nogil:
    cdef u32 i, go = 1
    for i in range(run.nstreams):
        if pthread_create(&run.streams[i].thread, NULL, stream_main, &run.streams[i]) != 0:
            go = 2
            break
        run.streams[i].started = 1
    if go == 1:
        kmm_await_futex(run.streams[0].cpu, &run.ready, at_least, run.nstreams)
    smp_store_release_32(run.streams[0].cpu, &run.go, go)   # pairs with the acquire in stream_main()
    kmm_wake_32(run.streams[0].cpu, &run.go, 0x7fffffff)
    for i in range(run.nstreams):
        if run.streams[i].started:
            pthread_join(run.streams[i].thread, NULL)
    return 0 if go == 1 else -EAGAIN


def run(Machine machine not None, const uint8_t[::1] ops not None, const uint32_t[::1] stream_start not None,
        const uint32_t[::1] dep_start not None, const uint32_t[::1] dep_stream not None,
        const uint32_t[::1] dep_pos not None, const uint8_t[::1] awaited not None, const uint8_t[::1] closes not None,
        int64_t[::1] results not None, uint8_t[::1] codes not None, durations, list roots, int mms, list files,
        list blobs, list blob_lens, bint recorded, unsigned long commit):
    """Run a program; the arrays are those of pykmm.tape_program.TapeProgram, made and checked by pykmm.machine.

    Fills `results` (an address, 0 or -errno), `codes` (why an access failed) and `durations` (nanoseconds, or None),
    all by operation. Returns the elapsed nanoseconds, those of each stream, and the maps with which each address space
    ended, as tuples (start, end, vm_flags, offset, major, minor, ino, name). ValueError for more streams than CPUs,
    MemoryError, OSError(EAGAIN) when the host refuses threads. Every blob has a zero byte behind its `blob_lens`.
    """
    cdef run_state state
    cdef u32 i, k, n = stream_start.shape[0] - 1
    cdef u64 count = ops.shape[0] // sizeof(kmm_tape_op)
    cdef uint64_t[::1] times
    cdef int err = 0
    cdef mm_struct *mm
    cdef Cpu *cpu
    cdef const uint8_t[::1] view
    cdef const char *c_name
    cdef u64 length, size
    cdef u32 major, minor
    cdef unsigned long ino
    cdef vma_copy *v
    cdef u64 first = 0xffffffffffffffff, last = 0
    cdef u64 aside = 0
    if (dep_start.shape[0] != <Py_ssize_t>count + 1 or results.shape[0] != <Py_ssize_t>count
            or codes.shape[0] != <Py_ssize_t>count or awaited.shape[0] != <Py_ssize_t>count
            or closes.shape[0] != <Py_ssize_t>count or stream_start[n] != count or n < 1):
        raise ValueError("the arrays of the program do not belong together")
    machine_get(machine)
    try:
        if n > machine.m.nr_cpus:
            raise ValueError(f"the tape needs {n} CPUs, this machine has {machine.m.nr_cpus}: Machine(cpus={n})")
        state.go = 0
        state.m = machine.m
        state.ops = <const kmm_tape_op *>&ops[0] if count else NULL
        state.dep_start = <const u32 *>&dep_start[0]
        state.dep_stream = <const u32 *>&dep_stream[0] if dep_stream.shape[0] else NULL
        state.dep_pos = <const u32 *>&dep_pos[0] if dep_pos.shape[0] else NULL
        state.awaited = &awaited[0] if count else NULL
        state.closes = &closes[0] if count else NULL
        state.results = <s64 *>&results[0] if count else NULL
        state.codes = &codes[0] if count else NULL
        state.durations = NULL
        if durations is not None:
            times = durations
            if times.shape[0] != <Py_ssize_t>count:
                raise ValueError("the arrays of the program do not belong together")
            if count:
                state.durations = <u64 *>&times[0]
        state.nstreams = n
        state.nmms = mms
        state.recorded = recorded
        state.page_size = 1 << machine.m.arch.page_shift
        state.streams = <stream *>calloc(n, sizeof(stream))
        state.mms = <mm_slot *>calloc(mms + 1, sizeof(mm_slot))
        state.files = <file **>calloc(len(files) + 1, sizeof(file *))
        state.blobs = <const u8 **>calloc(len(blobs) + 1, sizeof(u8 *))
        state.blob_lens = <u64 *>calloc(len(blobs) + 1, sizeof(u64))
        cpu = machine.m.cpus[0]
        with nogil:
            for i in range(n):
                cpu_own(machine.m.cpus[i])
        try:
            if (state.streams == NULL or state.mms == NULL or state.files == NULL or state.blobs == NULL
                    or state.blob_lens == NULL):
                raise MemoryError()
            for i in range(<u32>mms):
                spin_lock_init(&state.mms[i].lock)
            for i in range(<u32>len(blobs)):
                blob = blobs[i]
                if not isinstance(blob, bytes):
                    raise TypeError("blobs must be bytes")
                state.blob_lens[i] = blob_lens[i]
                if state.blob_lens[i] >= <u64>len(<bytes>blob):
                    raise ValueError("blobs must end with a zero byte that does not count")
                state.blobs[i] = <const u8 *><const char *><bytes>blob
            for i, (name, data, total, (major, minor), ino) in enumerate(files):
                encoded = os.fsencode(name)
                c_name = encoded
                view = None
                length = 0
                if data:
                    view = data
                    length = view.shape[0]
                size = total
                with nogil:
                    state.files[i] = file_create(cpu, machine.m, c_name, &view[0] if length else NULL, length, size,
                                                 major, minor, ino)
                if state.files[i] == NULL:
                    raise MemoryError(f"no memory for the file {name!r} of {total} bytes")
            for root in roots:
                k = root
                with nogil:
                    mm = mm_alloc(cpu, machine.m, &err)
                if mm == NULL:
                    raise MemoryError("no simulated memory for an address space")
                mm_default_brk(mm)
                state.mms[k].mm = mm
            for i in range(n):
                state.streams[i].run = &state
                state.streams[i].cpu = machine.m.cpus[i]
                state.streams[i].first = stream_start[i]
                state.streams[i].last = stream_start[i + 1]
                state.streams[i].mm_index = -1
            # About half a millisecond of polling; none where the streams share processors.
            state.ready = 0
            # The caller's own processor first: it is awake, and the caller sleeps during the run.
            here = sched_getcpu()
            host_cpus = sorted(os.sched_getaffinity(0), key=lambda host_cpu: (host_cpu != here, host_cpu))
            state.polls = 10000 if n <= len(host_cpus) else 0
            for i in range(n):
                state.streams[i].host_cpu = host_cpus[i] if state.polls else -1
            with nogil:
                machine_commit(machine.m, commit)
                err = run_threads(&state)
            if err < 0:
                raise OSError(-err, f"the host refuses {n} threads")
            streams = []
            for i in range(n):
                if state.streams[i].last > state.streams[i].first:
                    first = min(first, state.streams[i].start_ns)
                    last = max(last, state.streams[i].end_ns - state.streams[i].aside_ns)
                streams.append(state.streams[i].end_ns - state.streams[i].start_ns)
            with nogil:
                for i in range(state.nmms):
                    end_mm(cpu, &state.mms[i], &aside)
            maps = {}
            for i in range(state.nmms):
                if not state.mms[i].ended:
                    continue
                lines = []
                for k in range(state.mms[i].nmaps):
                    v = &state.mms[i].maps[k]
                    if v.f != NULL:
                        lines.append((v.start, v.end, v.flags, v.pgoff * state.page_size, v.f.dev_major, v.f.dev_minor,
                                      v.f.ino, os.fsdecode(<bytes>v.f.name)))
                    else:
                        lines.append((v.start, v.end, v.flags, 0, 0, 0, 0, os.fsdecode(<bytes>v.name)))
                maps[i] = lines
            return (last - first if last else 0), streams, maps
        finally:
            with nogil:
                for i in range(state.nmms if state.mms != NULL else 0):
                    end_mm(cpu, &state.mms[i], &aside)
                    for k in range(state.mms[i].nmaps):
                        if state.mms[i].maps[k].f != NULL:
                            fput(cpu, state.mms[i].maps[k].f)
                    free(state.mms[i].maps)
            if state.files != NULL:
                for i in range(<u32>len(files)):
                    if state.files[i] != NULL:
                        with nogil:
                            fput(cpu, state.files[i])
            with nogil:
                for i in range(n):
                    cpu_disown(machine.m.cpus[i])
            free(state.streams)
            free(state.mms)
            free(state.files)
            free(<void *>state.blobs)
            free(<void *>state.blob_lens)
    finally:
        machine_put(machine)
