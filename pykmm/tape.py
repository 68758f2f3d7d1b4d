# SPDX-License-Identifier: GPL-2.0-only
"""include/kmm/tape.h: tapes, the per-thread sequences of memory operations that engines run.

A :class:`Tape` is recorded from a real program (``Tape.load``), or written by hand (``t.setup``, ``t.thread()``,
``t.final``). :meth:`Tape.program` turns it into what engines take: streams of operations and what each waits for.
"""
from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pykmm.errors import TapeError
from pykmm.tape_builder import Address, AddressLike, OpStream

if TYPE_CHECKING:
    from pykmm.tape_program import TapeProgram

__all__ = [
    "ACCESS", "NO_RESULT", "OPCODES", "OP_DTYPE", "Address", "AddressLike", "MapsLine", "Notes", "OpStream", "Tape",
    "TapeFile", "TapeThread", "Work", "parse_maps",
]

#: Names of the operations, in the order of enum kmm_tape_opcode.
OPCODE_NAMES = (
    "NOP", "MMAP", "MUNMAP", "MPROTECT", "MREMAP", "MADVISE", "BRK", "MLOCK", "MUNLOCK", "MLOCKALL", "MUNLOCKALL",
    "MSYNC", "MINCORE", "FORK", "EXEC", "EXIT", "MAP", "TOUCH", "LOAD", "STORE", "COMPUTE", "PIN", "UNPIN", "SETBRK",
    "MBIND", "TRUNCATE",
)
#: Name of an operation -> its number.
OPCODES: Mapping[str, int] = {name: number for number, name in enumerate(OPCODE_NAMES)}
#: Kinds of access (include/kmm/arch.h).
ACCESS: Mapping[str, int] = {"read": 0, "write": 1, "exec": 2}
#: ``result`` of an operation for which nothing was recorded.
NO_RESULT = -(1 << 63)

#: struct kmm_tape_op as a numpy record.
OP_DTYPE = np.dtype([
    ("time", "<f8"), ("addr", "<u8"), ("len", "<u8"), ("new_addr", "<u8"), ("new_len", "<u8"), ("offset", "<u8"),
    ("result", "<i8"), ("addr_ref", "<i4"), ("new_addr_ref", "<i4"), ("mm", "<i4"), ("mm2", "<i4"), ("file", "<i4"),
    ("data", "<i4"), ("prot", "<i4"), ("flags", "<i4"), ("expect_errno", "<i4"), ("thread", "<i4"), ("source", "<i4"),
    ("op", "<u2"), ("access", "u1"), ("phase", "u1"),
], align=True)

#: What every field is when an operation does not say otherwise.
DEFAULTS: Mapping[str, Any] = {
    "time": float("nan"), "addr": 0, "len": 0, "new_addr": 0, "new_len": 0, "offset": 0, "result": NO_RESULT,
    "addr_ref": -1, "new_addr_ref": -1, "mm": 0, "mm2": -1, "file": -1, "data": -1, "prot": 0, "flags": 0,
    "expect_errno": -1, "thread": 0, "source": 0, "op": 0, "access": 0, "phase": 1,
}
_FIELDS = tuple(DEFAULTS)
_VALUES = tuple(DEFAULTS.values())
_PLACE = {name: place for place, name in enumerate(_FIELDS)}
_RANGES: Mapping[str, tuple[float, float]] = {
    name: (-float("inf"), float("inf")) if OP_DTYPE[name].kind == "f"
    else (int(np.iinfo(OP_DTYPE[name]).min), int(np.iinfo(OP_DTYPE[name]).max)) for name in _FIELDS}
_FORMAT = 1


@dataclass(frozen=True)
class Work:
    """What a generated tape does that is worth counting, so that a run has a rate.

    ``counts``: units per thread, in the order of the tape's threads (0: a thread that only disturbs the others).
    ``resident``: bytes of memory that are in use at most at one time, 0 = unknown. ``races``: its threads access what
    others unmap or protect, and a SIGSEGV is part of it.
    """

    unit: str                   #: plural, like "faults"
    counts: tuple[int, ...]
    resident: int = 0
    races: bool = False

    @property
    def total(self) -> int:
        """Units of all threads."""
        return sum(self.counts)


