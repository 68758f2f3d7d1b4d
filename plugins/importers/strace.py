# SPDX-License-Identifier: GPL-2.0-only
"""strace(1): tapes from the text of ``strace -f``. It shows calls only: such a tape has no touches.

Understood are files of ``-o`` (leading pid) and the terminal's form (``[pid N]``), the time stamps of -t, -tt, -ttt and
-r, durations of -T, file names of -y (or learnt from openat), and calls split into ``<unfinished ...>`` and
``<... resumed>``. The order of lines is the order of beginnings and ends, as one tracer saw them.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pykmm import flags as _flags
from pykmm.errors import TapeError
from pykmm.hookspecs import hookimpl
from pykmm.tape import Notes, Tape
from pykmm.tape_import import maps_beside
from pykmm.tape_recording import SYSTEM_CALLS, Event, Recording

if TYPE_CHECKING:
    from pykmm.plugin import Registry

__all__ = ["StraceImporter", "pykmm_register_importers"]

_HEAD = re.compile(
    r"(?:\[pid +(\d+)\] +|(\d+) +(?![.:]))?"
    r"(?:(\d\d:\d\d:\d\d(?:\.\d+)?|\d+\.\d+) +)?(?:\(\+ *(\d+\.\d+)\) +)?(?:\[[0-9a-f]+\] )?(.*)$")
_CALL = re.compile(r"(\w+)\((.*)$")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>,? ?(.*)$")
_END = re.compile(r"(.*?)\)? += (\?|-?\d+|0x[0-9a-f]+)(?:<([^>]*)>)?(?: ([A-Z]\w+))?(?: \(.*?\))?(?: <(\d+\.\d+)>)?$")
_ATTACHED = re.compile(r"(?:strace: )?Process (\d+) attached(?: \(.*\))?$")
_QUIET = re.compile(r"(?:\+\+\+ .* \+\+\+|--- .* ---|strace: .*|Process \d+ (?:attached|detached|resumed).*)$")
_FD = re.compile(r"(-?\d+)(?:<(.*)>)?$")
_TICK = 1e-4                    # one line, as time: only the order counts
#: calls that change an address space and are not replayed
_UNSUPPORTED = {"remap_file_pages", "process_madvise", "shmat", "shmdt", "userfaultfd", "process_vm_writev",
                "mseal", "map_shadow_stack"}
_OPENS = {"open", "openat", "openat2", "creat", "memfd_create"}
_FLAG_FAMILY = {"madvise": _flags.MADV, "mlockall": _flags.MCL, "msync": _flags.MS}


def _split(text: str) -> list[str]:
    """Arguments: commas outside brackets, braces, angle brackets and quotes."""
    parts, depth, start, quoted, i = [], 0, 0, False, 0
    while i < len(text):
        char = text[i]
        if quoted:
            if char == "\\":
                i += 1
            elif char == '"':
                quoted = False
        elif char == '"':
            quoted = True
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "<" and i and text[i - 1].isdigit() and not text.startswith("<<", i) and text[i - 1] != "<":
            close = text.find(">", i)
            i = close if close > 0 else i
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
        i += 1
    last = text[start:].strip()
    return [*parts, last] if last or parts else []


class StraceImporter:
    """The text that ``strace -f`` writes."""

    name = "strace"
    description = "strace -f text: memory system calls without touches"

    def sniff(self, first_lines: list[str], path: str) -> bool:
        """Half of the first lines, and more than none, look like strace's."""
        written = [line for line in first_lines if line.strip()]
        found = 0
        for line in written:
            match = _HEAD.match(line.strip())
            rest = match[5] if match else ""
            if _RESUMED.match(rest) or _QUIET.match(rest):
                found += 1
            elif (call := _CALL.match(rest)) is not None:
                found += rest.endswith("<unfinished ...>") or _END.match(call[2]) is not None
        return found * 2 > len(written) > 0

    def load(self, path: str, lines: Iterable[str]) -> Tape:
        """The tape. Raises TapeError with file and line for what cannot have happened."""
        return _Reader(path).read(lines)


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path
        self.notes = Notes()
        self.events: dict[int, list[Event]] = {}
        self.open: dict[int, tuple[str, str, int, float]] = {}     # tid -> call, arguments, line, time
        self.children: dict[int, tuple[int, str]] = {}
        self.fds: dict[int, dict[int, str]] = {}
        self.alias: dict[int, int] = {}
        self.main: int | None = None
        self.clock = 0.0
        self.others = 0
        self.ended: dict[int, str] = {}
        self.cut: tuple[int, str, float] | None = None              # a line that "Process N attached" broke

    def read(self, lines: Iterable[str]) -> Tape:
        number = parsed = 0
        for number, text in enumerate(lines, 1):
            if self._line(number, text.strip()):
                parsed += 1
            elif text.strip():
                self.notes.unknown_line("not a line of strace", number, text)
        self.notes.lines = number
        if not parsed or sum(self.notes.unknown.values()) > parsed or self.main is None:
            raise TapeError("hardly a line is strace's", self.path, 1)
        for tid, (name, text, line, time) in self.open.items():
            if name in SYSTEM_CALLS:
                self._event(tid, name, text, None, "", "", line, line, time)
        self.notes.remarks.append("strace shows no page faults: the tape has calls only")
        if self.others:
            self.notes.remarks.append(f"{self.others} calls that do not concern address spaces were passed over")
        recording = Recording(self.path, self.notes, maps_beside(self.path, "start"), maps_beside(self.path, "end"))
        for tid in self.children:
            self.events.setdefault(tid, [])
        return recording.build(self.events, self.children, {}, self.main)

    def _line(self, number: int, text: str) -> bool:
        match = _HEAD.match(text)
        assert match is not None
        bracket, leading, stamp, _delta, rest = match.groups()
        tid = self._tid(int(bracket or leading or 0))
        time = self._time(stamp)
        if not rest:
            return not text
        if self.cut is not None and rest == "<unfinished ...>":     # the rest of the broken line
            self.cut = None
            return True
        broken = re.search(r"strace: Process (\d+) attached$", rest)
        if broken is not None and broken.start() > 0:
            self.open[tid] = (rest.partition("(")[0], rest.partition("(")[2][:broken.start()], number, time)
            self.cut = (tid, rest[:broken.start()], time)
            return True
        if _ATTACHED.match(rest) is not None:
            return True
        if rest.startswith("+++"):
            self.ended[tid] = rest
            mine = self.events.setdefault(tid, [])
            if not mine or mine[-1].kind not in ("exit", "exit_group"):
                kind = "exit" if self.children.get(tid, (0, ""))[1] == "thread" else "exit_group"
                mine.append(self._make(tid, kind, {}, None, number, number, time))
            return True
        if _QUIET.match(rest) is not None:
            return True
        resumed = _RESUMED.match(rest)
        if resumed is not None:
            begun = self.open.pop(tid, None)
            if begun is None or begun[0] != resumed[1]:
                self.notes.unknown_line("the end of a call without its beginning", number, text)
                return True
            joined = begun[1].rstrip()
            if joined and not joined.endswith((",", "(", "{", "[")) and resumed[2][:1] not in (")", ",", "", "}", "]"):
                joined += " "
            return self._complete(tid, begun[0], joined + resumed[2], begun[2], number, begun[3], text)
        call = _CALL.match(rest)
        if call is None:
            if self.cut is not None and tid in (self.cut[0], self.main):
                cut_tid, head, cut_time = self.cut
                self.cut = None
                self.open.pop(cut_tid, None)
                begin = _CALL.match(head)
                if begin is not None:
                    return self._complete(cut_tid, begin[1], begin[2] + rest, number, number, cut_time, text)
            return False
        name, arguments = call[1], call[2]
        if arguments.endswith("<unfinished ...>"):
            self.open[tid] = (name, arguments[:-len("<unfinished ...>")].rstrip(), number, time)
            return True
        return self._complete(tid, name, arguments, number, number, time, text)

    def _tid(self, number: int) -> int:
        """Lines without a pid are the main thread's, and so is the first pid that nobody made."""
        if number == 0:
            if self.main is None:
                self.main = 0
            return self.main
        if self.main is None:
            self.main = number
        if self.main == 0 and number not in self.children and number not in self.alias and number not in self.events \
                and not self.alias:
            waiting = {t for t, (name, *_rest) in self.open.items() if name in ("clone", "clone3", "fork", "vfork")}
            if not waiting:
                self.alias[number] = 0
        return self.alias.get(number, number)

    def _time(self, stamp: str | None) -> float:
        if stamp is None:
            return math.nan
        if ":" in stamp:
            hours, minutes, seconds = stamp.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        value = float(stamp)
        if value > 1e8:
            return value
        self.clock += value
        return self.clock

    def _complete(self, tid: int, name: str, text: str, first: int, last: int, time: float, whole: str) -> bool:
        end = _END.match(text)
        if end is None:
            return False
        arguments, result, name_of, errno, _took = end.groups()
        if self.main is None:
            self.main = tid
        self.notes.calls[name] = self.notes.calls.get(name, 0) + 1
        if name in _UNSUPPORTED:
            self.notes.unknown_line(f"system call {name} is not replayed", first, whole)
        elif name in SYSTEM_CALLS:
            self._event(tid, name, arguments, result, errno or "", whole, first, last, time)
        else:
            self.others += 1
            self._files(tid, name, arguments, result, name_of)
        return True

    def _table(self, tid: int) -> dict[int, str]:
        seen = tid
        while self.children.get(seen, (0, ""))[1] == "thread":
            seen = self.children[seen][0]
        return self.fds.setdefault(seen, {})

    def _files(self, tid: int, name: str, arguments: str, result: str, name_of: str | None) -> None:
        """What descriptors stand for."""
        if result.startswith("-") or result == "?":
            return
        table = self._table(tid)
        if name in _OPENS:
            named = name_of or next((part.strip('"') for part in _split(arguments) if part.startswith('"')), "")
            table[int(result, 0)] = f"/memfd:{named} (deleted)" if name == "memfd_create" and not name_of else named
        elif name == "close":
            fd = _FD.match(arguments)
            if fd:
                table.pop(int(fd[1]), None)
        elif name in ("dup", "dup2", "dup3") or (name == "fcntl" and "F_DUPFD" in arguments):
            fd = _FD.match(_split(arguments)[0])
            if fd and int(fd[1]) in table:
                table[int(result, 0)] = table[int(fd[1])]

    def _make(self, tid: int, kind: str, args: dict[str, Any], result: int | None, first: int, last: int,
              time: float) -> Event:
        event = Event(tid, first * _TICK, last * _TICK, kind, args, result, first)
        event.time = time
        return event

    def _event(self, tid: int, name: str, text: str, result: str | None, errno: str, whole: str, first: int,
               last: int, time: float) -> None:
        kind = SYSTEM_CALLS[name]
        value: int | None = None
        if result is not None and result != "?":
            value = int(result, 0)
            if value == -1 and errno:
                try:
                    value = -_flags.errno_value(errno)
                except ValueError:
                    value = -22
                    self.notes.unknown_line("errno not understood", first, whole)
        try:
            args = self._args(tid, kind, _split(text))
        except (ValueError, IndexError) as error:
            if value is not None and value >= 0:
                self.notes.unknown_line(f"arguments of {name} not understood ({error})", first, whole or text)
                return
            kind, args = "nop", {}
        if kind == "clone" and value is not None and value > 0:
            child = value
            flags = text.partition("flags=")[2].split(",")[0] if "flags=" in text else ""
            how = name if name in ("fork", "vfork") else "thread" if "CLONE_THREAD" in flags else \
                "vfork" if "CLONE_VFORK" in flags or "CLONE_VM" in flags else "fork"
            self.children[child] = (tid, how)
            if how != "thread" and child not in self.fds:
                self.fds[child] = dict(self._table(tid))
        if kind == "mmap" and value == 0 and not args["flags"] & _flags.MAP["MAP_FIXED"]:
            raise TapeError("impossible: mmap recorded as successful with result 0", self.path, first)
        self.events.setdefault(tid, []).append(self._make(tid, kind, args, value, first, last, time))

    def _args(self, tid: int, kind: str, parts: list[str]) -> dict[str, Any]:
        def number(i: int) -> int:
            if i >= len(parts) or parts[i] == "NULL":
                return 0
            return int(parts[i].partition(" ")[0], 0)

        if kind in ("exec", "exit", "exit_group", "clone", "munlockall"):
            return {}
        if kind == "brk":
            return {"addr": number(0)}
        if kind == "mmap":
            fd = _FD.match(parts[4])
            if fd is None:
                raise ValueError(f"descriptor {parts[4]!r}")
            name = fd[2] or self._table(tid).get(int(fd[1]))
            return {"addr": number(0), "len": number(1), "prot": _flags.parse_prot(parts[2]),
                    "flags": _flags.parse_map(parts[3]), "fd": int(fd[1]), "offset": number(5), "name": name}
        if kind == "mremap":
            return {"addr": number(0), "len": number(1), "new_len": number(2), "new_addr": number(4),
                    "flags": _flags.parse_flags(parts[3], _flags.MREMAP)}
        if kind == "mlockall":
            return {"flags": _flags.parse_flags(parts[0], _flags.MCL)}
        args: dict[str, Any] = {"addr": number(0), "len": number(1)}
        if kind == "mprotect":
            args["prot"] = _flags.parse_prot(parts[2])
        elif kind in _FLAG_FAMILY:
            words = re.sub(r"/\*.*?\*/", "", parts[2]).strip()
            args["flags"] = _flags.parse_flags(words, _FLAG_FAMILY[kind])
        elif kind == "mbind":
            args["flags"] = _flags.parse_mode(re.sub(r"/\*.*?\*/", "", parts[2]).strip())
        elif kind == "mlock" and len(parts) > 2:
            args["flags"] = _flags.parse_flags(parts[2], _flags.MLOCK)
        return args


@hookimpl
def pykmm_register_importers(registry: Registry) -> None:
    """Adds ``strace``."""
    registry.add("strace", StraceImporter, description=StraceImporter.description)
