# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (between two steps of a search; every index comes from a program that was checked when it was built)
"""The tape executor of the check engine (no kernel file): a tape on virtual CPUs, from one setup, again and again.

Setup runs once, on Cpu 0 and not under the engine; what it leaves is the snapshot that every execution starts from.
Each stream of the tape is a vCPU; it is in its address space already when it starts. After the last step the final
operations run on Cpu 0, then everything is looked at: expectations, every validate_*() walker, and, when every
address space and file is gone, whether anything is left.

The words by which a stream waits for another one, and what setup produced, lie outside of the machine, at fixed
addresses, and are copied back with it.
"""
from cpython.ref cimport PyObject
from libc.errno cimport ENOMEM
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset, strlen, strstr

import os

from pykmm_ext.arch cimport Arch, arch_get_ops
from pykmm_ext.engine.check cimport (
    CHECK_ASSERTION, CHECK_BROKEN, CHECK_LEAK, CHECK_LOCK_HELD, CHECK_MAX_VCPUS, CHECK_PIN, CHECK_PYTHON_INSIDE,
    CHECK_STALE_TLB, CHECK_UAF, CHECK_WRONG_VALUE, KMM_PLAIN_BUILD, Program, check_fail, check_forget, check_plain,
    check_program, kmm_lock_op,
)
from pykmm_ext.engine.tape_ops cimport (
    KMM_OP_COMPUTE, KMM_OP_LOAD, KMM_OP_NOP, KMM_OP_PIN, KMM_OP_STORE, KMM_OP_UNPIN, TAPE_DATA_DIFFERS, TapeArrays,
    at_least, end_mm, enter_mm, leave_mm, mm_slot, release_pins, run_op, run_state, stream, tape_start,
)
from pykmm_ext.engine.tape_shadow cimport (
    shadow_begin, shadow_end, shadow_final, shadow_free, shadow_init, shadow_reset, shadow_save, shadow_tlb_use,
    tape_shadow,
)
from pykmm_ext.handle cimport machine_bind, raise_exceptions
from pykmm_ext.kernel.atomic cimport (
    kmm_await_32, kmm_emit, kmm_user_load, kmm_user_store, smp_store_release_32, xchg,
)
from pykmm_ext.kernel.lockdep cimport lockdep, lockdep_create, lockdep_destroy, lockdep_report
from pykmm_ext.kernel.lockdep_events cimport kmm_lock_op as watch_lock_op
from pykmm_ext.kernel.lockdep_report cimport graph_dict, violation_kind, violation_message
from pykmm_ext.kernel.lockdep_watch cimport (
    lockdep_watch, lockdep_watch_event, lockdep_watch_exit, lockdep_watch_init, lockdep_watch_lock,
    lockdep_watch_reset,
)
from pykmm_ext.kernel.spinlock cimport spinlock_t
from pykmm_ext.machine.cpu cimport (
    KMM_EV_ALLOC, KMM_EV_COPY, KMM_EV_FREE, KMM_EV_GUP, KMM_EV_ISOLATE, KMM_EV_SYSCALL, KMM_EV_SYSRET, KMM_EV_TLB_USE,
    Cpu, engine_ops, kmm_event, s64, u8, u32, u64,
)
from pykmm_ext.machine.memory cimport (
    machine_count, machine_create_checked, machine_destroy, machine_leaks, machine_quiesce,
)
from pykmm_ext.machine.region cimport (
    KMM_ORDER_REGION, KMM_SHADOW_FREED, KMM_SHADOW_LIVE, KMM_SHADOW_NEVER, KMM_SHADOW_STATE, region_of, region_state,
)
from pykmm_ext.machine.snapshot cimport machine_member_name, machine_object_name, machine_restore, machine_snapshot
from pykmm_ext.mm.filemap cimport fput
from pykmm_ext.mm.mm_types cimport (
    GUP_PIN_COUNTING_BIAS, KMM_ACCESS_WRITE, machine, page, page_to_pfn, vm_area_struct,
)
from pykmm_ext.mm.validate cimport validate_machine, violation
from pykmm_ext.pystrategy cimport PythonStrategy, python_strategy_reset
from pykmm_ext.strategy cimport Strategy, strategy_check_ops

