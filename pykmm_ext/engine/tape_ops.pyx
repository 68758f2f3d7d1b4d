# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (hot: between two faults of a replay; every index comes from a program that was checked when it was built)
"""The operations of a tape (no kernel file), on whichever engine: system calls, user accesses, address spaces.

Addresses of a recorded tape: a mapping that was recorded at an address is asked for at that address (as a hint, or
MREMAP_FIXED for one that moved), since where mmap(NULL) goes depends on what other threads did just before.
"""
from libc.errno cimport EFAULT, EINVAL, ENOMEM, ENOSYS, ESRCH
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

import os

from pykmm_ext.handle cimport raise_exceptions
from pykmm_ext.kernel.atomic cimport kmm_cpu_relax, kmm_emit, kmm_user_load, kmm_user_store
from pykmm_ext.kernel.spinlock cimport spin_lock, spin_lock_init, spin_unlock
from pykmm_ext.kernel.timekeeping cimport now_ns
from pykmm_ext.machine.cpu cimport KMM_EV_COMPUTE
from pykmm_ext.machine.tlb cimport copy_from_user, copy_to_user, switch_mm, user_touch
from pykmm_ext.mm.brk cimport ksys_brk
from pykmm_ext.mm.filemap cimport do_truncate, file_create, fput
from pykmm_ext.mm.fork cimport dup_mm, mm_alloc, mmget, mmput
from pykmm_ext.mm.gup cimport get_user_pages_fast, unpin_user_pages
from pykmm_ext.mm.madvise cimport do_madvise, do_mincore, do_msync
from pykmm_ext.mm.mempolicy cimport do_mbind
from pykmm_ext.mm.mlock cimport do_mlock, do_mlockall, do_munlock, do_munlockall
from pykmm_ext.mm.mm_types cimport (
    FOLL_PIN, FOLL_WRITE, KMM_ACCESS_WRITE, VM_ACCOUNT, VM_DONTEXPAND, VM_EXEC, VM_GROWSDOWN, VM_IO, VM_LOCKED,
    VM_MAYEXEC, VM_MAYREAD, VM_MAYSHARE, VM_MAYWRITE, VM_NORESERVE, VM_READ, VM_SHARED, VM_WRITE, page_to_pfn,
    vm_area_struct,
)
from pykmm_ext.mm.mmap cimport (
    ksys_mmap, mmap_read_lock, mmap_read_unlock, mmap_write_lock, mmap_write_unlock, vm_munmap,
)
from pykmm_ext.mm.mprotect cimport do_mprotect
from pykmm_ext.mm.mremap cimport sys_mremap
from pykmm_ext.mm.vma_exec cimport install_mapping
from pykmm_ext.mm_binding cimport mm_default_brk
from pykmm_ext.vma_binding cimport copy_vma_facts

cdef enum:
    MAP_SHARED = 1
    MAP_FIXED = 0x10
    MAP_ANONYMOUS = 0x20
    MAP_GROWSDOWN = 0x100
    MAP_LOCKED = 0x2000
    MAP_NORESERVE = 0x4000
    MREMAP_MAYMOVE = 1
    MREMAP_FIXED = 2
    MIN_PAGE_SIZE = 4096    # of any arch (kmm/tlb.h): what is counted before the machine is known

# Bytes of one PIN.
cdef u64 MAX_PIN = <u64>1 << 34


cdef int at_least(u64 value, u64 arg) noexcept nogil:
    return value >= arg


# Context: process, no locks, may sleep.
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


# Context: process, no locks, may sleep.
cdef void end_mm(run_state *run, Cpu *cpu, mm_slot *slot, u64 *aside) noexcept nogil:
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
    if run.no_maps:
        mmput(cpu, mm)
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
        if s.loaded != NULL:
            memcpy(s.loaded + at, buffer, part)
        if want != NULL and at < want_len:
            shown = min(part, want_len - at)
            if memcmp(buffer, want + at, shown) != 0:
                same = False
        at += part
    if not same:
        code[0] = TAPE_DATA_DIFFERS
    return 0


