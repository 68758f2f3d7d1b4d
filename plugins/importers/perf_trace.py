# SPDX-License-Identifier: GPL-2.0-only
"""tools/perf/builtin-trace.c, read backwards: tapes from the text of ``perf trace -F all -e mmap,munmap,...``.

Each line is a fault, a call with its duration, the beginning of a call that was interrupted in the listing (``...``) or
its end (``[continued]``). Lines are not quite in the order of time, and where perf met events out of order it joins the
beginning of one call to the end of another; both are undone here: calls whose durations are impossible (negative, or
overlapping another call of the same thread) are taken apart and joined again by time.
"""
from __future__ import annotations

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

__all__ = ["PerfTraceImporter", "pykmm_register_importers"]

_LINE = re.compile(
    r"\s*(\?|\d+\.\d+) \(\s*(?:(\d+\.\d+) ms)?\s*\): (?:(.*?)/(\d+) +)?"
    r"((?:min|maj)fault|\.\.\. \[continued\]: |\w+(?=\()|\()")
_FAULT = re.compile(r" \[.*\] => (.*) \((.)(.)\)$")
_TARGET = re.compile(r"(.*)@0x([0-9a-f]+)$")
_CALL = re.compile(r"\((.*?)\)? +(?:\.\.\.|= *(.*))$")
_RESULT = re.compile(r"(-?(?:0x[0-9a-f]+|\d+))(?: .*)?$")
_UNKNOWN = float("-inf")        # a time that is found later
_WRAP = (1 << 64) / 1e6         # milliseconds: a negative duration as an unsigned number of nanoseconds
#: what perf calls memory without a file in which it looked for the symbols of a JIT: an address follows, no offset
_JIT_MAP = re.compile(r"/perf-\d+\.map$")
#: objects of which perf prints addresses, not offsets
_ABSOLUTE = ("//anon", "/dev/zero", "/anon_hugepage", "[stack", "/SYSV", "[heap]", "[anon")
_MADE_AN_ADDRESS = {"mmap", "mremap", "brk"}


class _Call:
    """The beginning of a call, until its end is found."""

    __slots__ = ("time", "end", "name", "text", "result", "line")

    def __init__(self, time: float, end: float, name: str, text: str, result: str | None, line: int) -> None:
        self.time = time
        self.end = end
        self.name = name
        self.text = text
        self.result = result
        self.line = line


