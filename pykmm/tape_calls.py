# SPDX-License-Identifier: GPL-2.0-only
"""One method for each kind of recorded event: what it does to the mappings, and its row of the tape."""
from __future__ import annotations

from pykmm.errors import TapeError
from pykmm.flags import MADV, MAP, MREMAP
from pykmm.tape import ACCESS, OPCODES
from pykmm.tape_evidence import AT, PAGE, TOP, Event, Evidence, Mm, Row, Thread, pages_of

__all__ = ["FIXED", "Calls"]

RACE = 50e-6
_ANON = MAP["MAP_ANONYMOUS"]
FIXED = MAP["MAP_FIXED"] | MAP["MAP_FIXED_NOREPLACE"]
_DROPS_PAGES = frozenset(MADV[f"MADV_{x}"] for x in ("DONTNEED", "FREE", "REMOVE", "PAGEOUT", "DONTNEED_LOCKED"))


class Calls(Evidence):
    """Faults, and the calls of one address space."""

    # -- faults -------------------------------------------------------------------------------------------

    def _fault(self, thread: Thread, mm: Mm, event: Event) -> None:
        name, address, hint = event.args
        layout = mm.layout
        written: set[int] = set()
        if name is not None:
            whose = mm if mm.origin.number in self.tape.start_maps else mm.origin
            found = self._locate(mm, name, address, 4 if name in whose.named else 1)
            if found is None:
                found = self._base(name) + address
                if found >= 1 << 47:
                    raise TapeError(f"fault at an impossible offset {address:#x} of {name}", self.path, event.line)
                span = whose.named.setdefault(name, [address, address])
                span[0], span[1] = min(span[0], address), max(span[1], address)
                written = whose.written.setdefault(name, set())
                if layout.find(found) is None:
                    piece = layout.map(found & ~(PAGE - 1), (found & ~(PAGE - 1)) + PAGE, 3, MAP["MAP_PRIVATE"],
                                       maker=len(self.rows))
                    piece.tag = "named"
            address = found
        elif not 0 <= address < TOP:
            self._row("NOP", thread, mm.number, event)
            self._remark(f"faults outside user addresses: first at line {event.line}")
            return
        page = address & ~(PAGE - 1)
        piece_at = layout.find(address)
        if piece_at is None:
            piece_at = layout.grows_to(address)
            if piece_at is not None and piece_at.start - page > 1 << 30:
                piece_at = None
            if piece_at is not None:
                grown = piece_at.part(page, piece_at.end)
                layout.put(grown)
                piece_at = grown
        if piece_at is None and thread.lost:
            self._found_lost(thread, mm, page, PAGE)
            piece_at = layout.find(address)
        if piece_at is None:
            self._assume(thread, mm, page, page + PAGE, "[stack]" if hint == "[stack]" else "")
            piece_at = layout.find(address)
            assert piece_at is not None
        if piece_at.prot == 0:
            self._row("NOP", thread, mm.number, event)
            self._remark(f"faults on mappings known as inaccessible, kept as no-ops: first at line {event.line}")
            return
        named = piece_at.tag == "named"
        if not piece_at.prot & 2:
            access = ACCESS["exec"] if piece_at.prot & 4 else ACCESS["read"]
        else:
            access = ACCESS["read"] if named and page not in written else ACCESS["write"]
        row = self._row("TOUCH", thread, mm.number, event, addr=address, access=access)
        if piece_at.prot & 2:
            key = (mm.number, page)
            before = self.last_touch.get(key)
            count = 1
            if before is not None and before[1] == piece_at.epoch and not piece_at.shared | named:
                count = before[4] + 1
                race = before[2] != event.tid and event.start - before[3] < RACE
                if count == 2 and not race:
                    before[0][19] = ACCESS["read"]
            elif before is not None and before[1] == piece_at.epoch:
                count = before[4] + 1
                if count == 2:
                    before[0][19], row[19] = ACCESS["read"], ACCESS["write"]
                    written.add(page)
            self.last_touch[key] = (row, piece_at.epoch, event.tid, event.start, count)

    def _found_lost(self, thread: Thread, mm: Mm, start: int, length: int) -> None:
        """The address of an mmap whose end is lost shows in what its thread does next."""
        for i in range(len(thread.lost) - 1, -1, -1):
            event, row = thread.lost[i]
            size = pages_of(event.args["len"])
            if size >= length and not mm.layout.overlapping(start, start + size):
                del thread.lost[i]
                self._mapped(mm, event, row, start)
                row[6] = start
                return

    # -- calls: one method each ------------------------------------------------------------------------------

    def _do_nop(self, thread: Thread, mm: Mm, event: Event) -> None:
        self._row("NOP", thread, mm.number, event)

    def _do_mmap(self, thread: Thread, mm: Mm, event: Event) -> None:
        args = event.args
        flags = args["flags"]
        fields = {"addr": args["addr"] & ~0, "len": args["len"], "prot": args["prot"], "flags": flags,
                  "offset": args["offset"]}
        if event.result is not None and event.result < 0:
            if not flags & _ANON:
                fields["file"] = self._file(args.get("name"), args["fd"])
            self._failed(thread, mm, event, "MMAP", **fields)
            return
        row = self._row("MMAP", thread, mm.number, event, **fields)
        if event.result is None:
            row[18] = OPCODES["NOP"]
            self._remark(f"calls whose end is not recorded: first mmap at line {event.line}")
            thread.lost.append((event, row))
            return
        self._mapped(mm, event, row, event.result, thread)

    def _mapped(self, mm: Mm, event: Event, row: Row, result: int, thread: Thread | None = None) -> None:
        args = event.args
        flags = args["flags"]
        if result == 0 and not flags & FIXED:
            raise self._impossible(event, "result 0")
        start, end = self._check(event, result, args["len"])
        if flags & MAP["MAP_FIXED"] and args["addr"] != result:
            raise self._impossible(event, f"MAP_FIXED at {args['addr']:#x} gave {result:#x}")
        if thread is not None and not flags & FIXED:
            there = mm.layout.overlapping(start, end)
            if there:                               # its munmap is not recorded
                self._remark(f"unmappings assumed, because another mapping came in their place: first at line "
                             f"{event.line}")
                self.rows.pop()
                for piece in there:
                    low, high = max(piece.start, start), min(piece.end, end)
                    self._row("MUNMAP", thread, mm.number, None, addr=low, len=high - low, result=0)
                self.rows.append(row)
        row[18] = OPCODES["MMAP"]
        row[AT["addr"]] = result
        if not flags & FIXED:                      # a hint need not be honoured: there and nowhere else
            row[AT["flags"]] = flags | MAP["MAP_FIXED_NOREPLACE"]
        file = -1
        if not flags & _ANON:
            file = self._mapped_file(mm, event, start)
            row[AT["file"]] = file
        mm.layout.map(start, end, args["prot"], flags, file, args["offset"], epoch=len(self.rows),
                      maker=len(self.rows))
        mm.mapped.append((start, end))

    def _mapped_file(self, mm: Mm, event: Event, start: int) -> int:
        args = event.args
        if args.get("name"):
            return self._file(args["name"])
        if args["flags"] & MAP["MAP_FIXED"]:
            under = mm.layout.find(start)
            if under is not None and under.file >= 0 and self.files[under.file].fd == args["fd"]:
                return under.file
        file = self._file(None, args["fd"])
        if self.main is not None and mm is self.main.mm:
            for line in self.end_maps or ():
                if line.start <= start < line.end and line.ino and line.offset + start - line.start == args["offset"]:
                    self.files[file].guess = line.name
        return file

    def _do_munmap(self, thread: Thread, mm: Mm, event: Event) -> None:
        address, length = event.args["addr"], event.args["len"]
        if self._failed(thread, mm, event, "MUNMAP", addr=address, len=length):
            return
        if event.result is None:
            if thread.next >= len(thread.events):
                self._lost(thread, mm, event)
                return
            self._remark(f"calls whose end is not recorded, taken as successful: first munmap at line {event.line}")
        elif event.result != 0:
            raise self._impossible(event, f"result {event.result:#x}")
        start, end = self._check(event, address, length)
        if thread.lost and not mm.layout.overlapping(start, end):
            self._found_lost(thread, mm, start, end - start)
        if not mm.layout.covered(start, end):
            self._evidence(thread, mm, start, end, event)
        self._row("MUNMAP", thread, mm.number, event, addr=address, len=length, result=0)
        mm.layout.unmap(start, end)

    def _evidence(self, thread: Thread, mm: Mm, start: int, end: int, event: Event) -> None:
        """A call that needs a mapping succeeded on a range of which nothing is known."""
        if not mm.layout.overlapping(start, end) and mm.number not in self.tape.start_maps and end - start <= 1 << 30:
            self._assume(thread, mm, start, end)

    def _ranged(self, thread: Thread, mm: Mm, event: Event, op: str, evidence: bool = True,
                **fields: int) -> tuple[int, int] | None:
        """The common part of calls on a range; the range when it changes something."""
        address, length = event.args["addr"], event.args["len"]
        if self._failed(thread, mm, event, op, addr=address, len=length, **fields):
            return None
        if event.result is None:
            self._lost(thread, mm, event)
            return None
        if length == 0:
            self._row(op, thread, mm.number, event, addr=address, len=0, **fields)
            return None
        start, end = self._check(event, address, length, aligned=op not in ("MLOCK", "MUNLOCK"))
        if evidence and not mm.layout.covered(start, end):
            self._evidence(thread, mm, start, end, event)
        self._row(op, thread, mm.number, event, addr=address, len=length, **fields)
        return start, end

    def _do_mprotect(self, thread: Thread, mm: Mm, event: Event) -> None:
        prot = event.args["prot"]
        found = self._ranged(thread, mm, event, "MPROTECT", prot=prot)
        if found:
            mm.layout.protect(*found, prot, epoch=len(self.rows))

    def _do_madvise(self, thread: Thread, mm: Mm, event: Event) -> None:
        advice = event.args["flags"]
        found = self._ranged(thread, mm, event, "MADVISE", flags=advice)
        if found and advice in _DROPS_PAGES:
            for piece in mm.layout.isolate(*found):
                piece.epoch = len(self.rows)
        elif found and advice in (MADV["MADV_DONTFORK"], MADV["MADV_DOFORK"]):
            for piece in mm.layout.isolate(*found):
                piece.advice = 4 if advice == MADV["MADV_DONTFORK"] else 0

    def _do_mlock(self, thread: Thread, mm: Mm, event: Event) -> None:
        self._ranged(thread, mm, event, "MLOCK", flags=event.args.get("flags", 0))

    def _do_munlock(self, thread: Thread, mm: Mm, event: Event) -> None:
        self._ranged(thread, mm, event, "MUNLOCK")

    def _do_msync(self, thread: Thread, mm: Mm, event: Event) -> None:
        self._ranged(thread, mm, event, "MSYNC", flags=event.args.get("flags", 0))

    def _do_mincore(self, thread: Thread, mm: Mm, event: Event) -> None:
        self._ranged(thread, mm, event, "MINCORE")

    def _do_mbind(self, thread: Thread, mm: Mm, event: Event) -> None:
        flags = event.args.get("flags", 0)
        self._ranged(thread, mm, event, "MBIND", evidence=flags & 0xfff != 0, flags=flags)  # MPOL_DEFAULT allows holes

    def _do_mlockall(self, thread: Thread, mm: Mm, event: Event) -> None:
        if not self._failed(thread, mm, event, "MLOCKALL", flags=event.args.get("flags", 0)):
            self._row("MLOCKALL", thread, mm.number, event, flags=event.args.get("flags", 0))

    def _do_munlockall(self, thread: Thread, mm: Mm, event: Event) -> None:
        if not self._failed(thread, mm, event, "MUNLOCKALL"):
            self._row("MUNLOCKALL", thread, mm.number, event)

    def _do_mremap(self, thread: Thread, mm: Mm, event: Event) -> None:
        args, result = event.args, event.result
        fields = {"addr": args["addr"], "len": args["len"], "new_len": args["new_len"], "flags": args["flags"],
                  "new_addr": args["new_addr"]}
        if result is None:
            self._lost(thread, mm, event)
            return
        if result < 0:
            self._failed(thread, mm, event, "MREMAP", **fields)
            return
        old, old_end = self._check(event, args["addr"], max(args["len"], 1))
        new, new_end = self._check(event, result, args["new_len"])
        if not mm.layout.covered(old, old_end):
            self._evidence(thread, mm, old, old_end, event)
        if result != args["addr"]:                  # the kernel chose: replayed at the same place
            fields["flags"] |= MREMAP["MREMAP_MAYMOVE"] | MREMAP["MREMAP_FIXED"]
            fields["new_addr"] = result
        self._row("MREMAP", thread, mm.number, event, **fields)
        mm.layout.remap(old, old_end - old if args["len"] else 0, new, new_end - new, args["flags"],
                        epoch=len(self.rows), maker=len(self.rows))
        mm.mapped.append((new, new_end))

    def _do_brk(self, thread: Thread, mm: Mm, event: Event) -> None:
        asked, result = event.args["addr"], event.result
        if result is None:
            self._lost(thread, mm, event)
            return
        if not 0 < result < TOP:
            raise self._impossible(event, f"result {result:#x}")
        if mm.layout.brk is None:
            self._row("SETBRK", thread, mm.number, None, addr=result, new_addr=result)
            if asked:
                self._remark(f"first brk of a process is not a query, the start of its heap is unknown: first at line "
                             f"{event.line}")
        if mm.layout.brk is not None:
            mm.mapped.append((mm.layout.brk, max(pages_of(result), mm.layout.brk)))
        self._row("BRK", thread, mm.number, event, addr=asked)
        mm.layout.set_brk(result, epoch=len(self.rows), maker=len(self.rows))
