# SPDX-License-Identifier: GPL-2.0-only
"""From recorded events to a tape: processes, threads, mappings, and an order in which every operation is possible.

Importers parse their text into :class:`Event` and hand them to :class:`Recording`. It walks all threads at once in the
order of their effects: a call that makes a mapping takes effect when it returns, one that removes something when it is
called, execve when it is called (faults taken inside it belong to the new image). Where clocks or overlapping calls
contradict that (an mmap over addresses that another thread's munmap is about to free) the thread waits for what makes
its operation possible. What nothing explains is evidence of mappings that the recording does not show: they are assumed
where the address space begins (KMM_OP_MAP), counted and reported.

Kinds of access are not recorded. On a writable mapping a fault is a write, except that of two faults on one page with
no change between (munmap, mprotect, MADV_DONTNEED, fork ...) the first is a read, unless two threads took them within
50 microseconds. Elsewhere a fault on an executable mapping is an instruction fetch, on any other a read. On an assumed
mapping of a named object the first is a read and the second a write.
"""
from __future__ import annotations

import heapq

from pykmm.tape import Tape
from pykmm.tape_calls import FIXED, Calls
from pykmm.tape_evidence import Event, Mm, Process, Row, Thread, pages_of
from pykmm.tape_layout import Layout

__all__ = ["SYSTEM_CALLS", "Event", "Recording"]

#: Name of a system call, as recordings have it: what it is as an :class:`Event`. Other calls are not replayed.
SYSTEM_CALLS = {
    "mmap": "mmap", "mmap_pgoff": "mmap", "munmap": "munmap", "mprotect": "mprotect", "pkey_mprotect": "mprotect",
    "mremap": "mremap", "madvise": "madvise", "brk": "brk", "mlock": "mlock", "mlock2": "mlock", "munlock": "munlock",
    "mlockall": "mlockall", "munlockall": "munlockall", "msync": "msync", "mincore": "mincore", "mbind": "mbind",
    "clone": "clone", "clone3": "clone", "fork": "clone", "vfork": "clone", "execve": "exec", "execveat": "exec",
    "exit": "exit", "exit_group": "exit_group",
}
WINDOW = 0.05                   # seconds a thread waits for what makes its operation possible