class PerfTraceImporter:
    """The text that ``perf trace`` writes, faults included."""

    name = "perf-trace"
    description = "perf trace -F all -e mmap,munmap,... text: page faults and memory system calls"

    def sniff(self, first_lines: list[str], path: str) -> bool:
        """At least a quarter of the first lines, and more than none, look like perf trace's."""
        written = [line for line in first_lines if line.strip()]
        return sum(_LINE.match(line) is not None for line in written) * 4 > len(written) > 0

    def load(self, path: str, lines: Iterable[str]) -> Tape:
        """The tape. Raises TapeError with file and line for what cannot have happened."""
        return _Reader(path).read(lines)


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path
        self.notes = Notes()
        self.faults: dict[int, list[Event]] = {}
        self.calls: dict[int, list[_Call]] = {}
        self.ends: dict[int, list[_Call]] = {}
        self.order: list[int] = []              # threads as they appear
        self.names: dict[int, str] = {}
        self.born: dict[int, str] = {}          # tid -> the call that made it
        self.kernel: dict[int, float] = {}      # start of the run of faults taken by the kernel
        self.events: dict[int, list[Event]] = {}

    def read(self, lines: Iterable[str]) -> Tape:
        count = 0
        parsed = 0
        for count, text in enumerate(lines, 1):
            if self._line(count, text):
                parsed += 1
            elif text.strip():
                self.notes.unknown_line("not a line of perf trace", count, text)
        self.notes.lines = count
        if not parsed or sum(self.notes.unknown.values()) > parsed:
            raise TapeError("hardly a line is perf trace's", self.path, 1)
        for tid in self.order:
            self.events[tid] = self._join(tid)
        children = self._children()
        first = min((events[0].effect, events[0].line, tid) for tid, events in self.events.items()
                    if events and tid not in children)[2] if any(
                        events and tid not in children for tid, events in self.events.items()) else -1
        if first < 0:
            raise TapeError("no operation of any process", self.path, count)
        self.notes.remarks.append("kinds of access are inferred: perf trace does not show them")
        recording = Recording(self.path, self.notes, maps_beside(self.path, "start"), maps_beside(self.path, "end"))
        return recording.build(self.events, children, self.names, first)

    # -- lines --------------------------------------------------------------------------------------

    def _line(self, number: int, text: str) -> bool:
        match = _LINE.match(text)
        if match is None:
            return False
        when, took, comm, tid_text, what = match.groups()
        tid = int(tid_text or 0)                # a single thread (-p) is not named
        comm = comm or ""
        if tid not in self.names:
            self.order.append(tid)
            self.names[tid] = comm
            self.faults[tid], self.calls[tid], self.ends[tid] = [], [], []
        elif not comm.startswith(":"):
            self.names[tid] = comm
        rest = text[match.end():].rstrip()
        if what.endswith("fault"):
            return when != "?" and self._fault(number, tid, float(when) / 1e3, what, rest)
        continued = what.startswith("...")
        start = None if when == "?" else float(when)
        end = None
        if took is not None and start is not None:
            duration = float(took)
            end = start + (duration - _WRAP if duration > _WRAP / 2 else duration)
        if continued:
            name, _, rest = rest.partition("(")
            rest = "(" + rest
        else:
            name = what
        call = _CALL.match(rest)
        if call is None:
            return False
        known = name in SYSTEM_CALLS
        self.notes.calls[name] = self.notes.calls.get(name, 0) + (0 if continued else 1)
        if not known:
            self.notes.unknown_line(f"system call {name} is not replayed", number, text)
            return True
        args, result = call[1], call[2]
        if continued and SYSTEM_CALLS[name] == "clone" and result in ("", "0"):
            self.born.setdefault(tid, name)     # the child's side; its time, if any, is of something else
            return True
        if start is None and (continued or name == "execve"):
            return self._unstarted(number, tid, name, result)
        if start is None:
            return False
        if continued:
            self.ends[tid].append(_Call(start, end if end is not None else start, name, "", result, number))
        else:
            self.kernel.pop(tid, None)
            self.calls[tid].append(_Call(start, end if end is not None else start, name, args, result, number))
        return True

    def _unstarted(self, number: int, tid: int, name: str, result: str) -> bool:
        """The end of a call that began before the recording did, or in the parent."""
        kind = SYSTEM_CALLS[name]
        if kind == "exec" and not result.startswith("-"):
            start = self.kernel.pop(tid, None)
            self.notes.calls["execve"] = self.notes.calls.get("execve", 0) + 1
            # just before the faults that the kernel took inside it, else before the thread's next event
            time = _UNKNOWN if start is None else start * 1e3 - 1e-4
            self.calls[tid].append(_Call(time, time, name, "", "0", number))
            return True
        begun = next((c for c in reversed(self.calls[tid]) if c.result is None and c.name == name), None)
        if begun is None:
            self.notes.unknown_line("the end of a call without its beginning", number, name)
        else:                                   # when it ended is not printed: before the thread's next event
            begun.result, begun.end = result, _UNKNOWN
            begun.line = number
        return True

    def _fault(self, number: int, tid: int, time: float, what: str, rest: str) -> bool:
        match = _FAULT.match(rest)
        if match is None:
            return False
        target = match[1]
        if match[2] == "?" and match[3] == "k":
            self.kernel.setdefault(tid, time)
        else:
            self.kernel.pop(tid, None)
        named = _TARGET.match(target)
        args: tuple[Any, ...]
        if named is not None:
            name, address = named[1], int(named[2], 16)
            if name.startswith(_ABSOLUTE) or _JIT_MAP.search(name):
                args = (None, address, name)
            else:
                if name.rsplit("/", 1)[-1].startswith("perf-vdso.so"):
                    name = "[vdso]"
                args = (name, address, "")
        else:
            try:
                args = (None, int(target, 16), "")
            except ValueError:
                return False
        kind = "minor" if what == "minfault" else "major"
        self.notes.faults[kind] = self.notes.faults.get(kind, 0) + 1
        self.faults[tid].append(Event(tid, time, time, "fault", args, None, number))
        return True

    # -- calls ----------------------------------------------------------------------------------------

    def _join(self, tid: int) -> list[Event]:
        """All events of one thread in order, with every call's end found by time."""
        events = self.faults[tid]
        calls, ends = self.calls[tid], self.ends[tid]
        for call in calls:
            if _UNKNOWN in (call.time, call.end):
                later = min((x for x in (*(e.start * 1e3 for e in events if e.line > call.line),
                                         *(c.time for c in calls if c.line > call.line and c.time != _UNKNOWN))),
                            default=max(call.time, 0.0))
                if call.time == _UNKNOWN:
                    call.time = later
                if call.end == _UNKNOWN:
                    call.end = max(later, call.time)
        by_time = {}
        for call in calls:
            if call.result is None:
                by_time[call.time] = call
        orphans: list[_Call] = []
        for end in ends:
            begun = by_time.pop(end.time, None)
            if begun is None or begun.name != end.name:
                orphans.append(end)
                if begun is not None:
                    by_time[end.time] = begun
            else:
                begun.end, begun.result = end.end, end.result
        calls.sort(key=lambda c: (c.time, c.line))
        broken = bool(orphans)
        for call, following in zip(calls, [*calls[1:], None], strict=False):
            if call.result is not None and (call.end < call.time - 0.0005
                                            or (following is not None and call.end > following.time + 0.0015)):
                broken = True
        if broken:
            self._rejoin(calls, orphans)
        for call in calls:
            event = self._event(tid, call)
            if event is not None:
                events.append(event)
        events.sort(key=lambda e: (e.start, e.line))
        return events

    def _rejoin(self, calls: list[_Call], orphans: list[_Call]) -> None:
        """Takes beginnings and ends apart and joins each end to the last beginning before it."""
        moments: list[tuple[float, int, _Call, str | None]] = []
        for call in calls:
            moments.append((call.time, 0, call, None))
            if call.result is not None and call.name not in ("exit", "exit_group"):
                order = 1 if call.end >= call.time else -1
                moments.append((call.end, order, call, call.result))
        moments += [(end.end, 1, end, end.result) for end in orphans]
        results: list[tuple[_Call, float, str]] = []
        guessed: list[_Call] = []
        open_call: _Call | None = None
        for time, _, call, result in sorted(moments, key=lambda m: (m[0], m[1])):
            if result is None:
                open_call = call
                continue
            if open_call is not None and self._fits(open_call, result):
                results.append((open_call, time, result))
                open_call = None
            elif not self._guess(calls, guessed, call, time, result):
                self.notes.unknown_line("the end of a call without its beginning", call.line, f"{call.name} {result}")
        for call in calls:
            if call.name not in ("exit", "exit_group"):
                call.result, call.end = None, call.time
        for call, time, result in results:
            call.result, call.end = result, time
        calls.extend(guessed)

    def _guess(self, calls: list[_Call], guessed: list[_Call], end: _Call, time: float, result: str) -> bool:
        """An mmap of which only the end is recorded: as the thread's mmap before it, as long as its munmap says."""
        if end.name != "mmap" or not result.startswith("0x"):
            return False
        model = next((c for c in reversed(calls) if c.name == "mmap" and c.time < time and "FIXED" not in c.text
                      and "fd: " not in c.text), None)
        freed = next((c for c in calls if c.name == "munmap" and c.time > time
                      and c.text.startswith(f"addr: {result},")), None)
        if model is None or freed is None:
            return False
        length = freed.text.partition("len: ")[2]
        text = re.sub(r"(?:addr: \w+, )?len: \w+", f"len: {length}", model.text, count=1)
        guessed.append(_Call(time, time, "mmap", text, result, end.line))
        self.notes.unknown_line("mmap of which only the end is recorded (taken to be as the one before it)",
                                end.line, f"mmap = {result}")
        return True

    @staticmethod
    def _fits(call: _Call, result: str) -> bool:
        kind = SYSTEM_CALLS[call.name]
        if kind in ("clone", "exec") or result.startswith("-"):
            return True
        return result.startswith("0x") == (kind in _MADE_AN_ADDRESS)

    def _event(self, tid: int, call: _Call) -> Event | None:
        kind = SYSTEM_CALLS[call.name]
        result: int | None = None
        if call.result is not None and call.result not in ("", "?"):
            match = _RESULT.match(call.result)
            if match is None:
                self.notes.unknown_line("result not understood", call.line, f"{call.name} = {call.result}")
            else:
                result = int(match[1], 0)
                if result == -1 and " " in call.result:
                    try:
                        result = -_flags.errno_value(call.result.split()[1])
                    except ValueError:
                        self.notes.unknown_line("errno not understood", call.line, call.result)
                        result = -22
        try:
            args = self._args(kind, call.text)
        except (ValueError, KeyError) as error:
            if result is not None and result < 0:
                kind, args = "nop", {}
            else:
                self.notes.unknown_line(f"arguments of {call.name} not understood ({error})", call.line, call.text)
                return None
        if kind == "clone":
            args["name"], args["text"] = call.name, call.text
        if kind == "mmap" and result == 0 and not args["flags"] & _flags.MAP["MAP_FIXED"]:
            raise TapeError("impossible: mmap recorded as successful with result 0", self.path, call.line)
        end = max(call.end, call.time)
        return Event(tid, call.time / 1e3, end / 1e3, kind, args, result, call.line)

    @staticmethod
    def _args(kind: str, text: str) -> dict[str, Any]:
        if kind in ("exec", "exit", "exit_group"):
            return {}
        found: dict[str, str] = {}
        for part in text.split(", "):
            key, colon, value = part.partition(": ")
            if colon:
                found[key.strip()] = value.strip()
            elif key.strip().endswith(":"):
                found[key.strip()[:-1]] = ""

        def number(*keys: str) -> int:
            for key in keys:
                if found.get(key):
                    return int(found[key], 0)
            return 0

        if kind == "mmap":
            return {"addr": number("addr"), "len": number("len"), "prot": _flags.parse_prot(found.get("prot", "") or 0),
                    "flags": _flags.parse_map(found.get("flags", "")), "fd": number("fd"),
                    "offset": number("off", "offset", "pgoff")}
        if kind == "mremap":
            return {"addr": number("addr"), "len": number("old_len"), "new_len": number("new_len"),
                    "flags": _flags.parse_flags(found.get("flags", ""), _flags.MREMAP), "new_addr": number("new_addr")}
        if kind == "brk":
            return {"addr": number("brk")}
        args: dict[str, Any] = {"addr": number("start", "addr"), "len": number("len", "len_in", "length")}
        if kind == "mprotect":
            args["prot"] = _flags.parse_prot(found.get("prot", "") or 0)
        elif kind == "madvise":
            if "behavior" in found and not found["behavior"]:
                raise ValueError("unknown advice")
            args["flags"] = _flags.parse_madvise(found.get("behavior", "MADV_NORMAL"))
        elif kind == "mlockall":
            args["flags"] = _flags.parse_flags(found.get("flags", ""), _flags.MCL)
        elif kind == "msync":
            args["flags"] = _flags.parse_flags(found.get("flags", ""), _flags.MS)
        elif kind == "mlock":
            args["flags"] = _flags.parse_flags(found.get("flags", ""), _flags.MLOCK)
        elif kind == "mbind":
            args["flags"] = _flags.parse_mode(found.get("mode", ""))
        return args

    # -- who made whom ------------------------------------------------------------------------------------

    def _children(self) -> dict[int, tuple[int, str]]:
        """tid -> (the thread that made it, how)."""
        found: dict[int, tuple[int, str]] = {}
        for parent, events in self.events.items():
            for event in events:
                child = event.result
                if event.kind != "clone" or child is None or child <= 0 or child == parent:
                    continue
                if child in self.events and child not in found:
                    found[child] = (parent, self._how(event, child))
        # The end of the call that made a thread may be lost: then a call without end of the same kind made it.
        for child, name in self.born.items():
            if child in found or not self.events.get(child):
                continue
            begin = self.events[child][0].start
            open_calls = [(e.start, e) for events in self.events.values() for e in events
                          if e.kind == "clone" and e.result is None and e.args["name"] == name and e.tid != child
                          and e.start <= begin]
            if open_calls:
                event = max(open_calls, key=lambda x: x[0])[1]
                event.result = child
                found[child] = (event.tid, self._how(event, child))
        return found

    def _how(self, event: Event, child: int) -> str:
        name, text = event.args["name"], event.args["text"]
        if name in ("fork", "vfork"):
            return str(name)
        mine = self.events[child]
        execs = next((e for e in mine if e.kind == "exec" and e.result == 0), None)
        if name == "clone" and "clone_flags" in text:
            words = text.partition("clone_flags: ")[2].partition(",")[0].split("|")
            if "THREAD" in words:
                return "thread"
            return "vfork" if "VFORK" in words else "thread" if "VM" in words else "fork"
        if execs is not None:
            return "vfork" if event.end > execs.start else "fork"
        ended = next((e for e in mine if e.kind == "exit_group"), None)
        if ended is not None and any(e.start > ended.start + 0.005 for e in self.events[event.tid]):
            return "fork"
        return "thread"


@hookimpl
def pykmm_register_importers(registry: Registry) -> None:
    """Adds ``perf-trace``."""
    registry.add("perf-trace", PerfTraceImporter, description=PerfTraceImporter.description)
