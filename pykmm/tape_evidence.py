# SPDX-License-Identifier: GPL-2.0-only
"""What a recording shows and what must be concluded from it: the state that :mod:`pykmm.tape_recording` walks with.

A call that needs a mapping, or a fault, outside of everything known is evidence of a mapping that execve made. Evidence
is kept per address space (a fork's evidence with the image that it copied) and becomes KMM_OP_MAP at the end.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pykmm.errors import TapeError
from pykmm.flags import MAP
from pykmm.tape import DEFAULTS, OPCODES, MapsLine, Notes, Tape
from pykmm.tape_layout import Layout, Piece

__all__ = ["Event", "Evidence", "File", "Mm", "Process", "Row", "Thread"]

PAGE = 4096
TOP = 1 << 56                   # user addresses are below, with 5-level tables too
MERGE_GAP = 16                  # pages
_FIELDS = tuple(DEFAULTS)
_VALUES = list(DEFAULTS.values())
AT = {name: i for i, name in enumerate(_FIELDS)}
_ANON = MAP["MAP_ANONYMOUS"]
#: failures that follow from the layout alone: replayed; others are kept as no-ops (mbind's may be its mask's, not kept)
_REPLAYED_ERRORS = {22, 17}     # EINVAL, EEXIST
_ENOMEM_OPS = {"munmap", "mprotect", "madvise", "msync", "mincore", "munlock"}
_NAMED_BASE = 0x3A0000000000
_U64 = (1 << 64) - 1
_S64 = 1 << 63
_S32 = 1 << 31

Row = list[Any]


def pages_of(length: int) -> int:
    return (length + PAGE - 1) & ~(PAGE - 1)


class Event:
    """One fault, or one system call with its end. Times are seconds; ``result`` None = its end is not recorded."""

    __slots__ = ("tid", "start", "end", "kind", "args", "result", "line", "effect", "time")

    def __init__(self, tid: int, start: float, end: float, kind: str, args: Any, result: int | None,
                 line: int) -> None:
        self.tid = tid
        self.start = start
        self.end = end
        self.kind = kind        # "fault", "exec", "clone", "mmap" ...
        self.args = args
        self.result = result
        self.line = line
        self.effect = start
        self.time: float | None = None      # None: the effect is the time


class File:
    """What one or more file mappings show; its name may become known later."""

    __slots__ = ("name", "guess", "fd")

    def __init__(self, name: str | None = None, fd: int = -1) -> None:
        self.name = name
        self.guess: str | None = None
        self.fd = fd


class Mm:
    """An address space while it is being followed."""

    def __init__(self, number: int, layout: Layout, anchor: Row, parent: Mm | None = None) -> None:
        self.number = number
        self.layout = layout
        self.anchor = anchor                        # assumed mappings come after this
        self.origin: Mm = self if parent is None else parent.origin     # what a fork copied
        self.assumed: list[tuple[int, int, str, int, Row]] = []     # start, end, name, prot, before which row
        self.mapped: list[tuple[int, int]] = [] if parent is None else parent.mapped    # mapped by a call
        self.named: dict[str, list[int]] = {}       # assumed objects -> [lowest, highest] page offset
        self.written: dict[str, set[int]] = {}      # assumed objects -> page offsets known as written


class Process:
    def __init__(self, pid: int, mm: Mm) -> None:
        self.pid = pid
        self.mm = mm
        self.live: set[int] = set()
        self.borrowed = False                       # the address space is the vfork parent's
        self.exit: tuple[Thread, Event] | None = None


class Thread:
    def __init__(self, tid: int, events: list[Event]) -> None:
        self.tid = tid
        self.events = events
        self.next = 0
        self.index = -1
        self.process: Process | None = None
        self.waits_for: int | None = None           # vfork: the child
        self.edge: Row | None = None                # its next operation comes after this
        self.lost: list[tuple[Event, Row]] = []     # mmaps whose result is unknown
        self.deadline = 0.0
        self.until_exec: list[Thread] = []


class Evidence:
    """Rows of the tape to be, mappings, files. ``path`` is for errors."""

    def __init__(self, path: str, notes: Notes, start_maps: list[MapsLine] | None = None,
                 end_maps: list[MapsLine] | None = None) -> None:
        self.path = path
        self.notes = notes
        self.start_maps = start_maps
        self.end_maps = end_maps
        self.tape = Tape(recorded=True)
        self.tape.notes = notes
        self.rows: list[Row] = []
        self.threads: dict[int, Thread] = {}
        self.heap: list[tuple[float, int, int]] = []
        self.parked: list[Thread] = []
        self.files: list[File] = []
        self.bases: dict[str, int] = {}
        self.used: set[int] = set()
        self.last_touch: dict[tuple[int, int], tuple[Row, int, int, float, int]] = {}
        self.edges: list[tuple[Row, Row]] = []
        self.start_after: dict[int, Row] = {}
        self.children: dict[int, tuple[int, str]] = {}
        self.names: dict[int, str] = {}
        self.main: Process | None = None
        self.main_tid = -1
        self.main_execs = 0
        self.exits: list[tuple[Process, Thread, Event]] = []
        self.remarks: dict[str, int] = {}
        self.mms: list[Mm] = []
        self.placeholders: set[int] = set()
        self.sizes: dict[str, tuple[str, int]] = {}

    # -- rows -----------------------------------------------------------------------------------------

    def _row(self, op: str, thread: Thread, mm: int, event: Event | None, **fields: Any) -> Row:
        row = _VALUES.copy()
        row[18] = OPCODES[op]
        row[9] = mm
        row[16] = thread.index
        if event is not None:
            row[0] = event.effect if event.time is None else event.time
            row[17] = event.line
            if event.result is not None and event.kind != "fault":
                row[6] = event.result
        for name, value in fields.items():
            row[AT[name]] = value
        self.rows.append(row)
        return row

    def _remark(self, text: str, count: int = 1) -> None:
        head = text.split(": first ", 1)[0]
        for known in self.remarks:
            if known.split(": first ", 1)[0] == head:
                self.remarks[known] += count
                return
        self.remarks[text] = count

    def _impossible(self, event: Event, what: str) -> TapeError:
        return TapeError(f"impossible: {event.kind}({what}) recorded as successful", self.path, event.line)

    def _check(self, event: Event, address: int, length: int, aligned: bool = True) -> tuple[int, int]:
        """The page range of a call that succeeded."""
        if aligned and address % PAGE:
            raise self._impossible(event, f"address {address:#x} is not page-aligned")
        if length <= 0 or length > TOP:
            raise self._impossible(event, f"length {length}")
        if address < 0 or address + length > TOP:
            raise self._impossible(event, f"{address:#x}, length {length}: not a user address")
        return address & ~(PAGE - 1), (address + length + PAGE - 1) & ~(PAGE - 1)

    def _failed(self, thread: Thread, mm: Mm, event: Event, op: str, **fields: Any) -> bool:
        """Handles a call that failed or whose end is lost: True when nothing more is to be done."""
        if event.result is None or event.result >= 0:
            return False
        error = -event.result
        if (error in _REPLAYED_ERRORS and event.kind != "mbind") or (error == 12 and event.kind in _ENOMEM_OPS):
            self._row(op, thread, mm.number, event, **fields)
        else:
            self._row("NOP", thread, mm.number, event)
            self._remark(f"failed calls kept as no-ops (why they failed is not in the address space): first "
                         f"{event.kind} at line {event.line}")
        return True

    def _lost(self, thread: Thread, mm: Mm, event: Event) -> None:
        self._row("NOP", thread, mm.number, event)
        self._remark(f"calls whose end is not recorded: first {event.kind} at line {event.line}")

    # -- mappings that nobody recorded ------------------------------------------------------------------

    def _assume(self, thread: Thread, mm: Mm, start: int, end: int, name: str = "", prot: int = 3) -> None:
        """The pages of [start, end) that are not mapped are there all the same."""
        at = start
        for piece in [*mm.layout.overlapping(start, end), None]:
            stop = piece.start if piece is not None else end
            if stop > at:
                flags = MAP["MAP_PRIVATE"] | (MAP["MAP_GROWSDOWN"] if name == "[stack]" else 0)
                new = mm.layout.map(at, stop, prot, flags, maker=len(self.rows))
                new.tag = "assumed"
                place = self._row("NOP", thread, mm.number, None)
                mm.assumed.append((at, stop, name, prot, place))
                self.placeholders.add(id(place))
            if piece is not None:
                at = max(at, piece.end)

    def _base(self, name: str) -> int:
        """A place for an object whose address is not recorded, the same in every process."""
        base = self.bases.get(name)
        if base is None:
            granule = _NAMED_BASE >> 30
            if self.bases:
                granule = (max(self.bases.values()) >> 30) + 64
            while any(granule + i in self.used for i in range(64)):
                granule += 64
            base = self.bases[name] = granule << 30
        return base

    def _start_mappings(self, thread: Thread, mm: Mm) -> None:
        """The start maps, as KMM_OP_MAP."""
        self.tape.start_maps[mm.number] = list(self.start_maps or ())
        for line in self.start_maps or ():
            if line.end > TOP:
                continue                            # [vsyscall]
            prot = (line.perms[0] == "r") | (line.perms[1] == "w") << 1 | (line.perms[2] == "x") << 2
            flags = MAP["MAP_SHARED"] if line.perms[3] == "s" else MAP["MAP_PRIVATE"]
            file, data = -1, -1
            if line.ino:
                file = self._file(line.name)
            else:
                flags |= _ANON
                if line.name:
                    data = self._name_blob(line.name)
                if line.name == "[stack]":
                    flags |= MAP["MAP_GROWSDOWN"] | MAP["MAP_STACK"]
            self._row("MAP", thread, mm.number, None, addr=line.start, len=line.end - line.start, prot=prot,
                      flags=flags, file=file, offset=line.offset, data=data)
            piece = mm.layout.map(line.start, line.end, prot, flags, file, line.offset, maker=len(self.rows))
            piece.tag = line.name if data >= 0 else None
            if line.name == "[heap]":
                self._row("SETBRK", thread, mm.number, None, addr=line.start, new_addr=line.end)
                mm.layout.start_brk, mm.layout.brk = line.start, line.end

    def _name_blob(self, name: str) -> int:
        data = name.encode("utf-8", "backslashreplace")
        return self.tape.blobs.index(data) if data in self.tape.blobs else self.tape.blob(data)

    # -- files --------------------------------------------------------------------------------------------

    def _file(self, name: str | None, fd: int = -1) -> int:
        if name is not None:
            for i, known in enumerate(self.files):
                if known.name == name:
                    return i
        self.files.append(File(name, fd))
        return len(self.files) - 1

    def _locate(self, mm: Mm, name: str, offset: int, least: int) -> int | None:
        """Where byte ``offset`` of the object shows: the latest mapping that is (4) or may be (1 to 3) it."""
        best: tuple[int, int, Piece] | None = None
        anonymous = name.startswith(("/dev/zero", "/memfd:", "/SYSV", "//anon", "/anon"))
        for piece in mm.layout:
            if not piece.offset <= offset < piece.offset + (piece.end - piece.start):
                continue
            if piece.file >= 0:
                known = self.files[piece.file]
                # A guess comes from who has the address in the end: another file may have had it before.
                rank = 4 if known.name == name else 0 if known.name is not None else (
                    3 if known.guess == name else 2 if known.guess is None else 1)
            elif piece.tag == name or (name == "[vdso]" and piece.tag == "[vdso]"):
                rank = 4
            elif piece.shared and anonymous:
                rank = 3
            else:
                rank = 0
            if rank >= least and (best is None or (rank, piece.maker) > best[:2]):
                best = (rank, piece.maker, piece)
        if best is None:
            return None
        piece = best[2]
        if piece.file >= 0 and self.files[piece.file].name is None:
            self.files[piece.file].name = name
        return piece.start + (offset - piece.offset)

    # -- the end ---------------------------------------------------------------------------------------------

    def _fit(self, rows: list[Row]) -> None:
        """Numbers that do not fit the operation's fields come only from damaged lines."""
        wide = [AT[name] for name in ("addr", "len", "new_addr", "new_len", "offset")]
        narrow = [AT[name] for name in ("prot", "flags")]
        for row in rows:
            if all(0 <= row[i] <= _U64 for i in wide) and all(-_S32 <= row[i] < _S32 for i in narrow) \
                    and -_S64 <= row[6] < _S64:
                continue
            for i in wide:
                if -_S64 <= row[i] < 0:
                    row[i] &= _U64
                elif not 0 <= row[i] <= _U64:
                    raise TapeError(f"{_FIELDS[i]} {row[i]:#x} is no 64-bit number", self.path, row[17] or None)
            for i in narrow:
                if not -_S32 <= row[i] < _S32:
                    raise TapeError(f"{_FIELDS[i]} {row[i]:#x} is no 32-bit number", self.path, row[17] or None)
            if not -_S64 <= row[6] < _S64:
                raise TapeError(f"result {row[6]:#x} is no 64-bit number", self.path, row[17] or None)

    def _place_assumed(self, mm: Mm, before: dict[int, list[Row]], after: dict[int, list[Row]]) -> None:
        """Assumed mappings: merged, and where the address space begins unless a call uses the same addresses."""
        anchored: list[tuple[int, int, str, int]] = []
        mapped = sorted(mm.mapped)

        def taken(start: int, end: int) -> bool:
            return any(low < end and start < high for low, high in mapped)

        for start, end, name, prot, place in mm.assumed:
            if taken(start, end) or (mm.origin is not mm and mm.origin.number in self.tape.start_maps):
                # the call that mapped it again is not recorded
                before.setdefault(id(place), []).append(
                    self._map_row(place[9], place[16], start, end, name, prot))
            else:
                anchored.append((start, end, name, prot))
        anchored.sort()
        merged: list[tuple[int, int, str, int]] = []
        for start, end, name, prot in anchored:
            if merged and start < merged[-1][1]:    # seen in a process and in its fork
                start = merged[-1][1]
                if start >= end:
                    continue
            if merged and merged[-1][2:] == (name, prot) and start - merged[-1][1] <= MERGE_GAP * PAGE and \
                    not taken(merged[-1][1], start):
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]), name, prot)
            else:
                merged.append((start, end, name, prot))
        rows = [self._map_row(mm.number, mm.anchor[16], *item) for item in merged]
        for name, (low, high) in mm.named.items():
            base = self._base(name)
            low, high = base + (low & ~(PAGE - 1)), base + (high & ~(PAGE - 1)) + PAGE
            data = sorted(mm.written.get(name, ())) or [high]
            first, last = data[0], min(data[-1] + PAGE, high)
            for start, end, prot in ((low, first, 5), (first, last, 3), (last, high, 5)):
                if start >= end:
                    continue
                row = self._map_row(mm.number, mm.anchor[16], start, end, name, prot)
                if name.startswith("["):
                    row[AT["data"]] = self._name_blob(name)
                else:
                    row[AT["file"]], row[AT["offset"]] = self._file(name), start - base
                    row[AT["flags"]] &= ~_ANON
                rows.append(row)
        after.setdefault(id(mm.anchor), []).extend(rows)

    def _map_row(self, mm: int, thread: int, start: int, end: int, name: str, prot: int) -> Row:
        row = _VALUES.copy()
        flags = MAP["MAP_PRIVATE"] | _ANON | (MAP["MAP_GROWSDOWN"] if name == "[stack]" else 0)
        for field, value in (("op", OPCODES["MAP"]), ("mm", mm), ("thread", thread), ("addr", start),
                             ("len", end - start), ("prot", prot), ("flags", flags)):
            row[AT[field]] = value
        label = name or "(anonymous)"
        self.notes.assumed[label] = self.notes.assumed.get(label, 0) + 1
        if name == "[stack]":
            row[AT["data"]] = self._name_blob(name)
        return row

    def _number_files(self, rows: Iterable[Row]) -> None:
        """Names, sizes and numbers of the files that operations map."""
        numbers: dict[int, int] = {}
        unnamed = 0
        place, length, offset = AT["file"], AT["len"], AT["offset"]
        for row in rows:
            file = row[place]
            if file < 0:
                continue
            if file not in numbers:
                known = self.files[file]
                name = known.name or known.guess
                if name is None:
                    unnamed += 1
                    name = f"(unnamed file {unnamed})"
                dev, ino = self.sizes.get(name, ("00:00", 0))
                numbers[file] = self.tape.file(name, dev=dev, ino=ino).index
            row[place] = numbers[file]
            if row[length] < TOP and row[offset] < TOP:
                self.tape.grow_file(numbers[file], row[offset] + pages_of(row[length]))
        if unnamed:
            self._remark("mapped files without a known name", unnamed)