@dataclass
class TapeThread:
    """One thread of a tape. ``kind`` is "setup", "thread" or "final"; ``start_after`` the operation that made it."""

    pid: int = 0
    tid: int = 0
    name: str = ""
    kind: str = "thread"
    start_after: int = -1


@dataclass
class TapeFile:
    """A file that a tape maps. ``data`` None: zeroes; ``size`` in bytes; ``dev`` as in /proc/PID/maps."""

    name: str
    size: int = 0
    dev: str = "00:00"
    ino: int = 0
    data: bytes | None = None
    index: int = -1


@dataclass(frozen=True)
class MapsLine:
    """One line of /proc/PID/maps; addresses and offset in bytes."""

    start: int
    end: int
    perms: str
    offset: int = 0
    dev: str = "00:00"
    ino: int = 0
    name: str = ""

    def __str__(self) -> str:
        head = f"{self.start:08x}-{self.end:08x} {self.perms} {self.offset:08x} {self.dev} {self.ino} "
        return head.ljust(73) + self.name if self.name else head


@dataclass
class Notes:
    """What an importer met that a reader should know. Never empty silently: every line read is accounted for."""

    lines: int = 0                                          #: lines read
    unknown: dict[str, int] = field(default_factory=dict)   #: kind of line not understood -> how many
    examples: dict[str, str] = field(default_factory=dict)  #: kind -> "line N: text" of the first
    assumed: dict[str, int] = field(default_factory=dict)   #: name of a mapping assumed from evidence -> how many
    faults: dict[str, int] = field(default_factory=dict)    #: "minor", "major" -> faults recorded
    calls: dict[str, int] = field(default_factory=dict)     #: system call -> calls recorded
    remarks: list[str] = field(default_factory=list)        #: sentences

    def unknown_line(self, kind: str, line: int, text: str) -> None:
        """Counts a line that is not understood."""
        self.unknown[kind] = self.unknown.get(kind, 0) + 1
        self.examples.setdefault(kind, f"line {line}: {text.strip()[:200]}")


_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)(?:[ \t]+(.*))?$")


def parse_maps(lines: Iterable[str], path: str | None = None) -> list[MapsLine]:
    """The lines of a /proc/PID/maps text. Raises TapeError with file and line."""
    found: list[MapsLine] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        match = _MAPS_LINE.match(text.rstrip("\n"))
        if match is None:
            raise TapeError(f"not a line of /proc/PID/maps: {text.strip()[:80]!r}", path, number)
        line = MapsLine(int(match[1], 16), int(match[2], 16), match[3], int(match[4], 16), match[5], int(match[6]),
                        (match[7] or "").strip())
        if line.end <= line.start or line.start % 4096 or line.end % 4096 or (found and line.start < found[-1].end):
            raise TapeError(f"impossible range {line.start:#x}-{line.end:#x}", path, number)
        found.append(line)
    return found


