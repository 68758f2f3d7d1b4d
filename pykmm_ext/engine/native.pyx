# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (hot: the loop between two faults of a replay; every index comes from a program that was checked when it was built)
"""The native engine (no kernel file): a tape on real threads, one per simulated CPU, in wall-clock time.

Nothing of Python runs between the start and the end, except where the strategy is written in it: no GIL, no allocation
but the mm's own. Whoever started the run looks around ten times a second: for signals, and for a run that gets nowhere.

Where there is a processor for every stream, each keeps to one (as will-it-scale's tasks do) and polls rather than sleeps
while it waits for another.

Clock: from the moment the first stream leaves the start barrier to the moment the last one has done its last operation.
Before it starts, host memory is put behind as many frames as the tape needs, so that no fault of the
host is timed. The copies of the final maps that an EXIT takes are timed separately and left out.
"""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pystate cimport PyGILState_STATE, PyThreadState
from cpython.ref cimport Py_INCREF, PyObject
from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free

import os
import sys
import traceback
from time import monotonic

from pykmm_ext.binding cimport Machine
from pykmm_ext.engine.tape_ops cimport (
    KMM_OP_NOP, TapeArrays, at_least, end_mm, leave_mm, run_op, run_state, stream, tape_end, tape_start,
)
from pykmm_ext.handle cimport (
    cpu_disown, cpu_own, left_behind, machine_get, machine_poison, machine_put, pykmm_errors, take_exception,
)
from pykmm_ext.kernel.atomic cimport (
    READ_ONCE_32, WRITE_ONCE_32, atomic_dec_32, atomic_inc_32, kmm_await_futex, kmm_cpu_relax, kmm_is_nonzero, kmm_wake_32,
    smp_load_acquire_32, smp_mb, smp_store_release_32,
)
from pykmm_ext.kernel.timekeeping cimport now_ns
from pykmm_ext.machine.cpu cimport PGFAULT, Cpu, u32, u64, unlikely
from pykmm_ext.machine.memory cimport machine_commit
from pykmm_ext.mm.mm_types cimport KMM_FAULT_RETURN
from pykmm_ext.pystrategy cimport PythonStrategy
from pykmm_ext.vma_binding cimport vma_copy

