# SPDX-License-Identifier: GPL-2.0-only
"""Which operation of a tape may start when: streams for simulated CPUs and the least set of waits between them.

Waits come from the phases (setup, threads, final), from who made a thread, from results used as addresses, and, for
recordings, from pages that two operations of different threads have in common. A wait that follows from the order of
the stream itself or from an earlier wait is left out (vector clocks).

For recordings, in each address space and in the order of the tape:

- an operation that changes mappings waits for everything before it that used or changed one of its pages, and for
  every change of the page before and after its range, since merging looks at the neighbours;
- an operation that uses pages waits for the last change of them;
- the fault that gives a VMA its anon_vma counts as a change of the whole VMA for whoever comes later, without waiting
  for faults before it: whether two VMAs merge depends on who has an anon_vma. So does a call that merges a VMA
  without one into a neighbour that has it. Other faults stay independent;
- fork, exec, exit and mlockall concern every page.
"""
from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pykmm.errors import TapeError
from pykmm.flags import MADV
from pykmm.tape_layout import Layout, Piece

if TYPE_CHECKING:
    from pykmm.tape import Tape, TapeFile, TapeThread

__all__ = ["TapeProgram", "build"]

PAGE = 4096
_LAST = 1 << 52                     # page numbers are below
#: advice that changes pages, not VMAs
_PAGES_ONLY = frozenset(MADV[f"MADV_{name}"] for name in (
    "DONTNEED", "FREE", "REMOVE", "COLD", "PAGEOUT", "POPULATE_READ", "POPULATE_WRITE", "WILLNEED", "DONTNEED_LOCKED",
    "COLLAPSE", "HWPOISON", "SOFT_OFFLINE"))
_USES_ONLY = frozenset(MADV[f"MADV_{name}"] for name in ("WILLNEED", "COLD", "POPULATE_READ", "POPULATE_WRITE"))


@dataclass
class TapeProgram:
    """A tape as engines run it: operations of one stream contiguous and in order.

    ``ops[stream_start[s]:stream_start[s+1]]`` is stream s. Operation i waits for ``k in dep_start[i]:dep_start[i+1]``:
    it may start when stream ``dep_stream[k]`` has completed more than ``dep_pos[k]`` operations. ``addr_ref`` and
    ``new_addr_ref`` are indices into ``ops``; ``order[i]`` is where operation i stands in the tape. ``roots`` are the
    address spaces that exist, empty, from the beginning; the others are made by FORK and EXEC.
    """

    tape: Tape
    ops: npt.NDArray[np.void]
    stream_start: npt.NDArray[np.uint32]
    dep_start: npt.NDArray[np.uint32]
    dep_stream: npt.NDArray[np.uint32]
    dep_pos: npt.NDArray[np.uint32]
    order: npt.NDArray[np.int64]
    roots: list[int]

    @property
    def nstreams(self) -> int:
        """Simulated CPUs needed."""
        return len(self.stream_start) - 1

    @property
    def mms(self) -> int:
        """Address spaces."""
        return self.tape.mms

    @property
    def files(self) -> list[TapeFile]:
        """Files that operations index."""
        return self.tape.files

    @property
    def blobs(self) -> list[bytes]:
        """Bytes that operations index."""
        return self.tape.blobs

    @property
    def threads(self) -> list[TapeThread]:
        """Threads that operations index."""
        return self.tape.threads

    def __len__(self) -> int:
        return len(self.ops)