cdef extern from "kmm/atomic.h" nogil:
    unsigned long fetch_add_order "kmm_fetch_add"(Cpu *cpu, unsigned long *p, unsigned long n, int order)
    const int ATOMIC_RELAXED "__ATOMIC_RELAXED"

# One vCPU: the operations [first, last) of its stream that run under the engine.
cdef struct tape_vcpu:
    u32 first, last
    u32 held                # locks
    u32 op                  # the operation under way

cdef struct tape_check:
    machine *m
    run_state *run
    u32 nvcpus
    tape_vcpu vcpus[CHECK_MAX_VCPUS]
    u32 final_first, final_last     # of stream 0
    u8 *awaited             # by operation: a vCPU waits for it
    char **labels           # by operation
    u64 outcome
    u32 exhausted           # executions that ran out of simulated memory
    # What LOADs read: by operation where in `loads`.
    u64 *load_at
    u8 *loads
    u64 nloads
    u32 *stored             # offsets in a page of the words that vCPUs store to
    u32 nstored
    u64 isolated            # physical address of a page table whose pages a collapse has isolated, or 0
    tape_shadow shadow
    lockdep *ld             # over all executions
    lockdep_watch watch
    # As setup left it.
    s64 *results
    u8 *codes
    mm_slot *mms
    stream *streams
    u32 *npinned
    PyObject *python        # the strategy, if it is a PythonStrategy; the TapeCheck holds it


# ---- one execution ----

# Context: no vCPU runs.
cdef int tape_reset(void *priv) noexcept nogil:
    cdef tape_check *t = <tape_check *>priv
    cdef run_state *run = t.run
    cdef u32 i
    if region_of(t.m).exhausted:
        return -ENOMEM
    machine_restore(t.m)
    memcpy(run.results, t.results, run.nops * sizeof(s64))
    memcpy(run.codes, t.codes, run.nops)
    memcpy(run.mms, t.mms, run.nmms * sizeof(mm_slot))
    memcpy(run.streams, t.streams, run.nstreams * sizeof(stream))
    memcpy(run.npinned, t.npinned, run.nops * sizeof(u32))
    memset(t.loads, 0, t.nloads)
    t.isolated = 0
    for i in range(t.nvcpus):
        t.vcpus[i].held = 0
    shadow_reset(&t.shadow)
    lockdep_watch_reset(&t.watch)
    if t.python != NULL:
        with gil:
            python_strategy_reset(t.m)
    return 0


# Context: any; what it returns never changes.
cdef Cpu *tape_cpu(void *priv, u32 id) noexcept nogil:
    return (<tape_check *>priv).m.cpus[id]


# Context: as run_op(); on a vCPU or in finish.
cdef void tape_op(tape_check *t, stream *s, u32 index) noexcept nogil:
    cdef char text[300]
    t.vcpus[s.cpu.id].op = index
    s.loaded = t.loads + t.load_at[index] if t.run.ops[index].op == KMM_OP_LOAD else NULL
    kmm_emit(s.cpu, KMM_EV_SYSCALL, NULL, index)
    shadow_begin(&t.shadow, s.cpu, index)
    run_op(s, index)
    if not shadow_end(&t.shadow, s.cpu, index, s.loaded, text, sizeof(text)):
        check_fail(s.cpu, CHECK_WRONG_VALUE if t.run.ops[index].op == KMM_OP_LOAD else CHECK_STALE_TLB, text)
    kmm_emit(s.cpu, KMM_EV_SYSRET, NULL, index)
    report_lockdep(s.cpu, lockdep_watch_exit(&t.watch, s.cpu, t.labels[index]))
    if t.run.ops[index].op == KMM_OP_PIN:
        check_pinned(t, s.cpu, index)


