# SPDX-License-Identifier: GPL-2.0-only
"""The host engine: tapes written by hand, run as real system calls, against what Linux documents."""
from __future__ import annotations

import errno
import hashlib
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from pykmm.errors import TapeError
from pykmm.tape import OPCODES, Tape
from pykmm_ext.engine import host

pytestmark = pytest.mark.skipif(not host.supported(), reason="the host engine makes system calls of x86-64 Linux")
PAGE = 4096
TOP = host.SLOT_TOP


def go(tape: Tape, **options: object) -> tuple[host.HostResult, dict[int, int]]:
    """Runs a tape; also tape index -> program index."""
    program = tape.program()
    options.setdefault("timeout", 60.0)
    result = host.run(program, **options)  # type: ignore[arg-type]
    return result, {int(op): i for i, op in enumerate(program.order)}


def index(op: object) -> int:
    return op if isinstance(op, int) else op.op  # type: ignore[attr-defined]


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def children() -> list[str]:
    tasks = pathlib.Path("/proc/self/task")
    return [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process, descriptor or mapping stays behind, whatever happens to the run."""
    Tape().program()
    fds, procs = descriptors(), children()
    yield
    assert descriptors() == fds
    assert children() == procs
    assert "kmm-" not in pathlib.Path("/proc/self/maps").read_text()


def test_symbolic_mappings_take_adjacent_slots_from_the_top() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x4000)
    b = tape.setup.mmap(0x1000, "r")
    tape.setup.touch(a, 0x2000)
    result, at = go(tape)
    assert result.result[at[a.op]] == TOP - 0x4000
    assert result.result[at[b.op]] == TOP - 0x5000
    assert result.maps == {0: [host.HostMap(TOP - 0x5000, TOP - 0x4000, "r--p", 0, "", 0),
                               host.HostMap(TOP - 0x4000, TOP, "rw-p", 0, "", 2)]}
    assert not result.errno.any() and result.elapsed_ns > 0 and result.setup_ns <= result.elapsed_ns


def test_adjacent_mappings_merge_as_linux_merges_them() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x1000)
    b = tape.setup.mmap(0x2000)
    tape.setup.munmap(b + 0x1000, 0x1000)
    tape.setup.mprotect(a, 0x1000, 0)
    tape.setup.mprotect(a, 0x1000, "rw")
    result, _ = go(tape)
    assert [line[:3] for line in result.maps[0]] == [(TOP - 0x3000, TOP - 0x2000, "rw-p"), (TOP - 0x1000, TOP, "rw-p")]


M = 0x10_0000_0000
ERRORS = [
    ("munmap", (M, 0), errno.EINVAL),
    ("munmap", (M + 1, PAGE), errno.EINVAL),
    ("munmap", (M, 1 << 50), errno.EINVAL),
    ("munmap", (M - (1 << 30), PAGE), 0),
    ("munmap", (1 << 60, PAGE), errno.EINVAL),
    ("mprotect", (M + 1, PAGE, 1), errno.EINVAL),
    ("mprotect", (M, 0, 1), 0),
    ("mprotect", (M - PAGE, PAGE, 1), errno.ENOMEM),
    ("mprotect", (M, 1 << 40, 1), errno.ENOMEM),
    ("mprotect", (M, (1 << 64) - PAGE, 1), errno.ENOMEM),
    ("mprotect", (1 << 60, PAGE, 1), errno.ENOMEM),
    ("madvise", (M, PAGE, 4711), errno.EINVAL),
    ("madvise", (M, 1 << 40, "DONTNEED"), errno.ENOMEM),
    ("madvise", (M, PAGE, "DONTNEED"), 0),
    ("mremap", (M, 0, PAGE), errno.EINVAL),
    ("mremap", (M + 1, PAGE, PAGE), errno.EINVAL),
    ("mremap", (M - (1 << 30), PAGE, 2 * PAGE), errno.EFAULT),
    ("msync", (M, PAGE, 5), errno.EINVAL),
    ("msync", (M, 1 << 40, 1), errno.ENOMEM),
    ("mincore", (M + 1, PAGE), errno.EINVAL),
    ("mincore", (M - PAGE, PAGE), errno.ENOMEM),
    ("mincore", (M, PAGE), 0),
    ("mmap", (0,), errno.EINVAL),
    ("mmap", (1 << 62,), errno.ENOMEM),
    ("mmap", ((1 << 64) - 1,), errno.ENOMEM),
    ("touch", (M, 0, "read"), 0),
    ("touch", (M + 4 * PAGE, 0, "read"), errno.EFAULT),
    ("touch", (0, 0, "read"), errno.EFAULT),
    ("touch", (1 << 62, 0, "write"), errno.EFAULT),
    ("load", (M + 3 * PAGE, 2 * PAGE), errno.EFAULT),
    ("store", (M + 4 * PAGE - 1, b"ab"), errno.EFAULT),
    ("mlock", (M - PAGE, PAGE), errno.ENOMEM),
]


@pytest.mark.parametrize(("call", "arguments", "expected"), ERRORS)
def test_errno_is_what_linux_gives(call: str, arguments: tuple[int, ...], expected: int) -> None:
    tape = Tape()
    tape.setup.mmap(4 * PAGE, fixed=M)
    op = getattr(tape.setup, call)(*arguments)
    tape.final.load(M + 4 * PAGE - 1, 1)
    result, at = go(tape)
    i = at[index(op)]
    assert errno.errorcode.get(int(result.errno[i]), 0) == errno.errorcode.get(expected, 0)
    if expected:
        assert result.result[i] == -1


def test_huge_ranges_reach_every_mapping_above_and_nothing_of_the_engine() -> None:
    tape = Tape()
    tape.setup.mmap(PAGE, fixed=M)
    tape.setup.mmap(PAGE, fixed=M << 4)
    tape.setup.store(M, b"1")
    tape.setup.store(M << 4, b"2")
    tape.setup.madvise(M, 1 << 46, "DONTNEED")
    one, two = tape.setup.load(M, 1), tape.setup.load(M << 4, 1)
    tape.setup.munmap(M, 1 << 46)
    result, at = go(tape)
    assert (result.loads[at[one]], result.loads[at[two]]) == (b"\0", b"\0")
    assert result.maps[0] == []


def test_a_range_beyond_the_last_mapping_spares_the_engine() -> None:
    tape = Tape()
    a = tape.setup.mmap(2 * PAGE)
    tape.setup.store(a, b"1")
    zap = tape.setup.madvise(a, 1 << 50, "DONTNEED")
    load = tape.setup.load(a, 1)
    result, at = go(tape)
    assert result.errno[at[zap]] == errno.ENOMEM
    assert result.loads[at[load]] == b"\0"


def test_addresses_keep_order_distance_and_alignment() -> None:
    tape = Tape()
    low, high = 0x5555_5555_4000, 0x7fff_f000_0000
    for addr in (low, low + 0x3000, high):
        tape.setup.mmap(0x1000, fixed=addr)
    tape.setup.mprotect(low, 0x1000, "r")
    tape.setup.mremap(high, 0x1000, 0x1000, "MAYMOVE|FIXED", low + 0x1000)
    result, _ = go(tape)
    assert [(m.start, m.end, m.perms) for m in result.maps[0]] == [
        (low, low + 0x1000, "r--p"), (low + 0x1000, low + 0x2000, "rw-p"), (low + 0x3000, low + 0x4000, "rw-p")]


def test_faults_tell_the_signal_and_why() -> None:
    tape = Tape()
    tape.file("short", data=b"x")
    a = tape.setup.mmap(0x1000, "r")
    f = tape.setup.mmap(0x2000, "rw", file="short")
    access = [tape.setup.touch(a, access="write"), tape.setup.touch(a - 0x200000), tape.setup.touch(f + 0x1000)]
    result, at = go(tape)
    i = [at[index(op)] for op in access]
    assert result.signal[i].tolist() == [signal.SIGSEGV, signal.SIGSEGV, signal.SIGBUS]
    assert result.si_code[i].tolist() == [2, 1, 2]          # ACCERR, MAPERR, BUS_ADRERR
    assert result.fault_addr[i].tolist() == [TOP - 0x1000, TOP - 0x201000, TOP - 0x2000]
    assert result.errno[i].tolist() == [errno.EFAULT] * 3


def test_a_write_touch_keeps_the_contents() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x1000)
    tape.setup.store(a, b"Q")
    tape.setup.touch(a, 0x1000)
    load = tape.setup.load(a, 1)
    result, at = go(tape)
    assert result.loads[at[load]] == b"Q"


def test_fork_copies_and_writes_stay_private() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x2000)
    shared = tape.setup.mmap(0x1000, shared=True)
    tape.setup.store(a, b"parent")
    child = tape.setup.fork()
    child.store(a, b"CHILD!")
    child.store(shared, b"seen")
    before = child.load(a, 6)
    child.munmap(a + 0x1000, 0x1000)
    grandchild = child.fork()
    inherited = grandchild.load(a, 6)
    grandchild.exit()
    child.exit()
    mine, ours = tape.final.load(a, 6), tape.final.load(shared, 4)
    result, at = go(tape)
    assert not result.errno.any()
    loaded = [result.loads[at[op]] for op in (before, inherited, mine, ours)]
    assert loaded == [b"CHILD!", b"CHILD!", b"parent", b"seen"]
    ranges = {mm: [(m.start, m.end) for m in lines] for mm, lines in result.maps.items()}
    assert ranges[0] == [(TOP - 0x3000, TOP - 0x2000), (TOP - 0x2000, TOP)]
    assert ranges[1] == ranges[2] == [(TOP - 0x3000, TOP - 0x2000), (TOP - 0x2000, TOP - 0x1000)]


def test_exec_goes_on_in_an_empty_address_space() -> None:
    tape = Tape()
    stream = tape.thread()
    stream.mmap(0x3000, fixed=M)
    for _ in range(5):
        new = tape.new_mm()
        tape.append("EXEC", thread=stream.thread_index, mm=stream.mm, mm2=new, phase=1)
        stream.mm = new
        stream.touch(M, expect_errno="EFAULT")
        stream.mmap(0x1000 * (new + 1), "r", fixed=M)
    result, _ = go(tape)
    assert np.count_nonzero(result.errno) == 5
    assert [[(m.start, m.end, m.perms) for m in result.maps[mm]] for mm in range(6)] == [
        [(M, M + 0x3000, "rw-p")], *([(M, M + 0x1000 * (mm + 1), "r--p")] for mm in range(1, 6))]


def test_threads_wait_for_what_they_depend_on() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x1000)
    streams = [tape.thread() for _ in range(4)]
    last = None
    for i in range(400):
        stream = streams[i % 4]
        op = stream.store(a + i % 64, bytes([i & 255]))
        check = stream.load(a + i % 64, 1, expect=bytes([i & 255]))
        if last is not None:
            tape.edges.append((last, op))
        last = check
    result, at = go(tape)
    assert not result.errno.any()
    ops = tape.ops
    for op in np.nonzero(ops["op"] == OPCODES["LOAD"])[0].tolist():
        assert result.loads[at[op]] == tape.blobs[ops["data"][op]]


def test_waits_reach_across_processes() -> None:
    tape = Tape()
    shared = tape.setup.mmap(0x1000, shared=True)
    child = tape.setup.fork()
    parent = tape.thread()
    last = None
    for i in range(50):
        stream = (parent, child)[i % 2]
        op = stream.load(shared, 1)
        if last is not None:
            tape.edges.append((last, op))
        last = stream.store(shared, bytes([i + 1]))
    result, at = go(tape)
    loads = [result.loads[at[op]] for op in np.nonzero(tape.ops["op"] == OPCODES["LOAD"])[0].tolist()]
    assert loads == [bytes([i]) for i in range(50)]


def test_brk_has_its_own_heap() -> None:
    tape = Tape()
    start = 0x5555_6000_0000
    tape.append("SETBRK", addr=start, new_addr=start + 0x800, phase=0, thread=tape.setup.thread_index)
    ask = tape.setup.brk()
    low = tape.setup.brk(start - PAGE)
    grow = tape.setup.brk(ask + 0x2000)
    tape.setup.touch(ask, 0x2000)
    shrink = tape.setup.brk(start + 0x1000)
    tape.setup.mmap(PAGE, "r", fixed=start + 0x2000)
    blocked = tape.setup.brk(start + 0x3000)
    child = tape.setup.fork()
    further = child.brk(start + 0x1800)
    result, at = go(tape)
    calls = [ask, low, grow, shrink, blocked, further]
    assert [int(result.result[at[op.op]]) - start for op in calls] == [0x800, 0x800, 0x2800, 0x1000, 0x1000, 0x1800]
    assert [(m.start - start, m.end - start, m.name) for m in result.maps[0]] == [(0x2000, 0x3000, "")]
    assert any(m.name == "[heap]" and m.end - start == 0x2000 for m in result.maps[1])


def test_files_hold_the_tapes_bytes() -> None:
    tape = Tape()
    tape.file("data", data=b"a" * PAGE + b"b" * PAGE)
    a = tape.setup.mmap(2 * PAGE, "rw", file="data")
    b = tape.setup.mmap(PAGE, "rw", file="data", offset=PAGE, shared=True)
    tape.setup.store(a, b"private")
    tape.setup.store(b, b"SHARED")
    loads = [tape.setup.load(a, 8), tape.setup.load(a + PAGE, 8), tape.setup.load(b, 8)]
    result, at = go(tape)
    assert [result.loads[at[op]] for op in loads] == [b"privatea", b"SHAREDbb", b"SHAREDbb"]
    assert [(m.name, m.perms, m.offset) for m in result.maps[0]] == [("data", "rw-s", PAGE), ("data", "rw-p", 0)]


def start_map(tape: Tape, addr: int, length: int, prot: int, name: str) -> None:
    tape.append("MAP", addr=addr, len=length, prot=prot, flags=0x22, data=tape.blob(name.encode()), phase=0,
                thread=tape.setup.thread_index)


def test_start_maps_keep_their_names_and_never_merge() -> None:
    tape = Tape()
    start_map(tape, 0x7fff_0000_0000, 0x4000, 1, "[vvar]")
    start_map(tape, 0x7fff_0000_4000, 0x2000, 1, "[vvar_vclock]")
    start_map(tape, 0x7fff_0000_6000, 0x2000, 5, "[vdso]")
    start_map(tape, 0x7fff_1000_0000, 0x21000, 3, "[stack]")
    start_map(tape, 0xffff_ffff_ff60_0000, 0x1000, 4, "[vsyscall]")
    tape.setup.touch(0x7fff_1000_0000 - 0x2000)
    result, _ = go(tape)
    assert not result.errno.any()
    assert [(m.start, m.end, m.perms, m.name) for m in result.maps[0]] == [
        (0x7fff_0000_0000, 0x7fff_0000_4000, "r--p", "[vvar]"),
        (0x7fff_0000_4000, 0x7fff_0000_6000, "r--p", "[vvar_vclock]"),
        (0x7fff_0000_6000, 0x7fff_0000_8000, "r-xp", "[vdso]"),
        (0x7fff_0fff_e000, 0x7fff_1002_1000, "rw-p", "[stack]")]


def test_mremap_moves_to_its_slot_only_when_it_must() -> None:
    tape = Tape()
    tape.setup.mmap(PAGE, "r")
    a = tape.setup.mmap(0x2000)
    tape.setup.store(a, b"moved")
    shrunk = tape.setup.mremap(a, 0x2000, 0x1000, "MAYMOVE")
    grown = tape.setup.mremap(shrunk, 0x1000, 0x2000, "MAYMOVE")
    away = tape.setup.mremap(grown, 0x2000, 0x8000, "MAYMOVE")
    load = tape.setup.load(away, 5)
    result, at = go(tape)
    assert not result.errno.any()
    moved = [bool(result.moved[at[op.op]]) for op in (shrunk, grown, away)]
    assert moved == [False, False, True]
    assert result.loads[at[load]] == b"moved"
    assert result.result[at[away.op]] != result.result[at[a.op]] == result.result[at[grown.op]]


def test_hints_are_taken_when_free() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x1000, addr=M)
    b = tape.setup.mmap(0x1000, addr=M)
    result, at = go(tape)
    assert result.result[at[a.op]] == M
    assert result.result[at[b.op]] == TOP - 0x2000      # the slot kept for it
    assert result.moved[at[b.op]] and not result.moved[at[a.op]]


def test_results_that_failed_are_no_addresses() -> None:
    tape = Tape()
    a = tape.setup.mmap(0)
    use = tape.setup.touch(a)
    result, at = go(tape)
    assert result.errno[at[use]] == errno.EFAULT and not result.signal[at[use]]


def test_residency_and_pagemap() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x8000)
    tape.setup.touch(a + 0x1000)
    tape.setup.touch(a + 0x3000, 0x2000, "read")
    vector = tape.setup.mincore(a, 0x8000)
    result, at = go(tape, pagemap=[(0, TOP - 0x8000, 8), (0, TOP - (1 << 40), 2)])
    present = (result.pagemap[0, TOP - 0x8000] >> np.uint64(63)).tolist()
    assert present == [0, 1, 0, 1, 1, 0, 0, 0]
    assert result.pagemap[0, TOP - (1 << 40)].tolist() == [0, 0]
    assert list(result.loads[at[vector]]) == [0, 1, 0, 1, 1, 0, 0, 0]
    assert result.maps[0][0].resident == 3
    assert result.minor_faults[0] >= 3


def test_placed_programs_run_at_the_same_addresses() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x4000)
    x = tape.thread()
    b = x.mmap(0x2000, "r")
    x.munmap(b + 0x1000, 0x1000)
    x.mprotect(a + 0x1000, 0x1000, "r")
    tape.final.mremap(a, 0x1000, 0x5000, "MAYMOVE")
    program = tape.program()
    placed = host.place(program)
    assert (placed.ops["addr_ref"] == -1).all()
    assert program.ops["addr_ref"].max() >= 0           # the original is left alone
    first, second = host.run(program), host.run(placed)
    assert first.maps == second.maps
    assert first.result.tolist() == second.result.tolist()


def test_timing_is_optional_and_compute_takes_its_time() -> None:
    tape = Tape()
    op = tape.setup.compute(3_000_000)
    result, at = go(tape)
    assert result.duration_ns is not None and result.duration_ns[at[op]] >= 3_000_000
    assert result.elapsed_ns >= 3_000_000
    quick, _ = go(tape, timing=False, compute=False)
    assert quick.duration_ns is None and quick.start_ns is None and quick.elapsed_ns > 0


def test_thousands_of_operations() -> None:
    tape = Tape()
    streams = [tape.thread() for _ in range(3)]
    for i in range(6000):
        stream, addr = streams[i % 3], M + (i % 3 << 30) + (i // 3 % 512) * 2 * PAGE
        stream.mmap(PAGE, fixed=addr)
        stream.touch(addr)
        stream.mprotect(addr, PAGE, "r")
    result, _ = go(tape)
    assert not result.errno.any()
    assert len(result.maps[0]) == 1536
    assert {m.perms for m in result.maps[0]} == {"r--p"} and {m.resident for m in result.maps[0]} == {1}


def test_an_empty_tape() -> None:
    result, _ = go(Tape())
    assert len(result.result) == 0 and result.maps == {}


def test_the_callers_memory_is_not_changed() -> None:
    kept = bytearray(os.urandom(1 << 20))
    before = hashlib.sha256(kept).digest()
    private = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private[:4] = b"mine"
    tape = Tape()
    tape.setup.munmap(PAGE, (1 << 47) - 2 * PAGE)
    a = tape.setup.mmap(0x100000)
    tape.setup.store(a, b"x" * 0x100000)
    tape.setup.mlockall("CURRENT")
    go(tape)
    assert hashlib.sha256(kept).digest() == before and private[:4] == b"mine"


def deadlock() -> Tape:
    tape = Tape()
    a, b = tape.thread(), tape.thread()
    one = a.nop()
    two = b.nop()
    tape.edges.append((one, two))
    return tape


def test_a_run_that_does_not_end_is_killed_and_says_where_it_stood() -> None:
    program = deadlock().program()
    stuck = replace(program, dep_start=np.array([0, 1, 2], np.uint32), dep_stream=np.array([1, 0], np.uint32),
                    dep_pos=np.array([0, 0], np.uint32))
    began = time.monotonic()
    with pytest.raises(host.HostEngineError, match=r"within 0\.3 s: stream 0 at operation 0 \(NOP\)"):
        host.run(stuck, timeout=0.3)
    assert time.monotonic() - began < 20


def below(pid: str) -> list[str]:
    """Children of a process of ours; empty when it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def test_a_killed_process_is_an_error_and_not_a_hang() -> None:
    tape = Tape()
    tape.setup.compute(60_000_000_000)
    failure: list[BaseException] = []

    def run() -> None:
        try:
            host.run(tape.program(), timeout=60)
        except host.HostEngineError as error:
            failure.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    victims: list[str] = []
    while not victims and runner.is_alive():
        victims = [pid for child in children() for pid in below(child)]
    os.kill(int(victims[0]), signal.SIGKILL)
    runner.join()
    assert str(failure[0]) == "the process of address space 0 was killed by signal 9"


def test_runs_from_several_threads_at_once() -> None:
    tape = Tape()
    a = tape.setup.mmap(0x10000)
    tape.setup.touch(a, 0x10000)
    program = tape.program()
    seen: list[list[host.HostMap]] = []
    threads = [threading.Thread(target=lambda: seen.append(host.run(program).maps[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[host.HostMap(TOP - 0x10000, TOP, "rw-p", 0, "", 16)]] * 6


INTERRUPTED = """
import os, signal, sys, threading, time
from pykmm.tape import Tape
from pykmm_ext.engine import host
tape = Tape()
tape.setup.compute(60_000_000_000)
program = tape.program()
signal.signal(signal.SIGINT, signal.default_int_handler)    # a background job starts with it ignored
print("running", flush=True)
try:
    host.run(program)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_caller_leaves_nothing_running(number: int) -> None:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    caller = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, env=environment, text=True)
    assert caller.stdout is not None
    with caller, caller.stdout:
        assert caller.stdout.readline() == "running\n"
        group: list[str] = []
        while not group and caller.poll() is None:
            group = below(str(caller.pid))
        while pathlib.Path(f"/proc/{group[0]}/comm").read_text() != "pykmm-host\n":
            pass
        caller.send_signal(number)
        rest = caller.stdout.read()                     # to the end: whoever holds the pipe has gone
        caller.wait()
    assert rest == ("interrupted\n" if number == signal.SIGINT else "")


def test_inconsistent_programs_are_refused() -> None:
    tape = Tape()
    tape.setup.exit()
    tape.setup.mmap(PAGE)
    with pytest.raises(TapeError, match="after its exit"):
        host.run(tape.program())
    tape = Tape()
    tape.setup.load(M, 1 << 40)
    with pytest.raises(host.HostEngineError, match="loads"):
        host.run(tape.program())
    with pytest.raises(ValueError, match="timeout"):
        host.run(Tape().program(), timeout=0)
    tape = Tape()
    tape.file("absurd", size=1 << 64)
    with pytest.raises(host.HostEngineError, match="memory for the run"):
        host.run(tape.program())