class Tape:
    """Operations of memory, per thread. Addresses, lengths and offsets are bytes, times are seconds.

    ``recorded`` tells the two kinds apart: operations of a recording that concern the same pages keep their recorded
    order across threads; those of a tape written by hand are ordered only by phase (setup, threads, final), by thread,
    and by the results they use, since the races between them are what such a tape is for.
    """

    def __init__(self, recorded: bool = False) -> None:
        self.recorded = recorded
        self.threads: list[TapeThread] = []
        self.files: list[TapeFile] = []
        self.blobs: list[bytes] = []
        self.start_maps: dict[int, list[MapsLine]] = {}
        self.end_maps: dict[int, list[MapsLine]] = {}
        self.edges: list[tuple[int, int]] = []      #: (before, after): indices of operations, beyond the implied order
        self.notes = Notes()
        self.source: str = ""
        self.importer: str = ""
        self.main_mm = 0
        self.work: Work | None = None               #: of a generated tape: what a run's rate counts
        self._built: tuple[Any, TapeProgram] | None = None
        self._done = np.zeros(0, OP_DTYPE)
        self._rows: list[tuple[Any, ...]] = []
        self._mms = 1
        self._names: dict[str, int] = {}
        #: pins that are held, while the tape is written: (address, length) -> (operation, access), the newest last
        self.pins: dict[tuple[tuple[int, int], int], list[tuple[int, int]]] = {}
        self._setup: OpStream | None = None
        self._final: OpStream | None = None

    # -- the table ---------------------------------------------------------------------------------

    @property
    def ops(self) -> npt.NDArray[np.void]:
        """All operations, OP_DTYPE, in the order they were recorded or written. A view: do not resize."""
        if self._rows:
            new = np.array(self._rows, OP_DTYPE)
            self._done = np.concatenate([self._done, new]) if len(self._done) else new
            self._rows = []
        return self._done

    def __len__(self) -> int:
        return len(self._done) + len(self._rows)

    def __repr__(self) -> str:
        return f"<Tape of {len(self)} operations, {len(self.threads)} threads, {self.mms} address spaces>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tape):
            return NotImplemented
        return (self._meta() == other._meta() and self.blobs == other.blobs
                and self.ops.tobytes() == other.ops.tobytes())

    __hash__ = None  # type: ignore[assignment]

    @property
    def mms(self) -> int:
        """How many address spaces the tape knows."""
        return self._mms

    def append(self, op: str | int, **fields: Any) -> int:
        """Adds one operation (fields of OP_DTYPE) and returns its index."""
        row = list(_VALUES)
        row[18] = OPCODES[op] if isinstance(op, str) else op
        for name, value in fields.items():
            row[_PLACE[name]] = value
            if isinstance(value, int):
                low, high = _RANGES[name]
                if not low <= value <= high:
                    raise TapeError(f"{name} {value:#x} does not fit an operation")
        self._rows.append(tuple(row))
        return len(self) - 1

    def repeat(self, first: int, times: int) -> None:
        """The operations from index `first` to the last one, `times` times instead of once: the body of a loop.

        Addresses that are results of operations of the body are those of the same turn.
        """
        body = self.ops[first:]
        n = len(body)
        if not 0 <= first < len(self) or times < 1:
            raise TapeError(f"cannot repeat the operations from {first} on {times} times")
        more = np.tile(body, times - 1)
        shift = np.repeat(np.arange(1, times, dtype=np.int64) * n, n)
        for name in ("addr_ref", "new_addr_ref"):
            refs = more[name].astype(np.int64)
            more[name] = np.where(refs >= first, refs + shift, refs)
        self._done = np.concatenate([self._done, more])

    def extend(self, rows: list[tuple[Any, ...]]) -> None:
        """Adds operations as tuples in the order of OP_DTYPE."""
        self._rows.extend(rows)

    def new_mm(self) -> int:
        """The number of a new address space."""
        self._mms += 1
        return self._mms - 1

    def add_thread(self, pid: int = 0, tid: int = 0, name: str = "", kind: str = "thread",
                   start_after: int = -1) -> int:
        """Adds a thread and returns its index."""
        self.threads.append(TapeThread(pid, tid, name, kind, start_after))
        return len(self.threads) - 1

    def blob(self, data: bytes) -> int:
        """Adds bytes and returns their index."""
        self.blobs.append(bytes(data))
        return len(self.blobs) - 1

    # -- files -------------------------------------------------------------------------------------

    def file(self, name: str, data: bytes | None = None, size: int | None = None, dev: str = "00:00",
             ino: int = 0) -> TapeFile:
        """The file of that name, made on first use. ``data`` is its content, else it holds ``size`` zero bytes."""
        number = self._names.get(name)
        if number is None:
            number = self._names[name] = len(self.files)
            self.files.append(TapeFile(name, 0, dev, ino, None, number))
        found = self.files[number]
        if data is not None:
            found.data, found.size = bytes(data), len(data) if size is None else max(size, len(data))
        elif size is not None:
            if size < 0:
                raise TapeError(f"file {name!r} of {size} bytes")
            found.size = size
        return found

    def grow_file(self, number: int, size: int) -> None:
        """A file without given content has at least ``size`` bytes."""
        found = self.files[number]
        if found.data is None and found.size < size:
            found.size = size

    # -- writing by hand -----------------------------------------------------------------------------

    @property
    def setup(self) -> OpStream:
        """Operations that run first, on CPU 0."""
        if self._setup is None:
            found = [i for i, thread in enumerate(self.threads) if thread.kind == "setup"]
            self._setup = OpStream(self, found[0] if found else self.add_thread(kind="setup"), self.main_mm, 0)
        return self._setup

    @property
    def final(self) -> OpStream:
        """Operations that run on CPU 0 after all threads."""
        if self._final is None:
            found = [i for i, thread in enumerate(self.threads) if thread.kind == "final"]
            self._final = OpStream(self, found[0] if found else self.add_thread(kind="final"), self.main_mm, 2)
        return self._final

    def thread(self, name: str = "") -> OpStream:
        """A new thread on a CPU of its own; starts after setup."""
        return OpStream(self, self.add_thread(name=name), self.main_mm, 1)

    # -- what it holds -------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Counts: operations by kind, threads, address spaces, files, recorded faults and what was not understood."""
        ops = self.ops
        kinds = np.bincount(ops["op"], minlength=len(OPCODE_NAMES))
        times = ops["time"][~np.isnan(ops["time"])]
        return {
            "operations": len(ops),
            "by_kind": {OPCODE_NAMES[i].lower(): int(n) for i, n in enumerate(kinds) if n},
            "threads": sum(thread.kind == "thread" for thread in self.threads),
            "address_spaces": self.mms,
            "files": len(self.files),
            "seconds": float(times.max() - times.min()) if len(times) else 0.0,
            "faults": dict(self.notes.faults),
            "calls": dict(self.notes.calls),
            "assumed_mappings": sum(self.notes.assumed.values()),
            "unknown_lines": sum(self.notes.unknown.values()),
            "source": self.source,
            "importer": self.importer,
        }

    def validate(self) -> None:
        """Raises TapeError when an index points nowhere or an operation uses a result that comes later."""
        ops, n = self.ops, len(self)

        def check(bad: npt.NDArray[np.bool_], what: str) -> None:
            if bad.any():
                at = int(np.argmax(bad))
                raise TapeError(f"operation {at}: {what}", self.source or None, int(ops["source"][at]) or None)

        check(ops["op"] >= len(OPCODE_NAMES), "unknown operation")
        check(ops["phase"] > 2, "unknown phase")
        check(ops["access"] > 2, "unknown access")
        check((ops["thread"] < 0) | (ops["thread"] >= len(self.threads)), "no such thread")
        check((ops["mm"] < 0) | (ops["mm"] >= self.mms), "no such address space")
        check((ops["mm2"] < -1) | (ops["mm2"] >= self.mms), "no such address space")
        check((ops["file"] < -1) | (ops["file"] >= len(self.files)), "no such file")
        check((ops["data"] < -1) | (ops["data"] >= len(self.blobs)), "no such data")
        makes = np.isin(ops["op"], (OPCODES["FORK"], OPCODES["EXEC"]))
        check(makes & (ops["mm2"] < 0), "needs a new address space")
        check((ops["op"] == OPCODES["STORE"]) & (ops["data"] < 0), "store without data")
        check((ops["op"] == OPCODES["TRUNCATE"]) & (ops["file"] < 0), "truncate without a file")
        for name in ("addr_ref", "new_addr_ref"):
            refs = ops[name]
            check((refs < -1) | (refs >= np.arange(n)), "uses the result of an operation that is not before it")
            used = (refs >= 0) & ((ops["op"] != OPCODES["UNPIN"]) if name == "new_addr_ref" else True)
            made = np.zeros(n, bool)
            made[used] = ~np.isin(ops["op"][refs[used]], [OPCODES[k] for k in ("MMAP", "MREMAP", "BRK", "MAP")])
            check(made, "uses the result of an operation that makes no address")
        unpin = np.flatnonzero(ops["op"] == OPCODES["UNPIN"])
        bad = np.zeros(n, bool)
        bad[unpin] = (ops["new_addr_ref"][unpin] < 0) | (ops["op"][ops["new_addr_ref"][unpin]] != OPCODES["PIN"])
        check(bad, "gives up a pin that is none")
        for before, after in self.edges:
            if not 0 <= before < after < n:
                raise TapeError(f"order {before} before {after} is impossible", self.source or None)
        for i, thread in enumerate(self.threads):
            if thread.kind not in ("setup", "thread", "final") or not -1 <= thread.start_after < n:
                raise TapeError(f"thread {i} is malformed", self.source or None)

    def program(self, max_streams: int | None = None) -> TapeProgram:
        """What engines take. ``max_streams`` lets threads that never overlap share a simulated CPU to stay below it.

        Raises TapeError when the tape is inconsistent.
        """
        from pykmm.tape_program import build

        # Runs of one tape come in series, and building takes longer than most of them.
        key = (max_streams, self.recorded, self._mms, hash(self.ops.tobytes()), hash(tuple(self.edges)),
               tuple((thread.kind, thread.start_after) for thread in self.threads), len(self.files), len(self.blobs))
        if self._built is None or self._built[0] != key:
            self._built = key, build(self, max_streams)
        return self._built[1]

    # -- files on disk ---------------------------------------------------------------------------------

    def _meta(self) -> dict[str, Any]:
        return {
            "format": _FORMAT, "recorded": self.recorded, "mms": self.mms, "main_mm": self.main_mm,
            "importer": self.importer, "source": self.source,
            "threads": [asdict(thread) for thread in self.threads],
            "files": [{**asdict(found), "data": None if found.data is None else found.data.hex()}
                      for found in self.files],
            "start_maps": {str(mm): [asdict(line) for line in lines] for mm, lines in self.start_maps.items()},
            "end_maps": {str(mm): [asdict(line) for line in lines] for mm, lines in self.end_maps.items()},
            "edges": [list(edge) for edge in self.edges], "notes": asdict(self.notes),
            "work": None if self.work is None else asdict(self.work),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to a compressed ``.npz``; ``Tape.load`` gives an equal tape back."""
        ends = np.cumsum([len(data) for data in self.blobs], dtype=np.int64)
        meta = json.dumps(self._meta(), ensure_ascii=True).encode()
        with open(path, "wb") as out:
            np.savez_compressed(
                out, pykmm_tape=np.frombuffer(meta, np.uint8), ops=self.ops, blob_ends=ends,
                blobs=np.frombuffer(b"".join(self.blobs), np.uint8))

    @classmethod
    def _load_npz(cls, path: str) -> Tape:
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as box:
                if "pykmm_tape" not in box:
                    raise TapeError("an .npz, but not of a tape", path)
                meta = json.loads(box["pykmm_tape"].tobytes())
                ops, ends, blobs = box["ops"], box["blob_ends"], box["blobs"].tobytes()
            if meta["format"] != _FORMAT:
                raise TapeError(f"tape format {meta['format']} is not known", path)
            if ops.dtype != OP_DTYPE:
                raise TapeError("operations have another layout", path)
            tape = cls(bool(meta["recorded"]))
            tape._done, tape._mms, tape.main_mm = ops, int(meta["mms"]), int(meta["main_mm"])
            tape.importer, tape.source = str(meta["importer"]), str(meta["source"])
            tape.threads = [TapeThread(**thread) for thread in meta["threads"]]
            for entry in meta["files"]:
                data = entry["data"]
                tape.files.append(TapeFile(**{**entry, "data": None if data is None else bytes.fromhex(data)}))
                tape._names[entry["name"]] = len(tape.files) - 1
            tape.start_maps = {int(mm): [MapsLine(**x) for x in lines] for mm, lines in meta["start_maps"].items()}
            tape.end_maps = {int(mm): [MapsLine(**x) for x in lines] for mm, lines in meta["end_maps"].items()}
            tape.edges = [(int(before), int(after)) for before, after in meta["edges"]]
            tape.notes = Notes(**meta["notes"])
            work = meta.get("work")
            tape.work = None if work is None else Work(str(work["unit"]), tuple(map(int, work["counts"])),
                                                       int(work["resident"]), bool(work.get("races", False)))
            at = 0
            for end in ends.tolist():
                tape.blobs.append(blobs[at:end])
                at = end
            tape.validate()
        except TapeError as error:
            raise TapeError(error.message, path, error.line) from None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise TapeError(f"not a readable tape: {error}", path) from error
        return tape

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tape:
        """Reads a tape (``.npz``) or a recording; which importer understands a recording is found by looking at it.

        ``.xz`` and ``.gz`` are read transparently. Raises OSError as open(2) does, and TapeError with file and line
        when the content is malformed, is no recording, or describes something impossible.
        """
        from pykmm.tape_import import import_recording

        name = os.fspath(path)
        with open(name, "rb") as box:
            magic = box.read(4)
        if magic.startswith(b"PK"):
            return cls._load_npz(name)
        return import_recording(name)