# Context: a vCPU or finish; the PIN has returned. What it holds is memory that somebody has.
cdef void check_pinned(tape_check *t, Cpu *cpu, u32 index) noexcept nogil:
    cdef run_state *run = t.run
    cdef unsigned long pfn
    cdef u32 i
    for i in range(run.npinned[index]):
        pfn = page_to_pfn(t.m, run.pinned[run.pin_at[index] + i])
        if region_of(t.m).frame_state[pfn] & KMM_SHADOW_STATE != KMM_SHADOW_LIVE:
            fail_op(t, cpu, CHECK_PIN, index, b"has pinned a frame that was freed")


# Context: a vCPU, before the page is freed. Which PIN holds it, or -1.
cdef s64 pin_of(tape_check *t, const page *pg) noexcept nogil:
    cdef run_state *run = t.run
    cdef u32 i, k
    for i in range(run.nops):
        for k in range(run.npinned[i]):
            if run.pinned[run.pin_at[i] + k] == pg:
                return i
    return -1


# Context: a vCPU, a step or finish.
cdef void report_lockdep(Cpu *cpu, const lockdep_report *r) noexcept nogil:
    cdef char text[900]
    if r != NULL:
        violation_message(r, text, sizeof(text))
        check_fail(cpu, violation_kind(r), text)


# Context: vCPU.
cdef void tape_vcpu_main(void *priv, Cpu *cpu, u32 id) noexcept nogil:
    cdef tape_check *t = <tape_check *>priv
    cdef run_state *run = t.run
    cdef stream *s = &run.streams[id]
    cdef stream *other
    cdef u32 i, k
    for i in range(t.vcpus[id].first, t.vcpus[id].last):
        for k in range(run.dep_start[i], run.dep_start[i + 1]):
            other = &run.streams[run.dep_stream[k]]
            if t.awaited[other.first + run.dep_pos[k]]:     # not part of setup
                kmm_await_32(cpu, &other.progress, at_least, run.dep_pos[k] + 1)
        tape_op(t, s, i)
        if t.vcpus[id].held:
            fail_op(t, cpu, CHECK_LOCK_HELD, i, b"returns with a lock held")
        if cpu.irq_disabled:
            fail_op(t, cpu, CHECK_LOCK_HELD, i, b"returns with IRQs off")
        if cpu.rcu_nesting:
            fail_op(t, cpu, CHECK_LOCK_HELD, i, b"returns inside of an RCU read section")
        if t.awaited[i]:
            smp_store_release_32(cpu, &s.progress, i + 1 - s.first)    # pairs with the acquire of kmm_await_32()


# Context: a vCPU, or finish.
cdef void fail_op(tape_check *t, Cpu *cpu, const char *kind, u32 index, const char *what) noexcept nogil:
    cdef char text[400]
    snprintf(text, sizeof(text), b"%s %s", t.labels[index], what)
    check_fail(cpu, kind, text)


# ---- the end of an execution ----

# Context: finish. False: a finding.
cdef bint check_expected(tape_check *t, Cpu *cpu) noexcept nogil:
    cdef run_state *run = t.run
    cdef char what[120]
    cdef u32 i
    cdef s64 got, want
    for i in range(run.nops):
        got = -run.results[i] if -4096 < run.results[i] < 0 else 0
        want = run.ops[i].expect_errno
        if want >= 0 and got != want:
            snprintf(what, sizeof(what), b"returned errno %ld, expected %ld", <long>got, <long>want)
            fail_op(t, cpu, CHECK_ASSERTION, i, what)
            return False
        if run.codes[i] == TAPE_DATA_DIFFERS:
            fail_op(t, cpu, CHECK_WRONG_VALUE, i, b"loaded other bytes than expected")
            return False
    return True


cdef inline u64 mix(u64 h, u64 word) noexcept nogil:
    h = (h ^ word) * <u64>0x9e3779b97f4a7c15
    return h ^ h >> 29


