# SPDX-License-Identifier: GPL-2.0-only
"""Generated programs of memory operations, in units of pages: the same program is a tape for any page size.

Three kinds: "single" (one thread), "ordered" (three threads, every operation after the one before it) and "disjoint"
(three threads at the same time, each in a window of its own, so that the outcome does not depend on who is first).
Windows lie across the border of two page tables. What is left in the end is loaded page by page.
"""
from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from pykmm.tape import Tape
from pykmm.tape_builder import Address, OpStream

__all__ = ["KINDS", "Layout", "Program", "Step", "Written", "generate", "write"]

KINDS = ("single", "ordered", "disjoint")
#: Pages of a window, of the place for a stack above it, of a file, and of the heap that is looked at.
WINDOW, STACK, FILE_PAGES, HEAP = 12, 6, 4, 5
#: Pages from the window to the stack: more than the guard gap (256 pages), and more than a stack may grow (8 MiB).
STACK_AT = 4096

_PRIVATE, _SHARED, _FIXED, _GROWSDOWN, _NOREPLACE = 0x02, 0x01, 0x10, 0x100, 0x100000
_DONTNEED = 4
_HALVES = ((0, 0), (0, 1), (1, 0), (1, 5), (2, -2))     # offset = half pages + bytes; the last crosses into the next
_PROTS = (3, 3, 3, 1, 0, 5, 7)
#: How often each operation is chosen.
_WEIGHTS = {
    "mmap": 14, "file": 6, "munmap": 8, "mprotect": 10, "mremap": 8, "dontneed": 8, "madvise": 4, "touch": 12,
    "store": 16, "load": 10, "brk": 5, "heap": 5, "stack": 3, "grow": 3, "mlock": 2, "munlock": 1, "msync": 1,
    "mincore": 2, "truncate": 3, "fork": 3,
}


@dataclass(frozen=True)
class Step:
    """One operation of a stream in an address space (0 = the first, n = the child of the n-th fork)."""

    op: str
    stream: int
    space: int = 0
    at: int = 0             #: page of the window
    pages: int = 0
    shift: int = 0          #: bytes added to the address
    extra: int = 0          #: bytes added to the length
    half: int = 0           #: half pages added to the address (accesses)
    prot: int = 0
    flags: int = 0
    to: int = 0             #: mremap: page of the new place
    to_pages: int = 0
    data: bytes = b""
    access: str = ""
    child: int = 0          #: fork: the number of the new address space

    def __str__(self) -> str:
        words = [f"thread {self.stream}" + (f" in child {self.space}" if self.space else "") + f": {self.op}"]
        if self.op in ("fork", "munlockall"):
            return words[0] + (f" (child {self.child})" if self.child else "")
        where = f"page {self.at}"
        if self.half or self.shift:
            where += f" + {f'{self.half}/2 page' if self.half else ''}{self.shift:+d}"
        words.append(where)
        if self.pages or self.extra:
            words.append(f"{self.pages} pages" + (f" {self.extra:+d} bytes" if self.extra else ""))
        if self.op in ("mmap", "mprotect", "file"):
            words.append("prot " + ("".join(c for c, bit in zip("rwx", (1, 2, 4), strict=True) if self.prot & bit)
                                    or "none"))
        if self.flags:
            words.append(f"flags {self.flags:#x}")
        if self.op == "mremap":
            words.append(f"to page {self.to}, {self.to_pages} pages")
        if self.data:
            words.append(repr(self.data))
        if self.access:
            words.append(self.access)
        return " ".join(words)


@dataclass(frozen=True)
class Program:
    """Steps, and how their threads run."""

    kind: str
    seed: int
    streams: int
    steps: tuple[Step, ...]

    @property
    def ordered(self) -> bool:
        """Every operation after the one before it."""
        return self.kind != "disjoint"

    def without(self, index: int) -> Program:
        """The program without one step, and without what happens in the child that it made."""
        gone = self.steps[index]
        kept = [step for i, step in enumerate(self.steps)
                if i != index and not (gone.op == "fork" and step.space == gone.child)]
        return replace(self, steps=tuple(kept))

    def __str__(self) -> str:
        return "\n".join(f"{i:3}  {step}" for i, step in enumerate(self.steps))