class _Conflicts:
    """Per page range: the last change and the uses since. Page numbers; positions are canonical indices."""

    __slots__ = ("starts", "writers", "readers", "brk")

    def __init__(self, writer: int) -> None:
        self.starts = [0]
        self.writers = [writer]
        self.readers: list[dict[int, int]] = [{}]
        self.brk = -1

    def _cut(self, page: int) -> int:
        i = bisect_left(self.starts, page)
        if page < _LAST and (i == len(self.starts) or self.starts[i] != page):
            self.starts.insert(i, page)
            self.writers.insert(i, self.writers[i - 1])
            self.readers.insert(i, dict(self.readers[i - 1]))
        return i

    def use(self, first: int, last: int, stream: int, at: int, waits: set[int]) -> None:
        """An operation that uses pages [first, last)."""
        starts = self.starts
        i = bisect_right(starts, first) - 1
        j = bisect_left(starts, last, i + 1)
        for k in range(i, j):
            waits.add(self.writers[k])
            self.readers[k][stream] = at

    def change(self, first: int, last: int, at: int, waits: set[int], keep_uses: bool = False) -> None:
        """An operation that changes pages [first, last); ``keep_uses``: it does not wait for uses before it."""
        first, last = max(first, 0), min(last, _LAST)
        if first >= last:
            return
        starts = self.starts
        near = bisect_right(starts, max(first - 1, 0)) - 1
        for k in range(near, bisect_left(starts, min(last + 1, _LAST), near + 1)):
            waits.add(self.writers[k])
        i = self._cut(first)
        j = self._cut(last)
        if keep_uses:
            for k in range(i, j):
                self.writers[k] = at
            return
        for uses in self.readers[i:j]:
            waits.update(uses.values())
        starts[i:j] = [first]
        self.writers[i:j] = [at]
        self.readers[i:j] = [{}]