# Context: finish, quiescent. Results, loaded bytes, and the maps of every address space.
cdef u64 hash_outcome(tape_check *t) noexcept nogil:
    cdef run_state *run = t.run
    cdef vm_area_struct *vma
    cdef u64 h = 1, k
    cdef u32 i
    for i in range(run.nops):
        h = mix(mix(h, <u64>run.results[i]), run.codes[i])
    for k in range(t.nloads):
        h = mix(h, t.loads[k])
    for i in range(run.nmms):
        h = mix(h, i)
        if run.mms[i].mm == NULL:
            continue
        vma = run.mms[i].mm.mmap
        while vma != NULL:
            h = mix(mix(mix(mix(h, vma.vm_start), vma.vm_end), vma.vm_flags), vma.vm_pgoff)
            vma = vma.vm_next
    return h


# Context: finish; everything that the tape made is gone. False: a finding.
cdef bint check_leaks(tape_check *t, Cpu *cpu) noexcept nogil:
    cdef machine_leaks left
    cdef unsigned long i, pinned = 0
    cdef char text[300]
    machine_count(t.m, &left)
    if not (left.mms or left.vmas or left.anon_vmas or left.avcs or left.files or left.policies or left.frames):
        return True
    for i in range(t.m.nr_frames):
        if t.m.mem_map[i]._refcount >= GUP_PIN_COUNTING_BIAS:
            pinned += 1
    snprintf(text, sizeof(text), b"left when every address space, file and pin was gone: %lu mm_struct, "
             b"%lu vm_area_struct, %lu anon_vma, %lu anon_vma_chain, %lu file, %lu mempolicy, %lu frames "
             b"(%lu of them pinned)", left.mms, left.vmas, left.anon_vmas, left.avcs, left.files, left.policies,
             left.frames, pinned)
    check_fail(cpu, CHECK_LEAK, text)
    return False


# Context: the engine's finish.
cdef void tape_finish(void *priv) noexcept nogil:
    cdef tape_check *t = <tape_check *>priv
    cdef run_state *run = t.run
    cdef Cpu *cpu = t.m.cpus[0]
    cdef violation found
    cdef const engine_ops *ops
    cdef char text[300]
    cdef u64 aside = 0
    cdef u32 i
    shadow_final(&t.shadow)
    for i in range(t.final_first, t.final_last):
        tape_op(t, &run.streams[0], i)
    if not check_expected(t, cpu):
        return
    for i in range(run.nstreams):
        leave_mm(&run.streams[i])
    machine_quiesce(t.m)
    # Walkers read what nobody writes now: not through the engine.
    ops = cpu.engine
    cpu.engine = NULL
    validate_machine(t.m, &found)
    cpu.engine = ops
    if found.message != NULL:
        snprintf(text, sizeof(text), b"%s: %s", found.message, found.place)
        check_fail(cpu, CHECK_BROKEN, text)
        return
    t.outcome = hash_outcome(t)
    release_pins(run, cpu)
    for i in range(run.nmms):
        end_mm(run, cpu, &run.mms[i], &aside)
    for i in range(run.nfiles):
        if run.files[i] != NULL:
            fput(cpu, run.files[i])
    machine_quiesce(t.m)
    check_leaks(t, cpu)


cdef u64 tape_outcome(void *priv) noexcept nogil:
    return (<tape_check *>priv).outcome


# ---- what the engine asks in between ----

# Context: the engine, before the vCPU's access. Reads the shadow only.
cdef const char *tape_access(void *priv, Cpu *cpu, const void *p, unsigned width, int write) noexcept nogil:
    cdef int state = region_state(region_of((<tape_check *>priv).m), p)
    if state == KMM_SHADOW_FREED:
        return b"it was freed"
    if state == KMM_SHADOW_NEVER:
        return b"nothing was allocated there"
    return NULL


# Context: vCPU. A frame was copied in one go: read again, each in a step of its own, the words that vCPUs may store to.
# They are not there yet for whoever comes to the copy before this Cpu's stores are visible.
cdef void copy_steps(tape_check *t, Cpu *cpu, const u8 *src, u8 *to) noexcept nogil:
    cdef u64 value
    cdef u32 i
    for i in range(t.nstored):
        value = kmm_user_load(cpu, src + t.stored[i], 8)
        (<u64 *>(to + t.stored[i]))[0] = 0
        kmm_user_store(cpu, to + t.stored[i], 8, value)


