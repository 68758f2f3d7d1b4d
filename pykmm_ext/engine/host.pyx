# SPDX-License-Identifier: GPL-2.0-only
"""engine/host (no kernel file): a tape as real system calls and real touches on the running Linux, oracle and baseline.

Stands in for nothing: this *is* the kernel. What differs from the recorded program is where and with what:

- Addresses. A tape's address spaces span 47 bits, the engine has one empty range. Used addresses are compacted in
  order: gaps of more than 64 MiB shrink to 64 MiB, everything closer keeps its distance, and every address stays
  congruent modulo 2 MiB. Results are translated back. Addresses that no mapping can have go to the kernel as they are.
- Placement. The kernel never chooses: a recorded mmap goes where it went (MAP_FIXED_NOREPLACE), one without a
  recorded address gets a slot, top-down from SLOT_TOP, adjacent, in program order (see place()). mremap
  with MREMAP_MAYMOVE moves to its recorded place, or to its slot where it cannot grow in place.
- Files are memfds with the tape's bytes, else zeroes, in the page cache beforehand; never files of this machine.
- brk maps and unmaps the tape's heap at its own place; the process's break is not involved. Without SETBRK it starts
  at DEFAULT_BRK.
- Mappings that were there (MAP): [stack] is a MAP_GROWSDOWN mapping, other [names] are private mappings of a file of
  their own (so that they never merge), [vsyscall] is not mapped.
- fork is a real fork, of a process that has given up this interpreter's private memory; exec is a process with an
  empty range; exit unmaps the range (exit_mmap).
- PIN is vmsplice() into a pipe, which takes its references with get_user_pages_fast() and keeps them (FOLL_GET: fork does
  not copy such a page as it copies a pinned one); a pin for writing writes to the pages first. UNPIN reads the pipe. No
  device writes through it; a PIN has at most 1 MiB; UNPIN is in the address space of its PIN.
- TOUCH for execution reads. MBIND uses node 0. TRUNCATE is ftruncate of
  the memfd, which may grow.
- mlockall and RLIMIT_MEMLOCK are those of the processes that run: without privilege mlock may fail where it did not.
"""
import mmap as _mmap
import os
import time
from collections import namedtuple

import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uintptr_t

from pykmm.errors import TapeError
from pykmm_ext.engine import host_place
from pykmm_ext.engine.host_place import (
    ADDRESSED, DEFAULT_BRK, HUGE, PAGE, RANGED, SLOT_TOP, AddressMap, HostEngineError, Placement, place, with_queries,
)

__all__ = ["DEFAULT_BRK", "HostEngineError", "HostMap", "HostResult", "SLOT_TOP", "place", "run", "supported"]