from pykmm_ext.kernel.cpuset import Abandoned

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

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    static inline void futex_wait_for(const unsigned *word, unsigned value, long ns)
    {
        struct timespec t = { ns / 1000000000, ns % 1000000000 };
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &t, NULL, 0);
    }
    """
    void futex_wait_for(const u32 *word, u32 value, long ns) nogil

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long ident, PyObject *exc)
    PyGILState_STATE PyGILState_Ensure() nogil
    void PyGILState_Release(PyGILState_STATE state) nogil
    PyThreadState *PyEval_SaveThread() nogil
    void PyEval_RestoreThread(PyThreadState *state) nogil

cdef enum:
    LOOK_NS = 100000000     # between two looks around
    GIVE_UP = 20            # looks after which a thread that was told to end is left alone

cdef struct native_run

# The thread of one stream.
cdef struct native_thread:
    native_run *run
    stream *s
    pthread_t thread
    int host_cpu            # the processor it keeps to, -1 = where the host puts it

cdef struct native_run:
    u32 go                  # 0 = wait, 1 = run; futex
    u32 stop                # streams end before their next operation; atomic
    u32 done                # atomic: streams that have ended; futex of whoever started the run
    u32 python              # the strategy is a PythonStrategy; const
    u32 ready               # atomic: streams that poll `go`; futex of whoever starts the run
    u32 polls               # how often a stream looks at `go`, or at another's progress, before it sleeps
    u32 nthreads
    native_thread *threads


# Context: process, may sleep. Wait until stream `other` has completed at least `count` operations.
cdef inline void await_progress(Cpu *cpu, stream *other, u32 count, u32 polls) noexcept nogil:
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


# Context: the stream's thread, no locks, may sleep. Wait for what operation `i` waits for.
cdef inline void await_others(native_run *native, run_state *run, Cpu *cpu, u32 i) noexcept nogil:
    cdef u32 k
    for k in range(run.dep_start[i], run.dep_start[i + 1]):
        WRITE_ONCE_32(cpu, &run.streams[cpu.id].waiting, 1)
        await_progress(cpu, &run.streams[run.dep_stream[k]], run.dep_pos[k] + 1, native.polls)
        WRITE_ONCE_32(cpu, &run.streams[cpu.id].waiting, 0)


# Context: the stream's thread, no locks, may sleep. Operations [first, last) of the stream, each after what it waits for.
cdef void run_range(native_run *native, stream *s, u32 first, u32 last) noexcept nogil:
    cdef run_state *run = s.run
    cdef Cpu *cpu = s.cpu
    cdef u64 before = 0
    cdef u32 i
    for i in range(first, last):
        await_others(native, run, cpu, i)
        if unlikely(READ_ONCE_32(cpu, &native.stop)):
            return
        WRITE_ONCE_32(cpu, &s.at, i)
        if run.durations != NULL:
            before = now_ns()
        run_op(s, i)
        if run.durations != NULL:
            run.durations[i] = now_ns() - before
        if unlikely(cpu.py_exception != NULL or cpu.fault_code >= KMM_FAULT_RETURN):
            WRITE_ONCE_32(cpu, &native.stop, 1)
            return
        if run.awaited[i]:
            publish(cpu, s, i + 1 - s.first)


# Context: no stream runs. Which operations of each stream are the threads' phase.
cdef void find_work(run_state *state) noexcept nogil:
    cdef stream *s
    cdef u32 i, k
    for k in range(state.nstreams):
        s = &state.streams[k]
        i = s.first
        while i < s.last and (state.ops[i].phase == 0
                              or (state.ops[i].phase == 1 and state.ops[i].op == KMM_OP_NOP)):
            i += 1
        s.work_first = i
        while i < s.last and state.ops[i].phase == 1:
            i += 1
        s.work_last = i


# Context: a new OS thread without a Python thread state; drives one Cpu.
cdef void *stream_main(void *arg) noexcept nogil:
    cdef native_thread *t = <native_thread *>arg
    cdef native_run *native = t.run
    cdef stream *s = t.s
    cdef Cpu *cpu = s.cpu
    cdef u64 aside
    cdef u32 polls = native.polls
    cdef cpu_set_t host_cpus
    cdef PyGILState_STATE gil_state
    cdef PyThreadState *python = NULL
    if native.python:       # one Python thread state for the whole run, not one for every fault
        gil_state = PyGILState_Ensure()
        python = PyEval_SaveThread()
    if t.host_cpu >= 0:
        # Two streams that start on one processor would share it until the host's scheduler moves one.
        CPU_ZERO(&host_cpus)
        CPU_SET(t.host_cpu, &host_cpus)
        sched_setaffinity(0, sizeof(host_cpus), &host_cpus)
    # Awake when the run begins, where there is a processor for every stream: a wake-up from the futex takes tens of
    # microseconds, and would count as time of the tape.
    atomic_inc_32(cpu, &native.ready)
    kmm_wake_32(cpu, &native.ready, 1)
    while polls and smp_load_acquire_32(cpu, &native.go) == 0:
        kmm_cpu_relax()
        polls -= 1
    kmm_await_futex(cpu, &native.go, kmm_is_nonzero, 0)
    s.start_ns = now_ns()
    run_range(native, s, s.first, s.work_first)
    if s.work_first < s.work_last:
        await_others(native, s.run, cpu, s.work_first)
        aside = s.aside_ns
        s.work_start_ns = now_ns()
        run_range(native, s, s.work_first, s.work_last)
        s.work_end_ns = now_ns() - (s.aside_ns - aside)
    run_range(native, s, s.work_last, s.last)
    s.end_ns = now_ns()
    if unlikely(READ_ONCE_32(cpu, &native.stop)):
        publish(cpu, s, 0xffffffff)
    leave_mm(s)
    if python != NULL:
        PyEval_RestoreThread(python)
        PyGILState_Release(gil_state)
    atomic_inc_32(cpu, &native.done)
    kmm_wake_32(cpu, &native.done, 1)
    return NULL


# Context: GIL not held; the Cpus of all streams are owned. How many threads there are: fewer than streams when the host
# refuses them, and then they end at once.
cdef u32 start_threads(native_run *run) noexcept nogil:
    cdef u32 i, started = 0
    cdef Cpu *cpu = run.threads[0].s.cpu
    for i in range(run.nthreads):
        if pthread_create(&run.threads[i].thread, NULL, stream_main, &run.threads[i]) != 0:
            run.stop = 1
            break
        started += 1
    if not run.stop:
        kmm_await_futex(cpu, &run.ready, at_least, run.nthreads)
    smp_store_release_32(cpu, &run.go, 1)   # pairs with the acquire in stream_main()
    kmm_wake_32(cpu, &run.go, 0x7fffffff)
    return started


# Context: GIL not held. Waits for at most LOOK_NS; True = all `count` streams have ended.
cdef bint wait_done(native_run *run, u32 count) noexcept nogil:
    cdef u32 done = READ_ONCE_32(run.threads[0].s.cpu, &run.done)
    if done < count:
        futex_wait_for(&run.done, done, LOOK_NS)
    return READ_ONCE_32(run.threads[0].s.cpu, &run.done) >= count


# Context: the thread that started the run. What changes as long as it gets somewhere: operations, and faults taken.
cdef u64 progress_of(native_run *run) noexcept nogil:
    cdef u64 sum = 0
    cdef u32 i
    for i in range(run.nthreads):
        sum += READ_ONCE_32(run.threads[i].s.cpu, &run.threads[i].s.at) + run.threads[i].s.cpu.vm_event[<int>PGFAULT]
    return sum + READ_ONCE_32(run.threads[0].s.cpu, &run.done)


# Context: the same. Streams end: at their next operation, at their next try of a fault, or out of Python code.
cdef int stop_streams(native_run *run) except -1:
    cdef u32 i
    cdef Cpu *cpu
    smp_store_release_32(run.threads[0].s.cpu, &run.stop, 1)
    for i in range(run.nthreads):
        cpu = run.threads[i].s.cpu
        WRITE_ONCE_32(cpu, &cpu.killed, 1)
        publish(cpu, run.threads[i].s, 0xffffffff)
        if run.python:
            PyThreadState_SetAsyncExc(<unsigned long>run.threads[i].thread, <PyObject *>Abandoned)
    return 0


# Context: the same. What the streams that hold the others up are at.
cdef str who_is_stuck(native_run *run, str strategy, double seconds, describe):
    cdef list lines = []
    cdef stream *s
    cdef u32 i
    for i in range(run.nthreads):
        s = run.threads[i].s
        if s.end_ns or s.waiting:
            continue
        lines.append(f"strategy {strategy!r}: nothing has happened for {seconds:g} s; CPU {s.cpu.id} is in {describe(s.at)}")
        frame = sys._current_frames().get(<unsigned long>run.threads[i].thread) if run.python else None
        if frame is not None:
            lines.append("".join(traceback.format_stack(frame)).rstrip())
    return "\n".join(lines) or f"strategy {strategy!r}: nothing has happened for {seconds:g} s"


# Context: GIL held, given up meanwhile. Waits for the streams; what has stopped them, or None. *lost: some go on for ever.
cdef object wait_for_streams(native_run *run, u32 count, str strategy, double watchdog, describe, bint *lost):
    cdef object error = None
    cdef u64 last = 0, now
    cdef int stopping = 0
    cdef bint done = False
    cdef double since = monotonic()
    lost[0] = False
    while True:
        with nogil:
            done = wait_done(run, count)
        if done:
            return error
        try:
            PyErr_CheckSignals()
            now = progress_of(run)
            if now != last:
                last = now
                since = monotonic()
            elif error is None and watchdog > 0 and monotonic() - since >= watchdog:
                error = pykmm_errors().PluginError(who_is_stuck(run, strategy, watchdog, describe), strategy)
        except BaseException as raised:
            error = raised
        if error is not None:
            stop_streams(run)
            stopping += 1
            if stopping > GIVE_UP:
                lost[0] = True
                return error


# Context: GIL held, no thread runs yet. Which stream each thread takes, and where.
cdef int place_streams(native_run *native, run_state *state) except -1:
    cdef u32 i, n = state.nstreams
    # The caller's own processor first: it is awake, and the caller sleeps during the run.
    here = sched_getcpu()
    host_cpus = sorted(os.sched_getaffinity(0), key=lambda host_cpu: (host_cpu != here, host_cpu))
    # About half a millisecond of polling; none where the streams share processors.
    native.polls = 10000 if n <= len(host_cpus) else 0
    for i in range(n):
        native.threads[i].run = native
        native.threads[i].s = &state.streams[i]
        native.threads[i].host_cpu = host_cpus[i] if native.polls else -1
    return 0


# Context: all streams have ended. From the first operation's begin to the last one's end.
cdef u64 elapsed_ns(const run_state *state) noexcept:
    cdef u64 first = 0xffffffffffffffff, last = 0
    cdef u32 i
    for i in range(state.nstreams):
        if state.streams[i].last > state.streams[i].first:
            first = min(first, state.streams[i].start_ns)
            last = max(last, state.streams[i].end_ns - state.streams[i].aside_ns)
    return last - first if last else 0


# Context: GIL held, the address spaces have ended. Number -> what run() says of its maps.
cdef dict maps_at_end(run_state *state):
    cdef dict maps = {}
    cdef list lines
    cdef vma_copy *v
    cdef u32 i, k
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
    return maps


# Context: GIL held, all streams have ended. What they have left behind, if they were alone: the address spaces cannot be
# ended without. Poisons the machine.
cdef object left_by_run(Machine machine):
    cdef object error = None
    with cython.critical_section(machine):
        if machine.users == 1:
            error = left_behind(machine.m, "the operations of the tape have ended")
            if error is not None:
                machine_poison(machine.m, error)
    return error


def run(Machine machine not None, const uint8_t[::1] ops not None, const uint32_t[::1] stream_start not None,
        const uint32_t[::1] dep_start not None, const uint32_t[::1] dep_stream not None,
        const uint32_t[::1] dep_pos not None, const uint8_t[::1] awaited not None, const uint8_t[::1] closes not None,
        int64_t[::1] results not None, uint8_t[::1] codes not None, durations, list roots, int mms, list files,
        list blobs, list blob_lens, bint recorded, unsigned long commit, *, double watchdog=0.0, describe=str):
    """Run a program; the arrays are those of pykmm.tape_program.TapeProgram, made and checked by pykmm.machine.

    Fills `results` (an address, 0 or -errno), `codes` (why an access failed) and `durations` (nanoseconds, or None),
    all by operation. Returns the elapsed nanoseconds, those of each stream, and the maps with which each address space
    ended, as tuples (start, end, vm_flags, offset, major, minor, ino, name); and of each stream when the operations of the
    threads' phase began and ended, in nanoseconds of one clock (0, 0 where it has none). ValueError for more streams than CPUs,
    MemoryError, OSError(EAGAIN) when the host refuses threads. Every blob has a zero byte behind its `blob_lens`.

    What a strategy in Python raises is raised here. `watchdog`: seconds without a fault or a completed operation, after
    which the run is stopped (PluginError; describe(index) names the operation); 0 = never. A thread that does not end even
    then takes the machine with it: it counts as closed, and its memory is never given back. PluginError as well where the
    strategy still holds something at the end: the machine can only be closed then.
    """
    cdef TapeArrays arrays = TapeArrays(ops, stream_start, dep_start, dep_stream, dep_pos, awaited, closes, results,
                                        codes, durations, roots, mms, files, blobs, blob_lens, recorded)
    cdef run_state *state = &arrays.state
    cdef native_run *native
    cdef u32 i, started, n = state.nstreams
    cdef bint lost = False, held = False
    cdef Cpu *cpu
    cdef u64 aside = 0
    machine_get(machine)
    try:
        if n > machine.m.nr_cpus:
            raise ValueError(f"the tape needs {n} CPUs, this machine has {machine.m.nr_cpus}: Machine(cpus={n})")
        native = <native_run *>calloc(1, sizeof(native_run))
        if native == NULL:
            raise MemoryError()
        native.threads = <native_thread *>calloc(n, sizeof(native_thread))
        if native.threads == NULL:
            free(native)
            raise MemoryError()
        cpu = machine.m.cpus[0]
        with nogil:
            for i in range(n):
                cpu_own(machine.m.cpus[i])
        try:
            tape_start(arrays, machine.m)
            find_work(state)
            native.nthreads = n
            native.python = isinstance(machine.strategy_object, PythonStrategy)
            place_streams(native, state)
            with nogil:
                machine_commit(machine.m, commit)
                started = start_threads(native)
            error = wait_for_streams(native, started, machine.strategy_object.name, watchdog, describe, &lost)
            if lost:
                machine.m = NULL
                Py_INCREF(machine)      # for the threads that go on
                Py_INCREF(arrays)
                raise type(error)(f"{error}\nits threads do not end: the machine is given up") from error
            with nogil:
                for i in range(started):
                    pthread_join(native.threads[i].thread, NULL)
            for i in range(n):
                machine.m.cpus[i].killed = 0
                raised = take_exception(machine.m.cpus[i])
                if error is None:
                    error = raised
            left = left_by_run(machine)
            if left is not None:
                held = True
                raise error or left
            if error is not None:
                raise error
            if started < n:
                raise OSError(EAGAIN, f"the host refuses {n} threads")
            with nogil:
                for i in range(state.nmms):
                    end_mm(state, cpu, &state.mms[i], &aside)
            error = take_exception(cpu)
            if error is not None:
                raise error
            return elapsed_ns(state), [state.streams[i].end_ns - state.streams[i].start_ns for i in range(n)], \
                maps_at_end(state), [(state.streams[i].work_start_ns, state.streams[i].work_end_ns) for i in range(n)]
        finally:
            if held:
                Py_INCREF(arrays)       # the machine has the address spaces as they are
            elif not lost:
                tape_end(arrays)
            if not lost:
                with nogil:
                    for i in range(n):
                        cpu_disown(machine.m.cpus[i])
                free(native.threads)
                free(native)
    finally:
        machine_put(machine)