# Context: the stream's thread, IRQs on, no locks; faults.
cdef s64 do_touch(stream *s, u64 addr, u64 n, u32 access) noexcept nogil:
    cdef u64 size = s.run.page_size
    cdef u64 last = addr + n - 1 if n else addr
    cdef int r
    if last < addr:
        last = 0xffffffffffffffff
    while addr <= last:
        r = user_touch(s.cpu, addr, access)
        if r < 0:
            return r
        addr = (addr | (size - 1)) + 1
        if addr == 0:
            break
    return 0


# Context: the stream's thread, IRQs on, no locks; sleeps. Every page of the range, or none.
cdef s64 do_pin(stream *s, mm_struct *mm, u64 addr, const kmm_tape_op *op, u32 index) noexcept nogil:
    cdef run_state *run = s.run
    cdef page **pages = run.pinned + run.pin_at[index]
    cdef unsigned int flags = FOLL_PIN | (FOLL_WRITE if op.access == KMM_ACCESS_WRITE else 0)
    cdef u64 n = ((addr & (run.page_size - 1)) + op.len + run.page_size - 1) // run.page_size
    cdef long got
    if op.len == 0:
        return 0
    got = get_user_pages_fast(s.cpu, mm, addr, n, flags, pages)
    if 0 <= got < <long>n:
        unpin_user_pages(s.cpu, pages, got, flags, False)
        got = -EFAULT
    if got < 0:
        return got
    run.npinned[index] = <u32>n
    return 0