class Recording(Calls):
    """Builds the tape of one recording."""

    # -- entry -------------------------------------------------------------------------------------

    def build(self, events: dict[int, list[Event]], children: dict[int, tuple[int, str]], names: dict[int, str],
              main_tid: int) -> Tape:
        """The tape. ``events`` per thread, in the thread's order; ``children``: tid -> (parent tid, "thread",
        "fork", "vfork" or "?")."""
        self.names, self.children, self.main_tid = names, children, main_tid
        for lines in (self.start_maps, self.end_maps):
            for line in lines or ():
                if line.ino:
                    self.sizes[line.name] = (line.dev, line.ino)
        self._survey(events)
        for tid, mine in events.items():
            self._effects(mine)
            self.threads[tid] = Thread(tid, mine)
        self.main_execs = sum(e.kind == "exec" and e.result == 0 for e in events.get(main_tid, ()))
        order = sorted(self.threads.values(), key=lambda t: (t.events[0].effect, t.events[0].line) if t.events
                       else (0.0, 0))
        for thread in order:
            parent = children.get(thread.tid, (None, ""))[0]
            if thread.tid == main_tid or parent is None or parent not in self.threads:
                self._start_root(thread)
        self._run()
        return self._finish()

    def _survey(self, events: dict[int, list[Event]]) -> None:
        """Which gigabytes are in use, so that assumed objects get places of their own."""
        for mine in events.values():
            for event in mine:
                if event.kind == "fault":
                    if event.args[0] is None:
                        self.used.add(event.args[1] >> 30)
                elif event.result is not None and event.result > 0:
                    length = event.args.get("len", 0) if isinstance(event.args, dict) else 0
                    self.used.update(range(event.result >> 30, min((event.result + length) >> 30,
                                                                   (event.result >> 30) + 4096) + 1))

    @staticmethod
    def _effects(events: list[Event]) -> None:
        for event in events:
            if event.kind in ("mmap", "mremap", "brk", "mprotect", "mlock", "munlock", "msync", "mincore", "mbind"):
                event.effect = max(event.end, event.start)
            else:
                event.effect = event.start
        events.sort(key=lambda e: (e.effect, e.line))

    # -- threads and processes -----------------------------------------------------------------------

    def _start_root(self, thread: Thread) -> None:
        """A thread that nobody is seen to make: a process, whose mappings are evidence (or the main process)."""
        if thread.tid == self.main_tid or not self.mms:
            number = 0
        else:
            number = self.tape.new_mm()
            self._remark(f"processes without a recorded start: first {self.names.get(thread.tid, '?')}/{thread.tid}")
        self._register(thread)
        row = self._row("NOP", thread, number, thread.events[0] if thread.events else None)
        mm = Mm(number, Layout(), row)
        self.mms.append(mm)
        process = Process(thread.tid, mm)
        process.live.add(thread.tid)
        thread.process = process
        if thread.tid == self.main_tid:
            self.main = process
            if not self.main_execs and self.start_maps:
                self._start_mappings(thread, mm)
        self._push(thread)

    def _register(self, thread: Thread) -> None:
        pid = thread.process.pid if thread.process else thread.tid
        thread.index = self.tape.add_thread(pid, thread.tid, self.names.get(thread.tid, ""))

    def _push(self, thread: Thread) -> None:
        if thread.next < len(thread.events):
            event = thread.events[thread.next]
            heapq.heappush(self.heap, (event.effect, event.line, thread.tid))
        else:
            self._ended(thread)

    def _ended(self, thread: Thread) -> None:
        """No further events of this thread."""
        self._release(thread, None)
        process = thread.process
        assert process is not None
        process.live.discard(thread.tid)
        if not process.live and process.exit is not None:
            by, event = process.exit
            process.exit = None
            if process is not self.main and not process.borrowed:
                self._row("EXIT", by, process.mm.number, event)

    def _release(self, thread: Thread, row: Row | None) -> None:
        """The vfork parent goes on."""
        for parent in thread.until_exec:
            parent.waits_for = None
            parent.edge = row
            self._push(parent)
        thread.until_exec = []

    def _run(self) -> None:
        while self.heap or self.parked:
            if self.parked and (not self.heap or min(t.deadline for t in self.parked) < self.heap[0][0]):
                thread = min(self.parked, key=lambda t: t.deadline)
                self.parked.remove(thread)
                self._step(thread, True)
                continue
            self._step(self.threads[heapq.heappop(self.heap)[2]], False)

    def _step(self, thread: Thread, force: bool) -> None:
        event = thread.events[thread.next]
        if not force and not self._possible(thread, event):
            thread.deadline = event.effect + WINDOW
            self.parked.append(thread)
            return
        thread.next += 1
        process = thread.process
        assert process is not None
        before = len(self.rows)
        if event.kind == "fault":
            self._fault(thread, process.mm, event)
        else:
            getattr(self, "_do_" + event.kind)(thread, process.mm, event)
        if thread.edge is not None and len(self.rows) > before:
            self.edges.append((thread.edge, self.rows[before]))
            thread.edge = None
        if thread.waits_for is None:
            self._push(thread)
        if event.kind != "fault" and self.parked:
            again = [t for t in self.parked if self._possible(t, t.events[t.next])]
            for other in again:
                self.parked.remove(other)
                self._push(other)

    def _possible(self, thread: Thread, event: Event) -> bool:
        process = thread.process
        assert process is not None
        if len(process.live) < 2 and not process.borrowed:
            return True
        layout = process.mm.layout
        if event.kind == "fault":
            name, address = event.args[:2]
            if name is not None:
                return True
            piece = layout.find(address)
            return (piece is not None and piece.prot != 0) or layout.grows_to(address) is not None
        if event.kind == "mmap" and event.result is not None and event.result > 0:
            if event.args["flags"] & FIXED:
                return True
            return not layout.overlapping(event.result, event.result + pages_of(event.args["len"]))
        if event.kind in ("munmap", "mprotect") and event.result == 0:
            address = event.args["addr"]
            return bool(layout.overlapping(address, address + pages_of(event.args["len"])))
        return True

    # -- calls that make and end processes ---------------------------------------------------------------------

    def _do_clone(self, thread: Thread, mm: Mm, event: Event) -> None:
        child = self.threads.get(event.result) if event.result is not None and event.result > 0 else None
        if child is None or child.process is not None or child is thread:
            self._row("NOP", thread, mm.number, event)
            if event.result is not None and event.result > 0 and child is None:
                self._remark(f"children that did nothing recorded: first {event.result} at line {event.line}")
            return
        kind = self.children.get(child.tid, (thread.tid, "thread"))[1]
        process = thread.process
        assert process is not None
        if kind == "thread":
            row = self._row("NOP", thread, mm.number, event)
            child.process = process
            process.live.add(child.tid)
            self._register(child)
        elif kind == "vfork":
            row = self._row("NOP", thread, mm.number, event)
            child.process = Process(child.tid, mm)
            child.process.live.add(child.tid)
            child.process.borrowed = True
            self._register(child)
            child.until_exec.append(thread)
            thread.waits_for = child.tid
        else:
            number = self.tape.new_mm()
            row = self._row("FORK", thread, mm.number, event, mm2=number)
            new = Mm(number, mm.layout.copy(epoch=len(self.rows)), row, mm)
            child.process = Process(child.tid, new)
            child.process.live.add(child.tid)
            self._register(child)
            new.anchor = self._row("NOP", child, number, None)
            self.mms.append(new)
        self.start_after[child.index] = row
        self._push(child)

    def _do_exec(self, thread: Thread, mm: Mm, event: Event) -> None:
        process = thread.process
        assert process is not None
        if event.result != 0:
            self._row("NOP", thread, mm.number, event)
            return
        main = process is self.main
        if main:
            self.main_execs -= 1
        fresh = (mm is self.mms[0] and len(process.live) == 1 and not process.borrowed
                 and all(row[18] == 0 for row in self.rows))
        if fresh:                                   # nothing happened before: the address space is still empty
            row = self._row("NOP", thread, mm.number, event)
            mm.anchor = row
            new = mm
        else:
            number = self.tape.new_mm()
            row = self._row("EXEC", thread, mm.number, event, mm2=number)
            if not process.borrowed and len(process.live) == 1:
                self._row("EXIT", thread, mm.number, None)
            anchor = self._row("NOP", thread, number, None)
            new = Mm(number, Layout(), anchor)
            self.mms.append(new)
        if process.borrowed:
            process.borrowed = False
        process.mm = new
        if main and self.main_execs == 0 and self.start_maps:
            self._start_mappings(thread, new)
        self._release(thread, row)

    def _do_exit(self, thread: Thread, mm: Mm, event: Event) -> None:
        row = self._row("NOP", thread, mm.number, event)
        self._release(thread, row)

    def _do_exit_group(self, thread: Thread, mm: Mm, event: Event) -> None:
        row = self._row("NOP", thread, mm.number, event)
        assert thread.process is not None
        thread.process.exit = (thread, event)
        self._release(thread, row)

    # -- the end ---------------------------------------------------------------------------------------------

    def _finish(self) -> Tape:
        tape = self.tape
        never = [t for t in self.threads.values() if t.process is None and t.events]
        if never:
            self._remark(f"threads that are never reached: first {never[0].tid}", len(never))
        before: dict[int, list[Row]] = {}
        after: dict[int, list[Row]] = {}
        for mm in self.mms:
            if mm.origin is not mm and mm.origin.number not in self.tape.start_maps:
                mm.origin.assumed += mm.assumed
                mm.assumed = []
        for mm in self.mms:
            self._place_assumed(mm, before, after)
        if self.main is not None:
            tape.main_mm = self.main.mm.number
            if self.end_maps:
                tape.end_maps[tape.main_mm] = list(self.end_maps)
        rows: list[Row] = []
        for row in self.rows:
            rows.extend(before.get(id(row), ()))
            rows.append(row)
            rows.extend(after.get(id(row), ()))
        rows = [row for row in rows if id(row) not in self.placeholders]
        index = {id(row): i for i, row in enumerate(rows)}
        self._number_files(rows)
        self._fit(rows)
        tape.extend([tuple(row) for row in rows])
        for thread, row in self.start_after.items():
            tape.threads[thread].start_after = index[id(row)]
        for first, second in self.edges:
            if id(second) in index:
                tape.edges.append((index[id(first)], index[id(second)]))
        self.notes.remarks.extend(f"{count} {text}" for text, count in self.remarks.items())
        return tape