@dataclass(frozen=True)
class Layout:
    """Where the windows lie. All in bytes."""

    page: int
    span: int                       #: that one page table maps
    base: int = 0x7f12_0000_0000    #: a multiple of span; the border of two tables in the first window

    def window(self, stream: int) -> int:
        """The first address of a stream's window."""
        step = max(self.span, 4 * STACK_AT * self.page)
        return self.base + stream * step - WINDOW // 2 * self.page

    def pages(self, offset: int) -> tuple[int, int]:
        """Pages and bytes; bytes are negative before the middle of the next page's."""
        rest = (offset + self.page // 2) % self.page - self.page // 2
        return (offset - rest) // self.page, rest

    def place(self, address: int, heap: int, streams: int) -> tuple[str, int, int] | None:
        """What an address is, independent of the page size: (area, pages into it, bytes); None: elsewhere."""
        if heap and heap - self.page < address < heap + (64 + HEAP) * self.page:
            return "heap", *self.pages(address - heap)
        for stream in range(streams):
            start = self.window(stream)
            if start - 64 * self.page <= address < start + (STACK_AT + STACK + 64) * self.page:
                return f"window {stream}", *self.pages(address - start)
        return None


@dataclass
class Written:
    """A program as a tape."""

    tape: Tape
    ops: list[int]                  #: by step: the operation; -1 = left out (its address space was never made)
    probes: list[int]               #: loads of what is left
    heap: int                       #: the operation that asks for the heap's start
    names: dict[int, str] = field(default_factory=dict)     #: by operation: what it is, in words
    #: by address space of the tape: the one window whose mappings do not depend on who was first
    windows: dict[int, int] = field(default_factory=dict)


def generate(kind: str, seed: int, length: int = 25, *, mlock: bool = True, stack: bool = True) -> Program:
    """A random program. The same arguments give the same one. `mlock`, `stack`: with these operations."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of program {kind!r}; known: {', '.join(KINDS)}")
    rng = random.Random(f"{kind} {seed}")
    streams = 1 if kind == "single" else 3
    # What a child shares with its parent depends on who is first, where nothing orders them.
    forks = kind != "disjoint" or seed % 2 == 0
    shares = kind != "disjoint" or not forks
    names = [name for name in _WEIGHTS if (mlock or name not in ("mlock", "munlock"))
             and (stack or name not in ("stack", "grow")) and (forks or name != "fork")
             and (shares or name not in ("file", "truncate"))]
    weights = [_WEIGHTS[name] for name in names]
    spaces: dict[int, int] = {0: -1}        # number -> stream that owns it (-1: all)
    steps = [Step("mmap", stream, at=rng.randrange(3), pages=rng.randrange(4, 9), prot=3, flags=_FIXED)
             for stream in range(streams) if kind == "disjoint" or stream == 0]
    for _ in range(length * (2 if kind == "disjoint" else 1)):
        stream = rng.randrange(streams)
        space = rng.choice([number for number, owner in spaces.items() if owner in (-1, stream)])
        name = rng.choices(names, weights)[0]
        if kind == "disjoint" and name in ("brk", "heap") and stream:
            name = "store"
        if name == "fork":
            if space or len(spaces) > 3:
                name = "load"
            else:
                spaces[len(spaces)] = stream if kind == "disjoint" else -1
                steps.append(Step("fork", stream, child=len(spaces) - 1))
                continue
        steps.append(_step(rng, name, stream, space, shares))
    return Program(kind, seed, streams, tuple(steps))


def _step(rng: random.Random, name: str, stream: int, space: int, shares: bool) -> Step:
    at = rng.randrange(WINDOW)
    pages = min(rng.randrange(1, 7), WINDOW - at)
    step = Step(name, stream, space, at, pages)
    half, shift = rng.choice(_HALVES)
    odd_shift, odd_extra = (rng.choice([0, 1, 0x800]), rng.choice([0, 1, 0x801])) if rng.random() < 0.08 else (0, 0)
    odd = replace(step, shift=odd_shift, extra=odd_extra)
    if name == "mmap":
        flags = rng.choice([_FIXED, _FIXED, _FIXED, _NOREPLACE, _FIXED | _NOREPLACE])
        if shares and rng.random() < 0.2:
            flags |= _SHARED
        return replace(odd, extra=1 << 62 if rng.random() < 0.02 else odd.extra, prot=rng.choice(_PROTS), flags=flags)
    if name == "file":
        to = rng.randrange(FILE_PAGES)
        return replace(step, pages=min(rng.randrange(1, 4), FILE_PAGES - to, WINDOW - at), to=to,
                       prot=rng.choice(_PROTS), flags=rng.choice([_PRIVATE, _SHARED]) | _FIXED)
    if name == "munmap" and rng.random() < 0.03:
        return replace(odd, extra=1 << 62)      # does not fit: must do nothing
    if name == "mprotect":
        return replace(odd, prot=rng.choice(_PROTS))
    if name == "mremap":
        to = rng.randrange(WINDOW)
        to_pages = min(rng.randrange(1, 7), WINDOW - to)
        flags = rng.choice([0, 0, 3, 3, 7])
        return replace(step, to=to, to_pages=pages if flags == 7 else to_pages, flags=flags)
    if name == "dontneed":
        return replace(odd, op="madvise", flags=_DONTNEED)
    if name == "madvise":
        return replace(odd, flags=rng.choice([3, 10, 11, 22, 23, 4711]))
    if name == "touch":
        return replace(step, access=rng.choice(["read", "write"]))
    if name in ("store", "heap"):
        data = bytes(rng.randrange(1, 256) for _ in range(rng.randrange(1, 5)))
        return replace(step, at=rng.randrange(HEAP) if name == "heap" else at, pages=0, half=half, shift=shift,
                       data=data)
    if name == "load":
        return replace(step, pages=0, half=half, shift=shift)
    if name == "brk":
        return replace(step, at=rng.randrange(HEAP + 1), pages=0, shift=rng.choice([0, 0, 1, -1]))
    if name == "stack":
        return replace(step, at=STACK - 2, pages=2, prot=3, flags=_FIXED | _GROWSDOWN)
    if name == "grow":
        return replace(step, at=rng.randrange(STACK), pages=0, data=bytes([rng.randrange(1, 256)]))
    if name == "msync":
        return replace(odd, flags=rng.choice([1, 4, 5]))
    if name == "truncate":
        return replace(step, at=0, pages=rng.randrange(FILE_PAGES + 1))
    return odd


def _file(stream: int, page: int) -> bytes:
    return b"".join(bytes([65 + 8 * stream + n]) * page for n in range(FILE_PAGES))


def write(program: Program, layout: Layout) -> Written:
    """The tape of a program for one page size."""
    return _Writer(program, layout).written


class _Writer:
    def __init__(self, program: Program, layout: Layout) -> None:
        self.program, self.layout, self.page = program, layout, layout.page
        tape = Tape()
        for stream in range(program.streams):
            tape.file(f"f{stream}", data=_file(stream, self.page))
        heap = tape.setup.brk(0)
        self.heap: Address = heap
        self.threads: dict[tuple[int, int], OpStream] = {(0, s): tape.thread() for s in range(program.streams)}
        self.children: dict[int, OpStream] = {}
        self.written = Written(tape, [], [], heap.op)
        self.last: int | None = None
        for step in program.steps:
            self.written.ops.append(self._step(step))
        for space, child in self.children.items():
            for owner in self._owners(space):
                self._probe(child, owner, f"child {space}")
        for owner in range(program.streams):
            self._probe(tape.final, owner, "the end")

    def _owners(self, space: int) -> list[int]:
        """Whose windows a child may look at: in others somebody is at work when it is forked."""
        if self.program.ordered:
            return [0]
        return [step.stream for step in self.program.steps if step.op == "fork" and step.child == space]

    def _window(self, stream: int) -> int:
        return self.layout.window(0 if self.program.ordered else stream)

    def _step(self, step: Step) -> int:
        if step.space:
            if step.space not in self.children:
                return -1
            writer = self.children[step.space]
        else:
            writer = self.threads[0, step.stream]
        op = self._add(writer, step)
        self._order(op)
        self.written.names[op] = str(step)
        return op

    def _order(self, op: int) -> None:
        if self.program.ordered:
            if self.last is not None:
                self.written.tape.edges.append((self.last, op))
            self.last = op

    def _add(self, writer: OpStream, step: Step) -> int:
        page = self.page
        window = self._window(step.stream)
        where = window + step.at * page + step.half * (page // 2) + step.shift
        length = step.pages * page + step.extra
        name = f"f{0 if self.program.ordered else step.stream}"
        made: Any
        if step.op == "mmap":
            made = writer.mmap(length, step.prot, addr=where,
                               flags=step.flags if step.flags & _SHARED else step.flags | _PRIVATE)
        elif step.op == "file":
            made = writer.mmap(length, step.prot, addr=where, flags=step.flags, file=name, offset=step.to * page)
        elif step.op == "mremap":
            made = writer.mremap(where, length, step.to_pages * page, step.flags,
                                 window + step.to * page if step.flags & 2 else 0)
        elif step.op == "madvise":
            made = writer.madvise(where, length, step.flags)
        elif step.op == "msync":
            made = writer.msync(where, length, step.flags)
        elif step.op == "mprotect":
            made = writer.mprotect(where, length, step.prot)
        elif step.op == "touch":
            made = writer.touch(where, length, step.access)
        elif step.op == "store":
            made = writer.store(where, step.data)
        elif step.op == "load":
            made = writer.load(where, 4)
        elif step.op == "brk":
            made = writer.brk(self.heap + (step.at * page + step.shift))
        elif step.op == "heap":
            made = writer.store(self.heap + (step.at * page + step.half * (page // 2) + step.shift), step.data)
        elif step.op == "stack":
            made = writer.mmap(length, step.prot, addr=where + STACK_AT * page, flags=step.flags | _PRIVATE)
        elif step.op == "grow":
            made = writer.store(where + STACK_AT * page, step.data)
        elif step.op == "truncate":
            made = writer.truncate(name, step.pages * page)
        elif step.op == "fork":
            child = self.children[step.child] = writer.fork()
            if not self.program.ordered:
                self.written.windows[child.mm] = step.stream
            made = len(self.written.tape) - 1
        else:
            made = getattr(writer, step.op)(where, length)
        return made.op if isinstance(made, Address) else int(made)

    def _probe(self, writer: OpStream, stream: int, who: str) -> None:
        page, window = self.page, self._window(stream)
        if self.program.ordered and stream:
            return
        places: list[tuple[str, Any]] = [(f"page {n}", window + n * page) for n in range(WINDOW)]
        places += [(f"page {n} of the stack", window + (STACK_AT + n) * page) for n in range(STACK)]
        if stream == 0:
            places += [(f"page {n} of the heap", self.heap + n * page) for n in range(HEAP)]
        for name, at in places:
            for offset in (0, page // 2, page - 8):
                op = writer.load(at + offset, 8)
                if writer.phase == 1:
                    self._order(op)
                self.written.probes.append(op)
                self.written.names[op] = f"what is left in {name} at {who}"