class _Recorded:
    """The waits that recorded operations owe to each other through their pages."""

    def __init__(self) -> None:
        self.maps: dict[int, _Conflicts] = {}
        self.layouts: dict[int, Layout] = {}

    def _space(self, mm: int) -> tuple[_Conflicts, Layout]:
        found = self.maps.get(mm)
        if found is None:
            found = self.maps[mm] = _Conflicts(-1)
            self.layouts[mm] = Layout(merging=True)
        return found, self.layouts[mm]

    def waits(self, at: int, stream: int, op: dict[str, Any]) -> set[int]:
        """Canonical indices of the operations that this one waits for; -1 among them means nothing."""
        waits: set[int] = set()
        space, layout = self._space(op["mm"])
        getattr(self, "_" + op["kind"], self._other)(at, stream, op, waits, space, layout)
        for start, end in layout.born:
            space.change(start // PAGE, end // PAGE, at, waits, keep_uses=True)
        layout.born.clear()
        return waits

    def _other(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
               layout: Layout) -> None:
        pass

    @staticmethod
    def _range(addr: int, length: int) -> tuple[int, int]:
        return addr // PAGE, min((addr + length + PAGE - 1) // PAGE, _LAST)

    def _touch(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
               layout: Layout) -> None:
        addr, first = op["addr"], op["addr"] // PAGE
        last = self._range(addr, max(op["len"], 1))[1]
        piece = layout.find(addr)
        if piece is None:
            piece = layout.grows_to(addr)
            if piece is not None:                       # the stack grows: a change of what it takes
                space.change(first, piece.start // PAGE, at, waits)
                grown = piece.part(first * PAGE, piece.end)
                layout.put(grown)
                piece = grown
        space.use(first, last, stream, at, waits)
        if piece is not None and op["access"] == 1 and piece.anon < 0 and not piece.shared:
            self._birth(at, waits, space, layout, piece)

    _load = _store = _pin = _touch

    @staticmethod
    def _birth(at: int, waits: set[int], space: _Conflicts, layout: Layout, piece: Piece) -> None:
        """``piece`` gets its anon_vma, a neighbour's if they differ only in protection."""
        before, after = layout.find(piece.start - 1), layout.find(piece.end)
        for near in (after, before):
            if near is not None and near.anon >= 0 and near.flags == piece.flags and near.file == piece.file:
                piece.anon = near.anon
                break
        else:
            piece.anon = at
        space.change(piece.start // PAGE, piece.end // PAGE, at, waits, keep_uses=True)

    def _mmap(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
              layout: Layout) -> None:
        start = op["result"] if op["result"] != -(1 << 63) else op["addr"]
        if start < 0:                                   # recorded as failed: looks at what is there
            space.use(*self._range(op["addr"], max(op["len"], 1)), stream, at, waits)
            return
        first, last = self._range(start, op["len"])
        space.change(first, last, at, waits)
        if last > first:
            layout.map(first * PAGE, last * PAGE, op["prot"], op["flags"], op["file"], op["offset"])

    _map = _mmap

    def _munmap(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
                layout: Layout) -> None:
        first, last = self._range(op["addr"], op["len"])
        space.change(first, last, at, waits)
        if op["result"] == 0 and last > first:
            layout.unmap(first * PAGE, last * PAGE)

    def _mprotect(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
                  layout: Layout) -> None:
        first, last = self._range(op["addr"], op["len"])
        space.change(first, last, at, waits)
        if op["result"] == 0 and last > first:
            layout.protect(first * PAGE, last * PAGE, op["prot"])

    def _madvise(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
                 layout: Layout) -> None:
        first, last = self._range(op["addr"], op["len"])
        if op["flags"] in _USES_ONLY:
            space.use(first, max(last, first + 1), stream, at, waits)
            return
        space.change(first, last, at, waits)
        if op["result"] == 0 and last > first and op["flags"] not in _PAGES_ONLY:
            layout.advise(first * PAGE, last * PAGE, op["flags"])

    def _mlock(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
               layout: Layout) -> None:
        first, last = self._range(op["addr"], op["len"])
        space.change(first, last, at, waits)
        if op["result"] == 0 and last > first:
            layout.lock(first * PAGE, last * PAGE, op["kind"] == "mlock")

    _munlock = _mlock

    def _mbind(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
               layout: Layout) -> None:
        space.change(*self._range(op["addr"], op["len"]), at, waits)

    def _msync(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
               layout: Layout) -> None:
        first, last = self._range(op["addr"], op["len"])
        space.use(first, max(last, first + 1), stream, at, waits)

    _mincore = _unpin = _msync

    def _mremap(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
                layout: Layout) -> None:
        space.change(*self._range(op["addr"], max(op["len"], 1)), at, waits)
        result = op["result"] if op["result"] != -(1 << 63) else op["new_addr"]
        if result < 0:
            return
        first, last = self._range(result, op["new_len"])
        space.change(first, last, at, waits)
        old_first, old_last = self._range(op["addr"], op["len"])
        layout.remap(old_first * PAGE, (old_last - old_first) * PAGE, first * PAGE, (last - first) * PAGE, op["flags"])

    def _brk(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
             layout: Layout) -> None:
        waits.add(space.brk)
        space.brk = at
        new = op["result"] if op["result"] > 0 else op["addr"]
        if not new:
            return
        if layout.brk is not None:
            low, high = sorted((layout.brk, new))
            space.change(*self._range(low, high - low), at, waits)
        layout.set_brk(new)

    def _setbrk(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
                layout: Layout) -> None:
        waits.add(space.brk)
        space.brk = at
        layout.start_brk, layout.brk = op["addr"], op["new_addr"] or op["addr"]

    def _barrier(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
                 layout: Layout) -> None:
        space.change(0, _LAST, at, waits)
        waits.add(space.brk)
        space.brk = at

    _mlockall = _munlockall = _exit = _truncate = _barrier

    def _fork(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
              layout: Layout) -> None:
        self._barrier(at, stream, op, waits, space, layout)
        self.maps[op["mm2"]] = child = _Conflicts(at)
        child.brk = at
        self.layouts[op["mm2"]] = layout.copy()

    def _exec(self, at: int, stream: int, op: dict[str, Any], waits: set[int], space: _Conflicts,
              layout: Layout) -> None:
        self.maps[op["mm2"]] = fresh = _Conflicts(at)
        fresh.brk = at
        self.layouts[op["mm2"]] = Layout(merging=True)


class _Clocks:
    """Vector clocks: what each stream knows to be completed, at each of its positions."""

    def __init__(self, nstreams: int) -> None:
        self.now: list[dict[int, int]] = [{} for _ in range(nstreams)]
        self.at: list[list[int]] = [[] for _ in range(nstreams)]
        self.then: list[list[dict[int, int]]] = [[] for _ in range(nstreams)]

    def wait(self, stream: int, pos: int, other: int, other_pos: int) -> bool:
        """Stream at ``pos`` waits for ``other`` at ``other_pos``: False when it already knows that."""
        now = self.now[stream]
        if now.get(other, -1) >= other_pos:
            return False
        now = dict(now)
        i = bisect_right(self.at[other], other_pos) - 1
        if i >= 0:
            for third, known in self.then[other][i].items():
                if now.get(third, -1) < known:
                    now[third] = known
        now[other] = other_pos
        now.pop(stream, None)
        self.now[stream] = now
        if self.at[stream] and self.at[stream][-1] == pos:
            self.then[stream][-1] = now
        else:
            self.at[stream].append(pos)
            self.then[stream].append(now)
        return True


def _streams(tape: Tape, max_streams: int | None) -> list[int]:
    """thread index -> stream. Threads share one only where ``max_streams`` forces them to and they never overlap."""
    stream_of = [0] * len(tape.threads)
    if max_streams is not None and max_streams < 1:
        raise TapeError(f"a tape needs at least one stream, not {max_streams}")
    running = [i for i, thread in enumerate(tape.threads) if thread.kind == "thread"]
    if max_streams is None or len(running) <= max_streams:
        for stream, i in enumerate(running):
            stream_of[i] = stream
        return stream_of
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for at, number in enumerate(tape.ops["thread"].tolist()):
        first.setdefault(number, at)
        last[number] = at
    ends: list[int] = []
    for i in sorted(running, key=lambda i: first.get(i, 0)):
        begin, end = first.get(i, 0), last.get(i, -1)
        stream = next((free for free, until in enumerate(ends) if until < begin), len(ends))
        if stream == len(ends):
            ends.append(-1)
        ends[stream] = max(end, ends[stream])
        stream_of[i] = stream
    if len(ends) > max_streams:
        raise TapeError(f"{len(ends)} threads run at the same time, more than {max_streams}", tape.source or None)
    return stream_of


def build(tape: Tape, max_streams: int | None = None) -> TapeProgram:
    """The program of a tape. Raises TapeError when the tape is inconsistent."""
    from pykmm.tape import OPCODE_NAMES

    tape.validate()
    ops = tape.ops
    n = len(ops)
    stream_of = _streams(tape, max_streams)
    phases = ops["phase"].astype(np.int64)
    for i, thread in enumerate(tape.threads):       # setup and final run on stream 0, whatever the record says
        mine = ops["thread"] == i
        wanted = {"setup": 0, "thread": 1, "final": 2}[thread.kind]
        if (phases[mine] != wanted).any():
            raise TapeError(f"thread {i} ({thread.kind}) has operations of another phase", tape.source or None)
    canonical = np.lexsort((np.arange(n), phases)).astype(np.int64)      # phase, then order of the tape
    rank = np.empty(n, np.int64)
    rank[canonical] = np.arange(n)
    streams = np.asarray(stream_of or [0], np.int64)[ops["thread"][canonical]] if n else np.zeros(0, np.int64)
    nstreams = max(max(stream_of, default=0) + 1, 1)

    waits = _wanted(tape, canonical, rank, streams, nstreams, OPCODE_NAMES)

    order_by_stream = np.argsort(streams, kind="stable")
    stream_start = np.zeros(nstreams + 1, np.uint32)
    stream_start[1:] = np.cumsum(np.bincount(streams, minlength=nstreams))
    place = np.empty(n, np.int64)                   # canonical index -> program index
    place[order_by_stream] = np.arange(n)
    pos = (place - stream_start[:-1].astype(np.int64)[streams]).tolist() if n else []
    stream_list = streams.tolist()

    clocks = _Clocks(nstreams)
    kept: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    where = place.tolist()
    for at, wanted_ops in waits:
        stream = stream_list[at]
        for other in sorted(wanted_ops, reverse=True):
            if other < 0 or stream_list[other] == stream:
                continue
            if clocks.wait(stream, pos[at], stream_list[other], pos[other]):
                kept[where[at]].append((stream_list[other], pos[other]))
    counts = [len(x) for x in kept]
    dep_start = np.zeros(n + 1, np.uint32)
    if n:
        dep_start[1:] = np.cumsum(counts)
    flat = np.array([pair for pairs in kept for pair in pairs], np.uint32).reshape(-1, 2)
    order = canonical[order_by_stream]
    program_ops = ops[order].copy()
    from_tape = np.full(n + 1, -1, np.int32)        # tape index -> program index; [-1] stays -1
    from_tape[order] = np.arange(n)
    for name in ("addr_ref", "new_addr_ref"):
        program_ops[name] = from_tape[program_ops[name]]
    made = set(ops["mm2"][ops["mm2"] >= 0].tolist())
    return TapeProgram(
        tape, program_ops, stream_start, dep_start, np.ascontiguousarray(flat[:, 0]),
        np.ascontiguousarray(flat[:, 1]), order, [mm for mm in range(tape.mms) if mm not in made])


def _wanted(tape: Tape, canonical: npt.NDArray[np.int64], rank: npt.NDArray[np.int64],
            streams: npt.NDArray[np.int64], nstreams: int,
            names: tuple[str, ...]) -> list[tuple[int, set[int]]]:
    """(operation, what it waits for) in canonical indices, in canonical order; some may be implied by others."""
    ops, n = tape.ops, len(tape)
    extra: dict[int, set[int]] = {}
    phases = ops["phase"][canonical]
    ranks = rank.tolist()

    def need(after: int, before: int, why: str) -> None:
        if before >= after:
            raise TapeError(f"operation {int(canonical[after])} {why}, which comes only after it", tape.source or None)
        extra.setdefault(after, set()).add(before)

    setup_end = int(np.searchsorted(phases, 1)) - 1
    final_start = int(np.searchsorted(phases, 2))
    seen: set[int] = set()
    threads = ops["thread"][canonical].tolist()
    for at in range(setup_end + 1, final_start):
        thread = threads[at]
        if thread in seen:
            continue
        seen.add(thread)
        if setup_end >= 0:
            need(at, setup_end, "waits for setup")
        made_by = tape.threads[thread].start_after
        if made_by >= 0:
            need(at, ranks[made_by], "waits for what made its thread")
    if final_start < n:
        lasts: dict[int, int] = {}
        for at, stream in enumerate(streams[:final_start].tolist()):
            lasts[stream] = at
        for last in lasts.values():
            need(final_start, last, "waits for the threads")
    for name in ("addr_ref", "new_addr_ref"):
        users = np.nonzero(ops[name] >= 0)[0]
        user, used = rank[users], rank[ops[name][users]]
        # Within a stream the order is there already.
        for at in np.nonzero((streams[user] != streams[used]) | (used >= user))[0].tolist():
            need(int(user[at]), int(used[at]), "uses a result")
    for before, after in tape.edges:
        need(ranks[after], ranks[before], "waits for an operation")
    if not tape.recorded:
        return sorted(extra.items())
    recorded = _Recorded()
    lower = [name.lower() for name in names]
    columns = {name: ops[name][canonical].tolist()
               for name in ("mm", "mm2", "addr", "len", "new_addr", "new_len", "offset", "result", "file", "prot",
                            "flags", "access", "op")}
    keys = list(columns)
    stream_list = streams.tolist()
    wanted: list[tuple[int, set[int]]] = []
    for at, values in enumerate(zip(*columns.values(), strict=True)):
        op = dict(zip(keys, values, strict=True))
        op["kind"] = lower[op["op"]]
        found = recorded.waits(at, stream_list[at], op)
        if at in extra:
            found |= extra[at]
        if found:
            wanted.append((at, found))
    return wanted