# Context: the stream's thread. The device reads `n` bytes of pinned memory, or writes them: it knows frames alone.
cdef bint device_access(stream *s, page **pages, u64 offset, const u8 *data, u64 n, bint write) noexcept nogil:
    cdef u64 size = s.run.page_size, word = 0
    cdef bint same = True
    cdef unsigned step
    cdef u8 *at
    while n:
        at = s.run.m.mem_base + page_to_pfn(s.run.m, pages[offset // size]) * size + (offset & (size - 1))
        step = 8 if n >= 8 and not offset & 7 else 1
        if write:
            memcpy(&word, data, step)
            kmm_user_store(s.cpu, at, step, word)
        else:
            word = kmm_user_load(s.cpu, at, step)
            if memcmp(&word, data, step) != 0:
                same = False
        offset += step
        data += step
        n -= step
    return same


# Context: the stream's thread, IRQs on, no locks.
cdef s64 do_unpin(stream *s, const kmm_tape_op *op, u32 index) noexcept nogil:
    cdef run_state *run = s.run
    cdef s32 pin = op.new_addr_ref
    cdef bint written = pin >= 0 and run.ops[pin].access == KMM_ACCESS_WRITE
    cdef bint write = op.access == KMM_ACCESS_WRITE
    cdef page **pages
    cdef u32 held
    cdef u64 offset = op.addr
    if pin < 0 or run.ops[pin].op != KMM_OP_PIN or (write and not written):
        return -EINVAL
    if run.results[pin] < 0:
        return -EFAULT
    if op.len == 0:
        return 0
    if run.npinned[pin] == 0:
        return -EINVAL
    if op.addr_ref >= 0:
        offset += <u64>run.results[op.addr_ref]
    offset &= run.page_size - 1
    pages = run.pinned + run.pin_at[pin]
    if op.data >= 0 and not device_access(s, pages, offset, run.blobs[op.data], min(run.blob_lens[op.data], op.len),
                                          write):
        run.codes[index] = TAPE_DATA_DIFFERS
    held = run.npinned[pin]
    run.npinned[pin] = 0                # first: the page may go with this reference
    unpin_user_pages(s.cpu, pages, held, FOLL_PIN, written)
    return 0


cdef void release_pins(run_state *run, Cpu *cpu) noexcept nogil:
    cdef u32 i, held
    for i in range(run.nops):
        held = run.npinned[i]
        if held:
            run.npinned[i] = 0
            unpin_user_pages(cpu, run.pinned + run.pin_at[i], held, FOLL_PIN, run.ops[i].access == KMM_ACCESS_WRITE)


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
    if op.op == KMM_OP_UNPIN:           # whatever has become of the address space
        return do_unpin(s, op, index)
    if op.op == KMM_OP_COMPUTE:
        if cpu.engine != NULL:          # virtual time, or none
            kmm_emit(cpu, KMM_EV_COMPUTE, NULL, op.len)
            return 0
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
    if op.op == KMM_OP_PIN:
        return do_pin(s, mm, addr, op, index)
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
                end_mm(run, cpu, &run.mms[op.mm], &s.aside_ns)
            enter_mm(s, op.mm2)
        return r
    if op.op == KMM_OP_EXIT:
        leave_mm(s)
        end_mm(run, cpu, &run.mms[op.mm], &s.aside_ns)
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


# Context: as perform().
cdef void run_op(stream *s, u32 index) noexcept nogil:
    cdef run_state *run = s.run
    s.cpu.fault_code = 0
    run.results[index] = perform(s, &run.ops[index], index)
    if run.results[index] == -EFAULT:
        run.codes[index] = s.cpu.fault_code


# ---- the arrays of a program ----

cdef class TapeArrays:
    """The arrays of a program, which they keep alive; made and checked by pykmm.machine and pykmm.checking.program.

    :param ops: and stream_start, dep_start, dep_stream, dep_pos, roots: as in pykmm.tape_program.TapeProgram
    :param awaited: per operation: somebody waits for it
    :param closes: per operation: an EXEC after which nobody uses the address space it leaves
    :param results: filled, by operation: an address, 0 or -errno
    :param codes: filled, by operation: why an access failed
    :param durations: filled, by operation: nanoseconds; or None
    :param mms: how many address spaces there are
    :param files: (name, contents or None, bytes, (major, minor), inode)
    :param blobs: bytes, each with a zero byte behind its `blob_lens`
    :param recorded: mappings go where they were recorded

    ValueError for arrays that do not belong together, MemoryError.
    """

    def __cinit__(self, const uint8_t[::1] ops not None, const uint32_t[::1] stream_start not None,
                  const uint32_t[::1] dep_start not None, const uint32_t[::1] dep_stream not None,
                  const uint32_t[::1] dep_pos not None, const uint8_t[::1] awaited not None,
                  const uint8_t[::1] closes not None, int64_t[::1] results not None, uint8_t[::1] codes not None,
                  durations, list roots, int mms, list files, list blobs, list blob_lens, bint recorded):
        cdef run_state *state = &self.state
        cdef uint64_t[::1] times
        cdef u32 i, n = stream_start.shape[0] - 1
        cdef u64 count = ops.shape[0] // sizeof(kmm_tape_op), pages = 0
        if (dep_start.shape[0] != <Py_ssize_t>count + 1 or results.shape[0] != <Py_ssize_t>count
                or codes.shape[0] != <Py_ssize_t>count or awaited.shape[0] != <Py_ssize_t>count
                or closes.shape[0] != <Py_ssize_t>count or n < 1 or stream_start[n] != count):
            raise ValueError("the arrays of the program do not belong together")
        self.keep = [ops, stream_start, dep_start, dep_stream, dep_pos, awaited, closes, results, codes, durations, blobs]
        self.file_specs = files
        self.roots = roots
        state.ops = <const kmm_tape_op *>&ops[0] if count else NULL
        state.dep_start = <const u32 *>&dep_start[0]
        state.dep_stream = <const u32 *>&dep_stream[0] if dep_stream.shape[0] else NULL
        state.dep_pos = <const u32 *>&dep_pos[0] if dep_pos.shape[0] else NULL
        state.awaited = &awaited[0] if count else NULL
        state.closes = &closes[0] if count else NULL
        state.results = <s64 *>&results[0] if count else NULL
        state.codes = &codes[0] if count else NULL
        if durations is not None:
            times = durations
            if times.shape[0] != <Py_ssize_t>count:
                raise ValueError("the arrays of the program do not belong together")
            if count:
                state.durations = <u64 *>&times[0]
        state.nops = <u32>count
        state.nstreams = n
        state.nmms = mms
        state.nfiles = <u32>len(files)
        state.recorded = recorded
        state.streams = <stream *>calloc(n, sizeof(stream))
        state.mms = <mm_slot *>calloc(mms + 1, sizeof(mm_slot))
        state.files = <file **>calloc(len(files) + 1, sizeof(file *))
        state.blobs = <const u8 **>calloc(len(blobs) + 1, sizeof(u8 *))
        state.blob_lens = <u64 *>calloc(len(blobs) + 1, sizeof(u64))
        state.pin_at = <u64 *>calloc(count + 1, sizeof(u64))
        state.npinned = <u32 *>calloc(count + 1, sizeof(u32))
        if (state.streams == NULL or state.mms == NULL or state.files == NULL or state.blobs == NULL
                or state.blob_lens == NULL or state.pin_at == NULL or state.npinned == NULL):
            raise MemoryError()
        for i in range(<u32>count):
            state.pin_at[i] = pages
            if state.ops[i].op == KMM_OP_PIN:
                if state.ops[i].len > MAX_PIN:
                    raise ValueError(f"operation {i} pins {state.ops[i].len} bytes; at most {MAX_PIN} go at once")
                pages += state.ops[i].len // MIN_PAGE_SIZE + 2
        state.pinned = <page **>calloc(pages + 1, sizeof(page *))
        if state.pinned == NULL:
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
        for i in range(n):
            state.streams[i].run = state
            state.streams[i].first = stream_start[i]
            state.streams[i].last = stream_start[i + 1]
            state.streams[i].mm_index = -1

    def __dealloc__(self):
        free(self.state.streams)
        free(self.state.mms)
        free(self.state.files)
        free(<void *>self.state.blobs)
        free(self.state.blob_lens)
        free(self.state.pin_at)
        free(self.state.npinned)
        free(self.state.pinned)


cdef int tape_start(TapeArrays arrays, machine *m) except -1:
    cdef run_state *state = &arrays.state
    cdef Cpu *cpu = m.cpus[0]
    cdef const uint8_t[::1] view
    cdef const char *c_name
    cdef u64 length, size
    cdef u32 i, k, major, minor
    cdef unsigned long ino
    cdef mm_struct *mm
    cdef int err = 0
    state.m = m
    state.page_size = <u64>1 << m.arch.page_shift
    for i in range(state.nstreams):
        state.streams[i].cpu = m.cpus[i]
    for i, (name, data, total, (major, minor), ino) in enumerate(arrays.file_specs):
        encoded = os.fsencode(name)
        c_name = encoded
        view = None
        length = 0
        if data:
            view = data
            length = view.shape[0]
        size = total
        with nogil:
            state.files[i] = file_create(cpu, m, c_name, &view[0] if length else NULL, length, size, major, minor, ino)
        if state.files[i] == NULL:
            raise MemoryError(f"no memory for the file {name!r} of {total} bytes")
    for root in arrays.roots:
        k = root
        with nogil:
            mm = mm_alloc(cpu, m, &err)
        if mm == NULL:
            raise_exceptions(m)     # a strategy in Python has said why
            raise MemoryError("no simulated memory for an address space")
        mm_default_brk(mm)
        state.mms[k].mm = mm
    return 0


cdef int tape_end(TapeArrays arrays) except -1:
    cdef run_state *state = &arrays.state
    cdef Cpu *cpu
    cdef u64 aside = 0
    cdef u32 i, k
    if state.m == NULL:
        return 0
    cpu = state.m.cpus[0]
    with nogil:
        release_pins(state, cpu)
        for i in range(state.nmms):
            end_mm(state, cpu, &state.mms[i], &aside)
            for k in range(state.mms[i].nmaps):
                if state.mms[i].maps[k].f != NULL:
                    fput(cpu, state.mms[i].maps[k].f)
            free(state.mms[i].maps)
            state.mms[i].maps = NULL
            state.mms[i].nmaps = 0
        for i in range(state.nfiles):
            if state.files[i] != NULL:
                fput(cpu, state.files[i])
                state.files[i] = NULL
    return 0