# What the Cpu is at.
cdef inline const char *place(tape_check *t, Cpu *cpu) noexcept nogil:
    return t.labels[t.vcpus[cpu.id].op] if cpu.id < t.nvcpus else NULL


# Context: as kmm_event(), on the vCPU; makes a step where memory is freed.
cdef void tape_event(void *priv, Cpu *cpu, kmm_event ev, const void *obj, u64 size) noexcept nogil:
    cdef tape_check *t = <tape_check *>priv
    cdef machine *m = t.m
    cdef unsigned long frame
    cdef s64 pin
    cdef char text[300]
    if ev == KMM_EV_TLB_USE:
        if not shadow_tlb_use(&t.shadow, cpu, obj, size, text, sizeof(text)):
            check_fail(cpu, CHECK_STALE_TLB, text)
        return
    if ev == KMM_EV_COPY:
        copy_steps(t, cpu, <const u8 *>obj, <u8 *><size_t>size)
        return
    if ev == KMM_EV_ALLOC:
        if KMM_PLAIN_BUILD and t.python == NULL: # the hooks look at one OS thread
            if <u8 *>obj < <u8 *>m.mem_map or <u8 *>obj >= <u8 *>(m.mem_map + m.nr_frames):
                check_plain(cpu, obj, <unsigned>size, 2)
            else:
                check_plain(cpu, m.mem_base + (page_to_pfn(m, <page *>obj) << m.arch.page_shift), 8, 2)
        return
    if ev == KMM_EV_ISOLATE:
        xchg(cpu, <unsigned long *>&t.isolated, size)
        return
    if ev == KMM_EV_GUP:
        # An atomic reads the newest value, whatever the memory model lets a load see, and this one orders nothing else.
        if fetch_add_order(cpu, <unsigned long *>&t.isolated, 0, ATOMIC_RELAXED) == size:
            snprintf(text, sizeof(text), b"Cpu %u keeps a reference to frame %lu, which a collapse has isolated: what "
                     b"it writes there is lost", cpu.id, page_to_pfn(m, <const page *>obj))
            check_fail(cpu, CHECK_PIN, text)
        return
    if ev != KMM_EV_FREE:
        report_lockdep(cpu, lockdep_watch_event(&t.watch, cpu, ev, obj, size, place(t, cpu)))
        return
    if <u8 *>obj < <u8 *>m.mem_map or <u8 *>obj >= <u8 *>(m.mem_map + m.nr_frames):
        check_forget(cpu, obj, size)
        return
    pin = pin_of(t, <page *>obj)
    if pin >= 0:
        snprintf(text, sizeof(text), b"Cpu %u frees frame %lu, which %s holds", cpu.id,
                 page_to_pfn(m, <const page *>obj), t.labels[pin])
        check_fail(cpu, CHECK_PIN, text)
    frame = <unsigned long>1 << m.arch.page_shift << ((<page *>obj).order & ~KMM_ORDER_REGION)
    check_forget(cpu, m.mem_base + (page_to_pfn(m, <page *>obj) << m.arch.page_shift), frame)
    check_forget(cpu, &(<page *>obj).ptl, sizeof(spinlock_t))


# Context: the engine, as a vCPU took (1) or released (2) the lock; `held` is the vCPU's own.
cdef void tape_lock(void *priv, Cpu *cpu, void *lock, kmm_lock_op op, int what) noexcept nogil:
    cdef tape_check *t = <tape_check *>priv
    if cpu.id >= t.nvcpus:
        return
    if what == 1:
        t.vcpus[cpu.id].held += 1
    elif what == 2:
        t.vcpus[cpu.id].held -= 1
    report_lockdep(cpu, lockdep_watch_lock(&t.watch, cpu, lock, <watch_lock_op>op, what, place(t, cpu)))