cdef extern from "<sys/mman.h>" nogil:
    void *c_mmap "mmap"(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int c_munmap "munmap"(void *addr, size_t length)

cdef extern from "kmm/tape.h" nogil:
    enum kmm_tape_opcode:
        KMM_OP_MMAP, KMM_OP_MUNMAP, KMM_OP_MPROTECT, KMM_OP_MREMAP, KMM_OP_MADVISE, KMM_OP_BRK, KMM_OP_MLOCK
        KMM_OP_MUNLOCK, KMM_OP_MSYNC, KMM_OP_MINCORE, KMM_OP_FORK, KMM_OP_EXEC, KMM_OP_EXIT, KMM_OP_MAP, KMM_OP_TOUCH
        KMM_OP_LOAD, KMM_OP_STORE, KMM_OP_PIN, KMM_OP_SETBRK, KMM_OP_MBIND, KMM_OP_UNPIN
        KMM_OP_TRUNCATE, KMM_OP_NOP

_MAX_SEGMENTS = 8192
_FALLOCATE_MAX = 512 << 20
_PIN_MAX = 1 << 20      # /proc/sys/fs/pipe-max-size
_MAP_FIXED = 0x10
_MAP_ANONYMOUS = 0x20
_MAP_GROWSDOWN = 0x100
_MAP_NOREPLACE = 0x100000

_OP = np.dtype([
    ("addr", "<u8"), ("len", "<u8"), ("new_addr", "<u8"), ("new_len", "<u8"), ("offset", "<u8"), ("slot", "<u8"),
    ("data", "<u8"), ("cap", "<u8"), ("dep", "<u4"), ("ndeps", "<u4"), ("addr_ref", "<i4"), ("new_ref", "<i4"),
    ("mm2", "<i4"), ("fd", "<i4"), ("prot", "<i4"), ("flags", "<i4"), ("op", "u1"), ("access", "u1"), ("notify", "u1"),
    ("how", "u1"), ("setup", "<u4")], align=True)
_DEP = np.dtype([("stream", "<u4"), ("count", "<u4")])
_RESULT = np.dtype([
    ("value", "<i8"), ("start", "<i8"), ("duration", "<i8"), ("fault_addr", "<u8"), ("sig", "u1"), ("si_code", "u1"),
    ("done", "u1"), ("moved", "u1"), ("pipe", "<u4")], align=True)
_SEGMENT = np.dtype([
    ("stream", "<u4"), ("mm", "<u4"), ("first", "<u4"), ("last", "<u4"), ("minflt", "<i8"), ("majflt", "<i8"),
    ("state", "<u4"), ("at", "<u4")], align=True)
_STREAM = np.dtype([("progress", "<u4"), ("waiters", "<u4"), ("first", "<u4"), ("pad", "<u4", 13)])
_MM = np.dtype([
    ("live", "<u4"), ("nsegments", "<u4"), ("segment", "<u4"), ("eager", "<u4"), ("start_brk", "<u8"), ("brk", "<u8"),
    ("brk_set", "<u8"), ("brk_lock", "<u4"), ("recorded", "<u4"), ("nmaps", "<u4"), ("map_errno", "<i4"),
    ("maps", "<u8"),
    ("query", "<u8"), ("nquery", "<u8"), ("pid", "<i4"), ("pad", "<u4")], align=True)
_MAPREC = np.dtype([
    ("start", "<u8"), ("end", "<u8"), ("offset", "<u8"), ("resident", "<i8"), ("perms", "S8"), ("fd_index", "<i4"),
    ("mm", "<u4")], align=True)
_QUERY = np.dtype([("addr", "<u8"), ("npages", "<u8"), ("out", "<u8")])

for _dtype, _size in ((_OP, sizeof(kmm_host_op)), (_DEP, sizeof(kmm_host_dep)), (_RESULT, sizeof(kmm_host_result)),
                      (_SEGMENT, sizeof(kmm_host_segment)), (_STREAM, sizeof(kmm_host_stream)),
                      (_MM, sizeof(kmm_host_mm)), (_MAPREC, sizeof(kmm_host_map)), (_QUERY, sizeof(kmm_host_query))):
    if _dtype.itemsize != _size:
        raise ImportError(f"record layout: {_dtype} is {_dtype.itemsize} bytes, the C structure {_size}")

if ((host_place.HOW_SLOT, host_place.HOW_HINT, host_place.HOW_IN_PLACE, host_place.HOW_MOVE, host_place.HOW_TRY_MOVE,
     host_place.HOW_SKIP, host_place.HOW_CLOSES)
        != (KMM_HOW_SLOT, KMM_HOW_HINT, KMM_HOW_IN_PLACE, KMM_HOW_MOVE, KMM_HOW_TRY_MOVE, KMM_HOW_SKIP,
            KMM_HOW_CLOSES)):
    raise ImportError("host_place and include/kmm/host.h disagree")

HostMap = namedtuple("HostMap", "start end perms offset name resident")
HostMap.__doc__ = """One mapping at the end of an address space: /proc/PID/maps in tape addresses.

``offset`` in bytes; ``name`` is the tape's file, "[heap]", "[stack]", another bracketed name, or ""; ``resident``
counts present pages (/proc/PID/pagemap), -1 for mappings above 4 GiB.
"""


class HostResult:
    """What a run on the running kernel gave. Arrays are indexed like ``program.ops``.

    ``result`` (i64): address (tape), 0 or byte count; -1 where the call failed. ``errno`` (i32): 0 = none; a signal is
    EFAULT with ``signal`` (11 or 7), ``si_code`` (SEGV: 1 = MAPERR, 2 = ACCERR) and ``fault_addr``; EFAULT without a
    signal where the address was the result of a call that had failed. ``start_ns``, ``duration_ns``: from the start
    barrier, None with ``timing=False``. ``elapsed_ns``: from the barrier to the end of the last operation, without the
    recording of maps; ``setup_ns``: to the end of the setup operations; ``wall_ns``: of the whole run with its set-up.
    ``maps``: address space -> list of HostMap, recorded at its EXIT or last operation. ``loads``: operation -> bytes
    (LOAD) or page vector (MINCORE). ``pagemap``: (mm, address) -> u64 entries as asked for. ``minor_faults``,
    ``major_faults``: per stream (getrusage), including the few that the engine's own memory takes. ``moved``: MMAP
    took its slot since its hint was taken, or MREMAP could not grow in place. ``brk``: address space -> (start, end).
    ``spans``: per stream, from the start barrier, when the operations of the threads' phase began and ended (nanoseconds,
    without the NOPs that it begins with; 0, 0 where a stream has none).
    """

    __slots__ = ("result", "errno", "signal", "si_code", "fault_addr", "start_ns", "duration_ns", "elapsed_ns",
                 "setup_ns", "maps", "loads", "pagemap", "minor_faults", "major_faults", "moved", "wall_ns", "brk", "spans")

    def __repr__(self):
        return (f"<HostResult: {len(self.result)} operations, {int(np.count_nonzero(self.errno))} failed, "
                f"{self.elapsed_ns / 1e6:.3f} ms>")


def supported() -> bool:
    """Whether this machine can run the host engine: Linux on x86-64."""
    return bool(KMM_HOST_SUPPORTED)


class _Arena:
    """Sections of one shared mapping, laid out before it is made."""

    def __init__(self):
        self.size = (sizeof(kmm_host_head) + 63) & ~63
        self.buffer = None

    def take(self, nbytes, align=64):
        at = (self.size + align - 1) // align * align
        self.size = at + int(nbytes)
        return at

    def make(self):
        self.buffer = _mmap.mmap(-1, (self.size + PAGE - 1) // PAGE * PAGE,
                                 flags=_mmap.MAP_SHARED | _mmap.MAP_ANONYMOUS | getattr(_mmap, "MAP_NORESERVE", 0x4000))

    def view(self, at, dtype, count):
        return np.frombuffer(self.buffer, dtype, count, at)


def _segments(ops, stream_start):
    """(stream, mm, first, last): longest runs of one stream in one address space."""
    found = []
    mm = ops["mm"]
    for s in range(len(stream_start) - 1):
        first, last = int(stream_start[s]), int(stream_start[s + 1])
        if first == last:
            continue
        cuts = (np.nonzero(np.diff(mm[first:last]))[0] + 1 + first).tolist()
        for a, b in zip([first, *cuts], [*cuts, last]):
            found.append((s, int(mm[a]), a, b))
    return found


def _check(program, segments, nmms):
    ops = program.ops
    if len(segments) > _MAX_SEGMENTS:
        raise HostEngineError(f"{len(segments)} stretches of one thread in one address space, "
                              f"{_MAX_SEGMENTS} is the limit")
    if len(ops) and (ops["mm"].min() < 0 or ops["mm"].max() >= nmms):
        raise TapeError("an operation runs in an address space that the program does not have")
    ended = {}
    for s, mm, first, last in segments:
        if (s, mm) in ended:
            raise TapeError(f"operation {first} runs in address space {mm} after its exit (operation {ended[s, mm]})")
        exits = np.nonzero(ops["op"][first:last] == KMM_OP_EXIT)[0]
        if len(exits):
            ended[s, mm] = first + int(exits[0])
            if first + int(exits[0]) != last - 1:
                raise TapeError(f"operation {first + int(exits[0]) + 1} runs in address space {mm} after its exit")
    makers = ops["mm2"][np.isin(ops["op"], (KMM_OP_FORK, KMM_OP_EXEC))]
    if len(np.unique(makers)) != len(makers):
        raise TapeError("two operations make the same address space")
    if len(makers) and (makers.min() < 0 or makers.max() >= nmms):
        raise TapeError("fork or exec makes an address space that the program does not have")


def _files(program, specials, opened):
    """memfds, in the order of the tape's files, then of the special mappings. Appended to opened as they are made."""
    prefill = sum(f.size for f in program.files if f.data is None) + sum(specials) <= _FALLOCATE_MAX
    for i, (size, data) in enumerate([(f.size, f.data) for f in program.files] + [(size, None) for size in specials]):
        fd = os.memfd_create(f"kmm-{i:x}", os.MFD_CLOEXEC)
        opened.append(fd)
        if fd < 3:
            raise HostEngineError("standard streams are closed")
        os.ftruncate(fd, size)
        done = 0
        while data is not None and done < len(data):
            done += os.pwrite(fd, data[done:done + (1 << 24)], done)
        if data is None and prefill and size:
            os.posix_fallocate(fd, 0, size)


def _spans(program):
    """Per stream: the first and the last operation of the threads' phase, without the NOPs that it begins with."""
    found = []
    for s in range(len(program.stream_start) - 1):
        first, last = int(program.stream_start[s]), int(program.stream_start[s + 1])
        work = np.nonzero(program.ops["phase"][first:last] == 1)[0] + first
        begin = np.nonzero(program.ops["op"][work] != KMM_OP_NOP)[0]
        found.append((int(work[begin[0]]), int(work[-1])) if len(begin) else None)
    return found


def _stuck(program, segments, names):
    lines = []
    for seg in segments:
        if seg["state"] != 2:
            at = int(seg["at"])
            line = int(program.ops["source"][at])
            lines.append(f"stream {int(seg['stream'])} at operation {at} ({names(int(program.ops['op'][at]))}"
                         + (f", line {line} of the recording" if line else "") + f") in address space {int(seg['mm'])}")
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


class _Run:
    """A tape on its way through a run: the records of its operations, the sections of the arena, what came out.

    Methods are called in the order in which they stand here. `at_...` are offsets into the arena.
    """

    def __init__(self, program, pagemap):
        self.program = program
        self.ops = program.ops
        self.op = program.ops["op"].astype(np.int64)
        self.nops = len(program.ops)
        self.nmms = int(program.mms)
        self.nfiles = len(program.files)
        self.stream_start = np.asarray(program.stream_start, np.int64)
        self.segments = _segments(self.ops, self.stream_start)
        _check(program, self.segments, self.nmms)
        self.spans = _spans(program)
        self.where = Placement(program)
        self.queries = [(int(mm), int(addr), int(count)) for mm, addr, count in pagemap]
        lo, hi = self.where.intervals
        if self.queries:
            lo, hi = with_queries(lo, hi, self.queries)
        self.mapping = AddressMap(lo, hi)
        self.specials, self.special_names, self.stacks = [], [], []
        self.arena = _Arena()
        self.blob_at = {}       # number of a blob -> its place in the arena
        self.opened = []        # memfds, to be closed
        self._make_records()
        self._make_mappings()
        self._lay_out()
        self._lay_out_data()

    def operations(self, *codes):
        """Their numbers."""
        return np.nonzero(np.isin(self.op, codes))[0].tolist()

    def _make_records(self):
        """What does not depend on where the run takes place."""
        self.records = records = np.zeros(self.nops, _OP)
        for name in ("len", "new_len", "offset", "addr_ref", "mm2", "prot", "flags", "access"):
            records[name] = self.ops[name]
        records["new_ref"] = self.ops["new_addr_ref"]
        records["op"] = self.op
        records["how"] = self.where.how
        records["fd"] = -1
        records["setup"] = self.ops["phase"] == 0
        for span in self.spans:
            if span is not None:
                records["setup"][list(span)] |= 2       # KMM_HOST_STAMP
        users = {}
        for _, mm, _, last in self.segments:
            users.setdefault(mm, []).append(last)
        for i in self.operations(KMM_OP_EXEC):
            if users[int(self.ops["mm"][i])] == [i + 1]:
                records["how"][i] |= KMM_HOW_CLOSES

    def _make_mappings(self):
        """Mappings that were there before the recording: stacks, and special ones as files of their own."""
        records = self.records
        for i in self.operations(KMM_OP_MAP):
            if not self.ops["flags"][i] & 3:
                records["flags"][i] |= 2
            data = int(self.ops["data"][i])
            name = self.program.blobs[data].decode("utf-8", "replace") if data >= 0 else ""
            if name == "[stack]":
                records["flags"][i] |= _MAP_GROWSDOWN
                self.stacks.append(int(self.ops["addr"][i]) + int(self.ops["len"][i]))
            elif (self.ops["file"][i] < 0 and name.startswith("[") and name != "[heap]"
                  and not self.where.how[i] & KMM_HOW_SKIP):
                records["fd"][i] = -2 - len(self.specials)
                self.specials.append((int(self.ops["len"][i]) + PAGE - 1) & -PAGE)
                self.special_names.append(name)
                records["flags"][i] &= ~_MAP_ANONYMOUS
                records["offset"][i] = 0
                continue
            if self.ops["file"][i] < 0:
                records["flags"][i] |= _MAP_ANONYMOUS

    def _lay_out(self):
        arena = self.arena
        nsegments = len(self.segments)
        self.at_tls = arena.take(PAGE)
        self.at_mms = arena.take(self.nmms * _MM.itemsize)
        self.at_streams = arena.take((len(self.stream_start) - 1) * _STREAM.itemsize)
        self.at_segments = arena.take(nsegments * _SEGMENT.itemsize)
        self.at_list = arena.take(nsegments * 4)
        self.at_deps = arena.take(len(self.program.dep_stream) * _DEP.itemsize)
        self.at_fds = arena.take((self.nfiles + len(self.specials)) * 4)
        self.at_results = arena.take(self.nops * _RESULT.itemsize)
        self.at_ops = arena.take(self.nops * _OP.itemsize)
        self.at_queries = arena.take(len(self.queries) * _QUERY.itemsize)
        self.outs = [arena.take(count * 8) for _, _, count in self.queries]

    def _lay_out_data(self):
        """Room for the bytes that operations store, load and get; then what is large and page-aligned."""
        ops, arena = self.ops, self.arena
        for i in self.operations(KMM_OP_STORE):
            data = int(ops["data"][i])
            if data not in self.blob_at:
                self.blob_at[data] = arena.take(len(self.program.blobs[data]), 16)
            self.records["data"][i] = self.blob_at[data]
            self.records["cap"][i] = len(self.program.blobs[data])
        for i in self.operations(KMM_OP_LOAD):
            size = int(ops["len"][i])
            if size > 1 << 30:
                raise HostEngineError(f"operation {i} loads {size} bytes")
            self._give_room(i, size)
        for i in self.operations(KMM_OP_PIN):
            size = int(ops["len"][i])
            if size > _PIN_MAX - PAGE:
                raise HostEngineError(f"operation {i} pins {size} bytes: a pipe takes {_PIN_MAX - PAGE}")
            self.records["cap"][i] = max(PAGE, 1 << (size + PAGE - 1).bit_length())
        for i in self.operations(KMM_OP_UNPIN):
            pin = int(ops["new_addr_ref"][i])
            if pin < 0 or ops["op"][pin] != KMM_OP_PIN or ops["mm"][pin] != ops["mm"][i]:
                raise HostEngineError(f"operation {i} gives up a pin that its own address space has not made")
            if ops["access"][i] == 1 and ops["data"][i] >= 0:
                raise HostEngineError(f"operation {i}: on the host no device writes through a pin")
            self._give_room(i, int(ops["len"][pin]))
        for i in self.operations(KMM_OP_MINCORE):
            self._give_room(i, min((int(ops["len"][i]) + PAGE - 1) // PAGE, 1 << 24))
        self.at_stacks = arena.take((len(self.segments) + self.nmms + 1) * KMM_HOST_STACK, PAGE)
        self.at_scratch = arena.take(self.nmms * KMM_HOST_SCRATCH, PAGE)
        maps_room = (2 * self.nops + 64 * self.nmms + 1024) * (1 + min(self.nmms, 64)) * _MAPREC.itemsize
        self.at_maps = arena.take(min(maps_room, 4 << 30), PAGE)

    def _give_room(self, i, size):
        self.records["data"][i] = self.arena.take(size, 16)
        self.records["cap"][i] = size

    def make(self):
        """The files and the arena."""
        try:
            _files(self.program, self.specials, self.opened)
            self.arena.make()
        except (OSError, OverflowError, ValueError) as error:
            raise HostEngineError(f"memory for the run: {error}") from error

    def settle(self, range_start):
        """The range is known: addresses of this machine, files by their descriptors."""
        ops, records, mapping = self.ops, self.records, self.mapping
        mapping.settle(range_start)
        by_index = np.array(self.opened + [-1], np.int32)
        uses_file = (ops["file"] >= 0) & np.isin(self.op, (KMM_OP_MMAP, KMM_OP_MAP, KMM_OP_TRUNCATE))
        records["fd"][uses_file] = by_index[ops["file"][uses_file]]
        special = records["fd"] < -1
        records["fd"][special] = by_index[self.nfiles - 2 - records["fd"][special]]
        addressed = np.isin(self.op, ADDRESSED) & (ops["addr_ref"] < 0)
        records["addr"] = np.where(addressed, mapping.to_host(ops["addr"]), ops["addr"])
        records["addr"][(ops["addr"] == 0) & np.isin(self.op, (KMM_OP_BRK, KMM_OP_MMAP)) & (ops["addr_ref"] < 0)
                        & ((ops["flags"] & (_MAP_FIXED | _MAP_NOREPLACE)) == 0)] = 0
        renewed = (ops["new_addr_ref"] < 0) & np.isin(self.op, (KMM_OP_MREMAP, KMM_OP_SETBRK))
        records["new_addr"] = np.where(renewed, mapping.to_host(ops["new_addr"]), ops["new_addr"])
        records["slot"] = mapping.to_host(self.where.slot)
        end = ops["addr"] + ops["len"]
        ranged = addressed & np.isin(self.op, RANGED) & (end > ops["addr"])
        ranged &= mapping.inside(ops["addr"]) & mapping.inside(end)
        records["len"][ranged] = (mapping.to_host(end) - records["addr"])[ranged]

    def write(self):
        """The arena, but for its head."""
        program, arena, records = self.program, self.arena, self.records
        deps = arena.view(self.at_deps, _DEP, len(program.dep_stream))
        deps["stream"] = program.dep_stream
        deps["count"] = np.asarray(program.dep_pos, np.int64) + 1
        records["dep"] = program.dep_start[:-1]
        records["ndeps"] = np.diff(np.asarray(program.dep_start, np.int64))
        records["notify"][self.stream_start[np.asarray(program.dep_stream, np.int64)]
                          + np.asarray(program.dep_pos, np.int64)] = 1
        for _, _, _, last in self.segments:
            records["notify"][last - 1] = 1
        arena.view(self.at_streams, _STREAM, len(self.stream_start) - 1)["first"] = self.stream_start[:-1]
        arena.view(self.at_fds, np.int32, len(self.opened))[:] = sorted(self.opened)
        arena.view(self.at_ops, _OP, self.nops)[:] = records
        for data, at in self.blob_at.items():
            arena.buffer[at:at + len(program.blobs[data])] = program.blobs[data]
        self._write_mms()
        self._write_queries()

    def _write_mms(self):
        self.segs = segs = self.arena.view(self.at_segments, _SEGMENT, len(self.segments))
        self.mms = mms = self.arena.view(self.at_mms, _MM, self.nmms)
        for k, (s, mm, first, last) in enumerate(self.segments):
            segs[k] = (s, mm, first, last, 0, 0, 0, first)
            mms["nsegments"][mm] += 1
        mms["live"] = mms["nsegments"]
        mms["segment"][1:] = np.cumsum(mms["nsegments"])[:-1]
        by_mm = np.argsort([mm for _, mm, _, _ in self.segments], kind="stable")
        self.arena.view(self.at_list, np.uint32, len(self.segments))[:] = by_mm
        mms["eager"] = mms["nsegments"] > 0
        mms["eager"][self.ops["mm2"][self.op == KMM_OP_FORK]] = 0
        mms["start_brk"] = mms["brk"] = self.mapping.to_host(np.array([DEFAULT_BRK], np.uint64))[0]

    def _write_queries(self):
        asked = self.arena.view(self.at_queries, _QUERY, len(self.queries))
        order = sorted(range(len(self.queries)), key=lambda k: self.queries[k][0])
        for row, k in enumerate(order):
            mm, addr, count = self.queries[k]
            asked[row] = (int(self.mapping.to_host(np.array([addr], np.uint64))[0]), count, self.outs[k])
            if not self.mms["nquery"][mm]:
                self.mms["query"][mm] = self.at_queries + row * _QUERY.itemsize
            self.mms["nquery"][mm] += 1

    def unfinished(self):
        """Where its streams are, for people."""
        from pykmm.tape import OPCODE_NAMES

        return _stuck(self.program, self.segs, OPCODE_NAMES.__getitem__)

    def collect(self, maps_next, timing, collect_maps):
        """HostResult without the times of the whole run."""
        raw = self.arena.view(self.at_results, _RESULT, self.nops)
        if self.nops and not raw["done"].all():
            raise HostEngineError("the run ended before its operations: " + self.unfinished())
        out = _results(self, raw, timing)
        out.maps = _maps(self, out.brk, maps_next) if collect_maps else {}
        out.spans = [(0, 0) if span is None else
                     (int(raw["start"][span[0]]), int(raw["start"][span[1]] + raw["duration"][span[1]]))
                     for span in self.spans]
        out.pagemap = {(mm, addr): self.arena.view(self.outs[k], np.uint64, count).copy()
                       for k, (mm, addr, count) in enumerate(self.queries)}
        return out


# Context: GIL held. The head of the arena says where everything is; `range_start`: of what the tape's addresses are in.
cdef kmm_host_head *_write_head(run, uintptr_t range_start, bint timing, bint collect_maps, bint compute) except NULL:
    cdef uintptr_t base = np.frombuffer(run.arena.buffer, np.uint8).ctypes.data
    cdef kmm_host_head *head = <kmm_host_head *>base
    head.base, head.size = base, run.arena.size
    head.range_start, head.range_end = range_start, range_start + run.mapping.total
    head.ops, head.deps, head.results, head.segments = run.at_ops, run.at_deps, run.at_results, run.at_segments
    head.streams, head.mms, head.seglist, head.stacks = run.at_streams, run.at_mms, run.at_list, run.at_stacks
    head.scratch, head.fds, head.tls = run.at_scratch, run.at_fds, run.at_tls
    head.nops, head.nsegments, head.nmms = run.nops, len(run.segments), run.nmms
    head.nstreams = len(run.stream_start) - 1
    head.nfds = len(run.opened)
    head.neager = int(run.mms["nsegments"][run.mms["eager"] != 0].sum())
    head.timing, head.compute = timing, compute
    head.phase0_left = int(np.count_nonzero(run.ops["phase"] == 0))
    head.maps_next, head.maps_end = run.at_maps, run.arena.size if collect_maps else run.at_maps
    return head


# Context: GIL held, given up meanwhile. Waits for the processes of the run; its status. *gone: there are none any more.
cdef int _wait(run, long pid, double timeout, int *gone) except? -1:
    cdef int status = 0, slice_ms
    cdef double deadline = time.monotonic() + timeout
    while True:
        slice_ms = int(min(100.0, max(0.0, (deadline - time.monotonic()) * 1000) + 1))
        with nogil:
            gone[0] = kmm_host_wait(pid, slice_ms, &status)
        if gone[0]:
            return status
        PyErr_CheckSignals()
        if time.monotonic() >= deadline:
            raise HostEngineError(f"the tape did not finish on the host kernel within {timeout:g} s: {run.unfinished()}")


def run(program, *, timeout=120.0, timing=True, collect_maps=True, compute=True, pagemap=()):
    """Runs a TapeProgram as real system calls and touches in forked children; returns a HostResult.

    ``timeout`` in seconds for the whole run. ``timing=False`` leaves out two clock reads per operation (about 50 ns).
    ``compute=False`` skips COMPUTE. ``pagemap``: (mm, tape address, pages) triples whose /proc/PID/pagemap entries are
    read when the address space ends. An operation that fails is a result. HostEngineError: the run could not be set up,
    did not finish in time (everything is killed) or a process of it died; TapeError: the program is inconsistent.
    """
    cdef kmm_host_head *head
    cdef uintptr_t range_start
    cdef void *hole = NULL
    cdef long pid = 0
    cdef int status, gone = 0
    cdef size_t total = 0
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, not {timeout!r}")
    if not KMM_HOST_SUPPORTED:
        raise HostEngineError("the host engine needs Linux on x86-64")
    this = _Run(program, pagemap)
    began = time.monotonic_ns()
    try:
        this.make()
        # A hole of the right size; the zygote opens it, here it is given back after the fork.
        total = this.mapping.total + HUGE
        hole = c_mmap(NULL, total, 0, _mmap.MAP_PRIVATE | _mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
        if <uintptr_t>hole == <uintptr_t>-1:
            hole = NULL
            raise HostEngineError(f"no contiguous range of {total >> 20} MiB for the tape's addresses")
        range_start = (<uintptr_t>hole + HUGE - 1) // HUGE * HUGE
        this.settle(range_start)
        this.write()
        head = _write_head(this, range_start, bool(timing), bool(collect_maps), bool(compute))
        pid = kmm_host_start(<void *>head)
        if pid < 0:
            raise HostEngineError(f"fork: {os.strerror(-pid)}")
        c_munmap(hole, total)
        hole = NULL
        status = _wait(this, pid, timeout, &gone)
        if status != 0:
            raise HostEngineError(_death(status, head.failed, head.fail_sig, head.fail_code, head.fail_what,
                                         head.fail_ip, head.fail_addr))
        wall = time.monotonic_ns() - began
        out = this.collect(head.maps_next, timing, collect_maps)
        out.elapsed_ns, out.setup_ns, out.wall_ns = head.t_end, head.t_setup, wall
        return out
    finally:
        if pid > 0 and not gone:
            kmm_host_kill(pid)
        if hole != NULL:
            c_munmap(hole, total)
        for fd in this.opened:
            os.close(fd)


def _death(status, failed, sig, code, what, ip, addr):
    who = "the first process of the run" if failed in (0, 0xffffffff) else f"the process of address space {failed - 1}"
    if what:
        return f"{who} could not be started or could not start a thread: {os.strerror(what)}"
    if sig:
        return f"{who} was killed by signal {sig}"
    if code:
        return f"{who} ended with status {code}" + (f" (fault at {addr:#x}, instruction {ip:#x})" if ip else "")
    return f"{who} ended unexpectedly (wait status {status})"


def _results(run, raw, timing):
    """HostResult: what each operation gave."""
    ops, mapping, segs, mms = run.ops, run.mapping, run.segs, run.mms
    value = raw["value"]
    failed = (value < 0) & (value >= -4095)
    out = HostResult()
    out.errno = np.where(failed, -value, 0).astype(np.int32)
    result = np.where(failed, -1, value)
    address = np.isin(ops["op"], (KMM_OP_MMAP, KMM_OP_MAP, KMM_OP_MREMAP, KMM_OP_BRK)) & ~failed & (result != 0)
    result[address] = mapping.to_tape(result[address].astype(np.uint64)).astype(np.int64)
    out.result = result
    out.signal, out.si_code, out.moved = raw["sig"].copy(), raw["si_code"].copy(), raw["moved"] != 0
    out.fault_addr = np.where(raw["sig"] != 0, mapping.to_tape(raw["fault_addr"]), 0).astype(np.uint64)
    out.start_ns = raw["start"].copy() if timing else None
    out.duration_ns = raw["duration"].copy() if timing else None
    nstreams = len(run.stream_start) - 1
    out.minor_faults = np.zeros(nstreams, np.int64)
    out.major_faults = np.zeros(nstreams, np.int64)
    np.add.at(out.minor_faults, segs["stream"], segs["minflt"])
    np.add.at(out.major_faults, segs["stream"], segs["majflt"])
    out.loads = {}
    for i in np.nonzero(np.isin(ops["op"], (KMM_OP_LOAD, KMM_OP_MINCORE, KMM_OP_UNPIN)) & ~failed)[0].tolist():
        at, size = int(run.records["data"][i]), int(run.records["cap"][i])
        out.loads[i] = bytes(run.arena.buffer[at:at + size])
    brks = zip(mapping.to_tape(mms["start_brk"]).tolist(), mapping.to_tape(mms["brk"]).tolist(), strict=True)
    out.brk = dict(enumerate(brks))
    return out


def _maps(run, brks, maps_next):
    """Address space -> its mappings at its end. `brks`: its heap."""
    mms = run.mms
    lost = np.nonzero(mms["map_errno"])[0]
    if len(lost):
        raise HostEngineError(f"maps of address space {lost[0]}: {os.strerror(int(mms['map_errno'][lost[0]]))}")
    names = [f.name for f in run.program.files] + run.special_names
    found = run.arena.view(run.at_maps, _MAPREC, (maps_next - run.at_maps) // _MAPREC.itemsize)
    starts, ends = run.mapping.to_tape(found["start"]), run.mapping.to_tape(found["end"] - np.uint64(1)) + np.uint64(1)
    maps = {mm: [] for mm in range(len(mms)) if mms["recorded"][mm]}
    for k in range(len(found)):
        mm, start, end = int(found["mm"][k]), int(starts[k]), int(ends[k])
        index = int(found["fd_index"][k])
        name = ""
        if index >= 0:
            name = names[index]
        elif start < brks[mm][1] and end > brks[mm][0]:
            name = "[heap]"
        elif any(start < top <= end for top in run.stacks):
            name = "[stack]"
        perms = found["perms"][k].decode()
        if not name and perms.endswith("s"):
            name = "/dev/zero (deleted)"    # shared anonymous memory has a file of the kernel's own
        offset = 0 if name.startswith("[") and index >= 0 else int(found["offset"][k])
        maps[mm].append(HostMap(start, end, perms, offset, name, int(found["resident"][k])))
    for lines in maps.values():
        lines.sort()
    return maps