# Context: any, between steps or after an execution; reads only.
cdef void tape_describe(void *priv, const void *p, char *buf, size_t n) noexcept nogil:
    cdef tape_check *t = <tape_check *>priv
    cdef size_t at = <size_t>p - <size_t>t.run.streams
    cdef u64 offset = 0
    cdef char name[160]
    cdef char *freed
    cdef const char *member
    if <size_t>p >= <size_t>t.run.streams and at < t.run.nstreams * sizeof(stream):
        snprintf(buf, n, b"progress of Cpu %lu", <unsigned long>(at // sizeof(stream)))
        return
    if p == <void *>&t.isolated:
        snprintf(buf, n, b"pages that a collapse has isolated")
        return
    at = <size_t>p - <size_t>t.run.mms
    if <size_t>p >= <size_t>t.run.mms and at < t.run.nmms * sizeof(mm_slot):
        snprintf(buf, n, b"lock of address space %lu of the tape", <unsigned long>(at // sizeof(mm_slot)))
        return
    snprintf(name, sizeof(name), b"%s", machine_object_name(t.m, p, &offset))
    if name[0] == 63:       # "?"
        return
    # A report asks when the execution is over: what is freed by then is nothing to say of an earlier step.
    freed = strstr(name, b", freed")
    if freed != NULL:
        memmove(freed, freed + 7, strlen(freed + 7) + 1)
    member = machine_member_name(name, offset)
    if member != NULL:
        snprintf(buf, n, b"%s %s", name, member)
    elif offset:
        snprintf(buf, n, b"%s+%#lx", name, <unsigned long>offset)
    else:
        snprintf(buf, n, b"%s", name)


# region.bug: the allocator found a broken object. Context: any; returns in setup and finish only.
cdef void tape_bug(Cpu *cpu, const char *message, const void *obj) noexcept nogil:
    cdef char name[160]
    cdef char text[300]
    cdef u64 offset = 0
    if cpu == NULL or cpu.engine == NULL:
        return
    snprintf(name, sizeof(name), b"%s", machine_object_name(<machine *>cpu.machine, obj, &offset))
    snprintf(text, sizeof(text), b"%s: %s", name, message)
    check_fail(cpu, CHECK_BROKEN if strstr(message, b"while mapped") != NULL else CHECK_UAF, text)


# ---- Python ----

cdef class TapeCheck(Program):
    """A tape as a program of the check engine; made by :func:`pykmm.checking.program.make_program`.

    :param arrays: the program's arrays; nobody else may use them
    :param arch: an Arch
    :param strategy: a Strategy
    :param cpus: simulated CPUs, at least as many as streams; at most 16 have operations
    :param memory: bytes of simulated memory; each CPU has its share of the frames
    :param labels: what reports call each operation, bytes
    :param quirks: bits of enum kmm_quirk
    :param fault_around: bytes mapped around a read fault of a file

    ValueError: too many streams, or operations that do not exist here. MemoryError: setup does not fit.
    """
    cdef TapeArrays arrays
    cdef Arch arch
    cdef Strategy strategy
    cdef tape_check *t
    cdef list labels

    def __cinit__(self, TapeArrays arrays not None, Arch arch not None, Strategy strategy not None, *, unsigned cpus,
                  u64 memory, list labels not None, u64 quirks=0,
                  u64 fault_around=0):
        cdef tape_check *t
        cdef run_state *run = &arrays.state
        cdef u32 i, k, target
        cdef int err = 0
        if run.nstreams > CHECK_MAX_VCPUS:
            raise ValueError(f"the tape has {run.nstreams} threads; the check engine has room for {CHECK_MAX_VCPUS}")
        if cpus < run.nstreams:
            raise ValueError(f"the tape needs {run.nstreams} CPUs, not {cpus}")
        if len(labels) != <Py_ssize_t>run.nops or run.m != NULL:
            raise ValueError("the arrays of the program do not belong together")
        self.arrays = arrays
        self.arch = arch
        self.strategy = strategy
        self.labels = labels
        self.t = t = <tape_check *>calloc(1, sizeof(tape_check))
        if t == NULL:
            raise MemoryError()
        t.run = run
        t.nvcpus = run.nstreams
        run.no_maps = True
        t.m = machine_create_checked(cpus, memory, arch_get_ops(arch), strategy_check_ops(strategy), strategy.priv, &err)
        if t.m == NULL:
            raise OSError(-err, os.strerror(-err))
        machine_bind(strategy, t.m)
        region_of(t.m).bug = tape_bug
        t.m.quirks = quirks
        t.m.fault_around_pages = max(<u32>1, <u32>(fault_around >> t.m.arch.page_shift))
        t.awaited = <u8 *>calloc(run.nops + 1, 1)
        t.labels = <char **>calloc(run.nops + 1, sizeof(char *))
        t.load_at = <u64 *>calloc(run.nops + 1, sizeof(u64))
        t.results = <s64 *>calloc(run.nops + 1, sizeof(s64))
        t.codes = <u8 *>calloc(run.nops + 1, 1)
        t.mms = <mm_slot *>calloc(run.nmms + 1, sizeof(mm_slot))
        t.streams = <stream *>calloc(run.nstreams, sizeof(stream))
        t.npinned = <u32 *>calloc(run.nops + 1, sizeof(u32))
        if (t.awaited == NULL or t.labels == NULL or t.load_at == NULL or t.results == NULL or t.codes == NULL
                or t.mms == NULL or t.streams == NULL or t.npinned == NULL):
            raise MemoryError()
        for i in range(run.nops):
            t.labels[i] = <char *><bytes>labels[i]
            if run.ops[i].op == KMM_OP_LOAD:
                t.load_at[i] = t.nloads
                t.nloads += run.ops[i].len
            for k in range(run.dep_start[i], run.dep_start[i + 1]):
                target = run.streams[run.dep_stream[k]].first + run.dep_pos[k]
                if run.ops[i].phase == 1 and run.ops[target].phase == 1:
                    t.awaited[target] = 1
        if t.nloads > 1 << 24:
            raise ValueError("the tape loads too many bytes")
        self.find_stored()
        t.loads = <u8 *>calloc(t.nloads + 1, 1)
        if t.loads == NULL:
            raise MemoryError()
        for i in range(run.nstreams):
            t.vcpus[i].first = run.streams[i].first
            while t.vcpus[i].first < run.streams[i].last and run.ops[t.vcpus[i].first].phase == 0:
                t.vcpus[i].first += 1
            t.vcpus[i].last = t.vcpus[i].first
            while t.vcpus[i].last < run.streams[i].last and run.ops[t.vcpus[i].last].phase == 1:
                t.vcpus[i].last += 1
        tape_start(arrays, t.m)
        t.final_first = t.vcpus[0].last
        t.final_last = run.streams[0].last
        t.ld = lockdep_create(cpus)
        if t.ld == NULL or shadow_init(&t.shadow, run, t.labels) != 0:
            raise MemoryError()
        lockdep_watch_init(&t.watch, t.ld, t.m)
        if isinstance(strategy, PythonStrategy):
            t.python = <PyObject *>strategy
            self.prog.python = CHECK_PYTHON_INSIDE
        self.setup()
        raise_exceptions(t.m)
        self.prog.size = sizeof(check_program)
        self.prog.name = b"tape"
        self.prog.priv = t
        self.prog.nr_vcpus = t.nvcpus
        self.prog.reset = tape_reset
        self.prog.cpu = tape_cpu
        self.prog.vcpu = tape_vcpu_main
        self.prog.finish = tape_finish
        self.prog.outcome = tape_outcome
        self.prog.access = tape_access
        self.prog.event = tape_event
        self.prog.lock = tape_lock
        self.prog.describe = tape_describe
        if KMM_PLAIN_BUILD and not self.prog.python: # the hooks look at one OS thread
            self.prog.plain = True
            self.prog.shared = region_of(t.m)
            self.prog.shared_size = region_of(t.m).bytes
            self.prog.frames = t.m.mem_base
            self.prog.frames_size = region_of(t.m).frame_bytes
            self.prog.frame_shift = region_of(t.m).page_shift

    cdef find_stored(self):
        cdef tape_check *t = self.t
        cdef run_state *run = t.run
        cdef u64 size = <u64>1 << t.m.arch.page_shift, at, end
        cdef set words = set()
        cdef u32 i
        for i in range(run.nops):
            if (run.ops[i].phase == 1 and run.ops[i].data >= 0 and run.ops[i].access == KMM_ACCESS_WRITE
                    and (run.ops[i].op == KMM_OP_STORE or run.ops[i].op == KMM_OP_UNPIN)):
                at = run.ops[i].addr & ~<u64>7
                end = min(run.ops[i].addr + run.blob_lens[run.ops[i].data], at + size)
                while at < end:
                    words.add(at & (size - 1))
                    at += 8
        t.stored = <u32 *>calloc(len(words) + 1, sizeof(u32))
        if t.stored == NULL:
            raise MemoryError()
        for word in sorted(words):
            t.stored[t.nstored] = word
            t.nstored += 1

    cdef setup(self):
        cdef tape_check *t = self.t
        cdef run_state *run = t.run
        cdef stream *s
        cdef u32 i, k
        cdef int err
        with nogil:
            s = &run.streams[0]
            for i in range(s.first, t.vcpus[0].first):
                if run.ops[i].op == KMM_OP_LOAD:
                    s.loaded = t.loads + t.load_at[i]
                shadow_begin(&t.shadow, s.cpu, i)
                run_op(s, i)
                shadow_end(&t.shadow, s.cpu, i, NULL, NULL, 0)
                s.progress = i + 1 - s.first
            # Every stream in the address space that it begins in, where that exists: who gets there first is nothing
            # that a tape is about.
            for k in range(run.nstreams):
                s = &run.streams[k]
                for i in range(t.vcpus[k].first, t.vcpus[k].last):
                    if run.ops[i].op != KMM_OP_NOP and run.ops[i].op != KMM_OP_COMPUTE:
                        if run.ops[i].mm != s.mm_index and run.mms[run.ops[i].mm].mm != NULL:
                            enter_mm(s, run.ops[i].mm)
                        break
            memcpy(t.results, run.results, run.nops * sizeof(s64))
            memcpy(t.codes, run.codes, run.nops)
            memcpy(t.mms, run.mms, run.nmms * sizeof(mm_slot))
            memcpy(t.streams, run.streams, run.nstreams * sizeof(stream))
            memcpy(t.npinned, run.npinned, run.nops * sizeof(u32))
            shadow_save(&t.shadow)
            err = -ENOMEM if region_of(t.m).exhausted else machine_snapshot(t.m)
        if err:
            raise MemoryError("the tape's setup does not fit into the simulated memory")

    def __dealloc__(self):
        cdef tape_check *t = self.t
        if t == NULL:
            return
        if t.m != NULL:
            machine_destroy(t.m, NULL)
        lockdep_destroy(t.ld)
        shadow_free(&t.shadow)
        free(t.awaited)
        free(t.labels)
        free(t.load_at)
        free(t.loads)
        free(t.stored)
        free(t.results)
        free(t.codes)
        free(t.mms)
        free(t.streams)
        free(t.npinned)
        free(t)

    @property
    def exhausted(self):
        """Whether the last execution ran out of simulated memory: what it has shown is not what the tape does."""
        return bool(region_of(self.t.m).exhausted)

    def running(self, vcpu):
        """What the vCPU was at when the last execution ended, for people."""
        cdef u32 id = vcpu
        if id >= self.t.nvcpus:
            return "the end of the execution"
        return (<bytes>self.labels[self.t.vcpus[id].op]).decode()

    @property
    def strategy_name(self):
        """What the strategy calls itself."""
        return self.strategy.name

    @property
    def lockdep(self):
        """What lockdep has seen over all executions: graph_dict() of pykmm_ext.kernel.lockdep_report."""
        return graph_dict(self.t.ld)

    def describe(self, size_t address):
        """What reports call an address."""
        cdef char buf[160]
        buf[0] = 0
        tape_describe(self.t, <const void *>address, buf, sizeof(buf))
        return (<bytes>buf).decode("utf-8", "replace")
